"""The page door is tested through the routes behind it; here, what happens at its edges."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from aiohttp import web
from fake_engine import FakeEngine

from relay.web.door import TAKE_MAX, HandedOver, PageDoor, with_host


class Told(asyncio.Protocol):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember."""
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        """Remember."""
        self.calls.append(data)


async def test_bytes_that_were_read_come_first() -> None:
    """What the shard read is given before what the socket holds."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    ours.sendall(b"second")
    told = Told()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(lambda: HandedOver(told, b"first "), theirs)
    while len(told.calls) < 3:
        await asyncio.sleep(0)
    assert told.calls == ["made", b"first ", b"second"]
    transport.close()
    ours.close()


async def test_who_sends_no_http_writes_no_line_into_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each such request used to leave a traceback: strangers could fill the disk."""
    engine: Any = FakeEngine()
    door = PageDoor(engine, web.Application())
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    engine.hand_over("page", theirs.detach(), b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n")
    await door.start()
    answer = await asyncio.get_running_loop().sock_recv(ours, 100)
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert not caplog.records
    ours.close()
    await door.close()
    engine.close()


async def test_a_flood_of_pages_is_taken_in_bites() -> None:
    """One turn of the loop takes TAKE_MAX connections, so that others get their turn too."""
    engine: Any = FakeEngine()
    door = PageDoor(engine, web.Application())
    pairs = [socket.socketpair() for _ in range(2 * TAKE_MAX)]
    for _, theirs in pairs:
        engine.hand_over("page", theirs.detach(), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    await door.start()
    assert len(engine.page_queue) == TAKE_MAX
    while engine.page_queue:
        await asyncio.sleep(0)
    for ours, _ in pairs:
        ours.setblocking(False)
        answer = await asyncio.get_running_loop().sock_recv(ours, 100)
        assert answer.startswith(b"HTTP/1.1 404 ")
        ours.close()
    await door.close()
    await door.close()
    engine.close()


@pytest.mark.parametrize(
    ("head", "given"),
    [
        (b"GET / HTTP/1.1\r\nhost : h\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nA: b\r\nHOST:h\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        (b"POST / HTTP/1.1\nA: b\n\nhost: x", b"POST / HTTP/1.1\nHost:\r\nA: b\n\nhost: x"),
        (b"GET / HTTP/1.1\r\nX-Host: h\r\n\r\n", b"GET / HTTP/1.1\r\nHost:\r\nX-Host: h\r\n\r\n"),
        (b"GET / HT", None),
    ],
)
def test_who_sends_no_host_is_given_an_empty_one(head: bytes, given: bytes | None) -> None:
    """HTTP/1.1 without one is what some players send, and aiohttp refuses."""
    assert with_host(head) == (head if given is None else given)
