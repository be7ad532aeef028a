"""Connections whose message has no end, stepped by hand: who is cut, and who is not."""

from __future__ import annotations

import socket
from collections.abc import Collection

import pytest

from relay.endless import (
    ABOVE_BYTES_MAX,
    BYTES_MAX,
    SILENT_S,
    Endless,
    Reading,
    cut,
    reading_of,
)

PORT, DEALER_PORT = 9000, 9001
ABOVE = "tcp://192.0.2.9:9000"


class House:
    """Connections as the kernel tells of them, what the core counts, and what was cut."""

    def __init__(self) -> None:
        self.now: dict[int, Reading] = {}
        self.messages: dict[int, int] = {}
        self.seconds = 0.0
        self.has_met = True
        self.published = self.answered = self.turns = 0
        self.stirred = 0
        self.dealer_fd = -1
        self.cuts: list[tuple[int, bytes]] = []
        self.watch = Endless(reading=self.read, cut=self.cut, clock=lambda: self.seconds)
        self.watch.follow(self, {PORT}, [ABOVE])

    def heard(self, fd: int, cookie: int) -> tuple[int, bool]:
        """In the place of the core: of a child."""
        return self.messages.get(fd, 0), self.has_met

    def above(self, upstream: int, *, stir: bool = False) -> tuple[int, int, int, int, int]:
        """And of an upstream."""
        assert upstream == 0
        self.stirred += stir
        return self.published, self.answered, self.dealer_fd, DEALER_PORT, self.turns

    def read(self, fd: int, ports: Collection[int], *, theirs: bool) -> Reading | None:
        """In the place of the kernel."""
        assert PORT in ports
        assert not theirs or self.dealer_fd < 0 or DEALER_PORT in ports
        return self.now.get(fd)

    def cut(self, fd: int, cookie: bytes) -> bool:
        """Remember."""
        self.cuts.append((fd, cookie))
        return True

    def sends(
        self, fd: int, size: int, *, messages: int = 0, cookie: bytes = b"a", upstream: str = ""
    ) -> None:
        """A connection has sent so much more, and so many whole messages; then a look."""
        if fd not in self.now and fd != self.dealer_fd:
            self.watch.comes(fd, upstream)
        before = self.now[fd].read_bytes if fd in self.now else 0
        self.now[fd] = Reading(cookie, before + size, "192.0.2.1")
        self.messages[fd] = self.messages.get(fd, 0) + messages
        self.watch.look()


def test_more_than_the_bound_without_a_whole_message_is_cut() -> None:
    """And counted; up to the bound it is not."""
    house = House()
    house.sends(7, 100)
    house.sends(7, BYTES_MAX)
    assert house.cuts == []
    house.sends(7, 1)
    assert house.cuts == [(7, b"a")]
    assert house.watch.cut_total == 1


def test_a_newcomer_that_has_much_to_say_is_not_taken_for_one() -> None:
    """A child that comes back subscribes to all that it held, before anybody has looked."""
    house = House()
    house.messages[7] = 3  # of the one that had the descriptor before
    house.sends(7, 4 * BYTES_MAX, messages=65_536)
    assert house.cuts == []


def test_whole_messages_begin_the_count_anew() -> None:
    """However much comes in all."""
    house = House()
    for _ in range(100):
        house.sends(7, BYTES_MAX, messages=1)
    house.sends(7, BYTES_MAX)
    assert house.cuts == []
    house.sends(7, 1)
    assert len(house.cuts) == 1


def test_a_descriptor_that_is_used_again_is_another_connection() -> None:
    """What the one before has sent does not count."""
    house = House()
    house.sends(7, BYTES_MAX, messages=5)
    house.now[7] = Reading(b"b", 0, "192.0.2.2")
    house.watch.look()
    house.sends(7, BYTES_MAX, cookie=b"b")
    assert house.cuts == []
    house.sends(7, 1, cookie=b"b")
    assert house.cuts == [(7, b"b")]


def test_one_that_has_ended_or_was_cut_is_forgotten() -> None:
    """So the table is no longer than there are connections, and none is cut twice."""
    house = House()
    house.sends(7, 100)
    house.now.clear()
    house.watch.look()
    assert house.watch._watched == {}
    house.sends(8, 0)
    house.sends(8, BYTES_MAX + 1)
    house.sends(8, 1)
    assert house.cuts == [(8, b"a")]
    assert house.watch._watched == {}


# --- who says nothing ---


def silent_house(addresses: list[str]) -> House:
    """One connection of each address, a second apart, that say nothing; two may stay."""
    house = House()
    house.has_met = False
    house.watch.silent_max = 2
    for number, address in enumerate(addresses):
        house.seconds += 0.1
        house.now[number] = Reading(bytes([number]), 0, address)
        house.watch.comes(number)
        house.watch.look()
    return house


def test_of_many_that_say_nothing_the_newest_of_the_fullest_address_go() -> None:
    """Once their handshakes must be over; counted; the honest one at another address stays."""
    house = silent_house(["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.1"])
    house.seconds = SILENT_S
    house.watch.look()
    assert house.cuts == []
    house.seconds = SILENT_S + 1
    house.watch.look()
    assert house.cuts == [(3, b"\3"), (2, b"\2")]
    assert house.watch.silent_total == 2
    house.watch.look()
    assert len(house.cuts) == 2


def test_one_that_has_said_a_word_is_not_silent_again() -> None:
    """Nor is any while there is room for it."""
    house = silent_house(["192.0.2.1"] * 3)
    house.has_met = True
    house.watch.look()
    house.has_met = False
    house.seconds = 3600.0
    house.watch.look()
    assert house.cuts == []


def test_a_newcomer_with_the_same_descriptor_is_silent_from_its_own_begin_on() -> None:
    """It has a cookie of its own."""
    house = silent_house(["192.0.2.1"] * 3)
    house.seconds = SILENT_S - 1
    house.now[2] = Reading(b"n", 0, "192.0.2.1")
    house.watch.look()
    house.seconds = SILENT_S + 1
    house.watch.look()
    assert house.cuts == []
    house.seconds = 2 * SILENT_S
    house.watch.look()
    assert house.cuts == [(2, b"n")]


# --- what comes from above ------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [False, True])
def test_from_above_it_is_cut_once_our_own_thread_has_looked(answers: bool) -> None:
    """It may be our thread that is late: it is stirred, and judged by when it has had its turn."""
    house = House()
    house.dealer_fd = 7 if answers else -1
    house.turns = 100
    house.sends(7, 100, upstream=ABOVE)
    house.sends(7, ABOVE_BYTES_MAX, upstream=ABOVE)
    assert (house.cuts, house.stirred) == ([], 0)
    for turns in (100, 101, 101):
        house.turns = turns
        house.sends(7, 1, upstream=ABOVE)
    assert (house.cuts, house.stirred) == ([], 3)
    house.turns = 102
    house.sends(7, 1, upstream=ABOVE)
    assert house.cuts == [(7, b"a")]


@pytest.mark.parametrize("answers", [False, True])
def test_what_our_thread_then_finds_whole_is_no_reason(answers: bool) -> None:
    """A backlog that it had not read: of messages, or of answers."""
    house = House()
    house.dealer_fd = 7 if answers else -1
    house.sends(7, 100, upstream=ABOVE)
    for _ in range(10):
        house.sends(7, ABOVE_BYTES_MAX, upstream=ABOVE)
        house.sends(7, ABOVE_BYTES_MAX, upstream=ABOVE)
        house.turns += 5
        house.answered += answers
        house.published += not answers
        house.watch.look()
    assert house.cuts == []


def test_answers_do_not_speak_for_what_is_published_nor_the_other_way_round() -> None:
    """Each connection has its own count."""
    house = House()
    house.dealer_fd = 8
    for fd in (7, 8):
        house.sends(fd, 100, upstream=ABOVE)
    for _ in range(3):
        house.published += 1
        house.turns += 5
        for fd in (7, 8):
            house.sends(fd, ABOVE_BYTES_MAX, upstream=ABOVE)
    assert house.cuts == [(8, b"a")]


def test_a_dealer_that_is_made_anew_is_another_connection() -> None:
    """Whatever had its descriptor before."""
    house = House()
    house.sends(7, 100)
    del house.now[7]
    house.watch.look()
    house.dealer_fd = 7
    house.sends(7, 100)
    house.sends(7, BYTES_MAX + 1)
    assert house.cuts == []
    assert [one.answers for one in house.watch._watched.values()] == [True]


def test_the_kernel_tells_what_was_read_and_who_it_is() -> None:
    """Of a real connection to a port of ours; of any other, nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as child:
            here, _ = server.accept()
            with here:
                child.sendall(bytes(1000))
                assert len(here.recv(600, socket.MSG_WAITALL)) == 600
                told = reading_of(here.fileno(), {port})
                assert told is not None
                assert told.address == "127.0.0.1"
                assert told.read_bytes == 600
                assert reading_of(here.fileno(), {port + 1}) is None
                assert reading_of(child.fileno(), {port}) is None
                assert reading_of(child.fileno(), {port}, theirs=True) is not None
                assert reading_of(server.fileno() + 1000, {port}) is None
                assert not cut(here.fileno(), b"x" * 8)
                assert here.fileno() > 0
                assert cut(here.fileno(), told.cookie)
                assert child.recv(1) == b""


def test_a_look_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    """The thread goes on."""
    looks = []

    def read(fd: int, ports: Collection[int], *, theirs: bool) -> Reading | None:
        looks.append(fd)
        if len(looks) == 1:
            raise ValueError("one bad look")
        return None

    watch = Endless(reading=read)
    watch.comes(7)
    watch.start()
    while len(looks) < 2:
        assert watch._thread.is_alive()
    watch.close()
    assert "could not be looked at" in caplog.text
