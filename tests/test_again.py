"""A test that fails beside others is tried alone: it passes there and is named, or has failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tools.again import AGAIN_MAX, failed_before, main

ONCE = """
from pathlib import Path
def test_it():
    seen = Path(__file__).with_suffix(".seen")
    if not seen.exists():
        seen.touch()
        raise AssertionError
"""
ALWAYS = "def test_it():\n    raise AssertionError\n"


def run(folder: Path, tests: dict[str, str]) -> Path:
    """Run these tests; returns the cache directory that remembers which failed."""
    for name, text in tests.items():
        (folder / f"test_{name}.py").write_text(text)
    cache = folder / "cache"
    command = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={cache}", str(folder)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 1
    return cache


def test_one_that_passes_alone_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its file stands in the last line."""
    cache = run(tmp_path, {"once": ONCE, "fine": "def test_it(): pass"})
    assert main(str(cache), str(tmp_path)) == 0
    told = capfd.readouterr().out.splitlines()
    assert told[-1].startswith("FAILED BESIDE OTHERS, PASSED ALONE: ")
    assert "test_once.py::test_it" in told[-1]
    assert any("1 passed" in line for line in told)


def test_one_that_fails_alone_too_has_failed(tmp_path: Path) -> None:
    """Beside one that passes then."""
    cache = run(tmp_path, {"once": ONCE, "always": ALWAYS})
    assert main(str(cache), str(tmp_path)) == 1
    assert [name.rpartition("/")[2] for name in failed_before(cache)] == ["test_always.py::test_it"]


def test_many_are_not_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nor is a run that ended without a word on any test."""
    cache = run(tmp_path, {f"once{number}": ONCE for number in range(AGAIN_MAX + 1)})
    assert main(str(cache), str(tmp_path)) == 1
    assert main(str(tmp_path / "none"), str(tmp_path)) == 1
    assert "again, one at a time" not in capfd.readouterr().out
