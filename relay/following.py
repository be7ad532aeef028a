"""What the control plane follows in streams that play: the titles in Ogg, and who wants what.

Rules of this room
  1. An Ogg source tells its title in the comments of each chain. They are looked for twice a
     second, of sources on this node; a framed source's titles come with its frames.
  2. A stream that a page follows is wanted on this node until WANTED_S after it was last asked
     for: an edge fetches it meanwhile.
  3. An intro that does not fit its source is told once for each of its epochs.
  4. Not on the path of audio; the clock is handed in.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.errors import MountError, SourceError
from relay.formats.comments import Told, read_chain
from relay.intro import misfit
from relay.source import FramedSource, LocalSource

if TYPE_CHECKING:
    from relay._core import Engine, Reader, Stream
    from relay.config import Config
    from relay.sources import Sources

log = logging.getLogger("relay.following")

WANTED_S = 5.0


class Moment(NamedTuple):
    """What a mount plays just now."""

    live: bool
    epoch: int | None
    title: str | None
    listeners: int
    url: str | None = None
    """That goes with the title."""


class Comments:
    """The titles that Ogg sources of a node tell in their comments."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._seen: dict[str, tuple[int, bytes]] = {}  # epoch and header pages, by mount
        self._told: dict[str, Told] = {}

    def told(self, mount: str) -> Told:
        """What the Ogg of this mount says of itself, as far as it is known here."""
        return self._told.get(mount) or Told(None, None)

    def tick(self) -> None:
        """Look at each Ogg source, and set the title where a new chain tells one."""
        mounts = self._sources.mounts()
        for mount in mounts:
            source = self._sources.find(mount)
            if source is not None and source.has_begun and source.format.has_headers:
                self._look(source)
        for gone in self._seen.keys() - set(mounts):
            del self._seen[gone]
            self._told.pop(gone, None)

    def _look(self, source: LocalSource) -> None:
        try:
            header = source.stream.header()
        except SourceError:
            return  # no frame has come
        if not header or self._seen.get(source.mount) == (source.epoch, header):
            return
        self._seen[source.mount] = source.epoch, header
        told = self._told[source.mount] = read_chain(header)
        if told.title and not isinstance(source, FramedSource):
            try:
                source.title(told.title)
            except (SourceError, MountError):
                return  # closed meanwhile


class Intros:
    """Whether the sources of this node are what their mounts' intros are."""

    def __init__(self, sources: Sources, config: Config) -> None:
        self._sources = sources
        self._intros = {m: told.intro for m, told in config.streams.items() if told.intro}
        self._seen: dict[str, int] = {}  # epochs

    def tick(self) -> None:
        """One line where a new epoch does not fit."""
        for mount, path in self._intros.items():
            source = self._sources.find(mount)
            if source is None or not source.has_begun or self._seen.get(mount) == source.epoch:
                continue
            self._seen[mount] = source.epoch
            why = misfit(path, mount, source.format.content_type)
            if why:
                log.warning("%s", why, extra={"event": "intro_unfit", "mount": mount})


class Wanted:
    """Streams that pages follow, each counted as a reader."""

    def __init__(self) -> None:
        self._readers: dict[str, tuple[Stream, Reader, float]] = {}

    def __len__(self) -> int:
        return len(self._readers)

    def want(self, stream: Stream, now: float) -> None:
        """Somebody follows this stream."""
        held = self._readers.get(stream.mount)
        if held is None or held[0].key != stream.key:
            held = stream, stream.reader(), now
        self._readers[stream.mount] = held[0], held[1], now

    def tick(self, now: float) -> None:
        """Let go what nobody has asked for lately."""
        for mount, (_, _, asked_at) in [*self._readers.items()]:
            if now - asked_at > WANTED_S:
                del self._readers[mount]


class Following:
    """Both for one node, and what settings and sources add to the facts of a stream."""

    def __init__(self, engine: Engine, sources: Sources, config: Config) -> None:
        self._engine = engine
        self._sources = sources
        self._config = config
        self._comments = Comments(sources)
        self._intros = Intros(sources, config)
        self._wanted = Wanted()

    def tick(self, now: float) -> None:
        """Twice a second; `now` is monotonic."""
        self._comments.tick()
        self._intros.tick()
        self._wanted.tick(now)

    def moment(self, mount: str, now: float) -> Moment | None:
        """What a mount plays just now; it is wanted from here on. None: it is not on this node."""
        stream = self._engine.find(mount)
        if stream is None:
            return None
        self._wanted.want(stream, now)
        state = stream.snapshot()
        return Moment(
            live=state["source_up"],
            epoch=state["epoch"],
            title=state["title"],
            listeners=state["listeners"],
            url=state.get("title_url"),
        )

    def facts(self, mount: str) -> dict[str, Any]:
        """Under the names that `relay.web.facts.StreamFacts` has."""
        told, source = self._config.for_stream(mount), self._sources.find(mount)
        comments = self._comments.told(mount)
        return {
            "listeners_max": told.listeners_max,
            "codec": comments.codec,
            "artist": comments.artist,
            "track": comments.track,
            "codec_head": dict(comments.head),
            "is_listed": bool(self._config.directory.url),
            "source_address": None if source is None else source.address,
            "source_agent": "" if source is None else source.agent,
        }
