"""Relay: a live-audio stream relay that does not fail when it matters.

Names are loaded when they are first asked for, so that `import relay` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.asgi import AsgiApp
    from relay.clock import AudioClock
    from relay.config import Config
    from relay.errors import (
        ConfigError,
        EpochLostError,
        MountError,
        OvertakenError,
        RelayError,
        SourceError,
    )
    from relay.events import Event, Events, Gap, Joined, Left, Missed, SourceDown, SourceUp, Visit
    from relay.framed import OriginFacts, RemoteSource
    from relay.hosted import Handler
    from relay.joining import Allow, Deny, Join, OnJoin, Redirect, Verdict
    from relay.node import Node
    from relay.own_source import NodeSource
    from relay.pcm import PcmFacts
    from relay.pcm_out import PcmBlock, PcmSubscription
    from relay.subscribe import Frame, Position, Skipped, Start, Subscription
    from relay.view import View

    __version__: str

_HOMES = {
    "Allow": "relay.joining",
    "AsgiApp": "relay.asgi",
    "AudioClock": "relay.clock",
    "Config": "relay.config",
    "ConfigError": "relay.errors",
    "Deny": "relay.joining",
    "EpochLostError": "relay.errors",
    "Event": "relay.events",
    "Events": "relay.events",
    "Frame": "relay.subscribe",
    "Gap": "relay.events",
    "Handler": "relay.hosted",
    "Join": "relay.joining",
    "Joined": "relay.events",
    "Left": "relay.events",
    "Missed": "relay.events",
    "MountError": "relay.errors",
    "Node": "relay.node",
    "NodeSource": "relay.own_source",
    "OnJoin": "relay.joining",
    "OriginFacts": "relay.framed",
    "OvertakenError": "relay.errors",
    "PcmBlock": "relay.pcm_out",
    "PcmFacts": "relay.pcm",
    "PcmSubscription": "relay.pcm_out",
    "Position": "relay.subscribe",
    "Redirect": "relay.joining",
    "RelayError": "relay.errors",
    "RemoteSource": "relay.framed",
    "Skipped": "relay.subscribe",
    "SourceDown": "relay.events",
    "SourceError": "relay.errors",
    "SourceUp": "relay.events",
    "Start": "relay.subscribe",
    "Subscription": "relay.subscribe",
    "Verdict": "relay.joining",
    "View": "relay.view",
    "Visit": "relay.events",
}

__all__ = [
    "Allow",
    "AsgiApp",
    "AudioClock",
    "Config",
    "ConfigError",
    "Deny",
    "EpochLostError",
    "Event",
    "Events",
    "Frame",
    "Gap",
    "Handler",
    "Join",
    "Joined",
    "Left",
    "Missed",
    "MountError",
    "Node",
    "NodeSource",
    "OnJoin",
    "OriginFacts",
    "OvertakenError",
    "PcmBlock",
    "PcmFacts",
    "PcmSubscription",
    "Position",
    "Redirect",
    "RelayError",
    "RemoteSource",
    "Skipped",
    "SourceDown",
    "SourceError",
    "SourceUp",
    "Start",
    "Subscription",
    "Verdict",
    "View",
    "Visit",
    "__version__",
]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("relay-audio")
    except PackageNotFoundError:  # a source tree that nobody installed
        return "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'relay' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
