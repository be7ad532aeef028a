"""The checker is only worth what it catches: each planted defect is caught, and nothing else."""

from __future__ import annotations

import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.nodes import wait_until
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source, frame_size, push, read_mark


def checked(*parts: bytes) -> FrameChecker:
    """Feed the parts to a new checker."""
    checker = FrameChecker()
    for part in parts:
        checker.feed(part)
    return checker


@pytest.mark.parametrize("kbit", [32, 64, 128, 320])
@pytest.mark.parametrize("rate_hz", [44_100, 48_000, 32_000])
def test_frames_keep_their_bit_rate(kbit: int, rate_hz: int) -> None:
    """Sizes follow the header, and padding makes the average exact."""
    maker = FrameMaker(kbit, rate_hz)
    frames = maker.frames(2_000)
    assert all(frame_size(frame) == len(frame) for frame in frames)
    media_s = 2_000 * maker.frame_s
    assert sum(map(len, frames)) * 8 / media_s == pytest.approx(kbit * 1000, rel=1e-4)


def test_frames_decode_without_an_error(ffmpeg: str, tmp_path: Path) -> None:
    """A real decoder takes the frames as MP3 of the right length."""
    path = tmp_path / "made.mp3"
    path.write_bytes(FrameMaker().seconds(5.0))
    told = subprocess.run(
        [ffmpeg, "-v", "warning", "-xerror", "-f", "mp3", "-i", str(path), "-f", "s16le", "-"],
        capture_output=True,
        timeout=30,
    )
    assert told.returncode == 0, told.stderr
    assert b"error" not in told.stderr.lower()
    assert len(told.stdout) == pytest.approx(5.0 * 44_100 * 2, rel=0.02)


def test_whole_stream_is_clean_however_it_is_split() -> None:
    """Any split of the bytes gives the same verdict."""
    data = FrameMaker().seconds(2.0)
    pieces = random.Random(1)
    checker, at = FrameChecker(), 0
    while at < len(data):
        size = pieces.randint(1, 700)
        checker.feed(data[at : at + size])
        at += size
    assert checker.clean
    assert (checker.first, checker.last, checker.frames) == (0, checker.frames - 1, 77)
    assert checker.unfinished_bytes == 0


def test_missing_frames_are_counted() -> None:
    """Three frames left out are three missing, by name."""
    frames = FrameMaker().frames(10)
    checker = checked(*frames[:4], *frames[7:])
    assert checker.holes == {4, 5, 6}
    assert (checker.missing, checker.repeated, checker.late, checker.damaged_bytes) == (3, 0, 0, 0)
    assert not checker.clean


def test_repeated_frames_are_counted() -> None:
    """A run sent twice is repeated, not late."""
    frames = FrameMaker().frames(10)
    checker = checked(*frames[:6], *frames[3:])
    assert (checker.missing, checker.repeated, checker.late) == (0, 3, 0)


def test_late_frame_is_counted_and_no_longer_missing() -> None:
    """A frame after its successor is late."""
    frames = FrameMaker().frames(4)
    checker = checked(frames[0], frames[2], frames[1], frames[3])
    assert (checker.missing, checker.repeated, checker.late) == (0, 0, 1)


def test_single_wrong_bit_is_damage() -> None:
    """Each bit of each frame is under the CRC."""
    frames = FrameMaker().frames(3)
    for at in range(0, len(frames[1]), 13):
        broken = bytearray(frames[1])
        broken[at] ^= 0x10
        checker = checked(frames[0], bytes(broken), frames[2])
        assert checker.damaged_bytes == len(broken)
        assert (checker.spliced, checker.missing) == (1, 1)


def test_splice_within_a_frame_is_damage() -> None:
    """A listener moved in mid-frame hears it, and the checker says so."""
    frames = FrameMaker().frames(6)
    checker = checked(frames[0], frames[1][:100], *frames[3:])
    assert (checker.spliced, checker.damaged_bytes) == (1, 100)
    assert checker.holes == {1, 2}


def test_joining_in_mid_frame_is_damage() -> None:
    """A listener begins at a frame or it counts."""
    frames = FrameMaker().frames(3)
    assert checked(frames[0][50:], *frames[1:]).damaged_bytes == len(frames[0]) - 50


def test_torn_frame_is_damage() -> None:
    """A frame whose second half belongs to a newer one has a wrong CRC."""
    maker = FrameMaker(128, 48_000)
    old, new, after = maker.frames(3)
    checker = checked(old[:200] + new[200:], after)
    assert checker.damaged_bytes == len(old)


def test_lateness_is_arrival_minus_making() -> None:
    """The stamp in the frame is compared with the arrival, on one clock."""
    maker = FrameMaker(now_us=lambda: 1_000_000)
    checker = FrameChecker()
    checker.feed(maker.frame(), at_us=1_250_000)
    assert checker.lateness_us_max == 250_000
    mark = read_mark(maker.frame())
    assert mark is not None
    assert mark == (1, 1_000_000)


class Door:
    """A listening socket that answers a head with given bytes and keeps all that comes."""

    def __init__(self, answer: bytes) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        self.answer, self.got, self.ended = answer, b"", False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        peer, _ = self.listener.accept()
        with peer:
            answered = False
            try:
                while part := peer.recv(65_536):
                    self.got += part
                    if not answered and b"\r\n\r\n" in self.got:
                        answered = True
                        peer.sendall(self.answer)
            except ConnectionResetError:
                pass
            self.ended = True

    @property
    def body(self) -> bytes:
        """What came after the head."""
        return self.got.partition(b"\r\n\r\n")[2]


@pytest.fixture
def door() -> Iterator[Door]:
    """A door that welcomes."""
    door = Door(b"HTTP/1.1 100 Continue\r\n\r\n")
    yield door
    door.listener.close()


def test_put_with_expect_waits_for_the_welcome(door: Door) -> None:
    """The head is an Icecast PUT, and the status is told before a byte of the body."""
    with Source(door.address, "/live", headers=[("Ice-Name", "A talk")]) as source:
        assert source.connect() == 100
        assert door.body == b""
        push(source, b"x" * 1000)
    wait_until(lambda: door.ended)
    assert door.got.startswith(b"PUT /live HTTP/1.1\r\n")
    assert b"Expect: 100-continue\r\n" in door.got
    assert b"Ice-Name: A talk\r\n" in door.got
    assert door.body == b"x" * 1000


def test_source_method_is_no_http_1_1(door: Door) -> None:
    """SOURCE is written as old encoders write it."""
    with Source(door.address, method="SOURCE", expect=False) as source:
        assert source.connect() == 100
    assert door.got.startswith(b"SOURCE /live HTTP/1.0\r\n")
    assert b"Expect" not in door.got


def test_chunked_body_ends_with_its_last_chunk(door: Door) -> None:
    """Chunks are framed by their length, and the end is told."""
    with Source(door.address, chunked=True) as source:
        source.connect()
        source.send(b"abc")
        source.send(b"0123456789")
    wait_until(lambda: door.ended)
    assert door.body == b"3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n"


def test_refusal_gives_its_status() -> None:
    """401 and the like are returned, not raised."""
    door = Door(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
    with Source(door.address, password="wrong") as source:
        assert source.connect() == 401
    door.listener.close()


def test_live_source_keeps_real_time(door: Door) -> None:
    """After 0.6 s about 0.6 s of audio were sent, and every frame is whole."""
    begin = time.monotonic()
    with LiveSource(Source(door.address)) as live:
        wait_until(lambda: live.sent_frames >= 23)
        took_s = time.monotonic() - begin
    assert 0.5 <= took_s <= 1.5
    wait_until(lambda: door.ended)
    checker = checked(door.body)
    assert checker.clean
    assert checker.frames == live.sent_frames
    assert live.error is None


def test_reset_breaks_the_connection_off(door: Door) -> None:
    """The fault `reset` ends the source without the manners of a close."""
    live = LiveSource(Source(door.address)).start()
    wait_until(lambda: live.sent_frames > 0)
    live.stop(reset=True)
    wait_until(lambda: door.ended)


def test_paced_push_keeps_its_rate(door: Door) -> None:
    """A recording can be sent at a byte rate."""
    begin = time.monotonic()
    with Source(door.address) as source:
        source.connect()
        push(source, bytes(4_000), bytes_per_s=10_000)
    assert time.monotonic() - begin >= 0.35
