"""What an open node tells of itself: its facts, its counters, and why nobody should come here.

Rules of this room
  1. Made by the node when all that it consists of is open; asks its rooms, and changes nothing.
  2. Facts are gathered at most every FACTS_S, however many ask.
  3. Calls are of the node's loop; none blocks but `turns`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from relay.source_info import read_info

if TYPE_CHECKING:
    from relay._core import Engine, Stream
    from relay.backbone import Backbone
    from relay.beyond import Beyond
    from relay.config import Config
    from relay.fallback import Fallbacks
    from relay.following import Following
    from relay.seeing import Seeing
    from relay.sources import Sources
    from relay.web.facts import Facts

FACTS_S = 0.5
_OF_UPSTREAM = {"upstream_up", "directory_known"}


class Counting(Protocol):
    """A room with counters of its own."""

    def snapshot(self) -> dict[str, Any]:
        """All of them, by name."""


@dataclass(kw_only=True)
class Telling:
    """Of one node; the fields are what it consists of."""

    engine: Engine
    config: Config
    version: str
    http: str | None  # where its doors are
    sources: Sources
    fallbacks: Fallbacks
    following: Following
    beyond: Beyond
    seeing: Seeing
    backbone: Backbone | None
    counting: Sequence[Counting]  # whose counters are told with the engine's
    started_at: float  # wall clock, s
    started: float  # monotonic, s
    _facts: Facts | None = field(default=None, init=False)
    _facts_at: float = field(default=0.0, init=False)
    _peaks: dict[str, int] = field(default_factory=dict, init=False)

    def snapshot(self) -> dict[str, Any]:
        """All counters of this moment, by name."""
        counters: dict[str, Any] = self.engine.snapshot()
        for room in self.counting:
            counters |= room.snapshot()
        return counters

    def turns(self) -> dict[str, int]:
        """How often each engine thread has turned (see `Node.turns`)."""
        shards = self.engine.snapshot()["shards"]
        turns = {f"shard {number}": told["turns_total"] for number, told in enumerate(shards)}
        turns["intake"] = self.engine.pulse_intake()
        if self.backbone is not None:
            turns["backbone"] = self.backbone.snapshot()["counters"]["turns_total"]
        return turns

    def facts(self) -> Facts:
        """What is true of this node, up to FACTS_S old."""
        now = time.monotonic()
        if self._facts is None or now - self._facts_at > FACTS_S:
            self._facts, self._facts_at = self.gather(), now
        return self._facts

    def forget(self) -> None:
        """What was gathered is true no more: the node is closing."""
        self._facts = None

    def gather(self) -> Facts:
        """What is true of this node now."""
        from relay.web.facts import Facts, upstreams_facts

        at = round(time.time(), 3)  # of the oldest number in it
        link = {} if self.backbone is None else self.backbone.snapshot()
        upstreams = upstreams_facts(link)
        streams = self._streams(link, upstreams)
        counters = self.snapshot()
        counters["relays"] = sum(stream.relays for stream in streams)
        counters["listeners"] = max(0, counters["listeners"] - counters["relays"])
        measured = counters.pop("measured", {})
        counters |= _flat("backbone", link.get("counters", {})) | self.seeing.counters()
        if not link.get("upstream"):  # the engine takes none for one that has told everything
            counters = {k: v for k, v in counters.items() if k not in _OF_UPSTREAM}
        return Facts(
            name=self.config.node.name,
            id=self.engine.node_id,
            version=self.version,
            at=at,
            started_at=self.started_at,
            uptime_s=round(time.monotonic() - self.started, 1),
            http=self.http,
            backbone=None if self.backbone is None else self.backbone.address,
            insecure=self.config.backbone.insecure,
            trust=self.config.backbone.trust,
            streams=streams,
            upstream=link.get("upstream"),
            upstreams=upstreams,
            counters=counters,
            measured=measured,
            listeners_max=self.engine.listeners_max,
        )

    def _streams(self, link: Mapping[str, Any], upstreams: list[dict[str, Any]]) -> list[Any]:
        """Those of this node, by mount."""
        from relay.web.facts import stream_facts

        links = {told["mount"]: told for told in link.get("links", [])}
        upstream_is_up = (link.get("upstream") or {}).get("state") == "up"
        pulls = self.beyond.pulled()
        streams = []
        for stream in self.engine.streams():
            state = self._state(stream, links.get(stream.mount), upstream_is_up, upstreams)
            state["pull"] = pulls.get(stream.mount)
            peak = self._peaks.get(stream.mount, 0)
            streams.append(stream_facts(state, read_info(stream.info()), peak))
        streams.sort(key=lambda stream: stream.mount)
        self._peaks = {stream.mount: stream.listeners_peak for stream in streams}
        return streams

    def _state(
        self,
        stream: Stream,
        told: dict[str, Any] | None,
        upstream_is_up: bool,
        upstreams: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """What all rooms know of one stream; `told`: the backbone."""
        from relay.web.facts import hop_facts, link_facts, source_state

        state: dict[str, Any] = stream.snapshot()
        if state["writer"] != "local":
            state |= link_facts(state, told, upstream_is_up, upstreams)
        else:
            is_away = self.sources.is_away(stream.mount)
            state["source"] = source_state(state["epoch"], told, is_away=is_away)
        state |= hop_facts(state, self.engine.node_id, upstreams, time.time() * 1000)
        state |= self.seeing.stream(stream.key)
        state |= self.following.facts(stream.mount)
        state["fallback_mount"] = self.fallbacks.of(stream.mount)
        return state

    def recording(self, since_s: float, mount: str | None, records_max: int) -> dict[str, Any]:
        """The flight recorder, with the node that it is of (see `Seeing.recording`)."""
        facts = self.facts()
        names = ("name", "id", "version", "http", "backbone")
        node = {name: getattr(facts, name) for name in names}
        return {"node": node, **self.seeing.recording(since_s, mount, records_max)}

    def problems(self) -> list[str]:
        """Why no new listeners should come here; empty when they may."""
        if self.backbone is None:
            return []
        link = self.backbone.snapshot()
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


def _flat(prefix: str, counters: Mapping[str, Any]) -> dict[str, int]:
    """Counters by one name each: `refused: {short: 1}` becomes `…_refused_short_total`."""
    flat: dict[str, int] = {}
    for name, value in counters.items():
        if isinstance(value, Mapping):
            flat |= {f"{prefix}_{name}_{k}_total": v for k, v in value.items()}
        else:
            flat[f"{prefix}_{name}"] = value
    return flat
