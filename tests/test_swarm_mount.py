"""What was written when: a listener's lag, and the titles that it is owed."""

from __future__ import annotations

import pytest
from relay._probe_swarm import FRAME_BYTES, FRAME_US, Mount


@pytest.fixture
def mount() -> Mount:
    """Ten frames, each at its media time from 1 s on."""
    mount = Mount()
    for n in range(10):
        mount.write(1_000_000 + n * FRAME_US)
    return mount


def test_who_has_all_has_no_lag(mount: Mount) -> None:
    """However long ago the last frame was written."""
    assert mount.head == 10 * FRAME_BYTES
    assert mount.lag_us(mount.head, 99_000_000) == 0
    assert mount.lag_us(mount.head + 1, 99_000_000) == 0


@pytest.mark.parametrize("position", [9 * FRAME_BYTES, 10 * FRAME_BYTES - 1])
def test_a_frame_is_missing_until_it_is_whole(mount: Mount, position: int) -> None:
    """Its age counts from its write."""
    assert mount.lag_us(position, 2_000_000) == 1_000_000 - 9 * FRAME_US


def test_the_oldest_missing_frame_is_what_counts(mount: Mount) -> None:
    """Before the first, too, where a burst cut by bytes may begin."""
    assert mount.lag_us(0, 2_000_000) == mount.lag_us(-100, 2_000_000) == 1_000_000


def test_lag_beyond_the_kept_times_is_at_least_those(mount: Mount) -> None:
    """24 s are kept; who is further behind is told as that far, not as anything else."""
    for n in range(10, 2000):
        mount.write(1_000_000 + n * FRAME_US)
    now = 1_000_000 + 2000 * FRAME_US
    assert mount.lag_us(0, now) == mount.lag_us(500 * FRAME_BYTES, now) == 1016 * FRAME_US


def test_a_title_is_owed_once_it_was_confirmed_for_long_enough() -> None:
    """Asked for is not enough, refused never."""
    mount = Mount()
    assert mount.owed_title(10_000_000, 0) == 0
    mount.ask_title()
    assert mount.owed_title(10_000_000, 0) == 0
    mount.tell_title(11_000_000)
    assert mount.owed_title(13_999_999, 3_000_000) == 0
    assert mount.owed_title(14_000_000, 3_000_000) == 1
    mount.ask_title()  # and refused
    mount.ask_title()
    mount.tell_title(20_000_000)
    assert mount.owed_title(22_999_999, 3_000_000) == 1
    assert mount.owed_title(23_000_000, 3_000_000) == 3


def test_titles_are_owed_also_after_very_many() -> None:
    """Sixty-four are kept; the newest ones are what counts."""
    mount = Mount()
    for n in range(1, 1001):
        mount.ask_title()
        mount.tell_title(n * 1_000_000)
    assert mount.owed_title(1_003_000_000, 3_000_000) == 1000
    assert mount.owed_title(1_002_000_000, 3_000_000) == 999
