"""All sources of a node: who has which mount, who may take it, and how long a stream outlives them.

Rules of this room
  1. Knows each local source of the node from its claim to its end; calls come from several threads.
  2. A stream without a source is removed after linger_s, unless an upstream lists it, or its
     listeners hear a fallback.
  3. A framed source that is away keeps its mount for AWAY_S, or until somebody else takes it.
  4. Who is refused ends nobody: a source is ended for another once that one's bytes are known to be
     what the mount's listeners were promised.
  5. No socket and no HTTP here (source_door.py has them); the clock is handed in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from relay import recorder
from relay.address import show
from relay.anew import Anew
from relay.errors import MountError, SourceError
from relay.source import FramedSource, LocalSource, Run, TakingSource, check_framed, claim

if TYPE_CHECKING:
    from relay._core import Engine, Stream
    from relay.config import Config

SILENT_S = 2.0  # without audio, and `takeover = "silent"` lets another take the mount
AWAY_S = 10.0  # a framed source's mount is kept for it, at most linger_s


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
        self._anew = Anew()
        self._is_closed = False

    def open(
        self,
        mount: str,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        run: Run | None = None,
        backlog_s: int = 0,
        waits: bool = False,
        yields: bool = False,
        now: float = 0.0,
    ) -> LocalSource:
        """Claim a mount; arguments and errors as for `LocalSource`, with `run` `FramedSource`.

        The same run takes over from its own last connection; a newer one, or a source that is cut
        here, from one that is away, or as `takeover` has it. An older run waits until that one is
        given up. With `yields` it never takes a mount from another.
        """
        if self._upstream_feeds(mount):
            raise MountError(f"mount {show(mount)} is in use: it comes from upstream; take another")
        if self._is_closed:
            raise self._closing(mount)
        holder = None if yields else self.find(mount)
        if run is not None:
            source = self._open_framed(holder, mount, content_type, headers, run, backlog_s, now)
        elif holder is not None and self._gives_way(holder, None, now):
            source = TakingSource(
                self._engine,
                mount,
                content_type,
                headers,
                waits=waits,
                take=lambda source: self._take_over(source, now),
            )
        else:
            source = LocalSource(self._engine, mount, content_type, headers, waits=waits)
        if source.has_mount:
            self._enter(source)
        return source

    def _open_framed(
        self,
        holder: LocalSource | None,
        mount: str,
        content_type: str,
        headers: Mapping[str, str] | None,
        run: Run,
        backlog_s: int,
        now: float,
    ) -> LocalSource:
        """Its head tells all that a framed source can be refused for."""
        is_same = isinstance(holder, FramedSource) and holder.run == run
        if holder is not None and not is_same and self._gives_way(holder, run, now):
            check_framed(self._engine, mount, content_type, run)
            self._end_for_another(holder)
        return FramedSource(
            self._engine,
            mount,
            content_type,
            headers,
            run=run,
            backlog_s=backlog_s,
            before=holder if isinstance(holder, FramedSource) and is_same else None,
        )

    def _gives_way(self, holder: LocalSource, run: Run | None, now: float) -> bool:
        """Whether the source that has a mount is ended for another one; `run`: of that one."""
        if run is not None and run.epoch <= holder.epoch:
            return False
        if isinstance(holder, FramedSource) and holder.away_since is not None:
            return True
        rule, heard = self._config.for_stream(holder.mount).takeover, holder.audible_at
        is_silent = bool(heard) and now - (heard or 0.0) >= SILENT_S
        return rule == "always" or (rule == "silent" and is_silent)

    def _end_for_another(self, holder: LocalSource) -> None:
        is_away = isinstance(holder, FramedSource) and holder.away_since is not None
        self.close(holder, "ended" if is_away else "taken")

    def _take_over(self, source: LocalSource, now: float) -> Stream:
        """End the source that has the mount of this one, and claim it.

        Args:
            source: all that it can be refused for has been looked at.
            now: when it came; if the other one was heard since, it is not silent.
        """
        mount = source.mount
        holder = self.find(mount)
        if holder is not None:
            if not self._gives_way(holder, None, now):
                raise MountError(f"mount {show(mount)} is in use: its source is back")
            self._end_for_another(holder)
        stream = claim(self._engine, mount)
        with self._lock:
            if not self._is_closed:
                self._open[mount] = source
                return stream
        stream.unclaim()
        raise self._closing(mount)

    def _enter(self, source: LocalSource) -> None:
        """The mount is this source's from now on."""
        with self._lock:
            if not self._is_closed:
                self._open[source.mount] = source
                return
        source.close()
        raise self._closing(source.mount)

    @staticmethod
    def _closing(mount: str) -> MountError:
        return MountError(f"mount {show(mount)}: this node is shutting down")

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
            source.ended = reason
        if source.has_mount:
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
        state = source.stream.snapshot()
        is_listed = not source.has_begun and source.stream.info()  # by an upstream, or for a pull
        if state["epoch"] is None and not (state["stands_in"] or is_listed):
            self._remove(source.stream)  # not one frame came: nothing will end it later

    def end(self, mount: str) -> None:
        """End the source of a mount, as an administrator wants it; MountError: it has none here."""
        source = self.find(mount)
        if source is None:
            raise MountError(f"mount {show(mount)} has no source on this node; tell its origin")
        self.close(source, "killed")

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

    def title(self, mount: str, text: str, url: str = "") -> None:
        """Set a title, and its URL; MountError when the mount has no source on this node."""
        source = self.find(mount)
        try:
            if source is not None:
                source.title(text, url)
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
        self._anew.tick([s for m in self.mounts() if (s := self.find(m))], now)
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
