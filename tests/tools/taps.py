"""Taps on rings: when each frame became whole in a node's ring, as a child of that node sees it.

Rules of this room
  1. A tap is one SUB on the node's backbone, reading docs/wire.md and not the code. A node sends on
     only what its head has passed, so what comes here is what listeners may have.
  2. Frames are compared by sequence with another tap of the same run: what the source, or this
     machine, was late for both does not count.
  3. The last FRAMES_MAX of each stream are kept.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Self

import zmq

from tools.children import HEAD, mount_key
from tools.sources import read_mark

RUN = struct.Struct("<BBQQQQQH")  # flags, reserved, origin, epoch, sequence, position, media, count
RECORD_BYTES = 8
FRAMES_MAX = 60_000


def payloads(message: bytes) -> list[bytes]:
    """Return the frames in a run; [] when it is something else, or carries only titles."""
    if message[:1] != b"S" or len(message) < HEAD.size + RUN.size:
        return []
    count = RUN.unpack_from(message, HEAD.size)[-1]
    at = HEAD.size + RUN.size
    body = at + count * RECORD_BYTES
    found = []
    for number in range(count):
        (word,) = struct.unpack_from("<I", message, at + number * RECORD_BYTES)
        size = word & 0xFFFFFF
        found.append(message[body : body + size])
        body += size
    return found


class Taps:
    """Taps on several nodes, read by one thread; a context manager."""

    def __init__(self, backbones: Mapping[str, str], mounts: tuple[str, ...]) -> None:
        """backbones: `tcp://host:port` of each node, by a name for it."""
        self.came: dict[tuple[str, str], OrderedDict[int, float]] = {}  # sequence -> when
        self.copies = 0  # frames that a node has sent on twice
        self._late_s: dict[str, float] = {}  # by node: the most that a frame was late for the tap
        self._mounts = {mount_key(mount): mount for mount in mounts}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._names: dict[zmq.Socket[bytes], str] = {}
        for name, backbone in backbones.items():
            sub = self._context.socket(zmq.SUB)
            sub.setsockopt(zmq.LINGER, 0)
            sub.connect(backbone)
            for mount in mounts:
                sub.subscribe(b"S" + struct.pack("<Q", mount_key(mount)))
                self.came[name, mount] = OrderedDict()
            self._names[sub] = name
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        poller = zmq.Poller()
        for sub in self._names:
            poller.register(sub, zmq.POLLIN)
        while not self._end.is_set():
            for sub, _ in poller.poll(100):
                self._take(self._names[sub], sub.recv(), time.monotonic())

    def _take(self, name: str, message: bytes, now_s: float) -> None:
        mount = self._mounts.get(HEAD.unpack_from(message)[1], "")
        came = self.came.get((name, mount))
        for frame in payloads(message) if came is not None else ():
            mark = read_mark(frame)
            if mark is None or came is None:
                continue
            if mark.sequence in came:
                self.copies += 1
                continue
            came[mark.sequence] = now_s
            late_s = now_s - mark.made_us / 1e6
            self._late_s[name] = max(self._late_s.get(name, 0.0), late_s)
            if len(came) > FRAMES_MAX:
                came.popitem(last=False)

    def late_ms(self, name: str) -> float:
        """The most that any frame took from its source to this tap, since the tap began."""
        return self._late_s[name] * 1000

    def extra_ms(self, name: str, control: str, since_s: float, until_s: float) -> list[float]:
        """How much later each frame came to `name` than to `control`, where it came in this time.

        Frames that have not come to `name` by now count as late as now.
        """
        late = []
        for (at, mount), came in list(self.came.items()):
            if at != name:
                continue
            for sequence, control_s in list(self.came[control, mount].items()):
                if since_s <= control_s < until_s:
                    late.append((came.get(sequence, time.monotonic()) - control_s) * 1000)
        return late

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join(5.0)
        self._context.destroy(linger=0)
