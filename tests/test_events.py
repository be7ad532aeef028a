"""What happens on a node, told to the host: over a fake engine."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from fake_engine import FakeEngine

from relay.events import (
    WAITING_MAX,
    Event,
    EventTeller,
    Gap,
    Joined,
    Left,
    Missed,
    SourceDown,
    SourceUp,
    batches,
)
from relay.gaps import Gap as SeenGap


class Teller:
    """A teller over a fake engine with one stream."""

    def __init__(self) -> None:
        self.engine: Any = FakeEngine()
        self.stream = self.engine.add_stream("/live")
        self.stream.set_info(b"Content-Type: audio/mpeg\r\n")
        self.teller = EventTeller()

    def is_up(self, epoch: int = 7) -> None:
        """Its stream has a source now."""
        self.engine.head_list = [(self.stream.key, "/live", epoch, 1, 0, True, True, 3000, 0)]

    def visit(self, reason: str | None, key: int | None = None) -> None:
        """Somebody came, or left."""
        key = self.stream.key if key is None else key
        tail = (0, 0, None) if reason is None else (1_500_000, 4170, reason)
        self.engine.visits.append((2_000_000, key, 5, "192.0.2.7", 4711, *tail, 0))

    def tick(self, *gaps: SeenGap) -> None:
        """A look."""
        self.teller.tick(self.engine, gaps, ("tcp://a:9000",))


async def take(events: Any, count: int) -> list[Event]:
    """The next events."""
    return [await asyncio.wait_for(anext(events), 5) for _ in range(count)]


async def test_a_reader_is_told_what_is_up_and_what_changes() -> None:
    """First what is there; then down and up, also where the epoch alone has changed."""
    bench = Teller()
    bench.is_up(7)
    events = bench.teller.listen(bench.engine)
    up = SourceUp(mount="/live", epoch=7, content_type="audio/mpeg", here=True)
    assert await take(events, 1) == [up]
    bench.tick()
    bench.is_up(8)
    bench.tick()
    bench.engine.head_list = []
    bench.tick()
    down, again, gone = await take(events, 3)
    assert down == SourceDown(mount="/live", epoch=7)
    assert isinstance(again, SourceUp)
    assert again.epoch == 8
    assert gone == SourceDown(mount="/live", epoch=8)


async def test_who_comes_and_leaves_is_told_in_batches() -> None:
    """One for each stream and look; a stream that has gone meanwhile keeps its name."""
    bench = Teller()
    events = bench.teller.listen(bench.engine)
    bench.tick()
    bench.visit(None)
    bench.visit(None)
    bench.engine.remove_stream(bench.stream)
    bench.visit("closed")
    bench.tick()
    joined, left = await take(events, 2)
    assert isinstance(joined, Joined)
    assert (joined.mount, len(joined.visits)) == ("/live", 2)
    assert isinstance(left, Left)
    [visit] = left.visits
    assert (visit.address, visit.port, visit.seconds) == ("192.0.2.7", 4711, 1.5)
    assert (visit.sent_bytes, visit.reason, visit.id) == (4170, "closed", 5)


async def test_what_the_shards_could_not_write_down_is_a_number() -> None:
    """Only what is new since the last look."""
    bench = Teller()
    bench.engine.visits_lost = 3
    events = bench.teller.listen(bench.engine)
    bench.engine.visits_lost = 10
    bench.tick()
    bench.tick()
    assert await take(events, 1) == [Missed(visits=7)]
    events.close()
    assert [event async for event in events] == []


async def test_gaps_come_with_their_cause() -> None:
    """As the log tells them."""
    bench = Teller()
    events = bench.teller.listen(bench.engine)
    gap = SeenGap(
        mount="/live", key=1, begin_us=0, end_us=40_000, wall_us=9_000_000, cause="hop", parent=0,
        frames=2, why="lost",
    )  # fmt: skip
    bench.tick(gap)
    [told] = await take(events, 1)
    assert told == Gap(
        mount="/live", at=9.0, duration_ms=40, cause="hop", hop="tcp://a:9000", why="lost",
        frames=2, skips=0, listeners=0,
    )  # fmt: skip


async def test_a_slow_reader_loses_the_oldest_and_learns_how_many() -> None:
    """Memory is bounded; the newest are what it gets."""
    bench = Teller()
    events = bench.teller.listen(bench.engine)
    for epoch in range(1, WAITING_MAX + 12):
        events.put([SourceDown(mount="/live", epoch=epoch)])
    missed, first = await take(events, 2)
    assert missed == Missed(events=11)
    assert first == SourceDown(mount="/live", epoch=12)


async def test_nobody_pays_when_nobody_listens() -> None:
    """The shards write down only while there is a reader, or a watcher."""
    bench = Teller()
    bench.tick()
    assert not bench.engine.keeps_visits
    events = bench.teller.listen(bench.engine)
    assert bench.engine.keeps_visits
    events.close()
    events.close()
    bench.tick()
    assert not bench.engine.keeps_visits
    seen: list[Any] = []
    bench.teller.watch(seen.append)
    bench.tick()
    bench.visit(None)
    bench.tick()
    assert bench.engine.keeps_visits
    assert [len(records) for records in seen] == [0, 1]


async def test_readers_end_with_the_node() -> None:
    """Also one that waits; what came before is still given."""
    bench = Teller()
    bench.is_up()
    one, other = bench.teller.listen(bench.engine), bench.teller.listen(bench.engine)
    await take(one, 1)
    waiting = asyncio.ensure_future(anext(one, None))
    await asyncio.sleep(0)
    bench.teller.close()
    assert await waiting is None
    assert [type(event) async for event in other] == [SourceUp]


def test_plain_code_waits_in_a_thread_of_its_own() -> None:
    """`for`, which ends with the node."""
    bench = Teller()
    events = bench.teller.listen(bench.engine)
    found: list[Event] = []
    thread = threading.Thread(target=lambda: found.extend(events))
    thread.start()
    with events:
        events.put([SourceDown(mount="/live", epoch=1)])
    thread.join(5)
    assert found == [SourceDown(mount="/live", epoch=1)]


def test_a_batch_has_a_bound() -> None:
    """A storm is told in several."""
    record = (0, 1, 5, "::", 0, 0, 0, None, 0)
    found = list(batches([record] * 5000, {1: "/live"}, 0.0))
    assert [len(batch.visits) for batch in found] == [4096, 904]
