"""The settings of what comes in: who may take a mount from whom, how pages are cut, SHOUTcast.

Rules of this room
  1. Fields alone; `config.py` mixes them into `[defaults]`, `[streams]` and `[http]`, and its rules
     hold here too.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from relay.address import check_mount, parse_host_port

SID_MAX = 65_535


def _check_shoutcast(text: str) -> None:
    parse_host_port(text)


class SourceSettings(Struct, frozen=True, kw_only=True):
    """Of each stream: its source."""

    takeover: Annotated[
        Literal["never", "silent", "always"],
        Meta(
            description="Whether a source with the password takes the mount from the one that has "
            "it: silent, when that one has sent no audio for 2 s."
        ),
    ] = "never"
    source_timeout_ms: Annotated[
        Annotated[int, Meta(ge=100, le=3_600_000)] | None,
        Meta(
            description="Silence after which the source of this mount counts as lost.",
            extra={"default": "http.source_timeout_s"},
        ),
    ] = None
    ogg_page_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="Ogg pages are divided into ones that last at most so long; 0: as they "
            "come.",
        ),
    ] = 0


class ShoutcastSettings(Struct, frozen=True, kw_only=True):
    """Of the node: the second port, for encoders that know SHOUTcast 1 alone."""

    shoutcast: Annotated[
        str | None,
        Meta(
            description="Address for SHOUTcast 1 encoders, by custom the port above that of bind.",
            extra={"form": "HOST:PORT", "default": "none", "check": _check_shoutcast},
        ),
    ] = None
    shoutcast_mount: Annotated[
        str,
        Meta(
            description="The mount of a SHOUTcast 1 encoder that names no stream id.",
            extra={"form": "mount", "check": check_mount},
        ),
    ] = "/stream"


Sid = Annotated[
    Annotated[int, Meta(ge=1, le=SID_MAX)] | None,
    Meta(
        description="Stream id by which SHOUTcast encoders name this mount (password:#id).",
        extra={"default": "none"},
    ),
]  # a field of `[streams]` alone: a struct takes the layout of one base only
