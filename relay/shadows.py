"""Which sources have lost against a higher epoch of their mount, each told once.

Rules of this room
  1. Two sources under one mount: the highest epoch wins, the other goes on, shadowed. It is not
     ended: when the winner ends, its encoder may begin a new epoch by coming back.
  2. `look` is a function of what the backbone saw and of what was told before; `tell` logs it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from relay._core import Stream

log = logging.getLogger("relay.node")


class News(NamedTuple):
    """One line for the log."""

    mount: str
    text: str


class Shadows:
    """What was told so far."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str, int]] = set()

    def tell(self, seen: Mapping[str, Any], streams: Iterable[Stream]) -> None:
        """Log what is new in this snapshot of the backbone, one line each. Does not block.

        Args:
            seen: of the links at least those with competing epochs.
            streams: all of the node.
        """
        links = {link["mount"]: link for link in seen["links"]}
        local = {}
        for stream in streams if links else ():
            state = stream.snapshot()
            if state["writer"] == "local":
                local[stream.mount] = state["epoch"]
        addresses = [upstream["address"] for upstream in seen["upstreams"]]
        for news in self.look(links, addresses, local):
            log.warning(news.text, extra={"event": "source_shadowed", "mount": news.mount})

    def look(
        self,
        links: Mapping[str, Mapping[str, Any]],
        upstreams: Sequence[str],
        local: Mapping[str, int | None],
    ) -> list[News]:
        """What is new.

        Args:
            links: what the backbone knows of each mount.
            upstreams: their addresses, in its order.
            local: the mounts with a source on this node, and its epoch.
        """
        now: dict[tuple[str, str, int], News] = {}
        for mount, link in links.items():
            rival, own = link["rival_epoch"] or 0, local.get(mount) or 0
            if rival > own > 0:
                text = (
                    f"the source of {mount} on this node is shadowed: its epoch {own} has lost "
                    f"against {rival}, of another origin; end one of the two"
                )
                now[mount, "", rival] = News(mount, text)
            if mount in local:
                continue
            for number, address in enumerate(upstreams):
                if link["shadowed"] >> number & 1:
                    text = (
                        f"the source of {mount} at {address} is shadowed: another origin has the "
                        f"higher epoch {link['told_epoch']}; end one of the two"
                    )
                    now[mount, address, link["told_epoch"] or 0] = News(mount, text)
        news = [told for key, told in now.items() if key not in self._told]
        self._told = set(now)
        return news
