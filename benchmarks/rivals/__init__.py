"""The edge beside its rivals: servers, what they cost, and the figures that judge them.

measure    what a process costs, read from /proc and ss; medians, ranges, ratios
servers    Relay, Icecast and the bare loop, each on one core
crowd      the swarm on the other core
figures    the scenarios: what is run, and what is made of it
verdict    goals, met or missed; the table and the JSON
"""
