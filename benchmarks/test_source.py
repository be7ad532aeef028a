"""What one encoder costs: its bytes cut into frames and pushed into the ring, call by call."""

from __future__ import annotations

import time

import pytest
from tools.encoders import encode

from relay._core import BUILD, Engine, Source

SECONDS = 20
# What one read of a socket brings: a full segment, what ffmpeg writes at once, a whole second.
CHUNKS = [1400, 4096, 40_000]


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_a_320_kbit_source_from_feed_to_ring(benchmark, chunk_bytes):
    """Share of one core for 320 kbit/s in real time (aim ≤ 1 %); every byte arrives in a frame."""
    data = encode("libmp3lame", "mp3", 44_100, bit_rate_bps=320_000, seconds=SECONDS)
    engine = Engine()
    stream = engine.add_stream("/live")
    shares = []

    def feed_all() -> int:
        stream.begin()
        source = Source(stream, "mpeg")
        begin = time.thread_time()
        for at in range(0, len(data), chunk_bytes):
            source.feed(data[at : at + chunk_bytes])
        seconds = time.thread_time() - begin
        state = stream.snapshot()
        shares.append(seconds / (state["head_media_us"] / 1e6))
        return state["head_position"]

    placed = benchmark.pedantic(feed_all, rounds=3, iterations=1)
    assert placed > 0.99 * len(data), "all but tags is frames"
    assert stream.snapshot()["rings"] == 1
    benchmark.extra_info.update(
        build=BUILD, chunk_bytes=chunk_bytes, core_percent=round(min(shares) * 100, 4)
    )
