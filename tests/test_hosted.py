"""Listeners through a host's aiohttp server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from tools.hosts import aiohttp_serving, ask, hear, reasons_of_a_stall

import relay
from relay import admit
from relay.testing import silence, wait_for

pytestmark = pytest.mark.core

SECOND = silence(1.0)


def application(node: relay.Node) -> web.Application:
    """A page, and a radio beside it."""
    app = web.Application()

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="page")

    app.router.add_get("/", page)
    app.router.add_get("/radio/{mount}", node.aiohttp_handler())
    app.router.add_get("/live", node.aiohttp_handler("/live"))
    return app


@pytest.mark.parametrize("gives", [True, False])
async def test_listeners_come_by_the_hosts_server(
    gives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine takes the connection; where it cannot, the audio goes through the host."""
    if not gives:
        monkeypatch.setattr(admit, "plain_socket", lambda transport: None)
    async with (
        relay.Node() as node,
        node.source("/live", content_type="audio/mpeg") as live,
        aiohttp_serving(application(node)) as address,
    ):
        live.feed(SECOND)
        for path in ("/radio/live", "/live"):
            sock = await asyncio.to_thread(ask, address, path, "Icy-MetaData: 1")
            head, body = await asyncio.to_thread(hear, sock, 417)
            assert b" 200 " in head.split(b"\r\n")[0]
            assert b"audio/mpeg" in head
            assert (b"icy-metaint" in head) == gives
            assert silence(0) in body
            sock.close()
        stream = next(s for s in node._opened().streams() if s.mount == "/live")
        live.feed(SECOND)
        await asyncio.to_thread(
            wait_for, lambda: stream.snapshot()["readers"] + stream.snapshot()["listeners"] == 0
        )


async def test_the_rest_of_the_application_goes_on() -> None:
    """Pages, 404 for what is no stream, and no noise in the log."""
    async with relay.Node() as node, aiohttp_serving(application(node)) as address:
        for path, status in (("/", b"200"), ("/radio/none", b"404"), ("/radio/a%0ab", b"404")):
            sock = await asyncio.to_thread(ask, address, path, "Connection: close")
            head, _ = await asyncio.to_thread(hear, sock, 1 << 20)
            assert head.split(b" ")[1] == status
            sock.close()
    with pytest.raises(relay.MountError):
        node.aiohttp_handler("live")


@pytest.mark.parametrize(
    ("verdict", "status", "holds"),
    [
        (relay.Allow(), 200, b"audio/mpeg"),
        (relay.Deny(402, "pay first"), 402, b"pay first"),
        (relay.Redirect("https://b.example/live"), 302, b"Location: https://b.example/live"),
        (None, 503, b"Retry-After: "),
    ],
)
async def test_who_is_streamed_to_is_asked_about(
    verdict: relay.Verdict | None, status: int, holds: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the engine takes the connection: allow, deny, redirect, and no answer in time."""
    monkeypatch.setattr(admit, "plain_socket", lambda transport: None)
    seen: list[relay.Join] = []

    async def on_join(join: relay.Join) -> Any:
        seen.append(join)
        return verdict if verdict is not None else await asyncio.sleep(3600)

    async with (
        relay.Node(on_join=on_join, join_timeout_s=0.2) as node,
        node.source("/live", content_type="audio/mpeg") as live,
        aiohttp_serving(application(node)) as address,
    ):
        live.feed(SECOND)
        path = "/radio/live?key=open"
        with await asyncio.to_thread(ask, address, path, "Connection: close") as sock:
            head, body = await asyncio.to_thread(hear, sock, 417 if status == 200 else 1 << 20)
        assert int(head.split(b" ")[1]) == status
        assert holds in head + body
        assert [(j.mount, j.address, j.query) for j in seen] == [
            ("/live", "127.0.0.1", {"key": "open"})
        ]


async def test_a_head_that_is_streamed_ends_with_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reader waits for frames that nobody will be sent; nobody is asked about it."""
    monkeypatch.setattr(admit, "plain_socket", lambda transport: None)

    async with (
        relay.Node(on_join=lambda join: relay.Deny()) as node,
        node.source("/live", content_type="audio/mpeg") as live,
        aiohttp_serving(application(node)) as address,
    ):
        live.feed(SECOND)
        with await asyncio.to_thread(
            ask, address, "/live", "Connection: close", method="HEAD"
        ) as sock:
            head, body = await asyncio.to_thread(hear, sock, 1 << 20)
        assert b" 200 " in head.split(b"\r\n")[0]
        assert body == b""


async def test_who_leaves_a_silent_stream_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written that could fail: his connection is looked at."""
    monkeypatch.setattr(admit, "plain_socket", lambda transport: None)
    async with (
        relay.Node() as node,
        node.source("/live", content_type="audio/mpeg") as live,
        aiohttp_serving(application(node)) as address,
    ):
        live.feed(SECOND)
        stream = next(s for s in node._opened().streams() if s.mount == "/live")
        with await asyncio.to_thread(ask, address, "/live") as sock:
            await asyncio.to_thread(hear, sock, 417)
            assert stream.snapshot()["readers"] == 1
        await asyncio.to_thread(wait_for, lambda: stream.snapshot()["readers"] == 0)


async def test_who_takes_nothing_is_ended_after_stall_ms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the engine's are: he would hold a listener's place for good."""
    monkeypatch.setattr(admit, "plain_socket", lambda transport: None)
    async with (
        relay.Node(stall_ms=200) as node,
        node.source("/live", content_type="audio/mpeg") as live,
        aiohttp_serving(application(node)) as address,
    ):
        live.feed(SECOND)
        assert await reasons_of_a_stall(node, live, address, "/live") == ["stalled"]
