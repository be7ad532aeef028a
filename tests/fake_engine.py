"""A data plane made of plain Python: what the control plane's tests put in the engine's place.

Rules of this room
  1. The same names and errors as relay._core; nothing runs by itself, time is what the test says.
  2. It keeps what it was told (frames, titles, header lines) for the test to look at.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from relay.errors import MountError, RelayError, SourceError


class FakeStream:
    """One stream that remembers."""

    def __init__(self, mount: str) -> None:
        self.mount = mount
        self.key = 1 + hash(mount) % (1 << 62)
        self.writer = "none"
        self.source_up = False
        self.listeners = 0
        self.readers = 0
        self.fallback: str | None = None
        self.stands_in = False
        self.info_bytes = b""
        self.header_bytes = b""
        self.epoch: int | None = None
        self.epochs = 0
        self.epoch_wished = 0
        self.titles: list[str] = []
        self.fed = bytearray()
        self.media_us = 0
        self.frames: list[tuple[bytes, int, int, int, int] | None] = []
        self.tail = 0
        self.is_gone = False
        self.forgets = False  # what is left of an epoch when the next one begins

    def claim(self) -> None:
        """Become the writer."""
        if self.writer != "none":
            raise MountError(f"mount {self.mount!r} is in use")
        self.writer = "local"

    def unclaim(self) -> None:
        """Stop being the writer."""
        self.writer = "none"

    def begin(self) -> int:
        """Begin an epoch."""
        assert self.writer == "local"
        self.epochs += 1
        self.epoch = 1_700_000_000_000 + self.epochs
        self.source_up = True
        return self.epoch

    def end(self) -> None:
        """End the epoch."""
        self.source_up = False

    def push(self, data: bytes, duration_us: int, flags: int = 1) -> None:
        """Put one frame at the head."""
        position = sum(len(frame[0]) for frame in self.frames if frame)
        self.frames.append((bytes(data), position, self.media_us, duration_us, flags))
        self.media_us += duration_us

    def title(self, text: str) -> None:
        """Remember a title; it takes a sequence."""
        self.titles.append(text)
        self.frames.append(None)

    def title_at(self, position: int) -> str | None:
        """The title that holds at this byte."""
        held, at, titles = None, 0, iter(self.titles)
        for frame in self.frames:
            if frame is None:
                held = next(titles, held)
            elif at >= position:
                return held
            at += 0 if frame is None else len(frame[0])
        return held

    def set_info(self, data: bytes) -> None:
        """Remember the header lines."""
        self.info_bytes = bytes(data)

    def info(self) -> bytes:
        """The header lines."""
        return self.info_bytes

    def header(self) -> bytes:
        """The header pages: as the test set them, or those of the newest chain (flag 2)."""
        pages, was_header = b"", False
        for frame in filter(None, self.frames):
            is_header = bool(frame[4] & 2)
            pages = (pages if was_header else b"") + frame[0] if is_header else pages
            was_header = is_header
        return self.header_bytes or pages

    def reader(self) -> object:
        """A handle that counts."""
        self.readers += 1
        return object()

    def read(self, sequence: int) -> tuple[bytes, int, int, int, int] | None:
        """One frame, or None."""
        if not self.tail <= sequence < len(self.frames):
            return None
        return self.frames[sequence]

    def at_head(self) -> tuple[int, int, bool]:
        """Epoch, head, whether it is off the node."""
        return (self.epoch or 0), (len(self.frames) if self.epoch else 0), self.is_gone

    def run(self, epoch: int, sequence: int, count: int, make: Any) -> Any:
        """Frames that follow each other."""
        if self.epoch is None:
            return None
        if epoch != self.epoch:
            return self.epoch, self.tail, sequence, None if self.forgets else [], True
        found: list[Any] = []
        follows = None
        while sequence < len(self.frames) and len(found) < count:
            frame = self.read(sequence)
            if frame is None and sequence < self.tail:
                break
            if frame is not None:
                if follows not in (None, frame[1]):
                    break
                follows = frame[1] + len(frame[0])
                found.append(make(epoch, sequence, frame[1], *frame[2:], frame[0]))
            sequence += 1
        return epoch, self.tail, sequence, found, sequence < len(self.frames)

    def burst_sequence(self, burst_ms: int) -> int:
        """Where a listener would begin."""
        return len(self.frames) if burst_ms == 0 else self.tail

    def snapshot(self) -> dict[str, Any]:
        """State and counters."""
        state: dict[str, Any] = {
            "mount": self.mount,
            "listeners": self.listeners,
            "readers": self.readers,
            "source_up": self.source_up,
            "writer": self.writer,
            "rings": 1,
            "fallback": self.fallback,
            "fallback_listeners": self.listeners if self.fallback else 0,
            "stands_in": self.stands_in,
            "epoch": None,
            "title": None,
            "counters": {"received_frames_total": len(self.frames), "joins_total": 3},
        }
        if self.epoch is not None:
            state |= {
                "epoch": self.epoch,
                "tail_sequence": self.tail,
                "head_sequence": len(self.frames),
                "head_position": sum(len(f[0]) for f in self.frames if f),
                "head_media_us": self.media_us,
                "held_ms": self.media_us // 1000,
                "title": self.titles[-1] if self.titles else None,
            }
        return state


class FakeSource:
    """A cutter for which 1,000 bytes are a second of audio, and a NUL is no audio at all."""

    ahead_us = 0  # set by tests: what feed answers

    def __init__(self, stream: FakeStream, kind: str) -> None:
        self.stream = stream
        self.kind = kind
        self.state = "none"
        self.reason: str | None = None
        self.media_us = 0
        self.attached: tuple[str, int, int] | None = None  # body, its bytes, µs it may be ahead

    def feed(self, data: bytes | memoryview) -> int:
        """Take bytes as one frame."""
        data = bytes(data)
        if b"\0" in data:
            raise SourceError("128 KiB without one frame of the promised format")
        if data:
            self.stream.fed += data
            self.stream.push(data, len(data) * 1000)
            self.media_us += len(data) * 1000
        return type(self).ahead_us

    def title(self, text: str) -> None:
        """Set a title."""
        self.stream.title(text)

    def begin_anew(self, least: int) -> int:
        """A new epoch of the same source."""
        self.stream.epochs += 1
        self.stream.epoch = least
        return least

    def attach(
        self, fd: int, body: str, size_bytes: int, ahead_us_max: int, data: bytes = b""
    ) -> None:
        """Remember how the engine is to read."""
        assert self.state == "none"
        self.attached = body, size_bytes, ahead_us_max
        self.state = "reading"
        self.receive(data)

    def detach(self) -> None:
        """Read no more."""
        self.state, self.reason = "none", None

    def intake(self) -> tuple[str, str | None, int, int]:
        """What the reading has come to."""
        return self.state, self.reason, 0, self.media_us

    def receive(self, data: bytes) -> None:
        """What the engine's thread does with bytes from the socket."""
        try:
            self.feed(data)
        except SourceError as wrong:
            self.end(str(wrong))

    def end(self, reason: str) -> None:
        """What the engine's thread does at the end of the bytes."""
        self.state, self.reason = "ended", reason


class FakeEngine:
    """A node's streams and its two queues."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.table: dict[str, FakeStream] = {}
        self.configured: dict[str | None, dict[str, int]] = {}
        self.source_queue: list[tuple[int, bytes, tuple[str, int]]] = []
        self.page_queue: list[tuple[int, bytes, tuple[str, int]]] = []
        self._is_closed = False
        self.source_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.page_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.intake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.asker_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.asker_queue: list[tuple[int, bytes, tuple[str, int]]] = []
        self.admitted: list[tuple[int, bytes]] = []
        self.full = False  # what admit says: no room
        self.visits: list[tuple[Any, ...]] = []
        self.visits_lost = 0
        self.keeps_visits = False
        self.head_list: list[Any] = []
        self.rules: list[dict[str, Any]] = []  # what fallbacks() tells
        self.fallbacks_set: list[tuple[str, tuple[str, ...], int]] = []
        self.calls: list[str] = []
        self.sweeps = 0
        self.washed_total = 0
        self.noted: list[tuple[int, int, dict[str, int]]] = []
        self.node_id = "ab" * 16
        self.listeners_max = 1000
        self.counters: dict[str, Any] = {"listeners": 0, "joins_total": 5, "shards": []}

    def note(self, kind: int, reason: int, **numbers: int) -> None:
        """Remember a decision."""
        self.noted.append((kind, reason, numbers))

    def recorded(self, cursors: list[int], **bounds: int) -> list[Any]:
        """Nothing has been decided."""
        return []

    def heads(self) -> list[Any]:
        """What the test says."""
        return list(self.head_list)

    def take_asker(self) -> tuple[int, bytes, tuple[str, int]] | None:
        """The next who wants to listen; without one the eventfd is reset."""
        if not self.asker_queue:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.asker_fd)
        return self.asker_queue.pop(0) if self.asker_queue else None

    def admit(self, fd: int, data: bytes, *, ticket: int = 0) -> None:
        """Remember; the descriptor is ours, unless too many wait."""
        os.fstat(fd)
        if self.full:
            raise RelayError("512 connections wait to be taken in already")
        self.admitted.append((fd, data))

    def keep_visits(self, wanted: bool) -> None:
        """Remember."""
        self.keeps_visits = wanted

    def take_visits(self) -> tuple[list[tuple[Any, ...]], int]:
        """What the test says."""
        found, self.visits = self.visits, []
        return found, self.visits_lost

    def configure(self, mount: str | None = None, **settings: int) -> None:
        """Remember settings."""
        self.configured[mount] = settings

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Say that the port is bound."""
        self.calls.append("listen")
        return host, port or 8123

    def start(self) -> None:
        """Remember the call."""
        self.calls.append("start")

    def stop_accepting(self) -> None:
        """Remember the call."""
        self.calls.append("stop_accepting")

    def drain(self, timeout_s: float) -> None:
        """Remember the call."""
        self.calls.append("drain")

    def close(self) -> None:
        """Close the descriptors."""
        self.calls.append("close")
        self._close_descriptors()

    def __del__(self) -> None:
        """Who made it for one example of many does not close it."""
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for fd in (self.source_fd, self.page_fd, self.intake_fd, self.asker_fd):
            os.close(fd)
        for fd, _ in self.admitted:
            os.close(fd)

    def fallbacks(self) -> list[dict[str, Any]]:
        """What was set, as the engine tells it."""
        return self.rules

    def set_fallback(self, mount: str, chain: tuple[str, ...], after_ms: int) -> None:
        """Remember."""
        self.fallbacks_set.append((mount, chain, after_ms))

    def stand_in(self, mount: str, info: bytes) -> FakeStream:
        """Open a stream without a source."""
        stream = self.add_stream(mount)
        stream.stands_in = True
        stream.set_info(info)
        return stream

    def add_stream(self, mount: str) -> FakeStream:
        """Open a stream."""
        if mount in self.table:
            raise MountError(f"mount {mount!r} is in use")
        self.table[mount] = FakeStream(mount)
        return self.table[mount]

    def find(self, mount: str) -> FakeStream | None:
        """Find a stream."""
        return self.table.get(mount)

    def streams(self) -> list[FakeStream]:
        """All streams."""
        return list(self.table.values())

    def remove_stream(self, stream: FakeStream) -> None:
        """Unlink a stream."""
        if self.table.get(stream.mount) is stream:
            del self.table[stream.mount]
            stream.is_gone = True

    def hand_over(self, queue: str, fd: int, head: bytes) -> None:
        """Put a connection into a queue, as a shard does."""
        getattr(self, f"{queue}_queue").append((fd, head, ("192.0.2.7", 4711)))
        os.eventfd_write(getattr(self, f"{queue}_fd"), 1)

    def take_source(self) -> tuple[int, bytes, tuple[str, int]] | None:
        """The next source; without one the eventfd is reset."""
        if not self.source_queue:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.source_fd)
        return self.source_queue.pop(0) if self.source_queue else None

    def clear_intake(self) -> None:
        """Reset the eventfd."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.intake_fd)

    def take_page(self) -> tuple[int, bytes, tuple[str, int]] | None:
        """The next page."""
        return self.page_queue.pop(0) if self.page_queue else None

    def sweep(self) -> None:
        """Count the call."""
        self.sweeps += 1

    def snapshot(self) -> dict[str, Any]:
        """Counters."""
        return dict(self.counters)
