"""Node: engine, doors and backbone of one process, opened from one Config and closed in order.

Rules of this room
  1. Opened and closed on one event loop, and nothing of it outlives the closing: no thread, no
     descriptor. Several nodes may live in one process.
  2. Sets no signal handler, no event-loop policy, no logging configuration: those are the host's.
  3. Opened in this order: engine, HTTP, backbone, doors, threads. Closed in this: no new ones
     (readyz false), goodbye to children, sources, listeners (their frame to its end), pages,
     backbone, engine.
  4. What it tells of itself (`facts`) is gathered at most every FACTS_S, however many ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from relay import _core
from relay.address import Address
from relay.config import Config
from relay.errors import ConfigError, MountError, RelayError
from relay.fallback import Fallbacks
from relay.opening import open_engine, open_http, open_links
from relay.seeing import Seeing, open_seeing
from relay.shadows import Shadows
from relay.source import LocalSource, Sources, read_info
from relay.source_door import SourceDoor
from relay.subscribe import Subscription

if TYPE_CHECKING:
    from relay.backbone import Backbone
    from relay.web.door import PageDoor
    from relay.web.facts import Facts

log = logging.getLogger("relay.node")

FACTS_S = 0.5
TICK_S = 0.5
DRAIN_S = 1.2  # for listeners to get the frame that they are in
CONNECTING_S = 1.0  # an upstream that is not there by then is worth a line

_UPSTREAM_WORDS = {
    "connecting": "is not there yet; this node serves its own streams and keeps trying",
    "up": "is up",
    "lost": "is lost; listeners stay, and it is tried again",
    "version": "speaks version {} of the protocol, this node {}; update one of the two",
    "loop": "leads back to this node, or is too deep; choose another with --upstream",
}
_OF_UPSTREAM = {"upstream_up", "directory_known"}


def version() -> str:
    """The version of this package."""
    import relay

    return relay.__version__


class NodeSource:
    """A source in this process: `async with node.source("/live", content_type=…) as live`."""

    def __init__(
        self, sources: Sources, mount: str, content_type: str, headers: Mapping[str, str]
    ) -> None:
        self._sources = sources
        self._mount = mount
        self._content_type = content_type
        self._headers = headers
        self._source: LocalSource | None = None

    def __repr__(self) -> str:
        source = self._source
        state = "new" if source is None else "open" if source.is_open else "closed"
        return f"<{type(self).__name__} {self._mount} {self._content_type} {state}>"

    def open(self) -> Self:
        """Claim the mount and begin an epoch; MountError, SourceError. Does not block."""
        if self._source is None:
            self._source = self._sources.open(self._mount, self._content_type, self._headers)
        return self

    def close(self) -> None:
        """End the epoch; listeners stay for linger_s. Does not block."""
        if self._source is not None:
            self._sources.close(self._source)

    def feed(self, data: bytes | bytearray | memoryview) -> float:
        """Send bytes of the stream: whole frames go out, a partial one waits for its rest.

        Args:
            data: any run of bytes, cut anywhere. Fed from any thread.

        Returns:
            ms that the source is ahead of real time; who generates faster than that sleeps for it,
            or its listeners will skip. Never blocks.

        Raises:
            SourceError: not the promised format, or the source is closed.
        """
        return self._opened().feed(data) / 1000

    def title(self, text: str) -> None:
        """Set what is playing from here on. Does not block."""
        self._opened().title(text)

    @property
    def epoch(self) -> int:
        """The epoch that this source began, in ms."""
        return self._opened().epoch

    def _opened(self) -> LocalSource:
        if self._source is None:
            raise RelayError(f"{self._mount}: open the source first: async with node.source(…)")
        return self._source

    async def __aenter__(self) -> Self:
        return self.open()

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()


class Node:
    """One node of Relay in this process: `async with Node(http="0.0.0.0:8000") as node`.

    Args:
        http: `HOST:PORT` for sources, listeners and pages; port 0 takes any free one; None opens
            no HTTP.
        backbone: `tcp://HOST:PORT` for downstream nodes; None opens none.
        upstream: `tcp://HOST:PORT` of the node to receive streams from, or several, at most 8.
        config: all settings; then the arguments above must be left out, and HTTP and backbone
            are opened as it says.
        options: any other setting under its option's name (`burst_ms=500`, `source_password=…`).
            Without `source_password` nobody may send a source over HTTP. The environment is not
            read.

    Raises:
        ConfigError: a setting is wrong; with one line for each.
    """

    def __init__(
        self,
        http: str | None = None,
        *,
        backbone: str | None = None,
        upstream: str | Iterable[str] = (),
        config: Config | None = None,
        **options: Any,
    ) -> None:
        upstreams = (upstream,) if isinstance(upstream, str) else tuple(upstream)
        if config is None:
            given: dict[str, Any] = {"backbone": backbone or "none", **options}
            given["http"] = http if http is not None else "127.0.0.1:0"  # not opened, in no way
            given |= {"upstream": upstreams} if upstreams else {}
            self.config = Config.load(overrides=given, environ={})
            self._has_http = http is not None
        elif http is not None or backbone is not None or upstreams or options:
            raise ConfigError("give either config or single settings, not both")
        else:
            self.config = config
            self._has_http = True
        self._engine: _core.Engine | None = None
        self._sources: Sources | None = None
        self._fallbacks: Fallbacks | None = None
        self._source_door: SourceDoor | None = None
        self._page_door: PageDoor | None = None
        self._backbone: Backbone | None = None
        self._seeing: Seeing | None = None
        self._http_address: Address | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        self._facts: Facts | None = None
        self._facts_at = 0.0
        self._upstream_told: dict[str, str] = {}
        self._shadows = Shadows()
        self._peaks: dict[str, int] = {}
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
            RelayError: the node is open already.
        """
        if self._engine is not None:
            raise RelayError("this node is open already")
        self._is_closing = False
        self._upstream_told = {}
        self._shadows = Shadows()
        self._started_at, self._started = time.time(), time.monotonic()
        try:
            await self._open_all()
        except BaseException:
            await self.close()
            raise
        return self

    async def _open_all(self) -> None:
        self._engine = engine = open_engine(self.config)
        self._sources = Sources(engine, self.config, self._upstream_feeds, self._upstream_mounts)
        self._fallbacks = Fallbacks(engine, self._sources.is_framed)
        if self._has_http:
            self._http_address = open_http(engine, self.config)
        self._backbone = open_links(engine, self.config)
        if self._has_http:
            self._source_door = SourceDoor(engine, self._sources, self.config)
            self._source_door.start()
            self._page_door = _make_page_door(engine, self)
            await self._page_door.start()
        engine.start()
        self._seeing = open_seeing(engine, self._backbone, self.config)
        self._tick()

    async def close(self) -> None:
        """Close everything, in order; takes at most 2 s. Twice is no error."""
        engine = self._engine
        if engine is None or self._is_closing:
            return
        self._is_closing = True
        self._facts = None
        if self._timer is not None:
            self._timer.cancel()
        engine.stop_accepting()
        if self._backbone is not None:
            self._backbone.goodbye()
        if self._source_door is not None:
            await asyncio.to_thread(self._source_door.close)
        if self._sources is not None:
            self._sources.close_all()
        await _drain(engine)
        if self._page_door is not None:
            await self._page_door.close()
        if self._backbone is not None:
            await asyncio.to_thread(self._backbone.close)
        await asyncio.to_thread(engine.close)
        self._engine = self._backbone = self._source_door = self._page_door = None
        self._sources = self._fallbacks = self._http_address = self._seeing = None

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *error: object) -> None:
        await self.close()

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
        content_type: str,
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
            content_type: `audio/mpeg`, `audio/aac` (ADTS) or `audio/ogg`.
            name, genre, url, description, bitrate_kbps, public: what listeners are told.

        Raises, on entering:
            MountError: the mount is taken, or no valid path.
            SourceError: the content type is not carried.
        """
        self._opened()
        assert self._sources is not None
        told = {
            "icy-name": name,
            "icy-genre": genre,
            "icy-url": url,
            "icy-description": description,
            "icy-br": "" if bitrate_kbps is None else str(bitrate_kbps),
            "icy-pub": str(int(public)),
        }
        return NodeSource(self._sources, mount, content_type, told)

    def subscribe(self, mount: str, *, burst_ms: int = 0) -> Subscription:
        """Read a stream: an async iterator of `Frame`, and of `Skipped` where some are missing.

        Args:
            mount: a stream of this node.
            burst_ms: how much of the past comes first; 0 begins with the next `start`.

        Raises:
            MountError: this node has no such stream.

        New frames are looked for every 20 ms; a frame is copied and verified before it is yielded.
        """
        return Subscription(self._opened(), mount, burst_ms=burst_ms)

    # --- what it tells -----------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """All counters of this moment, by name. Does not block."""
        engine = self._opened()
        counters = engine.snapshot()
        if self._source_door is not None:
            counters |= self._source_door.snapshot()
        if self._page_door is not None:
            counters["page_displaced_total"] = self._page_door.displaced_total
        return counters

    def turns(self) -> dict[str, int]:
        """How often each engine thread has turned; one that lives does so ten times a second.

        The intake's sleeps while no source sends; each call wakes it, so the next one tells more.
        Blocks for the backbone's turn, and for ever when it is stuck in one.
        """
        engine = self._opened()
        shards = engine.snapshot()["shards"]
        turns = {f"shard {number}": told["turns_total"] for number, told in enumerate(shards)}
        turns["intake"] = engine.pulse_intake()
        if self._backbone is not None:
            turns["backbone"] = self._backbone.snapshot()["counters"]["turns_total"]
        return turns

    def facts(self) -> Facts:
        """What is true of this node, up to FACTS_S old (for `relay.web`)."""
        now = time.monotonic()
        if self._facts is None or now - self._facts_at > FACTS_S:
            self._facts, self._facts_at = self._gather(), now
        return self._facts

    def _gather(self) -> Facts:
        from relay.web.facts import (
            Facts,
            hop_facts,
            link_facts,
            source_state,
            stream_facts,
            upstreams_facts,
        )

        engine = self._opened()
        link = {} if self._backbone is None else self._backbone.snapshot()
        links = {told["mount"]: told for told in link.get("links", [])}
        upstreams = upstreams_facts(link)
        assert self._seeing is not None
        upstream_is_up = (link.get("upstream") or {}).get("state") == "up"
        streams = []
        for stream in engine.streams():
            state = stream.snapshot()
            told = links.get(stream.mount)
            if state["writer"] != "local":
                state |= link_facts(state, told, upstream_is_up, upstreams)
            elif self._sources is not None:
                is_away = self._sources.is_away(stream.mount)
                state["source"] = source_state(state["epoch"], told, is_away=is_away)
            peak = self._peaks.get(stream.mount, 0)
            state |= hop_facts(state, engine.node_id, upstreams, time.time() * 1000)
            state |= self._seeing.stream(stream.key)
            streams.append(stream_facts(state, read_info(stream.info()), peak))
        streams.sort(key=lambda stream: stream.mount)
        self._peaks = {stream.mount: stream.listeners_peak for stream in streams}
        counters = self.snapshot()
        measured = counters.pop("measured", {})
        counters |= _flat("backbone", link.get("counters", {})) | self._seeing.counters()
        if not link.get("upstream"):  # the engine takes none for one that has told everything
            counters = {k: v for k, v in counters.items() if k not in _OF_UPSTREAM}
        return Facts(
            name=self.config.node.name,
            id=engine.node_id,
            version=version(),
            started_at=self._started_at,
            uptime_s=round(time.monotonic() - self._started, 1),
            http=self.http_address,
            backbone=self.backbone_address,
            insecure=self.config.backbone.insecure,
            trust=self.config.backbone.trust,
            streams=streams,
            upstream=link.get("upstream"),
            upstreams=upstreams,
            counters=counters,
            measured=measured,
        )

    def recording(self, since_s: float, mount: str | None, records_max: int) -> dict[str, Any]:
        """The flight recorder, with the node that it is of (see `Seeing.recording`)."""
        facts = self.facts()
        assert self._seeing is not None
        names = ("name", "id", "version", "http", "backbone")
        node = {name: getattr(facts, name) for name in names}
        return {"node": node, **self._seeing.recording(since_s, mount, records_max)}

    def problems(self) -> list[str]:
        """Why no new listeners should come here; empty when they may (for /readyz)."""
        if self._engine is None or self._is_closing:
            return ["draining"]
        if self._backbone is None:
            return []
        link = self._backbone.snapshot()
        upstream = link.get("upstream")
        wrong = []
        if upstream and upstream["state"] != "up":
            wrong.append(f"upstream is {upstream['state']}")
        if upstream and not upstream["directory_known"]:
            wrong += [
                f"upstream {told['address']} does not know its own directory yet"
                for told in link["upstreams"]
                if told["state"] == "up" and not told["directory_known"]
            ]
        empty = [told["mount"] for told in link["links"] if not told["tail_whole"]]
        if empty:
            wrong.append(f"{len(empty)} streams in demand have no tail yet")
        return wrong

    def set_title(self, mount: str, text: str) -> None:
        """Set the title of a local source; MountError when there is none."""
        self._opened()
        assert self._sources is not None
        self._sources.title(mount, text)

    # --- inside ------------------------------------------------------------------------------

    def _opened(self) -> _core.Engine:
        if self._engine is None:
            raise RelayError("this node is not open: use `async with relay.Node(…) as node`")
        return self._engine

    def _upstream_feeds(self, mount: str) -> bool:
        """Whether an upstream node that is there has a live source for this mount."""
        return any(told["mount"] == mount and told["told_up"] for told in self._upstream_links())

    def _upstream_mounts(self) -> set[str]:
        """What an upstream node lists, with its source there or away."""
        return {told["mount"] for told in self._upstream_links()}

    def _upstream_links(self) -> list[dict[str, Any]]:
        links = [] if self._backbone is None else self._backbone.snapshot()["links"]
        return [told for told in links if told["from_upstream"]]

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
        self._tell_upstream()
        if self._seeing is not None:
            self._seeing.tick()
        if self._backbone is not None and self._engine is not None:
            self._shadows.tell(self._backbone.snapshot(), self._engine.streams())
        if self._page_door is not None:
            self._page_door.tick(loop.time())

    def _tell_upstream(self) -> None:
        """One log line for each change of an upstream's state."""
        upstreams = [] if self._backbone is None else self._backbone.snapshot()["upstreams"]
        is_young = time.monotonic() - self._started < CONNECTING_S
        for told in upstreams:
            state, address = told["state"], told["address"]
            if state == self._upstream_told.get(address, "connecting" if is_young else ""):
                continue
            self._upstream_told[address] = state
            log.log(
                logging.INFO if state == "up" else logging.WARNING,
                "upstream %s %s",
                address,
                _UPSTREAM_WORDS[state].format(
                    _span(told.get("versions")), _span(_core.PROTOCOL_VERSIONS)
                ),
                extra={"event": f"upstream_{state}", "upstream": address},
            )


def _span(versions: Sequence[int] | None) -> str:
    """`1`, or `1 to 2`."""
    return " to ".join(map(str, dict.fromkeys(versions or "?")))


def _flat(prefix: str, counters: Mapping[str, Any]) -> dict[str, int]:
    """Counters by one name each: `refused: {short: 1}` becomes `…_refused_short_total`."""
    flat: dict[str, int] = {}
    for name, value in counters.items():
        if isinstance(value, Mapping):
            flat |= {f"{prefix}_{name}_{k}_total": v for k, v in value.items()}
        else:
            flat[f"{prefix}_{name}"] = value
    return flat


def _make_page_door(engine: _core.Engine, node: Node) -> PageDoor:
    from relay.web.app import make_app
    from relay.web.door import PageDoor

    return PageDoor(engine, make_app(node))


async def _drain(engine: _core.Engine) -> None:
    """Wait for the listeners to hear their frame to its end, at most DRAIN_S."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while engine.snapshot()["listeners"]:
                await asyncio.sleep(0.02)


__all__ = ["MountError", "Node", "NodeSource"]
