"""What must hold while faults are at work, judged once a second.

Rules of this room
  1. Decisions only: numbers in, breaches out. Who reads the numbers is tools.walk.
  2. Each breach has the name of an invariant; one is told once for each node (and mount).
  3. Growth is judged by floors: the least value of a window against the least of the first one.
     What comes and goes (a connection that is dialled anew, a pool that fills) leaves no trace in
     a floor; what leaks does.
  4. A loss that a node has counted is a breach of `lost`, as every fault here leaves a way; one
     that no node has counted is a breach of `unreported`, and worse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tools.sources import FrameChecker

INVARIANTS = {
    "order": "a frame came after a later one",
    "repeat": "a frame came twice",
    "damage": "bytes that are no whole frame",
    "unreported": "a frame is missing that no node has counted as lost",
    "lost": "frames were given up although a way to them was left",
    "thrown_off": "a listener of a living node was ended",
    "silent": "nothing new for too long although a way was left",
    "died": "a process ended that nobody had ended",
    "descriptors": "the least number of open descriptors that are no sockets grows",
    "sockets": "the least number of sockets grows by more than children and listeners are",
    "threads": "the least number of threads grows",
    "trouble": "a node did not come back in time, or the walk itself failed",
    "memory": "the least memory (PSS) grows beyond the bound",
}
SILENT_S = 15.0
# Sockets: a window without a cut has two for each child more than one with a cut in it, and while
# connections are dialled anew both ends may hold an old one as well.
SLACK = {"descriptors": 6, "sockets": 30, "threads": 2, "memory": 24 << 20}


class Breach(NamedTuple):
    """An invariant that did not hold."""

    invariant: str
    who: str
    what: str


@dataclass
class Floor:
    """The least value in each window of a number that may swing, but not grow."""

    slack: int
    window_s: float
    base: int | None = None  # the least of the first whole window
    newest: int | None = None  # the least of the latest whole window
    _begin_s: float | None = None
    _least: int | None = None

    def take(self, now_s: float, value: int) -> int:
        """Take a value; returns by how much the floor has grown beyond the slack, else 0."""
        if self._begin_s is None:
            self._begin_s = now_s
        if now_s - self._begin_s >= self.window_s and self._least is not None:
            self.newest, self._least, self._begin_s = self._least, None, now_s
            self.base = self.newest if self.base is None else self.base
        self._least = value if self._least is None else min(value, self._least)
        if self.base is None or self.newest is None:
            return 0
        grown = self.newest - self.base
        return grown if grown > self.slack else 0


class Heard(NamedTuple):
    """One listener at one look."""

    who: str  # node and mount
    alive: bool
    checker: FrameChecker


@dataclass
class Judge:
    """Remembers what is needed from one look to the next."""

    window_s: float
    breaches: list[Breach] = field(default_factory=list)
    _told: set[tuple[str, str]] = field(default_factory=set)
    _floors: dict[tuple[str, int, str], Floor] = field(default_factory=dict)
    _frames: dict[int, tuple[int, float]] = field(default_factory=dict)  # listener: frames, since
    _missing: dict[int, int] = field(default_factory=dict)  # listener: at the look before

    def _tell(self, invariant: str, who: str, what: str) -> None:
        if (invariant, who) not in self._told:
            self._told.add((invariant, who))
            self.breaches.append(Breach(invariant, who, what))

    def process(self, now_s: float, who: str, pid: int, told: dict[str, int]) -> None:
        """Judge the descriptors, threads and memory of one life of a process."""
        for name, value in told.items():
            floor = self._floors.setdefault((who, pid, name), Floor(SLACK[name], self.window_s))
            if floor.take(now_s, value):
                self._tell(name, who, f"from {floor.base} to {floor.newest} (pid {pid})")

    def died(self, who: str, status: int | None) -> None:
        """A process has ended by itself."""
        self._tell("died", who, f"exit status {status}")

    def lost(self, who: str, frames: int) -> None:
        """Judge what a node has counted as lost of one stream."""
        if frames:
            self._tell("lost", who, f"{frames} frames")

    def listener(self, now_s: float, heard: Heard, reported: int | None) -> None:
        """Judge one listener.

        Args:
            now_s: the time.
            heard: the listener.
            reported: frames that its node has counted as lost of this stream, up to now; None:
                it does not answer just now.
        """
        checker, number = heard.checker, id(heard.checker)
        if not heard.alive:
            self._tell("thrown_off", heard.who, f"after {checker.frames} frames")
        if checker.late:
            self._tell("order", heard.who, f"{checker.late} frames")
        if checker.repeated:
            self._tell("repeat", heard.who, f"{checker.repeated} frames")
        if checker.damaged_bytes:
            self._tell("damage", heard.who, f"{checker.damaged_bytes} B")
        # counters are up to half a second old: what was missing at the look before must be in them
        before = self._missing.get(number, 0)
        if reported is not None and before > reported:
            self._tell("unreported", heard.who, f"{before} missing, {reported} reported")
        self._missing[number] = checker.missing
        frames, since_s = self._frames.get(number, (-1, now_s))
        if checker.frames != frames:
            self._frames[number] = (checker.frames, now_s)
        elif now_s - since_s > SILENT_S:
            self._tell("silent", heard.who, f"nothing for {now_s - since_s:.0f} s")
