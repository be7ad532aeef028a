"""Connections of the host's: the request that is written for the engine, and the socket."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from relay.admit import admit_socket, plain_socket, request_head, take_request, write_head
from relay.errors import MountError, RelayError

HEAD = (
    b"GET /radio/live?at=7 HTTP/1.1\r\nHost: h\r\nCookie: secret\r\nICY-MetaData: 1\r\n"
    b"Range: bytes=0-\r\nX-Other: x\r\n\r\n"
)


def test_a_request_is_written_anew_for_the_mount() -> None:
    """The query and what the engine reads stay; cookies do not get to it."""
    assert request_head("/live", HEAD) == (
        b"GET /live?at=7 HTTP/1.1\r\nHost: h\r\nICY-MetaData: 1\r\nRange: bytes=0-\r\n\r\n"
    )
    assert request_head("/ä") == b"GET /%C3%A4 HTTP/1.0\r\n\r\n"
    assert request_head("/x", b"HEAD /y HTTP/1.0\n\n") == b"HEAD /x HTTP/1.0\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n", "without its blank line"),
        (b"nonsense\r\n\r\n", "no request line"),
        (b"PRI * HTTP/2.0\r\n\r\n", "no request line"),
        (b"GET / HTTP/1.1\r\nUser-Agent: a\rX: b\r\n\r\n", "CR, LF or NUL"),
        (b"GET / HTTP/1.1\r\nUser-Agent: " + b"a" * 9000 + b"\r\n\r\n", "the bound is 8192"),
    ],
)
def test_a_head_that_is_none_is_refused(head: bytes, says: str) -> None:
    """Before the engine sees it."""
    with pytest.raises(RelayError, match=says):
        request_head("/live", head)
    with pytest.raises(MountError):
        request_head("live")


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_nothing_that_comes_from_outside_adds_a_line(query: bytes, a: bytes, b: bytes) -> None:
    """Whatever query and fields hold: three lines, or a refusal."""
    try:
        head = write_head("GET", "/live", query, "1.1", [(b"User-Agent", a), (b"Range", b)])
    except RelayError:
        return
    assert head.count(b"\n") == head.count(b"\r\n") == 4
    assert b"\0" not in head


async def test_a_socket_becomes_the_engines() -> None:
    """The caller's object holds nothing afterwards."""
    engine: Any = FakeEngine()
    ours, theirs = socket.socketpair()
    await admit_socket(engine, None, theirs, "/live", HEAD)
    [(fd, head)] = engine.admitted
    assert theirs.fileno() == -1
    assert head.startswith(b"GET /live?at=7 ")
    ours.close()
    os.fstat(fd)
    engine.close()


async def test_a_transport_gives_its_socket_up() -> None:
    """The connection lives on when the transport has closed."""
    engine: Any = FakeEngine()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, theirs)
    await admit_socket(engine, None, transport, "/live", b"")
    assert transport.is_closing()
    await asyncio.sleep(0.01)
    [(fd, _)] = engine.admitted
    os.write(fd, b"alive")
    ours.settimeout(5)
    assert ours.recv(9) == b"alive"
    ours.close()
    engine.close()


async def test_a_transport_with_bytes_that_wait_keeps_its_socket() -> None:
    """They would be lost, or come after the audio."""
    engine: Any = FakeEngine()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, theirs)
    transport.write(bytes(1 << 24))
    assert plain_socket(transport) is None
    with pytest.raises(RelayError, match="cannot give up its socket"):
        await admit_socket(engine, None, transport, "/live", b"")
    assert not transport.is_closing()
    transport.abort()
    ours.close()
    engine.close()


async def test_what_is_no_connection_is_refused() -> None:
    """And stays the caller's."""
    engine: Any = FakeEngine()
    with pytest.raises(RelayError, match="int: a socket, or an asyncio transport"):
        await admit_socket(engine, None, 5, "/live", b"")  # type: ignore[arg-type]
    engine.close()


async def test_a_request_of_a_hosts_server_is_taken_or_left_to_the_host() -> None:
    """Its head is written anew; what the engine cannot take, or may not read, stays as it is."""
    engine: Any = FakeEngine()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, theirs)

    def take(query: bytes = b"at=live") -> bool:
        fields = [(b"user-agent", b"VLC"), (b"cookie", b"secret")]
        return take_request(
            *(engine, None, transport, "/live"),
            method="GET", query=query, version="1.1", fields=fields,
        )  # fmt: skip

    assert not take(b"a\r\nb")
    engine.full = True
    assert not take()
    assert not transport.is_closing()
    engine.full = False
    assert take()
    assert transport.is_closing()
    [(_, head)] = engine.admitted
    assert head == b"GET /live?at=live HTTP/1.1\r\nuser-agent: VLC\r\n\r\n"
    ours.close()
    engine.close()
