"""Every setting of a node, defined once, read from a file, the environment and the command line.

Rules of this room
  1. A setting is one annotated struct field: type, bounds, default and one sentence of help. The
     TOML key, the option, the environment name, the docs table and the messages come from it.
  2. Layers, weakest first: defaults, file, environment, command line. `[streams."/x"]` is laid over
     the outcome of `[defaults]`, so what is said about one mount wins for that mount.
  3. All problems are collected and raised together; a problem is one line, `key = value: bound`.
  4. A password or secret key is never shown: not in a message, not in a repr, not in a summary.
  5. Values are checked here and stay plain (numbers, text); whoever opens a socket asks for the
     parsed `Address`. A `Config` never changes once it is made.
  6. This room does not know sockets, threads, click or the engine.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta, field

from relay import settings
from relay.address import (
    Address,
    check_mount,
    is_fixed_path,
    parse_base_url,
    parse_host_port,
    parse_tcp,
    show,
)
from relay.config_backbone import REPAIR_WAIT_MS_MAX, BackboneConfig, check_backbone
from relay.config_sources import Sid
from relay.errors import ConfigError
from relay.options import Catalog, Draft, read_toml
from relay.options import Table as _Table
from relay.stream_checks import RING_READABLE, chain_of, check_streams, is_in_chain

__all__ = [
    "CATALOG",
    "Address",
    "BackboneConfig",
    "Config",
    "DefaultsConfig",
    "HttpConfig",
    "NodeConfig",
    "StreamConfig",
    "check_mount",
    "is_fixed_path",
    "parse_host_port",
    "parse_tcp",
]

REDIRECTS_MAX = 16


def _check_label(text: str) -> None:
    if not text.isprintable():
        raise ConfigError(f"{show(text)}: must be printable characters")


def _check_password(text: str) -> None:
    if not text.isprintable():  # a line end out of a secrets file would match nothing typed
        raise ConfigError(f"{show(text, secret=True)}: must be printable characters, on one line")


def _check_bind(text: str) -> None:
    parse_host_port(text)


def _check_fallback(text: str | None) -> None:
    if text is not None:
        check_mount(text)


def _check_redirect_item(text: str) -> None:
    parse_base_url(text)


# --- the settings --------------------------------------------------------------------------------
Password = Annotated[str, Meta(min_length=1, max_length=256)]


def host_name() -> str:
    """The name of this machine, or `relay` where it has none that fits a label."""
    name = socket.gethostname()[:64]
    return name if name and name.isprintable() else "relay"


class NodeConfig(_Table, frozen=True, kw_only=True):
    """`[node]`: this process."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            description="Label of this node in logs, pages and metrics.",
            extra={"default": "the host name", "check": _check_label},
        ),
    ] = field(default_factory=host_name)
    threads: Annotated[
        int,
        Meta(ge=1, le=64, description="Engine threads (shards), each with its own listeners."),
    ] = 1
    log_format: Annotated[
        Literal["text", "json"],
        Meta(description="How log lines are written: text for people, json for machines."),
    ] = "text"
    streams_max: Annotated[
        int, Meta(ge=1, le=65536, description="How many streams this node carries at once.")
    ] = 4096
    listeners_max: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000_000,
            description="Listeners that this node takes; 0 is as many as its file limit allows.",
        ),
    ] = 0


class HttpConfig(settings.DoorSettings, _Table, frozen=True, kw_only=True):
    """`[http]`: the door for sources, listeners and pages."""

    bind: Annotated[
        str,
        Meta(
            description="Address for sources, listeners and pages; port 0 takes any free one.",
            extra={"flag": "http", "form": "HOST:PORT", "check": _check_bind},
        ),
    ] = "0.0.0.0:8000"
    source_password: Annotated[
        Password | None,
        Meta(
            description="What a source must know; with none given, `relay serve` makes one up.",
            extra={"default": "made up at start", "check": _check_password},
        ),
    ] = None
    admin_password: Annotated[
        Password | None,
        Meta(
            description="What an administrator must know; with none given, one is made up.",
            extra={"default": "made up at start", "check": _check_password},
        ),
    ] = None
    heads_max: Annotated[
        int,
        Meta(
            ge=16,
            le=65536,
            description="Heads held that drip in or are late; at most a quarter of the file limit.",
        ),
    ] = 2048
    heads_per_address_max: Annotated[
        int,
        Meta(
            ge=1,
            le=65536,
            description="The same for one address or IPv6 /64; one a thread at least.",
        ),
    ] = 64
    head_timeout_s: Annotated[
        float, Meta(ge=0.1, le=120, description="Time a peer has to finish its request head.")
    ] = 10.0
    join_wait_ms: Annotated[
        int,
        Meta(
            ge=0, le=30_000, description="How long a listener waits for a stream still on its way."
        ),
    ] = 2000
    redirect: Annotated[
        Annotated[tuple[str, ...], Meta(max_length=REDIRECTS_MAX)],
        Meta(
            description="Other nodes that listeners are sent to, in turn, while this one is full.",
            extra={
                "form": f"list of up to {REDIRECTS_MAX} base URLs, http://HOST:PORT",
                "check": _check_redirect_item,
            },
        ),
    ] = ()
    source_timeout_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="Silence after which a source counts as lost.")
    ] = 10.0

    @property
    def address(self) -> Address:
        """Where to listen."""
        return parse_host_port(self.bind)

    @property
    def redirect_bases(self) -> tuple[str, ...]:
        """The other nodes, without a slash at the end."""
        return tuple(parse_base_url(text) for text in self.redirect)


class DefaultsConfig(settings.SharedSettings, frozen=True, kw_only=True):
    """`[defaults]`: every stream, unless its own table says otherwise."""

    burst_ms: Annotated[
        int,
        Meta(ge=0, le=60_000, description="Media time that a new listener gets at once."),
    ] = 3000
    pace_ms: Annotated[
        Annotated[int, Meta(ge=10, le=1000)] | Literal["auto"],
        Meta(description="How often a listener is served, in steps of 10; auto: by the load."),
    ] = "auto"
    pace_ms_min: Annotated[
        int, Meta(ge=10, le=1000, description="The fastest pace that auto chooses.")
    ] = 100
    pace_ms_max: Annotated[
        int, Meta(ge=10, le=1000, description="The slowest pace that auto chooses.")
    ] = 1000
    ring_s: Annotated[
        float, Meta(ge=1, le=600, description="Media time that a stream keeps in memory.")
    ] = 20.0
    ring_bytes_max: Annotated[
        int, Meta(ge=1 << 20, le=1 << 32, description="Memory that one ring takes at most.")
    ] = 64 << 20
    lag_ms_max: Annotated[
        int,
        Meta(ge=100, le=480_000, description="Lag at which a listener skips to newer audio."),
    ] = 15_000
    stall_ms: Annotated[
        int,
        Meta(ge=100, le=600_000, description="Time without taking a byte that ends a listener."),
    ] = 15_000
    linger_s: Annotated[
        float,
        Meta(ge=0, le=86_400, description="How long listeners are kept after their source left."),
    ] = 60.0
    catchup_ms: Annotated[
        int,
        Meta(ge=0, le=600_000, description="How long audio added by a repair is no lag."),
    ] = 10_000
    ahead_ms: Annotated[
        int,
        Meta(ge=0, le=60_000, description="How far a source may run ahead of its media time."),
    ] = 5000
    listeners_max: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000_000,
            description="How many listeners one mount takes; 0 is no bound of its own.",
            extra={"flag": "stream-listeners-max"},
        ),
    ] = 0
    fallback_after_ms: Annotated[
        int,
        Meta(
            ge=1000,
            le=600_000,
            description="Silence of a stream after which its listeners hear its fallback.",
        ),
    ] = 3000
    anchor: Annotated[
        bool, Meta(description="Send listeners to a URL that tells where they begin, by a 302.")
    ] = False
    icy_ogg: Annotated[
        bool,
        Meta(description="Title blocks in Ogg, too, for players that ask; some cannot take them."),
    ] = False

    @property
    def pace_fixed_ms(self) -> int | None:
        """The pace as a number; None where it is chosen from the load."""
        return None if self.pace_ms == "auto" else self.pace_ms

    @property
    def pace_ceiling_ms(self) -> int:
        """The slowest pace that this setting may come to."""
        return self.pace_ms_max if self.pace_ms == "auto" else self.pace_ms

    @property
    def lag_ceiling_ms(self) -> int:
        """The most lag that the ring can hold: its readable part."""
        return int(self.ring_s * 1000 * RING_READABLE)


class StreamConfig(DefaultsConfig, frozen=True, kw_only=True):
    """`[streams."/live"]`: one mount; what is left out comes from `[defaults]`."""

    source_password: Annotated[
        Password | None,
        Meta(
            description="What the source of this mount must know, instead of the node's.",
            extra={"default": "http.source_password", "check": _check_password},
        ),
    ] = None
    shoutcast_sid: Sid = None
    fallback: Annotated[
        str | None,
        Meta(
            description="Mount of the same format that its listeners hear while it is silent; a "
            "chain of up to 4.",
            extra={"form": "mount", "default": "none", "check": _check_fallback},
        ),
    ] = None
    pull: settings.PullUrls = ()
    pull_on_demand: settings.PullOnDemand = False
    pull_idle_s: settings.PullIdle = 10.0
    intro: Annotated[
        Annotated[str, Meta(min_length=1, max_length=4096)] | None,
        Meta(
            description="File that each new listener hears first, in the format of the mount.",
            extra={"form": "path of a file", "default": "none"},
        ),
    ] = None


TABLES: dict[str, type[_Table]] = {
    "node": NodeConfig,
    "http": HttpConfig,
    "backbone": BackboneConfig,
    "defaults": DefaultsConfig,
    "directory": settings.DirectoryConfig,
}
CATALOG = Catalog(TABLES, StreamConfig)
"""Every option there is: what the command line, the docs and the messages are made from."""


# --- the whole -----------------------------------------------------------------------------------


class Config(_Table, frozen=True, kw_only=True):
    """All settings of one node, checked, unchanging. Make one with `Config.load`."""

    node: NodeConfig = field(default_factory=NodeConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    defaults: DefaultsConfig = field(default_factory=DefaultsConfig)
    directory: settings.DirectoryConfig = field(default_factory=settings.DirectoryConfig)
    streams: dict[str, StreamConfig] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        overrides: Mapping[str, object] = MappingProxyType({}),
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """Gather the settings from every layer and check them together.

        Args:
            path: the TOML file, or None for no file. Reading it is the only thing that blocks.
            overrides: the strongest layer. A name is an option (`--burst-ms`), its Python word
                (`burst_ms`, `http`) or a key (`defaults.burst_ms`); a table's name with a mapping
                stands for that table (`{"streams": {"/live": {"burst_ms": 500}}}`). Numbers may
                come as text. None means not given.
            environ: where `RELAY_…` is looked up; empty text means not given.

        Raises:
            ConfigError: `problems` holds one line for each thing that is wrong.
        """
        draft = Draft(CATALOG)
        if path is not None:
            draft.take_tree(read_toml(Path(path)))
        draft.take_environment(environ)
        draft.take_overrides(overrides)
        tables: dict[str, Any] = {name: kind(**draft.given[name]) for name, kind in TABLES.items()}
        shared = draft.given["defaults"]
        streams = {m: StreamConfig(**{**shared, **own}) for m, own in draft.streams.items()}
        config = cls(**tables, streams=streams)
        draft.note(_cross_checks(config, draft.streams))
        draft.finish()
        return config

    def for_stream(self, mount: str) -> StreamConfig:
        """The settings of one mount: its own table over `[defaults]`."""
        own = self.streams.get(mount)
        return own or StreamConfig(**msgspec.structs.asdict(self.defaults))

    def fallback_chain(self, mount: str) -> tuple[str, ...]:
        """The mounts that its listeners hear in its place, first choice first."""
        return chain_of(mount, self.streams)

    def mounts(self) -> tuple[str, ...]:
        """Every mount with a table of its own, and every fallback."""
        chains = (self.fallback_chain(mount) for mount in self.streams)
        return tuple(dict.fromkeys((*self.streams, *(name for chain in chains for name in chain))))

    def in_fallback(self, mount: str) -> bool:
        """Whether this mount has a fallback, or is one."""
        return is_in_chain(mount, self.streams)

    def repair_wait_ms(self, mount: str) -> int:
        """How long a hole in this stream is waited for."""
        if self.backbone.repair_wait_ms is not None:
            return self.backbone.repair_wait_ms
        return min(self.for_stream(mount).burst_ms // 2, REPAIR_WAIT_MS_MAX)

    def source_password(self, mount: str) -> str | None:
        """What the source of this mount must know."""
        return self.for_stream(mount).source_password or self.http.source_password

    def source_timeout_s(self, mount: str) -> float:
        """Silence after which the source of this mount counts as lost."""
        own_ms = self.for_stream(mount).source_timeout_ms
        return self.http.source_timeout_s if own_ms is None else own_ms / 1000

    def with_passwords(self, make: Callable[[], str]) -> tuple[Self, dict[str, str]]:
        """Fill in the passwords that nobody gave.

        Returns:
            the filled settings, and what was made up: {"source password": "…", …}.
        """
        missing = [n for n in ("source_password", "admin_password") if not getattr(self.http, n)]
        made = {name: make() for name in missing}
        filled = msgspec.structs.replace(self, http=msgspec.structs.replace(self.http, **made))
        return filled, {name.replace("_", " "): password for name, password in made.items()}


_Finding = tuple[set[str], str]  # the keys that a cross check looked at, and its line


def _cross_checks(config: Config, own: dict[str, dict[str, Any]]) -> Iterator[_Finding]:
    """What is wrong between settings that are right one by one; `own`: what each mount said."""
    node, http, streams = config.node, config.http, config.streams
    if http.heads_per_address_max > http.heads_max:
        yield (
            {"http.heads_per_address_max", "http.heads_max"},
            f"http.heads_per_address_max = {http.heads_per_address_max}: "
            f"must be at most http.heads_max = {http.heads_max}",
        )
    if len(streams) > node.streams_max:
        yield (
            {"node.streams_max"},
            f"node.streams_max = {node.streams_max}: must be at least {len(streams)}, "
            "the number of [streams] tables",
        )
    yield from check_backbone(config.backbone, http.bind)
    yield from settings.check_directory(config.directory, http.base_url)
    yield from check_streams(config.defaults, streams, own)
