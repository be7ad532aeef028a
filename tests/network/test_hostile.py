"""Hostile messages on every port of the backbone: no crash, bounded growth, and all of it counted.

Rules of this room
  1. Real nodes; a stream beside the attack, whose listeners check every frame, must not notice.
  2. Growth is PSS, printed; its bound is a figure of docs/wire.md. That what is done here would go
     beyond it, where nothing bounded it, is a test too.
"""

from __future__ import annotations

import random
import struct
import time
from contextlib import ExitStack

import pytest
from tools.backbones import free_port
from tools.children import BEACON_TOPIC, Child, ask, mount_key, throw_bytes
from tools.faults import memory_bytes
from tools.fleet import last_of
from tools.hostile import (
    Liar,
    flood_topics,
    is_closed,
    raw_child,
    say,
    say_parts,
    say_raw,
    say_whole,
    send_endless,
    send_mutants,
    send_too_long,
)
from tools.listeners import Crowd, Listener
from tools.nodes import NodeProcess, Nodes, wait_known, wait_until
from tools.parents import HandParent, entry
from tools.proxy import Proxies
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

from relay.keys import Keys, make_secret

PARENT, FRIEND, GREEDY, STRANGER = (make_secret() for _ in range(4))
PUBLIC = {secret: Keys(secret).public for secret in (PARENT, FRIEND, GREEDY, STRANGER)}
GROWTH_BYTES_MAX = 24 << 20
REFUSED_MIN = 500  # of a parent's lies, before its child is judged
TOPICS = 80_000  # 0.8 KB each in libzmq, if it keeps them
ENDLESS_BYTES = 1 << 30  # nobody is let send so much
PARTS_BYTES = 40 << 20  # of one message in parts
LINE_BYTES_PER_S = 50e6  # 400 Mbit/s; at the speed of memory more comes while a busy machine looks
REQUESTS = [
    ask(b"J", "/calm", struct.pack("<QQ", 0, 3_000_000)),
    ask(b"R", "/calm", struct.pack("<BQQQ", 0, 1, 0, 100)),
    ask(b"D", "/calm", bytes(16) + struct.pack("<Q", 0)),
]


def curve(secret: str) -> tuple[str, str, str]:
    """The keys of a child by hand."""
    return PUBLIC[secret], secret.removeprefix("secret:"), PUBLIC[PARENT]


def counters(node: NodeProcess) -> dict[str, int]:
    """All counters of a node, up to half a second old: for loops that have more to do."""
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


def children(keyed: bool) -> tuple[list[str], dict[str, str]]:
    """(Options, environment) of a node without keys, or with two children on its list."""
    if not keyed:
        return [], {}
    listed = (("friend", FRIEND), ("greedy", GREEDY))
    words = [word for name, key in listed for word in ("--children", f"{name}={PUBLIC[key]}")]
    return words, {"RELAY_SECRET_KEY": PARENT}


def most_flooded(node: NodeProcess, dice: random.Random, keyed: bool, bytes_max: int) -> int:
    """The most that a node takes up while a child floods it with topics: until the child is cut, or
    it is more than so many bytes."""
    before = node.counters()["backbone_expelled_total"]
    greedy = flood_topics(node.backbone, dice, TOPICS, curve(GREEDY) if keyed else None)
    most, until_s = 0, time.monotonic() + 30.0
    while most <= bytes_max and counters(node)["backbone_expelled_total"] == before:
        assert time.monotonic() < until_s, f"it is let do as it likes: {most / 1e6:.1f} MB"
        most = max(most, memory_bytes(node.pid))
    most = max(most, memory_bytes(node.pid))
    greedy.destroy(0)
    return most


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keys"])
def test_without_a_bound_the_growth_is_more_than_is_let_pass(
    nodes: Nodes, seed: int, keyed: bool
) -> None:
    """The control of the test below: the same flood at a node that allows as many streams."""
    words, env = children(keyed)
    node = nodes.start("--subscriptions-max", "1000000", *words, env=env)
    memory = memory_bytes(node.pid)
    most = most_flooded(node, random.Random(seed), keyed, memory + GROWTH_BYTES_MAX)
    print(f"\nmemory {(most - memory) / 1e6:+.1f} MB")
    assert most - memory > GROWTH_BYTES_MAX


@pytest.mark.parametrize("who", ["open", "friend", "stranger"])
def test_hostile_child_changes_nothing(nodes: Nodes, crowd: Crowd, seed: int, who: str) -> None:
    """On XPUB and ROUTER, of a node without keys, with a valid key, and with one not listed."""
    dice = random.Random(seed)
    keyed = who != "open"
    words, env = children(keyed)
    port, repair = free_port(), free_port()
    origin = nodes.start(
        *words, "--advertise", f"127.0.0.1:{repair}", backbone=f"tcp://127.0.0.1:{port}", env=env
    )
    with ExitStack() as stack:
        listener = calm(stack, origin, crowd, origin)
        before, memory = counters(origin), memory_bytes(origin.pid)
        sent, most, refused = 0, 0, "backbone_refused_total"
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
            most = most_flooded(origin, dice, keyed, memory + GROWTH_BYTES_MAX)
        wait_heard(listener)
        grown = max(most, memory_bytes(origin.pid)) - memory
        told = {
            name: number - before.get(name, 0)
            for name, number in origin.counters().items()
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
        # one beyond all bounds breaks the connection: what follows is told to nobody for a while
        wait_until(
            lambda: (
                time.monotonic() >= end_s
                and counters(child)["backbone_refused_total"] >= REFUSED_MIN
            ),
            30.0,
            what=f"{REFUSED_MIN} lies to be counted",
            every_s=0.1,
        )
        liar.lies_each = 0
        wait_heard(listener)
        told = {name: n for name, n in child.counters().items() if "backbone_refused" in name and n}
        grown = memory_bytes(child.pid) - memory
        print(f"{liar.lies_told} lies, memory {grown / 1e6:+.1f} MB, {told}")
        assert child.alive
        assert grown <= GROWTH_BYTES_MAX
        assert told["backbone_refused_total"] >= REFUSED_MIN
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
            assert origin.counters()["backbone_expelled_total"] == 0
        say_raw(raw, b"\0" + topic)
        assert is_closed(raw)
        wait_heard(listener)
        told = origin.counters()
        assert told["backbone_expelled_total"] == 1
        assert told["backbone_refused_topic_total"] == 1


def test_message_without_an_end_is_cut_and_freed(nodes: Nodes, crowd: Crowd) -> None:
    """On XPUB and ROUTER: what libzmq keeps of it is bounded by what comes between two looks. A
    child that sends as much in whole messages is let alone."""
    port, repair = free_port(), free_port()
    origin = nodes.start("--advertise", f"127.0.0.1:{repair}", backbone=f"tcp://127.0.0.1:{port}")
    with ExitStack() as stack:
        listener = calm(stack, origin, crowd, origin)
        memory = memory_bytes(origin.pid)
        sent = []
        for address, kind, part in (
            (origin.backbone, b"SUB", 60), (f"tcp://127.0.0.1:{repair}", b"DEALER", 1000),
        ):  # fmt: skip
            with raw_child(address, kind) as raw:
                sent.append(send_endless(raw, part, ENDLESS_BYTES))
                assert is_closed(raw)
        grown = memory_bytes(origin.pid) - memory
        print(f"\ncut after {[f'{size / 1e6:.1f} MB' for size in sent]}, memory {grown / 1e6:+.1f}")
        assert max(sent) < ENDLESS_BYTES
        assert origin.counters()["backbone_endless_total"] == 2
        assert grown <= GROWTH_BYTES_MAX
        with raw_child(f"tcp://127.0.0.1:{repair}", b"DEALER") as raw:
            for _ in range(3000):
                say_whole(raw, bytes(1000))
            raw.settimeout(0.5)
            assert not is_closed(raw)
        assert origin.counters()["backbone_endless_total"] == 2
        wait_heard(listener)


def most_memory(node: NodeProcess, cuts: int) -> int:
    """The most that a node takes up to when it tells of so many cut connections."""
    most, told_s = memory_bytes(node.pid), 0.0
    until_s = time.monotonic() + 15.0
    while time.monotonic() < until_s:
        most = max(most, memory_bytes(node.pid))
        if time.monotonic() >= told_s:
            told_s = time.monotonic() + 0.2
            if counters(node)["backbone_endless_total"] >= cuts:
                return most
    raise AssertionError(f"{cuts} connections were not cut, memory {most / 1e6:.1f} MB")


@pytest.mark.parametrize("port", ["XPUB", "ROUTER"])
def test_message_without_an_end_of_a_child_with_a_key_is_cut(
    nodes: Nodes, crowd: Crowd, port: str
) -> None:
    """On both ports; what it says in whole messages afterwards is heard, however much it is."""
    origin = nodes.start("--children", f"friend={PUBLIC[FRIEND]}", env={"RELAY_SECRET_KEY": PARENT})
    with ExitStack() as stack:
        listener = calm(stack, origin, crowd, origin)
        child = stack.enter_context(Child(origin.backbone, curve=curve(FRIEND)))
        assert child.join("/calm")[:1] == b"h"
        memory = memory_bytes(origin.pid)
        if port == "XPUB":
            say_parts(child.sub, b"x" * 60, PARTS_BYTES)
        else:
            say_parts(child.dealer, bytes(900), PARTS_BYTES)
        grown = most_memory(origin, 1) - memory
        print(f"\n{port}: cut within {PARTS_BYTES / 1e6:.0f} MB, memory {grown / 1e6:+.1f} MB")
        assert grown <= GROWTH_BYTES_MAX
        wait_heard(listener)
        with Child(origin.backbone, curve=curve(FRIEND)) as again:
            assert sum(say(again.dealer, bytes(900)) for _ in range(3000)) == 3000
            wait_until(lambda: again.join("/calm")[:1] == b"h", 10.0, what="an answer")
        assert origin.counters()["backbone_endless_total"] == 1


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keys"])
@pytest.mark.parametrize("socket", ["SUB", "DEALER"])
def test_message_without_an_end_from_above_is_cut(
    nodes: Nodes, proxies: Proxies, crowd: Crowd, socket: str, keyed: bool
) -> None:
    """Of a parent that lies; the child hears its other one all the time."""
    keys = ["--children", f"friend={PUBLIC[FRIEND]}"] if keyed else []
    honest = nodes.start(*keys, env={"RELAY_SECRET_KEY": PARENT} if keyed else {})
    secret = bytes.fromhex(PARENT.removeprefix("secret:")) if keyed else b""
    mark = f"#{PUBLIC[PARENT]}" if keyed else ""
    parts = [bytes(1000)] * (PARTS_BYTES // 1000)
    with ExitStack() as stack:
        liar = stack.enter_context(HandParent(entry("/lies", 1000), secret=secret))
        lines = [proxies.to(("127.0.0.1", port)) for port in (liar.port, liar.repair_port)]
        for line in lines:
            line.throttle(LINE_BYTES_PER_S)
        liar.told_port = lines[1].address[1]
        child = nodes.start(
            upstreams=[honest.backbone + mark, lines[0].backbone + mark],
            env={"RELAY_SECRET_KEY": FRIEND} if keyed else {},
        )
        listener = calm(stack, honest, crowd, child)
        wait_until(lambda: liar.asked, 10.0, what="a child of the liar")
        memory = memory_bytes(child.pid)
        if socket == "SUB":
            liar.publish(BEACON_TOPIC, *parts)
        else:
            liar.more_parts = parts
            liar.directory_version += 1
        grown = most_memory(child, 1) - memory
        liar.more_parts = []
        print(f"\n{socket}: cut within {PARTS_BYTES / 1e6:.0f} MB, memory {grown / 1e6:+.1f} MB")
        assert grown <= GROWTH_BYTES_MAX
        wait_heard(listener)


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
        sent = origin.counters()["backbone_sent_messages_total"]
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
