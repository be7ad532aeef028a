"""An engine in the test's own process, fed frame by frame, and raw connections to its door.

Rules of this room
  1. The test decides what is pushed and when: nothing here has a clock of its own.
  2. What was pushed is kept, so that a listener's bytes can be compared with all of it.
  3. An engine is closed at the end of its `with`, also when the test failed.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tools.nodes import wait_until
from tools.sources import FrameChecker, FrameMaker

Address = tuple[str, int]

SMALL = 4096  # SO_RCVBUF of who is to be felt as slow

MP3 = b"Content-Type: audio/mpeg\r\nicy-name: a test\r\n"
OGG = b"Content-Type: audio/ogg\r\n"
START, HEADER, CHAIN = 1, 2, 4


@contextlib.contextmanager
def running(
    host: str = "127.0.0.1", port: int = 0, *, config: dict[str, int] | None = None, **options: Any
) -> Iterator[tuple[Any, Address]]:
    """Yield an engine that listens, and its address.

    Args:
        host: where to listen.
        port: 0 is any.
        config: the defaults of its streams, as Engine.configure takes them.
        options: of the Engine itself.
    """
    core = importlib.import_module("relay._core")
    engine = core.Engine(**{"listeners_max": 1000, "heads_per_address_max": 2048} | options)
    try:
        engine.configure(**{"pace_ms": 20} | (config or {}))
        address = engine.listen(host, port)
        engine.start()
        yield engine, address
    finally:
        engine.close()


class Programme:
    """A stream of an engine whose frames the test pushes, and all that was pushed."""

    def __init__(
        self,
        engine: Any,
        mount: str = "/live",
        *,
        info: bytes = MP3,
        bit_rate_kbit: int = 64,
        begin: bool = True,
    ) -> None:
        """Open the stream, claim it and begin an epoch."""
        self.engine, self.mount = engine, mount
        self.stream = engine.add_stream(mount)
        self.stream.claim()
        self.stream.set_info(info)
        self.maker = FrameMaker(bit_rate_kbit)
        self.duration_us = round(self.maker.frame_s * 1e6)
        self.audio = bytearray()  # all frames, of all epochs
        self.sizes: list[int] = []
        if begin:
            self.stream.begin()

    def push(self, count: int) -> None:
        """Push the next frames, as fast as it goes."""
        for frame in self.maker.frames(count):
            self.stream.push(frame, self.duration_us)
            self.audio += frame
            self.sizes.append(len(frame))

    def push_seconds(self, media_s: float) -> None:
        """Push so much of the programme, at once."""
        self.push(round(media_s / self.maker.frame_s))

    def push_live(self, media_s: float, *, speed: float = 1.0, turn_s: float = 0.02) -> None:
        """Push so much of the programme in time, `speed` times as fast as it plays."""
        begin, made = time.monotonic(), 0
        count = round(media_s / self.maker.frame_s)
        while made < count:
            due = int((time.monotonic() - begin) * speed / self.maker.frame_s) + 1
            self.push(min(due, count) - made)
            made = max(made, min(due, count))
            time.sleep(turn_s)

    def boundaries(self) -> set[int]:
        """Return each offset into `audio` at which a frame ends, and 0."""
        found, at = {0}, 0
        for size in self.sizes:
            at += size
            found.add(at)
        return found


def ended(engine: Any, reason: str, count: int = 1, timeout_s: float = 5.0) -> dict[str, Any]:
    """Wait until so many listeners ended for this reason; returns the snapshot."""
    wait_until(
        lambda: engine.snapshot()[f"ended_{reason}_total"] >= count,
        timeout_s,
        what=f"{count} listeners to end: {reason}",
    )
    return dict(engine.snapshot())


def idle(engine: Any, timeout_s: float = 5.0) -> dict[str, Any]:
    """Wait until nobody is attached any more and nothing is retired; returns the snapshot."""

    def at_rest() -> bool:
        told = engine.snapshot()
        return not any(told[name] for name in ("listeners", "heads", "retired"))

    wait_until(at_rest, timeout_s, what="the engine to be at rest")
    return dict(engine.snapshot())


def dial(address: Address, *, receive_bytes: int = 0, timeout_s: float = 5.0) -> socket.socket:
    """Connect; the caller closes."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.settimeout(timeout_s)
    sock.connect(address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_all(sock: socket.socket, bytes_max: int = 1 << 24) -> bytes:
    """Read to the end of the connection; an error is raised, never an end."""
    found = bytearray()
    while len(found) < bytes_max:
        part = sock.recv(65_536)
        if not part:
            return bytes(found)
        found += part
    raise AssertionError(f"more than {bytes_max} B and no end")


def read_until(sock: socket.socket, size: int, found: bytes = b"") -> bytes:
    """Read until at least so many bytes are there, or the end."""
    while len(found) < size:
        part = sock.recv(65_536)
        if not part:
            break
        found += part
    return found


def ask(address: Address, head: bytes | Iterable[bytes], *, timeout_s: float = 5.0) -> bytes:
    """Send a request, in pieces or at once, and read the answer to the end of the connection."""
    with dial(address, timeout_s=timeout_s) as sock:
        for piece in [head] if isinstance(head, bytes) else head:
            sock.sendall(piece)
        return read_all(sock)


def get(mount: str = "/live", *fields: str, method: str = "GET") -> bytes:
    """Return a request for a mount."""
    return "\r\n".join([f"{method} {mount} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


def answer(reply: bytes, *, to_head: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Split a reply into status, fields (names in lower case) and body; it has to be whole.

    An answer `to_head` has no body, whatever length it tells.
    """
    head, blank, body = reply.partition(b"\r\n\r\n")
    assert blank, f"no whole head: {reply!r}"
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    if "content-length" in fields:
        wanted = 0 if to_head else int(fields["content-length"])
        assert len(body) == wanted, f"a body that is not whole: {reply!r}"
    return int(first.split(" ")[1]), fields, body


def offset_of(live: Programme, body: bytes) -> int:
    """Return where in the programme these bytes begin."""
    at = live.audio.find(body[:64])
    assert at >= 0, "bytes that were never pushed"
    return at


def body_of(sock: socket.socket) -> bytes:
    """Read the reply's head; returns what came of the body with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65_536)
        assert part, f"ended within the head: {data!r}"
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    assert b" 200 OK" in head.split(b"\r\n")[0], head
    return body


def slow(address: Address, mount: str = "/live", *fields: str) -> socket.socket:
    """Join with a small receive buffer and read nothing yet."""
    sock = dial(address, receive_bytes=SMALL)
    sock.sendall(get(mount, *fields))
    return sock


def checked(body: bytes) -> FrameChecker:
    """Check all of a body."""
    checker = FrameChecker()
    checker.feed(body, 0)
    return checker
