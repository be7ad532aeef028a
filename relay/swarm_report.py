"""What a swarm has found out, per window and group, and whether it is to be believed.

Rules of this room
  1. Numbers in, a tree of structs out: no sockets, no clock, nothing compiled.
  2. `reasons` say why the swarm itself was too busy or too late to judge (then nothing counts),
     `faults` what the server did wrong. Both name window, group and number.
  3. Times are milliseconds. A quantile is told at most an eighth too high, never too low.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

BUSY_SHARE_MAX = 0.8
DELAY_MS_MAX = 50.0
BUSY_WINDOW_S_MIN = 1.0  # a share of less time than this is noise
QUIET_S_MAX = 10.0  # for a first byte


class Histogram(msgspec.Struct, frozen=True):
    """Durations in ms. `buckets`: pairs of (less than so many ms, how many), the filled ones."""

    total: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0
    buckets: list[tuple[float, int]] = []


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One group of listeners in one window."""

    asked: int  # connect() was called
    joined: int  # heard their first audio
    refused: dict[str, int]  # whole replies, by status
    failed: dict[str, int]  # by errno
    admitted: int  # of a flood: let in where a refusal was expected
    cut: int  # replies that ended early, or were no HTTP
    unclosed: int  # refusals that the server did not close within 2 s
    foreign: int  # heard another programme than ours
    resets: int
    ended: int  # EOF while it should play
    syn_repeated: int
    head_repeated: int
    playing: int  # at the end of the window
    waiting: int  # asked, and without audio yet
    stalled: int  # stopped reading on our will, and are still connected
    stalled_ended: int  # … and were seen to be ended; no FIN comes through a shut window
    lagging: int  # stopped reading on our will, and will read on
    behind: int  # at any check: bytes are not the head's advance within pace and tolerance
    unequal: int  # at the end: bytes are not the head's advance
    missing_bytes: int
    surplus_bytes: int
    frames_checked: int
    frames_lost: int
    frames_repeated: int
    frames_damaged: int
    skips: int  # forward jumps, of whatever size
    skips_allowed: int  # of those who lagged on our will, between two frames
    frames_skipped: int  # by these
    blocks_checked: int  # ICY blocks of the sample
    titles_heard: int
    titles_wrong: int
    bytes: int
    arrivals: int
    longest_gap_ms: float  # of any listener, one that still lasts included
    worst_lag_ms: float  # age of the oldest byte that any listener waited for
    joins_s: float  # from the first connect() to the last
    settled_s: float  # from the first connect() to the last first audio or whole refusal
    connect_ms: Histogram
    first_audio_ms: Histogram
    refusal_ms: Histogram  # connect() to the end of a whole refusal
    lateness_ms: Histogram  # each frame of the sample: arrival minus write
    gap_ms: Histogram
    lag_ms: Histogram  # of all: age of the oldest byte at each arrival
    skip_ms: Histogram  # of the sample: what each forward jump spans, a loss or allowed


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The time between two marks."""

    name: str
    seconds: float  # in which the swarm ran
    busy_share: float  # of the listeners' loop: time not asleep
    source_share: float  # of the sources' thread
    cpu_s: float  # of the whole process
    delay_ms: float  # how late the loop's tick, a due join or a frame of the sources came
    groups: dict[str, Group]


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One mount's source."""

    mount: str
    state: str  # live, lost; none: somebody else's
    error: str
    frames: int
    held_ms_max: float  # the longest time that the server took nothing
    titles_told: int
    titles_refused: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything; `valid` False: the swarm was too slow itself, believe nothing."""

    valid: bool
    reasons: list[str]
    faults: list[str]
    busy_share: float  # the highest of any window and thread
    delay_ms: float
    content: str
    pace_ms: int
    tolerance_ms: int
    windows: dict[str, Window]
    sources: list[SourceReport]

    def groups(self, name: str) -> list[Group]:
        """The group in each window where it occurs, in order."""
        return [w.groups[name] for w in self.windows.values() if name in w.groups]


# --- numbers → structs ----------------------------------------------------------------------------


def histogram(told: dict[str, Any], above_us: Callable[[int], int]) -> Histogram:
    """Make one of the loop's counts; `above_us` tells where a bucket ends."""
    counts: Sequence[int] = told["counts"]
    total, longest = int(told["total"]), int(told["max_us"])
    if total == 0:
        return Histogram()
    filled = [(above_us(i), n) for i, n in enumerate(counts) if n]

    def quantile(share: float) -> float:
        seen = 0
        for above, n in filled:
            seen += n
            if seen >= share * total:
                return min(above - 1, longest) / 1000
        return longest / 1000

    return Histogram(
        total=total,
        mean=round(told["sum_us"] / total / 1000, 3),
        p50=quantile(0.5),
        p90=quantile(0.9),
        p99=quantile(0.99),
        p999=quantile(0.999),
        max=longest / 1000,
        buckets=[(above / 1000, n) for above, n in filled],
    )


COPIED = (
    *("asked", "joined", "admitted", "cut", "unclosed", "foreign", "resets", "ended"),
    *("syn_repeated", "head_repeated", "behind", "unequal", "missing_bytes", "surplus_bytes"),
    *("frames_checked", "frames_lost", "frames_repeated", "frames_damaged", "skips"),
    *("skips_allowed", "frames_skipped"),
    *("blocks_checked", "titles_heard", "titles_wrong", "bytes", "arrivals"),
)


def group(
    told: dict[str, Any], states: dict[str, int], above_us: Callable[[int], int], behind: int = 0
) -> Group:
    """Make one of a tally and of the states at the window's end."""
    counters: dict[str, Any] = {name: told[name] for name in COPIED}
    counters["behind"] += behind
    histograms: dict[str, Any] = {
        f"{name}_ms": histogram(told[name], above_us)
        for name in ("connect", "first_audio", "refusal", "lateness", "gap", "lag", "skip")
    }
    began = told["began_us"]
    return Group(
        **counters,
        **histograms,
        refused={str(status): n for status, n in told["refused"].items()},
        failed={errno.errorcode.get(code, str(code)): n for code, n in told["failed"].items()},
        playing=states["playing"],
        waiting=states["connecting"] + states["asked"],
        stalled=states["stalled"],
        stalled_ended=states["stalled_ended"],
        lagging=states["lagging"],
        longest_gap_ms=told["longest_gap_us"] / 1000,
        worst_lag_ms=told["worst_lag_us"] / 1000,
        joins_s=max(0, told["last_us"] - began) / 1e6,
        settled_s=max(0, told["settled_us"] - began) / 1e6,
    )


# --- verdicts -------------------------------------------------------------------------------------


def reasons_of(windows: Iterable[Window], no_room: int) -> list[str]:
    """Why the swarm is not to be believed; empty: it is."""
    reasons = []
    for window in windows:
        for who, share in (
            ("loop", window.busy_share),
            ("sources' thread", window.source_share),
        ):
            if share > BUSY_SHARE_MAX and window.seconds >= BUSY_WINDOW_S_MIN:
                reasons.append(
                    f"{window.name}: its {who} was busy {share:.0%} of the time, "
                    f"more than {BUSY_SHARE_MAX:.0%}"
                )
        if window.delay_ms > DELAY_MS_MAX:
            reasons.append(
                f"{window.name}: it came {window.delay_ms:.0f} ms late to its own work, "
                f"more than {DELAY_MS_MAX:.0f} ms"
            )
    if no_room:
        reasons.append(f"{no_room} joins found no descriptor free")
    return reasons


def _times(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _group_faults(it: Group) -> list[str]:
    """What is wrong in one group of one window, one line each."""
    found = [
        (it.frames_lost, f"{_times(it.frames_lost, 'frame')} lost in {_times(it.skips, 'skip')}"),
        (it.frames_repeated, f"{_times(it.frames_repeated, 'frame')} repeated"),
        (it.frames_damaged, f"{_times(it.frames_damaged, 'frame')} damaged"),
        (it.titles_wrong, f"{_times(it.titles_wrong, 'title')} wrong"),
        (
            it.behind - it.unequal,
            f"{_times(it.behind, 'listener')} behind; the worst lag {it.worst_lag_ms:.0f} ms, "
            f"the longest gap {it.longest_gap_ms:.0f} ms",
        ),
        (
            it.unequal,
            f"{_times(it.unequal, 'listener')} unequal to the head at the end: "
            f"{it.missing_bytes} bytes missing, {it.surplus_bytes} too many",
        ),
        (it.ended, f"{_times(it.ended, 'listener')} ended"),
        (it.resets, f"{_times(it.resets, 'connection')} reset"),
        (it.cut, f"{_times(it.cut, 'reply', 'replies')} cut short"),
        (it.unclosed, f"{_times(it.unclosed, 'refusal')} not closed"),
        (it.foreign, f"{_times(it.foreign, 'listener')} heard another programme"),
        (it.syn_repeated, f"{_times(it.syn_repeated, 'join')} by a repeated SYN"),
        (it.waiting, f"{_times(it.waiting, 'listener')} without audio yet"),
    ]
    return [text for count, text in found if count > 0]


def _refusal_faults(it: Group, is_flood: bool) -> list[str]:
    found = [f"{_times(n, 'connection')} failed: {name}" for name, n in it.failed.items()]
    if is_flood:
        found += [
            f"{_times(n, 'refusal')} with status {status}, expected 503"
            for status, n in it.refused.items()
            if status != "503"
        ]
        if it.admitted:
            found.append(f"{_times(it.admitted, 'connection')} let in, expected a refusal")
    else:
        found += [f"{_times(n, 'join')} refused: {status}" for status, n in it.refused.items()]
    return found


def _source_faults(it: SourceReport, limit_ms: float) -> list[str]:
    found = []
    if it.state == "lost":
        found.append(f"the source of {it.mount} was ended by the server ({it.error})")
    if it.held_ms_max > limit_ms:
        found.append(f"the source of {it.mount} was held back for {it.held_ms_max:.0f} ms")
    if it.titles_refused:
        found.append(f"{_times(it.titles_refused, 'title')} of {it.mount} not accepted")
    return found


def faults_of(
    windows: Sequence[Window], sources: Iterable[SourceReport], floods: set[str], limit_ms: float
) -> list[str]:
    """What the server did wrong; empty: it passed. limit_ms: pace and tolerance."""
    found: list[str] = []
    for source in sources:
        found += _source_faults(source, limit_ms)
    for window in windows:
        for name, it in window.groups.items():
            texts = _group_faults(it) + _refusal_faults(it, name in floods)
            if window is not windows[-1]:  # who waits at a mark is judged by the window he joins in
                texts = [text for text in texts if not text.endswith("without audio yet")]
            found += [f"{window.name}, {name}: {text}" for text in texts]
    return found


# --- as text --------------------------------------------------------------------------------------

ROWS: tuple[tuple[str, Callable[[Group], str]], ...] = (
    ("joined", lambda g: f"{g.joined} of {g.asked}" if g.asked or g.joined else ""),
    ("refused", lambda g: " ".join(f"{n}×{s}" for s, n in g.refused.items())),
    ("failed", lambda g: " ".join(f"{n}×{s}" for s, n in g.failed.items())),
    ("ended, reset", lambda g: f"{g.ended}, {g.resets}" if g.ended or g.resets else ""),
    ("by a repeated SYN", lambda g: str(g.syn_repeated or "")),
    ("playing at the end", lambda g: str(g.playing)),
    ("stalled, ended of them", lambda g: f"{g.stalled}, {g.stalled_ended}" if g.stalled else ""),
    ("joins took", lambda g: f"{g.joins_s:.2f} s, all in {g.settled_s:.2f} s" if g.asked else ""),
    ("first audio", lambda g: _spread(g.first_audio_ms)),
    ("whole refusal", lambda g: _spread(g.refusal_ms)),
    ("lateness", lambda g: _spread(g.lateness_ms)),
    ("gap", lambda g: _spread(g.gap_ms)),
    ("longest gap", lambda g: f"{g.longest_gap_ms:.0f} ms" if g.gap_ms.total else ""),
    ("oldest byte", lambda g: _spread(g.lag_ms)),
    ("frames checked", lambda g: str(g.frames_checked or "")),
    (
        "lost, repeated, damaged",
        lambda g: f"{g.frames_lost}, {g.frames_repeated}, {g.frames_damaged}"
        if g.frames_checked
        else "",
    ),
    ("skips", lambda g: str(g.skips) if g.frames_checked else ""),
    ("skipped, lost", lambda g: _spread(g.skip_ms) if g.skip_ms.total else ""),
    (
        "skipped after a lag",
        lambda g: f"{_times(g.skips_allowed, 'time')}, {_times(g.frames_skipped, 'frame')}"
        if g.skips_allowed
        else "",
    ),
    ("titles heard, wrong", lambda g: f"{g.titles_heard}, {g.titles_wrong}"
     if g.blocks_checked else ""),
    ("behind, unequal", lambda g: f"{g.behind}, {g.unequal}" if g.playing else ""),
    ("received", lambda g: f"{g.bytes / 1e6:.1f} MB in {g.arrivals} arrivals" if g.bytes else ""),
)  # fmt: skip


def _spread(it: Histogram) -> str:
    if it.total == 0:
        return ""
    return f"p50 {it.p50:.1f}, p99 {it.p99:.1f}, p99.9 {it.p999:.1f}, max {it.max:.1f} ms"


def table(report: Report) -> str:
    """The report for people."""
    lines: list[str] = []
    for window in report.windows.values():
        lines.append(
            f"{window.name}: {window.seconds:.1f} s; the swarm busy {window.busy_share:.0%}, its "
            f"sources {window.source_share:.0%}, {window.cpu_s:.2f} s CPU, "
            f"late by {window.delay_ms:.1f} ms"
        )
        for name, it in window.groups.items():
            lines.append(f"  {name}")
            told = ((label, show(it)) for label, show in ROWS)
            lines += [f"    {label:<24} {text}" for label, text in told if text]
    lines += [f"FAULT  {fault}" for fault in report.faults]
    lines += [f"NOT VALID  {reason}" for reason in report.reasons]
    if report.valid and not report.faults:
        lines.append("passed")
    return "\n".join(lines)
