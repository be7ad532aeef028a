"""Reading a stream from Python, stepped over a stream of plain values."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeStream

from relay.errors import MountError, RelayError
from relay.subscribe import (
    BATCH_FRAMES,
    PACE_MS,
    Frame,
    Position,
    Pulse,
    Skipped,
    Start,
    Subscription,
)


class Bench:
    """A stream, a subscription, and a sleep that runs the next step of the test."""

    def __init__(self, burst_ms: int = 0, frames: int = 0, start: Start = "live") -> None:
        self.engine: Any = FakeEngine()
        self.stream: FakeStream = self.engine.add_stream("/live")
        self.stream.claim()
        self.stream.begin()
        self.push(frames)
        self.steps: list[Any] = []
        self.subscription = Subscription(
            self.engine, "/live", start=start, burst_ms=burst_ms, wait=self.wait, sleep=self.sleep
        )

    def push(self, count: int, flags: int = 1) -> None:
        """Put frames at the head, each ten bytes that tell its sequence."""
        for _ in range(count):
            self.stream.push(b"%010d" % len(self.stream.frames), 20_000, flags)

    async def wait(self, reader: Subscription) -> None:
        """Run the next step."""
        assert not reader.has_news()
        self.sleep(PACE_MS / 1000)

    def sleep(self, seconds: float) -> None:
        """The same, in plain code."""
        assert seconds == PACE_MS / 1000
        assert self.steps, "the reader waits, and the test has nothing more to do"
        self.steps.pop(0)()

    async def take(self, count: int) -> list[Frame | Skipped]:
        """The next items."""
        return [await anext(self.subscription) for _ in range(count)]


def sequences(items: list[Frame | Skipped]) -> list[int | str]:
    """The sequences of frames, the reasons of gaps."""
    return [i.sequence if isinstance(i, Frame) else f"{i.reason} {i.frames}" for i in items]


def test_unknown_mount_is_refused() -> None:
    """A stream that this node does not have cannot be read."""
    engine: Any = FakeEngine()
    with pytest.raises(MountError, match="no such stream"):
        Subscription(engine, "/other")


async def test_live_reader_begins_with_the_next_frame() -> None:
    """burst_ms = 0: nothing of the past."""
    bench = Bench(frames=5)
    bench.steps = [lambda: bench.push(2)]
    items = await bench.take(2)
    assert sequences(items) == [5, 6]
    frame = items[0]
    assert isinstance(frame, Frame)
    assert (frame.position, frame.media_us, frame.duration_us) == (50, 100_000, 20_000)
    assert frame.data == b"0000000005"
    assert frame.start
    assert not frame.header


async def test_burst_begins_in_the_past() -> None:
    """Who wants a burst gets what the ring holds of it."""
    assert sequences(await Bench(burst_ms=3000, frames=3).take(3)) == [0, 1, 2]


async def test_reader_begins_at_a_start() -> None:
    """Continued and header pages before the first start are left out."""
    bench = Bench(burst_ms=3000)
    bench.push(2, flags=0)
    bench.push(1)
    bench.push(1, flags=0)
    assert sequences(await bench.take(2)) == [2, 3]


async def test_titles_take_a_sequence_and_are_no_gap() -> None:
    """A title stands between frames and has no bytes."""
    bench = Bench(burst_ms=3000, frames=1)
    bench.stream.title("A talk")
    bench.push(1)
    assert sequences(await bench.take(2)) == [0, 2]


async def test_lost_frames_are_named() -> None:
    """What never came to this node leaves a gap in the positions."""
    bench = Bench(burst_ms=3000, frames=4)
    frames = bench.stream.frames
    frames[1] = frames[2] = None
    moved = frames[3]
    assert moved is not None
    assert moved[1] == 30
    assert sequences(await bench.take(3)) == [0, "lost 2", 3]


async def test_slow_reader_gets_a_skip_and_goes_on_at_a_start() -> None:
    """Who is slower than the ring learns how much he missed."""
    bench = Bench(burst_ms=3000, frames=2)
    await bench.take(2)
    bench.push(5)
    bench.push(1, flags=0)
    bench.push(1)
    bench.stream.tail = 7
    assert sequences(await bench.take(2)) == ["slow 5", 8]


async def test_new_epoch_is_read_from_its_beginning() -> None:
    """A source that returns: its first frames, header pages too, are not missed."""
    bench = Bench(burst_ms=3000, frames=2)
    first = await bench.take(2)

    def returns() -> None:
        bench.stream.end()
        bench.stream.frames = []
        bench.stream.media_us = 0
        bench.stream.begin()
        bench.push(1, flags=2)
        bench.push(1)

    bench.steps = [returns]
    items = await bench.take(2)
    assert sequences(items) == [0, 1]
    assert isinstance(items[0], Frame)
    assert isinstance(first[0], Frame)
    assert items[0].header
    assert items[0].epoch > first[0].epoch


async def test_what_is_left_of_an_epoch_that_is_gone_is_named() -> None:
    """Nobody knows how many frames it still had."""
    bench = Bench(burst_ms=3000, frames=3)
    await bench.take(3)
    bench.stream.forgets = True
    bench.stream.begin()
    assert sequences(await bench.take(2)) == ["epoch 0", 0]


async def test_reading_goes_on_at_a_place() -> None:
    """Where an earlier reader stopped: the next frame, whatever came meanwhile."""
    bench = Bench(burst_ms=3000, frames=5)
    [*_, last] = await bench.take(3)
    assert isinstance(last, Frame)
    bench.push(2, flags=0)
    later = Bench.__new__(Bench)
    later.__dict__ |= bench.__dict__
    later.subscription = Subscription(
        bench.engine, "/live", start=last.after, wait=bench.wait, sleep=bench.sleep
    )
    assert sequences(await later.take(4)) == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (Position(1, 2), ["epoch 0", 0]),
        (Position(1_700_000_000_001, 99), [5]),
        (Position(1_700_000_000_001, 4), [4]),
        (0, [0]),
        (15, [2]),
        (20, [2]),
        (9999, [5]),
    ],
)
async def test_each_place_to_begin(place: Start, expected: list[int | str]) -> None:
    """Another epoch's, one that is not here yet, one in the ring; bytes within the epoch."""
    bench = Bench(frames=5, start=place)
    bench.steps = [lambda: bench.push(1)]
    if expected == ["epoch 0", 0]:
        bench.subscription._burst_ms = 3000
    assert sequences(await bench.take(len(expected))) == expected


async def test_a_place_that_has_left_the_ring_is_a_gap_with_a_number() -> None:
    """As for any slow reader."""
    bench = Bench(frames=9, start=Position(1_700_000_000_001, 2))
    bench.stream.tail = 6
    assert sequences(await bench.take(2)) == ["slow 4", 6]


@pytest.mark.parametrize("start", ["now", -1, True, 1.5, None])
def test_a_start_that_is_none_is_refused(start: Any) -> None:
    """With what it may be."""
    engine: Any = FakeEngine()
    engine.add_stream("/live")
    with pytest.raises(RelayError, match="'live', 'burst', a Position, or a byte position"):
        Subscription(engine, "/live", start=start)


def test_plain_code_reads_in_a_loop() -> None:
    """`for`, with the same items and the same end."""
    bench = Bench(burst_ms=3000, frames=2)
    bench.steps = [lambda: bench.push(1), lambda: bench.engine.remove_stream(bench.stream)]
    with bench.subscription as reader:
        assert sequences(list(reader)) == [0, 1, 2]


def test_what_is_here_comes_without_waiting() -> None:
    """For hosts that look by themselves; a batch at most."""
    bench = Bench(burst_ms=3000, frames=BATCH_FRAMES + 3)
    assert len(bench.subscription.waiting()) == BATCH_FRAMES
    assert sequences(bench.subscription.waiting())[-1] == BATCH_FRAMES + 2
    assert bench.subscription.waiting() == []
    assert not bench.subscription.has_news()
    bench.push(1)
    assert bench.subscription.has_news()


async def test_all_who_wait_on_a_loop_are_woken_by_one_look() -> None:
    """One timer; whose stream has not moved goes on waiting, whoever was cancelled is let go."""
    engine: Any = FakeEngine()
    loop = asyncio.get_running_loop()
    pulse = Pulse(loop)
    streams = {mount: engine.add_stream(mount) for mount in ("/a", "/b")}
    for stream in streams.values():
        stream.claim()
        stream.begin()
    readers = {m: Subscription(engine, m, burst_ms=9, wait=pulse.wait) for m in streams}
    a, b, gone = (asyncio.ensure_future(anext(readers[m])) for m in ("/a", "/b", "/a"))
    await asyncio.sleep(0)
    gone.cancel()
    streams["/a"].push(b"x", 20_000)
    assert (await a).data == b"x"  # type: ignore[union-attr]
    assert not b.done()
    readers["/b"].close()
    with pytest.raises(StopAsyncIteration):
        await b
    assert pulse._timer is None


@pytest.mark.parametrize("pace_ms", [10, 20, 250])
async def test_a_reader_looks_at_its_own_pace(pace_ms: int) -> None:
    """Again and again while nothing has come; plain code sleeps for as long."""
    bench = Bench(frames=1)
    pauses: list[float] = []
    loop = asyncio.get_running_loop()

    class Soon:
        """A loop that runs at once what is due later."""

        create_future = loop.create_future

        def call_later(self, pause_s: float, call: Any) -> Any:
            bench.push(len(pauses) == 2)
            pauses.append(pause_s)
            return loop.call_soon(call)

    def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        bench.push(1)

    pulse = Pulse(Soon(), pace_ms / 1000)  # type: ignore[arg-type]
    reader = Subscription(bench.engine, "/live", pace_ms=pace_ms, wait=pulse.wait, sleep=sleep)
    assert sequences([await anext(reader), next(reader)]) == [1, 2]
    assert pauses == [pace_ms / 1000] * 4


async def test_reader_holds_a_bounded_batch() -> None:
    """The ring is the buffer; the reader never copies all of it at once."""
    bench = Bench(burst_ms=3000, frames=3 * BATCH_FRAMES)
    await bench.take(1)
    assert len(bench.subscription._ready) == BATCH_FRAMES - 1
    assert sequences(await bench.take(3 * BATCH_FRAMES - 1))[-1] == 3 * BATCH_FRAMES - 1


async def test_stream_before_its_first_epoch_is_awaited() -> None:
    """A stream without a source yet has no frames; its reader waits."""
    bench = Bench()
    bench.stream.epoch = None
    assert bench.subscription.header() == b""
    bench.steps = [lambda: None, bench.stream.begin, lambda: bench.push(1)]
    assert sequences(await bench.take(1)) == [0]


async def test_reader_ends_with_the_stream() -> None:
    """After the linger the stream leaves the node: the iterator ends, no error."""
    bench = Bench(burst_ms=3000, frames=1)
    bench.steps = [lambda: bench.engine.remove_stream(bench.stream)]
    assert sequences([item async for item in bench.subscription]) == [0]


async def test_closed_reader_ends() -> None:
    """What was taken already is still given; then the iterator ends."""
    bench = Bench(burst_ms=3000, frames=3)
    assert sequences(await bench.take(1)) == [0]
    bench.subscription.close()
    bench.push(1)
    assert sequences([item async for item in bench.subscription]) == [1, 2]
