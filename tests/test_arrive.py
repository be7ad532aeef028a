"""Connections that Python hands in, and who keeps accounts of them: on a real engine, no port."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from relay import _core
from relay.errors import RelayError

pytestmark = pytest.mark.core

FRAME = bytes.fromhex("fffb9000") + bytes(413)  # of MP3: 26 ms of silence
GET = b"GET /live HTTP/1.0\r\n\r\n"


@pytest.fixture
def engine() -> Iterator[_core.Engine]:
    """Without a door, with a stream that has a source."""
    made = _core.Engine(listeners_max=8, heads_max=4)
    made.start()
    yield made
    made.close()


@pytest.fixture
def live(engine: _core.Engine) -> _core.Source:
    """A second of MP3 on /live."""
    stream = engine.add_stream("/live")
    stream.claim()
    stream.set_info(b"Content-Type: audio/mpeg\r\n")
    stream.begin()
    source = _core.Source(stream, "mpeg")
    source.feed(FRAME * 38)
    return source


def until(what: Callable[[], Any]) -> Any:
    """Wait for a turn of the engine, at most 10 s."""
    end = time.monotonic() + 10
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def hand_in(engine: _core.Engine, head: bytes = GET) -> socket.socket:
    """One end of a connection whose other end the engine has."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    engine.admit(theirs.detach(), head)
    return ours


def read_some(sock: socket.socket, size: int) -> bytes:
    """At least so many bytes."""
    data = b""
    while len(data) < size:
        got = sock.recv(65536)
        assert got, data
        data += got
    return data


def test_who_is_handed_in_hears_the_stream(engine: _core.Engine, live: _core.Source) -> None:
    """Reply and burst as for anybody; the engine had no shard before."""
    assert engine.snapshot()["shards"] == []
    with hand_in(engine) as ours:
        data = read_some(ours, 12_000)
        head, _, audio = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 OK\r\n")
        assert audio[:417] == FRAME
        live.feed(FRAME * 4)
        read_some(ours, 417 * 3)
        assert until(lambda: engine.snapshot()["listeners"]) == 1
    until(lambda: engine.snapshot()["listeners"] == 0)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /other HTTP/1.0\r\n\r\n", b"404"),
        (b"HEAD /live HTTP/1.1\r\nHost: h\r\n\r\n", b"200"),
        (b"DELETE /live HTTP/1.0\r\n\r\n", b"405"),
        (b"GET /live HTTP/1.0\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_the_engine_answers_whatever_is_asked(
    engine: _core.Engine, live: _core.Source, head: bytes, status: bytes
) -> None:
    """And closes: the connection is its own."""
    with hand_in(engine, head) as ours:
        reply = ours.recv(65536)
        assert reply.split(b" ")[1] == status
        ours.shutdown(socket.SHUT_WR)
        while reply:
            reply = ours.recv(65536)


def test_more_than_there_are_places_for_are_refused(
    engine: _core.Engine, live: _core.Source
) -> None:
    """Each with one whole reply; those who listen stay."""
    with_place = [hand_in(engine) for _ in range(8)]
    for one in with_place:
        assert b" 200 " in read_some(one, 1000)[:20]
    with hand_in(engine) as other:
        assert b" 503 " in other.recv(65536)[:20]
    assert engine.snapshot()["listeners"] == 8
    for one in with_place:
        one.close()


def test_what_cannot_be_handed_in_stays_the_callers(engine: _core.Engine) -> None:
    """No socket, no stream, not connected, a head too long, too many at once."""
    read_end, write_end = os.pipe()
    datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    loose = socket.socket()
    for fd in (read_end, datagrams[0].fileno(), loose.fileno(), 1 << 20):
        with pytest.raises(OSError, match=r"\[Errno"):
            engine.admit(fd, GET)
    ours, theirs = socket.socketpair()
    with pytest.raises(RelayError, match="9000 bytes; the bound is 8192"):
        engine.admit(theirs.fileno(), bytes(9000))
    for fd in (read_end, datagrams[0].fileno(), loose.fileno(), theirs.fileno()):
        os.fstat(fd)
    os.close(read_end)
    os.close(write_end)
    for sock in (*datagrams, loose, ours, theirs):
        sock.close()


def test_a_closed_engine_takes_nobody_and_keeps_nothing() -> None:
    """Those who were handed in and not seen yet are closed with it."""
    before = len(os.listdir("/proc/self/fd"))
    engine = _core.Engine(listeners_max=8, heads_max=4)
    engine.start()
    ours = hand_in(engine)
    engine.close()
    while ours.recv(65536):
        pass
    ours.close()
    with pytest.raises(RelayError, match="closed"):
        engine.admit(0, GET)
    del engine
    assert len(os.listdir("/proc/self/fd")) == before


def test_several_shards_take_turns() -> None:
    """Each gets its part of those who are handed in."""
    engine = _core.Engine(threads=3, listeners_max=30, heads_max=6)
    engine.start()
    crowd = [hand_in(engine, b"GET /none HTTP/1.0\r\n\r\n") for _ in range(6)]
    for one in crowd:
        assert b"404" in one.recv(100)
    shards = until(lambda: [s["refused_not_found_total"] for s in engine.snapshot()["shards"]])
    until(lambda: [s["refused_not_found_total"] for s in engine.snapshot()["shards"]] == [2, 2, 2])
    assert len(shards) == 3
    for one in crowd:
        one.close()
    engine.close()


def test_a_mount_that_asks_hands_its_listeners_to_python_first() -> None:
    """By the door; back by admit() without a second question. HEAD is not asked about."""
    engine = _core.Engine(listeners_max=8, heads_max=4)
    engine.configure("/live", asks=True)
    _, port = engine.listen("127.0.0.1", 0)
    engine.start()
    for mount in ("/live", "/open"):
        stream = engine.add_stream(mount)
        stream.claim()
        stream.set_info(b"Content-Type: audio/mpeg\r\n")
        stream.begin()
        _core.Source(stream, "mpeg").feed(FRAME * 38)
    for mount, method in (("/open", "GET"), ("/live", "HEAD")):
        with socket.create_connection(("127.0.0.1", port), 10) as other:
            other.sendall(f"{method} {mount} HTTP/1.0\r\n\r\n".encode())
            assert b" 200 " in other.recv(100)[:20]
    with socket.create_connection(("127.0.0.1", port), 10) as ours:
        ours.sendall(GET)
        fd, data, (address, _) = until(engine.take_asker)
        assert (data, address) == (GET, "127.0.0.1")
        engine.admit(fd, data)
        assert b" 200 " in read_some(ours, 1000)[:20]
    assert engine.take_asker() is None
    engine.close()


def test_children_of_a_fork_hold_no_listener_up(engine: _core.Engine, live: _core.Source) -> None:
    """A child has copies of our sockets: who is ended hears so all the same."""
    with hand_in(engine) as ours:
        read_some(ours, 1000)
        gate_read, gate_write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(gate_read, 1)
            os._exit(0)
        try:
            stream = engine.find("/live")
            assert stream is not None
            engine.remove_stream(stream)
            while ours.recv(65536):
                pass
        finally:
            os.write(gate_write, b"x")
            os.waitpid(child, 0)
            os.close(gate_read)
            os.close(gate_write)
