"""A crowd in front of a server: the swarm on its own core, and the server's cost beside it.

Rules of this room
  1. Time passes only in `run`; windows of the swarm and of the server's cost open together.
  2. What the swarm calls NOT VALID leaves this room as `Run.valid` being false, with the reason; so
     does a window in which the server had to share its core.
  3. This room converts the swarm's report; it judges no goal.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from relay.swarm import Swarm
from relay.swarm_report import BUSY_WINDOW_S_MIN, Group, Report

from .measure import Cost, Window, socket_bytes
from .servers import PASSWORD, Server, ServerError

ADDRESSES = 250  # a real crowd comes from many: no address reaches `heads_per_address_max`
SAMPLE = 200
TOLERANCE_MS = 300  # beyond the pace, before a listener's bytes are not the head's advance
LISTENERS_MAX = 19_500  # and sources, within 20,000 descriptors
FIRST_MEDIA_S = 0.5
LOOKS = 6  # at the memory of sockets, in one window


@dataclass
class Heard:
    """What one group of listeners met within one window; times in ms."""

    joined: int = 0
    refused: int = 0  # with a whole 503
    failed: int = 0  # no connection, a broken reply, a reset, another reply than was due
    ended: int = 0  # end of file while it should play
    syn_repeated: int = 0
    settled_s: float = 0.0  # from the first connect() to the last first audio or whole refusal
    first_audio_p50_ms: float = 0.0
    first_audio_p99_ms: float = 0.0
    first_audio_max_ms: float = 0.0
    lateness_p50_ms: float = 0.0
    lateness_p99_ms: float = 0.0
    gap_longest_ms: float = 0.0
    frames_checked: int = 0
    frames_wrong: int = 0  # lost, repeated or damaged
    skips: int = 0
    skips_allowed: int = 0  # of those who lagged on our will
    behind: int = 0  # listeners whose bytes were not the head's advance, at any check
    unequal: int = 0  # … and at the end, when all had time to hear it
    titles_wrong: int = 0


@dataclass
class Run:
    """One server with one crowd."""

    server: str
    valid: bool = True
    why: str = ""  # it is not valid
    broken: bool = False  # … because a server or a source failed, and not for lack of CPU
    busy_share: float = 0.0  # of the swarm
    delay_ms: float = 0.0  # of the swarm's own turns, the longest
    listeners: int = 0  # asked for, together
    crowds: dict[str, int] = field(default_factory=dict)  # those connected at a window's end
    costs: dict[str, Cost] = field(default_factory=dict)  # by window
    heard: dict[str, dict[str, Heard]] = field(default_factory=dict)  # by group and window
    faults: list[str] = field(default_factory=list)  # of the server, in the swarm's words
    numbers: dict[str, float] = field(default_factory=dict)  # what the figure adds

    def cpu_us(self, window: str = "window") -> float:
        """CPU per listener-second of a window, in µs."""
        cost = self.costs[window]
        return cost.cpu_s / cost.window_s / max(1, self.crowds[window]) * 1e6

    def group(self, group: str = "incumbents", window: str = "window") -> Heard:
        """What a group heard in a window; nothing, when nobody of it was there."""
        return self.heard.get(group, {}).get(window, Heard())

    def total(self, count: str, group: str = "incumbents") -> int:
        """One count of a group, in all windows together."""
        return sum(getattr(heard, count) for heard in self.heard.get(group, {}).values())

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def read_group(told: Group) -> Heard:
    """Convert one group of one window."""
    refused = told.refused.get("503", 0)
    odd = sum(told.refused.values()) - refused + told.cut + told.unclosed + told.foreign
    return Heard(
        joined=told.joined,
        refused=refused,
        failed=sum(told.failed.values()) + told.resets + told.admitted + odd,
        ended=told.ended,
        syn_repeated=told.syn_repeated,
        settled_s=told.settled_s,
        first_audio_p50_ms=told.first_audio_ms.p50,
        first_audio_p99_ms=told.first_audio_ms.p99,
        first_audio_max_ms=told.first_audio_ms.max,
        lateness_p50_ms=told.lateness_ms.p50,
        lateness_p99_ms=told.lateness_ms.p99,
        gap_longest_ms=told.longest_gap_ms,
        frames_checked=told.frames_checked,
        frames_wrong=told.frames_lost + told.frames_repeated + told.frames_damaged,
        skips=told.skips,
        skips_allowed=told.skips_allowed,
        behind=told.behind,
        unequal=told.unequal,
        titles_wrong=told.titles_wrong,
    )


def read_report(run: Run, report: Report) -> Run:
    """Convert the swarm's report into the run; what it says of itself decides `valid`."""
    run.valid, run.why = report.valid, "; ".join(report.reasons)
    run.delay_ms = report.delay_ms
    # As the swarm judges itself: the share of a moment says nothing.
    long = [window for window in report.windows.values() if window.seconds >= BUSY_WINDOW_S_MIN]
    run.busy_share = max((window.busy_share for window in long), default=0.0)
    run.faults = report.faults
    for name in run.costs:
        groups = report.windows[name].groups.values()
        run.crowds[name] = sum(told.playing + told.stalled for told in groups)
    for name, window in report.windows.items():
        for group, told in window.groups.items():
            run.heard.setdefault(group, {})[name] = read_group(told)
    return run


def judge_core(run: Run, foreign_share_max: float) -> Run:
    """Refuse a run whose server had to share its core: its gaps are somebody else's."""
    for name, cost in run.costs.items():
        if cost.foreign_share > foreign_share_max:
            run.valid = False
            told = f"{name}: the server's core was busy with other work {cost.foreign_share:.0%}"
            run.why = "; ".join(filter(None, [run.why, f"{told} of the time"]))
    return run


class Crowd:
    """Listeners and sources before one server; `with Crowd(server) as crowd`, then `finish()`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.run_told = Run(server.name)
        self.numbers = self.run_told.numbers
        self.mounts: tuple[str, ...] = ("/live",)
        self.swarm = Swarm(
            server.port,
            addresses=ADDRESSES,
            sample=SAMPLE,
            pace_ms=server.pace_ms,
            content=server.content,
            tolerance_ms=TOLERANCE_MS,
            tail_bytes=server.tail_bytes,
            listeners_max=LISTENERS_MAX,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.swarm.close()

    def open(self, mounts: int = 1, title_every_s: float = 0.0) -> None:
        """Let sources begin, where the server takes any."""
        if self.server.content == "any":
            return
        if mounts > 1:
            self.mounts = tuple(f"/live{number}" for number in range(mounts))
        for mount in self.mounts:
            self.swarm.source(mount, password=PASSWORD, title_every_s=title_every_s)
        self.run(FIRST_MEDIA_S)

    def join(
        self, count: int, over_s: float, group: str = "incumbents", icy_share: float = 0.0
    ) -> None:
        """Schedule joins from now on, evenly over so long and over the mounts."""
        self.run_told.listeners += count
        self.swarm.join(count, over_s, mounts=self.mounts, icy_share=icy_share, group=group)

    def flood(self, count: int, over_s: float) -> None:
        """Schedule connections that the server is expected to refuse."""
        self.swarm.flood(count, over_s, mount=self.mounts[0], group="flood")

    def stall(self, count: int, group: str) -> None:
        """Let so many of a group stop reading from now on."""
        self.swarm.stall(count, group=group)

    def lag(self, count: int, group: str) -> None:
        """Let so many of a group stop reading for a while."""
        if self.swarm.lag(count, group=group) != count:
            raise ServerError(f"fewer than {count} of {group} were there to lag")

    def read_on(self, group: str) -> None:
        """Let them read on."""
        self.swarm.read_on(group=group)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.swarm.run(seconds)

    def window(self, name: str, seconds: float) -> None:
        """Let time pass in a window of its own, and tell what it cost the server."""
        self.swarm.mark(name)
        window = Window(self.server.pid, self.server.core)
        self.run(seconds)
        self.run_told.costs[name] = window.close()
        self.swarm.mark(f"after {name}")

    @contextlib.contextmanager
    def watching_sockets(self, seconds: float, stalled: int) -> Iterator[None]:
        """Look at the memory of the server's sockets now and then; the most of it counts.

        The last look is over before the seconds are: to wait for it would keep the swarm waiting.
        """
        looks: list[list[int]] = []
        done = threading.Event()

        def look() -> None:
            for _ in range(LOOKS):
                if done.wait(seconds / (LOOKS + 1)):
                    break
                looks.append(sorted(socket_bytes(self.server.port)))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
        held = [one for one in looks if one]
        self.numbers["socket_looks"] = len(held)
        self.numbers["socket_bytes_max"] = max(one[-1] for one in held)
        self.numbers["socket_bytes_stalled"] = max(
            statistics.median(one[-stalled:]) for one in held
        )

    def finish(self) -> Run:
        """Let everybody hear the end; returns the run with the swarm's verdict on itself."""
        self.swarm.finish()
        return read_report(self.run_told, self.swarm.report())
