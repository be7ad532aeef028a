"""ICY blocks: exact size, no title can break out of its quotes, no character is cut in two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe import icy_block, utf8_cut

pytestmark = pytest.mark.core

BLOCK_BYTES_MAX = 1 + 255 * 16
TEXT_BYTES_MAX = 4064
BEGIN, END = b"StreamTitle='", b"';"


def title(block: bytes) -> bytes:
    """Return the title as a player reads it: up to the first `';`."""
    assert block[1:].startswith(BEGIN)
    return block[1 + len(BEGIN) :].partition(END)[0]


def test_an_empty_title_is_a_block_of_one_sixteen() -> None:
    """Empty is said, not left out: it ends the title before."""
    assert icy_block(b"") == b"\x01StreamTitle='';\0"


def test_a_block_that_fills_its_sixteens_has_no_padding() -> None:
    """`StreamTitle='';` is 15 bytes: one more fills the first sixteen, two begin the second."""
    assert icy_block(b"a") == b"\x01StreamTitle='a';"
    assert icy_block(b"ab") == b"\x02StreamTitle='ab';" + bytes(15)


@given(st.binary(max_size=5000))
def test_any_title_gives_one_exact_block(text: bytes) -> None:
    """The length byte is right, the padding NUL, control bytes gone, the size bounded."""
    block = icy_block(text)
    assert len(block) == 1 + 16 * block[0] <= BLOCK_BYTES_MAX
    body = block[1:].rstrip(b"\0")
    assert len(block) - 1 - len(body) < 16
    assert body.startswith(BEGIN)
    assert body.endswith(END)
    assert not any(byte < 32 or byte == 127 for byte in body)


@given(st.text(max_size=600))
def test_the_quotes_end_where_the_title_ends(text: str) -> None:
    """A player that reads up to the first `';` reads the whole title, whatever is in it."""
    block = icy_block(text.replace("\0", " ").encode("utf-8", "ignore"))
    assert block[1:].rstrip(b"\0") == BEGIN + title(block) + END


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (b"';StreamUrl='http://evil';", b"',StreamUrl='http://evil',"),
        (b"'';';", b"'',',"),
        (b"a\r\nb\x01c\x7fd", b"a  b c d"),
        (b"Rock 'n' Roll", b"Rock 'n' Roll"),
        (b"it's; fine", b"it's; fine"),
        (b";'", b";'"),
    ],
)
def test_hostile_titles_are_taken_apart(text: bytes, read: bytes) -> None:
    """A quote and a semicolon never meet inside; other punctuation stays as it was."""
    assert title(icy_block(text)) == read


@given(st.text(max_size=80), st.integers(0, 120))
def test_utf8_is_cut_between_characters(text: str, size_max: int) -> None:
    """The cut is the longest prefix of whole characters within the bound."""
    data = text.encode("utf-8", "ignore")
    size = utf8_cut(data, size_max)
    kept = data[:size].decode()
    assert size <= size_max
    assert (
        size == len(data)
        or size + len(text.encode("utf-8", "ignore").decode()[len(kept)].encode()) > size_max
    )


@pytest.mark.parametrize("character", ["a", "é", "…", "🎵"])
@pytest.mark.parametrize("before", range(4))
def test_a_long_title_ends_with_a_whole_character(character: str, before: int) -> None:
    """At the bound of the block the last character is whole."""
    text = "x" * before + character * TEXT_BYTES_MAX
    read = title(icy_block(text.encode()))
    assert text.startswith(read.decode())
    assert TEXT_BYTES_MAX - len(character.encode()) < len(read) <= TEXT_BYTES_MAX


def test_bytes_that_are_no_utf8_are_bounded_too() -> None:
    """5,000 continuation bytes hold no character: nothing of them is kept."""
    assert utf8_cut(b"\x80" * 5000, TEXT_BYTES_MAX) == 0
    assert icy_block(b"\x80" * 5000) == icy_block(b"")


@given(st.text(max_size=4200), st.text(alphabet=st.characters(codec="ascii"), max_size=600))
def test_a_url_stands_behind_the_title_where_there_is_room(title: str, url: str) -> None:
    """The text of a title holds it behind a NUL; neither can end its quotes early."""
    text, link = title.replace("\0", " ").encode()[:4000], url.replace("\0", "").encode()
    block = icy_block(text + b"\0" + link)
    assert block[0] * 16 == len(block) - 1 <= 4080
    body = block[1:].rstrip(b"\0")
    assert body.startswith(BEGIN)
    _, _, behind = body[len(BEGIN) :].partition(END)
    assert behind == b"" or behind.startswith(b"StreamUrl='")
    if not link:
        assert behind == b""
    elif len(text) + len(link) < 4000:
        read, end, rest = behind[11:].partition(END)
        assert (len(read), end, rest) == (len(link), END, b"")
