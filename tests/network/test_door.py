"""The door: who comes is answered whole, bounded and in time, whatever he sends."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time

import pytest
from tools.engines import Programme, answer, ask, dial, get, idle, read_all, running
from tools.nodes import wait_until

import relay._core as core

BIG = "x" * 200
MALFORMED = b"GET /live\r\n\r\n"


def refused(engine: core.Engine, reason: str, count: int = 1) -> None:
    """Wait until the door has counted so many refusals for this reason."""
    wait_until(
        lambda: engine.snapshot()[f"refused_{reason}_total"] == count,
        what=f"{count} refusals: {reason}; last {engine.snapshot()}",
    )


# --- replies --------------------------------------------------------------------------------------


def test_a_listener_gets_the_fields_that_players_expect() -> None:
    """HTTP/1.0 200 with the stream's lines, no length, no caching, open to other origins."""
    with running() as (engine, address):
        Programme(engine).push(10)
        with dial(address) as sock:
            sock.sendall(get())
            reply = sock.recv(65536)
        assert reply.startswith(b"HTTP/1.0 200 OK\r\n")
        status, fields, _ = answer(reply)
        assert status == 200
        assert fields["content-type"] == "audio/mpeg"
        assert fields["icy-name"] == "a test"
        assert fields["cache-control"] == "no-cache, no-store"
        assert fields["access-control-allow-origin"] == "*"
        assert fields["connection"] == "close"
        assert not {"content-length", "transfer-encoding", "icy-metaint"} & fields.keys()
        then = time.strptime(fields["date"], "%a, %d %b %Y %H:%M:%S GMT")
        assert abs(time.mktime(time.gmtime()) - time.mktime(then)) < 5


def test_a_head_that_comes_byte_by_byte_is_the_same_head() -> None:
    """Each byte in a packet of its own changes nothing."""
    with running() as (engine, address):
        live = Programme(engine)
        live.push(10)
        with dial(address) as sock:
            for byte in get("/live", "Icy-MetaData: 1"):
                sock.sendall(bytes([byte]))
            reply = b""
            while len(reply.partition(b"\r\n\r\n")[2]) < len(live.audio):
                reply += sock.recv(65536)
        status, fields, body = answer(reply)
        assert (status, fields["icy-metaint"]) == (200, "16000")
        assert body == bytes(live.audio)
        assert idle(engine)["joins_total"] == 1


def test_head_is_answered_with_the_same_fields_and_no_audio() -> None:
    """HEAD ends after its head, and is no listener."""
    with running() as (engine, address):
        Programme(engine).push(10)
        status, fields, body = answer(ask(address, get("/live", method="HEAD")))
        assert (status, fields["content-type"], body) == (200, "audio/mpeg", b"")
        assert engine.snapshot()["joins_total"] == 0


def test_titles_are_not_offered_in_formats_that_carry_their_own() -> None:
    """A block inside an Ogg page or another container would break it."""
    with running() as (engine, address):
        for mount, kind, offered in (
            ("/a", b"audio/mpeg", True),
            ("/b", b"audio/aac", True),
            ("/c", b"audio/aacp", True),
            ("/d", b"application/ogg", False),
            ("/e", b"audio/opus", False),
            ("/f", b"audio/flac", False),
            ("/g", b"video/webm", False),
        ):
            info = b"Content-Type: " + kind + b"\r\nicy-name: ogg mpeg\r\n"
            Programme(engine, mount, info=info)
            head = get(mount, "Icy-MetaData: 1", method="HEAD")
            assert ("icy-metaint" in answer(ask(address, head))[1]) is offered, kind


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        (get("/missing"), 404, "not_found"),
        (get("/live", method="DELETE"), 405, "method"),
        (get("/live", "Bad Field: x"), 400, "malformed"),
        (b"GET /live\r\n\r\n", 400, "malformed"),
        (b"GET /live HTTP/2.0\r\n\r\n", 505, "malformed"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "malformed"),
        (get("/" + "a" * 255), 414, "too_large"),
        (get("/live", *["A: b"] * 64), 431, "too_large"),
        (get("/live", *[f"A: {BIG}"] * 50), 431, "too_large"),
    ],
    ids=[
        "404", "405", "400-field", "400-version", "505", "505-h2", "414",
        "431-fields", "431-bytes",
    ],
)  # fmt: skip
def test_each_refusal_is_a_whole_reply(head: bytes, status: int, reason: str) -> None:
    """Status, length and a line that says what to do; counted; the connection then ends."""
    with running() as (engine, address):
        Programme(engine)
        told, fields, body = answer(ask(address, head))
        assert told == status
        assert fields["connection"] == "close"
        assert body.endswith(b"\n")
        assert body.count(b"\n") == 1
        refused(engine, reason)


def test_a_refused_head_has_no_body() -> None:
    """RFC 9110 §9.3.2: the fields are those of a GET, its length too, and nothing follows."""
    with running() as (engine, address):
        there = answer(ask(address, get("/missing")))
        status, fields, body = answer(ask(address, get("/missing", method="HEAD")), to_head=True)
        assert (status, body) == (404, b"")
        assert fields == there[1]
        refused(engine, "not_found", 2)


def test_a_foreign_version_is_told_what_is_spoken_here() -> None:
    """The body of a 505 is a sentence."""
    with running() as (_, address):
        body = answer(ask(address, b"GET /live HTTP/2.0\r\n\r\n"))[2]
        assert body == b"this node speaks HTTP/1.0 and HTTP/1.1\n"


def test_a_refusal_is_not_reset_away_while_the_request_still_comes() -> None:
    """Who pours on after the door has answered reads the answer all the same."""
    with running() as (engine, address):
        for _ in range(20):
            with dial(address) as sock:
                sock.sendall(get("/live", *[f"A: {BIG}"] * 50))
                time.sleep(0.002)
                with contextlib.suppress(BrokenPipeError):
                    sock.sendall(b"more" * 2000)
                assert answer(read_all(sock))[0] == 431
        refused(engine, "too_large", 20)


def test_a_body_after_a_refused_method_does_not_reset_the_refusal() -> None:
    """DELETE with a body that comes later: the 405 arrives."""
    with running() as (_, address), dial(address) as sock:
        sock.sendall(get("/live", "Content-Length: 6000", method="DELETE"))
        assert answer(read_all(sock))[0] == 405
        for _ in range(5):
            assert not gone(sock), "closed while the body was still coming"
            time.sleep(0.02)


def test_who_was_refused_and_stays_is_closed_after_a_second() -> None:
    """A refused connection that its peer keeps open holds its place for a second, no longer."""
    with running() as (engine, address), dial(address) as sock:
        sock.sendall(get("/live", "Content-Length: 9", method="DELETE") + b"x")
        assert answer(read_all(sock))[0] == 405
        begin = time.monotonic()
        wait_until(lambda: gone(sock), 3.0, what="the connection to be closed on the other side")
        assert time.monotonic() - begin < 2.0
        assert engine.snapshot()["listeners"] == 0


def gone(sock: socket.socket) -> bool:
    """Say whether the other side has closed altogether: then sending is answered by a reset."""
    try:
        sock.send(b"?")
    except OSError:
        return True
    return False


# --- bounds ---------------------------------------------------------------------------------------


def test_a_slow_drip_expires() -> None:
    """Heads that never end are closed head_timeout_ms after they began, however lively they are."""
    with running(head_timeout_ms=300) as (engine, address):
        begin = time.monotonic()
        socks = [dial(address) for _ in range(5)]
        try:
            while engine.snapshot()["heads_expired_total"] < 5:
                assert time.monotonic() - begin < 3.0, engine.snapshot()
                for sock in socks:
                    with contextlib.suppress(OSError):
                        sock.sendall(b"G")
                time.sleep(0.05)
            assert time.monotonic() - begin > 0.25
            assert idle(engine)["heads"] == 0
        finally:
            for sock in socks:
                sock.close()


def closed_ones(socks: list[socket.socket]) -> list[int]:
    """Return which of the connections the other side has closed."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(0)}
    return [number for number, sock in enumerate(socks) if sock.fileno() in ready]


@pytest.mark.parametrize("bound", ["heads_per_address_max", "heads_max"])
def test_too_many_dripping_heads_cost_the_oldest_their_place(bound: str) -> None:
    """One more than the bound: the oldest goes, the others can still ask."""
    with running(**{bound: 8}) as (engine, address):
        Programme(engine).push(10)
        socks = []
        try:
            for number in range(11):
                socks.append(dial(address))
                socks[-1].sendall(b"GET /li")
                wait_until(lambda n=number: engine.snapshot()["accepts_total"] == n + 1)
            wait_until(lambda: closed_ones(socks) == [0, 1, 2], what="the three oldest to go")
            assert engine.snapshot()["heads_evicted_total"] == 3
            assert engine.snapshot()["heads"] == 8
            for sock in socks[3:]:
                sock.sendall(b"ve HTTP/1.0\r\n\r\n")
                assert sock.recv(100).startswith(b"HTTP/1.0 200 OK")
        finally:
            for sock in socks:
                sock.close()
        idle(engine)


def test_a_silent_connection_counts_after_its_grace() -> None:
    """Until then as many as there are places may be late; then an address keeps its share."""
    with running(heads_per_address_max=4, head_grace_ms=300) as (engine, address):
        other = socket.create_connection(address, 5.0, ("127.0.0.2", 0))
        mine = [dial(address) for _ in range(10)]
        try:
            wait_until(lambda: engine.snapshot()["heads"] == 11)
            assert engine.snapshot()["heads_evicted_total"] == 0
            wait_until(lambda: engine.snapshot()["heads_evicted_total"] == 6)
            assert closed_ones(mine) == [0, 1, 2, 3, 4, 5]
            other.sendall(get("/missing"))
            assert answer(read_all(other))[0] == 404
        finally:
            for sock in [other, *mine]:
                sock.close()


def test_an_honest_crowd_behind_one_address_gets_in() -> None:
    """2,000 connections from one address, their heads a moment later: nobody is thrown out."""
    crowd = 2000
    with running(
        listeners_max=crowd + 10, heads_max=64, heads_per_address_max=4, head_grace_ms=5000
    ) as (engine, address):
        Programme(engine).push(10)
        socks = [dial(address) for _ in range(crowd)]
        try:
            wait_until(lambda: engine.snapshot()["heads"] == crowd)
            for sock in socks:
                sock.sendall(get())
            assert all(sock.recv(100).startswith(b"HTTP/1.0 200") for sock in socks)
            assert engine.snapshot()["heads_evicted_total"] == 0
        finally:
            for sock in socks:
                sock.close()
        idle(engine)


def test_a_flood_of_silent_connections_keeps_nobody_out() -> None:
    """One address takes each place there is, again and again: others get in, and one who was
    here first, and is late with his head, keeps his place."""
    with running(listeners_max=40, heads_max=24, heads_per_address_max=4, head_grace_ms=5000) as (
        engine,
        address,
    ):
        Programme(engine).push(10)
        late = socket.create_connection(address, 5.0, ("127.0.0.3", 0))
        wait_until(lambda: engine.snapshot()["heads"] == 1)
        flood = [dial(address) for _ in range(300)]
        try:
            for number in range(30):
                with socket.create_connection(address, 5.0, ("127.0.0.2", 0)) as sock:
                    sock.sendall(get())
                    assert sock.recv(100).startswith(b"HTTP/1.0 200"), number
                flood.append(dial(address))
            # read one after the other: one that goes over meanwhile may be in both
            wait_until(lambda: sum(engine.snapshot()[n] for n in ("heads", "listeners")) <= 64)
            assert engine.snapshot()["heads_evicted_total"] >= 300 - 64
            late.sendall(get())
            assert late.recv(100).startswith(b"HTTP/1.0 200")
        finally:
            for sock in [late, *flood]:
                sock.close()


def test_five_thousand_gets_of_a_missing_mount_are_five_thousand_404s() -> None:
    """A flood of them is answered to the last one, and leaves nothing behind."""
    with running() as (engine, address):
        head, answered = get("/missing"), 0
        for _ in range(50):
            socks = [dial(address) for _ in range(100)]
            for sock in socks:
                sock.sendall(head)
            for sock in socks:
                answered += sock.recv(4096).startswith(b"HTTP/1.0 404 ")
                sock.close()
        assert answered == 5000
        told = idle(engine)
        assert told["refused_not_found_total"] == told["accepts_total"] == 5000


# --- hand-over ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["/", "/admin/stats", "/api/v1", "/status-json.xsl", "/metrics", "/healthz", "/readyz",
     "/live.m3u", "/live.pls", "/live.xspf", "/7.html"],
)  # fmt: skip
def test_pages_are_handed_over_with_their_exact_bytes(target: str) -> None:
    """Head and all that came with it, and the peer's address; the connection is the taker's."""
    with running() as (engine, address), dial(address) as sock:
        request = get(target) + b"and more"
        sock.sendall(request)
        assert select.select([engine.page_fd], [], [], 5.0)[0]
        fd, data, where = engine.take_page()
        with socket.socket(fileno=fd) as taken:
            assert data == request
            assert where == sock.getsockname()
            taken.sendall(b"hello")
            assert sock.recv(10) == b"hello"
            sock.sendall(b"you")
            taken.settimeout(5.0)
            assert taken.recv(10) == b"you"
        assert engine.take_page() is None
        wait_until(lambda: engine.snapshot()["handovers_total"] == 1)


@pytest.mark.parametrize("mount", ["/live.m3u", "/a.pls", "/x.y.xspf"])
def test_a_mount_that_is_called_as_a_playlist_is_a_mount(mount: str) -> None:
    """While it is here; else the page answers, which knows the streams."""
    with running() as (engine, address):
        with dial(address) as sock:
            sock.sendall(get(mount))
            wait_until(lambda: engine.snapshot()["handovers_total"] == 1)
        os.close(engine.take_page()[0])
        live = Programme(engine, mount)
        live.push_seconds(1)
        assert b"audio/mpeg" in ask(address, get(mount, method="HEAD"))
        assert engine.snapshot()["handovers_total"] == 1


@pytest.mark.parametrize("method", ["PUT", "SOURCE"])
def test_sources_are_handed_over_in_a_queue_of_their_own(method: str) -> None:
    """A flood of pages fills the pages' queue; a source still comes through."""
    with running() as (engine, address):
        pages = [dial(address) for _ in range(600)]
        for sock in pages:
            sock.sendall(get("/"))
        refused(engine, "busy", 600 - 512)
        with dial(address) as sock:
            request = get("/live", "Content-Type: audio/mpeg", method=method) + bytes(range(256))
            sock.sendall(request)
            assert select.select([engine.source_fd], [], [], 5.0)[0]
            fd, data, _ = engine.take_source()
            os.close(fd)
            assert data == request
        told = [answer(read_all(pages[number]))[0] for number in closed_ones(pages)]
        assert told == [503] * (600 - 512)
        for sock in pages:
            sock.close()


def test_closing_the_engine_ends_connections_that_nobody_took() -> None:
    """What still waits in the queues is closed with the engine, not when its memory goes."""
    with running() as (engine, address), dial(address) as page, dial(address) as source:
        page.sendall(get("/"))
        source.sendall(get("/live", method="PUT"))
        told = engine.snapshot
        wait_until(lambda: told()["pages_waiting"] == told()["sources_waiting"] == 1)
        engine.close()
        for sock in (page, source):
            sock.settimeout(1.0)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
