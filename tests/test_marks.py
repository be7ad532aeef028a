"""When a byte became readable: never told later than it was, and earlier by a bounded time."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st
from relay._probe_listener import MARKS_BYTES, Marks, OneListener
from tools.nodes import wait_until

FINE_US, COARSE_US = 10_000, 250_000
READABLE = 122  # marks of a row that may be read

# What a source does: how long after its last write began the next one, how long that takes, and how
# many bytes become readable in it (none: a part of a frame, or a frame behind a hole).
WRITES = st.lists(
    st.tuples(st.integers(0, 200_000), st.integers(0, 3000), st.sampled_from([0, 1, 400, 9000])),
    min_size=1,
    max_size=40,
)


def write(marks: Marks, writes: list[tuple[int, int, int]], rounds: int) -> list[tuple[int, int]]:
    """Mark and write; returns (position, the time at which it became readable) of each run."""
    now, head, true = 1_000_000, 0, []
    for _ in range(rounds):
        for pause_us, takes_us, size in writes:
            now += max(pause_us, takes_us)
            marks.add(head, now)
            if size:
                true.append((head, now + takes_us))
            head += size
    return true


@given(WRITES, st.integers(1, 60))
def test_a_time_is_never_later_than_the_truth_nor_much_earlier(
    writes: list[tuple[int, int, int]], rounds: int
) -> None:
    """10 ms and one write for what is recent, 250 ms and one write for what is older."""
    marks = Marks()
    true = write(marks, writes, rounds)
    now = 1_000_000 + rounds * sum(max(pause, takes) for pause, takes, _ in writes)
    for position, readable_us in true:
        found = marks.find(position)
        age_us = now - readable_us
        if age_us <= READABLE * FINE_US - FINE_US:
            assert readable_us - FINE_US - 3000 <= found <= readable_us
        elif age_us <= READABLE * COARSE_US - 2 * COARSE_US:
            assert readable_us - COARSE_US - 3000 <= found <= readable_us


def test_each_byte_of_a_run_has_the_time_of_its_write() -> None:
    """Neighbours are not mixed up: the last byte before a mark belongs to the one before it."""
    marks = Marks()
    marks.add(0, 1_000_000)
    marks.add(400, 1_026_000)
    marks.add(800, 1_052_000)
    assert [marks.find(at) for at in (0, 399, 400, 799, 800, 10_000)] == [
        1_000_000,
        1_000_000,
        1_026_000,
        1_026_000,
        1_052_000,
        1_052_000,
    ]


def test_a_quiet_source_is_not_taken_for_an_early_one() -> None:
    """What comes after a pause is as old as the write that brought it, not as the pause."""
    marks = Marks()
    marks.add(0, 1_000_000)
    marks.add(400, 1_020_000)
    for second in range(2, 600):  # feeds without a whole frame
        marks.add(400, second * 1_000_000)
    assert marks.find(400) == 599_000_000
    assert marks.find(0) == 1_000_000


def test_what_is_older_than_the_oldest_mark_is_told_as_that_old() -> None:
    """At least 30 s are known, whatever the rate of the writes."""
    marks = Marks()
    for i in range(100_000):
        marks.add(i, 1_000_000 + i * 1000)
    now = 101_000_000
    assert 30_000_000 <= now - marks.find(0) <= 32_500_000
    assert marks.find(0) == marks.find(10)


def test_nothing_is_known_of_a_ring_that_nobody_marked() -> None:
    """0, not a guess."""
    assert Marks().find(7) == 0


def test_marks_cost_4_kib_a_ring() -> None:
    """The figure of docs/architecture.md."""
    assert MARKS_BYTES == 4112


def test_a_reader_beside_the_writer_is_told_no_later_time() -> None:
    """A slot that is used again while it is looked at is not believed."""
    step_us = FINE_US  # each write makes a mark in one row, each 25th in both
    marks = Marks()
    writer = threading.Thread(target=marks.write_unpaced, args=(step_us,))
    writer.start()
    try:
        wait_until(lambda: marks.written > 1000)
        answers, late = marks.look(step_us, 5_000_000)
        assert answers > 100_000
        assert late == 0
    finally:
        marks.stop_writing()
        writer.join()


# --- in a ring ------------------------------------------------------------------------------------


def test_what_waited_behind_a_hole_is_as_old_as_its_repair() -> None:
    """It could not be sent before: an outage that was healed is not the shard's lateness."""
    live = OneListener()
    for sequence in range(10):
        live.place(sequence, 400 * sequence, b"x" * 400, 1_000_000 + 24_000 * sequence)
    for sequence in range(11, 14):  # 10 is missing
        live.place(sequence, 400 * sequence, b"x" * 400, 1_000_000 + 24_000 * sequence)
    live.place(10, 4000, b"x" * 400, 5_000_000)
    live.place(14, 5600, b"x" * 400, 5_024_000)
    assert [live.readable_us(400 * n) for n in (9, 10, 13, 14)] == [
        1_216_000,
        5_000_000,
        5_000_000,
        5_024_000,
    ]


def test_marks_stay_when_a_ring_gets_another_size() -> None:
    """The bytes are copied, and so are their times."""
    live = OneListener()
    readable = []
    for number in range(100):  # its bit rate is known after a second: the ring is fitted to it
        readable.append(1_000_000 + 24_000 * number)
        live.push(b"x" * 3000, 24_000, 1, readable[-1])
    assert live.rings == 1
    assert [live.readable_us(3000 * n) for n in range(100)] == readable
