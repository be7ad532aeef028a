"""A source's bytes become frames in the ring, however they are cut; and how far ahead it is."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe import cutter_ahead
from tools.sources import FrameMaker

import relay._core as core
from relay.errors import SourceError

DATA = FrameMaker().seconds(1.0)


def source() -> tuple[core.Engine, core.Stream, core.Source]:
    """One stream with a source that is fed."""
    engine = core.Engine(streams_max=2)
    stream = engine.add_stream("/live")
    stream.claim()
    stream.begin()
    return engine, stream, core.Source(stream, "mpeg")


@settings(deadline=None)
@given(st.lists(st.integers(0, len(DATA)), max_size=20))
def test_cut_anywhere_the_frames_are_the_same(cuts: list[int]) -> None:
    """Frames that two feeds share pass through the carry buffer; the rest goes straight in."""
    engine, stream, cutter = source()
    edges = [0, *sorted(cuts), len(DATA)]
    for start, end in itertools.pairwise(edges):
        cutter.feed(DATA[start:end])
    whole_engine, whole, at_once = source()
    at_once.feed(DATA)
    assert bytes(memoryview(stream.view())) == DATA
    for sequence in range(50):
        assert stream.read(sequence) == whole.read(sequence)
    engine.close()
    whole_engine.close()


def test_feed_tells_how_far_ahead_of_real_time_the_source_is() -> None:
    """Media time fed since the first frame, less the time that has passed; after a pause of hours
    it is two seconds behind and no more."""
    engine, _, cutter = source()
    assert cutter.feed(b"") == 0
    began = time.monotonic()
    ahead_us = cutter.feed(DATA)
    assert 1_000_000 - (time.monotonic() - began) * 1e6 - 50_000 <= ahead_us <= 1_000_000
    assert cutter.feed(DATA) > ahead_us
    engine.close()


def test_more_than_the_most_is_forgiven() -> None:
    """Pages that claim an hour hold their source for seconds: real time goes on from here."""
    hour, s = 3600 * 1_000_000, 1_000_000
    assert cutter_ahead(hour, 100 * s, [100 * s, 101 * s, 120 * s], 35 * s) == [
        35 * s,
        34 * s,
        15 * s,
    ]
    assert cutter_ahead(20 * s, 100 * s, [100 * s, 130 * s], 35 * s) == [20 * s, -2 * s]


def test_another_format_than_promised_is_told() -> None:
    """With what was found."""
    engine, _, cutter = source()
    with pytest.raises(SourceError, match="Ogg"):
        cutter.feed(b"OggS" + bytes(100))
    engine.close()
