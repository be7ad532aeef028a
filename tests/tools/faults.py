"""Faults of those who come, by name: a crowd that idles, one that drips, one that resets.

Rules of this room
  1. Many connections are a process of their own (`IdleCrowd`): the test's descriptors stay free,
     and what it opened goes with it.
  2. Loopback only, from as many addresses as asked for: 127.0.0.2 and up.
  3. Run as a program, this file is that process: it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from typing import Self

Address = tuple[str, int]
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


def from_address(number: int) -> str:
    """Return the loopback address of this number."""
    return f"127.0.{number // 250}.{number % 250 + 2}"


def reset(sock: socket.socket) -> None:
    """Close it with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def memory_bytes(pid: int) -> int:
    """Return the memory that is this process's own share (PSS)."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        for line in rollup:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    raise AssertionError(f"no Pss for process {pid}")


class IdleCrowd:
    """Connections that say `words` and nothing more, held by another process."""

    def __init__(
        self, address: Address, count: int, *, addresses: int = 1, words: bytes = b""
    ) -> None:
        """Open them; returns once each has been tried."""
        command = [sys.executable, __file__, address[0], str(address[1]), str(count)]
        self._process = subprocess.Popen(
            [*command, str(addresses), words.hex()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.opened = int(self._process.stdout.readline())

    def ended(self) -> int:
        """Return how many the other side has closed by now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Close all of them: the kernel does, however busy the machine is."""
        self._process.kill()
        self._process.communicate(timeout=60.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_idle(address: Address, count: int, addresses: int, words: bytes) -> list[socket.socket]:
    """Connect without waiting for any of them."""
    socks = []
    for number in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((from_address(number % addresses), 0))
        sock.connect_ex(address)
        socks.append(sock)
        if number % 200 == 199:
            time.sleep(0.01)
    for sock in socks if words else []:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        if poll.poll(1000):
            with contextlib.suppress(OSError):
                sock.send(words)
    return socks


def hold(address: Address, count: int, addresses: int, words: bytes) -> None:
    """Open them, say how many, then how many have ended for each line that comes."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    socks = open_idle(address, count, addresses, words)
    print(len(socks), flush=True)
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)
    for _ in sys.stdin:
        print(len(poll.poll(0)), flush=True)


if __name__ == "__main__":
    hold(
        (sys.argv[1], int(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4]),
        bytes.fromhex(sys.argv[5]),
    )  # fmt: skip
