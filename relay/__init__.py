"""Relay: a live-audio stream relay that does not fail when it matters."""
