"""A chain never has the serial of the one before: given so or not, its pages stay what they are."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.audio import chains, decode, pages
from tools.encoders import encode, split

from relay._core import Engine, Source, Stream


def talk(serial: int | None = None) -> bytes:
    """Two seconds of Ogg Opus; with a serial of its own, or with this one."""
    data = encode("libopus", "ogg", 48_000, seconds=2.0)
    return (
        data if serial is None else b"".join(renumbered(page.data, serial) for page in pages(data))
    )


def renumbered(page: bytes, serial: int) -> bytes:
    """The page with another serial, its checksum computed bit by bit (RFC 3533 §6)."""
    blank = page[:14] + struct.pack("<I", serial) + page[18:22] + bytes(4) + page[26:]
    return blank[:22] + struct.pack("<I", checksum(blank)) + blank[26:]


def checksum(data: bytes) -> int:
    """Polynomial 0x04c11db7, start 0, not reflected."""
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc


def serials(data: bytes) -> list[int]:
    """The serial of each chain; each has only one."""
    found = [{page.serial for page in pages(chain)} for chain in chains(data)]
    assert all(len(one) == 1 for one in found)
    return [one.pop() for one in found]


@pytest.fixture
def stream() -> Stream:
    """A stream whose mount is claimed."""
    engine = Engine()
    stream = engine.add_stream("/talk")
    stream.claim()
    return stream


def sent(stream: Stream, *pieces: bytes) -> bytes:
    """What listeners get of one epoch whose encoder writes these pieces."""
    stream.begin()
    source = Source(stream, "ogg")
    for piece in pieces:
        source.feed(piece)
    heard = bytes(memoryview(stream.view()))
    stream.end()
    return heard


def test_pages_of_a_new_serial_are_passed_on_bit_for_bit(stream: Stream) -> None:
    """Nothing is changed where nothing has to be."""
    for serial in (1, 2, 3):
        assert sent(stream, talk(serial)) == talk(serial)


def test_source_that_returns_with_its_serial_gets_another(stream: Stream) -> None:
    """Only the serial and the checksum differ, on each page; the checksum is right."""
    data = talk(0)
    heard = [sent(stream, data) for _ in range(4)]
    assert heard[0] == data
    told = [serials(one)[0] for one in heard]
    assert len(set(told)) == len(told)
    for one, serial in zip(heard, told, strict=True):
        assert one == talk(serial)


def test_chain_within_one_epoch_gets_another_serial(stream: Stream) -> None:
    """A file sent twice over one connection is two chains."""
    told = serials(sent(stream, talk(7), talk(7), talk(8), talk(7)))
    assert (told[0], told[2], told[3]) == (7, 8, 7)
    assert all(before != after for before, after in pairwise(told))


def test_mounts_whose_listeners_hear_each_other_never_share_a_serial() -> None:
    """Encoders that all write 0: each chain of either mount gets one that no other has."""
    engine = Engine()
    told = []
    for mount in ("/live", "/music"):
        engine.configure(mount, own_serial=True)
        stream = engine.add_stream(mount)
        stream.claim()
        for _ in range(3):
            heard = sent(stream, talk(0), talk(0))
            told += serials(heard)
            assert heard == talk(told[-2]) + talk(told[-1])
    assert len(set(told)) == len(told) == 12
    assert 0 not in told


@settings(deadline=None, max_examples=25)  # checksums bit by bit take their time
@given(st.lists(st.integers(0, 2**20), max_size=6))
def test_any_split_gives_the_same_pages(cuts: list[int]) -> None:
    """Where the encoder's writes end changes nothing."""
    stream = Engine().add_stream("/talk")
    stream.claim()
    whole = sent(stream, talk(0), talk(0))
    other = Engine().add_stream("/talk")
    other.claim()
    assert sent(other, *split(talk(0) * 2, cuts)) == whole


def test_ffmpeg_hears_a_returning_source_without_an_error(stream: Stream, ffmpeg: str) -> None:
    """With one serial for both, ffmpeg would take the new headers for audio."""
    assert decode(ffmpeg, talk(0) * 2).errors
    heard = decode(ffmpeg, sent(stream, talk(0)) + sent(stream, talk(0)))
    assert heard.errors == ""
    assert heard.media_s == pytest.approx(4.0, abs=0.1)


def test_a_source_that_begins_anew_goes_on_with_its_headers_under_another_serial(
    stream: Stream, ffmpeg: str
) -> None:
    """In mid-chain: the pages of the new epoch are the old ones' successors, and a whole chain."""
    data = talk(5)
    parts = [page.data for page in pages(data)]
    stream.begin()
    source = Source(stream, "ogg")
    source.feed(parts[0])
    assert source.begin_anew(1) == 0, "not in the midst of header pages"
    cut = len(parts) - 1  # ffmpeg writes a page a second
    source.feed(b"".join(parts[1:cut]) + parts[cut][:40])
    stream.title("still")
    before = bytes(memoryview(stream.view()))
    first = stream.snapshot()["epoch"]
    assert source.begin_anew(first + 1) > first
    source.feed(parts[cut][40:] + b"".join(parts[cut + 1 :]))
    after = bytes(memoryview(stream.view()))
    state = stream.snapshot()
    stream.end()
    assert before == b"".join(parts[:cut])
    (serial,) = serials(after)
    assert serial != 5
    assert after == b"".join(renumbered(part, serial) for part in parts[:2] + parts[cut:])
    assert (state["title"], state["source_up"]) == ("still", True)
    heard = decode(ffmpeg, before + after)
    assert heard.errors == ""
    assert heard.media_s == pytest.approx(2.0, abs=0.1)


def test_an_mpeg_source_that_begins_anew_loses_no_byte() -> None:
    """A frame that two feeds share is in the new epoch, whole; each epoch is higher."""
    stream = Engine().add_stream("/talk")
    stream.claim()
    data = encode("libmp3lame", "mp3", 44_100, seconds=1.0)
    first = stream.begin()
    source = Source(stream, "mpeg")
    source.feed(data[:5001])
    before = bytes(memoryview(stream.view()))
    second = source.begin_anew(first + 1000)
    source.feed(data[5001:])
    assert second == first + 1000
    assert data.endswith(bytes(memoryview(stream.view())))
    assert before + bytes(memoryview(stream.view())) in data
    assert source.begin_anew(1) > second
