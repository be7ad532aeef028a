"""Load from outside: GETs at a rate that no Python process reaches, from a small C program.

Rules of this room
  1. The program (getter.c) is compiled once a session, by the gcc that builds Relay as well.
  2. It is one process; leaving `Getter` ends it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple, Self

SOURCE = Path(__file__).with_name("getter.c")


class Gets(NamedTuple):
    """What became of the GETs."""

    sent: int
    status_404: int
    other: int
    failed: int
    elapsed_s: float

    @property
    def per_s(self) -> float:
        """Answered GETs per second."""
        return (self.status_404 + self.other) / self.elapsed_s


@functools.cache
def program() -> str:
    """Compile the program; returns its path. CalledProcessError with gcc's words otherwise."""
    place = tempfile.mkdtemp(prefix="relay-getter-")
    path = os.path.join(place, "getter")
    compiler = os.environ.get("CC", "gcc").split()[0]
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-o", path, str(SOURCE)], check=True, timeout=60
    )
    return path


class Getter:
    """GETs of one path at a steady rate for some seconds, in a process of its own."""

    def __init__(
        self, address: tuple[str, int], path: str, *, rate_per_s: int, seconds: float
    ) -> None:
        host, port = address
        words = [program(), host, str(port), path, str(rate_per_s), str(seconds)]
        self.seconds = seconds
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def wait(self) -> Gets:
        """Wait for its end, which is bounded; returns what it counted."""
        told, _ = self._process.communicate(timeout=self.seconds + 20)
        return Gets(**json.loads(told))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self._process.kill()
        self._process.communicate()
