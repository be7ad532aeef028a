"""`relay push INPUT URL`: anything FFmpeg's libraries can read, sent out as an Icecast source.

Rules of this room
  1. The media clock never waits for the network: while the connection is away, a paced file and a
     live input go on in real time and what nobody took is gone. Old audio is never sent later.
  2. One connection carries one run with a muxer of its own: Ogg begins again, with a new serial.
  3. Threads: the caller's reads, muxes and sends; `Link` opens connections on a second one; a live
     input is read on a third, so that Ctrl-C never waits for a silent network.
  4. No signal handlers here: KeyboardInterrupt is the clean end.
  5. This room knows no container, no protocol and no node.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

from relay.backoff import Backoff
from relay.errors import ConfigError, EpochLostError, SourceError
from relay.framed import RemoteSource
from relay.icecast import SEND_S, Connection, PushError, Target, parse_url, update_title
from relay.media import (
    ENCODERS,
    Encoder,
    Piece,
    Pump,
    Reader,
    Remuxer,
    Shape,
    av_errors,
    choose_shape,
    encode_rate_hz,
    why,
)

AHEAD_S = 1.0  # how far a paced file may run ahead of real time
UNPACED_SEND_S = 60.0  # for one send: that is how a server slows a source that is not paced
EPOCH_S = 2.0  # between two epochs, should the second have lost as well
STEADY_S = 10.0  # a connection that lived this long starts the back-off afresh


# --- when: pacing ---------------------------------------------------------------------------------


class PaceClock:
    """Holds media time to real time; the first call is the anchor."""

    def __init__(self, ahead_s: float = AHEAD_S, now: Callable[[], float] = time.monotonic) -> None:
        self._ahead_s = ahead_s
        self._now = now
        self._anchor: float | None = None

    def delay_s(self, media_s: float) -> float:
        """How long until this media time may go out; 0 when it is due or late."""
        if self._anchor is None:
            self._anchor = self._now() - media_s
        return max(0.0, self._anchor + media_s - self._ahead_s - self._now())


# --- again: the connection that is kept up --------------------------------------------------------


class Link:
    """The connection when there is one; otherwise a thread that opens the next."""

    def __init__(
        self,
        dial: Callable[[], Connection],
        say: Callable[[str], None],
        *,
        retries: int = 0,
        backoff: Backoff | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dial = dial
        self._say = say
        self._retries = retries
        self._backoff = backoff or Backoff()
        self._now = now
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._found: Connection | SourceError | None = None
        self._since = 0.0
        self._told = ""
        self.lost_total = 0
        self._start(0.0)

    def poll(self) -> Connection | None:
        """The connection, or None while there is none.

        Raises:
            SourceError: Refused for good, or the retries are used up.
        """
        if not self._ready.is_set():
            return None
        if isinstance(self._found, SourceError):
            raise self._found
        return self._found

    def wait(self, timeout_s: float | None = None) -> Connection | None:
        """The connection. Blocks until there is one, ≤ `timeout_s`; raises as `poll`."""
        self._ready.wait(timeout_s)
        return self.poll()

    def lost(self, error: PushError) -> None:
        """The connection failed: open the next one after a back-off, unless that is pointless."""
        if isinstance(self._found, Connection):
            self._found.abort()
        if error.final:
            raise error
        self.lost_total += 1
        if self._now() - self._since >= STEADY_S:
            self._backoff.reset()
        self._ready.clear()
        self._found = None
        self._start(self._wait_s(error))

    def close(self) -> None:
        """No more connections."""
        self._stop.set()
        if isinstance(self._found, Connection):
            self._found.abort()

    def _start(self, after_s: float) -> None:
        threading.Thread(target=self._run, args=(after_s,), daemon=True).start()

    def _run(self, after_s: float) -> None:
        """Dial until there is a result."""
        found: Connection | SourceError | None = None
        while found is None and not self._stop.wait(after_s):
            try:
                found = self._dial()
            except PushError as error:
                if error.final:
                    found = error
                elif 0 < self._retries <= self._backoff.failures:
                    plural = "retry" if self._retries == 1 else "retries"
                    found = SourceError(f"gave up after {self._retries} {plural}: {error}")
                else:
                    after_s = self._wait_s(error)
            except Exception as error:  # the caller waits for a result, whatever it is
                found = SourceError(f"connecting failed: {why(error)}")
        self._since = self._now()
        self._found = found
        if isinstance(found, Connection) and self._stop.is_set():
            found.abort()  # `close` did not see it yet
        self._recovered()
        self._ready.set()

    def _wait_s(self, error: PushError) -> float:
        after_s = self._backoff.next_s()
        if str(error) != self._told:  # a day without the server is one line, not ten thousand
            self._told = str(error)
            self._say(f"{error}; trying again (first in {after_s:.1f} s)")
        return after_s

    def _recovered(self) -> None:
        if self._told and isinstance(self._found, Connection):
            self._told = ""
            self._say("connected")


class Progress:
    """The line that says how it goes: rewritten each second on a terminal, else one each 10 s."""

    def __init__(
        self,
        out: TextIO,
        *,
        quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._quiet = quiet
        self._tty = out.isatty()
        self._now = now
        self._every_s = 1.0 if self._tty else 10.0
        self._next = now() + self._every_s
        self._last = (0.0, 0)  # media time and bytes of the last line
        self._untold: tuple[float, int, int, bool] | None = None
        self._in_line = False  # the terminal's cursor stands behind a progress line

    def begin(self, text: str) -> None:
        """Say what is sent where, before anything is."""
        if not self._quiet:
            self.say(text)

    def tick(self, media_s: float, sent_bytes: int, reconnects: int, connected: bool) -> None:
        """Print the line when it is time."""
        self._untold = media_s, sent_bytes, reconnects, connected
        if not self._quiet and self._now() >= self._next:
            self._next = self._now() + self._every_s
            self._show()

    def _show(self) -> None:
        if self._untold is not None:
            line = progress_line(self._last, *self._untold)
            self._last, self._untold = self._untold[:2], None
            self._in_line = self._tty
            self._write(f"\r{line}\x1b[K" if self._tty else f"{line}\n")

    def say(self, text: str) -> None:
        """A line of its own: something changed."""
        self._in_line = False
        self._write(f"\r\x1b[Krelay push: {text}\n" if self._tty else f"relay push: {text}\n")

    def end(self) -> None:
        """The last line, and the terminal on a fresh one."""
        if self._quiet:
            return
        self._show()
        if self._in_line:
            self._write("\n")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a closed stderr is no reason to stop the audio
            self._out.write(text)
            self._out.flush()


def progress_line(
    last: tuple[float, int], media_s: float, sent_bytes: int, reconnects: int, connected: bool
) -> str:
    """`00:01:05  1.04 MB  128 kbit/s  0 reconnects`; the bit rate is that since the last line."""
    whole_s = int(media_s)
    clock = f"{whole_s // 3600:02d}:{whole_s // 60 % 60:02d}:{whole_s % 60:02d}"
    media_passed_s = media_s - last[0]
    kbit_s = (sent_bytes - last[1]) * 8 / 1000 / media_passed_s if media_passed_s > 0 else 0.0
    state = "" if connected else "  connecting"
    plural = "" if reconnects == 1 else "s"
    return (
        f"{clock}  {sent_bytes / 1e6:.2f} MB  {kbit_s:.0f} kbit/s  "
        f"{reconnects} reconnect{plural}{state}"
    )


# --- the command ----------------------------------------------------------------------------------


class Push:
    """One input on its way to one mount."""

    def __init__(
        self,
        reader: Reader,
        new_run: Callable[[], Remuxer | Encoder],
        link: Link,
        progress: Progress,
        *,
        clock: PaceClock | None,
    ) -> None:
        self._reader = reader
        self._new_run = new_run
        self._link = link
        self._progress = progress
        self._clock = clock
        # An unpaced file has no real time to keep up with: it waits, and loses nothing it holds.
        self._patient = clock is None and not reader.live
        self._run: Remuxer | Encoder | None = None
        self._run_of: Connection | None = None
        self.sent_bytes = 0

    def carry(self, pieces: Iterable[Piece]) -> None:
        """Send the whole input. Blocks until it ends."""
        # A file begins when somebody takes it; what is live may wait as long as it may run ahead.
        self._link.wait(AHEAD_S if self._reader.live else None)
        for piece in pieces:
            if self._clock is not None and (delay_s := self._clock.delay_s(piece.media_s)):
                time.sleep(delay_s)
            connection = self._deliver(piece)
            lost_total = self._link.lost_total
            self._progress.tick(piece.media_s, self.sent_bytes, lost_total, connection is not None)

    def finish(self) -> None:
        """The input is over: the muxer's last bytes, and a clean end of the connection.

        Raises:
            SourceError: The end of the input was not delivered.
        """
        connection = self._link.wait() if self._patient else self._link.poll()
        if connection is None or connection is not self._run_of or self._run is None:
            raise SourceError("the input ended while the server was away: its end was not sent")
        last = self._run.finish()
        connection.close(last)
        self.sent_bytes += len(last)

    def stop(self) -> None:
        """Interrupted: end the run if there is one, and wait for nobody."""
        with suppress(SourceError, *av_errors()):
            connection = self._link.poll()
            if connection is not None and connection is self._run_of and self._run is not None:
                connection.close(self._run.finish())

    def _deliver(self, piece: Piece) -> Connection | None:
        """Send one piece, or let it go by when nobody is there to take it."""
        while True:
            connection = self._link.wait() if self._patient else self._link.poll()
            if connection is None:
                return None
            try:
                connection.send(data := self._mux(connection, piece))
            except PushError as error:
                self._link.lost(error)
                if not self._patient:
                    return None
            else:
                self.sent_bytes += len(data)
                return connection

    def _mux(self, connection: Connection, piece: Piece) -> bytes:
        """The piece in the container of this connection's run."""
        try:
            if self._run is None or connection is not self._run_of:
                self._run, self._run_of = self._new_run(), connection
            return self._run.add(piece)
        except av_errors() as error:
            raise _unfit(self._reader.shown, error) from None


def push(
    input: str,
    url: str | Sequence[str],
    *,
    codec: str | None = None,
    bitrate: int | None = None,
    content_type: str | None = None,
    input_format: str | None = None,
    pace: bool = True,
    loop: bool = False,
    name: str | None = None,
    title: str | None = None,
    retries: int = 0,
    quiet: bool = False,
) -> int:
    """Send an input to a mount as an Icecast source, or to the same mount of several origins, cut
    once. Blocks until it ends or is interrupted.

    Args:
        input: A file, a device (with `input_format`, such as `alsa`), a network address, or `-`.
        url: `http://[user[:password]@]host:port/mount`; the password may be in
            RELAY_SOURCE_PASSWORD. Several are Relay nodes, which get the same frames.
        codec: Encode as `mp3`, `aac`, `opus`, `vorbis` or `flac`; None sends the audio as it is
            where its codec fits.
        bitrate: bit/s to encode at.
        content_type: Instead of the one that belongs to the codec.
        input_format: libavformat's name of the input's format, when it cannot be guessed.
        pace: Hold a file to real time; a device or network address keeps its own.
        loop: Begin the file again when it ends.
        name: The stream's name (`Ice-Name`).
        title: The title, set through `/admin/metadata` at each connection.
        retries: Attempts in a row before giving up; 0 never gives up.
        quiet: No progress line.

    Returns:
        0, at the end of the input and on KeyboardInterrupt.

    Raises:
        ConfigError: The URL or an option is wrong.
        SourceError: The input cannot be read, or the server refused for good (`PushError`).
    """
    urls = [url] if isinstance(url, str) else list(url)
    targets = [parse_url(each) for each in urls]
    target = targets[0]
    choose_shape("", codec, bitrate)  # a wrong option is told before anything is opened
    if len(urls) > 1 and not pace:
        raise ConfigError("several origins are fed in real time: leave --no-pace out")
    if len(urls) > 1 and retries:
        raise ConfigError("each of several origins is tried again for ever: leave --retries out")
    progress = Progress(sys.stderr, quiet=quiet)
    try:
        reader = Reader(input, input_format, loop)
        shape, encode = choose_shape(reader.codec, codec, bitrate)
        paced = pace and not reader.live

        def new_run() -> Remuxer | Encoder:
            tags = {"title": title} if title else {}
            return open_run(reader, shape, encode=encode, bitrate=bitrate, tags=tags)

        if len(urls) > 1:
            kind = content_type or shape.content_type
            for each in targets:
                progress.begin(_intent(reader.shown, each, kind, encode))
            more: dict[str, Any] = {"content_type": kind, "name": name or "", "say": progress.say}
            new_remote = partial(RemoteSource, urls, **more)
            clock = PaceClock() if paced else None
            Spread(reader, new_run, new_remote, progress, clock, title=title).carry(decode=encode)
            return 0
        progress.begin(_intent(reader.shown, target, content_type or shape.content_type, encode))

        def dial() -> Connection:
            kind = content_type or shape.content_type
            timeout_s = SEND_S if pace else UNPACED_SEND_S
            connection = Connection.open(target, kind, name=name, send_timeout_s=timeout_s)
            if title:
                _title_aside(target, title, progress.say)
            return connection

        link = Link(dial, progress.say, retries=retries)
        job = Push(reader, new_run, link, progress, clock=PaceClock() if paced else None)
        _carry(job, reader, link, encode)
    except KeyboardInterrupt:
        pass
    finally:
        progress.end()
    return 0


class Spread:
    """One input on its way to the same mount of several origins: one run, one epoch. When the mount
    has had a newer epoch, and no source now, the input goes on in a new one."""

    def __init__(
        self,
        reader: Reader,
        new_run: Callable[[], Remuxer | Encoder],
        new_remote: Callable[[], RemoteSource],
        progress: Progress,
        clock: PaceClock | None,
        *,
        title: str | None = None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reader = reader
        self._new_run = new_run
        self._new_remote = new_remote
        self._progress = progress
        self._clock = clock
        self._title = title
        self._now = now
        self._sleep = sleep
        self._cut_bytes = 0
        self._begin()

    def carry(self, *, decode: bool) -> None:
        """Send the whole input and end its epoch. Blocks until it is over.

        Raises:
            SourceError: the input breaks off, every origin has refused it for good, or none has
                taken its end.
        """
        pieces = self._reader.pieces(decode=decode)
        pump = Pump(pieces) if self._reader.live else None
        self._open()
        try:
            # A file begins when somebody takes it; what is live may wait as long as it may run on.
            self._in_an_epoch(self._wait, AHEAD_S if self._reader.live else None)
            for piece in pump or pieces:
                if self._clock is not None and (delay_s := self._clock.delay_s(piece.media_s)):
                    time.sleep(delay_s)
                self._in_an_epoch(self._send, piece)
                self._tell(piece.media_s)
            self._feed(self._run.finish())
            if not self._remote.close():
                raise SourceError("the input ended while no origin was there: its end was not sent")
        except (KeyboardInterrupt, SourceError):
            with suppress(SourceError, *av_errors()):
                self._feed(self._run.finish())
            self._remote.close()
            raise
        finally:
            if pump is not None:
                pump.stop()
            else:
                self._reader.close()

    def _begin(self) -> None:
        self._run, self._remote = self._new_run(), self._new_remote()

    def _open(self) -> None:
        self._remote.open()
        self._began = self._now()
        if self._title:
            self._remote.title(self._title)

    def _wait(self, timeout_s: float | None) -> None:
        self._remote.wait(timeout_s)

    def _send(self, piece: Piece) -> None:
        self._feed(self._muxed(self._run.add, piece))

    def _in_an_epoch(self, act: Callable[[Any], None], what: Any) -> None:
        """Do it, again in a new epoch as often as ours has lost."""
        while True:
            try:
                act(what)
                return
            except EpochLostError as lost:
                self._progress.say(f"{lost}: going on in a new epoch")
                self._remote.close()
                self._sleep(max(0.0, self._began + EPOCH_S - self._now()))
                self._begin()
                self._open()

    def _muxed(self, add: Callable[[Piece], bytes], piece: Piece) -> bytes:
        try:
            return add(piece)
        except av_errors() as error:
            raise _unfit(self._reader.shown, error) from None

    def _feed(self, data: bytes) -> None:
        if data:
            self._remote.feed(data)
            self._cut_bytes += len(data)

    def _tell(self, media_s: float) -> None:
        told = self._remote.origins()
        lost_total = sum(origin.lost_total for origin in told)
        is_there = all(origin.state == "connected" for origin in told)
        self._progress.tick(media_s, self._cut_bytes, lost_total, is_there)


def _unfit(shown: str, error: Exception) -> SourceError:
    return SourceError(
        f"{shown!r} cannot be sent in this form: {why(error)}; choose --codec {'|'.join(ENCODERS)}"
    )


def _intent(shown: str, target: Target, content_type: str, encode: bool) -> str:
    """`'talk.wav' goes to http://host:8000/live as audio/ogg, encoded`."""
    return f"{shown!r} goes to {target} as {content_type}, {'encoded' if encode else 'as it is'}"


def open_run(
    reader: Reader, shape: Shape, *, encode: bool, bitrate: int | None, tags: Mapping[str, str]
) -> Remuxer | Encoder:
    """A new run of container bytes for this input."""
    if not encode:
        return Remuxer(shape, reader.stream, tags)
    context = reader.stream.codec_context
    rate_hz = encode_rate_hz(shape, context.sample_rate)
    return Encoder(shape, rate_hz, context.channels, bitrate, tags)


def _carry(job: Push, reader: Reader, link: Link, encode: bool) -> None:
    """Read and send to the end; whatever stops it, what is on its way ends whole."""
    pieces = reader.pieces(decode=encode)
    pump = Pump(pieces) if reader.live else None
    try:
        job.carry(pump or pieces)
        job.finish()
    except (KeyboardInterrupt, SourceError):
        job.stop()
        raise
    finally:
        link.close()
        if pump is not None:
            pump.stop()  # its thread may be inside the input, which must not be closed under it
        else:
            reader.close()


def _title_aside(target: Target, title: str, say: Callable[[str], None]) -> None:
    """Set the title without making the audio wait."""

    def run() -> None:
        try:
            update_title(target, title)
        except PushError as error:
            say(str(error))

    threading.Thread(target=run, name="relay push: title", daemon=True).start()
