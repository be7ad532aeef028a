"""Hostile messages, and a parent that lies: between a real node and its child, by hand.

Rules of this room
  1. Mutants are made of real messages, as docs/wire.md lays them out: cut short, too long, with
     bits turned, of random bytes, or old ones again. The dice are the test's.
  2. A `Liar` passes on what the node above it says, until it is told to lie; then each message is
     followed by mutants, and answers likewise. It runs on one thread and holds RECORDED_MAX
     messages.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Self

import zmq

from tools.children import BEACON_TOPIC, HEAD, Child, mount_key, split_address

RECORDED_MAX = 500
REQUEST_BYTES_MAX = 900  # the ROUTER takes 1 KiB, of which CURVE needs some
REPAIR_PORT_AT = HEAD.size + 1 + 16 + 8 + 8 + 2  # of a beacon, docs/wire.md
LONG_TOPIC_BYTES = 2000  # our own libzmq keeps topics in a trie, and walks it by recursion
BIG_BYTES = 300_000  # beyond every MAXMSGSIZE of the backbone


def mutants(dice: random.Random, message: bytes, count: int) -> Iterator[bytes]:
    """Yield wrong versions of a message; those of random bytes keep its topic, or they would not
    be asked for."""
    for _ in range(count):
        kind = dice.randrange(6)
        if kind == 0:
            yield message[: dice.randrange(len(message) + 1)]
        elif kind == 1:
            yield message + dice.randbytes(dice.choice((1, 8, 100, 5000)))
        elif kind == 2:
            yield message[:9] + dice.randbytes(dice.randrange(600))
        elif kind == 3:
            yield message[: HEAD.size] + dice.randbytes(len(message) - HEAD.size)
        else:
            turned = bytearray(message)
            for _ in range(dice.choice((1, 1, 2, 8)) if turned else 0):
                turned[dice.randrange(min(len(turned), 120))] ^= 1 << dice.randrange(8)
            yield bytes(turned)


def send_mutants(child: Child, dice: random.Random, requests: list[bytes], rounds: int) -> int:
    """Send requests, and mutants short enough to be looked at; how many messages."""
    sent = 0
    for _ in range(rounds):
        for request in requests:
            for message in (request, *mutants(dice, request, 8)):
                sent += say(child.dealer, message[:REQUEST_BYTES_MAX])
    return sent


def send_too_long(child: Child, dice: random.Random, requests: list[bytes], rounds: int) -> None:
    """Send what ends the connection, with all that is on its way: messages longer than a socket
    takes, and topics that are none. libzmq dials again each time."""
    for request in requests:
        say(child.dealer, request + bytes(BIG_BYTES))
    for _ in range(rounds):
        topic = b"\x01" + dice.choice((b"S", b"B", b"x")) + dice.randbytes(dice.randrange(40))
        for message in (topic, b"\x00" + topic[1:], dice.randbytes(dice.randrange(60))):
            say(child.sub, message)
    say(child.sub, b"\x01" + bytes(LONG_TOPIC_BYTES))


def say(socket: zmq.Socket[bytes], message: bytes) -> int:
    """Send when there is a connection with room; returns whether, as 1 or 0."""
    if not socket.poll(200, zmq.POLLOUT):
        return 0
    socket.send(message, zmq.DONTWAIT)
    return 1


def flood_topics(
    backbone: str, dice: random.Random, count: int, curve: tuple[str, str, str] | None = None
) -> zmq.Context[zmq.Socket[bytes]]:
    """A child that asks for so many streams that nobody has, and again after each cut; it goes with
    the context's destroy()."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sub = context.socket(zmq.XSUB)
    sub.setsockopt(zmq.SNDHWM, 0)
    options = (zmq.CURVE_PUBLICKEY, zmq.CURVE_SECRETKEY, zmq.CURVE_SERVERKEY)
    for option, key in zip(options, curve or (), strict=curve is not None):
        sub.setsockopt(option, bytes.fromhex(key))
    sub.connect(backbone)
    for _ in range(count):
        sub.send(b"\x01S" + dice.randbytes(8))
    return context


def raw_child(backbone: str, kind: bytes = b"SUB") -> socket.socket:
    """A connection to an XPUB by hand (ZMTP 3.0, no keys), as a DEALER to a ROUTER: it may say what
    no ZeroMQ socket would.

    The peer that libzmq makes never unsubscribes from what it has not subscribed to.
    """
    raw = socket.create_connection(split_address(backbone), timeout=5.0)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    raw.sendall(greeting + bytes([4, len(ready)]) + ready)
    heard = b""
    while b"READY" not in heard:
        more = raw.recv(1000)
        assert more, "closed during the handshake"
        heard += more
    return raw


def say_raw(raw: socket.socket, message: bytes) -> None:
    """Send one short message on it."""
    raw.sendall(bytes([0, len(message)]) + message)


def say_whole(raw: socket.socket, message: bytes) -> None:
    """Send one message of any size on it."""
    raw.sendall(b"\x02" + struct.pack(">Q", len(message)) + message)


def send_endless(raw: socket.socket, part_bytes: int, bytes_max: int) -> int:
    """Send parts of a message that has no last one, until the connection is cut or so much has
    been sent; returns how much."""
    part = (
        bytes([1, part_bytes]) + bytes(part_bytes)
        if part_bytes < 256
        else (b"\x03" + struct.pack(">Q", part_bytes) + bytes(part_bytes))
    )
    many = part * (65536 // len(part))
    sent = 0
    try:
        while sent < bytes_max:
            raw.sendall(many)
            sent += len(many)
            time.sleep(0.002)  # 30 MB/s: what is kept is what comes between two looks
    except (ConnectionError, TimeoutError):
        pass
    return sent


def say_parts(socket: zmq.Socket[bytes], part: bytes, bytes_all: int) -> None:
    """Send one message in many parts. libzmq keeps it until the last one, and then sends it as it
    would any other, keys included: to who gets it, it is one without an end for as long as it
    lasts."""
    for _ in range(bytes_all // len(part)):
        socket.send(part, zmq.SNDMORE)
    socket.send(part)


def is_closed(raw: socket.socket) -> bool:
    """Whether the other side ends the connection within its timeout; what it says is passed by."""
    try:
        while raw.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


class Liar:
    """A parent between a node and its children. A context manager; `backbone` is its address."""

    def __init__(
        self, above: str, mounts: tuple[str, ...], dice: random.Random,
        curve: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Attach to the node above.

        Args:
            above: its backbone, open to anybody.
            mounts: streams to pass on.
            dice: of the lies.
            curve: public and secret key that children are shown; None: no keys.
        """
        self.lies_each = 0  # mutants that follow each message; 0: honest
        self.lies_told = 0
        self._dice = dice
        self._recorded: deque[bytes] = deque(maxlen=RECORDED_MAX)
        self._child = Child(above)
        for mount in mounts:
            self._child.subscribe(b"S" + struct.pack("<Q", mount_key(mount)))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub = self._context.socket(zmq.XPUB)
        self._router = self._context.socket(zmq.ROUTER)
        for ours in (self._pub, self._router):
            ours.setsockopt(zmq.LINGER, 0)
            if curve is not None:
                ours.setsockopt(zmq.CURVE_SERVER, 1)
                ours.setsockopt(zmq.CURVE_SECRETKEY, bytes.fromhex(curve[1]))
        port = self._pub.bind_to_random_port("tcp://127.0.0.1")
        self._repair_port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self.backbone = f"tcp://127.0.0.1:{port}"
        self._asked: deque[tuple[bytes, bytes]] = deque(maxlen=1000)  # who asked, request id
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        poller = zmq.Poller()
        ours = (self._child.sub, self._child.dealer, self._pub, self._router)
        for each in ours:
            poller.register(each, zmq.POLLIN)
        while not self._end.is_set():
            for ready, _ in poller.poll(50):
                if ready is self._child.sub:
                    self._publish(ready.recv())
                elif ready is self._child.dealer:
                    self._answer(ready.recv())
                elif ready is self._pub:
                    ready.recv()  # who wants what: all is passed on
                else:
                    who, request = ready.recv_multipart()[:2]
                    self._asked.append((who, request[HEAD.size : HEAD.size + 4]))
                    self._child.dealer.send(request)

    def _publish(self, message: bytes) -> None:
        if message[:9] == BEACON_TOPIC:
            port = struct.pack("<H", self._repair_port)
            message = message[:REPAIR_PORT_AT] + port + message[REPAIR_PORT_AT + 2 :]
        for told in (message, *self._lies(message)):
            self._pub.send(told, zmq.DONTWAIT)

    def _answer(self, message: bytes) -> None:
        request = message[HEAD.size : HEAD.size + 4]
        who = next((who for who, asked in reversed(self._asked) if asked == request), None)
        if who is None:
            return
        for told in (message, *self._lies(message)):
            self._router.send_multipart([who, told], zmq.DONTWAIT)

    def _lies(self, message: bytes) -> list[bytes]:
        """Mutants of this message and an old one, now and then one beyond all bounds."""
        self._recorded.append(message)
        if not self.lies_each:
            return []
        lies = [*mutants(self._dice, message, self.lies_each), self._dice.choice(self._recorded)]
        if self._dice.random() < 0.01:
            lies.append(message + bytes(BIG_BYTES))
        self.lies_told += len(lies)
        return lies

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join(5.0)
        self._child.close()
        self._context.destroy(linger=0)
