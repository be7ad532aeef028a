"""How fast the scanners cut: bytes a second, without the GIL, with what came out checked.

Rules of this room
  1. The clock runs in the core around nothing but scan_next; Python is not measured.
  2. Frames and bytes are compared with one careful pass, so that a fast wrong answer fails.
  3. The floor is 200 MB/s: a thousand sources of 320 kbit/s are 40 MB/s, and a node has more to do.
"""

from __future__ import annotations

import random
import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from relay._probe_data import Scanner
from test_frames_ogg import page, speex_head
from tools.encoders import encode, scan

from relay._core import Engine, Source

FLOOR_MBPS = 200
ROUND_BYTES = 64_000_000

WITHOUT_TAG = (("id3v2_version", "0"),)
PAGES_20_MS = (("page_duration", "20000"),)


def speex(seconds: int) -> bytes:
    """Ogg Speex at 25 kbit/s, a page a second, of noise: no encoder of ours is asked to make it."""
    dice = random.Random(1)
    pages = [page(speex_head(), flags=2), page(b"vendor" + bytes(8), sequence=1)]
    for second in range(seconds):
        packets = [dice.randbytes(124) for _ in range(25)]  # 40 ms each
        pages.append(page(*packets, granule=16_000 * (second + 1), sequence=2 + second))
    return b"".join(pages)


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
    "speex": ("ogg", speex(seconds=30)),
    "flac": ("ogg", encode("flac", "ogg", 44100, bit_rate_bps=0, seconds=8)),
    "webm-opus": ("webm", encode("libopus", "webm", 48000, seconds=8, muxer=(("live", "1"),))),
    "matroska-flac": ("matroska", encode("flac", "matroska", 44100, bit_rate_bps=0, seconds=8)),
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


CORE_PERCENT_MAX = 1.0  # for a source of 320 kbit/s, from its bytes into the ring


@pytest.mark.parametrize("page_ms", [0, 20], ids=["as it came", "repaged"])
def test_whole_source_takes_a_hundredth_of_a_core(
    benchmark: BenchmarkFixture, page_ms: int
) -> None:
    """Feed to ring, as the intake does it: in reads of 1,400 B, pages divided to single packets."""
    data = encode("libopus", "ogg", 48000, bit_rate_bps=320_000, seconds=30)
    pieces = [data[at : at + 1400] for at in range(0, len(data), 1400)]
    pages: list[int] = []

    def feed() -> float:
        engine = Engine(streams_max=2)
        engine.configure("/live", ogg_page_ms=page_ms)
        stream = engine.add_stream("/live")
        stream.claim()
        stream.begin()
        source = Source(stream, "ogg")
        began = time.thread_time()
        for piece in pieces:
            source.feed(piece)
        took_s = time.thread_time() - began
        state = stream.snapshot()
        assert state["head_media_us"] == pytest.approx(30e6, abs=100_000)
        pages.append(state["head_sequence"])
        engine.close()
        return took_s

    took_s = benchmark.pedantic(feed, rounds=3, iterations=1, warmup_rounds=1)
    assert pages[-1] > (1400 if page_ms else 25)
    percent = took_s / 30 * 100
    benchmark.extra_info["core_percent"] = round(percent, 3)
    assert percent <= CORE_PERCENT_MAX
