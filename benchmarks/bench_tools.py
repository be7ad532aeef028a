"""What the checkers themselves cost: how many listeners one test process can check in real time.

Rules of this room
  1. A checker that falls behind would be read as lateness of the relay: this bounds it.
"""

from __future__ import annotations

from typing import Any

from tools.sources import FrameChecker, FrameMaker


def test_frame_checker_keeps_up_with_a_hundred_listeners(benchmark: Any) -> None:
    """One second of 100 listeners at 64 kbit/s, as reads of a fifth of a second."""
    data = FrameMaker().seconds(1.0)
    reads = [data[at : at + 1600] for at in range(0, len(data), 1600)]

    def check() -> int:
        checkers = [FrameChecker() for _ in range(100)]
        for part in reads:
            for checker in checkers:
                checker.feed(part, 0)
        return sum(checker.frames for checker in checkers if checker.clean)

    frames = benchmark(check)
    assert frames == 100 * 38
    benchmark.extra_info["frames"] = frames
