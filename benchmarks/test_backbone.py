"""A tiny form of benchmarks/backbone.py in every test run: what was delivered is asserted.

Rules of this room
  1. Ends, nodes and plain loops are the real ones, only sizes differ. Times and memory are shown,
     and decide nothing.
  2. The recorded messages are judged here as well: the plain loop sends what the hop sent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import backbone
import pytest
from rivals import ends, hop_loads, hop_runs, hops, measure
from rivals.bench import Turns
from rivals.hop_forms import TINY, HopForm
from rivals.hop_runs import HopRun
from rivals.servers import ServerError
from rivals.verdict import Line

needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs two cores: one for each end"
)
needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc is missing: apt-get install gcc"
)
# What a machine that is busy with other things may miss; the rest is delivered or it is not.
TIMES = ("÷", "CPU", "lateness")


def delivered(lines: list[Line]) -> None:
    """Hold what is no time to its goal."""
    missed = [
        line
        for line in lines
        if line.verdict != "shown"
        and line.verdict != "met"
        and not any(word in line.what for word in TIMES)
    ]
    assert not missed, f"{missed}"


@needs_two_cores
@needs_gcc
@pytest.mark.parametrize("figure", backbone.ALL)
def test_a_tiny_backbone(benchmark: Any, figure: str) -> None:
    """Every frame arrives with the bytes that were sent, at each end and in each rival."""
    bench = Turns(TINY, *measure.cores())
    lines = benchmark.pedantic(lambda: list(backbone.ALL[figure](bench)), rounds=1)
    broken = [told["why"] for told in bench.runs if told["broken"]]
    assert not broken, f"{broken}"
    delivered(lines)
    benchmark.extra_info |= {line.what: line.measured for line in lines}
    for line in lines:
        if line.what == "frames/s ÷ plain loop, same messages" and line.values:
            benchmark.extra_info["ratio_to_plain_loop"] = round(line.values[0], 2)


def run_of(payloads: list[bytes]) -> bytes:
    """A run as it is on the wire (docs/wire.md), its head of no meaning."""
    records = b"".join(len(one).to_bytes(3, "little") + b"\1" + bytes(4) for one in payloads)
    head = b"S" + bytes(ends.RUN_FIXED_BYTES - 3) + len(payloads).to_bytes(2, "little")
    return head + records + b"".join(payloads)


def test_a_run_is_split_into_the_same_frames() -> None:
    """One message a frame: each with a whole head, one record and its own payload."""
    payloads = [b"a" * 5, b"bb", b"c" * 300]
    single = ends.split(run_of(payloads))
    assert single == [run_of([one]) for one in payloads]
    assert [ends.frames_in(one) for one in (run_of(payloads), *single)] == [3, 1, 1, 1]


def test_laps_that_were_cut_differently_are_no_laps(tmp_path: Any) -> None:
    """Each lap of the plain loop has as many messages; bytes and sums are told for each."""
    told = hops.file_of(tmp_path / "packed", [[b"ab", b"c"], [b"d", b"ef"]])
    assert (told.lap, told.laps, told.lap_bytes) == (2, 2, (3, 3))
    assert told.lap_sums == (sum(b"abc"), sum(b"def"))
    with pytest.raises(ValueError, match="cut differently"):
        hops.file_of(tmp_path / "packed", [[b"ab"], [b"d", b"ef"]])


@needs_gcc
def test_the_plain_loop_tells_when_its_file_is_no_messages(tmp_path: Any) -> None:
    """What a process prints about its end is in the error."""
    (tmp_path / "torn").write_bytes((100).to_bytes(4, "little") + b"short")
    with (
        ends.Loop(-1, "send", tmp_path / "torn", port=1, lap=1) as loop,
        pytest.raises(ServerError, match="ends within one"),
    ):
        loop.hear()


def test_a_core_that_others_used_makes_a_run_not_valid() -> None:
    """The reason names the share."""
    run = HopRun("hop")
    hop_runs.judge(run, 0.05, 0.1)
    assert run.valid
    hop_runs.judge(run, 0.25, 0.1)
    assert not run.valid
    assert "25%" in run.why


def sound(name: str) -> HopRun:
    """A run in which nothing went wrong, as each figure reads it."""
    words = (
        "lost missing sums_unequal p50_ms p99_ms max_ms source_late_ms batch core taken_÷_readable "
        "taken_÷_asked taken_÷_held per_stream ring places idle"
    )
    values = dict.fromkeys(words.split(), 0.0) | {"frames_per_s": 1e6, "cpu_ns": 100.0}
    return HopRun(name, values=values, threads_s={"relay-backbone": 0.1})


class Canned(Turns[HopForm]):
    """A bench whose runs are made up."""

    def __init__(self, make: Callable[[str], HopRun | None]) -> None:
        super().__init__(TINY, 0, 1, say=lambda _: None)
        self.make = make

    def repeat(self, name: str, once: Any, outcome: Any) -> Any:
        """Answer what was made up."""
        return self.make(name)


LOADS = {"streams": hop_loads.streams, "memory": hop_loads.memory}


@pytest.mark.parametrize("name", LOADS)
def test_a_figure_is_met_by_sound_runs_and_not_valid_without(name: str) -> None:
    """No line is missed for no reason, and no number comes from nothing."""
    assert {line.verdict for line in LOADS[name](Canned(sound))} <= {"met", "shown"}
    assert {line.verdict for line in LOADS[name](Canned(lambda _: None))} == {"not valid"}


def test_a_frame_that_is_missing_is_missed() -> None:
    """A count is held to its worst run, whatever the rest did."""

    def spoiled(name: str) -> HopRun:
        run = sound(name)
        run.values["missing"] = 1.0
        return run

    missed = [line.what for line in hop_loads.streams(Canned(spoiled)) if line.verdict == "MISSED"]
    assert missed == ["frames missing"]
