"""Call-outs to the operator's scripts: may this one listen or send; who has come, who has gone.

Rules of this room
  1. Icecast's URL authentication: a POST of form fields, an answer in header lines. What a listener
     or a source says goes into it encoded, on one line, bounded.
  2. In the slow door alone. A question waits callout_timeout_s at most, with at most CALLS_MAX
     others; when nobody answers, `on_outage` says what holds.
  3. Notes (somebody left, a mount has a source) wait in bounded queues; what finds no room is
     dropped and counted. Notes about one listener or mount keep their order.
  4. A ticket stands for one listener from his admission to his end; LIVE_MAX of them are kept.
  5. An account in a URL, and a listener's password, are never logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from relay.auth import account_in, credentials, shoutcast_secret
from relay.errors import RelayError
from relay.joining import Allow, Deny, Join, Verdict
from relay.source_info import clean
from relay.urls import HttpUrl, parse_http_url

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from relay.address import Address
    from relay.config import Config
    from relay.source_http import Request

log = logging.getLogger("relay.callouts")

CALLS_MAX = 64  # at once, of one caller
QUEUES = 8
NOTES_MAX = 512  # of each queue
LIVE_MAX = 1_000_000
ENDED_MAX = 1024  # with one order to the engine
JOIN_S = 60.0  # from the answer to the engine's word that he listens
FIELD_BYTES_MAX = 1024
TIMELIMIT_S_MAX = 366 * 86_400
CLOSE_S = 0.5
QUIET_S = 10.0  # between log lines about one URL
COUNTED = ("allowed", "denied", "outages", "limited", "notes", "notes_failed", "notes_dropped")


class CalloutError(Exception):
    """Nobody answered, and why."""


class Answer(NamedTuple):
    """What a script says."""

    is_allowed: bool
    limit_s: float  # how long he may listen; 0: no limit
    message: str  # why not, as the script puts it
    is_outage: bool = False  # nobody said so


class Who(NamedTuple):
    """Whom a call-out is about: as he says himself, but the address."""

    mount: str  # with his query behind a question mark
    address: str
    agent: str
    user: str
    password: str


def read_answer(headers: Mapping[str, str]) -> Answer:
    """What the header lines of a reply say; names in any case.

    Icecast's documentation, "Listener authentication": `icecast-auth-user: 1` lets him in,
    `icecast-auth-timelimit` is in seconds, `icecast-auth-message` tells why not.
    """
    told = {name.lower(): value.strip() for name, value in headers.items()}
    limit = told.get("icecast-auth-timelimit", "")
    limit_s = float(limit) if re.fullmatch(r"[0-9]{1,9}", limit) else 0.0
    return Answer(
        is_allowed=told.get("icecast-auth-user", "") == "1",
        limit_s=min(limit_s, TIMELIMIT_S_MAX),
        message=clean(told.get("icecast-auth-message", ""), 200),
    )


def who_asks(mount: str, query: Mapping[str, str], headers: Mapping[str, str], address: str) -> Who:
    """Whom a request is of; the names of `headers` are in lower case."""
    user, password = credentials(headers.get("authorization")) or ("", "")
    full = f"{mount}?{urlencode(query)}" if query else mount
    return Who(full, address, headers.get("user-agent", ""), user, password)


def form(action: str, server: str, port: int, client: int | str, who: Who) -> dict[str, str]:
    """The fields of a question, by Icecast's names."""
    fields = {
        "action": action,
        "server": server,
        "port": str(port),
        "client": str(client),
        "mount": who.mount,
        "user": who.user,
        "pass": who.password,
        "ip": who.address,
        "agent": who.agent,
    }
    return {name: clean(value, FIELD_BYTES_MAX) for name, value in fields.items()}


class Outages:
    """Tells of URLs that nobody answers at: one line about each in QUIET_S, however many ask; there
    are as many URLs as the settings name.

    Args:
        clock: monotonic, s.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}

    def tell(self, url: HttpUrl, why: str) -> None:
        """Log it, if nothing was told of this URL a moment ago."""
        now = self._clock()
        if now - self._told.get(str(url), -QUIET_S) >= QUIET_S:
            self._told[str(url)] = now
            log.warning("call-out to %s: %s", url, why, extra={"event": "callout_failed"})


class Caller:
    """POSTs forms; belongs to the loop of its first call.

    Args:
        agent: the User-Agent.
    """

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._session: ClientSession | None = None
        self._calls = asyncio.Semaphore(CALLS_MAX)

    async def call(
        self, url: HttpUrl, fields: Mapping[str, str], timeout_s: float
    ) -> Mapping[str, str]:
        """The header lines of the answer. Waits at most `timeout_s`.

        Raises:
            CalloutError: no answer, or a server's error without a verdict.
        """
        from aiohttp import ClientError, DummyCookieJar

        try:
            async with asyncio.timeout(timeout_s), self._calls:
                headers = {"Authorization": url.authorization} if url.authorization else {}
                if self._session is None:
                    self._session = self._open(DummyCookieJar())
                async with self._session.post(
                    url.bare, data=dict(fields), headers=headers, allow_redirects=False
                ) as reply:
                    told = {name.lower(): value for name, value in reply.headers.items()}
                    if reply.status >= 500 and "icecast-auth-user" not in told:
                        raise CalloutError(f"it answers {reply.status}")
                    return told
        except TimeoutError:
            raise CalloutError(f"no answer in {timeout_s:g} s") from None
        except (OSError, ClientError, ValueError) as error:
            raise CalloutError(clean(str(error) or type(error).__name__, 200)) from None

    def _open(self, jar: object) -> ClientSession:
        from aiohttp import ClientSession, ClientTimeout, TCPConnector

        return ClientSession(
            connector=TCPConnector(limit=CALLS_MAX),
            cookie_jar=jar,  # type: ignore[arg-type]
            timeout=ClientTimeout(total=None),  # ours is above
            headers={"User-Agent": self._agent},
        )

    async def close(self) -> None:
        """Close its connections. Twice is no error."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


# --- notes ---------------------------------------------------------------------------------------


class Note(NamedTuple):
    """Something that a script is told, without an answer."""

    url: HttpUrl
    fields: dict[str, str]
    timeout_s: float


class Notes:
    """Queues of notes with a worker each; lives on one loop.

    Args:
        caller: sends them.
        counters: `notes`, `notes_failed` and `notes_dropped` are counted up.
        failed: is told the URL and why.
    """

    def __init__(
        self, caller: Caller, counters: Counter[str], failed: Callable[[HttpUrl, str], None]
    ) -> None:
        self._caller = caller
        self._counters = counters
        self._failed = failed
        self._queues: list[asyncio.Queue[Note]] = [asyncio.Queue(NOTES_MAX) for _ in range(QUEUES)]
        self._workers: list[asyncio.Task[None]] = []

    def put(self, key: int | str, note: Note) -> None:
        """Queue a note behind those of the same key. Does not block."""
        if not self._workers:
            self._workers = [asyncio.create_task(self._work(queue)) for queue in self._queues]
        try:
            self._queues[hash(key) % QUEUES].put_nowait(note)
        except asyncio.QueueFull:
            self._counters["notes_dropped"] += 1

    async def _work(self, queue: asyncio.Queue[Note]) -> None:
        while True:
            note = await queue.get()
            try:
                await self._caller.call(note.url, note.fields, note.timeout_s)
                self._counters["notes"] += 1
            except CalloutError as wrong:
                self._counters["notes_failed"] += 1
                self._failed(note.url, str(wrong))
            finally:
                queue.task_done()

    async def close(self) -> None:
        """Send what waits, for at most CLOSE_S; the rest is dropped, counted."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*(queue.join() for queue in self._queues))
        self._counters["notes_dropped"] += sum(queue.qsize() for queue in self._queues)
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers = []


# --- listeners -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Live:
    """One listener who was let in."""

    who: Who
    mount: str  # that he asked for; an administrator may have sent him to another
    id: int = 0  # the engine's; 0: not yet seen to listen
    is_missing: bool = False  # the engine had nobody with this id to end


class Book:
    """Who was let in, by ticket: pure, the clock is handed in."""

    def __init__(self, live_max: int = LIVE_MAX) -> None:
        self._live: dict[int, Live] = {}
        self._tickets = itertools.count(1)
        self._live_max = live_max
        self._limits: list[tuple[float, int]] = []  # a heap: when whose time is over
        self._fresh: deque[tuple[float, int]] = deque()  # when whom the engine must have by

    def __len__(self) -> int:
        return len(self._live)

    def ticket(self) -> int:
        """A number for somebody who may be let in."""
        return next(self._tickets)

    def enter(self, ticket: int, mount: str, who: Who, limit_s: float, now: float) -> None:
        """He is let in; beyond the bound the oldest is forgotten."""
        if len(self._live) >= self._live_max:
            del self._live[next(iter(self._live))]
        self._live[ticket] = Live(who, mount)
        self._fresh.append((now + JOIN_S, ticket))
        if limit_s:
            heapq.heappush(self._limits, (now + limit_s, ticket))

    def joined(self, ticket: int, id_: int) -> None:
        """The engine serves him, and calls him so."""
        if live := self._live.get(ticket):
            live.id = id_

    def left(self, ticket: int) -> Live | None:
        """He has gone: who it was."""
        return self._live.pop(ticket, None)

    def overdue(self, now: float) -> list[tuple[int, Live]]:
        """Those who listen and whose time is over, ENDED_MAX at most. Each is told once; see
        `again`."""
        due: list[tuple[int, Live]] = []
        waits: list[int] = []
        while self._limits and self._limits[0][0] <= now and len(due) < ENDED_MAX:
            ticket = heapq.heappop(self._limits)[1]
            live = self._live.get(ticket)
            if live is not None and live.id:
                due.append((ticket, live))
            elif live is not None:
                waits.append(ticket)
        for ticket in waits:
            self.again(ticket, now)
        return due

    def again(self, ticket: int, now: float) -> None:
        """His end has not come about: he is told once more, a second later."""
        heapq.heappush(self._limits, (now + 1.0, ticket))

    def never_came(self, now: float) -> list[tuple[int, Live]]:
        """Those who were let in and whom the engine never had: gone on the way."""
        gone: list[tuple[int, Live]] = []
        while self._fresh and self._fresh[0][0] <= now:
            ticket = self._fresh.popleft()[1]
            live = self._live.get(ticket)
            if live is not None and not live.id:
                gone.append((ticket, live))
                del self._live[ticket]
        return gone


Visit = tuple[int, int, int, str, int, int, int, str | None, int]
"""A record of the engine: at_us, stream, id, address, port, listened_us, sent_bytes, reason of the
end or None, ticket."""


class Callouts:
    """The call-outs of one node about listeners and mounts; lives on the node's loop.

    Args:
        config: the URLs of each mount.
        agent: the User-Agent.
        where: host and port that scripts are told as ours.
        end: ends the listeners with these ids; returns the ids of those who were there.
        clock: monotonic, s.
    """

    def __init__(
        self,
        config: Config,
        *,
        agent: str,
        where: Callable[[], tuple[str, int]],
        end: Callable[[list[int]], Awaitable[set[int]]],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._where = where
        self._end = end
        self._clock = clock
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._caller = Caller(agent)
        self._outages = Outages(clock)
        self._notes = Notes(self._caller, self.counters, self._outages.tell)
        self._book = Book()
        self._ending: asyncio.Task[None] | None = None
        self._mounts: set[str] = set()

    def snapshot(self) -> dict[str, int]:
        """Counters by name."""
        return {f"callout_{name}_total": count for name, count in self.counters.items()}

    async def may_listen(self, mount: str, who: Who) -> tuple[Answer, int]:
        """Ask about a listener of this mount; the answer, and his ticket where he is let in.

        Waits at most callout_timeout_s. Nobody is asked where the mount has no `listener_add`.
        """
        told = self._config.for_stream(mount)
        wants_to_know = told.listener_remove is not None
        if told.listener_add is None and not wants_to_know:
            return Answer(True, 0.0, ""), 0
        ticket, answer = self._book.ticket(), Answer(True, 0.0, "")
        if told.listener_add is not None:
            url = parse_http_url(told.listener_add)
            fields = form("listener_add", *self._where(), ticket, who)
            answer = await self._ask(url, fields, told.callout_timeout_s, told.on_outage)
        if not answer.is_allowed:
            return answer, 0
        if wants_to_know or answer.limit_s:
            self._book.enter(ticket, mount, who, answer.limit_s, self._clock())
        return answer, ticket

    async def _ask(
        self, url: HttpUrl, fields: Mapping[str, str], timeout_s: float, on_outage: str
    ) -> Answer:
        try:
            answer = read_answer(await self._caller.call(url, fields, timeout_s))
        except CalloutError as wrong:
            self.counters["outages"] += 1
            self._outages.tell(url, f"{wrong}; on_outage says {on_outage}")
            is_allowed = on_outage == "allow"
            return Answer(is_allowed, 0.0, "nobody can say whether you may listen", True)
        self.counters["allowed" if answer.is_allowed else "denied"] += 1
        return answer

    async def ask(self, join: Join) -> Verdict:
        """The same as a hook of `relay.joining`: a refusal is 401, as Icecast's, an outage 503."""
        who = who_asks(join.mount, join.query, join.headers, join.address)
        answer, ticket = await self.may_listen(join.mount, who)
        if answer.is_allowed:
            return Allow(ticket=ticket)
        return Deny(503 if answer.is_outage else 401, answer.message)

    def see(self, visits: Iterable[Visit]) -> None:
        """Who has come and gone, from the engine."""
        for _, _, id_, _, _, listened_us, sent_bytes, reason, ticket in visits:
            if not ticket:
                continue
            if reason is None:
                self._book.joined(ticket, id_)
            elif live := self._book.left(ticket):
                self._gone(ticket, live, listened_us // 1_000_000, sent_bytes)

    def _gone(self, ticket: int, live: Live, seconds: int, sent_bytes: int) -> None:
        told = self._config.for_stream(live.mount)
        if told.listener_remove is not None:
            fields = form("listener_remove", *self._where(), ticket, live.who)
            fields |= {"duration": str(seconds), "sent": str(sent_bytes)}
            url = parse_http_url(told.listener_remove)
            self._notes.put(ticket, Note(url, fields, told.callout_timeout_s))

    def tick(self, mounts: Iterable[str]) -> None:
        """Twice a second: end those whose time is over, tell which mounts have a source now."""
        at = self._clock()
        if (self._ending is None or self._ending.done()) and (due := self._book.overdue(at)):
            self._ending = asyncio.create_task(self._end_overdue(due))
        for ticket, live in self._book.never_came(at):
            self._gone(ticket, live, 0, 0)
        now = set(mounts)
        for mount in sorted(now - self._mounts):
            self._mount("mount_add", mount, self._config.for_stream(mount).mount_add)
        for mount in sorted(self._mounts - now):
            self._mount("mount_remove", mount, self._config.for_stream(mount).mount_remove)
        self._mounts = now

    async def _end_overdue(self, due: list[tuple[int, Live]]) -> None:
        """End these, and count who was there to be ended.

        Who was not has left, and the engine's word of it is on its way. Where that was lost (it
        keeps so many a shard), he is forgotten at the second look.
        """
        try:
            ended = await self._end([live.id for _, live in due])
        except RelayError as wrong:  # a shard is stuck, or the node closes
            log.warning("time limits: %s", wrong, extra={"event": "limit_failed"})
            for ticket, _ in due:
                self._book.again(ticket, self._clock())
            return
        for ticket, live in due:
            if live.id in ended:
                self.counters["limited"] += 1
            elif live.is_missing:
                self._book.left(ticket)
            else:
                live.is_missing = True
                self._book.again(ticket, self._clock())

    def _mount(self, action: str, mount: str, told: str | None) -> None:
        if told is None:
            return
        server, port = self._where()
        fields = {"action": action, "mount": mount, "server": server, "port": str(port)}
        timeout_s = self._config.for_stream(mount).callout_timeout_s
        self._notes.put(mount, Note(parse_http_url(told), fields, timeout_s))

    async def close(self) -> None:
        """Send the last notes; at most CLOSE_S."""
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.gather(self._ending, return_exceptions=True)
        await self._notes.close()
        await self._caller.close()


class SourceCallouts:
    """Call-outs about sources; lives on one loop, that of the source door or that of the pages.

    Args:
        config, agent, where, clock: as for `Callouts`.
    """

    def __init__(
        self,
        config: Config,
        *,
        agent: str,
        where: Callable[[], tuple[str, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._where = where
        self._caller = Caller(agent)
        self._clients = itertools.count(1)
        self._outages = Outages(clock)

    def asks_about(self, mount: str) -> bool:
        """Whether a script decides who may be the source of this mount."""
        return bool(mount) and self._config.for_stream(mount).stream_auth is not None

    def must_ask(self, request: Request) -> bool:
        """Whether a script decides about this request: of a source that says who it is."""
        if request.method not in {"PUT", "SOURCE"} or "authorization" not in request.headers:
            return False
        with contextlib.suppress(RelayError):  # no mount at all: refused without being asked about
            return self.asks_about(request.mount)
        return False

    async def may_send(self, request: Request, address: str) -> bool:
        """Ask about a source. Where nobody answers, nobody may, whatever `on_outage` says: a
        stranger on the air is worse than none."""
        mount = request.mount
        return await self._ask(mount, who_asks(mount, {}, request.headers, address))

    async def may_set_title(self, who: Who) -> bool:
        """Ask about who sets a title, as about a source. Icecast's documentation, "stream_auth":
        such a request has `admin` set to 1."""
        if not who.user:  # SHOUTcast's: a user may stand before it, a stream id behind it
            user, password = account_in(shoutcast_secret(who.password)[0])
            who = who._replace(user=user, password=password)
        return await self._ask(who.mount, who, admin="1")

    async def _ask(self, mount: str, who: Who, **more: str) -> bool:
        told = self._config.for_stream(mount)
        assert told.stream_auth is not None
        url = parse_http_url(told.stream_auth)
        fields = form("stream_auth", *self._where(), next(self._clients), who) | more
        try:
            answer = read_answer(await self._caller.call(url, fields, told.callout_timeout_s))
        except CalloutError as wrong:
            self._outages.tell(url, f"{wrong}; nobody may be the source")
            return False
        return answer.is_allowed

    async def close(self) -> None:
        """Close its connections."""
        await self._caller.close()


def wants_callouts(config: Config) -> bool:
    """Whether any mount has a call-out about listeners or mounts."""
    names = ("listener_add", "listener_remove", "mount_add", "mount_remove")
    tables = (config.defaults, *config.streams.values())
    return any(getattr(table, name) is not None for table in tables for name in names)


def asks_of_sources(config: Config) -> bool:
    """Whether any mount has a script that says who may be its source."""
    tables = (config.defaults, *config.streams.values())
    return any(table.stream_auth is not None for table in tables)


def place_of(config: Config, http: Address | None) -> tuple[str, int]:
    """Host and port that scripts are told: the door's, or this node's name where it has none."""
    if http is None or http.is_unspecified:
        return config.node.name, 0 if http is None else http.port
    return http.host, http.port
