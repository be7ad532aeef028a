"""What a supervisor such as systemd is told: ready, stopping, and that the threads still turn.

Rules of this room
  1. Nothing is said without NOTIFY_SOCKET, and no sign of life without WATCHDOG_USEC: both as in
     sd_notify(3) and sd_watchdog_enabled(3), without their library.
  2. A sign of life goes out only when every thread of the engine has turned since the one before:
     who says it from a loop of its own proves that this loop lives and nothing else. Whether they
     have is looked at LOOKS times in the time that the watchdog waits: after a pause (of the whole
     machine, say) the next sign is not half of that time away.
  3. Never waits and never raises: a supervisor that does not listen is no reason to stop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

log = logging.getLogger("relay.serve")

STATUS_CHARACTERS_MAX = 200
LOOKS = 8


class Pulse:
    """Remembers how far each thread was at the last sign of life, and says who has not moved since.

    Since the last sign, not since the last look: threads that turn seldom, each at its own time,
    are all alive, though at every look one of them has just not turned.
    """

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}

    def stuck(self, turns: Mapping[str, int]) -> list[str]:
        """The threads that are where they were when this last found none; `turns` by name."""
        stuck = [name for name, count in turns.items() if self._turns.get(name) == count]
        if not stuck:
            self._turns = dict(turns)
        return stuck


class Supervisor:
    """The other end of NOTIFY_SOCKET, if there is one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environ) if self._address else 0.0

    def tell(self, *lines: str) -> bool:
        """Say `READY=1` and the like; False when nobody has taken it. Does not block."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
                to.setblocking(False)
                to.sendto("\n".join(lines).encode(), self._address)
        except OSError as wrong:
            log.warning("the supervisor does not listen: %s", wrong, extra={"event": "no_notify"})
            return False
        return True

    async def watch(self, turns: Callable[[], Mapping[str, int]]) -> None:
        """Give signs of life for ever, up to LOOKS in the time that the watchdog waits.

        Args:
            turns: how often each thread of the engine has turned, by its name.
        """
        pulse, missed = Pulse(), 0
        while self.watchdog_s:
            stuck = pulse.stuck(turns())
            if not stuck:
                self.tell("WATCHDOG=1")
            missed = missed + 1 if stuck else 0
            if missed == LOOKS // 2:
                log.error(
                    "%s has not turned for %.3g s: the supervisor gets no sign of life",
                    ", ".join(stuck),
                    self.watchdog_s / 2,
                    extra={"event": "stuck", "threads": stuck},
                )
            await asyncio.sleep(self.watchdog_s / LOOKS)


def status_line(text: str) -> str:
    """`STATUS=…` for `systemctl status`: one line, bounded."""
    return "STATUS=" + "".join(c if c.isprintable() else " " for c in text[:STATUS_CHARACTERS_MAX])


def _address(name: str) -> str:
    """The socket's address; an abstract one is written with @. Other kinds are not for us."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """How long the supervisor waits for a sign of life; 0: it does not, or not for us."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if pid not in ("", str(os.getpid())):
        return 0.0
    return int(microseconds) / 1e6 if microseconds.isascii() and microseconds.isdigit() else 0.0
