"""The links between nodes: sockets, addresses and errors; what happens on them is in the core.

Rules of this room
  1. Makes and closes the sockets (its own zmq.Context, never the shared one); between open and
     close they belong to the core's thread.
  2. An address that cannot be used is said here, in one line, before anything runs.
  3. Limits are named with their reasons in docs/wire.md.
  4. With keys, no socket is bound or connected before the gate stands.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import zmq
import zmq.backend.cython._zmq as zmq_module

from relay import _core
from relay.address import why_unbound
from relay.endless import Endless
from relay.errors import ConfigError, RelayError
from relay.gate import Gate, counters
from relay.keys import Keys

RUNS_QUEUED_MAX = 8192  # messages a child may be behind before it loses some (it repairs them)
ANSWERS_QUEUED_MAX = 256  # to one child; it has at most 32 requests open, of some 5 parts each
REQUESTS_QUEUED_MAX = 64  # from one child: its window, twice
PREFETCH_MAX = 4096
UPSTREAMS_MAX = 8
RUN_BYTES_MAX = 192 * 1024
REQUEST_BYTES_MAX = 1024
# A topic has 9, but libzmq counts its own handshake: with less than 25 nobody gets in, and with
# keys with less than 277 (an XSUB's INITIATE; measured with 4.3.5).
SUBSCRIPTION_BYTES_MAX = 64
SUBSCRIPTION_BYTES_MAX_KEYS = 320
# Of one child. libzmq takes them for as long as there are any, within one call of our thread: a
# child that never pauses held it for 3.6 s with 1,000, for ever with 0, for 0.3 s with 10.
SUBSCRIPTIONS_QUEUED_MAX = 10
CHILDREN_FULL_MAX = 8  # so many children's worth of subscriptions are kept, all together
# Connections without a word, beside some for nobody in particular: of a listed child one, which has
# nothing to ask, and one that is half open; of all there may be where links have no keys.
SILENT_EACH, SILENT_OPEN = 2, 8192
GOODBYE_LINGER_MS = 100
REDUNDANCIES = ("standby", "merge")

_ADDRESS = re.compile(r"(?:tcp://)?(\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/\s]+):(\d{1,5}|\*)", re.ASCII)
log = logging.getLogger("relay.backbone")
_open: weakref.WeakSet[Backbone] = weakref.WeakSet()


def _split(key: str, text: str, *, port_min: int) -> tuple[str, int]:
    """(host, port) of `tcp://HOST:PORT`; ConfigError with the key when it is something else."""
    found = _ADDRESS.fullmatch(text)
    port = -1 if found is None else 0 if found[2] == "*" else int(found[2])
    if found is None or not port_min <= port <= 65535:
        raise ConfigError(
            f"{key} = {text!r} is no address: write tcp://HOST:PORT with a port from {port_min} "
            "to 65535, an IPv6 host in brackets (tcp://[::1]:9000)"
        )
    return found[1], port


def _options(
    socket: zmq.Socket[bytes], *, bytes_max: int, sent_max: int, received_max: int
) -> None:
    """What all sockets of the backbone have in common."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, bytes_max)
    socket.setsockopt(zmq.SNDHWM, sent_max)
    socket.setsockopt(zmq.RCVHWM, received_max)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 0)  # 0: the interval gets jitter
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 2)
    socket.setsockopt(zmq.TCP_MAXRT, 5000)


_OPTIONS = {
    "backbone.bind": "--backbone tcp://HOST:PORT",
    "backbone.advertise": "--advertise HOST:PORT",
}


def _bind(socket: zmq.Socket[bytes], key: str, host: str, port: int) -> int:
    """Binds; returns the port; ConfigError when the address cannot be had."""
    try:
        socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        why = why_unbound(OSError(error.errno, error.strerror))
        raise ConfigError(f"{key} = tcp://{host}:{port}: {why}, with {_OPTIONS[key]}") from None
    bound = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes)
    return int(bound.rstrip(b"\0").rpartition(b":")[2])


class Backbone:
    """One node's side of the backbone: its children's sockets, its upstreams', and the thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.address: str | None = None
        self.repair_address: str | None = None
        self._context = context
        self._sockets: list[zmq.Socket[bytes]] = []
        self._core: _core.Backbone | None = None
        self._gate: Gate | None = None
        self._endless = Endless()
        self._expelled_total = 0
        self._expelled_lock = threading.Lock()  # the gate's thread looks, and who asks for facts
        self._pid = os.getpid()
        _open.add(self)

    def _socket(self, kind: int, **limits: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        self._sockets.append(socket)
        _options(socket, **limits)
        return socket

    @property
    def public_key(self) -> str | None:
        """This node's public key, or None where links have no keys."""
        return None if self._gate is None else self._gate.keys.public

    def _guard(self, *sockets: zmq.Socket[bytes]) -> None:
        for socket in sockets:
            if self._gate is not None:
                self._gate.guard(socket)
            else:
                self._endless.watch(self._context, socket)

    def _bind(self, bind: str, advertise: str | None) -> tuple[int, int, int, str]:
        """(XPUB, ROUTER, the ROUTER's port, what beacons announce)."""
        host, port = _split("backbone.bind", bind, port_min=0)
        told_host, told_port = ("", 0)
        if advertise:
            told_host, told_port = _split("backbone.advertise", advertise, port_min=1)
        xpub = self._socket(
            zmq.XPUB,
            bytes_max=SUBSCRIPTION_BYTES_MAX_KEYS if self._gate else SUBSCRIPTION_BYTES_MAX,
            sent_max=RUNS_QUEUED_MAX,
            received_max=SUBSCRIPTIONS_QUEUED_MAX,
        )
        router = self._socket(
            zmq.ROUTER,
            bytes_max=REQUEST_BYTES_MAX,
            sent_max=ANSWERS_QUEUED_MAX,
            received_max=REQUESTS_QUEUED_MAX,
        )
        xpub.setsockopt(zmq.XPUB_VERBOSER, 1)  # who holds what is counted (guests.pxd)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a full queue is an error, no silent loss
        self._guard(xpub, router)
        self.address = f"tcp://{host}:{_bind(xpub, 'backbone.bind', host, port)}"
        key = "backbone.advertise" if advertise else "backbone.bind"
        router_port = _bind(router, key, host, told_port)
        self.repair_address = f"tcp://{host}:{router_port}"
        told = f"{told_host}:{told_port}" if advertise else ""
        return xpub.underlying, router.underlying, router_port, told

    def _connect(self, upstream: str) -> tuple[int, str, str, bytes | None]:
        """(SUB, the upstream's `tcp://host` and `tcp://host:port`, keys); it may come later."""
        upstream, _, key = upstream.partition("#")
        host, port = _split("backbone.upstream", upstream, port_min=1)
        address = f"tcp://{host}:{port}"
        sub = self._socket(
            # SNDHWM 0: a SUB with a bound loses subscriptions beyond it, silently.
            zmq.SUB,
            bytes_max=RUN_BYTES_MAX,
            sent_max=0,
            received_max=RUNS_QUEUED_MAX,
        )
        curve = self._gate.present(sub, address, key) if self._gate else None
        if self._gate is None:
            self._endless.watch(self._context, sub, address)
        try:
            sub.connect(address)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"backbone.upstream = {upstream!r} cannot be used: {os.strerror(error.errno or 0)}"
            ) from None
        return sub.underlying, f"tcp://{host}", address, curve

    def snapshot(self, *, rivals_only: bool = False) -> dict[str, Any]:
        """Addresses, upstreams, links and counters at the end of a turn; blocks for that turn.

        Args:
            rivals_only: of the links only those with competing epochs: of thousands, all cost
                milliseconds.
        """
        if self._core is None:
            raise RelayError("the backbone is closed")
        seen: dict[str, Any] = self._core.snapshot(rivals_only=rivals_only)
        self._turn_away()
        seen["counters"] |= counters() if self._gate is None else self._gate.snapshot()
        seen["counters"]["endless_total"] = self._endless.cut_total
        seen["counters"]["silent_total"] = self._endless.silent_total
        return {"address": self.address, "repair_address": self.repair_address, **seen}

    def _turn_away(self) -> None:
        """Take who was cut since the last look off the list; the core keeps the last few names."""
        core = self._core
        if core is None:
            return
        with self._expelled_lock:
            expelled_total, names = core.expelled()
            new, self._expelled_total = expelled_total - self._expelled_total, expelled_total
        for number in range(expelled_total - min(new, len(names)), expelled_total):
            name = names[number % len(names)]
            if self._gate is not None and name:
                self._gate.turn_away(name)
            log.warning(
                "cut a child for its subscriptions: %s",
                name or "it has no key",
                extra={"event": "child_expelled", "child": name},
            )

    def recorded(self, cursors: list[int], *, since_us: int = 0) -> list[_core.RecordTuple]:
        """What its thread has recorded (see `Engine.recorded`); nothing once it is closed."""
        return [] if self._core is None else self._core.recorded(cursors, since_us=since_us)

    @property
    def washed_total(self) -> int:
        """Records that newer ones have overwritten before they were ten minutes old."""
        return 0 if self._core is None else self._core.washed_total

    def goodbye(self) -> None:
        """Tells the children that this node goes; does not block. They are fed until others feed
        them, 0.5 s at most; then the last goodbye is said."""
        if self._core is not None:
            self._core.goodbye()

    def close(self) -> None:
        """Says goodbye, joins the thread, closes the sockets; blocks for at most 0.2 s, and for
        0.5 s more while children look for another parent (see goodbye)."""
        if os.getpid() != self._pid:
            return  # a forked child has neither the thread nor the sockets
        core, self._core = self._core, None
        if core is not None:
            core.stop()
        self._endless.close()
        if self._gate is not None:
            self._gate.unwatch()
        for socket in self._sockets:
            socket.close(GOODBYE_LINGER_MS if core is not None else 0)
        self._sockets.clear()
        if self._gate is not None:
            self._gate.close()
        self._context.term()
        _open.discard(self)


def open_backbone(
    engine: _core.Engine,
    *,
    bind: str | None,
    upstreams: Sequence[str] = (),
    redundancy: str = "standby",
    advertise: str | None = None,
    silence_ms: int = 400,
    repair_wait_ms: int = 1500,
    prefetch: Sequence[str] = (),
    subscriptions_max: int = 65536,
    keys: Keys | None = None,
    children: Mapping[str, str] = MappingProxyType({}),
) -> Backbone:
    """Opens this node's side of the backbone and starts its thread.

    Args:
        engine: whose streams are sent and filled.
        bind: `tcp://HOST:PORT` for children (port 0: any free one); None: no children.
        upstreams: `tcp://HOST:PORT` of each node above, with keys `tcp://HOST:PORT#KEY`; none on
            an origin, at most 8.
        redundancy: `standby`: one upstream feeds a stream, the others are ready; `merge`: all feed
            it, and the first copy of each frame counts.
        advertise: `HOST:PORT` at which children reach the repair socket, which then binds that
            port; None: the host they know already, any free port.
        silence_ms: an upstream without a sign of life for so long is lost.
        repair_wait_ms: how long a hole is waited for.
        prefetch: mounts that are kept warm without listeners.
        subscriptions_max: streams that one child may ask for; one that asks for more is cut.
        keys: this node's; links are then encrypted, and closed to all but `children`. None: open.
        children: the public key of each node that may attach, by a name for it.

    Raises:
        ConfigError: an address is malformed, taken, or not of this machine.
        RelayError: the engine has a backbone already, or pyzmq is too old.
    """
    if len(upstreams) > UPSTREAMS_MAX:
        raise ConfigError(f"upstreams has {len(upstreams)} addresses; the bound is {UPSTREAMS_MAX}")
    if redundancy not in REDUNDANCIES:
        raise ConfigError(f"redundancy = {redundancy!r}: must be {' or '.join(REDUNDANCIES)}")
    if len(prefetch) > PREFETCH_MAX:
        raise ConfigError(f"prefetch names {len(prefetch)} mounts; the bound is {PREFETCH_MAX}")
    if bind is None and not upstreams:
        raise ConfigError("a backbone needs an address to bind or an upstream")
    if keys is not None and not all("#" in upstream for upstream in upstreams):
        raise ConfigError("with keys each upstream needs its public key: tcp://HOST:PORT#KEY")
    backbone = Backbone(zmq.Context())
    try:
        if keys is not None:
            backbone._gate = Gate(backbone._context, keys, children)
            backbone._gate.look = backbone._turn_away
            backbone._gate.comes = backbone._endless.comes
        xpub, router, port, told = backbone._bind(bind, advertise) if bind else (0, 0, 0, "")
        above = [backbone._connect(upstream) for upstream in upstreams]
        if backbone._gate is not None:
            backbone._gate.start()
        backbone._core = _core.Backbone(
            engine,
            module=str(zmq_module.__file__),
            context=backbone._context.underlying,
            xpub=xpub,
            router=router,
            router_port=port,
            advertise=told,
            upstreams=above,
            merge=redundancy == "merge",
            silence_ms=silence_ms,
            repair_wait_ms=repair_wait_ms,
            prefetch=list(prefetch),
            subscriptions_max=subscriptions_max * CHILDREN_FULL_MAX,
            xpub_port=int((backbone.address or ":0").rpartition(":")[2]),
            guest_topics_max=subscriptions_max,
        )
        ports = {port, int((backbone.address or ":0").rpartition(":")[2])} if bind else ()
        backbone._endless.follow(backbone._core, ports, [address for _, _, address, _ in above])
        backbone._endless.silent_max += SILENT_EACH * len(children) if keys else SILENT_OPEN
        backbone._endless.start()
    except BaseException:
        backbone.close()
        raise
    return backbone


@atexit.register
def _close_all() -> None:
    """No thread of ours outlives the interpreter."""
    for backbone in list(_open):
        with contextlib.suppress(RelayError):
            backbone.close()
