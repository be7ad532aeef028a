"""How long to wait before the next attempt."""

from __future__ import annotations

from relay.backoff import Backoff


def test_backoff_grows_from_half_a_second_to_ten() -> None:
    """Each wait is drawn between the floor and a bound that doubles; a reset begins again."""
    highest = Backoff(draw=lambda _low, high: high)
    assert [highest.next_s() for _ in range(7)] == [1, 2, 4, 8, 10, 10, 10]
    assert Backoff(draw=lambda low, _high: low).next_s() == 0.5
    highest.reset()
    assert highest.next_s() == 1


def test_a_lower_ceiling_is_kept() -> None:
    """For those whose absence is covered by others."""
    low = Backoff(draw=lambda _low, high: high, ceiling_s=2.0)
    assert [low.next_s() for _ in range(4)] == [1, 2, 2, 2]


def test_a_thousand_sources_do_not_come_back_at_once() -> None:
    """The waits of a crowd differ and keep their bounds."""
    waits = [Backoff().next_s() for _ in range(1000)]
    assert all(0.5 <= wait <= 1.0 for wait in waits)
    assert len(set(waits)) > 900
