"""An unpaced writer against listeners: whose bytes were overtaken is ended, and hears no more.

The bytes of the very send that was overtaken may be on their way already; nothing may follow them.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import threading
import time

from relay._probe_hop import measure_push
from tools.engines import MP3, dial, get, running
from tools.sources import FrameMaker

import relay._core as core

LISTENERS = 10
RUN_S = 1.5
RUN_S_MAX = 20.0
TORN = 10  # a run that did not overtake so many sends has shown nothing
RING_BYTES = 1 << 18  # and so the most that one send moves


def first_damage(body: bytes, frame: bytes) -> int | None:
    """Return where the first frame begins that is not whole; None: all is well.

    All frames are this one, but for the number that measure_push writes over its first 4 bytes.
    """
    for at in range(0, len(body), len(frame)):
        part = body[at + 4 : at + len(frame)]
        if part != frame[4 : 4 + len(part)]:
            return at
    return None


class Reader:
    """A listener that comes back whenever it is ended; keeps what each connection brought."""

    def __init__(self, address: tuple[str, int], selector: selectors.BaseSelector) -> None:
        self.address, self.selector = address, selector
        self.replies: list[bytes] = []
        self.reply = bytearray()
        self.join()

    def join(self) -> None:
        """Connect and ask."""
        self.sock = dial(self.address)
        self.sock.sendall(get())
        self.sock.setblocking(False)
        self.selector.register(self.sock, selectors.EVENT_READ, self)

    def leave(self) -> None:
        """Hang up and keep the body."""
        self.selector.unregister(self.sock)
        self.sock.close()
        self.replies.append(bytes(self.reply))
        self.reply.clear()

    def read(self) -> None:
        """Take what is there."""
        part = b""
        with contextlib.suppress(ConnectionResetError):
            part = self.sock.recv(RING_BYTES)
        self.reply += part
        if not part:
            self.leave()
            self.join()


def write_without_pace(stream: core.Stream, frame: bytes, until: threading.Event) -> None:
    """Push runs of a frame as fast as memory allows: each goes round the ring several times.

    The ring is no multiple of the frame: what overwrites a frame is always out of step with it.
    """
    assert RING_BYTES % len(frame) > 50
    counts = itertools.cycle([700, 9000, 150, 20_000, 2000, 400, 60, 12_000])
    while not until.is_set():
        measure_push(core.pointer_of(stream), frame, next(counts))
        time.sleep(0)


def read_for_a_while(engine: core.Engine, address: tuple[str, int]) -> list[bytes]:
    """Let the readers read until enough was torn; returns the body of each connection they had."""
    with selectors.DefaultSelector() as selector:
        readers = [Reader(address, selector) for _ in range(LISTENERS)]
        begin = time.monotonic()
        while (ran_s := time.monotonic() - begin) < RUN_S_MAX:
            if ran_s > RUN_S and engine.snapshot()["ended_torn_total"] >= TORN:
                break
            for key, _ in selector.select(0.05):
                key.data.read()
        for reader in readers:
            reader.leave()
    return [reply.partition(b"\r\n\r\n")[2] for reader in readers for reply in reader.replies]


def test_no_listener_hears_anything_after_bytes_that_were_overtaken() -> None:
    """Whole frames up to an end; what was torn under a send is the last thing that one heard."""
    frame = FrameMaker(320).frame()
    config = {"pace_ms": 10, "burst_ms": 2000, "ring_s": 6, "ring_bytes_max": RING_BYTES}
    with running(config=config) as (engine, address):
        stream = engine.add_stream("/live")
        stream.claim()
        stream.set_info(MP3)
        stream.begin()
        measure_push(core.pointer_of(stream), frame, 100)
        over = threading.Event()
        writer = threading.Thread(target=write_without_pace, args=(stream, frame, over))
        writer.start()
        try:
            bodies = read_for_a_while(engine, address)
        finally:
            over.set()
            writer.join()
        told = engine.snapshot()
    damage = [(len(body), at) for body in bodies if (at := first_damage(body, frame)) is not None]
    heard = sum(map(len, bodies))
    assert told["ended_torn_total"] >= TORN, told
    assert heard > 1_000_000
    assert len(damage) <= told["ended_torn_total"]
    went_on = [(size, at) for size, at in damage if size - at > RING_BYTES]
    assert not went_on, f"{len(went_on)} of {len(bodies)} went on after a torn frame: {went_on[:5]}"


def test_the_checker_itself_sees_each_damage() -> None:
    """One byte changed, lost or spliced is found; its number is none, nor is an unfinished one."""
    frame = FrameMaker(320).frame()
    size = len(frame)
    whole = frame + b"1234" + frame[4:] + frame
    assert first_damage(whole, frame) is None
    assert first_damage(whole[:-7], frame) is None
    assert first_damage(whole[: size + 9] + b"?" + whole[size + 10 :], frame) == size
    assert first_damage(whole[: size + 9] + whole[size + 10 :], frame) == size
    assert first_damage(frame + frame[:500] + frame + frame, frame) == size
