"""Material for the tests of frames: what real encoders write, and what FFmpeg reads out of it.

Rules of this room
  1. Every byte is made here by FFmpeg's encoders and muxers (PyAV); nothing is stored.
  2. The same arguments give the same sound; the bytes of one session are cached and shared.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import random
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from relay._probe_data import Scanner

Frame = tuple[bytes, int, int]

START, HEADER, CHAIN = 1, 2, 4
FRAME_BYTES_MAX = 65536


def sound(rate_hz: int, channels: int, seconds: float) -> np.ndarray:
    """A chord and some noise, float32 of shape (channels, samples); noise keeps encoders busy."""
    samples = round(rate_hz * seconds)
    time_s = np.arange(samples) / rate_hz
    noise = np.random.default_rng(7).standard_normal((channels, samples)) * 0.05
    chord = sum(np.sin(2 * math.pi * tone * time_s) for tone in (220.0, 277.2, 329.6)) / 6
    return np.ascontiguousarray(noise + chord, dtype=np.float32)


def add_stream(file: av.container.OutputContainer, codec: str, rate_hz: int, channels: int,
               bit_rate_bps: int, options: dict[str, str]) -> av.AudioStream:  # fmt: skip
    """One stream of an output file, ready to encode."""
    stream = file.add_stream(codec, rate=rate_hz, options=options)
    assert isinstance(stream, av.AudioStream)
    stream.layout = "mono" if channels == 1 else "stereo"
    if bit_rate_bps:
        stream.bit_rate = bit_rate_bps
    stream.codec_context.open()
    return stream


@functools.cache
def encode(
    codec: str,
    container: str,
    rate_hz: int,
    *,
    channels: int = 2,
    bit_rate_bps: int = 128_000,
    seconds: float = 3.0,
    muxer: tuple[tuple[str, str], ...] = (),
    coder: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """Some seconds of sound, as one encoder and one muxer write it."""
    out = io.BytesIO()
    with av.open(out, "w", format=container, options=dict(muxer)) as file:
        stream = add_stream(file, codec, rate_hz, channels, bit_rate_bps, dict(coder))
        layout = "mono" if channels == 1 else "stereo"
        whole = av.AudioFrame.from_ndarray(
            sound(rate_hz, channels, seconds), format="fltp", layout=layout
        )
        whole.sample_rate, whole.time_base, whole.pts = rate_hz, Fraction(1, rate_hz), 0
        pieces = av.AudioResampler(
            format=stream.codec_context.format.name,
            layout=layout,
            rate=rate_hz,
            frame_size=stream.codec_context.frame_size or 1024,
        )
        for piece in [*pieces.resample(whole), *pieces.resample(None), None]:
            for packet in stream.encode(piece):
                file.mux(packet)
    return out.getvalue()


def seconds_of(stream: av.AudioStream) -> Fraction:
    """The unit of this stream's time stamps."""
    assert stream.time_base is not None
    return stream.time_base


def demux(data: bytes, container: str) -> list[tuple[bytes, int, int]]:
    """The packets that FFmpeg's demuxer finds: (bytes, samples, sample rate)."""
    with av.open(io.BytesIO(data), "r", format=container) as file:
        stream = file.streams.audio[0]
        rate_hz = stream.codec_context.sample_rate
        return [
            (bytes(packet), round((packet.duration or 0) * seconds_of(stream) * rate_hz), rate_hz)
            for packet in file.demux(stream)
            if packet.size
        ]


def scan(kind: str, *pieces: bytes) -> list[Frame]:
    """Every frame that a new scanner cuts from these pieces."""
    scanner = Scanner(kind)
    return [frame for piece in pieces for frame in scanner.feed(piece)]


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The same bytes in pieces, cut at the given offsets (taken modulo their number)."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


def noise(seed: int, size: int) -> bytes:
    """Random bytes, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def damaged(data: bytes, begin: int, end: int, fault: str, seed: int) -> bytes:
    """The data with one named fault somewhere in begin … end: `flip`, `drop` or `junk` (at end)."""
    dice = random.Random(seed)
    at = dice.randrange(begin, end)
    if fault == "flip":
        return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]
    if fault == "drop":
        return data[:at] + data[dice.randrange(at, end) + 1 :]
    return data[:end] + dice.randbytes(dice.randrange(1, 3000)) + data[end:]


def is_exact(frames: list[Frame], samples: int, rate_hz: int) -> bool:
    """Whether the durations sum up to the sample clock, to the microsecond."""
    return sum(duration_us for _, duration_us, _ in frames) == samples * 1_000_000 // rate_hz
