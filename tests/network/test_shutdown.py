"""How a node goes, and how it bears with sources: too fast, silent, gone, back again.

Rules of this room
  1. Real processes, real signals; an end is bounded by the issue's 2 s.
  2. A listener may lose its node or its source, never half a frame.
"""

from __future__ import annotations

import signal
import time

import pytest
from tools.listeners import Crowd, Listener
from tools.nodes import NodeProcess, Nodes, wait_until
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source, push

END_S = 2.0
SECOND_SIGNAL_S = 0.5


def head_sequence(node: NodeProcess, mount: str = "/live") -> int:
    """Return how many frames the node has taken of a stream."""
    streams = node.json("/api/v1/status")["streams"]
    return int(next((s["head_sequence"] or 0 for s in streams if s["mount"] == mount), 0))


def checker_of(listener: Listener) -> FrameChecker:
    """Return the checker of a listener that has one."""
    assert listener.checker is not None
    return listener.checker


def heard(listener: Listener) -> int:
    """Return the sequence that the listener heard last; -1 before the first."""
    last = checker_of(listener).last
    return -1 if last is None else last


def wait_heard(listeners: list[Listener], sequence: int, timeout_s: float = 5.0) -> None:
    """Wait until each of them has heard this frame or a later one."""
    what = f"frame {sequence} at each listener"
    wait_until(lambda: all(heard(one) >= sequence for one in listeners), timeout_s, what=what)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_ends_the_node_cleanly_within_2_s(
    nodes: Nodes, crowd: Crowd, number: signal.Signals
) -> None:
    """With a source and listeners attached: status 0, and each body ends at a frame boundary."""
    node = nodes.start(backbone="none")
    with LiveSource(Source(node.address), FrameMaker(128)):
        listeners = crowd.join_many(20, node.address)
        listeners += [crowd.join(node.address, icy=True, checker=FrameChecker())]
        crowd.wait_audio(60_000)
        begin_s = time.monotonic()
        status = node.terminate(END_S, number)
        took_s = time.monotonic() - begin_s
        wait_until(lambda: not crowd.alive, 1.0, what="the listeners to notice")
    print(f"\n{number.name}: {took_s * 1000:.0f} ms")
    assert status == 0, node.output()
    for listener in listeners:
        checker = checker_of(listener)
        assert listener.end == "eof", listener
        assert checker.clean, checker
        assert checker.unfinished_bytes == 0, checker


def test_a_signal_does_not_wait_for_a_stalled_listener(nodes: Nodes, crowd: Crowd) -> None:
    """One that takes nothing delays the end, but not beyond 2 s; the others end in order."""
    node = nodes.start(backbone="none")
    with LiveSource(Source(node.address), FrameMaker(320)):
        stalled = crowd.join(node.address, receive_bytes=4096)
        stalled.stall()
        healthy = crowd.join_many(3, node.address)
        wait_until(lambda: all(one.audio_bytes > 60_000 for one in healthy), what="audio")
        assert node.terminate(END_S) == 0, node.output()
        wait_until(lambda: not any(one.alive for one in healthy), 1.0, what="them to notice")
    for listener in healthy:
        assert checker_of(listener).clean, listener
        assert checker_of(listener).unfinished_bytes == 0


def test_a_second_signal_ends_the_node_at_once(nodes: Nodes, crowd: Crowd) -> None:
    """While a stalled listener is waited for, Ctrl-C again does not wait any more: status 1."""
    node = nodes.start(backbone="none")
    with LiveSource(Source(node.address), FrameMaker(320)):
        stalled = crowd.join(node.address, receive_bytes=4096)
        stalled.stall()
        blocked = "the listener's socket to be full"
        wait_until(lambda: counter(node, "short_writes_total") > 0, 10.0, what=blocked)
        node.send_signal(signal.SIGINT)
        node.wait_event("draining", END_S)
        begin_s = time.monotonic()
        status = node.terminate(SECOND_SIGNAL_S, signal.SIGINT)
        took_s = time.monotonic() - begin_s
    print(f"\nsecond signal: {took_s * 1000:.0f} ms")
    assert status == 1, node.output()


def counter(node: NodeProcess, name: str) -> int:
    """Return one of the node's counters."""
    return int(node.counters().get(name, 0))


def test_a_source_faster_than_real_time_is_held_back(nodes: Nodes, crowd: Crowd) -> None:
    """The node takes no more than ahead_ms beyond real time, and no frame of it is lost."""
    node = nodes.start("--ahead-ms", "2000", backbone="none")
    maker, ahead_s, read_s = FrameMaker(320), 2.0, 8192 / 40_000
    with LiveSource(Source(node.address), maker, speed=8.0) as live:
        begin_s = time.monotonic()
        listener = crowd.join(node.address, checker=FrameChecker())
        for until_s in (1.0, 2.0, 3.0, 4.0):
            wait_until(lambda until_s=until_s: time.monotonic() > begin_s + until_s)
            taken_s = head_sequence(node) * maker.frame_s
            elapsed_s = time.monotonic() - begin_s
            assert taken_s <= elapsed_s + ahead_s + read_s + 0.1, (taken_s, elapsed_s)
        sent_s = live.sent_frames * maker.frame_s
        print(f"\nsent {sent_s:.1f} s, the node took {taken_s:.1f} s in {elapsed_s:.1f} s")
        assert sent_s > taken_s + 1.0, "it was never held back"
        assert taken_s >= elapsed_s + ahead_s / 2, "it was held back too much"
    assert checker_of(listener).clean, listener


def test_a_silent_source_is_ended_and_its_listeners_hear_the_next_epoch(
    nodes: Nodes, crowd: Crowd
) -> None:
    """After source_timeout_s the epoch ends; those who wait stay and miss nothing of the next."""
    node = nodes.start("--source-timeout-s", "1", backbone="none")
    maker = FrameMaker(128)
    with Source(node.address) as silent:
        assert silent.connect() == 100
        push(silent, maker.seconds(3.0))
        listeners = crowd.join_many(5, node.address)
        crowd.wait_audio(16_000)
        begin_s = time.monotonic()
        down = node.wait_event("source_down", 3.0, mount="/live")
        took_s = time.monotonic() - begin_s
        print(f"\n{down['text']} (noticed {took_s:.2f} s after the audio)")
        assert "no audio for 1 s" in down["reason"]
        assert silent.status(1.0) in {0, 200}  # it is told, or finds its connection closed
    with LiveSource(Source(node.address), maker) as live:
        first = maker.sequence
        sent_s = time.monotonic()
        wait_heard(listeners, first, 1.2)
        print(f"first frame of the next epoch after {(time.monotonic() - sent_s) * 1000:.0f} ms")
        wait_until(lambda: live.sent_frames > 50)
    assert all(listener.alive for listener in listeners)
    for listener in listeners:
        assert checker_of(listener).clean, listener.checker


def test_listeners_are_kept_for_linger_s_after_their_source_left(
    nodes: Nodes, crowd: Crowd
) -> None:
    """One who comes back within linger_s finds them all; when nobody comes, they are let go."""
    node = nodes.start("--linger-s", "2", backbone="none")
    maker = FrameMaker(128)
    listeners: list[Listener] = []
    for _ in range(2):  # twice: the second source comes back to those of the first
        with LiveSource(Source(node.address), maker):
            listeners = listeners or crowd.join_many(5, node.address)
            wait_heard(listeners, maker.sequence + 20)
        node.wait_event("source_down", 2.0)
        gone_s = time.monotonic()
    wait_until(lambda: not crowd.alive, 2.0 + 3.0, what="the listeners to be let go")
    kept_s = min(listener.ended_s for listener in listeners) - gone_s
    print(f"\nkept for {kept_s:.1f} s")
    assert kept_s >= 1.5
    for listener in listeners:
        assert listener.end == "eof", listener
        assert checker_of(listener).clean, listener.checker
        assert checker_of(listener).unfinished_bytes == 0
