"""What a server costs, read from outside: CPU of all its threads, memory, memory of its sockets.

Rules of this room
  1. Every server is measured by the same files of /proc and the same `ss`; none reports on itself.
  2. CPU is that of a window, summed over the threads that live at its end. The kernel's own thread
     of the core (ksoftirqd) is told beside it: work pushed there belongs to the server as well.
  3. Only medians, ranges and ratios of pairs leave this room; nothing is averaged away.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
TASK_TIMES = "/proc/{}/task/{}/schedstat"


def cores() -> tuple[int, int]:
    """Return the core of the server and the core of the swarm; ValueError where there is one."""
    ours = sorted(os.sched_getaffinity(0))
    if len(ours) < 2:
        raise ValueError(f"one core ({ours[0]}): a server and its crowd need two")
    return ours[0], ours[-1]


@contextlib.contextmanager
def on_core(number: int) -> Iterator[None]:
    """Run this thread, and what it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Times:
    """One thread, since it began."""

    name: str
    run_ns: int
    wait_ns: int  # ready to run, and did not: somebody else had the core


def thread_times(pid: int) -> dict[int, Times]:
    """Read the times of each thread of a process; one that ends meanwhile is left out."""
    found = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            run, wait, _ = Path(TASK_TIMES.format(pid, thread)).read_text().split()
            name = Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()
            found[int(thread)] = Times(name, int(run), int(wait))
    return found


def softirq_thread(core: int) -> int | None:
    """Find the process id of the kernel's thread that serves a core's network interrupts."""
    for status in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if status.read_text().strip() == f"ksoftirqd/{core}":
                return int(status.parent.name)
    return None


@dataclass(frozen=True)
class Cost:
    """What one window cost."""

    window_s: float
    cpu_s: float  # of all threads of the process
    wait_s: float  # they were ready, and the core was somebody else's
    softirq_s: float  # of the kernel's thread of the server's core, whoever caused it
    threads_s: dict[str, float]  # the same as cpu_s, by the names of threads
    foreign_s: float = 0.0  # the server's core was busy, and not with the server

    @property
    def foreign_share(self) -> float:
        """How much of the window its core belonged to somebody else."""
        return self.foreign_s / self.window_s if self.window_s > 0 else 0.0


def cost_between(before: Mapping[int, Times], after: Mapping[int, Times]) -> Cost:
    """Sum what threads did in between; one that is new began with nothing."""
    threads: dict[str, float] = {}
    wait_ns = 0
    for number, then in after.items():
        first = before.get(number, Times(then.name, 0, 0))
        threads[then.name] = threads.get(then.name, 0.0) + (then.run_ns - first.run_ns) / 1e9
        wait_ns += then.wait_ns - first.wait_ns
    return Cost(0.0, sum(threads.values()), wait_ns / 1e9, 0.0, threads)


IDLE, IOWAIT, SOFTIRQ = 3, 4, 6  # columns of /proc/stat: proc_stat(5)


def core_s(core: int, *columns: int, text: str | None = None) -> float:
    """How long a core has done this since the machine began, in steps of 10 ms."""
    for line in (text or Path("/proc/stat").read_text()).splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            return sum(int(fields[column]) for column in columns) / os.sysconf("SC_CLK_TCK")
    raise ValueError(f"no line `cpu{core}` in /proc/stat")


def idle_s(core: int, text: str | None = None) -> float:
    """How long a core has been idle since the machine began."""
    return core_s(core, IDLE, IOWAIT, text=text)


def softirq_s(core: int, text: str | None = None) -> float:
    """How long it has carried packets and the like: the kernel books that apart from any thread."""
    return core_s(core, SOFTIRQ, text=text)


class Window:
    """A span of time in the life of a server: open it, let time pass, close it."""

    def __init__(self, pid: int, core: int) -> None:
        self.pid, self.core, self.softirq = pid, core, softirq_thread(core)
        self.idle_before = idle_s(core)
        self.softirq_before = self._softirq_s()
        self.before = thread_times(pid)
        self.begin = time.monotonic()

    def _softirq_s(self) -> float:
        """CPU of the kernel's thread so far; 0 where it cannot be seen."""
        times = thread_times(self.softirq) if self.softirq else {}
        return sum(one.run_ns for one in times.values()) / 1e9

    def close(self) -> Cost:
        """Return what it cost."""
        after, seconds = thread_times(self.pid), time.monotonic() - self.begin
        found = cost_between(self.before, after)
        softirq_s = self._softirq_s() - self.softirq_before
        idle = idle_s(self.core) - self.idle_before
        foreign_s = max(0.0, seconds - idle - found.cpu_s - softirq_s)
        return Cost(seconds, found.cpu_s, found.wait_s, softirq_s, found.threads_s, foreign_s)


def pss_bytes(pid: int, rollup: str | None = None) -> int:
    """Memory of a process, shared pages by share (a mirrored page counts once, unlike in RSS)."""
    text = rollup or Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise ValueError("no line `Pss:` in smaps_rollup")
    return int(found[1]) * 1024


# r: received and unread; w: written and not acknowledged, sent or not (t is a part of it, counted a
# second time for copies on the way); f: reserved ahead; o: options; bl: backlog while locked.
SKMEM = re.compile(r"skmem:\(([^)]*)\)")
SKMEM_HELD = ("r", "w", "f", "o", "bl")


def skmem_fields(text: str) -> list[dict[str, int]]:
    """Return skmem of each socket that `ss -tm` printed, by its field names."""
    return [
        {name: int(value) for name, value in re.findall(r"([a-z]+)(\d+)", found)}
        for found in SKMEM.findall(text)
    ]


def held_bytes(fields: Mapping[str, int]) -> int:
    """What one socket holds, out of its skmem."""
    return sum(fields[name] for name in SKMEM_HELD)


def socket_bytes(port: int) -> list[int]:
    """Kernel memory held by each of a server's own connections; the clients' ends do not count."""
    own = f"src 127.0.0.1:{port}"
    # It runs on the swarm's core, where only the swarm's turns must be in time.
    words = ["nice", "-n", "19", "ss", "-H", "-t", "-m", "-n", "state", "established", own]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [held_bytes(fields) for fields in skmem_fields(told)]


def free_port(other_than: int = 0) -> int:
    """Find a port below those that clients are given: theirs never look like the server's."""
    lowest = int(EPHEMERAL.read_text().split()[0])
    for port in range(max(1024, lowest - 2000), lowest):
        if port == other_than:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port below {lowest}")


def number(value: float) -> str:
    """Write a number with three digits that mean something, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


@dataclass(frozen=True)
class Spread:
    """Median and range of some values."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        median, low, high = (number(value) for value in (self.median, self.low, self.high))
        return median if low == high else f"{median} ({low} … {high})"


def spread(values: Sequence[float]) -> Spread:
    """Return median and range; ValueError when there is nothing."""
    if not values:
        raise ValueError("no valid run: nothing to take a median of")
    return Spread(statistics.median(values), min(values), max(values))


def ratios(ours: Sequence[float | None], rival: Sequence[float | None]) -> list[float]:
    """Ratio of each pair; a pair of which one run was not valid is left out whole."""
    pairs = zip(ours, rival, strict=True)
    return [own / their for own, their in pairs if own is not None and their]
