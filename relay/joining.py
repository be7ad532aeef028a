"""Who may listen: the host's own word, asked before a shard sees the listener.

Rules of this room
  1. The engine hands over each GET of a mount (`asks`); a hook answers: allow, deny or redirect.
     Then the connection goes back to a shard, or gets a short reply and is closed. Whom the host's
     own server serves is asked about in the same way (`verdict`); the answer is the server's then.
  2. A plain function runs on a thread of its own and may block; a coroutine runs on the node's
     loop. No answer within the time-out, or an exception, is a refusal with 503.
  3. Bounds: ASKED_MAX at once, each counted from the call that brings him; the engine's others wait
     in its queue (512), and beyond it are refused by the shard with Retry-After, as the host's are
     at once.
  4. What comes from a listener is hostile: text is cleaned, and no reply repeats it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from msgspec import Struct

from relay.address import printable, show
from relay.errors import RelayError
from relay.running import in_thread
from relay.source_info import clean

if TYPE_CHECKING:
    from relay._core import Engine

log = logging.getLogger("relay.joining")

ASKED_MAX = 128
TIMEOUT_S_MAX = 60.0
REASON_BYTES_MAX = 200
FIELD_BYTES_MAX = 4096
QUERY_FIELDS_MAX = 64  # those behind are not told
RETRY_S = 5  # after which somebody who could not be asked about may come again
RETRY_S_MAX = 86_400


class Join(Struct, frozen=True, kw_only=True):
    """Somebody who wants to listen. All but the address is what he says himself."""

    mount: str
    address: str  # "" over a Unix socket
    port: int
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case; the last one of a name
    user_agent: str


class Allow(Struct, frozen=True):
    """He may listen."""

    ticket: int = 0  # a number of the host's for him, told by `Engine.take_visits`; 0: none


class Deny(Struct, frozen=True):
    """He may not.

    Raises:
        RelayError: a status outside of 400 … 599, or a time outside of 0 … 86,400.
    """

    status: int = 403
    reason: str = ""  # told as text; "": the status's own words
    retry_s: int = 0  # told as Retry-After; 0: not told

    def __post_init__(self) -> None:
        if not 400 <= self.status <= 599:
            raise RelayError(f"status {self.status}; a denial has one of 400 to 599")
        if not 0 <= self.retry_s <= RETRY_S_MAX:
            raise RelayError(f"retry_s is {self.retry_s}; the bound is 0 to {RETRY_S_MAX}")


class Redirect(Struct, frozen=True):
    """He is sent on, by 302.

    Raises:
        RelayError: no http or https URL, or one with spaces or control characters.
    """

    url: str

    def __post_init__(self) -> None:
        is_plain = self.url.isascii() and self.url.isprintable() and " " not in self.url
        if not is_plain or urlsplit(self.url).scheme not in {"http", "https"}:
            raise RelayError(f"{show(self.url)}: a redirect needs an absolute http or https URL")


Verdict: TypeAlias = Allow | Deny | Redirect
OnJoin: TypeAlias = Callable[[Join], "Verdict | Awaitable[Verdict]"]
NOBODY = Deny(503, "nobody can say whether you may listen", RETRY_S)
BUSY = Deny(503, "too many want to listen at this moment", RETRY_S)


def read_join(head: bytes, address: str, port: int) -> Join:
    """What a request head says; the engine has checked its form."""
    text = head.decode("latin-1").replace("\r\n", "\n")
    first, *lines = text.partition("\n\n")[0].split("\n")
    target = first.split(" ")[1] if first.count(" ") >= 1 else "/"
    if "://" in target.partition("?")[0]:
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    query = "&".join(query.split("&", QUERY_FIELDS_MAX)[:QUERY_FIELDS_MAX])
    fields = (line.partition(":") for line in lines)
    headers = {clean(n, 64).lower(): clean(v, FIELD_BYTES_MAX) for n, colon, v in fields if colon}
    return Join(
        mount=unquote_to_bytes(path).decode(errors="replace"),
        address=address,
        port=port,
        query=dict(parse_qsl(query, keep_blank_values=True, errors="replace")),
        headers=headers,
        user_agent=headers.get("user-agent", ""),
    )


class Reply(NamedTuple):
    """Why he does not hear it, as any server can tell it."""

    status: int
    words: str
    fields: dict[str, str]
    body: bytes


def reply_for(verdict: Deny | Redirect) -> Reply:
    """The reply of a server that goes on with the connection."""
    fields = {
        "Cache-Control": "no-cache, no-store",
        "Access-Control-Allow-Origin": "*",
        "Content-Type": "text/plain; charset=utf-8",
    }
    if isinstance(verdict, Redirect):
        fields["Location"] = verdict.url
        return Reply(HTTPStatus.FOUND.value, "Found", fields, b"Found\n")
    known = verdict.status in HTTPStatus._value2member_map_
    words = HTTPStatus(verdict.status).phrase if known else "Refused"
    text = clean(verdict.reason, REASON_BYTES_MAX) or words
    if verdict.retry_s:
        fields["Retry-After"] = str(verdict.retry_s)
    if verdict.status == HTTPStatus.UNAUTHORIZED:
        fields["WWW-Authenticate"] = 'Basic realm="listeners"'  # RFC 9110 §15.5.2
    return Reply(verdict.status, words, fields, f"{text}\n".encode())


def reply_to(verdict: Deny | Redirect) -> bytes:
    """The whole reply on a connection that ends with it."""
    status, words, fields, body = reply_for(verdict)
    fields = {"Connection": "close", **fields, "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.0 {status} {words}\r\n{lines}\r\n".encode() + body


class Askers:
    """Asks the host about each listener of one node.

    Args:
        on_join: the host's hook.
        timeout_s: for its answer, 0 to 60.

    Raises:
        RelayError: a time-out out of bounds, or a hook that cannot be called.
    """

    def __init__(self, on_join: OnJoin, timeout_s: float) -> None:
        if not callable(on_join):
            raise RelayError(f"on_join is {show(on_join)}: it is a function that takes a Join")
        if not 0 < timeout_s <= TIMEOUT_S_MAX:
            raise RelayError(f"join_timeout_s is {timeout_s}; the bound is 0 to {TIMEOUT_S_MAX:g}")
        self._on_join = on_join
        self._timeout_s = timeout_s
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked = 0  # those who are asked about, from the call that brings them
        self._lock = threading.Lock()  # of _asked: the host's threads bring some
        self._is_watching = False
        self.also: Callable[[Join], Awaitable[Verdict]] | None = None  # asked once the hook allows
        self.counters = {"allowed": 0, "denied": 0, "redirected": 0, "failed": 0}

    def start(self, engine: Engine) -> None:
        """Begin to take what the engine hands over, on the running loop."""
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._watch()

    def close(self) -> None:
        """Take no more; those who are asked about are refused."""
        if self._loop is not None and self._engine is not None and self._is_watching:
            self._loop.remove_reader(self._engine.asker_fd)
        self._is_watching = False
        self._engine = self._loop = None
        for task in tuple(self._tasks):
            task.cancel()

    def snapshot(self) -> dict[str, int]:
        """Answers so far, by name."""
        return {f"join_{name}_total": count for name, count in self.counters.items()}

    def ask(self, sock: socket.socket, head: bytes) -> None:
        """Ask about a connection that the host hands in; it is taken over. From any thread.

        Raises:
            RelayError: too many are asked about, no connected socket, or the node is closing.
        """
        loop = self._loop
        if loop is None or self._engine is None:
            raise RelayError("this node is closing: it takes no connections")
        try:
            peer = sock.getpeername()
        except OSError as error:
            raise RelayError(
                f"no connected stream socket ({error.strerror}): hand over one that was accepted"
            ) from None
        if not self._reserve():
            raise RelayError(f"{ASKED_MAX} listeners are asked about already: try again later")
        place = peer[:2] if sock.family in (socket.AF_INET, socket.AF_INET6) else ("", 0)
        try:
            loop.call_soon_threadsafe(self._begin, sock.fileno(), head, place)
        except RuntimeError:  # its loop has ended
            self._release()
            raise RelayError("this node is closing: it takes no connections") from None
        sock.detach()

    async def verdict(self, join: Join) -> Verdict:
        """Ask about somebody whom the host's own server is to serve: on whichever loop that is.
        `BUSY` at once where too many are asked about."""
        loop = self._loop
        if loop is None:
            return NOBODY
        if not self._reserve():
            return BUSY
        told: concurrent.futures.Future[Verdict] = concurrent.futures.Future()
        try:
            loop.call_soon_threadsafe(self._start, told, join)
        except RuntimeError:  # its loop has ended
            self._release()
            return NOBODY
        return await asyncio.wrap_future(told)

    def _reserve(self) -> bool:
        """Room for one more; on any thread."""
        with self._lock:
            if self._asked >= ASKED_MAX:
                return False
            self._asked += 1
            return True

    def _release(self) -> None:
        with self._lock:
            self._asked -= 1

    def _watch(self) -> None:
        engine, loop = self._engine, self._loop
        if engine is None or loop is None or self._is_watching:
            return
        self._is_watching = True
        loop.add_reader(engine.asker_fd, self._take)
        self._take()

    def _take(self) -> None:
        engine = self._engine
        while engine is not None and self._reserve():
            handed = engine.take_asker()
            if handed is None:
                self._release()
                return
            self._begin(*handed)
        if engine is not None and self._loop is not None and self._is_watching:
            self._loop.remove_reader(engine.asker_fd)  # until one of them has his answer
            self._is_watching = False

    def _begin(self, fd: int, head: bytes, peer: tuple[str, int]) -> None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        if self._loop is None:
            sock.close()
            self._release()
            return
        self._follow(self._loop.create_task(self._judge(sock, head, peer)))

    def _start(self, told: concurrent.futures.Future[Verdict], join: Join) -> None:
        if not told.set_running_or_notify_cancel():  # his server has given him up
            self._release()
        elif self._loop is None:
            told.set_result(NOBODY)
            self._release()
        else:
            self._follow(self._loop.create_task(self._tell(told, join)))

    def _follow(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._release()
        self._watch()

    async def _tell(self, told: concurrent.futures.Future[Verdict], join: Join) -> None:
        verdict: Verdict = NOBODY
        try:
            verdict = await self._decide(join)
            if isinstance(verdict, Allow):
                self.counters["allowed"] += 1
        finally:
            told.set_result(verdict)

    async def _judge(self, sock: socket.socket, head: bytes, peer: tuple[str, int]) -> None:
        try:
            verdict = await self._decide(read_join(head, *peer))
            if isinstance(verdict, Redirect | Deny):
                _answer(sock, reply_to(verdict))
            elif self._engine is not None:
                self._engine.admit(sock.fileno(), head, ticket=verdict.ticket)
                sock.detach()
                self.counters["allowed"] += 1
        except (OSError, RelayError):
            pass  # he has gone, or no shard can take him in
        finally:
            sock.close()

    async def _decide(self, join: Join) -> Verdict:
        """The hook's word, and then the scripts'; NOBODY where there is none."""
        verdict = await self._ask(join)
        if isinstance(verdict, Allow) and self.also is not None:
            verdict = await self.also(join)
        if verdict is None:
            return NOBODY
        if not isinstance(verdict, Allow):
            self.counters["denied" if isinstance(verdict, Deny) else "redirected"] += 1
        return verdict

    async def _ask(self, join: Join) -> Verdict | None:
        """The hook's answer; None where it has none."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if inspect.iscoroutinefunction(self._on_join):
                    verdict = await self._on_join(join)
                else:
                    verdict = await in_thread(lambda: self._on_join(join))
                    if inspect.isawaitable(verdict):
                        verdict = await verdict
            if isinstance(verdict, Allow | Deny | Redirect):
                return verdict
            why = f"it returned {show(verdict)}, which is no Allow, Deny or Redirect"
        except TimeoutError:
            why = f"no answer within {self._timeout_s:g} s"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        self.counters["failed"] += 1
        log.warning(
            "on_join failed for %s: %s", join.mount, printable(why), extra={"event": "join_failed"}
        )
        return None


def _answer(sock: socket.socket, reply: bytes) -> None:
    """A reply fits the socket's empty buffer; then our half is closed."""
    with contextlib.suppress(OSError):
        sock.send(reply)
        sock.shutdown(socket.SHUT_WR)
