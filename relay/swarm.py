"""The swarm: very many listeners with their own programme, who judge a server.

Rules of this room
  1. The scenario is Python's, between two runs; in run() one compiled loop does everything, without
     the GIL (relay/_swarm.pyx). Who calls run() should call it again at once: a pause in between
     counts as the swarm's own delay.
  2. Loopback only, unless `anywhere` is said: this must not become an attack by accident.
  3. Bounds: descriptors (one a listener, two a source), addresses, mounts, groups; each refusal
     says how much fits. Memory: ≤ 192 B a listener, 16 KiB a mount, ≤ 5 KiB more for each sampled
     listener.
  4. The same seed plans the same joins: who asks for titles, who is in the sample.
"""

from __future__ import annotations

import ipaddress
import os
import resource
import secrets
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, Self
from urllib.parse import quote

import numpy as np

from relay import _swarm
from relay.errors import ConfigError
from relay.icecast import Connection, Target
from relay.swarm_report import Group, Report, SourceReport, Window, faults_of, group, reasons_of

RESERVED = 64  # descriptors for everything else in this process
SEND_BUFFER_BYTES = 8192  # of a source: a server that takes nothing is noticed after a second
SLICE_S = 0.25  # Ctrl-C is heard so often
ADDRESSES_MAX = 254
SAMPLE_MAX = 5000
PACE_MS_MAX = 60_000
TAIL_BYTES_MAX = 65_536
PAUSE_S_MAX = 0.2
DRAIN_S_MIN = 0.5
USER_AGENT = "relay-swarm"

Content = Literal["frames", "any"]


PLAN = np.dtype([("mount", "<u2"), ("flags", "u1"), ("unused", "u1")])
"""One join, as the compiled part reads it."""


def plan_joins(
    count: int,
    mounts: Sequence[int],
    *,
    icy_share: float,
    sample: int,
    draw: np.random.Generator,
    flags: int = 0,
) -> bytes:
    """Who joins what: listener i takes mounts[i % len]; `icy_share` of all ask for titles.

    The sample is spread over mounts and over those with and without titles, as evenly as goes. A
    few ms for 20,000: nobody is read meanwhile.
    """
    plan = np.zeros(count, PLAN)
    at = np.arange(count) % len(mounts)
    plan["mount"] = np.asarray(mounts)[at]
    plan["flags"] = flags
    icy = np.zeros(count, np.int64)
    icy[draw.permutation(count)[: round(count * icy_share)]] = 1
    stratum = 2 * at + icy
    order = draw.permutation(count)
    order = order[np.argsort(stratum[order], kind="stable")]  # by stratum, within it at random
    sizes = np.bincount(stratum)
    rank = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = order[np.lexsort((draw.permutation(count), rank))[:sample]]  # first one of each
    plan["flags"] |= (icy * _swarm.FLAG_ICY).astype(np.uint8)
    plan["flags"][chosen] |= _swarm.FLAG_SAMPLED
    return plan.tobytes()


def raise_limit() -> int:
    """Raise the limit of open files to the hard one; how many more this process may open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - len(os.listdir("/proc/self/fd"))


def resolve(host: str, anywhere: bool) -> str:
    """The IPv4 address of the server; ConfigError when it is not on this machine's loopback."""
    try:
        address = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise ConfigError(f"host {host!r} has no IPv4 address: {error}") from None
    if not ipaddress.ip_address(address).is_loopback and not anywhere:
        raise ConfigError(
            f"host {host!r} ({address}) is not on loopback: thousands of connections are an attack "
            "where nobody expects them. If the server is yours, say so: --anywhere"
        )
    return str(address)


BOUNDS = {
    "addresses": (1, ADDRESSES_MAX),
    "sample": (0, SAMPLE_MAX),
    "pace_ms": (1, PACE_MS_MAX),
    "tolerance_ms": (1, PACE_MS_MAX),
    "tail_bytes": (0, TAIL_BYTES_MAX),
    "seed": (0, 2**63),
}


def check_bounds(**given: int) -> None:
    """ConfigError with a line for each number that is out of its bounds."""
    wrong = [
        f"{name} {value}: {BOUNDS[name][0]} to {BOUNDS[name][1]}"
        for name, value in given.items()
        if not BOUNDS[name][0] <= value <= BOUNDS[name][1]
    ]
    if wrong:
        raise ConfigError(*wrong)


class Swarm:
    """Listeners and sources of one server.

    Args:
        port: of the server, on `host`.
        host: a loopback address or name; others only with `anywhere`.
        listeners_max: records to prepare; at most as many as descriptors are left.
        addresses: how many loopback addresses the listeners come from, ≤ 254.
        sample: listeners of each `join` whose every frame is checked.
        pace_ms: how often the server promises to serve each.
        tolerance_ms: beyond the pace before one is behind: a frame counts when it is whole (24 ms),
            a slot of a wheel (10 ms), our own delay (≤ 50 ms, else the run is not valid), the rest
            for two kernels' queues.
        tail_bytes: what a server that sends whole blocks only may keep back at the end (Icecast:
            1400).
        seed: of the plan.
        content: "frames": we are the source; "any": somebody else is, then only joins, bytes, gaps
            and ends are judged.
        anywhere: allow a server that is not on loopback.

    Raises:
        ConfigError: a value out of bounds, a host that is not ours.
    """

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        *,
        listeners_max: int = 20_000,
        addresses: int = 64,
        sample: int = 200,
        pace_ms: int = 1000,
        tolerance_ms: int = 250,
        tail_bytes: int = 0,
        seed: int = 0,
        content: Content = "frames",
        anywhere: bool = False,
    ) -> None:
        check_bounds(
            addresses=addresses,
            sample=sample,
            pace_ms=pace_ms,
            tolerance_ms=tolerance_ms,
            tail_bytes=tail_bytes,
            seed=seed,
        )
        self.address = resolve(host, anywhere)
        self.room = raise_limit() - RESERVED
        if listeners_max < 1 or self.room < 1:
            raise ConfigError(f"listeners_max {listeners_max}: 1 to {self.room} fit")
        self.port, self.sample, self.content = port, sample, content
        self.pace_ms, self.tolerance_ms = pace_ms, tolerance_ms
        self._draw = np.random.default_rng(seed)
        on_loopback = ipaddress.ip_address(self.address).is_loopback
        self._loop = _swarm.Loop(
            int(ipaddress.ip_address(self.address)),
            port,
            from_=int(ipaddress.ip_address("127.0.0.1")) if on_loopback else 0,
            addresses=addresses,
            listeners_max=min(listeners_max, self.room),
            pace_us=pace_ms * 1000,
            late_us=(pace_ms + tolerance_ms) * 1000,
            tail_bytes=tail_bytes,
            run=secrets.randbits(32),
            frames=content == "frames",
        )
        self._listeners_max = min(listeners_max, self.room)
        self._mounts: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        self._floods: set[str] = set()
        self._held = 0  # joins that were asked for and keep their descriptor
        self._sources = 0
        self._windows: dict[str, Window] = {}
        self._window = "start"
        self._cpu_s = time.process_time()
        self._source_busy_us, self._window_s = 0, time.monotonic()
        self._finished: Report | None = None

    # --- who comes ---

    def source(self, mount: str, *, password: str, title_every_s: float = 0) -> None:
        """Begin to push our programme to a mount, as an encoder would, and titles to it.

        Blocks until the server has accepted it.

        Raises:
            PushError: refused, or not reached.
            ConfigError: no source is possible here.
        """
        if self.content != "frames":
            raise ConfigError('content "any" means that somebody else is the source')
        if mount in self._mounts:
            raise ConfigError(f"{mount} has its source, or has been joined already")
        self._make_room(listeners=0, sources=1)
        target = Target(self.address, self.port, quote(mount), password=password)
        connection = Connection.open(target, "audio/mpeg", name="swarm")
        head, tail = self._title_request(mount, target)
        with socket.socket(fileno=connection.detach()) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            self._add_mount(mount, sock.detach(), head, tail, round(title_every_s * 1e6))
        self._sources += 1

    def _title_request(self, mount: str, target: Target) -> tuple[bytes, bytes]:
        query = f"mode=updinfo&mount={quote(mount, safe='')}&song=title+"
        tail = (
            f" HTTP/1.0\r\nHost: {target.authority}\r\nUser-Agent: {USER_AGENT}\r\n"
            f"Authorization: {target.authorization}\r\nConnection: close\r\n\r\n"
        )
        return f"GET /admin/metadata?{query}".encode(), tail.encode()

    def _add_mount(
        self, mount: str, fd: int = -1, head: bytes = b"", tail: bytes = b"", every_us: int = 0
    ) -> int:
        lines = (
            f"GET {quote(mount)} HTTP/1.0\r\nHost: {self.address}:{self.port}\r\n"
            f"User-Agent: {USER_AGENT}\r\n"
        )
        try:
            number = self._loop.add_mount(
                f"{lines}\r\n".encode(),
                f"{lines}Icy-MetaData: 1\r\n\r\n".encode(),
                fd=fd,
                title_head=head,
                title_tail=tail,
                title_every_us=every_us,
            )
        except ValueError as wrong:
            if fd >= 0:
                os.close(fd)
            raise ConfigError(f"mount {mount}: {wrong}") from None
        self._mounts[mount] = number
        return number

    def join(
        self,
        count: int,
        over_s: float,
        mounts: Sequence[str] = ("/live",),
        icy_share: float = 0.0,
        group: str = "incumbents",
    ) -> None:
        """Let listeners join, evenly over a time from the next run() on.

        Joins asked for faster than 20,000 a second come as fast as one core can connect; the report
        tells how long that took (`joins_s`).

        Args:
            count: how many; listener i takes mounts[i % len(mounts)].
            over_s: the time in s.
            icy_share: 0 to 1: who asks for titles.
            group: whose numbers they go into; at most 32 groups.

        Raises:
            ConfigError: more than fit, or a mount without our source.
        """
        self._make_room(listeners=count, sources=0)
        plan = plan_joins(
            count,
            [self._number(mount) for mount in mounts],
            icy_share=icy_share,
            sample=self.sample,
            draw=self._draw,
        )
        self._loop.join(self._group(group), round(over_s * 1e6), plan)
        self._held += count

    def flood(self, count: int, over_s: float, mount: str = "/live", group: str = "flood") -> None:
        """Let connections come that should be refused, evenly over a time from the next run() on.

        Each wants a whole 503: status line, its announced body, EOF, and no reset.
        """
        plan = plan_joins(
            count,
            [self._number(mount)],
            icy_share=0.0,
            sample=0,
            draw=self._draw,
            flags=_swarm.FLAG_FLOOD,
        )
        self._loop.join(self._group(group), round(over_s * 1e6), plan)
        self._floods.add(group)

    def stall(self, count: int, group: str = "incumbents") -> int:
        """Let so many of a group stop reading now, sampled ones last; how many did."""
        return self._loop.stall(self._group(group), count)

    def lag(self, count: int, group: str = "incumbents") -> int:
        """Let so many of a group's sample stop reading now, those with titles first; how many did.

        Once they `read_on`, the server may have skipped them: between two frames, once, with the
        titles and all frames after it right. It is counted as `skips_allowed`, not as a loss.
        """
        return self._loop.lag(self._group(group), count)

    def read_on(self, group: str = "incumbents") -> int:
        """Let whoever of a group lags read again; how many did."""
        return self._loop.read_on(self._group(group))

    def _make_room(self, *, listeners: int, sources: int) -> None:
        left = self.room - self._held - 2 * (self._sources + sources)
        if listeners < 0 or listeners > min(left, self._listeners_max - self._held) or left < 0:
            raise ConfigError(
                f"{listeners} listeners beside {self._held} and {self._sources} sources: "
                f"listeners_max is {self._listeners_max}, and this process may open {self.room} "
                f"connections (one a listener, two a source): {max(0, left)} more fit"
            )

    def _number(self, mount: str) -> int:
        if mount in self._mounts:
            return self._mounts[mount]
        if self.content == "frames":
            raise ConfigError(f"{mount} has no source of ours: call source({mount!r}) first")
        return self._add_mount(mount)

    def _group(self, name: str) -> int:
        if name not in self._groups and len(self._groups) == _swarm.GROUPS_MAX:
            raise ConfigError(f"group {name!r}: {_swarm.GROUPS_MAX} are the bound")
        return self._groups.setdefault(name, len(self._groups))

    # --- time ---

    def run(self, seconds: float) -> None:
        """Push, join and read for so long. Blocks, without the GIL."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._loop.run(round(min(left, SLICE_S) * 1e6))

    def mark(self, name: str) -> None:
        """Begin a new window of that name; what was counted is kept under the name it had."""
        if name in self._windows or name == self._window:
            raise ConfigError(f"there is a window {name!r} already")
        self._loop.fold()
        self._keep_window()
        self._loop.begin_window()
        self._window = name

    def now(self) -> dict[str, int]:
        """How many are in which state now, over all groups: a line of progress."""
        told: dict[str, int] = {}
        for number in self._groups.values():
            for state, count in self._loop.states(number).items():
                told[state] = told.get(state, 0) + count
        return told

    def finish(self) -> Report:
        """Let the sources pause and everybody hear the rest, judge the end, hang up; the report.

        Blocks for at most twice the pace and a little.
        """
        if self._finished is None:
            self._loop.fold()  # before the pause makes gaps of its own
            if self.content == "frames" and self._sources:
                self._drain()
            self._keep_window()
            self._finished = self.report()
            self.close()
        return self._finished

    def _drain(self) -> None:
        def run_until(met: Callable[[], bool], bound_s: float, step_s: float) -> None:
            until = time.monotonic() + bound_s
            while not met() and time.monotonic() < until:
                self._loop.run(round(step_s * 1e6))

        self._loop.pause_sources()
        run_until(lambda: self._loop.sources_are_paused, PAUSE_S_MAX, 0.005)
        run_until(lambda: self._loop.is_even, max(DRAIN_S_MIN, 2 * self.pace_ms / 1000), 0.02)
        self._loop.judge_end()

    def close(self) -> None:
        """Hang up on everybody; may be called again."""
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what was found ---

    def report(self) -> Report:
        """What was found so far; after finish() the whole. Does not block."""
        if self._finished is not None:
            return self._finished
        windows = dict(self._windows)
        if self._window not in windows:
            windows[self._window] = self._told_window()
        sources = self._told_sources()
        reasons = reasons_of(windows.values(), self._loop.health()["no_room"])
        shares = [share for w in windows.values() for share in (w.busy_share, w.source_share)]
        return Report(
            valid=not reasons,
            reasons=reasons,
            faults=faults_of(
                list(windows.values()), sources, self._floods, self.pace_ms + self.tolerance_ms
            ),
            busy_share=max(shares),
            delay_ms=max(window.delay_ms for window in windows.values()),
            content=self.content,
            pace_ms=self.pace_ms,
            tolerance_ms=self.tolerance_ms,
            windows=windows,
            sources=sources,
        )

    def _keep_window(self) -> None:
        window = self._told_window()
        self._windows[window.name] = window
        self._cpu_s = time.process_time()
        self._source_busy_us = self._loop.health()["source_busy_us"]
        self._window_s = time.monotonic()

    def _told_window(self) -> Window:
        health = self._loop.health()
        run_us = max(1, health["run_us"])
        # that thread writes on between two runs, too
        source_busy_us = health["source_busy_us"] - self._source_busy_us
        delay_us = (
            health["tick_delay"]["max_us"],
            health["join_delay_us_max"],
            health["source_delay_us_max"],
        )
        return Window(
            name=self._window,
            seconds=health["run_us"] / 1e6,
            busy_share=health["busy_us"] / run_us,
            source_share=source_busy_us / 1e6 / (time.monotonic() - self._window_s),
            cpu_s=time.process_time() - self._cpu_s,
            delay_ms=max(delay_us) / 1000,
            groups={
                name: self._told_group(number, run_us) for name, number in self._groups.items()
            },
        )

    def _told_group(self, number: int, run_us: int) -> Group:
        return group(
            self._loop.tally(number),
            self._loop.states(number),
            _swarm.histogram_above_us,
            self._uneven(number, run_us) if self.content == "any" else 0,
        )

    def _uneven(self, number: int, run_us: int) -> int:
        """Of anybody's programme: who has heard less, or more, than the median by over a pace."""
        advances = self._loop.advances(number)
        if not advances:
            return 0
        middle = statistics.median(advances)
        bound = middle / run_us * (self.pace_ms + self.tolerance_ms) * 1000
        return sum(abs(advance - middle) > bound for advance in advances)

    def _told_sources(self) -> list[SourceReport]:
        return [
            SourceReport(
                mount=mount,
                state=told["state"],
                error=os.strerror(told["error"]) if told["error"] else "",
                frames=told["frames"],
                held_ms_max=told["held_us_max"] / 1000,
                titles_told=told["titles_told"],
                titles_refused=told["titles_refused"],
            )
            for mount, told in zip(self._mounts, self._loop.sources(), strict=True)
        ]


if __name__ == "__main__":
    from relay.swarm_command import main

    main(prog_name="python -m relay.swarm")
