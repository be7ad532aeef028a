"""A server of streams for the tests: what Icecast and SHOUTcast say, and how they err.

Rules of this room
  1. One thread for each connection; each plays numbered frames in real time, after a burst.
  2. What it was asked is kept; a test changes `answer` to change what the next one hears.
  3. Closing it ends every connection.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

from tools.sources import FrameMaker

STEP_S = 0.05
BURST_S = 1.0


class Radio:
    """One server; `url` is where its stream is."""

    def __init__(self, *, first: str = "HTTP/1.0 200 OK", metaint: int = 0) -> None:
        self.first = first  # the status line
        self.headers = {"Content-Type": "audio/mpeg", "icy-name": "A radio", "icy-br": "64"}
        self.metaint = metaint
        self.chunked = False
        self.silent = False  # the connection stands, and no audio comes
        self.answer: Callable[[str], bytes | None] = lambda target: None  # a reply of another kind
        self.title = ""
        self.asked: list[str] = []  # whole request heads
        self.maker = FrameMaker(64)
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()
        self._is_closed = False
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Its stream."""
        return f"http://127.0.0.1:{self.port}/radio"

    @property
    def listening(self) -> int:
        """Connections now."""
        with self._lock:
            return len(self._live)

    def cut(self) -> None:
        """Fault: every connection breaks off; new ones are taken."""
        with self._lock:
            live = list(self._live)
        for sock in live:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """No connection and no door any more."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                sock, _ = self._door.accept()
            except OSError:
                return
            with self._lock:
                self._live.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            self._talk(sock)
        finally:
            with self._lock:
                self._live.discard(sock)

    def _talk(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                more = sock.recv(4096)
                if not more:
                    return
                head += more
            self.asked.append(head.decode())
            other = self.answer(head.split(b" ")[1].decode())
            if other is not None:
                sock.sendall(other)
            else:
                self._play(sock)

    def _play(self, sock: socket.socket) -> None:
        lines = [self.first, *(f"{name}:{value}" for name, value in self.headers.items())]
        lines += [f"icy-metaint:{self.metaint}"] if self.metaint else []
        lines += ["Transfer-Encoding: chunked"] if self.chunked else []
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        left, told = self.metaint, ""
        due = time.monotonic() - BURST_S
        while not self._is_closed:
            if self.silent:
                time.sleep(STEP_S)
                continue
            with self._lock:
                data = self.maker.frame()
            out = b""
            while self.metaint and len(data) >= left:
                out, data, left = out + data[:left], data[left:], self.metaint
                text = f"StreamTitle='{self.title}';" if self.title != told else ""
                told = self.title
                block = text.encode()
                out += bytes([-(-len(block) // 16)]) + block.ljust(-(-len(block) // 16) * 16, b"\0")
            left -= len(data)
            out += data
            sock.sendall(b"%x\r\n%s\r\n" % (len(out), out) if self.chunked else out)
            due += self.maker.frame_s
            time.sleep(max(0.0, due - time.monotonic()))
