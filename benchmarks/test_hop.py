"""One hop as fast as it goes, beside a plain loop over the same libzmq sending the same messages.

What is delivered is checked (count and checksum); the ratio is shown, aim >= 0.7.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
import zmq.backend.cython._zmq as zmq_module

from relay import _core, _probe_backbone
from relay.backbone import open_backbone

FRAME = bytes(range(256)) + bytes(range(160))  # 416 bytes: MP3 at 128 kbit/s
FRAMES = 40_000  # a lap: a quarter of the ring
FRAME_US = 100  # so short that the rings keep their 64 MB
PLAIN_BUFFER_BYTES = 64 << 20  # the plain loop reads as much memory in turn as the ring has
LAPS = 10


def plain(size: int, count: int) -> tuple[float, float]:
    """(seconds, CPU seconds) for `count` messages of `size` bytes over XPUB and SUB."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sender, receiver = context.socket(zmq.XPUB), context.socket(zmq.SUB)
    try:
        sender.setsockopt(zmq.XPUB_NODROP, 1)
        sender.setsockopt(zmq.SNDHWM, 64)
        port = sender.bind_to_random_port("tcp://127.0.0.1")
        receiver.connect(f"tcp://127.0.0.1:{port}")
        receiver.subscribe(b"S")
        sender.recv()
        messages = (b"S" + bytes(size - 1)) * (PLAIN_BUFFER_BYTES // size)
        cpu = time.process_time()
        seconds, received = _probe_backbone.measure_zmq(
            str(zmq_module.__file__),
            sender.underlying,
            receiver.underlying,
            messages,
            count,
            PLAIN_BUFFER_BYTES // size,
        )
        assert received == size * count
        return seconds, time.process_time() - cpu
    finally:
        sender.close(0)
        receiver.close(0)
        context.term()


@pytest.fixture
def hop() -> Iterator[tuple[Any, Any, Any, Any]]:
    """Two nodes and their ends of one stream."""
    first, second = _core.Engine(streams_max=4), _core.Engine(streams_max=4)
    for engine in (first, second):
        engine.configure(ring_s=20, ring_bytes_max=64 << 20)
    above = open_backbone(first, bind="tcp://127.0.0.1:0")
    assert above.address
    below = open_backbone(second, bind=None, upstreams=[above.address], prefetch=["/live"])
    here = first.add_stream("/live")
    here.claim()
    here.begin()
    for _ in range(20_000):  # two seconds of media: the rings get their size
        here.push(FRAME, FRAME_US)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        there = second.find("/live")
        if (
            there is not None
            and there.snapshot()["epoch"] is not None
            and (there.snapshot()["head_sequence"] == 20_000)
        ):
            break
        time.sleep(0.01)
    assert there is not None
    yield here, there, above, below
    below.close()
    above.close()


def test_hop_beside_a_plain_loop(benchmark: Any, hop: tuple[Any, Any, Any, Any]) -> None:
    """Frames per second through one hop; beside it the same messages in a plain loop.

    Both as wall time and as CPU time (of all threads but the one that pushes), the best of five.
    """
    here, there, above, _ = hop
    rounds: list[tuple[float, float]] = []

    def sent() -> tuple[int, int]:
        counters = above.snapshot()["counters"]
        return counters["sent_messages_total"], counters["sent_bytes_total"]

    def once() -> None:
        cpu = time.process_time()
        seconds, own = _core.measure_hop(above._core, here, there, FRAME, FRAME_US, FRAMES, LAPS)
        rounds.append((seconds, time.process_time() - cpu - own))

    once()  # the rings' pages are touched for the first time
    rounds.clear()
    before = sent()
    benchmark.pedantic(once, rounds=5)
    messages, size = (now - then for now, then in zip(sent(), before, strict=True))
    state = there.snapshot()
    passes = 1 + (1 if benchmark.disabled else 5)  # the first is not counted
    assert state["head_sequence"] == 20_000 + passes * LAPS * FRAMES
    assert state["head_position"] == len(FRAME) * state["head_sequence"]
    assert state["counters"]["lost_frames_total"] == 0
    assert sum(bytes(memoryview(there.view()))[-len(FRAME) * 1000 :]) == sum(FRAME) * 1000
    hop_s, hop_cpu_s = (min(column) for column in zip(*rounds, strict=True))
    packed = [plain(size // messages, messages // (passes - 1)) for _ in range(5)]
    plain_s, plain_cpu_s = (min(column) for column in zip(*packed, strict=True))
    single_s, single_cpu_s = plain(len(FRAME) + 62, LAPS * FRAMES)
    frames = LAPS * FRAMES
    benchmark.extra_info.update(
        {
            "message_bytes": size // messages,
            "ratio_to_plain_loop": round(plain_s / hop_s, 2),
            "ratio_to_plain_loop_cpu": round(plain_cpu_s / hop_cpu_s, 2),
            "frames_per_second": round(frames / hop_s),
            "megabytes_per_second": round(frames * len(FRAME) / hop_s / 1e6),
            "cpu_ns_per_frame": round(hop_cpu_s / frames * 1e9),
            "plain_cpu_ns_per_frame": round(plain_cpu_s / frames * 1e9),
            "one_message_a_frame_per_second": round(frames / single_s),
            "one_message_a_frame_cpu_ns": round(single_cpu_s / frames * 1e9),
        }
    )
    print(benchmark.extra_info)
