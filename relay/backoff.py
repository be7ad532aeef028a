"""How long to wait before the next attempt.

Rules of this room
  1. Waits are drawn from a range that doubles: a crowd that lost one server comes back apart.
  2. No clock and no thread: who waits does so himself.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Waits between attempts: from 0.5 s, each bound twice the last, to a ceiling.

    Args:
        draw: of two bounds, s.
        ceiling_s: no wait is longer; CEILING_S if left out.
    """

    FLOOR_S, CEILING_S = 0.5, 10.0

    def __init__(
        self,
        draw: Callable[[float, float], float] = random.uniform,
        ceiling_s: float | None = None,
    ) -> None:
        self._draw = draw
        self._ceiling_s = ceiling_s
        self.failures = 0

    def next_s(self) -> float:
        """The next wait in seconds."""
        self.failures += 1
        ceiling_s = self._ceiling_s or self.CEILING_S
        bound = self.FLOOR_S * 2.0 ** min(self.failures, 8)
        return self._draw(self.FLOOR_S, min(ceiling_s, bound))

    def reset(self) -> None:
        """The connection was steady: begin again."""
        self.failures = 0
