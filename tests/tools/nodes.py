"""Real `relay serve` processes: started, found, asked, hurt and ended.

Rules of this room
  1. Each wait has a bound, and says what it waited for when the bound is passed.
  2. A node finds its own ports (`:0`); a restarted node gets the ports it had.
  3. Nothing outlives the test: what `Nodes` started is killed when it closes, and at exit.
  4. A node is known by its process, its printed lines and its ports; its inside stays unknown here.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, TypeVar

import relay

T = TypeVar("T")

PASSWORD = "a-password-of-the-tests"
LINES_MAX = 10_000  # kept of each node's output
READY_S = 15.0


def wait_until(
    predicate: Callable[[], T], timeout_s: float = 5.0, *, what: str = "", every_s: float = 0.01
) -> T:
    """Poll until the predicate is true and return its value; AssertionError when time is up."""
    until = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= until:
            name = what or getattr(predicate, "__name__", "the predicate")
            raise AssertionError(f"waited {timeout_s:g} s for {name}; last value {value!r}")
        time.sleep(every_s)


def child_env(**more: str) -> dict[str, str]:
    """Return an environment in which a child imports the relay that this process imported."""
    env = dict(os.environ)
    home = str(Path(relay.__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [env.get("PYTHONPATH")])])
    env["PYTHONUNBUFFERED"] = "1"
    return env | more


class Answer(NamedTuple):
    """One HTTP answer, read to its end."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)


class NodeProcess:
    """One `relay serve` process on ports of its own."""

    def __init__(
        self,
        *args: str,
        http: str = "127.0.0.1:0",
        backbone: str = "tcp://127.0.0.1:0",
        upstreams: Sequence[str] = (),
        env: dict[str, str] | None = None,
        command: Sequence[str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Prepare; `start()` runs it.

        Args:
            args: more words for the command line.
            http: where to listen; port 0 lets the node choose.
            backbone: the same for its downstream nodes; "none" is passed on.
            upstreams: backbone addresses of other nodes.
            env: added to the environment.
            command: what to run in place of `python -m relay serve`; gets the same options.
            prefix: put before the command, such as `ip netns exec NAME`.
        """
        self.http, self.backbone = http, backbone
        self.args = [*args, *(word for up in upstreams for word in ("--upstream", up))]
        self.command = [
            *prefix,
            *(command or [sys.executable, "-P", "-m", "relay", "serve", "--log-format", "json"]),
        ]
        passwords = {"RELAY_SOURCE_PASSWORD": PASSWORD, "RELAY_ADMIN_PASSWORD": PASSWORD}
        self.env = child_env(**(passwords | (env or {})))
        self.lines: deque[str] = deque(maxlen=LINES_MAX)
        self.events: deque[dict[str, Any]] = deque(maxlen=LINES_MAX)
        self.ready: dict[str, Any] = {}
        self.process: subprocess.Popen[str] | None = None

    def start(self, timeout_s: float = READY_S) -> Self:
        """Run the node and wait for its `ready` line; AssertionError with its output otherwise."""
        self.spawn()
        wait_until(lambda: self.ready or not self.alive, timeout_s, what=f"ready of {self!r}")
        if not self.ready:
            raise AssertionError(f"{self!r} ended before it was ready:\n{self.output()}")
        self.http = self.ready.get("http") or self.http
        self.backbone = self.ready.get("backbone") or self.backbone
        return self

    def spawn(self) -> Self:
        """Run the node without waiting, for those that are meant to refuse to start."""
        options = ["--http", self.http, "--backbone", self.backbone]
        self.ready = {}
        self.process = subprocess.Popen(
            [*self.command, *options, *self.args],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        _running.add(self)
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,), daemon=True)
            for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()
        return self

    def _read(self, pipe: IO[str]) -> None:
        """Keep what one pipe says: lines, and those that are JSON objects as events."""
        with contextlib.suppress(ValueError), pipe:
            for line in pipe:
                self.lines.append(line.rstrip("\n"))
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        self.events.append(event)
                        if event.get("event") == "ready":
                            self.ready = event

    @property
    def pid(self) -> int:
        """The process id of the running node."""
        assert self.process is not None, "the node was never started"
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs (a stopped one does)."""
        return self.process is not None and self.process.poll() is None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of its HTTP side."""
        host, _, port = self.http.rpartition(":")
        return host.strip("[]"), int(port)

    def url(self, path: str = "/") -> str:
        """Return the URL of a path on this node."""
        return f"http://{self.http}{path}"

    def output(self, last: int = 30) -> str:
        """Return the last lines that the node printed."""
        return "\n".join(list(self.lines)[-last:])

    def wait_event(self, event: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        """Wait for a printed JSON event of that name with those fields; returns the newest."""

        def newest() -> dict[str, Any] | None:
            wanted = {"event": event, **fields}.items()
            found = [seen for seen in tuple(self.events) if wanted <= seen.items()]
            return found[-1] if found else None

        found = wait_until(newest, timeout_s, what=f"event {event!r} {fields} of {self!r}")
        assert found is not None
        return found

    def send_signal(self, number: int) -> None:
        """Send a signal to the node's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def stop(self) -> None:
        """Fault `stop`: the node freezes, its sockets stay open (SIGSTOP)."""
        self.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """End the fault `stop` (SIGCONT)."""
        self.send_signal(signal.SIGCONT)

    def kill9(self) -> None:
        """Fault `kill9`: the node is gone at once, without a goodbye."""
        if self.alive:
            self.send_signal(signal.SIGKILL)
        self.wait(5.0)

    def terminate(self, timeout_s: float = 5.0, number: int = signal.SIGTERM) -> int:
        """Ask the node to end; returns its exit status. AssertionError when it takes longer."""
        self.send_signal(number)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 5.0) -> int:
        """Wait for the end of the process and of its output; returns the exit status."""
        assert self.process is not None, "the node was never started"
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self!r} did not end in {timeout_s:g} s:\n{self.output()}"
            ) from None
        for reader in self._readers:
            reader.join(1.0)
        _running.discard(self)
        return status

    def restart(self, timeout_s: float = READY_S) -> Self:
        """Start again on the same ports; a node that still runs is killed first."""
        self.kill9()
        return self.start(timeout_s)

    def request(
        self,
        path: str = "/",
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> Answer:
        """Ask the node over a connection of its own; for answers that end, not for streams."""
        connection = http.client.HTTPConnection(*self.address, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())

    def get(self, path: str = "/", timeout_s: float = 5.0) -> Answer:
        """GET a path."""
        return self.request(path, timeout_s=timeout_s)

    def json(self, path: str, timeout_s: float = 5.0) -> Any:
        """GET a path, expect 200, and parse the JSON body."""
        answer = self.get(path, timeout_s)
        assert answer.status == 200, f"{path}: {answer.status} {answer.body[:200]!r}"
        return answer.json()

    def status(self) -> Any:
        """/api/v1/status with numbers that were taken after this call: waits for them, 0.5 s."""
        called_at = time.time()
        until_s = time.monotonic() + 10.0
        while (told := self.json("/api/v1/status"))["at"] < called_at:
            assert time.monotonic() < until_s, f"{self}: numbers of {told['at']}"
            time.sleep(0.05)
        return told

    def counters(self) -> dict[str, int]:
        """All counters of that status."""
        told: dict[str, int] = self.status()["counters"]
        return told

    def __repr__(self) -> str:
        pid = self.process.pid if self.process else None
        return f"<node {self.http} {self.backbone} pid={pid}>"


def wait_known(node: NodeProcess, *mounts: str, timeout_s: float = 5.0) -> None:
    """Wait until the node knows of these mounts, its own or from upstream."""

    def known() -> bool:
        told = node.json("/api/v1/status")["streams"]
        return set(mounts) <= {stream["mount"] for stream in told}

    wait_until(known, timeout_s, what=f"{mounts} at {node!r}", every_s=0.05)


_running: set[NodeProcess] = set()


@atexit.register
def _end_all() -> None:
    """Leave no process behind, however the session ended."""
    for node in tuple(_running):
        with contextlib.suppress(AssertionError):
            node.kill9()


class Nodes:
    """The nodes of one test; leaving it kills them all."""

    def __init__(self) -> None:
        self.all: list[NodeProcess] = []

    def start(self, *args: str, timeout_s: float = READY_S, **options: Any) -> NodeProcess:
        """Start a node with the options of NodeProcess and wait until it is ready."""
        return self.spawn_later(*args, **options).start(timeout_s)

    def spawn_later(self, *args: str, **options: Any) -> NodeProcess:
        """Prepare a node that the test starts itself."""
        node = NodeProcess(*args, **options)
        self.all.append(node)
        return node

    def row(self, count: int, *args: str, **options: Any) -> list[NodeProcess]:
        """Start an origin and relays behind it, each the upstream of the next."""
        row: list[NodeProcess] = []
        for _ in range(count):
            upstreams = [row[-1].backbone] if row else []
            row.append(self.start(*args, upstreams=upstreams, **options))
        return row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        for node in self.all:
            if node.alive:
                node.kill9()
            if error is not None and node.process is not None:
                print(f"--- {node!r} said:\n{node.output()}")
