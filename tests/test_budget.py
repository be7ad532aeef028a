"""The budget of a turn: those who listen first, and yet nobody waits for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from relay._probe_door import bite, budget

MS = 1000
DEEP = 1025  # of 4,096


def test_the_door_works_until_the_next_slot_is_due() -> None:
    """All that is left belongs to those who come, a half of it at most to events before."""
    made = budget(0, 1 * MS, 7 * MS, heads=5)
    assert made["until_us"] == made["heads_until_us"] == made["accepts_until_us"] == 7 * MS
    assert made["events_until_us"] == 4 * MS


def test_where_nobody_is_due_a_turn_still_ends() -> None:
    """Other events want to be seen."""
    assert budget(0, 0, 10_000 * MS)["until_us"] == 10 * MS


def test_a_late_shard_gives_the_door_a_quarter_of_what_it_served() -> None:
    """Neither starves: 8 ms for listeners, 2 ms for the door; half a millisecond in any case."""
    assert budget(0, 8 * MS, 1 * MS)["until_us"] == 10 * MS
    assert budget(0, 100, 50)["until_us"] == 100 + 500
    assert budget(0, 900 * MS, 50)["until_us"] == 910 * MS


def test_a_deep_queue_is_drained_before_heads_are_read() -> None:
    """Heads keep a quarter of the time; where none waits accepting has all of it."""
    made = budget(0, 0, 8 * MS, queue=DEEP, heads=100)
    assert made["accepts_first"]
    assert (made["accepts_until_us"], made["heads_until_us"]) == (6 * MS, 8 * MS)
    assert budget(0, 0, 8 * MS, queue=DEEP)["accepts_until_us"] == 8 * MS


def test_a_shallow_queue_waits_for_the_heads_and_keeps_a_part() -> None:
    """Those whose head is here are answered first, but a storm of heads leaves time to accept."""
    made = budget(0, 0, 8 * MS, queue=10, heads=100)
    assert not made["accepts_first"]
    assert (made["heads_until_us"], made["accepts_until_us"]) == (6 * MS, 8 * MS)


@given(
    began=st.integers(0, 1 << 40), served=st.integers(0, 1 << 30), due=st.integers(0, 1 << 41),
    queue=st.integers(0, 4096), heads=st.integers(0, 20_000),
)  # fmt: skip
def test_every_part_gets_time_and_no_turn_is_long(
    began: int, served: int, due: int, queue: int, heads: int
) -> None:
    """Whatever the clock says: each end lies after now, none beyond the turn's bound."""
    now = began + served
    made = budget(began, now, due, queue, 4096, heads)
    until = made["until_us"]
    assert now + 500 <= until <= now + 10 * MS
    for name in ("events_until_us", "heads_until_us", "accepts_until_us"):
        assert now < made[name] <= until


# --- between two listeners ------------------------------------------------------------------------

SEND_US, JOIN_US = 9, 45


def serve_a_slot(listeners: int, join_every_us: int, due_us: int, now_us: int) -> tuple[int, int]:
    """Serve a slot in bites while others come; when it was over, and the longest wait at the door.

    Who has come is let in one after the other; what a bite leaves waits for the next one, and at
    last for the end of the slot.
    """
    came, longest, looked = now_us, 0, now_us
    for done in range(1, listeners + 1):
        now_us += SEND_US
        until = bite(due_us, looked, now_us) if done % 8 == 0 else 0
        if until == 0:
            continue
        while came <= now_us < until:
            longest = max(longest, now_us - came)
            now_us += JOIN_US
            came += join_every_us
        looked = now_us
    return now_us, max(longest, now_us - came)


def test_who_comes_while_a_full_slot_is_served_waits_for_a_bite() -> None:
    """150 sends take 1.4 ms; 10,000 joins a second wait for 0.4 ms at most, and not for all."""
    begin = 1000 * MS
    over, longest = serve_a_slot(150, 100, begin, begin)
    assert longest <= 450
    assert over - begin <= 2 * 150 * SEND_US
    assert serve_a_slot(150, 10**9, begin, begin)[0] - begin == 150 * SEND_US + JOIN_US


def test_a_storm_between_two_listeners_at_most_doubles_their_slot() -> None:
    """However many wait: the door has as long as the bite took, and one join more."""
    begin = 1000 * MS
    over, _ = serve_a_slot(150, 1, begin, begin)
    assert over - begin <= 2 * 150 * SEND_US + 6 * JOIN_US


def test_a_late_slot_is_served_without_a_look_at_the_door() -> None:
    """Half a slot late: those who listen come first, as without bites."""
    due = 1000 * MS
    assert serve_a_slot(150, 1, due, due + 5 * MS)[0] == due + 5 * MS + 150 * SEND_US
    assert bite(due, due + 4 * MS, due + 4 * MS + 999) == due + 4 * MS + 2 * 999
    assert bite(due, due + 4 * MS, due + 5 * MS) == 0


@given(
    due=st.integers(0, 1 << 40), late=st.integers(0, 1 << 20), bitten=st.integers(0, 1 << 20),
)  # fmt: skip
def test_no_bite_of_the_door_is_longer_than_the_one_before(
    due: int, late: int, bitten: int
) -> None:
    """Whatever the clock says: 0, or a time between one bite and half a slot."""
    now = due + late
    until = bite(due, max(0, now - bitten), now)
    assert until == 0 or (250 <= until - now <= bitten and late < 5 * MS)
