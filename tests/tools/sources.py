"""Sources for the tests: MP3 frames that can be checked one by one, and encoders that push them.

Rules of this room
  1. Each frame is valid MPEG-1 layer 3 (it decodes as silence) and carries its sequence, the
     monotonic time of its making and a CRC over all of it: no defect can pass unseen.
  2. A source keeps real time against one start instant, so that its own delays do not add up.
  3. A frame maker outlives its connections: after an outage the sequences go on, and what was
     made meanwhile is missing by name.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from tools.nodes import PASSWORD

# ISO/IEC 11172-3 §2.4.2.3: bit rates of MPEG-1 layer 3 by index, and sampling frequencies.
BIT_RATES_KBIT = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
SAMPLE_RATES_HZ = (44_100, 48_000, 32_000)
SAMPLES = 1152  # in each frame
SIDE_INFO_BYTES = 17  # mono, without CRC
BODY = 4 + SIDE_INFO_BYTES
MARK = struct.Struct(">4sIQI")  # tag, sequence, made at (µs, CLOCK_MONOTONIC), CRC-32
TAG = b"rlyT"
CRC_AT = BODY + MARK.size - 4
SPAN_MAX = 1_000_000  # a jump of sequences beyond this is damage, not loss


class Mark(NamedTuple):
    """What one frame says about itself."""

    sequence: int
    made_us: int


class FrameMaker:
    """Makes the frames of one programme, each with the next sequence."""

    def __init__(
        self,
        bit_rate_kbit: int = 64,
        sample_rate_hz: int = 44_100,
        *,
        now_us: Callable[[], int] | None = None,
    ) -> None:
        self.index = BIT_RATES_KBIT.index(bit_rate_kbit)
        self.rate = SAMPLE_RATES_HZ.index(sample_rate_hz)
        self.bit_rate = bit_rate_kbit * 1000
        self.sample_rate_hz = sample_rate_hz
        self.sequence = 0  # of the next frame
        self._now_us = now_us or (lambda: time.monotonic_ns() // 1000)
        self._rest = 0  # bits not yet paid by padding, as encoders do it

    @property
    def frame_s(self) -> float:
        """Media time of one frame, in seconds."""
        return SAMPLES / self.sample_rate_hz

    def frame(self) -> bytes:
        """Return the next frame, stamped now."""
        size, rest = divmod(SAMPLES // 8 * self.bit_rate, self.sample_rate_hz)
        self._rest += rest
        padding = self._rest >= self.sample_rate_hz
        if padding:
            self._rest -= self.sample_rate_hz
        head = bytes((0xFF, 0xFB, self.index << 4 | self.rate << 2 | padding << 1, 0xC0))
        mark = struct.pack(">4sIQ", TAG, self.sequence & 0xFFFFFFFF, self._now_us())
        fill = bytes([self.sequence & 0x7F]) * (size + padding - BODY - MARK.size)
        start = head + bytes(SIDE_INFO_BYTES) + mark
        crc = zlib.crc32(fill, zlib.crc32(start))
        self.sequence += 1
        return start + crc.to_bytes(4, "big") + fill

    def frames(self, count: int) -> list[bytes]:
        """Return the next `count` frames."""
        return [self.frame() for _ in range(count)]

    def seconds(self, media_s: float) -> bytes:
        """Return the next `media_s` seconds of the programme as bytes."""
        return b"".join(self.frames(round(media_s / self.frame_s)))


def frame_size(data: bytes | bytearray | memoryview, at: int = 0) -> int:
    """Return the size of the frame that begins there; 0 when none of ours does. Needs 4 bytes."""
    if data[at] != 0xFF or data[at + 1] != 0xFB:
        return 0
    index, rate, padding = data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
    if not 0 < index < 15 or rate == 3:
        return 0
    return SAMPLES // 8 * BIT_RATES_KBIT[index] * 1000 // SAMPLE_RATES_HZ[rate] + padding


def read_mark(frame: bytes) -> Mark | None:
    """Return what a frame says about itself; None when a single bit of it is wrong."""
    if len(frame) < BODY + MARK.size:
        return None
    tag, sequence, made_us, crc = MARK.unpack_from(frame, BODY)
    whole = zlib.crc32(frame[CRC_AT + 4 :], zlib.crc32(frame[:CRC_AT]))
    return Mark(sequence, made_us) if tag == TAG and crc == whole else None


@dataclass
class FrameChecker:
    """Reads a listener's bytes and says what is wrong with them.

    `missing` and `repeated` count frames, `late` those that came after a later one (they leave
    `missing`), `damaged_bytes` what belongs to no whole frame, `spliced` the places where it lies.
    A new listener must begin at a frame, so damage before the first frame counts as well.
    """

    frames: int = 0
    first: int | None = None
    last: int | None = None
    repeated: int = 0
    late: int = 0
    spliced: int = 0
    damaged_bytes: int = 0
    lateness_us_max: int = 0
    lateness_us_sum: int = 0
    holes: set[int] = field(default_factory=set)
    _rest: bytearray = field(default_factory=bytearray, repr=False)
    _in_damage: bool = field(default=False, repr=False)

    @property
    def missing(self) -> int:
        """Frames between the first and the last that never came."""
        return len(self.holes)

    @property
    def clean(self) -> bool:
        """Whether something came and nothing was wrong with it; unfinished is not wrong."""
        wrong = self.missing or self.repeated or self.late or self.damaged_bytes
        return self.frames > 0 and not wrong

    @property
    def unfinished_bytes(self) -> int:
        """Bytes of a frame whose end has not come yet."""
        return len(self._rest)

    def feed(self, data: bytes, at_us: int | None = None) -> None:
        """Check more bytes, which arrived at `at_us` (now, when not given)."""
        arrived_us = time.monotonic_ns() // 1000 if at_us is None else at_us
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= 4:
            size = frame_size(rest, at)
            if size and len(rest) - at < size:
                break
            mark = read_mark(bytes(rest[at : at + size])) if size else None
            if mark is None:
                at += self._damage()
                continue
            self._in_damage = False
            self._frame(mark, arrived_us)
            at += size
        del rest[:at]

    def _damage(self) -> int:
        """Count one byte that begins no frame; returns it as the step to take."""
        self.spliced += not self._in_damage
        self._in_damage = True
        self.damaged_bytes += 1
        return 1

    def _frame(self, mark: Mark, arrived_us: int) -> None:
        """Place one good frame among those before it."""
        self.frames += 1
        sequence = mark.sequence
        if self.first is None or self.last is None:
            self.first = self.last = sequence
        elif sequence > self.last:
            self.holes.update(range(self.last + 1, min(sequence, self.last + SPAN_MAX)))
            self.last = sequence
        elif sequence in self.holes:
            self.holes.discard(sequence)
            self.late += 1
        else:
            self.repeated += 1
        lateness_us = arrived_us - mark.made_us
        self.lateness_us_max = max(self.lateness_us_max, lateness_us)
        self.lateness_us_sum += lateness_us


class Source:
    """One encoder's connection: an Icecast `PUT` or `SOURCE`, as its clients write it."""

    def __init__(
        self,
        address: tuple[str, int],
        mount: str = "/live",
        *,
        method: str = "PUT",
        password: str = PASSWORD,
        user: str = "source",
        content_type: str = "audio/mpeg",
        expect: bool = True,
        chunked: bool = False,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Prepare; `connect()` says hello.

        Args:
            address: host and port of the node's HTTP side.
            mount: the public path.
            method: "PUT" or "SOURCE".
            password: for Basic auth, with `user`.
            user: Icecast's sources are called "source".
            content_type: what the bytes are.
            expect: send `Expect: 100-continue` and wait for its answer before the body.
            chunked: send the body in chunks; without, it ends with the connection.
            headers: more of them, such as ("Ice-Name", "A talk").
        """
        self.address, self.mount, self.chunked, self.expect = address, mount, chunked, expect
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        version = "1.0" if method == "SOURCE" else "1.1"
        lines = [
            f"{method} {mount} HTTP/{version}",
            f"Host: {address[0]}:{address[1]}",
            f"Authorization: Basic {token}",
            f"Content-Type: {content_type}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        lines += ["Expect: 100-continue"] * expect + ["Transfer-Encoding: chunked"] * chunked
        self.head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        self.sent_bytes = 0  # of the body
        self.answer = b""  # all that the node said
        self.socket: socket.socket | None = None

    def connect(self, timeout_s: float = 5.0) -> int:
        """Send the head; returns the status (100 or 200 means welcome), 0 when none came in time.

        Without `expect` a node may answer only later, so the wait is short.
        """
        self.socket = socket.create_connection(self.address, timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(self.head)
        return self.status(timeout_s if self.expect else min(timeout_s, 1.0))

    def status(self, timeout_s: float = 5.0) -> int:
        """Wait for the (next) answer's head and return its status; 0 when none came in time."""
        assert self.socket is not None, "connect() first"
        self.socket.settimeout(timeout_s)
        told = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while b"\r\n\r\n" not in told:
                part = self.socket.recv(4096)
                if not part:
                    break
                told += part
        self.answer += told
        self.socket.settimeout(None)
        words = told.split(b" ", 2)
        return int(words[1]) if len(words) > 1 and words[1][:3].isdigit() else 0

    def send(self, data: bytes) -> None:
        """Send bytes of the body; blocks when the node does not read. ConnectionError when gone."""
        assert self.socket is not None, "connect() first"
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self.chunked and data else data
        self.socket.sendall(framed)
        self.sent_bytes += len(data)

    def close(self) -> None:
        """End the body as an encoder does that finished."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                if self.chunked:
                    self.socket.sendall(b"0\r\n\r\n")
                self.socket.shutdown(socket.SHUT_WR)
            self.socket.close()
            self.socket = None

    def reset(self) -> None:
        """Fault `reset`: the connection breaks off (RST)."""
        if self.socket is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.close()
            self.socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.close()


def push(source: Source, data: bytes, bytes_per_s: float | None = None) -> None:
    """Send a whole recording over a connected source: at once, or at a byte rate."""
    if bytes_per_s is None:
        source.send(data)
        return
    begin, piece = time.monotonic(), max(1, int(bytes_per_s * 0.02))
    for at in range(0, len(data), piece):
        due = begin + at / bytes_per_s
        time.sleep(max(0.0, due - time.monotonic()))
        source.send(data[at : at + piece])


class LiveSource:
    """An encoder in real time, on a thread of its own."""

    def __init__(
        self,
        source: Source,
        maker: FrameMaker | None = None,
        *,
        speed: float = 1.0,
        turn_s: float = 0.02,
    ) -> None:
        """Prepare; `start()` connects and sends.

        Args:
            source: the connection to use.
            maker: whose frames to send; the same one may serve several sources, one after another.
            speed: 1.0 is real time; more is an encoder that runs ahead.
            turn_s: frames that came due are sent together, so often.
        """
        self.source, self.maker = source, maker or FrameMaker()
        self.speed, self.turn_s = speed, turn_s
        self.sent_frames = 0
        self.error: OSError | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Self:
        """Connect, expect a welcome, and begin to send."""
        status = self.source.connect()
        assert status in {100, 200} or (status == 0 and not self.source.expect), (
            f"the node answered {status}: {self.source.answer!r}"
        )
        self._thread.start()
        return self

    def _run(self) -> None:
        begin, made = time.monotonic(), 0
        try:
            while not self._end.wait(self.turn_s):
                due = int((time.monotonic() - begin) * self.speed / self.maker.frame_s) + 1
                if due > made:
                    self.source.send(b"".join(self.maker.frames(due - made)))
                    self.sent_frames += due - made
                    made = due
        except OSError as error:
            self.error = error

    def stop(self, *, reset: bool = False) -> None:
        """End the source: as one that finished, or with the fault `reset`."""
        self._end.set()
        if reset:
            self.source.reset()
        if self._thread.ident is not None:
            self._thread.join(0.5)
            if self._thread.is_alive() and self.source.socket is not None:
                with contextlib.suppress(OSError):  # it is held back in send()
                    self.source.socket.shutdown(socket.SHUT_RDWR)
                self._thread.join(5.0)
        self.source.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.stop()
