"""Gaps that a listener can hear: found in what the engine recorded, each once, with its cause.

Rules of this room
  1. No I/O and no clock: `GapBook.see` is handed records, heads and the time, and returns the gaps
     that are over. `cause_of` decides whose fault one is, from evidence alone.
  2. What belongs together is one gap: pieces of one stream less than MERGE_US apart. It is told
     once, SETTLE_US after its end. Skips of listeners are a gap of their own.
  3. Bounds: GAPS_MAX gaps and a few numbers a stream, of streams that the node knows; a run of
     skips is told after SKIPS_US at the latest.
  4. A stream that brings nothing is a gap once that lasts longer than the burst, which is what a
     player holds. It is looked at twice a second, so such a duration is true to half a second. A
     look that comes late proves nothing: the engine goes on without us. That the node itself
     stood still, the backbone's thread tells.
  5. An epoch that ended and goes on is silence until then. Whoever writes records both; should the
     second be missing, a head that moves says as much. One that gives way to a newer one need not
     have ended. The silence began before that, where looks have not seen the head move since.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from relay import recorder
from relay.recorder import Record

Cause = Literal["source", "hop", "own overload", "listener"]
Kind = Literal["lost", "epoch", "silence", "skip"]

MERGE_US = 1_000_000
SETTLE_US = 1_500_000
SKIPS_US = 10_000_000
GAPS_MAX = 16
PARENTS_MAX = 65536
BUSY_PERMILLE = 900  # a shard that works so much serves nobody in time
PAUSE_US = 1_000_000  # of the backbone's thread: the node stood still

Head = tuple[int, str, int, int, int, bool, bool, int, int]
"""As `Engine.heads` gives it: key, mount, epoch, head_sequence, head_media_us, source_up, written
here, burst_ms, listeners."""


class Evidence(NamedTuple):
    """What is known of a piece of audio that was not heard."""

    kind: Kind
    paused: bool = False  # this node stood still meanwhile
    written_here: bool = False
    upstream_lost: bool = False  # the one that fed the stream was away meanwhile
    busy_permille: int = 0  # skips: of the shard
    put_off: bool = False  # skips: the shard had more to do than it could


def cause_of(evidence: Evidence) -> Cause:
    """Whose fault it is.

    `source` on a node below the origin says that the upstream was there and sent no more: the
    source, or a hop further up; the node there tells which.
    """
    if evidence.kind == "skip":
        busy = evidence.busy_permille >= BUSY_PERMILLE
        return "own overload" if busy or evidence.put_off or evidence.paused else "listener"
    if evidence.paused:
        return "own overload"
    if evidence.written_here:
        return "source"
    return "hop" if evidence.kind == "lost" or evidence.upstream_lost else "source"


_STRENGTH: dict[Cause, int] = {"listener": 0, "source": 1, "hop": 2, "own overload": 3}


@dataclass(slots=True)
class Gap:
    """One gap of one stream; times µs, `wall_us` by the wall clock."""

    mount: str
    key: int
    begin_us: int
    end_us: int
    wall_us: int
    cause: Cause
    parent: int = recorder.NOBODY  # of a hop
    why: str = ""
    media_us: int = 0  # of frames that were lost or skipped
    frames: int = 0
    skips: int = 0
    listeners: int = 0

    @property
    def duration_us(self) -> int:
        """What is missing, or how long nothing came: the longer of the two."""
        return max(self.end_us - self.begin_us, self.media_us)

    def take(self, other: Gap) -> None:
        """A further piece of the same gap; the stronger evidence names the cause."""
        self.end_us = max(self.end_us, other.end_us)
        if other.begin_us < self.begin_us:
            self.begin_us, self.wall_us = other.begin_us, other.wall_us
        if _STRENGTH[other.cause] > _STRENGTH[self.cause]:
            self.cause, self.parent, self.why = other.cause, other.parent, other.why
        self.frames += other.frames
        self.skips += other.skips
        # one listener's skip is as long as the longest; lost frames add up
        self.media_us = (
            max(self.media_us, other.media_us) if other.skips else self.media_us + other.media_us
        )
        self.listeners = max(self.listeners, other.listeners)

    def document(self, upstreams: Sequence[str]) -> dict[str, Any]:
        """One entry of `gaps` in /api/v1/streams."""
        hop = upstreams[self.parent] if self.parent < len(upstreams) else None
        return {
            "at_ms": self.wall_us // 1000,
            "duration_ms": self.duration_us // 1000,
            "cause": self.cause,
            "hop": hop if self.cause == "hop" else None,
            "why": self.why,
            "frames": self.frames,
            "skips": self.skips,
            "listeners": self.listeners,
        }


@dataclass(slots=True)
class _Stream:
    """What is remembered of one stream."""

    mount: str
    at: tuple[int, int]  # epoch and sequence of its head …
    moved_us: int  # … and since when
    moved_wall_us: int
    is_here: bool = False
    listeners: int = 0
    parent: int = recorder.NOBODY
    silent: bool = False  # longer than the burst, and it goes on
    lost_meanwhile: bool = False  # its upstream was away since the head moved
    epoch: int = 0  # the newest that is known
    still: bool = False  # the last look has not seen the head move, though it might have
    burst_us: int = 0
    ended: Record | None = None  # the epoch that is over, while no other has begun …
    ended_seen: bool = False  # … and the heads of this look are younger than its record
    open: dict[str, Gap] = field(default_factory=dict)  # by "stream" and "skips"
    gaps: deque[Gap] = field(default_factory=lambda: deque(maxlen=GAPS_MAX))
    totals: dict[Cause, int] = field(default_factory=dict)

    def since(self, one: Record) -> Record:
        """This record, from when on nothing had come."""
        if not self.still:
            return one
        return one._replace(at_us=self.moved_us, wall_us=self.moved_wall_us)


class GapBook:
    """The gaps of one node."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}
        self._parents: dict[int, int] = {}  # who feeds which stream
        self._down: set[int] = set()  # upstreams that are lost now
        self._early: dict[int, Record] = {}  # epochs that ended before their stream was looked at
        self._pause_us = 0  # how long this node stood still, found at this look
        self._paused_until_us = 0  # what ends before this may be our own fault

    def gaps(self, key: int) -> list[Gap]:
        """The last gaps of a stream, oldest first; what is still going on is not in it."""
        known = self._streams.get(key)
        return [] if known is None else list(known.gaps)

    def totals(self, key: int) -> dict[Cause, int]:
        """How many gaps a stream had, by cause."""
        known = self._streams.get(key)
        return {} if known is None else dict(known.totals)

    def see(
        self, now_us: int, wall_us: int, heads: Iterable[Head], records: Iterable[Record]
    ) -> list[Gap]:
        """Look once; to be called about twice a second.

        Args:
            now_us: monotonic.
            wall_us: the same moment by the wall clock.
            heads: of all streams that have a ring.
            records: what was recorded since the last look.

        Returns:
            the gaps that are over and were not returned before.
        """
        self._pause_us = 0
        self._early.clear()
        for one in sorted(records, key=lambda one: one.at_us):
            self._heard(one)
        seen = set()
        for head in heads:
            seen.add(head[0])
            self._look(head, now_us, wall_us)
        done = []
        for key, known in [*self._streams.items()]:
            done += self._settle(known, now_us)
            if key not in seen and not known.open:
                del self._streams[key]
        if len(self._parents) > PARENTS_MAX:
            self._parents = {k: v for k, v in self._parents.items() if k in self._streams}
        return done

    # --- records ---

    def _heard(self, one: Record) -> None:
        if one.kind == 3:  # upstream_lost
            self._down.add(one.parent)
            for fed in self._streams.values():
                fed.lost_meanwhile |= fed.parent == one.parent
        elif one.kind == 2:  # upstream_up
            self._down.discard(one.parent)
        elif one.kind == recorder.PAUSED and one.a >= PAUSE_US:
            self._paused_until_us = max(self._paused_until_us, one.at_us)
            self._pause_us = max(self._pause_us, one.a)
        elif one.kind == recorder.SWITCH:  # the first comes before there is a ring
            self._parents[one.stream] = one.parent
        known = self._streams.get(one.stream)
        if known is None:
            if one.kind == recorder.EPOCH_ENDED:
                self._early[one.stream] = one
            elif one.kind == recorder.EPOCH_BEGUN:
                self._early.pop(one.stream, None)
            return
        if one.kind == recorder.SWITCH:
            known.parent = one.parent
        elif one.kind == recorder.LOST:
            self._add(known, one, one.at_us, "lost", one.reason_name or "", one.b, one.c)
        elif one.kind == recorder.EPOCH_ENDED:
            known.ended, known.ended_seen = known.since(one), False
        elif one.kind == recorder.EPOCH_BEGUN:
            if known.ended is None and one.a > known.epoch:
                known.ended = known.since(one)._replace(a=known.epoch)
            self._begun(known, one.a, one.at_us, one.wall_us)
        elif one.kind == recorder.SKIP and one.reason == 0:
            self._skipped(known, one)

    def _begun(self, known: _Stream, epoch: int, at_us: int, wall_us: int) -> None:
        """What had ended goes on, in a new epoch or in the same one."""
        if known.ended is None:
            return
        ended, known.ended = known.ended, None
        known.epoch = epoch
        if epoch != ended.a:
            self._add(known, ended, at_us, "epoch", "a new epoch")
        elif at_us - ended.at_us > known.burst_us:
            self._add(known, ended, at_us, "epoch", "the epoch had ended, and goes on")
        known.silent = known.still = False
        known.moved_us, known.moved_wall_us = at_us, wall_us

    def _add(
        self, known: _Stream, one: Record, end_us: int, kind: Kind, why: str,
        frames: int = 0, media_us: int = 0,
    ) -> None:  # fmt: skip
        paused = self._paused_until_us >= one.at_us > 0
        cause = cause_of(Evidence(kind, paused, known.is_here, known.lost_meanwhile))
        parent = one.parent if kind == "lost" else known.parent
        gap = Gap(
            known.mount, one.stream, one.at_us, end_us, one.wall_us, cause, parent, why,
            media_us, frames, 0, known.listeners,
        )  # fmt: skip
        self._join(known, "stream", gap)

    def _skipped(self, known: _Stream, one: Record) -> None:
        paused = self._paused_until_us >= one.at_us - SKIPS_US and self._paused_until_us > 0
        evidence = Evidence("skip", paused, busy_permille=one.a, put_off=one.c != 0)
        gap = Gap(
            known.mount, one.stream, one.at_us, one.at_us, one.wall_us, cause_of(evidence),
            recorder.NOBODY, f"shard {one.a} ‰ busy", one.b, 0, one.times, known.listeners,
        )  # fmt: skip
        self._join(known, "skips", gap)

    @staticmethod
    def _join(known: _Stream, group: str, gap: Gap) -> None:
        before = known.open.get(group)
        if before is not None and gap.begin_us <= before.end_us + MERGE_US:
            before.take(gap)
            return
        if before is not None:  # that one is over: told when it has settled
            known.open[f"{group} of {before.begin_us}"] = before
        known.open[group] = gap

    # --- heads ---

    def _look(self, head: Head, now_us: int, wall_us: int) -> None:
        key, mount, epoch, sequence, _, source_up, is_here, burst_ms, listeners = head
        if key not in self._streams:
            self._streams[key] = _Stream(mount, (epoch, sequence), now_us, wall_us)
            self._streams[key].parent = self._parents.get(key, recorder.NOBODY)
            self._streams[key].ended = self._early.get(key)
        known = self._streams[key]
        known.is_here, known.listeners, known.burst_us = is_here, listeners, burst_ms * 1000
        if known.ended_seen and source_up and (epoch, sequence) != known.at:
            self._begun(known, epoch, now_us, wall_us)
        known.ended_seen = known.ended is not None
        known.epoch = max(known.epoch, epoch)  # the head may have been read before the record
        waits = source_up and known.ended is None
        known.lost_meanwhile |= waits and known.parent in self._down
        moved = (epoch, sequence) != known.at
        if waits and not moved and now_us - known.moved_us > burst_ms * 1000:
            known.silent = True
            self._silence(known, key, now_us)
        elif waits and moved and (known.silent or self._pause_us > burst_ms * 1000):
            # it is over; or frames came at once, after we stood still and nobody could look
            self._silence(known, key, now_us)
        if moved or not waits:
            known.at = (epoch, sequence)
            known.moved_us, known.moved_wall_us = now_us, wall_us
            known.silent = known.lost_meanwhile = False
        known.still = waits and not moved

    def _silence(self, known: _Stream, key: int, now_us: int) -> None:
        paused = self._paused_until_us > known.moved_us
        cause = cause_of(Evidence("silence", paused, known.is_here, known.lost_meanwhile))
        gap = Gap(
            known.mount, key, known.moved_us, now_us, known.moved_wall_us, cause, known.parent,
            "nothing came", 0, 0, 0, known.listeners,
        )  # fmt: skip
        self._join(known, "stream", gap)

    def _settle(self, known: _Stream, now_us: int) -> list[Gap]:
        done = []
        for group, gap in [*known.open.items()]:
            goes_on = now_us - gap.end_us < SETTLE_US or (group == "stream" and known.silent)
            if goes_on and not (group == "skips" and now_us - gap.begin_us > SKIPS_US):
                continue
            del known.open[group]
            known.gaps.append(gap)
            known.totals[gap.cause] = known.totals.get(gap.cause, 0) + 1
            done.append(gap)
        return done
