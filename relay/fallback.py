"""Fallback mounts on a node: their stand-ins, and a line in the log for each change.

Rules of this room
  1. What listeners hear is decided and done in the engine (_core/fallback*.pxd); nothing here is
     on the path of audio.
  2. A mount whose own stream is not on this node, but whose fallback is, gets a stand-in: a stream
     without a source, promised in the fallback's format, that no directory lists.
  3. One line for each change, with the mount; looked for twice a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.address import show
from relay.errors import MountError

if TYPE_CHECKING:
    from relay._core import Engine

log = logging.getLogger("relay.fallback")

_WHY_UNFIT = {
    "format": "has another content type than {mount}",
    "serial": "has the Ogg serial that {mount} has; give the node of its source this fallback, too",
    "framed": "has the Ogg serial that {mount} has, and frames of a framed source are never "
    "changed; start one of the senders anew, or choose a serial there",
}


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
    """Those of one node. `tick` is to be called now and then, from one thread; does not block."""

    def __init__(
        self, engine: Engine, is_framed: Callable[[str], bool] = lambda mount: False
    ) -> None:
        self._engine = engine
        self._is_framed = is_framed
        self._told: dict[str, dict[str, Any]] = {}
        self._full: set[str] = set()

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
