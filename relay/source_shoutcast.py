"""SHOUTcast 1: a password line, OK2, header lines, then audio; on a port of its own.

Rules of this room
  1. It is no HTTP, and the encoder speaks first. The password line is `password`, `user:password`,
     each with `:#id` behind it for the mount of that `shoutcast_sid`; else `shoutcast_mount`.
  2. The mount is claimed before OK2: after it encoders listen to nothing.
  3. Bounds: a line of LINE_BYTES_MAX, header lines as for HTTP; the rest as for any source.
  4. Titles come to the HTTP port, at /admin.cgi (web/titles.py).
"""

from __future__ import annotations

import socket
from urllib.parse import quote

from relay.address import parse_host_port
from relay.auth import account_in, as_text, basic
from relay.errors import ConfigError, RelayError
from relay.formats import promise_of
from relay.source_connection import SourceConnection
from relay.source_http import HEAD_BYTES_MAX, Request, RequestError, blank_line, parse_fields

LINE_BYTES_MAX = 512
BACKLOG = 128
WELCOME = b"OK2\r\nicy-caps:11\r\n\r\n"
WRONG = b"invalid password\r\n"  # the words of SHOUTcast's own server: encoders look for them
TAKEN = b"mount in use or not to be had\r\n"  # not its name: libshout takes any OK for a welcome
POKE = "!POKE"  # libshout asks so, in place of the password, what server is here; then anew
DEFAULT_TYPE = "audio/mpeg"  # of an encoder that names none: the protocol is older than the others


class ShoutcastConnection(SourceConnection):
    """A connection whose head is SHOUTcast's; the rest is that of every source."""

    def _take_head(self) -> None:
        if self.state != "head":  # turned away while a script was asked
            return
        if self._source is None and not self._take_password():
            return
        if self._source is not None:
            self._take_lines()

    def _take_password(self) -> bool:
        """Whether there is more to be read: the line was the password of a free mount."""
        end = self._pending.find(b"\n", 0, LINE_BYTES_MAX)
        if end < 0:
            if len(self._pending) >= LINE_BYTES_MAX:
                self._finish(WRONG)
            return False
        line = as_text(bytes(self._pending[:end])).removesuffix("\r")
        del self._pending[: end + 1]
        if line == POKE:
            self._gate.counters["probes_total"] += 1
            self._finish(WRONG)
            return False
        wished, secret = self._gate.shoutcast_wish(line)
        request = as_request(wished, secret)
        if self._callouts is not None and self._callouts.must_ask(request):
            self._ask(request, self._callouts, self._asked)
            return False
        mount = self._gate.shoutcast_mount(line)
        if mount is None:
            self._turn_away("", 401, WRONG, "invalid password")
            return False
        return self._claim(mount)

    def _asked(self, request: Request, is_known: bool) -> None:
        """A script has said whether the account of the password line may be the source."""
        if is_known:
            self._claim(request.mount)
        else:
            self._gate.counters["refused_password_total"] += 1
            self._turn_away("", 401, WRONG, "invalid password")

    def _claim(self, mount: str) -> bool:
        try:
            self._source = self._gate.claim(mount, self._clock())
        except RelayError as wrong:
            self._turn_away(mount, 403, TAKEN, str(wrong))
            return False
        self._source.address = self._address
        self._source.audible_at = self._clock()
        self._write(WELCOME)
        return True

    def _take_lines(self) -> None:
        """The header lines; behind the blank one stands audio."""
        assert self._source is not None
        found = blank_line(self._pending)
        if found is None:
            if len(self._pending) >= HEAD_BYTES_MAX:
                self._end_source(f"its header lines are longer than {HEAD_BYTES_MAX} bytes")
            return
        lines = as_text(bytes(self._pending[: found[0]])).replace("\r\n", "\n").split("\n")
        del self._pending[: found[1]]
        try:
            told = parse_fields([line for line in lines if line])
            promised = promise_of(told.get("content-type", DEFAULT_TYPE))
        except (RequestError, RelayError) as wrong:
            self._end_source(str(wrong), reason="broken")
            return
        self._source.headers, self._source.promised = told, promised
        self.state = "first"
        self.since = self._clock()
        self._settle()

    def _turn_away(self, mount: str, status: int, last: bytes, why: str) -> None:
        self._tell_refused(mount or "SHOUTcast", status, why)
        if status != 401:
            self._gate.counters[f"refused_{status}_total"] += 1
        self._finish(last)


def as_request(mount: str, secret: str) -> Request:
    """What an encoder of HTTP would have said, for the script that is asked about accounts."""
    account = basic(*account_in(secret))
    return Request("SOURCE", quote(mount), "HTTP/1.0", {"authorization": account})


def open_shoutcast(bind: str) -> socket.socket:
    """The listening socket of this `HOST:PORT`; ConfigError when it cannot be had."""
    address = parse_host_port(bind)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        sock = socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"http.shoutcast = {bind}: {error.strerror}; free the port, or choose another"
        ) from None
    sock.setblocking(False)
    return sock
