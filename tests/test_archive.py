"""Recordings: what goes into which file, stepped with clocks of the test over a made-up engine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from tools.clock import FakeClock

from relay.archive import RETRY_S, Archive, Header, Recording, period_of
from relay.config import Config
from relay.subscribe import Frame

START, HEADER = 1, 2
NOW = 1_800_000_000.0


def frame(data: bytes, flags: int = START) -> Frame:
    """A frame."""
    return Frame(epoch=1, sequence=0, position=0, media_us=0, duration_us=1, flags=flags, data=data)


class Desk:
    """One recorded mount whose stream, clocks and disk the test has in its hands."""

    def __init__(self, home: Path, clock: FakeClock, **settings: Any) -> None:
        record = {"record": f"{home}/{{mount}}/%H%M%S {{title}}.mp3", **settings}
        told = Config.load(overrides={"streams": {"/live": record}}, environ={})
        self.home = home / "live"
        self.engine: Any = FakeEngine()
        self.stream = self.engine.add_stream("/live")
        self.clock = clock
        self.counters: Counter[str] = Counter()
        self.begin()
        self.recording = Recording(
            self.engine,
            "/live",
            told.for_stream("/live"),
            self.counters,
            wall=lambda: NOW + clock(),
            clock=clock,
        )
        self.recording.open()

    def begin(self) -> None:
        """Begin an epoch."""
        if self.stream.writer == "none":
            self.stream.claim()
        self.stream.frames.clear()
        self.stream.begin()

    def push(self, *frames: bytes, flags: int = START) -> None:
        """Push frames and have them taken."""
        for data in frames:
            self.stream.push(data, 20_000, flags)
        self.recording.turn()

    def files(self) -> list[tuple[str, bytes]]:
        """What lies there: the title in each name, and what is in it; the list of ours apart."""
        found = [p for p in self.home.rglob("*") if p.is_file() and not p.name.startswith(".")]
        return [(p.name.partition(" ")[2], p.read_bytes()) for p in sorted(found)]

    def parts(self) -> list[bytes]:
        """What is in the files, sorted."""
        return sorted(data for _, data in self.files())


@pytest.fixture
def desk(tmp_path: Path, clock: FakeClock) -> Desk:
    """A mount recorded by the hour and by title."""
    clock.advance(s=1)
    return Desk(tmp_path, clock, record_cut_on_title=True)


def test_a_file_is_finished_when_the_source_leaves(desk: Desk) -> None:
    """Whole frames under a temporary name until then."""
    desk.push(b"one", b"two")
    assert desk.files() == [("_.mp3.part", b"onetwo")]
    desk.stream.end()
    desk.recording.turn()
    assert desk.files() == [("_.mp3", b"onetwo")]
    assert desk.counters["files"] == 1
    assert desk.counters["frames"] == 2


@pytest.mark.parametrize("is_unlinked", [False, True])
def test_what_came_just_before_the_end_is_in_the_file(desk: Desk, is_unlinked: bool) -> None:
    """The last frames and the end of the source are seen in one look."""
    desk.push(b"one")
    desk.stream.push(b"two", 20_000)
    desk.stream.end()
    if is_unlinked:
        desk.engine.remove_stream(desk.stream)
    desk.recording.turn()
    assert desk.files() == [("_.mp3", b"onetwo")]


def test_each_epoch_and_each_title_has_a_file(desk: Desk) -> None:
    """Cut exactly where the title holds; a title that comes back begins another."""
    desk.push(b"a1")
    desk.stream.title("One")
    desk.push(b"b1", b"b2")
    desk.stream.title("../../Two/x")
    desk.push(b"c1")
    desk.stream.end()
    desk.begin()
    desk.push(b"d1")
    desk.recording.close()
    files = desk.files()
    assert ("_.mp3", b"a1") in files
    assert ("One.mp3", b"b1b2") in files
    assert ("_.._Two_x.mp3", b"c1") in files
    assert desk.parts() == [b"a1", b"b1b2", b"c1", b"d1"]


def test_a_file_is_cut_on_the_hour_at_a_frame_that_may_begin_one(
    tmp_path: Path, clock: FakeClock
) -> None:
    """Frames that continue a packet belong to the one before."""
    desk = Desk(tmp_path, clock, record_cut_s=10)
    clock.advance(s=9)
    desk.push(b"a")
    clock.advance(s=2)
    desk.push(b"b", flags=0)
    desk.push(b"c")
    desk.recording.close()
    assert desk.parts() == [b"ab", b"c"]


def test_each_file_begins_with_the_header_pages(desk: Desk) -> None:
    """Those of the chain that its first frame is of."""
    desk.push(b"H1", b"H2", flags=HEADER)
    desk.push(b"a")
    desk.stream.title("One")
    desk.push(b"b")
    desk.push(b"N1", flags=HEADER)
    desk.push(b"c")
    desk.stream.title("Two")
    desk.push(b"d")
    desk.recording.close()
    assert desk.parts() == [b"H1H2a", b"H1H2bN1c", b"N1d"]


def test_header_pages_are_bounded_and_begin_anew_after_audio() -> None:
    """A chain that never comes to its audio is not kept for ever."""
    header = Header()
    header.begin(b"old")
    assert header.pages == b"old"
    header.see(frame(b"a"))
    header.see(frame(b"1", HEADER))
    header.see(frame(b"2", HEADER))
    assert header.pages == b"12"
    header.see(frame(b"b"))
    header.see(frame(b"3", HEADER))
    assert header.pages == b"3"
    for _ in range(100):
        header.see(frame(b"x" * 65_000, HEADER))
    assert len(header.pages) <= 1 << 20


def test_a_disk_that_refuses_is_left_alone_for_a_while(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written whole is kept; what comes meanwhile is missed, and counted."""
    desk.push(b"one")
    broken = [True]

    def write(file: int, data: Any) -> int:
        if broken[0]:
            raise OSError(28, "No space left on device")
        return true_write(file, data)

    import relay.archive_files as room

    true_write = room.os.write
    monkeypatch.setattr("relay.archive_files.os.write", write)
    desk.push(b"two")
    assert desk.files() == [("_.mp3", b"one")]
    assert desk.counters["errors"] == 1
    desk.push(b"three")
    assert desk.counters["missed_frames"] == 1
    broken[0] = False
    desk.push(b"four")
    assert desk.counters["missed_frames"] == 2
    desk.clock.advance(s=RETRY_S + 1)
    desk.push(b"five")
    desk.recording.close()
    assert desk.parts() == [b"five", b"one"]
    assert desk.counters["errors"] == 1


def test_frames_that_left_the_ring_are_counted(desk: Desk) -> None:
    """The disk was slower than the ring is long."""
    desk.push(b"one")
    desk.stream.frames += [None] * 5
    desk.stream.tail = 6
    desk.push(b"two")
    assert desk.counters["missed_frames"] == 5


def test_old_recordings_go_as_new_ones_come(tmp_path: Path, clock: FakeClock) -> None:
    """Within the bound, oldest first."""
    desk = Desk(tmp_path, clock, record_cut_s=10, record_bytes_max=6)
    for number in range(5):
        desk.push(b"f%d." % number)
        clock.advance(s=10)
    desk.recording.close()
    assert desk.parts() == [b"f3.", b"f4."]
    assert desk.counters["deleted"] == 3


def test_hours_are_those_of_the_local_day() -> None:
    """A cut of an hour falls on the hour, of half-hour time zones too."""
    assert period_of(1800.0, 3600, 1800) == 1
    assert period_of(1799.0, 3600, 1800) == 0
    assert period_of(1e9, 0, 0) == 0


def test_a_node_that_records_nothing_has_no_thread() -> None:
    """Nothing is paid for what is not used."""
    engine: Any = FakeEngine()
    archive = Archive(engine, Config())
    archive.start()
    archive.close()
    assert archive.snapshot()["record_files_total"] == 0


# --- what goes wrong, and what has gone -----------------------------------------------------------


def recorded(home: Path, clock: FakeClock, **settings: Any) -> tuple[Any, Archive]:
    """A node that records all mounts, in the hands of the test."""
    record = {"record": f"{home}/{{mount}}/%H%M%S.mp3", **settings}
    config = Config.load(overrides={"defaults": record}, environ={})
    engine: Any = FakeEngine()
    return engine, Archive(engine, config, wall=lambda: NOW + clock(), clock=clock)


def put(engine: Any, mount: str, data: bytes) -> None:
    """A source's next frame."""
    stream = engine.find(mount)
    if stream is None:
        stream = engine.add_stream(mount)
        stream.claim()
        stream.begin()
    stream.push(data, 20_000)


def leave(engine: Any, mount: str) -> None:
    """The stream leaves the node."""
    engine.remove_stream(engine.find(mount))


def test_a_mount_that_has_gone_is_forgotten(tmp_path: Path, clock: FakeClock) -> None:
    """Its file is finished; who comes again goes on with the files of before."""
    clock.advance(s=100)
    engine, archive = recorded(tmp_path, clock, record_bytes_max=3)
    for number in range(20):
        mount = f"/{number % 2}"
        put(engine, mount, b"%03d" % number)
        archive.turn()
        assert len(archive._recordings) == 1
        leave(engine, mount)
        archive.turn()
        assert not archive._recordings
    files = sorted(p.read_bytes() for p in tmp_path.rglob("*.mp3"))
    assert files == [b"018", b"019"]  # the newest of each: those of before were known, too


def test_a_mount_that_was_away_between_two_looks_is_recorded_again(
    tmp_path: Path, clock: FakeClock
) -> None:
    """It is another stream by then: what the first one brought last is written, then the new."""
    engine, archive = recorded(tmp_path, clock)
    put(engine, "/0", b"one")
    archive.turn()
    engine.find("/0").push(b"two", 20_000)
    leave(engine, "/0")
    clock.advance(s=1)
    put(engine, "/0", b"three")
    archive.turn()
    archive.turn()
    assert sorted(p.read_bytes() for p in tmp_path.rglob("*.mp3*")) == [b"onetwo", b"three"]


def test_a_mount_that_has_gone_is_kept_while_its_files_grow_old(
    tmp_path: Path, clock: FakeClock
) -> None:
    """They go in their time, though nobody comes."""
    clock.advance(s=100)
    engine, archive = recorded(tmp_path, clock, record_age_max_s=300, record_cut_s=10)
    for _ in range(2):
        put(engine, "/a", b"abc")
        archive.turn()
        clock.advance(s=10)
    leave(engine, "/a")
    archive.turn()
    assert (len(archive._recordings), len([*tmp_path.rglob("*.mp3")])) == (1, 2)
    clock.advance(s=400)
    archive.turn()
    assert (len(archive._recordings), len([*tmp_path.rglob("*.mp3")])) == (0, 1)


def test_a_fault_of_ours_costs_one_recording_its_frames(
    tmp_path: Path,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The thread and the other mounts go on; it is told once, and tried again later."""
    clock.advance(s=100)
    engine, archive = recorded(tmp_path, clock)
    broken = [True]

    def expand(pattern: str, mount: str, *more: Any) -> Path:
        if broken[0] and mount == "/a":
            raise ValueError("embedded null byte")
        return true_expand(pattern, mount, *more)

    from relay.archive_files import expand as true_expand

    monkeypatch.setattr("relay.archive.expand", expand)
    for _ in range(3):
        for mount in ("/a", "/b"):
            put(engine, mount, b"abc")
        archive.turn()
        clock.advance(s=1)
    assert archive.snapshot()["record_errors_total"] == 1
    clock.advance(s=RETRY_S)
    archive.turn()
    assert archive.snapshot()["record_errors_total"] == 2
    assert [r.getMessage() for r in caplog.records if "embedded null byte" in r.getMessage()] == [
        f"recording of /a to {tmp_path}/{{mount}}/%H%M%S.mp3: embedded null byte; "
        "trying again in 10 s"
    ]
    assert [p.read_bytes() for p in tmp_path.rglob("*.part")] == [b"abc" * 3]
    broken[0] = False
    clock.advance(s=RETRY_S)
    put(engine, "/a", b"new")
    archive.turn()
    leave(engine, "/a")
    archive.turn()
    assert [p.read_bytes()[-3:] for p in (tmp_path / "a").rglob("*.mp3")] == [b"new"]


def test_a_file_that_could_not_be_begun_is_not_listed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list itself found no room: neither it nor the disk keeps anything of it."""
    true_write = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    for _ in range(5):
        desk.push(b"one")
        desk.clock.advance(s=RETRY_S + 1)
    assert desk.counters["errors"] == 5
    assert (desk.recording._shelf.files, desk.files()) == ([], [])
    monkeypatch.setattr(Path, "write_bytes", true_write)
    desk.push(b"two")
    desk.recording.close()
    assert desk.parts() == [b"two"]


def test_a_file_that_could_not_be_finished_is_finished_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is one of those that the bounds are about."""
    import relay.archive_files as room

    true_fsync, broken = room.os.fsync, [True]

    def fsync(file: int) -> None:
        if broken[0]:
            raise OSError(5, "Input/output error")
        true_fsync(file)

    monkeypatch.setattr("relay.archive_files.os.fsync", fsync)
    desk.push(b"one")
    desk.stream.title("Two")
    desk.push(b"two")
    assert desk.counters["errors"] == 1
    assert [file.bytes for file in desk.recording._shelf.files] == [-1]
    broken[0] = False
    desk.clock.advance(s=RETRY_S + 1)
    desk.push(b"three")
    desk.recording.close()
    assert desk.parts() == [b"one", b"three"]
    assert sorted(file.bytes for file in desk.recording._shelf.files) == [3, 5]
    assert desk.counters["files"] == 2
