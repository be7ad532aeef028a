"""What is poured to listeners of the host's own server, and who is asked about them."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine

from relay.joining import Allow, Deny
from relay.streamed import VISITS_MAX, Pourer, Streamed, may_hear, serials
from relay.subscribe import Frame, Skipped

PEER = ("192.0.2.7", 4711)
SLOW = Skipped(frames=3, reason="slow")


def page(serial: int, data: bytes, flags: int = 0) -> bytes:
    """An Ogg page with one segment, without a checksum."""
    head = b"OggS\0" + bytes([flags]) + bytes(8) + serial.to_bytes(4, "little") + bytes(8)
    return head + bytes([1, len(data)]) + data


def frame(data: bytes, *, header: bool = False, epoch: int = 1) -> Frame:
    """One that may be begun with, or a header page."""
    return Frame(epoch, 0, 0, 0, 20_000, 2 if header else 1, data)


class Chain:
    """The pages of one."""

    def __init__(self, serial: int) -> None:
        self.first, self.second = page(serial, b"head", 2), page(serial, b"tags")
        self.header = self.first + self.second
        self.audio = frame(page(serial, b"audio"))
        self.pages = [frame(self.first, header=True), frame(self.second, header=True)]


A, B, C = Chain(1), Chain(2), Chain(3)


def test_header_pages_come_once_before_the_first_frame() -> None:
    """A format without any has none."""
    pourer = Pourer(lambda: A.header)
    assert pourer.take([A.audio, A.audio]) == A.header + A.audio.data * 2
    assert pourer.take([A.audio]) == A.audio.data
    assert Pourer(lambda: b"").take([frame(b"mp3"), SLOW, frame(b"more")]) == b"mp3more"


def test_a_gap_over_a_chain_brings_its_header_pages() -> None:
    """They were among what was skipped; within a chain he has them already."""
    newest = A
    pourer = Pourer(lambda: newest.header)
    pourer.take([A.audio])
    assert pourer.take([SLOW, A.audio]) == A.audio.data
    newest = B
    assert pourer.take([SLOW, B.audio, B.audio]) == B.header + B.audio.data * 2
    assert pourer.take([SLOW, B.audio]) == B.audio.data


def test_header_pages_that_came_by_themselves_are_not_repeated() -> None:
    """A chain that he heard begin is his, also behind a gap."""
    pourer = Pourer(lambda: B.header)
    assert Pourer(lambda: A.header).take([A.audio, *B.pages, B.audio]).endswith(B.audio.data)
    pourer.take([*A.pages, A.audio, *B.pages, B.audio])
    assert pourer.take([SLOW, B.audio]) == B.audio.data


def test_what_lies_in_an_older_chain_is_heard_where_its_pages_are_known() -> None:
    """That which he had goes on; one in between cannot be decoded, and is left out."""
    pourer = Pourer(lambda: A.header)
    pourer.take([A.audio])
    late = Pourer(lambda: C.header)
    assert late.take([B.audio, *C.pages, C.audio]) == C.header + C.audio.data
    newest = C
    pourer = Pourer(lambda: newest.header)
    newest = A
    pourer.take([A.audio])
    newest = C
    assert pourer.take([SLOW, A.audio]) == A.audio.data
    assert pourer.take([SLOW, B.audio, *C.pages, C.audio]) == C.header + C.audio.data


def test_header_pages_cut_in_the_middle_are_given_whole() -> None:
    """Half of them are of no use, whichever half it is."""
    pourer = Pourer(lambda: B.header)
    pourer.take([*A.pages, A.audio])
    assert pourer.take([SLOW, B.pages[1], B.audio]) == B.header + B.audio.data
    pourer = Pourer(lambda: B.header)
    assert pourer.take([B.pages[0], SLOW, B.audio]) == B.first + B.header + B.audio.data


def test_a_new_epoch_has_header_pages_of_its_own() -> None:
    """WebM's are no frames: they are given before the first one of each epoch."""
    newest = b"init 1"
    pourer = Pourer(lambda: newest)
    assert pourer.take([frame(b"one")]) == b"init 1one"
    newest = b"init 2"
    assert pourer.take([frame(b"two", epoch=2)]) == b"init 2two"


def test_serial_numbers_are_read_page_by_page() -> None:
    """And a page that is cut ends them."""
    assert list(serials(A.header + B.first)) == [bytes([n, 0, 0, 0]) for n in (1, 1, 2)]
    assert list(serials(A.first[:20])) == list(serials(b"")) == []


async def test_nobody_is_asked_where_nobody_can_be_or_need_be() -> None:
    """Without a hook, and about a HEAD; what cannot be read is refused, not let in."""

    class Asked:
        async def verdict(self, join: Any) -> Any:
            return Deny(402, join.mount)

    asked: Any = Asked()
    told: dict[str, Any] = {"query": b"", "fields": (), "peer": PEER}
    assert await may_hear(None, "/live", method="GET", **told) == Allow()
    assert await may_hear(asked, "/live", method="HEAD", **told) == Allow()
    assert await may_hear(asked, "/live", method="GET", **told) == Deny(402, "/live")
    told["query"] = b"a\r\nb"
    verdict = await may_hear(asked, "/live", method="GET", **told)
    assert isinstance(verdict, Deny)
    assert verdict.status == 400


@pytest.mark.parametrize("kind", [b"OggS", b"fLaC", b""])
def test_short_data_is_no_page(kind: bytes) -> None:
    """Whatever a frame holds, it is poured or left out without an error."""
    assert Pourer(lambda: b"").take([frame(kind)]) == kind


class House:
    """A node's streamed listeners, over a fake engine with two streams."""

    def __init__(self, listeners_max: int = 4) -> None:
        self.engine: Any = FakeEngine()
        self.engine.listeners_max = listeners_max
        self.engine.counters["listeners"] = 1
        self.streams = [self.engine.add_stream(mount) for mount in ("/live", "/other")]
        self.at_s = 10.0
        self.streamed = Streamed(lambda: self.at_s)

    def enter(self, mount: str = "/live", mount_max: int = 0, ticket: int = 0) -> Any:
        """Somebody comes."""
        reader = Reader(mount)
        return self.streamed.enter(self.engine, reader, mount_max, PEER, ticket)


class Reader:
    """What he hears by; closed once."""

    def __init__(self, mount: str) -> None:
        self.mount = mount
        self.is_closed = False

    def close(self) -> None:
        """He has heard enough."""
        self.is_closed = True


def test_those_who_are_streamed_to_fill_the_node_with_the_engines() -> None:
    """Of four places one is the engine's; a mount's own bound is met before."""
    house = House()
    assert house.enter(mount_max=1) is not None
    assert house.enter(mount_max=1) is None
    with house.enter("/other") as second:
        assert house.enter("/other") is not None
        assert house.enter("/other") is None
        assert second.id == -2
    assert house.enter("/other") is not None
    assert house.enter("/none") is None
    assert house.streamed.snapshot() == {
        "listeners_streamed": 3,
        "listeners_streamed_total": 4,
    }


def test_comings_and_goings_are_told_as_the_engine_tells_its_own() -> None:
    """While somebody wants to know; what finds no room is counted."""
    house = House(listeners_max=2 * VISITS_MAX)
    with house.enter():
        pass
    assert house.streamed.take_visits() == ([], 0)
    house.streamed.keep_visits(True)
    key = house.streams[0].key
    with house.enter(ticket=9) as one:
        assert house.streamed.take_visits()[0] == [(10_000_000, key, -2, *PEER, 0, 0, None, 9)]
        one.sent_bytes = 4170
        house.at_s = 12.5
        assert house.streamed.end((-2, 5)) == {-2}
        assert one._reader.is_closed
    [visit] = house.streamed.take_visits()[0]
    assert visit == (12_500_000, key, -2, *PEER, 2_500_000, 4170, "killed", 9)
    assert house.streamed.end((-2,)) == set()
    for _ in range(VISITS_MAX + 3):
        house.enter()
    told, lost = house.streamed.take_visits()
    assert (len(told), lost) == (VISITS_MAX, 3)
