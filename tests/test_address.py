"""Addresses and mounts: each form has one reader, and its errors say what is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.address import (
    Address,
    check_mount,
    parse_base_url,
    parse_host_port,
    parse_key,
    parse_secret,
    parse_tcp,
    parse_upstream,
    show,
)
from relay.errors import ConfigError, MountError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        ("[::]:8000", "::", 8000),
        ("[fe80::1%eth0]:0", "fe80::1%eth0", 0),
        ("relay-1.example.org:65535", "relay-1.example.org", 65535),
        ("relay_origin:00080", "relay_origin", 80),
    ],
)
def test_host_and_port_are_read(text: str, host: str, port: int) -> None:
    """Names, IPv4, IPv6 in brackets with or without a zone."""
    assert parse_host_port(text) == Address(host, port)
    assert parse_tcp(f"tcp://{text}", port_min=0) == Address(host, port)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "lacks a port; write HOST:PORT"),
        ("host", "lacks a port; write HOST:PORT"),
        ("[::1]", "lacks a port; write HOST:PORT"),
        ("host:", "lacks a port after the colon"),
        (":8000", "lacks a host; 0.0.0.0 or [::] stands for every address of this machine"),
        ("*:8000", "lacks a host; 0.0.0.0 or [::] stands for every address of this machine"),
        ("host:http", 'the port "http" is not a number'),
        ("host:-1", 'the port "-1" is not a number'),
        ("host:٣", 'the port "٣" is not a number'),
        ("host:65536", 'the port "65536" is out of range 0 to 65535'),
        ("host:8000/live", 'nothing may follow the port; leave out "/live"'),
        ("::1:8000", "an IPv6 address stands in brackets, as in [::1]:8000"),
        ("[::g]:80", '"[::g]" is not an IPv6 address'),
        ("[::1:80", '"[::1" is not an IPv6 address'),
        ("256.0.0.1:80", '"256.0.0.1" is not an IPv4 address'),
        ("127.1:80", '"127.1" is not an IPv4 address'),
        ("a b:80", '"a b" is not a host name'),
        ("a..b:80", '"a..b" is not a host name'),
        ("http://host:80", "write HOST:PORT alone, without a scheme"),
    ],
)
def test_a_wrong_address_is_told_why(text: str, why: str) -> None:
    """The line begins with the value and says what is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        parse_host_port(text)
    assert str(caught.value) == f"{show(text)}: {why}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tcp://host", "lacks a port; write HOST:PORT"),
        ("http://host:1", "must begin with tcp://, as in tcp://127.0.0.1:9000"),
        ("host:9000", "must begin with tcp://, as in tcp://127.0.0.1:9000"),
        ("tcp://host:0", 'the port "0" is out of range 1 to 65535'),
    ],
)
def test_a_wrong_tcp_address_is_told_why(text: str, why: str) -> None:
    """An upstream needs its scheme and a real port."""
    with pytest.raises(ConfigError) as caught:
        parse_tcp(text)
    assert str(caught.value) == f"{show(text)}: {why}"


def test_an_address_writes_itself_as_it_is_read() -> None:
    """IPv6 gets its brackets back."""
    assert str(Address("::1", 80)) == "[::1]:80"
    assert Address("host", 80).tcp == "tcp://host:80"


@pytest.mark.parametrize(
    ("one", "other", "overlaps"),
    [
        ("127.0.0.1:9000", "127.0.0.1:9000", True),
        ("127.0.0.1:9000", "localhost:9000", True),
        ("0.0.0.0:9000", "127.0.0.1:9000", True),
        ("[::]:9000", "127.0.0.1:9000", True),
        ("[::]:9000", "[::1]:9000", True),
        ("[::]:9000", "0.0.0.0:9000", True),
        ("0.0.0.0:9000", "[::1]:9000", False),
        ("127.0.0.1:9000", "[::1]:9000", False),
        ("127.0.0.1:9000", "127.0.0.2:9000", False),
        ("0.0.0.0:9000", "127.0.0.1:9001", False),
        ("0.0.0.0:0", "0.0.0.0:0", False),
    ],
)
def test_addresses_that_cannot_be_bound_at_once_overlap(
    one: str, other: str, overlaps: bool
) -> None:
    """Both ways round; any free port is never the same one."""
    first, second = parse_host_port(one), parse_host_port(other)
    assert first.overlaps(second) is second.overlaps(first) is overlaps


def test_loopback_is_known() -> None:
    """Names other than localhost may be anywhere."""
    assert [Address(h, 1).is_loopback for h in ("127.9.9.9", "::1", "LocalHost")] == [True] * 3
    assert [Address(h, 1).is_loopback for h in ("0.0.0.0", "::", "relay")] == [False] * 3


def outcome(text: str) -> Address | str:
    """The address, or the line that refuses it; whatever else is raised is a crash."""
    try:
        return parse_host_port(text)
    except ConfigError as wrong:
        return str(wrong)


@given(st.text() | st.text(alphabet="[]:.%0123456789abf/*t", max_size=30))
@example("[" * 50 + ":1")
def test_any_text_is_an_address_or_a_line(text: str) -> None:
    """No text crashes a reader, and what is read writes itself back to the same address."""
    read = outcome(text)
    if isinstance(read, Address):
        assert outcome(str(read)) == read
    else:
        assert read.isprintable()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ('a"b\n\u2028', '"a\\"b\\n\\u2028"'),
        ("x" * 500, '"' + "x" * 118 + "…"),
        ([1, [2]], "[1, […]]"),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, 6, 7, … (9 in all)]"),
        ({"a": 1}, "a table"),
        (1 << 20_000, "a number of 20001 bits"),
        (1.5, "1.5"),
        (True, "true"),
        (None, "none"),
    ],
    ids=["text", "long", "nested", "many", "table", "huge", "fraction", "flag", "nothing"],
)
def test_any_value_is_shown_on_one_short_line(value: object, shown: str) -> None:
    """What stands in a message is printable and bounded, whatever was given."""
    assert show(value) == shown


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("http://two.example:8000", "http://two.example:8000"),
        ("https://two.example/", "https://two.example"),
        ("http://[::1]:80/audio/", "http://[::1]:80/audio"),
        ("http://[::1]", "http://[::1]"),
        ("http://10.0.0.7/a%20b", "http://10.0.0.7/a%20b"),
    ],
)
def test_a_base_url_is_read(text: str, base: str) -> None:
    """With or without a port, a path before the mounts, and a slash at the end."""
    assert parse_base_url(text) == base


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("two.example:8000", "must begin with http:// or https://"),
        ("tcp://two.example:8000", "must begin with http:// or https://"),
        ("http://", "lacks a host"),
        ("http://:80", "lacks a host"),
        ("http://two.example:0", "out of range 1 to 65535"),
        ("http://two.example:x", "is not a number"),
        ("http://user@two.example", "a host, a port and a path alone"),
        ("http://two.example/?a=b", "a host, a port and a path alone"),
        ("http://two.example/#a", "a host, a port and a path alone"),
        ("http://two.example/\r\nX: y", "a host, a port and a path alone"),
        ("http://two.example/a b", "a host, a port and a path alone"),
        ("http://zwei.beispiel/ä", "a host, a port and a path alone"),
        ("http://300.1.1.1", "is not an IPv4 address"),
        ("http://two.example/" + "a" * 240, "at most 255 bytes"),
    ],
)
def test_a_wrong_base_url_is_told_why(text: str, why: str) -> None:
    """Nothing that could break a reply, or that a player could not follow."""
    with pytest.raises(ConfigError, match=why):
        parse_base_url(text)


@given(st.text(max_size=40))
def test_any_text_is_a_base_url_or_a_line(text: str) -> None:
    """Whatever passes is visible ASCII."""
    for candidate in (text, f"http://{text}", f"http://a/{text}"):
        with contextlib.suppress(ConfigError):
            base = parse_base_url(candidate)
            assert base.isascii()
            assert base.isprintable()
            assert " " not in base


@pytest.mark.parametrize("mount", ["/live", "/a/b.mp3", "/эфир", "/" + "a" * 254, "/live~1%20"])
def test_good_mounts_pass(mount: str) -> None:
    """Paths of up to 255 bytes, in any script."""
    check_mount(mount)


@pytest.mark.parametrize(
    ("mount", "why"),
    [
        ("", "a mount begins with /"),
        ("live", "a mount begins with /"),
        ("/" + "ä" * 128, "a mount has at most 255 bytes, this one 257"),
        ("/a\nb", "a mount has no control or invisible characters"),
        ("/a\u202eb", "a mount has no control or invisible characters"),
        ("/\ud800", "a mount has no control or invisible characters"),
        ("/a b", 'a mount may not hold " "'),
        ("/a?b", 'a mount may not hold "?"'),
        ("/a#b", 'a mount may not hold "#"'),
        ("/../b", 'a mount may not hold ".."'),
        *(
            (path, "Relay answers this path itself; choose another name")
            for path in ("/", "/admin", "/admin/x", "/adminx", "/api/v1", "/status-json.xsl")
        ),
        *(
            (path, "Relay answers this path itself; choose another name")
            for path in ("/metrics", "/healthz", "/readyz", "/7.html")
        ),
    ],
)
def test_a_wrong_mount_is_told_why(mount: str, why: str) -> None:
    """The line begins with the mount and says what is wrong with it."""
    with pytest.raises(MountError) as caught:
        check_mount(mount)
    assert str(caught.value) == f"{show(mount)}: {why}"


@given(st.text())
def test_any_text_is_a_mount_or_a_line(text: str) -> None:
    """No text crashes the check."""
    with contextlib.suppress(MountError):
        check_mount("/" + text)


KEY = "0123456789abcdef" * 4


def test_upstreams_are_read_with_and_without_a_key() -> None:
    """The key follows a #, in either case of letters."""
    assert parse_upstream("tcp://[::1]:9000") == (Address("::1", 9000), None)
    assert parse_upstream(f"tcp://a:1#{KEY.upper()}") == (Address("a", 1), KEY)
    assert parse_secret(f"secret:{KEY}") == f"secret:{KEY}"


@pytest.mark.parametrize(
    ("reader", "text", "why"),
    [
        (parse_upstream, "tcp://a:1#", '"": a public key has 64 hexadecimal digits'),
        (parse_upstream, f"tcp://a:1#{KEY}0", "a public key has 64"),
        (parse_upstream, f"#{KEY}", '"": must begin with tcp://'),
        (parse_upstream, f"tcp://a:1#secret:{KEY}", "is a secret key where a public one belongs"),
        (parse_upstream, f"tcp://secret:{KEY}", "is a secret key where a public one belongs"),
        (parse_key, f"secret:{KEY}", "is a secret key where a public one belongs"),
        (parse_key, KEY[:-1] + "g", "a public key has 64"),
        (parse_secret, KEY, "a secret key is secret: and 64"),
        (parse_secret, f"secret:{KEY}\n", "a secret key is secret: and 64"),
    ],
)
def test_what_is_no_key_is_refused(reader: Callable[[str], object], text: str, why: str) -> None:
    """In one line, which shows no secret."""
    with pytest.raises(ConfigError) as caught:
        reader(text)
    (line,) = caught.value.problems
    assert why in line
    assert "secret:0" not in line
    assert reader is parse_upstream or KEY not in line
