"""A tiny form of benchmarks/edge.py in every test run: what was delivered is asserted.

Rules of this room
  1. About 20 s in all. Servers, plans and swarm are the real ones, only sizes differ. Times are
     shown, and decide nothing.
  2. Loopback charges the receiver's half of each send to the sender, for both alike: the ratio to
     the bare loop is what travels to other machines.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import Any

import edge
import pytest
from rivals import forms, measure
from rivals.bench import Bench
from rivals.verdict import Line

pytestmark = [
    pytest.mark.skipif(
        len(os.sched_getaffinity(0)) < 2, reason="needs two cores: one serves, one listens"
    ),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: apt-get install gcc"),
]
BESIDE = dataclasses.replace(forms.TINY, pace_listeners=1000, window_s=2.0)
# What a machine that is busy with other things may miss; the rest is delivered or it is not.
TIMES = ("CPU", "lateness", "first audio", "longest gap", "per second", "head's advance")


def run(figure: str, form: forms.Form = forms.TINY) -> tuple[Bench, list[Line]]:
    """Run one figure in a tiny form; a run for which the machine was too busy is no failure."""
    bench = Bench(form, *measure.cores())
    lines = list(edge.ALL[figure](bench))
    broken = [told["why"] for told in bench.runs if told["broken"]]
    assert not broken, f"{broken}"
    return bench, lines


def delivered(lines: list[Line]) -> None:
    """Hold what is no time to its goal."""
    missed = [
        line
        for line in lines
        if line.verdict == "MISSED" and not any(word in line.what for word in TIMES)
    ]
    assert not missed, f"{missed}"


def test_the_edge_beside_the_bare_loop(benchmark: Any) -> None:
    """Both get the same crowd in turns; every frame arrives, and both sent as often."""
    bench, lines = benchmark.pedantic(run, args=("pace", BESIDE), rounds=1)
    delivered(lines)
    benchmark.extra_info |= {line.what: line.measured for line in lines}
    ratio = next(line for line in lines if line.what == "CPU ÷ bare loop")
    if ratio.values:
        benchmark.extra_info["ratio_to_bare_loop"] = round(ratio.values[0], 3)
    assert all(told["listeners"] == BESIDE.pace_listeners for told in bench.runs)


@pytest.mark.parametrize("figure", ["storm100ms", "refuse"])
def test_the_door_in_a_tiny_storm(benchmark: Any, figure: str) -> None:
    """All who may come in are in, all others got a whole 503, and the incumbents lost nothing."""
    _, lines = benchmark.pedantic(run, args=(figure,), rounds=1)
    delivered(lines)
    benchmark.extra_info |= {line.what: line.measured for line in lines}
