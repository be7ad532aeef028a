"""Basic credentials and secrets, from strangers."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth import as_text, credentials, same_secret


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


def test_bytes_of_any_kind_are_text() -> None:
    """UTF-8 first, then Latin-1."""
    assert as_text("ä".encode()) == as_text(b"\xe4") == "ä"
