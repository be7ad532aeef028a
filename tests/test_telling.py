"""What a node tells of itself, over a fake engine and fake links."""

from __future__ import annotations

from typing import Any

import pytest

import relay


async def test_facts_are_gathered_seldom(
    engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ask, the engine is asked every half second."""
    async with relay.Node() as node:
        first = node.facts()
        node.source("/live", content_type="audio/mpeg").open()
        assert node.facts() is first
        monkeypatch.setattr("relay.telling.FACTS_S", -1)
        assert [s.mount for s in node.facts().streams] == ["/live"]


async def test_peak_of_listeners_is_remembered(
    engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Icecast's listener_peak."""
    monkeypatch.setattr("relay.telling.FACTS_S", -1)
    async with relay.Node() as node:
        node.source("/live", content_type="audio/mpeg").open()
        engines[0].find("/live").listeners = 7
        node.facts()
        engines[0].find("/live").listeners = 2
        assert node.facts().streams[0].listeners_peak == 7


class FakeBackbone:
    """The links of a node, as the test says."""

    address = "tcp://127.0.0.1:9000"
    washed_total = 0

    def recorded(self, cursors: list[int], *, since_us: int = 0) -> list[Any]:
        """Nothing has been decided."""
        return []

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.upstream: dict[str, Any] | None = {
            "address": "tcp://h:9000",
            "state": "up",
            "hops": 1,
            "directory_known": True,
        }
        self.links: list[dict[str, Any]] = []

    def link(self, mount: str, **more: Any) -> None:
        """A stream from upstream."""
        told = {"from_upstream": True, "told_up": True, "tail_whole": True}
        told |= {"epoch": 7, "target_sequence": 12}
        self.links.append({"mount": mount, **told, **more})

    def snapshot(self, *, rivals_only: bool = False) -> dict[str, Any]:
        """What the test said."""
        counters = {"runs_total": 9, "refused": {"short": 2}}
        told = [dict(self.upstream)] if self.upstream else []
        links = [{"feeding": None, "subscribed": False, **link} for link in self.links]
        return {
            "upstream": self.upstream,
            "upstreams": told,
            "links": links,
            "counters": counters,
        }

    def goodbye(self) -> None:
        """Remember."""
        self.calls.append("goodbye")

    def close(self) -> None:
        """Remember."""
        self.calls.append("close")


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> FakeBackbone:
    """What nodes get for a backbone."""
    made = FakeBackbone()
    monkeypatch.setattr("relay.node.open_links", lambda engine, config: made)
    return made


async def test_edge_tells_upstream_and_refuses_its_mounts(
    engines: list[Any], backbone: FakeBackbone
) -> None:
    """What comes from upstream has its source there; what was there and ended may begin here."""
    async with relay.Node(backbone="tcp://127.0.0.1:9001", upstream="tcp://h:9000") as node:
        backbone.link("/far")
        backbone.link("/ended", told_up=False)
        with pytest.raises(relay.MountError, match="upstream"):
            node.source("/far", content_type="audio/mpeg").open()
        node.source("/ended", content_type="audio/mpeg").open()
        engines[0].add_stream("/far").writer = "link"
        facts = node.facts()
        assert [(s.mount, s.role) for s in facts.streams] == [
            ("/ended", "origin"),
            ("/far", "edge"),
        ]
        assert facts.upstream == backbone.upstream
        assert facts.counters["backbone_runs_total"] == 9
        assert facts.counters["backbone_refused_short_total"] == 2
        assert node.backbone_address == "tcp://127.0.0.1:9000"
    assert backbone.calls == ["goodbye", "close"]


async def test_each_upstream_tells_what_it_feeds(
    engines: list[Any], backbone: FakeBackbone
) -> None:
    """And each stream where it comes from."""
    async with relay.Node(upstream="tcp://h:9000") as node:
        backbone.link("/far", feeding=0, subscribed=True, switches=2)
        backbone.link("/idle", feeding=0)
        for mount in ("/far", "/idle"):
            engines[0].add_stream(mount).writer = "link"
        facts = node.facts()
        assert [(s.upstream, s.switches) for s in facts.streams] == [("tcp://h:9000", 2), (None, 0)]
        told = facts.upstreams[0]
        assert (told["address"], told["mounts"], told["feeds"]) == ("tcp://h:9000", ["/far"], 1)


async def test_lag_of_an_edge_is_what_upstream_has_sent_and_is_not_here(
    engines: list[Any], backbone: FakeBackbone
) -> None:
    """Two frames of 20 ms are missing here."""
    async with relay.Node(upstream="tcp://h:9000") as node:
        stream = engines[0].add_stream("/far")
        stream.writer, stream.source_up, stream.epoch = "link", True, 7
        for _ in range(10):
            stream.push(b"x", 20_000)
        backbone.link("/far")
        assert node.facts().streams[0].lag_ms == 40


async def test_readiness_needs_upstream_and_tails(
    engines: list[Any], backbone: FakeBackbone
) -> None:
    """A node whose upstream is lost, or whose rings have no tail yet, wants no new listeners."""
    async with relay.Node(backbone="tcp://127.0.0.1:9001") as node:
        assert node.problems() == []
        backbone.link("/far", tail_whole=False)
        assert node.problems() == ["1 streams in demand have no tail yet"]
        backbone.upstream = {"state": "lost", "directory_known": True}
        assert node.problems()[0] == "upstream is lost"
        backbone.links.clear()
        backbone.upstream = {"address": "tcp://h:1", "state": "up", "directory_known": False}
        assert node.problems() == ["upstream tcp://h:1 does not know its own directory yet"]


async def test_a_fallback_that_was_set_is_told(
    engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the settings, and since by an administrator."""
    monkeypatch.setattr("relay.telling.FACTS_S", -1)
    streams = {"/live": {"fallback": "/music"}}
    async with relay.Node(streams=streams) as node:
        node.source("/live", content_type="audio/mpeg").open()
        assert node.facts().streams[0].fallback_mount == "/music"
        node.set_fallback("/live", "/night")
        assert node.facts().streams[0].fallback_mount == "/night"
        assert node.fallback_chain("/live") == ("/night",)
        node.set_fallback("/live", None)
        assert node.facts().streams[0].fallback_mount is None


async def test_a_node_that_closes_wants_nobody_and_tells_nothing_old(engines: list[Any]) -> None:
    """What was gathered before is not told any more."""
    async with relay.Node() as node:
        before = node.facts()
        node._turn_away(node._opened())
        assert node.problems() == ["draining"]
        assert node.facts() is not before
        node._is_closing = False
    assert node.problems() == ["draining"]
