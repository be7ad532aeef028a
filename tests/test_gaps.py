"""Gaps that a listener can hear, on a fake clock: each once, with its cause."""

from __future__ import annotations

import pytest

from relay import recorder
from relay.gaps import (
    GAPS_MAX,
    MERGE_US,
    SETTLE_US,
    Evidence,
    Gap,
    GapBook,
    Head,
    cause_of,
)  # fmt: skip
from relay.recorder import NOBODY, Record

KEY = 77
BURST_MS = 3000
WALL_US = 1_700_000_000_000_000
TICK_US = 500_000


@pytest.mark.parametrize(
    ("evidence", "wanted"),
    [
        (Evidence("skip"), "listener"),
        (Evidence("skip", busy_permille=899), "listener"),
        (Evidence("skip", busy_permille=900), "own overload"),
        (Evidence("skip", put_off=True), "own overload"),
        (Evidence("skip", paused=True), "own overload"),
        (Evidence("lost"), "hop"),
        (Evidence("lost", paused=True), "own overload"),
        (Evidence("epoch"), "source"),
        (Evidence("epoch", upstream_lost=True), "hop"),
        (Evidence("silence", written_here=True), "source"),
        (Evidence("silence", written_here=True, paused=True), "own overload"),
        (Evidence("silence"), "source"),
        (Evidence("silence", upstream_lost=True), "hop"),
    ],
)
def test_whose_fault(evidence: Evidence, wanted: str) -> None:
    """The pure decision, case by case."""
    assert cause_of(evidence) == wanted


class World:
    """One node with one stream, looked at twice a second."""

    def __init__(self, *, is_here: bool = False) -> None:
        self.book = GapBook()
        self.now_us = 10_000_000
        self.sequence = 100
        self.epoch = 1
        self.is_here = is_here
        self.source_up = True
        self.burst_ms = BURST_MS
        self.records: list[Record] = []
        self.told: list[Gap] = []
        self.look()

    def record(self, kind: int, *, at_us: int | None = None, **fields: int) -> None:
        """Something is recorded now."""
        at_us = self.now_us if at_us is None else at_us
        empty = dict.fromkeys(Record._fields, 0) | {"parent": NOBODY, "times": 1, "stream": KEY}
        told = {"at_us": at_us, "wall_us": WALL_US + at_us, "kind": kind}
        self.records.append(Record(**(empty | told | fields)))

    def look(self) -> None:
        """One look; what was recorded is read once."""
        head: Head = (
            KEY, "/live", self.epoch, self.sequence, self.sequence * 20_000, self.source_up,
            self.is_here, self.burst_ms, 3,
        )  # fmt: skip
        records, self.records = self.records, []
        self.told += self.book.see(self.now_us, WALL_US + self.now_us, [head], records)

    def run(self, seconds: float, *, frames: int = 25) -> None:
        """Time goes on, the stream with it unless frames is 0."""
        for _ in range(int(seconds * 1e6 / TICK_US)):
            self.now_us += TICK_US
            self.sequence += frames
            self.look()


def test_a_stream_that_flows_has_no_gap() -> None:
    """Nor has one that pauses for less than the burst that players hold."""
    world = World()
    world.run(10)
    world.run(2.5, frames=0)
    world.run(5)
    assert world.told == []


def test_lost_frames_are_one_gap_of_the_hop() -> None:
    """Pieces that belong together are told once, after they have settled."""
    world = World()
    world.record(recorder.SWITCH, parent=1)
    world.run(1)
    world.record(recorder.LOST, parent=1, reason=1, a=100, b=5, c=100_000)
    world.run(0.5)
    assert world.told == []
    world.record(recorder.LOST, parent=1, reason=0, a=110, b=3, c=60_000)
    world.run(5)
    (gap,) = world.told
    assert (gap.cause, gap.parent, gap.frames, gap.listeners) == ("hop", 1, 8, 3)
    told = gap.document(["tcp://a:9", "tcp://b:9"])
    assert (told["hop"], told["cause"], told["frames"]) == ("tcp://b:9", "hop", 8)
    assert told["duration_ms"] == max(160, (gap.end_us - gap.begin_us) // 1000)
    assert world.book.gaps(KEY) == [gap]
    assert world.book.totals(KEY) == {"hop": 1}


def test_losses_apart_are_gaps_apart() -> None:
    """A second loss within the settling of the first is not swallowed."""
    world = World()
    world.record(recorder.LOST, b=1, c=20_000)
    world.run(0.5)
    world.record(recorder.LOST, at_us=world.now_us + MERGE_US, b=2, c=40_000)
    world.run(0.5)
    world.run(6)
    assert [gap.frames for gap in world.told] == [1, 2]
    assert len(world.book.gaps(KEY)) == 2


def test_an_outage_that_ends_in_a_loss_is_one_gap() -> None:
    """Cut for a minute: silence first, then the ring begins anew behind what is lost."""
    world = World()
    world.record(recorder.SWITCH, parent=0)
    world.run(2)
    world.record(3, stream=0, parent=0)
    world.run(60, frames=0)
    assert world.told == []  # it goes on
    world.record(2, stream=0, parent=0)
    world.record(recorder.EPOCH_BEGUN, a=1, b=5000)
    world.record(recorder.LOST, parent=0, reason=2, b=3000, c=60_000_000)
    world.run(5)
    (gap,) = world.told
    assert (gap.cause, gap.parent, gap.frames) == ("hop", 0, 3000)
    assert 59_000 <= gap.document([])["duration_ms"] <= 61_000


def test_a_source_that_is_silent_while_it_is_connected() -> None:
    """At the origin: longer than the burst."""
    world = World(is_here=True)
    world.run(2)
    world.run(8, frames=0)
    world.run(3)
    (gap,) = world.told
    assert gap.cause == "source"
    assert 7_500_000 <= gap.duration_us <= 8_500_000


def test_a_source_that_returns_is_one_gap_and_one_that_leaves_is_none() -> None:
    """From the end of the one epoch to the begin of the next."""
    world = World(is_here=True)
    world.run(2)
    world.record(recorder.EPOCH_ENDED, a=1)
    world.source_up = False
    world.run(10, frames=0)
    world.record(recorder.EPOCH_BEGUN, a=2)
    world.source_up, world.epoch, world.sequence = True, 2, 0
    world.run(5)
    (gap,) = world.told
    assert (gap.cause, gap.why) == ("source", "a new epoch")
    assert gap.duration_us == 10_000_000
    world.record(recorder.EPOCH_ENDED, a=2)
    world.source_up = False
    world.run(60, frames=0)
    assert len(world.told) == 1


@pytest.mark.parametrize("ends", [True, False])
def test_a_newer_epoch_in_place_of_a_silent_one_is_a_gap_since_the_last_frame(ends: bool) -> None:
    """Two sources of one mount, and the one that is heard dies: its epoch ends only when the other
    goes on above it, or is not even told to have ended."""
    world = World()
    world.run(2)
    world.run(1.5, frames=0)
    if ends:
        world.record(recorder.EPOCH_ENDED, a=1)
    world.record(recorder.EPOCH_BEGUN, a=2)
    world.epoch, world.sequence = 2, 0
    world.run(5)
    (gap,) = world.told
    assert (gap.cause, gap.why, gap.listeners) == ("source", "a new epoch", 3)
    assert gap.duration_us == 1_500_000


def test_an_epoch_that_ended_before_anybody_looked_is_not_forgotten() -> None:
    """It began and ended within half a second: what follows is a gap all the same."""
    world = World()
    world.book = GapBook()
    world.record(recorder.EPOCH_BEGUN, a=1)
    world.record(recorder.EPOCH_ENDED, a=1)
    world.source_up = False
    world.look()
    world.run(2, frames=0)
    world.record(recorder.EPOCH_BEGUN, a=2)
    world.source_up, world.epoch, world.sequence = True, 2, 0
    world.run(5)
    (gap,) = world.told
    assert (gap.why, gap.duration_us) == ("a new epoch", 2_000_000)


def test_a_newer_epoch_at_once_is_a_gap_without_a_length() -> None:
    """A source that takes the mount over: the head had moved until then."""
    world = World()
    world.run(2)
    world.record(recorder.EPOCH_BEGUN, a=2)
    world.run(1)  # the heads were read before
    world.epoch, world.sequence = 2, 0
    world.run(5)
    (gap,) = world.told
    assert (gap.why, gap.duration_us) == ("a new epoch", 0)


def test_an_epoch_that_ended_too_early_and_goes_on_is_one_gap_if_players_noticed() -> None:
    """The same epoch is begun again; from then on the stream is looked at as before."""
    for pause_s, gaps in ((10.0, 1), (1.0, 0)):
        world = World()
        world.run(2)
        world.record(recorder.EPOCH_ENDED, a=1)
        world.source_up = False
        world.run(pause_s, frames=0)
        world.record(recorder.EPOCH_BEGUN, a=1)
        world.source_up = True
        world.run(5)
        assert [gap.why for gap in world.told] == ["the epoch had ended, and goes on"] * gaps
        assert all(gap.duration_us == pause_s * 1e6 for gap in world.told)
        world.run(8, frames=0)
        world.run(4)
        assert [gap.why for gap in world.told[gaps:]] == ["nothing came"]


def test_a_head_that_moves_after_an_end_says_that_it_goes_on() -> None:
    """Though nobody recorded it: the book is not blind from then on."""
    world = World()
    world.run(2)
    world.record(recorder.EPOCH_ENDED, a=1)
    world.source_up = False
    world.run(10, frames=0)
    world.source_up = True
    world.run(1, frames=0)  # its source is there, and nothing has come yet
    world.run(5)
    (gap,) = world.told
    assert gap.duration_us == 11_500_000
    world.run(8, frames=0)
    world.run(4)
    assert [gap.why for gap in world.told[1:]] == ["nothing came"]


def test_a_head_that_was_read_before_the_end_says_nothing() -> None:
    """Heads are read first, records after them: frames in between are those before the end."""
    world = World(is_here=True)
    world.run(2)
    world.now_us += TICK_US
    world.sequence += 25
    world.record(recorder.EPOCH_ENDED, a=1)
    world.look()
    world.source_up = False
    world.run(20, frames=0)
    assert world.told == []


def test_who_stood_still_is_at_fault_himself() -> None:
    """The backbone's thread tells so; whether frames were there before the look or after it."""
    for frames in (0, 300):
        world = World(is_here=True)
        world.run(2)
        world.now_us += 10_000_000
        world.sequence += frames
        world.record(recorder.PAUSED, stream=0, a=10_000_000)
        world.look()
        world.run(3)
        assert [gap.cause for gap in world.told] == ["own overload"]
        assert world.told[0].duration_us >= 10_000_000
    world.run(30)
    world.run(5, frames=0)
    world.run(3)
    assert [gap.cause for gap in world.told] == ["own overload", "source"]


def test_a_late_look_alone_is_no_gap() -> None:
    """Python was busy; the engine went on, and so did the listeners."""
    world = World()
    world.run(2)
    world.now_us += 10_000_000
    world.sequence += 500
    world.look()
    world.run(5)
    assert world.told == []


@pytest.mark.parametrize("burst_ms", [0, 100, 500])
def test_a_burst_shorter_than_the_time_between_looks(burst_ms: int) -> None:
    """A stream that moves at each look flows."""
    world = World()
    world.burst_ms = burst_ms
    world.run(10)
    assert world.told == []
    world.run(2, frames=0)
    world.run(5)
    assert [gap.cause for gap in world.told] == ["source"]


@pytest.mark.parametrize(("busy", "cause"), [(100, "listener"), (990, "own overload")])
def test_skips_are_counted_together(busy: int, cause: str) -> None:
    """Many listeners of one stream that skip within a second are one gap; over a hole, none."""
    world = World()
    for _ in range(4):
        world.record(recorder.SKIP, times=25, a=busy, b=4_000_000)
        world.record(recorder.SKIP, reason=1, times=9, b=20_000)
        world.run(0.5)
    world.run(5)
    (gap,) = world.told
    assert (gap.cause, gap.skips, gap.frames) == (cause, 100, 0)
    assert gap.duration_us == 4_000_000


def test_skips_without_end_are_told_now_and_then() -> None:
    """A listener that is always too slow does not hide behind the next skip."""
    world = World()
    for _ in range(60):
        world.record(recorder.SKIP, b=1_000_000)
        world.run(0.5)
    assert 2 <= len(world.told) <= 4
    assert sum(gap.skips for gap in world.told) <= 60


def test_a_stream_keeps_its_last_gaps_only() -> None:
    """A bound; the totals go on."""
    world = World()
    for _ in range(GAPS_MAX + 5):
        world.record(recorder.LOST, b=1, c=20_000)
        world.run((MERGE_US + SETTLE_US) / 1e6 + 1)
    assert len(world.book.gaps(KEY)) == GAPS_MAX
    assert world.book.totals(KEY) == {"hop": GAPS_MAX + 5}


def test_what_has_left_is_forgotten() -> None:
    """Nothing of a stream stays once the node does not have it any more."""
    world = World()
    world.record(recorder.LOST, b=1, c=20_000)
    world.run(5)
    for _ in range(2):
        world.now_us += 10_000_000
        assert world.book.see(world.now_us, 0, [], []) == []
    assert world.book.gaps(KEY) == []
