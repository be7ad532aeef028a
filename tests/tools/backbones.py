"""Engines with a backbone in this process: nodes without HTTP, a source, an ear.

Rules of this room
  1. What goes in tells its number, so that what comes out can be compared byte for byte.
  2. Each wait has a bound. A node binds a port below the ephemeral range.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from relay import _core
from relay.backbone import Backbone, open_backbone

INFO = b"Content-Type: audio/mpeg\r\nicy-name: Radio\r\n"


def until(what: Callable[[], Any], within_s: float = 10.0) -> Any:
    """What `what` returns as soon as it is true; fails when that takes too long."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        seen = what()
        if seen:
            return seen
        time.sleep(0.002)
    raise AssertionError(f"not within {within_s} s")


_given: set[int] = set()


def free_port() -> int:
    """A port below the ephemeral range, so that no outgoing connection takes it while it is down.

    None is given twice: who asks for several binds them later.

    (A child that keeps trying a dead parent's ephemeral port can even connect to itself.)
    """
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


class Node:
    """An engine with a backbone."""

    def __init__(
        self,
        upstream: str | Sequence[str] | None = None,
        *,
        bind: str | None = "",
        streams_max: int = 64,
        settings: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        self.engine = _core.Engine(streams_max=streams_max)
        self.engine.configure(**(settings or {}))
        if bind == "":
            bind = f"tcp://127.0.0.1:{free_port()}"
        self.backbone: Backbone = open_backbone(
            self.engine,
            bind=bind,
            upstreams=[upstream] if isinstance(upstream, str) else upstream or [],
            **more,
        )

    @property
    def address(self) -> str:
        """Where children attach."""
        assert self.backbone.address
        return self.backbone.address

    def seen(self) -> dict[str, Any]:
        """The whole snapshot."""
        return self.backbone.snapshot()

    def upstream(self) -> str:
        """The upstream's state."""
        state: str = self.seen()["upstream"]["state"]
        return state

    def link(self, mount: str = "/live") -> dict[str, Any]:
        """One stream's link."""
        return next((link for link in self.seen()["links"] if link["mount"] == mount), {})

    def counted(self, name: str) -> Any:
        """One counter."""
        return self.seen()["counters"][name]

    def stream(self, mount: str = "/live") -> _core.Stream:
        """The stream, as soon as it has frames."""
        found: _core.Stream = until(lambda: self.engine.find(mount))
        until(lambda: found.snapshot()["epoch"])
        return found

    def cut(self) -> None:
        """Ends without a word, as `kill -9` does."""
        assert self.backbone._core
        self.backbone._core.fault(cut=True)
        self.backbone.close()


class Programme:
    """A local source whose frames tell their number."""

    def __init__(self, node: Node, mount: str = "/live") -> None:
        self.stream = node.engine.add_stream(mount)
        self.stream.claim()
        self.stream.set_info(INFO)
        self.epoch = self.stream.begin()
        self.mount = mount
        self.sent = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def frame(self, number: int) -> bytes:
        """What frame `number` of this epoch is."""
        return f"{self.mount}:{self.epoch}:{number}|".encode() * (10 + number % 7)

    def push(self, frames: int) -> None:
        """The next frames, at once."""
        for _ in range(frames):
            self.stream.push(self.frame(self.sent), 10_000)
            self.sent += 1

    def run(self) -> None:
        """On and on, 100 frames a second."""

        def pace() -> None:
            while not self._stop.wait(0.01):
                self.push(1)

        self._thread = threading.Thread(target=pace, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends run()."""
        self._stop.set()
        if self._thread:
            self._thread.join()


class Ear:
    """Reads a stream from where it begins, each frame once, each compared."""

    def __init__(self, node: Node, programme: Programme) -> None:
        self.stream = node.stream(programme.mount)
        self.programme = programme
        self.at: int = self.stream.snapshot()["tail_sequence"]
        self.heard = 0

    def listen(self) -> None:
        """All that is new."""
        head = self.stream.snapshot()["head_sequence"]
        while self.at < head:
            frame = self.stream.read(self.at)
            assert frame is not None, f"frame {self.at} of {head} is missing"
            assert frame[0] == self.programme.frame(self.at)
            self.at += 1
            self.heard += 1

    def reach(self, sequence: int, within_s: float = 10.0) -> None:
        """Listens until this frame."""

        def there() -> bool:
            self.listen()
            return self.at >= sequence

        until(there, within_s)
