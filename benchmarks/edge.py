"""The edge beside its rivals, in one command: `python benchmarks/edge.py`.

Rules of this room
  1. Relay, Debian's Icecast and a bare C loop of sends run in turns on one core, the swarm on the
     other; what is printed and kept, and the exit status, is told in rivals/command.py.
  2. `--short` is what `make bench` runs; the numbers of the documentation come from the long form.
"""

from __future__ import annotations

import click
from rivals import figures, forms, storms
from rivals.bench import Bench
from rivals.command import Plan, command

ALL: dict[str, figures.Figure] = {
    "pace": figures.pace,
    "house": figures.house,
    "icy": figures.icy,
    "auto": figures.auto,
    "storm1s": storms.storm1s,
    "storm100ms": storms.storm100ms,
    "stalled": figures.stalled,
    "refuse": figures.refuse,
    "memory": figures.memory,
    "mounts": figures.mounts,
    "uring": figures.uring,
}


def bench(form: forms.Form, server_core: int, load_core: int) -> Bench:
    """One session, which says what it does."""
    return Bench(form, server_core, load_core, say=click.echo)


PLAN = Plan("edge", ALL, forms.LONG, forms.SHORT, forms.TINY, bench)
main = command(
    PLAN, "Measure the edge beside its rivals: goals, measurements, met or MISSED.", "five minutes"
)

if __name__ == "__main__":
    main()
