"""What a host reads from a node, and what it hands to one: a part of `Node`.

Rules of this room
  1. Readers are made here and closed with the node; those who wait on one loop share its `Pulse`.
  2. Adapters (relay/asgi.py, relay/hosted.py) are loaded when they are asked for.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING, TypeAlias

from relay.admit import admit_socket
from relay.streamed import Streamed
from relay.subscribe import PACE_MS, Pulse, Start, Subscription

if TYPE_CHECKING:
    import socket

    from relay import _core
    from relay.asgi import AsgiApp
    from relay.config import Config
    from relay.hosted import Handler
    from relay.joining import Askers
    from relay.own_source import NodeSource
    from relay.pcm_out import PcmSubscription
    from relay.streamed import Streaming

ENCODERS_S = 0.5  # for encoders of PCM to end with their node

Pulses: TypeAlias = weakref.WeakValueDictionary[float, Pulse]  # by pace, s


class Faces:
    """The reading and handing side of `Node`."""

    config: Config
    _askers: Askers | None

    def __init__(self) -> None:
        # weak on both sides: a pulse knows its loop, and lives while somebody waits for it
        self._pulses: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Pulses] = (
            weakref.WeakKeyDictionary()
        )
        self._streamed = Streamed()
        self._encoding: set[NodeSource] = set()  # sources whose encoders run
        self._readers: weakref.WeakSet[Subscription | PcmSubscription] = weakref.WeakSet()

    def _opened(self) -> _core.Engine:
        raise NotImplementedError

    def _who_asks(self) -> Askers | None:
        """Who says whether somebody may listen; None: everybody may."""
        return self._askers

    def _enter(self, reader: Subscription, peer: tuple[str, int], ticket: int) -> Streaming | None:
        """Whom the host's own server is to serve, among the listeners; None: no more fit."""
        told = self.config.for_stream(reader.mount)
        return self._streamed.enter(
            self._opened(), reader, told.listeners_max, peer, ticket, told.stall_ms
        )

    def has_mount(self, mount: str) -> bool:
        """Whether this node has, or lists, a stream of that name. Does not block."""
        return self._opened().find(mount) is not None

    def subscribe(
        self,
        mount: str,
        *,
        start: Start = "live",
        burst_ms: int | None = None,
        pace_ms: int = PACE_MS,
    ) -> Subscription:
        """Read a stream: an iterator of `Frame`, and of `Skipped` where some are missing, for
        `async for` and for plain `for`.

        Args:
            mount: a stream of this node.
            start: "live": the next frame where a listener may begin; "burst": what a new listener
                gets at once; a `Position` (`frame.after` of an earlier reader), or bytes within
                the epoch: from there on.
            burst_ms: another burst than the mount's own, 0 to 3,600,000 ms; "burst" is meant then.
            pace_ms: how often new frames are looked for, 10 to 1000: who can wait a little costs
                the loop fewer turns, which is most of what reading costs.

        Raises:
            MountError: this node has no such stream.
            RelayError: a start, a burst or a pace that is none.

        A frame is copied and verified before it is yielded.
        """
        engine = self._opened()
        if burst_ms is None:
            burst_ms = self.config.for_stream(mount).burst_ms if start == "burst" else 0
        reader = Subscription(
            engine,
            mount,
            start=start,
            burst_ms=burst_ms,
            pace_ms=pace_ms,
            wait=lambda r: self._pulse(r.pace_s).wait(r),
        )
        self._readers.add(reader)
        return reader

    def _pulse(self, pace_s: float) -> Pulse:
        """What wakes readers of this pace on the running loop."""
        loop = asyncio.get_running_loop()
        pulses = self._pulses.get(loop)
        if pulses is None:
            pulses = self._pulses[loop] = weakref.WeakValueDictionary()
        pulse = pulses.get(pace_s)
        if pulse is None:
            pulse = pulses[pace_s] = Pulse(loop, pace_s)
        return pulse

    def subscribe_pcm(
        self,
        mount: str,
        *,
        start: Start = "live",
        burst_ms: int | None = None,
        pace_ms: int = PACE_MS,
    ) -> PcmSubscription:
        """Read a stream as PCM: an iterator of `PcmBlock`, and of `Skipped` where some is missing.

        Arguments and errors as for `subscribe`; also SourceError: the extra `media` is missing, or
        the stream's codec is not decoded here.
        """
        from relay.media import need_av
        from relay.pcm_out import PcmSubscription

        need_av()
        reader = PcmSubscription(
            self.subscribe(mount, start=start, burst_ms=burst_ms, pace_ms=pace_ms)
        )
        self._readers.add(reader)
        return reader

    # --- the host's own HTTP server ------------------------------------------------------------

    async def admit(
        self, sock: socket.socket | asyncio.BaseTransport, mount: str, head: bytes = b""
    ) -> None:
        """Hand a connection that the host has accepted to the engine, which serves a listener.

        Args:
            sock: a connected TCP or Unix stream socket, or an asyncio transport of one; it is the
                engine's from then on, also when nobody may listen: the engine answers and closes.
            mount: what it is to hear, whatever the path was that the host was asked for.
            head: the request as the host has read it, with its blank line; b"": a plain GET.
                Nothing of a body may have come.

        Raises:
            RelayError: TLS, no stream socket, a head that is not whole or too long, or more
                connections at once than can be taken in. The socket stays the caller's then.
            MountError: no valid path.

        Where the node has an `on_join` it is asked first. Otherwise does not block.
        """
        await admit_socket(self._opened(), self._who_asks(), sock, mount, head)

    def asgi(self, mount: str | None = None, *, takes_socket: bool = True) -> AsgiApp:
        """An ASGI application that gives listeners this node's streams, for
        `app.mount("/radio", node.asgi())` in FastAPI, Starlette or any other.

        Args:
            mount: always this one; None: the rest of the path names it.
            takes_socket: let the engine take the connection where the server can give it up
                (uvicorn without TLS); False, or elsewhere: the audio goes through the host's loop.
        """
        from relay.asgi import AsgiApp

        return AsgiApp(self, mount, takes_socket=takes_socket)

    def aiohttp_handler(self, mount: str | None = None) -> Handler:
        """A handler of aiohttp's for `app.router.add_get("/radio/{mount}", …)`, which hands the
        connection to the engine.

        Args:
            mount: always this one; None: the route's `{mount}` names it, without the first slash.
        """
        from relay.hosted import AiohttpHandler

        return AiohttpHandler(self, mount).handle

    def _close_encoders(self) -> None:
        """What was fed as PCM is encoded to its end, by all of them at once; blocks for at most
        ENCODERS_S."""
        encoding, until = list(self._encoding), time.monotonic() + ENCODERS_S
        for source in encoding:
            source.finish()
        for source in encoding:
            source.close(max(0.0, until - time.monotonic()))

    def _close_readers(self) -> None:
        for reader in list(self._readers):
            reader.close()
