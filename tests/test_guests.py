"""Who holds how many topics: exact, whatever the order of coming and going."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe_backbone import Guests

OK, OVER, FULL = 0, -1, -2
COUNT_MAX, EACH_MAX = 16, 4
ROOM = COUNT_MAX + COUNT_MAX // 8 + 1
STEPS = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(0, 40) | st.sampled_from([32, 64, 96]),
        st.integers(3, 9),
        st.sampled_from([b"", b"edge", b"ill"]),
    ),
    max_size=200,
)


@settings(deadline=None)
@given(STEPS)
def test_counts_are_those_of_a_plain_model(steps: list[tuple[bool, int, int, bytes]]) -> None:
    """A dictionary of owners says the same after every step; keys that collide included."""
    guests, owners = Guests(COUNT_MAX, EACH_MAX), dict[int, int | bytes]()
    for adds, key, fd, name in steps:
        who = name or fd
        over = list(owners.values()).count(who) >= EACH_MAX or key == 0
        if not adds:
            guests.drops(key)
            owners.pop(key, None)
        else:
            if key and key not in owners and len(owners) < ROOM:
                owners[key] = who
            full = FULL if len(owners) > COUNT_MAX else OK
            assert guests.adds(key, fd, name) == (OVER if over else full)
            assert guests.has(key) == (key in owners)
        assert guests.count == len(owners)
        for one in [*range(3, 10), b"edge", b"ill"]:
            held = guests.held(one) if isinstance(one, int) else guests.held(0, one)
            assert held == list(owners.values()).count(one)


def test_one_connection_leaves_room_for_the_others() -> None:
    """Its own bound comes first."""
    guests = Guests(100, 10)
    assert [guests.adds(key, 7) for key in range(1, 13)] == [OK] * 10 + [OVER] * 2
    assert guests.adds(50, 8) == OK
    for key in (1, 11, 12):
        guests.drops(key)
    assert guests.adds(11, 7) == OK


def test_a_child_with_many_connections_is_one_child() -> None:
    """Its name counts, not its descriptors."""
    guests = Guests(100, 10)
    assert [guests.adds(key, key, b"ill") for key in range(1, 12)] == [OK] * 10 + [OVER]
    assert guests.adds(50, 50, b"edge") == OK
    assert guests.held(0, b"ill") == 11


def test_when_all_is_taken_who_holds_most_pays() -> None:
    """Not the next who comes: what that one asks for is remembered all the same."""
    guests = Guests(16, 10)
    for key in range(1, 11):
        assert guests.adds(key, 4 + key % 2, b"ill") == OK
    for key in range(11, 17):
        assert guests.adds(key, 7, b"edge") == OK
    assert guests.adds(17, 8, b"late") == FULL
    assert guests.has(17)
    assert guests.most() == (b"ill", [4, 5])
    assert guests.most() == (b"ill", [])  # they are cut once
    for key in range(1, 11):
        guests.drops(key)
    assert guests.adds(18, 8, b"late") == OK


def test_what_was_refused_is_remembered_while_there_is_room() -> None:
    """XPUB tells of the first who wants a topic, so the next is not told of."""
    guests = Guests(16, 2)
    for key in range(1, 30):
        guests.adds(key, 3, b"ill")
    assert [guests.has(key) for key in (1, 2, 3, ROOM, ROOM + 1)] == [True] * 4 + [False]
