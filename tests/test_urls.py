"""HTTP addresses of others: what is read out of them, and that an account is never shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import Config
from relay.config_told import summary
from relay.errors import ConfigError
from relay.urls import HttpUrl, parse_http_url


def test_an_address_is_read_with_its_account() -> None:
    """Scheme, host, port, target and account; the account is decoded."""
    url = parse_http_url("https://joe:a%20b%40c@radio.example:8443/live.mp3?x=1")
    assert url == HttpUrl(True, "radio.example", 8443, "/live.mp3?x=1", "joe", "a b@c")
    assert url.authorization == "Basic am9lOmEgYkBj"
    assert url.authority == "radio.example:8443"


@pytest.mark.parametrize(
    ("text", "port", "target", "authority"),
    [
        ("http://a", 80, "/", "a"),
        ("https://a/", 443, "/", "a"),
        ("http://a:443/x", 443, "/x", "a:443"),
        ("http://[::1]:8000/;stream", 8000, "/;stream", "[::1]:8000"),
        ("http://[::1]/?x", 80, "/?x", "[::1]"),
    ],
)
def test_what_is_left_out_has_its_usual_value(
    text: str, port: int, target: str, authority: str
) -> None:
    """Ports by scheme, `/` for no path; the Host header leaves the usual port out."""
    url = parse_http_url(text)
    assert (url.port, url.target, url.authority) == (port, target, authority)
    assert url.authorization == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ftp://a/x", "must begin with http"),
        ("radio.example/live", "must begin with http"),
        ("http:///live", "names no host"),
        ("http://a b/live", "XX"),
        ("http://a/l\r\nX: y", "XX"),
        ("http://a/ä", "XX"),
        ("http://a:0/x", "port"),
        ("http://a:99999/x", "ort"),
        ("http://a:x/x", "ort"),
        ("http://a/x#y", "#"),
        ("http://[::1/x", "cannot be read"),
        ("http://u:a%0d%0ab@a/x", "account"),
        ("http://" + "a" * 3000, "2048"),
    ],
)
def test_what_is_no_address_is_refused(text: str, why: str) -> None:
    """The value, and what is wrong with it, on one line."""
    with pytest.raises(ConfigError) as caught:
        parse_http_url(text)
    assert why in str(caught.value)
    assert not set(str(caught.value)) & set("\r\n")


@pytest.mark.parametrize(
    "text",
    [
        "ftp://joe:hunter2@a/x",
        "http://joe:hunter2@a:0/x",
        "http://joe:hunter2/x@a/y",
        "joe://hunter2@",
    ],
)
def test_no_error_shows_an_account(text: str) -> None:
    """Nor does it where the URL is so wrong that nobody can say what the account is."""
    try:
        shown = str(parse_http_url(text))
    except ConfigError as wrong:
        shown = str(wrong)
    assert "hunter2" not in shown


def test_no_form_of_the_settings_shows_an_account() -> None:
    """Neither repr, nor summary, nor the address itself."""
    pull = ["http://joe:hunter2@one.example/live", "http://two.example/live"]
    config = Config.load(overrides={"streams": {"/x": {"pull": pull}}}, environ={})
    url = parse_http_url(pull[0])
    shown = [repr(config), summary(config), str(url), repr(url)]
    assert all("one.example" in text for text in shown)
    assert not any("hunter2" in text for text in shown)


@pytest.mark.parametrize(
    ("location", "to", "user"),
    [
        ("/other", "http://a:8000/other", "joe"),
        ("other?y", "http://a:8000/x/other?y", "joe"),
        ("http://a:8000/z", "http://a:8000/z", "joe"),
        ("http://a:8001/z", "http://a:8001/z", ""),
        ("http://b/z", "http://b/z", ""),
        ("https://a:8000/z", "https://a:8000/z", ""),
        ("//b/z", "http://b/z", ""),
        ("http://eve@b/z", "http://b/z", "eve"),
    ],
)
def test_a_redirect_keeps_the_account_on_its_server_only(location: str, to: str, user: str) -> None:
    """Another host, port or scheme gets no password."""
    url = parse_http_url("http://joe:pw@a:8000/x/live").join(location)
    assert (url.bare, url.user) == (to, user)
    assert (url.password == "pw") == (user == "joe")


@pytest.mark.parametrize("location", ["ftp://b/x", "file:///etc/passwd", "javascript:x"])
def test_a_redirect_leads_to_http_only(location: str) -> None:
    """Nothing else is followed."""
    with pytest.raises(ConfigError):
        parse_http_url("http://a/x").join(location)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but ConfigError comes out, and what is read fits a request line."""
    for candidate in (text, f"http://{text}", f"http://a/{text}"):
        try:
            url = parse_http_url(candidate)
        except ConfigError:
            continue
        assert not set(url.target + url.authority) & set(" \r\n\0")
