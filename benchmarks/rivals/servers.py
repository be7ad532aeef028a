"""The servers that are compared: each a process of its own, all its threads on one core.

Rules of this room
  1. A server is known by its process, its port and what it prints; leaving its `with` ends it.
  2. Every rival is as fast as its own settings make it; what was tuned is said beside it.
  3. The bare loop is compiled here, when its source is newer than the program.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, Self

import relay

from .measure import free_port, on_core

HERE = Path(__file__).parent
BUILT = HERE.parent.parent / "build" / "rivals"
PASSWORD = "a-password-of-the-benchmark"
READY_S = 15.0
END_S = 5.0
BYTES_PER_S = 8000  # 64 kbit/s
LAG_MS_MAX = 15_000  # Relay's default
BURST_MS = 3000  # Relay's default; the others give as much
SLOT_MS = 10

PACE_MS_MAX = 1000

Content = Literal["frames", "any"]
Pace = int | Literal["auto"]


class ServerError(Exception):
    """A server that did not start, or did not live as long as its crowd."""


class Server:
    """A process that serves listeners on 127.0.0.1; use it as `with Server(…) as server`."""

    name = "server"
    content: Content = "frames"  # what listeners get: our source's frames, or any bytes
    pace_ms = PACE_MS_MAX  # no listener waits longer for its next bytes
    joins_per_s_max = 100_000  # that it lets in, all things being quiet
    tail_bytes = 0  # that it keeps back until a block is full

    def __init__(self, core: int) -> None:
        self.core = core
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.home = Path()  # its own directory, while it is entered

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        """Return the words that start it."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return its environment."""
        return dict(os.environ)

    def is_ready(self) -> bool:
        """Whether it serves."""
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def said(self) -> str:
        """What it printed so far."""
        return (self.home / "output").read_text(errors="replace")

    def __enter__(self) -> Self:
        self.port = free_port()
        self.home = Path(tempfile.mkdtemp(prefix=f"relay-edge-{self.name}-"))
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        """Run it and wait until it serves; ServerError when it does not."""
        with on_core(self.core), (self.home / "output").open("wb") as output:
            self.process = subprocess.Popen(
                self.command(),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until = time.monotonic() + READY_S
        while not self.is_ready():
            if time.monotonic() > until or self.process.poll() is not None:
                said = self.said()[-2000:]
                raise ServerError(f"{self.name} was not ready in {READY_S:g} s:\n{said}")
            time.sleep(0.02)

    def end(self) -> str:
        """Ask it to end; returns all that it printed. ServerError when it had ended before."""
        assert self.process is not None
        status = self.process.poll()
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if status is not None:
            said = self.said()[-2000:]
            raise ServerError(f"{self.name} ended by itself, status {status}:\n{said}")
        return self.said()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.home != Path():
            shutil.rmtree(self.home, ignore_errors=True)


class Relay(Server):
    """`relay serve`, as an operator starts it; no backbone."""

    name = "relay"

    def __init__(
        self, core: int, pace_ms: Pace, listeners_max: int = 0, lag_ms_max: int = LAG_MS_MAX
    ) -> None:
        super().__init__(core)
        self.pace, self.listeners_max, self.lag_ms_max = pace_ms, listeners_max, lag_ms_max
        self.pace_ms = PACE_MS_MAX if pace_ms == "auto" else pace_ms

    def command(self) -> list[str]:
        """Return the words; all but the pace and the bounds are defaults."""
        options = {
            "--log-format": "json",
            "--http": f"127.0.0.1:{self.port}",
            "--backbone": "none",
            "--burst-ms": str(BURST_MS),
            "--pace-ms": str(self.pace),
            "--listeners-max": str(self.listeners_max),
            "--lag-ms-max": str(self.lag_ms_max),
        }
        words = [word for option in options.items() for word in option]
        return [sys.executable, "-P", "-m", "relay", "serve", *words]

    def environment(self) -> dict[str, str]:
        """The relay that this process imported, not another one that is installed."""
        home = str(Path(relay.__file__).resolve().parent.parent)
        passwords = {"RELAY_SOURCE_PASSWORD": PASSWORD, "RELAY_ADMIN_PASSWORD": PASSWORD}
        return os.environ | {"PYTHONPATH": home, "PYTHONUNBUFFERED": "1"} | passwords

    def is_ready(self) -> bool:
        """Look for its `ready` line."""
        return '"event": "ready"' in self.said()


class Bare(Server):
    """The bare loop (bare.c): `send` or io_uring at a pace, or a loop that only accepts.

    Args:
        core: where it runs.
        listeners: how many it lets in before it serves.
        pace_ms: as Relay's: rounded up to slots of 10 ms; each send brings the bytes of one pace.
        size_bytes: of one send, where it is not what the pace makes it.
        accepts: accept for ever, answer with head and burst, and never send again.
        backend: send or uring.
    """

    name = "bare"
    content: Content = "any"

    def __init__(
        self,
        core: int,
        *,
        listeners: int = 1,
        pace_ms: int = 1000,
        size_bytes: int | None = None,
        accepts: bool = False,
        backend: Literal["send", "uring"] = "send",
    ) -> None:
        super().__init__(core)
        self.pace_ms = pace_ms
        self.enough = 0 if accepts else listeners
        slots = -(-pace_ms // SLOT_MS)
        size = size_bytes or BYTES_PER_S * slots * SLOT_MS // 1000
        self.arguments = {
            "--port": "0",
            "--listeners": str(listeners),
            "--pace-ms": str(pace_ms),
            "--size-bytes": str(size),
            "--burst-bytes": str(BYTES_PER_S * BURST_MS // 1000),
            "--mode": "accept" if accepts else "pace",
            "--backend": backend,
        }

    def command(self) -> list[str]:
        """Return the words; compiles the program where it is stale."""
        self.arguments["--port"] = str(self.port)
        return [str(built()), *(word for pair in self.arguments.items() for word in pair)]

    def is_ready(self) -> bool:
        """Look for its first line: a connection to try would be its first listener."""
        return self.said().startswith("listening\n")

    def end(self) -> str:
        """End it; ServerError when not all were in: then it has served nobody."""
        said = super().end()
        told: dict[str, int] = json.loads(said.splitlines()[-1])
        if told["accepted"] < self.enough:
            raise ServerError(f"the bare loop waits for {self.enough} listeners, got {told}")
        return said


def built(name: str = "bare", *libraries: str) -> Path:
    """Compile a rival with the flags of the release core where the program is older."""
    source, program = HERE / f"{name}.c", BUILT / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILT.mkdir(parents=True, exist_ok=True)
        words = [os.environ.get("CC", "gcc"), "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall"]
        subprocess.run([*words, "-o", f"{program}.new", str(source), *libraries], check=True)
        os.replace(f"{program}.new", program)
    return program


# Tuned as far as Icecast 2.4 goes:
#   clients, sources      above what is asked for (100 and 2 as installed)
#   queue-size            4 MB instead of 512 KiB: at 64 kbit/s a listener may be 500 s behind
#                         before it is thrown off; smaller only ends listeners in a full house
#   burst-size            as many bytes as Relay's burst, so that both send the same to a newcomer
#   header-, client-, source-timeout   60 s: with a backlog of 5 a storm takes that long
#   loglevel 1, fileserve 0, no directory, no relays: nothing beside serving
# Not settable: its backlog (5, compiled in), its threads (one a source), bytes per send (1,400).
ICECAST = """<icecast>
  <location>here</location><admin>nobody@localhost</admin><hostname>localhost</hostname>
  <limits>
    <clients>{clients}</clients><sources>600</sources><queue-size>4194304</queue-size>
    <client-timeout>60</client-timeout><header-timeout>60</header-timeout>
    <source-timeout>60</source-timeout>
    <burst-on-connect>1</burst-on-connect><burst-size>{burst_bytes}</burst-size>
  </limits>
  <authentication>
    <source-password>{password}</source-password><relay-password>{password}</relay-password>
    <admin-user>admin</admin-user><admin-password>{password}</admin-password>
  </authentication>
  <listen-socket><port>{port}</port><bind-address>127.0.0.1</bind-address></listen-socket>
  <fileserve>0</fileserve>
  <paths>
    <basedir>{home}</basedir><logdir>{home}</logdir>
    <webroot>{home}</webroot><adminroot>{home}</adminroot>
  </paths>
  <logging>
    <accesslog>access.log</accesslog><errorlog>error.log</errorlog><loglevel>1</loglevel>
  </logging>
  <security><chroot>0</chroot>{changeowner}</security>
</icecast>
"""


class Icecast(Server):
    """Debian's icecast2 with a configuration of its own in its own directory."""

    name = "icecast"
    tail_bytes = 1400
    joins_per_s_max = 500  # faster, and its backlog of 5 sends many into a second SYN

    def command(self) -> list[str]:
        """Write the configuration; it refuses to run as root, so it becomes `nobody` there."""
        program = self.program()
        if program is None:
            raise ServerError("icecast2 is missing: apt-get install icecast2")
        changeowner = ""
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(self.home, user.pw_uid, user.pw_gid)
            changeowner = "<changeowner><user>nobody</user><group>nogroup</group></changeowner>"
        text = ICECAST.format(
            clients=19_500,
            burst_bytes=BYTES_PER_S * BURST_MS // 1000,
            password=PASSWORD,
            port=self.port,
            home=self.home,
            changeowner=changeowner,
        )
        (self.home / "icecast.xml").write_text(text)
        return [program, "-c", str(self.home / "icecast.xml")]

    @staticmethod
    def program() -> str | None:
        """Return its path; None where it is not installed."""
        return shutil.which("icecast2") or shutil.which("icecast")


def versions() -> dict[str, Any]:
    """What of the rivals is installed."""
    found: dict[str, Any] = {"icecast": None}
    if program := Icecast.program():
        told = subprocess.run([program, "-v"], capture_output=True, text=True)
        found["icecast"] = told.stdout.strip()
    return found
