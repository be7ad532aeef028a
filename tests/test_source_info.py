"""What a source says of itself: every spelling, and never a way out of its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.source_info import clean, info_lines, read_info, title_text


def told(**headers: str) -> dict[str, str]:
    """What listeners are told when a source says this."""
    return read_info(info_lines("audio/mpeg", {k.replace("_", "-"): v for k, v in headers.items()}))


@pytest.mark.parametrize("prefix", ["ice-", "icy-", "x-audiocast-", "Ice-", "ICY-"])
def test_names_are_taken_in_every_spelling(prefix: str) -> None:
    """Encoders write ice-, icy- and x-audiocast-, in any case."""
    lines = info_lines("audio/mpeg", {f"{prefix}Name": "A talk", f"{prefix}genre": "speech"})
    assert b"icy-name:A talk\r\n" in lines
    assert b"icy-genre:speech\r\n" in lines
    assert lines.startswith(b"Content-Type: audio/mpeg\r\n")


@pytest.mark.parametrize(
    ("headers", "bit_rate"),
    [
        ({"ice-bitrate": "128"}, "128"),
        ({"ice-audio-info": "ice-samplerate=44100;ice-bitrate=96;ice-channels=2"}, "96"),
        ({"ice-audio-info": "bitrate=64"}, "64"),
        ({"ice-bitrate": "Quality 4", "ice-audio-info": "bitrate=112"}, "112"),
        ({"ice-bitrate": "Quality 4"}, None),
        ({}, None),
    ],
)
def test_bit_rate_is_found_where_encoders_put_it(
    headers: dict[str, str], bit_rate: str | None
) -> None:
    """From ice-bitrate or from ice-audio-info; words are no bit rate."""
    assert read_info(info_lines("audio/mpeg", headers)).get("icy-br") == bit_rate


@pytest.mark.parametrize(("value", "public"), [("1", "1"), ("true", "1"), ("0", "0"), ("x", "0")])
def test_public_is_one_or_nought(value: str, public: str) -> None:
    """Listeners are told 1 or 0; who says nothing is not public."""
    assert told(ice_public=value)["icy-pub"] == public
    assert told()["icy-pub"] == "0"


@given(st.dictionaries(st.sampled_from(["ice-name", "icy-url", "ice-description"]), st.text()))
def test_no_value_breaks_out_of_its_line(headers: dict[str, str]) -> None:
    """Whatever a source says, the reply has the lines that we wrote, and stays small."""
    lines = info_lines("audio/mpeg", headers)
    assert len(lines) <= 4096
    assert lines.count(b"\r\n") == lines.count(b"\r") == lines.count(b"\n")
    assert lines.count(b"\n") <= 2 + len(headers)
    assert b"\0" not in lines


def test_long_values_are_cut_between_characters() -> None:
    """A bound in bytes never leaves half a character."""
    assert clean("ä" * 10, 5) == "ää"
    assert clean(" a\r\nb\x00c\x1b[31m ", 100) == "a  b c [31m"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://x/a?b=c&d=%20#e", "T\0https://x/a?b=c&d=%20#e"),
        ("", "T"),
        ("javascript:alert(1)", "T"),
        ("http://x/';StreamTitle='", "T"),
        ("http://x/a b", "T"),
        ("http://x/\r\n", "T"),
        ('http://x/"<>', "T"),
        ("http://x/" + "a" * 600, "T"),
    ],
)
def test_a_title_keeps_its_url_only_if_that_is_one(url: str, told: str) -> None:
    """It stands behind a NUL; quotes and line ends are no URL."""
    assert title_text("T", url) == told
    assert len(title_text("x" * 9000, url).encode()) <= 4000
