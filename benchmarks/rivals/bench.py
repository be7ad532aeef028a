"""Runs contestants one after the other, in turns, and keeps what each run told.

Rules of this room
  1. Contestants alternate (relay, rival, relay, rival …), so that a machine that drifts drifts for
     both; a pair is made of neighbours.
  2. A run that is not valid is repeated once; after that it is None, with its reason in `runs`.
  3. Knows what a contestant and a plan are; knows no figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from relay.errors import RelayError

from .crowd import Crowd, Run, judge_core
from .forms import F, Form
from .measure import on_core
from .servers import Server, ServerError

Contestant = Callable[[], Server]
Plan = Callable[[Crowd], None]
Contestants = Mapping[str, tuple[Contestant, Plan]]
Runs = list[Run | None]

TRIES = 2


class Told(Protocol):
    """What a run leaves behind."""

    valid: bool
    why: str

    def as_dict(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Told)


@dataclass
class Turns(Generic[F]):
    """One session of a benchmark: who runs when, and what each run told."""

    form: F
    server_core: int
    swarm_core: int  # of all that loads the server
    say: Callable[[str], None] = print
    runs: list[dict[str, Any]] = field(default_factory=list)

    def take_turns(
        self,
        figure: str,
        contestants: Mapping[str, Callable[[], T]],
        outcome: Callable[[T], str],
        pairs: int | None = None,
    ) -> dict[str, list[T | None]]:
        """Run all of them, in turns; returns for each its runs, None for one that is not valid."""
        found: dict[str, list[T | None]] = {name: [] for name in contestants}
        for turn in range(pairs or self.form.pairs):
            for name, once in contestants.items():
                found[name].append(self.repeat(f"{figure} {name} #{turn + 1}", once, outcome))
        return found

    def repeat(self, name: str, once: Callable[[], T], outcome: Callable[[T], str]) -> T | None:
        """Run one of them; once more when the run was not valid."""
        for _ in range(TRIES):
            begin = time.monotonic()
            run = once()
            seconds = time.monotonic() - begin
            self.runs.append({"name": name, "seconds": round(seconds, 1)} | run.as_dict())
            self.say(f"{name}: {seconds:.1f} s, {outcome(run)}")
            if run.valid:
                return run
        return None


@dataclass
class Bench(Turns[Form]):
    """A session of the edge's benchmark: servers with crowds."""

    def in_turns(
        self,
        figure: str,
        contestants: Contestants,
        pairs: int | None = None,
    ) -> dict[str, Runs]:
        """Run all of them, in turns; returns for each its runs, None for one that is not valid."""
        found: dict[str, Runs] = {name: [] for name in contestants}
        for turn in range(pairs or self.form.pairs):
            for name, (contestant, plan) in contestants.items():
                found[name].append(self.run(f"{figure} {name} #{turn + 1}", contestant, plan))
        return found

    def run(self, name: str, contestant: Contestant, plan: Plan) -> Run | None:
        """Run one server with one crowd; once more when the run was not valid."""
        return self.repeat(name, partial(self._once, contestant, plan), outcome)

    def _once(self, contestant: Contestant, plan: Plan) -> Run:
        """Start a server, let the plan play, end both; what breaks makes the run not valid."""
        server = contestant()
        try:
            with server, on_core(self.swarm_core), Crowd(server) as crowd:
                plan(crowd)
                run = judge_core(crowd.finish(), self.form.foreign_share_max)
                server.end()
        except (OSError, RelayError, ServerError) as error:
            why = f"{type(error).__name__}: {error}"
            return Run(server.name, valid=False, broken=True, why=why)
        return run


def outcome(run: Run) -> str:
    """Say in a few words how a run went."""
    if not run.valid:
        return f"NOT VALID: {run.why}"
    words = [f"{name} {run.cpu_us(name):.1f} µs/listener-s" for name in run.costs]
    return ", ".join([*words, f"swarm busy {run.busy_share:.0%}"])


def each(runs: Sequence[T | None], value: Callable[[T], float]) -> list[float | None]:
    """Take one value of each run."""
    return [None if run is None else value(run) for run in runs]
