"""Streams that this node fetches from servers over HTTP: Icecast, SHOUTcast, or anything alike.

Rules of this room
  1. One thread, one event loop for all pulls, apart from the node's. A pulled stream is a local
     source like any other: same epochs, same linger, same refusals.
  2. When which address is asked is decided by `Plan`, without I/O and with the clock handed in.
  3. Every wait has a bound; back-off is jittered; at most DIALS_MAX connections are made at once.
  4. A node never pulls from itself: neither directly nor round about (`icy-relay-via`).
  5. What a server says is hostile: titles and header lines go through relay.source, as an encoder's
     do. An account in an address is never logged. One log line for each change.

        idle ──wanted──► connecting ──audio──► up ──lost──► waiting ──due──► connecting
        up, waiting ──nobody wants it for pull_idle_s──► idle
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from relay.address import Address
from relay.errors import MountError, SourceError
from relay.formats import DETECT_BYTES, KINDS, detect, format_of
from relay.pull_dial import ANSWER_S, READ_BYTES, Dialler, Link
from relay.pull_dial import why as _why
from relay.pull_http import Coding, Head, IcyBody, PullError, coding_of, metaint_of
from relay.pull_plan import Plan
from relay.urls import parse_http_url

if TYPE_CHECKING:
    from relay._core import Engine
    from relay.config import Config, StreamConfig
    from relay.source import LocalSource
    from relay.sources import Sources

log = logging.getLogger("relay.pull")

TICK_S = 0.25
CLOSE_S = 1.0
UNKNOWN = b"icy-pub:0\r\n"  # of a stream that was never here: directories list none without a line
COUNTED = ("attempts", "failures", "redirects", "loops", "received_bytes")

State = Literal["idle", "connecting", "up", "waiting"]


class PullFacts(NamedTuple):
    """How a pull stands."""

    url: str  # without account
    state: State
    error: str  # why it is not up; "" while it is, or was never tried
    attempts: int


# --- one pull ------------------------------------------------------------------------------------


def content_type_of(head: Head, first: bytes) -> str:
    """What the stream is: as the server says, or where that is no type we carry, by its bytes."""
    said = head.headers.get("content-type", "")
    try:
        return format_of(said).content_type
    except SourceError:
        kind = detect(first)
        if kind in KINDS:
            return KINDS[kind].content_type
        if said:
            raise
        return KINDS["mpeg"].content_type  # SHOUTcast v1 says nothing, and means this


class Watch:
    """Ends a connection that brings no audio; looked at with all others, not with each read."""

    def __init__(self, transport: asyncio.WriteTransport, due: float) -> None:
        self._transport = transport
        self.due = due  # monotonic
        self.is_over = False

    def look(self, now: float) -> None:
        """Whoever reads from it finds its end."""
        if now > self.due and not self.is_over:
            self.is_over = True
            self._transport.abort()


class Pull:
    """One mount that is pulled: a task of the pulls' loop.

    Args:
        mount: where the stream goes.
        plan: when, and from where.
        pulls: the house that it lives in.
    """

    def __init__(self, mount: str, plan: Plan, pulls: Pulls) -> None:
        self.mount = mount
        self.plan = plan
        self._pulls = pulls
        self._news = asyncio.Event()
        self._info = b""
        self._told = ""
        self._watch: Watch | None = None
        self.url = plan.url
        self.state: State = "idle"
        self.error = ""
        self.attempts = 0

    def facts(self) -> PullFacts:
        """How it stands."""
        return PullFacts(str(self.url), self.state, self.error, self.attempts)

    def look(self, now: float) -> None:
        """Have the mount listed, and note who wants it. About four times a second; does not
        block."""
        if self._watch is not None:
            self._watch.look(now)
        engine = self._pulls.engine
        stream = engine.find(self.mount)
        if stream is None:
            self._list(engine)
            return
        if not self.plan.on_demand:
            return
        told = stream.snapshot()
        self.plan.note_demand(bool(told["listeners"] or told["readers"] or told["downstream"]), now)
        if self.state == "idle" and self.plan.is_wanted(now):
            self._news.set()

    def _list(self, engine: Engine) -> None:
        """Let the mount be there without a source: who asks for it waits, here and downstream."""
        try:
            stream = engine.add_stream(self.mount)
            stream.claim()
            try:
                stream.set_info(self._info or UNKNOWN)
            finally:
                stream.unclaim()
        except MountError as wrong:  # a source took it a moment ago, or there is no room
            self._say(str(wrong))

    async def run(self) -> None:
        """Pull for ever."""
        clock = self._pulls.clock
        while True:
            while not self.plan.is_wanted(clock()):
                self.state, self.error = "idle", ""
                self._news.clear()
                await self._news.wait()
            if (wait_s := self.plan.due - clock()) > 0:
                self.state = "waiting"
                await asyncio.sleep(min(wait_s, TICK_S) if self.plan.on_demand else wait_s)
                continue
            try:
                await self._attempt()
            except Exception as error:  # a fault of ours in one pull is not the end of it
                log.exception("pull of %s", self.mount)
                self._failed(f"{self.url}: {_why(error)}", self.plan.failed(clock()))

    async def _attempt(self) -> None:
        clock = self._pulls.clock
        self.url, self.state = self.plan.url, "connecting"
        self.attempts += 1
        self._pulls.counters["attempts"] += 1
        try:
            link = await self._pulls.dialler.open(self.url)
        except PullError as wrong:
            self._failed(str(wrong), self.plan.failed(clock()))
            return
        try:
            media_s, why = await self._stream(link)
        except (SourceError, MountError) as wrong:
            self._failed(f"{link.url}: {wrong}", self.plan.failed(clock()))
            return
        finally:
            link.writer.transport.abort()
        if why:
            self._failed(f"{link.url}: {why}", self.plan.lost(media_s, clock()))

    def _failed(self, why: str, wait_s: float) -> None:
        self._pulls.counters["failures"] += 1
        self.error, self.state = why, "waiting"
        self._say(f"{why}; {f'trying again in {wait_s:.1f} s' if wait_s else 'the next address'}")

    def _say(self, text: str) -> None:
        """One line for each change: a day without the server is one, whatever the wait."""
        what = text.rpartition("; ")[0]
        if what == self._told:
            return
        self._told = what
        more = {"event": "pull_failed", "mount": self.mount}
        log.warning("pull of %s: %s", self.mount, text, extra=more)

    async def _stream(self, link: Link) -> tuple[float, str]:
        """Take audio until it ends: seconds of it, and why ("": nobody wants it any more)."""
        coding = coding_of(link.head.headers)
        body = IcyBody(metaint_of(link.head.headers))
        first = coding.feed(link.first)
        pieces = list(body.feed(first))
        if not any(isinstance(piece, bytes) for piece in pieces):
            try:
                pieces += await self._first_audio(link, coding, body)
            except OSError as error:
                raise PullError(f"was lost: {_why(error)}") from None
        audio = b"".join(piece for piece in pieces if isinstance(piece, bytes))
        content_type = content_type_of(link.head, audio[:DETECT_BYTES])
        sources = self._pulls.sources
        headers = self._pulls.dialler.told(link.head)
        source = sources.open(self.mount, content_type, headers, yields=True)
        self._info = source.stream.info()
        taking = Taking(source, body, self._pulls.ahead_us(self.mount))
        reason = "ended"
        try:
            await asyncio.sleep(taking.take(pieces))
            why = await self._follow(link, coding, taking)
            reason = "silent" if why.startswith("no audio") else "closed" if why else "ended"
        except OSError as error:
            reason, why = "lost", f"was lost: {_why(error)}"
        except SourceError:
            reason = "broken"
            raise
        except asyncio.CancelledError:
            reason = "shutdown"
            raise
        finally:
            sources.close(source, reason)
            self._ended(source, taking)
        if not why:
            self._forget(source)
        return taking.media_us / 1e6, why

    async def _first_audio(self, link: Link, coding: Coding, body: IcyBody) -> list[bytes | str]:
        """The first pieces with audio in them, for who says not what he sends."""
        pieces: list[bytes | str] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while not coding.is_ended and (data := await link.reader.read(READ_BYTES)):
                    pieces += body.feed(coding.feed(data))
                    if any(isinstance(piece, bytes) for piece in pieces):
                        return pieces
        raise PullError("it sends no audio")

    async def _follow(self, link: Link, coding: Coding, taking: Taking) -> str:
        """Read and feed; returns why it ended, "" where nobody wants it any more."""
        clock, timeout_s = self._pulls.clock, self._pulls.timeout_s(self.mount)
        media_us = -1
        self._watch = Watch(link.writer.transport, clock() + timeout_s)
        try:
            while self.plan.is_wanted(clock()):
                if taking.media_us != media_us:
                    media_us, self._watch.due = taking.media_us, clock() + timeout_s
                    if media_us and self.state != "up":
                        self._up(link, taking.source)
                if coding.is_ended:
                    return "its body has ended"
                data = await link.reader.read(READ_BYTES)
                if self._watch.is_over:
                    return f"no audio for {timeout_s:g} s"
                if not data:
                    return "the server closed the connection"
                self._pulls.counters["received_bytes"] += len(data)
                if held_s := taking.take(taking.body.feed(coding.feed(data))):
                    self._watch.due = clock() + held_s + timeout_s  # held back: not its fault
                    await asyncio.sleep(held_s)
            return ""
        finally:
            self._watch = None

    def _up(self, link: Link, source: LocalSource) -> None:
        self.url, self.state, self.error, self._told = link.url, "up", "", ""
        log.info(
            "source up: %s pulled from %s, %s, epoch %d",
            *(self.mount, link.url, source.format.kind, source.epoch),
            extra={"event": "source_up", "mount": self.mount, "epoch": source.epoch},
        )

    def _ended(self, source: LocalSource, taking: Taking) -> None:
        if self.state != "up":
            return
        log.info(
            "source down: %s pulled from %s, after %.1f s of audio",
            *(self.mount, self.url, taking.media_us / 1e6),
            extra={"event": "source_down", "mount": self.mount, "epoch": source.epoch},
        )

    def _forget(self, source: LocalSource) -> None:
        """Take the stream off the node, so that who comes next hears nothing old; `look` lists the
        mount again. Not where somebody has come meanwhile."""
        told = source.stream.snapshot()
        if told["listeners"] or told["readers"] or told["downstream"]:
            return
        try:
            source.stream.claim()
        except MountError:
            return
        self._pulls.engine.remove_stream(source.stream)
        self._list(self._pulls.engine)


class Taking:
    """Feeds what comes, and tells by how much it comes faster than it is heard."""

    def __init__(self, source: LocalSource, body: IcyBody, ahead_us_max: int) -> None:
        self.source = source
        self.body = body
        self._ahead_us_max = ahead_us_max
        self._title: str | None = None

    @property
    def media_us(self) -> int:
        """Media time taken so far."""
        return self.source.media_us()

    def take(self, pieces: Iterable[bytes | str]) -> float:
        """Feed these; returns how long to wait before the next, seconds."""
        ahead_us = 0
        for piece in pieces:
            if isinstance(piece, bytes):
                ahead_us = self.source.feed(piece)
            elif piece != self._title:
                self._title = piece
                self.source.title(piece)
        return max(0.0, (ahead_us - self._ahead_us_max) / 1e6)


# --- all of them ---------------------------------------------------------------------------------


class Pulls:
    """All pulls of one node, on a thread of their own.

    Args:
        engine: the node's data plane.
        sources: claims mounts and gives them back.
        config: which mounts are pulled, and from where.
        agent: the User-Agent.
        own: where this node's own door is.
    """

    def __init__(
        self,
        engine: Engine,
        sources: Sources,
        config: Config,
        *,
        agent: str,
        own: Callable[[], Address | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.sources = sources
        self.clock = clock
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self.dialler: Dialler
        self._config = config
        self._agent = agent
        self._own = own
        self._pulls: dict[str, Pull] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    def timeout_s(self, mount: str) -> float:
        """Silence after which what is pulled for this mount counts as lost."""
        return self._config.source_timeout_s(mount)

    def ahead_us(self, mount: str) -> int:
        """How far this mount's source may run ahead of real time."""
        return self._config.for_stream(mount).ahead_ms * 1000

    def start(self) -> None:
        """Begin; a node that pulls nothing gets no thread."""
        wanted = {m: s for m in self._config.mounts() if (s := self._config.for_stream(m)).pull}
        if not wanted:
            return
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(wanted, ready), name="relay-pulls", daemon=True
        )
        self._thread.start()
        ready.wait(CLOSE_S)

    def _run(self, wanted: dict[str, StreamConfig], ready: threading.Event) -> None:
        asyncio.run(self._main(wanted, ready))

    async def _main(self, wanted: dict[str, StreamConfig], ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.dialler = Dialler(self._agent, self.engine.node_id, self._own, self.counters)
        for mount, told in wanted.items():
            urls = [parse_http_url(text) for text in told.pull]
            plan = Plan(urls, on_demand=told.pull_on_demand, idle_s=told.pull_idle_s)
            self._pulls[mount] = Pull(mount, plan, self)
        self._look()
        ready.set()
        tasks = [asyncio.create_task(pull.run()) for pull in self._pulls.values()]
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), TICK_S)
            self._look()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _look(self) -> None:
        now = self.clock()
        for pull in self._pulls.values():
            pull.look(now)

    def close(self) -> None:
        """End all pulls; blocks until they have ended, at most CLOSE_S."""
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        thread.join(CLOSE_S)

    def facts(self) -> dict[str, dict[str, Any]]:
        """How each pull stands, by mount: the fields of `PullFacts`."""
        return {mount: pull.facts()._asdict() for mount, pull in self._pulls.items()}

    def snapshot(self) -> dict[str, int]:
        """Counters by name."""
        told = {f"pull_{name}_total": count for name, count in self.counters.items()}
        up = sum(pull.state == "up" for pull in self._pulls.values())
        return {"pulls": len(self._pulls), "pulls_up": up, **told}
