"""Which stream a mount's listeners hear: the decision on a fake clock.

Rules of this room
  1. Each sight is what the engine would see; time is the test's.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe_listener import Fallback, format_key

AFTER_US = 3_000_000
MP3, OGG = 11, 22


class House:
    """One mount and its chain; each stream is live (moves at each look), stuck or gone."""

    def __init__(self, chain: int) -> None:
        self.fallback = Fallback(chain, AFTER_US)
        self.now_us = 10_000_000
        self.live = [False] * (chain + 1)
        self.told: list[dict[str, Any]] = [
            {"format": MP3, "epoch": 1, "position": 0, "listeners": 0} for _ in self.live
        ]

    def run(self, seconds: float) -> dict[str, Any]:
        """Look every 20 ms for so long; the last decision."""
        for _ in range(round(seconds * 50)):
            self.now_us += 20_000
            for told, live in zip(self.told, self.live, strict=True):
                if live:
                    told |= {"open": True, "begins": True, "position": told["position"] + 400}
            last: dict[str, Any] = self.fallback.step(self.now_us, *self.told)
        return last

    def lose(self, member: int, *, ended: bool = False) -> None:
        """It sends nothing more; `ended`: and is known to have left."""
        self.live[member] = False
        self.told[member]["open"] = not ended

    def come(self, member: int) -> None:
        """A new epoch of it."""
        self.live[member] = True
        self.told[member]["epoch"] += 1


@pytest.mark.parametrize("ended", [True, False])
def test_listeners_go_over_when_their_stream_has_been_silent_for_long_enough(ended: bool) -> None:
    """Whether its source left or only says nothing; and they come back with its first frame."""
    house = House(1)
    house.live = [True, True]
    assert house.run(1.0)["at"] == 0
    house.lose(0, ended=ended)
    assert house.run(2.98)["at"] == 0
    over = house.run(0.06)
    assert over["at"] == 1
    assert over["heard"]
    house.come(0)
    back = house.run(0.02)
    assert (back["at"], back["changed"], back["heard"]) == (0, True, False)


def test_a_newcomer_to_a_mount_whose_source_left_goes_to_the_fallback_at_once() -> None:
    """Who has heard nothing is not kept waiting for the silence to be long enough."""
    house = House(1)
    house.live = [True, True]
    assert house.run(1.0)["best"] == 0
    house.lose(0, ended=True)
    soon = house.run(0.02)
    assert (soon["at"], soon["best"]) == (0, 1)


def test_the_first_of_a_chain_that_has_audio_is_heard() -> None:
    """Down the chain as each falls silent, and up again as soon as one before returns."""
    house = House(3)
    house.live = [True, True, False, True]
    house.run(1.0)
    house.lose(0)
    assert house.run(3.1)["at"] == 1
    house.lose(1, ended=True)
    assert house.run(3.1)["at"] == 3
    house.come(2)
    assert house.run(0.02)["at"] == 2
    house.come(0)
    assert house.run(0.02)["at"] == 0


@pytest.mark.parametrize("anew", [True, False], ids=["new epochs", "the same epochs"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_whatever_returns_first_the_first_of_the_chain_that_is_there_is_heard(
    order: tuple[int, ...], anew: bool
) -> None:
    """Down to the last; then the others return in each order. None that comes later in the chain
    takes anybody away again."""
    house = House(3)
    house.live = [True] * 4
    house.run(1.0)
    for member in range(3):
        house.lose(member, ended=anew)
        assert house.run(3.1)["at"] == member + 1
    best = 3
    for member in order:
        if anew:
            house.come(member)
        house.live[member] = True
        best = min(best, member)
        assert house.run(0.02)["at"] == best
        assert house.run(4.0)["at"] == best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=25))
def test_at_rest_the_first_of_the_chain_that_is_there_is_heard(
    events: list[tuple[int, bool]],
) -> None:
    """Whoever came and went before; and while nobody is there, the one that was heard last."""
    house = House(3)
    at = 0
    for member, comes in events:
        if comes and not house.live[member]:
            house.come(member)
        elif not comes:
            house.lose(member)
        there = [number for number, live in enumerate(house.live) if live]
        at = there[0] if there else at
        assert house.run(3.1)["at"] == at


def test_nobody_is_moved_to_where_nothing_is_heard() -> None:
    """With all silent they stay where they are, and nothing is said to be heard."""
    house = House(2)
    house.live = [True, True, False]
    house.run(1.0)
    house.lose(0)
    assert house.run(3.1)["at"] == 1
    house.lose(1)
    last = house.run(5.0)
    assert (last["at"], last["heard"], last["best"]) == (1, False, None)


def test_a_chain_that_changes_is_decided_anew_and_the_mount_is_still_silent() -> None:
    """Who hears the old fallback goes to the new one as soon as that has audio, and not before;
    what is known of the mount itself holds."""
    house = House(2)
    house.live = [True, True, True]
    house.run(1.0)
    house.lose(0)
    assert house.run(3.1)["at"] == 1
    house.fallback.change(1, AFTER_US)
    house.live, house.told = [False, False], [house.told[0], {**house.told[2], "begins": False}]
    assert house.run(1.0)["at"] == 0, "no other can be entered yet"
    house.come(1)
    over = house.run(0.02)
    assert (over["at"], over["heard"], over["unfit"]) == (1, True, [0, 0])
    house.fallback.change(0, AFTER_US)
    house.live, house.told = house.live[:1], house.told[:1]
    gone = house.run(1.0)
    assert (gone["at"], gone["best"], gone["heard"], gone["wanted"]) == (0, None, False, [])
    house.come(0)
    assert house.run(0.02)["best"] == 0


def test_another_format_or_the_same_serial_does_not_fit() -> None:
    """The listeners stay where they are, and it is told why."""
    house = House(2)
    house.live = [True, True, True]
    house.told[1]["format"] = OGG
    house.told[0]["serial"] = house.told[2]["serial"] = 77
    house.run(1.0)
    house.lose(0)
    last = house.run(4.0)
    assert last["at"] == 0
    assert last["unfit"] == [0, 1, 2]
    house.told[2]["serial"] = 78
    assert house.run(0.02)["at"] == 2


def test_another_codec_rate_or_channel_count_does_not_fit() -> None:
    """As the mount last had them, also when nothing of it is left; who does not tell fits."""
    house = House(3)
    house.live = [True, True, True, True]
    for member, sound in enumerate((5, 6, 0, 5)):
        house.told[member]["sound"] = sound
    house.run(1.0)
    house.lose(0, ended=True)
    house.told[0]["sound"] = 0
    last = house.run(4.0)
    assert (last["at"], last["unfit"]) == (2, [0, 3, 0, 0])
    house.told[2]["sound"] = 7
    house.lose(2, ended=True)
    assert house.run(4.0)["at"] == 3


def test_upstream_is_asked_for_a_fallback_only_while_somebody_needs_it() -> None:
    """Up to the first that can be heard; none while the mount is heard, or nobody listens."""
    house = House(3)
    house.live[0] = True
    house.told[0]["listeners"] = 2
    assert house.run(1.0)["wanted"] == []
    house.lose(0)
    assert house.run(3.1)["wanted"] == [1, 2, 3]
    house.come(2)
    assert house.run(0.1)["wanted"] == [1, 2]
    house.told[0]["listeners"] = 0
    assert house.run(0.1)["wanted"] == []


def test_a_stream_that_upstream_keeps_for_whoever_comes_is_not_silent() -> None:
    """An edge without listeners does not call it so; with them it counts from there."""
    house = House(1)
    house.live = [False, True]
    house.told[0] |= {"idle": True, "epoch": 0}
    idle = house.run(10.0)
    assert (idle["at"], idle["best"]) == (0, 0)
    house.told[0] |= {"idle": False, "listeners": 1}
    assert house.run(2.9)["at"] == 0
    assert house.run(0.2)["at"] == 1


SIGHT = st.fixed_dictionaries(
    {
        "open": st.booleans(),
        "begins": st.booleans(),
        "epoch": st.integers(0, 3),
        "position": st.integers(0, 3),
        "format": st.sampled_from([0, MP3, OGG]),
        "serial": st.integers(0, 2),
        "listeners": st.integers(0, 2),
    }
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4_000_000), SIGHT, SIGHT, SIGHT), max_size=30))
def test_no_sights_make_it_choose_what_cannot_be_heard(steps: list[Any]) -> None:
    """Whatever is seen: a change goes to an open stream that fits, and `best` is one, too."""
    fallback = Fallback(2, AFTER_US)
    now_us = 1
    for wait_us, *sights in steps:
        now_us += wait_us
        told = fallback.step(now_us, *sights)
        for member in {told["at"] if told["changed"] else 0, told["best"] or 0} - {0}:
            assert sights[member]["open"]
            assert sights[member]["begins"]
            assert sights[member]["format"] == sights[0]["format"] != 0
            assert told["unfit"][member] == 0
        assert not told["heard"] or told["at"] > 0
        assert 0 not in told["wanted"]


def test_the_format_is_the_content_type_whatever_its_case_and_what_follows() -> None:
    """The other header lines are no part of it."""
    one = format_key(b"Content-Type: audio/mpeg\r\nicy-name: a\r\n")
    assert one == format_key(b"content-type: AUDIO/mpeg\r\n")
    assert one != format_key(b"Content-Type: audio/ogg\r\n")
    assert format_key(b"") == 0
