"""One chart from the results of `benchmarks/edge.py`: CPU of a listener beside how late it hears.

Rules of this room
  1. `python benchmarks/edge.py --only pace --json R.json`, then
     `python benchmarks/rivals/chart.py R.json docs/edge.svg`. Medians of the runs; machine and
     commit stand in the picture.
  2. Numbers come from the file alone; what is not in it is not drawn.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 330, 60, 56, 76
OURS, RIVAL, OTHER, INK = "#2563eb", "#94a3b8", "#d97706", "#334155"
CPU, BARE = "CPU, µs per listener-second", "CPU of bare loop, µs per listener-second"
LATE = "lateness p99, ms"


class Group(NamedTuple):
    """One place on the axis: its name, its bars (µs, colour), and how late its listeners hear."""

    name: str
    bars: list[tuple[float, str]]
    late_ms: float | None


def medians(results: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The median of each line's valid values, by figure and what it tells."""
    found = {}
    for line in results["lines"]:
        values = [value for value in line.get("values") or [] if value is not None]
        if values:
            found[line["figure"], line["what"]] = statistics.median(values)
    return found


def groups(results: dict[str, Any]) -> Iterator[Group]:
    """Icecast's point first, then each pace."""
    told = medians(results)
    if ("pace icecast", CPU) in told:
        bars = [(told["pace icecast", CPU], OTHER)]
        yield Group("Icecast 2.4", bars, told.get(("pace icecast", LATE)))
    names = {name.removeprefix("pace ") for name, _ in told if name.startswith("pace ")}
    paces = {int(name) for name in names if name.isdigit()}
    for pace_ms in sorted(paces):
        figure = f"pace {pace_ms}"
        bars = [(told[figure, CPU], OURS)]
        if (figure, BARE) in told:
            bars.append((told[figure, BARE], RIVAL))
        yield Group(f"{pace_ms} ms", bars, told.get((figure, LATE)))


def text(x: float, y: float, words: str, size: int = 12, anchor: str = "middle") -> str:
    """One line of words."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{INK}">{escape(words)}</text>'
    )


def bar(x: float, width: float, value: float, top: float, colour: str) -> str:
    """One bar and its value."""
    room = HEIGHT - TOP - BOTTOM
    height = value / top * room
    y = HEIGHT - BOTTOM - height
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
        + text(x + width / 2, y - 4, f"{value:.0f}", 11)
    )


def draw(results: dict[str, Any]) -> str:
    """The picture, as SVG."""
    all_groups = list(groups(results))
    if not all_groups:
        raise SystemExit("these results have no figure `pace`: run edge.py with --only pace")
    top = max(value for group in all_groups for value, _ in group.bars) * 1.1
    step = (WIDTH - LEFT - 20) / len(all_groups)
    legend = "blue: Relay, grey: a bare loop of sends, amber: Icecast; below: lateness p99"
    parts = [
        text(LEFT, 20, "CPU of one 64 kbit/s listener, µs per second, by pace", 15, "start"),
        text(LEFT, 38, f"one core, 6,000 listeners; {legend}", 11, "start"),
    ]
    for number, group in enumerate(all_groups):
        middle = LEFT + step * (number + 0.5)
        width = min(34.0, step / 3)
        left = middle - width * len(group.bars) / 2
        for place, (value, colour) in enumerate(group.bars):
            parts.append(bar(left + place * width, width - 2, value, top, colour))
        parts.append(text(middle, HEIGHT - BOTTOM + 18, group.name, 13))
        if group.late_ms is not None:
            parts.append(text(middle, HEIGHT - BOTTOM + 36, f"p99 {group.late_ms:.0f} ms late", 11))
    where = f"{results['cpu']}, kernel {results['kernel']}, commit {results['commit']}"
    parts.append(text(LEFT, HEIGHT - 10, where, 10, "start"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" role="img"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def main() -> None:
    """Read RESULTS.json, write CHART.svg."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: chart.py RESULTS.json CHART.svg")
    results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(draw(results), encoding="utf-8")


if __name__ == "__main__":
    main()
