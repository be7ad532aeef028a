"""What the engine says of its own service, beside what listeners at real sockets see."""

from __future__ import annotations

import statistics
import time
from typing import Any

from tools.engines import Programme, body_of, dial, get, read_until, running, slow
from tools.lateness import Heard, LatenessChecker, percentile
from tools.listeners import Crowd, Listener
from tools.nodes import NodeProcess, Nodes, wait_known, wait_until
from tools.sources import LiveSource, Source

import relay._core as core
from relay.status import lines, status

PACE_MS = 200


def measured(engine: Any, name: str) -> dict[str, Any]:
    """One kind of what the engine has seen so far."""
    return dict(engine.snapshot()["measured"][name])


def oldest_ms(who: Listener) -> list[float]:
    """Lateness of the oldest frame of each arrival, without the burst, in ms."""
    assert isinstance(who.checker, LatenessChecker)
    oldest: dict[float, Heard] = {}
    for one in who.checker.heard:
        oldest.setdefault(one.at_s, one)
    return [(one.at_s - one.made_s) * 1000 for one in oldest.values()][1:]


def test_lateness_and_gap_agree_with_what_listeners_measure() -> None:
    """Pace 200 ms: the oldest frame of a send waited for nearly a pace, inside as outside."""
    with running(config={"pace_ms": PACE_MS}) as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push_seconds(1)
        for _ in range(40):
            crowd.join(address, checker=LatenessChecker(), keep=False)
        crowd.wait_audio()
        live.push_live(4.0)
        crowd.wait_audio(len(live.audio) - 1000)
        late_ms = [ms for who in crowd.all for ms in oldest_ms(who)]
        gaps_ms = [
            (later.at_s - earlier.at_s) * 1000
            for who in crowd.all
            for earlier, later in zip(who.arrivals, who.arrivals[1:], strict=False)
        ]
        # booked after the send, which the listener may have read by then
        wait_until(lambda: measured(engine, "lateness")["total"] >= len(late_ms))
        wait_until(lambda: measured(engine, "gap")["total"] >= len(gaps_ms))
        told = engine.snapshot()["measured"]
    lateness, gap = told["lateness"], told["gap"]
    assert lateness["total"] >= len(late_ms) > 40 * 10  # a late reader sees two sends as one
    assert gap["total"] >= len(gaps_ms)
    # A mark may be 10 ms early and a quantile an eighth too high; the reader outside may be late.
    mean_ms, p50_ms = lateness["sum_us"] / lateness["total"] / 1000, lateness["p50_us"] / 1000
    outside_ms, outside_p50_ms = statistics.fmean(late_ms), percentile(late_ms, 50)
    assert min(50.0, outside_ms / 2) <= mean_ms <= outside_ms + 15
    assert min(50.0, outside_p50_ms / 2) <= p50_ms <= outside_p50_ms * 1.13 + 15
    assert percentile(gaps_ms, 50) / 2 <= gap["p50_us"] / 1000 <= 2 * percentile(gaps_ms, 50)
    assert gap["max_us"] / 1000 >= PACE_MS - 20


def test_a_burst_is_no_lateness() -> None:
    """What was old before the listener came is not counted, in however many sends it goes out."""
    with running(config={"burst_ms": 10_000}) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        live.push_seconds(8)
        with slow(address) as sock:
            body = body_of(sock)
            read_until(sock, len(live.audio), body)
            told = engine.snapshot()
        assert told["sends_total"] > 1
        assert told["measured"]["join"]["total"] == 1
        assert told["measured"]["gap"]["total"] > 0
        assert told["measured"]["lateness"]["total"] == 0


def test_a_listener_that_stops_reading_shows_as_gap_and_lateness() -> None:
    """Two seconds of its own making are two seconds that it did not hear: both tell them."""
    config = {"lag_ms_max": 60_000, "ring_s": 60}
    with running(config=config) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        begin_s = time.monotonic()
        live.push(5)
        with slow(address) as sock:
            body = body_of(sock)
            while not engine.snapshot()["short_writes_total"]:
                live.push_seconds(2)
                time.sleep(0.05)
            live.push(5)
            time.sleep(2.1)
            read_until(sock, len(live.audio), body)
            gap, lateness = measured(engine, "gap"), measured(engine, "lateness")
            all_us = (time.monotonic() - begin_s) * 1e6
    assert 2_000_000 <= gap["max_us"] < all_us
    assert gap["total"] > gap["below_total"][10]  # 1.05 s
    assert 2_000_000 <= lateness["max_us"] < all_us + 10_000


def test_join_time_holds_the_wait_for_a_stream() -> None:
    """From accept to audio, also for who came before there was any."""
    with running(join_wait_ms=60_000) as (engine, address), dial(address) as early:
        live = Programme(engine, begin=False)
        early.sendall(get())
        wait_until(lambda: engine.snapshot()["listeners"] == 1)
        time.sleep(0.5)
        live.stream.begin()
        live.push(20)
        read_until(early, len(live.audio), body_of(early))
        with dial(address) as late:
            late.sendall(get())
            read_until(late, len(live.audio), body_of(late))
            # booked after the send, which the listener may have read by then
            wait_until(lambda: measured(engine, "join")["total"] == 2)
            told = measured(engine, "join")
    assert told["max_us"] >= 500_000


def test_each_skip_is_measured_in_media_time() -> None:
    """As many as are counted, and as long as what the listener missed."""
    config = {"burst_ms": 500, "lag_ms_max": 2000, "ring_s": 30}
    with running(config=config) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        live.push_seconds(0.6)
        with slow(address) as sock:
            body = body_of(sock)
            live.push_seconds(25)
            # the second one since then is of a turn that saw all of the lag: now it is to skip
            blocked = engine.snapshot()["short_writes_total"]
            wait_until(lambda: engine.snapshot()["short_writes_total"] >= blocked + 2, 15.0)
            sock.settimeout(20.0)
            while not body.endswith(live.audio[-64:]):
                part = sock.recv(65_536)
                assert part, "it was ended"
                body += part
            wait_until(lambda: measured(engine, "skip")["total"] > 0)
            told = engine.snapshot()
            skip = told["measured"]["skip"]
    assert skip["total"] == told["skips_total"] == 1
    missed = len(live.audio) - live.audio.find(body[:64]) - len(body)
    assert abs(skip["sum_us"] - missed * 8 / 0.32) < 2 * live.duration_us


def test_shards_are_added_up_and_each_tells_its_busy_share() -> None:
    """Two threads: all joins in one histogram, one present share for each shard."""
    with running(threads=2) as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push(20)
        crowd.join_many(60, address)
        crowd.wait_audio(len(live.audio))
        wait_until(lambda: measured(engine, "busy")["total"] >= 4)
        told = engine.snapshot()
    assert [shard["listeners"] > 0 for shard in told["shards"]] == [True, True]
    assert told["measured"]["join"]["total"] == 60
    assert all(0 <= shard["busy_percent"] <= 100 for shard in told["shards"])
    assert "busy_percent" not in told


def lateness_seen(node: NodeProcess) -> bool:
    """Whether a node has booked a dozen sends beyond the burst."""
    return bool(node.json("/api/v1/status")["measured"]["lateness"]["total"] >= 12)


def test_each_node_tells_its_own_lateness(nodes: Nodes, crowd: Crowd) -> None:
    """Encoder, origin, relay: frames get their time in whichever ring they arrive."""
    origin, edge = nodes.row(2)
    with LiveSource(Source(origin.address)):
        wait_known(edge, "/live")
        for node in (origin, edge):
            crowd.join(node.address)
        wait_until(lambda: lateness_seen(origin) and lateness_seen(edge), 15.0, every_s=0.2)
        for node in (origin, edge):
            told = node.status()["measured"]
            assert told["join"]["total"] == 1
            assert 0 < told["lateness"]["p50_ms"] <= told["lateness"]["max_ms"]
            assert told["gap"]["total"] > 0
            assert b"relay_lateness_seconds_bucket" in node.get("/metrics").body
            assert any(line.startswith("lateness  p50 ") for line in lines(status(node.url())))


def test_an_engine_without_listeners_has_seen_nothing() -> None:
    """Zeros, and no division by them."""
    told = core.Engine(listeners_max=10).snapshot()["measured"]
    assert set(told) == {"join", "lateness", "gap", "skip", "busy"}
    assert all(seen["total"] == 0 and not any(seen["below_total"]) for seen in told.values())
