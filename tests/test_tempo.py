"""The tempo: a shard's pace follows its load, quickly up, slowly back, and comes to rest.

Rules of this room
  1. Time and costs are numbers: a turn takes what its servings cost, nothing sleeps.
  2. Wheel and tempo are the ones that are shipped, joined here as a shard joins them.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe import Tempo, Wheel

pytestmark = pytest.mark.core

FLOOR_US, CEILING_US = 100_000, 1_000_000
SLOT_US = 10_000
TARGET, LOW, HIGH = 500, 400, 600
HOUSE_MAX = 40_000


@dataclass
class Change:
    """One change of the pace."""

    at_us: int
    pace_us: int


@dataclass
class House:
    """A shard and its listeners, where serving one costs a fixed time."""

    listeners: int
    visit_us: float
    floor_us: int = FLOOR_US
    ceiling_us: int = CEILING_US
    start_us: int = 0
    fixed: float = 0.0  # of a core, for those whose pace does not follow
    noise: float = 0.0
    now_us: float = 0
    last_us: float = 0
    moved: int = 0
    behind_us: int = 0
    changes: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tempo = Tempo(self.floor_us, self.ceiling_us)
        if self.start_us:
            self.tempo.pace_us = self.start_us
        self.wheel = Wheel(HOUSE_MAX)
        if self.listeners:
            self.wheel.join_many(0, self.listeners, self.tempo.pace_us)
        self.random = random.Random(self.listeners)

    def turn(self, *, joins: int = 0, join_us: float = 50) -> None:
        """Serve who is due, let some in, and wait for the next ones."""
        fixed_us = int((self.now_us - self.last_us) * self.fixed)
        self.last_us = self.now_us
        served, moved, behind_us = self.wheel.serve(int(self.now_us), self.tempo.pace_us)
        serve_us = served * self.visit_us * (1 + self.random.uniform(-1, 1) * self.noise)
        if joins:
            self.wheel.join_many(self.listeners, joins, self.tempo.pace_us)
            self.listeners += joins
        self.moved += moved
        self.behind_us += behind_us
        self.now_us += serve_us + fixed_us + joins * join_us
        now_us = int(self.now_us)
        if self.tempo.turn(
            self.listeners, now_us, int(serve_us), int(joins * join_us), behind_us, fixed_us
        ):
            self.changes.append(Change(now_us, self.tempo.pace_us))
        self.now_us += max(self.wheel.next_us(now_us, 100_000), 1)

    def run(self, seconds: float) -> House:
        """Let so much time pass."""
        until = self.now_us + seconds * 1e6
        while self.now_us < until:
            self.turn()
        return self

    def storm(self, joins: int, seconds: float) -> None:
        """Let so many join, evenly over this time or as fast as it goes."""
        begin, came = self.now_us, 0
        while came < joins:
            due = min(joins, int((self.now_us - begin) / (seconds * 1e6) * joins) + 1)
            bite = min(due - came, 100)
            self.turn(joins=bite)
            came += bite

    @property
    def share(self) -> float:
        """The busy share that this pace makes, in permille."""
        return self.listeners * self.visit_us / self.tempo.pace_us * 1000

    def rests(self) -> bool:
        """Whether the pace is one to stay at."""
        pace_us, share = self.tempo.pace_us, self.share
        if share > HIGH * 1.03:
            return bool(pace_us == self.ceiling_us)
        if share < LOW * 0.97:  # and a slot less would be too much
            coarse = share * pace_us / max(pace_us - SLOT_US, SLOT_US / 2) > TARGET * 0.97
            return bool(pace_us == self.floor_us or coarse)
        return True


# --- where it comes to rest -----------------------------------------------------------------------


def test_five_hundred_listeners_stay_at_the_floor() -> None:
    """A small audience hears with little lag, and nothing ever changes."""
    house = House(500, 10).run(60)
    assert (house.tempo.pace_us, house.changes, house.moved) == (FLOOR_US, [], 0)


def test_a_full_house_settles_between_floor_and_ceiling() -> None:
    """15,000 at 10 µs: half a core, a few steps up and none back, then rest for minutes."""
    house = House(15_000, 10).run(12)
    assert LOW <= house.share <= HIGH
    assert FLOOR_US < house.tempo.pace_us < CEILING_US
    assert len(house.changes) <= 5
    paces = [change.pace_us for change in house.changes]
    assert paces == sorted(paces), "no step is taken back"
    before = len(house.changes)
    behind_us = house.behind_us
    house.run(60)
    assert len(house.changes) == before
    assert house.behind_us == behind_us, "nothing is late any more"


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 8000),
    st.floats(0.5, 5000),
    st.sampled_from([(100_000, 1_000_000), (10_000, 1_000_000), (50_000, 300_000), (70_000,) * 2]),
    st.floats(0, 1),
)
def test_it_converges_from_any_start_for_any_cost(
    listeners: int, visit_us: float, bounds: tuple[int, int], start: float
) -> None:
    """To the band, the floor, the ceiling, or the last slot before it would be too much."""
    floor_us, ceiling_us = bounds
    visit_us = min(visit_us, 3e6 / listeners)  # at most three times what the ceiling can hold
    start_us = round(floor_us + start * (ceiling_us - floor_us))
    house = House(listeners, visit_us, floor_us, ceiling_us, start_us).run(150)
    assert house.rests(), (house.tempo.pace_us, house.share)
    before = len(house.changes)
    house.run(20)
    assert len(house.changes) == before, "and stays there"
    assert floor_us <= house.tempo.pace_us <= ceiling_us


def test_it_comes_back_slowly() -> None:
    """From the ceiling with a few left: small steps, each after seconds of calm, to the floor."""
    house = House(1000, 10, start_us=CEILING_US).run(80)
    assert house.tempo.pace_us == FLOOR_US
    for one, next_ in itertools.pairwise(house.changes):
        assert next_.at_us - one.at_us >= 2_000_000
        assert next_.pace_us >= one.pace_us * 0.85 - SLOT_US


def test_an_empty_shard_goes_to_the_floor_at_once() -> None:
    """Nobody is there to be disturbed."""
    tempo = Tempo(FLOOR_US, CEILING_US)
    tempo.pace_us = CEILING_US
    assert tempo.turn(0, 10_000, 0)
    assert tempo.pace_us == FLOOR_US
    assert not tempo.turn(0, 20_000, 0)


def test_a_load_that_trembles_does_not_move_it() -> None:
    """Costs that vary by 40 % from turn to turn: once it has settled, one change at most."""
    house = House(12_000, 10, noise=0.4).run(15)
    before = len(house.changes)
    house.run(120)
    assert len(house.changes) - before <= 1


def test_a_load_that_swings_slowly_is_followed_without_hunting() -> None:
    """The cost doubles and halves each minute: a few steps each way, never up and down at once."""
    house = House(8000, 8)
    for visit_us in (8, 16, 8, 16):
        house.visit_us = visit_us
        begin = len(house.changes)
        house.run(60)
        assert house.rests()
        steps = [change.pace_us for change in house.changes[begin:]]
        assert steps in (sorted(steps), sorted(steps, reverse=True))


# --- beside mounts with a pace of their own -------------------------------------------------------


def test_a_heavy_fixed_mount_beside_it_moves_nobody() -> None:
    """60 % of a core that no pace can change, and 500 who follow: slowing them would gain 5 %."""
    house = House(500, 10, fixed=0.6).run(60)
    assert (house.tempo.pace_us, house.changes, house.moved) == (FLOOR_US, [], 0)


def test_a_fixed_load_takes_its_part_of_the_target() -> None:
    """30 % that cannot change: those who follow come to rest where all is half a core."""
    house = House(5000, 10, fixed=0.3).run(30)
    assert LOW <= house.share + 300 <= HIGH
    before = len(house.changes)
    house.run(60)
    assert len(house.changes) == before, "and stay there"
    assert house.tempo.share(house.listeners, house.tempo.pace_us) == pytest.approx(
        house.share + 300, abs=30
    )


@pytest.mark.parametrize("fixed", [0.45, 0.6, 0.75])
def test_those_who_follow_have_a_part_to_themselves(fixed: float) -> None:
    """However much the others need: a crowd of followers gives way to a tenth, and no further."""
    house = House(5000, 10, fixed=fixed).run(60)
    assert 75 <= house.share <= 155
    assert house.tempo.pace_us < CEILING_US


def test_it_comes_back_once_the_fixed_load_is_gone() -> None:
    """What the others needed is no memory."""
    house = House(2500, 10, fixed=0.6).run(20)
    assert house.tempo.pace_us > 150_000
    house.fixed = 0.0
    assert house.run(60).tempo.pace_us == FLOOR_US


def test_who_is_held_at_a_bound_of_his_mount_does_not_follow() -> None:
    """A fixed pace never does; a mount's range only while the pace is in it."""
    tempo = Tempo(FLOOR_US, CEILING_US)
    tempo.pace_us = 400_000
    assert tempo.is_followed(100_000, 1_000_000)
    assert tempo.is_followed(400_000, 500_000)
    assert not tempo.is_followed(100_000, 300_000)
    assert not tempo.is_followed(500_000, 900_000)
    assert not tempo.is_followed(400_000, 400_000)


@given(st.integers(0, 5_000), st.integers(0, 5_000))
def test_the_marks_keep_their_order_whatever_the_rest_takes(fixed: int, other: int) -> None:
    """Low, target, high, urgent: each leaves something, and more than the one before."""
    tempo = Tempo(FLOOR_US, CEILING_US)
    for turn in range(1, 40):
        tempo.turn(10, turn * 100_000, 10, other * 100, 0, fixed * 100)
    marks = [tempo.mark(share) for share in (LOW, TARGET, HIGH, 800)]
    assert marks == sorted(set(marks))
    assert marks[0] >= LOW // 5


# --- storms ---------------------------------------------------------------------------------------


def test_a_short_spike_moves_nobody() -> None:
    """A second of other work, as a storm of refusals makes it, changes no listener's pace."""
    house = House(5000, 7).run(10)
    for _ in range(100):
        served, _, behind_us = house.wheel.serve(int(house.now_us), house.tempo.pace_us)
        house.now_us += served * 7 + 6500
        house.tempo.turn(5000, int(house.now_us), served * 7, 6500, behind_us)
    house.run(10)
    assert (house.changes, house.moved) == ([], 0)


def test_other_work_that_lasts_counts() -> None:
    """A door that takes 40 % for half a minute: the pace makes room for it."""
    house = House(5000, 7)
    end = 30e6
    while house.now_us < end:
        served, _, behind_us = house.wheel.serve(int(house.now_us), house.tempo.pace_us)
        house.now_us += served * 7 + 4000
        house.tempo.turn(5000, int(house.now_us), served * 7, 4000, behind_us)
        house.now_us += house.wheel.next_us(int(house.now_us), 100_000)
    assert house.tempo.pace_us > FLOOR_US


def test_a_storm_of_joins_is_foreseen() -> None:
    """10,000 within 1 s onto 5,000: the pace rises while they come, before serving falls behind."""
    house = House(5000, 8).run(5)
    begin = house.now_us
    house.storm(10_000, 1.0)
    assert house.changes[0].at_us - begin < 1_000_000
    house.run(20)
    assert house.rests()
    assert house.behind_us <= 500_000


def test_a_storm_into_an_empty_house_is_foreseen() -> None:
    """What one listener will cost is not known yet; the usual cost is assumed."""
    house = House(0, 9)
    house.storm(15_000, 0.5)
    assert house.tempo.pace_us > FLOOR_US
    house.run(20)
    assert house.rests()


def test_ten_listeners_say_little_about_ten_thousand() -> None:
    """The first few cost more each, one in a turn: no crowd is judged by that."""
    house = House(10, 40).run(5)
    assert house.tempo.share(10, FLOOR_US) in (3, 4)
    assert 900 <= house.tempo.share(10_000, FLOOR_US) <= 1100


# --- what it is made of ---------------------------------------------------------------------------


def test_an_overload_is_measured_by_what_was_put_off() -> None:
    """A shard that is busy all the time needs more than all of it: how much, tells the schedule."""
    tempo = Tempo(FLOOR_US, CEILING_US)
    for turn in range(1, 100):  # busy throughout; half of the time the schedule stood still
        if tempo.turn(5000, turn * 10_000, 10_000, 0, 5_000):
            break
    assert tempo.pace_us > FLOOR_US
    # 2 × 100 ms for 5,000 is 40 µs each; half of that was measured, half assumed
    assert 20_000 <= tempo.told()["visit_ns"] <= 26_000


def test_a_standstill_is_no_load() -> None:
    """A machine that slept for 10 s has not worked for 10 s."""
    tempo = Tempo(FLOOR_US, CEILING_US)
    now_us = 0
    for _ in range(30):
        now_us += 10_000
        tempo.turn(500, now_us, 500)
    now_us += 10_000_000
    tempo.turn(500, now_us, 500, 0, 10_000_000)
    for _ in range(300):
        now_us += 10_000
        tempo.turn(500, now_us, 500)
    assert tempo.pace_us == FLOOR_US


@pytest.mark.parametrize(
    ("floor_us", "ceiling_us", "pace_us"),
    [(100_000, 1_000_000, 400_000), (500_000, 900_000, 500_000), (20_000, 50_000, 50_000),
     (200_000, 200_000, 200_000)],
)  # fmt: skip
def test_each_mount_has_bounds_of_its_own(floor_us: int, ceiling_us: int, pace_us: int) -> None:
    """The shard's pace is held within them; a fixed pace is both bounds."""
    tempo = Tempo(20_000, CEILING_US)
    tempo.pace_us = 400_000
    assert tempo.clamped_us(floor_us, ceiling_us) == pace_us


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 24)), max_size=60))
def test_no_cost_throws_it_out_of_its_bounds(turns: list[tuple[int, int]]) -> None:
    """Whatever is measured, the pace stays between floor and ceiling, in whole slots."""
    tempo = Tempo(FLOOR_US, CEILING_US)
    now_us = 0
    for listeners, cost_us in turns:
        now_us += cost_us + 1
        tempo.turn(listeners, now_us, cost_us, cost_us // 3, cost_us // 2)
        assert FLOOR_US <= tempo.pace_us <= CEILING_US
        assert tempo.pace_us % SLOT_US == 0
