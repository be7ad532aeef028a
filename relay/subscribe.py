"""Reading a stream from Python: copies of verified frames, in order, with every gap named.

Rules of this room
  1. A frame is copied, then verified, then yielded: what was overwritten meanwhile never shows.
  2. Looks for new frames every POLL_S; holds at most BATCH_FRAMES of them. The ring is the buffer:
     who is slower than it gets a `Skipped` and goes on at a frame where one may begin.
  3. An iterator belongs to one task; nothing here blocks the loop for more than a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct

from relay.errors import MountError

if TYPE_CHECKING:
    from relay._core import Engine, FrameTuple, Reader, Stream

POLL_S = 0.02
BATCH_FRAMES = 64
FRAME_START = 1  # the flags of relay/_core/frames_state.pxd
FRAME_HEADER = 2


class Frame(Struct, frozen=True, kw_only=True):
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


class Skipped(Struct, frozen=True, kw_only=True):
    """A gap: frames that this reader did not get, and why.

    The reason is `slow` (they left the ring before they were read), `lost` (they never came to
    this node) or `epoch` (a new epoch began before they were read).
    """

    frames: int
    reason: str


class Subscription:
    """An async iterator of `Frame` and `Skipped`; ends when the stream leaves the node.

    Args:
        engine: whose stream is read.
        mount: which one.
        burst_ms: how much of the past comes first; 0 begins at the next `start`.
        sleep: waits for so many seconds.

    Raises:
        MountError: the node has no such stream.
    """

    def __init__(
        self,
        engine: Engine,
        mount: str,
        *,
        burst_ms: int = 0,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        found = engine.find(mount)
        if found is None:
            raise MountError(f"mount {mount!r}: this node has no such stream")
        self._engine = engine
        self._stream: Stream = found
        self._reader: Reader | None = found.reader()  # an edge asks for the stream meanwhile
        self._burst_ms = burst_ms
        self._sleep = sleep
        self._ready: deque[Frame | Skipped] = deque()
        self._epoch: int | None = None
        self._next = 0  # sequence
        self._wants_start = True
        self._position: int | None = None  # where the next frame must begin; None: anywhere
        self._absent = 0  # sequences without a frame since the last one: titles, or lost frames

    def header(self) -> bytes:
        """The header pages that a decoder needs before the first frame; b"" where none are."""
        return self._stream.header() if self._epoch is not None else b""

    def close(self) -> None:
        """End the iterator; an edge lets the stream go after its linger. Twice is no error."""
        self._reader = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame | Skipped:
        while not self._ready:
            if self._reader is not None:
                self.collect()
            if self._ready:
                break
            if self._reader is None or self._engine.find(self._stream.mount) is None:
                self.close()
                raise StopAsyncIteration
            await self._sleep(POLL_S)
        return self._ready.popleft()

    def collect(self) -> None:
        """Take what is new, at most a batch."""
        state = self._stream.snapshot()
        if state["epoch"] is None:
            return
        if state["epoch"] != self._epoch:
            self._begin(state)
        if self._next < state["tail_sequence"]:
            self._skip(state["tail_sequence"] - self._next, "slow")
            self._next = state["tail_sequence"]
            self._wants_start, self._position = True, None
        batch = self._read_batch(state)
        if self._stream.snapshot()["epoch"] == self._epoch:
            self._ready.extend(batch)
        elif batch:  # these may be of either epoch
            self._skip(len(batch), "epoch")

    def _begin(self, state: dict[str, Any]) -> None:
        is_first = self._epoch is None
        self._epoch = state["epoch"]
        self._wants_start, self._position = is_first, None
        self._next = state["tail_sequence"]
        if is_first:
            self._next = int(self._stream.burst_sequence(self._burst_ms))

    def _skip(self, frames: int, reason: str) -> None:
        if self._ready and isinstance(last := self._ready[-1], Skipped) and last.reason == reason:
            self._ready.pop()
            frames += last.frames
        self._ready.append(Skipped(frames=frames, reason=reason))

    def _read_batch(self, state: dict[str, Any]) -> list[Frame | Skipped]:
        batch: list[Frame | Skipped] = []
        assert self._epoch is not None
        while self._next < state["head_sequence"] and len(batch) < BATCH_FRAMES:
            found = self._stream.read(self._next)
            if found is None and self._next < self._stream.snapshot()["tail_sequence"]:
                break  # overtaken: the next look says by how much
            self._next += 1
            if found is None:
                self._absent += 1
            elif not self._wants_start or found[4] & FRAME_START:
                batch += self._take(found)
        return batch

    def _take(self, found: FrameTuple) -> list[Frame | Skipped]:
        """The frame before `_next`, and the gap before it."""
        assert self._epoch is not None
        data, position, media_us, duration_us, flags = found
        is_gap = self._position not in (None, position)  # a title takes a sequence, but no bytes
        gap = [Skipped(frames=self._absent, reason="lost")] if is_gap else []
        self._wants_start, self._absent, self._position = False, 0, position + len(data)
        frame = Frame(
            epoch=self._epoch,
            sequence=self._next - 1,
            position=position,
            media_us=media_us,
            duration_us=duration_us,
            flags=flags,
            data=data,
        )
        return [*gap, frame]
