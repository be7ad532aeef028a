"""Connections that the host has accepted, handed to the engine: the socket, and a request for it.

Rules of this room
  1. What is handed over is the engine's; what cannot be stays the caller's, with a RelayError.
  2. A request is written anew for the mount: its line, and those fields that the engine reads or
     that tell who listens. What comes from outside is refused where it holds CR, LF or NUL.
  3. A transport gives up its socket by a duplicate: closing its own descriptor then ends nothing,
     since the connection lives as long as one of the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from relay.address import check_mount, show
from relay.errors import RelayError

if TYPE_CHECKING:
    from relay._core import Engine
    from relay.joining import Askers

HEAD_BYTES_MAX = 8192
# What the engine reads (http_head.pxd), and what on_join may want to know.
FIELDS = frozenset(
    {b"icy-metadata", b"range", b"if-range", b"user-agent", b"host", b"authorization", b"origin"}
)


def request_head(mount: str, head: bytes = b"") -> bytes:
    """The request for this mount: out of one that the host has read, or a plain GET for b"".

    Raises:
        MountError: no valid path.
        RelayError: the head is not whole, too long, or no request.
    """
    check_mount(mount)
    if not head:
        return write_head("GET", mount, b"", "1.0", ())
    end = head.replace(b"\r\n", b"\n").find(b"\n\n")
    if end < 0:
        raise RelayError(f"a head of {len(head)} bytes without its blank line: read it to its end")
    first, *lines = head.replace(b"\r\n", b"\n")[:end].split(b"\n")
    words = first.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise RelayError(f"no request line of HTTP/1: {show(first.decode('latin-1'))}")
    query = words[1].partition(b"?")[2]
    fields = (line.partition(b":") for line in lines)
    method, version = words[0].decode("latin-1"), words[2][5:].decode("latin-1")
    return write_head(method, mount, query, version, ((name, v) for name, _, v in fields))


def write_head(
    method: str, mount: str, query: bytes, version: str, fields: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """A request head for this mount; of the fields those in FIELDS. RelayError: see above."""
    target = quote(mount).encode() + (b"?" + query if query else b"")
    lines = [b"%s %s HTTP/%s" % (method.encode(), target, version.encode())]
    for name, value in fields:
        if name.strip().lower() in FIELDS:
            lines.append(name.strip() + b": " + value.strip())
    if any(set(line) & {0, 10, 13} for line in lines):
        raise RelayError("a request with CR, LF or NUL within a line: refused")
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if len(head) > HEAD_BYTES_MAX:
        raise RelayError(f"a request head of {len(head)} bytes; the bound is {HEAD_BYTES_MAX}")
    return head


def is_transport(thing: object) -> bool:
    """Whether it can be asked like an asyncio transport (uvloop's are of no class of asyncio's)."""
    wanted = ("get_extra_info", "get_write_buffer_size", "is_closing", "pause_reading", "close")
    return all(callable(getattr(thing, name, None)) for name in wanted)


def plain_socket(transport: Any) -> socket.socket | None:
    """A duplicate of the transport's socket, in blocking or non-blocking mode as it is; None where
    it cannot be given up: TLS, no socket, bytes that wait to be sent, or closed already."""
    kept = transport.get_extra_info("socket")
    if kept is None or transport.get_extra_info("sslcontext") is not None or transport.is_closing():
        return None
    if transport.get_write_buffer_size():
        return None
    try:
        return socket.socket(fileno=os.dup(kept.fileno()))
    except OSError:
        return None


def let_go(transport: Any) -> None:
    """Make the transport close its own descriptor, with nothing said to the other side."""
    with contextlib.suppress(RuntimeError, NotImplementedError):  # it is paused already
        transport.pause_reading()
    transport.close()


def take_over(engine: Engine, askers: Askers | None, transport: Any, request: bytes) -> bool:
    """Let the engine have the transport's connection; False where that cannot give it up.

    Raises:
        RelayError: the engine cannot take it; the transport goes on as before, then too.
    """
    given = plain_socket(transport)
    if given is None:
        return False
    try:
        hand_over(engine, askers, given, request)
    except BaseException:
        given.close()
        raise
    let_go(transport)
    return True


def take_request(
    engine: Engine,
    askers: Askers | None,
    transport: Any,
    mount: str,
    *,
    method: str,
    query: bytes,
    version: str,
    fields: Iterable[tuple[bytes, bytes]],
) -> bool:
    """The same with a request that a host's server has read; False also where the engine cannot
    take it: then the host serves it, who asks about him itself (relay/streamed.py)."""
    try:
        head = write_head(method, mount, query, version, fields)
        return take_over(engine, askers, transport, head)
    except RelayError:
        return False


async def admit_socket(
    engine: Engine,
    askers: Askers | None,
    sock: socket.socket | asyncio.BaseTransport,
    mount: str,
    head: bytes,
) -> None:
    """See `Node.admit`."""
    request = request_head(mount, head)
    if isinstance(sock, ssl.SSLSocket):
        raise RelayError("TLS: its keys are the host's; stream through it, or end TLS before it")
    if is_transport(sock):
        if not take_over(engine, askers, sock, request):
            raise RelayError(
                "this transport cannot give up its socket: it uses TLS, is closing, or has bytes "
                "that wait to be sent"
            )
    elif isinstance(sock, socket.socket):
        hand_over(engine, askers, sock, request)
    else:
        raise RelayError(f"{type(sock).__name__}: a socket, or an asyncio transport, is wanted")


def hand_over(engine: Engine, askers: Askers | None, sock: socket.socket, request: bytes) -> None:
    """Give the socket to the engine, or first to whoever says who may listen: not about a HEAD, as
    at the node's own door."""
    if askers is not None and not request.startswith(b"HEAD "):
        askers.ask(sock, request)
        return
    try:
        engine.admit(sock.fileno(), request)
    except OSError as error:
        raise RelayError(
            f"no connected stream socket ({error.strerror}): hand over one that was accepted"
        ) from None
    sock.detach()
