"""Who listens, asked of a real engine with real connections."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tools.engines import Programme, dial, get, read_until, running

from relay import listeners
from relay.errors import MountError, RelayError

pytestmark = pytest.mark.core


async def test_roll_end_and_move() -> None:
    """Told oldest first; one ended; the rest moved."""
    with running() as (engine, address):
        live, other = Programme(engine), Programme(engine, "/other")
        for programme in (live, other):
            programme.push_seconds(1)
        socks = [dial(address) for _ in range(3)]
        for number, sock in enumerate(socks):
            sock.sendall(get("/live", f"User-Agent: player {number}\x1b"))
            read_until(sock, 500)
        roll = await listeners.roll(engine, "/live")
        assert roll.found == 3
        assert [one.agent for one in roll.listeners] == ["player 0", "player 1", "player 2"]
        assert [one.port for one in roll.listeners] == [s.getsockname()[1] for s in socks]
        assert all(0 < one.connected_s < 30 and one.sent_bytes > 100 for one in roll.listeners)
        assert await listeners.end(engine, "/live", roll.listeners[1].id) == 1
        assert await listeners.move(engine, "/live", "/other", roll.listeners[0].id) == (1, 0)
        assert await listeners.move(engine, "/live", "/other") == (1, 0)
        assert (await listeners.roll(engine, "/live")).found == 0
        assert [one.id for one in (await listeners.roll(engine, "/other")).listeners] == [
            roll.listeners[0].id,
            roll.listeners[2].id,
        ]
        for sock in socks:
            sock.close()


async def test_what_cannot_be_done_is_told() -> None:
    """No such mount, the same one, another format."""
    with running() as (engine, _):
        Programme(engine)
        Programme(engine, "/ogg", info=b"Content-Type: audio/ogg\r\n")
        for mount, to, why in (
            ("/none", "/live", "not on this node"),
            ("/live", "/none", "not on this node"),
            ("/live", "/live", "same mount"),
            ("/live", "/ogg", "audio/ogg, .* is audio/mpeg"),
        ):
            with pytest.raises(MountError, match=why):
                await listeners.move(engine, mount, to)


async def test_an_engine_that_does_not_answer_is_not_waited_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message, not a page that hangs."""
    monkeypatch.setattr(listeners, "ORDER_S", 0.02)

    class Stuck:
        def find(self, mount: str) -> Any:
            return self

        def snapshot(self) -> dict[str, int]:
            return {"listeners": 0}

        mount = "/live"

        def order(self, *asked: Any, **options: Any) -> None:
            return None

    stuck: Any = Stuck()
    with pytest.raises(RelayError, match="did not answer"):
        await listeners.roll(stuck, "/live")


async def test_several_who_ask_at_once_are_all_answered() -> None:
    """One order after the other."""
    with running() as (engine, _):
        Programme(engine)
        rolls = await asyncio.gather(*(listeners.roll(engine, "/live") for _ in range(20)))
        assert [roll.found for roll in rolls] == [0] * 20
