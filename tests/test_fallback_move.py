"""A listener goes over to another stream, and back: byte by byte.

Rules of this room
  1. A socket takes any number of bytes. Each word of audio tells its stream and its number, so that
     nothing torn, lost within a run, or heard twice can pass.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe import icy_block
from relay._probe_listener import Chains, left_mark, left_position
from tools.listeners import IcyStripper

METAINT = 16_000
FRAME_US = 24_000
MUSIC = 1 << 29  # words of the stream with number n begin at n times so many
END_STREAM = -5  # as listener.pxd numbers it


class Two:
    """Sources that push frames of numbered words (two, unless said otherwise), and one listener."""

    def __init__(self, *, fallbacks: int = 1, **options: Any) -> None:
        self.pair = Chains(fallbacks=fallbacks, **options)
        self.words = [0] * (fallbacks + 1)
        self.begins: set[int] = set()  # first words of frames, with their stream's bits
        self.starts: set[int] = set()
        self.now_us = 1_000_000
        self.out = bytearray()

    def push(self, stream: int, words: int, start: bool = True, flags: int = 0) -> None:
        """One frame of so many words."""
        first = self.words[stream] + MUSIC * stream
        data = b"".join((first + i).to_bytes(4, "little") for i in range(words))
        assert self.pair.push_to(stream, data, FRAME_US, int(start) | flags) == 1
        self.begins.add(first)
        if start:
            self.starts.add(first)
        self.words[stream] += words
        self.begins.add(self.words[stream] + MUSIC * stream)  # where the next one will

    def send(self, room: int) -> object:
        """One turn of the listener."""
        self.now_us += 10_000
        status, out, _, _ = self.pair.send(room, self.now_us)
        self.out += out
        return status

    def send_all(self) -> None:
        """Turns until nothing is left."""
        for _ in range(200):
            before = len(self.out)
            if self.send(1 << 30) == "done" and len(self.out) == before:
                return
        raise AssertionError("it goes on for ever")

    def runs(self, audio: bytes) -> list[tuple[int, int]]:
        """Runs [from, to) of words without a break."""
        found: list[tuple[int, int]] = []
        for at in range(0, len(audio) // 4 * 4, 4):
            word = int.from_bytes(audio[at : at + 4], "little")
            if found and found[-1][1] == word:
                found[-1] = (found[-1][0], word + 1)
            else:
                found.append((word, word + 1))
        return found


MEMBERS = 4
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, MEMBERS - 1), st.integers(1, 2000)),
        st.tuples(st.just("part"), st.integers(0, MEMBERS - 1), st.integers(1, 500)),
        st.tuples(st.just("title"), st.integers(0, MEMBERS - 1), st.integers(0, 400)),
        st.tuples(st.just("at"), st.integers(0, MEMBERS - 1), st.just(0)),
        st.tuples(st.just("send"), st.integers(0, 60_000), st.just(0)),
        st.tuples(st.just("send"), st.just(1 << 30), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.booleans())
def test_any_moves_at_any_time_splice_whole_frames_only(steps: list[Any], icy: bool) -> None:
    """Every frame whole and of each stream once, each run begun at a start and left at a frame's
    end, blocks exact."""
    two = Two(icy=icy, burst_us=200_000, lag_us_max=600_000, fallbacks=MEMBERS - 1)
    for number, (kind, first, second) in enumerate(steps):
        if kind in {"push", "part"}:
            two.push(first, second, start=kind == "push")
        elif kind == "title":
            two.pair.push_to(first, b"%03d" % number + b"t" * second, 0, 8)
        elif kind == "at":
            two.pair.rule(first, first)
        else:
            two.send(first)
    two.send_all()
    strip = IcyStripper(METAINT)
    audio = strip.feed(bytes(two.out)) if icy else bytes(two.out)
    assert len(audio) % 4 == 0
    runs = two.runs(audio)
    assert not runs or runs[0][0] in two.starts
    for (_, left), (begun, _) in itertools.pairwise(runs):
        assert left in two.begins, "left in the midst of a frame"
        assert begun in two.starts, "went on where no listener may begin"
    for stream in range(MEMBERS):
        its = [run for run in runs if run[0] // MUSIC == stream]
        assert all(left <= begun for (_, left), (begun, _) in itertools.pairwise(its)), (
            "heard twice"
        )
    assert (
        not icy
        or strip.blocks == max(0, len(audio) - 1) // METAINT
        or (strip.blocks == len(audio) // METAINT)
    )
    went, came, away, _ = two.pair.moves
    assert went >= came + away, "from one fallback to another counts once more"
    assert away in {0, 1}


def test_the_counter_of_titles_runs_on_and_each_stream_tells_its_own() -> None:
    """Blocks stand where they would; a stream without a title takes the other's off the display."""
    two = Two(icy=True, burst_us=0)
    two.pair.push_to(1, b"music", 0, 8)
    two.push(0, 5000)
    two.push(1, 5000)
    two.send_all()
    two.pair.rule(1)
    for _ in range(2):
        two.push(1, 5000)
        two.send_all()
    two.pair.rule(0)
    for _ in range(2):
        two.push(0, 5000)
        two.send_all()
    strip = IcyStripper(METAINT)
    strip.feed(bytes(two.out))
    told = [title.block for title in strip.titles]
    assert told == [icy_block(b"music")[1:].rstrip(b"\0"), b"StreamTitle='';"]
    assert two.pair.moves[:3] == (1, 1, 0)


def test_who_was_promised_one_format_is_not_moved_to_another() -> None:
    """Also where the decision says so."""
    two = Two(icy=False)
    two.pair.inform(1, b"Content-Type: audio/aac\r\n")
    two.push(0, 100)
    two.push(1, 100)
    two.send_all()
    two.pair.rule(1)
    two.send_all()
    assert two.pair.moves[:3] == (0, 0, 0)
    assert two.runs(bytes(two.out)) == [(0, 100)]


def ogg_page(serial: int, fill: int) -> bytes:
    """A page as far as the rooms look at it."""
    return b"OggS\0\2" + bytes(8) + serial.to_bytes(4, "little") + bytes([fill]) * 80


@pytest.mark.parametrize(("serial", "moves"), [(7, 0), (8, 1)])
def test_a_chain_begins_with_its_headers_and_never_with_the_serial_just_heard(
    serial: int, moves: int
) -> None:
    """The header pages go out before the first page; with the same serial it stays."""
    two = Two(icy=False)
    for stream, number in ((0, 7), (1, serial)):
        two.pair.push_to(stream, ogg_page(number, stream), 0, 2 | 4)
        two.pair.push_to(stream, b"%d" % stream * 200, FRAME_US, 1)
    two.send_all()
    heard = len(two.out)
    two.pair.rule(1)
    two.send_all()
    assert two.pair.moves[0] == moves
    assert bytes(two.out[heard:]) == (ogg_page(serial, 1) + b"1" * 200) * moves


def test_back_in_the_same_epoch_nothing_is_heard_twice() -> None:
    """A stream that was silent goes on: its listeners hear what is new, once there is a start."""
    two = Two(icy=False, burst_us=10_000_000)
    for stream in (0, 1):
        for _ in range(20):
            two.push(stream, 10)
    two.send_all()
    two.pair.rule(1)
    two.send_all()
    two.pair.rule(0)
    two.send_all()
    assert two.pair.moves[:3] == (1, 0, 1), "nothing is new: it stays with what has audio"
    two.push(0, 7, start=False)
    two.send_all()
    assert two.pair.moves[1] == 0, "no listener may begin there"
    two.push(0, 10)
    two.push(0, 10)
    two.send_all()
    assert two.pair.moves[:3] == (1, 1, 0)
    own = [run for run in two.runs(bytes(two.out)) if run[0] < MUSIC]
    assert own == [(0, 200), (207, 227)]


def test_back_at_a_fallback_nothing_of_it_is_heard_twice() -> None:
    """Its own stream comes and goes: the fallback goes on behind what was heard of it."""
    two = Two(icy=False, burst_us=10_000_000)
    for stream in (0, 1):
        for _ in range(20):
            two.push(stream, 10)
    two.send_all()
    two.pair.rule(1)
    two.send_all()
    two.push(0, 10)
    two.pair.rule(0)
    two.send_all()
    assert two.pair.moves[:3] == (1, 1, 0)
    two.now_us += 20_000_000  # silent for longer than a burst
    two.push(1, 10)
    two.pair.rule(1)
    two.send_all()
    assert two.pair.moves[:3] == (2, 1, 1)
    music = [(a - MUSIC, b - MUSIC) for a, b in two.runs(bytes(two.out)) if a >= MUSIC]
    assert music == [(0, 200), (200, 210)]


def test_back_at_each_of_a_chain_nothing_of_it_is_heard_twice() -> None:
    """/live, the first fallback, the second, /live, and the first again: it is not the last that
    was left, and yet it goes on behind what was heard of it. So does the second."""
    two = Two(icy=False, burst_us=10_000_000, fallbacks=2)
    for stream in range(3):
        for _ in range(20):
            two.push(stream, 10)
    two.send_all()
    for at in (1, 2, 0, 1, 2):
        two.now_us += 20_000_000  # silent for longer than a burst
        two.push(at, 10)
        two.pair.rule(at)
        two.send_all()
    runs = [(a // MUSIC, a % MUSIC, b % MUSIC) for a, b in two.runs(bytes(two.out))]
    assert runs == [
        (0, 0, 200), (1, 0, 210), (2, 0, 210), (0, 200, 210), (1, 210, 220), (2, 210, 220),
    ]  # fmt: skip


def back_and_forth(
    two: Two, *visits: int, streams: dict[int, int] | None = None
) -> list[tuple[int, int, int]]:
    """The listener hears these members of the chain in turn, ten new words each; its runs.
    `streams`: which member is which, where that is not the same."""
    for member in visits:
        two.now_us += 20_000_000  # silent for longer than a burst
        two.push((streams or {}).get(member, member), 10)
        two.pair.rule(member)
        two.send_all()
    return heard(two)


def heard(two: Two) -> list[tuple[int, int, int]]:
    """(stream, from, to) of each run of words."""
    return [(a // MUSIC, a % MUSIC, b % MUSIC) for a, b in two.runs(bytes(two.out))]


def filled(fallbacks: int) -> Two:
    """Each stream has 200 words in its ring, and its own has been heard."""
    two = Two(icy=False, burst_us=10_000_000, fallbacks=fallbacks)
    for stream in range(fallbacks + 1):
        for _ in range(20):
            two.push(stream, 10)
    two.send_all()
    return two


def test_in_another_chain_a_stream_goes_on_where_it_was_left() -> None:
    """The chain is turned round at run time: where each stream was left is known by the stream, not
    by its number in the chain."""
    two = filled(2)
    assert back_and_forth(two, 1, 0)[1:] == [(1, 0, 210), (0, 200, 210)]
    two.pair.change(2, 1)
    two.push(1, 10)
    two.push(2, 10)
    two.now_us += 20_000_000
    two.pair.rule(2)  # the second of the new chain: the stream that was heard before
    two.send_all()
    two.pair.rule(1)  # the first: nothing of it was ever heard
    two.send_all()
    assert heard(two)[3:] == [(1, 210, 220), (2, 0, 210)]


def test_in_another_chain_no_mark_of_another_stream_of_the_same_epoch_is_used() -> None:
    """Two streams of one source share their epoch: where one was left says nothing of the other."""
    two = filled(2)
    assert back_and_forth(two, 1, 0)[1:] == [(1, 0, 210), (0, 200, 210)]
    two.pair.change(2)
    two.pair.rule(1)
    two.now_us += 20_000_000
    two.push(2, 10)
    two.send_all()
    assert heard(two)[-1] == (2, 0, 210)


def test_after_more_streams_than_one_chain_has_its_own_is_still_known() -> None:
    """Chains come and go while it is away: the oldest marks go, that of its own stream never."""
    two = filled(6)
    back_and_forth(two, 1, 2, 3, 4)
    two.pair.change(5, 6, 3)
    runs = back_and_forth(two, 1, 2, 0, 3, streams={1: 5, 2: 6})
    assert runs[-2:] == [(0, 200, 210), (3, 210, 220)]


def test_where_it_leaves_a_stream_is_known_while_another_thread_changes_the_rule() -> None:
    """Nothing is read of the rule but which stream is to be heard: not its keys, nor how many."""
    two = filled(1)
    two.pair.rule(1)
    two.pair.scramble()
    assert back_and_forth(two, 1, 0, 1)[1:] == [(1, 0, 210), (0, 200, 210), (1, 210, 220)]


def test_where_it_was_left_is_known_beyond_16_gib_and_of_one_epoch_of_one_stream() -> None:
    """A mark has 34 bits for the position; what lies before it is the head's."""
    all_bits, key, epoch = 1 << 34, 0xCBF29CE484222325, 1_700_000_000_000
    for left, head in (
        (5, 9),
        (all_bits - 3, all_bits + 8),
        (3 * all_bits + 7, 3 * all_bits + 7),
        ((1 << 41) + 5, (1 << 41) + all_bits - 1),
        (0, all_bits - 1),
    ):
        mark = left_mark(key, epoch, left)
        assert left_position(mark, key, epoch, head) == left
        assert left_position(mark, key, epoch + 1, head) == 0
        assert left_position(mark, key ^ 3, epoch, head) == 0
    assert left_position(left_mark(key, 7, 100), key, 7, 99) == 0, "nobody has heard what comes"
    assert left_position(0, key, epoch, 10**9) == 0


def test_after_a_new_epoch_its_own_stream_begins_as_ever() -> None:
    """Where it left the old one says nothing of the new one."""
    two = Two(icy=False, burst_us=10_000_000)
    for stream in (0, 1):
        for _ in range(20):
            two.push(stream, 10)
    two.send_all()
    two.pair.rule(1)
    two.send_all()
    two.pair.epoch_of(0, 2)
    two.push(0, 10)
    two.pair.rule(0)
    two.send_all()
    own = [run for run in two.runs(bytes(two.out)) if run[0] < MUSIC]
    assert own == [(0, 200), (200, 210)]


def test_nobody_moves_while_the_chain_of_the_mount_changes() -> None:
    """What is to be heard and the streams do not belong together then."""
    two = Two(icy=False)
    for stream in (0, 1):
        two.push(stream, 100)
    two.send_all()
    two.pair.rule(1, version=3)
    two.send_all()
    assert two.pair.moves[0] == 0
    two.pair.rule(1, version=4)
    two.send_all()
    assert two.pair.moves[0] == 1


def test_who_is_behind_hears_its_own_stream_out_first() -> None:
    """Silence is the stream's, not his: he misses nothing of what has come."""
    two = Two(icy=False, burst_us=10_000_000)
    for stream in (0, 1):
        for _ in range(50):
            two.push(stream, 100)
    two.send(1000)
    two.pair.rule(1)
    while two.pair.moves[0] == 0:
        two.send(1234)
        assert len(two.out) < 60 * 400, "it never leaves"
    two.send_all()
    assert two.runs(bytes(two.out))[0] == (0, 5000)


def test_a_move_that_is_called_off_skips_nothing() -> None:
    """He was to leave at the end of a frame, and what he was to leave for is no better any more."""
    two = Two(icy=False, burst_us=100_000)
    for _ in range(10):
        two.push(0, 100)
    two.pair.rule(1, 1)
    for _ in range(10):
        two.push(1, 100)
    two.send(100)
    assert two.pair.moves[0] == 1
    two.pair.rule(0)
    two.send(100)  # in mid-frame: leaves later
    for _ in range(50):
        two.push(1, 100)
    two.pair.rule(1)
    two.send_all()
    assert two.pair.moves[:3] == (1, 0, 1)
    assert len(two.runs(bytes(two.out))) == 1


def test_who_hears_what_was_removed_is_ended_where_nothing_more_can_come() -> None:
    """His own stream is back with another format: he may not go there, and nothing else is left."""
    two = Two(icy=False)
    for stream in (0, 1):
        two.push(stream, 100)
    two.send_all()
    two.pair.rule(1)
    two.send_all()
    assert two.pair.moves[0] == 1
    two.pair.remove(1)
    assert two.send(1 << 30) == "done", "his own may come back"
    two.pair.rule(0)
    two.pair.inform(0, b"Content-Type: audio/aac\r\n")
    two.push(1, 100)
    assert two.send(1 << 30) == "done", "what is there he hears out"
    assert two.send(1 << 30) == END_STREAM


def test_rings_and_streams_are_given_back() -> None:
    """After moves and new epochs on both sides no older ring stays behind than the one before."""
    two = Two(icy=False)
    for epoch in range(2, 12):
        for stream in (0, 1):
            two.push(stream, 50)
            two.pair.rule(stream)
            two.send_all()
            two.pair.epoch_of(1 - stream, epoch)
    two.push(1, 50)
    two.pair.rule(1)
    two.send_all()
    # the newest, and the epoch before, for those who come back
    assert (two.pair.rings, two.pair.moves[3]) == (2, 2)
