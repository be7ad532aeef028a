"""Parents that are about to stop: who is heard beside them, and when they are left."""

from __future__ import annotations

from relay._probe_backbone import Hop
from test_parents import EPOCH, MS, T, acts, live


def test_a_parent_that_is_about_to_stop_is_left_once_another_feeds() -> None:
    """Both are heard meanwhile, so nothing waits for the switch."""
    hop = live()
    hop.peer(0, drains=True)
    assert acts(hop, T) == ["subscribe 1"]
    hop.fed(0, 201, T + 20 * MS)
    hop.fed(1, 201, T + 30 * MS)
    hop.look(head=201)
    assert acts(hop, T + 69 * MS) == []
    assert hop.feeding == 0
    assert acts(hop, T + 70 * MS) == ["leave 0"]
    assert (hop.feeding, hop.state["switches"]) == (1, 1)


def test_when_all_are_about_to_stop_nobody_is_left_for_another() -> None:
    """Until one is gone."""
    hop = live()
    for parent in (0, 1):
        hop.peer(parent, drains=True)
    acts(hop, T)
    hop.fed(1, 201, T + 10 * MS)
    acts(hop, T + 300 * MS)
    assert hop.feeding == 0
    hop.lost(0, T + 300 * MS)
    acts(hop, T + 300 * MS)
    assert hop.feeding == 1


def test_of_two_that_fit_the_one_that_stays_is_chosen() -> None:
    """Whatever its path and its name."""
    hop = Hop(parents=2)
    hop.lists(1, hops=3)
    hop.peer(0, drains=True)
    for parent in (0, 1):
        hop.told(EPOCH, parent=parent)
    assert acts(hop, T)[0] == "subscribe 1"
