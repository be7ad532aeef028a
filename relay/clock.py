"""AudioClock: keeps a generator of audio to real time.

Rules of this room
  1. Counts frames, not sleeps: an oversleep is made up for at the next block, so nothing drifts.
  2. Who is late by more than late_ms_max begins anew, counted, instead of hurrying after.
  3. Knows no source and no codec; time and sleep can be handed in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from relay.errors import RelayError


class AudioClock:
    """Says when the next block of audio is due.

    Args:
        rate_hz: frames (samples of each channel) a second, 1 to 768,000.
        ahead_ms: how far the generator may run ahead of real time.
        late_ms_max: beyond it the clock begins anew with the next block.
        now: monotonic seconds.

    Raises:
        RelayError: a rate or time that is out of bounds.
    """

    def __init__(
        self,
        rate_hz: float,
        *,
        ahead_ms: float = 0,
        late_ms_max: float = 1000,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        if not 1 <= rate_hz <= 768_000:
            raise RelayError(f"rate_hz is {rate_hz}; the bound is 1 to 768000")
        if not (ahead_ms >= 0 and late_ms_max >= 0):
            raise RelayError(f"ahead_ms {ahead_ms} and late_ms_max {late_ms_max}: 0 or more")
        self.rate_hz = rate_hz
        self.resets_total = 0
        """How often it was too late and began anew."""
        self._ahead_s, self._late_s_max = ahead_ms / 1000, late_ms_max / 1000
        self._now, self._sleep, self._wait = now, sleep, wait
        self._began: float | None = None
        self._frames = 0

    def due_s(self, frames: int) -> float:
        """Seconds until a block of so many frames should be sent, 0 when it is due; counts it as
        sent. Does not block."""
        if frames < 0:
            raise RelayError(f"{frames} frames; the bound is 0 or more")
        now = self._now()
        if self._began is None:
            self._began = now
        due = self._began + self._frames / self.rate_hz - self._ahead_s
        if now - due > self._late_s_max + self._ahead_s:
            self.resets_total += 1
            self._began, self._frames, due = now, 0, now
        self._frames += frames
        return max(0.0, due - now)

    async def tick(self, frames: int) -> None:
        """Sleep until a block of so many frames is due."""
        await self._sleep(self.due_s(frames))

    def wait(self, frames: int) -> None:
        """As `tick`, in plain code; blocks."""
        self._wait(self.due_s(frames))
