"""What a source says before and around its audio, read from bytes alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth import credentials
from relay.source_http import (
    FIELDS_MAX,
    HEAD_BYTES_MAX,
    REASONS,
    SOURCE_USER,
    Body,
    Request,
    RequestError,
    body_of,
    parse_head,
    refusal_of,
    reply,
    reply_unauthorized,
)

FFMPEG = (
    b"PUT /live.mp3 HTTP/1.1\r\nUser-Agent: Lavf/60.3.100\r\nAccept: */*\r\n"
    b"Expect: 100-continue\r\nConnection: close\r\nHost: h:8000\r\nContent-Type: audio/mpeg\r\n"
    b"Ice-Name: N\r\nIce-Public: 0\r\nAuthorization: Basic c291cmNlOnB3\r\n\r\n"
)


def request(head: bytes) -> Request:
    """Parse a head that is whole."""
    parsed = parse_head(head)
    assert parsed is not None
    return parsed[0]


def with_fields(*lines: str, start: str = "PUT /x HTTP/1.1") -> Request:
    """Parse a head of these lines."""
    return request("\r\n".join([start, *lines, "", ""]).encode())


def test_head_of_ffmpeg_is_read_whole() -> None:
    """The request that most encoders send: names in any case, no length, no chunks."""
    parsed = parse_head(FFMPEG + b"audio")
    assert parsed is not None
    head, used = parsed
    assert used == len(FFMPEG)
    assert (head.method, head.mount, head.version) == ("PUT", "/live.mp3", "HTTP/1.1")
    assert head.headers["ice-name"] == "N"
    assert head.expects_continue
    assert not head.keeps_connection
    assert body_of(head) == Body("raw")


@given(st.integers(0, len(FFMPEG) - 1))
def test_unfinished_head_waits_for_more(size: int) -> None:
    """However a head is split, it is read once it is whole."""
    assert parse_head(FFMPEG[:size]) is None


@pytest.mark.parametrize(
    ("length", "is_empty"), [("0", True), ("00", True), ("01", False), ("", False), ("-0", False)]
)
def test_nought_is_no_body_however_it_is_written(length: str, is_empty: bool) -> None:
    """RFC 9110 §8.6: 1*DIGIT. Taken for a source, `00` held the mount for the source timeout."""
    request = with_fields(f"Content-Length: {length}", start="PUT /x HTTP/1.1")
    assert request.has_empty_body == is_empty


def test_probe_of_libshout_is_recognised() -> None:
    """libshout first asks with an empty body and wants the connection kept."""
    probe = with_fields("Content-Length: 0", "Connection: Keep-Alive", start="SOURCE /x HTTP/1.0")
    assert probe.has_empty_body
    assert probe.keeps_connection


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        ("HTTP/1.0", "", False),
        ("HTTP/1.0", "keep-alive", True),
        ("HTTP/1.1", "", True),
        ("HTTP/1.1", "foo, Close", False),
    ],
)
def test_connection_is_kept_as_the_version_says(version: str, connection: str, kept: bool) -> None:
    """HTTP/1.1 keeps unless told, HTTP/1.0 closes unless told (RFC 9112 §9.3)."""
    head = with_fields(
        *[f"Connection: {connection}"][: bool(connection)], start=f"PUT /x {version}"
    )
    assert head.keeps_connection is kept


@pytest.mark.parametrize(
    "target", ["/caf%C3%A9", "http://radio.example:8000/caf%C3%A9?x=1", "/caf%C3%A9?mount=/y"]
)
def test_mount_is_the_decoded_path(target: str) -> None:
    """Scheme, host and query are no part of a mount."""
    assert with_fields(start=f"PUT {target} HTTP/1.1").mount == "/café"


@pytest.mark.parametrize("password", ["pw", "/p:w", "pä", "x" * 512])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_password_before_the_mount_is_a_request_with_credentials(password: str, end: str) -> None:
    """Icecast 1's protocol: the word of the first line wins over a header of that name."""
    lines = [f"SOURCE {password} /caf%C3%A9", "x-audiocast-name: N", "Authorization: x", "", ""]
    told = request(end.join(lines).encode())
    assert (told.method, told.mount, told.is_xaudiocast) == ("SOURCE", "/café", True)
    assert credentials(told.headers["authorization"]) == (SOURCE_USER, password)
    assert told.headers["x-audiocast-name"] == "N"
    assert (told.keeps_connection, told.expects_continue, body_of(told)) == (
        (False, False, Body("raw"))
    )


def test_who_speaks_xaudiocast_never_reads_an_ok_in_a_refusal() -> None:
    """libshout takes one anywhere for a welcome; of HTTP it reads the status."""
    old, new = request(b"SOURCE pw /OK\n\n"), request(b"SOURCE /OK HTTP/1.0\n\n")
    assert not new.is_xaudiocast
    for status in REASONS.keys() - {200}:
        refused = reply(status, "mount /OK is in use")
        assert refusal_of(new, refused) == refused.raw
        assert refusal_of(old, refused).startswith(b"ERROR - %d " % status)
        assert b"OK" not in refusal_of(old, refused)


def test_mount_that_is_not_utf8_is_refused() -> None:
    """A mount is text: others have to read it."""
    with pytest.raises(RequestError, match="not UTF-8"):
        _ = with_fields(start="PUT /caf%E9 HTTP/1.1").mount


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"PUT /x\r\n\r\n",
        b"put /x HTTP/1.1\r\n\r\n",
        b"PUT /x y HTTP/1.1\r\n\r\n",
        b"PUT pw /x\r\n\r\n",
        b"SOURCE pw x\r\n\r\n",
        b"SOURCE p w /x\r\n\r\n",
        b"SOURCE " + b"p" * 513 + b" /x\r\n\r\n",
        b"PUT /x HTTP/2.0\r\n\r\n",
        b"PUT /x\x00 HTTP/1.1\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nno colon\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nname : v\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nice-name: a\x00b\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nice-name: a\rb: c\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nice-name: a\r\n folded\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ],
)
def test_malformed_head_is_refused(head: bytes) -> None:
    """What is no request gets 400, whatever it hoped to be taken for."""
    with pytest.raises(RequestError) as caught:
        parse_head(head)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "head",
    [
        b"PUT /" + b"x" * HEAD_BYTES_MAX,
        b"PUT /x HTTP/1.1\r\n" + b"a: b\r\n" * (FIELDS_MAX + 1) + b"\r\n",
    ],
)
def test_oversized_head_is_refused(head: bytes) -> None:
    """8 KiB and 64 fields are enough for any encoder."""
    with pytest.raises(RequestError) as caught:
        parse_head(head)
    assert caught.value.status == 431


@given(st.binary(max_size=300))
def test_any_bytes_give_a_request_or_a_refusal(data: bytes) -> None:
    """Random bytes never raise anything but RequestError."""
    try:
        parsed = parse_head(data + b"\r\n\r\n")
    except RequestError:
        return
    assert parsed is not None


def test_values_that_are_not_utf8_are_latin1() -> None:
    """Old encoders send names in Latin-1."""
    assert request(b"PUT /x HTTP/1.1\r\nice-name: caf\xe9\r\n\r\n").headers["ice-name"] == "café"


def test_refusals_fit_the_buffers_of_encoders() -> None:
    """Encoders read about 1,000 bytes of a reply, and drain its body by its length."""
    found = reply_unauthorized(keep=True)
    head, _, body = found.raw.partition(b"\r\n\r\n")
    assert found.status == 401
    assert len(found.raw) < 1000
    assert b"Allow: GET, HEAD, OPTIONS, PUT, SOURCE, POST" in head
    assert b'WWW-Authenticate: Basic realm="Icecast2 Server"' in head
    assert b"Connection: Keep-Alive" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert reply(403, "in use").raw.startswith(b"HTTP/1.0 403 Forbidden\r\n")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("Transfer-Encoding: gzip",), 501),
        (("Transfer-Encoding: chunked", "Content-Length: 3"), 400),
        (("Content-Length: -3",), 400),
        (("Content-Length: 3, 3",), 400),
    ],
)
def test_unclear_framing_is_refused(lines: tuple[str, ...], status: int) -> None:
    """Two lengths, or none that we know, are how requests are smuggled."""
    with pytest.raises(RequestError) as caught:
        body_of(with_fields(*lines))
    assert caught.value.status == status
