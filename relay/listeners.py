"""Who listens to a mount of this node; ends them, and sends them to another mount.

Rules of this room
  1. The shards do it, each in its own turns (`_core/orders.pxd`); here it is asked for and waited
     for, at most ORDER_S. One such order at a time is carried out on a node.
  2. At most ROLLS_MAX listeners are told, however many there are; `found` counts all.
  3. What a listener calls itself is a stranger's text: it is told as it came, on one line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from relay.address import show
from relay.auth import as_text
from relay.errors import MountError, RelayError

if TYPE_CHECKING:
    from relay._core import Engine, Order, Stream

ORDER_S = 5.0
LOOK_S = 0.005
ROLLS_MAX = 20_000


class Listener(NamedTuple):
    """One listener of a mount."""

    id: int
    """Its number on this node, never given twice."""
    address: str
    port: int
    agent: str
    """What it calls itself (User-Agent), at most 190 bytes of it."""
    connected_s: float
    lag_ms: int
    sent_bytes: int


class Roll(NamedTuple):
    """Who listens to a mount."""

    found: int
    listeners: list[Listener]
    """At most ROLLS_MAX of them, longest first."""


async def roll(engine: Engine, mount: str) -> Roll:
    """Who listens to a mount; waits for the shards, at most ORDER_S.

    Raises:
        MountError: this node has no such mount.
        RelayError: a shard did not answer in time.
    """
    stream = _found(engine, mount)
    rolls_max = min(ROLLS_MAX, stream.snapshot()["listeners"] + 64)
    order = await _carried_out(engine, "list", stream, rolls_max=rolls_max)
    told = [
        Listener(id_, address, port, one_line(agent), connected_us / 1e6, lag_us // 1000, sent)
        for id_, connected_us, lag_us, sent, (address, port), agent in order.rolls()
    ]
    told.sort(key=lambda listener: listener.id)
    return Roll(order.found()[0], told)


async def end(engine: Engine, mount: str, number: int) -> int:
    """End the listener with this id; returns how many that were: 1, or 0. As `roll`."""
    order = await _carried_out(engine, "end", _found(engine, mount), numbers=(number,))
    return order.found()[0]


async def end_wherever(engine: Engine, numbers: Collection[int]) -> set[int]:
    """End the listeners with these ids, whichever mount they have been moved to meanwhile.

    Returns:
        the ids of those who were there.

    Raises:
        RelayError: as `roll`.
    """
    order = await _carried_out(engine, "end", None, numbers=numbers, rolls_max=len(numbers))
    return {told[0] for told in order.rolls()}


async def move(engine: Engine, mount: str, to: str, number: int = 0) -> tuple[int, int]:
    """Send all listeners of a mount, or the one with this id, to another one.

    They go over at the end of a frame, on the same connections, and count there at once.

    Returns:
        how many were meant, and how many of these had to stay: the other mount is full.

    Raises:
        MountError: as `roll`; or the two are the same, or of two formats.
    """
    stream, other = _found(engine, mount), _found(engine, to)
    if mount == to:
        raise MountError(f"{show(mount)} and the destination are the same mount")
    told = [one.info().partition(b"\r\n")[0].lower() for one in (stream, other)]
    if told[0] != told[1]:
        here, there = (as_text(line).partition(":")[2].strip() for line in told)
        raise MountError(
            f"{show(to)} is {there or 'without a source'}, {show(mount)} is {here or 'without'}: "
            "listeners cannot change the format"
        )
    numbers = (number,) if number else ()
    order = await _carried_out(engine, "move", stream, other, numbers=numbers)
    return order.found()


async def _carried_out(
    engine: Engine,
    kind: str,
    stream: Stream | None,
    to: Stream | None = None,
    *,
    numbers: Collection[int] = (),
    rolls_max: int = 0,
) -> Order:
    """The order, once all shards are done with it."""
    try:
        async with asyncio.timeout(ORDER_S):
            while (
                order := engine.order(kind, stream, to, ids=numbers, rolls_max=rolls_max)
            ) is None:
                await asyncio.sleep(LOOK_S)
            while not order.is_done():
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        whose = "listeners" if stream is None else stream.mount
        raise RelayError(
            f"{whose}: the engine did not answer within {ORDER_S:g} s; try again"
        ) from None
    return order


def _found(engine: Engine, mount: str) -> Stream:
    stream = engine.find(mount)
    if stream is None:
        raise MountError(f"mount {show(mount)} is not on this node")
    return stream


def one_line(raw: bytes) -> str:
    """A stranger's bytes as text without control characters."""
    return "".join(c if c.isprintable() else " " for c in as_text(raw)).strip()
