"""Lateness and held media are what the stamps and granules say, to the frame."""

from __future__ import annotations

import struct

import pytest
from tools.lateness import (
    Heard,
    LatenessChecker,
    OggSource,
    lateness_ms,
    media_ms_by,
    ogg_pages,
    percentile,
)
from tools.listeners import Arrival, Listener
from tools.sources import FrameMaker, Source


def page(granule: int, size: int = 300) -> bytes:
    """An Ogg page of this size without a right checksum, which nobody here looks at."""
    lacing = bytes([255] * (size // 255) + [size % 255])
    head = struct.pack("<4sBBqIII", b"OggS", 0, 0, granule, 1, 0, 0)
    return head + bytes([len(lacing)]) + lacing + bytes(size)


def test_percentile_is_a_measured_value() -> None:
    """Nearest rank: p99 of 100 values leaves one above it."""
    values = [float(n) for n in range(100, 0, -1)]
    assert percentile(values, 99) == 99.0
    assert percentile(values, 50) == 50.0
    assert percentile([5.0], 99) == 5.0
    with pytest.raises(AssertionError):
        percentile([], 99)


def test_lateness_is_arrival_minus_stamp() -> None:
    """Each frame has its own stamp, however the bytes were split on the way."""
    now = iter([1_000_000, 2_000_000, 3_000_000])
    maker = FrameMaker(64, now_us=lambda: next(now))
    data = b"".join(maker.frames(3))
    checker = LatenessChecker()
    checker.feed(data[:250], 1_100_000)
    checker.feed(data[250:], 3_200_000)
    assert checker.clean
    assert lateness_ms(checker.heard) == pytest.approx([100.0, 1200.0, 200.0])
    assert lateness_ms(checker.heard, 1.5, 2.5) == pytest.approx([1200.0])
    assert media_ms_by(checker.heard, 1.2) == pytest.approx(1152 / 44.1)
    assert media_ms_by(checker.heard, 1.0) == 0.0


def test_pages_are_cut_where_they_begin_and_only_whole_ones() -> None:
    """An unfinished page waits for its rest; what is no page is named."""
    data = page(0, 20) + page(4800) + page(-1, 255) + page(9600, 700)
    pages = list(ogg_pages(data))
    assert [one.granule for one in pages] == [0, 4800, -1, 9600]
    assert b"".join(one.data for one in pages) == data
    assert [one.granule for one in ogg_pages(data[:-1])] == [0, 4800, -1]
    assert len(list(ogg_pages(data[: len(page(0, 20)) + 27]))) == 1
    with pytest.raises(ValueError, match="no page at byte"):
        list(ogg_pages(page(0) + b"?" * 30))


def test_media_of_pages_is_known_from_the_middle_of_a_stream() -> None:
    """A listener that joined late has the header pages, then pages; each came when its end came."""
    data = page(0, 20) + page(4800) + page(9600) + page(14400)
    source = OggSource(Source(("127.0.0.1", 1)), data, 48_000)
    source.made_s = {4800: 0.1, 9600: 0.2, 14400: 0.3}
    listener = Listener(b"", checker=None, keep=True)
    listener.body += page(0, 20) + page(9600) + page(14400)
    first = len(page(0, 20) + page(9600))
    listener.arrivals = [Arrival(5.0, first), Arrival(6.0, 10), Arrival(7.0, len(page(14400)) - 10)]
    assert source.heard_by(listener) == [
        Heard(5.0, 0.2, pytest.approx(0.1)),
        Heard(7.0, 0.3, pytest.approx(0.1)),
    ]
