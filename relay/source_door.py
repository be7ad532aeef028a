"""The Icecast source protocol: connections that the engine hands over, on a thread of their own.

Rules of this room
  1. One thread, one event loop, apart from the node's: a slow page never delays a source. Once a
     source is let in, the engine reads its audio itself (`_core/intake.pxd`): neither this thread
     nor Python's lock is on the way of a frame.
  2. Everything is decided before the 100 goes out; after it most encoders stop reading.
  3. A source without new audio for source_timeout_s is ended, however many bytes it sends; time
     in which the engine holds it back does not count.
  4. Bounds: WAITING_MAX connections that are not sources (the oldest goes first), TAKE_MAX taken
     in one turn, reads of READ_BYTES, REQUESTS_MAX requests on a connection, DRAIN_S for one that
     was refused.
  5. One log line for each change of state, with the mount; never one for each read.

        head ──refused, kept──► head
        head ──accepted──► body ──ended, silent, garbage──► drain ──► closed
        head ──refused──► drain ──► closed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from relay.address import Address, check_mount, printable
from relay.auth import credentials, same_secret
from relay.errors import EpochLostError, MountError, RelayError, SourceError
from relay.formats import format_of
from relay.source import Run
from relay.source_http import (
    CONTINUE,
    METHODS,
    OK,
    Body,
    Reply,
    Request,
    RequestError,
    body_of,
    framing_of,
    parse_head,
    reply,
    reply_unauthorized,
)

if TYPE_CHECKING:
    from relay._core import Engine
    from relay.config import Config
    from relay.source import LocalSource, Sources

log = logging.getLogger("relay.source")

READ_BYTES = 8192
WAITING_MAX = 256
TAKE_MAX = 32
REQUESTS_MAX = 8
DRAIN_S = 2.0
TICK_S = 0.25
SOURCE_USER = "source"
QUIET_S = 10.0  # between log lines about refusals of one mount with one status
TOLD_MAX = 256

REFUSALS = (400, 403, 410, 415, 431, 501)
COUNTED = (
    *("probes_total", "refused_password_total", "refused_method_total"),
    *(f"refused_{status}_total" for status in REFUSALS),
    *("broken_total", "silent_total", "displaced_total"),
)

ENDS = {  # of the engine's reading, in words
    "closed": "closed by the encoder",
    "whole": "its body has ended",
    "lost": "connection lost",
}

State = Literal["head", "body", "drain", "closed"]


class Gate:
    """Who may be a source, and of what: decisions over a request head, without a socket."""

    def __init__(self, sources: Sources, config: Config) -> None:
        self._sources = sources
        self._config = config
        self._told: dict[tuple[str, int], float] = {}
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    def judge(self, request: Request) -> Reply | LocalSource:
        """The reply that refuses this request, or the source that it became."""
        try:
            return self._judge(request)
        except RequestError as wrong:
            return self.refuse(wrong.status, str(wrong))

    def _judge(self, request: Request) -> Reply | LocalSource:
        if request.method not in {"PUT", "SOURCE"}:
            self.counters["refused_method_total"] += 1
            text = "a source is sent with PUT or SOURCE"
            return reply(405, text, lines=(f"Allow: {METHODS}",))
        keep = request.keeps_connection and request.has_empty_body
        if not self._knows_password(request):
            # libshout asks without a password first, to learn what is allowed: no break-in.
            probe = "authorization" not in request.headers
            self.counters["probes_total" if probe else "refused_password_total"] += 1
            return reply_unauthorized(keep=keep)
        try:
            check_mount(request.mount)
        except (
            MountError
        ) as wrong:  # for good: BUTT and `relay push` would ask for ever after a 403
            return self.refuse(400, str(wrong))
        if request.has_empty_body:
            return reply(200, keep=keep)
        content_type = request.headers.get("content-type", "")
        if not content_type:
            return self.refuse(400, "say what is sent: Content-Type is missing")
        try:
            format_of(content_type)
        except SourceError as wrong:
            return self.refuse(415, str(wrong))
        body_of(request)
        framing = framing_of(request, int(time.time() * 1000))
        run = None if framing is None else Run(framing.epoch, framing.origin)
        backlog_s = 0 if framing is None else framing.backlog_s
        try:
            return self._sources.open(
                request.mount, content_type, request.headers, run=run, backlog_s=backlog_s
            )
        except EpochLostError as wrong:
            return self.refuse(410, str(wrong))  # for good: only a new epoch can be taken
        except (MountError, SourceError) as wrong:
            # 403 for all of these, which may end: it is what BUTT takes as "try again later".
            return self.refuse(403, str(wrong))

    def _knows_password(self, request: Request) -> bool:
        user, password = credentials(request.headers.get("authorization")) or ("", "")
        wanted = self._config.source_password(request.mount)
        return same_secret(password, wanted) & same_secret(user, SOURCE_USER)

    def refuse(self, status: int, text: str) -> Reply:
        """A counted refusal with its reason in one line."""
        self.counters[f"refused_{status}_total"] += 1
        return reply(status, text)

    def is_news(self, mount: str, status: int, now: float) -> bool:
        """Whether this refusal is worth a log line: the first of its kind in QUIET_S."""
        last = self._told.get((mount, status))
        if last is not None and now - last < QUIET_S:
            return False
        if len(self._told) >= TOLD_MAX:  # mounts are invented freely: these many lines, then none
            self._told = {k: at for k, at in self._told.items() if now - at < QUIET_S}
            if len(self._told) >= TOLD_MAX:
                return False
        self._told[mount, status] = now
        return True


def mount_of(request: Request) -> str:
    """The mount for a log line: printable, or what is wrong with it."""
    try:
        check_mount(request.mount)
    except RelayError:
        return printable(request.target)
    return request.mount


class SourceConnection(asyncio.BufferedProtocol):
    """One connection of a source, from its head to its end.

    Args:
        gate: decides about heads.
        sources: gives mounts back.
        ahead_ms: how far a mount's source may run ahead of real time.
        clock: monotonic seconds.
        gone: is told when the connection has ended.
        head: what the engine has read so far.
        peer: address and port.
    """

    def __init__(
        self,
        gate: Gate,
        sources: Sources,
        *,
        ahead_ms: Callable[[str], int],
        clock: Callable[[], float],
        gone: Callable[[SourceConnection], None],
        head: bytes = b"",
        peer: tuple[Any, ...] = ("", 0),
    ) -> None:
        self.state: State = "head"
        self.since = clock()  # of the state; in `body`, of the newest audio
        self._gate = gate
        self._sources = sources
        self._ahead_ms = ahead_ms
        self._clock = clock
        self._gone = gone
        self._pending = bytearray(head)
        self._peer = str(Address(peer[0], peer[1]))
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._transport: asyncio.Transport | None = None
        self._source: LocalSource | None = None
        self._body = Body("raw")
        self._last_reply = b""  # at the end of the body, where an Expect still waits for one
        self._requests = 0
        self._is_told = False  # that the source is up
        self._media_us = 0

    def __repr__(self) -> str:
        mount = self._source.mount if self._source else ""
        return f"<{type(self).__name__} {self._peer} {self.state}{' ' * bool(mount)}{mount}>"

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the bytes that the engine has read."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.state == "closed":  # displaced, or the node went, before the loop came to it
            transport.abort()
            return
        self._take_head()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that were read."""
        self._received(self._buffer[:nbytes])

    def eof_received(self) -> bool:
        """The peer has said everything before it became a source, or after."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        if self.state == "body":
            self._end_source(f"connection lost ({error})" if error else "closed by the encoder")
        self.state = "closed"
        self._gone(self)

    # --- the states ---

    def _received(self, data: memoryview) -> None:
        if self.state == "head":
            self._pending += data
            self._take_head()

    def _take_head(self) -> None:
        while self.state == "head":
            try:
                parsed = parse_head(self._pending)
            except RequestError as wrong:
                self._finish(self._gate.refuse(wrong.status, str(wrong)).raw)
                return
            if parsed is None:
                return
            request, used = parsed
            del self._pending[:used]
            self._answer(request)
        if self.state == "body":
            self._attach()

    def _answer(self, request: Request) -> None:
        outcome = self._gate.judge(request)
        self._requests += 1
        if not isinstance(outcome, Reply):
            self._begin(request, outcome)
        elif outcome.keep and self._requests < REQUESTS_MAX:
            self.since = self._clock()
            self._write(outcome.raw)
        else:
            self._refuse(request, outcome)

    def _refuse(self, request: Request, outcome: Reply) -> None:
        mount = mount_of(request)
        is_probe = outcome.status == 401 and "authorization" not in request.headers
        if outcome.status >= 400 and not is_probe:
            self._sources.refused(mount, outcome.status)
        if (
            outcome.status >= 400
            and not is_probe
            and self._gate.is_news(mount, outcome.status, self._clock())
        ):
            log.warning(
                "source refused: %s from %s: %d %s",
                mount,
                self._peer,
                outcome.status,
                outcome.raw.rpartition(b"\r\n")[2].decode().strip(),
                extra={"event": "source_refused", "mount": mount, "status": outcome.status},
            )
        self._finish(outcome.raw)

    def _begin(self, request: Request, source: LocalSource) -> None:
        self._source = source
        self._body = body_of(request)
        self.state = "body"
        self.since = self._clock()
        if request.method == "PUT" and request.expects_continue:
            self._write(CONTINUE)
            self._last_reply = OK
        else:
            self._write(OK)

    def _attach(self) -> None:
        """Leave the socket to the engine; what it has come to is told by `look`."""
        assert self._source is not None
        assert self._transport is not None
        self._transport.pause_reading()
        first, self._pending = bytes(self._pending), bytearray()
        try:
            self._source.attach(
                self._transport.get_extra_info("socket").fileno(),
                self._body.kind,
                self._body.size_bytes,
                ahead_ms=self._ahead_ms(self._source.mount),
                data=first,
            )
        except SourceError as wrong:
            self._end_source(str(wrong))

    def look(self) -> None:
        """Act on what the engine's reading has come to: the first frame, or the end."""
        if self.state != "body":
            return
        assert self._source is not None
        intake = self._source.intake()
        if intake.media_us and not self._is_told:
            self._tell_up(self._source)
        if intake.state == "none":
            self._end_source("ended by this node", self._last_reply)
        elif intake.reason in ENDS:
            error = f" ({os.strerror(intake.error)})" if intake.error else ""
            self._end_source(ENDS[intake.reason] + error, self._last_reply, intake.reason)
        elif intake.reason is not None:
            self._gate.counters["broken_total"] += 1
            text = f"{self._source.mount}: {intake.reason}"
            last = reply(400, text).raw if self._last_reply else b""
            self._end_source(text, last, "broken")

    def _tell_up(self, source: LocalSource) -> None:
        """One line, at the first frame: bytes alone may be no audio."""
        self._is_told = True
        log.info(
            "source up: %s from %s, %s, epoch %d",
            source.mount,
            self._peer,
            source.format.kind,
            source.epoch,
            extra={"event": "source_up", "mount": source.mount, "epoch": source.epoch},
        )

    def _end_source(self, why: str, last: bytes = b"", reason: str = "ended") -> None:
        assert self._source is not None
        source, self._source = self._source, None
        media_s = source.media_us() / 1e6
        if reason == "whole":
            self._sources.close(source, reason)
        elif self._sources.lost(source, self._clock(), reason):
            why += "; its epoch goes on"
        log.log(
            logging.INFO if self._is_told else logging.WARNING,
            "source down: %s from %s %s: %s",
            source.mount,
            self._peer,
            f"after {media_s:.1f} s of audio" if self._is_told else "before its first frame",
            why,
            extra={
                "event": "source_down",
                "mount": source.mount,
                "epoch": source.epoch,
                "reason": why,
            },
        )
        self._finish(last)

    def _finish(self, last: bytes = b"") -> None:
        """Say the last words and half-close, so that no reset takes them from the peer's hands."""
        self.state = "drain"
        self.since = self._clock()
        if self._transport is None or self._transport.is_closing():
            return
        if last:
            self._transport.write(last)
        self._transport.resume_reading()  # paused while the engine read; no matter if it was not
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    # --- time ---

    def tick(self, now: float, *, head_timeout_s: float, source_timeout_s: float) -> None:
        """End what takes too long."""
        self.look()
        bound_s = {"head": head_timeout_s, "drain": DRAIN_S}.get(self.state)
        if bound_s is not None and now - self.since > bound_s:
            self.abort()
        elif self.state == "body":
            assert self._source is not None
            intake = self._source.intake()
            if intake.media_us != self._media_us or intake.state == "held":
                self._media_us, self.since = intake.media_us, now
            elif now - self.since > source_timeout_s:
                self._gate.counters["silent_total"] += 1
                self._end_source(f"no audio for {source_timeout_s:g} s", self._last_reply, "silent")

    def abort(self) -> None:
        """Close without another word; also what is not connected to the loop yet."""
        if self._transport is not None:
            self._transport.abort()
        else:
            self.state = "closed"

    def shut(self) -> None:
        """The node is going: end the source, then the connection."""
        if self.state == "body":
            self._end_source("this node is shutting down", self._last_reply, "shutdown")
        self.abort_soon()

    def abort_soon(self) -> None:
        """Close once what was written is sent."""
        if self._transport is not None:
            self._transport.close()
        else:
            self.state = "closed"


class SourceDoor:
    """Takes source connections from the engine and serves them on a thread of its own.

    Args:
        engine: hands connections over.
        sources: claims mounts and gives them back.
        config: passwords, time-outs, `ahead_ms`.
    """

    def __init__(self, engine: Engine, sources: Sources, config: Config) -> None:
        self._engine = engine
        self._sources = sources
        self._config = config
        self._gate = Gate(sources, config)
        self._connections: dict[SourceConnection, None] = {}  # in order of arrival
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Open the door; returns once the thread listens to the engine."""
        self._loop = loop = asyncio.new_event_loop()
        loop.call_soon(self._open, loop)
        self._thread = threading.Thread(
            target=self._run, args=(loop,), name="relay-sources", daemon=True
        )
        self._thread.start()

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_forever()
        finally:
            loop.close()

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_reader(self._engine.source_fd, self._take)
        loop.add_reader(self._engine.intake_fd, self._look)
        loop.call_later(TICK_S, self._tick)
        self._take()

    def close(self, timeout_s: float = 1.0) -> None:
        """End all sources and the thread; blocks until it has ended, at most `timeout_s`."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        loop.call_soon_threadsafe(self._shut, loop)
        self._thread.join(timeout_s)

    def _shut(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._engine.source_fd)
        loop.remove_reader(self._engine.intake_fd)
        while (handed := self._engine.take_source()) is not None:
            os.close(handed[0])
        for connection in tuple(self._connections):
            connection.shut()
        loop.call_later(0.05, loop.stop)  # the last words and connection_lost need a turn or two

    def snapshot(self) -> dict[str, int]:
        """Counters of this door, by name."""
        counters = {f"source_{name}": count for name, count in self._gate.counters.items()}
        return {"source_connections": len(self._connections), **counters}

    def _take(self) -> None:
        for _ in range(TAKE_MAX):  # then those who send audio; the eventfd tells of the rest
            handed = self._engine.take_source()
            if handed is None:
                return  # the engine has reset the eventfd
            self._adopt(*handed)

    def _adopt(self, fd: int, head: bytes, peer: tuple[Any, ...]) -> None:
        loop = self._loop
        if loop is None:
            os.close(fd)
            return
        sock = tune(socket.socket(fileno=fd))
        connection = SourceConnection(
            self._gate,
            self._sources,
            ahead_ms=lambda mount: self._config.for_stream(mount).ahead_ms,
            clock=loop.time,
            gone=self._forget,
            head=head,
            peer=peer,
        )
        self._make_room()
        self._connections[connection] = None
        task = loop.create_task(self._connect(loop, connection, sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(
        self, loop: asyncio.AbstractEventLoop, connection: SourceConnection, sock: socket.socket
    ) -> None:
        try:
            await loop.connect_accepted_socket(lambda: connection, sock)
        except OSError:
            sock.close()
            self._forget(connection)

    def _look(self) -> None:
        self._engine.clear_intake()
        for connection in tuple(self._connections):
            connection.look()

    def _make_room(self) -> None:
        waiting = [c for c in self._connections if c.state != "body"]
        if len(waiting) >= WAITING_MAX:
            self._gate.counters["displaced_total"] += 1
            waiting[0].abort()
            self._connections.pop(waiting[0], None)

    def _forget(self, connection: SourceConnection) -> None:
        self._connections.pop(connection, None)

    def _tick(self) -> None:
        loop = self._loop
        if loop is None:
            return
        http = self._config.http
        for connection in tuple(self._connections):
            connection.tick(
                loop.time(),
                head_timeout_s=http.head_timeout_s,
                source_timeout_s=http.source_timeout_s,
            )
        loop.call_later(TICK_S, self._tick)


def tune(sock: socket.socket) -> socket.socket:
    """Non-blocking, answers at once, notices within a minute that the peer's machine is gone."""
    sock.setblocking(False)
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    ]
    for level, name, value in options:
        with contextlib.suppress(OSError):  # a Unix socket has none of the TCP ones
            sock.setsockopt(level, name, value)
    return sock
