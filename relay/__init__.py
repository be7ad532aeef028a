"""Relay: a live-audio stream relay that does not fail when it matters.

Names are loaded when they are first asked for, so that `import relay` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.config import Config
    from relay.errors import (
        ConfigError,
        EpochLostError,
        MountError,
        RelayError,
        SourceError,
        UpstreamError,
    )
    from relay.framed import OriginFacts, RemoteSource
    from relay.node import Node
    from relay.subscribe import Frame, Skipped

    __version__: str

_HOMES = {
    "Config": "relay.config",
    "ConfigError": "relay.errors",
    "EpochLostError": "relay.errors",
    "Frame": "relay.subscribe",
    "MountError": "relay.errors",
    "Node": "relay.node",
    "OriginFacts": "relay.framed",
    "RelayError": "relay.errors",
    "RemoteSource": "relay.framed",
    "Skipped": "relay.subscribe",
    "SourceError": "relay.errors",
    "UpstreamError": "relay.errors",
}

__all__ = [
    "Config",
    "ConfigError",
    "EpochLostError",
    "Frame",
    "MountError",
    "Node",
    "OriginFacts",
    "RelayError",
    "RemoteSource",
    "Skipped",
    "SourceError",
    "UpstreamError",
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
