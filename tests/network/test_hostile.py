"""Hostile messages on every port of the backbone: no crash, bounded growth, and all of it counted.

Rules of this room
  1. Real nodes; a stream beside the attack, whose listeners check every frame, must not notice.
  2. Growth is PSS before and after, printed; its bound is a figure of docs/wire.md, plus what
     Python takes for itself.
"""

from __future__ import annotations

import random
import struct
import time
from contextlib import ExitStack

import pytest
from tools.backbones import free_port
from tools.children import Child, ask, mount_key, throw_bytes
from tools.faults import memory_bytes
from tools.fleet import last_of
from tools.hostile import Liar, is_closed, raw_child, say_raw, send_mutants, send_too_long
from tools.listeners import Crowd, Listener
from tools.nodes import NodeProcess, Nodes, wait_known, wait_until
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

from relay.keys import Keys, make_secret

PARENT, FRIEND, STRANGER = (make_secret() for _ in range(3))
PUBLIC = {secret: Keys(secret).public for secret in (PARENT, FRIEND, STRANGER)}
GROWTH_BYTES_MAX = 24 << 20
REQUESTS = [
    ask(b"J", "/calm", struct.pack("<QQ", 0, 3_000_000)),
    ask(b"R", "/calm", struct.pack("<BQQQ", 0, 1, 0, 100)),
    ask(b"D", "/calm", bytes(16) + struct.pack("<Q", 0)),
]


def curve(secret: str) -> tuple[str, str, str]:
    """The keys of a child by hand."""
    return PUBLIC[secret], secret.removeprefix("secret:"), PUBLIC[PARENT]


def counters(node: NodeProcess) -> dict[str, int]:
    """All counters of a node."""
    told: dict[str, int] = node.json("/api/v1/status")["counters"]
    return told


def calm(stack: ExitStack, node: NodeProcess, crowd: Crowd, at: NodeProcess) -> Listener:
    """A stream of `node`, and a listener at another that is to hear all of it."""
    stack.enter_context(LiveSource(Source(node.address, "/calm"), FrameMaker()))
    wait_known(at, "/calm", timeout_s=15.0)
    listener = crowd.join(at.address, "/calm", checker=FrameChecker(), keep=False)
    wait_heard(listener)
    return listener


def wait_heard(listener: Listener) -> None:
    """Wait for some frames more, and expect all before them."""
    wanted = last_of(listener) + 20
    wait_until(lambda: last_of(listener) >= wanted, 15.0, what=f"frame {wanted} at {listener!r}")
    assert listener.alive
    assert listener.checker is not None
    assert listener.checker.clean, listener.checker


@pytest.mark.parametrize("who", ["open", "friend", "stranger"])
def test_hostile_child_changes_nothing(nodes: Nodes, crowd: Crowd, seed: int, who: str) -> None:
    """On XPUB and ROUTER, of a node without keys, with a valid key, and with one not listed."""
    dice = random.Random(seed)
    keyed = who != "open"
    words = ["--children", f"friend={PUBLIC[FRIEND]}"] if keyed else []
    env = {"RELAY_SECRET_KEY": PARENT} if keyed else {}
    port, repair = free_port(), free_port()
    origin = nodes.start(
        *words, "--advertise", f"127.0.0.1:{repair}", backbone=f"tcp://127.0.0.1:{port}", env=env
    )
    with ExitStack() as stack:
        listener = calm(stack, origin, crowd, origin)
        before, memory = counters(origin), memory_bytes(origin.pid)
        sent, refused = 0, "backbone_refused_total"
        if who == "stranger":
            for address in (origin.backbone, f"tcp://127.0.0.1:{repair}"):
                throw_bytes(address, dice, connections=30)
            with pytest.raises(AssertionError, match="no beacon"):
                Child(origin.backbone, curve=curve(STRANGER), timeout_s=1.5)
        else:
            with Child(origin.backbone, curve=curve(FRIEND) if keyed else None) as child:
                sent = send_mutants(child, dice, REQUESTS, 60)
                wanted = before[refused] + sent // 4
                wait_until(
                    lambda: counters(origin)[refused] >= wanted, 15.0, what=f"{wanted} refusals"
                )
                send_too_long(child, dice, REQUESTS, 60)
        wait_heard(listener)
        grown = memory_bytes(origin.pid) - memory
        told = {
            name: number - before.get(name, 0)
            for name, number in counters(origin).items()
            if "refused" in name and number > before.get(name, 0)
        }
        print(f"{who}: {sent} messages, memory {grown / 1e6:+.1f} MB, {told}")
        assert grown <= GROWTH_BYTES_MAX
        # a friend is off the list after its topics: its handshakes are refused as well then
        if who == "stranger":
            assert told["backbone_handshakes_refused_total"] > 0


@pytest.mark.parametrize("keyed", [pytest.param(False, marks=pytest.mark.soak), True])
def test_lying_parent_changes_nothing_of_the_others(
    nodes: Nodes, crowd: Crowd, seed: int, keyed: bool
) -> None:
    """It passes on a stream and its directory, and lies with each message: the child lives, counts
    it, and hears the stream of its other parent whole. (What becomes of the liar's own stream is
    printed: who holds a key may tell of an epoch, or of an end, that is not true.)"""
    dice = random.Random(seed)
    keys = ["--children", f"friend={PUBLIC[FRIEND]}"] if keyed else []
    honest = nodes.start(*keys, env={"RELAY_SECRET_KEY": PARENT} if keyed else {})
    misused = nodes.start()
    pair = (PUBLIC[PARENT], PARENT.removeprefix("secret:")) if keyed else None
    with ExitStack() as stack:
        liar = stack.enter_context(Liar(misused.backbone, ("/lies",), dice, pair))
        mark = f"#{PUBLIC[PARENT]}" if keyed else ""
        child = nodes.start(
            "--redundancy",
            "merge",
            upstreams=[honest.backbone + mark, liar.backbone + mark],
            env={"RELAY_SECRET_KEY": FRIEND} if keyed else {},
        )
        stack.enter_context(LiveSource(Source(misused.address, "/lies"), FrameMaker()))
        listener = calm(stack, honest, crowd, child)
        wait_known(child, "/lies", timeout_s=15.0)
        other = crowd.join(child.address, "/lies", checker=FrameChecker(), keep=False)
        wait_heard(other)
        memory = memory_bytes(child.pid)
        liar.lies_each = 20
        end_s = time.monotonic() + 2.5
        wait_until(lambda: time.monotonic() >= end_s, 5.0)
        liar.lies_each = 0
        wait_heard(listener)
        told = {name: n for name, n in counters(child).items() if "backbone_refused" in name and n}
        grown = memory_bytes(child.pid) - memory
        print(f"{liar.lies_told} lies, memory {grown / 1e6:+.1f} MB, {told}")
        assert child.alive
        assert grown <= GROWTH_BYTES_MAX
        assert told["backbone_refused_total"] >= liar.lies_told // 5
        print(f"/lies afterwards: {other!r}, {other.checker!r:.300}")


STREAMS = 24
QUEUED_BYTES_MAX = 8192 * 3000  # docs/wire.md: runs to one child, and what one is below


@pytest.mark.parametrize("held", [False, True], ids=["never held", "given back already"])
def test_forged_unsubscription_takes_a_stream_from_nobody(
    nodes: Nodes, crowd: Crowd, held: bool
) -> None:
    """Its sender is cut; the child that has subscribed goes on hearing."""
    origin = nodes.start()
    edge = nodes.start(upstreams=[origin.backbone])
    topic = b"S" + struct.pack("<Q", mount_key("/calm"))
    with ExitStack() as stack:
        listener = calm(stack, origin, crowd, edge)
        raw = stack.enter_context(raw_child(origin.backbone))
        if held:
            say_raw(raw, b"\1" + topic)
            say_raw(raw, b"\0" + topic)
            wait_heard(listener)
            assert counters(origin)["backbone_expelled_total"] == 0
        say_raw(raw, b"\0" + topic)
        assert is_closed(raw)
        wait_heard(listener)
        told = counters(origin)
        assert told["backbone_expelled_total"] == 1
        assert told["backbone_refused_topic_total"] == 1


def slow_child(nodes: Nodes, crowd: Crowd, seconds: float) -> None:
    """One child reads nothing, one is frozen, one is well, of the same origin."""
    origin = nodes.start()
    well, frozen = (nodes.start(upstreams=[origin.backbone]) for _ in range(2))
    mounts = [f"/s{number}" for number in range(STREAMS)]
    with ExitStack() as stack:
        for mount in mounts:
            source = Source(origin.address, mount)
            stack.enter_context(LiveSource(source, FrameMaker(128)))
        listener = calm(stack, origin, crowd, well)
        wait_known(frozen, "/calm", *mounts, timeout_s=15.0)
        frozen_ear = crowd.join(frozen.address, "/calm", checker=FrameChecker(), keep=False)
        wait_heard(frozen_ear)
        memory = memory_bytes(origin.pid)
        deaf = stack.enter_context(Child(origin.backbone))
        for mount in mounts:
            deaf.subscribe(b"S" + struct.pack("<Q", mount_key(mount)))
        frozen.stop()
        begin_s, most = time.monotonic(), 0
        while time.monotonic() < begin_s + seconds:
            wait_heard(listener)
            most = max(most, memory_bytes(origin.pid) - memory)
        sent = counters(origin)["backbone_sent_messages_total"]
        frozen.cont()
        gap_ms = listener.gap_ms_max(begin_s)
        print(
            f"\n{seconds:g} s: {sent} runs sent, memory at most {most / 1e6:+.1f} MB (bound "
            f"{QUEUED_BYTES_MAX / 1e6:.0f}), longest gap of the other child {gap_ms:.0f} ms"
        )
        assert most <= QUEUED_BYTES_MAX + GROWTH_BYTES_MAX
        wanted = last_of(listener)
        wait_until(lambda: last_of(frozen_ear) >= wanted, 20.0, what="the frozen child's listener")
        assert frozen_ear.alive
        assert frozen_ear.checker is not None
        heard = frozen_ear.checker
        print(f"after the stall: {heard.missing} missing, {heard.repeated} repeated")
        assert (heard.repeated, heard.late, heard.damaged_bytes) == (0, 0, 0)
        if seconds < 15.0:  # the ring holds it all
            assert not heard.missing


def test_slow_child_costs_a_bounded_amount_and_delays_nobody(nodes: Nodes, crowd: Crowd) -> None:
    """For 3 s: a child that reads nothing, and one that is frozen and repairs all of it after."""
    slow_child(nodes, crowd, 3.0)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_slow_child_of_a_minute(nodes: Nodes, crowd: Crowd) -> None:
    """Until the queue to it is full; the frozen one skips what its ring does not bring back."""
    slow_child(nodes, crowd, 60.0)
