"""Recordings: streams of this node written to files, cut by time or by title.

Rules of this room
  1. One thread reads the rings of all recorded mounts, as any subscriber does, and writes files. A
     disk that is slow or full costs recordings their frames, counted, and nobody else anything.
  2. The ring is the buffer. Who cannot write for as long as it reaches back has lost that part.
  3. A file begins with the header pages that its first frame needs, and holds whole frames of one
     epoch. It is cut only before a frame at which a listener could begin.
  4. After an error the file ends where it was whole; the next is begun RETRY_S later. A fault of
     ours is such an error, too: it costs one mount its frames, and never the thread.
  5. A recorded mount is wanted all the time: an edge fetches it, a pull on demand is demanded. One
     that has left the node is forgotten once none of its files has to go for its age.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from relay.archive_files import Shelf, Writing, expand, home_of
from relay.errors import MountError
from relay.subscribe import Frame, Skipped, Subscription

if TYPE_CHECKING:
    from relay._core import Engine
    from relay.config import Config, StreamConfig

log = logging.getLogger("relay.archive")

POLL_S = 0.25
BURST_MS = 1000  # what a stream may have had before it was found
BATCHES_MAX = 64  # of one mount in a turn, so that each gets its own
RETRY_S = 10.0
TIDY_S = 60.0
CLOSE_S = 1.5
HEADER_BYTES_MAX = 1 << 20
COUNTED = ("files", "bytes", "frames", "missed_frames", "errors", "deleted")


class Cut(NamedTuple):
    """What the file that is being written is of; another one begins where any of it changes."""

    epoch: int
    period: int  # of record_cut_s, by the wall clock; 0 without one
    title: str  # "" without record_cut_on_title


def period_of(at: float, cut_s: float, utc_offset_s: int) -> int:
    """Which period of the local day a moment lies in: cuts of an hour fall on the hour."""
    return int((at + utc_offset_s) // cut_s) if cut_s > 0 else 0


class Header:
    """The header pages of the chain that is being read, as they pass."""

    def __init__(self) -> None:
        self._pages: list[bytes] = []
        self._is_open = False  # the last frame was one of them

    def begin(self, pages: bytes) -> None:
        """Of a stream that is entered in its middle."""
        self._pages, self._is_open = [pages] if pages else [], False

    def see(self, frame: Frame) -> None:
        """Keep a header page; the first one behind audio begins a new chain."""
        if not frame.header:
            self._is_open = False
            return
        if not self._is_open:
            self._pages = []
        self._is_open = True
        if sum(map(len, self._pages)) + len(frame.data) <= HEADER_BYTES_MAX:
            self._pages.append(frame.data)

    @property
    def pages(self) -> bytes:
        """All of them."""
        return b"".join(self._pages)


class Recording:
    """One mount that is recorded. All calls are of one thread, and block for the disk.

    Args:
        engine: whose stream.
        mount: which.
        told: the `record…` settings.
        counters: are counted up.
        wall: the wall clock, s.
        clock: monotonic, s.
    """

    def __init__(
        self,
        engine: Engine,
        mount: str,
        told: StreamConfig,
        counters: Counter[str],
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert told.record is not None
        self._engine = engine
        self._mount = mount
        self._pattern: str = told.record
        self._told = told
        self._counters = counters
        self._wall = wall
        self._clock = clock
        self._shelf = Shelf(home_of(self._pattern, mount), mount)
        self._subscription: Subscription | None = None
        self._header = Header()
        self._epoch: int | None = None
        self._cut: Cut | None = None
        self._file: Writing | None = None
        self._pending: list[bytes] = []
        self._rest_until = 0.0  # no file is begun before
        self._fault_until = 0.0  # nothing at all is done before
        self._tidy_at = 0.0
        self._error = ""

    def open(self) -> None:
        """Learn which files are ours from before."""
        try:
            self._shelf.load()
        except Exception as error:
            self._failed(error)

    def turn(self) -> None:
        """Write what is new, and delete what is too old."""
        if self._clock() < self._fault_until:
            return
        try:
            self._take()
            self._flush()
            if self._clock() >= self._tidy_at:
                self._tidy_at = self._clock() + TIDY_S
                self._tidy()
        except Exception as error:  # of the disk, or ours: the other recordings go on
            self._failed(error)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do before its stream comes again."""
        if self._file is not None or self._subscription is not None:
            return False
        if self._clock() < max(self._rest_until, self._fault_until):
            return False
        ages = self._told.record_age_max_s > 0 and len(self._shelf.files) > 1
        return not ages and self._engine.find(self._mount) is None

    def close(self) -> None:
        """Finish the file."""
        try:
            self._finish()
        except Exception as error:
            self._failed(error)

    def _take(self) -> None:
        subscription = self._subscribed()
        if subscription is None:
            return
        is_gone = subscription.is_gone  # asked first: then what is here is all
        for _ in range(BATCHES_MAX):
            if not (batch := subscription.waiting()):
                break
            for item in batch:
                if isinstance(item, Skipped):
                    self._counters["missed_frames"] += item.frames
                else:
                    self._frame(item)
        if is_gone:
            self._unsubscribe()
            self._finish()
        elif self._is_over():
            self._finish()

    def _subscribed(self) -> Subscription | None:
        if self._subscription is None:
            try:
                self._subscription = Subscription(self._engine, self._mount, burst_ms=BURST_MS)
            except MountError:
                return None
        return self._subscription

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
            self._epoch = None  # its header pages are asked for anew

    def _is_over(self) -> bool:
        """Whether the source has left, and all of its epoch is written."""
        stream = self._engine.find(self._mount)
        return self._file is not None and stream is not None and not stream.snapshot()["source_up"]

    def _frame(self, frame: Frame) -> None:
        if frame.epoch != self._epoch:
            self._epoch = frame.epoch
            self._finish()
            self._header.begin(b"")
            if not frame.header and self._subscription is not None:
                self._header.begin(self._subscription.header())
        self._header.see(frame)
        if frame.start and not frame.header:
            cut = self._cut_at(frame)
            if cut != self._cut or self._file is None:
                self._begin(cut, frame)
        if self._file is not None:
            self._write(frame)
        elif not frame.header:  # those come with the first frame of the next file
            self._counters["missed_frames"] += 1

    def _cut_at(self, frame: Frame) -> Cut:
        wall = self._wall()
        offset_s = time.localtime(wall).tm_gmtoff
        period = period_of(wall, self._told.record_cut_s, offset_s)
        return Cut(
            frame.epoch, period, self._title(frame) if self._told.record_cut_on_title else ""
        )

    def _title(self, frame: Frame) -> str:
        stream = self._engine.find(self._mount)
        return (stream.title_at(frame.position) if stream is not None else None) or ""

    def _begin(self, cut: Cut, frame: Frame) -> None:
        """The next file; none while an error is young."""
        self._finish()
        if self._clock() < self._rest_until:
            return
        now = self._wall()
        path = expand(self._pattern, self._mount, self._title(frame), time.localtime(now))
        self._file = Writing(path)
        self._shelf.note(self._file.path, -1, now)
        self._cut = cut
        if header := self._header.pages:
            self._pending.append(header)
        if self._error:
            self._error = ""
            log.info("recording of %s goes on", self._mount, extra=self._more("recording"))

    def _write(self, frame: Frame) -> None:
        self._pending.append(frame.data)
        self._counters["frames"] += 1

    def _flush(self) -> None:
        data, self._pending = b"".join(self._pending), []
        if data and self._file is not None:
            self._file.write(data)
            self._counters["bytes"] += len(data)

    def _finish(self) -> None:
        """End the file that is being written, if there is one, with all that was taken."""
        self._flush()
        file, self._file = self._file, None
        if file is None:
            return
        done = self._put_away(file)
        if done is None:
            return
        self._tidy()
        more = {**self._more("recorded"), "file": str(done), "bytes": file.bytes}
        log.info("recorded %s: %s, %d bytes", self._mount, done, file.bytes, extra=more)

    def _put_away(self, file: Writing) -> Path | None:
        """The file under its name, and listed; None where it has no frame."""
        done = file.finish()
        if done is None:
            self._shelf.forget(file.path)
            return None
        self._counters["files"] += 1
        self._shelf.note(done, file.bytes, self._wall())
        return done

    def _tidy(self) -> None:
        self._counters["files"] += self._shelf.recover(self._file.path if self._file else None)
        self._counters["deleted"] += self._shelf.tidy(
            self._wall(),
            bytes_max=self._told.record_bytes_max,
            age_max_s=self._told.record_age_max_s,
        )

    def _failed(self, error: Exception) -> None:
        """The disk, or we, did not do what we should: end the file where it is whole, and rest."""
        self._counters["errors"] += 1
        self._pending.clear()
        self._rest_until = self._clock() + RETRY_S
        if not isinstance(error, OSError):
            self._fault_until = self._rest_until
            self._unsubscribe()
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # it stays listed as begun; `_tidy` finishes it
                self._put_away(file)
        of_disk = error if isinstance(error, OSError) else None
        said = (of_disk and of_disk.strerror) or str(error) or type(error).__name__
        if said != self._error:
            self._error = said
            log.warning(
                "recording of %s to %s: %s; trying again in %g s",
                *(self._mount, (of_disk and of_disk.filename) or self._pattern, said, RETRY_S),
                exc_info=None if of_disk else error,
                extra=self._more("recording_failed"),
            )

    def _more(self, event: str) -> dict[str, object]:
        return {"event": event, "mount": self._mount}


class Archive:
    """All recordings of one node, on a thread of their own.

    Args:
        engine: the node's data plane.
        config: which mounts are recorded: `record` in their own table, or in `[defaults]` for all.
        wall, clock: as for `Recording`.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._config = config
        self._wall = wall
        self._clock = clock
        self._recordings: dict[str, Recording] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._counters: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    def start(self) -> None:
        """Begin; a node that records nothing gets no thread."""
        tables = (self._config.defaults, *self._config.streams.values())
        if any(table.record for table in tables):
            self._thread = threading.Thread(target=self._run, name="relay-archive", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Finish all files; blocks until they are, at most CLOSE_S: a disk that hangs is left."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            thread.join(CLOSE_S)

    def snapshot(self) -> dict[str, int]:
        """Counters by name."""
        return {f"record_{name}_total": count for name, count in self._counters.items()}

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self.turn()
        for recording in self._recordings.values():
            recording.close()

    def turn(self) -> None:
        """Find what is to be recorded, write what is new, forget what has gone."""
        self._find()
        for mount, recording in tuple(self._recordings.items()):
            recording.turn()
            if recording.is_done:
                del self._recordings[mount]

    def _find(self) -> None:
        """Mounts that have come, and are to be recorded."""
        for stream in self._engine.streams():
            mount = stream.mount
            if mount in self._recordings:
                continue
            told = self._config.for_stream(mount)
            if told.record:
                times = {"wall": self._wall, "clock": self._clock}
                recording = Recording(self._engine, mount, told, self._counters, **times)
                recording.open()
                self._recordings[mount] = recording
