"""HTTP addresses that a node asks of others: streams to pull, scripts to call, directories.

Rules of this room
  1. One form, read by one function; its error is one line, `VALUE: what is wrong with it`.
  2. An account in a URL is used and never shown: not in an error, a log line or a repr.
  3. Nothing is looked up and nothing opened here.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote, urljoin, urlsplit

from msgspec import Struct

from relay.address import is_host, show
from relay.errors import ConfigError

URL_BYTES_MAX = 2048
_FORM = "http://HOST[:PORT]/PATH or https://…"
_TARGET = re.compile(r"[!-~]*")  # RFC 9112 §3.2: visible ASCII; everything else comes encoded


class HttpUrl(Struct, frozen=True):
    """One address, checked; `target` is path and query as they go into a request."""

    secure: bool
    host: str  # an IPv6 address without brackets
    port: int
    target: str
    user: str = ""
    password: str = ""

    @property
    def authority(self) -> str:
        """`HOST` or `HOST:PORT`, as the Host header wants it (RFC 9110 §7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def authorization(self) -> str:
        """The value of an Authorization header (RFC 7617), or "" where there is no account."""
        if not self.user and not self.password:
            return ""
        pair = f"{self.user}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")

    @property
    def bare(self) -> str:
        """The whole address without its account: for HTTP libraries, and for everybody to see."""
        return f"http{'s' if self.secure else ''}://{self.authority}{self.target}"

    def __str__(self) -> str:
        return self.bare

    def __repr__(self) -> str:
        return f"<HttpUrl {self.bare}>"

    def join(self, location: str) -> HttpUrl:
        """Where a redirect of this address leads; the account goes along to the same server only.

        Raises:
            ConfigError: it leads to no http or https address.
        """
        to = parse_http_url(urljoin(self.bare, location.strip()))
        if to.user or (to.secure, to.host, to.port) != (self.secure, self.host, self.port):
            return to
        return HttpUrl(to.secure, to.host, to.port, to.target, self.user, self.password)


def parse_http_url(text: str) -> HttpUrl:
    """Read `http://[USER[:PASSWORD]@]HOST[:PORT][/PATH]`, or https.

    Raises:
        ConfigError: `VALUE: what is wrong with it`, one line, without the account. Never blocks.
    """
    why = ""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # its text may hold what was meant as a password
        why = f"its host and port cannot be read; write {_FORM}"
        raise ConfigError(f"{show(text)}: {why}") from None
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme not in {"http", "https"}:
        why = f"must begin with http:// or https://; write {_FORM}"
    elif len(text) > URL_BYTES_MAX:
        why = f"a URL has at most {URL_BYTES_MAX} bytes, this one {len(text)}"
    elif not _TARGET.fullmatch(text):
        why = "has characters that a URL cannot hold; write them as %XX"
    elif not is_host(f"[{host}]" if ":" in host else host):
        why = f"names no host; write {_FORM}"
    elif port == 0:
        why = "the port 0 is out of range 1 to 65535"
    elif parts.fragment:
        why = "nothing may follow a #; leave it out"
    elif not (user + password).isprintable() or ":" in user:
        why = "the account holds characters that no request can carry"
    if why:
        raise ConfigError(f"{show(text)}: {why}")
    secure = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return HttpUrl(secure, host, port or (443 if secure else 80), target, user, password)
