"""How large a benchmark is: the long form of the goals, the short one of `make bench`, a tiny one.

Rules of this room
  1. The long form is the one that goals were written for; the others only keep it alive and show
     what moved. Goals stay the same in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar


@dataclass(frozen=True)
class Sizes:
    """What the forms of all benchmarks have."""

    name: str
    pairs: int  # interleaved runs of each contestant
    foreign_share_max: float = 0.1  # of a window, that other work may take of the server's core


F = TypeVar("F", bound=Sizes)


@dataclass(frozen=True)
class Form(Sizes):
    """The edge: sizes and times; counts are listeners unless their name says otherwise."""

    joins_per_s: int = 3000  # of incumbents, who come in no hurry
    settle_s: float = 3.0  # between the last join and a window
    incumbent_s: float = 5.0  # how long an incumbent has been there before the event
    window_s: float = 10.0
    after_s: float = 5.0  # that a storm is watched after its last join
    icecast: bool = True  # show it beside the others
    paces_ms: tuple[int, ...] = (100, 175, 250, 500, 1000)
    pace_listeners: int = 6000
    house_listeners: int = 15_000
    house_s: float = 60.0
    icy_s: float = 30.0
    title_every_s: float = 10.0
    lagging: int = 100  # with ICY, who stop reading until they are skipped; 0: not tried
    lag_s: float = 24.0  # for so long: queues hold 12 s or more; dropped 15 s after that
    auto_listeners: int = 500
    auto_settle_s: float = 15.0  # the pace is changed a little at a time
    storm_incumbents: int = 5000
    storm_joins: int = 10_000
    stalled: int = 3000
    stalled_s: float = 25.0  # until the receive windows are full, and stall_ms beyond
    refused: int = 20_000
    refuse_s: float = 5.0  # within which they come
    mounts: int = 500
    listeners_per_mount: int = 10
    uring: tuple[tuple[int, int], ...] = ((1400, 175), (4000, 500), (8000, 1000))  # bytes, pace


LONG = Form("long", pairs=5)

SHORT = Form(
    "short",
    pairs=1,
    settle_s=1.5,
    incumbent_s=2.0,
    window_s=4.0,
    after_s=2.0,
    paces_ms=(175, 1000),
    pace_listeners=4000,
    house_listeners=6000,
    house_s=6.0,
    icy_s=6.0,
    title_every_s=2.0,
    lagging=0,  # 40 s by themselves
    auto_settle_s=5.0,
    storm_incumbents=1500,
    storm_joins=3000,
    stalled=500,
    stalled_s=12.0,
    refused=4000,
    refuse_s=1.0,
    mounts=50,
    listeners_per_mount=20,
    uring=((1400, 175), (8000, 1000)),
)

TINY = Form(
    "tiny",
    pairs=1,
    foreign_share_max=1.0,  # what is delivered does not depend on it
    settle_s=0.5,
    incumbent_s=0.5,
    window_s=1.0,
    after_s=1.5,
    icecast=False,
    paces_ms=(200,),
    pace_listeners=300,
    house_listeners=300,
    house_s=1.0,
    icy_s=1.0,
    title_every_s=0.3,
    lagging=0,
    auto_listeners=100,
    auto_settle_s=0.5,
    storm_incumbents=100,
    storm_joins=200,
    stalled=50,
    stalled_s=1.0,
    refused=200,
    refuse_s=0.05,
    mounts=5,
    listeners_per_mount=10,
    uring=((1400, 200),),
)


def with_pairs(form: F, pairs: int) -> F:
    """Return the form with another number of interleaved pairs."""
    return replace(form, pairs=pairs)


def shared(form: F) -> F:
    """Return the form for a machine that has other work: ratios stand, gaps and lateness do not."""
    return replace(form, foreign_share_max=1.0)
