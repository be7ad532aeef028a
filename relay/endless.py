"""Messages without an end, and children without a word: cuts connections that bring parts and never
the last, and those beyond a bound that never brought a message at all.

Rules of this room
  1. libzmq hands a message over when its last part has come, and keeps all of them until then; it
     has a bound for a part and for whole messages, none for their sum. While a message goes on,
     its connection brings no other: so what came since the last whole one is what libzmq keeps.
  2. The core counts whole messages: of children by descriptor (guests.pxd), of those above by
     socket (upstream.pxd). The kernel tells how many bytes came, and how many of them nobody has
     read (TCP_INFO, FIONREAD). Who brings more than BYTES_MAX between two whole messages is cut:
     libzmq then frees all of it. No child of ours does: of 64 requests of 1 KiB, or ten
     subscriptions, that our thread has not read, libzmq reads no further.
  3. Looked at each LOOK_S (of many connections up to LOOK_S_MAX), and counted from the first look
     on: a sender gains what it can send in twice that time, once for each connection; what one
     gained is freed with its end.
  4. From above audio comes by the megabyte, libzmq reads all of it ahead of our thread, and drops
     unread what nobody is subscribed to any more. So there more may come (ABOVE_BYTES_MAX; a beacon
     comes each 100 ms), and it is cut only when the thread, asked to, has taken a turn since.
  5. Connections are told of by libzmq's monitors: the gate's where links have keys, else our own;
     those on which upstreams answer, by the core. A descriptor that is used again is another
     connection (SO_COOKIE), and none of ours unless its port is.
  6. The core bounds a child's connections by its name, which a message brings (guests.pxd, rule 6).
     One that has shown a key and then says nothing has none. Who has been silent for SILENT_S is
     counted, and beyond `silent_max` the newest goes of the address with most: an honest child has
     one at most, while it has nothing to ask, and libzmq brings it back.
  7. Knows nothing of streams or keys.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import socket as sockets
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import zmq

from relay.gate import Seldom, plain_address

log = logging.getLogger("relay.backbone")

BYTES_MAX = 1 << 20
ABOVE_BYTES_MAX = 1 << 22
LOOK_S = 0.02
LOOK_S_MAX = 0.1
LOOKS_COST = 20  # looks take a twentieth of the time at most, up to LOOK_S_MAX
SILENT_S = 6.0  # libzmq has ended by then what has not finished its handshake (HANDSHAKE_IVL)
SILENT_MAX = 64
TURNS = 2  # the one that was under way may have passed by already
SO_COOKIE = 57  # asm-generic/socket.h; the module has no name for it
# linux/tcp.h, struct tcp_info: tcpi_bytes_received, behind 8 of 8 bits, 24 of 32 and 3 of 64.
_RECEIVED = struct.Struct("=128xQ")
_EVENT = struct.Struct("=HI")


class Above(NamedTuple):
    """What an upstream has brought (`_core.Backbone.above`)."""

    published: int  # whole messages, modulo 2**32
    answered: int
    dealer_fd: int  # of the connection on which it answers; -1: none
    dealer_port: int
    turns: int  # that our own thread has begun


class Core(Protocol):
    """What is asked of `_core.Backbone`."""

    def heard(self, fd: int, cookie: int) -> tuple[int, bool]:
        """How many whole messages a child's descriptor has brought, modulo 2**32, and whether any
        came on this connection."""

    def above(self, upstream: int, *, stir: bool = False) -> tuple[int, int, int, int, int]:
        """As `Above`; `stir`: its thread takes one more turn."""


class Reading(NamedTuple):
    """What the kernel says of a connection now."""

    cookie: bytes
    read_bytes: int
    address: str


@dataclass
class _Connection:
    """One that is watched, as it was at its last whole message."""

    upstream: int = -1  # whose; -1: a child's
    answers: bool = False  # of an upstream: the one on which it answers
    cookie: bytes = b""
    whole: int = 0  # messages, modulo 2**32
    read_bytes: int = 0  # that libzmq had read
    began_s: float = 0.0
    met: bool = False  # it has said something, or is above
    since_turn: int = -1  # of our thread, when there were too many bytes first; -1: there are not


def reading_of(fd: int, ports: Collection[int], *, theirs: bool = False) -> Reading | None:
    """What the kernel says of a descriptor; None when it is no connection to these ports of ours
    (`theirs`: to these of nodes above) any more: the number may be another socket's by now."""
    with contextlib.suppress(OSError, struct.error), _borrowed(fd) as seen:
        if (seen.getpeername() if theirs else seen.getsockname())[1] not in ports:
            return None
        told = seen.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _RECEIVED.size)
        unread = struct.unpack("=i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0]
        return Reading(
            seen.getsockopt(sockets.SOL_SOCKET, SO_COOKIE, 8),
            _RECEIVED.unpack(told)[0] - unread,
            plain_address(str(seen.getpeername()[0])),
        )
    return None


class _borrowed:
    """A descriptor of libzmq's as a socket; it stays libzmq's."""

    def __init__(self, fd: int) -> None:
        self._socket = sockets.socket(sockets.AF_INET6, sockets.SOCK_STREAM, 0, fileno=fd)

    def __enter__(self) -> sockets.socket:
        return self._socket

    def __exit__(self, *error: object) -> None:
        self._socket.detach()


def cut(fd: int, cookie: bytes) -> bool:
    """End this connection, if the descriptor is still it."""
    with contextlib.suppress(OSError), _borrowed(fd) as seen:
        if seen.getsockopt(sockets.SOL_SOCKET, SO_COOKIE, 8) == cookie:
            seen.shutdown(sockets.SHUT_RDWR)
            return True
    return False


class Endless:
    """The watch over a node's connections to its children and its upstreams, and its thread.

    Args:
        reading, cut, clock: as the functions of this module, and time.monotonic; tests have others.
    """

    def __init__(
        self,
        *,
        reading: Callable[..., Reading | None] = reading_of,
        cut: Callable[[int, bytes], bool] = cut,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cut_total = self.silent_total = 0
        self.silent_max = SILENT_MAX
        self._clock = clock
        self._core: Core | None = None
        self._ports: Collection[int] = ()
        self._ports_above: set[int] = set()
        self._above: Sequence[str] = ()
        self._reading, self._cut = reading, cut
        self._watched: dict[int, _Connection] = {}
        self._new: list[tuple[int, str]] = []  # appended by who hears of one; taken by the thread
        self._dealers: dict[int, int] = {}  # by upstream: the descriptor that it answers on
        self._seldom = Seldom()
        self._monitors: dict[zmq.Socket[bytes], tuple[zmq.Socket[bytes], str]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay-endless", daemon=True)

    def comes(self, fd: int, upstream: str = "") -> None:
        """There is a new connection, of a child or to an upstream (its address); any thread."""
        self._new.append((fd, upstream))

    def watch(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
        upstream: str = "",
    ) -> None:
        """Hear of its connections from libzmq; before it is bound or connected (to an upstream),
        and where no gate does."""
        address = f"inproc://endless-{id(self)}-{len(self._monitors)}"
        socket.monitor(address, zmq.EVENT_CONNECTED if upstream else zmq.EVENT_ACCEPTED)
        monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.RCVHWM, 0)  # libzmq's I/O thread would wait for a full one
        monitor.setsockopt(zmq.LINGER, 0)
        monitor.connect(address)
        self._monitors[monitor] = socket, upstream

    def follow(self, core: Core, ports: Collection[int], above: Sequence[str] = ()) -> None:
        """Who counts whole messages, the ports that this node has bound, and its upstreams, as
        `tcp://HOST:PORT` and in the core's order."""
        self._core, self._ports, self._above = core, ports, above
        self._ports_above = {int(address.rpartition(":")[2]) for address in above}

    def start(self) -> None:
        """Begin to look; after the last watch(), and follow()."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and the monitors: while their sockets are open and nobody uses them."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        for monitor, (socket, _) in self._monitors.items():
            socket.monitor(None, 0)
            monitor.close(0)
        self._monitors.clear()

    def _run(self) -> None:
        cost_s = 0.0
        while not self._stopped.wait(max(LOOK_S, min(LOOKS_COST * cost_s, LOOK_S_MAX))):
            began = time.monotonic()
            try:
                self.look()
            except Exception:  # of one look; the next one must still come
                log.exception("connections of the backbone could not be looked at")
            cost_s = time.monotonic() - began

    # --- which there are ---

    def _come(self) -> None:
        """Watch what is new since the last look."""
        for monitor, (_, upstream) in self._monitors.items():
            with contextlib.suppress(zmq.Again):
                while True:
                    told = monitor.recv_multipart(zmq.DONTWAIT)[0]
                    self.comes(_EVENT.unpack(told[: _EVENT.size])[1], upstream)
        while self._new:
            fd, upstream = self._new.pop(0)
            self._watched[fd] = _Connection(self._above.index(upstream) if upstream else -1)
        for number in range(len(self._above)):
            above = self._told_of(number)
            is_new = above.dealer_fd != self._dealers.get(number, -1)
            if above.dealer_fd >= 0 and (is_new or above.dealer_fd not in self._watched):
                self._watched[above.dealer_fd] = _Connection(number, answers=True)
                self._ports_above.add(above.dealer_port)
            self._dealers[number] = above.dealer_fd

    def _told_of(self, upstream: int, *, stir: bool = False) -> Above:
        assert self._core is not None
        return Above(*self._core.above(upstream, stir=stir))

    def _whole(self, fd: int, one: _Connection) -> int:
        """How many messages have come whole on it."""
        assert self._core is not None
        if one.upstream < 0:
            return self._core.heard(fd, 0)[0]
        told = self._told_of(one.upstream)
        return told.answered if one.answers else told.published

    # --- what they bring ---

    def look(self) -> None:
        """Look at each connection once; to be called each LOOK_S by one thread."""
        self._come()
        silent: list[tuple[int, Reading]] = []
        for fd, one in tuple(self._watched.items()):
            above = one.upstream >= 0
            now = self._reading(fd, self._ports_above if above else self._ports, theirs=above)
            if now is None:
                del self._watched[fd]
                continue
            if self._is_silent(fd, one, now):
                silent.append((fd, now))
            whole = self._whole(fd, one)
            if (now.cookie, whole) != (one.cookie, one.whole):
                # Of one that is new nobody knows how many of its messages were whole by now.
                one.cookie, one.whole, one.read_bytes = now.cookie, whole, now.read_bytes
                one.since_turn = -1
            elif now.read_bytes - one.read_bytes > (ABOVE_BYTES_MAX if above else BYTES_MAX) and (
                self._has_no_whole(one) and self._cut(fd, now.cookie)
            ):
                del self._watched[fd]
                self._tell(now, above=above)
        if len(silent) > self.silent_max:
            self._thin(silent)

    def _is_silent(self, fd: int, one: _Connection, now: Reading) -> bool:
        """Whether it is a child's that has not said a word in all its time."""
        if one.upstream >= 0 or (one.met and one.cookie == now.cookie):
            return False
        if one.cookie != now.cookie:
            one.began_s = self._clock()
        assert self._core is not None
        one.met = self._core.heard(fd, int.from_bytes(now.cookie, sys.byteorder))[1]
        return not one.met and self._clock() - one.began_s >= SILENT_S

    def _thin(self, silent: list[tuple[int, Reading]]) -> None:
        """Cut so many that no more than silent_max are left; those of one address, newest first."""
        by_address: dict[str, list[tuple[int, Reading]]] = {}
        left = [one for one in silent if one[0] in self._watched]  # not cut in this look already
        for fd, now in sorted(left, key=lambda one: self._watched[one[0]].began_s):
            by_address.setdefault(now.address, []).append((fd, now))
        for _ in range(len(left) - self.silent_max):
            most = max(by_address.values(), key=len)
            fd, now = most.pop()
            if self._cut(fd, now.cookie):
                del self._watched[fd]
                self.silent_total += 1
                self._say(now, "child_silent", "it says nothing, and too many like it are here")

    def _has_no_whole(self, one: _Connection) -> bool:
        """Whether what came is no whole message, rather than one that our thread has not read."""
        if one.upstream < 0:
            return True
        turns = self._told_of(one.upstream, stir=True).turns
        if one.since_turn < 0:
            one.since_turn = turns
        return turns >= one.since_turn + TURNS

    def _tell(self, now: Reading, *, above: bool) -> None:
        self.cut_total += 1
        bytes_max = ABOVE_BYTES_MAX if above else BYTES_MAX
        self._say(
            now,
            "upstream_endless" if above else "child_endless",
            f"more than {bytes_max} bytes of a message without an end; no node sends such",
        )

    def _say(self, now: Reading, event: str, why: str) -> None:
        if self._seldom.may(now.address, event, time.monotonic()):
            log.warning(
                "cut the backbone's connection with %s: %s",
                now.address,
                why,
                extra={"event": event, "address": now.address},
            )


__all__ = [
    "ABOVE_BYTES_MAX",
    "BYTES_MAX",
    "LOOK_S",
    "Above",
    "Core",
    "Endless",
    "Reading",
    "cut",
    "reading_of",
]
