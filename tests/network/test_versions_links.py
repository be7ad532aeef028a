"""Nodes of neighbouring protocol versions on one network: what one says, the other understands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tools.backbones import Ear, Node, Programme, until
from tools.parents import HandParent, entry

OWN = 2


@pytest.mark.parametrize(
    "versions", [(1, 2, 1), (2, 1, 2), (1, 1, 2), (2, 2, 1), (2, 3, 2), (3, 2, 1), (1, 2, 3)]
)
def test_audio_flows_through_neighbouring_versions(
    make_node: Callable[..., Node], versions: tuple[int, int, int]
) -> None:
    """Origin, relay and edge: join, header lines, live frames, repairs, the end, the next epoch."""
    origin = make_node(version=versions[0])
    relay = make_node(origin.address, version=versions[1])
    edge = make_node(relay.address, version=versions[2], bind=None, prefetch=["/live"])
    programme = Programme(origin)
    programme.push(100)
    ear = Ear(edge, programme)
    ear.reach(100)
    assert edge.backbone._core is not None
    programme.run()
    edge.backbone._core.fault(version=versions[2], drop_every=3)
    ear.reach(200)
    edge.backbone._core.fault(version=versions[2])
    assert edge.counted("repairs_asked_total") > 0
    programme.stop()
    ear.reach(programme.sent)
    programme.stream.end()
    until(lambda: not ear.stream.snapshot()["source_up"])
    programme.epoch, programme.sent = programme.stream.begin(), 0
    programme.push(20)
    until(lambda: ear.stream.snapshot()["epoch"] == programme.epoch)
    Ear(edge, programme).reach(20)
    for node in (relay, edge):
        assert node.counted("refused_total") == 0
        assert node.stream().snapshot()["counters"]["lost_frames_total"] == 0
    told = [[max(1, version - 1), version] for version in versions]
    assert relay.seen()["upstream"]["versions"] == told[0]
    assert edge.seen()["upstream"]["versions"] == told[1]


@pytest.mark.parametrize("versions", [(1, 3), (3, 1), (4, 2), (2, 4), (9, 2)])
def test_a_version_two_away_is_refused_with_the_numbers(
    make_node: Callable[..., Node], versions: tuple[int, int]
) -> None:
    """Not lost, not up: version; and up as soon as it speaks a neighbouring one."""
    origin = make_node(version=versions[0])
    Programme(origin).push(5)
    edge = make_node(origin.address, version=versions[1], bind=None)
    until(lambda: edge.upstream() == "version")
    assert edge.seen()["upstream"]["versions"] == [max(1, versions[0] - 1), versions[0]]
    assert edge.counted("refused")["version"] > 0
    assert origin.backbone._core is not None
    origin.backbone._core.fault(version=versions[1])
    until(lambda: edge.upstream() == "up")


def test_what_a_later_version_appends_is_skipped(make_node: Callable[..., Node]) -> None:
    """Beacons, pages and runs that are longer than we know them, as version 3 may send them."""
    tail = b"what version 3 knows"
    with HandParent(entry("/live", 1000), version=2, more_versions=1, tail=tail) as parent:
        edge = make_node(parent.address, bind=None, prefetch=["/live"])
        until(lambda: edge.upstream() == "up")
        assert edge.seen()["upstream"]["versions"] == [2, 3]
        until(lambda: edge.engine.find("/live") and parent.wants("/live"))
        parent.publish(parent.run("/live", 2000, 5))
        until(lambda: edge.link()["told_epoch"] == 2000)
        assert edge.counted("refused_total") == 0
        assert {request[9] for request in parent.asked} == {2}


def test_a_request_is_made_in_the_version_of_an_older_parent(
    make_node: Callable[..., Node],
) -> None:
    """Its beacon says nothing of others: that is version 1."""
    with HandParent(entry("/live", 1000)) as parent:
        edge = make_node(parent.address, bind=None, prefetch=["/live"])
        until(lambda: any(request[:1] == b"J" for request in parent.asked))
        assert {request[9] for request in parent.asked} == {1}
        assert edge.seen()["upstream"]["versions"] == [1, 1]
