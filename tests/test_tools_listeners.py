"""The listeners are tested against a plain socket server that says exactly what it is told."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tools.listeners import Crowd, IcyStripper
from tools.nodes import wait_until
from tools.sources import FrameChecker, FrameMaker

OK = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n"


class Stage:
    """Serves each connection with one function on a thread."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address: tuple[str, int] = self.server.getsockname()
        self.heads: list[bytes] = []
        self.ended = threading.Event()

    def play(self, act: Callable[[socket.socket], None]) -> None:
        """Serve connections with this from now on."""

        def one(peer: socket.socket) -> None:
            with peer:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += peer.recv(4096)
                self.heads.append(head)
                with contextlib.suppress(OSError):
                    act(peer)

        def accept() -> None:
            while True:
                try:
                    peer, _ = self.server.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(peer,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A server for one test."""
    stage = Stage()
    yield stage
    stage.ended.set()
    stage.server.shutdown(socket.SHUT_RDWR)
    stage.server.close()


def with_icy(audio: bytes, metaint: int, blocks: dict[int, bytes]) -> bytes:
    """Interleave ICY blocks: the n-th one where `blocks` has it, empty ones elsewhere."""
    out = bytearray()
    for number, at in enumerate(range(0, len(audio), metaint)):
        out += audio[at : at + metaint]
        if at + metaint <= len(audio):
            block = blocks.get(number, b"")
            padded = block + b"\0" * (-len(block) % 16)
            out += bytes([len(padded) // 16]) + padded
    return bytes(out)


def test_listener_hears_every_byte_and_its_end(stage: Stage, crowd: Crowd) -> None:
    """Status, headers, body, the end and its time are recorded."""
    audio = FrameMaker().seconds(3.0)
    stage.play(lambda peer: peer.sendall(OK + audio))
    listener = crowd.join(stage.address, "/live", checker=FrameChecker())
    wait_until(lambda: not listener.alive)
    assert (listener.status, listener.end) == (200, "eof")
    assert listener.headers["content-type"] == "audio/mpeg"
    assert bytes(listener.body) == audio
    assert listener.checker is not None
    assert listener.checker.clean
    assert listener.audio_bytes_within(5_000) == len(audio)
    assert stage.heads[0].startswith(b"GET /live HTTP/1.1\r\n")
    assert b"Icy-MetaData" not in stage.heads[0]


def test_first_audio_is_the_first_byte_of_the_body(stage: Stage, crowd: Crowd) -> None:
    """The head alone is no audio; the gap after the first part is measured."""

    def act(peer: socket.socket) -> None:
        peer.sendall(OK)
        time.sleep(0.2)
        peer.sendall(b"a")
        time.sleep(0.3)
        peer.sendall(b"b")
        stage.ended.wait(5)

    stage.play(act)
    listener = crowd.join(stage.address)
    wait_until(lambda: listener.audio_bytes == 2)
    assert listener.first_audio_ms is not None
    assert 200 <= listener.first_audio_ms < 450
    assert 290 <= listener.gap_ms_max() < 500
    assert listener.audio_bytes_within(listener.first_audio_ms + 1) == 1


@pytest.mark.parametrize("metaint", [1, 7, 1000, 16_000])
def test_icy_blocks_are_stripped_exactly_however_split(metaint: int) -> None:
    """Audio and titles come out the same for any split, with lengths up to 255 x 16."""
    pick = random.Random(metaint)
    audio = pick.randbytes(40_000 if metaint > 100 else 2_000)
    blocks = {0: b"StreamTitle='one';", 2: b"x" * 4080, 5: b"StreamTitle='two';"}
    data = with_icy(audio, metaint, blocks)
    expected = [
        ((number + 1) * metaint, block)
        for number, block in blocks.items()
        if (number + 1) * metaint <= len(audio)
    ]
    for _ in range(5):
        stripper, got, at = IcyStripper(metaint), b"", 0
        while at < len(data):
            size = pick.choice([1, 2, 17, 1000, 9000])
            got += stripper.feed(data[at : at + size])
            at += size
        assert got == audio
        assert [tuple(title) for title in stripper.titles] == expected


def test_listener_that_asks_for_titles_gets_clean_audio(stage: Stage, crowd: Crowd) -> None:
    """The request carries Icy-MetaData, the answer's icy-metaint sets the stripper."""
    audio = FrameMaker().seconds(2.0)
    head = OK[:-2] + b"icy-metaint: 1000\r\n\r\n"
    stage.play(lambda peer: peer.sendall(head + with_icy(audio, 1000, {1: b"StreamTitle='t';"})))
    listener = crowd.join(stage.address, icy=True, checker=FrameChecker())
    wait_until(lambda: not listener.alive)
    assert b"Icy-MetaData: 1\r\n" in stage.heads[0]
    assert bytes(listener.body) == audio
    assert listener.titles == [(2000, b"StreamTitle='t';")]
    assert listener.checker is not None
    assert listener.checker.clean


def test_stalled_listener_reads_nothing_until_it_resumes(stage: Stage, crowd: Crowd) -> None:
    """The fault `stall` holds the sender back; `resume` hears all of it."""
    data = bytes(3_000_000)

    def act(peer: socket.socket) -> None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        peer.sendall(OK + b"a")
        wait_until(lambda: crowd.all and not crowd.all[0].reading)
        peer.sendall(data)

    stage.play(act)
    listener = crowd.join(stage.address, receive_bytes=65_536)
    wait_until(lambda: listener.audio_bytes == 1)
    listener.stall()
    time.sleep(0.3)
    assert listener.audio_bytes <= 1 + 262_144
    assert listener.alive
    listener.resume()
    wait_until(lambda: listener.audio_bytes == 1 + len(data))


def test_dripping_listener_reads_no_faster_than_told(stage: Stage, crowd: Crowd) -> None:
    """The fault `drip` bounds the rate."""
    stage.play(lambda peer: peer.sendall(OK + bytes(500_000)))
    listener = crowd.join(stage.address, receive_bytes=4096)
    listener.drip(20_000)
    time.sleep(0.5)
    first, at_s = listener.audio_bytes, time.monotonic()
    time.sleep(0.5)
    rate = (listener.audio_bytes - first) / (time.monotonic() - at_s)
    assert 5_000 < rate < 30_000


def test_refused_connection_is_an_end_with_its_name(crowd: Crowd) -> None:
    """A listener that nobody lets in says why."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    listener = crowd.join(address)
    wait_until(lambda: not listener.alive)
    assert (listener.end, listener.status) == ("ECONNREFUSED", 0)


def test_reset_connection_is_an_end_with_its_name(stage: Stage, crowd: Crowd) -> None:
    """A broken connection differs from a finished one."""

    def act(peer: socket.socket) -> None:
        peer.sendall(OK + b"a")
        wait_until(lambda: crowd.all and crowd.all[0].audio_bytes == 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    stage.play(act)
    listener = crowd.join(stage.address)
    wait_until(lambda: not listener.alive)
    assert listener.end == "ECONNRESET"


def test_two_hundred_listeners_are_checked_at_once(stage: Stage, crowd: Crowd) -> None:
    """Each of many has a checker of its own; leaving one leaves the others."""
    audio = FrameMaker().seconds(2.0)

    def act(peer: socket.socket) -> None:
        peer.sendall(OK + audio)
        stage.ended.wait(10)

    stage.play(act)
    listeners = crowd.join_many(200, stage.address)
    crowd.wait_audio(len(audio), timeout_s=15)
    assert all(who.checker is not None and who.checker.clean for who in listeners)
    assert len(crowd.alive) == 200
    crowd.leave(listeners[0])
    assert (len(crowd.alive), listeners[0].end) == (199, "left")
