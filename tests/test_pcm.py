"""PCM into a stream: what is taken, what is refused, what is dropped, and that nothing blocks."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import pytest

from relay.errors import ConfigError, SourceError
from relay.pcm import PcmEncoder, pcm_form

av = pytest.importorskip("av")


def tone(frames: int = 4800, channels: int = 2, kind: str = "float32") -> Any:
    """A tone at 440 Hz, half scale, at 48 kHz."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(frames) / 48_000)
    samples = np.repeat(wave[:, np.newaxis], channels, axis=1)
    return (samples * 32767).astype("int16") if kind == "int16" else samples.astype(kind)


@pytest.mark.parametrize(
    ("codec", "begins"),
    [("opus", b"OggS"), ("flac", b"OggS"), ("mp3", b"\xff\xfb"), ("aac", b"\xff\xf1")],
)
@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_blocks_become_a_stream(codec: str, begins: bytes, kind: str) -> None:
    """Of the codec's container; all of it is encoded at the end."""
    fed: list[bytes] = []
    encoder = PcmEncoder(pcm_form(codec, 48_000, 2, None, 1000), fed.append, "/live")
    for _ in range(5):
        encoder.feed(tone(kind=kind), 48_000)
    encoder.close(30)
    assert b"".join(fed).startswith(begins)
    facts = encoder.facts()
    assert facts.fed_frames_total == facts.encoded_frames_total == 24_000
    assert (facts.dropped_blocks_total, facts.queued_ms) == (0, 0)
    assert facts.realtime_factor > 1


@pytest.mark.parametrize(
    ("samples", "rate_hz", "says"),
    [
        (b"\0\0", None, "numpy array, not bytes"),
        (tone(kind="float64"), None, "dtype float64; int16 and float32"),
        (tone().astype(">f4"), None, "dtype >f4"),
        (tone(channels=1), None, r"shape \(4800, 1\); this source takes \(frames, 2\)"),
        (tone()[:, 0], None, r"shape \(4800,\)"),
        (tone(), 44_100, "44100 Hz; this source was opened with rate_hz=48000"),
        (np.zeros((1 << 20 | 1, 2), "int16"), None, "1048577 frames; the bound is 1048576"),
    ],
)
def test_what_is_no_block_is_refused(samples: Any, rate_hz: int | None, says: str) -> None:
    """With the value, what is wanted, and the next step; the source goes on."""
    encoder = PcmEncoder(pcm_form("mp3", 48_000, 2, None, 1000), lambda data: None, "/live")
    with pytest.raises(SourceError, match=says):
        encoder.feed(samples, rate_hz)
    encoder.feed(tone())
    encoder.close(30)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"codec": "wma"}, "codec 'wma' is not known; choose one of opus, mp3, aac, flac"),
        ({"rate_hz": 47_999}, "rate_hz 47999 is no rate"),
        ({"channels": 3}, "channels is 3; the bound is 1 to 2"),
        ({"bitrate_bps": 5}, "bitrate 5 is not within"),
        ({"codec": ["opus"]}, "codec .* is not known"),
        ({"rate_hz": [48_000]}, "rate_hz .* is no rate"),
        ({"rate_hz": 10**5000}, "rate_hz a number of 16610 bits is no rate"),
        ({"rate_hz": 48_000.0}, "rate_hz 48000.0 is no rate"),
        ({"channels": True}, "channels is True; the bound is 1 to 2"),
        ({"bitrate_bps": "128k"}, "bitrate_bps is '128k'; it is a whole number"),
        ({"queue_ms": 1}, "queue_ms is 1; the bound is 10 to 60000"),
    ],
)
def test_settings_out_of_bounds_are_refused(changed: dict[str, Any], says: str) -> None:
    """Before anything is opened."""
    told = {"codec": "opus", "rate_hz": 48_000, "channels": 2, "bitrate_bps": None}
    with pytest.raises(ConfigError, match=says):
        pcm_form(**{**told, "queue_ms": 1000, **changed})


def test_numbers_of_numpys_are_numbers() -> None:
    """A rate or a count is often a part of an array's facts."""
    told: list[Any] = [np.int64(48_000), np.uint8(2), None, np.int32(1000)]
    form = pcm_form("opus", *told)
    assert form[1:] == (48_000, 2, None, 1000)
    assert {type(value) for value in (form.rate_hz, form.channels, form.queue_ms)} == {int}


def test_without_the_extra_the_next_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip install 'relay-audio[media]'."""
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(SourceError, match=r"pip install 'relay-audio\[media\]'"):
        pcm_form("opus", 48_000, 2, None, 1000)


def test_a_full_queue_drops_and_counts_and_never_blocks() -> None:
    """The encoder hangs: queue_ms of PCM wait, the rest is dropped."""
    go = threading.Event()
    began = threading.Event()

    def feed(data: bytes) -> None:
        began.set()
        go.wait()

    encoder = PcmEncoder(pcm_form("mp3", 48_000, 2, None, 500), feed, "/live")
    fed = 0
    while not began.is_set():
        encoder.feed(tone())
        fed += 1
    for _ in range(10):
        encoder.feed(tone())
    facts = encoder.facts()
    assert facts.queued_ms <= 500
    assert facts.dropped_blocks_total >= 5
    assert facts.fed_frames_total + facts.dropped_frames_total == (fed + 10) * 4800
    go.set()
    encoder.close(30)
    with pytest.raises(SourceError, match="closed"):
        encoder.feed(tone())


def test_one_block_longer_than_the_queue_is_taken() -> None:
    """Else nothing of that size would ever be heard."""
    encoder = PcmEncoder(pcm_form("mp3", 48_000, 2, None, 10), lambda data: None, "/live")
    encoder.feed(tone(48_000))
    encoder.close(30)
    assert encoder.facts().encoded_frames_total == 48_000


def test_a_source_that_takes_no_more_ends_the_encoder() -> None:
    """The next block is told so, in the words of the source."""

    def feed(data: bytes) -> None:
        raise SourceError("/live: this source is closed; open a new one")

    encoder = PcmEncoder(pcm_form("mp3", 48_000, 2, None, 1000), feed, "/live")
    with contextlib.suppress(SourceError):  # the worker may be faster than these
        for _ in range(20):
            encoder.feed(tone())
    encoder.close(30)
    with pytest.raises(SourceError, match="closed"):
        encoder.feed(tone())


def test_what_is_no_number_does_not_spoil_what_follows() -> None:
    """NaN and infinity become silence and full scale."""
    fed: list[bytes] = []
    encoder = PcmEncoder(pcm_form("flac", 48_000, 2, None, 1000), fed.append, "/live")
    bad = tone()
    bad[100:200] = np.nan
    bad[300:400] = np.inf
    encoder.feed(bad)
    encoder.feed(tone())
    encoder.close(30)
    assert encoder.facts().encoded_frames_total == 9600
    assert len(b"".join(fed)) > 1000


def test_ahead_is_told_in_ms() -> None:
    """Media fed since the first block, less the time that has passed."""
    now = [100.0]
    form = pcm_form("mp3", 48_000, 2, None, 60_000)
    encoder = PcmEncoder(form, lambda data: None, "/live", now=lambda: now[0])
    assert encoder.feed(tone(4800)) == pytest.approx(100)
    now[0] += 0.15
    assert encoder.feed(tone(4800)) == pytest.approx(50)
    encoder.close(30)
