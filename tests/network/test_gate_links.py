"""Links with keys between real nodes: who is listed hears every frame, nobody else hears anything.

Rules of this room
  1. Refusals are seen as an operator sees them: in the log, the counters and the states of nodes.
  2. That somebody stays out is judged after somebody else, who came later, got in.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from tools.children import BEACON_TOPIC, Child, ask, split_address, throw_bytes
from tools.listeners import Crowd
from tools.nodes import NodeProcess, Nodes, wait_known, wait_until
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

from relay import _core
from relay.backbone import Backbone, open_backbone
from relay.gate import Gate
from relay.keys import Keys, make_secret, write_secret

ORIGIN, EDGE, STRANGER, LEFT, RIGHT = (make_secret() for _ in range(5))
JOIN = ask(b"J", "/nowhere", struct.pack("<QQ", 0, 3_000_000))
# ZMTP 3.0's greeting (https://rfc.zeromq.org/spec/23/), then a HELLO of CURVE that opens no box.
BROKEN = (
    b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
    + b"\x04\xc8\x05HELLO\x01\x00" + bytes(192)
)  # fmt: skip
PUBLIC = {secret: Keys(secret).public for secret in (ORIGIN, EDGE, STRANGER, LEFT, RIGHT)}


def curve(secret: str, parent: str = ORIGIN) -> tuple[str, str, str]:
    """The keys of a child by hand."""
    return PUBLIC[secret], secret.removeprefix("secret:"), PUBLIC[parent]


@pytest.fixture
def origin(nodes: Nodes, tmp_path: Path) -> NodeProcess:
    """A node on every address that lets EDGE in, with its key in a file."""
    path = tmp_path / "origin.key"
    write_secret(path, "origin", ORIGIN)
    words = ["--secret-key-file", str(path), "--children", f"edge={PUBLIC[EDGE]}"]
    node = nodes.start(*words, backbone="tcp://0.0.0.0:0")
    node.backbone = node.backbone.replace("0.0.0.0", "127.0.0.1")
    assert node.ready["backbone_key"] == PUBLIC[ORIGIN]
    return node


def below(nodes: Nodes, origin: NodeProcess, secret: str, key: str) -> NodeProcess:
    """A node with this secret key behind the origin, for whose key it takes `key`."""
    upstream = f"{origin.backbone}#{key}" if key else origin.backbone
    return nodes.start(upstreams=[upstream], env={"RELAY_SECRET_KEY": secret} if key else {})


def state(node: NodeProcess) -> str:
    """What a node says of its upstream."""
    return str(node.json("/api/v1/status")["upstream"]["state"])


def refused(node: NodeProcess, reason: str) -> int:
    """How many handshakes the node has refused for this reason."""
    name = f"backbone_handshakes_refused_{reason}_total"
    return int(node.counters()[name])


def test_listed_child_hears_every_frame_and_a_stranger_none(
    nodes: Nodes, crowd: Crowd, origin: NodeProcess
) -> None:
    """Runs, beacons, directory, joins and repairs all pass with keys; the trust is shown."""
    stranger = below(nodes, origin, STRANGER, PUBLIC[ORIGIN])
    keyless = below(nodes, origin, "", "")
    misled = below(nodes, origin, EDGE, PUBLIC[STRANGER])
    edge = below(nodes, origin, EDGE, PUBLIC[ORIGIN])
    with LiveSource(Source(origin.address, "/live"), FrameMaker()):
        wait_known(edge, "/live")
        listener = crowd.join(edge.address, "/live", checker=FrameChecker())
        crowd.wait_audio(30_000)
    assert listener.checker is not None
    assert listener.checker.clean, listener.checker
    assert state(edge) == "up"
    for node in (stranger, keyless, misled):
        assert state(node) == "connecting"
        assert node.json("/api/v1/status")["streams"] == []
    for node, trust in ((origin, "keys"), (edge, "keys"), (keyless, "loopback")):
        assert node.json("/healthz")["trust"] == trust
    for reason in ("key", "none", "broken"):
        said = origin.wait_event("child_refused", reason=reason)
        assert said["address"] in ("127.0.0.1", "?")
        assert refused(origin, reason) > 0
    assert PUBLIC[STRANGER] in stranger.wait_event("upstream_refused")["text"]
    misled.wait_event("upstream_refused")
    for node in (origin, edge, stranger, misled):
        for secret in (ORIGIN, EDGE, STRANGER):
            assert secret.removeprefix("secret:") not in node.output(10_000)


@pytest.mark.parametrize("redundancy", ["standby", "merge"])
def test_either_of_two_parents_with_keys_of_their_own_may_die(
    nodes: Nodes, crowd: Crowd, redundancy: str
) -> None:
    """Each link has the key of its own parent, and the dead one is not missed."""
    origin = nodes.start(
        *("--children", f"left={PUBLIC[LEFT]}", "--children", f"right={PUBLIC[RIGHT]}"),
        env={"RELAY_SECRET_KEY": ORIGIN},
    )
    parents = [
        nodes.start(
            *("--children", f"edge={PUBLIC[EDGE]}"),
            upstreams=[f"{origin.backbone}#{PUBLIC[ORIGIN]}"],
            env={"RELAY_SECRET_KEY": secret},
        )
        for secret in (LEFT, RIGHT)
    ]
    keys = (PUBLIC[LEFT], PUBLIC[RIGHT])
    edge = nodes.start(
        *("--redundancy", redundancy),
        upstreams=[f"{p.backbone}#{key}" for p, key in zip(parents, keys, strict=True)],
        env={"RELAY_SECRET_KEY": EDGE},
    )

    def states() -> list[str]:
        return [told["state"] for told in edge.json("/api/v1/status")["upstreams"]]

    wait_until(lambda: states() == ["up", "up"], 10.0, what="both parents are up")
    with LiveSource(Source(origin.address, "/live"), FrameMaker()):
        wait_known(edge, "/live")
        listener = crowd.join(edge.address, "/live", checker=FrameChecker())
        crowd.wait_audio(30_000)
        feeder = wait_until(
            lambda: edge.json("/api/v1/status")["streams"][0]["upstream"], 3.0, what="a feeder"
        )
        assert "#" not in feeder
        index = [parent.backbone for parent in parents].index(feeder)
        parents[index].kill9()
        wait_until(lambda: states()[index] == "lost", 5.0, what="the feeder is lost")
        crowd.wait_audio(listener.audio_bytes + 30_000, 10.0)
    assert listener.checker is not None
    assert listener.checker.clean, listener.checker
    assert states()[1 - index] == "up"
    for node in (origin, *parents, edge):
        for secret in (ORIGIN, LEFT, RIGHT, EDGE):
            assert secret.removeprefix("secret:") not in node.output(10_000)


def test_refusals_are_logged_once_a_minute(nodes: Nodes, origin: NodeProcess) -> None:
    """However often one tries."""
    stranger = below(nodes, origin, "", "")
    # libzmq may stop after each refusal: then the next comes 2 to 4 s later, by our own dialling
    wait_until(lambda: refused(origin, "none") >= 5, 30.0, what="five attempts")
    lines = [e for e in tuple(origin.events) if e.get("event") == "child_refused"]
    told = {(e["address"], e["reason"]) for e in lines}
    assert len(lines) == len(told)
    assert stranger.alive


def test_child_gets_in_once_its_parent_lists_it(nodes: Nodes, tmp_path: Path) -> None:
    """A refused node keeps trying: it need not be restarted when its key is added."""
    words = ["--children", f"other={PUBLIC[STRANGER]}"]
    parent = nodes.start(*words, env={"RELAY_SECRET_KEY": ORIGIN})
    edge = below(nodes, parent, EDGE, PUBLIC[ORIGIN])
    edge.wait_event("upstream_refused", 10.0)
    parent.args[:] = ["--children", f"edge={PUBLIC[EDGE]}"]
    parent.restart()
    wait_until(lambda: state(edge) == "up", 10.0, what="the edge is let in")


def test_child_by_hand_with_a_listed_key_is_answered(origin: NodeProcess) -> None:
    """XPUB and ROUTER both take the key; without one neither says a word."""
    with Child(origin.backbone, curve=curve(EDGE)) as child:
        repair = child.repair
        assert not silence(repair, zmq.DEALER, curve(EDGE), JOIN)
        assert silence(origin.backbone, zmq.XSUB, None, b"\x01" + BEACON_TOPIC)
        assert silence(repair, zmq.DEALER, None, JOIN)
        assert silence(origin.backbone, zmq.XSUB, curve(STRANGER), b"\x01" + BEACON_TOPIC)
        assert silence(repair, zmq.DEALER, curve(STRANGER), JOIN)
        assert child.join("/nowhere")[:1] == b"u"


def silence(address: str, kind: int, keys: tuple[str, str, str] | None, message: bytes) -> bool:
    """Whether a socket with these keys, or none, hears nothing for half a second."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peer = context.socket(kind)
    try:
        if keys is not None:
            peer.setsockopt(zmq.CURVE_PUBLICKEY, bytes.fromhex(keys[0]))
            peer.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(keys[1]))
            peer.setsockopt(zmq.CURVE_SERVERKEY, bytes.fromhex(keys[2]))
        peer.connect(address)
        peer.send(message)
        return not peer.poll(500)
    finally:
        context.destroy(linger=0)


def test_garbage_on_keyed_ports_changes_nothing(
    nodes: Nodes, crowd: Crowd, origin: NodeProcess
) -> None:
    """Random bytes from strangers, malformed messages from one who has a key: counted, no more.

    What is no ZeroMQ at all is dropped by the transport, without a word.
    """
    edge = below(nodes, origin, EDGE, PUBLIC[ORIGIN])
    with LiveSource(Source(origin.address, "/live"), FrameMaker()):
        wait_known(edge, "/live")
        listener = crowd.join(edge.address, "/live", checker=FrameChecker())
        with Child(origin.backbone, curve=curve(EDGE)) as child:
            for address in (origin.backbone, child.repair):
                throw_bytes(address, random.Random(3))
                with socket.create_connection(split_address(address), timeout=5.0) as raw:
                    raw.sendall(BROKEN)
                    while raw.recv(1000):
                        pass
            child.say_garbage(random.Random(5))
            assert child.join("/nowhere", version=99) == b""
            assert child.join("/live")[:1] in {b"h", b"e", b"l"}
        wait_until(lambda: refused(origin, "broken") == 2, 5.0, what="broken handshakes")
        counters = origin.counters()
        for reason in ("topic", "short", "version"):
            assert counters[f"backbone_refused_{reason}_total"] > 0, reason
        crowd.wait_audio(30_000)
    assert listener.checker is not None
    assert listener.checker.clean, listener.checker
    assert state(edge) == "up"


# --- without an answer ---------------------------------------------------------------------------


@pytest.fixture
def guarded() -> Iterator[Backbone]:
    """A backbone with keys, in this process."""
    engine = _core.Engine(streams_max=4)
    backbone = open_backbone(
        engine, bind="tcp://127.0.0.1:0", keys=Keys(ORIGIN), children={"edge": PUBLIC[EDGE]}
    )
    yield backbone
    backbone.close()


def is_in(backbone: Backbone, timeout_s: float) -> bool:
    """Whether a listed child hears a beacon within the time."""
    assert backbone.address
    return not silence_for(backbone.address, timeout_s)


def silence_for(address: str, timeout_s: float) -> bool:
    """As silence(), with a listed key, for so long."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if not silence(address, zmq.XSUB, curve(EDGE), b"\x01" + BEACON_TOPIC):
            return False
    return True


def silent(request: list[bytes]) -> list[bytes]:
    """No answer: what a handler that has failed gives."""
    raise RuntimeError("planted")


def allow_all(request: list[bytes]) -> list[bytes]:
    """An answer for a domain that nobody asked about is none of ours."""
    return [b"1.0", b"wrong id", b"200", b"OK", b"x", b""]


@pytest.mark.parametrize("broken", [silent, allow_all])
def test_no_answer_is_a_refusal(
    guarded: Backbone,
    broken: Callable[[list[bytes]], list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler that fails, or answers something else, lets not even listed children in."""
    assert is_in(guarded, 5.0)
    assert guarded._gate is not None
    monkeypatch.setattr(guarded._gate, "answer", broken)
    assert not is_in(guarded, 1.5)


def test_a_gate_that_is_gone_is_a_refusal(guarded: Backbone) -> None:
    """With ZAP_ENFORCE_DOMAIN libzmq lets nobody in whom it cannot ask about."""
    gate = guarded._gate
    assert gate is not None
    gate.unwatch()
    gate.close()
    guarded._gate = None
    assert not is_in(guarded, 1.5)


def test_without_a_handler_libzmq_would_let_anyone_in() -> None:
    """The trap itself: a CURVE server with neither handler nor enforced domain takes any key."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server = context.socket(zmq.XPUB)
    server.setsockopt(zmq.CURVE_SERVER, 1)
    server.setsockopt(zmq.CURVE_SECRETKEY, Keys(ORIGIN).secret_bytes)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    peer = context.socket(zmq.XSUB)
    for option, key in zip(
        (zmq.CURVE_PUBLICKEY, zmq.CURVE_SECRETKEY, zmq.CURVE_SERVERKEY),
        curve(STRANGER),
        strict=True,
    ):
        peer.setsockopt(option, bytes.fromhex(key))
    peer.connect(f"tcp://127.0.0.1:{port}")
    peer.send(b"\x01x")
    try:
        assert server.poll(2000)
    finally:
        context.destroy(linger=0)


def test_unfinished_handshakes_are_ended_and_counted(guarded: Backbone) -> None:
    """Who connects and says nothing is let go after HANDSHAKE_IVL, 5 s."""
    assert guarded.address
    with socket.create_connection(split_address(guarded.address), timeout=10.0) as raw:
        begin_s = time.monotonic()
        while raw.recv(1000):
            pass
        assert 3.0 < time.monotonic() - begin_s < 9.0
    wait_until(lambda: counted(guarded)["unfinished"] == 1, 2.0, what="one unfinished handshake")
    assert is_in(guarded, 5.0)


def counted(backbone: Backbone) -> dict[str, Any]:
    """Refused handshakes by reason."""
    told: dict[str, Any] = backbone.snapshot()["counters"]["handshakes_refused"]
    return told


def test_one_refusal_is_counted_once(guarded: Backbone) -> None:
    """By its reason and no other."""
    assert guarded.address
    assert silence(guarded.address, zmq.XSUB, curve(STRANGER), b"\x01" + BEACON_TOPIC)
    assert {reason: count for reason, count in counted(guarded).items() if count} == {"key": 1}


def test_two_keyed_backbones_live_in_one_process(guarded: Backbone) -> None:
    """Each has a context and a gate of its own."""
    engine = _core.Engine(streams_max=4)
    second = open_backbone(
        engine,
        bind="tcp://127.0.0.1:0",
        keys=Keys(EDGE),
        children={"x": PUBLIC[STRANGER]},
        upstreams=[f"{guarded.address}#{PUBLIC[ORIGIN]}"],
    )
    try:
        wait_until(lambda: second.snapshot()["upstream"]["state"] == "up", 5.0, what="up")
        assert isinstance(second._gate, Gate)
        assert second.public_key == PUBLIC[EDGE]
    finally:
        second.close()


# --- a child that holds a key and means ill ------------------------------------------------------

GROWTH_BYTES_MAX = 16 << 20
FLOOD = """
import os, sys, zmq
socket = zmq.Context().socket(zmq.XSUB)
options = (zmq.CURVE_PUBLICKEY, zmq.CURVE_SECRETKEY, zmq.CURVE_SERVERKEY)
for option, key in zip(options, sys.argv[3:]):
    socket.setsockopt(option, bytes.fromhex(key))
socket.connect(sys.argv[1])
while True:
    socket.send(bytes([1]) + b"S" + os.urandom(int(sys.argv[2]) - 1))
"""


def resident_bytes(pid: int) -> int:
    """The memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("keyed", [True, False], ids=["keys", "no keys"])
@pytest.mark.parametrize("topic_bytes", [9, 60, 280])
def test_child_that_subscribes_without_end_is_cut(
    nodes: Nodes, crowd: Crowd, keyed: bool, topic_bytes: int
) -> None:
    """Its connection ends, it is off the list for a minute; another child hears everything."""
    listed = (("edge", EDGE), ("ill", STRANGER)) if keyed else ()
    words = [word for name, key in listed for word in ("--children", f"{name}={PUBLIC[key]}")]
    parent = nodes.start(*words, env={"RELAY_SECRET_KEY": ORIGIN} if keyed else {})
    edge = below(nodes, parent, EDGE if keyed else "", PUBLIC[ORIGIN] if keyed else "")
    with LiveSource(Source(parent.address, "/live"), FrameMaker()):
        wait_known(edge, "/live")
        listener = crowd.join(edge.address, "/live", checker=FrameChecker())
        before = resident_bytes(parent.pid)
        keys = curve(STRANGER) if keyed else ()
        words = [sys.executable, "-c", FLOOD, parent.backbone, str(topic_bytes), *keys]
        ill = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        try:
            if topic_bytes <= 60 or keyed:  # else libzmq itself ends it: MAXMSGSIZE
                said = parent.wait_event("child_expelled", 10.0)
                assert said["child"] == ("ill" if keyed else "")
            crowd.wait_audio(16_000)
            grown = resident_bytes(parent.pid) - before
            print(f"\ngrown by {grown / 2**20:.1f} MiB")
            assert grown < GROWTH_BYTES_MAX
            if keyed:
                wait_until(lambda: refused(parent, "turned_away") > 0, 5.0, what="turned away")
        finally:
            ill.kill()
            ill.wait()
    assert listener.checker is not None
    assert listener.checker.clean, listener.checker
    assert state(edge) == "up"
    assert parent.counters()["backbone_expelled_total"] < 1000
