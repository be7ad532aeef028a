"""When a stream is pulled from other servers, and from which: decisions, without I/O.

Rules of this room
  1. The clock is handed in; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.backoff import Backoff
from relay.urls import HttpUrl

CEILING_S = 30.0
STEADY_S = 10.0  # of audio, after which a loss is news and no failure


class Plan:
    """When a stream is pulled, and from which of its addresses.

    Args:
        urls: first choice first.
        on_demand: only while somebody wants it.
        idle_s: how long nobody must want it before it is let go.
        backoff: waits once all addresses have failed.
    """

    def __init__(
        self,
        urls: Sequence[HttpUrl],
        *,
        on_demand: bool = False,
        idle_s: float = 10.0,
        backoff: Backoff | None = None,
    ) -> None:
        self.urls = tuple(urls)
        self.on_demand = on_demand
        self._idle_s = idle_s
        self._backoff = backoff or Backoff(ceiling_s=CEILING_S)
        self._at = 0
        self._wanted_until: float | None = None
        self.due = 0.0  # monotonic; not asked before

    @property
    def url(self) -> HttpUrl:
        """The address whose turn it is."""
        return self.urls[self._at]

    def note_demand(self, is_wanted: bool, now: float) -> None:
        """Somebody wants the stream now, or nobody does."""
        if is_wanted:
            if not self.is_wanted(now):
                self.due = now  # who waits for it is not put off by an old failure
            self._wanted_until = now + self._idle_s

    def is_wanted(self, now: float) -> bool:
        """Whether it is to be pulled."""
        if not self.on_demand:
            return True
        return self._wanted_until is not None and now < self._wanted_until

    def lost(self, steady_s: float, now: float) -> float:
        """The connection is lost, after so much audio; returns the wait in seconds."""
        if steady_s < STEADY_S:
            return self.failed(now)
        self._backoff.reset()
        self._at = 0
        return self._wait(now)

    def failed(self, now: float) -> float:
        """It did not come about: the next address at once, or after the last one a wait."""
        self._at = (self._at + 1) % len(self.urls)
        if self._at:
            self.due = now
            return 0.0
        return self._wait(now)

    def _wait(self, now: float) -> float:
        wait_s = self._backoff.next_s()
        self.due = now + wait_s
        return wait_s
