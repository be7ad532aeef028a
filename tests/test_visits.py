"""Accounts of who came and who left, as the shards write them down."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from test_arrive import engine, hand_in, live, read_some, until

from relay import _core

pytestmark = pytest.mark.core
_ = engine, live  # fixtures

Visit = tuple[Any, ...]


def ended(engine: _core.Engine) -> int:
    """How many have left so far: a Unix socket that closes says so in one step, as a reset does."""
    told = engine.snapshot()
    return sum(count for name, count in told.items() if name.startswith("ended_"))


def refused(engine: _core.Engine) -> int:
    """How many were turned away so far, for whatever reason."""
    told = engine.snapshot()
    return sum(n for name, n in told.items() if name.startswith("refused_") and isinstance(n, int))


def visits(engine: _core.Engine, count: int) -> list[Visit]:
    """So many records."""
    found: list[Visit] = []
    until(lambda: found.extend(engine.take_visits()[0]) or len(found) >= count)
    return found


def test_nothing_is_written_unless_somebody_asks(engine: _core.Engine, live: _core.Source) -> None:
    """Nobody pays for accounts that nobody keeps."""
    with hand_in(engine) as ours:
        read_some(ours, 1000)
    until(lambda: ended(engine))
    assert engine.take_visits() == ([], 0)


def test_who_comes_and_leaves_is_told_once_each(engine: _core.Engine, live: _core.Source) -> None:
    """With the same id, and what he was sent."""
    engine.keep_visits(True)
    with hand_in(engine) as ours:
        sent = len(read_some(ours, 1000))
    joined, left = visits(engine, 2)
    stream = engine.find("/live")
    assert stream is not None
    assert joined[1] == left[1] == stream.key
    assert joined[2] == left[2]
    assert (joined[3], joined[5], joined[7]) == ("::", 0, None)
    assert left[7] in {"closed", "reset"}
    assert left[6] >= sent
    assert 0 < left[5] < 10_000_000
    assert left[0] >= joined[0]
    engine.keep_visits(False)


def test_an_address_is_told_as_people_write_it() -> None:
    """IPv4 comes mapped into IPv6, and leaves without that."""
    engine = _core.Engine(listeners_max=8, heads_max=4)
    _, port = engine.listen("127.0.0.1", 0)
    engine.start()
    stream = engine.add_stream("/live")
    stream.claim()
    stream.begin()
    stream.push(b"x" * 100, 20_000)
    engine.keep_visits(True)
    with socket.create_connection(("127.0.0.1", port), 10) as ours:
        ours.sendall(b"GET /live HTTP/1.0\r\n\r\n")
        read_some(ours, 100)
        name = ours.getsockname()
    assert visits(engine, 1)[0][3:5] == name
    engine.close()


def test_what_finds_no_room_is_counted(engine: _core.Engine, live: _core.Source) -> None:
    """Nobody takes them: 4,096 are kept, the others are a number."""
    engine.keep_visits(True)
    for _ in range(2100):
        with hand_in(engine) as ours:
            ours.recv(65536)
    # who came before the one before had left was refused: few places here
    until(lambda: ended(engine) + refused(engine) == 2100)
    count = ended(engine)
    found, lost = engine.take_visits()
    assert len(found) == min(2 * count, 4096)
    assert lost == max(0, 2 * count - 4096)
    assert count > 1000
