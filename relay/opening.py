"""What a node consists of, opened from one Config: the engine, the HTTP door's address, the links.

Rules of this room
  1. Each function opens one thing and keeps nothing; relay.node says when, and closes it.
  2. A setting that this machine cannot give is a ConfigError that names key, value and next step.
"""

from __future__ import annotations

import math
import resource
from typing import TYPE_CHECKING

from relay import _core
from relay.address import Address, why_unbound
from relay.config import Config
from relay.errors import ConfigError
from relay.intro import read_intro

if TYPE_CHECKING:
    from relay.backbone import Backbone

FILES_RESERVED = 512  # descriptors for everything that is neither listener nor head


def heads_that_fit(heads_max: int, files_max: int) -> int:
    """Unfinished heads for a file limit: as configured, but at most a quarter of it."""
    return min(heads_max, max(16, files_max // 4))


def listeners_that_fit(heads_max: int, files_max: int) -> int:
    """How many listeners a file limit leaves room for."""
    return max(0, files_max - heads_max - FILES_RESERVED)


def open_engine(config: Config, *, asks: bool = False) -> _core.Engine:
    """The data plane, with the settings of every mount; its threads do not run yet. `asks`: Python
    says who may listen."""
    files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    http = config.http
    engine = _core.Engine(
        streams_max=config.node.streams_max,
        threads=config.node.threads,
        listeners_max=config.node.listeners_max,
        heads_max=heads_that_fit(http.heads_max, files_max),
        heads_per_address_max=http.heads_per_address_max,
        head_timeout_ms=math.ceil(http.head_timeout_s * 1000),
        join_wait_ms=http.join_wait_ms,
        redirects=http.redirect_bases,
    )
    for mount in (None, *config.mounts()):
        stream = config.defaults if mount is None else config.for_stream(mount)
        engine.configure(
            mount,
            burst_ms=stream.burst_ms,
            pace_ms=stream.pace_fixed_ms,
            pace_ms_min=stream.pace_ms_min,
            pace_ms_max=stream.pace_ms_max,
            lag_ms_max=stream.lag_ms_max,
            stall_ms=stream.stall_ms,
            linger_s=math.ceil(stream.linger_s),
            catchup_ms=stream.catchup_ms,
            ring_s=math.ceil(stream.ring_s),
            ring_bytes_max=stream.ring_bytes_max,
            ahead_ms=stream.ahead_ms,
            listeners_max=stream.listeners_max,
            fallback=() if mount is None else config.fallback_chain(mount),
            fallback_after_ms=stream.fallback_after_ms,
            own_serial=mount is not None and config.in_fallback(mount),
            anchor=stream.anchor,
            asks=asks or stream.listener_add is not None or stream.listener_remove is not None,
            icy_ogg=stream.icy_ogg,
            intro=_intro_of(config, mount),
            ogg_page_ms=stream.ogg_page_ms,
        )
    return engine


def _intro_of(config: Config, mount: str | None) -> tuple[()] | tuple[bytes, str]:
    told = None if mount is None else config.for_stream(mount).intro
    return () if mount is None or told is None else read_intro(told, mount)


def open_http(engine: _core.Engine, config: Config) -> Address:
    """Bind the HTTP door; returns where it is. ConfigError when the address cannot be had."""
    wanted = config.http.address
    try:
        host, port = engine.listen(wanted.host, wanted.port)
    except OSError as error:
        raise ConfigError(
            f"http.bind = {wanted}: {why_unbound(error)}, with --http HOST:PORT"
        ) from None
    return Address(host, port)


def open_links(engine: _core.Engine, config: Config) -> Backbone | None:
    """The links to other nodes; None where the settings want none. ConfigError as `open_http`."""
    told = config.backbone
    if told.address is None and not told.upstream:
        return None
    from relay.backbone import open_backbone
    from relay.keys import own_keys

    return open_backbone(
        engine,
        bind=None if told.address is None else told.bind,
        upstreams=told.upstream,
        redundancy=told.redundancy,
        advertise=told.advertise,
        silence_ms=told.silence_ms,
        repair_wait_ms=config.repair_wait_ms(""),
        prefetch=told.prefetch,
        subscriptions_max=told.subscriptions_max,
        keys=own_keys(told),
        children=told.children,
    )
