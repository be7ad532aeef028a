"""Who holds which topics: exact, whatever the order of coming and going, and whoever lies."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe_guests import Fair, Guests

WIRE = Path(__file__).parents[1] / "docs" / "wire.md"
OK, OVER, FULL, FALSE = 0, -1, -2, -3
COUNT_MAX, EACH_MAX = 16, 4
NAMES = {3: b"", 4: b"", 5: b"edge", 6: b"edge", 7: b"ill", 8: b"ill", 9: b"ill"}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["adds", "adds", "drops", "leaves"]),
        st.integers(0, 12),
        st.sampled_from(sorted(NAMES)),
    ),
    max_size=200,
)


def who(fd: int) -> int | bytes:
    """The child that a connection belongs to."""
    return NAMES[fd] or fd


@settings(deadline=None)
@given(STEPS)
def test_counts_are_those_of_a_plain_model(steps: list[tuple[str, int, int]]) -> None:
    """A set of pairs says the same after every step; room that was given back is used again."""
    guests, pairs, again = Guests(COUNT_MAX, EACH_MAX), set[tuple[int, int]](), dict[int, int]()
    for what, key, fd in steps:
        mine = [pair for pair in pairs if pair[1] == fd]
        child = [pair for pair in pairs if who(pair[1]) == who(fd)]
        if what == "adds":
            expected = OK
            if key == 0:
                expected = OVER
            elif (key, fd) in pairs:
                again[fd] = again.get(fd, 0) + 1
                expected = OVER if again[fd] > EACH_MAX else OK
            elif len(mine) >= EACH_MAX or len(child) >= 2 * EACH_MAX:
                expected = OVER
            elif len(pairs) >= COUNT_MAX:
                expected = FULL
            else:
                pairs.add((key, fd))
            assert guests.adds(key, fd, NAMES[fd]) == expected
        elif what == "drops":
            assert guests.drops(key, fd) == (OK if (key, fd) in pairs else FALSE)
            pairs.discard((key, fd))
        else:
            assert sorted(guests.leaves(fd)) == sorted(key for key, _ in mine)
            pairs.difference_update(mine)
            again.pop(fd, None)
        assert guests.count == len(pairs)
        assert [guests.has(key) for key in range(13)] == [
            any(pair[0] == key for pair in pairs) for key in range(13)
        ]
        for one in NAMES:
            held = guests.held(one, NAMES[one])
            assert held == sum(who(pair[1]) == who(one) for pair in pairs)
    assert guests.places <= 2 * COUNT_MAX


def test_who_gives_back_what_it_does_not_hold_changes_nothing() -> None:
    """Whether it never held it, or has given it back already; the others' topics stay."""
    guests = Guests(100, 10)
    assert guests.adds(1, 7) == OK
    assert guests.drops(1, 8) == FALSE
    assert guests.has(1)
    assert guests.adds(1, 8) == OK
    assert guests.drops(1, 8) == OK
    assert guests.drops(1, 8) == FALSE
    assert guests.has(1)
    assert guests.drops(1, 7) == OK
    assert not guests.has(1)


def test_a_descriptor_that_is_used_again_is_another_connection() -> None:
    """What the last one held is taken back before."""
    guests = Guests(100, 10)
    assert guests.adds(1, 7, cookie=5) == OK
    assert guests.knows(7, 5)
    assert not guests.knows(7, 6)
    assert not guests.knows(-1, 6)
    assert guests.leaves(7) == [1]
    assert not guests.has(1)
    assert not guests.knows(7, 5)
    assert guests.drops(1, 7) == FALSE
    assert guests.adds(2, 7, cookie=6) == OK
    assert guests.knows(7, 6)


def test_one_connection_leaves_room_for_the_others() -> None:
    """Its own bound comes first; what is asked for beyond it is not remembered."""
    guests = Guests(100, 10)
    assert [guests.adds(key, 7) for key in range(1, 13)] == [OK] * 10 + [OVER] * 2
    assert not guests.has(11)
    assert guests.adds(50, 8) == OK
    assert guests.drops(1, 7) == OK
    assert guests.adds(11, 7) == OK


def test_who_asks_for_the_same_without_end_has_to_go() -> None:
    """Each time costs a message."""
    guests = Guests(100, 10)
    assert [guests.adds(1, 7) for _ in range(12)] == [OK] * 11 + [OVER]
    assert guests.count == 1


def test_a_child_with_many_connections_is_one_child() -> None:
    """Its name counts: twice what one connection may, for one may end while the next begins."""
    guests = Guests(100, 10)
    assert [guests.adds(key, key, b"ill") for key in range(1, 22)] == [OK] * 20 + [OVER]
    assert guests.adds(50, 50, b"edge") == OK
    assert guests.held(0, b"ill") == 20


def test_when_all_is_taken_who_holds_most_pays() -> None:
    """Not the next who comes; its connections are cut once."""
    guests = Guests(16, 10)
    for key in range(1, 11):
        assert guests.adds(key, 4 + key % 2, b"ill") == OK
    for key in range(11, 17):
        assert guests.adds(key, 7, b"edge") == OK
    assert guests.adds(17, 8, b"late") == FULL
    assert guests.most() == (b"ill", [4, 5])
    assert guests.most() == (b"ill", [])
    assert sorted(guests.leaves(4) + guests.leaves(5)) == list(range(1, 11))
    assert guests.adds(18, 8, b"late") == OK


def test_of_too_many_connections_of_a_child_to_one_port_the_oldest_goes() -> None:
    """Of a name, and of one port; who has ended does not count; without a name nobody goes."""
    guests = Guests(100, 10)
    first = 500  # the order in which they came counts, not the number
    fds = [first, *range(20, 20 + Guests.CROWD - 1)]
    assert [guests.crowds(fd, b"ill") for fd in fds] == [-1] * Guests.CROWD
    assert [guests.crowds(fd, b"ill", Guests.ASKS) for fd in range(40, 45)] == [-1] * 5
    assert [guests.crowds(fd, b"edge") for fd in range(50, 55)] == [-1] * 5
    assert guests.crowds(60, b"ill") == first
    guests.leaves(first)
    assert guests.crowds(60, b"ill") == -1
    assert [guests.crowds(fd) for fd in range(100, 130)] == [-1] * 30


def test_a_cut_that_comes_late_does_not_hit_the_newcomer() -> None:
    """Its descriptor and port are those of the one that has gone, its cookie is not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0] as accepted:
            gone = Guests.cookie(accepted.fileno(), port)
        with socket.create_connection(("127.0.0.1", port)) as theirs, server.accept()[0] as ours:
            fd, guests = ours.fileno(), Guests(10, 10)
            here = Guests.cookie(fd, port)
            assert here not in (0, gone)
            assert not guests.cut(fd, port, gone)
            assert not guests.cut(fd, port, 0)
            theirs.sendall(b"x")
            assert ours.recv(1) == b"x"
            assert guests.cut(fd, port, here)
            assert theirs.recv(1) == b""


def test_the_memory_that_is_told_is_what_the_tables_take() -> None:
    """In the bounds of docs/wire.md: for a topic, and for all connections and names."""
    told = re.search(
        r"subscriptions_max × (\d+) B, at most a seventh more, \+ ([\d.]+) MiB",
        WIRE.read_text("utf-8"),
    )
    assert told is not None
    assert int(told[1]) == Guests.TOPIC_BYTES
    assert float(told[2]) == round((Guests.TABLES_BYTES + Fair.TABLE_BYTES) / 2**20, 1)
