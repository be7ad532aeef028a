"""Several upstreams on loopback: one dies, lags, lies or returns, and no frame is missed."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
import zmq
from tools.backbones import Ear, Node, Programme, free_port, until
from tools.children import ask

from relay import _core
from relay.backbone import open_backbone
from relay.errors import ConfigError

MODES = ["standby", "merge"]


class Diamond:
    """An origin, two relays, an edge below both; /live runs through it."""

    def __init__(self, make_node: Callable[..., Node], redundancy: str, **more: Any) -> None:
        self.origin = make_node()
        self.relays = [make_node(self.origin.address), make_node(self.origin.address)]
        self.relays.sort(key=lambda node: node.address)  # the first name is preferred
        self.edge = make_node(
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
    make_node: Callable[..., Node], mode: str, victim: str
) -> None:
    """Cut without a word; the edge goes on from the other, whole and in order."""
    diamond = Diamond(make_node, mode)
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


def test_in_standby_one_parent_sends_and_in_merge_both_do(make_node: Callable[..., Node]) -> None:
    """A copy that came second is counted, and nothing else."""
    for mode, many in (("standby", 1), ("merge", 2)):
        diamond = Diamond(make_node, mode)
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
    make_node: Callable[..., Node], mode: str
) -> None:
    """Each third run is lost on the way, whoever sent it."""
    diamond = Diamond(make_node, mode)
    assert diamond.edge.backbone._core
    diamond.edge.backbone._core.fault(drop_every=3)
    at = diamond.programme.sent
    until(lambda: diamond.programme.sent >= at + 150)
    diamond.programme.stop()
    diamond.edge.backbone._core.fault(drop_every=0)
    diamond.settle()
    assert diamond.counters()["lost_frames_total"] == 0


def test_a_parent_that_hears_nothing_itself_is_left(make_node: Callable[..., Node]) -> None:
    """It lives and sends beacons, but its own upstream is gone: the silence of the stream tells."""
    origin = make_node()
    above = [make_node(origin.address), make_node(origin.address)]
    relays = [make_node(node.address) for node in above]
    edge = make_node([relay.address for relay in relays], bind=None, prefetch=["/live"])
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


def test_the_shorter_path_is_taken(make_node: Callable[..., Node]) -> None:
    """Whatever the order of the settings; and children are told how far it is."""
    origin = make_node()
    relay = make_node(origin.address)
    orders = [[origin.address, relay.address], [relay.address, origin.address]]
    edges = [make_node(addresses, prefetch=["/live"]) for addresses in orders]
    for edge in edges:
        until(lambda e=edge: [up["directory_known"] for up in e.seen()["upstreams"]] == [1, 1])
    programme = Programme(origin)
    programme.push(10)
    for addresses, edge in zip(orders, edges, strict=True):
        Ear(edge, programme).reach(10)
        assert addresses[edge.link()["feeding"]] == origin.address
        assert edge.link()["hops"] == 1


def test_goodbye_moves_the_stream_at_once(make_node: Callable[..., Node]) -> None:
    """A planned stop: nobody waits for a silence, and nothing is missed."""
    diamond = Diamond(make_node, "standby", silence_ms=10_000)
    diamond.settle()
    first = diamond.feeder()
    diamond.relays[first].backbone.goodbye()
    until(lambda: diamond.feeder() == 1 - first, 2.0)
    diamond.relays[first].backbone.close()
    time.sleep(0.3)
    diamond.programme.stop()
    diamond.settle()
    assert diamond.counters()["lost_frames_total"] == 0
    assert diamond.edge.counted("moves_total") == 1


@pytest.mark.parametrize("mode", MODES)
def test_of_two_origins_the_higher_epoch_wins(make_node: Callable[..., Node], mode: str) -> None:
    """The other source is shadowed, and counted once; when the winner ends, it does not return."""
    origins = [make_node(), make_node()]
    edge = make_node(
        [origin.address for origin in origins], bind=None, prefetch=["/live"], redundancy=mode
    )
    until(lambda: [up["state"] for up in edge.seen()["upstreams"]] == ["up", "up"])
    older = Programme(origins[0])
    older.push(50)
    Ear(edge, older).reach(50)
    older.run()
    time.sleep(0.01)
    newer = Programme(origins[1])
    assert newer.epoch > older.epoch
    newer.push(50)
    newer.run()
    stream = edge.stream()
    until(lambda: stream.snapshot()["epoch"] == newer.epoch, 8.0)
    ear = Ear(edge, newer)
    ear.reach(100)
    assert edge.counted("shadowed_total") == 1
    newer.stop()
    ear.reach(newer.sent)
    time.sleep(0.3)
    assert stream.snapshot()["epoch"] == newer.epoch
    assert stream.snapshot()["head_sequence"] == newer.sent
    older.stop()


def test_relays_that_name_each_other_feed_no_loop(make_node: Callable[..., Node]) -> None:
    """Cut off from the origin, neither takes the other's copy for news."""
    origin = make_node()
    ports = [free_port(), free_port()]
    addresses = [f"tcp://127.0.0.1:{port}" for port in ports]
    relays = [
        make_node([origin.address, addresses[1 - i]], bind=addresses[i], prefetch=["/live"])
        for i in range(2)
    ]
    programme = Programme(origin)
    programme.push(50)
    ears = [Ear(relay, programme) for relay in relays]
    for ear in ears:
        ear.reach(50)
    until(lambda: all(relay.link()["hops"] == 1 for relay in relays), 30.0)
    origin.cut()
    until(lambda: all(r.seen()["upstreams"][0]["state"] == "lost" for r in relays), 2.0)
    time.sleep(0.5)
    feeding = [relay.link()["feeding"] for relay in relays]
    assert feeding != [1, 1], "each feeds the other"
    again = make_node(bind=origin.address)
    programme = Programme(again)
    programme.push(20)
    for relay in relays:
        until(lambda r=relay: r.stream().snapshot()["epoch"] == programme.epoch, 30.0)
        Ear(relay, programme).reach(20)


def test_children_that_repair_at_once_do_not_starve_the_live_one(
    make_node: Callable[..., Node],
) -> None:
    """Thirty cold edges fetch a whole ring while one listens: it misses nothing, asks nothing."""
    big = {"ring_s": 60, "ring_bytes_max": 16 << 20}
    origin = make_node(settings=big)
    programme = Programme(origin)
    programme.push(5000)
    edge = make_node(origin.address, bind=None, prefetch=["/live"], settings=big)
    ear = Ear(edge, programme)
    ear.reach(5000)
    until(lambda: edge.link()["tail_whole"], 20.0)
    asked = edge.counted("repairs_asked_total")
    programme.run()
    cold = [
        make_node(origin.address, bind=None, prefetch=["/live"], settings=big) for _ in range(30)
    ]
    for other in cold:
        until(lambda o=other: o.link().get("tail_whole") and o.engine.find("/live"), 30.0)
    programme.stop()
    ear.reach(programme.sent)
    assert edge.counted("repairs_asked_total") == asked
    assert edge.counted("upstreams_lost_total") == 0
    assert ear.stream.snapshot()["counters"]["lost_frames_total"] == 0
    for other in cold:
        Ear(other, programme).reach(programme.sent)


def test_answers_of_all_children_together_keep_a_rate(make_node: Callable[..., Node]) -> None:
    """Children that join again and again, and read it all, get 128 MiB/s after the first 32 MiB."""
    origin = make_node()
    Programme(origin).push(9000)
    context = zmq.Context()
    children = [context.socket(zmq.DEALER) for _ in range(4)]
    join = ask(b"J", "/live", struct.pack("<QQ", 0, 60_000_000))
    poller = zmq.Poller()
    for child in children:
        child.connect(origin.backbone.repair_address)
        poller.register(child, zmq.POLLIN)
        child.send(join)
    read_bytes, begin = 0, time.monotonic()
    while time.monotonic() < begin + 1.0:
        for child, _ in poller.poll(100):
            answer = child.recv()
            read_bytes += len(answer)
            if answer[:1] in (b"d", b"l"):
                child.send(join)
    took_s = time.monotonic() - begin
    context.destroy(0)
    deferred = origin.counted("deferred_total")
    print(f"\n{read_bytes >> 20} MiB in {took_s:.2f} s, {deferred} requests deferred")
    assert read_bytes <= (128 * took_s + 32 + 8) * (1 << 20)
    assert read_bytes > 8 << 20


def test_redundancy_has_two_values() -> None:
    """Another word is refused."""
    with pytest.raises(ConfigError, match="standby or merge"):
        open_backbone(
            _core.Engine(streams_max=4), bind=None, upstreams=["tcp://a:1"], redundancy="both"
        )
