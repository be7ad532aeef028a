"""When which address is pulled: decisions, stepped with a fake clock."""

from __future__ import annotations

from tools.clock import FakeClock

from relay.backoff import Backoff
from relay.pull_plan import STEADY_S, Plan
from relay.urls import parse_http_url

ONE, TWO = parse_http_url("http://one/x"), parse_http_url("http://two/x")


def plan(clock: FakeClock, *, on_demand: bool = False) -> Plan:
    """A plan with two addresses, whose waits are the longest that the back-off draws."""
    backoff = Backoff(draw=lambda low, high: high, ceiling_s=30.0)
    return Plan([ONE, TWO], on_demand=on_demand, idle_s=10.0, backoff=backoff)


def test_addresses_are_tried_in_order_and_then_there_is_a_wait(clock: FakeClock) -> None:
    """The second at once after the first; after the last a wait that doubles up to its bound."""
    made = plan(clock)
    waits = []
    for _ in range(16):
        assert made.url == ONE
        assert made.failed(clock()) == 0.0
        assert (made.url, made.due) == (TWO, clock())
        waits.append(made.failed(clock()))
        assert made.due == clock() + waits[-1]
        clock.advance(s=waits[-1])
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert set(waits[5:]) == {30.0}


def test_a_steady_stream_that_broke_off_begins_with_the_first_address(clock: FakeClock) -> None:
    """Its loss is news: short waits again, and first choice first."""
    made = plan(clock)
    for _ in range(7):
        made.failed(clock())
    assert made.url == TWO
    assert made.lost(STEADY_S, clock()) == 1.0
    assert made.url == ONE


def test_a_stream_that_breaks_off_at_once_has_failed(clock: FakeClock) -> None:
    """A server that takes us and lets us go is no better than one that is not there."""
    made = plan(clock)
    assert made.lost(0.5, clock()) == 0.0
    assert made.url == TWO


def test_it_is_always_wanted_unless_on_demand(clock: FakeClock) -> None:
    """Without `pull_on_demand` nobody has to listen."""
    assert plan(clock).is_wanted(clock())
    assert not plan(clock, on_demand=True).is_wanted(clock())


def test_on_demand_it_is_wanted_until_idle_s_after_the_last_one(clock: FakeClock) -> None:
    """A listener who comes back within that time finds it."""
    made = plan(clock, on_demand=True)
    made.note_demand(True, clock())
    assert made.is_wanted(clock())
    for _ in range(9):
        clock.advance(s=1)
        made.note_demand(False, clock())
        assert made.is_wanted(clock())
    made.note_demand(True, clock())
    clock.advance(s=9.9)
    assert made.is_wanted(clock())
    clock.advance(s=0.2)
    made.note_demand(False, clock())
    assert not made.is_wanted(clock())


def test_who_comes_is_not_put_off_by_an_old_failure(clock: FakeClock) -> None:
    """The wait belongs to those who wanted it then."""
    made = plan(clock, on_demand=True)
    made.note_demand(True, clock())
    for _ in range(20):
        made.failed(clock())
    assert made.due == clock() + 30.0
    clock.advance(s=12)
    made.note_demand(True, clock())
    assert made.due == clock()
    made.failed(clock())
    made.failed(clock())
    assert made.due > clock()
    made.note_demand(True, clock())
    assert made.due > clock(), "who waits already does not do away with the wait"
