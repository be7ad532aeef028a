"""Files of recordings: their names, their writing, and which of them have to go.

Rules of this room
  1. A name is made by the operator's pattern; what a source says (title, mount) can fill a part of
     a name and never leave it.
  2. A file is written under a temporary name, whole frames at a time; when it is done it is
     synced and renamed. What was there before is never overwritten.
  3. Only what the list of a mount names, with the size that it had, is ours to delete, oldest
     first.
  4. Blocks for the disk. Knows no stream, no thread and no clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

PART_BYTES_MAX = 80  # of a name that comes from a title or a mount
TEMPORARY = ".part"
LISTED_MAX = 100_000
SAME_NAME_MAX = 10_000
_HARMLESS = frozenset(" -_.,()+'&!")


def safe_part(text: str) -> str:
    """The text as a part of a file's name: no separator, no leading dot, bounded, never empty."""
    kept = "".join(c if c.isalnum() or c in _HARMLESS else "_" for c in text)
    cut = kept.encode(errors="replace")[:PART_BYTES_MAX].decode(errors="ignore")
    return cut.lstrip(" .").rstrip(" .") or "_"


def expand(pattern: str, mount: str, title: str, at: time.struct_time) -> Path:
    """The path that a pattern gives: strftime's directives, `{mount}` and `{title}`."""
    # strftime first: a percent sign in a title is none of ours.
    path = time.strftime(pattern, at)
    path = path.replace("{mount}", safe_part(mount.strip("/")))
    return Path(path.replace("{title}", safe_part(title)))


def home_of(pattern: str, mount: str) -> Path:
    """The directory below which all files of a pattern lie: its parts before any directive."""
    parts: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if "%" in part or "{title}" in part:
            break
        parts.append(part.replace("{mount}", safe_part(mount.strip("/"))))
    return Path(*parts) if parts else Path(".")


def free_name(path: Path) -> Path:
    """The path, or where something is there already, the same with a number behind its stem."""
    for number in range(1, SAME_NAME_MAX):
        found = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        if not found.exists() and not found.with_name(found.name + TEMPORARY).exists():
            return found
    raise FileExistsError(f"{path} and {SAME_NAME_MAX} more are there already")


class Writing:
    """One file while it is written. OSError where the disk does not do what it should.

    Args:
        path: its name when it is done.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = free_name(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(self.temporary, flags, 0o644)
        self.bytes = 0  # whole frames alone

    @property
    def temporary(self) -> Path:
        """What it is called until then."""
        return self.path.with_name(self.path.name + TEMPORARY)

    def write(self, frames: bytes) -> None:
        """Append these whole frames. When the disk takes a part of them, the file is cut back."""
        left = memoryview(frames)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self.bytes)
            raise
        self.bytes += len(frames)

    def finish(self) -> Path | None:
        """Sync and rename it; None for one without a frame, which is removed."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)
        if not self.bytes:
            self.temporary.unlink(missing_ok=True)
            return None
        os.rename(self.temporary, self.path)
        sync_directory(self.path.parent)
        return self.path


def sync_directory(path: Path) -> None:
    """Make a rename in this directory last; filesystems that cannot, do not."""
    with suppress(OSError):
        found = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(found)
        finally:
            os.close(found)


class Listed(Struct, frozen=True):
    """One file of ours."""

    path: str  # below the home of its pattern
    bytes: int
    ended_at: float  # wall clock, seconds


def too_old(
    files: Sequence[Listed], now: float, *, bytes_max: int, age_max_s: float
) -> list[Listed]:
    """Which files have to go, oldest first; 0 is no bound. The newest always stays.

    Args:
        files: in the order in which they ended.
        now: wall clock, seconds.
        bytes_max: of all together.
        age_max_s: since their end.
    """
    total = sum(file.bytes for file in files)
    gone: list[Listed] = []
    for file in files[:-1]:
        is_old = age_max_s > 0 and now - file.ended_at > age_max_s
        if not is_old and not (bytes_max > 0 and total > bytes_max):
            break
        gone.append(file)
        total -= file.bytes
    return gone


class Shelf:
    """The finished files of one mount, and a list of them that outlives this process.

    Args:
        home: the directory below which they lie; the list is in it.
        mount: whose they are.
    """

    def __init__(self, home: Path, mount: str) -> None:
        self.home = home
        self._list = home / f".relay-{safe_part(mount.strip('/'))}.json"
        self.files: list[Listed] = []

    def load(self) -> int:
        """Read the list; what is not as it says is no longer ours. Returns how many files.

        A file that a process left unfinished gets its name: it holds whole frames.
        """
        try:
            told = msgspec.json.decode(self._list.read_bytes(), type=list[Listed])
        except (OSError, msgspec.MsgspecError):
            told = []
        for listed in told[-LISTED_MAX:]:
            path = self._path(listed)
            file = self._finished(listed) if listed.bytes < 0 else listed
            if path is None or file is None:
                continue
            with suppress(OSError):
                size = path.stat().st_size if file.bytes >= 0 else -1
                if size == file.bytes and not path.is_symlink():
                    self.files.append(file)
        return len(self.files)

    def recover(self, besides: Path | None = None) -> int:
        """Finish what an error of the disk left unfinished, but the file that is being written;
        returns how many. What cannot be finished yet stays listed, what is not there does not."""
        open_name = None if besides is None else os.path.relpath(besides, self.home)
        kept: list[Listed] = []
        count = 0
        for file in self.files:
            is_left = file.bytes < 0 and file.path != open_name
            found = self._finished(file) if is_left else file
            count += found is not file and found is not None
            kept += [] if found is None else [found]
        if kept != self.files:
            self.files = kept
            self._save()
        return count

    def _finished(self, file: Listed) -> Listed | None:
        """A file that was begun, under its name; None where there is nothing of it, itself where
        the disk does not let it have its name."""
        path = self._path(file)
        if path is None:
            return None
        unfinished = path.with_name(path.name + TEMPORARY)
        try:
            if unfinished.stat().st_size == 0:
                unfinished.unlink()
                return None
            if path.exists():  # somebody's, not ours to replace
                return None
            os.rename(unfinished, path)
            found = path.stat()
        except FileNotFoundError:
            return None
        except OSError:
            return file
        return Listed(file.path, found.st_size, found.st_mtime)

    def _path(self, file: Listed) -> Path | None:
        """Where it is; None for what a changed list may name outside of the home."""
        path = Path(os.path.normpath(self.home / file.path))
        return path if path.is_relative_to(os.path.normpath(self.home)) else None

    def note(self, path: Path, bytes_: int, now: float) -> None:
        """A file is finished (or, with -1 bytes, begun)."""
        name = os.path.relpath(path, self.home)
        self.files = [file for file in self.files if file.path != name][-LISTED_MAX:]
        self.files.append(Listed(name, bytes_, now))
        self._save()

    def forget(self, path: Path) -> None:
        """A file that was begun is not there."""
        name = os.path.relpath(path, self.home)
        self.files = [file for file in self.files if file.path != name]
        self._save()

    def tidy(self, now: float, *, bytes_max: int, age_max_s: float) -> int:
        """Delete what has to go, and the directories that are empty then; returns how many."""
        whole = [file for file in self.files if file.bytes >= 0]
        gone = too_old(whole, now, bytes_max=bytes_max, age_max_s=age_max_s)
        for file in gone:
            path = self._path(file)
            if path is None:
                continue
            with suppress(OSError):
                if path.stat().st_size == file.bytes and not path.is_symlink():
                    path.unlink()
                    self._prune(path.parent)
        if gone:
            self.files = [file for file in self.files if file not in gone]
            self._save()
        return len(gone)

    def _prune(self, directory: Path) -> None:
        with suppress(OSError):  # not empty: the end of it
            while directory != self.home and directory.is_relative_to(self.home):
                directory.rmdir()
                directory = directory.parent

    def _save(self) -> None:
        written = self._list.with_name(self._list.name + TEMPORARY)
        self._list.parent.mkdir(parents=True, exist_ok=True)
        written.write_bytes(_lines(self.files))
        os.rename(written, self._list)


def _lines(files: Iterable[Listed]) -> bytes:
    """A JSON list with a file a line: people look into it."""
    lines = b",\n ".join(msgspec.json.encode(file) for file in files)
    return b"[" + lines + b"]\n"
