"""A node as the pages see it, made of plain values.

Rules of this room
  1. It answers with what the test put there, and remembers the titles it was told.
"""

from __future__ import annotations

from typing import Any

from relay.config import Config
from relay.errors import MountError
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

    def facts(self) -> Facts:
        """What the test said."""
        told: dict[str, Any] = {
            "name": "studio",
            "id": "ab" * 16,
            "version": "0.1.0",
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

    def set_title(self, mount: str, text: str) -> None:
        """Remember."""
        if mount not in {s.mount for s in self.streams}:
            raise MountError(f'mount "{mount}" has no source on this node')
        self.titles.append((mount, text))
