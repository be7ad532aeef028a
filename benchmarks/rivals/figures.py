"""The figures of the edge: what each runs, and the goals it is held to.

Rules of this room
  1. One function a figure: contestants and plan in, lines of the table out.
  2. A goal's number stands here once, beside the words of what it bounds; the docs quote it.
  3. Sizes come from the form; goals are the same in every form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from . import plans
from .bench import Bench, Contestants, Plan, Runs, each
from .crowd import Run
from .measure import ratios
from .servers import Bare, Icecast, Relay
from .verdict import Line, always, at_least, at_most, never, note, shown

HOUSE_PACE_MS = 1000
CPU_RATIO = 1.10
ICY_RATIO = 1.25
MOUNTS_RATIO = 1.15
SKIP_LAG_MS = 5000  # instead of 15 s, which is also when one that takes nothing is dropped
GAP_BESIDE_MS = 150
GAP_STORM_MS = 300
AUTO_LATENESS_MS = 150
FIRST_AUDIO_1S_MS = 100
FIRST_AUDIO_RATIO = 3
FIRST_AUDIO_AT_ONCE_MS = 1000
SOCKET_BYTES = 64 * 1024
REFUSED_PER_S = 4000
LISTENER_BYTES = 1024
SHARD = "relay-shard"  # the name of such a thread
URING_SAVING = 0.10


def relay(bench: Bench, pace_ms: int | Literal["auto"], listeners_max: int = 0) -> Relay:
    """Relay on the server's core."""
    return Relay(bench.server_core, pace_ms=pace_ms, listeners_max=listeners_max)


def bare(bench: Bench, listeners: int, pace_ms: int) -> Bare:
    """The bare loop on the server's core."""
    return Bare(bench.server_core, listeners=listeners, pace_ms=pace_ms)


def cpu_lines(figure: str, what: str, ours: Runs, rival: Runs, bound: float) -> Iterator[Line]:
    """CPU per listener-second of both, and the ratio of pairs held to a bound."""
    own, their = each(ours, Run.cpu_us), each(rival, Run.cpu_us)
    yield at_most(figure, f"CPU ÷ {what}", ratios(own, their), bound)
    yield shown(figure, "CPU, µs per listener-second", own)
    yield shown(figure, f"CPU of {what}, µs per listener-second", their)


def whole(figure: str, runs: Runs, who: str = "all", group: str = "incumbents") -> Iterator[Line]:
    """In no window of a run has the group lost a frame, a listener, or its place in the stream."""
    for what, count in (
        ("frames lost, repeated, damaged", "frames_wrong"),
        ("dropped", "ended"),
        ("bytes not the head's advance", "behind"),
        ("bytes not the stream's at the end", "unequal"),
    ):
        yield never(figure, f"{who}: {what}", each(runs, partial(total, count, group)))


def total(count: str, group: str, run: Run) -> float:
    """One count of a whole run."""
    return run.total(count, group)


def listening(figure: str, runs: Runs) -> Iterator[Line]:
    """Lateness of the window's sample, and the longest gap of all."""
    yield shown(figure, "lateness p50, ms", each(runs, lambda run: run.group().lateness_p50_ms))
    yield shown(figure, "lateness p99, ms", each(runs, lambda run: run.group().lateness_p99_ms))
    yield shown(figure, "longest gap, ms", each(runs, lambda run: run.group().gap_longest_ms))


def gap_beside(runs: Runs, rival: Runs) -> list[float | None]:
    """How much longer our longest gap was than the rival's of the same pair."""
    return [
        own.group().gap_longest_ms - their.group().gap_longest_ms if own and their else None
        for own, their in zip(runs, rival, strict=True)
    ]


def gap_after(runs: Runs, window: str) -> list[float | None]:
    """How much longer the incumbents' longest gap was in a window than in the quiet one."""
    return each(
        runs,
        lambda run: (
            run.group(window=window).gap_longest_ms - run.group(window="quiet").gap_longest_ms
        ),
    )


def pace(bench: Bench) -> Iterator[Line]:
    """CPU per listener-second beside lateness, at each pace; Icecast is one point."""
    count = bench.form.pace_listeners
    plan = plans.hold(bench.form, count, bench.form.window_s)
    for pace_ms in bench.form.paces_ms:
        figure = f"pace {pace_ms}"
        contestants: Contestants = {
            "relay": (partial(relay, bench, pace_ms), plan),
            "bare": (partial(bare, bench, count, pace_ms), plan),
        }
        runs = bench.in_turns(figure, contestants)
        yield from cpu_lines(figure, "bare loop", runs["relay"], runs["bare"], CPU_RATIO)
        yield from listening(figure, runs["relay"])
        yield never(figure, "frames lost, repeated, damaged",
                    each(runs["relay"], lambda run: run.group().frames_wrong))  # fmt: skip
    yield from icecast_point(bench, plan)


def icecast_point(bench: Bench, plan: Plan) -> Iterator[Line]:
    """Icecast with the same crowd; it sends 1,400 B at a time, whatever is asked."""
    figure = "pace icecast"
    if not bench.form.icecast:
        return
    if Icecast.program() is None:
        yield note(figure, "skipped", "icecast2 is missing: apt-get install icecast2")
        return
    runs = bench.in_turns(figure, {"icecast": (partial(Icecast, bench.server_core), plan)})
    yield shown(figure, "CPU, µs per listener-second", each(runs["icecast"], Run.cpu_us))
    yield from listening(figure, runs["icecast"])
    yield shown(figure, "dropped", each(runs["icecast"], lambda run: run.group().ended))


def house(bench: Bench) -> Iterator[Line]:
    """A full house in one process."""
    figure, count = "house", bench.form.house_listeners
    plan = plans.hold(bench.form, count, bench.form.house_s)
    contestants: Contestants = {
        "relay": (partial(relay, bench, HOUSE_PACE_MS), plan),
        "bare": (partial(bare, bench, count, HOUSE_PACE_MS), plan),
    }
    runs = bench.in_turns(figure, contestants)
    yield always(figure, "joined", each(runs["relay"], lambda run: run.total("joined")), count)
    yield from whole(figure, runs["relay"])
    yield at_most(figure, "longest gap beside bare loop's, ms",
                  gap_beside(runs["relay"], runs["bare"]), GAP_BESIDE_MS)  # fmt: skip
    yield from cpu_lines(figure, "bare loop", runs["relay"], runs["bare"], CPU_RATIO)
    yield from listening(figure, runs["relay"])


def icy(bench: Bench) -> Iterator[Line]:
    """The same house, none, half and all of it with ICY, while titles change."""
    form, figure = bench.form, "icy"
    contestants: Contestants = {
        name: (
            partial(relay, bench, HOUSE_PACE_MS),
            plans.hold(form, form.house_listeners, form.icy_s,
                       icy_share=share, title_every_s=form.title_every_s),
        )
        for name, share in (("none", 0.0), ("half", 0.5), ("all", 1.0))
    }  # fmt: skip
    runs = bench.in_turns(figure, contestants)
    for name in ("half", "all"):
        ratio = ratios(each(runs[name], Run.cpu_us), each(runs["none"], Run.cpu_us))
        yield at_most(figure, f"CPU, {name} ÷ none", ratio, ICY_RATIO)
        yield from whole(figure, runs[name], who=f"{name} with ICY")
        yield never(figure, f"{name} with ICY: titles wrong",
                    each(runs[name], lambda run: run.group().titles_wrong))  # fmt: skip
    yield shown(figure, "CPU with none, µs per listener-second", each(runs["none"], Run.cpu_us))
    yield from icy_after_a_skip(bench)


def icy_after_a_skip(bench: Bench) -> Iterator[Line]:
    """Some stop reading until they lag too far: each frame and title is right from there on."""
    form, figure = bench.form, "icy skip"
    if form.lagging == 0:
        yield note(figure, "not tried", "this form is too short for a lag")
        return
    server = partial(Relay, bench.server_core, pace_ms=HOUSE_PACE_MS, lag_ms_max=SKIP_LAG_MS)
    runs = bench.in_turns(figure, {"relay": (server, plans.lag(form))}, pairs=1)["relay"]
    told = each(runs, partial(total, "skips_allowed", "laggards"))
    # how many depends on the kernel: a queue that holds more is full later
    yield at_least(figure, f"skips of {form.lagging} that lagged", told, form.lagging // 10)
    for name, group in (("skipped", "laggards"), ("the others", "incumbents")):
        yield from whole(figure, runs, who=name, group=group)
        yield never(figure, f"{name}: titles wrong",
                    each(runs, partial(total, "titles_wrong", group)))  # fmt: skip


def auto(bench: Bench) -> Iterator[Line]:
    """A small audience, whose pace the node chooses."""
    form, figure = bench.form, "auto"
    plan = plans.hold(form, form.auto_listeners, form.window_s, settle_s=form.auto_settle_s)
    runs = bench.in_turns(figure, {"relay": (partial(relay, bench, "auto"), plan)})["relay"]
    late = each(runs, lambda run: run.group().lateness_p99_ms)
    yield at_most(figure, "lateness p99, ms", late, AUTO_LATENESS_MS)
    yield shown(figure, "lateness p50, ms", each(runs, lambda run: run.group().lateness_p50_ms))
    yield shown(figure, "CPU, µs per listener-second", each(runs, Run.cpu_us))
    yield from whole(figure, runs)


def stalled(bench: Bench) -> Iterator[Line]:
    """Some of a full house stop reading: the others as if nothing were."""
    figure, plan = "stalled", plans.stall(bench.form)
    runs = bench.in_turns(figure, {"relay": (partial(relay, bench, HOUSE_PACE_MS), plan)})["relay"]
    yield from whole(figure, runs, "the others")
    yield at_most(figure, "the others: longest gap beside before, ms",
                  gap_after(runs, "stalled"), GAP_BESIDE_MS)  # fmt: skip
    yield shown(figure, "CPU after ÷ before",
                each(runs, lambda run: run.cpu_us("stalled") / run.cpu_us("quiet")))  # fmt: skip
    held = each(runs, lambda run: run.numbers["socket_bytes_max"])
    yield at_most(figure, "memory of a socket, most, B", held, SOCKET_BYTES)
    yield shown(figure, "memory of a socket, median of the stalled, B",
                each(runs, lambda run: run.numbers["socket_bytes_stalled"]))  # fmt: skip


def refuse(bench: Bench) -> Iterator[Line]:
    """A node that is full, and a flood at its door: each gets a whole 503."""
    form, figure = bench.form, "refuse"
    full = partial(relay, bench, HOUSE_PACE_MS, form.storm_incumbents)
    runs = bench.in_turns(figure, {"relay": (full, plans.flood(form))})["relay"]
    heard = partial(Run.group, group="flood", window="flood")
    yield always(figure, "refused with a whole 503",
                 each(runs, lambda run: heard(run).refused), form.refused)  # fmt: skip
    yield never(figure, "reset or failed", each(runs, lambda run: heard(run).failed))
    per_s = each(runs, lambda run: heard(run).refused / max(heard(run).settled_s, 1e-3))
    yield at_least(figure, "refused per second", per_s, REFUSED_PER_S)
    yield from whole(figure, runs, "incumbents")
    yield at_most(figure, "incumbents: longest gap beside before, ms",
                  gap_after(runs, "flood"), GAP_BESIDE_MS)  # fmt: skip


def memory(bench: Bench) -> Iterator[Line]:
    """User-space memory of a listener."""
    figure, plan = "memory", plans.fill(bench.form)
    runs = bench.in_turns(figure, {"relay": (partial(relay, bench, HOUSE_PACE_MS), plan)})["relay"]
    held = each(runs, lambda run: run.numbers["bytes_per_listener"])
    yield at_most(figure, "PSS per listener, B", held, LISTENER_BYTES)


def shard_s(run: Run) -> float:
    """CPU of the threads that serve listeners; the rest reads sources."""
    return sum(s for name, s in run.costs["window"].threads_s.items() if name == SHARD)


def mounts(bench: Bench) -> Iterator[Line]:
    """Many mounts with few listeners each, beside one with all of them."""
    form, figure = bench.form, "mounts"
    count = form.mounts * form.listeners_per_mount
    contestants: Contestants = {
        "many": (
            partial(relay, bench, HOUSE_PACE_MS),
            plans.hold(form, count, form.window_s, mounts=form.mounts),
        ),
        "one": (partial(relay, bench, HOUSE_PACE_MS), plans.hold(form, count, form.window_s)),
    }
    runs = bench.in_turns(figure, contestants)
    what = f"one mount ({form.mounts} × {form.listeners_per_mount})"
    yield from cpu_lines(figure, what, runs["many"], runs["one"], MOUNTS_RATIO)
    shards = ratios(each(runs["many"], shard_s), each(runs["one"], shard_s))
    yield shown(figure, "CPU of the shards alone ÷ one mount", list(shards))
    yield from whole(figure, runs["many"])


def uring(bench: Bench) -> Iterator[Line]:
    """The bare loop by io_uring beside the bare loop by `send`."""
    form = bench.form
    savings: list[float] = []
    for size_bytes, pace_ms in form.uring:
        figure, count = f"uring {size_bytes}", form.pace_listeners
        loop = partial(Bare, bench.server_core, listeners=count, pace_ms=pace_ms,
                       size_bytes=size_bytes)  # fmt: skip
        plan = plans.hold(form, count, form.window_s)
        contestants: Contestants = {
            "uring": (partial(loop, backend="uring"), plan),
            "send": (partial(loop, backend="send"), plan),
        }
        runs = bench.in_turns(figure, contestants)
        ratio = ratios(each(runs["uring"], Run.cpu_us), each(runs["send"], Run.cpu_us))
        yield shown(figure, "CPU, io_uring ÷ send", list(ratio))
        for name in contestants:
            per_send = [us and us * pace_ms / 1000 for us in each(runs[name], Run.cpu_us)]
            yield shown(figure, f"CPU of a send by {name}, µs", per_send)
        savings += [1 - sorted(ratio)[len(ratio) // 2]] if ratio else []
    if len(savings) == len(form.uring):
        saves = min(savings) >= URING_SAVING
        chosen = "io_uring is worth a backend" if saves else "Relay stays with send"
        rule = f"saves {min(savings):.0%} … {max(savings):.0%}, wanted {URING_SAVING:.0%}"
        yield note("uring", "decision", f"{rule}: {chosen}")


Figure = Callable[[Bench], Iterator[Line]]
