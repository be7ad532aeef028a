"""A small audio server that errs on purpose: what must be caught is planted here.

Rules of this room
  1. It takes one source of 192-byte frames on /live and sends them on, each pace, to every
     listener; a burst first. Without faults it is a correct server, for tens of listeners.
  2. A fault has a name, hits one listener (its number, in order of coming) or all (-1), once, at a
     count of frames that were sent to it. Nothing else differs.
  3. One thread with an event loop of its own; closing joins it. Python, standard library alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import urllib.parse
from dataclasses import dataclass, field
from typing import Literal, Self

FRAME_BYTES = 192
METAINT = 4000
BURST_FRAMES = 20
SKIPPED = 30
FULL = b"this server is full\n"

Kind = Literal[
    "drop",  # a frame is left out
    "repeat",  # a frame is sent twice
    "damage",  # one byte of a frame is changed
    "shift",  # one byte is left out
    "stall",  # nothing is sent for `seconds`, then all of it
    "close",  # FIN in the middle of the programme
    "reset",  # RST
    "title",  # a block with another text
    "stale",  # no title is ever told
    "skip",  # SKIPPED frames are left out, as for one that lags too far
    "splice",  # the same in the middle of a frame
    "forget",  # no title is told after a skip
    "refuse",  # 503 in place of audio
    "reset_refusal",  # the connection is reset after a 503
    "cut_refusal",  # a 503 whose body is shorter than it says
    "hold_refusal",  # a whole 503, and the connection stays open
    "admit",  # audio where all others are refused
    "deaf",  # the source's bytes are not read any more
    "drop_source",  # the source is ended
    "refuse_title",  # /admin/metadata answers 403
]


@dataclass
class Fault:
    """One planted defect."""

    kind: Kind
    listener: int = 0  # -1: all
    frame: int = 40  # of those sent to it
    seconds: float = 2.0


@dataclass
class _Ear:
    """One listener: what is on its way to it."""

    number: int
    icy: bool
    left: int = METAINT  # audio bytes until the next block
    title: str = ""
    sent: int = 0  # frames
    skipping: int = 0  # frames still to be left out
    has_skipped: bool = False
    faults: list[Fault] = field(default_factory=list)

    def due(self, kind: str) -> bool:
        """Whether a fault of this kind hits the next frame; it then is over."""
        for fault in self.faults:
            if fault.kind == kind and fault.frame == self.sent:
                self.faults.remove(fault)
                return True
        return False

    def frame(self, frame: bytes) -> bytes:
        """What is sent for a frame."""
        out = frame
        if self.due("drop"):
            out = b""
        if self.due("repeat"):
            out += frame
        if self.due("damage"):
            out = out[:100] + bytes([out[100] ^ 1]) + out[101:]
        if self.due("shift"):
            out = out[:100] + out[101:]
        for kind, kept in (("skip", 0), ("splice", 100)):
            if self.due(kind):
                self.skipping, self.has_skipped, out = SKIPPED, True, out[:kept]
        if self.skipping > 0:
            self.skipping -= 1
            out = out if self.skipping == SKIPPED - 1 else b""
        self.sent += 1
        return out

    def encode(self, audio: bytes, title: str) -> bytes:
        """The audio with its title blocks."""
        if not self.icy:
            return audio
        out = bytearray()
        while audio:
            if self.left == 0:
                out += self.block(title)
                self.left = METAINT
            piece, audio = audio[: self.left], audio[self.left :]
            self.left -= len(piece)
            out += piece
        return bytes(out)

    def block(self, title: str) -> bytes:
        """One block: the title when it is news."""
        kinds = {fault.kind for fault in self.faults}
        silent = "stale" in kinds or ("forget" in kinds and self.has_skipped)
        if silent or (title == self.title and "title" not in kinds):
            return b"\0"
        self.title = title
        if "title" in kinds:
            title = "another talk"
        text = f"StreamTitle='{title}';".encode()
        size = -(-len(text) // 16)
        return bytes([size]) + text.ljust(16 * size, b"\0")


class FaultyServer:
    """The server; a context manager. `address` is where it listens.

    Args:
        faults: what is to go wrong.
        pace_s: how often each listener is served.
        listeners_max: beyond it, 503.
        block_bytes: send whole blocks of so many bytes only, as Icecast does (1: none).
        inside: bytes of the burst's first frame that are left out, as a burst by bytes does.
    """

    def __init__(
        self,
        *faults: Fault,
        pace_s: float = 0.1,
        listeners_max: int = 1000,
        block_bytes: int = 1,
        inside: int = 0,
    ) -> None:
        self.faults, self.pace_s, self.listeners_max = faults, pace_s, listeners_max
        self.block_bytes, self.inside = block_bytes, inside
        self.frames: list[bytes] = []
        self.title = ""
        self.listeners = 0
        self.address = ("127.0.0.1", 0)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(5.0), "the faulty server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)

    def _run(self) -> None:
        async def begin() -> asyncio.Server:
            sock = socket.create_server(("127.0.0.1", 0))
            # small, so that a source that is not read any more is held back soon
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            server = await asyncio.start_server(self._serve, sock=sock, backlog=1000, limit=2048)
            self.address = server.sockets[0].getsockname()[:2]
            return server

        server = self._loop.run_until_complete(begin())
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def planted(self, kind: Kind, number: int | None = None) -> list[Fault]:
        """The faults of a kind; those that hit this listener, when a number is given."""
        hit = {-1, number}
        return [f for f in self.faults if f.kind == kind and (number is None or f.listener in hit)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split(" ", 2)
            if method == "PUT":
                await self._source(reader, writer)
            elif target.startswith("/admin/metadata"):
                self._set_title(target, writer)
            else:
                await self._listener("icy-metadata: 1" in head.lower(), writer)
        writer.close()

    async def _source(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while True:
            self.frames.append(await reader.readexactly(FRAME_BYTES))
            for fault in (*self.planted("deaf"), *self.planted("drop_source")):
                if len(self.frames) == fault.frame and fault.kind == "drop_source":
                    return
                if len(self.frames) == fault.frame:
                    await asyncio.sleep(60)

    def _set_title(self, target: str, writer: asyncio.StreamWriter) -> None:
        refused = self.planted("refuse_title")
        if not refused:
            self.title = urllib.parse.parse_qs(target.partition("?")[2])["song"][0]
        status = "403 Forbidden" if refused else "200 OK"
        writer.write(f"HTTP/1.0 {status}\r\nContent-Length: 3\r\n\r\nok\n".encode())

    async def _listener(self, icy: bool, writer: asyncio.StreamWriter) -> None:
        number, self.listeners = self.listeners, self.listeners + 1
        admitted = self.planted("admit", number)
        if (number >= self.listeners_max or self.planted("refuse", number)) and not admitted:
            await self._refuse(number, writer)
            return
        ear = _Ear(number, icy)
        ear.faults = [fault for fault in self.faults if fault.listener in {-1, number}]
        field_ = f"icy-metaint:{METAINT}\r\n" if icy else ""
        writer.write(f"HTTP/1.0 200 OK\r\nContent-Type: audio/mpeg\r\n{field_}\r\n".encode())
        await self._play(ear, writer)

    async def _refuse(self, number: int, writer: asyncio.StreamWriter) -> None:
        body = FULL[:-5] if self.planted("cut_refusal", number) else FULL
        head = f"HTTP/1.0 503 Service Unavailable\r\nContent-Length: {len(FULL)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        if self.planted("reset_refusal", number):
            await asyncio.sleep(0.05)  # the reply arrives before the reset
            _reset(writer)
        if self.planted("hold_refusal", number):
            await asyncio.sleep(60)

    async def _play(self, ear: _Ear, writer: asyncio.StreamWriter) -> None:
        cursor = max(0, len(self.frames) - BURST_FRAMES)
        rest, skip = b"", self.inside
        while not writer.is_closing():
            fresh = self.frames[cursor:]
            cursor += len(fresh)
            audio = rest + b"".join(map(ear.frame, fresh))
            audio, skip = audio[skip:], 0
            whole = len(audio) - len(audio) % self.block_bytes
            audio, rest = audio[:whole], audio[whole:]
            writer.write(ear.encode(audio, self.title))
            if await self._spoil(ear, writer):
                return
            await asyncio.sleep(self.pace_s)

    async def _spoil(self, ear: _Ear, writer: asyncio.StreamWriter) -> bool:
        """Carry out what is not about bytes; True when that was the end of it."""
        for fault in [f for f in ear.faults if f.frame <= ear.sent]:
            if fault.kind == "stall":
                ear.faults.remove(fault)
                await asyncio.sleep(fault.seconds)
            elif fault.kind == "reset":
                _reset(writer)
                return True
            elif fault.kind == "close":
                return True
        return False


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
