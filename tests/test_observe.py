"""What a shard books of its own service: lateness by the ring's marks, busy shares by window."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from relay._probe_listener import Observed

JOIN, LATENESS, GAP, SKIP = range(4)
WINDOW_US = 100_000


def test_lateness_is_counted_from_the_write_of_the_oldest_byte() -> None:
    """Two marks, two sends."""
    seen = Observed()
    seen.mark(0, 1_000_000)
    seen.mark(400, 1_026_000)
    seen.sent(0, 1, 1_100_000)
    seen.sent(400, 2, 1_226_000)
    assert seen.told()["durations"][LATENESS] == (2, 300_000, 200_000)


def test_a_search_serves_its_turn_and_no_later_one() -> None:
    """Who stands at the same place in the same turn shares an answer; a turn later it is anew."""
    seen = Observed()
    seen.mark(0, 1_000_000)
    seen.sent(0, 1, 1_010_000)
    seen.mark(0, 1_500_000)  # the ring was quiet: a later time is true as well
    seen.sent(0, 1, 1_520_000)
    assert seen.lateness_sum_us == 10_000 + 520_000
    seen.sent(0, 2, 1_520_000)
    assert seen.lateness_sum_us == 530_000 + 20_000


def test_a_ring_that_nobody_marked_is_left_out() -> None:
    """No lateness instead of one since the machine's start."""
    seen = Observed()
    seen.sent(0, 1, 5_000_000)
    assert seen.told()["durations"][LATENESS] == (0, 0, 0)


def test_each_kind_is_booked_by_itself() -> None:
    """Join, gap and skip do not mix; a clock that seems to go back books nothing below 0."""
    seen = Observed()
    seen.book(JOIN, 1000, 6000)
    seen.book(GAP, 1000, 201_000)
    seen.book(GAP, 5000, 4000)
    seen.book(SKIP, 0, 7_000_000)
    assert seen.told()["durations"] == [
        (1, 5000, 5000),
        (0, 0, 0),
        (2, 200_000, 200_000),
        (1, 7_000_000, 7_000_000),
    ]


TURNS = st.lists(
    st.tuples(st.integers(0, 90_000), st.integers(0, 250_000)), min_size=1, max_size=60
)


@given(TURNS)
def test_busy_windows_follow_one_another_without_overlap(turns: list[tuple[int, int]]) -> None:
    """Whatever the turns, no time is booked twice, and at least half of it is booked."""
    seen = Observed()
    begin = now = 1_000_000
    for idle_us, busy_us in turns:
        seen.turn(now, now + busy_us)
        now += busy_us + idle_us
    now -= turns[-1][0]  # the end of the last turn
    told = seen.told()
    assert told["windows_total"] == sum(told["windows"])
    assert told["windows_total"] <= (now - begin) // WINDOW_US
    assert 2 * told["windows_total"] * WINDOW_US + WINDOW_US > now - begin
    if not any(busy_us for _, busy_us in turns):
        assert told["max_permille"] == told["sum_permille"] == 0
    if not any(idle_us for idle_us, _ in turns):
        assert told["sum_permille"] == 1000 * told["windows_total"]


def test_shares_fall_into_tenths_whose_upper_edge_belongs_to_them() -> None:
    """As Prometheus' `le` has it: 10 % is in the first, a little more in the second."""
    for busy_us, step in ((0, 0), (10_000, 0), (10_001, 1), (55_000, 5), (100_000, 9)):
        seen = Observed()
        seen.turn(1_000_000, 1_000_000 + busy_us)
        seen.turn(1_000_000 + WINDOW_US, 1_000_000 + WINDOW_US)
        assert seen.told()["windows"].index(1) == step


def test_a_turn_that_fills_ten_windows_counts_as_ten() -> None:
    """A shard that was stuck for a second shows as a second of a full share."""
    seen = Observed()
    for turn in range(90):  # nine seconds without work
        seen.turn(1_000_000 + turn * WINDOW_US, 1_000_000 + turn * WINDOW_US)
    seen.turn(9_900_000, 10_900_000)
    told = seen.told()
    assert told["windows"] == [89, 0, 0, 0, 0, 0, 0, 0, 0, 10]
    assert (told["max_permille"], told["last_permille"]) == (1000, 1000)
    assert seen.busy_quantile(0.5) == 100
    assert seen.busy_quantile(0.99) == 1000


def test_shards_add_up() -> None:
    """Counts and sums are added, of the largest the largest is kept."""
    one, two = Observed(), Observed()
    one.book(GAP, 0, 200_000)
    two.book(GAP, 0, 300_000)
    two.turn(1_000_000, 1_050_000)
    two.turn(1_100_000, 1_100_000)
    told = one.told(two)
    assert told["durations"][GAP] == (2, 500_000, 300_000)
    assert (told["windows_total"], told["last_permille"]) == (1, 500)
