"""What the library costs Python: a feed, a frame read, beside an asyncio queue fan-out.

Rules of this room
  1. CPU of the loop's thread, by its own clock, less what the same turns cost with nobody who
     reads. Turns of all kinds follow each other in short slices, and medians are told: the cost of
     a turn itself drifts by more than a reader costs.
  2. Both sides deliver the same frames in the same turns of the same loop, to as many readers; what
     each reader had is counted, and its bytes are.
  3. Goal: at most 3 µs for each frame that a reader gets. What one alone pays is the loop's turn
     that a look takes, whatever it finds: so beside it a timer that does nothing, and a slower
     pace.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import relay
from relay.testing import silence

GOAL_US = 3.0
FRAME_BYTES = 417
TURN_FRAMES = 8  # fed between two looks: 20 ms at 400 frames a second
TURN_S = 0.02
TURN = silence(1.0)[: FRAME_BYTES * TURN_FRAMES]
SLICES = 12
CASES = {(1, 20): 25, (1, 100): 25, (10, 20): 25, (1000, 20): 5}  # readers, pace_ms: turns a slice


@pytest.mark.parametrize("size", [400, 417 * 8])
def test_feed(benchmark: BenchmarkFixture, size: int) -> None:
    """One call: lock, cut, copy into the ring."""
    with relay.Node() as node, node.source("/live", content_type="audio/mpeg") as live:
        data = silence(60)
        parts = [data[at : at + size] for at in range(0, len(data) - size, size)]

        def feed() -> None:
            for part in parts:
                live.feed(part)

        benchmark.pedantic(feed, rounds=20, warmup_rounds=2)
        fed = node._opened().find("/live")
        assert fed is not None
        assert fed.snapshot()["counters"]["junk_bytes_total"] < 2 * FRAME_BYTES * 22
        if benchmark.enabled:
            benchmark.extra_info["us_per_call"] = benchmark.stats["min"] / len(parts) * 1e6


async def turns(live: relay.NodeSource, count: int, also: Callable[[], object] = bool) -> None:
    """Feed, and whatever else is to be done each turn."""
    for _ in range(count):
        live.feed(TURN)
        also()
        await asyncio.sleep(TURN_S)


async def alone(live: relay.NodeSource, count: int) -> float:
    """CPU seconds with nobody who reads."""
    began = time.thread_time()
    await turns(live, count)
    return time.thread_time() - began


async def ticked(live: relay.NodeSource, count: int) -> float:
    """CPU seconds with a timer that does nothing, as often as a reader looks."""
    loop = asyncio.get_running_loop()
    handles: list[asyncio.TimerHandle] = []

    def tick() -> None:
        handles[:] = [loop.call_later(TURN_S, tick)]

    handles.append(loop.call_later(TURN_S * 0.6, tick))
    taken = await alone(live, count)
    handles[0].cancel()
    return taken


async def relayed(
    node: relay.Node, live: relay.NodeSource, count: int, readers: int, pace_ms: int
) -> float:
    """CPU seconds until each reader has had all frames."""

    async def read(reader: relay.Subscription) -> None:
        had = 0
        async for item in reader:
            assert isinstance(item, relay.Frame)
            assert len(item.data) == FRAME_BYTES
            had += 1
            if had == count * TURN_FRAMES:
                return

    subscriptions = [node.subscribe("/live", pace_ms=pace_ms) for _ in range(readers)]
    for one in subscriptions:
        one.waiting()  # each begins at the head
    tasks = [asyncio.create_task(read(one)) for one in subscriptions]
    await asyncio.sleep(0)
    began = time.thread_time()
    await turns(live, count)
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    return time.thread_time() - began


async def queued(live: relay.NodeSource, count: int, readers: int) -> float:
    """The same by a queue for each reader, as most programs do it."""
    queues: list[asyncio.Queue[bytes]] = [asyncio.Queue(64) for _ in range(readers)]

    async def read(queue: asyncio.Queue[bytes]) -> None:
        for _ in range(count * TURN_FRAMES):
            assert len(await queue.get()) == FRAME_BYTES

    def put() -> None:
        for _ in range(TURN_FRAMES):
            for queue in queues:
                queue.put_nowait(frame)

    frame = silence(0)
    tasks = [asyncio.create_task(read(queue)) for queue in queues]
    await asyncio.sleep(0)
    began = time.thread_time()
    await turns(live, count, put)
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    return time.thread_time() - began


async def beside(readers: int, pace_ms: int, count: int, slices: int) -> dict[str, float]:
    """µs for each frame that a reader got, of each kind, medians over the slices."""
    found: dict[str, list[float]] = {"reader": [], "queue": [], "timer": []}
    scale = 1e6 / (readers * count * TURN_FRAMES)
    async with relay.Node() as node, node.source("/live", content_type="audio/mpeg") as live:
        live.feed(silence(1.0))
        for _ in range(slices):
            base = await alone(live, count)
            for name, taken in (
                ("reader", await relayed(node, live, count, readers, pace_ms)),
                ("queue", await queued(live, count, readers)),
                ("timer", await ticked(live, count)),
            ):
                found[name].append((taken - base) * scale)
    return {name: median(costs) for name, costs in found.items()}


@pytest.mark.parametrize(("readers", "pace_ms"), CASES)
def test_a_frame_that_is_read(benchmark: BenchmarkFixture, readers: int, pace_ms: int) -> None:
    """To 1, 10 and 1,000 readers, beside queues and a bare timer in the same run."""
    slices = 1 if benchmark.disabled else SLICES
    found: list[dict[str, float]] = []
    benchmark.pedantic(
        lambda: found.append(
            asyncio.run(beside(readers, pace_ms, CASES[readers, pace_ms], slices))
        ),
        rounds=1,
    )
    told = {f"{name}_us_per_frame": round(cost, 2) for name, cost in found[0].items()}
    benchmark.extra_info.update(told)
    print(f"{readers} readers, pace {pace_ms} ms: {told}")
    if not benchmark.disabled and readers > 1:
        assert found[0]["reader"] <= 2 * GOAL_US  # times are shown, and only gross ones fail
