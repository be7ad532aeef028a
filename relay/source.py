"""The source side: claiming a mount, its epochs, its titles, and how long a stream outlives it.

Rules of this room
  1. A `LocalSource` is the one writer of its stream from its making until `close`; calls may come
     from several threads (audio from one, titles from another), so each takes its lock, for µs.
  2. What a source says of itself is hostile: control characters go, every line is bounded.
  3. `Sources` knows all local sources of a node; a stream without source is removed after linger_s.
  4. A framed source that lost its connection is away: its epoch goes on, since another origin may
     be fed the same frames; it ends after AWAY_S, or when somebody else takes the mount.
  5. No socket and no HTTP here (source_door.py has them); the clock is handed in.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Self

from relay import _core, recorder
from relay.address import check_mount, show
from relay.errors import EpochLostError, MountError, SourceError
from relay.formats import Format, format_of

if TYPE_CHECKING:
    from relay._core import Engine, Stream
    from relay.config import Config

INFO_VALUE_BYTES_MAX = 512
TITLE_BYTES_MAX = 4000
CLAIM_TRIES = 3
AWAY_S = 10.0  # a framed source's mount is kept for it, at most linger_s

# What encoders call it (after ice-, icy- or x-audiocast-), and what listeners are told.
_TOLD = {
    "br": "icy-br",
    "bitrate": "icy-br",
    "genre": "icy-genre",
    "name": "icy-name",
    "pub": "icy-pub",
    "public": "icy-pub",
    "url": "icy-url",
    "description": "icy-description",
    "desc": "icy-description",
    "audio-info": "ice-audio-info",
}
_PREFIX = re.compile(r"(?:ice|icy|x-audiocast)-(.+)")


# --- what a source says of itself ----------------------------------------------------------------


def clean(text: str, bytes_max: int) -> str:
    """The text on one line, without control characters, cut between characters."""
    line = "".join(c if c.isprintable() else " " for c in text).strip()
    return line.encode(errors="replace")[:bytes_max].decode(errors="ignore").rstrip()


def info_lines(content_type: str, headers: Mapping[str, str]) -> bytes:
    """The header lines that listeners get, from those that the source gave.

    Args:
        content_type: what listeners are to be told.
        headers: any header lines; those of ice-, icy- and x-audiocast- are taken, in any case.

    Returns:
        lines ended by CRLF, at most 4,096 bytes, Content-Type first. No space after the colon of
        icy- lines: old players expect none.
    """
    told: dict[str, str] = {}
    for name, value in headers.items():
        found = _PREFIX.fullmatch(name.lower())
        word = _TOLD.get(found[1]) if found else None
        line = clean(value, INFO_VALUE_BYTES_MAX)
        if word and line:
            told.setdefault(word, line)
    bit_rate = _bit_rate_kbps(told.get("icy-br", ""), told.get("ice-audio-info", ""))
    told.pop("icy-br", None)
    if bit_rate:
        told["icy-br"] = bit_rate
    told["icy-pub"] = "1" if told.get("icy-pub", "").lower() in {"1", "true", "yes"} else "0"
    lines = [f"Content-Type: {content_type}"]
    lines += [f"{word}:{told[word]}" for word in dict.fromkeys(_TOLD.values()) if word in told]
    return "".join(f"{line}\r\n" for line in lines).encode()


def _bit_rate_kbps(told: str, audio_info: str) -> str:
    """Digits from ice-bitrate, else from `bitrate=` or `ice-bitrate=` in ice-audio-info."""
    for text in (told, *re.findall(r"(?:^|;)\s*(?:ice-)?bitrate=([^;]*)", audio_info)):
        if re.fullmatch(r"[0-9]{1,6}", text.strip()):
            return str(text).strip()
    return ""


def read_info(lines: bytes) -> dict[str, str]:
    """The header lines of a stream as names in lower case and values."""
    fields = (line.partition(":") for line in lines.decode(errors="replace").split("\r\n"))
    return {name.lower(): value.strip() for name, colon, value in fields if colon}


class Run(NamedTuple):
    """What two origins that are fed the same frames have in common."""

    epoch: int  # ms
    origin: int  # 64 bits that its sender chose

    def __str__(self) -> str:
        return f"epoch {self.epoch}, origin {self.origin:016x}"


class Intake(NamedTuple):
    """What the engine's reading of one source has come to."""

    state: str  # none, reading, held (ahead of real time), ended
    reason: str | None  # of an end: closed, lost, whole, or why the bytes could not be taken
    error: int  # errno of a lost connection
    media_us: int  # media time fed so far


# --- one source ----------------------------------------------------------------------------------


class LocalSource:
    """The writer of one stream on this node: claims the mount, opens an epoch, feeds, closes.

    Args:
        engine: the node's data plane.
        mount: the public path, percent-decoded, such as `/live`.
        content_type: what the bytes will be, such as `audio/mpeg`.
        headers: what the source says of itself (`ice-name`, `icy-genre`, …), any case.

    Raises:
        SourceError: a content type that is not carried, or another format than the one promised to
            those who still listen.
        MountError: the mount is no valid path, is in use, or the node is full.

    Nothing here blocks.
    """

    def __init__(
        self,
        engine: Engine,
        mount: str,
        content_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        check_mount(mount)
        self.mount = mount
        self.format: Format = format_of(content_type)
        info = info_lines(self.format.content_type, headers or {})
        self._lock = threading.Lock()
        self._is_open = False
        self.stream = self._take(engine)
        try:
            _check_promise(self.stream, self.format)
            self._check_stream()
            self.stream.set_info(info)
            self._begin()
        except BaseException:
            self.stream.unclaim()
            raise
        self._is_open = True

    def _take(self, engine: Engine) -> Stream:
        """The stream, with us as its writer."""
        return _claim(engine, self.mount)

    def _check_stream(self) -> None:
        """Refuse what this stream does not take."""

    def _begin(self) -> None:
        title = self.stream.snapshot().get("title")
        self.epoch = self.stream.begin()
        self._cutter = _core.Source(self.stream, self.format.kind)
        if title:  # who joins now would see none until the encoder sets its next
            self.stream.title(clean(title, TITLE_BYTES_MAX))

    def __repr__(self) -> str:
        state = "open" if self._is_open else "closed"
        return f"<{type(self).__name__} {self.mount} {self.format.kind} {state}>"

    @property
    def is_open(self) -> bool:
        """Whether bytes may still be fed."""
        return self._is_open

    def feed(self, data: bytes | bytearray | memoryview) -> int:
        """Cut frames from these bytes and send them on; a partial frame waits for its rest.

        Returns:
            µs that the source is ahead of real time (below zero: behind). Never blocks.

        Raises:
            SourceError: the bytes are not the promised format, or the source is closed.
        """
        with self._lock:
            self._check()
            return self._cutter.feed(data)

    def attach(
        self, fd: int, kind: str, size_bytes: int = 0, *, ahead_ms: int, data: bytes = b""
    ) -> None:
        """Let the engine read the audio from a non-blocking socket, in a thread of its own.

        Args:
            fd: is duplicated; the caller has stopped reading from it.
            kind: how the body is framed: raw, sized (of size_bytes) or chunked.
            size_bytes: of a sized body.
            ahead_ms: how far it may run ahead of real time before it is held back.
            data: what was read of the body before.

        Raises:
            SourceError: no room, or the source is closed.
        """
        with self._lock:
            self._check()
            self._cutter.attach(fd, kind, size_bytes, ahead_ms * 1000, data)

    def intake(self) -> Intake:
        """How far the engine has come with the attached socket."""
        return Intake(*self._cutter.intake())

    def media_us(self) -> int:
        """Media time fed so far."""
        return self.intake().media_us

    def title(self, text: str) -> None:
        """Set what is playing from here on; control characters go, 4,000 bytes are kept."""
        if not isinstance(text, str):
            raise TypeError(f"a title is text (str), not {type(text).__name__}")
        with self._lock:
            self._check()
            self._cutter.title(clean(text, TITLE_BYTES_MAX))

    def close(self) -> None:
        """End the epoch and give the mount back; listeners stay for linger_s. Twice is no error."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            self._cutter.detach()
            self.stream.end()
            self.stream.unclaim()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check(self) -> None:
        if not self._is_open:
            raise SourceError(f"{self.mount}: this source is closed; open a new one")


class FramedSource(LocalSource):
    """A source whose frames come cut already, with the places they have on every origin.

    Args:
        engine, mount, content_type, headers: as for `LocalSource`.
        run: which run of a source it is; the body must say the same.
        backlog_s: how much of the past it may send at once, beyond `ahead_ms`.
        before: the source that had the mount for the same run: this one goes on in its place.

    Raises:
        SourceError: as for `LocalSource`; also another content type than before.
        EpochLostError: an epoch that is older than one the mount has had.
        MountError: as for `LocalSource`.
    """

    def __init__(
        self,
        engine: Engine,
        mount: str,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        run: Run,
        backlog_s: int = 0,
        before: FramedSource | None = None,
    ) -> None:
        self.run = run
        self._backlog_s = backlog_s
        self.away_since: float | None = None  # monotonic; its connection is lost
        self._before = before
        super().__init__(engine, mount, content_type, headers)
        self._before = None

    def _take(self, engine: Engine) -> Stream:
        before = self._before
        if before is None:
            return super()._take(engine)
        if before.format != self.format:
            raise SourceError(
                f"{self.mount}: this run was {before.format.content_type} so far, and cannot "
                f"become {self.format.content_type}"
            )
        if before.leave():
            return before.stream
        return super()._take(engine)  # its end came first, and gave the mount back

    def _check_stream(self) -> None:
        state = self.stream.snapshot()
        highest = state["epoch"] or 0
        if highest == self.run.epoch and state["origin"] != self.run.origin:
            raise EpochLostError(
                f"{self.mount}: epoch {highest} is that of another origin, "
                f"{state['origin']:016x}; begin a new one"
            )
        if highest > self.run.epoch:
            raise EpochLostError(
                f"{self.mount}: epoch {self.run.epoch} has lost against {highest}, "
                f"which this mount has had; begin a new one"
            )

    def _begin(self) -> None:
        self.epoch = self.run.epoch  # its ring begins with the first message
        self._cutter = _core.Source(
            self.stream, self.format.kind, epoch=self.run.epoch, origin=self.run.origin
        )

    def attach(
        self, fd: int, kind: str, size_bytes: int = 0, *, ahead_ms: int, data: bytes = b""
    ) -> None:
        """As for any source; what it kept for this origin does not count as ahead."""
        ahead_ms += self._backlog_s * 1000
        super().attach(fd, kind, size_bytes, ahead_ms=ahead_ms, data=data)

    def title(self, text: str) -> None:
        """Titles of a framed source are frames: one set here would take another's place."""
        raise MountError(
            f"mount {show(self.mount)}: its titles come with its frames: set them there"
        )

    def detach(self, now: float) -> None:
        """The connection is lost: the epoch goes on, without frames until it comes back."""
        with self._lock:
            self._cutter.detach()
            self.away_since = now

    def leave(self) -> bool:
        """Write no more, and give nothing back: another goes on in this place, or the node goes.

        Returns:
            whether there is a place to go on in; False: it was closed before.
        """
        with self._lock:
            was_open, self._is_open = self._is_open, False
            self._cutter.detach()
            return was_open


def _claim(engine: Engine, mount: str) -> Stream:
    """The stream of this mount with us as its writer."""
    for _ in range(CLAIM_TRIES):
        stream = engine.find(mount)
        if stream is None:
            try:
                stream = engine.add_stream(mount)
            except MountError:
                if engine.find(mount) is None:  # no room, rather than a race that we lost
                    raise
                continue
        try:
            stream.claim()
        except MountError:
            if engine.find(mount) is not None:
                raise
            continue  # removed between find and claim, and so claimed for ever
        return stream
    raise MountError(f"mount {show(mount)} is in use")


def _check_promise(stream: Stream, format_: Format) -> None:
    """Refuse another format while somebody waits for the one promised."""
    state = stream.snapshot()
    promised = read_info(stream.info()).get("content-type", "")
    if state["listeners"] and promised and format_.content_type != promised:
        people = f"{state['listeners']} listener{'' if state['listeners'] == 1 else 's'}"
        raise SourceError(
            f"{stream.mount} is promised to {people} as {show(promised)}; "
            f"send that format, or use another mount"
        )


# --- all sources ---------------------------------------------------------------------------------


class Sources:
    """All local sources of one node, and the end of streams that nobody feeds.

    Args:
        engine: the node's data plane.
        config: for `linger_s` of each mount.
        upstream_feeds: whether an upstream node that is there has a live source for a mount; then
            a local one is refused.
        upstream_mounts: the mounts that an upstream node lists, with a source or waiting for one;
            they stay as long as the upstream has them.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        upstream_feeds: Callable[[str], bool] = lambda mount: False,
        upstream_mounts: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._engine = engine
        self._config = config
        self._upstream_feeds = upstream_feeds
        self._upstream_mounts = upstream_mounts
        self._lock = threading.Lock()
        self._open: dict[str, LocalSource] = {}
        self._down_since: dict[str, float] = {}
        self._is_closed = False

    def open(
        self,
        mount: str,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        run: Run | None = None,
        backlog_s: int = 0,
    ) -> LocalSource:
        """Claim a mount; arguments and errors as for `LocalSource`, with `run` `FramedSource`.

        The same run takes over from its own last connection; a newer one, or a source that is cut
        here, from one that is away. An older run waits until that one is given up.
        """
        if self._upstream_feeds(mount):
            raise MountError(f"mount {show(mount)} is in use: it comes from upstream")
        holder = self.find(mount)
        before = holder if isinstance(holder, FramedSource) else None
        if before is not None and before.run != run:
            if before.away_since is not None and (run is None or run.epoch > before.run.epoch):
                self.close(before)
            before = None
        if run is None:
            source = LocalSource(self._engine, mount, content_type, headers)
        else:
            source = FramedSource(
                self._engine,
                mount,
                content_type,
                headers,
                run=run,
                backlog_s=backlog_s,
                before=before,
            )
        with self._lock:
            if not self._is_closed:
                self._open[mount] = source
                return source
        source.close()
        raise MountError(f"mount {show(mount)}: this node is shutting down")

    def lost(self, source: LocalSource, now: float, reason: str = "ended") -> bool:
        """A source has lost its connection: a framed one is away from `now` on (True), any other
        has ended, for this reason (see `close`)."""
        if isinstance(source, FramedSource) and source.is_open:
            source.detach(now)
            return True
        self.close(source, reason)
        return False

    def close(self, source: LocalSource, reason: str = "ended") -> None:
        """End one source; `reason` is one of `recorder.SOURCE_ENDS`, for the flight recorder."""
        if source.is_open:
            self._engine.note(
                recorder.SOURCE_OUT,
                recorder.SOURCE_ENDS.index(reason),
                stream=source.stream.key,
                b=source.media_us(),
            )
        with self._lock:
            if self._open.get(source.mount) is source:
                del self._open[source.mount]
        source.close()
        if isinstance(source, FramedSource) and source.stream.snapshot()["epoch"] is None:
            self._remove(source.stream)  # not one message came: nothing will end it later

    def refused(self, mount: str, status: int) -> None:
        """A source was turned away: for the flight recorder."""
        stream = self._engine.find(mount)
        key = 0 if stream is None else stream.key
        self._engine.note(recorder.SOURCE_REFUSED, 0, stream=key, a=status)

    def find(self, mount: str) -> LocalSource | None:
        """The source of this mount on this node, or None."""
        return self._open.get(mount)

    def is_away(self, mount: str) -> bool:
        """Whether the source of this mount has lost its connection, and may come back."""
        source = self.find(mount)
        return isinstance(source, FramedSource) and source.away_since is not None

    def is_framed(self, mount: str) -> bool:
        """Whether the source of this mount sends frames that were cut elsewhere."""
        return isinstance(self.find(mount), FramedSource)

    def mounts(self) -> Iterable[str]:
        """The mounts that have a source on this node now."""
        with self._lock:
            return tuple(self._open)

    def title(self, mount: str, text: str) -> None:
        """Set a title; MountError when the mount has no source on this node."""
        source = self.find(mount)
        try:
            if source is not None:
                source.title(text)
                return
        except SourceError:
            pass  # closed meanwhile
        raise MountError(f"mount {show(mount)} has no source on this node; tell its origin")

    def tick(self, now: float) -> list[str]:
        """Remove local streams without audio for longer than linger_s; returns their mounts.

        Args:
            now: monotonic seconds. To be called about once a second.
        """
        self._end_away(now)
        down: dict[str, float] = {}
        removed: list[str] = []
        listed: Collection[str] | None = None
        for stream in self._engine.streams():
            state = stream.snapshot()
            if state["source_up"] or state["writer"] != "none" or state["fallback"]:
                continue  # the last: its listeners hear another mount's stream
            if state["epoch"] is None and not state["stands_in"]:
                continue  # listed by an upstream and not carried now
            mount = stream.mount
            since = self._down_since.get(mount, now)
            if now - since <= self._config.for_stream(mount).linger_s:
                down[mount] = since
                continue
            if listed is None:
                listed = self._upstream_mounts()
            if mount in listed:
                down[mount] = since  # not ours to end: the backbone does when the upstream does
            elif self._remove(stream):
                removed.append(mount)
        self._down_since = down
        return removed

    def _end_away(self, now: float) -> None:
        """End those that did not come back; their listeners have waited since then."""
        for mount in self.mounts():
            source = self.find(mount)
            since = source.away_since if isinstance(source, FramedSource) else None
            if since is None or source is None:
                continue
            if now - since > min(AWAY_S, self._config.for_stream(mount).linger_s):
                self.close(source)
                self._down_since[mount] = since

    def _remove(self, stream: Stream) -> bool:
        """Unlink a stream that nobody writes. It stays claimed, so that nobody else begins it."""
        try:
            stream.claim()
        except MountError:
            return False
        self._engine.remove_stream(stream)
        return True

    def close_all(self) -> None:
        """End every source and take no more: the node is going."""
        with self._lock:
            self._is_closed = True
        for mount in self.mounts():
            source = self.find(mount)
            if isinstance(source, FramedSource):
                source.leave()  # no end is told: another origin may go on
            elif source is not None:
                self.close(source, "shutdown")
