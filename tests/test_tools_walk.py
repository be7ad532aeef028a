"""The walk's schedule comes from its seed alone; each invariant is named when it is broken."""

from __future__ import annotations

import itertools
import struct

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tools.children import HEAD, mount_key
from tools.invariants import SILENT_S, SLACK, Floor, Heard, Judge
from tools.sources import FrameChecker, FrameMaker
from tools.taps import RUN, payloads
from tools.walk import KINDS, ROWS, WEIGHTS, main, parse_weights, schedule


def test_the_same_seed_gives_the_same_schedule() -> None:
    """And another one another."""
    assert schedule(7, 600) == schedule(7, 600)
    assert schedule(7, 600) != schedule(8, 600)


def test_a_longer_walk_begins_as_a_shorter_one() -> None:
    """So that a breach of a long walk may be repeated up to where it was."""
    for row, steps in schedule(7, 100).items():
        assert schedule(7, 600)[row][: len(steps)] == steps


@given(st.integers(0, 1 << 40))
def test_in_a_row_one_is_at_fault_at_a_time(seed: int) -> None:
    """Each step ends before the next of its row begins; victims and faults belong to the row."""
    for row, steps in schedule(seed, 120).items():
        for step, following in itertools.pairwise(steps):
            assert step.at_s + step.lasts_s < following.at_s
        assert {step.victim for step in steps} <= set(ROWS[row])
        assert all(row in KINDS[step.fault].rows for step in steps)


def test_a_weight_of_zero_takes_a_fault_out() -> None:
    """And all others stay."""
    steps = [step for row in schedule(1, 3000, WEIGHTS | {"cut": 0}).values() for step in row]
    assert {step.fault for step in steps} == set(WEIGHTS) - {"cut"}


def test_weights_are_checked() -> None:
    """What is no fault, or no number, is said."""
    assert parse_weights(["cut=9"])["cut"] == 9
    for arguments in (["--weight", "cat=1"], ["--weight", "cut=x"], ["--plant", "edge-1=dust"]):
        told = CliRunner().invoke(main, arguments)
        assert told.exit_code == 2, told.output


def test_the_schedule_can_be_shown() -> None:
    """Without starting anything."""
    told = CliRunner().invoke(main, ["--seed", "5", "--seconds", "30", "--show"])
    steps = sum(len(row) for row in schedule(5, 30).values())
    assert told.exit_code == 0
    assert len(told.output.splitlines()) == steps


# --- invariants ---


@given(st.lists(st.integers(0, 1000), min_size=20), st.integers(10, 50))
def test_what_comes_back_to_its_floor_is_no_growth(swings: list[int], floor: int) -> None:
    """However high it swings in between."""
    judged = Floor(slack=6, window_s=2.0)
    for now_s, swing in enumerate(swings):
        assert not judged.take(now_s, floor + (swing if now_s % 2 else 0))


def test_a_descriptor_a_minute_is_found_within_ten() -> None:
    """Under swings of a hundred, by the floor alone."""
    judged, found = Floor(SLACK["descriptors"], window_s=30.0), 0
    for second in range(600):
        swing = 100 if second % 7 else 0
        found = judged.take(second, 40 + second // 60 + swing) or found
    assert found > SLACK["descriptors"]


class Case:
    """A judge and one listener."""

    def __init__(self) -> None:
        self.judge, self.checker, self.maker = Judge(window_s=2.0), FrameChecker(), FrameMaker()
        self.now_s = 0.0

    def look(self, reported: int | None = 0, *, alive: bool = True) -> set[str]:
        """Judge a second later; which invariants are broken by now."""
        self.now_s += 1.0
        self.judge.listener(self.now_s, Heard("edge-1/one", alive, self.checker), reported)
        return {breach.invariant for breach in self.judge.breaches}


@pytest.fixture
def case() -> Case:
    """A listener that has heard ten frames, and a judge that found nothing."""
    made = Case()
    made.checker.feed(b"".join(made.maker.frames(10)))
    assert not made.look()
    return made


def test_repeated_frame_is_named(case: Case) -> None:
    """Once, however often it is looked at."""
    frame = case.maker.frame()
    case.checker.feed(frame + frame)
    assert case.look() == case.look() == {"repeat"}
    assert len(case.judge.breaches) == 1


def test_frame_that_comes_late_is_named(case: Case) -> None:
    """Two frames in the wrong order."""
    first, second = case.maker.frames(2)
    case.checker.feed(second + first)
    assert case.look() == {"order"}


def test_missing_frame_is_named_once_counters_had_their_time(case: Case) -> None:
    """At the second look, unless its node has counted it by then, or does not answer."""
    case.maker.frames(3)
    case.checker.feed(case.maker.frame())
    assert case.look(0) == set()
    assert case.look(None) == set()
    assert case.look(3) == set()
    assert case.look(2) == {"unreported"}


def test_damage_an_end_and_silence_are_named(case: Case) -> None:
    """Each by its own name."""
    case.checker.feed(bytes(100))
    assert case.look() == {"damage"}
    assert case.look(alive=False) == {"damage", "thrown_off"}
    case.now_s += SILENT_S
    assert case.look() == {"damage", "thrown_off", "silent"}


def test_losses_deaths_and_growth_are_named() -> None:
    """Of processes."""
    judge = Judge(window_s=2.0)
    judge.lost("edge-1/one", 0)
    for second in range(20):
        judge.process(second, "edge-1", 1, {"descriptors": 50, "threads": 9, "memory": 10})
    assert not judge.breaches
    judge.lost("edge-1/one", 2)
    judge.died("edge-2", -6)
    for second in range(20):
        judge.process(second, "edge-3", 2, {"descriptors": 50 + second, "threads": 9 + second})
    assert [one.invariant for one in judge.breaches] == ["lost", "died", "threads", "descriptors"]


def test_a_tap_takes_the_frames_out_of_a_run() -> None:
    """As docs/wire.md lays it out; and nothing out of other messages, or the half of one."""
    frames = FrameMaker().frames(3)
    head = HEAD.pack(b"S", mount_key("/one"), 1) + RUN.pack(0, 0, 1, 2, 3, 4, 5, len(frames))
    records = b"".join(struct.pack("<II", len(frame) | 1 << 24, 26_122) for frame in frames)
    message = head + records + b"".join(frames)
    assert payloads(message) == frames
    assert payloads(b"B" + message[1:]) == payloads(message[:40]) == []
