"""The budget of a turn: those who listen first, and yet nobody waits for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from relay._probe_door import budget

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
