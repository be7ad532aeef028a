"""HTTP servers of hosts that embed Relay, and listeners for them.

Rules of this room
  1. A server binds port 0 and is ended with its block.
  2. Listeners are plain sockets on threads: what is tested is the server's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import relay
from relay.testing import silence


@contextlib.asynccontextmanager
async def uvicorn_serving(app: Any, **options: Any) -> AsyncIterator[tuple[str, int]]:
    """Serve an ASGI application by uvicorn on the running loop; where it is."""
    import uvicorn

    config = uvicorn.Config(app, port=0, log_level="warning", **options)
    server = uvicorn.Server(config)
    sock = config.bind_socket()
    task = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started:
        assert not task.done(), task.exception()
        await asyncio.sleep(0.01)
    try:
        yield sock.getsockname()[:2]
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 10)
        sock.close()


@contextlib.asynccontextmanager
async def aiohttp_serving(app: Any) -> AsyncIterator[tuple[str, int]]:
    """Serve an aiohttp application on the running loop; where it is."""
    from aiohttp import web

    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][:2]
    finally:
        await runner.cleanup()


def ask(address: tuple[str, int], path: str, *fields: str, method: str = "GET") -> socket.socket:
    """A connection on which this was asked for."""
    sock = socket.create_connection(address, 10)
    lines = "".join(f"{field}\r\n" for field in fields)
    sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: h\r\n{lines}\r\n".encode())
    return sock


def hear(sock: socket.socket, size_bytes: int) -> tuple[bytes, bytes]:
    """(head, body) once so many bytes of the body are here; fewer only at the connection's end."""
    data = b""
    while True:
        head, blank, body = data.partition(b"\r\n\r\n")
        if blank and len(body) >= size_bytes:
            return head, body
        got = sock.recv(65536)
        if not got:
            return head, body
        data += got


def hear_on(sock: socket.socket, size_bytes: int) -> bytes:
    """At least so many bytes more; EOFError where the connection ends before."""
    data = b""
    while len(data) < size_bytes:
        got = sock.recv(65536)
        if not got:
            raise EOFError(f"the connection ended after {len(data)} bytes")
        data += got
    return data


async def reasons_of_a_stall(
    node: relay.Node, live: relay.NodeSource, address: tuple[str, int], path: str
) -> list[str | None]:
    """Come and read nothing, however much is sent; why one was ended for it."""
    events = node.events()
    with await asyncio.to_thread(ask, address, path):
        async with asyncio.timeout(60):
            while not node.snapshot()["listeners_streamed_total"] or node._streamed:
                live.feed(silence(10.0))  # until no buffer between here and him has room
                await asyncio.sleep(0.02)
            while True:
                if isinstance(event := await anext(events), relay.Left):
                    return [visit.reason for visit in event.visits]
