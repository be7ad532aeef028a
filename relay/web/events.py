"""Server-sent events of a stream: titles, and when its source comes and goes.

Rules of this room
  1. `GET /api/v1/streams/MOUNT/events`; on an edge, too: who follows a stream makes it wanted.
  2. One look each LOOK_S for all who follow; each mount is asked once, each event written once.
  3. Bounds: FOLLOWERS_MAX on a node, FOLLOWERS_PER_ADDRESS_MAX of one address that is not this
     machine's. Who takes nothing until BUFFER_BYTES_MAX wait is dropped: nobody waits for him.
  4. A comment each HEARTBEAT_S tells proxies and pages that the connection lives.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from relay.following import Moment
    from relay.web.facts import Desk

LOOK_S = 0.25
HEARTBEAT_S = 10.0
FOLLOWERS_MAX = 2000
FOLLOWERS_PER_ADDRESS_MAX = 32
BUFFER_BYTES_MAX = 32_768
HEARTBEAT = b": \n\n"

KEEP: web.AppKey[object] = web.AppKey("keep", object)
"""Of the application: a function of a transport that may stay longer than a page does."""

COUNTED: web.AppKey[object] = web.AppKey("counted", object)
"""Of the application: a function that gives the counters of `Events` by name."""


def event(name: str, **told: object) -> bytes:
    """One event; JSON on one line, so that no title can end it."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(told))


def changes(before: Moment | None, now: Moment | None) -> list[bytes]:
    """What is to be told of a mount. A follower's first look has nothing before it."""
    events = []
    epoch, epoch_before = (m.epoch if m is not None and m.live else None for m in (now, before))
    if epoch is not None and epoch != epoch_before:
        events.append(event("up", epoch=epoch))
    if epoch is None and epoch_before is not None:
        events.append(event("down"))
    title_before = None if before is None else before.title
    if now is not None and now.title is not None and now.title != title_before:
        events.append(event("title", title=now.title, **({"url": now.url} if now.url else {})))
    return events


class Follower:
    """One connection, and what it waits for; in chunks (RFC 9112 §7.1) for HTTP/1.1."""

    def __init__(self, address: str, transport: asyncio.Transport, *, in_chunks: bool) -> None:
        self.address = address
        self.transport = transport
        self._in_chunks = in_chunks
        self.is_over = asyncio.Event()

    def tell(self, data: bytes) -> bool:
        """Write, or drop who does not read (False); nothing is no chunk, which would be the
        last."""
        if not data:
            return True
        if self.transport.is_closing():
            self.is_over.set()
        elif self.transport.get_write_buffer_size() > BUFFER_BYTES_MAX:
            self.transport.abort()
            self.is_over.set()
            return False
        else:
            chunk = b"%x\r\n%s\r\n" % (len(data), data)
            self.transport.write(chunk if self._in_chunks else data)
        return True


def bound_of(address: str) -> int:
    """How many may follow from this address: a proxy on this machine stands for many."""
    try:
        is_proxy = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_proxy = False
    return FOLLOWERS_MAX if is_proxy else FOLLOWERS_PER_ADDRESS_MAX


class Events:
    """All who follow streams of one node."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._followers: dict[str, list[Follower]] = {}  # by mount
        self._seen: dict[str, Moment | None] = {}
        self._addresses: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._dropped_total = 0

    def snapshot(self) -> dict[str, int]:
        """Counters by name."""
        return {"followers": len(self), "followers_dropped_total": self._dropped_total}

    def __len__(self) -> int:
        return sum(map(len, self._followers.values()))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """GET /api/v1/streams/MOUNT/events; ends when the follower does, or the node."""
        mount = "/" + request.match_info["mount"].removeprefix("/")
        address = request.remote or ""
        if len(self) >= FOLLOWERS_MAX or self._addresses[address] >= bound_of(address):
            raise web.HTTPServiceUnavailable(reason="too many follow streams here; ask again later")
        now = self._desk.moment(mount)
        if now is None:
            raise web.HTTPNotFound
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Access-Control-Allow-Origin": "*",
                "X-Accel-Buffering": "no",
            }
        )
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            return response
        keep = request.app.get(KEEP)
        if callable(keep):
            keep(transport)
        in_chunks = response.headers.get("Transfer-Encoding", "") == "chunked"
        follower = Follower(address, transport, in_chunks=in_chunks)
        await response.write(b"retry: 2000\n\n")  # aiohttp sends the head with it, or before
        follower.tell(b"".join(changes(None, self._seen.get(mount, now))))
        await self._follow(mount, follower, now)
        return response

    async def _follow(self, mount: str, follower: Follower, now: Moment) -> None:
        self._seen.setdefault(mount, now)
        self._followers.setdefault(mount, []).append(follower)
        self._addresses[follower.address] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            await follower.is_over.wait()
        finally:
            self._forget(mount, follower)

    def _forget(self, mount: str, follower: Follower) -> None:
        followers = self._followers.get(mount, [])
        if follower in followers:
            followers.remove(follower)
            self._addresses[follower.address] -= 1
            if not self._addresses[follower.address]:
                del self._addresses[follower.address]
        if not followers:
            self._followers.pop(mount, None)
            self._seen.pop(mount, None)

    async def _run(self) -> None:
        """Look, as long as somebody follows."""
        loop = asyncio.get_running_loop()
        beat_at = loop.time() + HEARTBEAT_S
        while self._followers:
            await asyncio.sleep(LOOK_S)
            beat = loop.time() >= beat_at
            if beat:
                beat_at = loop.time() + HEARTBEAT_S
            self.look(beat=beat)

    def look(self, *, beat: bool = False) -> None:
        """Tell what has changed since the last look."""
        for mount, followers in [*self._followers.items()]:
            now = self._desk.moment(mount)
            told = b"".join(changes(self._seen.get(mount), now)) or (HEARTBEAT if beat else b"")
            self._seen[mount] = now
            for follower in [*followers]:
                if told:
                    self._dropped_total += not follower.tell(told)
                elif follower.transport.is_closing():
                    follower.is_over.set()

    async def close(self, app: web.Application) -> None:
        """End all of them: the node is going."""
        for followers in self._followers.values():
            for follower in followers:
                follower.transport.close()
                follower.is_over.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
