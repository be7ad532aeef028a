"""A source in the host's process: bytes or PCM, from any thread."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

import relay
from relay.pcm import PcmEncoder
from relay.sources import Sources
from relay.testing import silence

pytestmark = pytest.mark.core


def test_a_source_takes_bytes_or_pcm_as_it_was_opened(relay_node: relay.Node) -> None:
    """The other one is refused, with the next step."""
    with pytest.raises(relay.ConfigError, match="either content_type"):
        relay_node.source("/live")
    with pytest.raises(relay.ConfigError, match="either content_type"):
        relay_node.source("/live", content_type="audio/mpeg", codec="mp3")
    with relay_node.source("/live", content_type="audio/mpeg") as source:
        with pytest.raises(relay.SourceError, match=r"node\.source\('/live', codec="):
            source.feed_pcm(np.zeros((1, 2), "int16"))
        assert source.pcm_facts() is None
        assert source.mount == "/live"


@pytest.mark.parametrize(
    ("codec", "content_type"),
    [("opus", "audio/ogg"), ("flac", "audio/ogg"), ("mp3", "audio/mpeg"), ("aac", "audio/aac")],
)
async def test_pcm_becomes_a_stream_and_pcm_again(
    relay_node: relay.Node, codec: str, content_type: str
) -> None:
    """Through the engine: encoded, cut, read, decoded."""
    pytest.importorskip("av")
    block = (np.sin(np.arange(48_000) / 20)[:, np.newaxis] * 0.5).astype("float32")
    async with relay_node.source("/live", codec=codec, channels=1) as source:
        reader = relay_node.subscribe_pcm("/live", start="burst")
        source.feed_pcm(block, 48_000)
        with pytest.raises(relay.SourceError, match="takes PCM"):
            source.feed(b"x")
        facts = source.pcm_facts()
        assert facts is not None
        assert facts.fed_frames_total == 48_000
    with pytest.raises(relay.SourceError, match="closed"):
        source.feed_pcm(block)
    frames = 0
    async for item in reader:
        assert isinstance(item, relay.PcmBlock)
        assert item.position == frames
        assert item.samples.shape[1] == 1
        assert item.rate_hz == 48_000
        frames += len(item.samples)
        if frames >= 40_000:
            break
    stream = relay_node.subscribe("/live")
    assert stream.content_type == content_type


def test_two_threads_feed_one_source(relay_node: relay.Node) -> None:
    """Whole frames from each: nothing is torn, nothing is lost."""
    with relay_node.source("/live", content_type="audio/mpeg") as source:

        def feed() -> None:
            for _ in range(200):
                source.feed(silence(0.026))
                source.title("x")

        threads = [threading.Thread(target=feed) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stream = next(s for s in relay_node._opened().streams() if s.mount == "/live")
        counters = stream.snapshot()["counters"]
        assert counters["received_bytes_total"] >= 417 * 399
        assert counters["junk_bytes_total"] == 0


def test_a_source_is_told_what_it_did_wrong(relay_node: relay.Node) -> None:
    """Mount taken, no valid path, a type not carried, feed after close."""
    with relay_node.source("/live", content_type="audio/mpeg") as source:
        with pytest.raises(relay.MountError, match="in use"):
            relay_node.source("/live", content_type="audio/mpeg").open()
        with pytest.raises(relay.MountError):
            relay_node.source("live", content_type="audio/mpeg").open()
        with pytest.raises(relay.SourceError, match="audio/x-none"):
            relay_node.source("/other", content_type="audio/x-none").open()
        with pytest.raises((TypeError, BufferError)):
            source.feed("text")  # type: ignore[arg-type]
    with pytest.raises(relay.SourceError, match="closed; open a new one"):
        source.feed(b"x")


async def close_here(node: relay.Node) -> None:
    """On its loop."""
    await node.close()


async def close_without_a_loop(node: relay.Node) -> None:
    """As at the interpreter's end."""
    await asyncio.to_thread(node.close_now)


WAYS = [close_here, close_without_a_loop]


@pytest.mark.parametrize("close", WAYS)
async def test_an_encoder_ends_with_its_node(close: Any) -> None:
    """What was fed is encoded to its end, and no thread goes on; the source is closed then."""
    pytest.importorskip("av")
    before = {thread for thread in threading.enumerate() if thread.name == "relay-pcm"}
    node = await relay.Node().open()
    sources = [node.source(f"/{at}", codec="mp3", channels=1).open() for at in range(2)]
    for source in sources:
        source.feed_pcm(np.zeros((24_000, 1), "int16"))
        source.feed_pcm(np.zeros((24_000, 1), "int16"))
    await close(node)
    left = {thread for thread in threading.enumerate() if thread.name == "relay-pcm"}
    assert left <= before
    for source in sources:
        facts = source.pcm_facts()
        assert facts is not None
        assert facts.encoded_frames_total == facts.fed_frames_total == 48_000
        with pytest.raises(relay.SourceError, match="this source is closed"):
            source.feed_pcm(np.zeros((10, 1), "int16"))
        source.close()
    assert not node._encoding


@pytest.mark.parametrize("close", WAYS)
async def test_an_encoder_that_hangs_does_not_keep_its_node(
    close: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node closes while it is still stuck; what it makes later goes nowhere."""
    pytest.importorskip("av")
    go_on, stuck = threading.Event(), threading.Event()

    def hang(self: PcmEncoder, block: Any) -> bytes:
        stuck.set()
        go_on.wait(60)
        return b""

    monkeypatch.setattr(PcmEncoder, "_encode", hang)
    node = await relay.Node().open()
    source = node.source("/live", codec="mp3", channels=1).open()
    source.feed_pcm(np.zeros((100, 1), "int16"))
    assert stuck.wait(30)
    encoder = source._encoder
    assert encoder is not None
    await close(node)
    assert not go_on.is_set()
    assert encoder._thread.is_alive()
    go_on.set()
    await asyncio.to_thread(encoder._thread.join, 30)
    assert not encoder._thread.is_alive()


@pytest.mark.parametrize("close", WAYS)
@pytest.mark.parametrize("when", ["before the sources", "after them"])
async def test_an_encoder_that_is_opened_while_its_node_closes_ends_too(
    close: Any, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at those that encode and the end of the sources, or later than both."""
    pytest.importorskip("av")
    node = await relay.Node().open()
    late = node.source("/late", codec="mp3", channels=1)
    close_all, begin = Sources.close_all, PcmEncoder.__init__
    begun: list[PcmEncoder] = []

    def end_sources(sources: Sources) -> None:
        if when == "before the sources":
            late.open()
        close_all(sources)

    def begin_late(encoder: PcmEncoder, *args: Any) -> None:
        if when == "after them":
            close_all(sources)
        begin(encoder, *args)
        begun.append(encoder)

    monkeypatch.setattr(Sources, "close_all", end_sources)
    monkeypatch.setattr(PcmEncoder, "__init__", begin_late)
    sources = node._sources
    assert sources is not None
    if when == "after them":
        with pytest.raises(relay.SourceError, match="shutting down"):
            late.open()
    await close(node)
    await asyncio.to_thread(begun[0]._thread.join, 30)
    assert not begun[0]._thread.is_alive()
    assert not node._encoding
    with pytest.raises(relay.SourceError, match="this source is closed"):
        late.feed_pcm(np.zeros((10, 1), "int16"))
