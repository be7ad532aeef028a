"""A child of the backbone by hand: raw ZeroMQ sockets that say what a test wants, right or wrong.

Rules of this room
  1. What is written here follows docs/wire.md, not the code: an independent second reader.
  2. Each wait has a bound. Nothing lingers: closing forgets what was not sent.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from typing import Self

import zmq

VERSION = 1
HEAD = struct.Struct("<cQB")  # kind, key, version
ASK = struct.Struct("<cQBI")  # … and request id
BEACON = struct.Struct("<B16sQQHHB")  # flags, node, directory, turn, load, repair port, path count
BEACON_TOPIC = b"B" + bytes(8)


def mount_key(mount: str) -> int:
    """Return the 64-bit key of a mount: FNV-1a and one round of mixing."""
    mask, key = (1 << 64) - 1, 0xCBF29CE484222325
    for byte in mount.encode():
        key = (key ^ byte) * 0x100000001B3 & mask
    key = (key ^ key >> 32) * 0xD6E8FEB86659FD93 & mask
    return key ^ key >> 32


def ask(kind: bytes, mount: str, body: bytes, *, request: int = 1, version: int = VERSION) -> bytes:
    """Return a request: J join, R repair, D directory."""
    return ASK.pack(kind, mount_key(mount), version, request) + body


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `tcp://host:port`."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)


class Child:
    """One child: a SUB and a DEALER of its own context."""

    def __init__(
        self,
        backbone: str,
        *,
        curve: tuple[str, str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        """Connect both; waits for a beacon, which names the repair port, and until the parent has
        let both in: a child that is cut for what it says on one can no longer connect the other.
        AssertionError if it does not within the time.

        curve: public key, secret key (without `secret:`) and the parent's public key, if it has.
        """
        self.backbone = backbone
        self._context = zmq.Context()
        self.sub: zmq.Socket[bytes] = self._context.socket(zmq.XSUB)
        self.dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for each in (self.sub, self.dealer):
            each.setsockopt(zmq.LINGER, 300)
            each.setsockopt(zmq.SNDTIMEO, round(timeout_s * 1000))
            if curve is not None:
                options = (zmq.CURVE_PUBLICKEY, zmq.CURVE_SECRETKEY, zmq.CURVE_SERVERKEY)
                for option, key in zip(options, curve, strict=True):
                    each.setsockopt(option, bytes.fromhex(key))
        self.sub.connect(backbone)
        self.subscribe(BEACON_TOPIC)
        try:
            port = self._repair_port(timeout_s)
            self.repair = f"{backbone.rpartition(':')[0]}:{port}"
            self._connect_dealer(timeout_s)
        except AssertionError:
            self.close()
            raise

    def _repair_port(self, timeout_s: float) -> int:
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            if self.sub.poll(200):
                message = self.sub.recv()
                if message[:1] == b"B":
                    return int(BEACON.unpack_from(message, HEAD.size)[5])
        raise AssertionError(f"no beacon from {self.backbone} within {timeout_s:g} s")

    def _connect_dealer(self, timeout_s: float) -> None:
        with self.dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as shaken:
            self.dealer.connect(self.repair)
            there = shaken.poll(round(timeout_s * 1000))
            self.dealer.disable_monitor()
        assert there, f"{self.repair} did not let this child in within {timeout_s:g} s"

    def subscribe(self, topic: bytes) -> None:
        """Ask for a topic: any bytes."""
        self.sub.send(b"\x01" + topic)

    def subscribe_mount(self, mount: str) -> None:
        """Ask for the frames of a stream, there or not."""
        self.subscribe(b"S" + struct.pack("<Q", mount_key(mount)))

    def join(self, mount: str, *, version: int = VERSION) -> bytes:
        """Ask to join the newest epoch of a mount; returns the first answer, b"" if none."""
        self.dealer.send(ask(b"J", mount, struct.pack("<QQ", 0, 3_000_000), version=version))
        return self.dealer.recv() if self.dealer.poll(1000) else b""

    def say_garbage(self, dice: random.Random) -> None:
        """Send malformed requests and subscriptions of many sizes on both sockets."""
        for size in [0, 1, 9, 10, 14, 22, 31, 39, 63, 500] * 10:
            body = dice.randbytes(size)
            for head in (b"", ask(dice.choice([b"J", b"R", b"D"]), "/x", b""), b"\x01S"):
                self.dealer.send(head + body)
                self.sub.send((b"\x01" + head + body)[:60])
        self.dealer.send_multipart([b"a", b"b", b"c"])

    def close(self) -> None:
        """Leave."""
        self._context.destroy(linger=300)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.close()


def throw_bytes(address: str, dice: random.Random, *, connections: int = 20) -> None:
    """Send random bytes over plain TCP, each time on a new connection."""
    for _ in range(connections):
        with (
            contextlib.suppress(OSError),
            socket.create_connection(split_address(address), timeout=2.0) as raw,
        ):
            raw.sendall(dice.randbytes(dice.randrange(1, 600)))


class FakeParent:
    """An upstream by hand: publishes whatever a test wants."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self.pub: zmq.Socket[bytes] = self._context.socket(zmq.XPUB)
        self.backbone = f"tcp://127.0.0.1:{self.pub.bind_to_random_port('tcp://127.0.0.1')}"

    def wait_child(self, timeout_s: float = 5.0) -> None:
        """Wait until somebody wants beacons."""
        assert self.pub.poll(round(timeout_s * 1000)), f"nobody came within {timeout_s:g} s"
        self.pub.recv()

    def beacon(self, *, version: int = VERSION) -> None:
        """Publish a beacon that says this version."""
        body = BEACON.pack(0, b"a fake upstream!", 0, 1, 0, 1, 0) + bytes(3)
        self.pub.send(HEAD.pack(b"B", 0, version) + body)

    def close(self) -> None:
        """Go without a goodbye."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.close()
