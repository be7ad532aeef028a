"""Goals: what was asked, what was measured, met or missed; the table that people read.

Rules of this room
  1. Times, CPU and ratios are judged by the median of the runs; what may not happen at all (a lost
     frame, a listener thrown off) by the worst of them.
  2. A run that was not valid is no number: a goal with no valid run is `not valid`, never met.
  3. Knows no server and no swarm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .measure import spread

Verdict = Literal["met", "MISSED", "not valid", "shown"]
COLUMNS = ("figure", "what", "goal", "measured", "verdict")


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    figure: str
    what: str
    goal: str
    measured: str
    verdict: Verdict
    values: tuple[float, ...] = ()  # one a valid run, or a valid pair; the unit is in `what`

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def valid(values: Sequence[float | None]) -> list[float]:
    """Leave out what was not valid."""
    return [value for value in values if value is not None]


def judged(
    figure: str,
    what: str,
    values: Sequence[float | None],
    goal: str,
    is_met: Callable[[float], bool],
    pick: Callable[[Sequence[float]], float] | None = None,
) -> Line:
    """Make a line; pick: which of the values is judged, the median when left out."""
    numbers = valid(values)
    if not numbers:
        return Line(figure, what, goal, "no valid run", "not valid")
    found = spread(numbers)
    verdict: Verdict = "met" if is_met(pick(numbers) if pick else found.median) else "MISSED"
    return Line(figure, what, goal, str(found), verdict, tuple(numbers))


def at_most(figure: str, what: str, values: Sequence[float | None], bound: float) -> Line:
    """The median is at most the bound."""
    return judged(figure, what, values, f"≤ {bound:g}", lambda value: value <= bound)


def at_least(figure: str, what: str, values: Sequence[float | None], bound: float) -> Line:
    """The median is at least the bound."""
    return judged(figure, what, values, f"≥ {bound:g}", lambda value: value >= bound)


def never(figure: str, what: str, values: Sequence[float | None]) -> Line:
    """It happened in none of the runs."""
    return judged(figure, what, values, "0", lambda value: value == 0, max)


def always(figure: str, what: str, values: Sequence[float | None], count: float) -> Line:
    """It happened so often in each of the runs."""
    return judged(
        figure, what, values, f"{count:g}", lambda value: value == count,
        lambda numbers: next((n for n in numbers if n != count), count),
    )  # fmt: skip


def shown(figure: str, what: str, values: Sequence[float | None]) -> Line:
    """Nobody asked for it, but it belongs beside the rest."""
    numbers = valid(values)
    if not numbers:
        return Line(figure, what, "", "no valid run", "not valid")
    return Line(figure, what, "", str(spread(numbers)), "shown", tuple(numbers))


def note(figure: str, what: str, text: str, verdict: Verdict = "shown") -> Line:
    """Words in place of a number."""
    return Line(figure, what, "", text, verdict)


def table(lines: Sequence[Line]) -> str:
    """Lay the lines out for a terminal."""
    rows = [COLUMNS, *(tuple(str(getattr(line, name)) for name in COLUMNS) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    spaced = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    spaced.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in spaced)


def summary(lines: Sequence[Line]) -> str:
    """Count the verdicts."""
    kinds: tuple[Verdict, ...] = ("met", "MISSED", "not valid")
    counts = {kind: sum(1 for line in lines if line.verdict == kind) for kind in kinds}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())
