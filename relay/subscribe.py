"""Reading a stream from Python: copies of verified frames, in order, with every gap named.

Rules of this room
  1. A frame is copied, then verified, then yielded: what was overwritten meanwhile never shows.
  2. Holds at most BATCH_FRAMES frames. The ring is the buffer: who is slower than it gets a
     `Skipped` and goes on at a frame where one may begin.
  3. New frames are looked for every pace_ms: once for all who wait on one loop (`Pulse`), which
     then wakes those whose stream has moved.
  4. An iterator belongs to one task or thread; nothing here blocks a loop for more than a batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias

from msgspec import Struct

from relay.address import check_mount, show
from relay.errors import MountError, RelayError
from relay.running import Closing, check_process
from relay.view import View

if TYPE_CHECKING:
    from relay._core import Engine, Reader, Stream

PACE_MS = 20
PACE_MS_MIN, PACE_MS_MAX = 10, 1000
BATCH_FRAMES = 64
BURST_MS_MAX = 3_600_000
FRAME_START = 1  # the flags of relay/_core/frames_state.pxd
FRAME_HEADER = 2


class Position(NamedTuple):
    """A place in a stream, the same on every node: the first frame from there on comes next."""

    epoch: int  # of the source's run, ms
    sequence: int


Start: TypeAlias = Literal["live", "burst"] | Position | int
"""Where reading begins: with the next `start`; with what a new listener gets at once; at a place;
or at a position in bytes within the epoch."""


class Frame(Struct, frozen=True, gc=False):
    """One frame of a stream, as every node and listener has it."""

    epoch: int  # of the source's run, ms
    sequence: int
    position: int  # of the first byte, within the epoch
    media_us: int  # of the first sample, within the epoch
    duration_us: int
    flags: int
    data: bytes

    @property
    def start(self) -> bool:
        """Whether a listener may begin here."""
        return bool(self.flags & FRAME_START)

    @property
    def header(self) -> bool:
        """Whether this is a header page (Ogg)."""
        return bool(self.flags & FRAME_HEADER)

    @property
    def after(self) -> Position:
        """The place behind it, for a later `subscribe(…, start=frame.after)`."""
        return Position(self.epoch, self.sequence + 1)


class Skipped(Struct, frozen=True, kw_only=True):
    """A gap: frames that this reader did not get, and why.

    The reason is `slow` (they left the ring before they were read), `lost` (they never came to
    this node) or `epoch` (a new epoch began before they were read; 0: nobody knows how many).
    """

    frames: int
    reason: str


class Pulse:
    """Wakes readers on one loop when their streams have moved.

    What it costs is that the loop wakes up, not what it then looks at: hence one for all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pace_s: float = PACE_MS / 1000) -> None:
        self._loop = loop
        self._pace_s = pace_s
        self._waiting: dict[str, list[tuple[Subscription, asyncio.Future[None]]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, reader: Subscription) -> None:
        """Until the reader's stream may have something new for it, or it was closed."""
        future = self._loop.create_future()
        self._waiting.setdefault(reader.mount, []).append((reader, future))
        if self._timer is None:
            self._timer = self._loop.call_later(self._pace_s, self._look)
        await future

    def _look(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        for mount, group in waiting.items():
            still = [(r, f) for r, f in group if not f.done() and not (r.has_news() and _wake(f))]
            if still:
                self._waiting[mount] = still
        if self._waiting:
            self._timer = self._loop.call_later(self._pace_s, self._look)


def _wake(future: asyncio.Future[None]) -> bool:
    future.set_result(None)
    return True


class Subscription(Closing):
    """An iterator of `Frame` and `Skipped`, for `async for` and `for`; ends when the stream leaves
    the node, when the node closes, or with `close`.

    Args:
        engine: whose stream is read.
        mount: which one.
        start: where it begins, see `Start`.
        burst_ms: how much of the past comes first, in place of the mount's own `burst_ms`.
        pace_ms: how often it looks for new frames, 10 to 1000.
        wait: waits until there may be something new; None: sleeps for pace_ms.
        sleep: seconds, in plain code.

    Raises:
        MountError: the node has no such stream.
        RelayError: a start that is none, or a number out of bounds.
    """

    def __init__(
        self,
        engine: Engine,
        mount: str,
        *,
        start: Start = "live",
        burst_ms: int = 0,
        pace_ms: int = PACE_MS,
        wait: Callable[[Subscription], Awaitable[object]] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        check_mount(mount)
        _check_start(start)
        _check_number("burst_ms", burst_ms, 0, BURST_MS_MAX)
        _check_number("pace_ms", pace_ms, PACE_MS_MIN, PACE_MS_MAX)
        found = engine.find(mount)
        if found is None:
            raise MountError(
                f"mount {show(mount)}: this node has no such stream; it is here with its source "
                "(has_mount tells)"
            )
        self._engine = engine
        self._stream: Stream = found
        self._reader: Reader | None = found.reader()  # an edge asks for the stream meanwhile
        self._start: Start = start
        self._burst_ms = burst_ms
        self._wait = wait or _doze
        self._sleep = sleep
        self.mount = mount
        self.pace_s = pace_ms / 1000
        self._ready: deque[Frame | Skipped] = deque()
        self._epoch = 0  # none yet
        self._next = 0  # sequence
        self._wants_start = True
        self._follows: int | None = None  # where the next frame must begin; None: anywhere
        self._taken = 0  # the sequence behind the last frame that was yielded

    def __repr__(self) -> str:
        state = "closed" if self._reader is None else f"at {self._epoch}/{self._next}"
        return f"<{type(self).__name__} {self.mount} {state}>"

    @property
    def content_type(self) -> str:
        """What listeners of the stream are told; "" while it is not known."""
        for line in self._stream.info().decode(errors="replace").split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "content-type":
                return value.strip()
        return ""

    def header(self) -> bytes:
        """The header pages that a decoder needs before the first frame; b"" where none are."""
        return self._stream.header() if self._epoch else b""

    def close(self) -> None:
        """End the iterator; an edge lets the stream go after its linger. From any thread; twice is
        no error. Who waits is woken within pace_ms."""
        self._reader = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame | Skipped:
        ready = self._ready
        while not ready:
            if not self._look():
                raise StopAsyncIteration
            if not ready:
                await self._wait(self)
        return ready.popleft()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame | Skipped:
        ready = self._ready
        while not ready:
            if not self._look():
                raise StopIteration
            if not ready:
                self._sleep(self.pace_s)
        return ready.popleft()

    def waiting(self) -> list[Frame | Skipped]:
        """What is here at this moment, at most a batch; [] when there is nothing. Does not block
        and does not wait."""
        if not self._ready and self._reader is not None:
            self.collect()
        found = list(self._ready)
        self._ready.clear()
        return found

    def view(self) -> View:
        """The frames of the newest epoch that the ring holds, without a copy:
        `with reader.view() as view`. It moves this reader nowhere. Does not block.

        Raises:
            SourceError: the stream has had no source yet.
            RelayError: this reader is closed, or eight views of the stream are open.
            OvertakenError: the writer goes round too quickly to be looked at.
        """
        if self._reader is None:
            raise RelayError(f"{self.mount}: this reader is closed; subscribe again")
        return View(self._stream.view())

    def has_news(self) -> bool:
        """Whether a look would be worth it: the stream has moved, or has gone. Does not block."""
        if self._reader is None:
            return True
        try:
            epoch, head, is_gone = self._stream.at_head()
        except RelayError:
            return True  # the node has closed
        return is_gone or epoch != self._epoch or head > self._next

    @property
    def is_gone(self) -> bool:
        """Whether its stream has left the node: what is here is the last, and a stream of this
        mount that comes is another one."""
        return self._reader is None or self._stream.at_head()[2]

    def _look(self) -> bool:
        """Take what is new; False: there will be no more."""
        if self._reader is None:
            return False
        is_gone = False
        try:
            self.collect()
            if not self._ready and (is_gone := self._stream.at_head()[2]):
                self.collect()  # what came before it went
        except RelayError:
            check_process()
            is_gone = True
        if is_gone and not self._ready:
            self.close()
            return False
        return True

    def collect(self) -> None:
        """Take what is new, at most a batch."""
        room = BATCH_FRAMES
        while room > 0:
            run = self._stream.run(self._epoch, self._next, room, Frame)
            if run is None:
                return
            epoch, tail, after, frames, more = run
            if epoch != self._epoch:
                if frames is None:
                    self._skip(0, "epoch")
                self._begin(epoch, tail)
                continue
            assert frames is not None
            if self._next < tail:
                self._skip(tail - self._next, "slow")
                self._next = self._taken = tail
                self._wants_start, self._follows = True, None
                continue
            self._next = after
            if frames:
                self._take(frames)
            if not (frames and more):
                return
            room -= len(frames)

    def _begin(self, epoch: int, tail: int) -> None:
        is_first = self._epoch == 0
        start, self._epoch = self._start, epoch
        self._wants_start, self._follows, self._next = is_first, None, tail
        if is_first and isinstance(start, Position):
            if start.epoch == epoch:
                self._next = min(start.sequence, self._stream.at_head()[1])
                self._wants_start = self._next < start.sequence  # a place that is not here yet
            else:
                self._skip(0, "epoch")
        elif is_first and isinstance(start, int):
            self._next = self._sequence_at(start, tail)
            self._wants_start = False
        elif is_first:
            self._next = int(self._stream.burst_sequence(self._burst_ms))
        self._taken = self._next

    def _sequence_at(self, position: int, tail: int) -> int:
        """The first frame that begins at this byte or behind it; the head when none is here."""
        at = tail
        while (run := self._stream.run(self._epoch, at, BATCH_FRAMES, Frame)) is not None:
            _, _, after, frames, _ = run
            for frame in frames or ():
                if frame.position >= position:
                    return frame.sequence
            if after == at:
                break
            at = after
        return at

    def _skip(self, frames: int, reason: str) -> None:
        if self._ready and isinstance(last := self._ready[-1], Skipped) and last.reason == reason:
            self._ready.pop()
            frames += last.frames
        self._ready.append(Skipped(frames=frames, reason=reason))

    def _take(self, frames: list[Frame]) -> None:
        """Frames that follow each other, and the gap before them."""
        if self._wants_start:
            starts = (at for at, frame in enumerate(frames) if frame.flags & FRAME_START)
            at = next(starts, len(frames))
            frames = frames[at:]
            if not frames:
                return
            self._wants_start = False
        first, last = frames[0], frames[-1]
        if self._follows is not None and first.position != self._follows:
            # a title takes a sequence, but no bytes: what leaves a gap in the bytes is lost
            self._skip(first.sequence - self._taken, "lost")
        self._follows = last.position + len(last.data)
        self._taken = last.sequence + 1
        self._ready.extend(frames)


async def _doze(reader: Subscription) -> None:
    await asyncio.sleep(reader.pace_s)


def _check_start(start: object) -> None:
    is_place = isinstance(start, Position) or start in ("live", "burst")
    if not is_place and not (type(start) is int and start >= 0):
        raise RelayError(
            f"start is {show(start)}; "
            "it is 'live', 'burst', a Position, or a byte position from 0 on"
        )


def _check_number(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise RelayError(f"{name} is {show(value)}; the bound is {least} to {most}")
