"""Files of recordings: names that nobody can break out of, whole frames, and deleting only ours."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.archive_files import (
    PART_BYTES_MAX,
    Listed,
    Shelf,
    Writing,
    expand,
    free_name,
    home_of,
    safe_part,
    too_old,
)

AT = time.struct_time((2026, 11, 28, 20, 5, 9, 5, 332, 0))


@given(st.text(max_size=200))
def test_a_title_is_one_harmless_part_of_a_name(title: str) -> None:
    """No separator, no dot in front, nothing that cannot be printed, bounded, never empty."""
    part = safe_part(title)
    assert part
    assert "/" not in part
    assert not part.startswith((".", " "))
    assert part.isprintable()
    assert len(part.encode()) <= PART_BYTES_MAX
    path = expand("/srv/{mount}/%Y/{title}.mp3", title, title, AT)
    assert len(path.parts) == 5
    assert ".." not in path.parts
    assert path.is_relative_to("/srv")


def test_a_pattern_is_filled() -> None:
    """strftime's directives, mount and title; a percent sign in a title is no directive."""
    path = expand("/srv/{mount}/%Y-%m-%d/%H%M%S {title}.mp3", "/a/live", "100%d ../up: x", AT)
    assert path == Path("/srv/a_live/2026-11-28/200509 100_d .._up_ x.mp3")


@pytest.mark.parametrize(
    ("pattern", "home"),
    [
        ("/srv/{mount}/%Y/%H.mp3", "/srv/live"),
        ("/srv/x-%Y/%H.mp3", "/srv"),
        ("rec/{title}/%H.mp3", "rec"),
        ("%H.mp3", "."),
    ],
)
def test_the_home_is_what_never_changes(pattern: str, home: str) -> None:
    """Where the list lies, and below which alone something is deleted."""
    assert home_of(pattern, "/live") == Path(home)


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """Until then another one; what was there before stays as it was."""
    path = tmp_path / "a" / "x.mp3"
    first = Writing(path)
    first.write(b"one")
    assert not path.exists()
    assert first.temporary.read_bytes() == b"one"
    second = Writing(path)
    assert second.path.name == "x-2.mp3"
    assert first.finish() == path
    second.write(b"two")
    assert second.finish() == path.with_name("x-2.mp3")
    assert path.read_bytes() == b"one"
    assert free_name(path).name == "x-3.mp3"
    assert sorted(p.name for p in path.parent.iterdir()) == ["x-2.mp3", "x.mp3"]


def test_a_file_without_a_frame_is_none(tmp_path: Path) -> None:
    """Nothing is left of it."""
    assert Writing(tmp_path / "x.mp3").finish() is None
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_whole_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it took of the last ones is cut off again."""
    writing = Writing(tmp_path / "x.mp3")
    writing.write(b"whole frames")
    true_write, room = os.write, [7]

    def write(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(room[0], len(data))
        room[0] -= taken
        return true_write(file, bytes(data[:taken]))

    monkeypatch.setattr("relay.archive_files.os.write", write)
    with pytest.raises(OSError, match="No space"):
        writing.write(b"more of them")
    assert writing.finish() == tmp_path / "x.mp3"
    assert (tmp_path / "x.mp3").read_bytes() == b"whole frames"


def test_too_long_a_name_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """Counted like any other."""
    with pytest.raises(OSError, match="too long"):
        Writing(tmp_path / ("x" * 252))


# --- which have to go ---


def listed(*sizes: int) -> list[Listed]:
    """Files that ended at 0, 10, 20 … s."""
    return [Listed(f"{n}", size, n * 10.0) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "now", "bytes_max", "age_max_s", "gone"),
    [
        ((5, 5, 5), 100.0, 0, 0.0, 0),
        ((5, 5, 5), 100.0, 15, 0.0, 0),
        ((5, 5, 5), 100.0, 14, 0.0, 1),
        ((5, 5, 5), 100.0, 1, 0.0, 2),
        ((5, 5, 5), 30.0, 0, 25.0, 1),
        ((5, 5, 5), 1e6, 0, 25.0, 2),
        ((1, 50, 1), 30.0, 10, 25.0, 2),
        ((), 0.0, 1, 1.0, 0),
    ],
)
def test_the_oldest_go_first(
    sizes: tuple[int, ...], now: float, bytes_max: int, age_max_s: float, gone: int
) -> None:
    """Until both bounds hold; the newest stays, whatever they say."""
    files = listed(*sizes)
    assert too_old(files, now, bytes_max=bytes_max, age_max_s=age_max_s) == files[:gone]


def shelved(home: Path, *names: str) -> Shelf:
    """A shelf with these files of four bytes."""
    shelf = Shelf(home, "/live")
    for number, name in enumerate(names):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mp3.")
        shelf.note(path, 4, float(number))
    return shelf


def test_only_ours_are_deleted_and_remembered_over_a_restart(tmp_path: Path) -> None:
    """Strangers beside them stay, and so does one of ours that somebody has changed."""
    shelved(tmp_path, "d1/a.mp3", "d2/b.mp3", "d2/c.mp3", "d3/d.mp3")
    (tmp_path / "d1" / "stranger.mp3").write_bytes(b"x" * 1000)
    (tmp_path / "d2" / "b.mp3").write_bytes(b"edited")
    again = Shelf(tmp_path, "/live")
    assert again.load() == 3
    assert again.tidy(100.0, bytes_max=4, age_max_s=0) == 2
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.mp3"))
    assert left == ["d1/stranger.mp3", "d2/b.mp3", "d3/d.mp3"]


def test_a_directory_that_is_empty_goes_too(tmp_path: Path) -> None:
    """Days of a year would pile up; the home stays."""
    shelf = shelved(tmp_path, "y/d1/a.mp3", "y/d2/b.mp3")
    shelf.tidy(100.0, bytes_max=1, age_max_s=0)
    assert not (tmp_path / "y" / "d1").exists()
    assert (tmp_path / "y" / "d2" / "b.mp3").exists()


@pytest.mark.parametrize("name", ["../outside.mp3", "/etc/hostname", "link.mp3"])
def test_a_list_that_was_tampered_with_deletes_nothing_else(tmp_path: Path, name: str) -> None:
    """Paths out of the home, and links, are not ours."""
    home = tmp_path / "home"
    home.mkdir()
    outside = tmp_path / "outside.mp3"
    outside.write_bytes(b"mp3.")
    (home / "link.mp3").symlink_to(outside)
    shelf = Shelf(home, "/live")
    size = Path(home / name).stat().st_size
    shelf.files = [Listed(name, size, 0.0), Listed("b", 4, 1.0)]
    (home / "b").write_bytes(b"mp3.")
    shelf.tidy(100.0, bytes_max=1, age_max_s=0)
    assert outside.exists()
    assert (home / name).exists()


def test_what_a_killed_process_left_gets_its_name(tmp_path: Path) -> None:
    """It holds whole frames; and an unreadable list is an empty one."""
    shelf = Shelf(tmp_path, "/live")
    writing = Writing(tmp_path / "x.mp3")
    shelf.note(writing.path, -1, 5.0)
    writing.write(b"frames")
    again = Shelf(tmp_path, "/live")
    assert again.load() == 1
    assert (tmp_path / "x.mp3").read_bytes() == b"frames"
    (tmp_path / ".relay-live.json").write_bytes(b"[{")
    assert Shelf(tmp_path, "/live").load() == 0
