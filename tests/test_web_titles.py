"""/admin/metadata without a socket: fields, charsets, credentials, answers."""

from __future__ import annotations

import base64
from urllib.parse import quote, urlencode

import pytest
from fake_desk import HOSTILE, FakeDesk, stream
from hypothesis import given
from hypothesis import strategies as st

from relay.config import Config
from relay.web.titles import (
    Answer,
    account_of,
    decode,
    is_foreign,
    mounts_meant,
    parse_fields,
    title_of,
    update,
)


def basic(user: str, password: str) -> str:
    """An Authorization value."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def ask(desk: FakeDesk, header: str | None = None, **fields: str) -> Answer:
    """One request with these fields."""
    told = parse_fields(urlencode({"mode": "updinfo", "mount": "/live"} | fields))
    return ask_with(desk, told, [s.mount for s in desk.streams], header)


def ask_with(
    desk: FakeDesk, fields: dict[str, bytes], here: list[str], header: str | None = None
) -> Answer:
    """One request; `here`: the mounts that have a source."""
    meant = mounts_meant(desk.config, fields, here)
    says = dict.fromkeys(meant, desk.script_says)
    return update(desk, fields, meant, account_of(fields, header), says)


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
    ("header", "says", "status"),
    [
        (basic("joe", "his"), True, 200),
        (basic("source", "pw"), False, 401),
        (basic("admin", "apw"), False, 200),
        (None, True, 200),
    ],
)
def test_a_scripts_word_stands_for_the_sources_password(
    header: str | None, says: bool, status: int
) -> None:
    """It lets in whom no password would, and the admin needs nobody's word."""
    desk = FakeDesk(stream())
    desk.script_says = says
    assert (
        ask(desk, header, song="A - T", **({} if header else {"pass": "joe:his"})).status == status
    )
    assert len(desk.titles) == (status == 200)


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
    ("with_source", "heard", "titled"),
    [
        (["/shout", "/b"], ["/b"], "/shout"),  # the title came before the first frame
        (["/shout", "/b"], ["/b", "/shout"], "/shout"),
        (["/b"], ["/b"], "/b"),
        (["/b", "/c"], ["/b", "/c"], None),
        ([], [], None),
    ],
)
def test_title_of_shoutcast_is_that_of_its_mount_before_any_other(
    with_source: list[str], heard: list[str], titled: str | None
) -> None:
    """libshout tells the title before it sends audio: another mount that is live is not meant."""
    desk = FakeDesk(*map(stream, with_source))
    told = {"source_password": "pw", "shoutcast": "127.0.0.1:0", "shoutcast_mount": "/shout"}
    desk.config = Config.load(overrides=told, environ={})
    fields = parse_fields("mode=updinfo&pass=pw&song=T")
    answer = ask_with(desk, fields, heard)
    assert desk.titles == ([] if titled is None else [(titled, "T")])
    assert answer.status == (404 if titled is None else 200)


@pytest.mark.parametrize(
    ("query", "titled"),
    [
        ("pass=own:%237&song=T", "/talk"),
        ("pass=own&sid=7&song=T", "/talk"),
        ("pass=dj:own:%237&song=T", "/talk"),
        ("pass=pw:%231&song=T", "/shout"),
        ("pass=dj:pw&song=T", "/shout"),
        ("pass=pw:%237&song=T", None),
        ("pass=own&song=T", None),
        ("pass=dj:apw:%237&song=T", None),
        ("pass=admin:apw&song=T", "/shout"),
        ("pass=admin:apw:%237&song=T", "/talk"),
        ("pass=apw:%237&song=T", "/talk"),
        ("pass=apw&song=T", "/shout"),
        ("pass=admin:x&song=T", None),
        ("pass=:%237&song=T", None),
        ("pass=own:%237&mount=/b&song=T", None),
    ],
)
def test_password_that_names_a_stream_id_names_the_mount(query: str, titled: str | None) -> None:
    """What a SHOUTcast encoder has for its password it says here, too: libshout knows no other way
    to name one of several mounts."""
    desk = FakeDesk(stream("/talk"), stream("/shout"), stream("/b"))
    own = {"/talk": {"shoutcast_sid": 7, "source_password": "own"}}
    told = {"source_password": "pw", "admin_password": "apw", "streams": own}
    told |= {"shoutcast": "127.0.0.1:0", "shoutcast_mount": "/shout"}
    desk.config = Config.load(overrides=told, environ={})
    answer = ask_with(desk, parse_fields(f"mode=updinfo&{query}"), ["/talk", "/shout", "/b"])
    assert answer.status == (401 if titled is None else 200)
    assert desk.titles == ([] if titled is None else [(titled, "T")])


def test_password_may_end_as_an_id_does() -> None:
    """It was the operator's to choose, the source's and the admin's."""
    for password in ("pw:#12", "admin:#3"):
        desk = FakeDesk(stream())
        told = {"source_password": password, "admin_password": f"a{password}"}
        desk.config = Config.load(overrides=told, environ={})
        for said in (password, f"dj:{password}", f"a{password}", f"admin:a{password}"):
            assert ask(desk, song="T", **{"pass": said}).status == 200, said
        assert ask(desk, song="T", **{"pass": "pw"}).status == 401


def test_user_before_the_password_is_shoutcasts_alone() -> None:
    """Basic credentials have a place of their own for it."""
    desk = FakeDesk(stream())
    assert ask(desk, basic("source", "dj:pw"), song="T").status == 401
    assert ask(desk, basic("source", "pw:#1"), song="T").status == 401


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


def test_the_url_of_a_title_goes_along() -> None:
    """What is no URL is the source's room to refuse (test_source.py)."""
    desk = FakeDesk(stream())
    assert ask(desk, basic("source", "pw"), song="T", url=" http://x/1 ").status == 200
    assert desk.done == [("url", "http://x/1")]
