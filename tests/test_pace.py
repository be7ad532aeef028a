"""The wheel: who joined when does not matter, everybody is served once a pace, nobody twice."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe import Wheel, pace_slots

pytestmark = pytest.mark.core

SLOT_US = 10_000
SLOTS = 128
PACE_US = 200_000
PACE_SLOTS = PACE_US // SLOT_US


def joined(count: int, *, now_us: int = 0, pace_us: int = PACE_US) -> Wheel:
    """Return a wheel that so many joined at one instant."""
    wheel = Wheel(count, now_us)
    for member in range(count):
        wheel.join(member, pace_us)
    return wheel


@pytest.mark.parametrize(
    ("pace_us", "slots"),
    [(0, 1), (1, 1), (10_000, 1), (10_001, 2), (200_000, 20), (1_000_000, 100), (9_000_000, 120)],
)
def test_a_pace_is_whole_slots_within_the_wheel(pace_us: int, slots: int) -> None:
    """Paces are rounded up to slots and end before the wheel comes round."""
    assert pace_slots(pace_us) == slots


@given(st.integers(0, 500), st.sampled_from([10_000, 50_000, 200_000, 1_000_000]))
def test_a_storm_is_spread_evenly_over_the_pace(count: int, pace_us: int) -> None:
    """N joins at one instant fill the slots of one pace, none by two more than another."""
    fill = joined(max(count, 1), pace_us=pace_us).fill
    used = [fill[slot % SLOTS] for slot in range(1, 1 + pace_slots(pace_us))]
    assert sum(used) == max(count, 1)
    assert max(used) - min(used) <= 1


@given(st.lists(st.integers(0, 19), max_size=100))
def test_a_newcomer_takes_a_least_filled_slot(filled: list[int]) -> None:
    """However the slots of the pace are filled, the next one goes where the fewest are."""
    wheel = Wheel(101)
    for member, slot in enumerate(filled):
        wheel.put(member, wheel.slot + slot)
    before = [wheel.fill[(wheel.slot + slot) % SLOTS] for slot in range(PACE_SLOTS)]
    wheel.join(100, PACE_US)
    after = [wheel.fill[(wheel.slot + slot) % SLOTS] for slot in range(PACE_SLOTS)]
    taken = [slot for slot in range(PACE_SLOTS) if after[slot] != before[slot]]
    assert len(taken) == 1
    assert before[taken[0]] == min(before)


def test_everybody_is_served_once_a_pace_in_the_same_slot() -> None:
    """Over ten paces with a turn each slot, each member comes each pace, exactly a pace apart."""
    wheel = joined(100)
    served: dict[int, list[int]] = {member: [] for member in range(100)}
    for slot in range(10 * PACE_SLOTS + 1):
        for member, at in wheel.turn(slot * SLOT_US, PACE_US):
            assert at == slot
            served[member].append(slot)
    for slots in served.values():
        assert len(slots) == 10
        assert {b - a for a, b in itertools.pairwise(slots)} == {PACE_SLOTS}


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_late_turns_serve_nobody_twice_within_one_slot(steps: list[int]) -> None:
    """Turns of any length: a member's slots stay a whole pace apart, none is early."""
    wheel = joined(40)
    last: dict[int, int] = {}
    now_us = 0
    for step in steps:
        now_us += step * 5_000
        for member, slot in wheel.turn(now_us, PACE_US):
            assert slot * SLOT_US <= now_us
            assert slot - last.get(member, slot - PACE_SLOTS) == PACE_SLOTS
            last[member] = slot
    assert wheel.members == 40


@pytest.mark.parametrize("standstill_slots", [127, 128, 129, 1000, 100_000, 128 * 50])
def test_after_a_standstill_everybody_is_served_within_one_pace(standstill_slots: int) -> None:
    """A machine that slept makes up for no more than a turn of the wheel, and forgets nobody."""
    wheel = joined(60, now_us=7 * SLOT_US)
    now_us = (7 + standstill_slots) * SLOT_US
    served = Counter(member for member, _ in wheel.turn(now_us, PACE_US))
    assert max(served.values(), default=0) <= SLOTS // PACE_SLOTS + 1
    for slot in range(1, PACE_SLOTS + 1):
        served.update(member for member, _ in wheel.turn(now_us + slot * SLOT_US, PACE_US))
    assert len(served) == 60


def test_who_is_removed_is_not_served() -> None:
    """Removal works from the front, the middle and the end of a slot, and twice."""
    wheel = Wheel(5)
    for member in range(5):
        wheel.put(member, 3)
    for member in (4, 2, 0, 2):
        wheel.remove(member)
    assert wheel.members == 2
    assert sorted(member for member, _ in wheel.turn(3 * SLOT_US)) == [1, 3]
    assert wheel.members == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("pjrt"), st.integers(0, 7), st.integers(0, 119)), max_size=120
    )
)
def test_links_and_counts_agree_after_any_sequence(steps: list[tuple[str, int, int]]) -> None:
    """Put, join, remove and turns in any order: each member is in one chain, or in none."""
    wheel = Wheel(8)
    on: set[int] = set()
    now_us = 0
    for what, member, slot in steps:
        if what == "p":
            wheel.put(member, wheel.slot + slot)
            on.add(member)
        elif what == "j":
            wheel.join(member, slot * SLOT_US)
            on.add(member)
        elif what == "r":
            wheel.remove(member)
            on.discard(member)
        else:
            now_us += slot * 1_000
            on -= {member for member, _ in wheel.turn(now_us)}
        chains = wheel.chains()
        assert [len(chain) for chain in chains] == wheel.fill
        assert sorted(member for chain in chains for member in chain) == sorted(on)
        assert wheel.members == len(on)


def test_the_wait_ends_when_the_next_one_is_due() -> None:
    """`next_us` tells the time to the next filled slot, and 0 once it is there."""
    wheel = Wheel(1)
    wheel.put(0, 5)
    assert wheel.next_us(0, 100_000) == 50_000
    assert wheel.next_us(49_999, 100_000) == 1
    assert wheel.next_us(50_000, 100_000) == 0
    assert wheel.next_us(90_000, 100_000) == 0


def test_the_wait_is_bounded() -> None:
    """An empty wheel, or one whose next member comes later, waits no longer than asked."""
    wheel = Wheel(1)
    assert wheel.next_us(0, 100_000) == 100_000
    wheel.put(0, 60)
    assert wheel.next_us(0, 100_000) == 100_000
    assert wheel.next_us(550_000, 100_000) == 50_000
    assert wheel.next_us(0, 5_000_000) == 600_000
