"""The gate: answers libzmq's question who may attach to the backbone, and counts who may not.

Rules of this room
  1. It fails closed: a socket with keys lets nobody in without an answer from here (ZAP, the
     handler of https://rfc.zeromq.org/spec/27/, and ZAP_ENFORCE_DOMAIN); no answer is a refusal.
  2. One thread a backbone, beside the core's: a handshake waits for Python, audio never does.
  3. Monitors are read without a bound on their queue: libzmq's I/O thread waits for a full one,
     and for one that nobody reads. So they end before their sockets and before the thread.
  4. A refusal is counted by reason and logged once per address and minute; no key is logged whole.
  5. Before one on the list is let in, `look` is called: whoever cuts children says there who was
     cut since (turn_away), so that nobody is back before his minute has begun.
  6. A child comes so often in so many seconds and no oftener: what it may have at once is bounded
     by those who hear its messages (guests.pxd, endless.py), who need time to see it.
  7. Knows addresses and public keys; nothing of streams or messages.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket as sockets
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from relay.keys import Keys

log = logging.getLogger("relay.backbone")

ZAP_ADDRESS = "inproc://zeromq.zap.01"
DOMAIN = b"relay"
LOG_S = 60.0
LOGGED_MAX = 1024  # addresses and reasons remembered
TURNED_AWAY_S = 60.0
# Of one child. A node of ours dials two sockets anew each 1 to 4 s at most while it hears nothing.
HANDSHAKES_MAX = 64
HANDSHAKES_S = 10.0
REASONS = ("key", "turned_away", "often", "none", "broken", "unfinished")
"""Why a handshake was refused: a key that is not listed; the key of a child that was cut a moment
ago; of one that has come HANDSHAKES_MAX times in HANDSHAKES_S; no key; something else than keys of
ours (another server key, garbage); not finished in time, or broken off."""

_EVENT = struct.Struct("=HI")
_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_WORDS = {
    "key": "a key that is not among backbone.children",
    "turned_away": "the key of a child that was cut a moment ago",
    "often": f"the key of a child that came {HANDSHAKES_MAX} times in {HANDSHAKES_S:g} s",
    "none": "no key",
    "broken": "a handshake that is none, or for a node with another key",
    "unfinished": "a handshake that was not finished",
}


def plain_address(text: str) -> str:
    """An IP address as people write it: `::ffff:10.0.0.1` is 10.0.0.1."""
    with contextlib.suppress(ValueError):
        address = ipaddress.IPv6Address(text.partition("%")[0])
        return str(address.ipv4_mapped or text)
    return text


class Seldom:
    """Says of each (address, reason) at most once in LOG_S that it may be logged."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}

    def may(self, address: str, reason: str, now: float) -> bool:
        """Whether this one may be logged at the time `now`, in seconds."""
        if self._until.get((address, reason), 0.0) > now:
            return False
        self._until.pop((address, reason), None)
        if len(self._until) >= LOGGED_MAX:  # the oldest goes: it is the first of a dict
            del self._until[next(iter(self._until))]
        self._until[address, reason] = now + LOG_S
        return True


class Gate:
    """The allow-list, its counters, and the thread that answers from them."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], keys: Keys, children: Mapping[str, str]
    ) -> None:
        self.keys = keys
        self.handshakes_total = 0
        self.refused = dict.fromkeys(REASONS, 0)
        self._names = {bytes.fromhex(key): name for name, key in children.items()}
        self._away: dict[str, float] = {}  # name: until when; at most one entry a child
        self._came = {name: deque[float](maxlen=HANDSHAKES_MAX) for name in children}
        self.look: Callable[[], None] = lambda: None
        # there is a connection: of a child (accepted), or to this upstream
        self.comes: Callable[[int, str], None] = lambda fd, upstream: None
        self._context = context
        self._seldom = Seldom()
        self._peers: dict[tuple[int, int], str] = {}  # (watch, descriptor): address
        self._watched: list[zmq.Socket[bytes]] = []
        self._roles: dict[zmq.Socket[bytes], tuple[int, str]] = {}  # monitor: number, upstream
        self._zap: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(ZAP_ADDRESS)
        self._stop = f"inproc://gate-{id(self)}"
        self._stopped: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._stopped.bind(self._stop)
        self._thread = threading.Thread(target=self._run, name="relay-gate", daemon=True)

    # --- sockets -----------------------------------------------------------------------------

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Let only the children in; before the socket is bound."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret_bytes)
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._watch(socket, "")

    def present(self, socket: zmq.Socket[bytes], upstream: str, key: str) -> bytes:
        """Show our key to an upstream and insist on its own; before the socket is connected.

        Returns:
            what the core needs for its other sockets to this upstream: three keys of 32 bytes.
        """
        keys = (self.keys.public_bytes, self.keys.secret_bytes, bytes.fromhex(key))
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys[0])
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys[1])
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys[2])
        self._watch(socket, upstream)
        return b"".join(keys)

    def _watch(self, socket: zmq.Socket[bytes], upstream: str) -> None:
        number = len(self._watched)
        address = f"{self._stop}-{number}"
        socket.monitor(address, _EVENTS)
        self._watched.append(socket)
        monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.RCVHWM, 0)  # rule 3
        monitor.setsockopt(zmq.LINGER, 0)
        monitor.connect(address)
        self._roles[monitor] = number, upstream

    # --- its life ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer; after the last guard() and present()."""
        self._thread.start()

    def unwatch(self) -> None:
        """End the monitors: while their sockets are open, and no other thread uses them."""
        for socket in self._watched:
            socket.monitor(None, 0)
        self._watched.clear()

    def close(self) -> None:
        """End the thread and close its sockets; after unwatch(). Nobody new gets in any more."""
        if self._thread.ident is not None:
            with self._context.socket(zmq.PAIR) as stop:
                stop.connect(self._stop)
                stop.send(b"")
                self._thread.join()
        for socket in (self._zap, self._stopped, *self._roles):
            socket.close(0)

    def snapshot(self) -> dict[str, Any]:
        """Counters. Does not block."""
        return counters(self.handshakes_total, self.refused)

    def turn_away(self, name: str) -> None:
        """Take a child off the list for TURNED_AWAY_S; its connections are the caller's to end."""
        self._away[name] = time.monotonic() + TURNED_AWAY_S

    # --- who comes ---------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in (self._zap, self._stopped, *self._roles):
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stopped in ready:
                return
            for socket in ready:
                try:
                    if socket is self._zap:
                        self._zap.send_multipart(self._judge(self._zap.recv_multipart()))
                    else:
                        self._look(socket)
                except Exception:  # of one event; the next one must still be seen
                    log.exception("a handshake could not be followed")

    def _judge(self, request: list[bytes]) -> list[bytes]:
        """A reply whatever happens: a request without one would be the last that is heard."""
        try:
            return self.answer(request)
        except Exception:
            log.exception("a handshake could not be judged: refused")
            return [b"1.0", request[1] if len(request) > 1 else b"", b"500", b"", b"", b""]

    def answer(self, request: list[bytes]) -> list[bytes]:
        """The reply to one request of libzmq: 200 and the child's name, or a refusal."""
        head = [b"1.0", request[1] if len(request) > 1 else b""]
        if len(request) != 7 or request[0] != b"1.0":
            return [*head, b"500", b"not understood", b"", b""]
        _, _, domain, raw, _, mechanism, credentials = request
        name = self._names.get(credentials)
        reason = "key"
        if domain == DOMAIN and mechanism == b"CURVE" and name is not None:
            self.look()  # it may be the one that was cut a moment ago
            reason = self._why_not(name, time.monotonic())
            if not reason:
                self.handshakes_total += 1
                return [*head, b"200", b"OK", name.encode(), b""]
        self._refuse(reason, plain_address(raw.decode(errors="replace")), credentials)
        return [*head, b"400", b"not listed", b"", b""]

    def _why_not(self, name: str, now_s: float) -> str:
        """Why a child that is listed does not get in now; "": it does, and that is remembered."""
        came = self._came[name]
        if self._away.get(name, 0.0) >= now_s:
            return "turned_away"
        if len(came) == HANDSHAKES_MAX and now_s - came[0] < HANDSHAKES_S:
            return "often"
        came.append(now_s)
        return ""

    def _look(self, monitor: zmq.Socket[bytes]) -> None:
        event, value = _EVENT.unpack(monitor.recv_multipart()[0][: _EVENT.size])
        number, upstream = self._roles[monitor]
        if upstream:
            self._look_up(event, value, upstream)
            return
        place = number, value
        if event == zmq.EVENT_ACCEPTED:
            self._peers[place] = _peer_of(value)
            self.comes(value, "")
        elif event == zmq.EVENT_DISCONNECTED:
            self._peers.pop(place, None)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            mismatch = value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
            self._refuse("none" if mismatch else "broken", self._failed(monitor))
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._refuse("unfinished", self._failed(monitor))

    def _failed(self, monitor: zmq.Socket[bytes]) -> str:
        """Whose handshake has just failed: its end is the monitor's next event."""
        if not monitor.poll(20):
            return "?"
        event, fd = _EVENT.unpack(monitor.recv_multipart()[0][: _EVENT.size])
        if event != zmq.EVENT_DISCONNECTED:
            return "?"
        return self._peers.pop((self._roles[monitor][0], fd), "?")

    def _refuse(self, reason: str, address: str, key: bytes = b"") -> None:
        self.refused[reason] += 1
        if not self._seldom.may(address, reason, time.monotonic()):
            return
        shown = f" ({key.hex()[:16]}…)" if key else ""
        log.warning(
            "refused a node at %s: it showed %s%s",
            address,
            _WORDS[reason],
            shown,
            extra={"event": "child_refused", "address": address, "reason": reason},
        )

    def _look_up(self, event: int, value: int, upstream: str) -> None:
        """A connection to an upstream, and what became of our own handshake with it."""
        if event == zmq.EVENT_CONNECTED:
            self.comes(value, upstream)
            return
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            why = (  # libzmq passes on no reason
                f"does not let this node in: its public key ({self.keys.public}) is not listed "
                "there, or it came too often or was cut a moment ago; the log there says which"
            )
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            why = "has no keys, or another than the one after #"
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            why = "ends the handshake: it may have another key than the one after #"
        else:
            return
        if self._seldom.may(upstream, why, time.monotonic()):
            log.warning(
                "upstream %s %s",
                upstream,
                why,
                extra={"event": "upstream_refused", "upstream": upstream},
            )


def counters(handshakes_total: int = 0, refused: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What the backbone's snapshot tells of handshakes; zeros on a node without keys."""
    told = refused or dict.fromkeys(REASONS, 0)
    return {
        "handshakes_total": handshakes_total,
        "handshakes_refused_total": sum(told.values()),
        "handshakes_refused": dict(told),
    }


def _peer_of(fd: int) -> str:
    """The address at the other end of a descriptor that libzmq has; `?` when it is gone."""
    try:
        seen = sockets.socket(sockets.AF_INET6, sockets.SOCK_STREAM, 0, fileno=fd)
    except OSError:
        return "?"
    try:
        return plain_address(str(seen.getpeername()[0]))
    except (OSError, IndexError):
        return "?"
    finally:
        seen.detach()  # it stays libzmq's
