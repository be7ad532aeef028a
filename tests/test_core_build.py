"""Which core is this? A checked build that silently tests the release core would prove nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import relay._core as core


def test_core_names_its_build() -> None:
    """The core says release, checked or asan, from the macros it was compiled with."""
    assert core.BUILD in {"release", "checked", "asan"}


def test_core_is_the_build_that_was_asked_for() -> None:
    """Under `make checked` and `make asan` the file and the constant agree."""
    expected = os.environ.get("RELAY_EXPECT_BUILD", core.BUILD)
    assert expected == core.BUILD
    assert (f"build/{core.BUILD}/" in Path(core.__file__).as_posix()) == (core.BUILD != "release")


def test_core_of_a_child_process_is_the_same(core_env: dict[str, str]) -> None:
    """Nodes that a test starts run on the core under test, not on the one beside setup.py."""
    script = "import relay._core as core; print(core.__file__)"
    told = subprocess.run(
        [sys.executable, "-P", "-c", script], env=core_env, capture_output=True, text=True
    )
    assert told.stdout.strip() == core.__file__, told.stderr
