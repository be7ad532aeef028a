"""The engine's reading from sources' sockets: real sockets, real frames, a real thread."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tools.nodes import wait_until
from tools.sources import FrameMaker

import relay._core as core
from relay.errors import SourceError

AHEAD_US = 60_000_000
WHAT = "the engine to have read"


class Studio:
    """An engine with one stream, its source, and the encoder's end of a socket."""

    def __init__(self, **attach: Any) -> None:
        self.engine = core.Engine(streams_max=8)
        self.engine.start()
        self.stream = self.engine.add_stream("/live")
        self.stream.claim()
        self.stream.begin()
        self.source = core.Source(self.stream, "mpeg")
        theirs, self.encoder = socket.socketpair()
        theirs.setblocking(False)
        with theirs:
            kind = attach.pop("kind", "raw")
            size_bytes = attach.pop("size_bytes", 0)
            ahead_us = attach.pop("ahead_us", AHEAD_US)
            self.source.attach(theirs.fileno(), kind, size_bytes, ahead_us, **attach)

    def heard(self) -> bytes:
        """All audio so far."""
        return bytes(memoryview(self.stream.view()))

    def ended(self) -> tuple[str, str | None, int, int]:
        """Wait for the end of the reading; what it has come to."""
        assert select.select([self.engine.intake_fd], [], [], 5)[0]
        wait_until(lambda: self.source.intake()[0] == "ended", 5, what=WHAT)
        return self.source.intake()

    def close(self) -> None:
        """Close everything."""
        self.encoder.close()
        self.source.detach()
        self.engine.close()


@contextlib.contextmanager
def studio(**attach: Any) -> Iterator[Studio]:
    """A studio that is closed again."""
    made = Studio(**attach)
    try:
        yield made
    finally:
        made.close()


def frames(seconds: float = 2.0) -> bytes:
    """Valid MP3."""
    return FrameMaker().seconds(seconds)


def test_audio_is_read_without_python() -> None:
    """Every frame arrives, while a pure-Python loop holds the interpreter."""
    data = frames()
    with studio() as node:
        stop = threading.Event()

        def spin() -> None:
            while not stop.is_set():
                sum(range(1000))

        spinner = threading.Thread(target=spin)
        spinner.start()
        try:
            node.encoder.sendall(data)
            wait_until(lambda: len(node.heard()) == len(data), 5, what=WHAT)
        finally:
            stop.set()
            spinner.join()
        assert node.heard() == data
        assert node.source.intake()[0] == "reading"


def test_bytes_one_at_a_time_are_the_same_audio() -> None:
    """A dripping encoder is slow, not broken."""
    data = frames(0.2)
    with studio() as node:
        for byte in data:
            node.encoder.send(bytes([byte]))
        wait_until(lambda: len(node.heard()) == len(data), 5, what=WHAT)
        assert node.heard() == data


def test_what_was_read_before_comes_first() -> None:
    """The rest of the segment that carried the head is audio too."""
    data = frames()
    with studio(data=data[:1000]) as node:
        node.encoder.sendall(data[1000:])
        wait_until(lambda: len(node.heard()) == len(data), 5, what=WHAT)
        assert node.heard() == data


def test_chunks_are_taken_apart_and_their_last_one_is_the_end() -> None:
    """Liquidsoap's option, in chunks that split frames."""
    data = frames()
    with studio(kind="chunked") as node:
        for at in range(0, len(data), 777):
            part = data[at : at + 777]
            node.encoder.sendall(b"%x;a=b\r\n%s\r\n" % (len(part), part))
        node.encoder.sendall(b"0\r\n\r\nnot audio any more")
        assert node.ended()[:2] == ("ended", "whole")
        assert node.heard() == data


def test_a_body_of_known_length_ends_with_it() -> None:
    """Also when all of it came with the head."""
    data = frames(1.0)
    with studio(kind="sized", size_bytes=len(data), data=data) as node:
        assert node.ended()[1] == "whole"
        assert node.heard() == data


def test_an_encoder_that_closes_is_told_after_its_last_frame() -> None:
    """Nothing that it sent before is lost."""
    data = frames()
    with studio() as node:
        node.encoder.sendall(data)
        node.encoder.shutdown(socket.SHUT_WR)
        assert node.ended()[:3] == ("ended", "closed", 0)
        assert node.heard() == data


def test_a_reset_is_told_with_its_errno() -> None:
    """The encoder's machine broke the connection."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        encoder = socket.create_connection(door.getsockname())
        theirs, _ = door.accept()
    with studio() as node, theirs:
        node.source.detach()
        theirs.setblocking(False)
        node.source.attach(theirs.fileno(), "raw", 0, AHEAD_US)
        encoder.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        encoder.close()
        assert node.ended()[:3] == ("ended", "lost", errno.ECONNRESET)


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("raw", b"\x00" * 140_000, "128 KiB without a frame"),
        ("chunked", b"zz\r\n", "a chunk's size is no hexadecimal number"),
    ],
)
def test_garbage_is_told_with_its_reason(kind: str, data: bytes, reason: str) -> None:
    """From the scanner, or from the framing."""
    with studio(kind=kind) as node:
        sender = threading.Thread(target=lambda: node.encoder.sendall(data))
        sender.start()
        assert reason in str(node.ended()[1])
        sender.join(5)


def test_first_frame_is_told_once() -> None:
    """The descriptor wakes the door for the line in the log."""
    with studio() as node:
        assert not select.select([node.engine.intake_fd], [], [], 0)[0]
        node.encoder.sendall(frames(0.5))
        assert select.select([node.engine.intake_fd], [], [], 5)[0]
        assert node.source.intake()[3] > 0
        node.engine.clear_intake()
        node.encoder.sendall(frames(0.5))
        assert not select.select([node.engine.intake_fd], [], [], 0.2)[0]


def test_a_source_that_runs_ahead_is_held_back_until_real_time_has_caught_up() -> None:
    """TCP tells the encoder; nothing is lost, and its reset while held does not spin the thread."""
    data = frames(10.0)
    with studio(ahead_us=1_000_000) as node:
        node.encoder.setblocking(False)
        sent, began = 0, time.monotonic()
        with contextlib.suppress(BlockingIOError):
            while sent < len(data):
                sent += node.encoder.send(data[sent : sent + 4096])
        wait_until(lambda: node.source.intake()[0] == "held", 5, what=WHAT)
        media_s = node.source.intake()[3] / 1e6
        assert media_s <= (time.monotonic() - began) + 1.0 + 2.2  # one read of 8 KiB more
        wait_until(lambda: node.source.intake()[3] / 1e6 > media_s, 5, what=WHAT)
        assert node.heard()[:1000] == data[:1000]


def test_a_held_source_whose_encoder_has_gone_costs_nothing() -> None:
    """No turn of the thread is spent on it until its time comes."""
    with studio(ahead_us=0, data=frames(4.0)) as node:
        node.encoder.sendall(frames(1.0))
        wait_until(lambda: node.source.intake()[0] == "held", 5, what=WHAT)
        node.encoder.close()
        before = time.thread_time(), time.process_time()
        time.sleep(0.3)
        mine = time.thread_time() - before[0]
        assert time.process_time() - before[1] - mine < 0.15


def test_a_detached_source_writes_no_more() -> None:
    """Its duplicate is closed, and the caller may feed again."""
    data = frames(1.0)
    with studio() as node:
        node.encoder.sendall(data)
        wait_until(lambda: len(node.heard()) == len(data), 5, what=WHAT)
        with pytest.raises(SourceError, match="detach"):
            node.source.feed(b"x")
        node.source.detach()
        assert node.source.intake()[0] == "none"
        with pytest.raises(BrokenPipeError):
            node.encoder.send(b"y" * 100)
        node.source.feed(data)
        assert node.heard() == data + data


def test_titles_and_audio_come_from_two_threads() -> None:
    """A title takes a sequence between frames and breaks none of them."""
    data = frames(8.0)
    with studio() as node:
        sender = threading.Thread(target=lambda: node.encoder.sendall(data))
        sender.start()
        for number in range(200):
            node.source.title(f"title {number}")
        sender.join()
        wait_until(lambda: len(node.heard()) == len(data), 5, what=WHAT)
        assert node.heard() == data
        assert node.stream.snapshot()["title"] == "title 199"


def test_more_sources_than_fit_are_refused() -> None:
    """streams_max is the bound of sources too; a place that was given back is used again."""
    engine = core.Engine(streams_max=2)
    pairs = [socket.socketpair() for _ in range(3)]
    sources = []
    try:
        for number in range(2):
            stream = engine.add_stream(f"/{number}")
            stream.claim()
            stream.begin()
            sources.append(core.Source(stream, "mpeg"))
            sources[-1].attach(pairs[number][0].fileno(), "raw", 0, AHEAD_US)
        third = core.Source(engine.find("/0"), "mpeg")
        with pytest.raises(SourceError, match="no room"):
            third.attach(pairs[2][0].fileno(), "raw", 0, AHEAD_US)
        sources[0].detach()
        third.attach(pairs[2][0].fileno(), "raw", 0, AHEAD_US)
        third.detach()
    finally:
        for source in sources:
            source.detach()
        engine.close()
        for pair in pairs:
            for end in pair:
                end.close()


def test_no_descriptor_is_left() -> None:
    """Attach, detach, close: a hundred times."""
    with studio() as node:
        node.source.detach()
        before = len(os.listdir("/proc/self/fd"))
        theirs, ours = socket.socketpair()
        for _ in range(100):
            node.source.attach(theirs.fileno(), "raw", 0, AHEAD_US)
            node.source.detach()
        theirs.close()
        ours.close()
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_source_that_is_collected_while_another_is_asked_stops_nobody() -> None:
    """Asking takes the lock that letting go takes: nothing of Python may run under it."""
    engine = core.Engine(streams_max=600)
    engine.start()
    asked = engine.add_stream("/asked")
    asked.claim()
    asked.begin()
    source = core.Source(asked, "mpeg")
    theirs, ours = socket.socketpair()
    for number in range(500):
        stream = engine.add_stream(f"/{number}")
        stream.claim()
        stream.begin()
        cycle: list[Any] = [core.Source(stream, "mpeg")]
        cycle[0].attach(theirs.fileno(), "raw", 0, AHEAD_US)
        cycle.append(cycle)
        del cycle
        kept = [source.intake() for _ in range(20)]
        assert kept[0][0] == "none"
    engine.close()
    theirs.close()
    ours.close()


def test_asking_and_letting_go_may_meet() -> None:
    """One thread looks while another detaches and attaches: told, or told "none"."""
    with studio() as node:
        theirs, ours = socket.socketpair()
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                assert node.source.intake()[0] in ("none", "reading", "ended")

        lookers = [threading.Thread(target=look) for _ in range(2)]
        for looker in lookers:
            looker.start()
        for _ in range(2000):
            node.source.detach()
            node.source.attach(theirs.fileno(), "raw", 0, AHEAD_US)
        stop.set()
        for looker in lookers:
            looker.join()
        theirs.close()
        ours.close()


def test_a_socket_before_the_first_epoch_or_a_broken_one_is_refused() -> None:
    """As feed() refuses; with what the system says."""
    engine = core.Engine(streams_max=2)
    stream = engine.add_stream("/live")
    stream.claim()
    source = core.Source(stream, "mpeg")
    with pytest.raises(SourceError, match="begin"):
        source.attach(0, "raw", 0, AHEAD_US)
    stream.begin()
    with pytest.raises(SourceError, match="Bad file descriptor"):
        source.attach(9999, "raw", 0, AHEAD_US)
    assert source.intake()[0] == "none"
    engine.close()
