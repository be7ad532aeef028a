"""Public directories of stations (YP): the streams that say they are public are listed there.

Rules of this room
  1. Off unless a directory is named. Only a stream with a source here that says `ice-public: 1`.
  2. The protocol is that of dir.xiph.org: `add` gives a session and how often to `touch`; `remove`
     ends it. Answers are header lines (`YPResponse`, `YPMessage`, `SID`, `TouchFreq`).
  3. When what is due is decided by `Listing`, without I/O; the clock is handed in.
  4. Bounds: one call at a time to each directory, LISTED_MAX streams, a touch at most each
     TOUCH_S_MIN; back-off is jittered. What a directory says is hostile.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple
from urllib.parse import quote

from relay.backoff import Backoff
from relay.callouts import Caller, CalloutError
from relay.source_info import clean
from relay.urls import HttpUrl

log = logging.getLogger("relay.yp")

TOUCH_S, TOUCH_S_MIN, TOUCH_S_MAX = 200.0, 30.0, 3600.0
CEILING_S = 600.0
SETTLE_S = 5.0  # a stream that lasts less is not worth an entry
LISTED_MAX = 256
TIMEOUT_S = 10.0
CLOSE_S = 1.0
SID_BYTES_MAX = 128
COUNTED = ("added", "touched", "removed", "failures")

Act = Literal["add", "touch", "remove"]


class Station(NamedTuple):
    """A stream, as a directory shows it."""

    mount: str
    name: str
    content_type: str
    genre: str
    description: str
    url: str
    bitrate_kbps: str
    title: str
    listeners: int


class Verdict(NamedTuple):
    """What a directory answers."""

    is_taken: bool
    sid: str
    touch_s: float
    message: str


def read_verdict(headers: Mapping[str, str]) -> Verdict:
    """The answer in the header lines; names in any case."""
    told = {name.lower(): value.strip() for name, value in headers.items()}
    freq = told.get("touchfreq", "")
    touch_s = float(freq) if re.fullmatch(r"[0-9]{1,6}", freq) else TOUCH_S
    return Verdict(
        is_taken=told.get("ypresponse") == "1",
        sid=clean(told.get("sid", ""), SID_BYTES_MAX),
        touch_s=min(max(touch_s, TOUCH_S_MIN), TOUCH_S_MAX),
        message=clean(told.get("ypmessage", ""), 200),
    )


def form(act: Act, sid: str, station: Station | None, listen_url: str) -> dict[str, str]:
    """The fields of a call."""
    if act == "remove" or station is None:
        return {"action": "remove", "sid": sid}
    if act == "touch":
        fields = {"sid": sid, "st": station.title, "listeners": str(station.listeners)}
        return {"action": "touch", **{n: clean(v, 512) for n, v in fields.items()}}
    fields = {
        "sn": station.name,
        "genre": station.genre,
        "cpswd": "",
        "desc": station.description,
        "url": station.url,
        "listenurl": listen_url,
        "type": station.content_type,
        "b": station.bitrate_kbps,
    }
    return {"action": "add", **{name: clean(value, 512) for name, value in fields.items()}}


class Listing:
    """One stream in one directory: what is due when.

    Args:
        now: monotonic, s.
        backoff: waits after failures.
    """

    def __init__(self, now: float, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff(ceiling_s=CEILING_S)
        self.sid = ""
        self._due = now + SETTLE_S
        self.is_wanted = True

    def act(self, now: float) -> Act | None:
        """What is to be done now; None: nothing."""
        if not self.is_wanted:
            return "remove" if self.sid else None
        if now < self._due:
            return None
        return "touch" if self.sid else "add"

    @property
    def is_over(self) -> bool:
        """Whether it is neither wanted nor listed."""
        return not self.is_wanted and not self.sid

    def taken(self, act: Act, verdict: Verdict, now: float) -> bool:
        """The directory has answered; returns whether it has taken what it was told."""
        if act == "remove":
            self.sid = ""  # once is enough: an entry that is not touched goes by itself
            return verdict.is_taken
        if verdict.is_taken and (self.sid or verdict.sid):
            self.sid = verdict.sid or self.sid
            self._due = now + verdict.touch_s
            self._backoff.reset()
            return True
        self.sid = ""  # a touch that was refused: it has forgotten us
        self.failed(act, now)
        return False

    def failed(self, act: Act, now: float) -> None:
        """It could not be reached, or refused."""
        if act == "remove":
            self.sid = ""
        self._due = now + max(TOUCH_S_MIN, self._backoff.next_s())


class Directory:
    """One directory, and what of this node is listed there. Lives on the node's loop.

    Args:
        url: where it is.
        base: the URL under which listeners reach this node.
        caller: makes the calls.
        counters: are counted up.
        clock: monotonic, s.
    """

    def __init__(
        self,
        url: HttpUrl,
        base: str,
        caller: Caller,
        counters: Counter[str],
        clock: Callable[[], float],
    ) -> None:
        self._url = url
        self._base = base
        self._caller = caller
        self._counters = counters
        self._clock = clock
        self._listings: dict[str, Listing] = {}
        self._stations: dict[str, Station] = {}
        self._task: asyncio.Task[None] | None = None
        self._told = ""

    def __len__(self) -> int:
        return sum(bool(listing.sid) for listing in self._listings.values())

    def tick(self, stations: Iterable[Station]) -> None:
        """Note which streams are public now, and do what is due, one call after another."""
        now = self._clock()
        self._stations = {s.mount: s for s in stations}
        for mount in self._stations:
            if mount not in self._listings and len(self._listings) < LISTED_MAX:
                self._listings[mount] = Listing(now)
        for mount, listing in [*self._listings.items()]:
            listing.is_wanted = mount in self._stations
            if listing.is_over:
                del self._listings[mount]
        if self._task is None or self._task.done():
            due = [mount for mount, one in self._listings.items() if one.act(now)]
            self._task = asyncio.create_task(self._work(due)) if due else None

    async def _work(self, mounts: Iterable[str]) -> None:
        for mount in mounts:
            listing = self._listings.get(mount)
            act = listing.act(self._clock()) if listing else None
            if listing is not None and act is not None:
                await self._call(mount, listing, act)

    async def _call(self, mount: str, listing: Listing, act: Act) -> None:
        fields = form(act, listing.sid, self._stations.get(mount), self._base + quote(mount))
        try:
            told = await self._caller.call(self._url, fields, TIMEOUT_S)
        except CalloutError as wrong:
            listing.failed(act, self._clock())
            self._failed(mount, str(wrong))
            return
        verdict = read_verdict(told)
        if listing.taken(act, verdict, self._clock()):
            done = {"add": "added", "touch": "touched", "remove": "removed"}[act]
            self._counters[done] += 1
            if act == "add":
                self._told = ""
                more = {"event": "yp_added", "mount": mount}
                log.info("%s is listed at %s", mount, self._url, extra=more)
        else:
            self._failed(mount, f"it refuses: {verdict.message or 'without a reason'}")

    def _failed(self, mount: str, why: str) -> None:
        """One line for each new reason."""
        self._counters["failures"] += 1
        if why != self._told:
            self._told = why
            more = {"event": "yp_failed", "mount": mount}
            log.warning("listing %s at %s: %s", mount, self._url, why, extra=more)

    async def close(self) -> None:
        """Take everything off the list; at most CLOSE_S, the rest goes by itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for listing in self._listings.values():
            listing.is_wanted = False
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._work([*self._listings])
        except TimeoutError:
            pass


class Directories:
    """All directories of one node.

    Args:
        urls: of the directories.
        base: the URL under which listeners reach this node.
        agent: the User-Agent.
        clock: monotonic, s.
    """

    def __init__(
        self, urls: Iterable[HttpUrl], base: str, agent: str, clock: Callable[[], float]
    ) -> None:
        self._caller = Caller(agent)
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._all = [Directory(url, base, self._caller, self.counters, clock) for url in urls]

    def tick(self, stations: Iterable[Station]) -> None:
        """Twice a second, with what is public now; does not block."""
        told = list(stations)
        for directory in self._all:
            directory.tick(told)

    def snapshot(self) -> dict[str, int]:
        """Counters by name."""
        counted = {f"yp_{name}_total": count for name, count in self.counters.items()}
        return {"yp_listed": sum(map(len, self._all)), **counted}

    async def close(self) -> None:
        """Take everything off the lists."""
        await asyncio.gather(*(directory.close() for directory in self._all))
        await self._caller.close()
