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
        }
        return Facts(**(told | self.more))

    def problems(self) -> list[str]:
        """What the test said."""
        return self.wrong

    def set_title(self, mount: str, text: str) -> None:
        """Remember."""
        if mount not in {s.mount for s in self.streams}:
            raise MountError(f'mount "{mount}" has no source on this node')
        self.titles.append((mount, text))
