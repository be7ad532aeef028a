"""A lone frame waits for the next of its stream in a crowd of messages, and not for long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe_hop import Holds, hold_until, is_crowd

SECOND_US = 1_000_000
GRAIN_US = 500


@pytest.mark.parametrize(
    ("was", "messages", "becomes"),
    [
        (False, 39_999, False),
        (False, 40_000, True),
        (True, 20_000, True),  # holding has halved them: still a crowd
        (True, 10_000, True),
        (True, 9_999, False),
    ],
)
def test_crowd_begins_high_and_ends_low(was: bool, messages: int, becomes: bool) -> None:
    """By messages a second, whatever the period."""
    assert is_crowd(was, messages, SECOND_US) is becomes
    assert is_crowd(was, messages * 3, 3 * SECOND_US) is becomes


def test_lone_frame_waits_as_long_as_it_lasts_and_a_little() -> None:
    """At most 30 ms; one that lasts longer does not wait: its successor would come too late."""
    assert hold_until(20_000, 1_000) == 25_000
    assert hold_until(26_000, 1_000) == 31_000
    assert hold_until(28_000, 1_000) == hold_until(30_000, 1_000) == 31_000
    assert hold_until(30_001, 1_000) == 1_000


def test_each_is_let_go_at_its_own_time_whoever_began_to_wait_before() -> None:
    """One that waits 30 ms does not keep back one that came after it and waits 7 ms."""
    holds = Holds()
    holds.add(1, 1_030_000, 1_000_000)
    holds.add(2, 1_008_000, 1_001_000)
    assert holds.next_us == 1_008_000
    assert holds.due(1_007_999) == []
    assert holds.due(1_008_000) == [2]
    assert holds.due(1_029_999) == []
    assert holds.due(1_030_000) == [1]
    assert holds.next_us is None


def test_who_waits_anew_waits_until_then_and_is_let_go_once() -> None:
    """Its frame has gone with the next; of the one after that the wait is another."""
    holds = Holds()
    for until_us in (1_030_000, 1_007_000, 1_020_000):
        holds.add(1, until_us, 1_000_000)
    assert holds.due(1_019_999) == []
    assert holds.due(1_040_000) == [1]
    assert holds.due(1_100_000) == []


WAITS = st.lists(
    st.tuples(st.integers(1, 255), st.integers(1, 30_000), st.integers(0, 5_000)), max_size=300
)


@given(WAITS, st.integers(0, 1 << 50))
def test_nobody_waits_longer_than_a_grain_beyond_its_time(
    waits: list[tuple[int, int, int]], begin_us: int
) -> None:
    """Nor shorter; and who would wake for the first of them wakes in time."""
    until: dict[int, int] = {}
    holds, now_us = Holds(), begin_us
    for number, wait_us, passes_us in waits:
        holds.add(number, now_us + wait_us, now_us)
        until[number] = now_us + wait_us
        first_us = min(until.values())
        assert first_us <= holds.next_us < first_us + GRAIN_US
        now_us += passes_us
        for gone in holds.due(now_us):
            assert until.pop(gone) <= now_us
        assert all(due_us > now_us - GRAIN_US for due_us in until.values())
    assert sorted(holds.due(now_us + 31_000)) == sorted(until)
