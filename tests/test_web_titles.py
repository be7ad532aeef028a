"""/admin/metadata without a socket: fields, charsets, credentials, answers."""

from __future__ import annotations

import base64
from urllib.parse import quote, urlencode

import pytest
from fake_desk import HOSTILE, FakeDesk, stream
from hypothesis import given
from hypothesis import strategies as st

from relay.web.titles import Answer, decode, is_foreign, parse_fields, title_of, update


def basic(user: str, password: str) -> str:
    """An Authorization value."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def ask(desk: FakeDesk, header: str | None = None, **fields: str) -> Answer:
    """One request with these fields."""
    told = parse_fields(urlencode({"mode": "updinfo", "mount": "/live"} | fields))
    return update(desk, told, header, [s.mount for s in desk.streams])


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("song=A%20-%20T", "A - T"),
        ("song=old&artist=A&title=T", "A - T"),
        ("artist=&title=T&song=S", "S"),
        ("title=T", "T"),
        ("artist=A", "A"),
        ("song=", ""),
        ("url=x", None),
        ("song=caf%C3%A9", "café"),
        ("song=caf%E9", "café"),
        ("song=%A4&charset=ISO-8859-15", "€"),
        ("song=caf%C3%A9&charset=no-such", "café"),
        ("song=caf%C3%A9&charset=rot13", "café"),
        ("song=caf%E9&charset=UTF-8", "café"),
        ("song=a%00b%0d%0ac%1b%5b31m", "a b  c [31m"),
        ("song=a+b", "a b"),
    ],
)
def test_title_is_what_the_fields_tell(query: str, title: str | None) -> None:
    """All parameter forms and charsets that encoders use."""
    assert title_of(parse_fields(query)) == title


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_bytes_make_a_title(raw: bytes, charset: str) -> None:
    """Nothing that an encoder sends is an exception here."""
    assert isinstance(decode(raw, charset), str)
    parse_fields(raw)
    title = title_of(parse_fields(f"song={quote(raw)}&charset={quote(charset)}"))
    assert title is not None
    assert title.isprintable()


@pytest.mark.parametrize("header", [basic("source", "pw"), basic("admin", "apw"), basic("", "pw")])
def test_source_and_admin_may_set_titles(header: str) -> None:
    """Either password will do."""
    desk = FakeDesk(stream())
    answer = ask(desk, header, song="A - T")
    assert (answer.status, desk.titles) == (200, [("/live", "A - T")])
    assert "<return>1</return>" in answer.xml
    assert "Metadata update successful" in answer.xml


@pytest.mark.parametrize(
    "header", [None, basic("source", "apw"), basic("admin", "pw"), basic("x", "pw"), "Bearer pw"]
)
def test_others_may_not(header: str | None) -> None:
    """401, and no title."""
    desk = FakeDesk(stream())
    assert ask(desk, header, song="A - T").status == 401
    assert desk.titles == []


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),
        ({"Host": "h:8000"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "Cross-Site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://h", "Host": "h"}, True),
        ({"Host": "h:8000", "Origin": "http://h:8000"}, False),
        ({"Host": "H", "Origin": "https://h:443"}, False),
        ({"Host": "h:8000", "Origin": "http://h:8001"}, True),
        ({"Host": "h", "Origin": "null"}, True),
        ({"Host": "h", "Origin": "http://[", "Referer": "http://h/"}, True),
        ({"Host": "h", "Referer": "http://h/admin"}, False),
        ({"Host": "h", "Referer": "http://evil.example/h"}, True),
        ({"Origin": "http://h"}, True),
        ({"Origin": "null"}, True),
        ({"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}, False),
    ],
)
def test_a_browser_that_another_site_sent_is_foreign(
    headers: dict[str, str], foreign: bool
) -> None:
    """What browsers add tells it; encoders and scripts add nothing."""
    assert is_foreign(headers) == foreign


def test_shoutcast_form_carries_its_password_and_no_mount() -> None:
    """admin.cgi?pass=…: the only stream is meant."""
    desk = FakeDesk(stream())
    assert ask(desk, **{"pass": "pw", "song": "T", "mount": ""}).status == 200
    desk.streams.append(stream("/b"))
    assert ask(desk, **{"pass": "pw", "song": "T", "mount": ""}).status == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"mount": "/other", "song": "T"}, 404),
        ({"mode": "other", "song": "T"}, 400),
        ({}, 400),
        ({"mount": f"/{HOSTILE}", "song": "T"}, 404),
    ],
)
def test_requests_that_cannot_be_done_say_why(fields: dict[str, str], status: int) -> None:
    """In XML, escaped, with return 0."""
    answer = ask(FakeDesk(stream()), basic("source", "pw"), **fields)
    assert answer.status == status
    assert "<return>0</return>" in answer.xml
    assert "<script>" not in answer.xml
