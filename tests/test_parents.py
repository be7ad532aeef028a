"""Which upstreams feed a stream: chosen, left and taken back, stepped with a fake clock."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from relay._probe_backbone import Hop

MS = 1000
T = 1_000_000
S = 1_000_000
EPOCH = 5
FRAME_US = 20 * MS
RING = 1000  # frames that a parent keeps
BURST = 150


def acts(hop: Hop, now: int, most: int = 32) -> list[str]:
    """All that is to be done now; subscriptions and requests with the parent's place."""
    done = []
    for _ in range(most):
        what = hop.step(now)[0]
        if what == "nothing":
            return done
        done.append(f"{what} {hop.parent}" if hop.parent < 8 else what)
    raise AssertionError(f"no end: {done}")


def live(*, parents: int = 2, merge: bool = False, hops: tuple[int, ...] = (1, 1)) -> Hop:
    """A link that is joined: frames 100 to 200 are here."""
    hop = Hop(parents=parents, merge=merge)
    for parent, distance in enumerate(hops):
        hop.lists(parent, hops=distance)
    for parent in range(parents):
        hop.told(EPOCH, parent=parent)
    acts(hop, T)
    assert hop.here(EPOCH, 100, T)
    hop.look(head=200, base=100, held_us=20 * S)
    hop.done(200, T)
    return hop


# --- who is chosen -------------------------------------------------------------------------------


def test_standby_subscribes_at_one_and_merge_at_all() -> None:
    """The join is asked of one in both."""
    for merge, subscribed in ((False, [0]), (True, [0, 1])):
        hop = Hop(parents=2, merge=merge)
        hop.told(EPOCH, parent=0)
        hop.told(EPOCH, parent=1)
        told = acts(hop, T)
        assert told == [*(f"subscribe {i}" for i in subscribed), "join 0"]
        assert hop.subscribed == subscribed


@pytest.mark.parametrize(
    ("hops", "loads", "chosen"),
    [
        ((1, 1, 1), (0, 0, 0), 0),  # the name
        ((1, 1, 0), (0, 0, 900), 2),  # the path comes before the load
        ((1, 1, 1), (500, 90, 99), 1),  # the load before the name; a tenth is no difference
        ((16, 1, 1), (0, 0, 0), 1),  # too deep
    ],
)
def test_shortest_path_then_load_then_name(
    hops: tuple[int, ...], loads: tuple[int, ...], chosen: int
) -> None:
    """In this order."""
    hop = Hop(parents=3)
    for parent in range(3):
        hop.lists(parent, hops=hops[parent])
        hop.peer(parent, load=loads[parent])
        hop.told(EPOCH, parent=parent)
    assert acts(hop, T)[0] == f"subscribe {chosen}"
    assert hop.feeding == chosen


def test_only_who_is_nearer_than_we_ever_said_to_be_feeds_us() -> None:
    """The rule against loops: a child that lists our own stream back to us is further."""
    hop = live(hops=(1, 2))
    assert hop.hops() == 2
    hop.announce(EPOCH, 2)
    hop.lost(0, T)
    assert acts(hop, T) == []
    assert hop.feeding == 0
    hop.told(EPOCH + 1, parent=1)  # a newer epoch, of which we have told nobody
    hop.back(1, T)
    acts(hop, T + 4 * S)
    assert hop.feeding == 1


def test_in_merge_the_announced_distance_is_that_of_the_furthest() -> None:
    """So that each of them stays nearer than what children were told."""
    assert live(merge=True, hops=(1, 3)).hops() == 4
    assert live(merge=False, hops=(1, 3)).hops() == 2


def test_a_distance_that_nobody_knows_is_not_nought() -> None:
    """Told as 0 it would be announced as ours, and no parent would ever be nearer."""
    hop = live()
    for parent in (0, 1):
        hop.lists(parent, lists=False)
    assert hop.hops() == 255


def test_a_parent_with_an_older_epoch_does_not_feed() -> None:
    """The highest epoch wins."""
    hop = Hop(parents=2)
    hop.told(EPOCH, parent=0)
    hop.told(EPOCH + 1, parent=1)
    assert acts(hop, T) == ["subscribe 1", "join 1"]


def test_a_newer_epoch_ends_one_that_lives_on_elsewhere() -> None:
    """Both are heard for its end; after twice the wait the old one is over without it."""
    hop = live()
    head, now, ends = 200, T, 0
    hop.told(EPOCH + 1, parent=1)
    while not ends and now < T + 10 * S:
        now += 20 * MS
        head += 1
        hop.look(head=head)  # parent 0 goes on and on
        for what in acts(hop, now):
            if what == "repair 0":
                hop.later(now)
            elif what == "repair 1":
                hop.gone(head + (1 << 32), now)
            elif what == "end":
                ends = now
    assert 2900 * MS <= ends - T <= 3100 * MS
    assert "join 1" in acts(hop, now) or hop.state["asked"] == "join"


# --- a parent dies -------------------------------------------------------------------------------


def test_a_lost_feeder_is_replaced_in_the_same_step() -> None:
    """Subscribe there, leave here; counted."""
    hop = live()
    hop.lost(0, T)
    assert acts(hop, T) == ["leave 0", "subscribe 1"]
    assert (hop.feeding, hop.state["switches"]) == (1, 1)


def test_a_feeder_that_no_longer_lists_the_stream_is_replaced() -> None:
    """It is up, but it has lost the stream."""
    hop = live()
    hop.lists(0, lists=False)
    assert acts(hop, T) == ["leave 0", "subscribe 1"]


def test_an_epoch_that_was_over_is_fed_by_the_parent_whose_source_has_come_back() -> None:
    """Both origins had lost it; the encoder returns to the second one alone, in the same epoch."""
    hop = live()
    for parent in (0, 1):
        hop.reaches(EPOCH, 200, end=True, parent=parent)
        hop.lists(parent, up=False, hops=1)
    assert "end" in acts(hop, T)
    assert acts(hop, T + S) == []
    assert hop.subscribed == [0]
    hop.lists(1, up=True, hops=1)
    assert sorted(acts(hop, T + 2 * S)) == ["leave 0", "subscribe 1"]
    assert hop.reaches(EPOCH, 210, parent=1)
    hop.resume(T + 2 * S)
    assert hop.feeding == 1


def test_a_restarted_parent_is_asked_again_for_what_was_gone() -> None:
    """Another process may have what the last had not."""
    hop = live()
    hop.look(head=200, hole_end=210)
    acts(hop, T)
    hop.gone(210, T)
    acts(hop, T)
    hop.later(T)
    assert acts(hop, T + MS) == []
    hop.back(0, T + MS, process=True)
    assert acts(hop, T + MS) == ["leave 1", "repair 0"]


def test_nothing_is_left_or_given_up_while_all_are_lost() -> None:
    """Whoever comes back first goes on."""
    hop = live()
    hop.look(head=200, hole_end=210)
    hop.lost(0, T)
    hop.lost(1, T)
    assert acts(hop, T + 30 * S) == []
    hop.back(1, T + 30 * S, process=True)
    assert acts(hop, T + 30 * S) == ["leave 0", "subscribe 1", "repair 1"]


def test_a_silent_stream_is_heard_everywhere_until_somebody_brings_news() -> None:
    """Its feeder sends beacons, but no frame: the other becomes the feeder."""
    hop = live()
    acts(hop, T)
    assert acts(hop, T + 459 * MS) == []
    assert acts(hop, T + 461 * MS) == ["subscribe 1"]
    hop.look(head=220)
    hop.fed(1, 220, T + 480 * MS)
    assert acts(hop, T + 600 * MS) == []  # the first may wake up yet
    hop.look(head=225)
    assert acts(hop, T + 680 * MS) == ["leave 0"]
    assert (hop.feeding, hop.state["switches"]) == (1, 1)


def test_a_source_that_pauses_moves_nobody() -> None:
    """Both parents are silent, then both speak: the feeder stays."""
    hop = live()
    acts(hop, T)
    assert acts(hop, T + 500 * MS) == ["subscribe 1"]
    hop.look(head=201)
    hop.fed(1, 201, T + 5 * S)
    hop.fed(0, 201, T + 5 * S + 10 * MS)
    assert acts(hop, T + 5 * S + 20 * MS) == ["leave 1"]
    assert (hop.feeding, hop.state["switches"]) == (0, 0)


def test_what_a_frozen_parent_had_queued_is_no_news() -> None:
    """It wakes up and sends what everybody has."""
    hop = live()
    acts(hop, T)
    acts(hop, T + 500 * MS)
    hop.fed(0, 200, T + 600 * MS)
    hop.fed(1, 230, T + 600 * MS)
    hop.look(head=230)
    acts(hop, T + 900 * MS)
    assert hop.feeding == 1


def test_a_join_that_is_not_answered_is_asked_of_the_other() -> None:
    """After the silence; who answers first feeds."""
    hop = Hop(parents=2)
    hop.told(EPOCH, parent=0)
    hop.told(EPOCH, parent=1)
    assert acts(hop, T) == ["subscribe 0", "join 0"]
    assert acts(hop, T + 400 * MS) == ["subscribe 1"]
    assert acts(hop, T + 500 * MS) == ["join 0"]
    hop.later(T + 500 * MS)
    assert acts(hop, T + 500 * MS) == ["join 1"]
    assert hop.here(EPOCH, 100, T + 510 * MS)
    assert hop.feeding == 1


# --- holes ---------------------------------------------------------------------------------------


def test_gone_at_one_is_asked_of_the_other_before_it_is_lost() -> None:
    """It is subscribed for that, and left again."""
    hop = live()
    hop.look(head=200, hole_end=210)
    assert acts(hop, T) == ["repair 0"]
    hop.gone(210, T)
    assert acts(hop, T) == ["subscribe 1", "repair 1"]
    hop.look(head=215)
    hop.done(210, T + MS)
    assert acts(hop, T + MS) == ["leave 1"]


def test_gone_at_both_is_lost_at_once() -> None:
    """There is nobody left to ask."""
    hop = live()
    hop.look(head=200, hole_end=210)
    acts(hop, T)
    hop.gone(210, T)
    acts(hop, T)
    hop.gone(210, T)
    assert hop.step(T) == ("give up", 200, 210, 0)
    assert hop.cause == 0


def test_a_parent_that_is_still_fetching_keeps_the_hole_open() -> None:
    """One says gone, the other later: not lost before the wait is over."""
    hop = live()
    hop.look(head=200, hole_end=210)
    acts(hop, T)
    hop.gone(210, T)
    now = T
    while now < T + 1400 * MS:
        for what in acts(hop, now):
            assert what in ("subscribe 1", "repair 1")
            if what == "repair 1":
                hop.later(now)
        now += 10 * MS


def test_in_merge_a_hole_waits_20_ms_for_the_other_copy() -> None:
    """Most holes of one parent are filled by the other unasked."""
    hop = live(merge=True)
    hop.look(head=200, hole_end=210)
    assert acts(hop, T) == []
    assert acts(hop, T + 20 * MS) == ["repair 0"]


# --- a better one returns ------------------------------------------------------------------------


def back_after(salt: int) -> int:
    """When a better parent that has returned is tried, ms after its return."""
    hop = Hop(parents=2, salt=salt)
    hop.told(EPOCH, parent=0)
    hop.told(EPOCH, parent=1)
    hop.peer(0, up=False)
    acts(hop, T)
    hop.here(EPOCH, 100, T)
    hop.look(head=200, base=100, held_us=20 * S)
    hop.done(200, T)
    assert hop.feeding == 1
    hop.back(0, T)
    now, head = T, 200
    while now < T + 60 * S:
        now += 20 * MS
        head += 1
        hop.look(head=head)
        hop.fed(1, head, now)
        if "subscribe 0" in acts(hop, now):
            assert hop.feeding == 1  # it has to deliver first
            hop.fed(0, head + 1, now + MS)
            assert acts(hop, now + 20 * MS) == ["leave 1"]
            assert hop.feeding == 0
            return (now - T) // 1000
    raise AssertionError("never tried")


def test_a_better_parent_is_taken_back_gradually() -> None:
    """Between 5 and 25 s after its return, each child and stream at its own time."""
    times = sorted(back_after(salt * 7919) for salt in range(60))
    assert times[0] >= 5000
    assert times[-1] <= 25_100
    most_in_a_second = max(sum(t <= other < t + 1000 for other in times) for t in times)
    assert most_in_a_second <= 12


def test_a_better_parent_that_does_not_deliver_is_left_and_tried_seldom() -> None:
    """Each failure doubles the wait."""
    hop = Hop(parents=2)
    hop.told(EPOCH, parent=0)
    hop.told(EPOCH, parent=1)
    hop.peer(0, up=False)
    acts(hop, T)
    hop.here(EPOCH, 100, T)
    hop.look(head=200, base=100, held_us=20 * S)
    hop.done(200, T)
    hop.back(0, T)
    tries, now, head = [], T, 200
    while now < T + 200 * S:
        now += 20 * MS
        head += 1
        hop.look(head=head)
        hop.fed(1, head, now)
        if "subscribe 0" in acts(hop, now):
            tries.append(now)
    assert hop.feeding == 1
    assert 2 <= len(tries) <= 5
    assert tries[1] - tries[0] >= 10 * S


def test_two_loads_make_no_swing() -> None:
    """Neither nearly equal nor far apart: everybody stays where he is."""
    hop = live()
    hop.peer(0, load=450)
    hop.peer(1, load=200)
    head = 200
    for now in range(T, T + 60 * S, 20 * MS):
        head += 1
        hop.look(head=head)
        hop.fed(0, head, now)
        assert acts(hop, now) == []
    hop.peer(0, load=550)
    seen = []
    for now in range(T + 60 * S, T + 120 * S, 20 * MS):
        head += 1
        hop.look(head=head)
        hop.fed(0, head, now)
        seen += acts(hop, now)
    assert "subscribe 1" in seen


# --- any schedule --------------------------------------------------------------------------------


@dataclass
class Above:
    """A parent as the world sees it."""

    dice: random.Random
    alive: bool = True
    fed: bool = True  # by its own upstream
    head: int = 0
    base: int = 0
    cursor: int = -1  # published up to here; -1: we are not subscribed
    began: int = 0
    missing: set[int] = field(default_factory=set)
    sign: int = 0
    process: int = 0
    known: int = 0  # the process that the edge knows

    def advance(self, now: int, head: int) -> None:
        """Takes what its upstream has; some frames never come, and never will."""
        if self.alive and self.fed:
            self.missing |= {n for n in range(self.head, head) if self.dice.random() < 0.002}
            self.head = head
            if now - self.began > 300 * MS:
                self.base = max(0, head - RING)

    def restart(self, now: int, head: int) -> None:
        """A new process: empty, it joins with a burst and fetches its tail after that."""
        self.alive, self.fed, self.began, self.cursor = True, True, now, -1
        self.head, self.base = head, max(0, head - BURST)
        self.process += 1

    def has(self, sequence: int) -> bool:
        """Whether it could send this frame."""
        return self.base <= sequence < self.head and sequence not in self.missing


class World:
    """A source, two parents, one edge: faults at random, every decision the core's own."""

    def __init__(self, seed: int, merge: bool) -> None:
        self.dice = random.Random(seed)
        self.hop = Hop(parents=2, merge=merge)
        self.above = [Above(self.dice), Above(self.dice)]
        self.now = T
        self.head = 0  # the edge's
        self.here: set[int] = set()
        self.lost: list[int] = []
        self.answers: list[tuple[int, int, str, int, int]] = []
        self.joined = False
        self.quiet = False

    def source_head(self) -> int:
        """Frames that were ever made."""
        return (self.now - T) // FRAME_US + BURST

    def look(self) -> None:
        """Shows the ring to the decisions."""
        ahead = [n for n in self.here if n >= self.head]
        self.hop.look(head=self.head, hole_end=min(ahead, default=self.head), held_us=20 * S)

    def place(self, sequence: int) -> None:
        """One frame, as ring_place takes it."""
        if sequence < self.head or sequence - self.head > RING // 2:
            return
        self.here.add(sequence)
        while self.head in self.here:
            self.here.remove(self.head)
            self.head += 1

    def fault(self) -> None:
        """Now and then something breaks, or is mended; one parent at a time or both."""
        parent = self.dice.choice(self.above)
        kind = self.dice.random()
        if not parent.alive:
            if kind < 0.02:
                parent.restart(self.now, self.source_head())
        elif kind < 0.003:
            parent.alive = False
        elif kind < 0.006:
            parent.fed = False
        elif kind < 0.03:
            parent.fed = True

    def heal(self) -> None:
        """Everything is mended, and stays so."""
        self.quiet = True
        for parent in self.above:
            if not parent.alive:
                parent.restart(self.now, self.source_head())
            parent.fed = True

    def hear(self) -> None:
        """Beacons and runs."""
        for i, parent in enumerate(self.above):
            parent.advance(self.now, self.source_head())
            if parent.alive and self.now % (100 * MS) == 0:
                if self.now - parent.sign > 400 * MS or parent.process != parent.known:
                    self.hop.back(i, self.now, process=parent.process != parent.known)
                parent.sign, parent.known = self.now, parent.process
                self.hop.told(EPOCH, parent=i)
                if i in self.hop.subscribed and parent.cursor >= 0:
                    self.hop.reaches(EPOCH, parent.cursor)
            elif self.now - parent.sign == 410 * MS:
                self.hop.lost(i, self.now)
            if not parent.alive or i not in self.hop.subscribed:
                parent.cursor = -1
            elif parent.cursor < 0:
                parent.cursor = parent.head
            elif parent.cursor < parent.head:
                self.run(i, parent)

    def run(self, i: int, parent: Above) -> None:
        """What a parent publishes; each tenth is dropped on the way."""
        first, parent.cursor = parent.cursor, parent.head
        if not self.joined or (not self.quiet and self.dice.random() < 0.1):
            return
        for sequence in range(first, parent.head):
            if parent.has(sequence):
                self.place(sequence)
        self.hop.fed(i, parent.head, self.now)
        self.hop.reaches(EPOCH, parent.head)

    def answer(self, i: int, what: str, begin: int, end: int) -> None:
        """What a parent answers to a request; nothing when it is dead."""
        parent = self.above[i]
        asked = self.hop.state
        if not parent.alive or (asked["asked"], asked["asked_of"]) != (what, i):
            return
        if what == "join":
            first = max(parent.base, parent.head - BURST)
            if self.hop.here(EPOCH, first, self.now):
                assert not self.joined
                self.joined, self.head = True, first
            begin, end = first, parent.head
        if begin >= parent.head or (begin < parent.base and self.now - parent.began < 300 * MS):
            self.hop.later(self.now)
            return
        at = begin
        while at < min(end, parent.head, begin + 200) and parent.has(at):
            self.place(at)
            at += 1
        self.look()
        if at > begin:
            self.hop.done(at, self.now)
            return
        while at < min(end, parent.head) and not parent.has(at):
            at += 1
        self.hop.gone(at, self.now)

    def step(self) -> None:
        """Ten ms."""
        self.now += 10 * MS
        if not self.quiet:
            self.fault()
        self.hear()
        due = [answer for answer in self.answers if answer[0] <= self.now]
        self.answers = [answer for answer in self.answers if answer[0] > self.now]
        for _, *asked in due:
            self.answer(*asked)
        for _ in range(16):
            self.look()
            what, begin, end, _ = self.hop.step(self.now)
            if what == "nothing":
                return
            if what == "give up":
                self.give_up(begin, end)
            if what in ("join", "repair"):
                self.answers.append((self.now + 10 * MS, self.hop.parent, what, begin, end))
                return

    def give_up(self, begin: int, end: int) -> None:
        """Only what nobody who is there has may be lost."""
        assert begin == self.head
        for parent in self.above:
            there = parent.alive and parent.sign and self.now - parent.began > 1000 * MS
            held = [n for n in range(begin, end) if there and parent.has(n)]
            assert not held, f"{held} given up at {self.now}, cause {self.hop.cause}"
        self.lost += range(begin, end)
        self.head = end
        while self.head in self.here:
            self.here.remove(self.head)
            self.head += 1


@pytest.mark.parametrize("merge", [False, True], ids=["standby", "merge"])
@pytest.mark.parametrize("seed", range(12))
def test_no_frame_is_missed_that_a_parent_has(seed: int, merge: bool) -> None:
    """Two parents die, hang and return at random: all frames, but those that both have lost."""
    world = World(seed, merge)
    for _ in range(6000):
        world.step()
    world.heal()
    for _ in range(3000):
        world.step()
    assert world.head >= world.source_head() - 10
    assert set(world.lost) <= world.above[0].missing | world.above[1].missing
    assert sorted(set(world.lost)) == world.lost
    assert len(world.hop.subscribed) == (2 if merge else 1)
