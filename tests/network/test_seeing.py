"""What nodes tell of a fault afterwards: one timeline of several, path and lag, gaps with causes.

Rules of this room
  1. Origin, two relays, an edge below both: four `relay serve` processes, one real listener.
  2. Times are compared by order alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from tools.listeners import Crowd
from tools.nodes import PASSWORD, NodeProcess, Nodes, child_env, wait_known, wait_until
from tools.sources import FrameMaker, LiveSource, Source

from relay.recorder import sentence


def stream_of(node: NodeProcess) -> dict[str, Any]:
    """/live as the node tells it."""
    found: dict[str, Any] = node.json("/api/v1/streams")["streams"][0]
    return found


def run_postmortem(*nodes: NodeProcess, words: tuple[str, ...] = ()) -> str:
    """What the command prints."""
    command = [sys.executable, "-P", "-m", "relay", "postmortem", *words]
    done = subprocess.run(
        [*command, *(node.url("") for node in nodes)],
        env=child_env(RELAY_ADMIN_PASSWORD=PASSWORD),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


class House:
    """The nodes under test."""

    def __init__(self, nodes: Nodes) -> None:
        self.origin = nodes.start("--name", "origin")
        self.relays = [
            nodes.start("--name", name, upstreams=[self.origin.backbone]) for name in "ab"
        ]
        above = [relay.backbone for relay in self.relays]
        self.edge = nodes.start("--name", "edge", backbone="none", upstreams=above)

    def feeder(self) -> int | None:
        """Which relay feeds the edge."""
        told = stream_of(self.edge)["upstream"]
        above = [relay.backbone for relay in self.relays]
        return above.index(told) if told in above else None


def test_the_death_of_a_relay_is_one_story_and_a_gap_has_its_cause() -> None:
    """Killed: silence, switch, repair, in this order, by names. A source that returns: one gap."""
    with Nodes() as nodes, Crowd() as crowd:
        house = House(nodes)
        origin, edge = house.origin, house.edge
        maker = FrameMaker(64)
        with LiveSource(Source(origin.address, "/live"), maker):
            wait_known(edge, "/live")
            (listener,) = crowd.join_many(1, edge.address, "/live")
            crowd.wait_audio()
            wait_until(lambda: house.feeder() is not None, 15, what="a feeder", every_s=0.1)
            told = stream_of(edge)
            ids = [node.json("/healthz")["id"][-16:] for node in (origin, edge)]
            assert (told["path"][0], told["path"][-1], told["hops"]) == (*ids, 2)
            assert len(told["path"]) == 3
            assert told["head_position"] > 0
            dead = house.feeder()
            assert dead is not None
            house.relays[dead].kill9()
            wait_until(lambda: house.feeder() == 1 - dead, 15, what="the switch", every_s=0.1)
            at = maker.sequence
            wait_until(lambda: stream_of(edge)["head_sequence"] > at, 20, every_s=0.1)
        assert listener.alive
        tell(house, dead)
        return_of_the_source(house, maker)


def tell(house: House, dead: int) -> None:
    """The timeline: who is away is named, the others tell what they saw of it."""
    told = run_postmortem(house.origin, *house.relays, house.edge)
    lines = told.splitlines()
    gone, other = house.relays[dead], house.relays[1 - dead]
    assert any(gone.http in line and "nothing answers" in line for line in lines), told
    lost = [line for line in lines if f" edge: upstream {gone.backbone} silent for" in line]
    switched = [
        line
        for line in lines
        if " edge /live: " in line and "switched to" in line and other.backbone in line
    ]
    assert len(lost) == len(switched) == 1, told
    assert lines.index(lost[0]) < lines.index(switched[0])
    assert f"switched to {'ab'[1 - dead]} {other.backbone} (2 hops" in switched[0]
    assert any(
        " origin /live: epoch" in line and "begun by a source here" in line for line in lines
    )
    found = json.loads(run_postmortem(house.edge, words=("--json", "--stream", "/live")))
    (edge,) = found["recordings"]
    kinds = [row["kind"] for row in sorted(edge["records"], key=lambda row: row["wall_us"])]
    assert kinds.index("upstream_up") < kinds.index("join_asked") < kinds.index("upstream_lost")
    switch = next(row for row in edge["records"] if row.get("reason") in ("lost", "silent")
                  and row["kind"] == "switch")  # fmt: skip
    assert switch["silence_us"] > 0
    assert "?" not in sentence(switch)
    assert house.edge.get("/api/v1/recorder").status == 401


def return_of_the_source(house: House, maker: FrameMaker) -> None:
    """It was away: one gap at the origin, with its cause; in the API, in /metrics, once in the
    log."""
    origin = house.origin
    with LiveSource(Source(origin.address, "/live"), maker):
        wait_until(lambda: stream_of(origin)["gaps"], 20, what="the gap", every_s=0.1)
        (gap,) = stream_of(origin)["gaps"]
        assert (gap["cause"], gap["hop"], gap["why"]) == ("source", None, "a new epoch")
        assert gap["duration_ms"] > 0
        text = origin.get("/metrics").body.decode()
        assert 'relay_stream_gaps_total{cause="source",mount="/live"} 1.0' in text
        assert "relay_gaps_source_total 1.0" in text
        assert [e["cause"] for e in tuple(origin.events) if e.get("event") == "gap"] == ["source"]
        wait_until(lambda: stream_of(house.edge)["gaps"], 20, what="the edge's gap", every_s=0.1)
        assert stream_of(house.edge)["gaps"][-1]["cause"] == "source"


def test_a_frozen_node_is_its_own_fault_and_a_hop_to_those_below() -> None:
    """The origin stands still for three seconds: it says so itself, the edge names the hop."""
    with Nodes() as nodes, Crowd() as crowd:
        origin, edge = nodes.row(2, "--burst-ms", "500")
        with LiveSource(Source(origin.address, "/live"), FrameMaker(64)):
            wait_known(edge, "/live")
            (listener,) = crowd.join_many(1, edge.address, "/live")
            crowd.wait_audio()
            # two seconds of it: a node looks twice a second, and has seen it flow by then
            wait_until(lambda: (stream_of(edge)["head_sequence"] or 0) > 80, 20, every_s=0.1)
            origin.stop()
            until_s = time.monotonic() + 3.5
            wait_until(lambda: time.monotonic() >= until_s, 10)
            origin.cont()
            for node in (origin, edge):
                wait_until(lambda n=node: stream_of(n)["gaps"], 20, what="a gap", every_s=0.2)
        here, below = stream_of(origin)["gaps"][0], stream_of(edge)["gaps"][0]
        assert here["cause"] == "own overload"
        assert (below["cause"], below["hop"]) == ("hop", origin.backbone)
        assert below["duration_ms"] >= 2500
        assert below["frames"] == stream_of(edge)["counters"]["lost_frames_total"] == 0
        assert listener.alive
