"""What one push into the ring costs: in the core, and as a Python call; the bytes are checked."""

from __future__ import annotations

import random

import pytest
from relay._probe_hop import measure_push

from relay._core import BUILD, Engine, Stream, pointer_of

PUSHES = 1_000_000
SIZES = [100, 400, 1400, 4000]
RING_BYTES = 1 << 20


@pytest.fixture
def stream() -> Stream:
    """A stream with a ring of 1 MiB, whatever the rate."""
    engine = Engine()
    engine.configure(ring_bytes_max=RING_BYTES)
    stream = engine.add_stream("/live")
    stream.begin()
    return stream


def checksum_expected(data: bytes, first: int, last: int) -> int:
    """The sum of all bytes of frames first … last - 1, each with its number in front."""
    numbers = sum(sum(i.to_bytes(4, "little")) for i in range(first, last))
    return numbers + (last - first) * sum(data[4:])


@pytest.mark.parametrize("size", SIZES)
def test_push_inside_the_core(benchmark, stream, size):
    """Reserve, copy, index, publish: 10^6 pushes a round, then every byte held is summed."""
    data = random.Random(size).randbytes(size)
    seconds = []

    def push_many() -> int:
        seconds.append(measure_push(pointer_of(stream), data, PUSHES))
        return sum(memoryview(stream.view()))

    checksum = benchmark.pedantic(push_many, rounds=3, iterations=1)
    state = stream.snapshot()
    held = state["head_sequence"] - state["tail_sequence"]
    pushes = len(seconds) * PUSHES
    assert state["counters"]["received_frames_total"] == pushes
    assert state["counters"]["received_bytes_total"] == pushes * size
    assert held >= min(state["ring_frames"] // 2, RING_BYTES // 2 // size)
    assert checksum == checksum_expected(data, PUSHES - held, PUSHES)
    benchmark.extra_info.update(
        build=BUILD,
        size_bytes=size,
        pushes=pushes,
        bytes_held=held * size,
        ns_per_push=round(min(seconds) / PUSHES * 1e9, 1),
    )


@pytest.mark.parametrize("size", SIZES)
def test_push_as_a_python_call(benchmark, stream, size):
    """Stream.push with its checks and the buffer protocol."""
    data = random.Random(size).randbytes(size)
    benchmark.pedantic(stream.push, args=(data, 20_000), rounds=20, iterations=10_000)
    state = stream.snapshot()
    pushes = state["counters"]["received_frames_total"]
    assert pushes == state["head_sequence"] >= (1 if benchmark.disabled else 200_000)
    assert state["head_position"] == pushes * size
    assert stream.read(state["head_sequence"] - 1)[0] == data
    if not benchmark.disabled:
        ns_per_push = round(benchmark.stats.stats.min * 1e9, 1)
        benchmark.extra_info.update(build=BUILD, size_bytes=size, ns_per_push=ns_per_push)
