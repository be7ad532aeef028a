"""Sockets of sources, as they are set up.

Rules of this room
  1. An option that this kind of socket does not have is left out.
"""

from __future__ import annotations

import contextlib
import socket


def tune(sock: socket.socket) -> socket.socket:
    """Non-blocking, answers at once, notices within a minute that the peer's machine is gone."""
    sock.setblocking(False)
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    ]
    for level, name, value in options:
        with contextlib.suppress(OSError):  # a Unix socket has none of the TCP ones
            sock.setsockopt(level, name, value)
    return sock
