"""Sockets of sources answer at once and notice that the other machine is gone."""

from __future__ import annotations

import socket

from relay.sockets import tune


def test_a_tcp_socket_is_set_up_and_a_unix_one_is_left_as_it_is() -> None:
    """Non-blocking, without delay, with keepalive; what a kind does not have is no error."""
    with socket.socket() as tcp:
        tune(tcp)
        assert not tcp.getblocking()
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert not tune(one).getblocking()
