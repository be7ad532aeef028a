"""Two origins of one programme: one dies, and no listener behind both misses or repeats a frame.

Rules of this room
  1. Two origins, two relays with both as upstreams, an edge with both relays: five `relay serve`
     processes, fed by the `relay push` command or by the library; every frame of each listener at
     the edge is checked.
  2. Phases are random, from a seed that is printed; RELAY_TEST_SEED=… plays the same again.
  3. Timings decide nothing: each wait has a bound, and is for something that must come.
"""

from __future__ import annotations

import os
import random
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tools.listeners import Crowd, Listener
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_known, wait_until
from tools.programs import Program
from tools.proxy import Proxy
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source
from tools.speaker import Speaker

LISTENERS = 6
NEWS_FRAMES = 20
RECOVERY_S = 15.0


class Pair:
    """Two origins, what is behind them, and who listens."""

    def __init__(self, nodes: Nodes, crowd: Crowd, stack: ExitStack) -> None:
        self.nodes, self.crowd, self.stack = nodes, crowd, stack
        self.origins = [nodes.start("--name", name) for name in ("origin-a", "origin-b")]
        self.edge = self.origins[0]
        self.listeners: list[Listener] = []

    @property
    def urls(self) -> list[str]:
        """Where a source sends."""
        return [f"http://source:{PASSWORD}@{origin.http}/live" for origin in self.origins]

    def build(self, redundancy: str) -> None:
        """Start the relays and the edge."""
        both = [origin.backbone for origin in self.origins]
        relays = [
            self.nodes.start("--name", name, "--redundancy", redundancy, upstreams=both)
            for name in ("left", "right")
        ]
        self.edge = self.nodes.start(
            "--name", "edge", "--redundancy", redundancy, upstreams=[r.backbone for r in relays]
        )

    def speak(self) -> Speaker:
        """Feed both with the library."""
        speaker = Speaker(self.urls).start()
        self.stack.callback(speaker.stop)
        return speaker

    def push(self, path: Path) -> Program:
        """Feed both with the command."""
        command = [sys.executable, "-P", "-m", "relay", "push", str(path), *self.urls]
        program = Program(command)
        self.stack.callback(program.close)
        return program

    def listen(self) -> None:
        """Let the listeners join the edge, and wait until all hear."""
        wait_known(self.edge, "/live", timeout_s=10.0)
        for origin in self.origins:
            self.wait_fed(origin)
        self.listeners = self.crowd.join_many(LISTENERS, self.edge.address, "/live")
        self.wait_news("the first audio")

    def wait_fed(self, origin: NodeProcess) -> None:
        """Wait until this origin has the source, and frames of it."""

        def fed() -> bool:
            told = origin.json("/api/v1/status")["streams"]
            return any(s["state"] == "live" and s["head_sequence"] for s in told)

        wait_until(fed, RECOVERY_S, what=f"the source at {origin!r}", every_s=0.05)

    def wait_news(self, what: str) -> None:
        """Wait until each listener has heard frames that come after what any has heard so far."""
        wanted = max(map(last_of, self.listeners)) + NEWS_FRAMES

        def all_have() -> bool:
            return all(last_of(one) >= wanted or not one.alive for one in self.listeners)

        wait_until(all_have, RECOVERY_S, what=f"{what}: frame {wanted} at each listener")

    def faults(self) -> list[str]:
        """A line for each listener that was thrown off, or did not hear all frames once."""
        wrong = []
        for number, listener in enumerate(self.listeners):
            checker = listener.checker
            assert checker is not None
            if not listener.alive or not checker.clean:
                wrong.append(
                    f"{number}: {listener!r} missing {checker.missing}, repeated "
                    f"{checker.repeated}, late {checker.late}, damaged {checker.damaged_bytes} B"
                )
        return wrong

    def stream(self, node: NodeProcess) -> dict[str, Any]:
        """What the node tells of /live."""
        told = node.json("/api/v1/status")["streams"]
        found: dict[str, Any] = next(s for s in told if s["mount"] == "/live")
        return found

    def kill_in_turn(self, kills: int, dice: random.Random) -> None:
        """Kill an origin, hear on, bring it back, and let it take the stream again."""
        epoch = self.stream(self.origins[0])["epoch"]
        first = dice.randrange(2)
        for number in range(kills):
            victim = self.origins[(first + number) % 2]
            until_s = time.monotonic() + dice.uniform(0.0, 0.8)
            wait_until(lambda until_s=until_s: time.monotonic() >= until_s, 2.0)
            victim.kill9()
            self.wait_news(f"after kill {number + 1}")
            victim.restart()
            self.wait_fed(victim)
            assert self.stream(victim)["epoch"] == epoch
            self.wait_news(f"after restart {number + 1}")
            assert not self.faults(), f"kill {number + 1}\n" + "\n".join(self.faults())
        frames = sum(one.checker.frames for one in self.listeners if one.checker)
        print(f"{kills} kills; {frames} frames checked at {len(self.listeners)} listeners")


def last_of(listener: Listener) -> int:
    """The sequence that the listener heard last; -1 before the first."""
    last = listener.checker.last if isinstance(listener.checker, FrameChecker) else None
    return -1 if last is None else last


@pytest.fixture
def pair(nodes: Nodes, crowd: Crowd) -> Iterator[Pair]:
    """Two origins, and what may be built behind them; the source ends with the test."""
    with ExitStack() as stack:
        yield Pair(nodes, crowd, stack)


@pytest.fixture
def dice() -> random.Random:
    """Random phases, the same for the same RELAY_TEST_SEED."""
    seed = int(os.environ.get("RELAY_TEST_SEED", random.randrange(1 << 32)))
    print(f"\nRELAY_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """Ten minutes of frames that can be checked, as a file."""
    path = tmp_path / "talk.mp3"
    path.write_bytes(FrameMaker().seconds(600))
    return path


def test_kill_9_of_either_origin_fed_by_the_library_loses_no_frame_in_merge(
    pair: Pair, dice: random.Random
) -> None:
    """Each once, at random phases; both take the stream again: 0 missing, 0 repeated."""
    pair.build("merge")
    pair.speak()
    pair.listen()
    pair.kill_in_turn(2, dice)


def test_kill_9_of_either_origin_fed_by_relay_push_loses_no_frame_in_standby(
    pair: Pair, dice: random.Random, talk: Path
) -> None:
    """The same with the command, which reads a file."""
    pair.build("standby")
    program = pair.push(talk)
    pair.listen()
    pair.kill_in_turn(2, dice)
    assert program.alive, program.errors


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["push", "library"])
@pytest.mark.parametrize("redundancy", ["standby", "merge"])
def test_kill_9_of_either_origin_loses_no_frame_in_20_kills(
    pair: Pair, dice: random.Random, talk: Path, redundancy: str, how: str
) -> None:
    """Twenty times, in both modes, with both ways to feed."""
    pair.build(redundancy)
    if how == "push":
        pair.push(talk)
    else:
        pair.speak()
    pair.listen()
    pair.kill_in_turn(20, dice)


def metrics(node: NodeProcess) -> str:
    """What /metrics says."""
    with urllib.request.urlopen(node.url("/metrics"), timeout=5) as reply:
        return str(reply.read(), "utf-8")


def test_linked_origin_takes_the_source_once_its_upstream_is_lost(pair: Pair) -> None:
    """The second origin has the first as upstream, and listeners: it refuses the same run while it
    is fed, takes it when the first dies, and its listeners and the edge's miss nothing."""
    first = pair.origins[0]
    second = pair.nodes.start("--name", "linked", upstreams=[first.backbone])
    pair.origins[1].kill9()
    pair.origins[1] = second
    both = [first.backbone, second.backbone]
    pair.edge = pair.nodes.start("--name", "edge", upstreams=both)
    proxy = pair.stack.enter_context(Proxy(second.address))
    proxy.drop()  # the source comes to it once it is fed from above, not before
    speaker = Speaker([pair.urls[0], pair.urls[1].replace(second.http, f"127.0.0.1:{proxy.port}")])
    pair.stack.callback(speaker.start().stop)
    for node in (second, pair.edge):
        wait_known(node, "/live", timeout_s=10.0)
        pair.listeners += pair.crowd.join_many(LISTENERS, node.address, "/live")
    pair.wait_news("the first audio")
    assert pair.stream(second)["role"] == "edge"
    proxy.heal()
    wait_until(lambda: "source_refused_403_total 0" not in metrics(second), 10)
    assert pair.stream(second)["role"] == "edge"
    epoch = pair.stream(second)["epoch"]
    first.kill9()
    pair.wait_news("after the first origin's end")
    pair.wait_fed(second)
    told = pair.stream(second)
    assert (told["role"], told["epoch"]) == ("origin", epoch)
    assert not pair.faults(), "\n".join(pair.faults())


def test_encoder_that_fails_over_to_the_second_origin_keeps_its_listeners(pair: Pair) -> None:
    """A plain Icecast source: a new epoch there, on the same connection; what was in flight is
    missing, nothing is repeated or damaged."""
    both = [origin.backbone for origin in pair.origins]
    pair.edge = pair.nodes.start("--name", "edge", upstreams=both)
    maker = FrameMaker()
    with LiveSource(Source(pair.origins[0].address), maker):
        wait_known(pair.edge, "/live")
        pair.listeners = pair.crowd.join_many(LISTENERS, pair.edge.address, "/live")
        pair.wait_news("the first audio")
        pair.wait_fed(pair.origins[0])
        before = pair.stream(pair.origins[0])["epoch"]
        pair.origins[0].kill9()
    with LiveSource(Source(pair.origins[1].address), maker):
        pair.wait_news("from the second origin")
        pair.wait_fed(pair.origins[1])
        epoch = pair.stream(pair.origins[1])["epoch"]
        assert epoch > before
        # what a node tells is up to half a second old
        wait_until(lambda: pair.stream(pair.edge)["epoch"] == epoch, 5.0, what="the new epoch")
        assert pair.stream(pair.edge)["counters"]["epochs_total"] == 2
        missing = {one.checker.missing for one in pair.listeners if one.checker}
        print(f"\nin flight: {missing} frames")
        for one in pair.listeners:
            assert one.alive
            assert one.checker is not None
            assert one.checker.repeated == one.checker.late == 0
            assert one.checker.missing < 200


def test_source_with_the_lower_epoch_is_shadowed_and_told_so(nodes: Nodes, crowd: Crowd) -> None:
    """By its own origin, which has the other as upstream, and by an edge that has both; once. It
    goes on for the listeners of its origin."""
    above = nodes.start("--name", "above")
    below = nodes.start("--name", "below", upstreams=[above.backbone])
    edge = nodes.start("--name", "edge", upstreams=[above.backbone, below.backbone])

    def told(node: NodeProcess) -> dict[str, Any]:
        streams = node.json("/api/v1/status")["streams"]
        return next((s for s in streams if s["mount"] == "/live"), {})

    with LiveSource(Source(below.address)) as loser:
        wait_known(edge, "/live")
        listener = crowd.join(edge.address, "/live")
        wait_until(lambda: told(edge).get("epoch"), RECOVERY_S, what="the first source at the edge")
        assert told(below)["source"] == "live"
        with LiveSource(Source(above.address)):
            wait_until(
                lambda: told(below)["source"] == "shadowed", RECOVERY_S, what="shadowed below"
            )
            wait_until(
                lambda: told(edge)["shadowed"] == [below.backbone], RECOVERY_S, what="at the edge"
            )
            below.wait_event("source_shadowed", mount="/live")
            edge.wait_event("source_shadowed", mount="/live")
            epoch = told(above)["epoch"]
            wait_until(lambda: told(edge)["epoch"] == epoch, RECOVERY_S, what="the winner's epoch")
            assert loser.error is None
            assert listener.alive
            assert told(below)["epoch"] < epoch
            for node in (below, edge):
                assert sum(e.get("event") == "source_shadowed" for e in node.events) == 1
