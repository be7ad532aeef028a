"""Servers that pull a stream and pass it on are counted apart: they are no audience."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from tools.engines import Programme, body_of, dial, get, idle, running
from tools.nodes import wait_until

WAIT_S = 30.0

pytestmark = [pytest.mark.timeout(90), pytest.mark.core]


def test_relays_are_counted_apart_and_given_back() -> None:
    """Two of three listeners say that they relay; parked ones count as well, and all leave."""
    with running() as (engine, address), ExitStack() as stack:
        live = Programme(engine)
        waits = Programme(engine, "/waits", begin=False)
        live.push(200)
        agents = ("Icecast 2.4.4", "Relay/1.0", "VLC/3.0.18")
        for agent in agents:
            sock = stack.enter_context(dial(address))
            sock.sendall(get("/live", f"User-Agent: {agent}"))
            assert body_of(sock)
        parked = stack.enter_context(dial(address))
        parked.sendall(get("/waits", "User-Agent: Icecast 2.4.4"))
        wait_until(lambda: waits.stream.snapshot()["relays"] == 1, WAIT_S)
        told = live.stream.snapshot()
        assert (told["listeners"], told["relays"]) == (3, 2)
        stack.close()
        idle(engine, WAIT_S)
        for stream in (live.stream, waits.stream):
            assert (stream.snapshot()["listeners"], stream.snapshot()["relays"]) == (0, 0)


def test_the_title_at_a_byte_is_the_one_that_holds_there() -> None:
    """Before the first there is none; each holds from its place on."""
    with running() as (engine, _):
        live = Programme(engine)
        assert live.stream.title_at(0) is None
        live.push(3)
        first = live.stream.snapshot()["head_position"]
        live.stream.title("One")
        live.push(3)
        second = live.stream.snapshot()["head_position"]
        live.stream.title("Two")
        live.push(1)
        assert live.stream.title_at(first - 1) is None
        assert live.stream.title_at(first) == live.stream.title_at(second - 1) == "One"
        assert live.stream.title_at(second) == "Two"
        assert live.stream.snapshot()["title"] == "Two"
