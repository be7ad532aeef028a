"""What is true of a node at one moment, and the forms in which pages tell it.

Rules of this room
  1. `Facts` is gathered by the node; everything here is a function of it, without I/O.
  2. Field names are the glossary's; `lag_ms` is null where it is not known, never a guess.
  3. What sources said (names, titles) is passed on as it is: each form escapes for itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from relay.config import Config

State = Literal["live", "ready", "waiting", "idle"]
"""live: has a source; ready: has one upstream, and is fetched for whoever comes; waiting: its
source left, listeners stay; idle: known, without a source."""


class StreamFacts(Struct, frozen=True, kw_only=True):
    """One stream on this node."""

    mount: str
    state: State
    role: Literal["origin", "edge"]
    epoch: int | None = None
    listeners: int = 0
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
    counters: dict[str, int] = {}
    info: dict[str, str] = {}  # the header lines of the reply to listeners


class Facts(Struct, frozen=True, kw_only=True):
    """One node."""

    name: str
    id: str
    version: str
    started_at: float  # wall clock, seconds
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

    def set_title(self, mount: str, text: str) -> None:
        """Set a title; MountError when the mount has no source here."""


def stream_facts(
    snapshot: dict[str, Any], info: dict[str, str], listeners_peak: int = 0
) -> StreamFacts:
    """The facts of one stream, from the engine's snapshot and the stream's header lines."""
    is_edge = snapshot["writer"] == "link"
    epoch = snapshot.get("epoch")
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
        listeners=snapshot["listeners"],
        lag_ms=lag_ms if lag_ms is not None or is_edge else 0,
        held_ms=snapshot.get("held_ms", 0),
        bitrate_bps=_bit_rate_bps(snapshot, info),
        content_type=info.get("content-type", ""),
        name=info.get("icy-name", ""),
        title=snapshot.get("title"),
        head_sequence=snapshot.get("head_sequence"),
        listeners_peak=max(listeners_peak, snapshot["listeners"]),
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
        counters={k: v for k, v in snapshot["counters"].items() if isinstance(v, int)},
        info=info,
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


def stream_document(stream: StreamFacts) -> dict[str, Any]:
    """One entry of `streams` in /api/v1/status."""
    document = msgspec.structs.asdict(stream)
    del document["info"]
    return document


def status_document(facts: Facts) -> dict[str, Any]:
    """/api/v1/status."""
    names = ("name", "id", "version", "uptime_s", "http", "backbone", "insecure", "trust")
    return {
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


def _iso8601(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(seconds))


def icestats_document(facts: Facts, base_url: str, mount: str | None = None) -> dict[str, Any]:
    """/status-json.xsl in the shape of Icecast 2.4 (web/status-json.xsl there).

    `source` is an object for one stream, a list for several and absent for none: readers were
    written against exactly that. Streams without a source are not shown.
    """
    live = [s for s in facts.streams if s.state == "live" and mount in (None, s.mount)]
    sources = [_icestats_source(stream, base_url) for stream in live]
    stats: dict[str, Any] = {
        "admin": "",
        "host": base_url.partition("://")[2].rpartition(":")[0],
        "location": "",
        "server_id": f"Relay {facts.version}",
        "server_start": time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(facts.started_at)),
        "server_start_iso8601": _iso8601(facts.started_at),
    }
    if sources:
        stats["source"] = sources[0] if len(sources) == 1 else sources
    return {"icestats": stats}


def _icestats_source(stream: StreamFacts, base_url: str) -> dict[str, Any]:
    started_at = (stream.epoch or 0) / 1000
    source: dict[str, Any] = {
        "audio_info": stream.info.get("ice-audio-info"),
        "bitrate": round(stream.bitrate_bps / 1000) if stream.bitrate_bps else None,
        "genre": stream.info.get("icy-genre", "various"),
        "listener_peak": stream.listeners_peak,
        "listeners": stream.listeners,
        "listenurl": base_url + stream.mount,
        "server_description": stream.info.get("icy-description", "Unspecified description"),
        "server_name": stream.name or "Unspecified name",
        "server_type": stream.content_type,
        "server_url": stream.info.get("icy-url"),
        "stream_start": time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(started_at)),
        "stream_start_iso8601": _iso8601(started_at),
        "title": stream.title,
    }
    return {**{k: v for k, v in source.items() if v is not None}, "dummy": None}
