"""Storms at the door: many joins at once onto those who already listen.

Rules of this room
  1. The rival is a loop that does nothing but accept, read and answer: it serves no incumbents.
  2. Icecast is shown beside them, once: it takes a minute to let in what it lets in.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from . import plans
from .bench import Bench, Contestants, Runs, each
from .crowd import Run
from .figures import (
    FIRST_AUDIO_1S_MS,
    FIRST_AUDIO_AT_ONCE_MS,
    FIRST_AUDIO_RATIO,
    GAP_STORM_MS,
    HOUSE_PACE_MS,
    relay,
    whole,
)
from .measure import ratios
from .servers import Bare, Icecast
from .verdict import Line, always, at_most, never, note, shown


def first_audio(runs: Runs) -> list[float | None]:
    """99 of 100 in the storm heard something within so many ms."""
    return each(runs, lambda run: run.group("storm", "storm").first_audio_p99_ms)


def storm(bench: Bench, figure: str, over_s: float) -> dict[str, Runs]:
    """Relay and the accept loop, in turns."""
    plan = plans.storm(bench.form, over_s)
    contestants: Contestants = {
        "relay": (partial(relay, bench, HOUSE_PACE_MS), plan),
        "accept": (partial(Bare, bench.server_core, accepts=True), plan),
    }
    return bench.in_turns(figure, contestants)


def everybody_in(bench: Bench, figure: str, runs: Runs) -> Iterator[Line]:
    """All of the storm are in, and no incumbent noticed."""
    heard = partial(Run.group, group="storm", window="storm")
    yield always(figure, "joined", each(runs, lambda r: heard(r).joined), bench.form.storm_joins)
    yield never(figure, "by a repeated SYN", each(runs, lambda run: heard(run).syn_repeated))
    yield from whole(figure, runs, "incumbents")
    yield at_most(figure, "incumbents: longest gap, ms",
                  each(runs, lambda run: run.group(window="storm").gap_longest_ms),
                  HOUSE_PACE_MS + GAP_STORM_MS)  # fmt: skip


def icecast_beside(bench: Bench, figure: str, over_s: float) -> Iterator[Line]:
    """How many Icecast let in within the same time."""
    if not bench.form.icecast:
        return
    if Icecast.program() is None:
        yield note(figure, "icecast skipped", "icecast2 is missing: apt-get install icecast2")
        return
    contestant = (partial(Icecast, bench.server_core), plans.storm(bench.form, over_s))
    runs = bench.in_turns(f"{figure} icecast", {"icecast": contestant}, pairs=1)["icecast"]
    joined = each(runs, lambda run: run.group("storm", "storm").joined)
    yield shown(figure, f"icecast: joined of {bench.form.storm_joins}", joined)
    yield shown(figure, "icecast: first audio p99, ms", first_audio(runs))


def storm1s(bench: Bench) -> Iterator[Line]:
    """Joins spread over one second."""
    figure = "storm1s"
    runs = storm(bench, figure, 1.0)
    yield from everybody_in(bench, figure, runs["relay"])
    ours, accept = first_audio(runs["relay"]), first_audio(runs["accept"])
    yield at_most(figure, "first audio p99, ms", ours, FIRST_AUDIO_1S_MS)
    yield at_most(figure, "first audio p99 ÷ accept loop", ratios(ours, accept), FIRST_AUDIO_RATIO)
    yield shown(figure, "first audio p99 of the accept loop, ms", accept)
    yield from icecast_beside(bench, figure, 1.0)


def storm100ms(bench: Bench) -> Iterator[Line]:
    """Joins all at once."""
    figure = "storm100ms"
    runs = storm(bench, figure, 0.1)
    yield from everybody_in(bench, figure, runs["relay"])
    yield at_most(figure, "first audio p99, ms", first_audio(runs["relay"]), FIRST_AUDIO_AT_ONCE_MS)
    yield shown(figure, "first audio p99 of the accept loop, ms", first_audio(runs["accept"]))
