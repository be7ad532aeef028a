"""What the settings of streams must have to do with each other: pace, lag, chains of fallbacks.

Rules of this room
  1. Functions of settings that are right one by one; nothing is read and nothing opened here.
  2. A stream is looked at only where its own table said something that matters, so that one slip
     in `[defaults]` is one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from relay.address import show, show_scalar

RING_READABLE = 0.8
"""The part of a ring that listeners may lag into; the rest is the writer's guard."""
CHAIN_MAX = 4
"""Fallbacks behind one mount (FALLBACK_MEMBERS in the core, less the mount)."""

Finding = tuple[set[str], str]  # the settings that a check looked at, and its line
Settings = Any  # relay.config.DefaultsConfig or StreamConfig, which stand above this room

_PACES = ("pace_ms", "pace_ms_min", "pace_ms_max")


def check_streams(
    defaults: Settings, streams: Mapping[str, Settings], own: Mapping[str, Mapping[str, Any]]
) -> Iterator[Finding]:
    """What is wrong in `[defaults]` and `[streams]`; `own`: what each mount said itself."""
    yield from _check_pace("defaults", defaults)
    yield from _check_lag("defaults", defaults)
    for mount, stream in streams.items():
        table = f"streams.{show_scalar(mount)}"
        if own[mount].keys() & set(_PACES):
            yield from _check_pace(table, stream)
        if own[mount].keys() & {*_PACES, "burst_ms", "lag_ms_max", "ring_s"}:
            yield from _check_lag(table, stream)
    yield from check_fallbacks(streams)
    yield from _check_pulls(streams, own)


def _keys(table: str, *names: str) -> set[str]:
    """Where these values of a stream may come from."""
    return {f"{home}.{name}" for home in (table, "defaults") for name in names}


def _check_pace(table: str, stream: Settings) -> Iterator[Finding]:
    """Hold floor ≤ ceiling, also where a fixed pace leaves them unused."""
    if stream.pace_ms_min > stream.pace_ms_max:
        yield (
            _keys(table, "pace_ms_min", "pace_ms_max"),
            f"{table}.pace_ms_min = {stream.pace_ms_min}: must be at most pace_ms_max = "
            f"{stream.pace_ms_max}",
        )


def _check_lag(table: str, stream: Settings) -> Iterator[Finding]:
    """Hold burst + pace ≤ lag_ms_max ≤ the readable part of the ring."""
    lag_ms, burst_ms, pace_ms = stream.lag_ms_max, stream.burst_ms, stream.pace_ceiling_ms
    if lag_ms < burst_ms + pace_ms:
        yield (
            _keys(table, "lag_ms_max", "burst_ms", "pace_ms", "pace_ms_max"),
            f"{table}.lag_ms_max = {lag_ms}: must be at least burst_ms + the slowest pace, "
            f"{burst_ms} + {pace_ms} = {burst_ms + pace_ms}",
        )
    if lag_ms > stream.lag_ceiling_ms:
        yield (
            _keys(table, "lag_ms_max", "ring_s"),
            f"{table}.lag_ms_max = {lag_ms}: must be at most {RING_READABLE} of the ring, "
            f"ring_s = {stream.ring_s:g} gives {stream.lag_ceiling_ms}; lower it, or raise ring_s "
            f"to {lag_ms / 1000 / RING_READABLE:g}",
        )


# --- fallbacks -----------------------------------------------------------------------------------


def chain_of(mount: str, streams: Mapping[str, Settings]) -> tuple[str, ...]:
    """The mounts that stand in for this one, in order, without the one that closes a loop."""
    chain: list[str] = []
    found = _fallback(mount, streams)
    while found is not None and found != mount and found not in chain:
        chain.append(found)
        found = _fallback(found, streams)
    return tuple(chain)


def is_in_chain(mount: str, streams: Mapping[str, Settings]) -> bool:
    """Whether this mount has a fallback, or is one."""
    has = _fallback(mount, streams) is not None
    return has or any(other.fallback == mount for other in streams.values())


def _fallback(mount: str, streams: Mapping[str, Settings]) -> str | None:
    told = streams.get(mount)
    return None if told is None else told.fallback


def _chain_problem(mount: str, streams: Mapping[str, Settings]) -> str | None:
    """What is wrong with the chain of this mount, with its path; None: nothing."""
    chain = chain_of(mount, streams)
    after = _fallback(chain[-1] if chain else mount, streams)
    path = " > ".join(show_scalar(step) for step in (mount, *chain))
    if after is not None:
        return f"leads in a loop, {path} > {show_scalar(after)}; end it at a mount without fallback"
    if len(chain) > CHAIN_MAX:
        return f"makes a chain of {len(chain)}, {path}; at most {CHAIN_MAX} fallbacks"
    return None


def check_fallbacks(streams: Mapping[str, Settings]) -> Iterator[Finding]:
    """Hold chains short and without loops, their silence within the linger, and no places."""
    every = {f"streams.{show_scalar(mount)}.fallback" for mount in streams}
    for mount, stream in streams.items():
        if stream.fallback is None:
            continue
        table = f"streams.{show_scalar(mount)}"
        if problem := _chain_problem(mount, streams):
            yield every, f"{table}.fallback = {show(stream.fallback)}: {problem}"
        if stream.anchor:
            yield (
                {*_keys(table, "anchor"), f"{table}.fallback"},
                f"{table}.anchor = true: not with a fallback, since its listeners may hear another "
                "stream in between, and no place tells how far they came; leave one of them out, "
                f"or say {table}.anchor = false",
            )
        if stream.fallback_after_ms > stream.linger_s * 1000:
            yield (
                _keys(table, "fallback_after_ms", "linger_s"),
                f"{table}.fallback_after_ms = {stream.fallback_after_ms}: must be at most linger_s "
                f"= {stream.linger_s:g}, or its listeners are gone before they hear a fallback",
            )


# --- pulls ---------------------------------------------------------------------------------------


def _check_pulls(
    streams: Mapping[str, Settings], own: Mapping[str, Mapping[str, Any]]
) -> Iterator[Finding]:
    """Hold that what is said about a pull is said about one, and no address twice."""
    for mount, stream in streams.items():
        table = f"streams.{show_scalar(mount)}"
        for name in {"pull_on_demand", "pull_idle_s"} & own[mount].keys():
            if not stream.pull:
                value = show(getattr(stream, name))
                yield (
                    {f"{table}.{name}", f"{table}.pull"},
                    f"{table}.{name} = {value}: this mount pulls nothing; give it pull = "
                    '"http://…", or leave this out',
                )
        twice = {url for url in stream.pull if stream.pull.count(url) > 1}
        if twice:
            yield (
                {f"{table}.pull"},
                f"{table}.pull = {show(stream.pull)}: names {show(min(twice))} twice",
            )
