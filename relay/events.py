"""What happens on a node, told to the host: sources, listeners who come and leave, gaps.

Rules of this room
  1. Gathered twice a second, on the node's loop, and only while somebody listens: then the shards
     write down who comes and leaves (`_core/visits.pxd`), and nobody else pays for it.
  2. Joins and leaves come in batches, one a stream and look. What found no room is `Missed`, with a
     number; the counts of the streams are exact all the same.
  3. Bounds: WAITING_MAX events for each reader (the oldest go, as `Missed`), VISITS_MAX people a
     batch, MOUNTS_MAX names of streams that are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Self, TypeAlias

from msgspec import Struct

from relay.gaps import Gap as SeenGap
from relay.running import Closing, check_process, is_forked
from relay.source_info import read_info
from relay.streamed import Streamed

if TYPE_CHECKING:
    from relay._core import Engine, VisitTuple

WAITING_MAX = 1024
VISITS_MAX = 4096
MOUNTS_MAX = 65536


class SourceUp(Struct, frozen=True, kw_only=True):
    """An epoch has begun: a stream has a source, here or upstream."""

    mount: str
    epoch: int  # ms
    content_type: str
    here: bool  # whether the source is this node's


class SourceDown(Struct, frozen=True, kw_only=True):
    """An epoch has ended; listeners stay for linger_s."""

    mount: str
    epoch: int


class Visit(Struct, frozen=True, kw_only=True):
    """One listener who came or left."""

    id: int  # the same in both
    address: str  # "::" over a Unix socket
    port: int
    at: float  # wall clock, seconds
    seconds: float = 0.0  # since its connection was accepted; 0 in `Joined`
    sent_bytes: int = 0
    reason: str = ""  # why it ended, as in the counters: closed, reset, stalled, …


class Joined(Struct, frozen=True, kw_only=True):
    """Who began to listen, since the last look."""

    mount: str
    visits: tuple[Visit, ...]


class Left(Struct, frozen=True, kw_only=True):
    """Who stopped listening, since the last look."""

    mount: str
    visits: tuple[Visit, ...]


class Gap(Struct, frozen=True, kw_only=True):
    """Something that listeners could hear, and whose fault it was."""

    mount: str
    at: float  # wall clock, seconds
    duration_ms: int
    cause: str  # source, hop, own overload, listener
    hop: str | None  # which upstream
    why: str
    frames: int  # that were lost
    skips: int
    listeners: int


class Missed(Struct, frozen=True, kw_only=True):
    """Events, or single visits, that this reader does not get."""

    events: int = 0  # it was too slow
    visits: int = 0  # more came and left at once than a shard can write down


Event: TypeAlias = SourceUp | SourceDown | Joined | Left | Gap | Missed


class Events(Closing):
    """An iterator of events, for `async for` and `for`; ends with the node, or with `close`."""

    def __init__(self, teller: EventTeller) -> None:
        self._teller = teller
        self._waiting: deque[Event] = deque()
        self._missed = 0
        self._news = threading.Condition()
        self._sleepers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._is_closed = False

    def put(self, events: Sequence[Event]) -> None:
        """Add events; the oldest go where there are too many. From any thread."""
        with self._news:
            self._waiting.extend(events)
            while len(self._waiting) > WAITING_MAX:
                self._waiting.popleft()
                self._missed += 1
            self._wake()

    def close(self) -> None:
        """No more events; those that wait are still given. From any thread; twice is no error."""
        if is_forked():
            return
        self._teller.forget(self)
        with self._news:
            self._is_closed = True
            self._wake()

    def _wake(self) -> None:
        self._news.notify_all()
        sleepers, self._sleepers = self._sleepers, []
        for loop, future in sleepers:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(_settle, future)

    def _next(self) -> Event | None:
        if self._missed:
            missed, self._missed = self._missed, 0
            return Missed(events=missed)
        return self._waiting.popleft() if self._waiting else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        check_process()
        while True:
            with self._news:
                event = self._next()
                if event is not None:
                    return event
                if self._is_closed:
                    raise StopAsyncIteration
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._sleepers.append((loop, future))
            await future

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        check_process()
        with self._news:
            while (event := self._next()) is None:
                if self._is_closed:
                    raise StopIteration
                self._news.wait()
            return event


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class EventTeller:
    """Gathers what happens on one node and tells each reader."""

    def __init__(self, streamed: Streamed | None = None) -> None:
        self._streamed = Streamed() if streamed is None else streamed
        self._readers: weakref.WeakSet[Events] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._up: dict[str, tuple[int, str, bool]] = {}  # epoch, content type, here
        self._mounts: dict[int, str] = {}
        self._lost = 0
        self._is_keeping = False
        self._watchers: list[Callable[[Sequence[VisitTuple]], object]] = []

    def watch(self, see: Callable[[Sequence[VisitTuple]], object]) -> None:
        """Call this twice a second with who came and left (`Engine.take_visits`); for the node's
        life, on its loop. Before it is open, or from its loop."""
        self._watchers.append(see)

    def listen(self, engine: Engine) -> Events:
        """A new reader, who first is told which sources are up."""
        self._keep(engine, True)
        if not self._readers:
            self._up = sources_up(engine)
        reader = Events(self)
        reader.put([_up_event(mount, *told) for mount, told in self._up.items()])
        with self._lock:
            self._readers.add(reader)
        return reader

    def forget(self, reader: Events) -> None:
        """It has been closed."""
        with self._lock:
            self._readers.discard(reader)

    def close(self) -> None:
        """The node goes: all readers end."""
        with self._lock:
            readers = list(self._readers)
        for reader in readers:
            reader.close()
        self._is_keeping = False

    def tick(self, engine: Engine, gaps: Iterable[SeenGap], upstreams: Sequence[str]) -> None:
        """Tell what has happened since the last look."""
        with self._lock:
            readers = list(self._readers)
        self._keep(engine, bool(readers or self._watchers))
        if not self._is_keeping:
            return
        events: list[Event] = [*self._sources(engine), *self._visits(engine)]
        events += [_gap_event(gap, upstreams) for gap in gaps]
        if events:
            for reader in readers:
                reader.put(events)

    def _keep(self, engine: Engine, wanted: bool) -> None:
        if wanted != self._is_keeping:
            self._is_keeping = wanted
            engine.keep_visits(wanted)
            self._streamed.keep_visits(wanted)
            _, self._lost = self._take_visits(engine)  # of an earlier reader

    def _take_visits(self, engine: Engine) -> tuple[list[VisitTuple], int]:
        """From both who serve listeners."""
        records, lost = engine.take_visits()
        others, lost_too = self._streamed.take_visits()
        return records + others, lost + lost_too

    def _sources(self, engine: Engine) -> Iterable[Event]:
        before, self._up = self._up, sources_up(engine)
        for mount, told in before.items():
            if mount not in self._up or self._up[mount][0] != told[0]:
                yield SourceDown(mount=mount, epoch=told[0])
        for mount, told in self._up.items():
            if mount not in before or before[mount][0] != told[0]:
                yield _up_event(mount, *told)

    def _visits(self, engine: Engine) -> Iterable[Event]:
        known = {stream.key: stream.mount for stream in engine.streams()}
        self._mounts |= known
        if len(self._mounts) > MOUNTS_MAX:
            self._mounts = known
        records, lost = self._take_visits(engine)
        for see in self._watchers:
            see(records)
        yield from batches(records, self._mounts, time.time() - time.monotonic())
        if lost > self._lost:
            yield Missed(visits=lost - self._lost)
        self._lost = lost


def sources_up(engine: Engine) -> dict[str, tuple[int, str, bool]]:
    """(epoch, content type, whether its source is here) of each stream that has a source."""
    found = {}
    for _, mount, epoch, _, _, is_up, is_here, _, _ in engine.heads():
        stream = engine.find(mount) if is_up else None
        if stream is not None:
            found[mount] = (epoch, read_info(stream.info()).get("content-type", ""), is_here)
    return found


def batches(
    records: Iterable[VisitTuple], mounts: dict[int, str], wall_s: float
) -> Iterable[Joined | Left]:
    """One batch a stream and kind, joins first; `wall_s`: the wall clock at monotonic 0."""
    joined: dict[int, list[Visit]] = {}
    left: dict[int, list[Visit]] = {}
    for at_us, key, id_, address, port, listened_us, sent_bytes, reason, _ in records:
        visit = Visit(
            id=id_,
            address=address,
            port=port,
            at=wall_s + at_us / 1e6,
            seconds=listened_us / 1e6,
            sent_bytes=sent_bytes,
            reason=reason or "",
        )
        (joined if reason is None else left).setdefault(key, []).append(visit)
    for kind, found in ((Joined, joined), (Left, left)):
        for key, visits in found.items():
            for at in range(0, len(visits), VISITS_MAX):
                part = tuple(visits[at : at + VISITS_MAX])
                yield kind(mount=mounts.get(key, ""), visits=part)


def _up_event(mount: str, epoch: int, content_type: str, here: bool) -> SourceUp:
    return SourceUp(mount=mount, epoch=epoch, content_type=content_type, here=here)


def _gap_event(gap: SeenGap, upstreams: Sequence[str]) -> Gap:
    told = gap.document(upstreams)
    return Gap(
        mount=gap.mount,
        at=told["at_ms"] / 1000,
        duration_ms=told["duration_ms"],
        cause=told["cause"],
        hop=told["hop"],
        why=told["why"],
        frames=told["frames"],
        skips=told["skips"],
        listeners=told["listeners"],
    )
