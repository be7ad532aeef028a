"""A child that holds a key and opens many connections: it has what one child has, and no more."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import zmq
from tools.backbones import Node, Programme, free_port, until
from tools.children import BEACON_TOPIC, Child, ask
from tools.faults import memory_bytes
from tools.fleet import last_of
from tools.listeners import Crowd, Listener
from tools.nodes import NodeProcess, Nodes, wait_known, wait_until
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

from relay.gate import HANDSHAKES_MAX
from relay.keys import Keys, make_secret

SECRETS = {name: make_secret() for name in ("parent", "ill", "edge")}
CROWD = 8  # docs/wire.md: connections of a child to one port
CONNECTIONS = 800
CONNECTIONS_BYTES_MAX = 12 << 20  # what they may cost
MANY = HANDSHAKES_MAX // 2 - 2
JOIN = ask(b"J", "/live", struct.pack("<QQ", 0, 3_000_000))


def curve(name: str) -> tuple[str, str, str]:
    """What a socket by hand needs to attach under this name."""
    own, parent = Keys(SECRETS[name]), Keys(SECRETS["parent"])
    return own.public, own.secret_bytes.hex(), parent.public


@pytest.fixture
def parent() -> Iterator[Node]:
    """A node that lets `ill` and `edge` in, with a stream."""
    node = Node(
        keys=Keys(SECRETS["parent"]),
        children={name: Keys(SECRETS[name]).public for name in ("ill", "edge")},
    )
    yield node
    node.backbone.close()


class Ill:
    """Connections of one key, each a socket that does not come back once it is cut."""

    def __init__(self, address: str | None, repair_address: str | None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._addresses = {zmq.XSUB: address, zmq.DEALER: repair_address}
        self._kept: list[zmq.Socket[bytes]] = []

    def attach(self, kind: int) -> zmq.Socket[bytes]:
        """One more, to XPUB or ROUTER, of which little is on its way unread."""
        one = self._context.socket(kind)
        options = (zmq.CURVE_PUBLICKEY, zmq.CURVE_SECRETKEY, zmq.CURVE_SERVERKEY)
        for option, key in zip(options, curve("ill"), strict=True):
            one.setsockopt(option, bytes.fromhex(key))
        one.setsockopt(zmq.RECONNECT_IVL, -1)
        one.setsockopt(zmq.RCVHWM, 1)
        one.setsockopt(zmq.RCVBUF, 65536)
        address = self._addresses[kind]
        assert address
        one.connect(address)
        self._kept.append(one)
        return one

    def close(self) -> None:
        """End all of them."""
        self._context.destroy(linger=0)


@pytest.fixture
def ill(parent: Node) -> Iterator[Ill]:
    """Whose key is known, and who means no good."""
    one = Ill(parent.backbone.address, parent.backbone.repair_address)
    yield one
    one.close()


def connections(parent: Node) -> int:
    """How many there are, to both ports."""
    gate: Any = parent.backbone._gate
    return len(gate._peers)


def is_answered(child: Child) -> bool:
    """Whether a join is, on the connection that it has; what is left of the last is passed by."""
    while child.dealer.poll(200):
        child.dealer.recv()
    return child.join("/live")[:1] == b"h"


def test_of_one_key_the_newest_few_connections_stay(parent: Node, ill: Ill) -> None:
    """To each port; the older are cut and counted, as a half-open one would be; another child
    keeps its own, though they are the oldest of all."""
    programme = Programme(parent)
    programme.push(10)
    with Child(parent.address, curve=curve("edge")) as edge:
        edge.subscribe_mount("/live")
        assert edge.join("/live")[:1] == b"h"
        for _ in range(MANY):
            sub, dealer = ill.attach(zmq.XSUB), ill.attach(zmq.DEALER)
            sub.send(b"\x01" + BEACON_TOPIC)
            dealer.send(JOIN)
            assert sub.poll(30_000), "the newest is not heard"
            assert dealer.poll(30_000), "the newest is not answered"
        cut = 2 * (MANY - CROWD)
        until(lambda: parent.counted("crowded_total") == cut, 30.0)
        until(lambda: connections(parent) == 2 + 2 * CROWD, 30.0)
        assert parent.counted("expelled_total") == 0
        assert is_answered(edge)
        assert parent.counted("crowded_total") == cut
        assert parent.link()["downstream"]


def test_a_key_gets_in_so_often_and_another_at_once(parent: Node, ill: Ill) -> None:
    """Connections that are opened faster than anybody could count them are refused."""
    gate: Any = parent.backbone._gate
    for _ in range(HANDSHAKES_MAX + 10):
        ill.attach(zmq.DEALER)
    until(lambda: gate.refused["often"] >= 10, 30.0)
    assert gate.handshakes_total == HANDSHAKES_MAX
    with Child(parent.address, curve=curve("edge"), timeout_s=30.0):
        assert gate.handshakes_total > HANDSHAKES_MAX


def test_of_those_that_say_nothing_few_stay(parent: Node, ill: Ill) -> None:
    """Nobody knows whose they are; a child that has once said a word is none of them."""
    endless = parent.backbone._endless
    endless.silent_max = 5
    with Child(parent.address, curve=curve("edge")) as edge:
        Programme(parent).push(10)
        assert edge.join("/live")[:1] == b"h"
        for _ in range(30):
            ill.attach(zmq.DEALER)
        until(lambda: connections(parent) == 32, 30.0)
        until(lambda: endless.silent_total >= 25, 30.0)
        until(lambda: connections(parent) == 7, 30.0)
        assert parent.counted("silent_total") == 25
        assert is_answered(edge)


def test_answers_are_charged_to_the_key_and_not_to_the_connection(parent: Node, ill: Ill) -> None:
    """One that reads nothing has used its child's share: the next of the same key has none left,
    and chooses its routing id in vain; another child has its own."""
    programme = Programme(parent)
    for _ in range(400):
        programme.stream.push(os.urandom(6000), 10_000)
    deaf = ill.attach(zmq.DEALER)
    until_s, before, refused = time.monotonic() + 30.0, 0, 0
    while refused < 20:
        assert time.monotonic() < until_s, "its share is never used up"
        deaf.send(JOIN)
        time.sleep(0.02)
        now = parent.counted("deferred_total")
        refused = refused + 1 if now > before else 0
        before = now
    second = ill.attach(zmq.DEALER)
    second.setsockopt(zmq.ROUTING_ID, b"somebody else")
    second.send(JOIN)
    assert second.poll(30_000)
    assert second.recv()[:1] == b"l"
    with Child(parent.address, curve=curve("edge"), timeout_s=30.0) as edge:
        assert edge.join("/live")[:1] == b"h"


def judged(node: NodeProcess) -> int:
    """Handshakes that were answered, whatever the answer."""
    told = node.counters()
    return int(told["backbone_handshakes_total"] + told["backbone_handshakes_refused_total"])


def wait_heard(listener: Listener) -> None:
    """Wait for some frames more, and expect all before them."""
    wanted = last_of(listener) + 20
    wait_until(lambda: last_of(listener) >= wanted, 30.0, what=f"frame {wanted} at {listener!r}")
    assert listener.checker is not None
    assert listener.alive
    assert listener.checker.clean, listener.checker


def test_many_connections_of_one_key_cost_little(nodes: Nodes, crowd: Crowd) -> None:
    """Hundreds, on both ports: 5 to 7 MB; 20 MB where a key gets in as often as it likes."""
    repair = free_port()
    origin = nodes.start(
        "--children", f"ill={curve('ill')[0]}", "--advertise", f"127.0.0.1:{repair}",
        env={"RELAY_SECRET_KEY": SECRETS["parent"]},
    )  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(LiveSource(Source(origin.address, "/calm"), FrameMaker()))
        wait_known(origin, "/calm", timeout_s=30.0)
        listener = crowd.join(origin.address, "/calm", checker=FrameChecker(), keep=False)
        wait_heard(listener)
        memory = most = memory_bytes(origin.pid)
        for wanted in range(100, CONNECTIONS + 1, 100):
            many = Ill(origin.backbone, f"tcp://127.0.0.1:{repair}")
            stack.callback(many.close)
            for _ in range(50):
                many.attach(zmq.XSUB)
                many.attach(zmq.DEALER)
            wait_until(lambda wanted=wanted: judged(origin) == wanted, 30.0)  # type: ignore[misc]
            most = max(most, memory_bytes(origin.pid))
        print(f"\n{CONNECTIONS} connections, memory at most {(most - memory) / 1e6:+.1f} MB")
        told = origin.counters()
        assert told["backbone_handshakes_refused_often_total"] > CONNECTIONS // 2
        assert most - memory <= CONNECTIONS_BYTES_MAX
        wait_heard(listener)
