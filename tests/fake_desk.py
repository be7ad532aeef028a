"""A node as the pages see it, made of plain values.

Rules of this room
  1. It answers with what the test put there, and remembers the titles it was told.
"""

from __future__ import annotations

from typing import Any

from relay.config import Config
from relay.errors import ConfigError, MountError
from relay.following import Moment
from relay.listeners import Listener, Roll
from relay.web.facts import Facts, StreamFacts

HOSTILE = "<script>alert('x')</script>\"&"


def stream(mount: str = "/live", **more: Any) -> StreamFacts:
    """A live stream of the origin."""
    told: dict[str, Any] = {
        "mount": mount,
        "state": "live",
        "role": "origin",
        "epoch": 1_700_000_000_000,
        "listeners": 3,
        "lag_ms": 0,
        "held_ms": 20_000,
        "bitrate_bps": 128_000,
        "content_type": "audio/mpeg",
        "name": "A talk",
        "title": "First part",
        "head_sequence": 99,
        "counters": {"joins_total": 5, "sent_bytes_total": 1000},
        "info": {"icy-genre": "speech", "ice-audio-info": "bitrate=128"},
    }
    return StreamFacts(**(told | more))


def durations(*below: int, total: int, sum_us: int, max_us: int) -> dict[str, Any]:
    """What an engine has seen of one kind: how many were below each of the first edges."""
    told = [*below, *[total] * (16 - len(below))]
    quantiles = {name: max_us // 2 for name in ("p50_us", "p90_us", "p99_us")}
    return {"total": total, "sum_us": sum_us, "max_us": max_us, "below_total": told, **quantiles}


MEASURED: dict[str, dict[str, Any]] = {
    "join": durations(1, 4, total=5, sum_us=9000, max_us=3000),
    "lateness": durations(total=0, sum_us=0, max_us=0),
    "gap": durations(0, 0, total=7, sum_us=17_000, max_us=2_100_000),
    "skip": durations(total=0, sum_us=0, max_us=0),
    "busy": {
        "total": 30,
        "sum_percent": 90.0,
        "max_percent": 12.5,
        "last_percent": 2.5,
        "p50_percent": 10.0,
        "p90_percent": 10.0,
        "p99_percent": 12.5,
        "below_total": [28, *[30] * 9],
    },
}


class FakeDesk:
    """A node with passwords pw (source) and apw (admin)."""

    def __init__(self, *streams: StreamFacts) -> None:
        self.config = Config.load(
            overrides={"source_password": "pw", "admin_password": "apw"}, environ={}
        )
        self.streams = list(streams)
        self.wrong: list[str] = []
        self.titles: list[tuple[str, str]] = []
        self.more: dict[str, Any] = {}
        self.done: list[tuple[Any, ...]] = []
        self.fallbacks: dict[str, str | None] = {}
        self.script_says: bool | None = None

    def facts(self) -> Facts:
        """What the test said."""
        told: dict[str, Any] = {
            "name": "studio",
            "id": "ab" * 16,
            "version": "0.1.0",
            "at": 1_700_000_012.5,
            "started_at": 1_700_000_000.0,
            "uptime_s": 12.5,
            "http": "127.0.0.1:8000",
            "backbone": None,
            "insecure": False,
            "trust": "loopback",
            "streams": self.streams,
            "counters": {"listeners": 3, "joins_total": 5, "shards": [{"listeners": 3}]},
            "measured": MEASURED,
        }
        return Facts(**(told | self.more))

    def recording(self, since_s: float, mount: str | None, records_max: int) -> dict[str, Any]:
        """What was asked for."""
        return {"records": [], "asked": [since_s, mount, records_max]}

    def problems(self) -> list[str]:
        """What the test said."""
        return self.wrong

    async def knows_source(
        self, mount: str, account: tuple[str, str], address: str, agent: str
    ) -> bool | None:
        """What the test says a script says; nobody is asked otherwise."""
        self.done.append(("knows_source", mount, account, agent))
        return self.script_says

    def set_title(self, mount: str, text: str, url: str = "") -> None:
        """Remember."""
        if url:
            self.done.append(("url", url))
        if mount not in {s.mount for s in self.streams}:
            raise MountError(f'mount "{mount}" has no source on this node')
        self.titles.append((mount, text))

    def end_source(self, mount: str) -> None:
        """Remember."""
        self._known(mount)
        self.done.append(("end_source", mount))

    def fallback_chain(self, mount: str) -> tuple[str, ...]:
        """What was set."""
        told = self.fallbacks.get(mount)
        return () if told is None else (told,)

    def set_fallback(self, mount: str, fallback: str | None) -> None:
        """Remember; no loop of one."""
        self._known(mount)
        if fallback == mount:
            raise ConfigError("leads in a loop")
        self.fallbacks[mount] = fallback
        self.done.append(("set_fallback", mount, fallback))

    def moment(self, mount: str) -> Moment | None:
        """What the test said of the stream."""
        for told in self.streams:
            if told.mount == mount:
                return Moment(told.state == "live", told.epoch, told.title, told.listeners)
        return None

    async def roll(self, mount: str) -> Roll:
        """Two listeners, one of them hostile."""
        self._known(mount)
        agents = ("VLC/3", HOSTILE)
        told = [
            Listener(n, "192.0.2.1", n, agent, 61.5, 20, 9) for n, agent in enumerate(agents, 7)
        ]
        return Roll(len(told), told)

    async def end_listeners(self, mount: str, number: int) -> int:
        """Remember; there is 7 and 8."""
        self._known(mount)
        self.done.append(("end_listeners", mount, number))
        return int(number in {7, 8})

    async def move_listeners(self, mount: str, to: str, number: int) -> tuple[int, int]:
        """Remember; one has to stay."""
        self._known(mount)
        self._known(to)
        self.done.append(("move_listeners", mount, to, number))
        return 3, 1

    def _known(self, mount: str) -> None:
        if mount not in {s.mount for s in self.streams}:
            raise MountError(f'mount "{mount}" is not on this node')
