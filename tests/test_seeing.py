"""The shell around recorder and gaps: read once, told once, bounded."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from relay import recorder, seeing
from relay.recorder import NOBODY, Record
from relay.seeing import GAP_LINES_MAX, Seeing

UPSTREAMS = ["tcp://a:9", "tcp://b:9"]
START_US = 1_000_000_000


class Clock:
    """What `time` says."""

    def __init__(self) -> None:
        self.us = START_US

    def monotonic_ns(self) -> int:
        """The monotonic clock."""
        return self.us * 1000

    def time_ns(self) -> int:
        """The wall clock: an hour more."""
        return (self.us + 3_600_000_000) * 1000


class FakeCore:
    """An engine with streams that play, and whatever was recorded."""

    def __init__(self, clock: Clock, mounts: int) -> None:
        self.clock = clock
        self.keys = {key: f"/{key}" for key in range(1, mounts + 1)}
        self.records: list[Record] = []
        self.noted: list[tuple[int, int, dict[str, int]]] = []
        self.washed_total = 2

    def heads(self) -> list[tuple[Any, ...]]:
        """A frame more at each look."""
        at = self.clock.us
        return [(key, name, 1, at, at, True, False, 3000, 1) for key, name in self.keys.items()]

    def recorded(self, cursors: list[int], *, since_us: int = 0) -> list[Record]:
        """From the cursor on."""
        cursors[:] = cursors or [0]
        first, cursors[0] = cursors[0], len(self.records)
        return [one for one in self.records[first:] if one.at_us >= since_us]

    def note(self, kind: int, reason: int, **numbers: int) -> None:
        """Remember."""
        self.noted.append((kind, reason, numbers))

    def record(self, kind: int, stream: int, **fields: int) -> None:
        """Something is decided now."""
        empty = dict.fromkeys(Record._fields, 0) | {"parent": NOBODY, "left": NOBODY, "times": 1}
        told = {"at_us": self.clock.us, "wall_us": self.clock.us, "kind": kind, "stream": stream}
        self.records.append(Record(**(empty | told | fields)))


class Site:
    """One node's eyes on a fake clock."""

    def __init__(self, clock: Clock, mounts: int = 1) -> None:
        self.clock = clock
        self.core = FakeCore(clock, mounts)
        self.eyes = Seeing(self.core, None, UPSTREAMS, {"ring_s": 20})  # type: ignore[arg-type]
        self.eyes.tick()

    def run(self, looks: int) -> None:
        """Half a second each."""
        for _ in range(looks):
            self.clock.us += 500_000
            self.eyes.tick()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test moves."""
    made = Clock()
    monkeypatch.setattr(seeing, "time", made)
    return made


def test_a_gap_is_told_once_everywhere(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A line in the log, a record, a counter, an entry of the stream."""
    site = Site(clock)
    site.core.record(recorder.LOST, 1, parent=1, reason=1, b=5, c=100_000)
    with caplog.at_level(logging.WARNING, "relay.gaps"):
        site.run(20)
    (line,) = caplog.messages
    assert line == "gap: /1, 100 ms, cause: hop tcp://b:9 (wait), 5 frames lost"
    ((kind, reason, numbers),) = site.core.noted
    assert (kind, recorder.CAUSES[reason]) == (recorder.GAP, "hop")
    assert (numbers["a"], numbers["b"], numbers["parent"]) == (100_000, 5, 1)
    assert site.eyes.counters() == {
        "gaps_source_total": 0, "gaps_hop_total": 1, "gaps_own_overload_total": 0,
        "gaps_listener_total": 0, "recorder_washed_total": 2,
    }  # fmt: skip
    told = site.eyes.stream(1)
    assert told["gaps_total"] == {"hop": 1}
    assert told["gaps"][0]["hop"] == "tcp://b:9"
    assert site.eyes.stream(99) == {"gaps": [], "gaps_total": {}}


def test_a_thousand_gaps_at_once_do_not_flood_the_log(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Some lines and a number; all are counted."""
    site = Site(clock, mounts=1000)
    for key in range(1, 1001):
        site.core.record(recorder.LOST, key, b=1, c=20_000)
    with caplog.at_level(logging.WARNING, "relay.gaps"):
        site.run(5)
    assert len(caplog.messages) == GAP_LINES_MAX + 1
    assert caplog.messages[-1].startswith("980 more gaps")
    assert site.eyes.counters()["gaps_hop_total"] == 1000


def test_a_recording_is_bounded_and_newest_first(clock: Clock) -> None:
    """By time, by stream, by number; of one moment the last decision comes first."""
    site = Site(clock, mounts=2)
    for i in range(10):
        clock.us += 1_000_000
        site.core.record(recorder.SWITCH, 1 + i % 2, parent=0, a=i)
    site.core.record(recorder.LOST, 2, b=1)
    site.core.record(recorder.PAUSED, 0, a=500_000)
    told = site.eyes.recording(600, None, 100)
    assert [row["kind"] for row in told["records"][:3]] == ["paused", "lost", "switch"]
    assert (len(told["records"]), told["left_off"], told["washed_total"]) == (12, 0, 2)
    assert told["settings"] == {"ring_s": 20}
    assert told["wall_us"] == clock.us + 3_600_000_000
    few = site.eyes.recording(600, None, 5)
    assert (len(few["records"]), few["left_off"]) == (5, 7)
    of_one = site.eyes.recording(600, "/1", 100)["records"]
    assert {row.get("stream") for row in of_one} == {"/1", None}
    assert len(site.eyes.recording(3.5, None, 100)["records"]) == 6


def test_a_stream_that_has_left_keeps_its_name(clock: Clock) -> None:
    """What happened to it is told by its mount, not by a number."""
    site = Site(clock)
    site.core.record(recorder.SWITCH, 1, parent=0)
    site.core.keys.clear()
    site.run(10)
    assert site.eyes.recording(600, None, 9)["records"][0]["stream"] == "/1"
