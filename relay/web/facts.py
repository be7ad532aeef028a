"""What is true of a node at one moment, and the forms in which pages tell it.

Rules of this room
  1. `Facts` is gathered by the node; everything here is a function of it, without I/O.
  2. Field names are the glossary's; `lag_ms` is null where it is not known, never a guess.
  3. What sources said (names, titles) is passed on as it is: each form escapes for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from relay.config import Config
from relay.following import Moment
from relay.listeners import Roll

State = Literal["live", "ready", "waiting", "idle"]
"""live: has a source; ready: has one upstream, and is fetched for whoever comes; waiting: its
source left, listeners stay; idle: known, without a source."""


class StreamFacts(Struct, frozen=True, kw_only=True):
    """One stream on this node."""

    mount: str
    state: State
    role: Literal["origin", "edge"]
    epoch: int | None = None
    listeners: int = 0  # the audience: without relays
    relays: int = 0  # other servers that pull this stream, and pass it on
    lag_ms: int | None = None  # sent by upstream and not whole here; 0 at the origin
    held_ms: int = 0  # media time in the ring
    bitrate_bps: int | None = None
    content_type: str = ""
    name: str = ""
    title: str | None = None
    head_sequence: int | None = None
    listeners_peak: int = 0
    upstream: str | None = None  # the one that feeds it; null at the origin, and while idle
    switches: int = 0  # times that another upstream took over
    hops: int = 0  # links between the origin and this node
    path: list[str] = []  # low halves of the nodes' ids, from the origin to this one
    head_position: int | None = None
    origin_lag_ms: int | None = None  # age of the newest frame by the origin's clock
    gaps: list[dict[str, Any]] = []  # the last ones that could be heard, oldest first
    gaps_total: dict[str, int] = {}  # all of them, by cause
    source: Literal["live", "away", "shadowed"] | None = None  # of this node; null at an edge
    shadowed: list[str] = []  # upstreams whose source has lost against a higher epoch
    fallback: str | None = None  # the mount that its listeners hear now, in its place
    fallback_listeners: int = 0  # of its listeners, those who do
    pull: dict[str, Any] | None = None  # of a stream that is fetched over HTTP: url, state, error
    counters: dict[str, int] = {}
    info: dict[str, str] = {}  # the header lines of the reply to listeners
    source_address: str | None = None  # of the encoder, on its own node
    source_agent: str = ""  # what it calls itself
    listeners_max: int = 0  # that the mount takes; 0: no bound of its own
    fallback_mount: str | None = None  # that is set to stand in
    codec: str | None = None  # in Ogg: Opus, Vorbis, …
    artist: str | None = None  # as the comments of an Ogg source tell them: the two parts of title
    track: str | None = None
    codec_head: dict[str, str | int] = {}  # what its own head says, by Icecast's names
    is_listed: bool = False  # in directories, where its source says that it is public


class Facts(Struct, frozen=True, kw_only=True):
    """One node."""

    name: str
    id: str
    version: str
    at: float  # when all this was true: wall clock, seconds
    started_at: float  # likewise
    uptime_s: float
    http: str | None
    backbone: str | None
    insecure: bool
    trust: str  # what protects the backbone: keys, loopback or insecure
    streams: list[StreamFacts]
    upstream: dict[str, Any] | None = None  # the one that feeds most
    upstreams: list[dict[str, Any]] = []  # all of them, in the order of the settings
    counters: dict[str, Any] = {}
    measured: dict[str, dict[str, Any]] = {}  # as Engine.snapshot() has it
    listeners_max: int = 0


class Desk(Protocol):
    """What the pages ask of the node behind them."""

    @property
    def config(self) -> Config:
        """Its settings."""

    def facts(self) -> Facts:
        """What is true now (up to half a second old)."""

    def recording(self, since_s: float, mount: str | None, records_max: int) -> dict[str, Any]:
        """The flight recorder, newest first."""

    def problems(self) -> list[str]:
        """Why it should get no new listeners; empty when it may."""

    async def knows_source(
        self, mount: str, account: tuple[str, str], address: str, agent: str
    ) -> bool | None:
        """What a script says of the account that sets a title; None: there is none to be asked."""

    def set_title(self, mount: str, text: str, url: str = "") -> None:
        """Set a title, and its URL if it has one; MountError when the mount has no source here."""

    def end_source(self, mount: str) -> None:
        """End the source of a mount; MountError when it has none here."""

    def fallback_chain(self, mount: str) -> tuple[str, ...]:
        """The mounts that its listeners hear in its place now, first choice first."""

    def set_fallback(self, mount: str, fallback: str | None) -> None:
        """Set the fallback of a mount, or take it away; MountError when the mount is not here,
        ConfigError when it cannot be its fallback."""

    def moment(self, mount: str) -> Moment | None:
        """What a mount plays just now, and makes it wanted here; None: there is no such mount."""

    async def roll(self, mount: str) -> Roll:
        """Who listens to a mount; MountError when it is not here."""

    async def end_listeners(self, mount: str, number: int) -> int:
        """End the listener with this id; how many that were. MountError as for `roll`."""

    async def move_listeners(self, mount: str, to: str, number: int) -> tuple[int, int]:
        """Send all listeners (0), or one, to another mount; how many were meant, and had to stay.
        MountError when one of the two is not here, or they are of two formats."""


_SETTINGS = (
    *("listeners_max", "fallback_mount", "codec", "source_address", "source_agent"),
    *("artist", "track", "codec_head", "is_listed"),
)


def stream_facts(
    snapshot: dict[str, Any], info: dict[str, str], listeners_peak: int = 0
) -> StreamFacts:
    """The facts of one stream, from the engine's snapshot and the stream's header lines."""
    is_edge = snapshot["writer"] == "link"
    epoch = snapshot.get("epoch")
    relays = snapshot.get("relays", 0)
    listeners = max(0, snapshot["listeners"] - relays)
    lag_ms = snapshot.get("lag_ms")
    state: State = "idle" if epoch is None else "waiting"
    if snapshot["source_up"]:
        state = "live"
    elif snapshot.get("ready"):
        state = "ready"
    return StreamFacts(
        mount=snapshot["mount"],
        state=state,
        role="edge" if is_edge else "origin",
        epoch=epoch,
        listeners=listeners,
        relays=relays,
        lag_ms=lag_ms if lag_ms is not None or is_edge else 0,
        held_ms=snapshot.get("held_ms", 0),
        bitrate_bps=_bit_rate_bps(snapshot, info),
        content_type=info.get("content-type", ""),
        name=info.get("icy-name", ""),
        title=snapshot.get("title"),
        head_sequence=snapshot.get("head_sequence"),
        listeners_peak=max(listeners_peak, listeners),
        upstream=snapshot.get("upstream"),
        switches=snapshot.get("switches", 0),
        hops=snapshot.get("hops", 0),
        path=snapshot.get("path", []),
        head_position=snapshot.get("head_position"),
        origin_lag_ms=snapshot.get("origin_lag_ms"),
        gaps=snapshot.get("gaps", []),
        gaps_total=snapshot.get("gaps_total", {}),
        source=snapshot.get("source"),
        shadowed=snapshot.get("shadowed", []),
        fallback=snapshot.get("fallback"),
        fallback_listeners=snapshot.get("fallback_listeners", 0),
        pull=snapshot.get("pull"),
        counters={k: v for k, v in snapshot["counters"].items() if isinstance(v, int)},
        info=info,
        **{name: snapshot[name] for name in _SETTINGS if name in snapshot},
    )


def _bit_rate_bps(snapshot: dict[str, Any], info: dict[str, str]) -> int | None:
    """Measured over the epoch; in its first second what the source said."""
    media_us = snapshot.get("head_media_us") or 0
    if media_us >= 1_000_000:
        return int(snapshot["head_position"] * 8_000_000 // media_us)
    said = info.get("icy-br", "")
    return int(said) * 1000 if said.isascii() and said.isdigit() else None


def upstreams_facts(link: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each upstream, with the mounts that come from it now."""
    upstreams: list[dict[str, Any]] = [dict(told) for told in link.get("upstreams", [])]
    for told in upstreams:
        told["mounts"] = []
    for told in link.get("links", []):
        if told.get("feeding") is not None and told["subscribed"]:
            upstreams[told["feeding"]]["mounts"].append(told["mount"])
    for told in upstreams:
        told["mounts"].sort()
        told["feeds"] = len(told["mounts"])  # of this moment, not of the last beacon
    return upstreams


def link_facts(
    state: Mapping[str, Any],
    link: Mapping[str, Any] | None,
    upstream_is_up: bool,
    upstreams: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the backbone knows of a stream, in the words of the engine's snapshot."""
    if link is None or not link["from_upstream"]:
        return {}
    told: dict[str, Any] = {"writer": "link", "ready": link["told_up"] and upstream_is_up}
    told["switches"] = link.get("switches", 0)
    told["hops"] = link.get("hops", 0)
    told["shadowed"] = shadowed_addresses(link, upstreams)
    if link.get("feeding") is not None and link["subscribed"]:
        told["upstream"] = upstreams[link["feeding"]]["address"]
    if state["source_up"] and state["epoch"] == link["epoch"] and state["head_sequence"]:
        frames = max(0, link["target_sequence"] - state["head_sequence"])
        told["lag_ms"] = frames * state["head_media_us"] // (state["head_sequence"] * 1000)
    return told


def hop_facts(
    state: Mapping[str, Any],
    node_id: str,
    upstreams: Sequence[Mapping[str, Any]],
    wall_ms: float,
) -> dict[str, Any]:
    """Where a stream has come from, and how old its newest frame is.

    Args:
        state: of the stream, with what `link_facts` knows.
        node_id: of this node.
        upstreams: of this node; `path` is what their beacons tell of the nodes above them.
        wall_ms: this node's wall clock.
    """
    path = [node_id[-16:]]
    feeder = next((up for up in upstreams if up["address"] == state.get("upstream")), None)
    if feeder is not None and feeder.get("node_id"):
        above = [feeder["node_id"][-16:], *feeder.get("path", [])]
        path = [*reversed(above[: state.get("hops") or 1]), *path]
    told: dict[str, Any] = {"path": path}
    if state["source_up"] and state.get("head_sequence"):
        due_ms = state["epoch"] + state["head_media_us"] / 1000
        told["origin_lag_ms"] = round(wall_ms - due_ms)
    return told


def shadowed_addresses(
    link: Mapping[str, Any], upstreams: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The upstreams whose source of this stream has lost against a higher epoch."""
    bits = link.get("shadowed", 0)
    return [told["address"] for number, told in enumerate(upstreams) if bits >> number & 1]


def source_state(
    epoch: int | None, link: Mapping[str, Any] | None, *, is_away: bool
) -> Literal["live", "away", "shadowed"]:
    """Of a source on this node: an upstream's source with a higher epoch shadows it."""
    rival = None if link is None else link.get("rival_epoch")
    if rival and epoch and rival > epoch:
        return "shadowed"
    return "away" if is_away else "live"


# An encoder's address is the admin's business; settings are told by `relay check`; Icecast's
# statistics alone have artist and title apart.
_TOLD_ELSEWHERE = (
    *("info", "source_address", "source_agent", "listeners_max", "fallback_mount"),
    *("artist", "track", "codec_head", "is_listed"),
)


def stream_document(stream: StreamFacts) -> dict[str, Any]:
    """One entry of `streams` in /api/v1/status."""
    document = msgspec.structs.asdict(stream)
    for name in _TOLD_ELSEWHERE:
        del document[name]
    return document


def status_document(facts: Facts) -> dict[str, Any]:
    """/api/v1/status."""
    names = ("name", "id", "version", "uptime_s", "http", "backbone", "insecure", "trust")
    return {
        "at": facts.at,
        "node": {name: getattr(facts, name) for name in names},
        "streams": [stream_document(stream) for stream in facts.streams],
        "upstream": facts.upstream,
        "upstreams": facts.upstreams,
        "counters": facts.counters,
        "measured": {name: measured_document(seen) for name, seen in facts.measured.items()},
    }


def measured_document(seen: dict[str, Any]) -> dict[str, float]:
    """One entry of `measured` in /api/v1/status: how many, quantiles, maximum; ms or percent."""
    names = ("p50", "p90", "p99", "max")
    told: dict[str, float] = {"total": seen["total"]}
    if "max_us" in seen:
        return told | {f"{name}_ms": seen[f"{name}_us"] / 1000 for name in names}
    return told | {f"{name}_percent": seen[f"{name}_percent"] for name in (*names, "last")}
