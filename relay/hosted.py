"""Listeners through the host's own aiohttp server: `app.router.add_get("/radio/{mount}", …)`.

Rules of this room
  1. The engine takes the connection; behind TLS, where it cannot, the audio is streamed through the
     host's loop, as in relay/asgi.py. Who may listen is asked either way.
  2. aiohttp wants a response for each request: for a connection that is gone, one that writes
     nothing.
  3. aiohttp tells no handler that its client has gone: a connection that is streamed to is looked
     at every LOOK_S, or a silent stream would hold it for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from aiohttp import web

from relay.address import check_mount
from relay.admit import take_request
from relay.errors import MountError
from relay.joining import Allow, Deny, Redirect, reply_for
from relay.streamed import FULL, NO_STORE, Pourer, Streaming, may_hear

if TYPE_CHECKING:
    from relay.faces import Faces
    from relay.subscribe import Subscription

__all__ = ["Handler"]

LOOK_S = 0.5

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
"""What aiohttp calls for each request of a route."""


class Given(web.Response):
    """The answer to a request whose connection is the engine's: nothing is written."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing."""


class AiohttpHandler:
    """See `Node.aiohttp_handler`."""

    def __init__(self, node: Faces, mount: str | None) -> None:
        if mount is not None:
            check_mount(mount)
        self._node = node
        self._mount = mount
        self.taken_total = 0
        """Connections that the engine took over."""
        self.streamed_total = 0
        """Connections whose audio went through the host."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request; 404 where this node has no such stream."""
        mount = self._mount or "/" + request.match_info.get("mount", "")
        try:
            check_mount(mount)
        except MountError:
            raise web.HTTPNotFound(text="no such stream on this node\n") from None
        self._need(mount)
        if self._take(request, mount):
            self.taken_total += 1
            return Given()
        verdict = await may_hear(
            self._node._who_asks(),
            mount,
            method=request.method,
            query=request.rel_url.raw_query_string.encode(),
            fields=request.raw_headers,
            peer=_peer(request),
        )
        if not isinstance(verdict, Allow):
            return _refusal(verdict)
        self._need(mount)  # still, once somebody was asked
        if request.method == "HEAD":
            return await self._tell(request, mount)
        return await self._stream(request, mount, verdict.ticket)

    def _need(self, mount: str) -> None:
        if not self._node.has_mount(mount):
            raise web.HTTPNotFound(text="no such stream on this node\n")

    def _take(self, request: web.Request, mount: str) -> bool:
        transport = request.transport
        return transport is not None and take_request(
            self._node._opened(),
            self._node._who_asks(),
            transport,
            mount,
            method=request.method,
            query=request.rel_url.raw_query_string.encode(),
            version=f"{request.version.major}.{request.version.minor}",
            fields=request.raw_headers,
        )

    async def _tell(self, request: web.Request, mount: str) -> web.StreamResponse:
        """What a GET would be answered with: the head alone."""
        with self._node.subscribe(mount) as reader:
            response = _response(reader)
        await response.prepare(request)
        await response.write_eof()
        return response

    async def _stream(self, request: web.Request, mount: str, ticket: int) -> web.StreamResponse:
        reader = self._node.subscribe(mount, start="burst")
        place = self._node._enter(reader, _peer(request), ticket)
        if place is None:
            reader.close()
            return _refusal(FULL)
        self.streamed_total += 1
        response = _response(reader)
        with reader, place:
            await response.prepare(request)
            gone = asyncio.create_task(_close_when_gone(request, reader))
            try:
                is_whole = await _pour(reader, place, response)
            finally:
                gone.cancel()
        if is_whole:
            await response.write_eof()
        elif request.transport is not None:
            request.transport.abort()  # what waits for him would wait on
        return response


def _response(reader: Subscription) -> web.StreamResponse:
    kind = {"Content-Type": reader.content_type or "audio/mpeg"}
    return web.StreamResponse(headers={**NO_STORE, **kind})


def _refusal(verdict: Deny | Redirect) -> web.Response:
    reply = reply_for(verdict)
    return web.Response(status=reply.status, headers=reply.fields, body=reply.body)


async def _pour(reader: Subscription, place: Streaming, response: web.StreamResponse) -> bool:
    """False where he takes nothing more."""
    pourer = Pourer(reader.header)
    async for item in reader:
        data = pourer.take([item, *reader.waiting()])
        if data and not await place.give(data, response.write):
            return False
    return True


async def _close_when_gone(request: web.Request, reader: Subscription) -> None:
    while (transport := request.transport) is not None and not transport.is_closing():
        await asyncio.sleep(LOOK_S)
    reader.close()


def _peer(request: web.Request) -> tuple[str, int]:
    """Who it is; ("", 0) over a Unix socket."""
    transport = request.transport
    peer = None if transport is None else transport.get_extra_info("peername")
    return (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else ("", 0)
