"""A framed source at a real node: its connection breaks, its sender dies, or it sends rubbish."""

from __future__ import annotations

import struct
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tools.listeners import Crowd
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_known, wait_until
from tools.programs import Program
from tools.proxy import Proxies
from tools.sources import FrameMaker, Source
from tools.speaker import Speaker

from relay import RemoteSource

ORIGIN = "00000000000000ab"


def told(node: NodeProcess) -> dict[str, Any]:
    """What the node tells of /live; nothing while it knows none."""
    streams = node.json("/api/v1/status")["streams"]
    return next((stream for stream in streams if stream["mount"] == "/live"), {})


def framed(node: NodeProcess, *, version: str = "1", ahead_ms: int = 0) -> Source:
    """A connection of a framed source that the test writes itself."""
    epoch = int(time.time() * 1000) + ahead_ms
    lines = [
        ("Relay-Framing", version),
        ("Relay-Epoch", str(epoch)),
        ("Relay-Origin", ORIGIN),
    ]
    return Source(node.address, headers=lines)


def test_connection_that_breaks_costs_no_frame(
    nodes: Nodes, crowd: Crowd, proxies: Proxies
) -> None:
    """Three times: the source is away, comes back, and listeners hear each frame once."""
    node = nodes.start()
    proxy = proxies.to(node.address)
    with ExitStack() as stack:
        speaker = Speaker([f"http://source:{PASSWORD}@127.0.0.1:{proxy.port}/live"]).start()
        stack.callback(speaker.stop)
        wait_known(node, "/live")
        listeners = crowd.join_many(3, node.address, "/live")
        for _ in range(3):
            wanted = speaker.maker.sequence + 10
            wait_until(
                lambda n=wanted: all((one.checker.last or 0) >= n for one in listeners),
                10.0,
                what=f"frame {wanted}",
            )
            proxy.cut()
        wanted = speaker.maker.sequence + 10
        wait_until(lambda: all((one.checker.last or 0) >= wanted for one in listeners), 10.0)
        assert all(one.alive and one.checker.clean for one in listeners)
        assert told(node)["counters"]["epochs_total"] == 1
        assert speaker.remote.origins()[0].lost_total == 3


def test_sender_that_dies_and_returns_does_not_wait_for_its_own_shadow(
    nodes: Nodes, crowd: Crowd, tmp_path: Path
) -> None:
    """kill -9 of `relay push`: the mount is kept for it, and a new epoch takes it at once."""
    node, other = nodes.start(), nodes.start()
    talk = tmp_path / "talk.mp3"
    talk.write_bytes(FrameMaker().seconds(120))
    urls = [f"http://source:{PASSWORD}@{one.http}/live" for one in (node, other)]
    command = [sys.executable, "-P", "-m", "relay", "push", "--quiet", str(talk), *urls]
    with ExitStack() as stack:
        first = Program(command)
        stack.callback(first.close)
        wait_known(node, "/live", timeout_s=15.0)
        listener = crowd.join(node.address, "/live")
        wait_until(lambda: told(node).get("epoch"), 10.0, what="the first epoch")
        epoch = told(node)["epoch"]
        first.kill()
        wait_until(lambda: told(node)["source"] == "away", 10.0, what="the source to be away")
        assert told(node)["state"] == "live"
        second = Program(command)
        stack.callback(second.close)
        wait_until(lambda: told(node)["epoch"] > epoch, 15.0, what="the next epoch")
        wait_until(lambda: told(other)["epoch"] == told(node)["epoch"], 10.0, what="at both")
        assert listener.alive
        assert second.interrupt(20.0) == 0  # it may wait CLOSE_S for origins to take the end
        wait_until(lambda: told(node)["state"] == "waiting", 5.0, what="the end of the epoch")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"version": "2"}, b"this node knows 1"),
        ({"ahead_ms": 3_600_000}, b"ahead of this node's clock"),
    ],
)
def test_framing_that_is_none_is_refused_before_the_body(
    nodes: Nodes, more: dict[str, Any], reason: bytes
) -> None:
    """With 400 and the reason in one line; the mount stays free."""
    node = nodes.start()
    with framed(node, **more) as source:
        assert source.connect() == 400
        source.status(2.0)
        assert reason in source.answer
    assert told(node) == {}


def test_body_that_is_no_framed_one_is_refused_with_the_reason(nodes: Nodes) -> None:
    """Too long a message, random bytes, and audio as it is; nothing stays of them but a count."""
    node = nodes.start()
    for data, reason in (
        (struct.pack("<I", 131_073), b"longer than 131072 bytes"),
        (struct.pack("<I", 40) + b"S" + bytes(39), b"does not speak"),
        (FrameMaker().seconds(1.0), b"longer than 131072 bytes"),
    ):
        with framed(node) as source:
            assert source.connect() == 100
            source.send(data)
            assert source.status(5.0) == 400
            assert reason in source.answer, source.answer
    assert node.counters()["source_broken_total"] == 3


def test_backlog_comes_at_once_whatever_the_origin_would_hold_back(nodes: Nodes) -> None:
    """Forty seconds that were kept for an origin: no second of them is waited for."""
    node = nodes.start("--ahead-ms", "2000", "--ring-s", "10", "--lag-ms-max", "6000")
    url = f"http://source:{PASSWORD}@{node.http}/live"
    with RemoteSource([url], content_type="audio/mpeg", backlog_s=60) as live:
        maker = FrameMaker()
        begin = time.monotonic()
        live.feed(maker.seconds(40.0))
        wait_until(lambda: told(node).get("head_sequence") == maker.sequence, 15.0, what="40 s")
        print(f"\n40 s of audio after {time.monotonic() - begin:.1f} s")


def test_epoch_that_has_lost_is_refused_for_good(nodes: Nodes) -> None:
    """With 410, which tells the sender to begin a new one; a newer epoch is let in."""
    node = nodes.start()
    speaker = Speaker([f"http://source:{PASSWORD}@{node.http}/live"]).start()
    wait_until(lambda: told(node).get("head_sequence"), 10.0, what="the first run")
    speaker.stop()
    wait_until(lambda: told(node)["state"] != "live", 10.0, what="its end")
    with framed(node, ahead_ms=-60_000) as late:
        assert late.connect() == 410
        late.status(2.0)
        assert b"has lost against" in late.answer
    with framed(node) as newer:
        assert newer.connect() == 100
    wait_until(
        lambda: node.counters()["source_refused_410_total"] == 1,
        5.0,
        what="the refusal, counted",
    )
