"""Real clients as processes (ffmpeg, curl, Chromium's driver), and a tap that keeps what they send.

Rules of this room
  1. Each wait has a bound; what a program says is kept and shown when the wait fails.
  2. What `Programs` started is ended when it closes, by its own pid, also when the test failed.
  3. A tap forwards bytes as they come and keeps each piece with its time *before* it sends it on:
     what a listener got is always in the record.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tools.nodes import wait_until

READ_BYTES = 65_536


class Program:
    """One running client."""

    def __init__(self, command: Sequence[str], stdout: Path | None = None) -> None:
        """Start it; its standard output goes to a file when one is given, else it is kept."""
        self.command = list(command)
        self.path = stdout
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._told = stdout.open("wb+") if stdout else tempfile.TemporaryFile()  # noqa: SIM115
        self.began_s = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._told,
            stderr=self._said,
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    @property
    def errors(self) -> str:
        """What it said on standard error so far."""
        return _content(self._said.fileno()).decode(errors="replace").strip()

    @property
    def output(self) -> bytes:
        """What it wrote to standard output so far."""
        return _content(self._told.fileno())

    @property
    def output_bytes(self) -> int:
        """How much that is."""
        return os.fstat(self._told.fileno()).st_size

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; returns the exit status. AssertionError when it takes longer."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self!r} did not end in {timeout_s:g} s") from None

    def kill(self) -> None:
        """Fault `kill9`."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(5.0)

    def interrupt(self, timeout_s: float = 5.0) -> int:
        """Ask it to end, as Ctrl-C does; returns the exit status."""
        if self.alive:
            self.process.send_signal(signal.SIGINT)
        return self.wait(timeout_s)

    def close(self) -> None:
        """End it, and forget what it said."""
        self.kill()
        self._said.close()
        self._told.close()

    def __repr__(self) -> str:
        said = "" if self._said.closed else self.errors[-1000:]
        return f"<{' '.join(self.command)} status={self.process.poll()} said {said!r}>"


def _content(file: int) -> bytes:
    """Read all of a file without moving the offset that the child writes at."""
    return os.pread(file, os.fstat(file).st_size, 0)


class Programs:
    """The clients of one test; leaving it ends them all."""

    def __init__(self) -> None:
        self.all: list[Program] = []

    def start(self, *command: str, stdout: Path | None = None) -> Program:
        """Start one."""
        self.all.append(Program(command, stdout))
        return self.all[-1]

    def run(self, *command: str, timeout_s: float = 20.0, stdout: Path | None = None) -> Program:
        """Start one and wait for its end."""
        program = self.start(*command, stdout=stdout)
        program.wait(timeout_s)
        return program

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        for program in reversed(self.all):
            if error is not None:
                print(f"--- {program!r}")
            program.close()


class Piece(NamedTuple):
    """One read of what an encoder wrote."""

    at_s: float  # CLOCK_MONOTONIC
    data: bytes


class Tapped:
    """One connection through a tap: what the client said, piece by piece, and what it was told."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.answer = b""
        self.ended_s = 0.0

    @property
    def said(self) -> bytes:
        """All that the client said."""
        return b"".join(piece.data for piece in tuple(self.pieces))

    @property
    def mount(self) -> str:
        """The path of its request; "" when no whole request line came."""
        words = self.said.partition(b"\r\n")[0].split(b" ")
        return words[1].decode() if len(words) == 3 else ""

    @property
    def body(self) -> bytes:
        """What followed the request head."""
        return self.said.partition(b"\r\n\r\n")[2]

    def sent_s(self, position: int) -> float:
        """Return when the byte of the body at this position was sent (CLOCK_MONOTONIC)."""
        left = len(self.said) - len(self.body) + position
        for piece in tuple(self.pieces):
            if left < len(piece.data):
                return piece.at_s
            left -= len(piece.data)
        raise AssertionError(f"the body has no byte {position} yet")


class Tap:
    """Forwards TCP connections to a node, and keeps what came through; on a port of its own choice
    unless one is given."""

    def __init__(self, target: tuple[str, int], port: int = 0) -> None:
        self.target = target
        self.all: list[Tapped] = []
        self._server = socket.create_server(("127.0.0.1", port))
        self._sockets: list[socket.socket] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect."""
        host, port = self._server.getsockname()
        return host, port

    def of(self, mount: str) -> list[Tapped]:
        """The connections that asked for this mount, in their order."""
        return [tapped for tapped in tuple(self.all) if tapped.mount == mount]

    def wait_for(self, mount: str, count: int = 1, timeout_s: float = 5.0) -> Tapped:
        """Wait until the count-th connection for a mount has sent audio; returns it."""

        def found() -> Tapped | None:
            these = self.of(mount)
            return these[count - 1] if len(these) >= count and these[count - 1].body else None

        tapped = wait_until(found, timeout_s, what=f"connection {count} for {mount}")
        assert tapped is not None
        return tapped

    def close(self) -> None:
        """Close all of it."""
        self._closed = True
        for sock in [self._server, *self._sockets]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._server.accept()
                node = socket.create_connection(self.target, timeout=5.0)
            except OSError:
                continue
            node.settimeout(None)
            self._sockets += [client, node]
            tapped = Tapped()
            self.all.append(tapped)
            for ends in ((client, node, tapped, True), (node, client, tapped, False)):
                threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(
        self, reader: socket.socket, writer: socket.socket, tapped: Tapped, is_client: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := reader.recv(READ_BYTES):
                if is_client:
                    tapped.pieces.append(Piece(time.monotonic(), data))
                else:
                    tapped.answer += data
                writer.sendall(data)
        if is_client:
            tapped.ended_s = time.monotonic()
        with contextlib.suppress(OSError):
            writer.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.close()
