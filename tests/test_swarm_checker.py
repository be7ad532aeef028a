"""One sampled listener: each frame once, in order, undamaged; each title right and new enough."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe_swarm import FRAME_BYTES, FRAME_US, Ear, Mount, frame

RUN = 4711
METAINT = 1000


def programme(*sequences: int) -> bytes:
    """These frames of mount 0, each written at its media time."""
    return b"".join(frame(RUN, 0, n, n * FRAME_US) for n in sequences)


def ear(**settings: int) -> Ear:
    """A listener that has heard nothing yet."""
    return Ear(Mount(), run=RUN, **settings)


def heard(data: bytes, **settings: int) -> dict[str, int]:
    """What is counted of these bytes, beside zeros."""
    one = ear(**settings)
    one.feed(data, 10**9)
    names = ("checked", "lost", "repeated", "damaged", "skips")
    return {name: one.told()[name] for name in names if one.told()[name]}


def with_titles(audio: bytes, *texts: str) -> bytes:
    """The audio with a block each METAINT bytes: these texts, then none."""
    blocks = iter(texts)
    out = b""
    while audio:
        out, audio = out + audio[:METAINT], audio[METAINT:]
        text = next(blocks, "") if audio else ""
        block = f"StreamTitle='{text}';".encode() if text else b""
        size = -(-len(block) // 16)
        out += bytes([size]) + block.ljust(16 * size, b"\0") if audio else b""
    return out


def test_a_whole_programme_is_clean() -> None:
    """From wherever it begins."""
    assert heard(programme(*range(7, 57))) == {"checked": 50}


def test_a_burst_that_begins_inside_a_frame_is_no_damage() -> None:
    """What lies before the first whole frame is not judged."""
    assert heard(programme(*range(50))[100:]) == {"checked": 49}


def test_a_missing_frame_is_lost_at_a_skip() -> None:
    """A jump is one skip, whatever its size; each frame in it is lost."""
    assert heard(programme(1, 2, 4, 5)) == {"checked": 4, "lost": 1, "skips": 1}
    assert heard(programme(1, 2, 40, 41, 43)) == {"checked": 5, "lost": 38, "skips": 2}


def test_a_repeated_frame_is_told_and_nothing_else() -> None:
    """The order goes on where it was."""
    assert heard(programme(1, 2, 2, 3)) == {"checked": 4, "repeated": 1}
    assert heard(programme(1, 2, 3, 1, 2, 3, 4)) == {"checked": 7, "repeated": 3}


@pytest.mark.parametrize("at", [0, 1, 21, 40, 100, 176, 191])
def test_a_damaged_frame_is_damaged_and_not_lost_too(at: int) -> None:
    """Whichever byte of it."""
    data = bytearray(programme(*range(5)))
    data[2 * FRAME_BYTES + at] ^= 0x15
    assert heard(bytes(data)) == {"checked": 4, "damaged": 1}


def test_a_byte_too_few_or_too_many_damages_where_it_is() -> None:
    """The next frame is found again, though it does not stand where it should."""
    data = programme(*range(5))
    cut, at = 2 * FRAME_BYTES + 50, 2 * FRAME_BYTES
    assert heard(data[:cut] + data[cut + 1 :]) == {"checked": 4, "damaged": 1}
    assert heard(data[:at] + b"\x00" + data[at:]) == {"checked": 5, "damaged": 1}


def test_frames_of_another_run_or_mount_are_damage() -> None:
    """They are whole, and not what was asked for."""
    other = frame(RUN + 1, 0, 3, 0)
    assert heard(programme(1, 2) + other + programme(3)) == {"checked": 3, "damaged": 1}
    assert heard(programme(1, 2) + frame(RUN, 5, 3, 0) + programme(3)) == {
        "checked": 3,
        "damaged": 1,
    }


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """The data, cut there."""
    edges = [0, *sorted(cut % len(data) for cut in cuts), len(data)]
    for begin, end in itertools.pairwise(edges):
        yield data[begin:end]


@given(st.lists(st.integers(0, 10**6), max_size=40))
def test_any_cut_of_the_same_bytes_counts_the_same(cuts: list[int]) -> None:
    """Frames, damage, a loss and titles, in one read or in many."""
    data = bytearray(programme(1, 2, 3, 5, 5, 6, 7, 8, 9, 10, 11, 12))
    data[6 * FRAME_BYTES + 9] ^= 1
    stream = with_titles(bytes(data), "title 1", "title 2")

    def told(parts: Iterator[bytes]) -> tuple[dict[str, int], int]:
        mount = Mount()
        mount.ask_title()
        mount.ask_title()
        one = Ear(mount, run=RUN, metaint=METAINT)
        for part in parts:
            one.feed(part, 10**9)
        return one.told(), one.position

    whole = told(iter([stream]))
    assert whole[0]["heard"] == 2
    assert (whole[0]["lost"], whole[0]["repeated"], whole[0]["damaged"]) == (1, 1, 1)
    assert whole[1] == len(data)
    assert told(pieces(stream, cuts)) == whole


def test_lateness_counts_from_the_write_for_what_was_live() -> None:
    """What the burst brought was old by intention."""
    one = ear(live_us=10 * FRAME_US)
    one.feed(programme(*range(20)), 25 * FRAME_US)
    assert one.told()["late"] == 10
    assert one.told()["late_us_max"] == 15 * FRAME_US


def titled(mount: Mount, *texts: str, now_us: int = 10**9, age_us: int = 10**12) -> dict[str, int]:
    """What is counted of a stream with these titles."""
    one = Ear(mount, run=RUN, metaint=METAINT, title_age_us=age_us)
    one.feed(with_titles(programme(*range(40)), *texts), now_us)
    assert one.told()["checked"] == 40, "a block stands where it should not"
    return {name: one.told()[name] for name in ("heard", "wrong")}


def asked(count: int, told_us: int = 0) -> Mount:
    """A mount whose titles 1 to count were set."""
    mount = Mount()
    for _ in range(count):
        mount.ask_title()
        mount.tell_title(told_us or 10**9)
    return mount


def test_titles_in_their_order_are_right() -> None:
    """Empty blocks mean no change; a title may be told again to one who joins."""
    assert titled(asked(3), "title 1", "", "title 3", "title 3") == {"heard": 3, "wrong": 0}


@pytest.mark.parametrize(
    "texts",
    [("title 2", "title 1"), ("title 4",), ("title 1x",), ("title 0",), ("Title 1",)],
    ids=["falls", "never asked for", "more text", "zero", "other text"],
)
def test_a_title_that_falls_or_was_never_set_is_wrong(texts: tuple[str, ...]) -> None:
    """So is any other text, once a title of ours is owed."""
    assert titled(asked(3, told_us=1), *texts, age_us=10**9 - 1)["wrong"] >= 1
    if texts[-1] not in ("title 1x", "title 0", "Title 1"):
        assert titled(asked(3), *texts)["wrong"] == 1


def test_the_servers_own_text_is_right_until_a_title_is_owed() -> None:
    """A stream's name, for instance."""
    assert titled(asked(0), "a stream's name") == {"heard": 1, "wrong": 0}


def test_a_title_that_does_not_come_is_wrong_once() -> None:
    """It is owed after pace, a block's media time and a second, and then counted once a title."""
    mount = asked(1, told_us=10**6)
    assert titled(mount, now_us=10**6 + 2_999_999, age_us=3_000_000) == {"heard": 0, "wrong": 0}
    assert titled(mount, now_us=10**6 + 3_000_000, age_us=3_000_000) == {"heard": 0, "wrong": 1}
    late = asked(2, told_us=10**6)
    assert titled(late, "title 1", now_us=10**9, age_us=3_000_000) == {"heard": 1, "wrong": 1}
