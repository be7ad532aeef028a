"""An engine whose programmes run in time and are known by their frames, and what listeners heard.

Rules of this room
  1. Each frame says which it is: those of /live, /music and /tone are a million apart, so the order
     of what a listener heard tells when it was where; nothing torn can pass.
  2. Times are bounds for waiting, far above what is promised.
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from relay import _core
from tools.engines import MP3, Programme
from tools.listeners import Crowd, Listener
from tools.nodes import PASSWORD, NodeProcess, wait_until
from tools.sources import FrameMaker, LiveSource, Source, frame_size, read_mark

STEP = 1_000_000
LIVE, MUSIC, TONE = range(3)
PACE_MS = 50
AFTER_MS = 1000
WAIT_S = 10.0


def maker(kind: int, bit_rate_kbit: int = 64) -> FrameMaker:
    """Frames of one programme, known by their numbers."""
    made = FrameMaker(bit_rate_kbit)
    made.sequence = kind * STEP
    return made


def heard(listener: Listener) -> list[int]:
    """The numbers of all frames, in order; each whole and next to the other, but the last."""
    body, at = bytes(listener.body), 0
    found: list[int] = []
    while at + 4 <= len(body):
        size = frame_size(body, at)
        assert size, f"no frame begins at {at}, after {found[-3:]}"
        if at + size > len(body):
            break
        mark = read_mark(body[at : at + size])
        assert mark is not None, f"a damaged frame at {at}, after {found[-3:]}"
        found.append(mark.sequence)
        at += size
    return found


def runs(numbers: list[int]) -> list[tuple[int, int, int]]:
    """What was heard without a break: (programme, first, last)."""
    found: list[tuple[int, int, int]] = []
    for number in numbers:
        kind = number // STEP
        if found and found[-1][0] == kind and found[-1][2] == number - 1:
            found[-1] = (kind, found[-1][1], number)
        else:
            found.append((kind, number, number))
    return found


def order(listener: Listener) -> list[int]:
    """Which programmes it heard, in order, each in one run."""
    return [kind for kind, _, _ in runs(heard(listener))]


def hears(listeners: list[Listener], kind: int, more: int = 10) -> None:
    """Wait until each has so many frames of this programme at its end."""

    def all_do() -> bool:
        return all(
            (run := runs(heard(one))) and run[-1][0] == kind and run[-1][2] - run[-1][1] >= more
            for one in listeners
        )

    wait_until(all_do, WAIT_S, what=f"{listeners} to hear programme {kind}", every_s=0.05)


class Studio:
    """An engine, its programmes in time, and listeners."""

    def __init__(self, engine: Any, crowd: Crowd, address: tuple[str, int]) -> None:
        self.engine, self.crowd, self.address = engine, crowd, address
        self.programmes: dict[int, Programme] = {}
        self.running: dict[int, tuple[threading.Event, threading.Thread]] = {}

    def start(self, kind: int, mount: str, info: bytes = MP3, *, begins: bool = True) -> None:
        """A source comes, or comes back with a new epoch; it goes on with its next frames. With
        `begins` false it was only silent, and its epoch goes on."""
        if kind not in self.programmes:
            self.programmes[kind] = Programme(self.engine, mount, info=info, begin=False)
            self.programmes[kind].maker = maker(kind)
        programme, goes = self.programmes[kind], threading.Event()
        if begins:
            programme.stream.begin()
        goes.set()

        def run() -> None:
            while goes.is_set():
                programme.push_live(0.1)

        thread = threading.Thread(target=run)
        self.running[kind] = goes, thread
        thread.start()

    def stop(self, kind: int) -> None:
        """Its source leaves."""
        self.stall(kind)
        self.programmes[kind].stream.end()

    def stall(self, kind: int) -> None:
        """Its source stays, and says nothing."""
        goes, thread = self.running.pop(kind)
        goes.clear()
        thread.join()

    def join(self, mount: str = "/live", **options: Any) -> Listener:
        """One listener more."""
        return self.crowd.join(self.address, mount, **options)

    def close(self) -> None:
        """No more frames."""
        for goes, _ in self.running.values():
            goes.clear()
        for _, thread in self.running.values():
            thread.join()

    def state(self, mount: str = "/live") -> dict[str, Any]:
        """The engine's snapshot of a stream."""
        return dict(self.engine.find(mount).snapshot())


@contextlib.contextmanager
def studio(*, after_ms: int = 300, threads: int = 1, **limits: Any) -> Iterator[Studio]:
    """An engine in which /live falls back to /music, and that to /tone; no join times out."""
    engine = _core.Engine(
        listeners_max=100, heads_per_address_max=100, threads=threads, join_wait_ms=60_000
    )
    common: dict[str, Any] = {"pace_ms": PACE_MS, "burst_ms": 500, "fallback_after_ms": after_ms}
    engine.configure(**common)
    engine.configure("/live", **common, fallback=("/music", "/tone"))
    engine.configure("/music", **common, **limits)
    address = engine.listen("127.0.0.1", 0)
    engine.start()
    with Crowd() as crowd:
        made = Studio(engine, crowd, address)
        try:
            yield made
        finally:
            made.close()
            engine.close()


# --- nodes ---------------------------------------------------------------------------------------


def settings(path: Path, **tables: dict[str, Any]) -> str:
    """A file of settings with these mounts; returns its path."""
    lines = ["[defaults]", f"pace_ms = {PACE_MS}", "burst_ms = 1000"]
    lines += [f"fallback_after_ms = {AFTER_MS}"]
    for name, table in tables.items():
        lines.append(f'[streams."/{name}"]')
        for key, value in table.items():
            lines.append(f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def source(node: NodeProcess, mount: str, frames: FrameMaker) -> LiveSource:
    """An encoder in real time."""
    return LiveSource(Source(node.address, mount), frames).start()


def entitle(node: NodeProcess, mount: str, text: str) -> None:
    """Set a title at the origin."""
    token = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    told = node.request(
        f"/admin/metadata?mode=updinfo&mount={mount}&song={quote(text)}",
        headers={"Authorization": f"Basic {token}"},
    )
    assert told.status == 200, told.body


def stream(node: NodeProcess, mount: str) -> dict[str, Any]:
    """What the node tells of a stream; empty when it has none."""
    told = node.json("/api/v1/status")["streams"]
    return next((one for one in told if one["mount"] == mount), {})
