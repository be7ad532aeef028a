"""What a node sees of its own decisions: reads the flight recorder, finds gaps, tells both.

Rules of this room
  1. A thin shell: what a record means is in relay/recorder.py, what a gap is in relay/gaps.py.
  2. On the node's loop, twice a second; blocks for no longer than copying what is new.
  3. A gap is told once: a line in the log (GAP_LINES_MAX at a look, the rest as a number), a
     record, a counter.
  4. Bounds: MOUNTS_MAX names of streams that are gone; RECORDS_MAX records an answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from relay import recorder
from relay.gaps import Cause, Gap, GapBook
from relay.recorder import Record

if TYPE_CHECKING:
    from relay._core import Engine
    from relay.backbone import Backbone
    from relay.config import Config

log = logging.getLogger("relay.gaps")

GAP_LINES_MAX = 20
MOUNTS_MAX = 65536


class Seeing:
    """The flight recorder and the gaps of one node.

    Args:
        engine: the node's data plane.
        backbone: its links, or None.
        upstreams: their addresses, in the order of the settings.
        settings: what decisions were made with, for whoever reads the recording.
    """

    def __init__(
        self,
        engine: Engine,
        backbone: Backbone | None,
        upstreams: Sequence[str],
        settings: Mapping[str, Any],
    ) -> None:
        self._settings = dict(settings)
        self._engine = engine
        self._backbone = backbone
        self._upstreams = tuple(upstreams)
        self._book = GapBook()
        self._mounts: dict[int, str] = {}
        self._cursors: tuple[list[int], list[int]] = ([], [])
        self.gaps_total: dict[Cause, int] = {}

    def tick(self) -> list[Gap]:
        """Look for gaps, tell those that are over, and return them."""
        heads = self._engine.heads()
        self._mounts |= {head[0]: head[1] for head in heads}
        if len(self._mounts) > MOUNTS_MAX:
            self._mounts = {head[0]: head[1] for head in heads}
        now_us, wall_us = time.monotonic_ns() // 1000, time.time_ns() // 1000
        gaps = self._book.see(now_us, wall_us, heads, self._records(self._cursors))
        for gap in gaps:
            self.gaps_total[gap.cause] = self.gaps_total.get(gap.cause, 0) + 1
            self._note(gap)
        for gap in gaps[:GAP_LINES_MAX]:
            self._log(gap)
        if len(gaps) > GAP_LINES_MAX:
            log.warning(
                "%d more gaps at this moment; /api/v1/streams has them",
                len(gaps) - GAP_LINES_MAX,
                extra={"event": "gaps"},
            )
        return gaps

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Their addresses, in the order of the settings."""
        return self._upstreams

    def counters(self) -> dict[str, int]:
        """Gaps by cause, and records that were overwritten before their time."""
        totals: dict[Cause, int] = {"source": 0, "hop": 0, "own overload": 0, "listener": 0}
        told = {
            f"gaps_{cause.replace(' ', '_')}_total": n
            for cause, n in (totals | self.gaps_total).items()
        }
        return told | {"recorder_washed_total": self._washed()}

    def stream(self, key: int) -> dict[str, Any]:
        """What /api/v1/streams tells of one stream's gaps."""
        return {
            "gaps": [gap.document(self._upstreams) for gap in self._book.gaps(key)],
            "gaps_total": self._book.totals(key),
        }

    def recording(self, since_s: float, mount: str | None, records_max: int) -> dict[str, Any]:
        """The flight recorder, newest first; blocks for about 5 µs a record.

        Args:
            since_s: how far back, seconds.
            mount: this stream alone, and what is the node's; None: all.
            records_max: at most so many; `left_off` tells of others.
        """
        now_us = time.monotonic_ns() // 1000
        since_us = max(0, now_us - int(since_s * 1e6))
        found = self._records(([], []), since_us)
        if mount is not None:
            found = [one for one in found if not one.stream or self._mount_of(one.stream) == mount]
        found.sort(key=lambda one: one.at_us)  # of one moment: in the order of their writer
        found.reverse()
        return {
            "settings": self._settings,
            "wall_us": time.time_ns() // 1000,
            "kept_s": recorder.KEEP_S,
            "washed_total": self._washed(),
            "left_off": max(0, len(found) - records_max),
            "records": [
                recorder.document(one, self._mount_of, self._upstreams)
                for one in islice(found, records_max)
            ],
        }

    # --- inside ---

    def _records(self, cursors: tuple[list[int], list[int]], since_us: int = 0) -> list[Record]:
        told = self._engine.recorded(cursors[0], since_us=since_us)
        if self._backbone is not None:
            told += self._backbone.recorded(cursors[1], since_us=since_us)
        return [Record(*one) for one in told]

    def _washed(self) -> int:
        above = 0 if self._backbone is None else self._backbone.washed_total
        return self._engine.washed_total + above

    def _mount_of(self, key: int) -> str | None:
        return self._mounts.get(key)

    def _note(self, gap: Gap) -> None:
        self._engine.note(
            recorder.GAP,
            recorder.CAUSES.index(gap.cause),
            stream=gap.key,
            parent=gap.parent if gap.cause == "hop" else recorder.NOBODY,
            a=gap.duration_us,
            b=gap.frames,
            c=gap.skips or gap.listeners,
        )

    def _log(self, gap: Gap) -> None:
        told = gap.document(self._upstreams)
        log.warning(
            "gap: %s, %d ms, cause: %s%s%s%s",
            gap.mount,
            told["duration_ms"],
            gap.cause,
            f" {told['hop']}" if told["hop"] else "",
            f" ({gap.why})" if gap.why else "",
            f", {gap.frames} frames lost" if gap.frames else "",
            extra={"event": "gap", "mount": gap.mount, **told},
        )


def open_seeing(engine: Engine, backbone: Backbone | None, config: Config) -> Seeing:
    """The eyes of a node that has just started, with its settings as the first record."""
    known = [] if backbone is None else backbone.snapshot()["upstreams"]
    upstreams = [up["address"] for up in known]
    told = config.backbone
    settings = {
        "redundancy": told.redundancy,
        "silence_ms": told.silence_ms,
        "repair_wait_ms": config.repair_wait_ms(""),
        "upstreams": upstreams,
        "listeners_max": engine.listeners_max,
        "burst_ms": config.defaults.burst_ms,
        "ring_s": config.defaults.ring_s,
        "lag_ms_max": config.defaults.lag_ms_max,
        "linger_s": config.defaults.linger_s,
    }
    engine.note(
        recorder.STARTED,
        int(told.redundancy == "merge"),
        a=told.silence_ms,
        b=config.repair_wait_ms(""),
        c=len(upstreams),
    )
    return Seeing(engine, backbone, upstreams, settings)
