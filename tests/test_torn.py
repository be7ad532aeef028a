"""No torn frame can be delivered: an unpaced writer against readers preempted in mid-copy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from relay._probe_data import RingProbe

SECONDS_MAX = 4.0
RING_BYTES = 1 << 16  # the writer laps a reader about every 10 µs


@pytest.fixture
def ring() -> Iterator[RingProbe]:
    """A small ring whose writer runs as fast as it can, without the GIL."""
    ring = RingProbe(RING_BYTES, 512)
    writer = threading.Thread(target=ring.write_unpaced)
    writer.start()
    yield ring
    ring.stop_writing()
    writer.join()


def read_until(ring: RingProbe, *, check: bool, enough) -> list[int]:
    """Two slow readers at once: sums of (delivered, thrown away, frames, torn)."""
    sums = [0, 0, 0, 0]

    def read() -> None:
        for i, count in enumerate(ring.read_slowly(200, check)):
            sums[i] += count  # the GIL is held here

    end = time.monotonic() + SECONDS_MAX
    while not enough(sums) and time.monotonic() < end:
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    return sums


def test_no_frame_is_torn_when_each_copy_is_checked_afterwards(ring):
    """Many runs are overtaken while they are copied; not one of their frames is delivered."""
    delivered, thrown_away, frames, torn = read_until(
        ring, check=True, enough=lambda sums: sums[0] >= 50_000 and sums[1] >= 2_000
    )
    assert torn == 0
    assert thrown_away >= 10
    assert delivered >= 100
    assert frames >= delivered


def test_frames_are_torn_when_the_check_is_taken_out(ring):
    """The same readers without the check deliver torn frames: the test above can fail."""
    torn = read_until(ring, check=False, enough=lambda sums: sums[3] > 0)[3]
    assert torn > 0
