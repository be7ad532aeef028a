"""Who holds how many topics: exact, whatever the order of coming and going."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from relay._probe_backbone import Guests

OK, OVER, FULL = 0, -1, -2
STEPS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 40) | st.sampled_from([32, 64, 96]), st.integers(3, 6)),
    max_size=200,
)


@given(STEPS)
def test_counts_are_those_of_a_plain_model(steps: list[tuple[bool, int, int]]) -> None:
    """A dictionary of owners says the same after every step; keys that collide included."""
    guests, owners = Guests(12, 4), dict[int, int]()
    for adds, key, fd in steps:
        held = list(owners.values())
        if not adds:
            guests.drops(key)
            owners.pop(key, None)
        elif key == 0 or held.count(fd) >= 4:
            assert guests.adds(key, fd) == OVER
        elif key in owners:
            assert guests.adds(key, fd) == OK
        elif len(owners) >= 12:
            assert guests.adds(key, fd) == FULL
        else:
            assert guests.adds(key, fd) == OK
            owners[key] = fd
        assert guests.count == len(owners)
        for one in range(3, 7):
            assert guests.held(one) == list(owners.values()).count(one)


def test_one_connection_leaves_room_for_the_others() -> None:
    """Its own bound comes first."""
    guests = Guests(100, 10)
    assert [guests.adds(key, 7) for key in range(1, 13)] == [OK] * 10 + [OVER] * 2
    assert guests.adds(50, 8) == OK
    guests.drops(1)
    assert guests.adds(11, 7) == OK
