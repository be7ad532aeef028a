"""Fallback mounts on a node: their stand-ins, and a line in the log for each change.

Rules of this room
  1. What listeners hear is decided and done in the engine (_core/fallback*.pxd); nothing here is
     on the path of audio.
  2. A mount whose own stream is not on this node, but whose fallback is, gets a stand-in: a stream
     without a source, promised in the fallback's format, that no directory lists.
  3. One line for each change, with the mount; looked for twice a second.
  4. What an administrator sets goes through the checks of the settings, holds until the node ends,
     and is not written down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from relay.address import check_mount, show
from relay.errors import ConfigError, MountError
from relay.source_info import read_info
from relay.stream_checks import chain_of, check_fallbacks

if TYPE_CHECKING:
    from relay._core import Engine
    from relay.config import Config, StreamConfig

log = logging.getLogger("relay.fallback")

_WHY_UNFIT = {
    "format": "has another content type than {mount}",
    "serial": "has the Ogg serial that {mount} has; give the node of its source this fallback, too",
    "sound": "has another codec, sample rate or number of channels than {mount} had; encode both "
    "alike",
    "framed": "has the Ogg serial that {mount} has, and frames of a framed source are never "
    "changed; start one of the senders anew, or choose a serial there",
}


def _check(fallback: str, streams: Mapping[str, StreamConfig]) -> None:
    """Refuse what the settings are refused for; ConfigError tells the first of it."""
    try:
        check_mount(fallback)
    except MountError as wrong:
        raise ConfigError(str(wrong)) from None
    for _, line in check_fallbacks(streams):
        raise ConfigError(line)


class Told(NamedTuple):
    """One line of the log."""

    level: int
    event: str
    mount: str
    fallback: str | None
    text: str


def changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    is_framed: Callable[[str], bool] = lambda mount: False,
) -> Iterator[Told]:
    """The lines about one mount; both as `Engine.fallbacks` tells it, `before` may be empty.

    Args:
        before, now: what was told last, and what is true.
        is_framed: whether a mount has a framed source here, whose serial stays as it is.
    """
    mount, fallback = now["mount"], now["fallback"]
    was = before.get("fallback")
    if fallback != was:
        if fallback is None:
            back = f"{mount}: its listeners no longer hear {was}: it has audio again, or none has"
            yield Told(logging.INFO, "fallback_over", mount, was, back)
        else:
            text = f"{mount} is silent: its listeners hear {fallback}"
            yield Told(logging.WARNING, "fallback", mount, fallback, text)
    for name, why in now["unfit"].items():
        if before.get("unfit", {}).get(name) != why:
            if why == "serial" and (is_framed(mount) or is_framed(name)):
                why = "framed"
            text = f"{mount}: its fallback {name} {_WHY_UNFIT[why].format(mount=mount)}: not used"
            yield Told(logging.WARNING, "fallback_unfit", mount, name, text)


class Fallbacks:
    """Those of one node. All calls are of one thread; none blocks.

    Args:
        engine: the node's data plane, with the fallbacks of the settings.
        config: those settings.
        is_framed: whether a mount has a framed source here.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        is_framed: Callable[[str], bool] = lambda mount: False,
    ) -> None:
        self._engine = engine
        self._config = config
        self._is_framed = is_framed
        self._streams: dict[str, StreamConfig] = dict(config.streams)  # as they hold now
        self._told: dict[str, dict[str, Any]] = {}
        self._full: set[str] = set()

    def of(self, mount: str) -> str | None:
        """The fallback of a mount; None: it has none."""
        told = self._streams.get(mount)
        return None if told is None else told.fallback

    def chain(self, mount: str) -> tuple[str, ...]:
        """All that stand in for a mount, in order."""
        return chain_of(mount, self._streams)

    def set(self, mount: str, fallback: str | None) -> None:
        """Let the listeners of a mount hear this one while it is silent; None: none any more.

        It holds for those who listen, too: who hears the fallback before it goes over.

        Raises:
            MountError: this node knows no such mount.
            ConfigError: what the settings would be refused for (a loop, a chain that is too long,
                places on the mount, no path), or another format.
            RelayError: more mounts than the engine has room for.
        """
        if self._engine.find(mount) is None and mount not in self._config.mounts():
            raise MountError(f"mount {show(mount)} is not on this node")
        own = self._streams.get(mount) or self._config.for_stream(mount)
        wanted = {**self._streams, mount: msgspec.structs.replace(own, fallback=fallback)}
        changed = {
            name: chain
            for name in (mount, *wanted)
            if (chain := chain_of(name, wanted)) != chain_of(name, self._streams)
        }
        if fallback is not None:
            _check(fallback, wanted)
        for name, chain in changed.items():
            self._check_format(name, chain)
        for name, chain in changed.items():
            self._engine.set_fallback(name, chain, wanted[name].fallback_after_ms)
        self._streams = wanted
        if changed:
            more = {"event": "fallback_set", "mount": mount, "fallback": fallback}
            log.info("%s: its fallback is now %s", mount, fallback or "none", extra=more)

    def _check_format(self, mount: str, chain: tuple[str, ...]) -> None:
        """Refuse a chain of which one is known to be of another format."""
        own = self._format(mount)
        for name in chain:
            told = self._format(name)
            if own and told and own != told:
                raise ConfigError(
                    f"{show(name)} is {told}, {show(mount)} is {own}: "
                    "listeners cannot change the format"
                )

    def _format(self, mount: str) -> str:
        """The content type of a mount; empty: nobody has told it here."""
        stream = self._engine.find(mount)
        return "" if stream is None else read_info(stream.info()).get("content-type", "").lower()

    def tick(self) -> None:
        """Open stand-ins, and log what has changed since the last time."""
        for told in self._engine.fallbacks():
            mount = told["mount"]
            if self._engine.find(mount) is None:
                self._stand_in(mount, told["chain"])
            for line in changes(self._told.get(mount, {}), told, self._is_framed):
                more = {"event": line.event, "mount": mount, "fallback": line.fallback}
                log.log(line.level, "%s", line.text, extra=more)
            self._told[mount] = told

    def _stand_in(self, mount: str, chain: tuple[str, ...]) -> None:
        """A stream for a mount that has none, if one of its chain is here with its source."""
        for name in chain:
            stream = self._engine.find(name)
            if stream is None or not (info := stream.info()):
                continue
            if not stream.snapshot()["source_up"]:
                continue
            try:
                self._engine.stand_in(mount, info.split(b"\r\n")[0] + b"\r\n")
            except MountError as wrong:  # taken a moment ago; or no room, which is told once
                if mount not in self._full and self._engine.find(mount) is None:
                    log.warning("fallback of %s: %s", show(mount), wrong)
                    self._full.add(mount)
            return
