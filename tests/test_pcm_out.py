"""A stream as PCM: every codec, cut anywhere, with gaps, chains and nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import SourceError
from relay.pcm import PcmEncoder, pcm_form
from relay.pcm_out import PACKET_BYTES_MAX, FrameDecoder, Unpager, xiph_laced

av = pytest.importorskip("av")

SECONDS = 3
RATE_HZ = 48_000


def programme(seconds: float = SECONDS, channels: int = 2) -> Any:
    """Noise below 1.5 kHz that no two moments have alike, so that a correlation finds its place."""
    dice = np.random.default_rng(4711)
    frames = round(seconds * RATE_HZ)
    wave = np.convolve(dice.standard_normal(frames), np.hanning(64), "same")
    wave = wave / np.abs(wave).max() * 0.7
    return np.stack([wave, np.roll(wave, 480)], axis=1)[:, :channels].astype("float32")


def encoded(codec: str, samples: Any) -> bytes:
    """The stream that a source sends."""
    fed: list[bytes] = []
    encoder = PcmEncoder(
        pcm_form(codec, RATE_HZ, samples.shape[1], None, 60_000), fed.append, "/live"
    )
    for at in range(0, len(samples), 960):
        encoder.feed(samples[at : at + 960])
    encoder.close(60)
    return b"".join(fed)


def frames_of(codec: str, data: bytes) -> Iterator[bytes]:
    """The frames or pages that the engine would cut: by the lengths that they tell."""
    at = 0
    while at < len(data):
        if codec == "aac":  # ISO/IEC 13818-7 §6.2: 13 bits
            size = int.from_bytes(data[at + 3 : at + 6], "big") >> 5 & 0x1FFF
        elif codec == "mp3":  # 128 kbit/s at 48 kHz: always the same
            size = 384
        else:
            table = data[at + 27 : at + 27 + data[at + 26]]
            size = 27 + len(table) + sum(table)
        yield data[at : at + size]
        at += size


def decoded(codec: str, frames: list[bytes]) -> Any:
    """All samples of them."""
    kind = {"mp3": "mpeg", "aac": "adts"}.get(codec, "ogg")
    decoder = FrameDecoder(kind)
    found = []
    for frame in frames:
        if (block := decoder.decode(frame)) is not None:
            found.append(block)
    assert decoder.rate_hz == RATE_HZ
    assert decoder.broken_total == 0
    return np.concatenate(found)


def aligned(sent: Any, heard: Any) -> tuple[int, float]:
    """By how many samples `heard` is late, and how alike the two are then."""
    a, b = sent[:, 0], heard[:, 0]
    size = 1 << (len(a) + len(b) - 1).bit_length()
    found = np.fft.irfft(np.fft.rfft(b, size) * np.conj(np.fft.rfft(a, size)), size)
    late = int(np.argmax(found))
    late -= size if late > size // 2 else 0
    a, b = a[max(0, -late) :], b[max(0, late) :]
    count = min(len(a), len(b))
    return late, float(np.corrcoef(a[:count], b[:count])[0, 1])


@pytest.mark.parametrize(
    ("codec", "late", "alike"),
    [("flac", 0, 0.9999), ("opus", 0, 0.99), ("mp3", 1105, 0.99), ("aac", 1024, 0.99)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_was_fed_comes_out(codec: str, late: int, alike: float, channels: int) -> None:
    """Sample for sample where the codec tells its delay (Ogg); else late by what is known of it."""
    sent = programme(channels=channels)
    heard = decoded(codec, list(frames_of(codec, encoded(codec, sent))))
    assert heard.dtype == np.float32
    assert heard.shape[1] == channels
    found, correlation = aligned(sent, heard)
    assert found == late
    assert correlation >= alike
    assert 0 <= len(heard) - len(sent) - late < (1 if codec in ("opus", "flac") else 4000)


def test_a_reader_in_the_middle_needs_the_headers_alone() -> None:
    """Those pages come first, then any page; a few packets until the codec has found its way."""
    sent = programme()
    pages = list(frames_of("opus", encoded("opus", sent)))
    decoder = FrameDecoder("ogg", pages[0] + pages[1])
    found = [block for page in pages[10:] if (block := decoder.decode(page)) is not None]
    late, correlation = aligned(sent, np.concatenate(found))
    assert late < -RATE_HZ // 2
    assert correlation > 0.97


def test_a_gap_joins_nothing_that_does_not_belong_together() -> None:
    """What was left of a packet is forgotten with the page that would have ended it."""
    pages = list(frames_of("flac", encoded("flac", programme())))
    decoder = FrameDecoder("ogg", b"".join(pages[:2]))
    for number, page in enumerate(pages[2:]):
        if number == 5:
            decoder.gap()
        elif number != 4:
            decoder.decode(page)
    assert decoder.broken_total <= 1


def test_a_new_chain_brings_its_own_codec() -> None:
    """A source that returns with FLAC where Opus was: its header pages say so."""
    sent = programme(1)
    decoder = FrameDecoder("ogg")
    for codec in ("opus", "flac"):
        found = [decoder.decode(page) for page in frames_of(codec, encoded(codec, sent))]
        heard = np.concatenate([block for block in found if block is not None])
        assert aligned(sent, heard)[1] > 0.98


def test_a_stream_of_a_codec_that_is_unknown_says_so() -> None:
    """Not silence."""
    page = b"OggS\0\x02" + bytes(8) + b"\1\0\0\0" + bytes(8) + b"\1\x08" + b"fishead\0"
    with pytest.raises(SourceError, match="codec that is not decoded here"):
        FrameDecoder("ogg").decode(page)


@given(st.binary(max_size=400))
def test_nonsense_is_counted_and_never_raised(noise: bytes) -> None:
    """It came from a source; the next frame may be whole."""
    for kind in ("mpeg", "adts"):
        FrameDecoder(kind).decode(noise)
    list(Unpager().pages(noise))
    list(Unpager().pages(b"OggS" + noise))


@given(st.lists(st.binary(max_size=700), min_size=1, max_size=6), st.integers(1, 4))
def test_packets_survive_any_paging(packets: list[bytes], laces_max: int) -> None:
    """However few laces a page has: the same packets."""
    laces: list[tuple[int, bytes]] = []
    for packet in packets:
        parts = [packet[at : at + 255] for at in range(0, len(packet), 255)]
        if len(packet) % 255 == 0:
            parts.append(b"")
        laces += [(len(part), part) for part in parts]
    reader = Unpager()
    found: list[bytes] = []
    continued = False
    for at in range(0, len(laces), laces_max):
        part = laces[at : at + laces_max]
        table = bytes(size for size, _ in part)
        body = b"".join(data for _, data in part)
        page = b"OggS\0" + bytes([continued]) + bytes(20) + bytes([len(part)]) + table + body
        for _, _, whole in reader.pages(page):
            found += whole
        continued = table[-1] == 255
    assert found == packets


def test_a_packet_without_an_end_is_bounded() -> None:
    """Pages that only go on and on are forgotten."""
    page = b"OggS\0\1" + bytes(20) + b"\xff" + b"\xff" * 255 + bytes(255 * 255)
    reader = Unpager()
    first = b"OggS\0\0" + page[6:]
    assert [list(reader.pages(data)) for data in [first, page]]
    for _ in range(40):
        list(reader.pages(page))
        assert len(reader._rest) <= PACKET_BYTES_MAX + 255 * 255


def test_headers_are_laced_as_libavcodec_wants_them() -> None:
    """Count less one, sizes of all but the last, packets."""
    assert xiph_laced([b"a" * 300, b"b", b"c"]) == b"\2\xff\x2d\1" + b"a" * 300 + b"bc"
