"""What the wheel costs: a join at the size of a storm, and a listener's way off and on again.

Rules of this room
  1. No engine, no socket: the rooms alone, compiled, called once for thousands of members.
  2. What was delivered is checked: even slots, everybody served.
"""

from __future__ import annotations

from typing import Any

import pytest
from relay._probe import Wheel, pace_slots

import relay._core as core

INCUMBENTS, JOINS = 5000, 10_000
SLOT_US = 10_000
ROUNDS = 20


def incumbents(pace_us: int) -> Wheel:
    """Return a wheel that 5,000 are on."""
    wheel = Wheel(INCUMBENTS + JOINS)
    wheel.join_many(0, INCUMBENTS, pace_us)
    return wheel


@pytest.mark.parametrize("pace_ms", [100, 1000])
def test_a_storm_joins_the_wheel(benchmark: Any, pace_ms: int) -> None:
    """10,000 joins in one turn; a pace of 1 s looks at 100 slots for each."""
    made: list[Wheel] = []

    def setup() -> tuple[tuple[Wheel], dict[str, Any]]:
        made.append(incumbents(pace_ms * 1000))
        return (made[-1],), {}

    def join(wheel: Wheel) -> None:
        wheel.join_many(INCUMBENTS, JOINS, pace_ms * 1000)

    benchmark.pedantic(join, setup=setup, rounds=ROUNDS)
    used = made[-1].fill[: pace_slots(pace_ms * 1000)]
    assert sum(used) == INCUMBENTS + JOINS
    assert max(used) - min(used) <= 1
    if benchmark.stats:
        least_ns = benchmark.stats.stats.min / JOINS * 1e9
        benchmark.extra_info |= {"core": core.BUILD, "ns_per_join": round(least_ns, 1)}


@pytest.mark.parametrize("pace_ms", [100, 1000])
def test_a_round_of_the_wheel(benchmark: Any, pace_ms: int) -> None:
    """Everybody is taken off and put back three times."""
    slots = 3 * pace_slots(pace_ms * 1000)
    wheel = incumbents(pace_ms * 1000)
    turns = iter(range(1, (ROUNDS + 2) * slots))
    served = 0

    def three_rounds() -> None:
        nonlocal served
        for _ in range(slots):
            served += wheel.serve(next(turns) * SLOT_US, pace_ms * 1000)[0]

    benchmark.pedantic(three_rounds, rounds=ROUNDS)
    assert served % (3 * INCUMBENTS) == 0
    assert served > 0
    if benchmark.stats:
        least_ns = benchmark.stats.stats.min / (3 * INCUMBENTS) * 1e9
        benchmark.extra_info |= {"core": core.BUILD, "ns_per_serving": round(least_ns, 1)}
