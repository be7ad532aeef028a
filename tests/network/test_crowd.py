"""Many streams through one link: frames share messages, and the last one alone still comes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tools.backbones import INFO, Node, until

from relay import _core, _probe_hop

pytestmark = pytest.mark.core

STREAMS = 500
FRAME = bytes(192)
FRAME_US = 5_000
CROWD_MESSAGES = 40_000  # a second; see _core/hold.pxd
SECONDS = 3


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    """A node with many streams, and a child that wants them all."""
    mounts = [f"/{number}" for number in range(STREAMS)]
    upper = Node(streams_max=STREAMS + 4)
    lower = Node(upper.address, bind=None, streams_max=STREAMS + 4, prefetch=mounts)
    yield upper, lower
    lower.backbone.close()
    upper.backbone.close()


def streams_of(node: Node) -> list[_core.Stream]:
    """Its streams, each with a source."""
    streams = [node.engine.add_stream(f"/{number}") for number in range(STREAMS)]
    for stream in streams:
        stream.claim()
        stream.set_info(INFO)
        stream.begin()
    return streams


def heads(node: Node) -> dict[str, int]:
    """Up to where each stream is there."""
    return {head[1]: head[3] for head in node.engine.heads()}


def test_frames_of_a_crowd_share_messages_and_none_is_left_behind(pair: tuple[Node, Node]) -> None:
    """500 streams × 200 frames/s: as messages of one frame they would be 100,000 a second. (Where
    the machine is too slow for that, fewer than a crowd's move, and nothing is held.)"""
    upper, lower = pair
    streams = streams_of(upper)
    pointers = [_core.pointer_of(stream) for stream in streams]
    frame = _probe_hop.Frame(FRAME)
    _probe_hop.pace(pointers, frame, FRAME_US, 1e9, STREAMS, 0)
    until(lambda: len(heads(lower)) == STREAMS, 30)

    frames = 1
    for _ in range(SECONDS):
        before = upper.seen()["counters"]
        paced = _probe_hop.pace(pointers, frame, FRAME_US, 100_000.0, 100_000, 500)
        frames += 200
        after = upper.seen()["counters"]

    messages = after["sent_messages_total"] - before["sent_messages_total"]
    sent = after["sent_frames_total"] - before["sent_frames_total"]
    assert sent > 0
    assert sent / messages > 1.6 or messages / paced["seconds"] < CROWD_MESSAGES
    # nobody pushes any more: what was alone then has come, too
    until(lambda: set(heads(lower).values()) == {frames}, 5)
    counted = [stream.snapshot()["counters"] for stream in lower.engine.streams()]
    assert sum(one["lost_frames_total"] for one in counted) == 0
