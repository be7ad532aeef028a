"""`relay serve` under a supervisor: ready, alive while its threads turn, stopping; and its unit.

Rules of this room
  1. The supervisor is a socket of the test; the faults are real threads standing still.
  2. A watchdog of 1 s: a sign of life comes every 0.5 s, and its absence is judged after 3 s.
"""

from __future__ import annotations

import configparser
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.freeze import engine_threads, frozen
from tools.nodes import NodeProcess, Nodes, wait_until

UNIT = Path(__file__).resolve().parent.parent.parent / "packaging" / "relay.service"


class Ear:
    """The other end of NOTIFY_SOCKET, and all it has heard."""

    def __init__(self, path: Path) -> None:
        self.path, self.heard = path, list[str]()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    @property
    def env(self) -> dict[str, str]:
        """What the node needs to know."""
        return {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": "1000000"}

    def listen(self) -> list[str]:
        """Take what has come; returns everything heard so far."""
        while True:
            try:
                self.heard += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self.heard

    def count(self, line: str = "WATCHDOG=1") -> int:
        """How often the line has come."""
        return self.listen().count(line)

    def wait(self, line: str, more: int = 1) -> None:
        """Wait until the line has come so often again."""
        wanted = self.count(line) + more
        wait_until(lambda: self.count(line) >= wanted, 10.0, what=f"{more} × {line}")

    def close(self) -> None:
        """End it."""
        self._socket.close()


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    """A supervisor."""
    made = Ear(tmp_path / "notify")
    yield made
    made.close()


def test_ready_alive_and_stopping_are_told_in_order(nodes: Nodes, ear: Ear) -> None:
    """READY when the doors are open, with an upstream away; signs of life; STOPPING at the end."""
    node = nodes.start(upstreams=["tcp://127.0.0.1:1"], env=ear.env)
    wait_until(lambda: ear.count("READY=1") == 1, 5.0, what="READY")
    assert node.get("/readyz").status == 503
    ear.wait("WATCHDOG=1", 3)
    assert node.terminate() == 0
    said = [line for line in ear.listen() if not line.startswith(("STATUS=", "WATCHDOG="))]
    assert said == ["READY=1", "STOPPING=1"]
    heard = ear.listen()
    assert "WATCHDOG=1" not in heard[heard.index("STOPPING=1") :]
    assert any(line.startswith("STATUS=") and node.http in line for line in heard)


@pytest.mark.parametrize(
    ("from_end", "name"), [(1, "intake"), (2, "shard 0"), (3, "backbone")], ids=lambda v: str(v)
)
def test_signs_of_life_end_when_a_thread_stands_still(
    nodes: Nodes, ear: Ear, from_end: int, name: str
) -> None:
    """Python goes on; the engine does not, and the supervisor learns it."""
    node = nodes.start(env=ear.env)
    ear.wait("WATCHDOG=1", 2)
    with frozen(node.pid, engine_threads(node.pid)[-from_end]):
        judged_s = time.monotonic() + 1.2  # one sign may be on its way
        wait_until(lambda: time.monotonic() > judged_s, 5.0)
        silent = ear.count()
        judged_s = time.monotonic() + 3.0
        wait_until(lambda: time.monotonic() > judged_s, 5.0)
        assert ear.count() == silent
    if name != "backbone":  # it may have stood still within its turn, which a snapshot waits for
        assert name in node.wait_event("stuck")["text"]
    ear.wait("WATCHDOG=1", 2)


def test_a_frozen_process_gives_no_sign(nodes: Nodes, ear: Ear) -> None:
    """And goes on when it is let."""
    node = nodes.start(env=ear.env)
    ear.wait("WATCHDOG=1", 2)
    node.stop()
    before = ear.count()
    judged_s = time.monotonic() + 2.0
    wait_until(lambda: time.monotonic() > judged_s, 5.0)
    assert ear.count() - before <= 1
    node.cont()
    ear.wait("WATCHDOG=1", 2)


def test_a_node_that_dies_is_ready_again_soon(nodes: Nodes, ear: Ear) -> None:
    """kill -9 and a start, as Restart=always does it: on the same ports, ready as before."""
    node: NodeProcess = nodes.start(env=ear.env)
    http, began_s = node.http, time.monotonic()
    node.restart()
    print(f"\nready again after {time.monotonic() - began_s:.2f} s")
    assert node.http == http
    wait_until(lambda: ear.count("READY=1") == 2, 5.0, what="the second READY")


# --- the unit ------------------------------------------------------------------------------------


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """`systemd-analyze verify` where there is one; its program stands in for the installed one."""
    text = UNIT.read_text().replace("/usr/local/bin/relay", sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        words = [analyze, "verify", "--man=no", str(copy)]
        told = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert (told.returncode, told.stdout + told.stderr) == (0, "")


def test_the_unit_restarts_at_once_and_watches() -> None:
    """The fields that the promises of docs/operations.md rest on."""
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["Type"] == "notify"
    assert (service["Restart"], service["RestartSec"]) == ("always", "100ms")
    assert service["WatchdogSec"] == "10s"
    assert int(service["LimitNOFILE"]) >= 100_000
    assert service["ExecStart"].split()[1] == "serve"
    for name in ("NoNewPrivileges", "DynamicUser", "ProtectHome", "PrivateDevices"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
