"""Several upstreams on loopback: one dies, lags, lies or returns, and no frame is missed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.backbones import Ear, Node, Programme, until

from relay import _core
from relay.backbone import open_backbone
from relay.errors import ConfigError

MODES = ["standby", "merge"]


@pytest.fixture
def nodes() -> Iterator[Callable[..., Node]]:
    """Makes nodes; closes them last first."""
    made: list[Node] = []

    def make(*args: Any, **more: Any) -> Node:
        made.append(Node(*args, **more))
        return made[-1]

    yield make
    for node in reversed(made):
        node.backbone.close()


class Diamond:
    """An origin, two relays, an edge below both; /live runs through it."""

    def __init__(self, nodes: Callable[..., Node], redundancy: str, **more: Any) -> None:
        self.origin = nodes()
        self.relays = [nodes(self.origin.address), nodes(self.origin.address)]
        self.relays.sort(key=lambda node: node.address)  # the first name is preferred
        self.edge = nodes(
            [relay.address for relay in self.relays],
            bind=None,
            prefetch=["/live"],
            redundancy=redundancy,
            **more,
        )
        until(lambda: [up["state"] for up in self.edge.seen()["upstreams"]] == ["up", "up"])
        self.programme = Programme(self.origin)
        self.programme.push(100)
        self.ear = Ear(self.edge, self.programme)
        self.programme.run()

    def feeder(self) -> int:
        """Which relay feeds the edge."""
        feeding = self.edge.link()["feeding"]
        assert feeding is not None
        return int(feeding)

    def counters(self) -> dict[str, int]:
        """The edge's, of the stream."""
        counted: dict[str, int] = self.ear.stream.snapshot()["counters"]
        return counted

    def settle(self) -> None:
        """Listens until everything that has been sent is here."""
        self.ear.reach(self.programme.sent)


@pytest.mark.parametrize("victim", ["feeder", "other"])
@pytest.mark.parametrize("mode", MODES)
def test_either_parent_may_die_and_no_frame_is_missed(
    nodes: Callable[..., Node], mode: str, victim: str
) -> None:
    """Cut without a word; the edge goes on from the other, whole and in order."""
    diamond = Diamond(nodes, mode)
    diamond.settle()
    dead = diamond.feeder() if victim == "feeder" else 1 - diamond.feeder()
    diamond.relays[dead].cut()
    begin = time.monotonic()
    until(lambda: diamond.edge.seen()["upstreams"][dead]["state"] == "lost", 1.0)
    diamond.settle()
    print(f"\n{mode}, {victim}: whole again after {time.monotonic() - begin:.2f} s")
    time.sleep(0.5)
    diamond.programme.stop()
    diamond.settle()
    assert diamond.feeder() == 1 - dead
    assert diamond.counters()["lost_frames_total"] == 0
    assert diamond.edge.upstream() == "up"


def test_in_standby_one_parent_sends_and_in_merge_both_do(nodes: Callable[..., Node]) -> None:
    """A copy that came second is counted, and nothing else."""
    for mode, many in (("standby", 1), ("merge", 2)):
        diamond = Diamond(nodes, mode)
        diamond.settle()
        until(lambda d=diamond, n=many: sum(r.link()["downstream"] for r in d.relays) == n)
        before = diamond.counters()["duplicates_total"]
        at = diamond.programme.sent
        until(lambda d=diamond, at=at: d.programme.sent >= at + 50)
        diamond.programme.stop()
        diamond.settle()
        more = diamond.counters()["duplicates_total"] - before
        assert (more >= 40) == (many == 2)
        assert diamond.counters()["lost_frames_total"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_runs_that_one_parent_drops_come_from_it_or_the_other(
    nodes: Callable[..., Node], mode: str
) -> None:
    """Each third run is lost on the way, whoever sent it."""
    diamond = Diamond(nodes, mode)
    assert diamond.edge.backbone._core
    diamond.edge.backbone._core.fault(drop_every=3)
    at = diamond.programme.sent
    until(lambda: diamond.programme.sent >= at + 150)
    diamond.programme.stop()
    diamond.edge.backbone._core.fault(drop_every=0)
    diamond.settle()
    assert diamond.counters()["lost_frames_total"] == 0


def test_a_parent_that_hears_nothing_itself_is_left(nodes: Callable[..., Node]) -> None:
    """It lives and sends beacons, but its own upstream is gone: the silence of the stream tells."""
    origin = nodes()
    above = [nodes(origin.address), nodes(origin.address)]
    relays = [nodes(node.address) for node in above]
    edge = nodes([relay.address for relay in relays], bind=None, prefetch=["/live"])
    until(lambda: [up["state"] for up in edge.seen()["upstreams"]] == ["up", "up"])
    programme = Programme(origin)
    programme.push(50)
    ear = Ear(edge, programme)
    programme.run()
    ear.reach(100)
    first = edge.link()["feeding"]
    above[first].cut()
    until(lambda: edge.link()["feeding"] == 1 - first, 3.0)
    assert [up["state"] for up in edge.seen()["upstreams"]] == ["up", "up"]
    programme.stop()
    ear.reach(programme.sent)
    assert ear.stream.snapshot()["counters"]["lost_frames_total"] == 0


def test_the_shorter_path_is_taken(nodes: Callable[..., Node]) -> None:
    """Whatever the order of the settings; and children are told how far it is."""
    origin = nodes()
    relay = nodes(origin.address)
    orders = [[origin.address, relay.address], [relay.address, origin.address]]
    edges = [nodes(addresses, prefetch=["/live"]) for addresses in orders]
    for edge in edges:
        until(lambda e=edge: [up["directory_known"] for up in e.seen()["upstreams"]] == [1, 1])
    programme = Programme(origin)
    programme.push(10)
    for addresses, edge in zip(orders, edges, strict=True):
        Ear(edge, programme).reach(10)
        assert addresses[edge.link()["feeding"]] == origin.address
        assert edge.link()["hops"] == 1


def test_redundancy_has_two_values() -> None:
    """Another word is refused."""
    with pytest.raises(ConfigError, match="standby or merge"):
        open_backbone(
            _core.Engine(streams_max=4), bind=None, upstreams=["tcp://a:1"], redundancy="both"
        )
