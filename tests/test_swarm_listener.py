"""One listener whose bytes nobody looks at: its gaps, and whether it keeps up with the head."""

from __future__ import annotations

import pytest
from relay._probe_swarm import FRAME_BYTES, FRAME_US, Ear, Mount

PACE_US = 48 * FRAME_US
LATE_US = PACE_US + 250_000


class Programme:
    """A mount that is written in real time, stepped by the test."""

    def __init__(self) -> None:
        self.mount = Mount()
        self.frames = 0

    def until(self, now_us: int) -> int:
        """Write what is due by then; returns the time."""
        while self.frames * FRAME_US <= now_us:
            self.mount.write(self.frames * FRAME_US)
            self.frames += 1
        return now_us


@pytest.fixture
def programme() -> Programme:
    """Five seconds of it are there."""
    one = Programme()
    one.until(5_000_000)
    return one


def joined(programme: Programme) -> Ear:
    """A listener who has all that was written."""
    return Ear(programme.mount, position=programme.mount.head, late_us=LATE_US)


def test_a_listener_who_is_served_each_pace_is_never_behind(programme: Programme) -> None:
    """The oldest byte is a pace old at most."""
    one = joined(programme)
    for turn in range(1, 20):
        now = programme.until(5_000_000 + turn * PACE_US)
        one.arrive(programme.mount.head - one.position, now)
    told = one.told()
    assert (told["behind"], told["gaps"]) == (0, 19)
    assert told["worst_lag_us"] <= PACE_US
    assert one.is_settled


def test_who_is_served_with_a_hole_is_behind_from_then_on(programme: Programme) -> None:
    """More missing than the tolerance is seen at the next arrival, and counted once a window.

    Less is seen at the end, when nothing is in flight (tests/network/test_swarm.py).
    """
    one = joined(programme)
    now = programme.until(5_000_000 + PACE_US)
    one.arrive(programme.mount.head - one.position - 12 * FRAME_BYTES, now)
    assert one.told()["behind"] == 0
    for turn in range(2, 5):
        now = programme.until(5_000_000 + turn * PACE_US)
        one.arrive(PACE_US // FRAME_US * FRAME_BYTES, now)
        assert one.told()["behind"] == 1
    assert one.told()["worst_lag_us"] > LATE_US


def test_who_hears_nothing_is_behind_without_an_arrival(programme: Programme) -> None:
    """The sweep sees it."""
    one = joined(programme)
    now = programme.until(5_000_000 + PACE_US)
    one.arrive(programme.mount.head - one.position, now)
    one.sweep(programme.until(now + LATE_US))
    assert one.told()["behind"] == 0
    one.sweep(programme.until(now + LATE_US + 2 * FRAME_US))
    assert one.told()["behind"] == 1


def test_who_still_gets_his_burst_is_not_judged_for_five_seconds(programme: Programme) -> None:
    """A burst in pieces leaves one behind the head for a while: that is a join, not a lag."""
    one = Ear(programme.mount, position=0, late_us=LATE_US)
    one.arrive(100, 4_900_000)
    assert not one.is_settled
    assert one.told()["behind"] == 0
    one.arrive(100, 5_000_000)
    assert one.is_settled
    assert one.told()["behind"] == 1


def test_the_longest_gap_is_kept(programme: Programme) -> None:
    """From arrival to arrival."""
    one = joined(programme)
    for now in (1_000_000, 1_100_000, 3_100_000, 3_200_000):
        one.arrive(0, now)
    assert one.told()["gap_us_max"] == 2_000_000
