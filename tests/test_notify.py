"""What a supervisor hears: only where there is one, only what is true, and never at a price."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.notify import LOOKS, Pulse, Supervisor, status_line


@pytest.fixture(params=["path", "abstract"])
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A supervisor's socket, and its name as NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as at:
        at.bind(f"\0{name}" if request.param == "abstract" else name)
        at.settimeout(5)
        yield (f"@{name}" if request.param == "abstract" else name), at


def test_the_lines_reach_the_socket(heard: tuple[str, socket.socket]) -> None:
    """One datagram, one line each; sockets with a path and without."""
    name, at = heard
    assert Supervisor({"NOTIFY_SOCKET": name}).tell("READY=1", "STATUS=up")
    assert at.recv(1000) == b"READY=1\nSTATUS=up"


@pytest.mark.parametrize(
    "environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"WATCHDOG_USEC": "9"}]
)
async def test_nothing_is_said_without_a_socket(environ: dict[str, str]) -> None:
    """Nor is there a watch: it ends at once."""
    supervisor = Supervisor(environ)
    assert not supervisor.tell("READY=1")
    await asyncio.wait_for(supervisor.watch(dict), 5)


def test_a_supervisor_that_is_gone_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A line in the log, and on."""
    assert not Supervisor({"NOTIFY_SOCKET": str(tmp_path / "none")}).tell("READY=1")
    assert "the supervisor does not listen" in caplog.text


@pytest.mark.parametrize(
    ("usec", "whom", "seconds"),
    [
        ("10000000", "nobody", 10.0),
        ("500000", "us", 0.5),
        ("10000000", "another", 0.0),
        ("", "nobody", 0.0),
        ("0", "nobody", 0.0),
        ("x", "nobody", 0.0),
    ],
)
def test_the_watchdog_is_the_one_that_is_meant(usec: str, whom: str, seconds: float) -> None:
    """WATCHDOG_PID names whom it waits for: no sign of life in somebody else's name."""
    pids = {"nobody": "", "us": str(os.getpid()), "another": str(os.getpid() + 1)}
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pids[whom]}
    assert Supervisor(environ).watchdog_s == seconds


def test_a_thread_that_has_not_moved_is_stuck() -> None:
    """Each is compared with itself at the last sign of life; one that is new is not stuck."""
    pulse = Pulse()
    assert pulse.stuck({"shard 0": 0, "backbone": 7}) == []
    assert pulse.stuck({"shard 0": 1, "backbone": 8}) == []
    assert pulse.stuck({"shard 0": 1, "backbone": 8}) == ["shard 0", "backbone"]
    assert pulse.stuck({"shard 0": 1, "backbone": 9}) == ["shard 0"]
    assert pulse.stuck({"shard 0": 2, "backbone": 9, "shard 1": 0}) == []
    assert pulse.stuck({"shard 0": 3, "backbone": 9, "shard 1": 0}) == ["backbone", "shard 1"]


def test_threads_that_turn_by_turns_are_all_alive() -> None:
    """At every look one of them has just not turned; a sign of life comes at every other one."""
    pulse = Pulse()
    looks = [pulse.stuck({"shard 0": look // 2, "intake": (look + 1) // 2}) for look in range(20)]
    assert sum(not stuck for stuck in looks) == 10


class Thread:
    """A thread whose turns the test counts, and whoever asks for them can be waited for."""

    def __init__(self) -> None:
        self.turns, self.step, self.asks = 0, 1, 0
        self._asked = asyncio.Event()

    def count(self) -> dict[str, int]:
        """What the supervisor's watch asks for."""
        self.turns += self.step
        self.asks += 1
        self._asked.set()
        return {"shard 0": self.turns}

    async def wait_asked(self, times: int) -> None:
        """Wait until it was asked so often again, and the answer was acted upon."""
        for _ in range(times):
            self._asked.clear()
            await asyncio.wait_for(self._asked.wait(), 5)
        await asyncio.sleep(0)


async def test_signs_of_life_end_while_a_thread_is_stuck(
    heard: tuple[str, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """And begin again when it turns; the log says so once, when half of the wait is over."""
    name, at = heard
    thread = Thread()
    supervisor = Supervisor({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000"})
    watching = asyncio.create_task(supervisor.watch(thread.count))

    def signs() -> int:
        """Take all that has come."""
        at.setblocking(False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while at.recv(1000) == b"WATCHDOG=1":
                count += 1
        return count

    await thread.wait_asked(3)
    assert signs() >= 3
    assert not caplog.records
    thread.step = thread.asks = 0
    await thread.wait_asked(1)
    signs()
    while not caplog.records:
        await thread.wait_asked(1)
    assert thread.asks >= LOOKS // 2
    await thread.wait_asked(LOOKS)
    assert signs() == 0
    assert [r.getMessage()[:22] for r in caplog.records] == ["shard 0 has not turned"]
    thread.step = 1
    await thread.wait_asked(1)
    assert signs() >= 1
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


def test_a_status_is_one_short_line() -> None:
    """No second line of the protocol can be smuggled into it."""
    assert status_line("a\nREADY=1") == "STATUS=a READY=1"
    assert len(status_line("x" * 1000)) == 207
