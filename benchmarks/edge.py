"""The edge beside its rivals, in one command: `python benchmarks/edge.py`.

Rules of this room
  1. Relay, Debian's Icecast and a bare C loop of sends run in turns on one core, the swarm on the
     other; goals, measurements and verdicts are printed as a table and kept as JSON.
  2. Exit status: 0, all goals met; 1, one is missed; 3, one has no valid run.
  3. `--short` is what `make bench` runs; the numbers of the documentation come from the long form.
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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rivals import figures, forms, measure, servers, storms, verdict
from rivals.bench import Bench

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "edge.json"
ALL: dict[str, figures.Figure] = {
    "pace": figures.pace,
    "house": figures.house,
    "icy": figures.icy,
    "auto": figures.auto,
    "storm1s": storms.storm1s,
    "storm100ms": storms.storm100ms,
    "stalled": figures.stalled,
    "refuse": figures.refuse,
    "memory": figures.memory,
    "mounts": figures.mounts,
    "uring": figures.uring,
}
MISSED, NOT_VALID = 1, 3


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


def measured(bench: Bench, names: Iterable[str]) -> list[verdict.Line]:
    """Run the figures; prints the lines of each as soon as it is done."""
    lines: list[verdict.Line] = []
    for name in names:
        begin = time.monotonic()
        found = list(ALL[name](bench))
        bench.say(f"\n{verdict.table(found)}\n({name}: {time.monotonic() - begin:.0f} s)\n")
        lines += found
    return lines


def status(lines: Sequence[verdict.Line]) -> int:
    """Return the exit status that the lines deserve."""
    seen = {line.verdict for line in lines}
    return NOT_VALID if "not valid" in seen else MISSED if "MISSED" in seen else 0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--short", is_flag=True, help="Smaller and fewer, within five minutes.")
@click.option("--tiny", is_flag=True, help="To see that it runs; the numbers mean nothing.")
@click.option("--only", multiple=True, type=click.Choice(list(ALL)), metavar="NAME",
              help=f"One figure; may be repeated: {', '.join(ALL)}.")  # fmt: skip
@click.option(
    "--shared",
    is_flag=True,
    help="Count runs, too, in which other work took more than "
    "a tenth of the server's core: ratios of CPU stand, gaps and lateness do not.",
)
@click.option("--pairs", type=click.IntRange(1, 50), help="Interleaved pairs.  [long: 5, short: 1]")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS,
              metavar="FILE", help="Where the results go.  [build/edge.json]")  # fmt: skip
def main(
    short: bool, tiny: bool, shared: bool, only: tuple[str, ...], pairs: int | None, path: Path
) -> None:
    """Measure the edge beside its rivals: goals, measurements, met or MISSED."""
    form = forms.TINY if tiny else forms.SHORT if short else forms.LONG
    if pairs:
        form = forms.with_pairs(form, pairs)
    if shared:
        form = forms.shared(form)
    try:
        server_core, swarm_core = measure.cores()
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    about = machine() | {"form": form.name, "pairs": form.pairs, "shared": shared}
    click.echo(", ".join(f"{name}: {value}" for name, value in about.items()))
    if about["core_build"] != "release":
        click.echo(f"WARNING: the core is a {about['core_build']} build; its times mean nothing")
    bench = Bench(form, server_core, swarm_core, say=click.echo)
    lines = measured(bench, only or ALL)
    click.echo(f"{verdict.table(lines)}\n\n{verdict.summary(lines)}")
    told = about | {"lines": [line.as_dict() for line in lines], "runs": bench.runs}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    click.echo(f"results: {path}")
    sys.exit(status(lines))


if __name__ == "__main__":
    main()
