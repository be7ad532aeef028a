"""The queue to the slow door: bounded, in order, and each descriptor has one owner."""

from __future__ import annotations

import os
import select
import socket

import pytest
from relay._probe import Handover

pytestmark = pytest.mark.core

V4 = bytes(10) + b"\xff\xff" + bytes((127, 0, 0, 1))


def readable(fd: int) -> bool:
    """Say whether a descriptor is readable now."""
    return bool(select.select([fd], [], [], 0)[0])


def pipes(count: int) -> list[tuple[int, int]]:
    """Return so many pipes; the ends are the test's to close."""
    return [os.pipe() for _ in range(count)]


def test_entries_come_out_in_order_and_whole() -> None:
    """Descriptor, bytes, address and port are what was put."""
    queue = Handover(4)
    for number in range(3):
        assert queue.put(1000 + number, b"x" * (number + 1), V4, 40_000 + number)
    for number in range(3):
        assert queue.take() == (1000 + number, b"x" * (number + 1), V4, 40_000 + number)
    assert queue.take() is None


def test_a_full_queue_refuses_and_the_descriptor_stays_with_the_caller() -> None:
    """The bound holds; what was not taken is neither closed nor kept."""
    queue = Handover(2)
    (read_end, write_end), *_ = pipes(1)
    try:
        assert queue.put(1000, b"a", V4, 1)
        assert queue.put(1001, b"b", V4, 2)
        assert not queue.put(read_end, b"c", V4, 3)
        assert queue.count == 2
        os.fstat(read_end)
        assert queue.take() == (1000, b"a", V4, 1)
        assert queue.put(1002, b"c", V4, 3)
        assert [queue.take()[0], queue.take()[0]] == [1001, 1002]
    finally:
        os.close(read_end)
        os.close(write_end)


def test_the_queue_goes_round_many_times() -> None:
    """Places are used again, in order, for longer than the queue is."""
    queue = Handover(3)
    for number in range(20):
        assert queue.put(number, str(number).encode(), V4, number)
        assert queue.put(100 + number, b"", V4, number)
        assert queue.take()[:2] == (number, str(number).encode())
        assert queue.take()[:2] == (100 + number, b"")


def test_its_event_is_readable_while_entries_wait() -> None:
    """The loop that watches it is told of entries, and no longer once it saw the queue empty."""
    queue = Handover(4)
    assert not readable(queue.event_fd)
    queue.put(1000, b"a", V4, 1)
    queue.put(1001, b"b", V4, 1)
    assert readable(queue.event_fd)
    queue.take()
    assert readable(queue.event_fd)
    queue.take()
    assert queue.take() is None
    assert not readable(queue.event_fd)


def test_closing_the_queue_closes_what_waits_in_it_and_nothing_else() -> None:
    """A connection that nobody took is ended: its peer sees it."""
    queue = Handover(4)
    ours, theirs = socket.socketpair()
    taken, other = socket.socketpair()
    with theirs, taken, other:
        queue.put(taken.fileno(), b"t", V4, 1)
        queue.put(ours.detach(), b"w", V4, 1)
        assert queue.take()[0] == taken.fileno()
        queue.close()
        theirs.settimeout(1.0)
        assert theirs.recv(1) == b""
        other.send(b"!")
        assert taken.recv(1) == b"!"
