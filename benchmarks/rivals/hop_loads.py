"""The figures of the backbone under a given load: lateness, many streams, memory.

Rules of this room
  1. Lateness is from the push at the source's end to the moment at which the frame can be read at
     the last node's end, on one clock; a watcher looks each 50 µs (many streams: 1 ms), which is
     in it.
  2. A node in between is `relay serve`, as an operator starts it; its CPU and memory are read from
     outside. Source and child are on the other core.
  3. A goal's number stands here once; sizes come from the form.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .bench import each
from .ends import End, Middle
from .hop_runs import FRAME_BYTES, Hop, HopRun, Watch, judge, outcome
from .hops import LOOP_RATIO, SINGLE_RATIO, HopBench, Runs, Stage, value
from .measure import pss_bytes, spread
from .servers import ServerError
from .verdict import Line, at_most, never, shown, valid

LOAD_P99_MS = 5
PACED_P50_MS = 1
PACED_P99_MS = 5
STREAMS_CORE = 0.5
STREAMS_P99_MS = 40
MEMORY_RATIO = 1.35
FRAME_US = 20_000  # 50 frames/s
AUDIO_FRAME_US = 24_000  # 192 bytes: 64 kbit/s
BYTES_PER_S = 8000
SECOND_FRAMES = 42  # of that, about
LOAD_RING_BYTES = 200 << 20  # a third of a second at the load below, so that a watcher may be late
LOAD_FRAME_US = 20
STREAMS_RING_S = 8  # gone round once before the window begins
MANY_LOOK_US = 1000  # at 200 streams: a look each 50 µs takes a quarter of the load's core
MANY_REST_US = 1000  # of the source of many streams, between two rounds of pushes
TIMEOUT_S = 30.0


def tried(name: str, once: Callable[[], HopRun]) -> HopRun:
    """A run; what fails makes it not valid."""
    try:
        return once()
    except ServerError as error:
        return HopRun(name, valid=False, broken=True, why=str(error))


def paced(hop: Hop, frames_per_s: float, frames: int, rest_us: int) -> dict[str, float]:
    """Push at a pace over a hop; how late frames were at its end, and whether all came."""
    hop.lower[0].ask("watch", streams=1)
    hop.lower[0].begin("hear", frames=frames, timeout_s=frames / frames_per_s + TIMEOUT_S)
    time.sleep(0.1)
    pushed = hop.upper.ask("pace", frames_per_s=frames_per_s, frames=frames, rest_us=rest_us)
    heard = hop.lower[0].answer(frames / frames_per_s + 2 * TIMEOUT_S)
    return {
        "p50_ms": heard["p50_ms"],
        "p99_ms": heard["p99_ms"],
        "max_ms": heard["max_ms"],
        "missing": frames - heard["frames"],
        "sums_unequal": float(heard["sum"] != pushed["sum"]),
        "frames_per_s": frames / pushed["seconds"],
        "source_late_ms": pushed["late_us_max"] / 1e3,
    }


def paced_run(
    bench: HopBench, name: str, hop: Hop, frames_per_s: float, seconds: float, rest_us: int
) -> HopRun:
    """A run at a pace."""
    run = HopRun(name)
    cores = {
        bench.server_core: [hop.upper.pid],
        bench.swarm_core: [os.getpid(), hop.lower[0].pid],
    }
    watch = Watch(cores)
    run.values |= paced(hop, frames_per_s, max(20, int(frames_per_s * seconds)), rest_us)
    judge(run, watch.close()[1], bench.form.foreign_share_max)
    return run


def whole(figure: str, runs: Runs) -> Iterator[Line]:
    """Every frame came, with the bytes that were pushed."""
    yield never(figure, "frames missing", value("missing", runs))
    yield never(figure, "runs whose sum is another", value("sums_unequal", runs))


def load(bench: HopBench) -> Iterator[Line]:
    """Steady loads: four times what one message a frame reaches, and the goal beside a plain loop.

    Where single messages are cheap, the first is more than a plain loop of full ones can carry.
    """
    with Stage(bench) as stage:
        stage.add("single", stage.single, nodrop=True)
        stage.add("loop", stage.packed)
        runs = stage.in_turns("load")
    for name, ratio, what in (
        ("single", SINGLE_RATIO, "4 × one message a frame"),
        ("loop", LOOP_RATIO, "0.7 × plain loop"),
    ):
        rates = valid(value("frames_per_s", runs[name]))
        wanted = ratio * spread(rates).median if rates else None
        yield from loaded(bench, f"load {what}", wanted)


def loaded(bench: HopBench, figure: str, wanted: float | None) -> Iterator[Line]:
    """One stream at so many frames/s over one hop."""
    runs: Runs = [None]
    if wanted is not None:
        cores = (bench.server_core, bench.swarm_core)
        with Hop(*cores, ring_bytes=LOAD_RING_BYTES, frame_us=LOAD_FRAME_US, before=100_000) as hop:
            once = partial(paced_run, bench, figure, hop, wanted, bench.form.load_s, 0)
            runs = bench.take_turns(figure, {"hop": partial(tried, figure, once)}, outcome)["hop"]
    yield shown(figure, "frames/s wanted", [wanted])
    yield shown(figure, "frames/s pushed", value("frames_per_s", runs))
    yield at_most(figure, "lateness p99, ms", value("p99_ms", runs), LOAD_P99_MS)
    yield shown(figure, "lateness p50, ms", value("p50_ms", runs))
    yield shown(figure, "lateness, longest, ms", value("max_ms", runs))
    yield shown(figure, "the source itself was late, at most, ms", value("source_late_ms", runs))
    yield from whole(figure, runs)


def late(bench: HopBench) -> Iterator[Line]:
    """What one hop adds to one stream at audio pace."""
    figure, form = "pace", bench.form
    cores = (bench.server_core, bench.swarm_core)
    with Hop(*cores, frame_us=FRAME_US, before=50) as hop:
        once = partial(paced_run, bench, figure, hop, 1e6 / FRAME_US, form.paced_s, 100)
        runs = bench.take_turns(figure, {"hop": partial(tried, figure, once)}, outcome)["hop"]
    yield at_most(figure, "lateness p50, ms", value("p50_ms", runs), PACED_P50_MS)
    yield at_most(figure, "lateness p99, ms", value("p99_ms", runs), PACED_P99_MS)
    yield shown(figure, "lateness, longest, ms", value("max_ms", runs))
    yield from whole(figure, runs)


class Chain:
    """A source of many streams, a node, and a child that wants them all."""

    def __init__(self, bench: HopBench, streams: int, frame_us: int, ring_s: int) -> None:
        self.bench, self.streams, self.frame_us = bench, streams, frame_us
        self.sizes: dict[str, Any] = {
            "streams": streams, "frame_bytes": FRAME_BYTES, "duration_us": frame_us,
            "ring_s": ring_s,
        }  # fmt: skip
        self.config = (
            f"[defaults]\nring_s = {ring_s}\nlag_ms_max = {int(ring_s * 800)}\nlinger_s = 600\n"
        )
        self.frames_per_s = streams * 1e6 / frame_us

    def play(self, use: Callable[[End, Middle, End], None]) -> None:
        """Open all three, with a second of audio in each stream, and let them be used."""
        load_core = self.bench.swarm_core
        before = int(1.2e6 / self.frame_us)
        with (
            End(load_core, **self.sizes) as upper,
            Middle(self.bench.server_core, upper.address, self.config) as node,
            End(load_core, upstreams=[node.address], **self.sizes) as lower,
        ):
            upper.ask("push", frames=before)
            lower.ask("follow", sequence=before)
            use(upper, node, lower)

    def pace(self, upper: End, seconds: float) -> int:
        """Begin to push all streams at their pace for so long; how many frames that is."""
        frames = int(self.frames_per_s * seconds) // self.streams * self.streams
        upper.begin("pace", frames_per_s=self.frames_per_s, frames=frames, rest_us=MANY_REST_US)
        return frames


def streams_run(bench: HopBench) -> HopRun:
    """Many streams through one node for a window."""
    form, run = bench.form, HopRun("streams")
    chain = Chain(bench, form.streams, FRAME_US, ring_s=STREAMS_RING_S)

    def use(upper: End, node: Middle, lower: End) -> None:
        frames = chain.pace(upper, form.round_s + form.window_s + 1.0)
        time.sleep(form.round_s)
        before = lower.ask("state")["counters"]
        watched = lower.ask("watch", streams=form.watched)["streams"]
        wanted = int(watched * 1e6 / FRAME_US * form.window_s)
        watch = Watch({
            bench.server_core: [node.pid], bench.swarm_core: [os.getpid(), upper.pid, lower.pid],
        })  # fmt: skip
        begin = time.monotonic()
        heard = lower.ask(
            "hear", frames=wanted, timeout_s=form.window_s + TIMEOUT_S, look_us=MANY_LOOK_US
        )
        seconds = time.monotonic() - begin
        threads, foreign = watch.close()
        pushed = upper.answer()
        after = settled(lower, frames // chain.streams + int(1.2e6 / FRAME_US))
        run.threads_s = {name: cpu_s / seconds for name, cpu_s in threads[node.pid].items()}
        run.values |= {
            "core": sum(run.threads_s.values()),
            "p50_ms": heard["p50_ms"], "p99_ms": heard["p99_ms"], "max_ms": heard["max_ms"],
            "missing": heard["missed"] + after["behind"], "lost": after["lost"],
            "batch": batch(before, after["counters"]),
            "source_late_ms": pushed["late_us_max"] / 1e3,
        }  # fmt: skip
        judge(run, foreign, form.foreign_share_max)

    chain.play(use)
    return run


def settled(end: End, sequence: int) -> dict[str, Any]:
    """The state once every stream has come to this sequence, or when no more comes."""
    until = time.monotonic() + TIMEOUT_S
    while True:
        state = end.ask("state")
        state["behind"] = max(0, sequence - state["head_sequence"])
        if state["behind"] == 0 or time.monotonic() > until:
            return state
        time.sleep(0.1)


def batch(before: dict[str, int], after: dict[str, int]) -> float:
    """Frames in one message, beacons left out."""
    messages = after["received_messages_total"] - before["received_messages_total"]
    messages -= after["beacons_received_total"] - before["beacons_received_total"]
    frames = after["received_frames_total"] - before["received_frames_total"]
    return frames / max(messages, 1)


def streams(bench: HopBench) -> Iterator[Line]:
    """Many streams through one node to one child; both hops' lateness is held to the goal."""
    figure = f"streams {bench.form.streams}"
    once = partial(tried, figure, partial(streams_run, bench))
    runs = bench.take_turns(figure, {"node": once}, outcome)["node"]
    yield at_most(figure, "CPU of the node, cores", value("core", runs), STREAMS_CORE)
    yield at_most(figure, "lateness p99 over two hops, ms", value("p99_ms", runs), STREAMS_P99_MS)
    yield shown(figure, "lateness p50 over two hops, ms", value("p50_ms", runs))
    yield shown(figure, "lateness, longest, ms", value("max_ms", runs))
    yield shown(figure, "the source itself was late, at most, ms", value("source_late_ms", runs))
    yield shown(figure, "frames in a message", value("batch", runs))
    yield never(figure, "frames missing", value("missing", runs))
    yield never(figure, "frames lost", value("lost", runs))
    for thread in sorted({thread for run in runs if run for thread in run.threads_s}):
        cores = each(runs, partial(thread_s, thread))
        yield shown(figure, f"… cores of {thread}", cores)


def thread_s(name: str, run: HopRun) -> float:
    """What the threads of one name cost."""
    return run.threads_s.get(name, 0.0)


def memory_run(bench: HopBench) -> HopRun:
    """Many streams until rings, indexes and marks have been filled once; then PSS."""
    form, run = bench.form, HopRun("memory")
    chain = Chain(bench, form.streams, AUDIO_FRAME_US, form.memory_ring_s)

    def use(upper: End, node: Middle, lower: End) -> None:
        with Middle(bench.server_core, "", chain.config) as idle:
            time.sleep(form.settle_s)
            idle_bytes = pss_bytes(idle.pid)
        head = int(1.2e6 / AUDIO_FRAME_US)
        for _ in range(int(form.memory_s)):
            upper.ask("push", frames=SECOND_FRAMES)
            head += SECOND_FRAMES
            held = settled(lower, head)
            if held["behind"] or held["lost"]:
                raise ServerError(f"frames did not come, or are lost: {held}")
        taken = pss_bytes(node.pid) - idle_bytes
        # The child has the same rings: the same code has made them for the same streams.
        asked = form.streams * form.memory_ring_s * BYTES_PER_S
        run.values |= {
            "taken": taken, "idle": idle_bytes, "readable": held["readable_bytes"],
            "taken_÷_held": taken / held["held_bytes"],
            "taken_÷_readable": taken / held["readable_bytes"],
            "taken_÷_asked": taken / asked,
            "per_stream": taken / form.streams,
            "ring": held["laid_bytes"] / form.streams,
            "places": held["places"] / form.streams,
        }  # fmt: skip

    chain.play(use)
    return run


def memory(bench: HopBench) -> Iterator[Line]:
    """What a node takes that holds many streams."""
    figure = "memory"
    once = partial(tried, figure, partial(memory_run, bench))
    runs = bench.take_turns(figure, {"node": once}, outcome, pairs=1)["node"]
    yield at_most(figure, "PSS less an idle node's ÷ audio bytes held",
                  value("taken_÷_held", runs), MEMORY_RATIO)  # fmt: skip
    yield shown(figure, "… ÷ those at which a newcomer may begin (held, less the guard)",
                value("taken_÷_readable", runs))  # fmt: skip
    yield shown(figure, "… ÷ streams × ring_s × bit rate", value("taken_÷_asked", runs))
    yield shown(figure, "a stream, B", value("per_stream", runs))
    yield shown(figure, "a ring, B", value("ring", runs))
    yield shown(figure, "places of an index", value("places", runs))
    yield shown(figure, "an idle node, B", value("idle", runs))
