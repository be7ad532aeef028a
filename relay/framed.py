"""One source of several origins: frames are cut once, and each origin gets the same.

Rules of this room
  1. What is cut lies in a ring of the engine, which is the backlog: bounded, and in order. Each
     origin has a thread, a connection and a cursor of its own; none waits for another, and whoever
     feeds waits for nobody.
  2. An origin that comes (back) gets what the ring holds, from its oldest frame on. What it has
     already is a duplicate there.
  3. An origin that is too slow is left behind: it begins anew at the oldest frame, and counts what
     it missed.
  4. Every wait has a bound; back-off is jittered.
  5. When the mount has had a newer epoch, ours has lost: feeding ends with EpochLostError, and
     whoever owns the input begins a new source. Not while another origin has us, or may have.
  6. This room knows no codec and no input; the body is that of docs/wire.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Self
from urllib.parse import unquote

from relay import _core
from relay.backoff import Backoff
from relay.errors import ConfigError, EpochLostError, RelayError, SourceError
from relay.icecast import SEND_S, Connection, PushError, Target, parse_url
from relay.running import check_process, in_thread, is_forked
from relay.source import LocalSource
from relay.source_http import BACKLOG_S_MAX, FRAMING_VERSION

if TYPE_CHECKING:
    from relay._core import Stream

ORIGINS_MAX = 8
BACKLOG_S = 20
BACKLOG_BYTES_MAX = 64 << 20
IDLE_S = 0.5  # between looks at a connection on which there is nothing to send
CEILING_S = 2.0  # the other origins go on meanwhile, so being back soon is worth the attempts
STEADY_S = 10.0
CLOSE_S = 5.0
LOST_STATUS = 410  # the mount has had a newer epoch
SWEEP_S = 1.0

log = logging.getLogger("relay.framed")

State = Literal["connecting", "connected", "refused", "ended"]


class Cursor:
    """Where one origin is in the ring, as messages of a framed body."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._at: int | None = None  # the next sequence; None: begin at the oldest
        self.is_ended = False  # the end of the epoch has been taken
        self.overtaken_total = 0

    def take(self) -> bytes:
        """The next messages; nothing while no newer frame is there. Does not block."""
        if self._at is not None:
            found = self._stream.framed_run(self._at)
            if found is not None:
                data, self._at = found
                self.is_ended = self._at is None
                return data
            self.overtaken_total += 1
        data, self._at = self._stream.framed_here()
        return data


class OriginFacts(NamedTuple):
    """How one origin takes the source."""

    url: str  # without password
    state: State
    sent_bytes: int
    lost_total: int  # connections that broke
    overtaken_total: int  # times that it was too slow and left behind
    error: str  # why it is not connected; "" while it is


class Link:
    """One origin: a thread that keeps its connection up and sends what the ring has.

    Args:
        shown: the origin's URL, without password.
        dial: opens a connection; PushError. Blocks.
        stream: whose frames are sent.
        say: is told of changes, one line each.
        backoff: how long to wait between attempts.
        now: monotonic seconds.
    """

    def __init__(
        self,
        shown: str,
        dial: Callable[[], Connection],
        stream: Stream,
        say: Callable[[str], None],
        *,
        backoff: Backoff | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shown = shown
        self._dial = dial
        self._stream = stream
        self._say = say
        self._backoff = backoff or Backoff(ceiling_s=CEILING_S)
        self._now = now
        self._news = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay-origin", daemon=True)
        self._sent_bytes = self._lost_total = self._overtaken_total = 0
        self._state: State = "connecting"
        self._error = ""
        self.is_whole = False  # the end of the epoch has been sent, and taken
        # what the last attempt to connect came to: a status, 0 for no answer; None: it succeeded
        self.answered: int | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the ring."""
        self._news.set()

    def stop(self) -> None:
        """Do not connect again."""
        self._stop.set()
        self._news.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, timeout_s))

    def facts(self) -> OriginFacts:
        """Its state of this moment."""
        return OriginFacts(
            self.shown,
            self._state,
            self._sent_bytes,
            self._lost_total,
            self._overtaken_total,
            self._error,
        )

    def _run(self) -> None:
        while not self._stop.is_set():
            is_there = False
            try:
                connection = self._dial()
                is_there = True
                began = self._now()
                self._connected()
                try:
                    self._serve(connection)
                    return
                finally:
                    self._lost_total += not self.is_whole
                    connection.abort()
                    if self._now() - began >= STEADY_S:
                        self._backoff.reset()
            except PushError as error:
                if not is_there:
                    self.answered = error.status
                if error.final:
                    self._refused(error)
                    return
                self._failed(error)
            except RelayError as error:  # the ring is gone: whoever owned it closed
                self._error = str(error)
                return
        self._state = "ended"

    def _serve(self, connection: Connection) -> None:
        cursor = Cursor(self._stream)
        while not cursor.is_ended:
            data = cursor.take()
            if data:
                connection.send(data)
                self._sent_bytes += len(data)
            elif self._stop.is_set():
                return
            else:
                connection.heed()
                self._news.wait(IDLE_S)
                self._news.clear()
            if cursor.overtaken_total:
                self._overtaken_total += cursor.overtaken_total
                cursor.overtaken_total = 0
        connection.close()
        self.is_whole = True
        self._state = "ended"

    def _connected(self) -> None:
        self._state = "connected"
        self.answered = None
        if self._error:
            self._say(f"{self.shown}: connected")
        self._error = ""

    def _refused(self, error: PushError) -> None:
        self._state = "refused"
        self._error = str(error)
        self._say(f"{error}; this origin is given up")

    def _failed(self, error: PushError) -> None:
        wait_s = self._backoff.next_s()
        self._state = "connecting"
        if str(error) != self._error:  # a day without the server is one line
            self._error = str(error)
            self._say(f"{error}; trying again (first in {wait_s:.1f} s)")
        self._stop.wait(wait_s)


class RemoteSource:
    """A source that feeds several origins at once; the loss of one is merged away downstream.

    Args:
        urls: `http://[user[:password]@]host[:port]/mount`, one for each origin, at most 8; all name
            the same mount.
        content_type: `audio/mpeg`, `audio/aac` (ADTS) or `audio/ogg`.
        password: for URLs without one; else RELAY_SOURCE_PASSWORD.
        name, genre, url, description, bitrate_kbps, public: what listeners are told.
        backlog_s: what is kept for an origin that comes back, seconds.
        say: is told what changes, a line each; the log of `relay.framed` if left out.

    Raises:
        ConfigError: a URL is wrong, or they name different mounts.

    Enter it with `with` or `async with`. Each origin has a thread; connections are made in the
    background, and made again when they break.
    """

    def __init__(
        self,
        urls: str | Iterable[str],
        *,
        content_type: str,
        password: str | None = None,
        name: str = "",
        genre: str = "",
        url: str = "",
        description: str = "",
        bitrate_kbps: int | None = None,
        public: bool = False,
        backlog_s: int = BACKLOG_S,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._targets = read_urls([urls] if isinstance(urls, str) else urls, password)
        if not 1 <= backlog_s <= BACKLOG_S_MAX:
            raise ConfigError(f"backlog_s is {backlog_s}; the bound is 1 to {BACKLOG_S_MAX}")
        self._content_type = content_type
        self._told = {
            "Ice-Name": name,
            "Ice-Genre": genre,
            "Ice-Url": url,
            "Ice-Description": description,
            "Ice-Bitrate": "" if bitrate_kbps is None else str(bitrate_kbps),
            "Ice-Public": str(int(public)),
        }
        self._backlog_s = backlog_s
        self._say = say or log.warning
        self._engine: _core.Engine | None = None
        self._source: LocalSource | None = None
        self._links: list[Link] = []
        self._swept = 0.0

    def __repr__(self) -> str:
        state = "new" if self._source is None else "open" if self._source.is_open else "closed"
        return f"<{type(self).__name__} {len(self._targets)} origins {state}>"

    # --- opening and closing -----------------------------------------------------------------

    def open(self) -> Self:
        """Begin an epoch, and to connect. Does not block.

        Raises:
            SourceError: the content type is not carried.
            RelayError: it was opened before.
        """
        if self._engine is not None:
            raise RelayError("this source was opened already; make a new one")
        self._engine = engine = _core.Engine(streams_max=1)
        engine.configure(ring_s=self._backlog_s, ring_bytes_max=BACKLOG_BYTES_MAX)
        mount = unquote(self._targets[0].mount)
        self._source = LocalSource(engine, mount, self._content_type, self._told)
        for target in self._targets:
            self._links.append(self._link(target, engine, self._source))
        for link in self._links:
            link.start()
        return self

    def _link(self, target: Target, engine: _core.Engine, source: LocalSource) -> Link:
        headers = {k: v for k, v in self._told.items() if v} | {
            "Relay-Framing": FRAMING_VERSION,
            "Relay-Epoch": str(source.epoch),
            "Relay-Origin": engine.node_id[16:],
            "Relay-Backlog": str(self._backlog_s),
        }

        def dial() -> Connection:
            return Connection.open(
                target, self._content_type, headers=headers, send_timeout_s=SEND_S
            )

        return Link(str(target), dial, source.stream, self._say)

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """End the epoch everywhere. Blocks until each connected origin has all, at most so long.

        Returns:
            whether at least one origin has the whole of it. Twice is no error, nor in a forked
            child, where nothing is to be closed.
        """
        if self._source is None or self._engine is None or is_forked():
            return False
        self._source.close()
        until = time.monotonic() + timeout_s
        there = [link for link in self._links if link.facts().state == "connected"]
        for link in self._links:
            if link not in there:
                link.stop()
            link.wake()
        for link in there:
            link.join(until - time.monotonic())
            link.stop()
        return any(link.is_whole for link in self._links)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.open()

    async def __aexit__(self, *error: object) -> None:
        await in_thread(self.close)

    # --- sending -----------------------------------------------------------------------------

    def feed(self, data: bytes | bytearray | memoryview) -> float:
        """Send bytes of the stream: whole frames go out, a partial one waits for its rest.

        Args:
            data: any run of bytes, cut anywhere. Fed from any thread.

        Returns:
            ms that the source is ahead of real time; who generates faster than that sleeps for it.
            Never blocks, whatever the origins do.

        Raises:
            SourceError: not the promised format, the source is closed, or every origin has refused
                it for good.
            EpochLostError: an origin has had a newer epoch, and no other has this one, or another
                source: begin a new `RemoteSource`.
        """
        source = self._opened()
        self._check_origins()
        ahead_us = source.feed(data)
        self._wake()
        return ahead_us / 1000

    def title(self, text: str) -> None:
        """Set what is playing from here on, at all origins at the same place. Does not block."""
        self._opened().title(text)
        self._wake()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether an origin is connected. Blocks until one is, at most so long (None: for ever).

        Raises:
            SourceError: every origin has refused the source for good; `EpochLostError` as `feed`.
        """
        self._opened()
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not any(told.state == "connected" for told in self.origins()):
            self._check_origins()
            if until is not None and time.monotonic() >= until:
                return False
            time.sleep(0.02)
        return True

    def origins(self) -> list[OriginFacts]:
        """How each origin takes the source, in the order of the URLs. Does not block."""
        return [link.facts() for link in self._links]

    @property
    def epoch(self) -> int:
        """The epoch that this source began, in ms."""
        return self._opened().epoch

    def _opened(self) -> LocalSource:
        check_process()
        if self._source is None:
            raise RelayError("open the source first: with relay.RemoteSource(…) as live")
        return self._source

    def _check_origins(self) -> None:
        told = self.origins()
        if epoch_is_lost((link.answered, link.facts().state) for link in self._links):
            raise EpochLostError("; ".join(origin.error for origin in told))
        if all(origin.state == "refused" for origin in told):
            raise SourceError("; ".join(origin.error for origin in told))

    def _wake(self) -> None:
        for link in self._links:
            link.wake()
        now = time.monotonic()
        if self._engine is not None and now - self._swept > SWEEP_S:
            self._swept = now
            self._engine.sweep()  # rings that were outgrown


def epoch_is_lost(answers: Iterable[tuple[int | None, State]]) -> bool:
    """Whether an epoch can go on nowhere, and a new one can.

    Args:
        answers: what the last attempt at each origin came to (a status, 0 for no answer, None while
            it has the source), and the state of its link.

    Returns:
        whether one at least says that the epoch has lost, and every other says so too, has refused
        for good or is not there. One that has another source (403) keeps ours waiting: a new epoch
        would take the listeners from that source.
    """
    told = list(answers)
    return any(status == LOST_STATUS for status, _ in told) and all(
        state == "refused" or status in (0, LOST_STATUS) for status, state in told
    )


def read_urls(urls: Iterable[str], password: str | None = None) -> Sequence[Target]:
    """The targets of these URLs; ConfigError when they are no origins of one mount."""
    environ = None if password is None else {"RELAY_SOURCE_PASSWORD": password}
    targets = [parse_url(url, environ) for url in urls]
    if not 1 <= len(targets) <= ORIGINS_MAX:
        raise ConfigError(f"{len(targets)} URLs; the bound is 1 to {ORIGINS_MAX}")
    mounts = {unquote(target.mount) for target in targets}
    if len(mounts) > 1:
        raise ConfigError(f"the URLs name several mounts, {', '.join(sorted(mounts))}: name one")
    if len({replace(target, password="") for target in targets}) < len(targets):
        raise ConfigError("the same origin is named twice")
    return targets
