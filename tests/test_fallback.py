"""Which stream a mount's listeners hear: the decision on a fake clock, the move byte by byte, and
what a node says about it.

Rules of this room
  1. Each sight is what the engine would see; time is the test's.
  2. In the moves a socket takes any number of bytes. Each word of audio tells its stream and its
     number, so that nothing torn, lost within a run, or heard twice can pass.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
from fake_engine import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe import icy_block
from relay._probe_listener import Fallback, TwoStreams, format_key
from tools.listeners import IcyStripper

from relay.fallback import Fallbacks, changes

AFTER_US = 3_000_000
MP3, OGG = 11, 22


class House:
    """One mount and its chain; each stream is live (moves at each look), stuck or gone."""

    def __init__(self, chain: int) -> None:
        self.fallback = Fallback(chain, AFTER_US)
        self.now_us = 10_000_000
        self.live = [False] * (chain + 1)
        self.told: list[dict[str, Any]] = [
            {"format": MP3, "epoch": 1, "position": 0, "listeners": 0} for _ in self.live
        ]

    def run(self, seconds: float) -> dict[str, Any]:
        """Look every 20 ms for so long; the last decision."""
        for _ in range(round(seconds * 50)):
            self.now_us += 20_000
            for told, live in zip(self.told, self.live, strict=True):
                if live:
                    told |= {"open": True, "begins": True, "position": told["position"] + 400}
            last: dict[str, Any] = self.fallback.step(self.now_us, *self.told)
        return last

    def lose(self, member: int, *, ended: bool = False) -> None:
        """It sends nothing more; `ended`: and is known to have left."""
        self.live[member] = False
        self.told[member]["open"] = not ended

    def come(self, member: int) -> None:
        """A new epoch of it."""
        self.live[member] = True
        self.told[member]["epoch"] += 1


@pytest.mark.parametrize("ended", [True, False])
def test_listeners_go_over_when_their_stream_has_been_silent_for_long_enough(ended: bool) -> None:
    """Whether its source left or only says nothing; and they come back with its first frame."""
    house = House(1)
    house.live = [True, True]
    assert house.run(1.0)["at"] == 0
    house.lose(0, ended=ended)
    assert house.run(2.98)["at"] == 0
    over = house.run(0.06)
    assert over["at"] == 1
    assert over["heard"]
    house.come(0)
    back = house.run(0.02)
    assert (back["at"], back["changed"], back["heard"]) == (0, True, False)


def test_a_newcomer_to_a_mount_whose_source_left_goes_to_the_fallback_at_once() -> None:
    """Who has heard nothing is not kept waiting for the silence to be long enough."""
    house = House(1)
    house.live = [True, True]
    assert house.run(1.0)["best"] == 0
    house.lose(0, ended=True)
    soon = house.run(0.02)
    assert (soon["at"], soon["best"]) == (0, 1)


def test_the_first_of_a_chain_that_has_audio_is_heard() -> None:
    """Down the chain as each falls silent, and up again as soon as one before returns."""
    house = House(3)
    house.live = [True, True, False, True]
    house.run(1.0)
    house.lose(0)
    assert house.run(3.1)["at"] == 1
    house.lose(1, ended=True)
    assert house.run(3.1)["at"] == 3
    house.come(2)
    assert house.run(0.02)["at"] == 2
    house.come(0)
    assert house.run(0.02)["at"] == 0


def test_nobody_is_moved_to_where_nothing_is_heard() -> None:
    """With all silent they stay where they are, and nothing is said to be heard."""
    house = House(2)
    house.live = [True, True, False]
    house.run(1.0)
    house.lose(0)
    assert house.run(3.1)["at"] == 1
    house.lose(1)
    last = house.run(5.0)
    assert (last["at"], last["heard"], last["best"]) == (1, False, None)


def test_another_format_or_the_same_serial_does_not_fit() -> None:
    """The listeners stay where they are, and it is told why."""
    house = House(2)
    house.live = [True, True, True]
    house.told[1]["format"] = OGG
    house.told[0]["serial"] = house.told[2]["serial"] = 77
    house.run(1.0)
    house.lose(0)
    last = house.run(4.0)
    assert last["at"] == 0
    assert last["unfit"] == [0, 1, 2]
    house.told[2]["serial"] = 78
    assert house.run(0.02)["at"] == 2


def test_upstream_is_asked_for_a_fallback_only_while_somebody_needs_it() -> None:
    """Up to the first that can be heard; none while the mount is heard, or nobody listens."""
    house = House(3)
    house.live[0] = True
    house.told[0]["listeners"] = 2
    assert house.run(1.0)["wanted"] == []
    house.lose(0)
    assert house.run(3.1)["wanted"] == [1, 2, 3]
    house.come(2)
    assert house.run(0.1)["wanted"] == [1, 2]
    house.told[0]["listeners"] = 0
    assert house.run(0.1)["wanted"] == []


def test_a_stream_that_upstream_keeps_for_whoever_comes_is_not_silent() -> None:
    """An edge without listeners does not call it so; with them it counts from there."""
    house = House(1)
    house.live = [False, True]
    house.told[0] |= {"idle": True, "epoch": 0}
    idle = house.run(10.0)
    assert (idle["at"], idle["best"]) == (0, 0)
    house.told[0] |= {"idle": False, "listeners": 1}
    assert house.run(2.9)["at"] == 0
    assert house.run(0.2)["at"] == 1


SIGHT = st.fixed_dictionaries(
    {
        "open": st.booleans(),
        "begins": st.booleans(),
        "epoch": st.integers(0, 3),
        "position": st.integers(0, 3),
        "format": st.sampled_from([0, MP3, OGG]),
        "serial": st.integers(0, 2),
        "listeners": st.integers(0, 2),
    }
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4_000_000), SIGHT, SIGHT, SIGHT), max_size=30))
def test_no_sights_make_it_choose_what_cannot_be_heard(steps: list[Any]) -> None:
    """Whatever is seen: a change goes to an open stream that fits, and `best` is one, too."""
    fallback = Fallback(2, AFTER_US)
    now_us = 1
    for wait_us, *sights in steps:
        now_us += wait_us
        told = fallback.step(now_us, *sights)
        for member in {told["at"] if told["changed"] else 0, told["best"] or 0} - {0}:
            assert sights[member]["open"]
            assert sights[member]["begins"]
            assert sights[member]["format"] == sights[0]["format"] != 0
            assert told["unfit"][member] == 0
        assert not told["heard"] or told["at"] > 0
        assert 0 not in told["wanted"]


def test_the_format_is_the_content_type_whatever_its_case_and_what_follows() -> None:
    """The other header lines are no part of it."""
    one = format_key(b"Content-Type: audio/mpeg\r\nicy-name: a\r\n")
    assert one == format_key(b"content-type: AUDIO/mpeg\r\n")
    assert one != format_key(b"Content-Type: audio/ogg\r\n")
    assert format_key(b"") == 0


# --- the move ------------------------------------------------------------------------------------

METAINT = 16_000
FRAME_US = 24_000
MUSIC = 0x80000000
END_STREAM = -5  # as listener.pxd numbers it


class Two:
    """Two sources that push frames of numbered words, and one listener."""

    def __init__(self, **options: Any) -> None:
        self.pair = TwoStreams(**options)
        self.words = [0, 0]
        self.begins: set[int] = set()  # first words of frames, with their stream's bit
        self.starts: set[int] = set()
        self.now_us = 1_000_000
        self.out = bytearray()

    def push(self, stream: int, words: int, start: bool = True, flags: int = 0) -> None:
        """One frame of so many words."""
        first = self.words[stream] | MUSIC * stream
        data = b"".join((first + i).to_bytes(4, "little") for i in range(words))
        assert self.pair.push_to(stream, data, FRAME_US, int(start) | flags) == 1
        self.begins.add(first)
        if start:
            self.starts.add(first)
        self.words[stream] += words
        self.begins.add(self.words[stream] | MUSIC * stream)  # where the next one will

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


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 1), st.integers(1, 2000)),
        st.tuples(st.just("part"), st.integers(0, 1), st.integers(1, 500)),
        st.tuples(st.just("title"), st.integers(0, 1), st.integers(0, 400)),
        st.tuples(st.just("at"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("send"), st.integers(0, 60_000), st.just(0)),
        st.tuples(st.just("send"), st.just(1 << 30), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.booleans())
def test_any_moves_at_any_time_splice_whole_frames_only(steps: list[Any], icy: bool) -> None:
    """Every frame whole, each run begun at a start and left at a frame's end, blocks exact."""
    two = Two(icy=icy, burst_us=200_000, lag_us_max=600_000)
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
    own = [run for run in runs if run[0] < MUSIC]
    assert all(left <= begun for (_, left), (begun, _) in itertools.pairwise(own)), "heard twice"
    assert (
        not icy
        or strip.blocks == max(0, len(audio) - 1) // METAINT
        or (strip.blocks == len(audio) // METAINT)
    )
    went, came, away, _ = two.pair.moves
    assert went - came == away
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


# --- what a node says ----------------------------------------------------------------------------


def told(fallback: str | None, **unfit: str) -> dict[str, Any]:
    """As Engine.fallbacks tells it."""
    return {"mount": "/live", "chain": ("/music",), "fallback": fallback, "unfit": unfit}


def test_one_line_for_each_change() -> None:
    """Over, back, and what does not fit; none while nothing changes."""
    over = list(changes(told(None), told("/music")))
    assert [(line.event, line.mount, line.fallback) for line in over] == [
        ("fallback", "/live", "/music")
    ]
    assert [line.event for line in changes(told("/music"), told(None))] == ["fallback_over"]
    assert not list(changes(told("/music"), told("/music")))
    unfit = told(None) | {"unfit": {"/music": "format"}}
    line = next(changes({}, unfit))
    assert line.event == "fallback_unfit"
    assert line.text == "/live: its fallback /music has another content type than /live: not used"
    assert not list(changes(unfit, unfit))


def test_a_mount_without_a_stream_gets_a_stand_in_once_its_fallback_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the fallback's format, and without its other lines; a change is logged once."""
    engine = FakeEngine()
    engine.rules = [told(None)]
    fallbacks = Fallbacks(engine)  # type: ignore[arg-type]
    fallbacks.tick()
    assert engine.find("/live") is None
    music = engine.add_stream("/music")
    music.set_info(b"Content-Type: audio/mpeg\r\nicy-name: music\r\n")
    fallbacks.tick()
    assert engine.find("/live") is None
    music.claim()
    music.begin()
    fallbacks.tick()
    live = engine.find("/live")
    assert live is not None
    assert live.stands_in
    assert live.info() == b"Content-Type: audio/mpeg\r\n"
    engine.rules = [told("/music")]
    with caplog.at_level(logging.INFO, "relay.fallback"):
        fallbacks.tick()
        fallbacks.tick()
    assert [record.getMessage() for record in caplog.records] == [
        "/live is silent: its listeners hear /music"
    ]
