"""Two origins, an Icecast encoder at each, one mount: one encoder dies, and listeners stay.

Rules of this room
  1. The encoders are `relay push` processes that send recordings as they are, so that each frame
     that a listener hears tells which encoder it came from.
  2. An Icecast encoder cuts no frames for others: each begins an epoch of its own, the newest wins,
     and the other is shadowed until it begins anew. What was in flight at the break is not heard.
"""

from __future__ import annotations

import subprocess
import sys
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


def wait_from(listeners: list[Listener], number: int) -> None:
    """Wait until each listener hears recording `number`."""
    wait_until(
        lambda: all(last_of(one) // APART == number for one in listeners), 20.0,
        what=f"recording {number} at {listeners}",
    )  # fmt: skip


def test_one_of_two_encoders_dies_and_listeners_stay(
    nodes: Nodes, crowd: Crowd, push: Push
) -> None:
    """The one that is heard: listeners stay, and hear the other once it begins a new epoch; both
    breaks are counted, and nothing is damaged or heard twice."""
    first, second = nodes.start(), nodes.start()
    edge = nodes.start(upstreams=[first.backbone, second.backbone])
    older = push(0, first)
    wait_known(edge, MOUNT, timeout_s=20.0)
    listeners = crowd.join_many(5, edge.address, MOUNT)
    wait_from(listeners, 0)
    newer = push(1, second)
    wait_from(listeners, 1)
    newer.kill()
    wait_until(lambda: stream_at(edge)["state"] == "waiting", 10.0, what="the break at the edge")
    assert len(crowd.alive) == len(listeners)
    older.kill()
    older.wait()
    push(2, first)
    wait_from(listeners, 2)
    assert len(crowd.alive) == len(listeners)
    assert stream_at(edge)["counters"]["epochs_total"] == 3
    assert edge.json("/api/v1/status")["counters"]["backbone_shadowed_total"] == 1
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
