"""Sources that have lost against a higher epoch of another origin, and go on above it.

Rules of this room
  1. Of two sources of one mount at two origins the higher epoch is heard. When nothing comes of
     that one any more, nodes below wish for a higher one (docs/wire.md; `Stream.epoch_wished`).
  2. A source that is cut here then goes on in a new epoch; its listeners stay. At most once in
     ANEW_S a mount, so that nobody who wishes without end breaks a stream more often.
  3. The epoch of a framed source is its sender's, which tells it to other origins, too: it stays
     (`Source.begin_anew` says 0).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from relay.errors import SourceError

if TYPE_CHECKING:
    from relay.source import LocalSource

log = logging.getLogger("relay.source")

ANEW_S = 10.0


class Anew:
    """Those of one node. `tick` is to be called now and then, from one thread; does not block."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}  # when a mount's source may begin anew once more

    def tick(self, sources: Iterable[LocalSource], now: float) -> None:
        """Let those go on that are wished to; `now`: monotonic seconds."""
        for source in sources:
            wished, lost = source.stream.epoch_wished, source.epoch
            if wished <= lost or now < self._until.get(source.mount, 0.0):
                continue
            epoch = 0
            with suppress(SourceError):  # closed meanwhile
                epoch = source.begin_anew(wished)
            if epoch:
                self._until = {mount: at for mount, at in self._until.items() if at > now}
                self._until[source.mount] = now + ANEW_S
                log.warning(
                    "%s: its epoch %d has lost against %d of another origin, which is silent: it "
                    "goes on as %d",
                    source.mount,
                    lost,
                    wished - 1,
                    epoch,
                    extra={"event": "epoch_anew", "mount": source.mount, "epoch": epoch},
                )


__all__ = ["ANEW_S", "Anew"]
