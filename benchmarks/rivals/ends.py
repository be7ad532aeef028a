"""The processes that a hop is made of: its ends, a node in between, and the plain loop beside them.

Rules of this room
  1. Each runs on the core it is given; leaving its `with` ends it, whatever happened.
  2. Every wait has a bound; what a process says when it fails goes into the ServerError.
  3. libzmq is for all of them the file that pyzmq has loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Self

import zmq
import zmq.backend.cython._zmq as zmq_module

import relay
from relay.keys import Keys, make_secret

from .measure import free_port, on_core
from .servers import Relay, ServerError, built

ANSWER_S = 60.0
END_S = 5.0
SUBSCRIBED_S = 0.3  # a subscription is with the other end by then
RUN_FIXED_BYTES = 54  # of a published run, before its records (docs/wire.md)
RECORD_BYTES = 8


def libzmq() -> str:
    """The libzmq that pyzmq has loaded; ServerError where it is a part of pyzmq's own module."""
    assert zmq_module
    for line in Path("/proc/self/maps").read_text().splitlines():
        name = line.rpartition(" ")[2]
        if "libzmq" in os.path.basename(name):
            return name
    raise ServerError("pyzmq was built with libzmq inside: there is no file that a C program opens")


class Talker:
    """A process that answers lines with lines; core -1: where its caller may run."""

    name = "process"

    def __init__(self, core: int, words: Sequence[str]) -> None:
        self.core, self.words = core, list(words)
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: IO[bytes] | None = None
        self._rest = b""

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process is not None
        return self.process.pid

    def __enter__(self) -> Self:
        self.errors = tempfile.TemporaryFile()
        home = str(Path(relay.__file__).resolve().parent.parent)
        with on_core(self.core) if self.core >= 0 else contextlib.nullcontext():
            self.process = subprocess.Popen(
                self.words,
                env=os.environ | {"PYTHONPATH": home},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is None:
            return
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.errors is not None
        self.process.stdin.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()
        self.process = None

    def say(self, line: str) -> None:
        """Write a line."""
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.failure("has ended") from None

    def hear(self, timeout_s: float = ANSWER_S) -> str:
        """Read a line; ServerError when none comes."""
        assert self.process is not None
        assert self.process.stdout is not None
        until = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as wait:
            wait.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not wait.select(max(0.0, until - time.monotonic())):
                    raise self.failure(f"has said nothing for {timeout_s:g} s")
                part = os.read(self.process.stdout.fileno(), 65536)
                if not part:
                    raise self.failure("has ended")
                self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def failure(self, what: str) -> ServerError:
        """What went wrong, and what it printed about it."""
        assert self.errors is not None
        self.errors.seek(0)
        said = self.errors.read()[-2000:].decode(errors="replace")
        return ServerError(f"{self.name} {what}: {said}")


class End(Talker):
    """One end of a hop (hop_end.py); without upstreams it is the source's."""

    name = "an end of the hop"

    def __init__(
        self,
        core: int,
        *,
        upstreams: Sequence[str] = (),
        streams: int = 1,
        frame_bytes: int = 192,
        duration_us: int = 20_000,
        ring_s: float = 20,
        ring_bytes_max: int = 64 << 20,
        keys: Keyring | None = None,
    ) -> None:
        told = {
            "upstreams": [up + (f"#{keys.upper.public}" if keys else "") for up in upstreams],
            "streams": streams,
            "frame_bytes": frame_bytes,
            "duration_us": duration_us,
            "ring_s": ring_s,
            "ring_bytes_max": ring_bytes_max,
            "secret": "" if keys is None else keys.lower_text if upstreams else keys.upper_text,
            "children": {"lower": keys.lower.public} if keys and not upstreams else {},
        }
        program = Path(__file__).with_name("hop_end.py")
        super().__init__(core, [sys.executable, "-P", str(program), json.dumps(told)])
        self.address = ""

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.address = json.loads(self.hear())["address"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def begin(self, do: str, **told: Any) -> None:
        """Give a command, and do not wait."""
        self.say(json.dumps({"do": do, **told}))

    def answer(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """The answer to a command; ServerError when it failed."""
        found: dict[str, Any] = json.loads(self.hear(timeout_s))
        if "error" in found:
            raise ServerError(f"{self.name}: {found['error']}")
        return found

    def ask(self, do: str, **told: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        self.begin(do, **told)
        return self.answer()


class Keyring:
    """The keys of both ends of a hop."""

    def __init__(self) -> None:
        self.upper_text, self.lower_text = make_secret(), make_secret()
        self.upper, self.lower = Keys(self.upper_text), Keys(self.lower_text)


class Loop(Talker):
    """One end of the plain loop (packed.c), or both."""

    name = "the plain loop"

    def __init__(self, core: int, role: str, messages: Path, **numbers: int) -> None:
        words = [str(built("packed", "-ldl", "-lpthread")), "--role", role, "--module", libzmq()]
        words += ["--messages", str(messages)]
        for name, value in numbers.items():
            words += [f"--{name}", str(value)]
        super().__init__(core, words)

    def numbers(self) -> list[int]:
        """A line of numbers."""
        return [int(word) for word in self.hear().split()]


class Middle(Relay):
    """`relay serve` between two ends, as an operator starts it: its listeners' side is idle."""

    name = "node"

    def __init__(self, core: int, upstream: str, config: str = "") -> None:
        super().__init__(core, pace_ms=1000)
        self.upstream, self.config = upstream, config
        self.backbone_port = 0

    def command(self) -> list[str]:
        """Return the words; rings and lag are those of the configuration."""
        self.backbone_port = free_port(other_than=self.port)
        (self.home / "relay.toml").write_text(self.config)
        options = {
            "--log-format": "json",
            "--http": f"127.0.0.1:{self.port}",
            "--backbone": f"tcp://127.0.0.1:{self.backbone_port}",
        }
        words = [word for option in options.items() for word in option]
        words += ["--upstream", self.upstream] if self.upstream else []
        config = str(self.home / "relay.toml")
        return [sys.executable, "-P", "-m", "relay", "serve", config, *words]

    @property
    def address(self) -> str:
        """Where its children reach it."""
        return f"tcp://127.0.0.1:{self.backbone_port}"


def mount_key(mount: str) -> bytes:
    """The key of a mount, as it is on the wire (docs/wire.md)."""
    key = 0xCBF29CE484222325
    for byte in mount.encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    key = (key ^ key >> 32) * 0xD6E8FEB86659FD93 % 2**64
    return struct.pack("<Q", key ^ key >> 32)


def record(
    address: str, mount: str, frames: int, push: Callable[[], object], timeout_s: float = 10.0
) -> list[bytes]:
    """The runs that hold the next `frames` frames of a stream, as they are on the wire.

    Args:
        address: of the node's backbone.
        mount: of the stream.
        frames: that `push` pushes.
        push: called once the subscription has arrived.
        timeout_s: what comes later is not waited for.

    Raises:
        ServerError: they did not come.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    found: list[bytes] = []
    socket = context.socket(zmq.SUB)
    try:
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        socket.subscribe(b"S" + mount_key(mount))
        time.sleep(SUBSCRIBED_S)
        push()
        until = time.monotonic() + timeout_s
        while sum(map(frames_in, found)) < frames:
            if not socket.poll(max(0, int((until - time.monotonic()) * 1000))):
                raise ServerError(f"{len(found)} messages of {frames} frames came, and no more")
            found.append(socket.recv())
    finally:
        socket.close()
        context.term()
    return found


def frames_in(run: bytes) -> int:
    """How many frames a run holds."""
    (count,) = struct.unpack_from("<H", run, RUN_FIXED_BYTES - 2)
    return int(count)


def split(run: bytes) -> list[bytes]:
    """The same frames, each in a message of its own with the head of a run."""
    count = frames_in(run)
    records = [run[RUN_FIXED_BYTES + RECORD_BYTES * i :][:RECORD_BYTES] for i in range(count)]
    at, single = RUN_FIXED_BYTES + RECORD_BYTES * count, []
    head = run[: RUN_FIXED_BYTES - 2] + struct.pack("<H", 1)
    for one in records:
        size = int.from_bytes(one[:3], "little")
        single.append(head + one + run[at : at + size])
        at += size
    return single


def write_messages(path: Path, messages: Sequence[bytes]) -> None:
    """Put messages into a file for the plain loop."""
    with path.open("wb") as file:
        for message in messages:
            file.write(struct.pack("<I", len(message)) + message)
