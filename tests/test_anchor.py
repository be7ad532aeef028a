"""A place names the same byte on every node: EPOCH.POSITION.HEADER, and N bytes after it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe import head_place
from relay._probe_listener import OneListener

pytestmark = pytest.mark.core

START, HEADER, CHAIN = 1, 2, 4
FRAME_US = 24_000
PAGES = (b"first header page", b"the comments")
BLOB = b"".join(PAGES)


def request(target: bytes = b"/live", *fields: bytes, method: bytes = b"GET") -> bytes:
    """Return the head of a request."""
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", *fields, b"", b""])


def at(*numbers: int, first: int | None = None) -> bytes:
    """Return a GET for a place, and for the bytes from `first` on."""
    place = b".".join(b"%d" % number for number in numbers)
    fields = [] if first is None else [b"Range: bytes=%d-" % first]
    return request(b"/live?at=" + place, *fields)


def frame(number: int, size: int = 100) -> bytes:
    """Return a frame that tells its number and, in each byte, the place in it."""
    return bytes((number * 7 + i) % 251 for i in range(size))


def stream(frames: int = 40, *, starts: int = 1, **options: int) -> tuple[OneListener, bytes]:
    """Return a stream without titles, and all its audio."""
    one = OneListener(icy=False, **options)
    audio = b""
    for number in range(frames):
        data = frame(number)
        one.push(data, FRAME_US, START if number % starts == 0 else 0)
        audio += data
    return one, audio


def paged(frames: int = 40) -> tuple[OneListener, bytes]:
    """Return a stream with header pages before its audio, and all its bytes."""
    one = OneListener(icy=False)
    one.push(PAGES[0], 0, HEADER | CHAIN)
    one.push(PAGES[1], 0, HEADER)
    audio = BLOB
    for number in range(frames):
        one.push(frame(number), FRAME_US, START)
        audio += frame(number)
    return one, audio


# --- what a request says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (b"", None),
        (b"?", None),
        (b"?x=1&y", None),
        (b"?at=5.7", (5, 7)),
        (b"?at=1700000000000.123.4567", (1700000000000, 123, 4567)),
        (b"?x=1&at=5.7&y=2", (5, 7)),
        (b"?cat=5.7&at2=1.1&bat", None),
        (b"?at=live", "live"),
        (b"?at=" + b"9" * 18 + b".0", (10**18 - 1, 0)),
        (b"?at=" + b"9" * 19 + b".0", "bad"),
        (b"?at", "bad"),
        (b"?at=", "bad"),
        (b"?at=5", "bad"),
        (b"?at=5.", "bad"),
        (b"?at=.5", "bad"),
        (b"?at=5.7.", "bad"),
        (b"?at=5.7.1.2", "bad"),
        (b"?at=5.-7", "bad"),
        (b"?at=5.7x", "bad"),
        (b"?at=LIVE", "bad"),
        (b"?at=5%2E7", "bad"),
        (b"?at=5.7&at=5.7", "bad"),
        (b"?at=5.7#at=1.1", (5, 7)),
        (b"?at=5.t7", ("time", 5, 7000)),
        (b"?at=5.t" + b"9" * 15, ("time", 5, (10**15 - 1) * 1000)),
        (b"?at=5.t" + b"9" * 16, "bad"),
        (b"?at=5.t", "bad"),
        (b"?at=5.t7.1", "bad"),
        (b"?at=5.7.t1", "bad"),
        (b"?at=t7", "bad"),
        (b"?at=5.T7", "bad"),
    ],
)
def test_a_place_is_read_from_the_query(query: bytes, said: object) -> None:
    """Two or three numbers, or an epoch and a time; all else is malformed, and never a refusal."""
    assert head_place(request(b"/live" + query)) == (said, None)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"bytes=0-", None),
        (b"bytes=17-", ("from", 17)),
        (b"BYTES=17-  \t", ("from", 17)),
        (b"bytes=0-1", ("probe", 2)),
        (b"bytes=0-0", ("probe", 1)),
        (b"bytes=0-99", ("probe", 100)),
        (b"bytes=0-100", None),
        (b"bytes=2-9", None),
        (b"bytes=-9", None),
        (b"bytes=1-,5-", None),
        (b"bytes=1-2,5-", None),
        (b"bytes=1-x", None),
        (b"bytes= 1-", None),
        (b"bytes=", None),
        (b"bytes=-", None),
        (b"bytes", None),
        (b"", None),
        (b"items=1-", None),
        (b"bytes=" + b"1" * 19 + b"-", None),
    ],
)
def test_a_range_is_one_of_two_kinds_or_ignored(value: bytes, said: object) -> None:
    """From a byte on, or a few bytes at the front (RFC 9110 §14.2: all else may be ignored)."""
    assert head_place(request(b"/live", b"Range: " + value)) == (None, said)


@pytest.mark.parametrize("name", [b"Range", b"If-Range"])
def test_a_second_field_on_ranges_undoes_the_first(name: bytes) -> None:
    """Two Ranges contradict; an If-Range cannot match, as nothing here has a validator."""
    for fields in ([b"Range: bytes=7-", name + b": bytes=7-"], [name + b": x", b"Range: bytes=7-"]):
        assert head_place(request(b"/live", *fields)) == (None, None)


@settings(max_examples=300)
@given(st.binary(max_size=40), st.binary(max_size=40))
def test_garbage_in_query_and_range_never_crashes(query: bytes, value: bytes) -> None:
    """Whatever stands there, the answer is a place, a part, or neither."""
    said = head_place(request(b"/live?at=" + query, b"Range: bytes=" + value))
    if said is not None:
        place, part = said
        if place not in {None, "live", "bad"}:
            assert all(number < 10**18 for number in place if number != "time")
        assert part is None or 0 < part[1] < 10**18


# --- where it begins ------------------------------------------------------------------------------


def test_a_place_at_a_start_is_served_from_there() -> None:
    """The position that was asked for is the cursor."""
    one, audio = stream()
    assert one.ask(at(1, 700)) == ("at", "exact", 1, 700, 0)
    assert one.send(1 << 20, 0, request=at(1, 700))[1] == audio[700:]


@given(st.integers(1, 3999), st.integers(0, 39))
def test_n_bytes_after_a_place_is_that_byte(first: int, number: int) -> None:
    """In mid-frame too: the client has the bytes before."""
    one, audio = stream()
    place = number * 100
    if place + first <= len(audio):
        assert one.send(1 << 20, 0, request=at(1, place, first=first))[1] == audio[place + first :]


@given(st.integers(1, 2000))
def test_the_header_pages_of_the_first_answer_count(first: int) -> None:
    """Byte N of the body is byte N of header pages and audio together, on any connection."""
    one, audio = paged()
    told = one.anchor()
    epoch, position, header = (int(n) for n in told.removeprefix(b"at=").split(b"."))
    assert header == len(BLOB)
    assert one.ask(at(epoch, position, header)) == ("at", "exact", 1, position, header)
    whole = BLOB + audio[position:]
    if first <= len(whole):
        again = one.send(1 << 20, 0, request=at(epoch, position, header, first=first))[1]
        assert again == whole[first:]


def test_a_place_that_has_left_the_ring_still_counts() -> None:
    """Header pages included: the place itself tells how many bytes they had."""
    one, audio = paged()
    one.push(frame(0, 60_000), FRAME_US, START)
    begin, end = len(audio), len(audio) + 60_000
    for number in range(60):
        one.push(frame(number, 60_000), FRAME_US, START)
        end += 60_000
    header = len(BLOB)
    assert one.ask(at(1, begin, header))[:2] == ("live", "old")
    first = end - 90_000 - begin + header
    assert one.ask(at(1, begin, header, first=first)) == ("at", "exact", 1, end - 90_000, 0)
    assert one.ask(at(1, begin, header, first=header - 1))[:2] == ("live", "old")


@pytest.mark.parametrize(
    ("asked", "sent_to"),
    [
        ((1, 0), (1, 29, 29)),
        ((1, 35), (1, 129, 29)),
        ((1, 129), (1, 129, 29)),
        ((1, 129, 28), (1, 129, 29)),
    ],
)
def test_who_names_no_true_place_is_sent_to_the_next(
    asked: tuple[int, ...], sent_to: tuple[int, ...]
) -> None:
    """In mid-frame, on header pages, or with other header pages than are here."""
    one, _ = paged()
    epoch, position, header = sent_to
    assert one.ask(at(*asked)) == ("send on", "exact", epoch, position, header)
    assert one.ask(at(*sent_to))[0] == "at"


def test_a_place_between_starts_leads_to_the_next_start() -> None:
    """A decoder can begin there."""
    one, _ = stream(starts=5)
    assert one.ask(at(1, 500))[0] == "at"
    assert one.ask(at(1, 501)) == ("send on", "exact", 1, 1000, 0)
    assert one.ask(at(1, 600)) == ("send on", "exact", 1, 1000, 0)


def test_who_is_ahead_of_the_head_waits_until_it_is_late() -> None:
    """As far as a ring; then it begins live, and is counted."""
    one, audio = stream()
    head = len(audio)
    assert one.ask(at(1, 0, first=head)) == ("at", "exact", 1, head, 0)  # the next byte to come
    assert one.ask(at(1, 0, first=head + 1)) == ("wait", None)
    assert one.ask(at(1, 0, first=head + 1), late=True) == ("live", "ahead")
    assert one.ask(at(1, head)) == ("wait", None)  # at a start, and there is none yet
    assert one.ask(at(1, 0, first=1 << 40)) == ("live", "ahead")
    one.push(frame(40), FRAME_US, START)
    assert one.ask(at(1, 0, first=head + 1)) == ("at", "exact", 1, head + 1, 0)


def at_time(epoch: int, media_ms: int, *fields: bytes) -> bytes:
    """A request for the place of a media time."""
    return request(b"/live?at=%d.t%d" % (epoch, media_ms), *fields)


@given(st.integers(0, 40 * FRAME_US // 1000), st.sampled_from([1, 5]))
def test_a_media_time_leads_to_the_nearest_start(media_ms: int, starts: int) -> None:
    """Before it or behind it; with a Range, too: who follows asks for the same bytes there."""
    one, _ = stream(starts=starts)
    begins = range(0, 40, starts)
    off = [abs(number * FRAME_US - media_ms * 1000) for number in begins]
    for fields in ([], [b"Range: bytes=9-"]):
        told = one.ask(at_time(1, media_ms, *fields))
        if 40 * FRAME_US - media_ms * 1000 < min(off):  # the next to come is nearer
            assert told == ("wait", None)
        else:
            how, why, epoch, position, header = told
            assert (how, why, epoch, header) == ("send on", "exact", 1, 0)
            assert off[begins.index(position // 100)] == min(off)


def test_the_oldest_start_is_found_by_the_time_that_it_tells() -> None:
    """Which is told in whole milliseconds."""
    one = OneListener(icy=False)
    one.push(frame(0), 10_999, 0)
    for number in range(1, 20):
        one.push(frame(number), FRAME_US, START)
    assert one.ask(at_time(1, 10)) == ("send on", "exact", 1, 100, 0)
    assert one.ask(at_time(1, 9)) == ("live", "old")


def test_a_media_time_leads_to_header_pages_too() -> None:
    """A place as any other."""
    one, _ = paged()
    how, why, epoch, position, header = one.ask(at_time(1, 300))
    assert (how, why) == ("send on", "exact")
    assert one.ask(at(epoch, position, header))[0] == "at"
    assert header == len(BLOB)


def test_a_media_time_that_is_not_here() -> None:
    """Ahead, it may come; before the tail, of another epoch, or far ahead it begins live."""
    one, _ = stream()
    head_ms = 40 * FRAME_US // 1000
    assert one.ask(at_time(1, head_ms - FRAME_US // 1000))[0] == "send on"
    assert one.ask(at_time(1, head_ms - 1)) == ("wait", None)  # where the next will begin
    assert one.ask(at_time(1, head_ms + 1)) == ("wait", None)
    assert one.ask(at_time(1, head_ms + 1), late=True) == ("live", "ahead")
    assert one.ask(at_time(1, head_ms + 20_000)) == ("wait", None)
    assert one.ask(at_time(1, head_ms + 20_001)) == ("live", "ahead")
    assert one.ask(at_time(2, 10)) == ("wait", None)
    assert one.ask(at_time(0, 10)) == ("live", "epoch")
    for number in range(200):
        one.push(frame(number, 60_000), FRAME_US, START)
    assert one.ask(at_time(1, 10)) == ("live", "old")
    assert one.ask(at_time(1, 10**15 - 1)) == ("live", "ahead")


def test_no_number_overflows() -> None:
    """The largest that a request can say are ahead, or of another epoch, and nothing else."""
    one, _ = paged()
    most = 10**18 - 1
    assert one.ask(at(1, most, 0, first=most)) == ("live", "ahead")
    assert one.ask(at(1, 0, most, first=most)) == ("at", "exact", 1, 0, 0)
    assert one.ask(at(1, most, most, first=1)) == ("live", "ahead")
    assert one.ask(at(most, most, most, first=most), late=True) == ("live", "epoch")


def test_what_was_lost_is_old() -> None:
    """Nothing of it will ever be here; before and after it are."""
    one = OneListener(icy=False)
    for number in range(10):
        one.push(frame(number), FRAME_US, START)
    for number in range(15, 20):
        one.place(number, number * 100, frame(number), 0)
    assert one.lose() == 5
    assert one.ask(at(1, 0, first=1000)) == ("live", "old")
    assert one.ask(at(1, 0, first=1250)) == ("live", "old")
    assert one.ask(at(1, 0, first=999))[:2] == ("at", "exact")
    assert one.ask(at(1, 0, first=1500))[:2] == ("at", "exact")


def test_a_ring_that_is_filled_from_behind_is_waited_for() -> None:
    """An edge that has just joined: its upstream may have the bytes before its base."""
    one = OneListener(icy=False, first=(30, 3000))
    for number in range(30, 40):
        one.place(number, number * 100, frame(number), 0)
    assert one.ask(at(1, 2000), goes_back=True) == ("wait", None)
    assert one.ask(at(1, 2000), goes_back=True, late=True) == ("live", "old")
    assert one.ask(at(1, 2000)) == ("live", "old")
    for number in range(29, 19, -1):
        one.place(number, number * 100, frame(number), 0)
    assert one.ask(at(1, 2000), goes_back=True) == ("at", "exact", 1, 2000, 0)


def test_the_epoch_before_is_heard_out_and_then_the_next() -> None:
    """As any listener goes on; no byte is left out or comes twice."""
    one, audio = stream()
    one.new_epoch(2)
    for number in range(5):
        one.push(frame(number + 100), FRAME_US, START)
    after = b"".join(frame(number + 100) for number in range(5))
    assert one.ask(at(1, 0, first=1234)) == ("at", "exact", 1, 1234, 0)
    got = one.send(1 << 20, 0, request=at(1, 0, first=1234))[1]
    for _ in range(3):
        got += one.send(1 << 20, 0)[1]
    assert got == audio[1234:] + after


def test_who_has_heard_an_epoch_out_goes_on_in_the_next() -> None:
    """The bytes after its end are those of the next one's begin."""
    one, audio = stream()
    one.new_epoch(2)
    for number in range(5):
        one.push(frame(number), FRAME_US, START)
    assert one.ask(at(1, 0, first=len(audio) + 150)) == ("at", "exact", 2, 150, 0)
    assert one.ask(at(1, len(audio) + 150)) == ("send on", "exact", 2, 200, 0)
    end_ms = 40 * FRAME_US // 1000
    for off_ms, position in ((-13, 3900), (-11, 0), (-1, 0), (0, 0), (11, 0), (13, 100), (30, 100)):
        epoch = 1 if position == 3900 else 2
        told = one.ask(at_time(1, end_ms + off_ms))
        assert told == ("send on", "exact", epoch, position, 0), off_ms


def test_an_epoch_that_begins_between_two_looks_is_not_its_own_successor() -> None:
    """One ring for both: who is at its head goes on there, not at the same byte less its length."""
    one, audio = stream()
    wanted = ("at", "exact", 1, len(audio), 0)
    assert one.ask(at(1, 0, first=len(audio))) == wanted
    assert one.ask(at(1, 0, first=len(audio)), twice=True) == wanted


def test_an_epoch_that_is_not_here_is_told_from_one_that_may_come() -> None:
    """One that is gone is live at once; a newer one is waited for."""
    one, _ = stream()
    one.new_epoch(5)
    one.new_epoch(9)
    assert one.ask(at(1, 0)) == ("live", "epoch")
    assert one.ask(at(7, 0, first=3)) == ("live", "epoch")
    assert one.ask(at(12, 0)) == ("wait", None)
    assert one.ask(at(12, 0), late=True) == ("live", "epoch")


def test_the_epoch_before_is_kept_for_ten_seconds_of_media() -> None:
    """Then its memory is given back."""
    one, _ = stream()
    one.new_epoch(2)
    seconds = 0
    while one.rings > 1 and seconds < 30:
        for _ in range(50):
            one.push(frame(1), 20_000, START)
        seconds += 1
    assert 10 <= seconds <= 16
    assert one.ask(at(1, 0)) == ("live", "epoch")


@pytest.mark.parametrize("target", [b"/live", b"/live?at=live", b"/live?at=x", b"/live?a=at=5.7"])
def test_who_names_no_place_begins_as_ever(target: bytes) -> None:
    """Also with a Range: from live."""
    one, _ = stream()
    assert one.ask(request(target)) == ("live", None)
    assert one.ask(request(target, b"Range: bytes=77-")) == ("live", None)


def test_an_anchored_listener_that_catches_up_is_not_skipped() -> None:
    """Its lag is older than its join; another with the same lag has skipped."""
    one, audio = stream(400, burst_us=100_000, lag_us_max=1_000_000)
    got = b""
    for turn in range(2000):
        got += one.send(500, turn, request=at(1, 0, first=50) if turn == 0 else b"")[1]
        if len(got) == len(audio) - 50:
            break
    assert got == audio[50:]


# --- how a place is written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (b"/live", b"/live?at=1.0"),
        (b"/live?", b"/live?at=1.0"),
        (b"/live?a=b", b"/live?a=b&at=1.0"),
        (b"/live?at=live", b"/live?at=1.0"),
        (b"/live?a=b&at=7.7&c=%20d", b"/live?a=b&c=%20d&at=1.0"),
        (b"/live?&&a", b"/live?a&at=1.0"),
        (b"/live?cat=1&at", b"/live?cat=1&at=1.0"),
        (b"/caf%C3%A9", b"/caf%C3%A9?at=1.0"),
        (b"http://a:80/live?x#y", b"/live?x&at=1.0"),
        (b"//evil.example/live", b"/.//evil.example/live?at=1.0"),
        (b"/\\evil.example/live", b"/./\\evil.example/live?at=1.0"),
        (b"/caf\xc3\xa9", None),
        (b"/live?a\tb", None),
    ],
)
def test_a_location_is_relative_and_keeps_the_query(target: bytes, wanted: bytes | None) -> None:
    """One place, at the end; what must not be repeated in a reply is not."""
    one, _ = stream(5)
    assert one.location(request(target)) == wanted


@given(st.binary(max_size=60))
def test_any_target_gives_a_clean_location_or_none(target: bytes) -> None:
    """Visible ASCII, of this node, with exactly one place; asking for it gives that place."""
    one, _ = stream(5)
    for whole in (b"/live?" + target, b"/" + target):
        if head_place(request(whole)) is None:
            continue
        found = one.location(request(whole))
        if found is not None:
            assert all(32 < byte < 127 for byte in found)
            assert found[:1] == b"/"
            assert found[1:2] not in {b"/", b"\\"}
            assert head_place(request(found)) == ((1, 0), None)


def test_a_location_that_does_not_fit_is_not_cut() -> None:
    """The room is that of a reply; the longest target leaves some."""
    one, _ = stream(5)
    assert one.location(request(b"/live?" + b"x" * 200), room=250) is None
    assert one.location(request(b"/live?" + b"x" * 8000)) is not None


def test_there_is_no_place_before_the_first_start() -> None:
    """Nothing is given out that nobody can begin at."""
    one = OneListener(icy=False)
    assert one.anchor() is None
    one.push(frame(0), FRAME_US, 0)
    assert one.anchor() is None
    one.push(frame(1), FRAME_US, START)
    assert one.anchor() == b"at=1.100"


def test_a_probe_gets_the_first_bytes_and_never_more_than_there_are() -> None:
    """Header pages first; zeros beyond what is here."""
    one, audio = paged(1)
    assert one.probe(2) == BLOB[:2]
    assert one.probe(100) == (BLOB + audio[len(BLOB) :])[:100]
    assert OneListener(icy=False).probe(5) == bytes(5)
