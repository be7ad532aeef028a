"""What all scanners share: refusals at the start, tags, the bound on junk."""

from __future__ import annotations

from collections import deque
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe_data import Scanner
from tools.encoders import FRAME_BYTES_MAX, encode, noise, scan

from relay.errors import SourceError

JUNK_BYTES_MAX = 128 * 1024


def stream(kind: str) -> bytes:
    """Three seconds of the given kind, without any tag."""
    if kind == "mpeg":
        return encode("libmp3lame", "mp3", 44100, muxer=(("id3v2_version", "0"),))
    if kind == "adts":
        return encode("aac", "adts", 44100)
    return encode("libopus", "ogg", 48000)


def id3v2(body: bytes, *, footer: bool = False) -> bytes:
    """An ID3v2.4 tag around any body."""
    size = bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0))
    head = b"\x04\x00" + (b"\x10" if footer else b"\x00") + size
    return b"ID3" + head + body + (b"3DI" + head if footer else b"")


def ape(body: bytes) -> bytes:
    """An APEv2 tag with header and footer around any body."""
    size = (2000).to_bytes(4, "little") + (len(body) + 32).to_bytes(4, "little") + bytes(4)
    ends = [
        b"APETAGEX" + size + flag.to_bytes(4, "little") + bytes(8) for flag in (5 << 29, 1 << 31)
    ]
    return ends[0] + body + ends[1]


@pytest.mark.parametrize("kind", ["mpeg", "adts", "ogg"])
@pytest.mark.parametrize(
    ("first", "named"),
    [
        (b"\x1a\x45\xdf\xa3\x01\x00\x00\x00\x00\x00\x00\x1f", "WebM"),
        (b"fLaC\x00\x00\x00\x22\x10\x00\x10\x00", "bare FLAC"),
        (b"\x00\x00\x00\x20ftypisom", "MP4"),
        (b"RIFF\x24\x00\x00\x00WAVE", "RIFF"),
    ],
)
def test_another_container_is_refused_by_its_first_bytes(
    kind: str, first: bytes, named: str
) -> None:
    """Twelve bytes are enough to say what was sent instead."""
    with pytest.raises(SourceError, match=named):
        scan(kind, first)


@pytest.mark.parametrize("kind", ["mpeg", "adts"])
def test_ogg_sent_as_another_format_is_refused_at_once(kind: str) -> None:
    """The most common mistake has its own line."""
    with pytest.raises(SourceError, match="send them as audio/ogg"):
        scan(kind, stream("ogg")[:64])


def test_a_tag_sent_as_ogg_is_refused_at_once() -> None:
    """ID3 stands before MPEG or AAC, never before Ogg."""
    with pytest.raises(SourceError, match="ID3"):
        scan("ogg", id3v2(b"x" * 50))


@pytest.mark.parametrize("kind", ["mpeg", "adts", "ogg"])
@pytest.mark.parametrize("piece_bytes", [1000, 1_000_000])
def test_garbage_is_refused_after_its_bound_however_split(kind: str, piece_bytes: int) -> None:
    """Noise never becomes a source: 128 KiB without a frame are enough."""
    garbage = noise(3, 2 * JUNK_BYTES_MAX)
    scanner = Scanner(kind)
    pieces = [garbage[at : at + piece_bytes] for at in range(0, len(garbage), piece_bytes)]
    with pytest.raises(SourceError, match="128 KiB"):
        deque(map(scanner.feed, pieces), maxlen=0)
    assert scanner.totals["junk_bytes_total"] > JUNK_BYTES_MAX


@pytest.mark.parametrize("kind", ["mpeg", "adts", "ogg"])
def test_a_source_that_begins_amid_junk_is_found(kind: str) -> None:
    """Up to the bound, junk before the first frame is only discarded."""
    junk = b"\x00" * JUNK_BYTES_MAX
    scanner = Scanner(kind)
    assert scanner.feed(junk + stream(kind)) == scan(kind, stream(kind))
    assert scanner.skipped_bytes_total == scanner.totals["junk_bytes_total"] == JUNK_BYTES_MAX


@pytest.mark.parametrize("kind", ["mpeg", "adts", "ogg"])
def test_after_the_first_frame_no_junk_ends_a_source(kind: str) -> None:
    """Whoever is on air stays on air: a megabyte of noise costs itself and no more."""
    data = stream(kind)
    frames = scan(kind, data)
    scanner = Scanner(kind)
    assert scanner.feed(data) == frames
    assert scanner.feed(noise(5, 1_000_000)) == []
    later = scanner.feed(data)
    assert [frame for frame, _, _ in later] == [frame for frame, _, _ in frames]
    assert scanner.totals["resyncs_total"] == 1


@pytest.mark.parametrize("kind", ["mpeg", "adts"])
@pytest.mark.parametrize(
    "tag",
    [
        id3v2(noise(1, 3_000_000)),
        id3v2(noise(2, 500), footer=True),
        b"TAG" + noise(3, 125),
        ape(noise(4, 70_000)),
        ape(b"") + b"TAG" + noise(5, 125) + id3v2(b""),
    ],
    ids=["id3v2-3MB", "id3v2-footer", "id3v1", "ape", "three"],
)
def test_tags_are_discarded_at_the_start_and_between_frames(kind: str, tag: bytes) -> None:
    """Tags are no audio, whatever their size, and passing one keeps the lock."""
    data = stream(kind)
    frames = [frame for frame, _, _ in scan(kind, data)]
    whole = tag + data + tag + data
    for piece_bytes in (1447, len(whole)):
        scanner = Scanner(kind)
        found: list[bytes] = []
        for begin in range(0, len(whole), piece_bytes):
            found += [frame for frame, _, _ in scanner.feed(whole[begin : begin + piece_bytes])]
            assert scanner.pending_bytes <= 65536
        assert found == frames * 2
        assert scanner.skipped_bytes_total == scanner.totals["tag_bytes_total"] == 2 * len(tag)
        assert scanner.totals["resyncs_total"] == scanner.totals["junk_bytes_total"] == 0


@pytest.mark.parametrize(
    "broken",
    [b"ID3\xff\x00\x00\x00\x00\x00\x10", b"ID3\x04\x00\x00\x80\x00\x00\x10", b"APETAGEZ"],
    ids=["version", "size", "name"],
)
def test_what_only_looks_like_a_tag_is_junk(broken: bytes) -> None:
    """A tag must be valid before its size is believed."""
    data = stream("mpeg")
    scanner = Scanner("mpeg")
    broken += bytes(40)
    assert scanner.feed(broken + data) == scan("mpeg", data)
    assert scanner.totals["junk_bytes_total"] == len(broken)
    assert scanner.totals["tag_bytes_total"] == 0


@pytest.mark.parametrize(("kind", "lost"), [("mpeg", 2), ("adts", 2), ("ogg", 1)])
def test_bytes_lost_within_a_frame_cost_it_and_the_next(kind: str, lost: int) -> None:
    """In lock the next frame's head completes the broken one; a page has its checksum."""
    data = (
        stream(kind)
        if kind != "ogg"
        else encode("libopus", "ogg", 48000, muxer=(("page_duration", "20000"),))
    )
    frames = [frame for frame, _, _ in scan(kind, data)]
    begin = sum(map(len, frames[:20]))
    found = [frame for frame, _, _ in scan(kind, data[: begin + 60] + data[begin + 70 :])]
    assert [frame for frame in found if frame in frames] == frames[:20] + frames[20 + lost :]


@pytest.mark.parametrize("kind", ["mpeg", "adts", "ogg"])
def test_bytes_are_either_frames_or_skipped_or_pending(kind: str) -> None:
    """Nothing appears and nothing vanishes."""
    data = noise(8, 500) + stream(kind) + noise(9, 700) + stream(kind)[:-5]
    scanner = Scanner(kind)
    frames = scanner.feed(data)
    in_frames = sum(len(frame) for frame, _, _ in frames)
    assert in_frames + scanner.skipped_bytes_total + scanner.pending_bytes == len(data)
    assert scanner.totals["frame_bytes_total"] == in_frames


def test_an_unknown_kind_of_scanner_is_an_error() -> None:
    """A misspelt kind is a bug in the caller."""
    with pytest.raises(KeyError):
        Scanner("mp3")


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["mpeg", "adts", "ogg"]),
    lead=st.binary(max_size=200),
    seed=st.integers(0, 2**32),
    size=st.integers(0, 60_000),
)
def test_random_bytes_never_break_a_scanner(kind: str, lead: bytes, seed: int, size: int) -> None:
    """No crash, no frame over its bound, never more in hand than one frame; before, or on air."""
    scanner = Scanner(kind)
    with suppress(SourceError):  # random bytes may be the magic number of another container
        scanner.feed(lead + noise(seed, size))
        assert scanner.pending_bytes <= FRAME_BYTES_MAX
    scanner = Scanner(kind)
    for piece in (stream(kind), lead + noise(seed, size), stream(kind), lead):
        for frame, duration_us, _ in scanner.feed(piece):
            assert 0 < len(frame) <= FRAME_BYTES_MAX
            assert duration_us <= 10_000_000
        assert scanner.pending_bytes <= FRAME_BYTES_MAX
