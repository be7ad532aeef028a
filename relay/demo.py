"""`relay demo`: an origin, two relays in a row and a programme, on this machine, until Ctrl-C.

Rules of this room
  1. The nodes are processes of the real command. What is started here is ended here, by its pid;
     the kernel ends it when this process is killed (PR_SET_PDEATHSIG).
  2. A relay that dies is started again: that its listeners stay is what the demo shows. The origin
     is not: without it there is nothing to show.
  3. Nodes are started and watched on the caller's thread: PR_SET_PDEATHSIG looks at the thread that
     made the child. The programme has a thread for each mount, titles have one for both.
  4. No signal handlers here: KeyboardInterrupt is the clean end.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from relay.backoff import Backoff
from relay.errors import ConfigError, RelayError
from relay.icecast import Connection, PushError, Target, update_title
from relay.media import SHAPES, need_av
from relay.programme import Chunk, Codec, encode, title_at
from relay.push import PaceClock

READY_S = 60.0
RESTART_S = 2.0  # with its start within a burst (3 s): who listens behind it hears no gap
END_S = 3.0  # between SIGTERM and SIGKILL
TITLE_S = 15
WATCH_S = 0.1
HASTY_RESTARTS_MAX = 5  # in a row, of a relay that never lives for HASTY_S
HASTY_S = 10.0
TAIL_LINES = 12
MOUNTS: dict[str, Codec] = {"/demo.mp3": "mp3", "/demo.opus": "opus"}
NAMES = ("origin", "relay 1", "relay 2")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


# --- one node -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where one node of the row listens, and what it receives from."""

    name: str
    host: str
    port: int
    backbone: str
    upstream: str | None

    @property
    def command(self) -> list[str]:
        """The real command; the password goes through the environment."""
        upstream = ["--upstream", self.upstream] if self.upstream else []
        options = ["--http", self.listen, "--backbone", self.backbone, "--name", self.name]
        return [sys.executable, "-P", "-m", "relay", "serve", *options, *upstream]

    @property
    def listen(self) -> str:
        """HOST:PORT of HTTP, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def reachable(self) -> str:
        """The host by which this machine reaches the node."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    def url(self, path: str = "/") -> str:
        """An address to open."""
        return f"http://{Target(self.reachable, self.port, path).authority}{path}"


def plan(host: str, http_port: int) -> list[Address]:
    """The three nodes in a row: HTTP on three ports from `http_port`, the backbone 1000 above.

    Args:
        host: Where HTTP listens; the backbone stays on loopback.
        http_port: 0 takes free ports.
    """
    if not 0 <= http_port <= 65_533:
        raise ConfigError(f"http_port {http_port} is not within 0 … 65533")
    base = http_port + 1000 if http_port + 1002 <= 65_535 else http_port - 1000
    ports = [*range(http_port, http_port + 3), *range(base, base + 3)]
    if http_port == 0:
        ports = free_ports(6)
    links = [f"tcp://127.0.0.1:{port}" for port in ports[3:]]
    upstreams: list[str | None] = [None, *links[:2]]
    return [Address(NAMES[n], host, ports[n], links[n], upstreams[n]) for n in range(3)]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def refuse_taken(row: Iterable[Address]) -> None:
    """Refuse a row whose addresses cannot be had, before another node is taken for ours.

    Raises:
        ConfigError: Names the first node, its address and why. Blocks only for a name's lookup.
    """
    for node in row:
        for address in (node.listen, node.backbone.removeprefix("tcp://")):
            host, _, port = address.rpartition(":")
            try:
                bind_once(host.strip("[]"), int(port))
            except OSError as error:
                looked_up = isinstance(error, socket.gaierror)
                why = error.strerror if looked_up else os.strerror(error.errno or 0)
                raise ConfigError(
                    f"{node.name} cannot have {address}: {why}; "
                    "choose other ports with --http-port N (0 takes free ones)"
                ) from None


def bind_once(host: str, port: int) -> None:
    """Listen there and let go at once; OSError when that is not to be had."""
    kind, _, _, _, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    socket.create_server(where[:2], family=kind).close()


def die_with_parent() -> Callable[[], None]:
    """What a child runs before its program, so that it ends when this thread does.

    Everything is loaded and looked up here: between fork and exec the child may only call.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    end, leave = int(signal.SIGKILL), os._exit
    parent, parent_of = os.getpid(), os.getppid

    def run() -> None:
        prctl(PR_SET_PDEATHSIG, end, 0, 0, 0)
        if parent_of() != parent:  # it died in between
            leave(1)

    return run


def child_environment(password: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Our environment without settings of Relay, with the password and this very package."""
    env = {key: value for key, value in environ.items() if not key.startswith("RELAY_")}
    home = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [env.get("PYTHONPATH")])])
    return env | {"RELAY_SOURCE_PASSWORD": password, "RELAY_ADMIN_PASSWORD": password}


class Child:
    """One node as a process, and the last lines it said."""

    def __init__(self, address: Address, env: Mapping[str, str]) -> None:
        self.address = address
        self.hasty = 0  # how often in a row it died young
        self._env = env
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._before_exec = die_with_parent()
        self._process: subprocess.Popen[str] | None = None
        self._started = self._died = 0.0

    def start(self) -> None:
        """Run the node."""
        self._tail.clear()
        self._started, self._died = time.monotonic(), 0.0
        self._process = subprocess.Popen(
            self.address.command,
            env=dict(self._env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=self._before_exec,
        )
        assert self._process.stderr is not None
        threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True).start()

    def _read(self, pipe: IO[str]) -> None:
        with suppress(ValueError), pipe:
            self._tail.extend(line.rstrip("\n") for line in pipe)

    @property
    def pid(self) -> int:
        """The process id; 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def death(self) -> str:
        """How it ended, and its last lines."""
        code = self._process.poll() if self._process else None
        how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
        time.sleep(0.05)  # its last words are still in the pipe
        lines = "".join(f"\n    {line}" for line in self._tail)
        if "--http " in lines or "--backbone " in lines:  # its own advice is not the demo's
            lines += "\n  relay demo takes other ports with --http-port N (0 takes free ones)"
        return f"{self.address.name} ended with {how}{':' if lines else ''}{lines}"

    def dead_for_s(self, now_s: float) -> float:
        """Seconds since its death was seen; the first call after it counts as its death."""
        if not self._died:
            self._died = now_s
            self.hasty = self.hasty + 1 if now_s - self._started < HASTY_S else 0
        return now_s - self._died

    def healthy(self) -> bool:
        """Whether `/healthz` answers 200. Blocks ≤ 1 s."""
        asked = http.client.HTTPConnection(self.address.reachable, self.address.port, timeout=1.0)
        try:
            asked.request("GET", "/healthz")
            return asked.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            asked.close()

    def terminate(self) -> None:
        """SIGTERM, if it still runs."""
        if self._process is not None and self.alive:
            self._process.terminate()

    def wait_or_kill(self, until_s: float) -> None:
        """Wait for its end until then; SIGKILL after it."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def end_all(children: Iterable[Child]) -> None:
    """SIGTERM to all, listeners' side first; SIGKILL to who is left after END_S."""
    row = list(children)[::-1]
    for child in row:
        child.terminate()
    until_s = time.monotonic() + END_S
    for child in row:
        child.wait_or_kill(until_s)


# --- the programme --------------------------------------------------------------------------------


class Broadcast:
    """The programme on its way to the origin: one thread a mount, one for the titles."""

    def __init__(self, origin: Address, password: str) -> None:
        self._targets = {
            mount: Target(origin.reachable, origin.port, mount, password=password)
            for mount in MOUNTS
        }
        self._stop = threading.Event()
        self._begin_s = time.monotonic()
        self.error: Exception | None = None
        jobs = [(self._send, mount) for mount in MOUNTS] + [(self._titles, "")]
        self._threads = [
            threading.Thread(target=self._guard, args=job, daemon=True) for job in jobs
        ]

    def start(self) -> None:
        """Begin: the programme's second 0 is now."""
        self._begin_s = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the connections cleanly. Blocks ≤ END_S in all."""
        self._stop.set()
        until_s = time.monotonic() + END_S
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until_s - time.monotonic()))

    def _guard(self, job: Callable[[str], None], mount: str) -> None:
        try:
            job(mount)
        except Exception as error:  # a thread's trouble is the demo's
            self.error = error

    def _send(self, mount: str) -> None:
        """Keep one mount fed, from where the programme is by now."""
        target, codec = self._targets[mount], MOUNTS[mount]
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                kind = SHAPES[codec].content_type
                connection = Connection.open(target, kind, name=f"Relay Demo ({codec})")
                backoff.reset()
                first_s = int(time.monotonic() - self._begin_s)
                send_paced(connection, encode(codec, first_s=first_s), self._stop.wait)
            except PushError as error:
                if error.final:
                    raise
                self._stop.wait(backoff.next_s())

    def _titles(self, _mount: str) -> None:
        """Tell each title when it begins; the mounts may need a moment to be there."""
        wait_s = 0.5
        while not self._stop.wait(wait_s):
            second = int(time.monotonic() - self._begin_s)
            into_s = second % TITLE_S
            wait_s = TITLE_S - into_s
            for target in self._targets.values():
                try:
                    update_title(target, title_at(second - into_s))
                except PushError:
                    wait_s = 1.0


def send_paced(
    connection: Connection,
    chunks: Iterator[Chunk],
    stopped: Callable[[float], bool],
    pace: PaceClock | None = None,
) -> None:
    """Send chunks in real time until `stopped(seconds)` says so; then end the connection.

    Raises:
        PushError: The connection is lost.
    """
    pace = pace or PaceClock()
    try:
        for chunk in chunks:
            if stopped(pace.delay_s(chunk.media_s)):
                connection.close()
                return
            connection.send(chunk.data)
    finally:
        connection.abort()


# --- the whole row --------------------------------------------------------------------------------


def wait_healthy(child: Child, bound_s: float = READY_S) -> None:
    """Block until the node answers.

    Raises:
        RelayError: It died, or did not answer within the bound.
    """
    until_s = time.monotonic() + bound_s
    while not child.healthy():
        if not child.alive:
            raise RelayError(child.death())
        if time.monotonic() > until_s:
            url = child.address.url("/healthz")
            raise RelayError(f"{child.address.name} did not answer {url} within {bound_s:.0f} s")
        time.sleep(WATCH_S)


def addresses(children: Sequence[Child]) -> str:
    """What to open, and what to try."""
    last, middle = children[-1].address, children[1]
    nodes = "".join(f"  {c.address.name:<9} {c.address.url():<28} pid {c.pid}\n" for c in children)
    mounts = "".join(f"  {'':<9} {last.url(mount)}\n" for mount in MOUNTS)
    return (
        f"Open {last.url()}  - the third node; it plays what the first one is sent.\n\n"
        f"{nodes}\n  listen\n{mounts}\n"
        f"  Try       kill -9 {middle.pid}   - the relay in the middle: it is back after "
        f"{RESTART_S:.0f} s, listeners stay\n"
        "  End       Ctrl-C\n"
    )


class Watch:
    """Looks after the row: restarts a dead relay, says when it is over."""

    def __init__(self, children: Sequence[Child], broadcast: Broadcast, say: Callable[[str], None]):
        self._children = children
        self._broadcast = broadcast
        self._say = say
        self._told: set[int] = set()  # pids whose death was told

    def step(self, now_s: float) -> str:
        """One look at everyone; the reason to end, or nothing."""
        if self._broadcast.error is not None:
            return f"the programme stopped: {self._broadcast.error}"
        if not self._children[0].alive:
            return self._children[0].death()
        for child in self._children[1:]:
            if not child.alive and (reason := self._revive(child, now_s)):
                return reason
        return ""

    def _revive(self, child: Child, now_s: float) -> str:
        dead_s = child.dead_for_s(now_s)
        if child.hasty > HASTY_RESTARTS_MAX:
            return f"{child.death()}\n  {HASTY_RESTARTS_MAX} restarts did not help"
        if child.pid not in self._told:
            self._told.add(child.pid)
            self._say(f"{child.death()}\n  it is started again in {RESTART_S:.0f} s")
        if dead_s >= RESTART_S:
            child.start()
            self._say(f"{child.address.name} is started again: pid {child.pid}")
        return ""


def demo(*, host: str = "127.0.0.1", http_port: int = 8000, seconds: float | None = None) -> int:
    """Run an origin, two relays and a programme. Blocks until Ctrl-C or for `seconds`.

    Args:
        host: Where the nodes' HTTP listens; the backbone stays on loopback.
        http_port: The origin's; the relays take the next two. 0 takes free ports.
        seconds: End by itself after so long.

    Returns:
        0 at the end asked for, 1 when the origin or the programme died.

    Raises:
        ConfigError: An address of the row is taken, or cannot be had.
        RelayError: A node did not come up; the message holds its last lines.
        SourceError: PyAV is not installed.
    """
    need_av()
    password = secrets.token_urlsafe(16)
    env = child_environment(password)
    row = plan(host, http_port)
    refuse_taken(row)
    children = [Child(address, env) for address in row]
    broadcast = Broadcast(children[0].address, password)
    try:
        for child in children:
            child.start()
        for child in children:
            wait_healthy(child)
        broadcast.start()
        print(addresses(children), flush=True)
        return _watch(Watch(children, broadcast, _say), seconds)
    except KeyboardInterrupt:
        return 0
    finally:
        _end(children, broadcast)


def _watch(watch: Watch, seconds: float | None) -> int:
    until_s = float("inf") if seconds is None else time.monotonic() + seconds
    while time.monotonic() < until_s:
        if reason := watch.step(time.monotonic()):
            print(f"relay demo: {reason}", file=sys.stderr, flush=True)
            return 1
        time.sleep(WATCH_S)
    return 0


def _end(children: Sequence[Child], broadcast: Broadcast) -> None:
    """End all of it, also when a second Ctrl-C comes."""
    try:
        broadcast.stop()
    finally:
        end_all(children)


def _say(text: str) -> None:
    print(f"relay demo: {text}", flush=True)
