"""Which streams a node has while its upstreams come, go, restart and contradict each other."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from tools.backbones import Ear, Node, Programme, until
from tools.parents import HandParent, beacon_entry, entry

from relay.recorder import EPOCH_BEGUN, EPOCH_ENDED, KINDS, Record

# --- whose directory is waited for ---------------------------------------------------------------


def test_an_upstream_that_never_knows_its_directory_does_not_silence_the_others(
    make_node: Callable[..., Node],
) -> None:
    """It is waited for 2 s after another has told; then children are told what there is."""
    origin = make_node()
    programme = Programme(origin)
    programme.push(20)
    with HandParent(whole=False) as stuck:
        relay = make_node([origin.address, stuck.address])
        edge = make_node(relay.address, bind=None, prefetch=["/live"])
        until(lambda: [up["state"] for up in relay.seen()["upstreams"]] == ["up", "up"])
        until(lambda: relay.seen()["upstreams"][0]["directory_known"])
        begin = time.monotonic()
        assert not relay.seen()["upstream"]["directory_known"]
        until(lambda: relay.seen()["upstream"]["directory_known"], 8.0)
        print(f"\nwaited {time.monotonic() - begin:.1f} s for the one that never tells")
        Ear(edge, programme).reach(20)
        assert [up["directory_known"] for up in relay.seen()["upstreams"]] == [True, False]


# --- an origin that restarts ---------------------------------------------------------------------


def test_a_restarted_origin_finds_its_listeners_where_they_were(
    make_node: Callable[..., Node],
) -> None:
    """Its directory is empty at first: the stream stays, and goes on with the next epoch."""
    origin = make_node()
    programme = Programme(origin)
    programme.push(20)
    relay = make_node(origin.address)
    edge = make_node(relay.address, bind=None, prefetch=["/live"])
    Ear(edge, programme).reach(20)
    streams = [node.stream() for node in (relay, edge)]
    readers = [stream.reader() for stream in streams]
    origin.cut()
    again = make_node(bind=origin.address)
    until(lambda: relay.counted("switches_total") == 1 and relay.upstream() == "up")
    until(lambda: relay.seen()["upstreams"][0]["directory_known"])
    until(lambda: not edge.link()["told_up"])
    time.sleep(0.3)
    assert [node.engine.find("/live") is not None for node in (relay, edge)] == [True, True]
    programme = Programme(again)
    programme.push(20)
    for stream in streams:
        until(lambda s=stream: s.snapshot()["epoch"] == programme.epoch)
    Ear(edge, programme).reach(20)
    assert len(readers) == 2


def test_what_a_restarted_origin_never_lists_again_leaves_after_the_linger(
    make_node: Callable[..., Node],
) -> None:
    """Not before, and not never."""
    origin = make_node()
    Programme(origin).push(20)
    edge = make_node(origin.address, bind=None, prefetch=["/live"], settings={"linger_s": 1})
    edge.stream()
    origin.cut()
    again = make_node(bind=origin.address)
    until(lambda: edge.counted("switches_total") == 1 and edge.upstream() == "up")
    until(lambda: edge.seen()["upstreams"][0]["directory_known"])
    begin = time.monotonic()
    until(lambda: edge.engine.find("/live") is None)
    print(f"\nleft {time.monotonic() - begin:.1f} s after the directory without it")
    assert time.monotonic() - begin > 0.5
    until(lambda: again.seen()["subscriptions"] == 0)
    programme = Programme(again)
    programme.push(20)
    Ear(edge, programme).reach(20)


def test_a_stream_that_an_origin_removes_leaves_at_once(make_node: Callable[..., Node]) -> None:
    """It has lingered there: the process that had it says that it is no more."""
    origin = make_node()
    programme = Programme(origin)
    programme.push(20)
    edge = make_node(origin.address, bind=None, prefetch=["/live"])
    Ear(edge, programme).reach(20)
    origin.engine.remove_stream(programme.stream)
    until(lambda: edge.engine.find("/live") is None, 5.0)


# --- more streams than there is room for ---------------------------------------------------------


def test_a_stream_that_had_no_room_comes_when_there_is(make_node: Callable[..., Node]) -> None:
    """Its upstream tells of it once, when it begins: it is asked again."""
    origin = make_node()
    programmes = [Programme(origin, f"/{number}") for number in range(12)]
    for programme in programmes:
        programme.push(1)
    edge = make_node(origin.address, bind=None, streams_max=8)
    until(lambda: len(edge.engine.streams()) == 8)
    until(lambda: edge.counted("refused")["full"] > 0)
    for programme in programmes[:8]:
        origin.engine.remove_stream(programme.stream)
    until(lambda: len(edge.engine.streams()) == 4)
    assert {stream.mount for stream in edge.engine.streams()} == {f"/{n}" for n in range(8, 12)}


# --- what is asked for anew ----------------------------------------------------------------------


def test_a_page_on_its_way_does_not_undo_that_all_is_asked_for_anew(
    make_node: Callable[..., Node],
) -> None:
    """It tells of changes since a version; what was taken off this node meanwhile is none of them,
    and comes back with the whole directory."""
    with HandParent(entry("/live", 1000)) as parent:
        edge = make_node(parent.address, bind=None)
        live = until(lambda: edge.engine.find("/live"))
        until(lambda: edge.seen()["upstreams"][0]["directory_known"])
        parent.answers.clear()
        asked = len(parent.asked)
        parent.entries.append(entry("/other", 1000, version=6))
        parent.directory_version = 6
        until(lambda: len(parent.asked) > asked)
        edge.engine.remove_stream(live)
        until(lambda: not edge.link())
        parent.answers.set()
        until(lambda: edge.engine.find("/other"))
        until(lambda: edge.engine.find("/live"))


# --- a mount that is here and above --------------------------------------------------------------


def test_a_newer_epoch_from_above_is_taken_when_the_local_source_has_left(
    make_node: Callable[..., Node],
) -> None:
    """It was told of while the local one had the mount; its header lines come with it."""
    origin = make_node()
    edge = make_node(origin.address, bind=None, prefetch=["/live"])
    until(lambda: edge.upstream() == "up")
    mine = Programme(edge)
    mine.push(5)
    time.sleep(0.01)
    theirs = Programme(origin)
    theirs.push(20)
    until(lambda: edge.counted("mount_conflicts_total") == 1)
    origin.stream().set_info(b"Content-Type: audio/aac\r\n")
    theirs.epoch = theirs.stream.begin()
    theirs.sent = 0
    theirs.push(20)
    time.sleep(0.3)
    assert edge.stream().snapshot()["epoch"] == mine.epoch
    mine.stream.end()
    mine.stream.unclaim()
    until(lambda: edge.stream().snapshot()["epoch"] == theirs.epoch)
    Ear(edge, theirs).reach(20)
    until(lambda: edge.stream().info() == b"Content-Type: audio/aac\r\n")


def test_no_subscription_outlives_its_stream(make_node: Callable[..., Node]) -> None:
    """A stream that is replaced by a local one within a turn is not sent from above any more."""
    origin = make_node()
    Programme(origin).push(20)
    edge = make_node(origin.address, bind=None)
    until(lambda: edge.engine.find("/live"))
    first = edge.engine.find("/live")
    assert first is not None
    reader = first.reader()
    until(lambda: origin.seen()["subscriptions"] == 1)
    edge.engine.remove_stream(first)
    Programme(edge).push(5)
    until(lambda: origin.seen()["subscriptions"] == 0)
    del reader


# --- parents that contradict each other ----------------------------------------------------------


@pytest.mark.parametrize("redundancy", ["merge", "standby"])
def test_an_end_that_one_parent_tells_early_ends_nothing(
    make_node: Callable[..., Node], redundancy: str
) -> None:
    """The other goes on, so the epoch does; when both have told its end, it is over."""
    origin = make_node()
    programme = Programme(origin)
    programme.push(50)
    origin_id = int(origin.backbone.snapshot()["node_id"][16:], 16)
    with HandParent(entry("/live", programme.epoch, origin=origin_id)) as early:
        edge = make_node(
            [origin.address, early.address], bind=None, prefetch=["/live"], redundancy=redundancy
        )
        until(lambda: [up["state"] for up in edge.seen()["upstreams"]] == ["up", "up"])
        ear = Ear(edge, programme)
        ear.reach(50)
        programme.run()
        until(lambda: early.wants("/live") or redundancy == "standby")
        ear.reach(100)
        for _ in range(5):
            early.publish(early.run("/live", programme.epoch, 100, end=True, origin=origin_id))
            ear.reach(programme.sent + 20)
            assert ear.stream.snapshot()["source_up"]
        assert ear.stream.snapshot()["counters"]["lost_frames_total"] == 0
        programme.stop()
        programme.stream.end()
        end = early.run("/live", programme.epoch, programme.sent, end=True, origin=origin_id)
        early.entries = [entry("/live", programme.epoch, origin=origin_id, version=6, up=False)]
        early.directory_version = 6
        early.publish(end)
        until(lambda: not ear.stream.snapshot()["source_up"], 5.0)
        ear.reach(programme.sent)
        assert ear.heard == programme.sent


@pytest.mark.parametrize("end", [False, True])
def test_what_a_beacon_tells_of_a_rival_in_the_same_epoch_is_passed_over(
    make_node: Callable[..., Node], end: bool
) -> None:
    """Two sources began in the same millisecond. Beacons name no origin, the directory does: how
    far the other one has come, or that it is over, says nothing of this one."""
    origin = make_node()
    programme = Programme(origin)
    programme.push(50)
    with HandParent(entry("/live", programme.epoch)) as rival:
        edge = make_node(
            [origin.address, rival.address], bind=None, prefetch=["/live"], redundancy="merge"
        )
        ear = Ear(edge, programme)
        ear.reach(50)
        until(lambda: rival.wants("/live"))
        rival.beacon_entries = [beacon_entry("/live", programme.epoch, 10_000, end=end)]
        heard = edge.counted("beacons_received_total")
        programme.run()
        until(lambda: edge.counted("beacons_received_total") >= heard + 100)
        assert edge.link()["target_sequence"] <= programme.sent
        ear.reach(programme.sent)
        counters = ear.stream.snapshot()["counters"]
        assert ear.stream.snapshot()["source_up"]
        assert (counters["lost_frames_total"], counters["epochs_total"]) == (0, 1)
        programme.stop()


def test_an_epoch_that_goes_on_after_its_end_is_told_in_the_recorder(
    make_node: Callable[..., Node],
) -> None:
    """Its begin, its end, and that it goes on: with the epoch, by the parent that has more."""
    origin = make_node()
    programme = Programme(origin)
    programme.push(50)
    edge = make_node(origin.address, bind=None, prefetch=["/live"])
    ear = Ear(edge, programme)
    ear.reach(50)
    programme.stream.end()
    until(lambda: not ear.stream.snapshot()["source_up"], 5.0)
    state = programme.stream.snapshot()
    programme.stream.begin(
        epoch=programme.epoch,
        sequence=state["head_sequence"],
        position=state["head_position"],
        media_us=state["head_media_us"],
    )
    programme.push(20)
    until(lambda: ear.stream.snapshot()["head_sequence"] == 70, 5.0)
    assert ear.stream.snapshot()["source_up"]
    records = sorted(Record(*one) for one in edge.backbone.recorded([]))
    told = [
        (KINDS[one.kind].name, one.reason_name, one.a, one.parent)
        for one in records
        if one.kind in (EPOCH_BEGUN, EPOCH_ENDED)
    ]
    assert told == [
        ("epoch_begun", "above", programme.epoch, 0),
        ("epoch_ended", "above", programme.epoch, 0),
        ("epoch_begun", "above", programme.epoch, 0),
    ]
