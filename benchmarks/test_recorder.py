"""What it costs to put a decision into the flight recorder; the goal is less than 50 ns."""

from __future__ import annotations

import time

import pytest
from relay._probe import RECORD_KINDS, FlightRecorder

from relay._core import BUILD

RECORDS = 1_000_000


@pytest.mark.parametrize("kind", ["switch", "skip"])
def test_a_record(benchmark, kind):
    """A rare one goes into the ring at once; of a common one twenty in a row are counted as one."""
    seconds = []
    one = FlightRecorder(32768, 32768)

    def put_many() -> None:
        begin_s = time.thread_time()  # of this thread's CPU: the machine may be busy
        one.measure(RECORDS, RECORD_KINDS[kind])
        seconds.append(time.thread_time() - begin_s)

    benchmark.pedantic(put_many, rounds=3, iterations=1)
    rare, common = one.told()
    if kind == "switch":
        assert len(rare) == 32768
        assert rare[-1]["a"] == RECORDS - 1
    else:
        assert sum(record["count"] for record in common[-1000:]) == 20 * 1000
    benchmark.extra_info.update(build=BUILD, ns_per_record=round(min(seconds) / RECORDS * 1e9, 1))
