"""A clock that the test moves, for everything that can be stepped.

Rules of this room
  1. Time never moves by itself, and never backwards.
  2. Integer nanoseconds inside, so that a thousand steps of 0.1 ms are exactly 100 ms.
"""

from __future__ import annotations


class FakeClock:
    """A monotonic clock: call it for seconds, or read `now_ms`, `now_us`, `now_ns`."""

    def __init__(self, now_ms: float = 0.0) -> None:
        self.now_ns = round(now_ms * 1_000_000)

    def __call__(self) -> float:
        """Return the time in seconds, as time.monotonic() does."""
        return self.now_ns / 1e9

    @property
    def now_us(self) -> int:
        """The time in whole microseconds."""
        return self.now_ns // 1_000

    @property
    def now_ms(self) -> int:
        """The time in whole milliseconds."""
        return self.now_ns // 1_000_000

    def advance(self, ms: float = 0.0, *, s: float = 0.0) -> int:
        """Move on by so much; returns the new time in ns. Negative steps raise ValueError."""
        step_ns = round(ms * 1_000_000) + round(s * 1_000_000_000)
        if step_ns < 0:
            raise ValueError(f"a monotonic clock cannot move by {step_ns} ns")
        self.now_ns += step_ns
        return self.now_ns
