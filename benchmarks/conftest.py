"""What every benchmark carries: the machine, the commit and the build of the core.

Rules of this room
  1. Work counts that do not drift (sends, copies, bytes) are asserted in the benchmark; times are
     shown. A number without machine and commit is not kept.
  2. A benchmark checks what was delivered, and runs once in every test run.
  3. Times drift on shared machines: only ratios to a rival of the same run are held against what
     was measured before (ratios.json), and only shown: one that is a quarter worse is flagged.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAG_ABOVE = 1.25
KNOWN: dict[str, dict[str, Any]] = json.loads((ROOT / "benchmarks/ratios.json").read_text())


def core_build() -> str:
    """Name the build of the core: numbers count on a release build only."""
    try:
        return str(importlib.import_module("relay._core").BUILD)
    except ImportError:
        return "missing"


def commit() -> str:
    """Return the commit, with + when the tree differs from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    told = subprocess.run(words, capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def pytest_report_header() -> str:
    """Print the core under test."""
    return f"relay core: {core_build()}, commit {commit()}, {os.cpu_count()} cores"


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    """Write them into the JSON."""
    machine_info["relay_core"] = core_build()
    machine_info["relay_commit"] = commit()
    machine_info["kernel"] = platform.release()
    machine_info["cores"] = os.cpu_count()


_seen: list[tuple[str, float]] = []


@pytest.fixture(autouse=True)
def _keep_ratios(request: pytest.FixtureRequest) -> Iterator[None]:
    """Note each `ratio_…` that a benchmark leaves in its extra_info."""
    yield
    bench = request.node.funcargs.get("benchmark")
    for name, value in getattr(bench, "extra_info", {}).items():
        if name.startswith("ratio_"):
            _seen.append((f"{request.node.name}.{name}", float(value)))


def verdict(value: float, known: dict[str, Any] | None) -> str:
    """What a ratio is worth beside the one that was measured before."""
    if known is None:
        return "new: no earlier value in benchmarks/ratios.json"
    before = float(known["value"])
    worse = value / before if known["better"] == "lower" else before / value
    flag = "FLAGGED, more than a quarter worse" if worse > FLAG_ABOVE else "as before"
    return f"{flag} ({known['better']} is better; {before:g} at {known['commit']})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the paired ratios of this run."""
    if _seen:
        terminalreporter.section("ratios to a rival of the same run")
    for name, value in _seen:
        terminalreporter.write_line(f"{name} = {value:g}: {verdict(value, KNOWN.get(name))}")
