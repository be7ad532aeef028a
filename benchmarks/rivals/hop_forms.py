"""How large the backbone's benchmark is: the long form of the goals, a short one, a tiny one.

Rules of this room
  1. The long form is the one that goals were written for; goals stay the same in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .forms import Sizes


@dataclass(frozen=True)
class HopForm(Sizes):
    """Sizes and times of one form."""

    lap_frames: int = 40_000  # a lap: pushed while the backbone is held, then carried
    laps: int = 20  # of one run
    recorded_laps: int = 7  # as many bytes as a ring, so that both read as cold
    children: int = 8
    load_s: float = 5.0  # at four times what one message a frame reaches
    paced_s: float = 20.0
    streams: int = 2000
    watched: int = 200  # streams whose every frame is looked at
    settle_s: float = 3.0
    round_s: float = 10.0  # longer than STREAMS_RING_S: memory is not touched for the first time
    window_s: float = 20.0
    memory_s: float = 45.0  # of media: rings, indexes and marks are full by then
    memory_ring_s: int = 10


LONG = HopForm("long", pairs=5)

SHORT = HopForm(
    "short", pairs=2, laps=10, load_s=2.0, paced_s=5.0, window_s=5.0, settle_s=2.0, memory_s=26.0
)

TINY = HopForm(
    "tiny",
    pairs=1,
    foreign_share_max=2.0,  # what is delivered does not depend on it
    lap_frames=4000,
    laps=2,
    recorded_laps=1,
    children=2,
    load_s=0.2,
    paced_s=0.5,
    streams=50,
    watched=50,
    settle_s=0.2,
    round_s=0.2,
    window_s=0.5,
    memory_s=1.5,
)
