"""Faults and checkers for the tests: real sockets, real processes, named troubles."""
