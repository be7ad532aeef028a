"""The request head: hostile bytes, split anywhere, give one answer and at most a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe import head_end, head_parse, head_relays

pytestmark = pytest.mark.core

HEAD_BYTES_MAX = 8192
FIELDS_MAX = 64
PATH_BYTES_MAX = 255
GET = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n"


def request(target: bytes = b"/live", *fields: bytes, line_end: bytes = b"\r\n") -> bytes:
    """Return a GET of this target with these field lines."""
    lines = [b"GET " + target + b" HTTP/1.1", *fields, b"", b""]
    return line_end.join(lines)


def status(data: bytes) -> int:
    """Return what parsing answers."""
    told = head_parse(data)
    assert told is not None, f"not a whole head: {data!r}"
    return int(told[0])


def path(target: bytes) -> bytes:
    """Return the decoded path of a target that is taken."""
    told = head_parse(request(target))
    assert told is not None
    assert told[0] == 0, f"{target!r} was refused with {-told[0]}"
    return bytes(told[2])


def test_a_players_get_is_understood() -> None:
    """Method, path, version and the wish for titles are read."""
    told = head_parse(request(b"/live.mp3?x=1", b"Host: a", b"Icy-MetaData: 1"))
    assert told == (0, "GET", b"/live.mp3", True, 1)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "SOURCE", "POST", "OPTIONS"])
def test_each_known_method_has_its_name(method: str) -> None:
    """The six methods of the door are told apart."""
    told = head_parse(f"{method} /live HTTP/1.0\r\n\r\n".encode())
    assert told == (0, method, b"/live", False, 0)


@pytest.mark.parametrize("method", [b"get", b"GETS", b"DELETE", b"\x16\x03\x01", b"GE\tT"])
def test_other_methods_are_other(method: bytes) -> None:
    """Methods are case-sensitive (RFC 9110 §9.1) and never matched by a prefix."""
    told = head_parse(method + b" /live HTTP/1.1\r\n\r\n")
    assert told is not None
    assert told[1] == "OTHER"


@pytest.mark.parametrize("size", range(len(GET)))
def test_a_head_is_whole_only_with_its_blank_line(size: int) -> None:
    """No proper prefix of a head is taken for one."""
    assert head_end(GET[:size]) == 0
    assert head_end(GET) == len(GET)


@given(
    st.sampled_from(
        [GET, request(b"/x", b"A: b\r", line_end=b"\n"), b"\n\n", b"a\r\n\nb", b"\n\r\n"]
    ),
    st.binary(max_size=40),
    st.data(),
)
def test_the_end_is_found_however_the_head_is_split(
    head: bytes, rest: bytes, data: st.DataObject
) -> None:
    """Looking on from where the last read stopped finds the same end as looking at all at once."""
    whole = head + rest
    expected = head_end(whole)
    at, found = 0, 0
    while at < len(whole) and not found:
        before = at
        at += data.draw(st.integers(1, len(whole) - at))
        found = head_end(whole[:at], before)
    assert found == expected > 0


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_understood(data: bytes) -> None:
    """Any bytes give a status of the table, and no control byte comes out as a path."""
    told = head_parse(data + b"\r\n\r\n")
    assert told is not None
    assert told[0] in {0, -400, -414, -431, -505}
    if told[0] == 0:
        assert not any(byte < 32 or byte == 127 for byte in told[2])
        assert len(told[2]) <= PATH_BYTES_MAX


@given(st.binary(max_size=60), st.integers(0, len(GET) - 1))
def test_a_damaged_head_never_gives_another_mount_with_control_bytes(junk: bytes, at: int) -> None:
    """Bytes inserted anywhere into a good head end in a refusal or a clean path."""
    told = head_parse(GET[:at] + junk + GET[at:])
    assert told is None or told[0] < 0 or not any(byte < 32 or byte == 127 for byte in told[2])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/a%20b", b"/a b"),
        (b"/%C3%A9", "/é".encode()),
        (b"/%c3%a9", "/é".encode()),
        (b"/%2e%2e/x", b"/../x"),
        (b"/a%3Fb?c", b"/a?b"),
        (b"/a#b", b"/a"),
        (b"/?", b"/"),
        (b"http://relay.example:8000/live?x", b"/live"),
        (b"HTTP://relay.example/live", b"/live"),
        (b"*", b"*"),
        (b"/" + b"a" * (PATH_BYTES_MAX - 1), b"/" + b"a" * (PATH_BYTES_MAX - 1)),
        (b"/live?" + b"q" * 2000, b"/live"),
    ],
)
def test_targets_are_decoded(target: bytes, expected: bytes) -> None:
    """Origin form, absolute form and `*` (RFC 9112 §3.2), percent-decoded, without the query."""
    assert path(target) == expected


@pytest.mark.parametrize(
    ("target", "refusal"),
    [
        (b"/%", 400),
        (b"/%4", 400),
        (b"/%zz", 400),
        (b"/%00", 400),
        (b"/a%0d%0aSet-Cookie:x", 400),
        (b"/%7f", 400),
        (b"/a\tb", 400),
        (b"/a b", 400),
        (b"live", 400),
        (b"", 400),
        (b"**", 400),
        (b"http://relay.example", 400),
        (b"https://relay.example/live", 400),
        (b"/" + b"a" * PATH_BYTES_MAX, 414),
        (b"/" + b"%41" * PATH_BYTES_MAX, 414),
    ],
)
def test_bad_targets_are_refused(target: bytes, refusal: int) -> None:
    """What is no path of at most 255 clean bytes gets its status."""
    assert status(request(target)) == -refusal


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        (b"GET /live", 400),
        (b"GET", 400),
        (b"", 400),
        (b" ", 400),
        (b" GET /live HTTP/1.1", 400),
        (b"GET /live HTTP/1.", 505),
        (b"GET /live HTTP/1.x", 400),
        (b"GET /live HTTP/1/1", 505),
        (b"GET /live http/1.1", 400),
        (b"GET /live HTTP/1.1 ", 400),
        (b"GET /live HTTP/2.0", 505),
        (b"GET /live HTTP/0.9", 505),
        (b"GET /live HTTP/1.10", 505),
        (b"GET /live ICY/1.0", 400),
        (b"PRI * HTTP/2.0", 505),
    ],
)
def test_bad_request_lines_are_refused(line: bytes, refusal: int) -> None:
    """A missing or foreign version, and the preface of HTTP/2, are told by their status."""
    assert status(line + b"\r\nHost: a\r\n\r\n") == -refusal


def test_a_source_may_say_ice_1_0() -> None:
    """Old encoders say it in place of HTTP/1.0; from anybody else it is no request."""
    told = head_parse(b"SOURCE /live ICE/1.0\r\nicy-metadata: 1\r\n\r\n")
    assert told == (0, "SOURCE", b"/live", True, 0)
    for line in (b"GET /live ICE/1.0", b"PUT /live ICE/1.0", b"SOURCE /live ICE/1.1"):
        assert status(line + b"\r\n\r\n") == -400


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"SOURCE pw /live", (0, "SOURCE", b"/live", False, 0)),
        (b"SOURCE /pw /caf%C3%A9", (0, "SOURCE", "/café".encode(), False, 0)),
        (b"SOURCE p\xc3\xa4 /", (0, "SOURCE", b"/", False, 0)),
    ],
)
def test_a_source_may_say_its_password_before_the_mount(line: bytes, told: object) -> None:
    """Icecast 1's protocol, libshout's xaudiocast: `SOURCE password /mount`, ended by a bare LF."""
    assert head_parse(line + b"\nx-audiocast-name: a\n\n") == told


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        (b"SOURCE pw live", 400),
        (b"SOURCE  /live", 400),
        (b"SOURCE /live", 400),
        (b"SOURCE /live ", 400),
        (b"SOURCE pw /%zz", 400),
        (b"SOURCE pw /" + b"a" * PATH_BYTES_MAX, 414),
        (b"GET pw /live", 400),
        (b"PUT pw /live", 400),
        (b"source pw /live", 400),
    ],
)
def test_nobody_else_may(line: bytes, refusal: int) -> None:
    """Without a password, without a mount, or with another method it is no request."""
    assert status(line + b"\n\n") == -refusal


def test_the_whole_preface_of_http_2_is_refused() -> None:
    """Its first blank line ends what is looked at (RFC 9113 §3.4)."""
    assert status(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == -505


@pytest.mark.parametrize("version", range(10))
def test_minor_versions_are_zero_or_at_least_one(version: int) -> None:
    """HTTP/1.x beyond 1.1 is answered as 1.1 (RFC 9110 §2.5)."""
    told = head_parse(b"GET / HTTP/1.%d\r\n\r\n" % version)
    assert told is not None
    assert told[4] == min(version, 1)


@pytest.mark.parametrize(
    "field",
    [
        b"Host : a",
        b" Host: a",
        b"\tfolded: a",
        b": a",
        b"no colon",
        b"Ho\x00st: a",
        b"Host: a\x00b",
        b"Host: a\rb",
        b"Host: a\r\r",
        b"Ho\xc3\xa9st: a",
        b"Ho\x7fst: a",
    ],
)
def test_bad_fields_are_refused(field: bytes) -> None:
    """No space before the colon, no folding, no NUL, no bare CR (RFC 9112 §5)."""
    assert status(request(b"/live", field, b"B: c")) == -400


@pytest.mark.parametrize(
    "field", [b"Host:", b"Host:a", b"Host: \t a", b"X: \xc3\xa9", b"X: a: b", b"X: a\tb"]
)
def test_unusual_fields_are_taken(field: bytes) -> None:
    """Empty values, no space after the colon and bytes above 127 are somebody's good request."""
    assert status(request(b"/live", field)) == 0


def test_a_bare_lf_ends_a_line() -> None:
    """RFC 9112 §2.2 allows it, old players need it; both kinds may mix."""
    told = head_parse(b"GET /live HTTP/1.0\nicy-metadata:1\r\nA: b\n\n")
    assert told == (0, "GET", b"/live", True, 0)


@pytest.mark.parametrize(
    ("field", "icy"),
    [
        (b"Icy-MetaData: 1", True),
        (b"icy-metadata:1", True),
        (b"ICY-METADATA: 2", True),
        (b"Icy-MetaData: 0", False),
        (b"Icy-MetaData:", False),
        (b"Icy-MetaData: yes", False),
        (b"Icy-MetaDataX: 1", False),
        (b"X-Icy-MetaData: 1", False),
    ],
)
def test_titles_are_asked_for_by_a_number_that_is_not_zero(field: bytes, icy: bool) -> None:
    """The field's name has no case; nothing but its number counts."""
    told = head_parse(request(b"/live", field))
    assert told is not None
    assert told[3] is icy


def test_at_most_64_fields() -> None:
    """64 fields pass, 65 do not."""
    assert status(request(b"/", *[b"a: b"] * FIELDS_MAX)) == 0
    assert status(request(b"/", *[b"a: b"] * (FIELDS_MAX + 1))) == -431


def test_a_head_of_the_full_size_is_understood() -> None:
    """8,192 bytes are a head like any other; the door counts, this room only reads."""
    bare = len(request(b"/live", b"X: "))
    head = request(b"/live", b"X: " + b"x" * (HEAD_BYTES_MAX - bare))
    assert len(head) == HEAD_BYTES_MAX
    assert head_end(head) == HEAD_BYTES_MAX
    assert status(head) == 0


def test_what_follows_the_head_is_not_looked_at() -> None:
    """A body or a second request behind the blank line changes nothing."""
    assert head_parse(GET + b"\x00\r\rPOST") == head_parse(GET)


@pytest.mark.parametrize(
    ("agent", "relays"),
    [
        (b"Icecast 2.4.4", True),
        (b"Icecast 2.4.0-kh15", True),
        (b"icecast 2.5-beta3", True),
        (b"Relay/0.1.0", True),
        (b"Lavf/60.3.100", False),
        (b"Icecast", False),
        (b"Mozilla/5.0 (Icecast 2)", False),
        (b"Relay", False),
        (b"", False),
    ],
)
def test_servers_that_pass_a_stream_on_are_known_by_their_agent(agent: bytes, relays: bool) -> None:
    """Icecast, its KH branch, and our own pulls; nobody who merely names them."""
    assert head_relays(request(b"/live", b"User-Agent: " + agent)) is relays
    assert head_relays(request(b"/live", b"USER-AGENT:" + agent)) is relays
    assert not head_relays(request(b"/live", b"X-User-Agent: " + agent))
