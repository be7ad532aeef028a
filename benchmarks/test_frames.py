"""How fast the scanners cut: bytes a second, without the GIL, with what came out checked.

Rules of this room
  1. The clock runs in the core around nothing but scan_next; Python is not measured.
  2. Frames and bytes are compared with one careful pass, so that a fast wrong answer fails.
  3. The floor is 200 MB/s: a thousand sources of 320 kbit/s are 40 MB/s, and a node has more to do.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from relay._probe_data import Scanner
from tools.encoders import encode, scan

FLOOR_MBPS = 200
ROUND_BYTES = 64_000_000

WITHOUT_TAG = (("id3v2_version", "0"),)
PAGES_20_MS = (("page_duration", "20000"),)
MATERIAL = {
    "mpeg-128k": ("mpeg", encode("libmp3lame", "mp3", 44100, seconds=8, muxer=WITHOUT_TAG)),
    "mpeg-8k": (
        "mpeg",
        encode("libmp3lame", "mp3", 8000, bit_rate_bps=8000, channels=1, seconds=30,
               muxer=WITHOUT_TAG),
    ),
    "adts-128k": ("adts", encode("aac", "adts", 44100, seconds=8)),
    "opus-96k": ("ogg", encode("libopus", "ogg", 48000, bit_rate_bps=96_000, seconds=8)),
    "opus-20ms-pages": ("ogg", encode("libopus", "ogg", 48000, seconds=8, muxer=PAGES_20_MS)),
    "vorbis": (
        "ogg",
        encode("vorbis", "ogg", 44100, seconds=8, coder=(("strict", "-2"),)),
    ),
    "flac": ("ogg", encode("flac", "ogg", 44100, bit_rate_bps=0, seconds=8)),
}  # fmt: skip


@pytest.mark.parametrize("name", MATERIAL)
def test_scanning_is_far_faster_than_any_source(benchmark: BenchmarkFixture, name: str) -> None:
    """Every format goes through at 200 MB/s or more, and not a frame is missing."""
    kind, data = MATERIAL[name]
    careful = scan(kind, data)
    rounds = ROUND_BYTES // len(data) + 1
    scanner = Scanner(kind)

    seconds, frames, frame_bytes = benchmark.pedantic(
        scanner.measure, args=(data, rounds), rounds=3, iterations=1, warmup_rounds=1
    )

    assert frames == len(careful) * rounds
    assert frame_bytes == sum(len(frame) for frame, _, _ in careful) * rounds
    megabytes_per_s = frame_bytes / seconds / 1e6
    benchmark.extra_info["megabytes_per_s"] = round(megabytes_per_s)
    benchmark.extra_info["ns_per_frame"] = round(seconds * 1e9 / frames, 1)
    assert megabytes_per_s >= FLOOR_MBPS
