"""What becomes of the upstreams of a node, in one log line for each change.

Rules of this room
  1. Told the states twice a second; the clock is handed in. Says nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from relay import _core

log = logging.getLogger("relay.node")

CONNECTING_S = 1.0  # an upstream that is not there by then is worth a line

_WORDS = {
    "connecting": "is not there yet; this node serves its own streams and keeps trying",
    "up": "is up",
    "lost": "is lost; listeners stay, and it is tried again",
    "version": "speaks version {} of the protocol, this node {}; update one of the two",
    "loop": "leads back to this node, or is too deep; choose another with --upstream",
}


class UpstreamWords:
    """Of one node, from its opening on."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def tell(self, upstreams: Iterable[Mapping[str, Any]], open_s: float) -> None:
        """Log what has changed; `open_s`: for how long the node has been open."""
        for told in upstreams:
            state, address = told["state"], told["address"]
            if state == self._told.get(address, "connecting" if open_s < CONNECTING_S else ""):
                continue
            self._told[address] = state
            log.log(
                logging.INFO if state == "up" else logging.WARNING,
                "upstream %s %s",
                address,
                _WORDS[state].format(_span(told.get("versions")), _span(_core.PROTOCOL_VERSIONS)),
                extra={"event": f"upstream_{state}", "upstream": address},
            )


def _span(versions: Sequence[int] | None) -> str:
    """`1`, or `1 to 2`."""
    return " to ".join(map(str, dict.fromkeys(versions or "?")))
