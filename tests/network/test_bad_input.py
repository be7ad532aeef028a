"""Bad input gets a clear line or a counted refusal; the node lives, and nobody else notices.

Rules of this room
  1. One origin and one edge stand for the whole file, with a stream of their own on which listeners
     check every frame: after each test all of them must have heard all of it.
  2. A node that refuses to start says one line on stderr, without a traceback, and has status 2.
  3. A refusal on a running node is seen in the counters of /api/v1/status, as an operator sees it.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from tools.children import Child, FakeParent, throw_bytes
from tools.faults import IdleCrowd, from_address, memory_bytes, reset
from tools.listeners import Crowd, Listener
from tools.nodes import NodeProcess, Nodes, wait_known, wait_until
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

HEAD_TIMEOUT_S = 1.0


class House:
    """A running origin and edge, a stream that nobody may disturb, and those who listen to it."""

    def __init__(self, nodes: Nodes, crowd: Crowd) -> None:
        options = ["--head-timeout-s", str(HEAD_TIMEOUT_S)]
        self.origin, self.edge = nodes.row(2, *options)
        self.maker = FrameMaker()
        self.source = LiveSource(Source(self.origin.address, "/calm"), self.maker).start()
        wait_known(self.edge, "/calm")
        self.listeners = [
            crowd.join(node.address, "/calm", checker=FrameChecker(), keep=False)
            for node in (self.origin, self.origin, self.edge, self.edge)
        ]
        self.check_calm()

    def check_calm(self) -> None:
        """Wait until each listener has heard what is made now; none may have missed anything."""
        wanted = self.maker.sequence

        def all_have() -> bool:
            return all(last_of(one) >= wanted or not one.alive for one in self.listeners)

        wait_until(all_have, 5.0, what=f"frame {wanted} of /calm at each listener")
        for listener in self.listeners:
            assert listener.alive, listener
            assert listener.checker is not None
            assert listener.checker.clean, listener.checker


def last_of(listener: Listener) -> int:
    """Return the sequence that the listener heard last; -1 before the first."""
    assert listener.checker is not None
    return -1 if listener.checker.last is None else listener.checker.last


@pytest.fixture(scope="module")
def shared_house() -> Iterator[House]:
    """The house of this file."""
    with Nodes() as nodes, Crowd() as crowd:
        house = House(nodes, crowd)
        yield house
        house.source.stop()


@pytest.fixture
def house(shared_house: House) -> Iterator[House]:
    """The house, whose listeners must not have noticed anything when the test is over."""
    yield shared_house
    assert shared_house.origin.alive
    assert shared_house.edge.alive
    shared_house.check_calm()


def counted(node: NodeProcess, name: str) -> int:
    """Return one counter of a node; what never happened is not listed."""
    return int(node.counters().get(name, 0))


def wait_counted(node: NodeProcess, name: str, at_least: int) -> None:
    """Wait until the counter has come so far."""
    wait_until(lambda: counted(node, name) >= at_least, 5.0, what=f"{name} >= {at_least}")


# --- refusing to start ---------------------------------------------------------------------------


def refused_line(node: NodeProcess) -> str:
    """Let the node try to start; returns its one line of complaint."""
    begin_s = time.monotonic()
    status = node.spawn().wait(10.0)
    lines = [line for line in node.lines if "password for this run" not in line]
    assert status == 2, node.output()
    assert len(lines) == 1, node.output()
    assert lines[0].startswith("relay: ")
    print(f"\n{lines[0]} ({time.monotonic() - begin_s:.1f} s)")
    return lines[0]


def test_taken_http_port_is_named(house: House, nodes: Nodes) -> None:
    """By another Relay: the second one says which address is taken, and the first lives on."""
    line = refused_line(nodes.spawn_later(http=house.origin.http))
    assert house.origin.http in line
    assert "taken" in line
    line = refused_line(nodes.spawn_later("--threads", "2", http=house.origin.http))
    assert house.origin.http in line


def test_http_port_taken_by_another_program_is_named(nodes: Nodes) -> None:
    """By any program."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in refused_line(nodes.spawn_later(http=address))


def test_taken_backbone_port_is_named(house: House, nodes: Nodes) -> None:
    """The line says that the port is taken, and what to do."""
    line = refused_line(nodes.spawn_later(backbone=house.origin.backbone))
    assert house.origin.backbone in line
    assert "taken" in line


@pytest.mark.parametrize(
    "upstream",
    [
        "127.0.0.1:9000",
        "tcp://",
        "tcp://host",
        "tcp://host:0",
        "tcp://host:70000",
        "tcp://::1:9000",
    ],
)
def test_malformed_upstream_is_named(nodes: Nodes, upstream: str) -> None:
    """Key, value and what is wrong with it, in one line."""
    line = refused_line(nodes.spawn_later(upstreams=[upstream]))
    assert "backbone.upstream" in line
    assert f'"{upstream}"' in line


def test_backbone_off_loopback_is_refused(nodes: Nodes) -> None:
    """Without keys and without --insecure-backbone no other machine may get in."""
    line = refused_line(nodes.spawn_later(backbone="tcp://0.0.0.0:0"))
    assert "--insecure-backbone" in line


def test_unreachable_upstream_leaves_a_node_that_serves_its_own(nodes: Nodes, crowd: Crowd) -> None:
    """It starts, says so in its log and in /readyz, serves its own stream, and answers 503 else."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        upstream = f"tcp://127.0.0.1:{probe.getsockname()[1]}"  # free again in a moment
    node = nodes.start("--join-wait-ms", "300", upstreams=[upstream])
    said = node.wait_event("upstream_connecting", 5.0)
    print(f"\n{said['text']}")
    assert upstream in said["text"]
    assert node.get("/readyz").status == 503
    assert node.get("/healthz").status == 200
    assert node.json("/api/v1/status")["upstream"]["state"] == "connecting"
    assert node.get("/elsewhere").status == 503
    with LiveSource(Source(node.address, "/own"), FrameMaker()):
        listener = crowd.join(node.address, "/own", checker=FrameChecker())
        crowd.wait_audio(8_000)
    assert listener.checker is not None
    assert listener.checker.clean, listener.checker


def test_who_asks_before_the_upstream_is_known_leaves_the_door_to_others(nodes: Nodes) -> None:
    """Who waits for it takes a listener's place: more than those are told 503, pages answer."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        upstream = f"tcp://127.0.0.1:{probe.getsockname()[1]}"  # free again in a moment
    bounds = ("--listeners-max", "5", "--heads-max", "64", "--join-wait-ms", "8000")
    node = nodes.start(*bounds, upstreams=[upstream])
    with contextlib.ExitStack() as open_ones:
        waiting = [
            open_ones.enter_context(closing(socket.create_connection(node.address, timeout=5.0)))
            for _ in range(60)
        ]
        for sock in waiting:
            sock.sendall(b"GET /unknown HTTP/1.0\r\n\r\n")
        assert node.get("/healthz").status == 200
        told = 0
        for sock in waiting:
            sock.setblocking(False)
        wait_counted(node, "refused_full_total", 55)
        for sock in waiting:
            with contextlib.suppress(BlockingIOError):
                told += sock.recv(100).startswith(b"HTTP/1.0 503 ")
        assert told == 55
        assert counted(node, "listeners") == 5
    assert node.get("/unknown?" + "x" * 2000).status == 503  # at once: such a request is not kept
    wait_until(lambda: counted(node, "listeners") == 0, 5.0, what="their places to be free")


# --- sources -------------------------------------------------------------------------------------


def test_bad_password_is_refused_and_counted(house: House) -> None:
    """401 before any audio, with and without Expect, with PUT and SOURCE."""
    before = counted(house.origin, "source_refused_password_total")
    for method, expect in (("PUT", True), ("PUT", False), ("SOURCE", False)):
        with Source(
            house.origin.address, "/new", method=method, expect=expect, password="wrong"
        ) as source:
            assert source.connect() == 401
    wait_counted(house.origin, "source_refused_password_total", before + 3)


def test_second_source_is_refused(house: House) -> None:
    """403 for a mount in use; the first source goes on."""
    with Source(house.origin.address, "/calm") as source:
        assert source.connect() == 403
    with Source(house.edge.address, "/calm") as source:  # from upstream: in use there as well
        assert source.connect() == 403


def test_unknown_content_type_is_refused(house: House) -> None:
    """415 for what Relay does not carry."""
    with Source(house.origin.address, "/new", content_type="video/mp4") as source:
        assert source.connect() == 415


@pytest.mark.parametrize("content_type", ["audio/mpeg", "audio/aac", "audio/ogg"])
def test_garbage_as_audio_ends_the_source(house: House, content_type: str) -> None:
    """Random bytes are no audio of any format: the source is ended with a reason, and counted."""
    before = counted(house.origin, "source_broken_total")
    mount = f"/garbage-{content_type.rpartition('/')[2]}"
    with Source(house.origin.address, mount, content_type=content_type) as source:
        assert source.connect() == 100
        source.send(random.Random(7).randbytes(400_000))
        assert source.status(3.0) == 400
    down = house.origin.wait_event("source_down", 3.0, mount=mount)
    print(f"\n{down['text']}")
    wait_counted(house.origin, "source_broken_total", before + 1)


# --- request heads -------------------------------------------------------------------------------


def test_half_a_request_is_ended_after_its_time(house: House) -> None:
    """A head that never ends is let go after head_timeout_s, and counted."""
    before = counted(house.origin, "heads_expired_total")
    with socket.create_connection(house.origin.address, timeout=5.0) as raw:
        raw.sendall(b"GET /calm HTTP/1.1\r\nHost: half")
        begin_s = time.monotonic()
        assert raw.recv(100) == b""
        assert HEAD_TIMEOUT_S * 0.8 <= time.monotonic() - begin_s <= HEAD_TIMEOUT_S + 1.0
    wait_counted(house.origin, "heads_expired_total", before + 1)


@pytest.mark.parametrize(
    ("head", "status", "counter"),
    [
        (b"GET /calm HTTP/1.1\r\nX: " + b"x" * 9000, b"431", "refused_too_large_total"),
        (b"GET /calm HTTP/1.1\r\n" + b"A: b\r\n" * 65 + b"\r\n", b"431", "refused_too_large_total"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", b"431", "refused_too_large_total"),
        (b"\x16\x03\x01\x02\x00\x01\xfc\x03\x03\r\n\r\n", b"400", "refused_malformed_total"),
        (b"GET /calm HTTP/1.1\r\nNo colon\r\n\r\n", b"400", "refused_malformed_total"),
        (b"BREW /calm HTTP/1.1\r\nHost: a\r\n\r\n", b"405", "refused_method_total"),
        (b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", b"404", "refused_not_found_total"),
    ],
    ids=["long", "fields", "path", "binary", "colon", "method", "missing"],
)
def test_bad_head_is_answered_and_counted(
    house: House, head: bytes, status: bytes, counter: str
) -> None:
    """The answer is whole, says what is wrong in one line, and the connection ends."""
    before = counted(house.origin, counter)
    with socket.create_connection(house.origin.address, timeout=5.0) as raw:
        raw.sendall(head)
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.split(b" ")[1] == status, answer
    assert answer.endswith(b"\n")
    wait_counted(house.origin, counter, before + 1)


# --- crowds that mean no good --------------------------------------------------------------------

CROWD_BYTES_MAX = 48 << 20  # 20,000 records, 2,048 heads of 8 KiB, and slack
WHOLE = b"GET /calm HTTP/1.0\r\n\r\n"


@pytest.mark.parametrize("words", [b"", b"GET /calm HT"], ids=["silent", "dripping"])
def test_twenty_thousand_idle_connections_are_bounded(
    house: House, crowd: Crowd, words: bytes
) -> None:
    """From 64 addresses, twice 10,000: who asks gets in all the same, memory stays bounded, each
    of them is ended after its time, and those who listen miss nothing."""
    node = house.origin
    gone = ("heads_expired_total", "heads_evicted_total")
    before = {name: counted(node, name) for name in gone}
    memory = memory_bytes(node.pid)
    with (
        IdleCrowd(node.address, 10_000, addresses=64, words=words) as one,
        IdleCrowd(node.address, 10_000, addresses=64, words=words) as two,
    ):
        assert one.opened + two.opened == 20_000
        listener = crowd.join(node.address, "/calm", checker=FrameChecker(), keep=False)
        wait_until(lambda: listener.audio_bytes > 0, 5.0, what="a listener among the idle")
        assert memory_bytes(node.pid) - memory < CROWD_BYTES_MAX
        wait_until(
            lambda: sum(counted(node, name) - before[name] for name in gone) >= 19_900,
            40.0,
            what="the idle to be ended",
        )
        house.check_calm()
    assert counted(node, "heads") == 0


def test_a_slow_drip_from_everywhere_is_ended_in_time(house: House) -> None:
    """A byte now and then keeps nobody in: the time counts from the first."""
    before = counted(house.origin, "heads_expired_total")
    where = house.origin.address
    socks = [socket.create_connection(where, 5.0, (from_address(n), 0)) for n in range(200)]
    begin_s = time.monotonic()
    while counted(house.origin, "heads_expired_total") < before + 200:
        assert time.monotonic() - begin_s < 3 * HEAD_TIMEOUT_S + 2
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(b"G")
        time.sleep(0.1)
    for sock in socks:
        sock.close()


def test_a_request_line_of_a_megabyte_is_answered(house: House) -> None:
    """431 after 8 KiB; what still comes is read and forgotten, or the answer would be lost."""
    before = counted(house.origin, "refused_too_large_total")
    memory = memory_bytes(house.origin.pid)
    for _ in range(20):
        with socket.create_connection(house.origin.address, timeout=5.0) as raw:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                raw.sendall(b"GET /" + b"x" * (1 << 20))
            assert raw.recv(100).startswith(b"HTTP/1.0 431 ")
    wait_counted(house.origin, "refused_too_large_total", before + 20)
    assert memory_bytes(house.origin.pid) - memory < 4 << 20


def test_pipelined_garbage_ends_the_listener(house: House) -> None:
    """A listener has nothing to say: 64 KiB are forgiven, more end it, counted."""
    before = counted(house.origin, "ended_garbage_total")
    dice = random.Random(11)
    with socket.create_connection(house.origin.address, timeout=5.0) as raw:
        raw.sendall(WHOLE + WHOLE * 100)
        assert raw.recv(100).startswith(b"HTTP/1.0 200 ")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                raw.sendall(dice.randbytes(4096))
        wait_counted(house.origin, "ended_garbage_total", before + 1)


def test_resets_in_the_middle_of_a_burst_are_counted(house: House) -> None:
    """300 who join and reset at once, or before their head is read: each is gone, none in doubt."""
    before = counted(house.origin, "joins_total")
    listening = counted(house.origin, "listeners")
    for number in range(300):
        sock = socket.create_connection(house.origin.address, timeout=5.0)
        sock.sendall(WHOLE)
        if number % 3 > 0:
            assert sock.recv(50 * (number % 3)).startswith(b"HTTP/1.0 200 ")
        reset(sock)
    wait_counted(house.origin, "joins_total", before + 200)
    wait_until(lambda: counted(house.origin, "listeners") == listening, 5.0)
    wait_until(lambda: counted(house.origin, "heads") == 0, 5.0)


# --- the backbone's ports ------------------------------------------------------------------------


@pytest.fixture
def child(house: House) -> Iterator[Child]:
    """A child of the origin, by hand."""
    with Child(house.origin.backbone) as one:
        yield one


def refused(node: NodeProcess) -> int:
    """Return how many messages the node's backbone has refused."""
    return counted(node, "backbone_refused_total")


def test_random_bytes_on_both_backbone_ports_change_nothing(house: House, child: Child) -> None:
    """What is no ZeroMQ at all is dropped by the transport."""
    dice = random.Random(3)
    throw_bytes(house.origin.backbone, dice)
    throw_bytes(child.repair, dice)
    house.check_calm()


def test_malformed_messages_are_counted(house: House, child: Child) -> None:
    """Requests and subscriptions of random bytes are refused, each with its reason."""
    before = refused(house.origin)
    child.say_garbage(random.Random(5))
    wait_until(lambda: refused(house.origin) >= before + 300, 5.0, what="refusals")
    assert counted(house.origin, "backbone_refused_topic_total") > 0
    assert counted(house.origin, "backbone_refused_short_total") > 0


def test_request_of_another_version_is_counted(house: House, child: Child) -> None:
    """A child that speaks another version gets no answer, and the operator a number."""
    before = counted(house.origin, "backbone_refused_version_total")
    assert child.join("/calm", version=99) == b""
    wait_counted(house.origin, "backbone_refused_version_total", before + 1)


def test_child_that_asks_for_a_missing_stream_is_told(house: House, child: Child) -> None:
    """It may subscribe to what does not exist; its question is answered: unknown."""
    before = counted(house.origin, "backbone_told_unknown_total")
    child.subscribe_mount("/nowhere")
    assert child.join("/nowhere")[:1] == b"u"
    wait_counted(house.origin, "backbone_told_unknown_total", before + 1)
    assert child.join("/calm")[:1] in {b"h", b"e", b"l"}


def test_upstream_of_another_version_is_a_clear_state(
    nodes: Nodes, house: House, until: Callable[..., None]
) -> None:
    """A node below it says so in its log and its status, and serves its own streams."""
    with FakeParent() as parent:
        node = nodes.start(upstreams=[parent.backbone])
        parent.wait_child()
        until(lambda: parent.beacon(version=99), lambda: upstream_state(node) == "version")
        said = node.wait_event("upstream_version", 3.0)
    print(f"\n{said['text']}")
    assert parent.backbone in said["text"]
    assert node.get("/healthz").status == 200


def upstream_state(node: NodeProcess) -> str:
    """Return what the node says of its upstream."""
    return str(node.json("/api/v1/status")["upstream"]["state"])


@pytest.fixture
def until() -> Callable[[Callable[[], None], Callable[[], bool]], None]:
    """Do something again and again until something is true, for at most 5 s."""

    def repeat(act: Callable[[], None], done: Callable[[], bool]) -> None:
        def step() -> bool:
            act()
            return done()

        wait_until(step, 5.0, every_s=0.1)

    return repeat


def test_metrics_tell_the_same_refusals(house: House) -> None:
    """What is counted in the status is in /metrics too."""
    text = house.origin.get("/metrics").body.decode()
    for name in (
        "relay_refused_not_found_total",
        "relay_refused_too_large_total",
        "relay_heads_expired_total",
        "relay_backbone_refused_total",
        "relay_backbone_told_unknown_total",
    ):
        assert f"\n{name} " in text, name
