"""/metrics: one snapshot of the node's counters, in Prometheus' words.

Rules of this room
  1. A collector over `Facts`, in a registry of its own: nothing global, nothing counted here.
  2. Counters end in _total there and here; all names begin with relay_.
  3. Labels are bounded: `mount` by streams_max, `shard` by the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from relay.web.facts import Facts, StreamFacts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_STREAM_GAUGES: dict[str, tuple[str, Callable[[StreamFacts], float | None]]] = {
    "stream_live": ("1 while the stream has a source.", lambda s: float(s.state == "live")),
    "stream_listeners": ("Listeners attached now.", lambda s: s.listeners),
    "stream_lag_ms": (
        "Media time that upstream has sent and that is not whole here.",
        lambda s: s.lag_ms,
    ),
    "stream_held_ms": ("Media time in the ring.", lambda s: s.held_ms),
    "stream_bitrate_bps": ("Bit rate over the epoch.", lambda s: s.bitrate_bps),
    "stream_head_sequence": ("Sequence after the newest frame.", lambda s: s.head_sequence),
}


def metric(name: str, help_: str, labels: tuple[str, ...] = ()) -> Metric:
    """An empty family: a counter when its name ends in _total, else a gauge."""
    if name.endswith("_total"):
        return CounterMetricFamily(f"relay_{name}", help_, labels=labels)
    return GaugeMetricFamily(f"relay_{name}", help_, labels=labels)


def numbers(values: dict[str, Any]) -> Iterable[tuple[str, float]]:
    """The plain numbers among these, and truth as 0 or 1."""
    for name, value in values.items():
        if isinstance(value, bool | int | float):
            yield name, float(value)


class NodeCollector:
    """Turns facts into metrics whenever somebody scrapes."""

    def __init__(self, facts: Callable[[], Facts]) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        """All families of one moment."""
        facts = self._facts()
        node = metric("node_info", "Which node this is.", ("name", "id", "version"))
        node.add_metric([facts.name, facts.id, facts.version], 1.0)  # type: ignore[attr-defined]
        yield node
        yield _single("uptime_s", "Seconds since the start.", facts.uptime_s)
        yield _single("insecure", "1 where the backbone is open to anyone.", float(facts.insecure))
        for name, value in numbers(facts.counters):
            yield _single(name, _words(name), value)
        yield from _labelled("shard_", "shard", _shards(facts))
        yield from _labelled("stream_", "mount", {s.mount: s.counters for s in facts.streams})
        for name, (help_, read) in _STREAM_GAUGES.items():
            known = ((s.mount, read(s)) for s in facts.streams)
            told = {mount: value for mount, value in known if value is not None}
            yield _family(name, help_, "mount", told)


def _words(name: str) -> str:
    return name.removesuffix("_total").replace("_", " ").capitalize() + "."


def _single(name: str, help_: str, value: float) -> Metric:
    family = metric(name, help_)
    family.add_metric([], value)  # type: ignore[attr-defined]
    return family


def _family(name: str, help_: str, label: str, values: dict[str, float]) -> Metric:
    family = metric(name, help_, (label,))
    for key, value in values.items():
        family.add_metric([key], value)  # type: ignore[attr-defined]
    return family


def _shards(facts: Facts) -> dict[str, dict[str, Any]]:
    return {str(number): told for number, told in enumerate(facts.counters.get("shards", []))}


def _labelled(prefix: str, label: str, rows: dict[str, dict[str, Any]]) -> Iterable[Metric]:
    """One family for each name that occurs, with one sample for each row."""
    names = dict.fromkeys(name for row in rows.values() for name, _ in numbers(row))
    for name in names:
        told = {key: float(row[name]) for key, row in rows.items() if name in row}
        yield _family(prefix + name, _words(name), label, told)


def exposition(facts: Callable[[], Facts]) -> Callable[[], bytes]:
    """A function that gives the text of /metrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(facts))
    return lambda: generate_latest(registry)
