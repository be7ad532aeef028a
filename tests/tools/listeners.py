"""Many checking listeners over plain sockets, on one thread of the test process.

Rules of this room
  1. A listener records what a player would notice: when its first audio came, every arrival, every
     byte in order, titles, and why it ended.
  2. ICY blocks are stripped exactly: the audio positions of titles are byte counts, any split of
     the reads gives the same result.
  3. Only the crowd's thread touches sockets; the test thread reads fields and asks for faults.
  4. One process holds at most some thousands of listeners: larger crowds are several processes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

from tools.nodes import wait_until
from tools.sources import FrameChecker

HEAD_BYTES_MAX = 65_536
READ_BYTES = 262_144
TURN_S = 0.01  # how often drips and commands are looked after


class Arrival(NamedTuple):
    """One read that brought audio."""

    at_s: float  # CLOCK_MONOTONIC
    audio_bytes: int


class Title(NamedTuple):
    """One ICY block that was not empty."""

    position: int  # audio bytes before it
    block: bytes  # without its padding


class IcyStripper:
    """Takes the ICY blocks out of a body: `metaint` bytes of audio, a length byte, 16 x length."""

    def __init__(self, metaint: int) -> None:
        self.metaint = metaint
        self.titles: list[Title] = []
        self.blocks = 0  # empty ones too
        self.audio_bytes = 0
        self._audio_left = metaint
        self._block_left = -1  # -1: not in a block; 0..: bytes of it that are missing
        self._block = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take more of the body; returns the audio in it."""
        audio, at = bytearray(), 0
        while at < len(data):
            if self._audio_left:
                part = data[at : at + self._audio_left]
                audio += part
                self._audio_left -= len(part)
                self.audio_bytes += len(part)
                at += len(part)
            elif self._block_left < 0:
                self._block_left = data[at] * 16
                at += 1
                self._end_block()
            else:
                part = data[at : at + self._block_left]
                self._block += part
                self._block_left -= len(part)
                at += len(part)
                self._end_block()
        return bytes(audio)

    def _end_block(self) -> None:
        """When the block is whole, keep it and go on with audio."""
        if self._block_left == 0:
            self.blocks += 1
            if self._block:
                self.titles.append(Title(self.audio_bytes, bytes(self._block).rstrip(b"\0")))
            self._block.clear()
            self._block_left, self._audio_left = -1, self.metaint


class Listener:
    """One peer hearing a stream; made by `Crowd.join`. Fields are the crowd's to write."""

    def __init__(self, head: bytes, *, checker: FrameChecker | None, keep: bool) -> None:
        self.checker = checker
        self.keep = keep
        self.body = bytearray()  # the audio, when `keep`
        self.status = 0
        self.headers: dict[str, str] = {}  # names in lower case
        self.icy: IcyStripper | None = None
        self.audio_bytes = 0
        self.arrivals: list[Arrival] = []
        self.connected_s = 0.0  # the times are of CLOCK_MONOTONIC
        self.joined_s = 0.0  # when connect() was called
        self.head_s = 0.0  # when the whole head had come
        self.ended_s = 0.0
        self.end = ""  # "", "eof", "left", or the name of the error, such as "ECONNRESET"
        self.reading = True  # False: the fault `stall`
        self.drip_bytes_per_s = 0.0  # above 0: the fault `drip`
        self._allowed_bytes = 0.0
        self._request = head
        self._head = b""
        self._socket: socket.socket | None = None

    @property
    def alive(self) -> bool:
        """Whether the connection stands."""
        return not self.end

    @property
    def titles(self) -> list[Title]:
        """The ICY titles with their audio positions."""
        return self.icy.titles if self.icy else []

    @property
    def first_audio_ms(self) -> float | None:
        """From connect() to the first byte of the body; None when none came."""
        return (self.arrivals[0].at_s - self.joined_s) * 1000 if self.arrivals else None

    def audio_bytes_within(self, ms: float) -> int:
        """Return the audio that came within so many ms of connect(): the burst."""
        until = self.joined_s + ms / 1000
        return sum(arrival.audio_bytes for arrival in self.arrivals if arrival.at_s <= until)

    def gap_ms_max(self, since_s: float = 0.0) -> float:
        """Return the longest time between two arrivals, the last and now (or the end) included."""
        times = [a.at_s for a in self.arrivals if a.at_s >= since_s]
        times.append(self.ended_s or time.monotonic())
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0) * 1000

    def stall(self) -> None:
        """Fault `stall`: read nothing until `resume`; the kernel's buffers fill up."""
        self.reading = False

    def drip(self, bytes_per_s: float) -> None:
        """Fault `drip`: read no faster than this."""
        self.drip_bytes_per_s = bytes_per_s

    def resume(self) -> None:
        """End `stall` and `drip`."""
        self.reading, self.drip_bytes_per_s = True, 0.0

    def _take(self, data: bytes, now_s: float) -> None:
        """Account for bytes as they came."""
        if not self.head_s:
            self._head += data
            head, blank, data = self._head.partition(b"\r\n\r\n")
            if not blank:
                return
            self.head_s = now_s
            self._read_head(head.decode("latin-1"))
        if self.icy is not None:
            data = self.icy.feed(data)
        if data:
            self.audio_bytes += len(data)
            self.arrivals.append(Arrival(now_s, len(data)))
            if self.keep:
                self.body += data
            if self.checker is not None:
                self.checker.feed(data, round(now_s * 1e6))

    def _read_head(self, head: str) -> None:
        """Read the status line ("HTTP/1.1 200 OK" or "ICY 200 OK") and the headers."""
        status, *lines = head.split("\r\n")
        words = status.split(" ", 2)
        self.status = int(words[1]) if len(words) > 1 and words[1].isdigit() else -1
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        metaint = self.headers.get("icy-metaint", "")
        if metaint.isdigit() and int(metaint) > 0:
            self.icy = IcyStripper(int(metaint))

    def __repr__(self) -> str:
        return f"<listener {self.status} {self.audio_bytes} B {self.end or 'alive'}>"


class Crowd:
    """Listeners by the hundred; a thread of its own reads for them all."""

    def __init__(self) -> None:
        self.all: list[Listener] = []
        self._selector = selectors.DefaultSelector()
        self._commands: deque[Callable[[], None]] = deque()
        self._slow: set[Listener] = set()
        self._ending = False
        self._bell_in, self._bell_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._bell_in, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(
        self,
        address: tuple[str, int],
        mount: str = "/live",
        *,
        icy: bool = False,
        checker: FrameChecker | None = None,
        keep: bool = True,
        receive_bytes: int = 0,
        headers: Iterable[tuple[str, str]] = (),
        method: str = "GET",
    ) -> Listener:
        """Connect one listener; does not wait.

        Args:
            address: host and port of the node's HTTP side.
            mount: the path to ask for.
            icy: ask for titles (`Icy-MetaData: 1`).
            checker: gets the audio, for instance a FrameChecker.
            keep: keep the audio in `body`; False for long runs of many.
            receive_bytes: SO_RCVBUF, to make a slow listener felt soon; 0 is the kernel's choice.
            headers: more of them.
            method: "GET" or another.
        """
        lines = [f"{method} {mount} HTTP/1.1", f"Host: {address[0]}:{address[1]}"]
        lines += ["Icy-MetaData: 1"] * icy + [f"{name}: {value}" for name, value in headers]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        listener = Listener(head, checker=checker, keep=keep)
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        listener._socket = sock
        listener.joined_s = time.monotonic()
        code = sock.connect_ex(address)
        self.all.append(listener)
        if code not in {0, errno.EINPROGRESS}:
            self._finish(listener, errno.errorcode.get(code, str(code)))
        else:
            self._do(lambda: self._watch(listener, selectors.EVENT_WRITE))
        return listener

    def join_many(
        self, count: int, address: tuple[str, int], mount: str = "/live", *, icy: bool = False
    ) -> list[Listener]:
        """Connect `count` listeners at once, each with a FrameChecker, without keeping audio."""
        return [
            self.join(address, mount, icy=icy, checker=FrameChecker(), keep=False)
            for _ in range(count)
        ]

    def leave(self, listener: Listener) -> None:
        """Let one listener hang up."""
        self._do(lambda: self._finish(listener, "left"))
        wait_until(lambda: not listener.alive, what="the listener to leave")

    def wait_audio(self, audio_bytes: int = 1, timeout_s: float = 5.0) -> None:
        """Wait until each living listener has heard so much."""
        wait_until(
            lambda: all(who.audio_bytes >= audio_bytes for who in self.all if who.alive),
            timeout_s,
            what=f"{audio_bytes} B at each listener",
        )

    @property
    def alive(self) -> list[Listener]:
        """Those whose connection stands."""
        return [listener for listener in self.all if listener.alive]

    def close(self) -> None:
        """Hang up all of them and end the thread."""
        if not self._ending:
            self._ending = True
            self._do(lambda: None)
            self._thread.join(5.0)
            os.close(self._bell_in)  # not by the thread: it may end before it is rung
            os.close(self._bell_out)

    def _do(self, command: Callable[[], None]) -> None:
        """Have the crowd's thread do it."""
        self._commands.append(command)
        with contextlib.suppress(BlockingIOError):
            os.write(self._bell_out, b"!")

    def _watch(self, listener: Listener, events: int) -> None:
        sock = listener._socket
        if sock is None:
            return
        with contextlib.suppress(KeyError):
            self._selector.unregister(sock)
        if events:
            self._selector.register(sock, events, listener)

    def _finish(self, listener: Listener, why: str) -> None:
        sock, listener._socket = listener._socket, None
        if sock is None:
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()
        listener.ended_s = time.monotonic()
        listener.end = why

    def _run(self) -> None:
        while not self._ending:
            for key, events in self._selector.select(TURN_S if self._slow else 0.2):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._bell_in, 4096)
                else:
                    self._turn(key.data, events)
            while self._commands:
                self._commands.popleft()()
            self._serve_slow()
        for listener in self.all:
            self._finish(listener, "left")
        self._selector.close()

    def _turn(self, listener: Listener, events: int) -> None:
        sock = listener._socket
        if sock is None:
            return
        try:
            if events & selectors.EVENT_WRITE:
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))
                listener.connected_s = time.monotonic()
                sock.send(listener._request)
                self._watch(listener, selectors.EVENT_READ)
            elif not listener.reading or listener.drip_bytes_per_s:
                self._watch(listener, 0)
                self._slow.add(listener)
            else:
                self._read(listener, sock, READ_BYTES)
        except BlockingIOError:
            pass
        except OSError as error:
            self._finish(listener, errno.errorcode.get(error.errno or 0, str(error)))

    def _read(self, listener: Listener, sock: socket.socket, bytes_max: int) -> int:
        data = sock.recv(bytes_max)
        if not data:
            self._finish(listener, "eof")
        else:
            listener._take(data, time.monotonic())
            if not listener.head_s and len(listener._head) > HEAD_BYTES_MAX:
                self._finish(listener, "head too long")
        return len(data)

    def _serve_slow(self) -> None:
        """Give each dripping listener its share, and take back those that were resumed."""
        for listener in tuple(self._slow):
            sock = listener._socket
            if sock is None or (listener.reading and not listener.drip_bytes_per_s):
                self._slow.discard(listener)
                self._watch(listener, selectors.EVENT_READ)
            elif listener.reading:
                most = max(1.0, listener.drip_bytes_per_s / 10)
                share = listener.drip_bytes_per_s * TURN_S
                listener._allowed_bytes = min(most, listener._allowed_bytes + share)
                if listener._allowed_bytes >= 1:
                    with contextlib.suppress(OSError):
                        got = self._read(listener, sock, int(listener._allowed_bytes))
                        listener._allowed_bytes -= got

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.close()
        if error is not None:
            print(f"--- the crowd: {self.all[:20]}")
