"""A stream: one writer, epochs, the size of its ring, and what Python readers get."""

from __future__ import annotations

import itertools
import os
import random
import resource

import numpy as np
import pytest

from relay._core import Engine, Stream
from relay.errors import MountError, RelayError, SourceError

START, HEADER, CHAIN, TITLE = 1, 2, 4, 8
FRAME_US = 20_000


@pytest.fixture
def engine() -> Engine:
    """An engine as configured by default."""
    return Engine()


@pytest.fixture
def stream(engine: Engine) -> Stream:
    """A stream in its first epoch."""
    stream = engine.add_stream("/live")
    stream.begin()
    return stream


def push_seconds(stream: Stream, kbit: int, seconds: float) -> None:
    """Frames of 20 ms at this bit rate."""
    data = bytes(kbit * 1000 // 8 // 50)
    for _ in range(int(seconds * 50)):
        stream.push(data, FRAME_US)


# --- the writer -----------------------------------------------------------------------------------


def test_stream_has_one_writer(stream):
    """A second claim is refused until the first is given back."""
    stream.claim()
    with pytest.raises(MountError, match="in use"):
        stream.claim()
    assert stream.snapshot()["writer"] == "local"
    stream.unclaim()
    stream.claim()


def test_stream_without_an_epoch_refuses_and_does_not_crash(engine):
    """Before begin() there is no ring: every call says so."""
    stream = engine.add_stream("/live")
    for call in (
        lambda: stream.push(b"x", 1),
        lambda: stream.place(0, 0, 0, b"x", 1),
        stream.give_up,
        lambda: stream.resize(1 << 20, 64),
        stream.view,
        stream.header,
        lambda: stream.title("new"),
        lambda: stream.read(0),
        lambda: stream.burst_sequence(3000),
    ):
        with pytest.raises(SourceError):
            call()
    assert stream.snapshot()["epoch"] is None


def test_epoch_is_always_higher_than_the_last(engine):
    """The wall clock, or one more than the highest seen."""
    stream = engine.add_stream("/live")
    epochs = [stream.begin() for _ in range(5)]
    assert all(a < b for a, b in itertools.pairwise(epochs))
    ahead = stream.begin(epoch=2**50)
    assert stream.begin() == ahead + 1


def test_epoch_without_a_descriptor_for_its_ring_is_refused_and_begins_later(engine):
    """As a source is that comes when the process has used up all it may open."""
    stream = engine.add_stream("/live")
    bounds = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.open(os.devnull, os.O_RDONLY)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, bounds[1]))
    try:
        with pytest.raises(SourceError, match=r"/live: no memory .* no descriptor left"):
            stream.begin()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, bounds)
    assert stream.begin()


def test_epoch_begins_anywhere_within_the_numbers(engine):
    """An edge joins in the middle of a long run: days of audio are ordinary numbers."""
    stream = engine.add_stream("/live")
    stream.begin(sequence=2**40, position=2**50, media_us=2**45)
    assert stream.place(2**40, 2**50, 2**45, b"frame", FRAME_US) == 1
    assert stream.read(2**40) == (b"frame", 2**50, 2**45, FRAME_US, START)
    for name in ("sequence", "position", "media_us"):
        with pytest.raises(SourceError, match="2\\*\\*62"):
            stream.begin(**{name: 2**62 + 1})


@pytest.mark.parametrize("size", [1, 65_536])
def test_smallest_and_largest_frame_pass(stream, size):
    """A frame too large for the ring finds a larger one."""
    data = random.Random(size).randbytes(size)
    for _ in range(10):
        stream.push(data, FRAME_US)
    assert stream.read(9)[0] == data
    assert stream.snapshot()["ring_bytes"] >= 5 * size


@pytest.mark.parametrize("size", [0, 65_537])
def test_frame_out_of_bounds_is_refused_and_does_not_grow_the_ring(stream, size):
    """The bound is named; the ring stays as it is."""
    before = stream.snapshot()["ring_bytes"]
    with pytest.raises(SourceError, match="65,536"):
        stream.push(bytes(size), FRAME_US)
    assert stream.snapshot()["ring_bytes"] == before
    assert stream.snapshot()["counters"]["refused_frames_total"] == 1


def test_answers_of_place_are_counted(stream):
    """Placed, already here, refused: each has its counter."""
    assert stream.place(0, 0, 0, b"frame", FRAME_US) == 1
    assert stream.place(0, 0, 0, b"frame", FRAME_US) == 0
    assert stream.place(1, 7, FRAME_US, b"frame", FRAME_US) < 0
    assert stream.place(2**63, 2**63, 2**63, b"frame", FRAME_US) < 0
    counters = stream.snapshot()["counters"]
    assert counters["received_frames_total"] == 1
    assert counters["received_bytes_total"] == 5
    assert counters["duplicates_total"] == 1
    assert counters["refused_frames_total"] == 2


def test_lost_frames_are_passed_when_they_are_given_up(stream):
    """The head waits at a hole, then goes on after it."""
    stream.push(b"0", FRAME_US)
    stream.place(3, 3, 3 * FRAME_US, b"3", FRAME_US)
    assert stream.snapshot()["head_sequence"] == 1
    assert stream.give_up() == 2
    assert stream.snapshot()["head_sequence"] == 4
    assert [stream.read(s) and stream.read(s)[0] for s in range(5)] == [
        b"0",
        None,
        None,
        b"3",
        None,
    ]


def test_title_is_cut_between_characters(stream):
    """At most 4,000 bytes, and always valid UTF-8."""
    stream.title("ü" * 3000)
    assert stream.snapshot()["title"] == "ü" * 2000
    stream.title("now")
    assert stream.snapshot()["title"] == "now"
    assert stream.snapshot()["counters"]["titles_total"] == 2


def test_header_is_what_the_newest_chain_began_with(stream):
    """b"" for formats without header pages."""
    assert stream.header() == b""
    for name in (b"a", b"b"):
        stream.push(name, 0, HEADER | CHAIN)
        stream.push(b"2", 0, HEADER)
        stream.push(b"audio", FRAME_US)
    assert stream.header() == b"b2"


def test_header_lines_are_bounded(stream):
    """4,096 bytes of reply lines, no more."""
    stream.set_info(b"x" * 4096)
    with pytest.raises(SourceError, match="4096"):
        stream.set_info(b"x" * 4097)


# --- the size of the ring -------------------------------------------------------------------------


@pytest.mark.parametrize("kbit", [64, 128, 320, 500, 1000])
def test_ring_holds_20_seconds_at_any_bit_rate(stream, kbit):
    """After 30 s a new reader may go back ring_s, in a ring of no more than twice those bytes."""
    push_seconds(stream, kbit, 30)
    state = stream.snapshot()
    assert state["held_ms"] >= 20_000
    assert state["ring_bytes"] <= max(2 * kbit * 125 * 20, 1 << 16)


def test_ring_is_not_resized_at_a_rate_that_trembles(stream):
    """A rate that wanders within 7 % after its first second: one resize, when it becomes known."""
    sizes = set()
    for size in (400, 410, 405, 420, 428, 400, 425):
        for _ in range(250):
            stream.push(bytes(size), FRAME_US)
            sizes.add(stream.snapshot()["ring_bytes"])
    assert len(sizes) == 2
    assert stream.snapshot()["held_ms"] >= 20_000


def test_ring_grows_when_the_rate_does(stream):
    """Silence first, then music: the ring follows, and nothing held is lost."""
    push_seconds(stream, 16, 10)
    small = stream.snapshot()["ring_bytes"]
    push_seconds(stream, 800, 60)
    assert stream.snapshot()["ring_bytes"] > small
    assert stream.snapshot()["held_ms"] >= 20_000


@pytest.mark.parametrize("ring_bytes_max", [1 << 16, 1 << 20])
def test_ring_is_bounded_by_ring_bytes_max(engine, ring_bytes_max):
    """Neither the rate nor a large frame passes the bound."""
    engine.configure(ring_bytes_max=ring_bytes_max)
    stream = engine.add_stream("/live")
    stream.begin()
    push_seconds(stream, 1000, 10)
    if ring_bytes_max < 5 * 65_536:
        with pytest.raises(SourceError, match="ring_bytes_max"):
            stream.push(bytes(65_536), FRAME_US)
    else:
        stream.push(bytes(65_536), FRAME_US)
    assert stream.snapshot()["ring_bytes"] == ring_bytes_max


@pytest.mark.parametrize("jump_us", [1, 2**40, 2**59])
def test_wild_media_time_does_not_break_the_ring(stream, jump_us):
    """A source whose clock leaps, stands still or goes back costs no more than ring_bytes_max."""
    position = 0
    for i in range(300):
        media_us = (i % 7) * jump_us
        assert stream.place(i, position, media_us, bytes(1000), i % 3) == 1
        position += 1000
    assert stream.snapshot()["ring_bytes"] <= 64 << 20
    assert stream.read(299)[1] == 299_000


def test_resize_out_of_bounds_does_nothing(stream):
    """No size that cannot be is taken."""
    stream.push(b"frame", FRAME_US)
    for size, frames in [
        (0, 64),
        (2**63, 64),
        (2**64 - 1, 64),
        (1 << 20, 2**63),
        (1 << 20, 1 << 21),
    ]:
        assert not stream.resize(size, frames)
    assert stream.resize(1 << 20, 64)
    assert stream.read(0)[0] == b"frame"


def test_source_that_flaps_finds_a_ring_each_time(stream):
    """Nobody reads: a hundred epochs leave two rings, the newest and the one before."""
    for _ in range(100):
        stream.begin()
        stream.push(b"frame", FRAME_US)
        stream.end()
    assert stream.snapshot()["rings"] == 2  # the newest and the epoch before
    assert stream.snapshot()["counters"]["epochs_total"] == 101


# --- readers --------------------------------------------------------------------------------------


def test_view_is_read_by_numpy_without_a_copy(stream):
    """The bytes of the ring itself, read-only."""
    stream.push(b"abc", FRAME_US)
    stream.push(b"def", FRAME_US)
    view = stream.view()
    run = np.frombuffer(view, dtype="u1")
    assert run.tobytes() == b"abcdef"
    assert not run.flags.writeable
    assert not run.flags.owndata
    assert (len(view), view.first_position) == (6, 0)


def full(engine, mount="/live"):
    """A stream whose ring of 64 KiB has been written round."""
    engine.configure(ring_bytes_max=1 << 16)
    stream = engine.add_stream(mount)
    stream.begin()
    push_numbered(stream, 100)
    return stream


def push_numbered(stream, count):
    """Frames of 1,000 bytes, each full of its number."""
    for _ in range(count):
        number = stream.snapshot()["head_sequence"]
        stream.push(bytes([number % 251]) * 1000, FRAME_US)


def test_view_keeps_its_bytes_and_the_stream_goes_on(engine):
    """The writer comes round many times: nothing of it is in the view, nor missing elsewhere."""
    stream = full(engine)
    view = stream.view()
    before = bytes(view)
    push_numbered(stream, 1000)
    assert bytes(view) == before
    assert view.is_whole()
    head = stream.snapshot()["head_sequence"]
    assert head == 1100
    tail = stream.snapshot()["tail_sequence"]
    assert head - tail > 30
    for sequence in range(tail, head):
        assert stream.read(sequence)[0] == bytes([sequence % 251]) * 1000
    assert view.epoch == stream.snapshot()["epoch"]


def address_of(view):
    """Where the ring of a view lies."""
    return np.frombuffer(view, "u1").ctypes.data - view.first_position % (1 << 16)


def test_view_that_is_quick_costs_no_ring(engine):
    """A writer that comes not near it stays where it is."""
    stream = full(engine)
    for _ in range(50):
        view = stream.view()
        address = address_of(view)
        push_numbered(stream, 3)
        del view
        assert address_of(stream.view()) == address


def test_view_over_the_bound_is_refused(engine):
    """Of one stream; one that has ended makes room."""
    stream, other = full(engine), full(engine, "/other")
    views = [stream.view() for _ in range(8)]
    with pytest.raises(RelayError, match=r"/live: 8 views are open: end one"):
        stream.view()
    assert other.view()
    del views[3]
    assert stream.view()


def test_frames_that_are_refused_cost_views_nothing(engine):
    """Neither a copy of the ring, nor the next view: however far ahead they say they are."""
    stream = full(engine)
    address = address_of(stream.view())
    head = stream.snapshot()
    sequence, position = head["head_sequence"], head["head_position"]
    for ahead in (28_000, 40_000, 70_000, 1 << 20, 1 << 61):
        view = stream.view()
        for number in (0, 1, sequence - 1, sequence, sequence + 1, sequence + 20, 1 << 61):
            assert stream.place(number, position + ahead, 0, bytes(1000), FRAME_US) <= 0
        assert view.is_whole()
    assert address_of(stream.view()) == address
    assert bytes(stream.view())


def test_view_stays_whole_while_header_pages_come(engine):
    """As long as they may be: the part of them that has come goes along into the next ring."""
    stream = full(engine)
    view = stream.view()
    before = bytes(view)
    pages = [bytes([number]) * 4000 for number in range(20)]
    for number, page in enumerate(pages):
        stream.push(page, 0, HEADER | CHAIN if number == 0 else HEADER)
    stream.push(b"audio", FRAME_US)
    assert (bytes(view), view.is_whole()) == (before, True)
    assert stream.header() == b"".join(pages)


def test_view_stays_whole_while_a_title_waits_behind_a_hole(engine):
    """It has no bytes in the ring."""
    stream = full(engine)
    view = stream.view()
    head = stream.snapshot()
    sequence, position = head["head_sequence"], head["head_position"]
    assert stream.place(sequence + 20, position + 20_000, 0, b"title", 0, TITLE) == 1
    assert view.is_whole()


def test_view_is_overwritten_only_where_a_hole_stays_open(engine):
    """Then it says so; frames are placed as they come, whoever looks."""
    stream = full(engine)
    view = stream.view()
    push_numbered(stream, 2)
    head = stream.snapshot()
    sequence, position = head["head_sequence"], head["head_position"]
    for ahead in range(1, 26):  # no further than a ring takes
        number, at = sequence + ahead, position + ahead * 1000
        assert stream.place(number, at, number * FRAME_US, bytes(1000), FRAME_US) == 1
    assert not view.is_whole()
    assert stream.give_up() == 1
    assert stream.snapshot()["head_sequence"] == sequence + 26
    again = stream.view()
    push_numbered(stream, 200)
    assert again.is_whole()


def test_view_begins_after_the_last_lost_run(stream):
    """What was never here is in no view."""
    stream.push(b"before", FRAME_US)
    stream.place(2, 12, 2 * FRAME_US, b"after", FRAME_US)
    assert bytes(stream.view()) == b"before"
    stream.give_up()
    view = stream.view()
    assert (bytes(view), view.first_position) == (b"after", 12)


def test_read_answers_none_for_what_is_not_there(stream):
    """Not yet, never, overwritten, a title, no number of a frame."""
    stream.push(b"frame", FRAME_US)
    stream.title("a title")
    assert [stream.read(s) for s in (1, 2, 2**32, 2**64 - 1)] == [None] * 4
    assert stream.read(0)[0] == b"frame"


def test_frame_before_the_base_is_read_once_it_connects(engine):
    """A repair of the tail is visible when nothing is missing between it and the rest."""
    stream = engine.add_stream("/live")
    stream.begin(sequence=10, position=100)
    stream.place(10, 100, 0, b"x" * 10, FRAME_US)
    stream.place(8, 80, 0, b"y" * 10, FRAME_US)
    assert stream.read(8) is None
    stream.place(9, 90, 0, b"z" * 10, FRAME_US)
    assert stream.read(8)[0] == b"y" * 10
    assert stream.snapshot()["base_sequence"] == 8


def test_burst_begins_at_the_oldest_start_within_it(stream):
    """Bursts are milliseconds of media; the next older start when none lies within."""
    for i in range(100):
        stream.push(b"frame", FRAME_US, START if i % 10 == 0 else 0)
    assert stream.burst_sequence(1000) == 50
    assert stream.burst_sequence(190) == 90
    assert stream.burst_sequence(0) == 90
    assert stream.burst_sequence(3000) == 0
