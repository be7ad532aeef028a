"""Listeners whom the host's own server serves: asked about, counted, then poured the audio.

Rules of this room
  1. Asked about like those whom the engine serves (relay/joining.py): nobody is streamed to
     unasked. About a HEAD nobody is asked, as at the node's own door.
  2. What is poured can be decoded from where it begins: header pages come before the first frame,
     and again where a gap has taken those of its chain (Ogg) or epoch.
  3. They count with the engine's: towards listeners_max of node and mount, in events, for scripts
     and their time limits. Their ids are negative; VISITS_MAX comings and goings wait to be told.
  4. Whose server can take nothing more for stall_ms is ended, like the engine's: his place is free.
  5. Knows no server: relay/asgi.py and relay/hosted.py speak with theirs. `Streamed` is used from
     any thread: by the host's loop, and by the node's.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Self

from relay.admit import write_head
from relay.errors import RelayError
from relay.joining import RETRY_S, Allow, Deny, Verdict, read_join
from relay.subscribe import Frame, Skipped

if TYPE_CHECKING:
    from relay._core import Engine, VisitTuple
    from relay.joining import Askers
    from relay.subscribe import Subscription

VISITS_MAX = 4096
FULL = Deny(503, "no more listeners fit", RETRY_S)
NO_STORE = {"Cache-Control": "no-cache, no-store", "Access-Control-Allow-Origin": "*"}


async def may_hear(
    askers: Askers | None,
    mount: str,
    *,
    method: str,
    query: bytes,
    fields: Iterable[tuple[bytes, bytes]],
    peer: tuple[str, int],
) -> Verdict:
    """What whoever is to be asked says of this request; Allow where there is nobody.

    `peer`: the listener's address and port, as the host's server has them.
    """
    if askers is None or method == "HEAD":
        return Allow()
    try:
        head = write_head("GET", mount, query, "1.1", fields)
    except RelayError:
        return Deny(400, "this request cannot be read")
    return await askers.verdict(read_join(head, *peer))


class Streaming:
    """One of them, from the head of his reply to his last byte: `with`."""

    def __init__(
        self,
        house: Streamed,
        number: int,
        key: int,
        reader: Subscription,
        peer: tuple[str, int],
        ticket: int,
        stall_ms: int,
    ) -> None:
        self._house = house
        self.id = number
        self.key = key
        self.mount = reader.mount
        self.began_us = house.now_us()
        self.sent_bytes = 0
        self.reason = "closed"
        self._reader = reader
        self._peer = peer
        self._ticket = ticket
        self._stall_s = stall_ms / 1000

    async def give(self, data: bytes, write: Callable[[bytes], Awaitable[object]]) -> bool:
        """Wait until his server has taken these bytes; False where it has not within stall_ms:
        nothing more is to be written."""
        try:
            async with asyncio.timeout(self._stall_s):
                await write(data)
        except TimeoutError:
            self.reason = "stalled" if self.reason == "closed" else self.reason
            return False
        self.sent_bytes += len(data)
        return True

    def end(self) -> None:
        """He has heard enough: he is gone within the reader's pace, or stall_ms where he takes
        nothing. From any thread."""
        self.reason = "killed"
        self._reader.close()

    def visit(self, reason: str | None) -> VisitTuple:
        """His coming (None) or going, as the engine tells those of its own."""
        at_us = self._house.now_us()
        done = (0, 0) if reason is None else (at_us - self.began_us, self.sent_bytes)
        return (at_us, self.key, self.id, *self._peer, *done, reason, self._ticket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._house.leave(self)


class Streamed:
    """All of them, on one node.

    Args:
        clock: monotonic, s: the engine's.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._here: dict[int, Streaming] = {}
        self._numbers = itertools.count(-1, -1)
        self._visits: list[VisitTuple] = []
        self._is_keeping = False
        self._lost = self._total = 0

    def __len__(self) -> int:
        return len(self._here)

    def now_us(self) -> int:
        """The time of a visit."""
        return int(self._clock() * 1e6)

    def enter(
        self,
        engine: Engine,
        reader: Subscription,
        mount_max: int,
        peer: tuple[str, int],
        ticket: int,
        stall_ms: int = 15_000,
    ) -> Streaming | None:
        """He begins to hear what this reader reads; None where no more listeners fit.

        `mount_max`: of its mount; 0: any number. `stall_ms`: of its mount.
        """
        stream = engine.find(reader.mount)
        if stream is None:
            return None
        of_node = engine.listeners_max - engine.snapshot()["listeners"]
        of_mount = mount_max - stream.snapshot()["listeners"]
        with self._lock:
            beside = sum(one.mount == reader.mount for one in self._here.values())
            if len(self._here) >= of_node or (mount_max and beside >= of_mount):
                return None
            number = next(self._numbers)
            made = Streaming(self, number, stream.key, reader, peer, ticket, stall_ms)
            self._here[made.id] = made
            self._total += 1
            self._keep(made.visit(None))
        return made

    def leave(self, one: Streaming) -> None:
        """He has gone."""
        with self._lock:
            if self._here.pop(one.id, None) is not None:
                self._keep(one.visit(one.reason))

    def _keep(self, visit: VisitTuple) -> None:
        if self._is_keeping and len(self._visits) < VISITS_MAX:
            self._visits.append(visit)
        elif self._is_keeping:
            self._lost += 1

    def end(self, numbers: Collection[int]) -> set[int]:
        """End those with these ids; the ids of those who were here."""
        with self._lock:
            found = {number: self._here[number] for number in numbers if number in self._here}
        for one in found.values():
            one.end()
        return set(found)

    def keep_visits(self, wanted: bool) -> None:
        """Whether anybody wants to be told who comes and goes."""
        with self._lock:
            self._is_keeping = wanted
            self._visits = []

    def take_visits(self) -> tuple[list[VisitTuple], int]:
        """(who came and left since the last call, how many found no room so far)."""
        with self._lock:
            found, self._visits = self._visits, []
            return found, self._lost

    def snapshot(self) -> dict[str, int]:
        """Counters by name."""
        return {"listeners_streamed": len(self._here), "listeners_streamed_total": self._total}


class Pourer:
    """Frames as bytes that a player can follow.

    Args:
        header: the header pages of the newest chain or epoch.
    """

    def __init__(self, header: Callable[[], bytes]) -> None:
        self._header = header
        self._sent = b""  # the header pages that the listener has last had
        self._is_within = False  # them: the last frame was one
        self._is_cut = True  # what came before is not with him
        self._epoch = 0

    def take(self, items: Iterable[Frame | Skipped]) -> bytes:
        """What of these he is sent; b"" where nothing can be begun with."""
        parts: list[bytes] = []
        for item in items:
            if isinstance(item, Skipped):
                self._cut()
                continue
            if item.epoch != self._epoch:
                self._cut()
                self._epoch, self._sent = item.epoch, b""
            if self._may_follow(item, parts):
                parts.append(item.data)
        return b"".join(parts)

    def _cut(self) -> None:
        if self._is_within:
            self._sent = b""  # he has a part of them
        self._is_within, self._is_cut = False, True

    def _may_follow(self, frame: Frame, parts: list[bytes]) -> bool:
        """Whether this one can be sent now, with its header pages before it where they are due."""
        if frame.header:
            if self._is_cut and _is_page(frame.data) and not frame.data[5] & 2:
                return False  # RFC 3533 §6: the first page of a chain has flag 2; it is gone
            self._sent = (self._sent if self._is_within else b"") + frame.data
            self._is_within, self._is_cut = True, False
            return True
        self._is_within = False
        if self._is_cut:
            pages = self._due(frame.data)
            if pages is None:
                return False
            parts.append(pages)
            self._is_cut = False
        return True

    def _due(self, data: bytes) -> bytes | None:
        """The header pages that this frame wants; None where they are not to be had: it belongs to
        a chain between that which he had and the newest, whose own pages are still to come."""
        header = self._header()
        if header == self._sent:
            return b""
        if _is_page(data) and data[14:18] not in serials(header):
            return b"" if data[14:18] in serials(self._sent) else None
        self._sent = header
        return header


def _is_page(data: bytes) -> bool:
    return data[:4] == b"OggS"


def serials(pages: bytes) -> Iterator[bytes]:
    """The serial number of each Ogg page (RFC 3533 §6), one behind the other."""
    at = 0
    while _is_page(pages[at:]) and len(pages) >= at + 27:
        yield pages[at + 14 : at + 18]
        segments = pages[at + 26]
        at += 27 + segments + sum(pages[at + 27 : at + 27 + segments])
