"""The backbone beside plain loops over the same libzmq: `python benchmarks/backbone.py`.

Rules of this room
  1. The server's end and the load's end are processes on a core each; ratios are of neighbours in
     turns. What is printed and kept, and the exit status, is told in rivals/command.py.
  2. The numbers of the documentation come from the long form; the tiny one runs in every test run.
"""

from __future__ import annotations

import click
from rivals import hop_loads, hops
from rivals.bench import Turns
from rivals.command import Plan, command
from rivals.hop_forms import LONG, SHORT, TINY, HopForm

ALL: dict[str, hops.Figure] = {
    "hop": hops.hop,
    "load": hop_loads.load,
    "children": hops.children,
    "streams": hop_loads.streams,
    "pace": hop_loads.late,
    "keys": hops.curve,
    "memory": hop_loads.memory,
}


def bench(form: HopForm, server_core: int, load_core: int) -> hops.HopBench:
    """One session, which says what it does."""
    return Turns(form, server_core, load_core, say=click.echo)


PLAN = Plan("backbone", ALL, LONG, SHORT, TINY, bench)
main = command(
    PLAN,
    "Measure a hop beside plain loops over the same libzmq: goals, measurements, met or MISSED.",
    "two minutes",
)

if __name__ == "__main__":
    main()
