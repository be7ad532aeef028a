"""The edge and the backbone beside their rivals: what runs, what it costs, what is judged.

measure    what a process costs, read from /proc and ss; medians, ranges, ratios
bench      who runs when: contestants in turns, what was not valid once more
verdict    goals, met or missed; the table and the JSON
command    options, exit status, the file of results
forms      how large the edge's benchmark is; hop_forms, the backbone's

servers    Relay, Icecast and the bare loop, each on one core
crowd      the swarm on the other core
plans      what a crowd does; figures, storms: the edge's scenarios and their goals
chart      the README's chart, from the results

ends       the processes of a hop: its ends (hop_end), a node in between, the plain loop (packed.c)
hop_runs   laps over a hop and over the plain loop, and what they cost
hops       the backbone's figures that are ratios; hop_loads, those under a given load
"""
