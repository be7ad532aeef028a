"""Replies of servers of streams: heads, chunks and title blocks, split anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pull_http import (
    CHUNK_LINE_BYTES_MAX,
    FIELDS_MAX,
    HEAD_BYTES_MAX,
    VIA_MAX,
    Chunked,
    IcyBody,
    PullError,
    Sized,
    coding_of,
    metaint_of,
    parse_head,
    request_head,
    title_of,
    via_of,
)
from relay.urls import parse_http_url

OK = b"HTTP/1.0 200 OK\r\nContent-Type: audio/mpeg\r\nicy-metaint:16000\r\n\r\n"
cuts = st.lists(st.integers(0, 4000), max_size=8)


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    """The data cut at these places."""
    edges = [0, *sorted({cut for cut in at if 0 < cut < len(data)}), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


def test_the_request_asks_as_a_relay_does() -> None:
    """HTTP/1.0, titles wanted, who we are, and the account."""
    head = request_head(parse_http_url("http://joe:pw@a:8000/x?y=1"), "Relay/1.2")
    lines = head.decode().split("\r\n")
    assert lines[0] == "GET /x?y=1 HTTP/1.0"
    assert {"Host: a:8000", "User-Agent: Relay/1.2", "Icy-MetaData: 1"} <= set(lines)
    assert "Authorization: Basic am9lOnB3" in lines
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("first", "status", "reason"),
    [
        (b"HTTP/1.0 200 OK", 200, "OK"),
        (b"HTTP/1.1 404 File Not Found", 404, "File Not Found"),
        (b"ICY 200 OK", 200, "OK"),
        (b"ICY 401 Service Unavailable", 401, "Service Unavailable"),
        (b"HTTP/1.1 302", 302, ""),
    ],
)
def test_status_lines_of_http_and_shoutcast(first: bytes, status: int, reason: str) -> None:
    """Both are read; a reason may be missing."""
    told = parse_head(first + b"\r\nicy-name:x\r\n\r\nrest")
    assert told is not None
    head, used = told
    assert (head.status, head.reason) == (status, reason)
    assert head.headers == {"icy-name": "x"}
    assert used == len(first) + 16


@given(cuts)
def test_a_head_split_anywhere_is_the_same(at: list[int]) -> None:
    """It is asked for more until it is whole, and then says what it says at once."""
    data = bytearray()
    told = None
    for piece in pieces(OK, at):
        assert told is None
        data += piece
        told = parse_head(data)
    assert told == parse_head(OK)


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.0 999 x\r\n\r\n",
        b"ICY OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n" + b"a: b\r\n" * (FIELDS_MAX + 1) + b"\r\n",
        b"HTTP/1.0 200 OK\r\na: " + b"x" * HEAD_BYTES_MAX,
    ],
)
def test_what_is_no_head_is_refused(data: bytes) -> None:
    """At the first byte that tells; too long is refused as well."""
    with pytest.raises(PullError):
        parse_head(data)


def test_lines_with_control_characters_are_not_there() -> None:
    """CR, NUL and the like reach nobody; the lines beside them are used, the first of a name."""
    lines = [b"icy-name:a\rX-Y: b", b"icy-url:\0", b": z", b"no colon", b"icy-br:64", b"ICY-BR: 1"]
    raw = b"\r\n".join([b"ICY 200 OK", *lines, b"", b""])
    told = parse_head(raw)
    assert told is not None
    assert told[0].headers == {"icy-br": "64"}


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    """Nothing but PullError comes out."""
    for candidate in (data, b"ICY 200 OK\r\n" + data + b"\r\n\r\n"):
        try:
            told = parse_head(candidate)
        except PullError:
            continue
        if told is not None:
            assert all(value.isprintable() for value in told[0].headers.values())


def test_who_has_pulled_before_us_is_told() -> None:
    """Under either family's name, bounded, and only what looks like an id."""
    one, two = "0123456789abcdef" * 2, "fedcba9876543210" * 2
    assert via_of({"icy-relay-via": f"{one}, {two}"}) == (one, two)
    assert via_of({"ice-relay-via": f"{two},<b>"}) == (two,)
    assert via_of({}) == ()
    assert len(via_of({"icy-relay-via": ",".join([one] * 50)})) == VIA_MAX + 1


# --- bodies ---


def chunked(data: bytes, at: list[int], extension: bytes = b"") -> bytes:
    """The data in chunks, with their end."""
    chunks = [b"%x%s\r\n%s\r\n" % (len(p), extension, p) for p in pieces(data, at) if p]
    return b"".join(chunks) + b"0\r\n\r\n"


@given(st.binary(min_size=1, max_size=2000), cuts, cuts)
def test_chunks_split_anywhere_are_the_same(data: bytes, chunks: list[int], at: list[int]) -> None:
    """What was put in comes out, and the end is seen."""
    body = Chunked()
    found = b"".join(body.feed(piece) for piece in pieces(chunked(data, chunks, b";x=y"), at))
    assert found == data
    assert body.is_ended


@pytest.mark.parametrize(
    "raw",
    [
        b"x\r\n",
        b"-1\r\n",
        b"fffffffff\r\n",
        b"1\r\nabc\r\n",
        b"1" * (CHUNK_LINE_BYTES_MAX + 1),
        b"\r\n",
    ],
)
def test_broken_chunks_are_refused(raw: bytes) -> None:
    """A size that is none, too large, or not kept."""
    with pytest.raises(PullError):
        Chunked().feed(raw)


def test_a_body_ends_where_it_says() -> None:
    """With a length there; without one with its connection."""
    body = Sized(5)
    assert (body.feed(b"abc"), body.is_ended) == (b"abc", False)
    assert (body.feed(b"defg"), body.is_ended) == (b"de", True)
    endless = coding_of({})
    assert (endless.feed(b"abc"), endless.is_ended) == (b"abc", False)
    assert isinstance(coding_of({"content-length": "7"}), Sized)
    assert isinstance(coding_of({"transfer-encoding": "Chunked", "content-length": "7"}), Chunked)


@pytest.mark.parametrize(
    "headers", [{"content-encoding": "gzip"}, {"transfer-encoding": "gzip, chunked"}]
)
def test_codings_that_were_not_asked_for_are_refused(headers: dict[str, str]) -> None:
    """Rather than passing noise on."""
    with pytest.raises(PullError):
        coding_of(headers)


# --- titles ---


def icy(audio: bytes, metaint: int, blocks: dict[int, bytes]) -> bytes:
    """The audio with a block after each `metaint` bytes; `blocks` by their number."""
    out = b""
    for number, begin in enumerate(range(0, len(audio), metaint)):
        out += audio[begin : begin + metaint]
        if begin + metaint <= len(audio):
            block = blocks.get(number, b"")
            out += bytes([-(-len(block) // 16)]) + block.ljust(-(-len(block) // 16) * 16, b"\0")
    return out


@given(
    st.binary(max_size=1500),
    st.integers(1, 700),
    st.dictionaries(st.integers(0, 5), st.sampled_from([b"StreamTitle='A';", b"x" * 4080, b"s"])),
    cuts,
)
def test_titles_are_taken_out_exactly(
    audio: bytes, metaint: int, blocks: dict[int, bytes], at: list[int]
) -> None:
    """However it is split, the audio is what was put in, and each title stands where it stood."""
    raw = icy(audio, metaint, blocks)
    body = IcyBody(metaint)
    found = [part for piece in pieces(raw, at) for part in body.feed(piece)]
    assert b"".join(part for part in found if isinstance(part, bytes)) == audio
    heard, titles_at = 0, []
    for part in found:
        if isinstance(part, bytes):
            heard += len(part)
        else:
            titles_at.append(heard)
    wanted = [
        (number + 1) * metaint
        for number, block in sorted(blocks.items())
        if block.startswith(b"Stream") and (number + 1) * metaint <= len(audio)
    ]
    assert titles_at == wanted


@pytest.mark.parametrize(
    ("block", "title"),
    [
        (b"StreamTitle='A - B';StreamUrl='http://x';\0\0", "A - B"),
        (b"StreamTitle='';\0", ""),
        (b"StreamTitle='It's good';StreamUrl='';", "It's good"),
        (b"StreamTitle='rock 'n'';", "rock 'n'"),
        (b"StreamTitle='no semicolon'\0\0", "no semicolon"),
        (b"StreamTitle='a;b';", "a;b"),
        (b"StreamUrl='';StreamTitle='late';", "late"),
        ("StreamTitle='Grüße';".encode(), "Grüße"),
        ("StreamTitle='Grüße';".encode("latin-1"), "Grüße"),
        (b"StreamTitle='open", None),
        (b"adw_ad='true';", None),
        (b"", None),
    ],
)
def test_titles_as_servers_write_them(block: bytes, title: str | None) -> None:
    """Quotes and semicolons within a title are part of it; UTF-8, else Latin-1."""
    assert title_of(block) == title


@pytest.mark.parametrize("told", ["x", "-5", "1e3", "99999999999", "16000,16000"])
def test_a_metaint_that_is_none_is_refused(told: str) -> None:
    """Guessing would turn audio into noise."""
    with pytest.raises(PullError):
        metaint_of({"icy-metaint": told})


def test_a_metaint_may_be_missing_or_naught() -> None:
    """Then there are no blocks, and the audio is as it is."""
    assert metaint_of({}) == metaint_of({"icy-metaint": "0"}) == 0
    assert list(IcyBody(0).feed(b"abc")) == [b"abc"]
