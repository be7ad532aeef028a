"""When a node wishes for a newer epoch than any that it is told of: stepped with a fake clock."""

from __future__ import annotations

from itertools import pairwise

from relay._probe_backbone import Hop

MS = 1000
T = 1_000_000
STILL = 1000 * MS + 3 * 20 * MS  # a second, and three frames


def shadowing(*, up: bool = True) -> Hop:
    """Parent 0 feeds epoch 5 up to frame 200; parent 1 has a source in epoch 3."""
    hop = Hop(2)
    hop.told(5, parent=0)
    hop.told(3, parent=1)
    hop.lists(1, up=up)
    assert hop.step(T)[0] == "subscribe"
    assert hop.step(T)[0] == "join"
    assert hop.here(5, 100, T)
    hop.look(head=200, base=100, held_us=20_000_000)
    hop.reaches(5, 200)
    hop.done(200, T)
    assert hop.wish(T) == (0, [])
    return hop


def test_after_a_second_of_silence_the_other_source_is_wished_above() -> None:
    """Only of the parent that has it: the source of the silent one may still come back."""
    hop = shadowing()
    assert hop.wish(T + STILL - 1) == (0, [])
    assert hop.wish(T + STILL) == (6, [1])


def test_it_is_said_again_less_and_less_often() -> None:
    """Half a second, one, two, four later, and then each four."""
    hop = shadowing()
    now, said = T, []
    while now < T + 17_000 * MS:
        now += 10 * MS
        if hop.wish(now)[0]:
            said.append((now - T) // MS)
    assert [b - a for a, b in pairwise(said)] == [500, 1000, 2000, 4000, 4000, 4000]


def test_as_long_as_frames_come_nothing_is_wished() -> None:
    """And a frame ends what had begun."""
    hop = shadowing()
    for step in range(1, 40):
        hop.look(head=200 + step)
        assert hop.wish(T + step * 500 * MS) == (0, [])
    last = T + 39 * 500 * MS
    assert hop.wish(last + STILL)[0] == 6


def test_a_parent_that_is_lost_or_has_no_source_is_not_asked() -> None:
    """Nor one of the same epoch: two origins of one push have one."""
    hop = shadowing()
    hop.lost(1, T)
    assert hop.wish(T + STILL) == (0, [])
    assert shadowing(up=False).wish(T + STILL) == (0, [])
    same = shadowing()
    same.told(5, parent=1)
    assert same.wish(T + STILL) == (0, [])


def test_who_stood_still_himself_waits_anew() -> None:
    """The silence was his own."""
    hop = shadowing()
    hop.restart(T + STILL)
    assert hop.wish(T + STILL) == (0, [])
    assert hop.wish(T + 2 * STILL) == (6, [1])


def test_what_nobody_wants_and_what_is_written_here_wishes_nothing() -> None:
    """For itself."""
    hop = Hop(2)
    hop.look(wanted=False)
    hop.told(5, parent=0)
    hop.told(3, parent=1)
    assert hop.step(T)[0] == "nothing"
    assert hop.wish(T) == hop.wish(T + 2 * STILL) == (0, [])
    mine = shadowing()
    mine.look(written_here=True)
    assert mine.wish(T + STILL) == (0, [])


def test_a_childs_wish_is_passed_on_at_once_but_seldom() -> None:
    """Whether this node wants the stream or not; what comes too soon is forgotten, so that two
    relays that name each other do not pass it to and fro."""
    hop = Hop(2)
    hop.look(wanted=False)
    hop.told(3, parent=1)
    hop.lists(0, lists=False)
    assert hop.wish(T, wished=6) == (6, [1])
    assert hop.wish(T + 299 * MS, wished=6) == (0, [])
    assert hop.wish(T + 300 * MS) == (0, [])
    assert hop.wish(T + 301 * MS, wished=6) == (6, [1])
    assert hop.wish(T + 700 * MS, wished=4) == (0, [])  # epoch 3 itself has fallen silent there
