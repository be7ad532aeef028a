"""One connection of a source, from its head to its end: the states, and what is said in each.

Rules of this room
  1. Everything is decided before the 100 goes out; after it most encoders stop reading. What the
     first bytes alone can tell (another format than promised) is a final reply, where one is due.
  2. A source without new audio for its time-out is ended, however many bytes it sends; time in
     which the engine holds it back does not count.
  3. Bounds: reads of READ_BYTES, REQUESTS_MAX requests on a connection, about SETTLE_BYTES until
     the format is known, DRAIN_S for one that was refused.
  4. One log line for each change of state, with the mount; never one for each read.

        head ──refused, kept──► head
        head ──a script is asked──► asking ──► head
        head ──accepted──► first ──its bytes are known──► body ──ended, silent, garbage──► drain
        head ──refused──► drain ──► closed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from relay.address import Address
from relay.errors import MountError, SourceError
from relay.formats import SETTLE_BYTES, settle
from relay.source import FramedSource
from relay.source_gate import Gate, mount_of
from relay.source_http import (
    CONTINUE,
    OK,
    XAUDIOCAST_OK,
    Body,
    Reply,
    Request,
    RequestError,
    body_of,
    first_audio,
    parse_head,
    refusal_of,
    reply,
)

if TYPE_CHECKING:
    from relay.callouts import SourceCallouts
    from relay.source import LocalSource
    from relay.sources import Sources

log = logging.getLogger("relay.source")

READ_BYTES = 8192
REQUESTS_MAX = 8
DRAIN_S = 2.0

ENDS = {  # of the engine's reading, in words
    "closed": "closed by the encoder",
    "whole": "its body has ended",
    "lost": "connection lost",
}

ENDED = {  # by others than its encoder, in words
    "taken": "another source has taken the mount",
    "killed": "ended by an administrator",
}

State = Literal["head", "asking", "first", "body", "drain", "closed"]


class SourceConnection(asyncio.BufferedProtocol):
    """One connection of a source, from its head to its end.

    Args:
        gate: decides about heads.
        sources: gives mounts back.
        ahead_ms: how far a mount's source may run ahead of real time.
        clock: monotonic seconds.
        gone: is told when the connection has ended.
        head: what the engine has read so far.
        peer: address and port.
        callouts: scripts that say who may be a source.
    """

    def __init__(
        self,
        gate: Gate,
        sources: Sources,
        *,
        ahead_ms: Callable[[str], int],
        clock: Callable[[], float],
        gone: Callable[[SourceConnection], None],
        head: bytes = b"",
        peer: tuple[Any, ...] = ("", 0),
        callouts: SourceCallouts | None = None,
    ) -> None:
        self.state: State = "head"
        self.since = clock()  # of the state; in `body`, of the newest audio
        self._gate = gate
        self._sources = sources
        self._ahead_ms = ahead_ms
        self._clock = clock
        self._gone = gone
        self._pending = bytearray(head)
        self._peer, self._address = str(Address(peer[0], peer[1])), str(peer[0])
        self._callouts = callouts
        self._asking: asyncio.Task[None] | None = None
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._transport: asyncio.Transport | None = None
        self._source: LocalSource | None = None
        self._body = Body("raw")
        self._last_reply = b""  # at the end of the body, where an Expect still waits for one
        self._owes_ok = False  # and is due with the first frame already
        self._requests = 0
        self._is_told = False  # that the source is up
        self._media_us = 0

    def __repr__(self) -> str:
        mount = f" {self.mount}" if self.mount else ""
        return f"<{type(self).__name__} {self._peer} {self.state}{mount}>"

    @property
    def mount(self) -> str:
        """Of which mount it is the source, or is to become it; empty: of none."""
        return self._source.mount if self._source else ""

    @property
    def has_mount(self) -> bool:
        """Whether that mount is its own; not so while it waits to take it from another."""
        return self._source is not None and self._source.has_mount

    # --- what asyncio calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the bytes that the engine has read."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.state == "closed":  # displaced, or the node went, before the loop came to it
            transport.abort()
            return
        self._take_head()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that were read."""
        self._received(self._buffer[:nbytes])

    def eof_received(self) -> bool:
        """The peer has said everything before it became a source, or after."""
        if self.state == "first":
            self._settle(whole=True)
            return True  # the last words are still to come
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        if self._source is not None:
            self._end_source(f"connection lost ({error})" if error else "closed by the encoder")
        self.state = "closed"
        self._gone(self)

    # --- the states ---

    def _received(self, data: memoryview) -> None:
        self._pending += data if self.state in ("head", "first") else b""
        if self.state == "head":
            self._take_head()
        elif self.state == "first":
            self._settle()

    def _take_head(self) -> None:
        while self.state == "head":
            try:
                parsed = parse_head(self._pending)
            except RequestError as wrong:
                self._finish(self._gate.refuse(wrong.status, str(wrong)).raw)
                return
            if parsed is None:
                return
            request, used = parsed
            del self._pending[:used]
            self._answer(request)
        if self.state == "first":
            self._settle()
        elif self.state == "body":
            self._attach()

    def _answer(self, request: Request) -> None:
        if self._callouts is None or not self._callouts.must_ask(request):
            self._conclude(request)
        else:
            self._ask(request, self._callouts, self._conclude)

    def _ask(
        self, request: Request, callouts: SourceCallouts, then: Callable[[Request, bool], None]
    ) -> None:
        """Read no further until a script has said whether this account may be the source."""
        assert self._transport is not None
        self.state = "asking"
        self._transport.pause_reading()
        self._asking = asyncio.create_task(self._wait(request, callouts, then))

    async def _wait(
        self, request: Request, callouts: SourceCallouts, then: Callable[[Request, bool], None]
    ) -> None:
        is_known = await callouts.may_send(request, self._address)
        if self.state == "asking" and self._transport is not None:
            self.state, self.since = "head", self._clock()  # a slow script is not its fault
            self._transport.resume_reading()
            then(request, is_known)
            self._take_head()

    def _conclude(self, request: Request, is_known: bool | None = None) -> None:
        outcome = self._gate.judge(request, self._clock(), is_known=is_known)
        self._requests += 1
        if not isinstance(outcome, Reply):
            self._begin(request, outcome)
        elif outcome.keep and self._requests < REQUESTS_MAX:
            self.since = self._clock()
            self._write(outcome.raw)
        else:
            self._refuse(request, outcome)

    def _refuse(self, request: Request, outcome: Reply) -> None:
        mount = mount_of(request)
        is_probe = outcome.status == 401 and "authorization" not in request.headers
        if outcome.status >= 400 and not is_probe:
            why = outcome.raw.rpartition(b"\r\n")[2].decode().strip()
            self._tell_refused(mount, outcome.status, why)
        self._finish(refusal_of(request, outcome))

    def _tell_refused(self, mount: str, status: int, why: str) -> None:
        self._sources.refused(mount, status)
        if self._gate.is_news(mount, status, self._clock()):
            log.warning(
                "source refused: %s from %s: %d %s",
                mount,
                self._peer,
                status,
                why,
                extra={"event": "source_refused", "mount": mount, "status": status},
            )

    def _begin(self, request: Request, source: LocalSource) -> None:
        self._source = source
        source.address = self._address
        self._body = body_of(request)
        # A framed source says what its frames are; of any other the first bytes have the last word.
        self.state = "body" if isinstance(source, FramedSource) else "first"
        self.since = self._clock()
        source.audible_at = self.since
        if request.method == "PUT" and request.expects_continue:
            self._write(CONTINUE)
            self._last_reply = OK
        elif self._body.kind == "sized" and self.state == "first":
            self._last_reply = OK  # a file, which may be none of sound: said with its first frame
            self._owes_ok = True
        else:
            self._write(XAUDIOCAST_OK if request.is_xaudiocast else OK)

    def _say_ok(self) -> None:
        """The 200 that waited for the first frame."""
        if self._owes_ok:
            self._owes_ok = False
            self._last_reply = b""
            self._write(OK)

    def _settle(self, *, whole: bool = False) -> None:
        """Begin the epoch, once the first bytes tell what they are."""
        assert self._source is not None
        source = self._source
        audio, is_all = first_audio(self._body, self._pending)
        is_last = whole or is_all or len(self._pending) > 4 * SETTLE_BYTES
        status = 415
        try:
            found = settle(audio, source.promised, whole=is_last)
            if found is None:
                return
            status = 403  # those who listen were promised another
            source.begin(found)
        except (MountError, SourceError) as wrong:
            self._gate.counters[f"refused_{status}_total"] += 1
            text = f"{source.mount}: {wrong}"
            self._end_source(text, reply(status, text).raw if self._last_reply else b"", "broken")
            return
        if source.promised not in (None, found):
            log.warning(
                "source of %s sends %s, not the %s that it promised: taken as that",
                source.mount,
                found.content_type,
                source.promised.content_type if source.promised else "",
                extra={"event": "source_format", "mount": source.mount},
            )
        self.state = "body"
        self._attach()

    def _attach(self) -> None:
        """Leave the socket to the engine; what it has come to is told by `look`."""
        assert self._source is not None
        assert self._transport is not None
        self._transport.pause_reading()
        first, self._pending = bytes(self._pending), bytearray()
        try:
            self._source.attach(
                self._transport.get_extra_info("socket").fileno(),
                self._body.kind,
                self._body.size_bytes,
                ahead_ms=self._ahead_ms(self._source.mount),
                data=first,
            )
        except SourceError as wrong:
            self._end_source(str(wrong))

    def look(self) -> None:
        """Act on what the engine's reading has come to: the first frame, or the end."""
        if self.state != "body":
            return
        assert self._source is not None
        intake = self._source.intake()
        if intake.media_us and not self._is_told:
            self._tell_up(self._source)
        if intake.state == "none":
            self._end_source(self._why_ended(self._source), self._last_reply)
        elif intake.reason in ENDS:
            error = f" ({os.strerror(intake.error)})" if intake.error else ""
            last = self._last_reply if intake.media_us else self._no_audio(self._source)
            self._end_source(ENDS[intake.reason] + error, last, intake.reason)
        elif intake.reason is not None:
            self._gate.counters["broken_total"] += 1
            text = f"{self._source.mount}: {intake.reason}"
            last = reply(400, text).raw if self._last_reply else b""
            self._end_source(text, last, "broken")

    @staticmethod
    def _why_ended(source: LocalSource) -> str:
        return ENDED.get(source.ended, "ended by this node")

    def _no_audio(self, source: LocalSource) -> bytes:
        """The last reply of a source that has ended without one frame."""
        self._gate.counters["no_audio_total"] += 1
        text = f"{source.mount}: what was sent holds not one frame of {source.format.content_type}"
        return reply(415, text).raw if self._last_reply else b""

    def _tell_up(self, source: LocalSource) -> None:
        """One line, at the first frame: bytes alone may be no audio."""
        self._is_told = True
        self._say_ok()
        log.info(
            "source up: %s from %s, %s, epoch %d",
            source.mount,
            self._peer,
            source.format.kind,
            source.epoch,
            extra={"event": "source_up", "mount": source.mount, "epoch": source.epoch},
        )

    def _end_source(self, why: str, last: bytes = b"", reason: str = "ended") -> None:
        assert self._source is not None
        source, self._source = self._source, None
        media_s = source.media_us() / 1e6
        if reason == "whole":
            self._sources.close(source, reason)
        elif self._sources.lost(source, self._clock(), reason):
            why += "; its epoch goes on"
        log.log(
            logging.INFO if self._is_told else logging.WARNING,
            "source down: %s from %s %s: %s",
            source.mount,
            self._peer,
            f"after {media_s:.1f} s of audio" if self._is_told else "before its first frame",
            why,
            extra={
                "event": "source_down",
                "mount": source.mount,
                "epoch": source.epoch,
                "reason": why,
            },
        )
        self._finish(last)

    def _finish(self, last: bytes = b"") -> None:
        """Say the last words and half-close, so that no reset takes them from the peer's hands."""
        self.state = "drain"
        self.since = self._clock()
        if self._transport is None or self._transport.is_closing():
            return
        if last:
            self._transport.write(last)
        self._transport.resume_reading()  # paused while the engine read; no matter if it was not
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    # --- time ---

    def tick(self, now: float, *, head_timeout_s: float, source_timeout_s: float) -> None:
        """End what takes too long."""
        self.look()
        bound_s = {"head": head_timeout_s, "drain": DRAIN_S}.get(self.state)
        if bound_s is not None and now - self.since > bound_s:
            self.abort()
        elif self.state == "first" and self._source is not None and self._source.ended:
            self._end_source(self._why_ended(self._source), self._last_reply)
        elif self.state == "first" and not self._pending and 1 < now - self.since < 2:
            self._say_ok()  # it waits for the reply before it sends anything
        elif self.state == "first" and now - self.since > source_timeout_s:
            self._gate.counters["silent_total"] += 1
            self._end_source(f"no audio for {source_timeout_s:g} s", self._last_reply, "silent")
        elif self.state == "body":
            assert self._source is not None
            intake = self._source.intake()
            if intake.media_us != self._media_us or intake.state == "held":
                self._media_us, self.since = intake.media_us, now
                self._source.audible_at = now
            elif now - self.since > source_timeout_s:
                self._gate.counters["silent_total"] += 1
                self._end_source(f"no audio for {source_timeout_s:g} s", self._last_reply, "silent")

    def abort(self) -> None:
        """Close without another word; also what is not connected to the loop yet."""
        if self._transport is not None:
            self._transport.abort()
        else:
            self.state = "closed"

    def shut(self) -> None:
        """The node is going: end the source, then the connection."""
        if self._source is not None:
            self._end_source("this node is shutting down", self._last_reply, "shutdown")
        self.abort_soon()

    def abort_soon(self) -> None:
        """Close once what was written is sent."""
        if self._transport is not None:
            self._transport.close()
        else:
            self.state = "closed"
