"""One source of a stream: claiming its mount, its epochs, its titles, its end.

Rules of this room
  1. A `LocalSource` is the one writer of its stream from its making until `close`; calls may come
     from several threads (audio from one, titles from another), so each takes its lock, for µs.
  2. What a source says of itself is hostile: control characters go, every line is bounded.
  3. A source may take a mount before its format is known (`waits`); its epoch begins with `begin`.
     One that takes it from another does so no sooner: until then the other one is heard.
  4. A framed source that lost its connection is away: its epoch goes on, since another origin may
     be fed the same frames. How long, and who may take the mount, is sources.py's to say.
  5. No socket and no HTTP here (source_door.py has them); the clock is handed in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Self

from relay import _core
from relay.address import check_mount, show
from relay.errors import EpochLostError, MountError, SourceError
from relay.formats import Format, format_of, promise_of
from relay.source_info import agent_of, info_lines, read_info, title_text

if TYPE_CHECKING:
    from relay._core import Engine, Stream

CLAIM_TRIES = 3


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


class LocalSource:
    """The writer of one stream on this node: claims the mount, opens an epoch, feeds, closes.

    Args:
        engine: the node's data plane.
        mount: the public path, percent-decoded, such as `/live`.
        content_type: what the bytes will be, such as `audio/mpeg`.
        headers: what the source says of itself (`ice-name`, `icy-genre`, …), any case.
        waits: take the mount alone; `begin` says later what the bytes are. Then the content type
            is a promise, and may be missing.

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
        *,
        waits: bool = False,
    ) -> None:
        check_mount(mount)
        self.mount = mount
        self.promised = promise_of(content_type) if waits else format_of(content_type)
        self.headers = headers or {}
        self.epoch = 0
        self.address: str | None = None  # where its connection comes from; for the admin
        self.audible_at: float | None = None  # when its door last heard audio; monotonic
        self.ended = ""  # why, once it has
        self._title: str | None = None  # as the engine takes it; came before the first bytes
        self._cutter: _core.Source | None = None
        self._lock = threading.Lock()
        self._is_open = False
        if self.promised is not None:
            self.format: Format = self.promised
        self.stream = self._take(engine)
        self._is_open = True
        try:
            if waits and self.promised is not None:
                _check_promise(self.stream, self.promised)
            elif not waits:
                self.begin(self.format)
        except BaseException:
            self._is_open = False
            self._give_back()
            raise

    def begin(self, found: Format) -> None:
        """Begin the epoch, with the format that the bytes have. Once, before any of them.

        Raises:
            SourceError, MountError: as for a new source, which the caller then closes.
        """
        with self._lock:
            if not self._is_open:  # another has taken the mount meanwhile
                raise SourceError(f"{self.mount}: this source is closed; open a new one")
            self.format = found
            _check_promise(self.stream, found)
            self._check_stream()
            self._enter()
            self.stream.set_info(info_lines(found.content_type, self.headers))
            self._cutter = cutter = self._begin()
            if self._title is not None:
                cutter.title(self._title)

    def _take(self, engine: Engine) -> Stream:
        """The stream, with us as its writer."""
        return claim(engine, self.mount)

    def _check_stream(self) -> None:
        """Refuse what this stream does not take."""

    def _enter(self) -> None:
        """Become the writer, where that was left until here."""

    def _give_back(self) -> None:
        self.stream.unclaim()

    def _begin(self) -> _core.Source:
        state = self.stream.snapshot()
        self.epoch = self.stream.begin()
        cutter = _core.Source(self.stream, self.format.kind)
        if state.get("title"):  # who joins now would see none until the encoder sets its next
            self.stream.title(title_text(state["title"], state.get("title_url") or ""))
        return cutter

    def __repr__(self) -> str:
        state = "open" if self._is_open else "closed"
        kind = self.format.kind if self._cutter else "nothing yet"
        return f"<{type(self).__name__} {self.mount} {kind} {state}>"

    @property
    def is_open(self) -> bool:
        """Whether bytes may still be fed."""
        return self._is_open

    @property
    def has_mount(self) -> bool:
        """Whether it is the writer of its stream, heard or not."""
        return self._is_open

    @property
    def has_begun(self) -> bool:
        """Whether it is known what its bytes are, and its epoch has begun."""
        return self._cutter is not None

    @property
    def agent(self) -> str:
        """The program that it says it is; for the admin."""
        return agent_of(self.headers)

    def feed(self, data: bytes | bytearray | memoryview) -> int:
        """Cut frames from these bytes and send them on; a partial frame waits for its rest.

        Returns:
            µs that the source is ahead of real time (below zero: behind). Never blocks.

        Raises:
            SourceError: the bytes are not the promised format, or the source is closed.
        """
        with self._lock:
            return self._check().feed(data)

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
            self._check().attach(fd, kind, size_bytes, ahead_ms * 1000, data)

    def intake(self) -> Intake:
        """How far the engine has come with the attached socket."""
        cutter = self._cutter
        return Intake("none", None, 0, 0) if cutter is None else Intake(*cutter.intake())

    def media_us(self) -> int:
        """Media time fed so far."""
        return self.intake().media_us

    def title(self, text: str, url: str = "") -> None:
        """Set what is playing from here on; control characters go, 4,000 bytes are kept.

        `url` is told with it as ICY's StreamUrl; one that is no plain URL is left out.
        """
        if not isinstance(text, str):
            raise TypeError(f"a title is text (str), not {type(text).__name__}")
        title = title_text(text, url)
        with self._lock:
            if self._is_open and self._cutter is None:
                self._title = title  # until it begins
            else:
                self._check().title(title)

    def begin_anew(self, least: int) -> int:
        """Go on in a new epoch, `least` (ms) or a higher one; listeners stay and hear on.

        Returns:
            the epoch; 0: not now (the midst of header pages, or too many epochs are still heard).
        """
        with self._lock:
            epoch = self._check().begin_anew(least)
            self.epoch = epoch or self.epoch
            return epoch

    def close(self) -> None:
        """End the epoch and give the mount back; listeners stay for linger_s. Twice is no error."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            if self._cutter is not None:
                self._cutter.detach()
                self.stream.end()
            self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check(self) -> _core.Source:
        if not self._is_open or self._cutter is None:
            raise SourceError(f"{self.mount}: this source is closed; open a new one")
        return self._cutter


class TakingSource(LocalSource):
    """A source that takes its mount from another, once it is known what its bytes are.

    Args:
        engine, mount, content_type, headers, waits: as for `LocalSource`.
        take: ends the source that has the mount, and claims it for this one; returns its stream.
            MountError where it may not be taken any more.

    Raises:
        SourceError, MountError: as for `LocalSource`; then, and when `begin` raises, the other
            source goes on.
    """

    def __init__(
        self,
        engine: Engine,
        mount: str,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        waits: bool,
        take: Callable[[LocalSource], Stream],
    ) -> None:
        self._take_over: Callable[[LocalSource], Stream] | None = take
        super().__init__(engine, mount, content_type, headers, waits=waits)

    @property
    def has_mount(self) -> bool:
        """Whether it has taken it."""
        return self._is_open and self._take_over is None

    def _take(self, engine: Engine) -> Stream:
        stream = engine.find(self.mount)
        if stream is None:  # removed a moment ago: nobody is left to take it from
            self._take_over = None
            return super()._take(engine)
        return stream  # which another writes

    def _enter(self) -> None:
        if self._take_over is not None:
            self.stream = self._take_over(self)
            self._take_over = None

    def _give_back(self) -> None:
        if self._take_over is None:
            super()._give_back()


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
        _check_run(self.stream, self.run)

    def _begin(self) -> _core.Source:
        self.epoch = self.run.epoch  # its ring begins with the first message
        return _core.Source(
            self.stream, self.format.kind, epoch=self.run.epoch, origin=self.run.origin
        )

    def attach(
        self, fd: int, kind: str, size_bytes: int = 0, *, ahead_ms: int, data: bytes = b""
    ) -> None:
        """As for any source; what it kept for this origin does not count as ahead."""
        ahead_ms += self._backlog_s * 1000
        super().attach(fd, kind, size_bytes, ahead_ms=ahead_ms, data=data)

    def title(self, text: str, url: str = "") -> None:
        """Titles of a framed source are frames: one set here would take another's place."""
        raise MountError(
            f"mount {show(self.mount)}: its titles come with its frames: set them there"
        )

    def detach(self, now: float) -> None:
        """The connection is lost: the epoch goes on, without frames until it comes back."""
        with self._lock:
            self._check().detach()
            self.away_since = now

    def leave(self) -> bool:
        """Write no more, and give nothing back: another goes on in this place, or the node goes.

        Returns:
            whether there is a place to go on in; False: it was closed before.
        """
        with self._lock:
            was_open, self._is_open = self._is_open, False
            if self._cutter is not None:
                self._cutter.detach()
            return was_open


def claim(engine: Engine, mount: str) -> Stream:
    """The stream of this mount with us as its writer; MountError when it cannot be had."""
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
    raise MountError(f"mount {show(mount)} is in use: try again")


def check_framed(engine: Engine, mount: str, content_type: str, run: Run) -> None:
    """Raise what a `FramedSource` with these would, but for the mount that another has."""
    format_ = format_of(content_type)
    if (stream := engine.find(mount)) is not None:
        _check_promise(stream, format_)
        _check_run(stream, run)


def _check_run(stream: Stream, run: Run) -> None:
    """Refuse a run that is older than what the stream has had."""
    state = stream.snapshot()
    highest = state["epoch"] or 0
    if highest == run.epoch and state["origin"] != run.origin:
        raise EpochLostError(
            f"{stream.mount}: epoch {highest} is that of another origin, "
            f"{state['origin']:016x}; begin a new one"
        )
    if highest > run.epoch:
        raise EpochLostError(
            f"{stream.mount}: epoch {run.epoch} has lost against {highest}, "
            f"which this mount has had; begin a new one"
        )


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
