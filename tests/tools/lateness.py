"""When each piece of media came: lateness of frames and of Ogg pages, and media held by a time.

Rules of this room
  1. A source notes when it wrote, a listener when it read, both on CLOCK_MONOTONIC of one machine.
  2. MP3 frames carry their stamp (tools.sources); Ogg pages are known by their granule position,
     so real encoders can be judged as well.
  3. Percentiles are the nearest rank: a value that was measured, never one in between.
"""

from __future__ import annotations

import math
import struct
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from tools.listeners import Listener
from tools.sources import SAMPLE_RATES_HZ, SAMPLES, FrameChecker, Mark, Source


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of all do not exceed."""
    assert values, "nothing was measured"
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


class Heard(NamedTuple):
    """One whole frame or page at a listener."""

    at_s: float  # when its last byte came
    made_s: float  # when the source wrote it
    media_s: float  # how much it plays


class LatenessChecker(FrameChecker):
    """A FrameChecker that also remembers when each frame came."""

    def __init__(self, sample_rate_hz: int = SAMPLE_RATES_HZ[0]) -> None:
        super().__init__()
        self.heard: list[Heard] = []
        self._frame_s = SAMPLES / sample_rate_hz

    def _frame(self, mark: Mark, arrived_us: int) -> None:
        super()._frame(mark, arrived_us)
        self.heard.append(Heard(arrived_us / 1e6, mark.made_us / 1e6, self._frame_s))


def media_ms_by(heard: Sequence[Heard], at_s: float) -> float:
    """Return the media time that had come by then, in ms."""
    return sum(one.media_s for one in heard if one.at_s <= at_s) * 1000


def lateness_ms(
    heard: Sequence[Heard], since_s: float = 0.0, until_s: float = math.inf
) -> list[float]:
    """Return how long each piece was on its way that was made in this time, in ms."""
    return [(one.at_s - one.made_s) * 1000 for one in heard if since_s <= one.made_s < until_s]


class Page(NamedTuple):
    """One Ogg page (RFC 3533 §6)."""

    data: bytes
    granule: int  # samples up to its end; -1: no packet ends in it


def ogg_pages(data: bytes) -> Iterator[Page]:
    """Yield the whole pages at the front; ValueError where none begins."""
    at = 0
    while len(data) - at >= 27:
        if data[at : at + 4] != b"OggS":
            raise ValueError(f"no page at byte {at}: {data[at : at + 8]!r}")
        lacing = data[at + 27 : at + 27 + data[at + 26]]
        end = at + 27 + data[at + 26] + sum(lacing)
        if end > len(data) or len(lacing) < data[at + 26]:
            return
        (granule,) = struct.unpack_from("<q", data, at + 6)
        yield Page(data[at:end], granule)
        at = end


class OggSource:
    """Pushes a recording of one chain, each page when its media is due, on a thread of its own."""

    def __init__(self, source: Source, data: bytes, rate_hz: int) -> None:
        """Prepare; `start()` connects and sends until the recording or the test ends."""
        self.source, self.rate_hz = source, rate_hz
        self.pages = list(ogg_pages(data))
        self.made_s: dict[int, float] = {}  # granule -> when the page was written
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Self:
        """Connect, expect a welcome, and begin to send."""
        status = self.source.connect()
        assert status in {100, 200}, f"the node answered {status}: {self.source.answer!r}"
        self._thread.start()
        return self

    def _run(self) -> None:
        begin_s = time.monotonic()
        try:
            for page in self.pages:
                due_s = begin_s + max(0, page.granule) / self.rate_hz
                if self._end.wait(max(0.0, due_s - time.monotonic())):
                    return
                self.made_s[page.granule] = time.monotonic()
                self.source.send(page.data)
        except OSError:
            return  # the node is gone; the listeners tell what that means

    def heard_by(self, listener: Listener) -> list[Heard]:
        """Return when each page of media came to a listener that keeps its body."""
        ends: list[int] = []
        for arrival in listener.arrivals:
            ends.append(arrival.audio_bytes + (ends[-1] if ends else 0))
        heard, at, before = [], 0, None
        for page in ogg_pages(bytes(listener.body)):
            at += len(page.data)
            if page.granule <= 0:
                continue
            arrived_s = listener.arrivals[bisect_right(ends, at - 1)].at_s
            samples = page.granule - (self._before(page.granule) if before is None else before)
            heard.append(Heard(arrived_s, self.made_s[page.granule], samples / self.rate_hz))
            before = page.granule
        return heard

    def _before(self, granule: int) -> int:
        """Return where the page before that one ended, in samples."""
        return max((page.granule for page in self.pages if 0 < page.granule < granule), default=0)

    def stop(self) -> None:
        """End the source as one that finished."""
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)
        self.source.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.stop()
