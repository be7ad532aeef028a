"""What a node has to do with the world beyond its fleet: pulls, recordings, call-outs, directories.

Rules of this room
  1. Opened and closed by the node, in its order; what is not configured costs nothing.
  2. Decides nothing: it knows the houses that do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from relay import callouts, listeners, yp
from relay.address import parse_base_url
from relay.archive import Archive
from relay.callouts import (
    Callouts,
    SourceCallouts,
    Visit,
    Who,
    asks_of_sources,
    place_of,
    wants_callouts,
)
from relay.joining import Askers
from relay.pull import Pulls
from relay.running import in_thread
from relay.source_info import read_info
from relay.streamed import Streamed
from relay.urls import parse_http_url
from relay.yp import Directories, Station

__all__ = ["Beyond", "wants_callouts"]

if TYPE_CHECKING:
    from relay._core import Engine
    from relay.address import Address
    from relay.config import Config
    from relay.sources import Sources

STATIONS_S = 2.0
_UNUSED = (  # counters of what is not configured are there, and stay 0
    *(f"callout_{name}_total" for name in callouts.COUNTED),
    *("yp_listed", *(f"yp_{name}_total" for name in yp.COUNTED)),
)
ASKING_S_MAX = 60.0  # of an asker; callout_timeout_s bounds it before


class Beyond:
    """Of one node.

    Args:
        engine: its data plane.
        sources: claims mounts and gives them back.
        config: its settings.
        version: of this package.
        http: where its door is.
        askers: ask the host about listeners, before any script; the host's to open and close.
        streamed: listeners whom the host's own server serves.
    """

    def __init__(
        self,
        engine: Engine,
        sources: Sources,
        config: Config,
        version: str,
        http: Callable[[], Address | None],
        askers: Askers | None = None,
        streamed: Streamed | None = None,
    ) -> None:
        self._engine = engine
        self._streamed = Streamed() if streamed is None else streamed
        self._sources = sources
        agent = f"Relay/{version}"
        self._pulls = Pulls(engine, sources, config, agent=agent, own=http)
        self._archive = Archive(engine, config)
        self._callouts: Callouts | None = None
        self._askers: Askers | None = None  # where scripts alone say who may listen

        def where() -> tuple[str, int]:
            return place_of(config, http())

        self._directories: Directories | None = None
        self._listed_at = 0.0
        base_url = config.directory.base_url or config.http.base_url
        if config.directory.url and base_url:
            urls = [parse_http_url(text) for text in config.directory.url]
            self._directories = Directories(urls, parse_base_url(base_url), agent, time.monotonic)
        if wants_callouts(config):
            self._callouts = Callouts(
                config,
                agent=agent,
                where=where,
                end=self._end,
                clock=time.monotonic,
            )
            if askers is None:
                self._askers = Askers(self._callouts.ask, ASKING_S_MAX)
            else:
                askers.also = self._callouts.ask
        self.source_callouts: SourceCallouts | None = None
        self._title_callouts: SourceCallouts | None = None  # the same, on the node's loop
        if asks_of_sources(config):
            self.source_callouts = SourceCallouts(config, agent=agent, where=where)
            self._title_callouts = SourceCallouts(config, agent=agent, where=where)

    @property
    def askers(self) -> Askers | None:
        """They ask the scripts; None where there are none, or where the host's own ask them."""
        return self._askers

    async def _end(self, numbers: list[int]) -> set[int]:
        """End these listeners, whoever serves them; who was there."""
        ended = self._streamed.end(numbers)
        if others := [number for number in numbers if number > 0]:
            ended |= await listeners.end_wherever(self._engine, others)
        return ended

    def list_mounts(self) -> None:
        """Begin to pull: before the backbone is opened, since it lists what may be asked for."""
        self._pulls.start()

    def start(self) -> None:
        """Begin everything else: once the engine runs. On the node's loop."""
        self._archive.start()
        if self._askers is not None:
            self._askers.start(self._engine)

    def tick(self) -> None:
        """Housekeeping, twice a second, on the node's loop."""
        if self._callouts is not None:
            self._callouts.tick(self._sources.mounts())
        if self._directories is not None and time.monotonic() - self._listed_at >= STATIONS_S:
            self._listed_at = time.monotonic()
            self._directories.tick(stations(self._engine))

    def see(self, visits: Iterable[Visit]) -> None:
        """Who has come and left, from the engine."""
        if self._callouts is not None:
            self._callouts.see(visits)

    async def knows_source(
        self, mount: str, account: tuple[str, str], address: str, agent: str
    ) -> bool | None:
        """Ask a script whether this account may set titles of a mount; None: there is none."""
        asked = self._title_callouts
        if asked is None or not asked.asks_about(mount):
            return None
        return await asked.may_set_title(Who(mount, address, agent, *account))

    async def let_go(self) -> None:
        """No more pulls: before the sources end."""
        await in_thread(self._pulls.close)

    async def close(self, drained: Awaitable[None]) -> None:
        """Recordings to their end, and the last notes, once all listeners have been `drained`:
        after the sources' end, before the engine's."""
        if self._askers is not None:
            self._askers.close()
        await asyncio.gather(in_thread(self._archive.close), drained)
        if self._callouts is not None:
            self._callouts.see(self._engine.take_visits()[0] + self._streamed.take_visits()[0])
            self._callouts.tick(())
            await self._callouts.close()
        if self._title_callouts is not None:
            await self._title_callouts.close()
        if self._directories is not None:
            await self._directories.close()

    def close_now(self) -> None:
        """Pulls and recordings to their end, without a loop; notes are lost."""
        self._pulls.close()
        self._archive.close()

    def pulled(self) -> dict[str, dict[str, Any]]:
        """How each pull stands, by mount."""
        return self._pulls.facts()

    def snapshot(self) -> dict[str, int]:
        """Counters by name."""
        told = dict.fromkeys(_UNUSED, 0) | self._pulls.snapshot() | self._archive.snapshot()
        for house in (self._callouts, self._directories):
            told |= {} if house is None else house.snapshot()
        return told


def stations(engine: Engine) -> Iterator[Station]:
    """The streams with a source on this node that say that they are public."""
    for stream in engine.streams():
        told = stream.snapshot()
        if told["writer"] != "local" or not told["source_up"]:
            continue
        info = read_info(stream.info())
        if info.get("icy-pub") == "1":
            yield Station(
                mount=stream.mount,
                name=info.get("icy-name") or stream.mount,
                content_type=info.get("content-type", ""),
                genre=info.get("icy-genre", ""),
                description=info.get("icy-description", ""),
                url=info.get("icy-url", ""),
                bitrate_kbps=info.get("icy-br", ""),
                title=told["title"] or "",
                listeners=max(0, told["listeners"] - told["relays"]),
            )
