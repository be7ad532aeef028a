"""What one listener gets, write by write: a socket that takes any number of bytes, at any time.

Rules of this room
  1. The audio tells its own place: each four bytes are the number of their word in the programme.
  2. A fake stands in the place of the socket and of the clock; all else is what is shipped.
"""

from __future__ import annotations

import bisect
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe import icy_block
from relay._probe_listener import LISTENER_BYTES, OneListener
from tools.listeners import IcyStripper

METAINT = 16_000
FRAME_US = 24_000
HEAD = b"HTTP/1.0 200 OK\r\n\r\n"
EVERYTHING = 1 << 30


class Programme:
    """A source that pushes frames of numbered words, and titles, and knows what it pushed."""

    def __init__(self, **options: int) -> None:
        """Begin an epoch; options as those of OneListener."""
        self.listener = OneListener(**options)
        self.position = 0
        self.begins: list[int] = []  # of each frame
        self.starts: set[int] = set()
        self.titles: list[tuple[int, bytes]] = []
        self.now_us = 1_000_000
        self.out = bytearray()
        self.skips_us: list[int] = []

    def push(self, words: int, start: bool = True) -> None:
        """One frame of so many words."""
        first = self.position // 4
        data = b"".join(word.to_bytes(4, "little") for word in range(first, first + words))
        assert self.listener.push(data, FRAME_US, int(start), self.now_us) == 1
        self.begins.append(self.position)
        if start:
            self.starts.add(self.position)
        self.position += 4 * words

    def title(self, text: bytes) -> None:
        """A title from here on."""
        assert self.listener.title(text) == 1
        self.titles.append((self.position, text))

    def send(self, room: int, after_us: int = 10_000, head: bytes = b"") -> tuple[object, int]:
        """One turn of the listener; returns its status and the parts of the send."""
        self.now_us += after_us
        status, out, parts, skipped_us = self.listener.send(room, self.now_us, head)
        self.out += out
        if skipped_us is not None:
            self.skips_us.append(skipped_us)
        return status, parts

    def send_all(self) -> object:
        """Turns with room for everything, until there is nothing left; the last status."""
        before, status = -1, self.send(EVERYTHING)[0]
        while isinstance(status, str) and (status != "done" or len(self.out) != before):
            before, (status, _) = len(self.out), self.send(EVERYTHING)
        return status

    def title_at(self, position: int) -> bytes | None:
        """The block of the title in force at a cursor; None where there is none yet."""
        known = bisect.bisect_right([at for at, _ in self.titles], position)
        return icy_block(self.titles[known - 1][1])[1:].rstrip(b"\0") if known else None


def words_of(audio: bytes) -> list[int]:
    """The positions that the whole words of a run of audio claim."""
    whole = len(audio) // 4 * 4
    return [4 * int.from_bytes(audio[at : at + 4], "little") for at in range(0, whole, 4)]


def runs_of(audio: bytes) -> list[tuple[int, int]]:
    """Runs [from, to) of positions without a break, in the order in which they came."""
    runs: list[tuple[int, int]] = []
    for position in words_of(audio):
        if runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 4)
        else:
            runs.append((position, position + 4))
    return runs


def check(live: Programme) -> IcyStripper:
    """What arrived is audio in order, spliced at frames only, with exact and true blocks."""
    strip = IcyStripper(METAINT)
    audio = strip.feed(bytes(live.out).removeprefix(HEAD))
    runs = runs_of(audio)
    ends = {*live.begins, live.position}
    for (_, before), (after, _) in itertools.pairwise(runs):
        assert before in ends, "left in the midst of a frame"
        assert after in live.starts, "went on where no listener may begin"
        assert after > before, "went back"
    assert not runs or runs[0][0] in live.starts
    words = words_of(audio)
    said: bytes | None = None
    told = {title.position: title.block for title in strip.titles}
    for at in range(METAINT, len(audio) - 3, METAINT):
        # the cursor of the block: behind the word before it, or, after a skip, at the next one
        due = [live.title_at(words[at // 4 - 1] + 4), live.title_at(words[at // 4])]
        if at in told:
            assert told[at] in due
            assert told[at] != said, "said twice"
            said = told[at]
        else:
            assert said in due
    return strip


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 12), st.integers(1, 2000)),
        st.tuples(st.just("title"), st.integers(0, 4080), st.integers(0, 255)),
        st.tuples(st.just("send"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("send"), st.integers(0, 60_000), st.just(0)),
        st.tuples(st.just("send"), st.just(EVERYTHING), st.just(0)),
    ),
    max_size=60,
)


def titled(number: int, size: int) -> bytes:
    """A title of this size (at least 3 bytes) that no other number has."""
    return b"%03d" % number + b"t" * max(0, size - 3)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(0, EVERYTHING), st.sampled_from([200_000, 600_000, 60_000_000]))
def test_any_split_of_any_write_gives_the_same_stream(
    steps: list[tuple[str, int, int]], first: int, lag_us_max: int
) -> None:
    """Audio, counter and titles are right wherever a write ends and wherever a skip falls."""
    live = Programme(burst_us=150_000, lag_us_max=lag_us_max)
    live.push(100)
    status, _ = live.send(first, head=HEAD)
    for kind, count, size in steps:
        if not isinstance(status, str):
            break  # ended: it was overtaken in mid-frame
        if kind == "push":
            for number in range(count):
                live.push(size, start=number % 2 == 0)
        elif kind == "title" and len(live.titles) < 8:
            live.title(titled(len(live.titles), count))
        else:
            status, _ = live.send(count)
    if isinstance(status, str):
        status = live.send_all()
    check(live)
    if status == "done" and not live.skips_us:
        strip = IcyStripper(METAINT)
        assert len(strip.feed(bytes(live.out)[len(HEAD) :])) == live.position


def test_the_property_above_sees_skips_and_titles() -> None:
    """A run of its kind with dice: it skips, tells titles, and cuts blocks in two."""
    dice = random.Random(7)
    live = Programme(burst_us=150_000, lag_us_max=600_000)
    live.push(100)
    live.send(20, head=HEAD)
    for number in range(4000):
        live.push(dice.randrange(1, 400))
        if number % 500 == 250:
            live.title(titled(number, dice.randrange(4080)))
        live.send(dice.choice([0, 1, 17, 400, 900, 2000]))
    live.send_all()
    strip = check(live)
    assert len(live.skips_us) > 3
    assert len(strip.titles) > 4
    assert strip.blocks > 80


@pytest.mark.parametrize("size", [1, 4063, 4064, 4065, 4080])
def test_the_longest_titles_are_sent_whole_byte_by_byte(size: int) -> None:
    """Blocks of up to 4,081 bytes through a socket that takes one byte at a time."""
    live = Programme(burst_us=1 << 40)
    live.push(1)
    live.title(b"x" * size)
    live.push(METAINT // 4)
    live.push(METAINT // 4)
    status, _ = live.send(METAINT - 10, head=HEAD)
    while status != "done":
        status, _ = live.send(1)
    strip = check(live)
    assert [title.position for title in strip.titles] == [METAINT]
    assert strip.titles[0].block == b"StreamTitle='" + b"x" * min(size, 4064) + b"';"


def test_more_titles_than_a_ring_keeps_never_give_a_wrong_one() -> None:
    """Who lags behind more titles than are kept is told none of them, until one is in force."""
    live = Programme(burst_us=0, lag_us_max=60_000_000)
    live.push(1)
    live.send(EVERYTHING, head=HEAD)
    for number in range(20):
        live.push(2000)
        live.title(b"%d" % number)
        live.push(2000)
    while live.send(16_001)[0] != "done":
        pass
    strip = IcyStripper(METAINT)
    strip.feed(bytes(live.out)[len(HEAD) :])
    assert len(strip.titles) >= 7
    for title in strip.titles:
        assert title.block == live.title_at(title.position)


@pytest.mark.parametrize("gone", [0, 1, 7999, 15_999])
def test_a_second_at_320_kbit_is_two_writes_at_any_place_of_the_counter(gone: int) -> None:
    """Pace 1000 ms with ICY: 40,960 bytes and three blocks; the second write is a slot later."""
    live = Programme(burst_us=0)
    live.push(1)
    live.send(EVERYTHING, head=HEAD)
    for _ in range((gone // 4 + 1999) // 2000):
        live.push(2000)
    live.send_all()
    for number in range(5):
        live.title(titled(number, 4000))
        for _ in range(5):
            live.push(2048)
        assert live.send(EVERYTHING, after_us=1_000_000)[0] == "more"
        status, parts = live.send(EVERYTHING, after_us=10_000)
        assert status == "done"
        assert parts <= 8
    check(live)


@pytest.mark.parametrize(("bit_rate_kbit", "sends_max"), [(64, 1), (320, 5), (1411, 19)])
def test_a_burst_with_titles_takes_few_writes(bit_rate_kbit: int, sends_max: int) -> None:
    """3 s at once: each write moves 28,672 bytes, and the next one is a slot later."""
    live = Programme(burst_us=3_000_000)
    frame_words = bit_rate_kbit * FRAME_US // 8000 // 4
    for _ in range(250):
        live.push(frame_words)
    sends, status = 1, live.send(EVERYTHING, head=HEAD)[0]
    while status == "more":
        sends, status = sends + 1, live.send(EVERYTHING)[0]
    assert status == "done"
    assert sends <= sends_max
    assert check(live).audio_bytes == 3_000_000 // FRAME_US * frame_words * 4


def test_a_title_of_a_new_epoch_is_said_though_its_sequence_is_the_same() -> None:
    """The counter goes on over the end of an epoch; the first block after it has the new title."""
    live = Programme(burst_us=0)
    live.title(b"old")
    live.push(4000)
    live.push(4000)
    live.send(EVERYTHING, head=HEAD)
    assert live.listener.new_epoch(2) == 0
    live.position = 0
    live.listener.title(b"new")
    live.push(4000)
    live.push(4000)
    while live.send(5000)[0] != "done":
        pass
    strip = IcyStripper(METAINT)
    assert len(strip.feed(bytes(live.out)[len(HEAD) :])) == 48_000
    blocks = [(title.position, title.block) for title in strip.titles]
    assert blocks == [(16_000, b"StreamTitle='new';")]


# --- what a skip leaves out -----------------------------------------------------------------------


def lagging(frames: int, **options: int) -> Programme:
    """A listener at a frame's end while so many frames more are pushed."""
    live = Programme(burst_us=0, **options)
    live.push(50)
    live.send(EVERYTHING, head=HEAD)
    for _ in range(frames):
        live.push(50)
    return live


@pytest.mark.parametrize("frames", [10, 100, 500])
def test_a_skip_is_as_long_as_what_it_left_out(frames: int) -> None:
    """Media time between the end of what it heard and the start at which it goes on."""
    live = lagging(frames, lag_us_max=FRAME_US)
    live.send(0)  # its socket is full: too far behind, it will skip
    live.send(EVERYTHING)
    assert live.skips_us == [(frames - 1) * FRAME_US]
    assert (
        runs_of(IcyStripper(METAINT).feed(bytes(live.out)[len(HEAD) :]))[-1][0] == (live.begins[-1])
    )


def test_a_skip_over_what_has_left_the_ring_is_told_by_its_rate() -> None:
    """The index knows the place no more: bytes and the mean rate tell the media time."""
    live = lagging(30_000, lag_us_max=1 << 50, ring_us=5_000_000)
    live.send_all()
    (skipped_us,) = live.skips_us
    assert abs(skipped_us - 29_999 * FRAME_US) < 0.02 * 30_000 * FRAME_US


def test_a_record_of_a_listener_has_at_most_256_bytes() -> None:
    """The bound of the design: records are preallocated for all who fit."""
    assert LISTENER_BYTES <= 256


# --- header pages with blocks between (icy_ogg) ---------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 12_000), min_size=1, max_size=4),
    st.lists(st.integers(0, 40_000), max_size=40),
    st.integers(0, 30),
)
def test_header_pages_are_counted_and_blocks_stand_between_them(
    pages: list[int], rooms: list[int], skip_after: int
) -> None:
    """Whatever a socket takes of them: without the blocks it is the Ogg stream."""
    live = OneListener(icy=True, burst_us=200_000, lag_us_max=500_000)
    header = b""
    for number, words in enumerate(pages):
        page = b"HEAD" * words
        assert live.push(page, 0, 2 | (4 if number == 0 else 0)) == 1
        header += page
    live.title(b"now playing")
    sent = bytearray()
    now_us = 1_000_000
    out = bytearray()

    def push() -> None:
        first = len(sent) // 4
        data = b"".join((first + i).to_bytes(4, "little") for i in range(150))
        assert live.push(data, FRAME_US, 1, now_us) == 1
        sent.extend(data)

    for _ in range(40):
        push()
    for number, room in enumerate(rooms):
        now_us += 10_000
        out += live.send(room, now_us, HEAD if number == 0 else b"")[1]
        for _ in range(30 if number == skip_after else 1):
            push()
    for _ in range(60):
        now_us += 10_000
        out += live.send(EVERYTHING, now_us, HEAD if not rooms and not out else b"")[1]
    assert out.startswith(HEAD)
    strip = IcyStripper(METAINT)
    body = strip.feed(bytes(out[len(HEAD) :]))
    assert body.startswith(header)
    audio = body[len(header) :]
    runs = []
    for at in range(0, len(audio), 4):
        word = int.from_bytes(audio[at : at + 4], "little")
        if not runs or runs[-1][1] != word:
            runs.append([word, word])
        runs[-1][1] = word + 1
    assert all(begin % 150 == 0 and end % 150 == 0 for begin, end in runs)
    assert runs[-1][1] == len(sent) // 4
    assert strip.blocks in {len(body) // METAINT, (len(body) - 1) // METAINT}
    if strip.blocks:
        assert [title.block for title in strip.titles][:1] in (
            [],
            [b"StreamTitle='now playing';"],
        )
