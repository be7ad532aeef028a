"""Who may be a source, and of what: decisions over a request head, or a SHOUTcast password line.

Rules of this room
  1. No socket, no loop; the clock is handed in. A yes has claimed the mount; a no is a reply.
  2. All that can be decided is decided here, before a 100 goes out.
  3. A password never leaves this room, nor does what was given for one.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from relay.address import check_mount, printable
from relay.auth import SOURCE_USER, credentials, same_secret, shoutcast_secret
from relay.errors import EpochLostError, MountError, RelayError, SourceError
from relay.formats import promise_of
from relay.source import Run
from relay.source_http import (
    METHODS,
    Reply,
    Request,
    RequestError,
    body_of,
    framing_of,
    reply,
    reply_unauthorized,
)

if TYPE_CHECKING:
    from relay.config import Config
    from relay.source import LocalSource
    from relay.sources import Sources

QUIET_S = 10.0  # between log lines about refusals of one mount with one status
TOLD_MAX = 256

REFUSALS = (400, 403, 410, 415, 431, 501)
COUNTED = (
    *("probes_total", "refused_password_total", "refused_method_total"),
    *(f"refused_{status}_total" for status in REFUSALS),
    *("broken_total", "silent_total", "displaced_total", "no_audio_total"),
)


class Gate:
    """Who may be a source, and of what: decisions over a request head, without a socket."""

    def __init__(self, sources: Sources, config: Config) -> None:
        self._sources = sources
        self._config = config
        self._told: dict[tuple[str, int], float] = {}
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    def judge(
        self, request: Request, now: float, *, is_known: bool | None = None
    ) -> Reply | LocalSource:
        """The reply that refuses this request, or the source that it became. `is_known`: what a
        script says of its account, where one was asked."""
        try:
            return self._judge(request, now, is_known)
        except RequestError as wrong:
            return self.refuse(wrong.status, str(wrong))

    def _judge(self, request: Request, now: float, is_known: bool | None) -> Reply | LocalSource:
        if request.method not in {"PUT", "SOURCE"}:
            self.counters["refused_method_total"] += 1
            text = "a source is sent with PUT or SOURCE"
            return reply(405, text, lines=(f"Allow: {METHODS}",))
        keep = request.keeps_connection and request.has_empty_body
        if not (self._knows_password(request) if is_known is None else is_known):
            # libshout asks without a password first, to learn what is allowed: no break-in.
            probe = "authorization" not in request.headers
            self.counters["probes_total" if probe else "refused_password_total"] += 1
            return reply_unauthorized(keep=keep)
        try:
            check_mount(request.mount)
        except (
            MountError
        ) as wrong:  # for good: BUTT and `relay push` would ask for ever after a 403
            return self.refuse(400, str(wrong))
        if request.has_empty_body:
            return reply(200, keep=keep)
        content_type = request.headers.get("content-type", "")
        try:
            promise_of(content_type)  # without one the first bytes decide
        except SourceError as wrong:
            return self.refuse(415, str(wrong))
        body_of(request)
        framing = framing_of(request, int(time.time() * 1000))
        run = None if framing is None else Run(framing.epoch, framing.origin)
        backlog_s = 0 if framing is None else framing.backlog_s
        try:
            return self._sources.open(
                request.mount,
                content_type,
                request.headers,
                run=run,
                backlog_s=backlog_s,
                waits=run is None,
                now=now,
            )
        except EpochLostError as wrong:
            return self.refuse(410, str(wrong))  # for good: only a new epoch can be taken
        except (MountError, SourceError) as wrong:
            # 403 for all of these, which may end: it is what BUTT takes as "try again later".
            return self.refuse(403, str(wrong))

    def _knows_password(self, request: Request) -> bool:
        user, password = credentials(request.headers.get("authorization")) or ("", "")
        wanted = self._config.source_password(request.mount)
        return same_secret(password, wanted) & same_secret(user, SOURCE_USER)

    def shoutcast_mount(self, line: str) -> str | None:
        """The mount of a SHOUTcast 1 encoder: `password`, `user:password`, each with `:#id` or
        without; None when no mount has this password and id."""
        found: list[str] = []
        for mount, secret in self._wishes(line):
            wanted = self._config.source_password(mount)
            if same_secret(secret, wanted) | same_secret(secret.partition(":")[2], wanted):
                found.append(mount)
        self.counters["refused_password_total"] += not found
        return found[0] if found else None

    def shoutcast_wish(self, line: str) -> tuple[str, str]:
        """Of which mount a SHOUTcast 1 encoder wants to be the source, and what it says to be
        let."""
        return self._wishes(line)[0]

    def _wishes(self, line: str) -> list[tuple[str, str]]:
        """What a password line may mean, the likeliest first: a password may end as an id does."""
        secret, sid = shoutcast_secret(line)
        default = self._config.http.shoutcast_mount
        told = [m for m, own in self._config.streams.items() if sid and own.shoutcast_sid == sid]
        if sid == 1 and not told:
            told = [default]
        return [*((mount, secret) for mount in told[:1]), (default, line)]

    def claim(self, mount: str, now: float) -> LocalSource:
        """Claim a mount before anything is known of the source; MountError when it is in use."""
        return self._sources.open(mount, "", waits=True, now=now)

    def refuse(self, status: int, text: str) -> Reply:
        """A counted refusal with its reason in one line."""
        self.counters[f"refused_{status}_total"] += 1
        return reply(status, text)

    def is_news(self, mount: str, status: int, now: float) -> bool:
        """Whether this refusal is worth a log line: the first of its kind in QUIET_S."""
        last = self._told.get((mount, status))
        if last is not None and now - last < QUIET_S:
            return False
        if len(self._told) >= TOLD_MAX:  # mounts are invented freely: these many lines, then none
            self._told = {k: at for k, at in self._told.items() if now - at < QUIET_S}
            if len(self._told) >= TOLD_MAX:
                return False
        self._told[mount, status] = now
        return True


def mount_of(request: Request) -> str:
    """The mount for a log line: printable, or what is wrong with it."""
    try:
        check_mount(request.mount)
    except RelayError:
        return printable(request.target)
    return request.mount
