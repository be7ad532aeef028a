"""A random walk of faults over a fleet, from a seed: `python -m tools.walk --seed N` in tests/.

Rules of this room
  1. `schedule` decides alone, from seed, seconds and weights: the same three give the same steps.
     The walk carries them out in that order; on a busy machine a step may begin late, never early.
  2. In each row at most one node or link is at fault at a time, so a way to every edge is left:
     whatever is lost is a breach. Faults of different rows overlap as they fall.
  3. A step ends when the fault is healed and the node is /readyz; then its row rests for REST_S.
  4. Once a second all invariants are judged (tools.invariants). A walk ends at its time, whatever
     was found; the report names each breach once.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from tools.faults import memory_bytes
from tools.fleet import EDGES, MOUNTS, RELAYS, Fleet, Standing
from tools.invariants import INVARIANTS, Breach, Heard, Judge
from tools.planted import DEFECTS, command

ROWS = {"upper": RELAYS[:2], "lower": RELAYS[2:], "edges": EDGES}
REST_S = 1.0
LOOK_S = 1.0


class Kind(NamedTuple):
    """One fault that a walk may choose."""

    weight: int
    lasts_s: tuple[float, float]  # from, to
    rows: tuple[str, ...] = ("upper", "lower")


KINDS: dict[str, Kind] = {
    "kill9": Kind(4, (0.0, 3.0)),
    "stop": Kind(2, (0.0, 1.0)),
    "freeze": Kind(3, (0.3, 4.0)),
    "cut": Kind(3, (0.2, 4.0)),
    "half_open": Kind(3, (0.5, 4.0)),
    "stall": Kind(2, (0.2, 4.0)),
    "garbage": Kind(2, (0.2, 2.0)),
    "drip": Kind(2, (0.5, 3.0)),
    "delay": Kind(2, (0.5, 3.0)),
    "doze": Kind(2, (0.2, 1.5), ("edges",)),  # an edge itself is frozen
}
WEIGHTS = {name: kind.weight for name, kind in KINDS.items()}


class Step(NamedTuple):
    """One fault: when, what, to whom, how long, how much."""

    at_s: float
    fault: str
    victim: str
    lasts_s: float
    much: float  # 0 to 1: of what the fault has a measure for

    def __str__(self) -> str:
        return f"{self.at_s:7.1f} s  {self.fault:9} {self.victim:8} for {self.lasts_s:.1f} s"


def schedule(
    seed: int, seconds: float, weights: Mapping[str, int] = WEIGHTS
) -> dict[str, list[Step]]:
    """Return the steps of each row, in order.

    Args:
        seed: of the dice.
        seconds: when the last step may begin.
        weights: how often each fault is chosen, among those that its row knows; 0: never.
    """
    steps: dict[str, list[Step]] = {}
    for row, members in ROWS.items():
        dice = random.Random(f"{seed} {row}")  # rows do not disturb one another's dice
        names = [name for name, kind in KINDS.items() if row in kind.rows and weights.get(name, 0)]
        at_s, steps[row] = dice.uniform(0.5, 2.0), []
        while names and at_s < seconds:
            fault = dice.choices(names, [weights[name] for name in names])[0]
            lasts_s = dice.uniform(*KINDS[fault].lasts_s)
            steps[row].append(Step(at_s, fault, dice.choice(members), lasts_s, dice.random()))
            at_s += lasts_s + dice.uniform(1.0, 5.0)
    return steps


class Walk:
    """A schedule over a fleet, and who judges it."""

    def __init__(
        self, fleet: Fleet, seed: int, seconds: float, weights: Mapping[str, int] = WEIGHTS
    ) -> None:
        self.fleet, self.seed, self.seconds, self.weights = fleet, seed, seconds, weights
        self.steps = schedule(seed, seconds, weights)
        self.done: list[Step] = []
        # a short walk has short windows: four of them must fit
        self.judge = Judge(window_s=max(2.0, min(30.0, seconds / 6)))
        self._down: set[str] = set()  # processes that end by purpose
        self._trouble: list[BaseException] = []
        self._over = threading.Event()
        self._begin_s = 0.0
        self.peaks: dict[str, int] = {}

    def run(self, say: Callable[[str], None] = print, *, news_s: float = 10.0) -> list[Breach]:
        """Walk to the end, and let everything come to rest; returns what did not hold.

        Args:
            say: takes each line of the report.
            news_s: how long to wait at the end for news at every listener.
        """
        say(f"seed {self.seed}, {self.seconds:g} s, weights {dict(self.weights)}")
        self._begin_s = time.monotonic()
        rows = [
            threading.Thread(target=self._walk_row, args=(steps, say), daemon=True)
            for steps in self.steps.values()
        ]
        for row in rows:
            row.start()
        while time.monotonic() < self._begin_s + self.seconds:
            self._look(say)
            self._over.wait(LOOK_S)
        self._over.set()
        for row in rows:
            row.join(60.0)
        for trouble in self._trouble:
            self.judge.breaches.append(Breach("trouble", "the walk", f"{trouble}"))
        with contextlib.suppress(AssertionError):  # who is silent is named by the judge
            self.fleet.wait_news("at the end", news_s)
        for _ in range(2):
            time.sleep(0.6)  # counters are up to half a second old
            self._look(say)
        return self.judge.breaches

    # --- the faults ---

    def _walk_row(self, steps: Sequence[Step], say: Callable[[str], None]) -> None:
        try:
            for step in steps:
                if self._over.wait(max(0.0, self._begin_s + step.at_s - time.monotonic())):
                    return
                say(f"{step}" + (f" (at {self._now_s():.1f} s)" if self._is_late(step) else ""))
                self._take(step)
                self.done.append(step)
                self._over.wait(REST_S)
        except BaseException as trouble:
            self._trouble.append(trouble)

    def _now_s(self) -> float:
        return time.monotonic() - self._begin_s

    def _is_late(self, step: Step) -> bool:
        return self._now_s() > step.at_s + 0.5

    def _take(self, step: Step) -> None:
        """Carry out one step, to its end."""
        node = self.fleet.by_name[step.victim]
        if step.fault in {"kill9", "stop"}:
            self._down.add(step.victim)
            self.fleet.farewell(step.victim)
            if step.fault == "stop":
                node.terminate()
            else:
                node.kill9()
            time.sleep(step.lasts_s)
            self.fleet.start_again(step.victim)
            self._down.discard(step.victim)
        elif step.fault in {"freeze", "doze"}:
            node.stop()
            time.sleep(step.lasts_s)
            node.cont()
        else:
            link = self.fleet.links[step.victim]
            measured = {"drip": (link.drip, 4000 + 12_000 * step.much), "delay": (link.delay, 400)}
            if step.fault in measured:
                act, most = measured[step.fault]
                act(most if step.fault == "drip" else max(20.0, most * step.much))
            else:
                getattr(link, step.fault)()
            time.sleep(step.lasts_s)
            link.heal()
        self.fleet.wait_ready(step.victim, 30.0)

    # --- the judging ---

    def _look(self, say: Callable[[str], None]) -> None:
        """Read everything once, and have it judged."""
        told, now_s = len(self.judge.breaches), time.monotonic()
        for name, node in self.fleet.by_name.items():
            if name in self._down:
                continue  # or it is not all there yet: a floor taken now would be too low
            if not node.alive:
                if name not in self._down:  # it may be by now
                    self.judge.died(name, node.process.returncode if node.process else None)
                continue
            with contextlib.suppress(OSError, AssertionError):  # it may end just now, by purpose
                sample = sample_of(node.pid)
                self.peaks["memory"] = max(self.peaks.get("memory", 0), sample["memory"])
                self.judge.process(now_s, name, node.pid, sample)
        lost = {name: self._lost(name) for name in self.fleet.edges}
        for name, mount, listener in self.fleet.all_listeners():
            if name not in lost or listener.checker is None:
                continue  # listeners of relays come and go: they are judged at their farewell
            heard = Heard(f"{name}{mount}", listener.alive, listener.checker)
            self.judge.listener(now_s, heard, lost[name].get(mount))
        for breach in self.judge.breaches[told:]:
            say(f"{self._now_s():7.1f} s  BROKEN {breach.invariant}: {breach.who}: {breach.what}")

    def _lost(self, name: str) -> dict[str, int]:
        """What a node has counted as lost, by stream; {} when it does not answer now (frozen)."""
        try:
            told = self.fleet.by_name[name].request("/api/v1/status", timeout_s=2.0).json()
        except (OSError, ValueError):
            return {}
        lost = {
            stream["mount"]: int(stream["counters"].get("lost_frames_total", 0))
            for stream in told["streams"]
            if stream["mount"] in MOUNTS
        }
        for mount, frames in lost.items():
            self.judge.lost(f"{name}{mount}", frames)
        return lost


def sample_of(pid: int) -> dict[str, int]:
    """Return the open descriptors, sockets, threads and memory (PSS, bytes) of a process."""
    sockets = others = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            is_socket = os.readlink(entry.path).startswith("socket:")
            sockets, others = sockets + is_socket, others + (not is_socket)
    return {
        "descriptors": others,
        "sockets": sockets,
        "threads": sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()),
        "memory": memory_bytes(pid),
    }


def parse_weights(words: Sequence[str]) -> dict[str, int]:
    """Return the weights, with those changed that are given as `FAULT=N`."""
    weights = dict(WEIGHTS)
    for word in words:
        name, _, number = word.partition("=")
        if name not in WEIGHTS or not number.isdigit():
            raise click.BadParameter(f"{word!r}: FAULT=N, with FAULT one of {', '.join(WEIGHTS)}")
        weights[name] = int(number)
    return weights


def parse_defects(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the commands of nodes that get a defect, from `NODE=DEFECT`."""
    commands = {}
    for word in words:
        name, _, defect = word.partition("=")
        if name not in (*EDGES, *RELAYS) or defect not in DEFECTS:
            raise click.BadParameter(
                f"{word!r}: NODE=DEFECT, with NODE one of {', '.join((*EDGES, *RELAYS))} and "
                f"DEFECT one of {', '.join(DEFECTS)}"
            )
        commands[name] = command(defect)
    return commands


@click.command(context_settings={"show_default": True})
@click.option("--seed", type=int, help="Of the schedule. [default: by dice, printed]")
@click.option("--seconds", type=click.FloatRange(5.0), default=60.0, help="How long.")
@click.option(
    "--redundancy", type=click.Choice(["standby", "merge", "mixed"]), default="mixed",
    help="Of all nodes; mixed: by turns.",
)  # fmt: skip
@click.option("--weight", "weights", multiple=True, metavar="FAULT=N", help="May be repeated.")
@click.option(
    "--plant", "planted", multiple=True, metavar="NODE=DEFECT",
    help="Run this node with a defect, to see that it is found. May be repeated.",
)  # fmt: skip
@click.option("--show", is_flag=True, help="Print the schedule, and start nothing.")
def main(
    seed: int | None,
    seconds: float,
    redundancy: str,
    weights: tuple[str, ...],
    planted: tuple[str, ...],
    show: bool,
) -> None:
    """Walk a fleet of ten nodes through random faults, and judge each second what must hold.

    Ends with status 1 when an invariant was broken. The same seed, seconds and weights give the
    same schedule.
    """
    seed = random.randrange(1 << 32) if seed is None else seed
    chosen, commands = parse_weights(weights), parse_defects(planted)
    if show:
        steps = sorted(step for row in schedule(seed, seconds, chosen).values() for step in row)
        click.echo("\n".join(map(str, steps)))
        return
    with Standing(redundancy=redundancy, linked=True, commands=commands) as fleet:
        walk = Walk(fleet, seed, seconds, chosen)
        breaches = walk.run(click.echo)
        click.echo(
            f"{len(walk.done)} faults; {fleet.totals()}; "
            f"most memory of a node {walk.peaks.get('memory', 0) / 1e6:.0f} MB"
        )
        breaches += [Breach("listener", line, "") for line in fleet.wrong() if not breaches]
    for breach in breaches:
        meaning = INVARIANTS.get(breach.invariant, "")
        click.echo(f"BROKEN {breach.invariant} ({meaning}): {breach.who}: {breach.what}")
    click.echo("all invariants held" if not breaches else f"seed {seed} repeats it")
    raise SystemExit(1 if breaches else 0)


if __name__ == "__main__":
    main()
