"""How much of the answers goes to which child: all of it, and to each its part when all want it."""

from __future__ import annotations

from relay._probe_guests import Fair

TURN_US = 2000
ANSWER = 1 << 20  # a child may ask for so much with one small request


def served(asks: dict[int, float], seconds: float) -> tuple[dict[int, int], dict[int, int]]:
    """(bytes, refusals) of each child that asks so often in a turn; the first asks first.

    Before, it was quiet: a whole burst is left.
    """
    fair = Fair()
    bytes_of, refused = dict.fromkeys(asks, 0), dict.fromkeys(asks, 0)
    for turn in range(1, int(seconds * 1e6 / TURN_US)):
        fair.grow(3_600_000_000 + turn * TURN_US)
        for child, often in asks.items():
            for _ in range(int(often) if often >= 1 else turn % int(1 / often) == 0):
                if fair.may(child):
                    fair.take(child, ANSWER)
                    bytes_of[child] += ANSWER
                else:
                    refused[child] += 1
    return bytes_of, refused


def test_one_child_alone_gets_all_there_is() -> None:
    """Nothing is kept back for others who do not ask."""
    bytes_of, _ = served({1: 4}, 4.0)
    assert bytes_of[1] >= 3.9 * Fair.RATE


def test_who_asks_without_end_leaves_a_modest_child_all_that_it_asks_for() -> None:
    """A tenth of the rate, beside one that asks a thousand times as often; and it gets the rest."""
    bytes_of, refused = served({1: 50, 2: 1 / 20}, 4.0)
    assert refused[2] == 0
    assert bytes_of[2] >= 90 * ANSWER
    assert sum(bytes_of.values()) >= 3.8 * Fair.RATE


def test_those_who_want_more_than_there_is_get_equal_parts() -> None:
    """However often each of them asks."""
    bytes_of, _ = served({1: 50, 2: 2, 3: 10}, 8.0)
    assert max(bytes_of.values()) <= 1.3 * min(bytes_of.values())
    assert sum(bytes_of.values()) >= 7.6 * Fair.RATE


def test_a_quiet_time_saves_up_no_more_than_a_burst() -> None:
    """And what was more than was left is paid back first."""
    fair = Fair()
    fair.grow(3_600_000_000)
    assert fair.left == Fair.BURST
    assert fair.may(1)
    fair.take(1, Fair.BURST + 1_000_000)
    assert not fair.may(2)
    fair.grow(3_600_000_000 + 1_000_000 * 1_000_000 // Fair.RATE + 1000)
    assert fair.may(2)
