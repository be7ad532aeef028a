"""Reading a stream from Python, stepped over a stream of plain values."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine, FakeStream

from relay.errors import MountError
from relay.subscribe import BATCH_FRAMES, POLL_S, Frame, Skipped, Subscription


class Bench:
    """A stream, a subscription, and a sleep that runs the next step of the test."""

    def __init__(self, burst_ms: int = 0, frames: int = 0) -> None:
        self.engine: Any = FakeEngine()
        self.stream: FakeStream = self.engine.add_stream("/live")
        self.stream.claim()
        self.stream.begin()
        self.push(frames)
        self.steps: list[Any] = []
        self.subscription = Subscription(self.engine, "/live", burst_ms=burst_ms, sleep=self.sleep)

    def push(self, count: int, flags: int = 1) -> None:
        """Put frames at the head, each ten bytes that tell its sequence."""
        for _ in range(count):
            self.stream.push(b"%010d" % len(self.stream.frames), 20_000, flags)

    async def sleep(self, seconds: float) -> None:
        """Run the next step."""
        assert seconds == POLL_S
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


async def test_frames_read_while_the_epoch_changes_are_not_believed() -> None:
    """Two epochs count from 0: what was read between them could be of either."""
    bench = Bench(burst_ms=3000, frames=3)
    read = bench.stream.read

    def read_and_change(sequence: int) -> Any:
        found = read(sequence)
        if sequence == 2:
            bench.stream.begin()
        return found

    bench.stream.read = read_and_change  # type: ignore[method-assign]
    items = await bench.take(1)
    assert sequences(items) == ["epoch 3"]


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
