"""Basic credentials and secrets, from strangers."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth import (
    account_in,
    as_text,
    basic,
    credentials,
    same_secret,
    shoutcast_secret,
)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Basic " + base64.b64encode(b"source:p:w").decode(), ("source", "p:w")),
        ("basic " + base64.b64encode("source:pä".encode()).decode(), ("source", "pä")),
        ("Basic " + base64.b64encode(b"nocolon").decode(), None),
        ("Basic !!!", None),
        ("Bearer c291cmNlOnB3", None),
        ("", None),
        (None, None),
    ],
)
def test_basic_credentials_are_read(header: str | None, found: tuple[str, str] | None) -> None:
    """RFC 7617: user and password, the password may hold colons; anything else is nobody."""
    assert credentials(header) == found


@pytest.mark.parametrize(
    ("secret", "account"),
    [
        ("pw", ("source", "pw")),
        ("joe:p:w", ("joe", "p:w")),
        (":pw", ("", "pw")),
        ("", ("source", "")),
    ],
)
def test_shoutcasts_password_may_hold_a_user(secret: str, account: tuple[str, str]) -> None:
    """Before the first colon; without one it is the source."""
    assert account_in(secret) == account


@given(st.text("ab:ä €", max_size=20), st.text("ab:ä €", max_size=20))
def test_what_is_written_is_read(user: str, password: str) -> None:
    """A user has no colon (RFC 7617 §2), a password may have any."""
    user = user.replace(":", "")
    assert credentials(basic(user, password)) == (user, password)


def test_no_password_set_means_nobody_gets_in() -> None:
    """A node without passwords refuses all sources rather than taking any."""
    assert same_secret("pw", "pw")
    assert not same_secret("pw", "other")
    assert not same_secret("", None)
    assert not same_secret("", "")


@given(
    st.text(alphabet=st.characters(codec="utf-8")), st.text(alphabet=st.characters(codec="utf-8"))
)
def test_only_the_same_secret_is_the_same(given_: str, wanted: str) -> None:
    """Also for text that no encoding likes."""
    assert same_secret(given_, wanted) is (given_ == wanted != "")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("pw", ("pw", None)), ("pw:#7", ("pw", 7)), ("dj:pw:#65535", ("dj:pw", 65535)),
        ("pw:#", ("pw:#", None)), ("pw:#123456", ("pw:#123456", None)), ("pw:7", ("pw:7", None)),
        (":#1:#2", (":#1", 2)), ("", ("", None)), (":#7", ("", 7)),
    ],
)  # fmt: skip
def test_stream_id_stands_behind_shoutcasts_password(
    said: str, told: tuple[str, int | None]
) -> None:
    """The last one, of at most five digits; what is none is a part of the secret."""
    assert shoutcast_secret(said) == told


def test_bytes_of_any_kind_are_text() -> None:
    """UTF-8 first, then Latin-1."""
    assert as_text("ä".encode()) == as_text(b"\xe4") == "ä"
