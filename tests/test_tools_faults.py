"""The faults do what their names say."""

from __future__ import annotations

import os
import socket

import pytest
from tools.faults import IdleCrowd, from_address, memory_bytes, reset
from tools.nodes import wait_until


def test_an_idle_crowd_holds_its_connections_and_notices_their_end() -> None:
    """Each from its address, with its words; closed with the process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with IdleCrowd(server.getsockname(), 6, addresses=3, words=b"GET") as crowd:
            held = [server.accept() for _ in range(6)]
            assert crowd.opened == 6
            assert sorted(peer[0] for _, peer in held) == sorted(map(from_address, [0, 1, 2] * 2))
            assert all(sock.recv(10) == b"GET" for sock, _ in held)
            assert crowd.ended() == 0
            held[0][0].close()
            wait_until(lambda: crowd.ended() == 1)
        assert all(sock.recv(10) == b"" for sock, _ in held[1:])
        for sock, _ in held[1:]:
            sock.close()


def test_a_reset_is_one() -> None:
    """The other side sees ECONNRESET, not an end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        other = server.accept()[0]
        reset(sock)
        with other, pytest.raises(ConnectionResetError):
            other.recv(1)


def test_memory_is_read_from_the_kernel() -> None:
    """A list of 8 MB is seen."""
    before = memory_bytes(os.getpid())
    kept = bytearray(b"x" * (8 << 20))
    assert memory_bytes(os.getpid()) - before > 7 << 20
    assert len(kept) == 8 << 20
