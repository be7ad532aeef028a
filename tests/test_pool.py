"""What is held for whom: charged to the child, where nobody can aim at another's place."""

from __future__ import annotations

from relay._probe_guests import Shares


def test_answers_count_for_the_child_until_they_have_left() -> None:
    """One about a key at a time; another child is not touched."""
    shares = Shares()
    assert shares.answers(1, 100, 5000)
    assert not shares.answers(1, 100, 5000)
    assert shares.answers(1, 101, 7000)
    assert shares.answers(2, 100, 5000)
    assert (shares.held(1), shares.held(2)) == (12000, 5000)
    shares.leaves(0)
    assert shares.held(1) == 7000
    assert shares.answers(1, 100, 5000)


def test_a_child_with_many_small_answers_leaves_places_to_the_others() -> None:
    """Its bytes are far below its share; others find theirs at once."""
    shares = Shares()
    begun = sum(shares.answers(1, key << 1, 1024) for key in range(4000))
    assert begun == Shares.RUNS_MAX
    assert all(shares.answers(child, 7, 1024) for child in range(2, 60))
    shares.leaves(0)
    assert shares.answers(1, 1, 1024)


def test_nobody_outside_can_tell_whose_places_are_the_same() -> None:
    """Children choose keys and routing ids: of two processes no two agree on what collides."""
    first, second = Shares(), Shares()
    together = [key for key in range(4000) if first.place(1, key) == first.place(2, 7)]
    assert 0 < len(together) < 40
    assert [key for key in together if second.place(1, key) == second.place(2, 7)] != together


def test_children_are_spread_over_all_places() -> None:
    """So that many of them find room: no set is crowded."""
    shares = Shares()
    counts = [0] * 512
    for child in range(4096):
        counts[shares.place(child, 0)] += 1
    assert max(counts) < 30
