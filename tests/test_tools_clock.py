"""The fake clock moves when told, exactly, and only forward."""

from __future__ import annotations

import pytest
from tools.clock import FakeClock


def test_clock_moves_only_when_told(clock: FakeClock) -> None:
    """Readings agree with one another and stand still between steps."""
    assert clock() == clock() == 0.0
    clock.advance(1500)
    assert (clock(), clock.now_ms, clock.now_us, clock.now_ns) == (
        1.5, 1500, 1_500_000, 1_500_000_000,
    )  # fmt: skip


def test_small_steps_add_up_exactly() -> None:
    """A thousand steps of 0.1 ms are 100 ms, without a rounding error."""
    clock = FakeClock(now_ms=7)
    for _ in range(1000):
        clock.advance(0.1)
    assert clock.now_ns == 107_000_000


def test_clock_refuses_to_go_back(clock: FakeClock) -> None:
    """A monotonic clock has no yesterday."""
    with pytest.raises(ValueError, match="cannot move by -1000000 ns"):
        clock.advance(-1)
