"""Unfinished heads: an honest crowd stays whole, an attack pays with its own places."""

from __future__ import annotations

import random

import pytest
from relay._probe_door import SIZES, Heads

MS = 1000
ADDRESSES = [f"10.0.0.{n}" for n in range(1, 100)]


def crowd(count: int, **options: int) -> Heads:
    """Return heads with room for so many; times as the node has them."""
    usual = {"members_max": count, "grace_us": 1000 * MS, "timeout_us": 10_000 * MS}
    return Heads(**(usual | options))


def look_at_all(heads: Heads) -> list[int]:
    """Look at whoever waits; returns them in order."""
    found = []
    while (member := heads.look()) is not None:
        found.append(member)
    return found


def test_each_is_looked_at_once_and_again_when_something_came() -> None:
    """First come first; to wake one that waits already changes nothing."""
    heads = crowd(10)
    for member in range(4):
        heads.add(member, "10.0.0.1", member)
    heads.wake(2)
    heads.drop(1)
    assert look_at_all(heads) == [0, 2, 3]
    heads.wake(3)
    heads.wake(0)
    heads.wake(3)
    assert look_at_all(heads) == [3, 0]
    assert heads.counts() == (3, 3, 0, 0)


def test_an_honest_burst_from_one_address_stays() -> None:
    """2,000 behind one NAT whose heads come within the grace: nobody goes."""
    heads = crowd(4000, counted_max=2048, per_address_max=64)
    for member in range(2000):
        heads.add(member, "192.0.2.1", member * 50)
    assert look_at_all(heads) == list(range(2000))
    assert heads.due(999 * MS) == []
    for member in range(2000):
        heads.wake(member)
        heads.drop(heads.look())
    assert heads.counts() == (0, 0, 0, 0)


def test_beyond_the_grace_an_address_keeps_its_share() -> None:
    """Of 2,000 that never say anything the newest 64 stay after the grace, and others stay too."""
    heads = crowd(4000, counted_max=2048, per_address_max=64)
    heads.add(3000, "192.0.2.2", 0)
    for member in range(2000):
        heads.add(member, "192.0.2.1", 0)
    look_at_all(heads)
    assert heads.due(1001 * MS) == [(member, "evicted") for member in range(2000 - 64)]
    assert heads.counts() == (65, 0, 65, 0)
    heads.drop(3000)


def test_nobody_goes_before_he_was_looked_at() -> None:
    """A shard that is late is not the fault of those who wait."""
    heads = crowd(100, per_address_max=2, counted_max=4)
    for member in range(50):
        heads.add(member, "10.0.0.1", 0)
    assert heads.due(9000 * MS) == []
    assert heads.make_room() is None
    heads.look()
    assert heads.make_room() == 0


def test_a_head_that_begins_counts_at_once() -> None:
    """Bytes held are bounded however young they are: of an address, and of all."""
    heads = crowd(100, per_address_max=2, counted_max=4)
    for member, address in enumerate("aabbcc"):
        heads.add(member, f"10.0.0.{ord(address)}", 0)
    heads.add(6, f"10.0.0.{ord('a')}", 0)
    look_at_all(heads)
    assert [heads.hold(member) for member in range(4)] == [None] * 4
    assert heads.hold(6) == 0  # the oldest of its address
    heads.drop(0)
    assert heads.hold(4) == 1  # the oldest of all
    heads.drop(1)
    assert heads.hold(4) is None  # counted already
    assert heads.counts() == (5, 1, 4, 0)


def test_each_lives_its_time_and_at_most_a_grace_longer() -> None:
    """However lively it drips; also where the time is shorter than the grace."""
    for grace, timeout in ((1000 * MS, 10_000 * MS), (1000 * MS, 300 * MS)):
        heads = crowd(100, per_address_max=64, counted_max=64, grace_us=grace, timeout_us=timeout)
        for member in range(20):
            heads.add(member, ADDRESSES[member], member * 10 * MS)
            heads.look()
            if member % 3 == 0:
                heads.hold(member)
        gone: dict[int, int] = {}
        for now in range(0, timeout + 2 * grace, 5 * MS):
            for member in (3, 6, 9):
                if member not in gone:
                    heads.wake(member)
                    assert heads.look() == member
            for member, why in heads.due(now):
                assert why == "expired"
                gone[member] = now
        assert len(gone) == 20
        for member, now in gone.items():
            assert timeout < now - member * 10 * MS <= timeout + grace + 5 * MS


def test_without_a_place_the_most_crowded_address_gives_one() -> None:
    """Who comes from elsewhere loses nothing to a flood of empty connections within its grace."""
    heads = crowd(1000, per_address_max=64, counted_max=2048)
    heads.add(999, "198.51.100.1", 0)  # honest, and first: its head is late
    for member in range(500):
        heads.add(member, "192.0.2.1", 1)
    look_at_all(heads)
    for member in range(500 - 64):
        assert heads.make_room() == member
        heads.drop(member)
    assert heads.make_room() == 999  # nobody is crowded any more: the oldest


def test_a_flood_not_yet_looked_at_costs_others_nothing() -> None:
    """Its places are its own to give: who wants one waits until the flood was looked at."""
    heads = crowd(1000, per_address_max=4)
    heads.add(999, "198.51.100.1", 0)
    heads.look()
    for member in range(50):
        heads.add(member, "192.0.2.1", 1)
    assert heads.make_room() is None
    heads.look()
    assert heads.make_room() == 0


def test_those_who_count_give_a_place_before_the_fresh() -> None:
    """A drip is worth less than a connection whose head is on its way."""
    heads = crowd(100, per_address_max=64)
    for member in range(5):
        heads.add(member, ADDRESSES[member], 0)
    look_at_all(heads)
    heads.hold(3)
    assert heads.make_room() == 3
    heads.drop(3)
    assert heads.make_room() == 0


def test_an_ipv6_network_is_one_address() -> None:
    """RFC 4291 §2.5.4: a host has 2**64 addresses to choose from; IPv4 is told apart to the end."""
    heads = crowd(10)
    assert heads.bucket("2001:db8:1:2::1") == heads.bucket("2001:db8:1:2:ffff::9")
    assert heads.bucket("2001:db8:1:2::1") != heads.bucket("2001:db8:1:3::1")
    assert len({heads.bucket(address) for address in ADDRESSES}) > 90


def test_nobody_outside_can_tell_who_shares_a_bucket() -> None:
    """Another seed, other buckets."""
    one, other = crowd(10, seed=1), crowd(10, seed=2)
    same = sum(one.bucket(address) == other.bucket(address) for address in ADDRESSES)
    assert same < 5


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_bounds_hold(seed: int) -> None:
    """Random days: counts agree with a plain model, and no bound is passed."""
    dice = random.Random(seed)
    heads = crowd(60, per_address_max=3, counted_max=10, grace_us=100, timeout_us=400)
    held: dict[int, str] = {}
    waiting: list[int] = []
    counted: list[int] = []
    now = 0

    def forget(member: int) -> None:
        held.pop(member)
        for line in (waiting, counted):
            if member in line:
                line.remove(member)

    for _ in range(3000):
        now += dice.randrange(8)
        free = [member for member in range(60) if member not in held]
        act = dice.choice(["add", "add", "look", "look", "wake", "hold", "drop", "due"])
        if act == "add" and free:
            member = dice.choice(free)
            held[member] = dice.choice(ADDRESSES[:8])
            waiting.append(member)
            heads.add(member, held[member], now)
        elif act == "look":
            member = heads.look()
            assert member == (waiting.pop(0) if waiting else None)
        elif act == "wake" and held:
            member = dice.choice(sorted(held))
            heads.wake(member)
            if member not in waiting:
                waiting.append(member)
        elif act == "hold" and held:
            member = dice.choice(sorted(held))
            victim = heads.hold(member)
            counted += [member] if member not in counted else []
            if victim is not None:
                heads.drop(victim)
                forget(victim)
        elif act == "drop" and held:
            member = dice.choice(sorted(held))
            heads.drop(member)
            forget(member)
        elif act == "due":
            for member, _ in heads.due(now):
                forget(member)
        every, fresh, holds, queued = heads.counts()
        assert (every, queued) == (len(held), len(waiting))
        assert every == fresh + holds
        assert holds <= 10


def test_a_record_and_its_places_are_small() -> None:
    """Issue and docs promise at most 256 B a listener; wheel and heads stand beside it."""
    assert SIZES["record"] <= 256
    assert sum(SIZES.values()) <= 320
