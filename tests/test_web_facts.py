"""The forms in which pages tell what is true of a node."""

from __future__ import annotations

from typing import Any

import pytest
from fake_desk import FakeDesk, stream
from fake_engine import FakeStream

from relay.web.facts import hop_facts, status_document, stream_facts


def fed(**more: Any) -> dict[str, Any]:
    """The snapshot of a stream that has had a source."""
    made = FakeStream("/live")
    made.claim()
    made.begin()
    for _ in range(100):
        made.push(b"x" * 160, 20_000)
    return made.snapshot() | more


@pytest.mark.parametrize(
    ("snapshot", "state"),
    [
        (fed(), "live"),
        (fed(source_up=False, writer="none"), "waiting"),
        (FakeStream("/live").snapshot(), "idle"),
        (FakeStream("/live").snapshot() | {"writer": "link", "ready": True}, "ready"),
        (fed(source_up=False, writer="link", ready=True), "ready"),
        (fed(writer="link", ready=True), "live"),
        (fed(source_up=False, writer="link", ready=False), "waiting"),
    ],
)
def test_state_follows_the_source(snapshot: dict[str, Any], state: str) -> None:
    """Live with a source, ready with one upstream, waiting once it left, idle without any."""
    assert stream_facts(snapshot, {}).state == state


def test_a_fallback_is_told_with_those_who_hear_it() -> None:
    """Null and 0 without one."""
    told = stream_facts(fed(fallback="/music", fallback_listeners=3), {})
    assert (told.fallback, told.fallback_listeners) == ("/music", 3)
    none = stream_facts(fed(), {})
    assert (none.fallback, none.fallback_listeners) == (None, 0)


def test_lag_is_nought_at_the_origin_and_unknown_on_a_quiet_edge() -> None:
    """A number that nobody measured is null, never a guess."""
    assert stream_facts(fed(), {}).lag_ms == 0
    assert stream_facts(fed(writer="link"), {}).lag_ms is None
    assert stream_facts(fed(writer="link", lag_ms=120), {}).lag_ms == 120


def test_a_path_ends_here_and_reaches_as_far_as_the_hops() -> None:
    """Of what the feeder's beacon tells only what lies between the origin and this node."""
    up = {"address": "tcp://b:9", "node_id": "0" * 16 + "b" * 16, "path": ["a" * 16, "9" * 16]}
    state = {"source_up": True, "epoch": 1_000, "head_sequence": 50, "head_media_us": 1_000_000}
    edge = state | {"upstream": "tcp://b:9", "hops": 2}
    told = hop_facts(edge, "0" * 16 + "c" * 16, [up], 2_120.4)
    assert told == {"path": ["a" * 16, "b" * 16, "c" * 16], "origin_lag_ms": 120}
    assert hop_facts(state, "d" * 32, [up], 1_900)["path"] == ["d" * 16]
    assert hop_facts(state, "d" * 32, [up], 1_900)["origin_lag_ms"] == -100  # a source ahead
    assert "origin_lag_ms" not in hop_facts(state | {"source_up": False}, "d" * 32, [], 0)


def test_bit_rate_is_measured_once_there_is_a_second_of_audio() -> None:
    """Before that, what the source said."""
    assert stream_facts(fed(), {"icy-br": "128"}).bitrate_bps == 64_000
    short = fed(head_media_us=500_000)
    assert stream_facts(short, {"icy-br": "128"}).bitrate_bps == 128_000
    assert stream_facts(short, {"icy-br": "many"}).bitrate_bps is None


def test_status_document_has_the_documented_fields() -> None:
    """docs/http-api.md promises these names."""
    document = status_document(FakeDesk(stream()).facts())
    assert set(document) == {
        "at",
        "node",
        "streams",
        "upstream",
        "upstreams",
        "counters",
        "measured",
    }
    assert document["measured"]["join"] == {
        "total": 5,
        "p50_ms": 1.5,
        "p90_ms": 1.5,
        "p99_ms": 1.5,
        "max_ms": 3.0,
    }
    assert document["measured"]["busy"] == {
        "total": 30,
        "p50_percent": 10.0,
        "p90_percent": 10.0,
        "p99_percent": 12.5,
        "max_percent": 12.5,
        "last_percent": 2.5,
    }
    assert {"name", "id", "version", "uptime_s"} <= set(document["node"])
    assert {
        "mount",
        "state",
        "role",
        "epoch",
        "listeners",
        "lag_ms",
        "held_ms",
        "bitrate_bps",
        "content_type",
        "title",
        "head_sequence",
        "head_position",
        "hops",
        "path",
        "origin_lag_ms",
        "gaps",
        "gaps_total",
        "counters",
    } <= set(document["streams"][0])
