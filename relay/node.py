"""Node: engine, doors and backbone of one process, opened from one Config and closed in order.

Rules of this room
  1. Opened and closed on one event loop, and nothing of it outlives the closing: no thread, no
     descriptor. In plain code (`with`) that loop is one of its own. Several nodes may live in one
     process; a forked child has none of them.
  2. Sets no signal handler, no event-loop policy, no logging configuration: those are the host's.
  3. Opened in this order: engine, HTTP, backbone, doors, threads. Closed in this: no new ones
     (readyz false), goodbye to children, encoders of PCM, sources, listeners (their frame to its
     end), pages, backbone, engine.
  4. Open when the interpreter ends, it is closed by then (`close_now`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from relay import _core, listeners
from relay.address import Address
from relay.beyond import Beyond, wants_callouts
from relay.config import Config
from relay.errors import ConfigError, MountError, RelayError
from relay.events import Events, EventTeller
from relay.faces import Faces
from relay.fallback import Fallbacks
from relay.following import Following
from relay.joining import Askers, OnJoin
from relay.opening import open_engine, open_http, open_links
from relay.own_source import NodeSource
from relay.running import LoopThread, at_exit, check_process, closed, in_thread, is_forked
from relay.seeing import Seeing, open_seeing
from relay.shadows import Shadows
from relay.source_door import SourceDoor
from relay.sources import Sources
from relay.telling import Counting, Telling
from relay.upstream_words import UpstreamWords

if TYPE_CHECKING:
    from relay.backbone import Backbone
    from relay.following import Moment
    from relay.listeners import Roll
    from relay.web.door import PageDoor
    from relay.web.facts import Facts

log = logging.getLogger("relay.node")

TICK_S = 0.5
DRAIN_S = 1.2  # for listeners to get the frame that they are in
DRAIN_LOOK_S = 0.02


def version() -> str:
    """The version of this package."""
    import relay

    return relay.__version__


class Node(Faces):
    """One node of Relay in this process: `async with Node(http="0.0.0.0:8000") as node`, or in
    plain code `with Node(…) as node`, which runs a loop on a thread of its own.

    Args:
        http: `HOST:PORT` for sources, listeners and pages; port 0 takes any free one; a number is a
            port of 127.0.0.1; None opens no HTTP.
        backbone: `tcp://HOST:PORT` for downstream nodes; None opens none.
        upstream: `tcp://HOST:PORT` of the node to receive streams from, or several, at most 8.
        config: all settings; then the arguments above must be left out, and HTTP and backbone
            are opened as it says.
        on_join: is asked whether somebody may listen, see `relay.Join`; None: everybody may.
        join_timeout_s: for its answer; who gets none by then is refused, with 503.
        options: any other setting under its option's name (`burst_ms=500`, `source_password=…`).
            Without `source_password` nobody may send a source over HTTP. The environment is not
            read.

    Raises:
        ConfigError: a setting is wrong; with one line for each.
    """

    def __init__(
        self,
        http: str | int | None = None,
        *,
        backbone: str | None = None,
        upstream: str | Iterable[str] | None = (),
        config: Config | None = None,
        on_join: OnJoin | None = None,
        join_timeout_s: float = 5.0,
        **options: Any,
    ) -> None:
        if type(http) is int:
            http = f"127.0.0.1:{http}"
        super().__init__()
        if isinstance(upstream, Iterable) and not isinstance(upstream, str):
            upstream = tuple(upstream)
        if config is None:
            given: dict[str, Any] = {"backbone": backbone or "none", **options}
            given["http"] = http if http is not None else "127.0.0.1:0"  # not opened, in no way
            given |= {"upstream": upstream} if upstream else {}
            self.config = Config.load(overrides=given, environ={})
            self._has_http = http is not None
        elif http is not None or backbone is not None or upstream or options:
            raise ConfigError("give either config or single settings, not both")
        elif not isinstance(config, Config):
            raise ConfigError("config is no relay.Config: Config.load(overrides={…}) makes one")
        else:
            self.config = config
            self._has_http = True
        self._askers = None if on_join is None else Askers(on_join, join_timeout_s)
        self._engine: _core.Engine | None = None
        self._own_loop: LoopThread | None = None
        self._events = EventTeller(self._streamed)
        if wants_callouts(self.config):
            self._events.watch(self._see)
        self._sources: Sources | None = None
        self._fallbacks: Fallbacks | None = None
        self._beyond: Beyond | None = None
        self._following: Following | None = None
        self._source_door: SourceDoor | None = None
        self._page_door: PageDoor | None = None
        self._backbone: Backbone | None = None
        self._seeing: Seeing | None = None
        self._http_address: Address | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        self._telling: Telling | None = None
        self._words = UpstreamWords()
        self._shadows = Shadows()
        self._started_at = 0.0
        self._started = 0.0

    def __repr__(self) -> str:
        state = "closed" if self._engine is None else "closing" if self._is_closing else "open"
        return f"<Node {self.config.node.name} {state} http={self.http_address}>"

    # --- opening and closing -----------------------------------------------------------------

    async def open(self) -> Self:
        """Open everything; on an error nothing stays open.

        Raises:
            ConfigError: an address is taken or not of this machine.
            RelayError: the node is open already, or this process was forked.
        """
        if self._engine is not None:
            raise RelayError("this node is open already")
        self._is_closing = False
        self._words = UpstreamWords()
        self._shadows = Shadows()
        self._started_at, self._started = time.time(), time.monotonic()
        try:
            await self._open_all()
        except BaseException:
            await self.close()
            raise
        at_exit(self)
        return self

    async def _open_all(self) -> None:
        self._engine = engine = open_engine(self.config, asks=self._askers is not None)
        self._sources = Sources(engine, self.config, self._upstream_feeds, self._upstream_mounts)
        self._fallbacks = Fallbacks(engine, self.config, self._sources.is_framed)
        self._following = Following(engine, self._sources, self.config)
        if self._has_http:
            self._http_address = open_http(engine, self.config)
        self._beyond = Beyond(
            engine,
            self._sources,
            self.config,
            version(),
            lambda: self._http_address,
            self._askers,
            self._streamed,
        )
        self._beyond.list_mounts()
        self._backbone = open_links(engine, self.config)
        if self._has_http:
            self._source_door = SourceDoor(
                engine, self._sources, self.config, self._beyond.source_callouts
            )
            self._source_door.start()
            self._page_door = _make_page_door(engine, self)
            await self._page_door.start()
        engine.start()
        self._beyond.start()
        if self._askers is not None:
            self._askers.start(engine)
        self._seeing = open_seeing(engine, self._backbone, self.config)
        self._telling = self._make_telling(engine)
        self._tick()

    def _make_telling(self, engine: _core.Engine) -> Telling:
        assert self._sources is not None
        assert self._fallbacks is not None
        assert self._following is not None
        assert self._beyond is not None
        assert self._seeing is not None
        doors: tuple[Counting | None, ...] = (self._source_door, self._page_door)
        rooms = (*doors, self._beyond, self._askers, self._streamed)
        return Telling(
            engine=engine,
            config=self.config,
            version=version(),
            http=self.http_address,
            sources=self._sources,
            fallbacks=self._fallbacks,
            following=self._following,
            beyond=self._beyond,
            seeing=self._seeing,
            backbone=self._backbone,
            counting=[room for room in rooms if room is not None],
            started_at=self._started_at,
            started=self._started,
        )

    async def close(self) -> None:
        """Close everything, in order; takes at most 2 s. Twice is no error, nor in a forked child,
        where nothing is to be closed."""
        engine = self._engine
        if engine is None or self._is_closing or is_forked():
            return
        self._turn_away(engine)
        if self._askers is not None:
            self._askers.close()
        if self._source_door is not None:
            await in_thread(self._source_door.close)
        if self._beyond is not None:
            await self._beyond.let_go()
        if self._encoding:
            await in_thread(self._close_encoders)
        if self._sources is not None:
            self._sources.close_all()
        self._close_encoders()  # of those opened meanwhile; no more can be
        drained = self._drain(engine)
        await (drained if self._beyond is None else self._beyond.close(drained))
        if self._page_door is not None:
            await self._page_door.close()
        if self._backbone is not None:
            await in_thread(self._backbone.close)
        await in_thread(engine.close)
        self._forget()

    def _turn_away(self, engine: _core.Engine) -> None:
        """No new ones; readers and children are told."""
        self._is_closing = True
        if self._telling is not None:
            self._telling.forget()
        if self._timer is not None:
            self._timer.cancel()
        engine.stop_accepting()
        if self._backbone is not None:
            self._backbone.goodbye()
        self._close_readers()
        self._events.close()

    def _forget(self) -> None:
        self._engine = self._backbone = self._source_door = self._page_door = None
        self._sources = self._fallbacks = self._http_address = self._seeing = None
        self._following = self._beyond = self._telling = None
        closed(self)

    def close_now(self) -> None:
        """Close without a loop: when the interpreter ends. Pages are cut; blocks for at most 2 s.
        Twice is no error."""
        if self._own_loop is not None:
            self._own_loop.stop()
        engine = self._engine
        if engine is None or is_forked():
            return
        self._turn_away(engine)
        if self._source_door is not None:
            self._source_door.close()
        self._close_encoders()
        if self._sources is not None:
            self._sources.close_all()
        self._close_encoders()
        if self._beyond is not None:
            self._beyond.close_now()
        until = time.monotonic() + DRAIN_S
        while engine.snapshot()["listeners"] and time.monotonic() < until:
            time.sleep(DRAIN_LOOK_S)
        if self._backbone is not None:
            self._backbone.close()
        engine.close()
        self._forget()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __enter__(self) -> Self:
        if self._engine is not None:
            raise RelayError("this node is open already")
        self._own_loop = loop = LoopThread("relay-node")
        try:
            return loop.run(self.open())
        except BaseException:
            self._own_loop = None
            loop.stop()
            raise

    def __exit__(self, *error: object) -> None:
        loop, self._own_loop = self._own_loop, None
        if loop is not None and not is_forked():
            try:
                loop.run(self.close())
            finally:
                loop.stop()

    # --- where it is -------------------------------------------------------------------------

    @property
    def http_address(self) -> str | None:
        """`HOST:PORT` of the open HTTP door, or None."""
        return None if self._http_address is None else str(self._http_address)

    @property
    def backbone_address(self) -> str | None:
        """`tcp://HOST:PORT` for downstream nodes, or None."""
        return None if self._backbone is None else self._backbone.address

    @property
    def backbone_key(self) -> str | None:
        """The public key of this node, 64 hexadecimal digits; None where links have no keys."""
        return None if self._backbone is None else self._backbone.public_key

    @property
    def listeners_max(self) -> int:
        """How many listeners fit."""
        return self._opened().listeners_max

    # --- streams -----------------------------------------------------------------------------

    def source(
        self,
        mount: str,
        *,
        content_type: str | None = None,
        codec: str | None = None,
        rate_hz: int = 48_000,
        channels: int = 2,
        bitrate_bps: int | None = None,
        queue_ms: int = 1000,
        name: str = "",
        genre: str = "",
        url: str = "",
        description: str = "",
        bitrate_kbps: int | None = None,
        public: bool = False,
    ) -> NodeSource:
        """A source of this process, to be entered with `with` or `async with`.

        Args:
            mount: the public path, such as `/live`.
            content_type: of bytes for `feed`: `audio/mpeg`, `audio/aac` (ADTS) or `audio/ogg`.
            codec: of PCM for `feed_pcm`, instead: `opus`, `mp3`, `aac` or `flac`, encoded on a
                thread of its own (extra `media`).
            rate_hz, channels: of the PCM; 1 or 2 channels.
            bitrate_bps: of the codec; None: what is usual for it.
            queue_ms: how much PCM may wait for the encoder; what comes then is dropped, counted.
            name, genre, url, description, bitrate_kbps, public: what listeners are told.

        Raises:
            ConfigError: an unknown codec, or a number out of bounds.
            SourceError: the extra `media` is missing; on entering: a content type not carried.
            MountError: on entering: the mount is taken, or no valid path.
        """
        self._opened()
        assert self._sources is not None
        if (content_type is None) == (codec is None):
            raise ConfigError(f"source {mount}: give either content_type (bytes) or codec (PCM)")
        pcm = None
        if codec is not None:
            from relay.pcm import pcm_form

            pcm = pcm_form(codec, rate_hz, channels, bitrate_bps, queue_ms)
        told = {
            "icy-name": name,
            "icy-genre": genre,
            "icy-url": url,
            "icy-description": description,
            "icy-br": "" if bitrate_kbps is None else str(bitrate_kbps),
            "icy-pub": str(int(public)),
        }
        kind = content_type if pcm is None else pcm.shape.content_type
        return NodeSource(self._sources, mount, str(kind), told, pcm, self._encoding)

    def events(self) -> Events:
        """What happens from now on: an iterator of `SourceUp`, `SourceDown`, `Joined`, `Left`,
        `Gap` and `Missed`, for `async for` and plain `for`; twice a second. Sources that are up
        come first."""
        return self._events.listen(self._opened())

    # --- what it tells -----------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """All counters of this moment, by name. Does not block."""
        return self._tells().snapshot()

    def turns(self) -> dict[str, int]:
        """How often each engine thread has turned; one that lives does so ten times a second.

        The intake's sleeps while no source sends; each call wakes it, so the next one tells more.
        Blocks for the backbone's turn, and for ever when it is stuck in one.
        """
        return self._tells().turns()

    def facts(self) -> Facts:
        """What is true of this node, up to half a second old (for `relay.web`)."""
        return self._tells().facts()

    def recording(self, since_s: float, mount: str | None, records_max: int) -> dict[str, Any]:
        """The flight recorder, with the node that it is of (see `Seeing.recording`)."""
        return self._tells().recording(since_s, mount, records_max)

    def problems(self) -> list[str]:
        """Why no new listeners should come here; empty when they may (for /readyz)."""
        if self._telling is None or self._is_closing:
            return ["draining"]
        return self._telling.problems()

    async def knows_source(
        self, mount: str, account: tuple[str, str], address: str, agent: str
    ) -> bool | None:
        """Whether a script lets this account set titles of a mount; None: nobody is asked."""
        self._opened()
        assert self._beyond is not None
        return await self._beyond.knows_source(mount, account, address, agent)

    def set_title(self, mount: str, text: str, url: str = "") -> None:
        """Set the title of a local source, and its URL; MountError when there is none."""
        self._opened()
        assert self._sources is not None
        self._sources.title(mount, text, url)

    def end_source(self, mount: str) -> None:
        """End the source of a mount; MountError when it has none on this node."""
        self._opened()
        assert self._sources is not None
        self._sources.end(mount)

    def fallback_chain(self, mount: str) -> tuple[str, ...]:
        """The mounts that its listeners hear while it is silent, first choice first."""
        self._opened()
        assert self._fallbacks is not None
        return self._fallbacks.chain(mount)

    def set_fallback(self, mount: str, fallback: str | None) -> None:
        """Set the mount that its listeners hear while it is silent; None: none any more. Until the
        node closes; see `relay.fallback`."""
        self._opened()
        assert self._fallbacks is not None
        self._fallbacks.set(mount, fallback)

    def moment(self, mount: str) -> Moment | None:
        """What a mount plays just now; from here on it is wanted on this node for a while."""
        self._opened()
        assert self._following is not None
        return self._following.moment(mount, time.monotonic())

    async def roll(self, mount: str) -> Roll:
        """Who listens to a mount (see `relay.listeners`)."""
        return await listeners.roll(self._opened(), mount)

    async def end_listeners(self, mount: str, number: int) -> int:
        """End the listener with this id; how many that were (see `relay.listeners`)."""
        if number < 0:  # the host's own server serves him
            return len(self._streamed.end((number,)))
        return await listeners.end(self._opened(), mount, number)

    async def move_listeners(self, mount: str, to: str, number: int = 0) -> tuple[int, int]:
        """Send listeners to another mount (see `relay.listeners`)."""
        return await listeners.move(self._opened(), mount, to, number)

    # --- inside ------------------------------------------------------------------------------

    def _opened(self) -> _core.Engine:
        if self._engine is None:
            raise RelayError("this node is not open: use `async with relay.Node(…) as node`")
        check_process()
        return self._engine

    def _who_asks(self) -> Askers | None:
        if self._askers is None and self._beyond is not None:
            return self._beyond.askers  # scripts alone
        return self._askers

    async def _drain(self, engine: _core.Engine) -> None:
        """Wait for the listeners to hear their frame to its end, at most DRAIN_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while engine.snapshot()["listeners"] or self._streamed:
                    await asyncio.sleep(DRAIN_LOOK_S)

    def _tells(self) -> Telling:
        self._opened()
        assert self._telling is not None
        return self._telling

    def _upstream_feeds(self, mount: str) -> bool:
        """Whether an upstream node that is there has a live source for this mount."""
        return any(told["mount"] == mount and told["told_up"] for told in self._upstream_links())

    def _upstream_mounts(self) -> set[str]:
        """What an upstream node lists, with its source there or away."""
        return {told["mount"] for told in self._upstream_links()}

    def _upstream_links(self) -> list[dict[str, Any]]:
        links = [] if self._backbone is None else self._backbone.snapshot()["links"]
        return [told for told in links if told["from_upstream"]]

    def _see(self, visits: Sequence[_core.VisitTuple]) -> None:
        if self._beyond is not None:
            self._beyond.see(visits)

    def _tick(self) -> None:
        """Housekeeping, twice a second."""
        if self._is_closing or self._sources is None:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_S, self._tick)  # first: what fails now is tried again
        if self._engine is not None:
            self._engine.sweep()  # what was retired while nothing else was: an idle node frees it
        self._sources.tick(time.monotonic())
        if self._fallbacks is not None:
            self._fallbacks.tick()
        if self._beyond is not None:
            self._beyond.tick()
        if self._following is not None:
            self._following.tick(time.monotonic())
        if self._seeing is not None and self._engine is not None:
            self._events.tick(self._engine, self._seeing.tick(), self._seeing.upstreams)
        if self._backbone is not None and self._engine is not None:
            seen = self._backbone.snapshot(rivals_only=True)
            self._words.tell(seen["upstreams"], time.monotonic() - self._started)
            self._shadows.tell(seen, self._engine.streams())
        if self._page_door is not None:
            self._page_door.tick(loop.time())


def _make_page_door(engine: _core.Engine, node: Node) -> PageDoor:
    from relay.web.app import make_app
    from relay.web.door import PageDoor

    return PageDoor(engine, make_app(node))


__all__ = ["MountError", "Node", "NodeSource"]
