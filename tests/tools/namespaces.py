"""Two machines in one: network namespaces A and B with a real MTU and a real round trip between.

Rules of this room
  1. Root only, by `ip netns`; names carry the process id, and all of it goes away with the Lan.
  2. The kernel here has no netem: between A and B sits a forwarder of ours (AF_PACKET, in a third
     namespace) that holds each frame for half the round trip. It changes no byte.
  3. Offloads are off at both ends: what crosses is what a wire of that MTU would carry, with
     checksums, in frames of at most MTU + 14 bytes.
  4. Run as a program, this file is the forwarder: it imports nothing but the standard library.
  5. A socket belongs for life to the namespace that its thread was in: `inside` moves one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Self

SIOCETHTOOL = 0x8946
# include/uapi/linux/ethtool.h: ETHTOOL_STXCSUM, _SRXCSUM, _STSO, _SGSO, _SGRO
OFFLOADS = (0x17, 0x15, 0x1F, 0x24, 0x2C)
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33
ETH_P_ALL = 3
ETHERNET_BYTES = 14
CLONE_NEWNET = 0x40000000
HELD_FRAMES_MAX = 20_000  # each way together; beyond, frames are lost and counted

_numbers = itertools.count()


def why_no_namespaces() -> str:
    """Return why namespaces cannot be made here, with the install line; "" when they can."""
    if not shutil.which("ip"):
        return "ip is missing: apt-get install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root: run the tests as root"
    probe = f"relay-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces cannot be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return ""


def ip(*words: str) -> None:
    """Run `ip`; RuntimeError with its message when it fails."""
    told = subprocess.run(["ip", *words], capture_output=True, text=True)
    if told.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {told.stderr.strip()}")


class Namespace:
    """One network namespace with one address; looks like a machine of its own."""

    def __init__(self, name: str, address: str, address6: str) -> None:
        self.name, self.address, self.address6 = name, address, address6
        self.prefix = ["ip", "netns", "exec", name]  # for NodeProcess(prefix=…)
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")

    def run(self, command: Sequence[str], timeout_s: float = 30.0) -> str:
        """Run a command here to its end; returns what it printed. RuntimeError when it fails."""
        told = subprocess.run(
            [*self.prefix, *command], capture_output=True, text=True, timeout=timeout_s
        )
        if told.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {told.stderr.strip()}")
        return told.stdout

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Let the calling thread open its sockets here; they stay here when it leaves again."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as here:
            if libc.setns(here.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns {self.name}")
            try:
                yield
            finally:
                if libc.setns(home.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns back home")

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command here; the caller ends it."""
        return subprocess.Popen([*self.prefix, *command], text=True, **options)


class Lan:
    """Namespaces `a` and `b` on one link: direct, or through the delaying forwarder."""

    def __init__(self, *, mtu: int = 1500, rtt_ms: float | None = None) -> None:
        """Build it; a context manager, or `close()`.

        Args:
            mtu: of the link.
            rtt_ms: the round trip that the forwarder adds; None is a direct link without it.
        """
        number = next(_numbers)
        base, net = f"relay-{os.getpid()}-{number}", f"10.{os.getpid() % 200 + 20}.{number % 250}"
        self._spaces: list[Namespace] = []
        self._forwarder: subprocess.Popen[str] | None = None
        self.stats: dict[str, int] = {}
        try:
            self.a = self._space(f"{base}-a", f"{net}.1", "fd72:656c::1")
            self.b = self._space(f"{base}-b", f"{net}.2", "fd72:656c::2")
            if rtt_ms is None:
                self._join(self.a.name, "wire", self.b.name, "wire", mtu)
            else:
                middle = self._space(f"{base}-f", "", "").name
                self._join(self.a.name, "wire", middle, "to-a", mtu)
                self._join(self.b.name, "wire", middle, "to-b", mtu)
            for space in (self.a, self.b):
                self._address(space)
            if rtt_ms is not None:
                self._forward(self._spaces[2], rtt_ms / 2)
        except BaseException:
            self.close()
            raise

    def _space(self, name: str, address: str, address6: str) -> Namespace:
        space = Namespace(name, address, address6)
        self._spaces.append(space)
        return space

    def _join(self, one: str, one_link: str, two: str, two_link: str, mtu: int) -> None:
        """Lay a veth pair between two namespaces, without offloads."""
        ip("-n", one, "link", "add", "name", one_link, "mtu", str(mtu), "type", "veth",
           "peer", "name", two_link, "mtu", str(mtu), "netns", two)  # fmt: skip
        for name, link in ((one, one_link), (two, two_link)):
            me = ["ip", "netns", "exec", name, sys.executable, "-P", __file__]
            subprocess.run([*me, "offloads-off", link], check=True, timeout=20)
            ip("-n", name, "link", "set", link, "up")

    def _address(self, space: Namespace) -> None:
        ip("-n", space.name, "addr", "add", f"{space.address}/24", "dev", "wire")
        ip("-n", space.name, "-6", "addr", "add", f"{space.address6}/64", "dev", "wire", "nodad")

    def _forward(self, middle: Namespace, one_way_ms: float) -> None:
        """Start the forwarder and wait until it holds both links."""
        program = [sys.executable, "-P", __file__, "forward", "to-a", "to-b", str(one_way_ms)]
        self._forwarder = middle.popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1
        )
        assert self._forwarder.stdout is not None
        ready, _, _ = select.select([self._forwarder.stdout], [], [], 15.0)
        if not ready or self._forwarder.stdout.readline().strip() != "ready":
            raise RuntimeError("the forwarder did not start")

    def _tell(self, words: str) -> None:
        assert self._forwarder is not None, "this Lan is direct: give it rtt_ms"
        assert self._forwarder.stdin is not None
        self._forwarder.stdin.write(words + "\n")
        self._forwarder.stdin.flush()

    def delay(self, rtt_ms: float) -> None:
        """Change the round trip."""
        self._tell(f"delay {rtt_ms / 2}")

    def cut(self) -> None:
        """Fault `cut`: every frame is lost until `heal`, and nobody is told."""
        self._tell("cut")

    def heal(self) -> None:
        """End the fault `cut`."""
        self._tell("heal")

    def close(self) -> dict[str, int]:
        """Take it all down; returns (and keeps in `stats`) what the forwarder saw.

        `frames`, `lost_frames`, `frame_bytes_max`, `held_frames_max`.
        """
        if self._forwarder is not None:
            with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
                told, _ = self._forwarder.communicate(timeout=5.0)
                self.stats = json.loads(told or "{}")
            self._forwarder.kill()
            self._forwarder.wait(5.0)
            self._forwarder = None
        for space in self._spaces:
            with contextlib.suppress(RuntimeError):
                ip("netns", "del", space.name)
        self._spaces.clear()
        return self.stats

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.close()


def offloads_off(link: str) -> None:
    """Turn off what lets a veth carry what no wire would: open checksums, huge frames."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in OFFLOADS:
            value = bytearray(struct.pack("II", command, 0))
            with_pointer = struct.pack("16sP", link.encode(), address_of(value))
            with contextlib.suppress(OSError):  # one that the driver does not have
                fcntl.ioctl(any_socket, SIOCETHTOOL, with_pointer)


def address_of(buffer: bytearray) -> int:
    """Return where the bytes lie; the caller keeps them alive."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Forwarder:
    """Bridges two links; holds each frame for the delay. Runs in the middle namespace."""

    def __init__(self, links: Sequence[str], delay_ms: float) -> None:
        self.delay_s = delay_ms / 1000
        self.sockets = [self._open(link) for link in links]
        self.other = {self.sockets[0]: self.sockets[1], self.sockets[1]: self.sockets[0]}
        self.held: deque[tuple[float, socket.socket, bytes]] = deque()
        self.cut = False
        self.stats = dict.fromkeys(("frames", "lost_frames", "frame_bytes_max"), 0)
        self.stats["held_frames_max"] = 0

    @staticmethod
    def _open(link: str) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        sock.setsockopt(263, PACKET_IGNORE_OUTGOING, 1)  # SOL_PACKET
        sock.bind((link, ETH_P_ALL))
        sock.setblocking(False)
        return sock

    def run(self) -> None:
        """Forward until stdin ends; lines there are commands."""
        watched: list[Any] = [*self.sockets, sys.stdin.fileno()]
        while True:
            wait_s = max(0.0, self.held[0][0] - time.monotonic()) if self.held else 1.0
            ready, _, _ = select.select(watched, [], [], wait_s)
            for one in ready:
                if one in self.other:
                    self._receive(one)
                elif not self._command():
                    return
            self._send_due()

    def _receive(self, sock: socket.socket) -> None:
        for _ in range(256):
            try:
                frame = sock.recv(65_536)
            except BlockingIOError:
                return
            except OSError:  # a link that goes down while the Lan is taken apart
                return
            self.stats["frames"] += 1
            self.stats["frame_bytes_max"] = max(self.stats["frame_bytes_max"], len(frame))
            if self.cut or len(self.held) >= HELD_FRAMES_MAX:
                self.stats["lost_frames"] += 1
                continue
            due_s = time.monotonic() + self.delay_s
            if self.held and self.held[-1][0] > due_s:  # the delay was shortened: keep the order
                due_s = self.held[-1][0]
            self.held.append((due_s, self.other[sock], frame))
            self.stats["held_frames_max"] = max(self.stats["held_frames_max"], len(self.held))

    def _send_due(self) -> None:
        now_s = time.monotonic()
        while self.held and self.held[0][0] <= now_s:
            _, out, frame = self.held.popleft()
            try:
                out.send(frame)
            except OSError:
                self.stats["lost_frames"] += 1

    def _command(self) -> bool:
        """Do what a line on stdin says; False at its end."""
        words = os.read(sys.stdin.fileno(), 4096).decode()
        for line in words.splitlines():
            verb, *values = line.split()
            if verb == "delay":
                self.delay_s = float(values[0]) / 1000
            else:
                self.cut = verb == "cut"
        return bool(words)


def main(words: list[str]) -> None:
    """`offloads-off LINK`, or `forward LINK LINK ONE_WAY_MS` until stdin ends."""
    if words[0] == "offloads-off":
        offloads_off(words[1])
        return
    forwarder = Forwarder(words[1:3], float(words[3]))
    print("ready", flush=True)
    forwarder.run()
    print(json.dumps(forwarder.stats), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
