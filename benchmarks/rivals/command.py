"""What the benchmarks that are commands have in common: options, table, JSON, exit status.

Rules of this room
  1. Goals, measurements and verdicts are printed as a table and kept as JSON, with the machine.
  2. Exit status: 0, all goals met; 1, one is missed; 3, one has no valid run.
  3. Knows figures by their names and forms by their sizes; what is measured is not its business.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import click

from . import forms, measure, servers, verdict
from .bench import Turns
from .forms import F

ROOT = Path(__file__).resolve().parent.parent.parent
MISSED, NOT_VALID = 1, 3
B = TypeVar("B", bound=Turns[Any])


@dataclass(frozen=True)
class Plan(Generic[F, B]):
    """One benchmark: its figures by name, its forms, and where its results go."""

    name: str
    figures: Mapping[str, Callable[[B], Iterable[verdict.Line]]]
    long: F
    short: F
    tiny: F
    bench: Callable[[F, int, int], B]  # form, the server's core, the core of the load

    @property
    def results(self) -> Path:
        """Where the results go when nothing else is asked."""
        return ROOT / "build" / f"{self.name}.json"


def machine() -> dict[str, Any]:
    """Say where and on what this was measured."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": subprocess.run(words, capture_output=True, text=True).stdout.strip() or "unknown",
        "core_build": importlib.import_module("relay._core").BUILD,
        "rivals": servers.versions(),
    }


def measured(
    bench: B, figures: Mapping[str, Callable[[B], Iterable[verdict.Line]]], names: Iterable[str]
) -> list[verdict.Line]:
    """Run the figures; prints the lines of each as soon as it is done."""
    lines: list[verdict.Line] = []
    for name in names:
        begin = time.monotonic()
        found = list(figures[name](bench))
        bench.say(f"\n{verdict.table(found)}\n({name}: {time.monotonic() - begin:.0f} s)\n")
        lines += found
    return lines


def status(lines: Sequence[verdict.Line]) -> int:
    """Return the exit status that the lines deserve."""
    seen = {line.verdict for line in lines}
    return NOT_VALID if "not valid" in seen else MISSED if "MISSED" in seen else 0


def run(plan: Plan[F, B], form: F, names: Iterable[str], shared: bool, path: Path) -> int:
    """Run figures in a form, print and keep what they told; returns the exit status."""
    try:
        server_core, load_core = measure.cores()
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    about = machine() | {"form": form.name, "pairs": form.pairs, "shared": shared}
    click.echo(", ".join(f"{name}: {value}" for name, value in about.items()))
    if about["core_build"] != "release":
        click.echo(f"WARNING: the core is a {about['core_build']} build; its times mean nothing")
    bench = plan.bench(form, server_core, load_core)
    lines = measured(bench, plan.figures, names)
    click.echo(f"{verdict.table(lines)}\n\n{verdict.summary(lines)}")
    told = about | {"lines": [line.as_dict() for line in lines], "runs": bench.runs}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    click.echo(f"results: {path}")
    return status(lines)


def command(plan: Plan[F, B], about: str, minutes: str) -> click.Command:
    """Make the command of a benchmark; minutes: how long its short form takes, in words."""
    names = list(plan.figures)
    pairs_told = f"long: {plan.long.pairs}, short: {plan.short.pairs}"

    @click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=about)
    @click.option("--short", is_flag=True, help=f"Smaller and fewer, within {minutes}.")
    @click.option("--tiny", is_flag=True, help="To see that it runs; the numbers mean nothing.")
    @click.option("--only", multiple=True, type=click.Choice(names), metavar="NAME",
                  help=f"One figure; may be repeated: {', '.join(names)}.")  # fmt: skip
    @click.option(
        "--shared",
        is_flag=True,
        help="Count runs, too, in which other work took more than "
        "a tenth of the server's core: ratios of CPU stand, gaps and lateness do not.",
    )
    @click.option("--pairs", type=click.IntRange(1, 50),
                  help=f"Interleaved pairs.  [{pairs_told}]")  # fmt: skip
    @click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path),
                  default=plan.results, metavar="FILE",
                  help=f"Where the results go.  [build/{plan.name}.json]")  # fmt: skip
    def main(
        short: bool, tiny: bool, shared: bool, only: tuple[str, ...], pairs: int | None, path: Path
    ) -> None:
        form = plan.tiny if tiny else plan.short if short else plan.long
        if pairs:
            form = forms.with_pairs(form, pairs)
        if shared:
            form = forms.shared(form)
        sys.exit(run(plan, form, only or names, shared, path))

    return main
