"""A `relay serve` with a defect, for the proof that checks find it: `planted.py DEFECT serve …`.

Rules of this room
  1. The defect is put in from outside, in a process of its own: nothing in the package knows of it
     but `Backbone.fault`, which no setting reaches.
  2. `drop-runs` is no defect but a fault: a sound node mends it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from relay import backbone
from relay.cli import main

DROP_EVERY = 25  # runs, of both streams together
LEAK_EVERY_S = float(os.environ.get("PLANTED_LEAK_EVERY_S", "60"))
LEAK_BYTES = 2 << 20
# What Backbone.fault is told; the numbers are those of relay/_core/backbone_state.pxd.
FAULTS: dict[str, dict[str, Any]] = {
    "drop-runs": {"drop_every": DROP_EVERY},
    "no-repair": {"drop_every": DROP_EVERY, "defects": 1},
    "no-duplicate-check": {"defects": 2},
    "no-hole-rule": {"drop_every": DROP_EVERY, "defects": 4},
}
LEAKS = ("leak-descriptor", "leak-thread", "leak-memory")
DEFECTS = (*FAULTS, *LEAKS)
_kept: list[Any] = []


def leak(kind: str) -> None:
    """Lose one thing each LEAK_EVERY_S."""
    while True:
        time.sleep(LEAK_EVERY_S)
        if kind == "leak-descriptor":
            _kept.append(os.open("/dev/null", os.O_RDONLY))
        elif kind == "leak-thread":
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        else:
            _kept.append(os.urandom(LEAK_BYTES))


def plant(defect: str) -> None:
    """Put the defect into this process."""
    if defect in LEAKS:
        threading.Thread(target=leak, args=(defect,), daemon=True).start()
        return
    sound = backbone.open_backbone

    def open_broken(*args: Any, **options: Any) -> backbone.Backbone:
        opened = sound(*args, **options)
        assert opened._core is not None
        opened._core.fault(**FAULTS[defect])
        return opened

    backbone.open_backbone = open_broken


def command(defect: str) -> list[str]:
    """What to run in place of `python -m relay serve --log-format json`."""
    assert defect in DEFECTS, f"{defect!r} is none of {DEFECTS}"
    return [sys.executable, "-P", __file__, defect, "serve", "--log-format", "json"]


if __name__ == "__main__":
    plant(sys.argv.pop(1))
    main(prog_name="relay")
