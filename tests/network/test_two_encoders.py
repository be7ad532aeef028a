"""Two origins, an Icecast encoder at each, one mount: one encoder dies, and listeners stay.

Rules of this room
  1. The encoders are `relay push` processes that send recordings as they are, so that each frame
     that a listener hears tells which encoder it came from.
  2. An Icecast encoder cuts no frames for others: each begins an epoch of its own, the newest wins,
     and the other is shadowed until nothing comes of the winner: then it goes on above it. What was
     in flight at the break is not heard.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.fleet import last_of
from tools.listeners import Crowd, Listener
from tools.nodes import PASSWORD, NodeProcess, Nodes, child_env, wait_known, wait_until
from tools.sources import FrameChecker, FrameMaker

MOUNT = "/both"
APART = 100_000  # sequences from one recording to the next
RECORDED_FRAMES = 4000  # 104 s
ANEW_S = 4.0  # silence, wish, tick and join are 2 s; twice that on a busy machine

Push = Callable[[int, NodeProcess], "subprocess.Popen[bytes]"]


@pytest.fixture
def push(tmp_path: Path) -> Iterator[Push]:
    """Begin to push recording `number` to a node; all of it ends with the test."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(number: int, node: NodeProcess) -> subprocess.Popen[bytes]:
        maker = FrameMaker(64)
        maker.sequence = number * APART
        recording = tmp_path / f"{number}.mp3"
        recording.write_bytes(b"".join(maker.frames(RECORDED_FRAMES)))
        command = [sys.executable, "-P", "-m", "relay", "push", "--quiet"]
        encoder = subprocess.Popen(
            [*command, str(recording), node.url(MOUNT)],
            env=child_env(RELAY_SOURCE_PASSWORD=PASSWORD),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        running.append(encoder)
        return encoder

    yield begin
    for encoder in running:
        encoder.kill()
        encoder.wait()


def stream_at(node: NodeProcess) -> dict[str, Any]:
    """What a node says of the mount."""
    told = node.json("/api/v1/status")["streams"]
    found: dict[str, Any] = next(stream for stream in told if stream["mount"] == MOUNT)
    return found


def breaks(node: NodeProcess, since_ms: float) -> list[dict[str, Any]]:
    """What a node tells of breaks of the mount that were over after that time."""
    return [gap for gap in stream_at(node)["gaps"] if gap["at_ms"] + gap["duration_ms"] >= since_ms]


def wait_from(listeners: list[Listener], number: int) -> None:
    """Wait until each listener hears recording `number`."""
    wait_until(
        lambda: all(last_of(one) // APART == number for one in listeners), 20.0,
        what=f"recording {number} at {listeners}",
    )  # fmt: skip


@pytest.mark.parametrize("dies", ["encoder", "origin"])
def test_the_newer_of_two_encoders_dies_and_the_older_is_heard(
    nodes: Nodes, crowd: Crowd, push: Push, dies: str
) -> None:
    """Two hops away: listeners stay, and hear the one that had lost, which goes on in a new epoch;
    both breaks are counted, and nothing is damaged or heard twice."""
    first, second = nodes.start(), nodes.start()
    both = [first.backbone, second.backbone]
    relays = [nodes.start(upstreams=both) for _ in range(2)]
    edge = nodes.start(upstreams=[relay.backbone for relay in relays])
    push(1, first)
    wait_known(edge, MOUNT, timeout_s=20.0)
    newer = push(0, second)
    wait_known(second, MOUNT, timeout_s=20.0)
    for relay in relays:
        wait_until(
            lambda r=relay: r.counters()["backbone_shadowed_total"], 10.0,
            what="the newer one's epoch at a relay",
        )  # fmt: skip
    listeners = crowd.join_many(5, edge.address, MOUNT)
    wait_from(listeners, 0)
    lost = stream_at(edge)["epoch"]
    begin_s, wall_ms = time.monotonic(), time.time() * 1000
    if dies == "encoder":
        newer.kill()
    else:
        second.kill9()
    wait_from(listeners, 1)
    silent_s = time.monotonic() - begin_s
    print(f"\nthe other encoder after {silent_s:.2f} s")
    assert silent_s < ANEW_S
    assert len(crowd.alive) == len(listeners)
    assert stream_at(edge)["counters"]["epochs_total"] >= 2
    assert stream_at(first)["counters"]["epochs_total"] == 2
    assert stream_at(edge)["epoch"] == stream_at(first)["epoch"] > lost
    told = [relay.counters() for relay in relays]
    assert sum(one["backbone_wishes_asked_total"] for one in told) > 0
    assert first.output().count('"event": "epoch_anew"') == 1
    wait_until(lambda: breaks(edge, wall_ms), 20.0, what="the break in the edge's book")
    (told_break,) = breaks(edge, wall_ms)
    print(told_break)
    assert (told_break["why"], told_break["listeners"]) == ("a new epoch", len(listeners))
    assert told_break["cause"] in {"source", "hop"}
    # from a look at the heads, twice a second, that has seen none move since
    assert 0.25 <= told_break["duration_ms"] / 1000 <= silent_s + 0.5
    for listener in listeners:
        checker = listener.checker
        assert isinstance(checker, FrameChecker)
        assert (checker.repeated, checker.late, checker.damaged_bytes) == (0, 0, 0), checker


@pytest.mark.soak
def test_an_origin_dies_and_its_encoder_goes_to_the_other(
    nodes: Nodes, crowd: Crowd, push: Push
) -> None:
    """kill -9 of the origin: listeners of the edge stay, and hear the encoder from the second."""
    first, second = nodes.start(), nodes.start()
    edge = nodes.start(upstreams=[first.backbone, second.backbone])
    push(0, first)
    wait_known(edge, MOUNT, timeout_s=20.0)
    listeners = crowd.join_many(5, edge.address, MOUNT)
    wait_from(listeners, 0)
    first.kill9()
    push(1, second)
    wait_from(listeners, 1)
    assert len(crowd.alive) == len(listeners)
    assert stream_at(edge)["counters"]["epochs_total"] == 2
    for listener in listeners:
        checker = listener.checker
        assert isinstance(checker, FrameChecker)
        assert (checker.repeated, checker.late, checker.damaged_bytes) == (0, 0, 0), checker
