"""Connections to servers of streams: dialled, redirected, checked for loops.

Rules of this room
  1. Every wait has a bound; at most DIALS_MAX connections are made at once.
  2. A node never pulls from itself: neither directly nor round about (`icy-relay-via`).
  3. Knows no engine; an account in an address is never told.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from relay.address import Address
from relay.errors import ConfigError
from relay.pull_http import (
    HEAD_BYTES_MAX,
    REDIRECTS,
    VIA,
    VIA_MAX,
    Head,
    PullError,
    parse_head,
    request_head,
    via_of,
)
from relay.urls import HttpUrl

READ_BYTES = 16_384
CONNECT_S = 5.0
ANSWER_S = 10.0
REDIRECTS_MAX = 5
DIALS_MAX = 128


class Link(NamedTuple):
    """A connection that gives a stream: everything up to its first byte of audio."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    url: HttpUrl  # after redirects
    head: Head
    first: bytes  # of the body


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def is_own(peer: Sequence[Any], local: Sequence[Any], own: Address | None) -> bool:
    """Whether a connection from `local` to `peer` has come to this node's own door, `own`."""
    if own is None or peer[1] != own.port or not _same_host(peer[0], local[0]):
        return False
    return own.is_unspecified or _same_host(peer[0], own.host)


def _same_host(one: str, other: str) -> bool:
    try:
        first, second = (ipaddress.ip_address(text.partition("%")[0]) for text in (one, other))
    except ValueError:
        return False
    return first == second or (first.is_loopback and second.is_loopback)


class Dialler:
    """Makes connections to servers of streams.

    Args:
        agent: the User-Agent; servers know by it that we pass the stream on.
        node_id: of this node.
        own: where this node's own door is.
        counters: are counted up.
    """

    def __init__(
        self,
        agent: str,
        node_id: str,
        own: Callable[[], Address | None],
        counters: Counter[str] | None = None,
    ) -> None:
        self._agent = agent
        self._node_id = node_id
        self._own = own
        self._counters: Counter[str] = counters if counters is not None else Counter()
        self._dials = asyncio.Semaphore(DIALS_MAX)

    async def open(self, url: HttpUrl) -> Link:
        """Connect, ask, follow redirects; takes at most REDIRECTS_MAX × (CONNECT_S + ANSWER_S).

        Raises:
            PullError: not reached, no answer, no stream, or a loop.
        """
        async with self._dials:
            for _ in range(REDIRECTS_MAX + 1):
                link = await self._ask(url)
                if link.head.status not in REDIRECTS:
                    return self._checked(link)
                link.writer.close()
                self._counters["redirects"] += 1
                try:
                    url = url.join(link.head.headers.get("location", ""))
                except ConfigError as wrong:
                    raise PullError(f"it redirects to {wrong}") from None
        raise PullError(f"it redirects more than {REDIRECTS_MAX} times")

    async def _ask(self, url: HttpUrl) -> Link:
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    url.host, url.port, ssl=_tls() if url.secure else None, limit=READ_BYTES
                )
        except TimeoutError:
            raise PullError(f"{url} cannot be reached: no answer in {CONNECT_S:g} s") from None
        except (OSError, UnicodeError) as error:
            raise PullError(f"{url} cannot be reached: {why(error)}") from None
        try:
            self._refuse_own(writer)
            writer.write(request_head(url, self._agent))
            async with asyncio.timeout(ANSWER_S):
                head, first = await _read_head(reader)
            return Link(reader, writer, url, head, first)
        except TimeoutError:
            writer.transport.abort()
            raise PullError(f"{url} gave no answer in {ANSWER_S:g} s") from None
        except OSError as error:
            writer.transport.abort()
            raise PullError(f"{url} was lost: {why(error)}") from None
        except PullError as wrong:
            writer.transport.abort()
            raise PullError(f"{url}: {wrong}") from None
        except BaseException:
            writer.transport.abort()
            raise

    def _refuse_own(self, writer: asyncio.StreamWriter) -> None:
        peer, local = (writer.get_extra_info(name) for name in ("peername", "sockname"))
        if peer and local and is_own(peer, local, self._own()):
            self._counters["loops"] += 1
            raise PullError("is this node itself; a stream cannot be pulled from where it goes")

    def _checked(self, link: Link) -> Link:
        try:
            if link.head.status != 200:
                said = f"{link.head.status} {link.head.reason}".rstrip()
                raise PullError(f"it answers {said}{_next_step(link.head.status)}")
            via = via_of(link.head.headers)
            if self._node_id in via:
                self._counters["loops"] += 1
                raise PullError("leads back to this node; pull from where the stream begins")
            if len(via) >= VIA_MAX:
                self._counters["loops"] += 1
                raise PullError(f"has been pulled by {VIA_MAX} nodes before; pull from nearer")
        except PullError as wrong:
            link.writer.transport.abort()
            raise PullError(f"{link.url}: {wrong}") from None
        return link

    def told(self, head: Head) -> dict[str, str]:
        """The header lines of a reply, with ourselves among those that have pulled it."""
        via = ",".join((self._node_id, *via_of(head.headers))[:VIA_MAX])
        kept = {n: v for n, v in head.headers.items() if not n.endswith(VIA)}
        return {**kept, f"icy-{VIA}": via}


def why(error: Exception) -> str:
    """What an error of the system says."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _next_step(status: int) -> str:
    steps = {
        401: "; write http://USER:PASSWORD@HOST… as that server knows it",
        403: "; does it let this address listen?",
        404: "; is the mount right, and its source there?",
    }
    return steps.get(status, "")


async def _read_head(reader: asyncio.StreamReader) -> tuple[Head, bytes]:
    data = bytearray()
    while True:
        more = await reader.read(READ_BYTES)
        if not more:
            raise PullError("it closed the connection instead of answering")
        data += more
        parsed = parse_head(data)
        if parsed is not None:
            return parsed[0], bytes(data[parsed[1] :])
        assert len(data) < HEAD_BYTES_MAX
