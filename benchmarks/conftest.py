"""What every benchmark carries: the machine, the commit and the build of the core.

Rules of this room
  1. Work counts that do not drift (sends, copies, bytes) are asserted in the benchmark; times are
     shown. A number without machine and commit is not kept.
  2. A benchmark checks what was delivered, and runs once in every test run.
"""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


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
