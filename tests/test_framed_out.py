"""The frames of a ring as a framed body, and back into another ring, however it is cut."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.encoders import encode
from tools.sources import FrameMaker

from relay import _core, recorder
from relay.errors import SourceError
from relay.source import LocalSource

EPOCH = 1_700_000_000_000
ORIGIN = 0x0123456789ABCDEF


class Sender:
    """A ring that is fed by an encoder, read as a framed body."""

    def __init__(self, content_type: str = "audio/mpeg", *, ring_s: int = 20) -> None:
        self.engine = _core.Engine(streams_max=1)
        self.engine.configure(ring_s=ring_s)
        self.source = LocalSource(self.engine, "/live", content_type)
        self.stream = self.source.stream
        self.maker = FrameMaker()

    def body(self, begin: bool = True, at: int = 0) -> tuple[bytes, int]:
        """What a new connection is sent, and where it stands then."""
        data, at = self.stream.framed_here() if begin else (b"", at)
        while (found := self.stream.framed_run(at)) is not None and found[0]:
            data += found[0]
            if found[1] is None:
                break
            at = found[1]
        return data, at

    @property
    def origin(self) -> int:
        """The origin that its runs tell."""
        return int(self.engine.node_id[16:], 16)


class Receiver:
    """An origin's stream, without a socket."""

    def __init__(self, epoch: int, origin: int, mount: str = "/live") -> None:
        self.engine = _core.Engine(streams_max=2)
        self.stream = self.engine.add_stream(mount)
        self.stream.claim()
        self.epoch, self.origin = epoch, origin
        self.connect()

    def connect(self) -> None:
        """A new connection of the source."""
        self.source = _core.Source(self.stream, "mpeg", epoch=self.epoch, origin=self.origin)

    def same_as(self, other: _core.Stream) -> bool:
        """Whether all frames that both hold are the same, up to the same head."""
        mine, theirs = self.stream.snapshot(), other.snapshot()
        first = max(mine["tail_sequence"], theirs["tail_sequence"])
        assert first < mine["head_sequence"] == theirs["head_sequence"]
        assert mine["head_position"] == theirs["head_position"]
        assert mine["title"] == theirs["title"]
        frames = range(first, mine["head_sequence"])
        return all(self.stream.read(n) == other.read(n) for n in frames)


def told(receiver: Receiver) -> list[recorder.Record]:
    """What it has recorded."""
    return [recorder.Record(*one) for one in receiver.engine.recorded([])]


@pytest.fixture(scope="module")
def sender() -> Iterator[Sender]:
    """Three seconds of audio, with titles in it."""
    sender = Sender()
    for title in ("First", "Second", "Third"):
        sender.source.feed(sender.maker.seconds(1.0))
        sender.source.title(title)
    sender.source.feed(sender.maker.seconds(0.2))
    yield sender
    sender.engine.close()


def receiver_of(sender: Sender) -> Receiver:
    """An origin that this sender feeds."""
    return Receiver(sender.source.epoch, sender.origin)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1 << 20), max_size=20))
def test_split_anywhere_the_ring_is_the_same(sender: Sender, cuts: list[int]) -> None:
    """Bytes, sequences, positions, media times and titles: all as they were cut."""
    data, _ = sender.body()
    receiver = receiver_of(sender)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        receiver.source.feed(data[start:end])
    assert receiver.same_as(sender.stream)
    assert receiver.stream.snapshot()["epoch"] == sender.source.epoch
    receiver.engine.close()


def test_what_is_here_already_is_ignored_and_what_is_new_goes_on(sender: Sender) -> None:
    """A connection that breaks anywhere, and a next one from the oldest frame: each frame once."""
    data, _ = sender.body()
    receiver = receiver_of(sender)
    for cut in (len(data) // 3, len(data) // 2, len(data)):
        receiver.connect()
        receiver.source.feed(data[:cut])
    assert receiver.same_as(sender.stream)
    counters = receiver.stream.snapshot()["counters"]
    assert counters["duplicates_total"] > 0
    assert counters["epochs_total"] == 1
    assert counters["lost_frames_total"] == counters["refused_frames_total"] == 0
    receiver.engine.close()


def test_origin_that_begins_empty_gets_what_the_sender_still_holds() -> None:
    """After minutes: the tail of the ring, with the places it has, and the title in force."""
    sender = Sender(ring_s=2)
    sender.source.title("Long ago")
    for _ in range(30):
        sender.source.feed(sender.maker.seconds(1.0))
    receiver = receiver_of(sender)
    data, at = sender.body()
    receiver.source.feed(data)
    assert receiver.stream.snapshot()["base_sequence"] > 0
    assert receiver.stream.snapshot()["held_ms"] >= 1900
    assert receiver.same_as(sender.stream)
    sender.source.feed(sender.maker.seconds(1.0))
    receiver.source.feed(sender.body(False, at)[0])
    assert receiver.same_as(sender.stream)
    sender.engine.close()
    receiver.engine.close()


def test_origin_that_missed_more_than_is_held_begins_anew_in_the_same_epoch() -> None:
    """What lies between is lost and counted; nothing pretends to be whole."""
    sender = Sender(ring_s=2)
    sender.source.feed(sender.maker.seconds(1.0))
    receiver = receiver_of(sender)
    receiver.source.feed(sender.body()[0])
    head = receiver.stream.snapshot()["head_sequence"]
    media_us = receiver.stream.snapshot()["head_media_us"]
    for _ in range(20):
        sender.source.feed(sender.maker.seconds(1.0))
    receiver.connect()
    receiver.source.feed(sender.body()[0])
    state = receiver.stream.snapshot()
    assert receiver.same_as(sender.stream)
    assert state["counters"]["lost_frames_total"] == state["base_sequence"] - head > 0
    assert state["counters"]["lost_runs_total"] == 1
    assert state["counters"]["lost_outage_frames_total"] == state["base_sequence"] - head
    (lost,) = (one for one in told(receiver) if one.kind == recorder.LOST)
    assert (lost.reason_name, lost.parent) == ("outage", recorder.NOBODY)
    assert (lost.a, lost.b) == (head, state["base_sequence"] - head)
    assert lost.c == sender.stream.read(state["base_sequence"])[2] - media_us  # type: ignore[index]
    sender.engine.close()
    receiver.engine.close()


def test_reader_that_was_overtaken_is_told_to_begin_anew() -> None:
    """It never gets bytes of other frames than it asked for."""
    sender = Sender(ring_s=2)
    sender.source.feed(sender.maker.seconds(1.0))
    _, at = sender.body()
    assert sender.stream.framed_run(at) == (b"", at)
    for _ in range(20):
        sender.source.feed(sender.maker.seconds(1.0))
    assert sender.stream.framed_run(at) is None
    sender.engine.close()


def test_the_last_run_says_that_the_epoch_has_ended(sender: Sender) -> None:
    """Behind all frames, with none of its own; what follows it is not read."""
    ending = Sender()
    ending.source.feed(ending.maker.seconds(0.5))
    data, at = ending.body()
    receiver = receiver_of(ending)
    receiver.source.feed(data)
    ending.source.close()
    found = ending.stream.framed_run(at)
    assert found is not None
    assert found[1] is None
    receiver.source.feed(found[0] + b"anything")
    assert receiver.same_as(ending.stream)
    ending.engine.close()
    receiver.engine.close()


def test_ogg_header_pages_come_with_a_late_tail() -> None:
    """They left the sender's ring long ago; who joins at an origin that restarted gets them."""
    sender = Sender("audio/ogg", ring_s=2)
    sender.source.feed(encode("libopus", "ogg", 48_000, seconds=30.0))
    header = sender.stream.header()
    assert header.startswith(b"OggS")
    assert sender.stream.snapshot()["tail_sequence"] > 2
    receiver = receiver_of(sender)
    receiver.source = _core.Source(
        receiver.stream, "ogg", epoch=sender.source.epoch, origin=sender.origin
    )
    receiver.source.feed(sender.body()[0])
    assert receiver.stream.header() == header
    assert receiver.same_as(sender.stream)
    sender.engine.close()
    receiver.engine.close()


# --- what is refused ------------------------------------------------------------------------------


def message(kind: bytes, body: bytes, *, mount_key: bytes, version: int = 1) -> bytes:
    """One message behind its length."""
    request = b"" if kind == b"S" else bytes(4)
    whole = kind + mount_key + bytes([version]) + request + body
    return struct.pack("<I", len(whole)) + whole


def here(epoch: int = EPOCH, origin: int = ORIGIN, first: int = 0, media_us: int = 0) -> bytes:
    """Where a run begins; if nothing is said, one that has nothing yet."""
    return struct.pack("<BQQQQQQQQH", 0, epoch, origin, first, 0, media_us, first, 0, 0, 0)


def run(
    payload: bytes,
    *,
    epoch: int = EPOCH,
    first: int = 0,
    position: int = 0,
    size: int | None = None,
) -> bytes:
    """A run of one frame."""
    size = len(payload) if size is None else size
    fixed = struct.pack("<BBQQQQQH", 0, 0, ORIGIN, epoch, first, position, 0, 1)
    return fixed + struct.pack("<II", size | 1 << 24, 20_000) + payload


@pytest.fixture(scope="module")
def key(sender: Sender) -> bytes:
    """The key of /live."""
    return sender.stream.framed_here()[0][5:13]


def refusal(data: bytes) -> str:
    """Why an origin takes no more of this body; "" when it does."""
    receiver = Receiver(EPOCH, ORIGIN)
    try:
        receiver.source.feed(data)
    except SourceError as wrong:
        return str(wrong)
    finally:
        receiver.engine.close()
    return ""


def test_refusals_say_what_is_wrong(key: bytes) -> None:
    """Each with its reason, none with a crash."""

    def body(*messages: tuple[bytes, bytes], version: int = 1) -> bytes:
        return b"".join(message(k, b, mount_key=key, version=version) for k, b in messages)

    begin = (b"h", here())
    good = (b"S", run(b"frame"))
    assert refusal(body(begin, good)) == ""
    assert "131072" in refusal(struct.pack("<I", 131_073))
    assert "ends before" in refusal(struct.pack("<I", 3))
    assert refusal(body(begin, good, version=2)) == ""
    assert "wire version" in refusal(body(begin, version=3))
    assert "another kind" in refusal(body((b"J", here())))
    assert "another mount" in refusal(message(b"h", here(), mount_key=b"12345678"))
    assert "not those of the request" in refusal(body((b"h", here(EPOCH + 1))))
    assert "not those of the request" in refusal(body((b"h", here(origin=5))))
    assert "not those of the request" in refusal(body(begin, (b"S", run(b"f", epoch=EPOCH + 1))))
    assert "does not connect" in refusal(body(good))
    assert "does not connect" in refusal(body(begin, (b"S", run(b"frame", first=7))))
    assert "65536" in refusal(body(begin, (b"S", run(b"frame", size=65_537))))
    assert "ends before" in refusal(body(begin, (b"S", run(b"frame", size=9))))
    assert "contradicts" in refusal(body(begin, (b"S", run(b"frame", position=100))))


def test_jump_that_cannot_be_true_is_refused_and_counts_nothing(key: bytes) -> None:
    """More media than time has passed, more frames than fit in it, or media that goes back."""
    minute = 60_000_000
    for first, media_us, reason in (
        (3000, minute, ""),
        (16, 20_000, ""),
        (17 + 60_001, minute, "further ahead"),
        (1 << 40, 1 << 61, "further ahead"),
        (3000, 3600 * 1_000_000, "further ahead"),
        (3000, 0, "further ahead"),
    ):
        receiver = Receiver(EPOCH, ORIGIN)
        receiver.source.feed(
            message(b"h", here(), mount_key=key) + message(b"S", run(b"frame"), mount_key=key)
        )
        jump = message(b"h", here(first=first, media_us=media_us), mount_key=key)
        if reason:
            with pytest.raises(SourceError, match=reason):
                receiver.source.feed(jump)
        else:
            receiver.source.feed(jump)
        lost = receiver.stream.snapshot()["counters"]["lost_frames_total"]
        assert lost == (0 if reason else first - 1)
        assert len([one for one in told(receiver) if one.kind == recorder.LOST]) == (not reason)
        receiver.engine.close()


def bad_bodies(key: bytes) -> list[bytes]:
    """One for each refusal, with what went well before it."""

    def body(*messages: tuple[bytes, bytes], version: int = 1) -> bytes:
        return b"".join(message(k, b, mount_key=key, version=version) for k, b in messages)

    begin, good = (b"h", here()), (b"S", run(b"frame"))
    return [
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", 3),
        body(begin, version=3),
        body((b"J", here())),
        message(b"h", here(), mount_key=b"12345678"),
        body((b"h", here(origin=5))),
        body((b"h", here(first=1 << 63))),
        body(good),
        body(begin, (b"S", run(b"frame", first=7))),
        body(begin, (b"S", run(b"frame", size=65_537))),
        body(begin, (b"S", run(b"frame", position=100))),
        body(begin, good, (b"h", here(first=1 << 40))),
    ]


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 11), st.binary(max_size=600), st.integers(0, 1 << 20))
def test_refused_body_stays_refused(
    sender: Sender, key: bytes, bad: int, junk: bytes, cut: int
) -> None:
    """Whatever is fed after it, the answer is the same, and nothing of it is used."""
    data = bad_bodies(key)[bad]
    receiver = Receiver(EPOCH, ORIGIN)
    with pytest.raises(SourceError) as first:
        receiver.source.feed(data)
    before = receiver.stream.snapshot()
    good = message(b"h", here(), mount_key=key) + message(b"S", run(b"frame"), mount_key=key)
    for more in (junk, good, data[: cut % (len(data) + 1)], bytes(200_000)):
        with pytest.raises(SourceError) as again:
            receiver.source.feed(more)
        assert str(again.value) == str(first.value)
    assert receiver.stream.snapshot() == before
    receiver.engine.close()


def test_two_sources_that_tell_the_same_run_but_send_other_frames_are_found(key: bytes) -> None:
    """The second one's frames are duplicates until they stand elsewhere."""
    receiver = Receiver(EPOCH, ORIGIN)
    begin = message(b"h", here(), mount_key=key)
    first = message(b"S", run(b"frame"), mount_key=key)
    receiver.source.feed(begin + first)
    receiver.connect()
    other = message(b"S", run(b"longer frame"), mount_key=key)
    after = message(b"S", run(b"frame", first=1, position=12), mount_key=key)
    with pytest.raises(SourceError, match="contradicts"):
        receiver.source.feed(begin + other + after)
    receiver.engine.close()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=600), st.booleans(), st.booleans())
def test_garbage_never_crashes(
    sender: Sender, key: bytes, junk: bytes, framed: bool, known: bool
) -> None:
    """Raw, behind a length, and behind a whole head."""
    data = message(b"S", junk, mount_key=key) if known else junk
    begin = message(b"h", here(), mount_key=key) if framed else b""
    refusal(begin + data)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 1 << 20), st.integers(0, 255))
def test_one_wrong_byte_never_crashes(sender: Sender, at: int, value: int) -> None:
    """A good body with a byte changed is taken or refused."""
    data = bytearray(sender.body()[0][:3000])
    data[at % len(data)] = value
    receiver = receiver_of(sender)
    with contextlib.suppress(SourceError):
        receiver.source.feed(bytes(data))
    frames = receiver.stream.snapshot().get("head_sequence", 0)
    assert frames <= sender.stream.snapshot()["head_sequence"]
    receiver.engine.close()
