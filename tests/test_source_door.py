"""The Icecast source protocol over a transport of plain Python, stepped by a fake clock."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
import time
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeSource
from tools.nodes import wait_until

from relay import _core, source_connection
from relay.config import Config
from relay.sockets import tune
from relay.source_connection import DRAIN_S, REQUESTS_MAX, SourceConnection
from relay.source_door import WAITING_MAX, SourceDoor
from relay.source_gate import Gate
from relay.sources import Sources


class FakeTransport(asyncio.Transport):
    """Keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.half_closed = self.closed = self.paused = False

    def write(self, data: Any) -> None:
        """Keep."""
        self.sent += bytes(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """A socket of which only the number is asked."""
        return self

    def fileno(self) -> int:
        """Its number."""
        return 7

    def write_eof(self) -> None:
        """Half-close."""
        self.half_closed = True

    def is_closing(self) -> bool:
        """Whether it is."""
        return self.closed

    def close(self) -> None:
        """Close."""
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        """Hold back."""
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        """Go on."""
        self.paused = False


class Bench:
    """One connection on a bench: a node's sources, a transport, a clock and its timers."""

    def __init__(self, **settings: Any) -> None:
        self.engine: Any = FakeEngine()
        overrides = {"source_password": "pw", **settings}
        self.config = Config.load(overrides=overrides, environ={})
        self.sources = Sources(self.engine, self.config)
        self.gate = Gate(self.sources, self.config)
        self.now = 100.0
        self.gone: list[SourceConnection] = []

    def connect(self, head: bytes | str = b"") -> tuple[SourceConnection, FakeTransport]:
        """Open a connection of which the engine has read this."""
        connection = SourceConnection(
            self.gate,
            self.sources,
            ahead_ms=lambda mount: self.config.for_stream(mount).ahead_ms,
            clock=lambda: self.now,
            gone=self.gone.append,
            head=head.encode() if isinstance(head, str) else head,
            peer=("192.0.2.7", 4711),
        )
        transport = FakeTransport()
        connection.connection_made(transport)
        return connection, transport

    def tick(self, seconds: float, connection: SourceConnection) -> None:
        """Let time pass."""
        self.now += seconds
        connection.tick(self.now, head_timeout_s=10, source_timeout_s=10)


def head(
    method: str = "PUT",
    target: str = "/live",
    *lines: str,
    version: str = "HTTP/1.1",
    password: str | None = "pw",
    user: str = "source",
    content_type: str | None = "audio/mpeg",
) -> str:
    """The head of a source's request."""
    if password is not None:
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        lines = (*lines, f"Authorization: Basic {token}")
    if content_type is not None:
        lines = (*lines, f"Content-Type: {content_type}")
    return "\r\n".join([f"{method} {target} {version}", *lines, "", ""])


def cutter(connection: SourceConnection) -> FakeSource:
    """The engine's side of a connection in its body."""
    assert connection._source is not None
    found: Any = connection._source._cutter
    return found  # type: ignore[no-any-return]


def hang_up(connection: SourceConnection) -> None:
    """Let the encoder close its end, as the engine tells of it."""
    cutter(connection).end("closed")
    connection.look()


def say(connection: SourceConnection, data: bytes) -> None:
    """Let these bytes come: to the connection, or in its body to the engine."""
    while data:
        if connection.state == "body":
            cutter(connection).receive(data)
            connection.look()
            return
        buffer = connection.get_buffer(-1)
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        connection.buffer_updated(size)
        data = data[size:]


EXPECT = "Expect: 100-continue"


@pytest.fixture(autouse=True)
def _fake_cutter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "Source", FakeSource)
    # Its audio is no audio: here whatever was promised is believed, of any bytes and none.
    monkeypatch.setattr(source_connection, "settle", lambda first, promised, whole: promised)


@pytest.fixture
def bench() -> Bench:
    """A node whose source password is pw."""
    return Bench()


def test_put_that_expects_gets_100_at_once_and_200_at_the_end(bench: Bench) -> None:
    """ffmpeg: a bare 100, then audio until it closes, then the final 200."""
    connection, transport = bench.connect(head("PUT", "/live", EXPECT, "Connection: close"))
    assert transport.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    say(connection, b"audio" * 10)
    assert bytes(bench.engine.find("/live").fed) == b"audio" * 10
    hang_up(connection)
    assert transport.sent.endswith(b"\r\n\r\nHTTP/1.0 200 OK\r\n\r\n")
    assert not bench.engine.find("/live").source_up


@pytest.mark.parametrize(("method", "version"), [("SOURCE", "HTTP/1.0"), ("PUT", "HTTP/1.1")])
def test_source_that_does_not_expect_gets_200_at_once(
    bench: Bench, method: str, version: str
) -> None:
    """Icecast 2.4.4 answers so, and encoders have learnt it."""
    _, transport = bench.connect(head(method, version=version))
    assert transport.sent == b"HTTP/1.0 200 OK\r\n\r\n"


def test_old_ice_protocol_name_is_taken(bench: Bench) -> None:
    """Old encoders write ICE/1.0 in place of HTTP/1.0."""
    _, transport = bench.connect(head("SOURCE", version="ICE/1.0"))
    assert transport.sent == b"HTTP/1.0 200 OK\r\n\r\n"


def test_audio_that_came_with_the_head_is_not_lost(bench: Bench) -> None:
    """The engine reads as much as is there; what follows the head is audio."""
    bench.connect(head() + "first audio")
    assert bytes(bench.engine.find("/live").fed) == b"first audio"


def test_head_in_pieces_is_awaited(bench: Bench) -> None:
    """One byte at a time gives the same source."""
    connection, transport = bench.connect()
    for byte in head().encode() + b"abc":
        say(connection, bytes([byte]))
    assert transport.sent == b"HTTP/1.0 200 OK\r\n\r\n"
    assert bytes(bench.engine.find("/live").fed) == b"abc"


def test_probe_of_libshout_keeps_the_connection(bench: Bench) -> None:
    """401 with Allow and a length; then the real request on the same connection works."""
    probe = head("PUT", "/live", "Content-Length: 0", "Connection: Keep-Alive", password=None)
    connection, transport = bench.connect(probe)
    assert transport.sent.startswith(b"HTTP/1.0 401 Unauthorized\r\n")
    assert b"\r\nAllow: GET, HEAD, OPTIONS, PUT, SOURCE, POST\r\n" in transport.sent
    assert b"\r\nContent-Length: " in transport.sent
    assert not transport.half_closed
    transport.sent = b""
    say(connection, head("PUT", "/live", EXPECT).encode())
    assert transport.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert bench.gate.counters["probes_total"] == 1
    assert bench.gate.counters["refused_password_total"] == 0


def test_a_probe_is_no_line_in_the_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Who gave no credentials gave none that are wrong; who gave wrong ones is told of."""
    with caplog.at_level(logging.INFO, "relay.source"):
        bench.connect(head("PUT", "/live", EXPECT, password=None))
        assert caplog.records == []
        bench.connect(head("PUT", "/live", EXPECT, password="wrong"))
        assert "401 user or password is wrong" in caplog.text


def test_probes_without_end_are_ended(bench: Bench) -> None:
    """A kept connection has a bounded number of tries at the password."""
    probe = head("PUT", "/live", "Content-Length: 0", password="guess").encode()
    _, transport = bench.connect(probe * (REQUESTS_MAX + 3))
    assert transport.sent.count(b"401 Unauthorized") == REQUESTS_MAX
    assert transport.half_closed


@pytest.mark.parametrize(
    "request_head",
    [
        head(password="wrong"),
        head(password=None),
        head(user="admin"),
        head(password=""),
        head("SOURCE", "/live", EXPECT, password="wrong"),
    ],
)
def test_wrong_password_gets_401_before_any_100(bench: Bench, request_head: str) -> None:
    """Every decision falls before the 100; nothing is claimed."""
    _, transport = bench.connect(request_head)
    assert transport.sent.startswith(b"HTTP/1.0 401 ")
    assert b"WWW-Authenticate: Basic realm=" in transport.sent
    assert b" 100 " not in transport.sent
    assert transport.half_closed
    assert bench.engine.streams() == []


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(content_type="audio/flac"), 415),
        (head(content_type="text/plain"), 415),
        (head(target="/admin/x"), 400),
        (head(target="/metrics"), 400),
        (head(target="/a%00b"), 400),
        (head(target="/%ff"), 400),
        (head("PUT", "/live", "Transfer-Encoding: gzip"), 501),
        (head("PUT", "/live", "Transfer-Encoding: chunked", "Content-Length: 9"), 400),
        (head("POST"), 405),
        (head("DELETE"), 405),
        ("PUT /live\r\n\r\n", 400),
        ("PUT /live HTTP/1.1\r\n" + "a: b\r\n" * 65 + "\r\n", 431),
        ("x" * 9000, 431),
    ],
)
def test_requests_that_cannot_be_sources_are_refused(
    bench: Bench, request_head: str, status: int
) -> None:
    """Each with a status that encoders understand and one line of reason."""
    connection, transport = bench.connect(request_head)
    assert transport.sent.startswith(f"HTTP/1.0 {status} ".encode())
    assert transport.sent.count(b"\n") == transport.sent.partition(b"\r\n\r\n")[0].count(b"\n") + 3
    assert connection.state == "drain"
    assert bench.engine.streams() == []


def test_mount_in_use_gets_403_and_the_first_source_goes_on(bench: Bench) -> None:
    """403 is what encoders take as "try again later"."""
    first, _ = bench.connect(head())
    _, transport = bench.connect(head("PUT", "/live", EXPECT))
    assert transport.sent.startswith(b"HTTP/1.0 403 ")
    assert b"in use" in transport.sent
    say(first, b"abc")
    assert bytes(bench.engine.find("/live").fed) == b"abc"


def test_mount_may_have_its_own_password() -> None:
    """[streams."/live"] source_password replaces the node's."""
    bench = Bench(streams={"/live": {"source_password": "own"}})
    assert bench.connect(head(password="pw"))[1].sent.startswith(b"HTTP/1.0 401 ")
    assert bench.connect(head(password="own"))[1].sent.startswith(b"HTTP/1.0 200 ")
    assert bench.connect(head(target="/x", password="pw"))[1].sent.startswith(b"HTTP/1.0 200 ")


@pytest.mark.parametrize(
    ("lines", "attached"),
    [
        ((), ("raw", 0)),
        (("Transfer-Encoding: chunked",), ("chunked", 0)),
        (("Content-Length: 5",), ("sized", 5)),
    ],
)
def test_engine_is_told_how_the_body_is_framed(
    bench: Bench, lines: tuple[str, ...], attached: tuple[str, int]
) -> None:
    """Liquidsoap's chunks, curl's length, everybody else's bytes until the end; and ahead_ms."""
    connection, transport = bench.connect(head("PUT", "/live", EXPECT, *lines))
    assert cutter(connection).attached == (*attached, 5_000_000)
    assert transport.paused


def test_whole_body_ends_the_source(bench: Bench) -> None:
    """The last chunk, or the last byte of a length."""
    connection, transport = bench.connect(head("PUT", "/live", EXPECT))
    say(connection, b"abc")
    cutter(connection).end("whole")
    connection.look()
    assert connection.state == "drain"
    assert transport.sent.endswith(b"HTTP/1.0 200 OK\r\n\r\n")
    assert not transport.paused


def test_source_that_this_node_ended_is_told_so(bench: Bench) -> None:
    """Somebody closed the source: its connection does not stay."""
    connection, _ = bench.connect(head())
    bench.sources.close(connection._source)  # type: ignore[arg-type]
    bench.tick(0.25, connection)
    assert connection.state == "drain"


def test_garbage_ends_the_source_with_a_reason(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not the promised audio ends the connection: counted, one line in the log."""
    connection, transport = bench.connect(head("PUT", "/live", EXPECT))
    with caplog.at_level(logging.INFO, "relay.source"):
        say(connection, b"no\0audio")
        say(connection, b"more")
    assert b"\r\n\r\nHTTP/1.0 400 Bad Request\r\n" in transport.sent
    assert transport.half_closed
    assert bench.gate.counters["broken_total"] == 1
    assert [record.__dict__["event"] for record in caplog.records] == ["source_down"]
    assert "before its first frame: " in caplog.text
    assert not bench.engine.find("/live").source_up


def test_time_spent_held_back_is_no_silence(bench: Bench) -> None:
    """A source that the engine does not read is not silent."""
    connection, _ = bench.connect(head())
    say(connection, b"abc")
    cutter(connection).state = "held"
    for _ in range(30):
        bench.tick(1.0, connection)
    assert connection.state == "body"
    cutter(connection).state = "reading"
    bench.tick(9.0, connection)
    assert connection.state == "body"
    bench.tick(2.0, connection)
    assert connection.state == "drain"


def test_silent_source_is_ended(bench: Bench) -> None:
    """After source_timeout_s (10) without audio the epoch ends; listeners stay."""
    connection, _ = bench.connect(head())
    say(connection, b"abc")
    bench.tick(1.0, connection)
    bench.tick(9.9, connection)
    assert connection.state == "body"
    bench.tick(0.2, connection)
    assert connection.state == "drain"
    assert bench.gate.counters["silent_total"] == 1
    assert bench.engine.find("/live") is not None
    assert not bench.engine.find("/live").source_up


def test_bytes_without_audio_are_silence(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags and junk do not keep a source alive."""
    connection, _ = bench.connect(head())
    monkeypatch.setattr(FakeSource, "feed", lambda self, data: 0)
    for _ in range(11):
        say(connection, b"junk")
        bench.tick(1.0, connection)
    assert connection.state == "drain"


def test_half_request_is_ended(bench: Bench) -> None:
    """A head that never ends is not waited for for ever."""
    connection, transport = bench.connect("PUT /live HT")
    bench.tick(9.9, connection)
    assert not transport.closed
    bench.tick(0.2, connection)
    assert transport.closed


def test_refused_source_that_goes_on_sending_is_drained_for_a_while(bench: Bench) -> None:
    """Half-closed first, so that no reset takes the reply away; then ended."""
    connection, transport = bench.connect(head(password="wrong") + "audio")
    say(connection, b"audio" * 1000)
    assert not transport.closed
    bench.tick(DRAIN_S + 0.1, connection)
    assert transport.closed


def test_lost_connection_ends_the_epoch(bench: Bench) -> None:
    """A reset is an end like any other."""
    connection, _ = bench.connect(head())
    connection.connection_lost(ConnectionResetError())
    assert not bench.engine.find("/live").source_up
    assert bench.gone == [connection]
    assert connection.state == "closed"
    assert "closed" in repr(connection)


def test_each_change_of_state_is_one_log_line(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Up, down: with the mount, never the password."""
    with caplog.at_level(logging.INFO, "relay.source"):
        connection, _ = bench.connect(head())
        say(connection, b"abc")
        hang_up(connection)
        connection.connection_lost(None)
    assert [record.__dict__["event"] for record in caplog.records] == ["source_up", "source_down"]
    assert all(record.__dict__["mount"] == "/live" for record in caplog.records)


def test_repeated_refusals_are_told_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password every second does not fill the log; nor does it hold what was typed."""
    with caplog.at_level(logging.INFO, "relay.source"):
        for _ in range(5):
            bench.connect(head(password="secret?", target="/l%0aive"))
        assert len(caplog.records) == 1
        bench.now += 11
        bench.connect(head(password="secret?", target="/l%0aive"))
    assert len(caplog.records) == 2
    assert "secret?" not in caplog.text
    assert "\\n" not in repr(caplog.records[0].getMessage())


class OpenDoor:
    """A real SourceDoor on its thread, fed with socket pairs."""

    def __init__(self) -> None:
        self.engine: Any = FakeEngine()
        config = Config.load(overrides={"source_password": "pw"}, environ={})
        self.sources = Sources(self.engine, config)
        self.door = SourceDoor(self.engine, self.sources, config)

    def __enter__(self) -> OpenDoor:
        self.door.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.door.close()
        self.engine.close()

    def hand_over(self, request_head: str) -> socket.socket:
        """Connect as an encoder whose head a shard has read."""
        ours, theirs = socket.socketpair()
        ours.settimeout(5)
        self.engine.hand_over("source", theirs.detach(), request_head.encode())
        return ours


class Scripts:
    """Scripts that are asked about sources; nobody asks them here."""

    closed = 0

    async def close(self) -> None:
        """Count."""
        self.closed += 1


def test_door_that_shuts_closes_its_connections_to_scripts() -> None:
    """On its own loop, where they live."""
    config = Config.load(environ={})
    engine: Any = FakeEngine()
    scripts: Any = Scripts()
    door = SourceDoor(engine, Sources(engine, config), config, scripts)
    door.start()
    door.close()
    assert scripts.closed == 1
    engine.close()


def test_door_serves_what_the_engine_hands_over() -> None:
    """Eventfd, thread, loop, transport: one source from head to end."""
    with OpenDoor() as node:
        encoder = node.hand_over(head("PUT", "/live", EXPECT) + "audio")
        assert encoder.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        source = node.sources.find("/live")
        wait_until(lambda: source._cutter is not None and source._cutter.state == "reading")
        source._cutter.end("closed")
        os.eventfd_write(node.engine.intake_fd, 1)
        assert encoder.recv(100) == b"HTTP/1.0 200 OK\r\n\r\n"
        encoder.shutdown(socket.SHUT_WR)
        assert encoder.recv(100) == b""
        assert bytes(node.engine.find("/live").fed) == b"audio"
        assert node.door.snapshot()["source_connections"] <= 1


def test_door_that_closes_ends_its_sources() -> None:
    """A node that goes ends its epochs and its thread within a second."""
    with OpenDoor() as node:
        encoder = node.hand_over(head("PUT", "/live", EXPECT))
        assert encoder.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        begun = time.monotonic()
        node.door.close()
        assert time.monotonic() - begun < 1
        assert encoder.recv(100) == b"HTTP/1.0 200 OK\r\n\r\n"
        assert encoder.recv(100) == b""
        assert not node.engine.find("/live").source_up
        node.door.close()


def test_waiting_connections_are_bounded() -> None:
    """Half requests displace the oldest of their kind, never a source."""
    with OpenDoor() as node:
        encoder = node.hand_over(head())
        assert encoder.recv(100) == b"HTTP/1.0 200 OK\r\n\r\n"
        waiting = [node.hand_over("PUT /x HT") for _ in range(WAITING_MAX + 1)]
        assert waiting[0].recv(100) == b""
        assert node.engine.find("/live").source_up
        assert node.door.snapshot()["source_displaced_total"] == 1


def test_connection_displaced_before_it_is_connected_is_closed() -> None:
    """Nobody looks after it any more: it must not stay open as long as its peer likes."""
    bench = Bench()
    connection, _ = bench.connect()
    late = FakeTransport()
    connection._transport = None
    connection.abort()
    connection.connection_made(late)
    assert late.closed
    assert connection.state == "closed"


def test_flood_of_sources_leaves_no_more_than_the_bound() -> None:
    """All that wait are taken; those beyond the bound are closed, whatever their peers do."""
    node = OpenDoor()
    waiting = [node.hand_over("PUT /x HT") for _ in range(3 * WAITING_MAX)]
    with node:
        for displaced in waiting[: 2 * WAITING_MAX]:
            assert displaced.recv(100) == b""
        assert node.door.snapshot()["source_connections"] == WAITING_MAX
    for ours in waiting:
        ours.close()


def test_sockets_are_tuned() -> None:
    """Keepalive, no delay, non-blocking: a dead encoder is noticed."""
    with tune(socket.socket()) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.getblocking()
