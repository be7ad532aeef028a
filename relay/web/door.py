"""Connections that the engine hands over for pages, served by aiohttp on the node's loop.

Rules of this room
  1. The bytes that a shard has read are given to aiohttp before anything else is.
  2. Bounds: PAGES_MAX connections (the oldest goes first), PAGE_S seconds for each, TAKE_MAX taken
     in one turn, so that a flood of pages leaves the loop to others. Those that a handler keeps
     (events.py, with a bound of its own) count no more.
  3. What is taken from the queue is ours: served or closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from relay.web.events import COUNTED, KEEP

if TYPE_CHECKING:
    from relay._core import Engine

log = logging.getLogger("relay.web")


def is_ours(record: logging.LogRecord) -> bool:
    """Whether an error is this node's: strangers who send no HTTP write no line into the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


log.addFilter(is_ours)

PAGES_MAX = 256
PAGE_S = 15.0
TAKE_MAX = 32


def with_host(head: bytes) -> bytes:
    """The request with a Host line, an empty one where it has none.

    HTTP/1.1 wants one (RFC 9112 §3.2), and aiohttp refuses who has none; some players send none.
    """
    lines = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]
    if re.search(rb"(?im)^host[ \t]*:", lines):
        return head
    first, end, rest = head.partition(b"\n")
    return first + end + b"Host:\r\n" + rest if end else head


class HandedOver(asyncio.Protocol):
    """Gives an aiohttp protocol its transport and the bytes that came before, and steps aside."""

    def __init__(self, protocol: asyncio.Protocol, head: bytes) -> None:
        self._protocol = protocol
        self._head = head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand on."""
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)
        self._protocol.data_received(with_host(self._head))


def _keeper(door: weakref.ref[PageDoor]) -> Callable[[asyncio.BaseTransport], None]:
    """`keep` of a door that the application does not hold: else door, application and engine would
    hold each other when the node is long closed."""

    def keep(transport: asyncio.BaseTransport) -> None:
        if (here := door()) is not None:
            here.keep(transport)

    return keep


class PageDoor:
    """Serves the pages of one node; lives on the loop that it is started on.

    Args:
        engine: hands connections over.
        app: the aiohttp application.
    """

    def __init__(self, engine: Engine, app: web.Application) -> None:
        self._engine = engine
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=0.2, logger=log
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pages: dict[asyncio.BaseTransport, float] = {}  # since when, oldest first
        self._kept: set[asyncio.BaseTransport] = set()
        app[KEEP] = _keeper(weakref.ref(self))
        self._tasks: set[asyncio.Task[None]] = set()
        self.displaced_total = 0

    async def start(self) -> None:
        """Open the door on the running loop."""
        await self._runner.setup()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._engine.page_fd, self._take)
        self._take()

    async def close(self) -> None:
        """Close all pages and the door."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.remove_reader(self._engine.page_fd)
        while (handed := self._engine.take_page()) is not None:
            os.close(handed[0])
        await self._runner.cleanup()
        for transport in (*self._pages, *self._kept):
            transport.close()

    def snapshot(self) -> dict[str, int]:
        """Counters by name."""
        counted = self._runner.app.get(COUNTED)
        told: dict[str, int] = counted() if callable(counted) else {}
        return {"page_displaced_total": self.displaced_total, **told}

    def keep(self, transport: asyncio.BaseTransport) -> None:
        """This connection may stay for as long as its handler wants it."""
        self._pages.pop(transport, None)
        self._kept.add(transport)

    def tick(self, now: float) -> None:
        """End pages that take too long; `now` is the loop's time."""
        self._kept = {transport for transport in self._kept if not transport.is_closing()}
        for transport, since in [*self._pages.items()]:
            if transport.is_closing():
                del self._pages[transport]
            elif now - since > PAGE_S:
                self._end(transport)

    def _take(self) -> None:
        loop = self._loop
        if loop is None:
            return
        for _ in range(TAKE_MAX):
            handed = self._engine.take_page()
            if handed is None:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._engine.page_fd)
                handed = self._engine.take_page()  # came between the two
            if handed is None:
                return
            task = loop.create_task(self._serve(loop, *handed))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(
        self, loop: asyncio.AbstractEventLoop, fd: int, head: bytes, peer: tuple[Any, ...]
    ) -> None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        server = self._runner.server
        if server is None:
            sock.close()
            return
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: HandedOver(server(), head), sock
            )
        except OSError:
            sock.close()
            return
        if len(self._pages) >= PAGES_MAX:
            self.tick(loop.time())
        if len(self._pages) >= PAGES_MAX:
            self.displaced_total += 1
            self._end(next(iter(self._pages)))
        if transport not in self._kept:
            self._pages[transport] = loop.time()

    def _end(self, transport: asyncio.BaseTransport) -> None:
        del self._pages[transport]
        if isinstance(transport, asyncio.Transport):
            transport.abort()
