"""Listeners through the host's own ASGI server: `app.mount("/radio", node.asgi())`.

Rules of this room
  1. Where the server can give up its socket the engine takes the connection: nothing of it runs
     through Python then. uvicorn can: `receive` is a method of the object that holds the transport.
     What is asked of it is looked at, never assumed; anything else is streamed.
  2. Streamed means: each frame is copied once a listener and runs through the host's loop. Who is
     slow skips like any reader; there are no titles (ICY) and no places. Who may listen is asked
     all the same (relay/streamed.py).
  3. GET and HEAD of a mount; anything else is the host's own mistake, told by 404 or 405.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

from relay.address import check_mount
from relay.admit import is_transport, take_request
from relay.errors import MountError, RelayError
from relay.joining import Allow, Deny, Redirect, reply_for
from relay.streamed import FULL, NO_STORE, Pourer, Streaming, may_hear

if TYPE_CHECKING:
    from relay.faces import Faces
    from relay.subscribe import Subscription

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

WRAPPERS_MAX = 16  # middlewares around `receive`
NO_STREAM = b"no such stream on this node\n"
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}


class AsgiApp:
    """See `Node.asgi`."""

    def __init__(self, node: Faces, mount: str | None, *, takes_socket: bool = True) -> None:
        if mount is not None:
            check_mount(mount)
        self._node = node
        self._mount = mount
        self._takes_socket = takes_socket
        self.taken_total = 0
        """Connections that the engine took over."""
        self.streamed_total = 0
        """Connections whose audio went through the host."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, as the ASGI specification (3.0, HTTP) has it."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RelayError(f"an ASGI scope of type {scope['type']!r}; only http is served")
        if scope["method"] not in ("GET", "HEAD"):
            await _reply(send, 405, b"GET or HEAD\n", {**_TEXT, "Allow": "GET, HEAD"})
            return
        mount = self._mount or mount_of(scope)
        try:
            check_mount(mount)
        except MountError:
            mount = ""
        if not mount or not self._node.has_mount(mount):
            await _reply(send, 404, NO_STREAM, _TEXT)
            return
        if self._takes_socket and self._take(scope, receive, mount):
            self.taken_total += 1
            await _until_closed(receive)
            return
        verdict = await may_hear(
            self._node._who_asks(),
            mount,
            method=scope["method"],
            query=scope["query_string"],
            fields=scope["headers"],
            peer=_peer(scope),
        )
        if not isinstance(verdict, Allow):
            await _refuse(send, verdict)
        elif not self._node.has_mount(mount):  # it has gone while somebody was asked
            await _reply(send, 404, NO_STREAM, _TEXT)
        elif scope["method"] == "HEAD":
            await self._tell(mount, send)
        else:
            await self._stream(mount, _peer(scope), verdict.ticket, receive, send)

    def _take(self, scope: Message, receive: Receive, mount: str) -> bool:
        """Let the engine have the connection, where the server can give it up."""
        transport = transport_of(receive)
        return transport is not None and take_request(
            self._node._opened(),
            self._node._who_asks(),
            transport,
            mount,
            method=scope["method"],
            query=scope["query_string"],
            version=_version(scope),
            fields=scope["headers"],
        )

    async def _tell(self, mount: str, send: Send) -> None:
        """What a GET would be answered with: the head alone."""
        with self._node.subscribe(mount) as reader:
            await _begin(send, 200, {"Content-Type": reader.content_type or "audio/mpeg"}, NO_STORE)
        await send({"type": "http.response.body", "body": b""})

    async def _stream(
        self, mount: str, peer: tuple[str, int], ticket: int, receive: Receive, send: Send
    ) -> None:
        """The audio, through the host's loop."""
        reader = self._node.subscribe(mount, start="burst")
        place = self._node._enter(reader, peer, ticket)
        if place is None:
            reader.close()
            await _refuse(send, FULL)
            return
        self.streamed_total += 1
        with reader, place:
            await _begin(send, 200, {"Content-Type": reader.content_type or "audio/mpeg"}, NO_STORE)
            gone = asyncio.create_task(_until_closed(receive))
            gone.add_done_callback(lambda _: reader.close())
            try:
                await _pour(reader, place, send)
            finally:
                gone.cancel()


async def _pour(reader: Subscription, place: Streaming, send: Send) -> None:
    """Each frame to the listener; frames that are here together at once. Who takes nothing gets no
    end: his server closes the connection then."""
    pourer = Pourer(reader.header)

    def write(data: bytes) -> Awaitable[None]:
        return send({"type": "http.response.body", "body": data, "more_body": bool(data)})

    async for item in reader:
        data = pourer.take([item, *reader.waiting()])
        if data and not await place.give(data, write):
            return
    await place.give(b"", write)


def mount_of(scope: Message) -> str:
    """The path behind that at which the host has mounted this application (ASGI: root_path)."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and path.startswith(root):
        path = path[len(root) :]
    return path if path.startswith("/") else "/" + path


def transport_of(receive: Receive) -> Any:
    """The transport of a server that can give it up; None where it cannot, or not safely."""
    for _ in range(WRAPPERS_MAX):
        cycle = getattr(receive, "__self__", None)
        if is_transport(transport := getattr(cycle, "transport", None)):
            # uvicorn's own flag; another server's object is not guessed at
            return transport if getattr(cycle, "response_started", None) is False else None
        inner = _wrapped(receive, cycle)
        if inner is None:
            return None
        receive = inner
    return None


def _wrapped(receive: Any, owner: object) -> Any:
    """The `receive` that this one passes on, where it is a middleware's: an attribute of its object
    or a variable of its closure, under that very name. Starlette's BaseHTTPMiddleware has none: it
    wants a response of its own."""
    if owner is not None:
        inner = getattr(owner, "receive", None)
        return inner if callable(inner) and inner != receive else None
    names = getattr(getattr(receive, "__code__", None), "co_freevars", ())
    if "receive" not in names:
        return None
    inner = receive.__closure__[names.index("receive")].cell_contents
    return inner if callable(inner) else None


def _version(scope: Message) -> str:
    return str(scope.get("http_version", "1.0")) if scope.get("http_version") != "2" else "1.1"


async def _until_closed(receive: Receive) -> None:
    """Until the server has seen that the connection is gone: then it wants no reply."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _begin(send: Send, status: int, *fields: Mapping[str, str]) -> None:
    lines = [
        (name.lower().encode(), value.encode("latin-1", "replace"))
        for some in fields
        for name, value in some.items()
    ]
    await send({"type": "http.response.start", "status": status, "headers": lines})


async def _reply(send: Send, status: int, body: bytes, fields: Mapping[str, str]) -> None:
    await _begin(send, status, fields, {"Content-Length": str(len(body))})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, verdict: Deny | Redirect) -> None:
    reply = reply_for(verdict)
    await _reply(send, reply.status, reply.body, reply.fields)


def _peer(scope: Message) -> tuple[str, int]:
    """Who it is, as the server says (ASGI: client); ("", 0) over a Unix socket."""
    client = scope.get("client")
    return (str(client[0]), int(client[1] or 0)) if client else ("", 0)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
