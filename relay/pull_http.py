"""What a server of streams says before and between its audio: reply head, chunks, ICY blocks.

Rules of this room
  1. No socket, no clock, no engine: bytes in, audio and titles out. Any split of the bytes gives
     the same.
  2. Input is hostile: a head of HEAD_BYTES_MAX and FIELDS_MAX, lines with control characters are
     as if they were not there, a chunk's size and a block's interval are bounded.
  3. `ICY 200 OK` is what SHOUTcast v1 writes for `HTTP/1.0 200 OK`; why no HTTP library is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, Protocol

from relay.auth import as_text
from relay.errors import SourceError
from relay.urls import HttpUrl

HEAD_BYTES_MAX = 16_384
FIELDS_MAX = 128
METAINT_MAX = 1 << 24
CHUNK_LINE_BYTES_MAX = 256
CHUNK_BYTES_MAX = 1 << 30
TITLE_BLOCK_BYTES = 16  # the unit of a block's length byte
REDIRECTS = frozenset({301, 302, 303, 307, 308})
VIA = "relay-via"
"""The header, behind icy- or ice-, that names the nodes through which a stream was pulled. Icecast
passes headers of these families on to its listeners, so a loop through it is seen as well."""
VIA_MAX = 8

_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"(?:HTTP/1\.[01]|ICY) ([1-5][0-9]{2})(?: ([^\r\n]*))?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_ID = re.compile(r"[0-9a-f]{16,32}")
# The end of a title is the quote before the next field, or before the padding: titles hold quotes.
_TITLE = re.compile(rb"StreamTitle='(.*?)';?\s*(?=[A-Za-z0-9_]{1,32}='|\0|\Z)", re.DOTALL)


class PullError(SourceError):
    """A server does not give the stream; the message says why."""


class Head(NamedTuple):
    """The head of a reply; the names of `headers` are in lower case."""

    status: int
    reason: str
    headers: Mapping[str, str]


def request_head(url: HttpUrl, agent: str) -> bytes:
    """The GET that asks for a stream: HTTP/1.0, since a stream needs neither chunks nor more."""
    lines = [
        f"GET {url.target} HTTP/1.0",
        f"Host: {url.authority}",
        f"User-Agent: {agent}",
        "Accept: */*",
        "Icy-MetaData: 1",
        "Connection: close",
    ]
    if url.authorization:
        lines.append(f"Authorization: {url.authorization}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def parse_head(data: bytes | bytearray) -> tuple[Head, int] | None:
    """Read a reply's head from the front of the bytes.

    Returns:
        the head and the bytes used, or None when more are needed.

    Raises:
        PullError: too long, or no head of HTTP or SHOUTcast.
    """
    if not b"HTTP/".startswith(bytes(data[:5])) and not b"ICY ".startswith(bytes(data[:4])):
        raise PullError("it answers neither in HTTP nor as SHOUTcast does")
    end = _END.search(data, 0, HEAD_BYTES_MAX)
    if end is None:
        if len(data) >= HEAD_BYTES_MAX:
            raise PullError(f"the head of its reply is longer than {HEAD_BYTES_MAX} bytes")
        return None
    first, *lines = bytes(data[: end.start()]).replace(b"\r\n", b"\n").split(b"\n")
    found = _STATUS.fullmatch(first)
    if found is None:
        raise PullError("its status line is none of HTTP or SHOUTcast")
    if len(lines) > FIELDS_MAX:
        raise PullError(f"its reply has {len(lines)} header fields; at most {FIELDS_MAX}")
    reason = "".join(c for c in as_text(found[2] or b"") if c.isprintable())[:80]
    return Head(int(found[1]), reason, dict(_fields(lines))), end.end()


def _fields(lines: list[bytes]) -> Iterator[tuple[str, str]]:
    """The usable lines; of a name given twice, the first."""
    seen: set[str] = set()
    for line in lines:
        name, colon, value = as_text(line).partition(":")
        name, value = name.strip().lower(), value.strip()
        if colon and _NAME.fullmatch(name) and value.isprintable() and name not in seen:
            seen.add(name)
            yield name, value


def via_of(headers: Mapping[str, str]) -> tuple[str, ...]:
    """The ids of the nodes that have pulled this stream before us, the latest first."""
    told = headers.get(f"icy-{VIA}") or headers.get(f"ice-{VIA}") or ""
    return tuple(_ID.findall(told))[: VIA_MAX + 1]


# --- the body ------------------------------------------------------------------------------------


class Coding(Protocol):
    """How a body is wrapped."""

    is_ended: bool  # it has said that nothing more comes

    def feed(self, data: bytes) -> bytes:
        """What is in these bytes; PullError when they are broken."""


class Sized:
    """A body of a known length, or (None) one that ends with its connection."""

    def __init__(self, left_bytes: int | None) -> None:
        self._left = left_bytes
        self.is_ended = left_bytes == 0

    def feed(self, data: bytes) -> bytes:
        """As they are, up to the end."""
        if self._left is None:
            return data
        taken = data[: self._left]
        self._left -= len(taken)
        self.is_ended = self._left == 0
        return taken


class Chunked:
    """A body in chunks (RFC 9112 §7.1); trailers are thrown away."""

    def __init__(self) -> None:
        self.is_ended = False
        self._line = b""
        self._left = 0  # bytes of the chunk
        self._state: Literal["size", "data", "after"] = "size"

    def feed(self, data: bytes) -> bytes:
        """What is inside the chunks."""
        found: list[bytes] = []
        while data and not self.is_ended:
            if self._state == "data":
                found.append(data[: self._left])
                self._left -= len(found[-1])
                data = data[len(found[-1]) :]
                self._state = "data" if self._left else "after"
                continue
            line, newline, rest = data.partition(b"\n")
            self._line += line
            if len(self._line) > CHUNK_LINE_BYTES_MAX:
                raise PullError("a chunk of its body begins with too long a line")
            if not newline:
                break
            data = rest
            self._take_line()
        return b"".join(found)

    def _take_line(self) -> None:
        line, self._line = self._line.rstrip(b"\r"), b""
        if self._state == "after":  # the line end behind a chunk's data
            if line:
                raise PullError("a chunk of its body is longer than it said")
            self._state = "size"
            return
        size = line.partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", size) or int(size, 16) > CHUNK_BYTES_MAX:
            raise PullError("a chunk of its body begins with no size")
        self._left = int(size, 16)
        self.is_ended = self._left == 0
        self._state = "data"


def coding_of(headers: Mapping[str, str]) -> Coding:
    """How the body behind these headers is wrapped; PullError for a coding that is not known."""
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding not in {"identity", ""}:
        raise PullError(f"its body is encoded as {encoding[:40]!r}, which was not asked for")
    coding = headers.get("transfer-encoding", "").lower()
    if coding == "chunked":
        return Chunked()
    if coding not in {"", "identity"}:
        raise PullError(f"its transfer coding {coding[:40]!r} is not known; chunked is")
    length = headers.get("content-length", "")
    return Sized(int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None)


class IcyBody:
    """Takes the title blocks out of a body: audio as bytes, titles as text, in their order.

    Args:
        metaint: audio bytes between two blocks; 0: there are none.
    """

    def __init__(self, metaint: int) -> None:
        self._metaint = metaint
        self._audio_left = metaint
        self._block_left = -1  # of the block that is being read; -1: its length byte comes next
        self._block = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | str]:
        """The pieces of these bytes. To be taken all before the next call."""
        if not self._metaint:
            if data:
                yield data
            return
        at = 0
        while at < len(data):
            if self._audio_left:
                piece = data[at : at + self._audio_left]
                self._audio_left -= len(piece)
                at += len(piece)
                yield piece
            elif self._block_left < 0:
                self._block_left = data[at] * TITLE_BLOCK_BYTES
                at += 1
                yield from self._end_block()
            else:
                taken = data[at : at + self._block_left]
                self._block += taken
                self._block_left -= len(taken)
                at += len(taken)
                yield from self._end_block()

    def _end_block(self) -> Iterator[str]:
        if self._block_left:
            return
        block, self._block = bytes(self._block), bytearray()
        self._block_left, self._audio_left = -1, self._metaint
        title = title_of(block)
        if title is not None:
            yield title


def title_of(block: bytes) -> str | None:
    """The title in a block, as it came; None where there is none. UTF-8, else Latin-1."""
    found = _TITLE.search(block)
    return None if found is None else as_text(found[1])


def metaint_of(headers: Mapping[str, str]) -> int:
    """The audio bytes between two blocks, 0 for none; PullError when it is no number in bounds."""
    told = headers.get("icy-metaint", "").strip()
    if told in {"", "0"}:
        return 0
    if not re.fullmatch(r"[0-9]{1,9}", told) or not 1 <= int(told) <= METAINT_MAX:
        raise PullError(f"its icy-metaint is {told[:20]!r}; the bound is 1 to {METAINT_MAX}")
    return int(told)
