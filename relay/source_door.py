"""The source door: takes connections from the engine, and SHOUTcast's port, on a thread of its own.

Rules of this room
  1. One thread, one event loop, apart from the node's: a slow page never delays a source. Once a
     source is let in, the engine reads its audio itself (`_core/intake.pxd`): neither this thread
     nor Python's lock is on the way of a frame.
  2. Bounds: WAITING_MAX connections that are not sources (the oldest goes first), TAKE_MAX taken
     in one turn.
  3. What is said on a connection is in source_connection.py and source_shoutcast.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from relay.address import Address
from relay.sockets import tune
from relay.source_connection import SourceConnection
from relay.source_gate import Gate
from relay.source_shoutcast import ShoutcastConnection, open_shoutcast

if TYPE_CHECKING:
    from relay._core import Engine
    from relay.callouts import SourceCallouts
    from relay.config import Config
    from relay.sources import Sources

WAITING_MAX = 256
TAKE_MAX = 32
TICK_S = 0.25


class SourceDoor:
    """Takes source connections from the engine and serves them on a thread of its own.

    Args:
        engine: hands connections over.
        sources: claims mounts and gives them back.
        config: passwords, time-outs, `ahead_ms`.
        callouts: scripts that say who may be a source.
    """

    def __init__(
        self,
        engine: Engine,
        sources: Sources,
        config: Config,
        callouts: SourceCallouts | None = None,
    ) -> None:
        self._engine = engine
        self._callouts = callouts
        self._sources = sources
        self._config = config
        self._gate = Gate(sources, config)
        self._connections: dict[SourceConnection, None] = {}  # in order of arrival
        self._shoutcast: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def shoutcast_address(self) -> Address | None:
        """Where SHOUTcast 1 encoders connect; None where the settings want none."""
        return None if self._shoutcast is None else Address(*self._shoutcast.getsockname()[:2])

    def start(self) -> None:
        """Open the door; returns once the thread listens to the engine.

        Raises:
            ConfigError: the address of `http.shoutcast` cannot be had.
        """
        if self._config.http.shoutcast is not None:
            self._shoutcast = open_shoutcast(self._config.http.shoutcast)
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
        if self._shoutcast is not None:
            loop.add_reader(self._shoutcast.fileno(), self._accept, self._shoutcast)
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
        if self._shoutcast is not None:
            loop.remove_reader(self._shoutcast.fileno())
            self._shoutcast.close()
        while (handed := self._engine.take_source()) is not None:
            os.close(handed[0])
        for connection in tuple(self._connections):
            connection.shut()
        if self._callouts is not None:
            task = loop.create_task(self._callouts.close())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
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

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(TAKE_MAX):
            try:
                sock, peer = listening.accept()
            except OSError:  # nobody waits any more, or no descriptor is free
                return
            self._adopt(sock.detach(), b"", peer, ShoutcastConnection)

    def _adopt(
        self,
        fd: int,
        head: bytes,
        peer: tuple[Any, ...],
        kind: type[SourceConnection] = SourceConnection,
    ) -> None:
        loop = self._loop
        if loop is None:
            os.close(fd)
            return
        sock = tune(socket.socket(fileno=fd))
        connection = kind(
            self._gate,
            self._sources,
            ahead_ms=lambda mount: self._config.for_stream(mount).ahead_ms,
            clock=loop.time,
            gone=self._forget,
            head=head,
            peer=peer,
            callouts=self._callouts,
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
        waiting = [c for c in self._connections if not c.has_mount]
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
        for connection in tuple(self._connections):
            connection.tick(
                loop.time(),
                head_timeout_s=self._config.http.head_timeout_s,
                source_timeout_s=self._config.source_timeout_s(connection.mount),
            )
        loop.call_later(TICK_S, self._tick)
