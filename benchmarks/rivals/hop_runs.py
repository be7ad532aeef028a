"""Runs over a hop: what was carried, how fast, and what its threads cost; and the plain loop's.

Rules of this room
  1. A run is some laps: a lap is pushed while the backbone's thread is held, and the clock runs
     from its release until the last child's head has passed it. The plain loop's clock runs from
     its first send until its last child has the last message.
  2. CPU is that of all threads but those that push and watch (the main threads of our ends); of
     the plain loop that of all threads: its main threads are its ends.
  3. Both ends are processes on a core each. Work of others on those cores makes a run not valid.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .ends import End, Keyring, Loop, record
from .measure import cost_between, free_port, idle_s, softirq_s, thread_times
from .servers import ServerError

FRAME_BYTES = 192
RING_BYTES = 64 << 20
BEFORE = 20_000  # frames that are there before the first lap: the rings get their size
FRAME_US = 100  # so short that 20 s of it are as many bytes as RING_BYTES, nearly
WARM_LAPS = 3  # pages are touched for the first time, sockets get their buffers
IO = "ZMQbg"  # the names of libzmq's own threads begin so


@dataclass
class HopRun:
    """One run of one contestant."""

    name: str
    valid: bool = True
    why: str = ""
    broken: bool = False  # something failed, and not for lack of CPU
    values: dict[str, float] = field(default_factory=dict)
    threads_s: dict[str, float] = field(default_factory=dict)  # CPU by the names of threads

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return dict(self.__dict__)

    @property
    def cpu_s(self) -> float:
        """CPU of all threads that count."""
        return sum(self.threads_s.values())


def outcome(run: HopRun) -> str:
    """Say in a few words how a run went."""
    if not run.valid:
        return f"NOT VALID: {run.why}"
    shown = {name: value for name, value in run.values.items() if not name.endswith("_sum")}
    return ", ".join(f"{name} {value:,.3g}" for name, value in shown.items())


class Watch:
    """A span of time in the life of some processes: their CPU, and who else used their cores."""

    def __init__(self, cores: Mapping[int, Sequence[int]]) -> None:
        """cores: the processes on each; our own counts where the load is.

        What the kernel carries there (softirq) is what these send: it is no other work.
        """
        self.cores = cores
        self.own = {core: idle_s(core) + softirq_s(core) for core in cores}
        self.before = {pid: thread_times(pid) for pids in self.cores.values() for pid in pids}
        self.begin = time.monotonic()

    def close(self) -> tuple[dict[int, dict[str, float]], float]:
        """(CPU by thread of each process, the largest share of a core that others had)."""
        seconds = time.monotonic() - self.begin
        foreign, threads = 0.0, {}
        for core, pids in self.cores.items():
            busy = seconds - (idle_s(core) + softirq_s(core) - self.own[core])
            for pid in pids:
                cost = cost_between(self.before[pid], thread_times(pid))
                threads[pid] = cost.threads_s
                busy -= cost.cpu_s
            foreign = max(foreign, busy / seconds)
        return threads, foreign


def main_thread_s(pid: int) -> float:
    """CPU of the first thread of a process so far."""
    return thread_times(pid)[pid].run_ns / 1e9


class Hop:
    """Two ends, or one and many, of one stream, as two nodes have them."""

    def __init__(
        self,
        upper_core: int,
        lower_core: int,
        *,
        children: int = 1,
        keys: Keyring | None = None,
        ring_bytes: int = RING_BYTES,
        frame_us: int = FRAME_US,
        before: int = BEFORE,
    ) -> None:
        self.cores, self.children, self.keys = (upper_core, lower_core), children, keys
        self.sizes: dict[str, Any] = {
            "frame_bytes": FRAME_BYTES,
            "duration_us": frame_us,
            "ring_bytes_max": ring_bytes,
            "keys": keys,
        }
        self.head = before
        self.stack = contextlib.ExitStack()
        self.lower: list[End] = []
        self.joined = 0  # frames that were repaired, or not to be had, when children joined

    def __enter__(self) -> Hop:
        with self.stack:
            self.upper = self.stack.enter_context(End(self.cores[0], **self.sizes))
            up = [self.upper.address]
            ends = [End(self.cores[1], upstreams=up, **self.sizes) for _ in range(self.children)]
            self.lower = [self.stack.enter_context(end) for end in ends]
            self.upper.ask("push", frames=self.head)
            for end in self.lower:
                end.ask("follow", sequence=self.head)
            states = [end.ask("state") for end in self.lower]
            self.joined = sum(state["lost"] + state["repaired"] for state in states)
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def lap(self, frames: int) -> float:
        """Carry one lap; how long it took."""
        self.head += frames
        for end in self.lower:
            end.begin("reach", sequence=self.head)
        for end in self.lower:
            end.answer()  # it waits
        begin_us = self.upper.ask("lap", frames=frames)["at_us"]
        end_us = max(end.answer()["at_us"] for end in self.lower)
        return max(float(end_us - begin_us), 1.0) / 1e6

    def run(self, name: str, frames: int, laps: int, foreign_share_max: float) -> HopRun:
        """Some laps; the last one's bytes are compared when the clock has stopped."""
        run = HopRun(name)
        try:
            before = [main_thread_s(end.pid) for end in (self.upper, *self.lower)]
            watch = Watch({
                self.cores[0]: [self.upper.pid],
                self.cores[1]: [os.getpid(), *(end.pid for end in self.lower)],
            })  # fmt: skip
            seconds = sum(self.lap(frames) for _ in range(laps))
            threads, foreign = watch.close()
            after = [main_thread_s(end.pid) for end in (self.upper, *self.lower)]
            self.check(run, frames)
        except ServerError as error:
            run.valid, run.broken, run.why = False, True, str(error)
            return run
        for end, own in zip(
            (self.upper, *self.lower), (b - a for a, b in zip(before, after, strict=True)),
            strict=True,
        ):  # fmt: skip
            side = "upper" if end is self.upper else "lower"
            others = sum(threads[end.pid].values()) - own
            io = sum(s for thread, s in threads[end.pid].items() if thread.startswith(IO))
            for part, value in (("I/O", io), ("backbone", others - io)):
                word = f"{side} {part}"
                run.threads_s[word] = run.threads_s.get(word, 0.0) + value
        judge(run, foreign, foreign_share_max)
        rate(run, frames * laps * self.children, seconds)
        return run

    def check(self, run: HopRun, frames: int) -> None:
        """What of the last lap is here is what was pushed, every frame of it, at each child."""
        first = self.head - frames
        pushed = self.upper.ask("sum", first=first, end=self.head)
        states = [end.ask("state") for end in self.lower]
        gaps = sum(state["lost"] + state["repaired"] for state in states)
        found = [end.ask("sum", first=first, end=self.head) for end in self.lower]
        run.values["lost"] = gaps - self.joined
        run.values["sums_unequal"] = sum(one != pushed for one in found)
        run.values["sums_unequal"] += pushed["frames"] != frames
        run.values["missing"] = sum(self.head - state["head_sequence"] for state in states)

    def recorded(self, frames: int, laps: int) -> list[list[bytes]]:
        """The messages of some laps, as they are on the wire."""
        return [
            record(self.upper.address, "/0", frames, partial(self.lap, frames)) for _ in range(laps)
        ]


def judge(run: HopRun, foreign: float, foreign_share_max: float) -> None:
    """Refuse a run whose cores had other work."""
    run.values["foreign_share"] = foreign
    if foreign > foreign_share_max:
        run.valid = False
        run.why = f"a core was busy with other work {foreign:.0%} of the time"


def rate(run: HopRun, deliveries: int, seconds: float) -> None:
    """Frames delivered per second and CPU for each of them."""
    run.values["frames_per_s"] = deliveries / seconds
    run.values["cpu_ns"] = run.cpu_s / deliveries * 1e9


@dataclass(frozen=True)
class Messages:
    """What the plain loop sends: a file, and how many of its messages are a lap."""

    path: Path
    lap: int
    laps: int
    lap_bytes: tuple[int, ...]  # of each lap, for what came
    lap_sums: tuple[int, ...]


class Plain:
    """The plain loop: a process for each end, or one context for both."""

    def __init__(
        self, upper_core: int, lower_core: int, messages: Messages, *, children: int = 1,
        one_context: bool = False, keep: bool = False, nodrop: bool = False,
    ) -> None:  # fmt: skip
        self.cores, self.messages, self.children = (upper_core, lower_core), messages, children
        self.one_context, self.keep, self.nodrop = one_context, keep, nodrop
        self.stack = contextlib.ExitStack()
        self.upper: Loop | None = None
        self.lower: list[Loop] = []
        self.laps = 0

    def loop(self, core: int, role: str, port: int, number: int = 0) -> Loop:
        """One process of it."""
        return Loop(
            core, role, self.messages.path, port=port, lap=self.messages.lap, number=number,
            children=self.children, keep=int(self.keep), nodrop=int(self.nodrop),
        )  # fmt: skip

    def __enter__(self) -> Plain:
        with self.stack:
            port = free_port()
            if self.one_context:
                with on_both(self.cores):
                    both = self.stack.enter_context(self.loop(-1, "both", port))
                self.lower, told = [both], both
            else:
                told = self.stack.enter_context(self.loop(self.cores[0], "send", port))
                self.upper = told
                for number in range(self.children):
                    end = self.loop(self.cores[1], "receive", port, number)
                    self.lower.append(self.stack.enter_context(end))
            for _ in ("bound", "ready"):
                told.hear()
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def lap(self) -> tuple[float, int]:
        """(seconds, deliveries that were not what was sent) of one lap."""
        number = self.laps % self.messages.laps
        word = f"lap {number * self.messages.lap}"
        self.laps += 1
        for end in self.lower:
            end.say(word)
        if self.upper is not None:
            self.upper.say(word)
            (begin_us,) = self.upper.numbers()
        told = [end.numbers() for end in self.lower]
        if self.upper is None:
            (begin_us,) = self.lower[0].numbers()
        wrong = sum(size != self.messages.lap_bytes[number] for _, size, _ in told)
        if self.keep:
            wrong += sum(total != self.messages.lap_sums[number] for _, _, total in told)
        return max(float(max(one[0] for one in told) - begin_us), 1.0) / 1e6, wrong

    def run(self, name: str, frames: int, laps: int, foreign_share_max: float) -> HopRun:
        """Some laps of `frames` frames each."""
        run = HopRun(name)
        pids = [end.pid for end in self.lower]
        cores = {self.cores[0]: [self.upper.pid] if self.upper else pids,
                 self.cores[1]: [os.getpid(), *(pids if self.upper else ())]}  # fmt: skip
        try:
            watch = Watch(cores)
            told = [self.lap() for _ in range(laps)]
            threads, foreign = watch.close()
        except ServerError as error:
            run.valid, run.broken, run.why = False, True, str(error)
            return run
        run.values["sums_unequal"] = sum(wrong for _, wrong in told)
        for side, ends in (("upper", [self.upper] if self.upper else []), ("lower", self.lower)):
            run.threads_s[side] = sum(sum(threads[end.pid].values()) for end in ends)
        if self.upper is not None:  # with one context nobody can tell whose core it was
            judge(run, foreign, foreign_share_max)
        rate(run, frames * laps * self.children, sum(seconds for seconds, _ in told))
        return run


@contextlib.contextmanager
def on_both(cores: tuple[int, int]) -> Iterator[None]:
    """Run what is started here on either core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
