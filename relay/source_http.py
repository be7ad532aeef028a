"""What a source says before its audio: request head, credentials, framing; and the replies.

Rules of this room
  1. No socket, no clock, no engine: bytes in, decisions and bytes out.
  2. Bounds: a head of 8 KiB and 64 fields.
  3. NUL, a bare CR, and folded lines are refused; a name or password never leaves this room.
  4. All refusals are small (encoders read about 1,000 bytes of a reply) and carry a length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from relay.auth import REALM, SOURCE_USER, as_text, basic
from relay.errors import SourceError

HEAD_BYTES_MAX = 8192
FIELDS_MAX = 64
FRAMING_VERSION = "1"
EPOCH_AHEAD_MS = 60_000  # as between nodes
BACKLOG_S_MAX = 600
METHODS = "GET, HEAD, OPTIONS, PUT, SOURCE, POST"

_END = re.compile(rb"\r?\n\r?\n")
_REQUEST = re.compile(r"([A-Z]{1,16}) ([\x21-\x7e]{1,2048}) (HTTP/1\.[01]|ICE/1\.0)")
# Icecast 1's protocol, older than HTTP in this trade, and still libshout's `xaudiocast`.
_XAUDIOCAST = re.compile(r"SOURCE ([^\x00-\x20\x7f]{1,512}) (/[\x21-\x7e]{0,2047})")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # RFC 9110 §5.6.2: token
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[^\r\n]{0,256}\r\n")  # RFC 9112 §7.1
_SINGLE = frozenset({"authorization", "content-length", "transfer-encoding", "content-type"}) | {
    "relay-framing",
    "relay-epoch",
    "relay-origin",
}


class RequestError(SourceError):
    """A request that is refused for its form; `status` is the reply's."""

    def __init__(self, message: str, status: int = 400) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Request:
    """One request head; the names of `headers` are in lower case."""

    method: str
    target: str
    version: str
    headers: Mapping[str, str]

    @property
    def mount(self) -> str:
        """The path, percent-decoded, without a query; RequestError when it is not UTF-8."""
        path = re.sub(r"\Ahttps?://[^/]*", "", self.target, count=1).partition("?")[0]
        try:
            return unquote_to_bytes(path).decode()
        except UnicodeDecodeError:
            raise RequestError("the mount is not UTF-8") from None

    @property
    def keeps_connection(self) -> bool:
        """Whether the peer wants to say more on this connection after the reply."""
        tokens = {token.strip().lower() for token in self.headers.get("connection", "").split(",")}
        return "keep-alive" in tokens or (self.version == "HTTP/1.1" and "close" not in tokens)

    @property
    def is_xaudiocast(self) -> bool:
        """Whether it is no HTTP, but `SOURCE password /mount`: it waits for an OK of its own."""
        return self.version == "xaudiocast"

    @property
    def has_empty_body(self) -> bool:
        """Whether a body was announced, and is empty: a probe, no source."""
        return bool(re.fullmatch(r"0+", self.headers.get("content-length", "").strip()))

    @property
    def expects_continue(self) -> bool:
        """Whether the peer waits for a 100 before it sends its body."""
        return self.headers.get("expect", "").strip().lower() == "100-continue"


def parse_head(data: bytes | bytearray) -> tuple[Request, int] | None:
    """Read one request head from the front of the bytes.

    Returns:
        the request and the bytes used, or None when more are needed.

    Raises:
        RequestError: too long, or not a head.
    """
    end = _END.search(data, 0, HEAD_BYTES_MAX)
    if end is None:
        if len(data) >= HEAD_BYTES_MAX:
            raise RequestError(f"the head is longer than {HEAD_BYTES_MAX} bytes", 431)
        return None
    lines = as_text(bytes(data[: end.start()])).replace("\r\n", "\n").split("\n")
    found = _REQUEST.fullmatch(lines[0])
    if found is None and (old := _XAUDIOCAST.fullmatch(lines[0])) is not None:
        told = {**parse_fields(lines[1:]), "authorization": basic(SOURCE_USER, old[1])}
        return Request("SOURCE", old[2], "xaudiocast", told), end.end()
    if found is None:
        raise RequestError("the first line is no HTTP request")
    version = "HTTP/1.0" if found[3] == "ICE/1.0" else found[3]
    return Request(found[1], found[2], version, parse_fields(lines[1:])), end.end()


def parse_fields(lines: list[str]) -> dict[str, str]:
    """Header lines as names in lower case and values; RequestError when they are none."""
    if len(lines) > FIELDS_MAX:
        raise RequestError(f"{len(lines)} header fields; at most {FIELDS_MAX}", 431)
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(name) or "\r" in value or "\0" in value:
            raise RequestError("a header line is not NAME: VALUE")
        name = name.lower()
        if name in fields and name in _SINGLE:
            raise RequestError(f"{name} is given twice")  # RFC 9112 §6.3: smuggling
        fields.setdefault(name, value.strip(" \t"))
    return fields


def blank_line(data: bytes | bytearray) -> tuple[int, int] | None:
    """Where the lines before the first blank line end, and where what follows it begins.

    Of none at all, as some SHOUTcast encoders send, the blank line is the first.
    """
    if data.startswith((b"\n", b"\r\n")):
        return 0, data.index(b"\n") + 1
    end = _END.search(data, 0, HEAD_BYTES_MAX)
    return None if end is None else (end.start(), end.end())


class Reply(NamedTuple):
    """A whole reply, and whether the connection is kept after it."""

    status: int
    raw: bytes
    keep: bool


def reply(status: int, text: str = "", *, keep: bool = False, lines: tuple[str, ...] = ()) -> Reply:
    """A reply with a short text as body."""
    body = f"{text}\n".encode() if text else b""
    head = [
        f"HTTP/1.0 {status} {REASONS.get(status, 'Refused')}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        f"Connection: {'Keep-Alive' if keep else 'Close'}",
        *lines,
    ]
    return Reply(status, "\r\n".join([*head, "", ""]).encode() + body, keep)


def reply_unauthorized(*, keep: bool = False) -> Reply:
    """401; `Allow` is how libshout learns which methods it may use."""
    lines = (f'WWW-Authenticate: Basic realm="{REALM}"', f"Allow: {METHODS}")
    return reply(401, "user or password is wrong", keep=keep, lines=lines)


def refusal_of(request: Request, outcome: Reply) -> bytes:
    """A refusal as this client reads it.

    libshout takes an OK anywhere in an answer for a welcome, and a mount may have one in its name:
    who speaks xaudiocast is told the status alone.
    """
    if not request.is_xaudiocast:
        return outcome.raw
    return f"ERROR - {outcome.status} {REASONS.get(outcome.status, 'Refused')}\r\n".encode()


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = b"HTTP/1.0 200 OK\r\n\r\n"
XAUDIOCAST_OK = b"OK\r\n\r\n"  # some look at the first two bytes alone
REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    405: "Method Not Allowed",
    410: "Gone",
    415: "Unsupported Media Type",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
}


class Framing(NamedTuple):
    """What a source says of itself that sends frames cut already (docs/wire.md)."""

    epoch: int
    origin: int
    backlog_s: int = 0  # what it may send at once when it connects


def framing_of(request: Request, now_ms: int) -> Framing | None:
    """The run that a framed body is of, or None for bytes to be cut.

    Args:
        request: its `Relay-` headers are read.
        now_ms: the wall clock; epochs more than EPOCH_AHEAD_MS later are refused.

    Raises:
        RequestError: another version, or numbers that are none.
    """
    version = request.headers.get("relay-framing")
    if version is None:
        return None
    if version != FRAMING_VERSION:
        raise RequestError(
            f"Relay-Framing is {version[:20]!r}; this node knows {FRAMING_VERSION} alone"
        )
    epoch, origin = (request.headers.get(f"relay-{name}", "") for name in ("epoch", "origin"))
    if not re.fullmatch(r"[1-9][0-9]{0,17}", epoch):
        raise RequestError("Relay-Epoch is not a number of ms since 1970")
    if not re.fullmatch(r"[0-9a-f]{16}", origin):
        raise RequestError("Relay-Origin is not 16 hexadecimal digits")
    backlog = request.headers.get("relay-backlog", "0")
    if not re.fullmatch(r"[0-9]{1,3}", backlog) or int(backlog) > BACKLOG_S_MAX:
        raise RequestError(f"Relay-Backlog is not a number of seconds up to {BACKLOG_S_MAX}")
    ahead_s = (int(epoch) - now_ms) / 1000
    if ahead_s * 1000 > EPOCH_AHEAD_MS:
        raise RequestError(
            f"Relay-Epoch is {ahead_s:.0f} s ahead of this node's clock; "
            f"the bound is {EPOCH_AHEAD_MS // 1000} s: set the clocks"
        )
    return Framing(int(epoch), int(origin, 16), int(backlog))


class Body(NamedTuple):
    """How a body is framed; the engine takes the audio out of it."""

    kind: Literal["raw", "sized", "chunked"]
    size_bytes: int = 0  # of a sized one


def body_of(request: Request) -> Body:
    """How the body of this request is framed (RFC 9112 §6.3); RequestError when it is unclear."""
    coding = request.headers.get("transfer-encoding")
    length = request.headers.get("content-length")
    if coding is not None:
        if length is not None:
            raise RequestError("both Transfer-Encoding and Content-Length are given")
        if coding.lower() == "identity":
            return Body("raw")
        if coding.lower() != "chunked":
            raise RequestError("the only Transfer-Encoding here is chunked", 501)
        return Body("chunked")
    if length is None:
        return Body("raw")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise RequestError("Content-Length is not a number")
    return Body("sized", int(length))


def first_audio(body: Body, data: bytes | bytearray) -> tuple[bytes, bool]:
    """The audio at the front of a body, as far as it has come, and whether that is all of it.

    What is no chunk ends it here; the engine tells what is wrong with it.
    """
    if body.kind == "raw":
        return bytes(data), False
    if body.kind == "sized":
        return bytes(data[: body.size_bytes]), len(data) >= body.size_bytes
    audio = b""
    while found := _CHUNK.match(data):
        size = int(found[1], 16)
        audio += data[found.end() : found.end() + size]
        if size == 0:
            return audio, True
        data = data[found.end() + size :].removeprefix(b"\r\n")
    return audio, False
