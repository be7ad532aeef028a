"""The Icecast source protocol, as its client: a mount's address, one PUT, a title.

Rules of this room
  1. A connection is one when the server has accepted it; it then takes bytes until it is closed.
  2. Every wait has a bound. What a stalled server can hold back is bounded by the send buffer.
  3. A message names the server, the status and the reason, and the next step; never a password.
  4. This room knows no codec, no retries and no threads.
"""

from __future__ import annotations

import base64
import os
import re
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlencode, urlsplit

from relay.errors import ConfigError, SourceError
from relay.media import why, without_password

ANSWER_S = 10.0  # connect, and the answer to the request head, each
SEND_S = 10.0  # a send that takes longer has lost its server
CLOSE_S = 2.0  # for the server to take the last bytes and say goodbye
SEND_BUFFER_BYTES = 131_072  # what a stalled server can make old: 4 s of 256 kbit/s
BODY_S = 1.0  # for the body of a refusal, behind its head
HEAD_BYTES_MAX = 16_384
BODY_CHARACTERS_MAX = 200


# --- where to: the URL and the account ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A mount on a server, and the account that may write to it."""

    host: str
    port: int
    mount: str
    user: str = "source"
    password: str = field(default="", repr=False)

    @property
    def authority(self) -> str:
        """`host:port`, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def authorization(self) -> str:
        """The value of the Authorization header (RFC 7617)."""
        pair = f"{self.user}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")

    def __str__(self) -> str:
        return f"http://{self.authority}{self.mount}"


def parse_url(url: str, environ: Mapping[str, str] | None = None) -> Target:
    """Read `http://[user[:password]@]host[:port]/mount`, or `icecast://…`.

    Args:
        url: The port defaults to 80 for `http`, to 8000 for `icecast`; the user to `source`.
        environ: Where RELAY_SOURCE_PASSWORD is looked up when the URL has no password.

    Raises:
        ConfigError: The URL names no server or no mount, or there is no password.
    """
    shown = without_password(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"URL {shown!r} cannot be read: {error}") from None
    if parts.scheme not in ("http", "icecast"):
        raise ConfigError(f"URL {shown!r}: it must begin with http:// or icecast://")
    if not host:
        raise ConfigError(f"URL {shown!r} names no host: write http://HOST:PORT/MOUNT")
    if len(parts.path) < 2 or parts.query or parts.fragment:
        raise ConfigError(f"URL {shown!r} must end with a mount: write http://HOST:PORT/live")
    secret = unquote(parts.password) if parts.password else ""
    secret = secret or (os.environ if environ is None else environ).get("RELAY_SOURCE_PASSWORD", "")
    if not secret:
        raise ConfigError(
            f"no password for {shown}: set RELAY_SOURCE_PASSWORD, or write "
            "http://source:PASSWORD@HOST:PORT/MOUNT"
        )
    user = unquote(parts.username) if parts.username else "source"
    default_port = 80 if parts.scheme == "http" else 8000
    mount = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    return Target(host, default_port if port is None else port, mount, user, secret)


# --- the connection: one Icecast PUT --------------------------------------------------------------


class PushError(SourceError):
    """The server refused or was lost; `final` says that trying again would not help."""

    def __init__(self, message: str, *, status: int = 0, final: bool = False) -> None:
        self.status = status
        self.final = final
        super().__init__(message)


NEXT_STEPS = {
    400: "check the mount in the URL, and the content type",
    401: "check the user and the password (RELAY_SOURCE_PASSWORD)",
    403: "another source may hold the mount; stop it or choose another mount",
    404: "check the mount in the URL",
    405: "the server takes no PUT here; is this an Icecast-compatible server?",
    409: "another source holds the mount; stop it or choose another mount",
    410: "begin a new epoch",
    415: "choose a format the server takes, with --codec or --content-type",
}


def refusal(target: Target, status: int, reason: str, body: str = "") -> PushError:
    """Say why the server refused, in its own words where it has some, and whether to ask again.

    403 (409 in Icecast 2.5) is a mount in use, and may end; but Icecast 2.4 also answers 403 to a
    content type it does not take. 5xx is a server that is full or just starting.
    """
    unfit = status == 403 and "content" in reason.lower()
    next_step = NEXT_STEPS[415] if unfit else NEXT_STEPS.get(status, "")
    text = f"{target} refused the source: {status} {reason}".rstrip() + (
        f": {body}" if body else ""
    )
    final = unfit or not (status in (403, 409, 429) or status >= 500)
    return PushError(f"{text}; {next_step}" if next_step else text, status=status, final=final)


def parse_status(line: bytes) -> tuple[int, str] | None:
    """`HTTP/1.1 401 Unauthorized` → (401, "Unauthorized"); None when it is no status line."""
    words = line.decode("latin-1").strip().split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdecimal():
        return None
    reason = words[2] if len(words) > 2 else ""
    return int(words[1]), "".join(c for c in reason if c.isprintable())[:120]


def first_line(head: bytes, body: bytes) -> str:
    """The first line of a body in plain text; nothing of any other: HTML is no message."""
    if not re.search(rb"(?im)^content-type:[ \t]*text/plain\b", head):
        return ""
    line = body.strip().partition(b"\n")[0].decode(errors="replace")
    return _one_line(line).strip()[:BODY_CHARACTERS_MAX]


def request_head(
    target: Target,
    content_type: str,
    name: str | None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """The head of the PUT; its body runs until the connection closes."""
    lines = [
        f"PUT {target.mount} HTTP/1.1",
        f"Host: {target.authority}",
        "User-Agent: relay-push",
        f"Authorization: {target.authorization}",
        f"Content-Type: {_one_line(content_type)}",
        "Expect: 100-continue",
        "Connection: close",
    ]
    told = {"Ice-Public": "0", **(headers or {})}
    lines += [f"{key}: {_one_line(value)}" for key, value in told.items()]
    if name:
        lines.append(f"Ice-Name: {_one_line(name)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _one_line(text: str) -> str:
    """No line break of a name may become a header."""
    return "".join(c if c.isprintable() else " " for c in text)[:400]


class Connection:
    """One source connection: accepted by the server, then media bytes until it is closed."""

    def __init__(self, sock: socket.socket, target: Target, send_timeout_s: float = SEND_S) -> None:
        self._sock = sock
        self._target = target
        self._send_timeout_s = send_timeout_s
        self._heard = b""  # what the server said after it accepted us
        self._whole = True  # no send was broken off in the middle
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    @classmethod
    def open(
        cls,
        target: Target,
        content_type: str,
        *,
        name: str | None = None,
        headers: Mapping[str, str] | None = None,
        send_timeout_s: float = SEND_S,
        answer_s: float = ANSWER_S,
    ) -> Connection:
        """Connect, ask for the mount and wait for the server's 100 (or 200). Blocks ≤ 2 `answer_s`.

        Raises:
            PushError: Not reached, no answer, or refused.
        """
        try:
            sock = socket.create_connection((target.host, target.port), answer_s)
        except (OSError, UnicodeError) as error:
            raise PushError(f"cannot connect to {target}: {why(error)}") from None
        try:
            _tune(sock, send_timeout_s)
            connection = cls(sock, target, send_timeout_s)
            sock.sendall(request_head(target, content_type, name, headers))
            connection._await_answer(time.monotonic() + answer_s)
        except OSError as error:
            sock.close()
            raise PushError(f"{target} gave no answer: {why(error)}") from None
        except BaseException:
            sock.close()
            raise
        return connection

    def send(self, data: bytes) -> None:
        """Send all of it. Blocks for as long as the server's TCP holds us back, ≤ the time-out.

        Raises:
            PushError: The connection is lost; its message says how.
        """
        if not data:
            return
        self._listen()
        self._whole = False
        self._sock.settimeout(self._send_timeout_s)
        try:
            self._sock.sendall(data)
        except TimeoutError:
            wait_s = self._send_timeout_s
            raise PushError(f"{self._target} took no audio for {wait_s:.0f} s") from None
        except OSError as error:
            self._listen()
            raise PushError(f"{self._target} was lost: {why(error)}") from None
        self._whole = True

    def heed(self) -> None:
        """Hear what the server says while there is nothing to send. Blocks ≤ BODY_S.

        Raises:
            PushError: It has closed the connection, or refused late.
        """
        self._listen()

    def close(self, last: bytes = b"") -> None:
        """Send the last bytes, then FIN, and let the server take the rest. Blocks ≤ 2 × CLOSE_S.

        Raises:
            PushError: The server refused or vanished before the end.
        """
        with self._sock:
            if not self._whole:
                return  # a frame was cut in two: nothing whole can follow
            self._send_timeout_s = min(CLOSE_S, self._send_timeout_s)
            self.send(last)
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
                until = time.monotonic() + CLOSE_S
                while self._receive(until):
                    self._heed()

    def abort(self) -> None:
        """Let go at once."""
        self._sock.close()

    def detach(self) -> int:
        """Give the descriptor to another owner, in non-blocking mode; nothing is left here."""
        self._sock.setblocking(False)
        return self._sock.detach()

    def _await_answer(self, until: float) -> None:
        while b"\r\n\r\n" not in self._heard:
            if not self._receive(until):
                raise PushError(f"{self._target} closed the connection instead of answering")
            if len(self._heard) > HEAD_BYTES_MAX:
                break
        head, _, self._heard = self._heard.partition(b"\r\n\r\n")
        answer = parse_status(head.split(b"\r\n")[0])
        if answer is None:
            raise PushError(f"{self._target} does not answer in HTTP: is it an Icecast server?")
        if answer[0] != 100 and not 200 <= answer[0] < 300:
            raise refusal(self._target, *answer, self._explanation(head))

    def _explanation(self, head: bytes) -> str:
        """The first line behind this head, if it comes in time."""
        until = time.monotonic() + BODY_S
        with suppress(OSError):
            while b"\n" not in self._heard[:HEAD_BYTES_MAX] and self._receive(until):
                if len(self._heard) > HEAD_BYTES_MAX:
                    break
        return first_line(head, self._heard)

    def _listen(self) -> None:
        """Take what the server says between our sends: a late refusal, or its end."""
        while self._poll.poll(0):
            try:
                alive = self._receive(time.monotonic() + 1.0)
            except OSError as error:
                raise PushError(f"{self._target} was lost: {why(error)}") from None
            self._heed()
            if not alive:
                raise PushError(f"{self._target} closed the connection")

    def _heed(self) -> None:
        # Icecast 2.4 sends its 200 behind the 100; only a refusal matters here.
        answer = parse_status(self._heard.split(b"\r\n")[0]) if b"\r\n" in self._heard else None
        if answer is not None and answer[0] >= 400:
            head, _, self._heard = self._heard.partition(b"\r\n\r\n")
            raise refusal(self._target, *answer, self._explanation(head))

    def _receive(self, until: float) -> bool:
        """Hear more of the server, False at its end; what is beyond the bound is thrown away."""
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no reply in time")
        self._sock.settimeout(left_s)
        data = self._sock.recv(4096)
        if len(self._heard) <= HEAD_BYTES_MAX:
            self._heard += data
        return bool(data)


def _tune(sock: socket.socket, send_timeout_s: float) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    user_timeout_ms = int(send_timeout_s * 1000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)


def update_title(target: Target, title: str, *, timeout_s: float = 5.0) -> None:
    """Set the mount's title through `/admin/metadata`. Blocks ≤ `timeout_s` per step.

    Raises:
        PushError: Not reached, or not accepted.
    """
    from http.client import HTTPConnection, HTTPException

    fields = {"mode": "updinfo", "mount": unquote(target.mount), "song": title, "charset": "UTF-8"}
    http = HTTPConnection(target.host, target.port, timeout=timeout_s)
    try:
        headers = {"Authorization": target.authorization}
        http.request("GET", "/admin/metadata?" + urlencode(fields), headers=headers)
        reply = http.getresponse()
        status, reason = reply.status, reply.reason
    except (OSError, HTTPException) as error:
        raise PushError(f"the title of {target} was not set: {error}") from None
    finally:
        http.close()
    if status != 200:
        raise PushError(f"the title of {target} was not set: {status} {reason}", status=status)
