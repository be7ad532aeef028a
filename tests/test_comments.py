"""What the header pages of Ogg say: of real encoders' files, of pieces of them, of noise."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.audio import split_headers
from tools.encoders import encode, noise

from relay.formats.comments import Told, read_chain, read_comments, title_of


def comments(*told: str, vendor: bytes = b"v") -> bytes:
    """A comment body (Vorbis I §5.2.1)."""
    texts = [text.encode("utf-8", "surrogateescape") for text in told]
    body = struct.pack("<I", len(vendor)) + vendor + struct.pack("<I", len(texts))
    return body + b"".join(struct.pack("<I", len(text)) + text for text in texts)


def page(serial: int, *packets: bytes, open_end: bool = False) -> bytes:
    """A page with these packets; its checksum is not looked at here."""
    lacing = b""
    for number, packet in enumerate(packets):
        lacing += b"\xff" * (len(packet) // 255)
        if not (open_end and number == len(packets) - 1):
            lacing += bytes([len(packet) % 255])
    head = b"OggS\0\0" + bytes(8) + struct.pack("<III", serial, 0, 0) + bytes([len(lacing)])
    return head + lacing + b"".join(packets)


OPUS = page(1, b"OpusHead" + bytes(11))


@pytest.mark.parametrize(
    ("codec", "told"), [("libopus", "Opus"), ("vorbis", "Vorbis"), ("flac", "FLAC")]
)
def test_codecs_of_real_encoders(codec: str, told: str) -> None:
    """Which have no title here."""
    rate = 48000 if codec == "libopus" else 44100
    coder = (("strict", "-2"),) if codec == "vorbis" else ()
    header, _ = split_headers(encode(codec, "ogg", rate, seconds=1.0, coder=coder))
    assert read_chain(header)[:2] == (told, None)


@pytest.mark.parametrize(
    ("told", "title"),
    [
        (["ARTIST=A", "TITLE=T"], "A - T"),
        (["title=T", "Artist=A", "artist=B"], "A, B - T"),
        (["TITLE=T"], "T"),
        (["ARTIST=A"], "A"),
        (["TITLE=", "ALBUM=x", "no equals sign"], None),
        ([], None),
        (["TITLE=" + "x" * 10_000], "x" * 4000),
        (["TITLE=\udcff"], "\ufffd"),
    ],
)
def test_titles_are_put_together(told: list[str], title: str | None) -> None:
    """Artist and title; names in any case; several artists; bounded; bad UTF-8 is marked."""
    assert read_chain(OPUS + page(1, b"OpusTags" + comments(*told)))[:2] == ("Opus", title)
    assert title_of(read_comments(comments(*told))) == title


def test_a_comment_packet_over_pages_and_beside_another_stream() -> None:
    """Cover art makes it long; a skeleton or video has a serial of its own."""
    packet = b"OpusTags" + comments("METADATA_BLOCK_PICTURE=" + "x" * 200_000, "TITLE=T")
    pieces = [packet[at : at + 255 * 200] for at in range(0, len(packet), 255 * 200)]
    raw = page(9, b"fishead\0" + bytes(50)) + OPUS
    for number, piece in enumerate(pieces):
        raw += page(1, piece, open_end=number < len(pieces) - 1) + page(9, b"fisbone\0")
    assert read_chain(raw) == Told("Opus", "T", None, "T")


def test_flac_keeps_its_comments_in_a_metadata_block() -> None:
    """RFC 9639 §8.6; the last-block flag is no part of the type."""
    first = b"\x7fFLAC\1\0\0\1fLaC" + bytes(38)
    body = comments("TITLE=T")
    for kind in (0x04, 0x84):
        block = bytes([kind]) + len(body).to_bytes(3, "big") + body
        assert read_chain(page(1, first) + page(1, b"\1\0\0\0") + page(1, block)).title == "T"


@settings(max_examples=200)
@given(st.integers(0, 1 << 30), st.integers(0, 400), st.integers(0, 400))
def test_damage_never_raises(seed: int, at: int, cut: int) -> None:
    """Lengths that lie, pages that end early, noise."""
    whole = OPUS + page(1, b"OpusTags" + comments("ARTIST=A", "TITLE=T", vendor=b"v" * 100))
    bad = whole[:at] + noise(seed, 8) + whole[at + 8 :]
    for raw in (bad, whole[:cut], noise(seed, cut), b"OggS" + noise(seed, cut)):
        told = read_chain(raw)
        assert told.codec in {None, "Opus", "Vorbis", "FLAC", "Speex"}
        assert told.title is None or len(told.title) <= 4000


@given(st.binary(max_size=200))
def test_no_bytes_make_comments_without_an_end(raw: bytes) -> None:
    """Counts of 2**32 are not believed."""
    found = read_comments(raw)
    assert sum(map(len, found.values())) <= len(raw)


def test_artist_and_title_are_told_apart_too() -> None:
    """Icecast's statistics have them so."""
    raw = OPUS + page(1, b"OpusTags" + comments("artist=A", "ARTIST=B", "title=T"))
    assert read_chain(raw) == Told("Opus", "A, B - T", "A, B", "T")
    raw = OPUS + page(1, b"OpusTags" + comments("artist=A"))
    assert read_chain(raw) == Told("Opus", "A", "A", None)


def test_head_of_vorbis_and_flac_is_told_by_icecasts_names() -> None:
    """As its format_vorbis.c and format_flac.c have it; a head that is cut short tells nothing."""
    parts = (48000, 4), (0, 4), (96_500, 4), (0, 4)
    numbers = b"".join(value.to_bytes(size, "little") for value, size in parts)
    vorbis = b"\x01vorbis" + bytes(4) + b"\x02" + numbers
    assert dict(read_chain(page(1, vorbis)).head) == {
        "audio_bitrate": 96_500, "audio_channels": 2, "audio_samplerate": 48000, "ice-bitrate": 96,
    }  # fmt: skip
    assert read_chain(page(1, vorbis[:20])).head == ()
    assert read_chain(page(1, b"\x7fFLAC\x01\x00\x00\x01")).head == (("FLAC_version", "1.0"),)
    assert read_chain(OPUS).head == ()
