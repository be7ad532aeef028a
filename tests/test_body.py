"""How a source's body is framed: chunks, lengths, and bytes until the end."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe import Body

LINE_BYTES_MAX = 256


class Refused(Exception):
    """The bytes are no body of this kind."""


def feed_split(body: Body, data: bytes, cuts: list[int]) -> bytes:
    """Feed the data in pieces cut at these places; return the audio."""
    audio = b""
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    for start, end in itertools.pairwise(edges):
        found, reason = body.feed(data[start:end])
        if reason is not None:
            raise Refused(reason)
        audio += found
    return audio


def chunked(parts: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    """The parts as chunks."""
    sizes = b"".join(b"%x%s\r\n%s\r\n" % (len(p), extension, p) for p in parts if p)
    return sizes + b"0\r\n" + trailer + b"\r\n"


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.sampled_from([b"", b";a=b", b' ;q="x"']),
    st.sampled_from([b"", b"Checksum: 1\r\n"]),
)
def test_chunks_split_anywhere_give_the_same_bytes(
    parts: list[bytes], cuts: list[int], extension: bytes, trailer: bytes
) -> None:
    """Where TCP cuts a chunked body has no effect on the audio."""
    body = Body("chunked")
    assert feed_split(body, chunked(parts, extension, trailer), cuts) == b"".join(parts)
    assert body.ended


@given(st.binary(max_size=400), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_bytes_as_chunks_are_audio_or_a_refusal(data: bytes, cuts: list[int]) -> None:
    """Random bytes where chunks should be never give more than came."""
    with contextlib.suppress(Refused):
        assert len(feed_split(Body("chunked"), data, cuts)) <= len(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"xyz\r\n", "hexadecimal"),
        (b"\r\n", "hexadecimal"),
        (b"-1\r\n", "hexadecimal"),
        (b"1x\r\n", "hexadecimal"),
        (b"100000000\r\n", "hexadecimal"),
        (b"80000000\r\n", "2 GiB"),
        (b"2\r\nabc\r\n", "longer than its size"),
        (b"1" * (LINE_BYTES_MAX + 1), "size line has more"),
        (b"0\r\n" + b"a: b\r\n" * 3000, "trailers"),
    ],
)
def test_broken_chunks_are_refused(data: bytes, reason: str) -> None:
    """Sizes that are none, sizes that lie, lines without end: with what is wrong."""
    with pytest.raises(Refused, match=reason):
        feed_split(Body("chunked"), data, [])


def test_sized_body_ends_with_its_last_byte() -> None:
    """What follows a body of Content-Length bytes is not audio."""
    body = Body("sized", 5)
    assert feed_split(body, b"audio and more", [2]) == b"audio"
    assert body.ended
    assert Body("sized", 0).ended


def test_raw_body_is_all_audio_and_has_no_end() -> None:
    """It ends with its connection."""
    body = Body("raw")
    assert feed_split(body, b"audio and more", [2, 5]) == b"audio and more"
    assert not body.ended
