"""Tests that failed beside others, once more, one at a time: `again.py CACHE [pytest's words]`.

Rules of this room
  1. Six tests at once on two cores starve each other now and then. One that fails alone as well has
     failed; one that passes alone is named, so that nobody overlooks it.
  2. Only a few: when more than AGAIN_MAX failed it is not the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

AGAIN_MAX = 3


def failed_before(cache: Path) -> list[str]:
    """The tests that the run with this cache directory has ended with; [] when it has none."""
    path = cache / "v" / "cache" / "lastfailed"
    return sorted(json.loads(path.read_text())) if path.exists() else []


def main(cache: str, *words: str) -> int:
    """Return the exit status: 0 when each of them passes alone."""
    failed = failed_before(Path(cache))
    if not 0 < len(failed) <= AGAIN_MAX:
        print(f"{len(failed)} tests failed: none is tried again", flush=True)
        return 1
    print("\nagain, one at a time: " + ", ".join(failed), flush=True)
    options = ["-o", f"cache_dir={cache}", "--last-failed", "--last-failed-no-failures", "none"]
    status = subprocess.call([sys.executable, "-P", "-m", "pytest", *options, *words])
    if status == 0:
        print("FAILED BESIDE OTHERS, PASSED ALONE: " + ", ".join(failed), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
