"""For the tests of programs that embed Relay: a node, a source, a listener; no ports, no sleeps.

Rules of this room
  1. A pytest plugin, loaded by who wants it: `pytest_plugins = ["relay.testing"]` in conftest.py.
     pytest is imported with this module, and with no other of Relay.
  2. The node is a real one without HTTP; a listener is a real one at one end of a socket pair,
     whose other end the engine has. What waits, waits for bytes, at most as long as it is told.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self

import pytest

from relay.admit import hand_over, request_head
from relay.node import Node
from relay.own_source import NodeSource

TIMEOUT_S = 10.0
FRAME_MS = 1152 / 44.1
# ISO/IEC 11172-3 §2.4.1.3: MPEG-1 layer III, 128 kbit/s, 44.1 kHz, stereo, no padding; all of its
# side information zero: silence.
_FRAME = bytes.fromhex("fffb9000") + bytes(413)


def silence(seconds: float) -> bytes:
    """MP3 frames of silence, 417 bytes each 26.1 ms: for `content_type="audio/mpeg"`."""
    return _FRAME * max(1, round(seconds * 1000 / FRAME_MS))


class Listener:
    """One HTTP listener of a node, over a socket pair.

    Args:
        node: which one, open.
        mount: what it asks for.
        headers: of its request, such as {"Icy-MetaData": "1"}.
        timeout_s: for each read.
    """

    def __init__(
        self,
        node: Node,
        mount: str,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"GET / HTTP/1.0\r\n{lines}\r\n".encode()
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(timeout_s)
        self._data = b""
        self._head = b""
        try:
            hand_over(node._opened(), node._who_asks(), theirs, request_head(mount, head))
        except BaseException:
            theirs.close()
            self._ours.close()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._head.partition(b' ')[2][:3].decode() or 'waiting'}>"

    @property
    def status(self) -> int:
        """Of the reply. Blocks until it is here."""
        return int(self._reply().split(b" ")[1])

    @property
    def headers(self) -> dict[str, str]:
        """Of the reply, names in lower case. Blocks until it is here."""
        lines = self._reply().decode("latin-1").split("\r\n")[1:]
        fields = (line.partition(":") for line in lines)
        return {name.lower(): value.strip() for name, _, value in fields}

    def read(self, size_bytes: int) -> bytes:
        """The next so many bytes of audio. Blocks until they are here.

        Raises:
            EOFError: the connection has ended before.
            TimeoutError: they did not come in time.
        """
        self._reply()
        while len(self._data) < size_bytes:
            self._receive()
        found, self._data = self._data[:size_bytes], self._data[size_bytes:]
        return found

    def read_to_end(self) -> bytes:
        """All that comes until the connection ends. Blocks for it."""
        self._reply()
        with contextlib.suppress(EOFError):
            while True:
                self._receive()
        found, self._data = self._data, b""
        return found

    def close(self) -> None:
        """Stop listening. Twice is no error."""
        self._ours.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _reply(self) -> bytes:
        while not self._head:
            head, blank, rest = self._data.partition(b"\r\n\r\n")
            if blank:
                self._head, self._data = head, rest
            else:
                self._receive()
        return self._head

    def _receive(self) -> None:
        got = self._ours.recv(65536)
        if not got:
            raise EOFError(f"the connection ended after {len(self._data)} bytes more")
        self._data += got


def wait_for(what: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Until this is true: for counters, which are told at the end of a turn (100 ms).

    Raises:
        TimeoutError: it did not become true in time.
    """
    until = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > until:
            raise TimeoutError(f"not so within {timeout_s:g} s")
        time.sleep(0.01)


@pytest.fixture
def relay_node() -> Iterator[Node]:
    """A node without HTTP, with a loop of its own: for plain and for asynchronous tests."""
    with Node() as node:
        yield node


@pytest.fixture
def relay_source(relay_node: Node) -> Iterator[NodeSource]:
    """A source of MP3 on /live; feed it `relay.testing.silence(seconds)`."""
    with relay_node.source("/live", content_type="audio/mpeg") as source:
        yield source


@pytest.fixture
def relay_listener(relay_node: Node) -> Iterator[Callable[..., Listener]]:
    """`relay_listener("/live")` gives a `Listener`; all are closed with the test."""
    made: list[Listener] = []

    def listen(mount: str = "/live", headers: Mapping[str, str] | None = None) -> Listener:
        made.append(Listener(relay_node, mount, headers))
        return made[-1]

    try:
        yield listen
    finally:
        for listener in made:
            listener.close()


__all__ = ["Listener", "relay_listener", "relay_node", "relay_source", "silence", "wait_for"]
