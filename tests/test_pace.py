"""The wheel: who joined when does not matter, everybody is served once a pace, nobody twice.

A pace that changes, a shard that is late or overloaded: the distance between two servings stays
within the longer pace and what the overload itself costs.
"""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe import Wheel, pace_slots
from relay._probe_data import LISTENER_BYTES

pytestmark = pytest.mark.core

SLOT_US = 10_000
SLOTS = 128
BEHIND_SLOTS_MAX = 5
MOVES_PART = 32
OWN = -1  # each member keeps its own pace
PACE_US = 200_000
PACE_SLOTS = PACE_US // SLOT_US


def joined(count: int, *, now_us: int = 0, pace_us: int = PACE_US) -> Wheel:
    """Return a wheel that so many joined at one instant."""
    wheel = Wheel(count, now_us)
    wheel.join_many(0, count, pace_us)
    return wheel


def spread(wheel: Wheel, pace_us: int) -> int:
    """Return by how many the fullest slot of a pace holds more than the least filled one."""
    used = wheel.fill[: pace_slots(pace_us)]
    assert sum(used) == wheel.members
    return max(used) - min(used)


class Gaps:
    """The longest time between two servings of each member, in µs."""

    def __init__(self, count: int) -> None:
        self.last = [-1] * count
        self.longest = [0] * count

    def note(self, served: list[tuple[int, int]], now_us: int) -> None:
        """Book those whom a turn has served."""
        for member, _ in served:
            if self.last[member] >= 0:
                gap = now_us - self.last[member]
                self.longest[member] = max(gap, self.longest[member])
            self.last[member] = now_us


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
    assert spread(joined(max(count, 1), pace_us=pace_us), pace_us) <= 1


@pytest.mark.parametrize("pace_us", [100_000, 500_000, 1_000_000])
def test_a_storm_onto_a_full_wheel_is_spread_over_the_least_filled_slots(pace_us: int) -> None:
    """10,000 joins in one turn onto 5,000 members: no slot holds two more than another."""
    wheel = Wheel(15_000)
    wheel.join_many(0, 5000, pace_us)
    for slot in range(1, 250):
        wheel.serve(slot * SLOT_US, pace_us)
    for member in range(0, 5000, 7):  # holes that leave the slots uneven
        wheel.remove(member)
    wheel.join_many(5000, 10_000, pace_us)
    assert spread(wheel, pace_us) <= 1
    counts = [wheel.serve(slot * SLOT_US, pace_us)[0] for slot in range(250, 550)]
    assert max(counts) - min(counts) <= 1, "it does not come back as a storm"


@given(st.lists(st.integers(0, 19), max_size=100))
def test_a_newcomer_takes_a_least_filled_slot(filled: list[int]) -> None:
    """However the slots of the pace are filled, the next one goes where the fewest are."""
    wheel = Wheel(101)
    for member, slot in enumerate(filled):
        wheel.put(member, wheel.slot + slot)
    before = wheel.fill[:PACE_SLOTS]
    wheel.join(100, PACE_US)
    after = wheel.fill[:PACE_SLOTS]
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


def test_a_turn_costs_as_much_as_are_due() -> None:
    """Of 20,000 members at a pace of 1 s each turn takes out the 200 of its slot."""
    wheel = joined(20_000, pace_us=1_000_000)
    for slot in range(1, 300):
        assert wheel.serve(slot * SLOT_US, 1_000_000) == (200, 0, 0)
        assert wheel.serve(slot * SLOT_US + 5000, 1_000_000) == (0, 0, 0)


def test_a_slot_is_served_in_the_order_in_which_it_was_filled() -> None:
    """The order stays the same from round to round: nobody's distance trembles within a slot."""
    wheel = joined(1000, pace_us=100_000)
    first = [[m for m, _ in wheel.turn(s * SLOT_US, 100_000)] for s in range(1, 11)]
    assert all(served == sorted(served) for served in first)
    again = [[m for m, _ in wheel.turn(s * SLOT_US, 100_000)] for s in range(11, 21)]
    assert first == again


# --- who is late ----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 120))
def test_late_turns_serve_nobody_early_and_nobody_twice(steps: list[int], pace: int) -> None:
    """Turns of any length: a turn serves a member once, never before a whole pace has gone by."""
    wheel = joined(40, pace_us=pace * SLOT_US)
    last: dict[int, int] = {}
    now_us = 0
    for step in steps:
        now_us += step * 5_000
        served = wheel.turn(now_us, pace * SLOT_US)
        assert len({member for member, _ in served}) == len(served)
        for member, slot in served:
            assert slot * SLOT_US <= now_us
            assert slot - last.get(member, -pace) >= pace
            last[member] = slot
    assert wheel.members == 40


def test_a_hiccup_is_made_up_for() -> None:
    """Late by no more than the bound: the slots stay where they were, a pace apart."""
    wheel = joined(400)
    late_us = BEHIND_SLOTS_MAX * SLOT_US
    slots: dict[int, list[int]] = {member: [] for member in range(400)}
    for slot in [*range(1, 30), *range(30 + BEHIND_SLOTS_MAX, 100)]:
        for member, at in wheel.turn(slot * SLOT_US, PACE_US):
            slots[member].append(at)
            assert slot * SLOT_US - at * SLOT_US <= late_us
    assert {b - a for all_ in slots.values() for a, b in itertools.pairwise(all_)} == {PACE_SLOTS}


@pytest.mark.parametrize("pace", [1, 2, 3, 4])
def test_a_short_pace_that_is_late_keeps_its_step(pace: int) -> None:
    """Whose pace is shorter than the hiccup misses a turn, but does not fall into one slot."""
    wheel = joined(pace * 10, pace_us=pace * SLOT_US)
    for slot in (1, 2, 3, 4, 9, 10, 11, 12, 13, 18, 19, 20, 21, 22):
        wheel.turn(slot * SLOT_US, pace * SLOT_US)
    assert spread(wheel, pace * SLOT_US) == 0


@pytest.mark.parametrize("standstill_slots", [7, 127, 128, 129, 1000, 100_000, 128 * 50])
def test_after_a_standstill_all_go_on_in_order(standstill_slots: int) -> None:
    """A machine that slept makes up for nothing: one pace serves everybody once, as before."""
    wheel = joined(60, now_us=7 * SLOT_US)
    order = [m for s in range(8, 8 + PACE_SLOTS) for m, _ in wheel.turn(s * SLOT_US, PACE_US)]
    begin = 7 + PACE_SLOTS + standstill_slots
    counts = []
    again = []
    for slot in range(begin, begin + PACE_SLOTS):
        served = [member for member, _ in wheel.turn(slot * SLOT_US, PACE_US)]
        counts.append(len(served))
        again += served
    assert again == order
    assert set(counts) == {3}


@pytest.mark.parametrize("members", [1, 3])
def test_nobody_due_is_no_delay(members: int) -> None:
    """A shard that waits 100 ms because nobody is due has not fallen behind."""
    wheel = joined(members, pace_us=1_000_000)
    now_us = 0
    gaps = Gaps(members)
    while now_us < 10_000_000:
        now_us += max(wheel.next_us(now_us, 100_000), 1)
        before = wheel.slot
        gaps.note(wheel.turn(now_us, 1_000_000), now_us)
        assert wheel.slot >= before
    assert gaps.longest == [1_000_000] * members


@pytest.mark.parametrize("cost_us", [12, 20, 40])
def test_under_overload_everybody_is_served_in_turn(cost_us: int) -> None:
    """15,000 at 100 ms need more than there is: all wait equally, and no turn serves too many."""
    count = 15_000
    wheel = joined(count, pace_us=100_000)
    served_times = Counter[int]()
    order: list[int] = []
    now_us = behind = 0
    while now_us < 6_000_000:
        served = wheel.turn(now_us, 100_000)
        order += [member for member, _ in served]
        served_times.update(member for member, _ in served)
        behind += len(served) == 0
        assert len(served) <= (BEHIND_SLOTS_MAX + 1) * count // 10
        now_us += max(len(served) * cost_us, 1000)
    assert max(served_times.values()) - min(served_times.values()) <= 1
    assert len(served_times) == count
    rounds = [order[at : at + count] for at in range(0, len(order) - count, count)]
    assert len(rounds) >= 8
    assert all(one == rounds[0] for one in rounds), "round by round in the same order"


def test_putting_off_is_told_as_time() -> None:
    """What a turn answers adds up to the time that the schedule lost."""
    wheel = joined(1000, pace_us=100_000)
    told_us = now_us = served = 0
    while now_us < 5_000_000:
        count, _, behind_us = wheel.serve(now_us, 100_000)
        told_us += behind_us
        served += count
        now_us += max(count * 200, 1000)  # twice as much as there is time
    scheduled_us = served / 1000 * 100_000
    assert told_us > 2_000_000
    assert abs(now_us - told_us - scheduled_us) <= 100_000


# --- another pace ---------------------------------------------------------------------------------

CHANGES = [
    (100_000, 130_000), (100_000, 1_000_000), (1_000_000, 100_000), (300_000, 260_000),
    (110_000, 100_000), (10_000, 20_000), (20_000, 10_000), (500_000, 750_000),
]  # fmt: skip


@pytest.mark.parametrize(("old_us", "new_us"), CHANGES)
def test_no_gap_is_longer_than_the_longer_pace_while_it_changes(old_us: int, new_us: int) -> None:
    """Of 5,000 listeners none waits longer than a pace and two slots, whoever moves when."""
    count = 5000
    wheel = joined(count, pace_us=old_us)
    gaps = Gaps(count)
    for slot in range(1, 700):
        now_us = slot * SLOT_US + 3000
        gaps.note(wheel.turn(now_us, old_us if slot < 250 else new_us), now_us)
    assert max(gaps.longest) <= max(old_us, new_us) + 2 * SLOT_US
    assert set(wheel.paces_us) == {new_us}


@pytest.mark.parametrize(("old_us", "new_us"), CHANGES)
def test_few_move_at_a_time_and_all_in_the_end(old_us: int, new_us: int) -> None:
    """At most a 32nd in one slot; all within 32 slots, or the old pace where that is longer."""
    count = 5000
    wheel = joined(count, pace_us=old_us)
    through = max(MOVES_PART, pace_slots(old_us)) + pace_slots(old_us)
    moved = 0
    for slot in range(1, through + 1):
        moves = wheel.serve(slot * SLOT_US, new_us)[1]
        assert moves <= count // MOVES_PART + 1
        moved += moves
    assert moved == count
    assert set(wheel.paces_us) == {new_us}


@pytest.mark.parametrize(("old_us", "new_us"), CHANGES)
def test_after_a_change_the_slots_are_even_again(old_us: int, new_us: int) -> None:
    """Within a sixteenth and two: no slot is late because many moved into it."""
    count = 5000
    wheel = joined(count, pace_us=old_us)
    for slot in range(1, 500):
        wheel.serve(slot * SLOT_US, new_us)
    assert spread(wheel, new_us) <= count / pace_slots(new_us) / 16 + 2


def test_leaves_are_evened_out() -> None:
    """Half of the slots empty themselves; a few seconds later all hold alike, and then it rests."""
    wheel = joined(4000, pace_us=PACE_US)
    for chain in wheel.chains()[: PACE_SLOTS // 2]:
        for member in chain:
            wheel.remove(member)
    for slot in range(1, 400):
        wheel.serve(slot * SLOT_US, PACE_US)
    assert spread(wheel, PACE_US) <= 2000 / PACE_SLOTS / 16 + 2
    first = [wheel.turn(slot * SLOT_US, PACE_US) for slot in range(400, 420)]
    again = [wheel.turn(slot * SLOT_US, PACE_US) for slot in range(420, 440)]
    assert [[m for m, _ in turn] for turn in first] == [[m for m, _ in turn] for turn in again]


def test_mixed_paces_rest() -> None:
    """Mounts of different pace on one wheel: nobody is moved about for the others' sake."""
    wheel = Wheel(2000)
    wheel.join_many(0, 1000, 100_000)
    wheel.join_many(1000, 1000, 1_000_000)
    for member in range(1000, 2000, 3):
        wheel.remove(member)
    slots = [[m for m, _ in wheel.turn(slot * SLOT_US, OWN)] for slot in range(1, 801)]
    assert slots[600:700] == slots[700:800]
    counts = [len(slot) for slot in slots[700:]]
    assert max(counts) - min(counts) <= 108 / 16 + 2


def test_a_listener_fits_its_bound() -> None:
    """Its pace stands in its record, which takes no more than 256 B."""
    assert LISTENER_BYTES <= 256


# --- links and waits ------------------------------------------------------------------------------


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
