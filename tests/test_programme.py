"""relay.programme: one seed, one programme, with marks to tell the time by."""

from __future__ import annotations

import io
from itertools import islice

import av
import numpy as np
import pytest

from relay.programme import (
    BLOCK_SAMPLES,
    RATE_HZ,
    Codec,
    blocks,
    encode,
    known_signal,
    mark_of,
    programme_bytes,
    second_of,
    title_at,
)


def strongest_hz(samples: np.ndarray) -> float:
    """The strongest pitch from 900 Hz up, where the marks are."""
    spectrum = np.abs(np.fft.rfft(samples.mean(axis=1), RATE_HZ))
    spectrum[:900] = 0
    return float(np.argmax(spectrum))


def decode(data: bytes) -> np.ndarray:
    """Container bytes to samples, shape (samples, 2)."""
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.concatenate(frames, axis=1).T


def test_one_seed_makes_one_programme() -> None:
    """The same samples again; others from another seed."""
    assert np.array_equal(second_of(7, seed=3), second_of(7, seed=3))
    assert not np.array_equal(second_of(7, seed=3), second_of(7, seed=4))


def test_seconds_are_48_khz_stereo_float_within_bounds() -> None:
    """And neither silent nor clipped."""
    for second in (0, 1, 10, 63):
        samples = second_of(second)
        assert (samples.shape, samples.dtype) == ((RATE_HZ, 2), np.float32)
        assert 0.1 < np.abs(samples).max() < 1.0


def test_the_music_runs_through_from_second_to_second() -> None:
    """No click at a seam that is no mark: the largest step is that of the music itself."""
    for second in (4, 8):
        seam = np.concatenate([second_of(second)[-200:], second_of(second + 1)[:5]])
        assert np.abs(np.diff(seam, axis=0)).max() < 0.08


@pytest.mark.parametrize("second", [0, 1, 9, 10, 11, 37, 50])
def test_each_second_begins_with_its_mark(second: int) -> None:
    """Its pitch tells the second, its length the ten."""
    pitch_hz, length_s = mark_of(second)
    mark = second_of(second)[: int(length_s * RATE_HZ)]
    assert strongest_hz(mark) == pytest.approx(pitch_hz, abs=12)
    assert length_s == (0.3 if second % 10 == 0 else 0.06)


def test_blocks_are_the_seconds_in_order_and_begin_anywhere() -> None:
    """Twenty milliseconds each, without an end."""
    second = np.concatenate(list(islice(blocks(first_s=5), RATE_HZ // BLOCK_SAMPLES)))
    assert np.array_equal(second, second_of(5))


@pytest.mark.parametrize(("codec", "bit_s"), [("mp3", 128_000), ("opus", 96_000)])
def test_encoded_programme_keeps_its_length_bit_rate_and_marks(codec: Codec, bit_s: int) -> None:
    """What a listener decodes is the programme."""
    data = programme_bytes(codec, 3)
    samples = decode(data)
    assert len(samples) == pytest.approx(3 * RATE_HZ, abs=3_000)
    assert len(data) * 8 / 3 == pytest.approx(bit_s, rel=0.15)
    start = 2 * RATE_HZ + (len(samples) - 3 * RATE_HZ if codec == "mp3" else 0)
    mark = samples[start : start + int(0.06 * RATE_HZ)]
    assert strongest_hz(mark) == pytest.approx(mark_of(2)[0], abs=25)


@pytest.mark.parametrize("codec", ["mp3", "opus"])
def test_encoding_gives_small_chunks_in_media_time(codec: Codec) -> None:
    """At least five a second, none ahead of its media time."""
    chunks = list(islice(encode(codec, first_s=4), 12))
    times_s = [chunk.media_s for chunk in chunks]
    assert times_s == sorted(times_s)
    assert times_s[-1] < 2.5
    assert max(len(chunk.data) for chunk in chunks) < 4_000


def test_known_signal_has_the_shape_that_was_asked_for() -> None:
    """Samples by channels, float32, decided by the seed."""
    signal = known_signal(0.5, 44_100, 1, seed=2)
    assert (signal.shape, signal.dtype) == ((22_050, 1), np.float32)
    assert np.array_equal(signal, known_signal(0.5, 44_100, 1, seed=2))
    assert not np.array_equal(signal, known_signal(0.5, 44_100, 1, seed=3))
    assert np.abs(known_signal(1)).max() < 0.61


def test_titles_change_with_the_programme() -> None:
    """One each fifteen seconds, with the time in it."""
    assert title_at(0) == "Relay Demo - Morning (00:00)"
    assert title_at(75) == "Relay Demo - Clear Sky (01:15)"
