"""What it costs a shard to see its own service: booking one send, beside sends of about 8 µs."""

from __future__ import annotations

import pytest
from relay._probe_listener import Observed

from relay._core import BUILD

SENDS = 1_000_000
GAP, LATENESS = 2, 1


@pytest.mark.parametrize("per_place", [1, 50])
def test_booking_a_send(benchmark, per_place):
    """Clock, gap, and lateness by the ring's marks: each listener at a place of its own (as many
    mounts as listeners), or fifty at one."""
    seconds = []
    seen = Observed()

    def book_many() -> None:
        seconds.append(seen.measure(SENDS, per_place))

    benchmark.pedantic(book_many, rounds=3, iterations=1)
    told = seen.told()
    booked = len(seconds) * SENDS
    assert told["durations"][GAP][0] == told["durations"][LATENESS][0] == booked
    benchmark.extra_info.update(build=BUILD, ns_per_send=round(min(seconds) / SENDS * 1e9, 1))
