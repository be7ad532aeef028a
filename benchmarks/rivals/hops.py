"""The figures of the backbone: what each runs, and the goals it is held to.

Rules of this room
  1. One function a figure: lines of the table out. Contestants take turns within one figure, all of
     them alive, the others idle.
  2. A goal's number stands here once, beside the words of what it bounds; the docs quote it.
  3. Sizes come from the form; goals are the same in every form.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from .bench import Turns, each
from .ends import Keyring, split, write_messages
from .hop_forms import HopForm
from .hop_runs import WARM_LAPS, Hop, HopRun, Messages, Plain, outcome
from .measure import ratios
from .verdict import Line, at_least, never, shown

HopBench = Turns[HopForm]
Figure = Callable[[HopBench], Iterator[Line]]
Runs = list[HopRun | None]

LOOP_RATIO = 0.7
SINGLE_RATIO = 4


def value(name: str, runs: Runs) -> list[float | None]:
    """One value of each run."""
    return each(runs, lambda run: run.values[name])


def byte_sum(messages: Sequence[bytes]) -> int:
    """The sum of all bytes, as packed.c makes it."""
    return sum(sum(message) for message in messages)


def file_of(path: Path, laps: Sequence[Sequence[bytes]]) -> Messages:
    """Write laps of messages for the plain loop."""
    counts = {len(lap) for lap in laps}
    if len(counts) != 1:
        raise ValueError(f"laps of {counts} messages: one of them was cut differently")
    write_messages(path, [message for lap in laps for message in lap])
    sizes = tuple(sum(map(len, lap)) for lap in laps)
    return Messages(path, counts.pop(), len(laps), sizes, tuple(map(byte_sum, laps)))


class Stage:
    """A hop and the plain loops beside it, all of them warm."""

    def __init__(self, bench: HopBench, children: int = 1) -> None:
        self.bench, self.children = bench, children
        self.cores = (bench.server_core, bench.swarm_core)
        self.stack = contextlib.ExitStack()
        self.loops: dict[str, Plain] = {}

    def __enter__(self) -> Stage:
        form = self.bench.form
        with self.stack:
            home = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
            self.hop = self.stack.enter_context(Hop(*self.cores, children=self.children))
            for _ in range(WARM_LAPS):
                self.hop.lap(form.lap_frames)
            laps = self.hop.recorded(form.lap_frames, form.recorded_laps)
            self.packed = file_of(home / "packed", laps)
            self.single = file_of(
                home / "single", [[one for run in lap for one in split(run)] for lap in laps[:1]]
            )
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(self, name: str, messages: Messages, **how: bool) -> None:
        """One more plain loop."""
        plain = Plain(*self.cores, messages, children=self.children, **how)
        self.loops[name] = self.stack.enter_context(plain)
        for _ in range(WARM_LAPS):
            self.loops[name].lap()

    def in_turns(self, figure: str) -> dict[str, Runs]:
        """The hop and its rivals, one after the other, round by round."""
        form = self.bench.form
        every: dict[str, Hop | Plain] = {"hop": self.hop, **self.loops}
        return self.bench.take_turns(
            figure,
            {
                name: partial(one.run, name, form.lap_frames, form.laps, form.foreign_share_max)
                for name, one in every.items()
            },
            outcome,
        )


def delivered(figure: str, runs: dict[str, Runs]) -> Iterator[Line]:
    """Every frame is here, and its bytes are those that were sent."""
    yield never(figure, "frames lost or repaired", value("lost", runs["hop"]))
    yield never(figure, "frames missing", value("missing", runs["hop"]))
    for name, of in runs.items():
        yield never(figure, f"{name}: laps whose sum is another", value("sums_unequal", of))


def beside(figure: str, runs: dict[str, Runs], name: str, what: str) -> Iterator[Line]:
    """The hop beside one of the loops, by the clock and in CPU time."""
    ours, theirs = runs["hop"], runs[name]
    yield shown(figure, f"÷ {what}",
                ratios(value("frames_per_s", ours), value("frames_per_s", theirs)))  # fmt: skip
    yield shown(figure, f"÷ {what}, by CPU",
                ratios(value("cpu_ns", theirs), value("cpu_ns", ours)))  # fmt: skip


def costs(figure: str, runs: Runs) -> Iterator[Line]:
    """CPU for a frame, by thread."""
    yield shown(figure, "CPU of a delivery, ns", value("cpu_ns", runs))
    for part in sorted({part for run in runs if run for part in run.threads_s}):
        yield shown(figure, f"… of it {part}",
                    each(runs, partial(share_ns, part)))  # fmt: skip


def share_ns(part: str, run: HopRun) -> float:
    """What one kind of thread costs a delivery."""
    return run.values["cpu_ns"] * run.threads_s[part] / run.cpu_s if run.cpu_s else 0.0


def hop(bench: HopBench) -> Iterator[Line]:
    """One stream, one child, as fast as it goes; then four times what single messages reach."""
    figure = "hop"
    with Stage(bench) as stage:
        stage.add("loop", stage.packed)
        stage.add("keeping loop", stage.packed, keep=True)
        stage.add("one context", stage.packed, one_context=True)
        stage.add("single", stage.single, nodrop=True)
        runs = stage.in_turns(figure)
        bytes_ = stage.packed.lap_bytes[0] / stage.packed.lap
    yield shown(figure, "message, B", [bytes_])
    rates = {name: value("frames_per_s", of) for name, of in runs.items()}
    yield at_least(figure, "frames/s ÷ plain loop, same messages",
                   ratios(rates["hop"], rates["loop"]), LOOP_RATIO)  # fmt: skip
    yield shown(figure, "… by CPU",
                ratios(value("cpu_ns", runs["loop"]), value("cpu_ns", runs["hop"])))  # fmt: skip
    yield from beside(figure, runs, "keeping loop", "the same, and the receiver keeps a copy")
    yield from beside(figure, runs, "one context", "the same, both ends in one context")
    yield at_least(figure, "frames/s ÷ one message a frame",
                   ratios(rates["hop"], rates["single"]), SINGLE_RATIO)  # fmt: skip
    yield from delivered(figure, runs)
    for name, of in rates.items():
        yield shown(figure, f"{name}: frames/s", of)
    yield from costs(figure, runs["hop"])
    yield shown(figure, "loop: CPU of a delivery, ns", value("cpu_ns", runs["loop"]))


def children(bench: HopBench) -> Iterator[Line]:
    """The same with many children: deliveries."""
    figure = f"children {bench.form.children}"
    with Stage(bench, bench.form.children) as stage:
        stage.add("loop", stage.packed)
        stage.add("keeping loop", stage.packed, keep=True)
        runs = stage.in_turns(figure)
    rates = {name: value("frames_per_s", of) for name, of in runs.items()}
    yield at_least(figure, "deliveries/s ÷ plain loop, same messages",
                   ratios(rates["hop"], rates["loop"]), LOOP_RATIO)  # fmt: skip
    yield shown(figure, "… by CPU",
                ratios(value("cpu_ns", runs["loop"]), value("cpu_ns", runs["hop"])))  # fmt: skip
    yield from beside(figure, runs, "keeping loop", "the same, and receivers keep a copy")
    yield from delivered(figure, runs)
    for name, of in rates.items():
        yield shown(figure, f"{name}: deliveries/s", of)
    yield from costs(figure, runs["hop"])


def curve(bench: HopBench) -> Iterator[Line]:
    """The same hop with keys and without."""
    figure, form = "keys", bench.form
    cores = (bench.server_core, bench.swarm_core)
    with Hop(*cores, keys=Keyring()) as on, Hop(*cores) as off:
        for _ in range(WARM_LAPS):
            on.lap(form.lap_frames)
            off.lap(form.lap_frames)
        runs = bench.take_turns(
            figure,
            {
                name: partial(one.run, name, form.lap_frames, form.laps, form.foreign_share_max)
                for name, one in (("on", on), ("off", off))
            },
            outcome,
        )
    rates = {name: value("frames_per_s", of) for name, of in runs.items()}
    yield shown(figure, "frames/s with keys ÷ without", ratios(rates["on"], rates["off"]))
    yield shown(figure, "… by CPU",
                ratios(value("cpu_ns", runs["off"]), value("cpu_ns", runs["on"])))  # fmt: skip
    yield shown(figure, "frames/s with keys", rates["on"])
    for name in ("lost", "missing", "sums_unequal"):
        yield never(figure, f"with keys: {name}", value(name, runs["on"]))
    yield from costs(figure, runs["on"])
