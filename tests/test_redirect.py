"""Being sent on: the location is the other node's, with path, query and a count of the hops."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe_door import hops, location, retry_after_s, target_of

BASE = "http://two.example:8000"


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (b"/live", b"/live?relay-hops=1"),
        (b"/live?a=b", b"/live?a=b&relay-hops=1"),
        (b"/caf%C3%A9%20bar?x=%0d%0A", b"/caf%C3%A9%20bar?x=%0d%0A&relay-hops=1"),
        (b"/live?relay-hops=1", b"/live?relay-hops=2"),
        (b"/live?relay-hops=2&a=b", b"/live?a=b&relay-hops=3"),
        (b"/live?a=b&relay-hops=1&c=d", b"/live?a=b&c=d&relay-hops=2"),
        (b"/live?a=b&relay-hops=1", b"/live?a=b&relay-hops=2"),
        (b"/live?not-relay-hops=3", b"/live?not-relay-hops=3&relay-hops=1"),
        (b"/relay-hops=3", b"/relay-hops=3?relay-hops=1"),
        (b"/a&relay-hops=3", b"/a&relay-hops=3?relay-hops=1"),
        (b"//evil.example/x", b"//evil.example/x?relay-hops=1"),
        (b"/live?", b"/live?&relay-hops=1"),
    ],
)
def test_path_and_query_stay_as_they_came(target: bytes, wanted: bytes) -> None:
    """Only the mark is ours: added at the end, counted up when it was there."""
    assert location(BASE, target) == BASE.encode() + wanted


@pytest.mark.parametrize(
    "target",
    [
        b"/live?relay-hops=3", b"/live?relay-hops=9", b"/live?relay-hops=0", b"/live?relay-hops=",
        b"/live?relay-hops=11", b"/live?relay-hops=x", b"/live?relay-hops=1x&a=b",
        b"/live?relay-hops=1&relay-hops=1", b"/live?relay-hops=1&a=b&relay-hops=2&c",
    ],
)  # fmt: skip
def test_nobody_goes_round_for_ever(target: bytes) -> None:
    """After three hops, or with a mark that no node writes, it is told 503 instead."""
    assert hops(target) == 3 or target[-1:] == b"9"
    assert location(BASE, target) is None


@pytest.mark.parametrize(
    "target",
    [b"/live?a\r\nSet-Cookie: x", b"/li ve", b"/live?a\tb", b"/x\x00", b"/\x7f", b"", b"*"],
)
def test_what_could_end_a_line_is_not_sent_back(target: bytes) -> None:
    """A target with a blank or a control byte is answered, but not repeated."""
    assert location(BASE, target) is None


def test_a_location_that_does_not_fit_is_not_cut() -> None:
    """To the byte."""
    wanted = BASE.encode() + b"/live?relay-hops=1"
    assert location(BASE, b"/live", room=len(wanted)) == wanted
    assert location(BASE, b"/live", room=len(wanted) - 1) is None


@given(st.binary(max_size=60))
def test_any_target_gives_a_clean_location_or_none(target: bytes) -> None:
    """Never a control byte, never without the base, and one hop more than before."""
    for request in (target, b"/" + target, b"/live?" + target):
        found = location(BASE, request)
        if found is not None:
            assert found.startswith(BASE.encode() + b"/")
            assert all(byte > 32 and byte != 127 for byte in found)
            assert hops(found[len(BASE) :]) == hops(request) + 1


@pytest.mark.parametrize("base", ["", "http://a b", "http://a\r\n", "http://é", "x" * 256])
def test_a_base_that_could_break_a_reply_is_refused(base: str) -> None:
    """The core checks what config.py has checked once more."""
    with pytest.raises(ValueError, match=r".*"):
        location(base, b"/live")


def test_those_who_are_refused_together_come_back_apart() -> None:
    """2 to 10 s, each about as often; other dice, another order."""
    waits = Counter(retry_after_s(12345, 9000))
    assert sorted(waits) == list(range(2, 11))
    assert min(waits.values()) > 800
    assert retry_after_s(1, 50) != retry_after_s(2, 50)


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (b"GET /live?a=%20b HTTP/1.1", b"/live?a=%20b"),
        (b"GET http://host:80/live?a#part HTTP/1.1", b"/live?a"),
        (b"GET /l%69ve HTTP/1.0", b"/l%69ve"),
        (b"GET * HTTP/1.0", b"*"),
    ],
)
def test_a_head_keeps_its_target_as_it_came(line: bytes, target: bytes) -> None:
    """Path and query, not decoded, without what only the client needs."""
    assert target_of(line + b"\r\nHost: a\r\n\r\n") == (0, target)
