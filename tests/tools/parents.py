"""An upstream by hand: a thread that sends beacons and answers, right or wrong, as a test says.

Rules of this room
  1. What is written here follows docs/wire.md, not the code: an independent second reader.
  2. The thread owns the sockets; a test changes plain attributes and hands over whole messages.
  3. A request is answered as things stood when it came, also where the test lets answers wait.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections import deque
from typing import Self

import zmq

from tools.children import mount_key

REQUEST = struct.Struct("<cQBI")
ENTRY = struct.Struct("<QBBQQBH")  # version, flags, hops, epoch, origin, mount and info bytes
RUN = struct.Struct("<BBQQQQQH")  # flags, reserved, origin, epoch, sequence, position, µs, count
SINCE = struct.Struct("<16sQ")  # of a D: whose versions are counted, the newest that is known
NODE = b"a parent by hand"
PAGE_LAST, PAGE_FIRST = 1, 2


def entry(mount: str, epoch: int, *, origin: int = 7, version: int = 5, up: bool = True) -> bytes:
    """One stream of a directory."""
    name = mount.encode()
    return ENTRY.pack(version, int(up), 0, epoch, origin, len(name), 0) + name


def beacon_entry(mount: str, epoch: int, sequence: int, *, end: bool = False) -> bytes:
    """One stream of a beacon: how far it has been sent, and whether it has ended there."""
    return struct.pack("<QQQB", mount_key(mount), epoch, sequence, int(end))


class HandParent:
    """Beacons each 20 ms; answers D with its entries (or `later`), all else with `later`."""

    def __init__(
        self,
        *entries: bytes,
        port: int = 0,
        whole: bool = True,
        version: int = 1,
        more_versions: int = 0,
        tail: bytes = b"",
        secret: bytes = b"",
    ) -> None:
        """Bind and begin.

        Args:
            entries: of its directory.
            port: of the XPUB; 0: any free one.
            whole: whether it knows its own directory.
            version: of every message.
            more_versions: how many it speaks beyond that, as its beacons tell.
            tail: bytes that a later version might have appended to each body.
            secret: of its key; b"": it has none. Whoever knows the other half is let in.
        """
        self.entries = list(entries)
        self.whole, self.version, self.more_versions, self.tail = (
            whole,
            version,
            more_versions,
            tail,
        )
        self.directory_version = 5
        self.beacon_entries: list[bytes] = []  # what its beacons tell of streams
        self.topics: list[bytes] = []  # subscribed and left, as XPUB told
        self.asked: list[bytes] = []  # requests, whole
        self.answers = threading.Event()  # cleared: they wait until it is set
        self.answers.set()
        self.more_parts: list[bytes] = []  # of each answer, behind the first
        self._answered: deque[list[bytes]] = deque()  # who asked, and the answer; not sent yet
        self._context = zmq.Context()
        self._xpub = self._context.socket(zmq.XPUB)
        self._router = self._context.socket(zmq.ROUTER)
        for each in (self._xpub, self._router) if secret else ():
            each.setsockopt(zmq.CURVE_SERVER, 1)
            each.setsockopt(zmq.CURVE_SECRETKEY, secret)
        if port:
            self._xpub.bind(f"tcp://127.0.0.1:{port}")
        self.port = port or self._xpub.bind_to_random_port("tcp://127.0.0.1")
        self.repair_port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self.told_port = self.repair_port  # for repair, as its beacons tell
        self._outbox: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where children attach."""
        return f"tcp://127.0.0.1:{self.port}"

    def publish(self, *parts: bytes) -> None:
        """Send this to who subscribed, with the next beacon at the latest."""
        self._outbox.put(list(parts))

    def run(
        self, mount: str, epoch: int, sequence: int, *, end: bool = False, origin: int = 7
    ) -> bytes:
        """A published run without frames: it says that the epoch reaches `sequence`."""
        head = struct.pack("<cQB", b"S", mount_key(mount), self.version)
        return head + RUN.pack(int(end), 0, origin, epoch, sequence, 0, 0, 0) + self.tail

    def wants(self, mount: str) -> bool:
        """Whether a child is subscribed to this stream."""
        topic = b"S" + struct.pack("<Q", mount_key(mount))
        told = [each for each in self.topics if each[1:] == topic]
        return bool(told) and told[-1][:1] == b"\1"

    def _beacon(self) -> bytes:
        known = self.directory_version if self.whole else 0
        flags = self.more_versions << 4
        head = struct.pack("<cQBB16sQ", b"B", 0, self.version, flags, NODE, known)
        entries = list(self.beacon_entries)
        numbers = struct.pack("<QHHBBH", 1, 0, self.told_port, 0, 0, len(entries))
        return head + numbers + b"".join(entries) + self.tail

    def _answer(self, what: bytes) -> bytes:
        kind, key, version, request = REQUEST.unpack_from(what)
        if kind != b"D" or not self.whole:
            return REQUEST.pack(b"l", key, version, request)
        node, since = SINCE.unpack_from(what, REQUEST.size)
        known = since if node == NODE else 0
        entries = [one for one in self.entries if ENTRY.unpack_from(one)[0] > known]
        flags = PAGE_LAST if known else PAGE_LAST | PAGE_FIRST
        body = NODE + struct.pack("<QBH", self.directory_version, flags, len(entries))
        return REQUEST.pack(b"p", key, version, request) + body + b"".join(entries) + self.tail

    def _behind(self, what: bytes) -> list[bytes]:
        """More answers to the same request; those who tell more have them."""
        return []

    def _run(self) -> None:
        poller = zmq.Poller()
        for each in (self._xpub, self._router):
            poller.register(each, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll(20))
            if self._xpub in ready:
                self.topics.append(self._xpub.recv())
            if self._router in ready:
                who, what = self._router.recv_multipart()
                self._answered.append([who, self._answer(what), *self.more_parts])
                self._answered += [[who, more] for more in self._behind(what)]
                self.asked.append(what)
            while self._answered and self.answers.is_set():
                self._router.send_multipart(self._answered.popleft())
            while not self._outbox.empty():
                self._xpub.send_multipart(self._outbox.get())
            self._xpub.send(self._beacon())
        self._context.destroy(linger=0)

    def close(self) -> None:
        """Go without a goodbye."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.close()
