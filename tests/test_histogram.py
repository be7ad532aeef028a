"""The buckets of durations: where one falls, what a quantile tells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from relay._probe import Histogram, histogram_above_us, histogram_bucket

LAST = 199
DURATIONS = st.integers(0, 2**40)


@given(DURATIONS)
def test_a_duration_falls_below_the_end_of_its_bucket_and_not_of_the_one_before(us: int) -> None:
    """Buckets follow one another without a gap."""
    bucket = histogram_bucket(us)
    assert 0 <= bucket <= LAST
    assert us < histogram_above_us(bucket) or bucket == LAST
    assert bucket == 0 or us >= histogram_above_us(bucket - 1)


@given(st.integers(8, 2**27 - 1))
def test_a_bucket_is_at_most_an_eighth_wider_than_what_falls_into_it(us: int) -> None:
    """That is the error of a quantile."""
    bucket = histogram_bucket(us)
    assert histogram_above_us(bucket) - histogram_above_us(bucket - 1) <= us / 8


@given(st.lists(st.integers(0, 2**26), min_size=1, max_size=200), st.floats(0.001, 1))
def test_a_quantile_is_never_too_low_and_at_most_an_eighth_too_high(
    durations: list[int], share: float
) -> None:
    """Against the sorted list of the same durations."""
    histogram = Histogram()
    for us in durations:
        histogram.add(us)
    ordered = sorted(durations)
    rank = max(0, -int(-share * len(ordered) // 1) - 1)
    exact = ordered[min(rank, len(ordered) - 1)]
    assert exact <= histogram.quantile_us(share) <= max(exact * 9 / 8, exact + 1)


@given(st.lists(DURATIONS, max_size=50), st.lists(DURATIONS, max_size=50))
def test_two_merged_tell_the_same_as_one_that_saw_all(first: list[int], second: list[int]) -> None:
    """Counts, sum and maximum."""
    left, right, both = Histogram(), Histogram(), Histogram()
    for us in first:
        left.add(us)
        both.add(us)
    for us in second:
        right.add(us)
        both.add(us)
    left.merge(right)
    assert left.told() == both.told()


@given(st.lists(DURATIONS, max_size=200), st.integers(0, 26))
def test_counts_below_the_edges_of_metrics_are_exact(durations: list[int], doubling: int) -> None:
    """At powers of two no bucket is cut: what Prometheus gets is no estimate."""
    histogram = Histogram()
    for us in durations:
        histogram.add(us)
    assert histogram.below(1 << doubling) == sum(us < 1 << doubling for us in durations)


@given(st.lists(DURATIONS, max_size=50))
def test_what_another_thread_reads_is_all_of_it(durations: list[int]) -> None:
    """At rest a copy equals the writer's."""
    histogram = Histogram()
    for us in durations:
        histogram.add(us)
    assert histogram.read() == histogram.told()


def test_an_empty_one_tells_zero() -> None:
    """No division, no garbage."""
    assert Histogram().quantile_us(0.99) == 0
    assert Histogram().told()["total"] == 0
