"""A known signal, the command lines of real encoders, and what the bytes of a listener are worth.

Rules of this room
  1. The signal says where it is: a tone that rises by RISE_HZ a second, and a mark each second.
     Decoded audio can be asked which seconds it holds, and whether they follow one another.
  2. Bytes are compared with what the encoder wrote, never with what the product made of them. The
     Ogg reader here is our own and knows only page heads.
  3. Decoding goes through a pipe, as a player hears it: FFmpeg would look for the length of a
     chained Ogg file at its end, and complain about that, not about the audio.
"""

from __future__ import annotations

import struct
import subprocess
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.nodes import PASSWORD

RATE_HZ = 48_000
BASE_HZ, RISE_HZ = 200.0, 40.0  # of the tone at 0 s, and per second
MARK_HZ, MARK_S = 6_000.0, 0.02
PLACE_BYTES = 192  # enough of a listener's first bytes to be found only once


# --- the signal -----------------------------------------------------------------------------------


def signal(media_s: float) -> np.ndarray:
    """The signal from its beginning, int16, mono, at RATE_HZ."""
    at_s = np.arange(round(media_s * RATE_HZ)) / RATE_HZ
    tone = 0.3 * np.sin(2 * np.pi * (BASE_HZ * at_s + RISE_HZ / 2 * at_s**2))
    mark = 0.5 * np.sin(2 * np.pi * MARK_HZ * at_s) * (at_s % 1.0 < MARK_S)
    return np.round((tone + mark) * 32_767).astype(np.int16)


def write_signal(path: Path, media_s: float) -> Path:
    """Write the signal as a stereo WAV file; returns the path."""
    mono = signal(media_s)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(np.column_stack([mono, mono]).tobytes())
    return path


def find_marks(audio: np.ndarray) -> np.ndarray:
    """Return where marks begin in decoded audio (int16, mono), in seconds."""
    window = round(MARK_S * RATE_HZ)
    turn = np.exp(-2j * np.pi * MARK_HZ / RATE_HZ * np.arange(len(audio)))
    total = np.concatenate([[0], np.cumsum(audio * turn)])
    level = np.abs(total[window:] - total[:-window])
    loud = np.flatnonzero(level > level.max() / 2)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > RATE_HZ // 4) + 1)
    return np.array([(group[0] + group[-1]) / 2 for group in groups if len(group)]) / RATE_HZ


def second_at(audio: np.ndarray, mark_s: float) -> float:
    """Return which second of the signal begins with this mark, told by the tone behind it."""
    begin, size = round((mark_s + 0.25) * RATE_HZ), RATE_HZ // 2
    part = audio[begin : begin + size] * np.hanning(size)
    bins = np.abs(np.fft.rfft(part, 4 * size))
    pitch_hz = float(np.argmax(bins)) * RATE_HZ / (4 * size)
    return (pitch_hz - BASE_HZ) / RISE_HZ - 0.5


def check_signal(audio: np.ndarray, seconds_min: int) -> list[int]:
    """Expect whole seconds of the signal, one after another; returns their numbers.

    AssertionError when fewer than `seconds_min` came, when marks are not a second apart (10 ms),
    or when the tone says that something is missing or repeated.
    """
    marks = find_marks(audio)
    whole = marks[marks + 0.8 < len(audio) / RATE_HZ]
    assert len(whole) >= seconds_min, f"{len(whole)} whole seconds of {seconds_min}"
    apart = np.diff(whole)
    assert np.all(np.abs(apart - 1.0) < 0.01), f"marks are {apart.min()} … {apart.max()} s apart"
    numbers = [second_at(audio, mark) for mark in whole]
    rounded = [round(number) for number in numbers]
    assert rounded == list(range(rounded[0], rounded[0] + len(rounded))), f"seconds {rounded}"
    return rounded


# --- encoders -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coding:
    """One way to encode, and how it is sent."""

    mount: str
    content_type: str
    codec: tuple[str, ...]
    muxer: str

    @property
    def is_ogg(self) -> bool:
        """Whether it comes in pages."""
        return self.muxer == "ogg"


CODINGS = {
    "mp3": Coding("/talk.mp3", "audio/mpeg", ("-c:a", "libmp3lame", "-b:a", "128k"), "mp3"),
    "aac": Coding("/talk.aac", "audio/aac", ("-c:a", "aac", "-b:a", "128k"), "adts"),
    "opus": Coding("/talk.opus", "audio/ogg", ("-c:a", "libopus", "-b:a", "96k"), "ogg"),
}

# Ogg's other codecs: heard like the three above, without a browser.
MORE_CODINGS = {
    "vorbis": Coding("/talk.vorbis", "application/ogg", ("-c:a", "libvorbis", "-q:a", "4"), "ogg"),
    "flac": Coding("/talk.flac", "audio/ogg", ("-c:a", "flac"), "ogg"),
}


def encoder(
    ffmpeg: str,
    source: Path,
    coding: Coding,
    address: tuple[str, int],
    *options: str,
    password: str = PASSWORD,
    mount: str = "",
    loop: bool = False,
) -> list[str]:
    """The command line of an ffmpeg that pushes a file in real time, as one would type it."""
    host, port = address
    return [
        *(ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "warning", "-re"),
        *(["-stream_loop", "-1"] if loop else []),
        *("-i", str(source), *coding.codec, "-content_type", coding.content_type, *options),
        *("-f", coding.muxer, f"icecast://source:{password}@{host}:{port}{mount or coding.mount}"),
    ]


# --- what came ------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """What a decoder made of a listener's bytes."""

    audio: np.ndarray  # int16, mono, at RATE_HZ
    errors: str

    @property
    def media_s(self) -> float:
        """How long it sounds."""
        return len(self.audio) / RATE_HZ


def decode(ffmpeg: str, data: bytes, timeout_s: float = 60.0) -> Decoded:
    """Decode a listener's bytes with real ffmpeg, which stops at the first error."""
    done = subprocess.run(
        [
            *(ffmpeg, "-hide_banner", "-v", "error", "-xerror", "-i", "pipe:0"),
            *("-ac", "1", "-ar", str(RATE_HZ), "-f", "s16le", "pipe:1"),
        ],
        input=data,
        capture_output=True,
        timeout=timeout_s,
    )
    errors = done.stderr.decode(errors="replace").strip()
    if done.returncode and not errors:
        errors = f"exit status {done.returncode}"
    whole = len(done.stdout) // 2 * 2
    return Decoded(np.frombuffer(done.stdout[:whole], dtype="<i2"), errors)


def find_run(reference: bytes, received: bytes, since: int = 0) -> int:
    """Return where in the reference the received bytes lie, all of them in one run.

    AssertionError naming the first byte that differs, and what was missing or repeated there.
    """
    place = received[:PLACE_BYTES]
    begin = reference.find(place, since)
    assert place, "nothing was received"
    assert begin >= 0, f"the first {len(place)} B were never sent: {place[:16].hex()}…"
    wanted = reference[begin : begin + len(received)]
    if wanted == received:
        return begin
    same = np.frombuffer(wanted, np.uint8) == np.frombuffer(received[: len(wanted)], np.uint8)
    first = int(np.argmin(same)) if not same.all() else len(wanted)
    next_ = reference.find(received[first : first + PLACE_BYTES])
    jump = f"it goes on {next_ - begin - first:+d} B away" if next_ >= 0 else "it was never sent"
    raise AssertionError(f"{first} of {len(received)} B are as they were sent, then {jump}")


# --- Ogg (RFC 3533 §6) ----------------------------------------------------------------------------

PAGE = struct.Struct("<4sBBqIIIB")
BOS, EOS = 2, 4


class Page(NamedTuple):
    """One Ogg page, whole."""

    flags: int
    granule: int
    serial: int
    number: int
    data: bytes


def pages(data: bytes) -> list[Page]:
    """The whole pages of a run of Ogg; a partial one at its end is left out."""
    found, at = [], 0
    while at + PAGE.size <= len(data):
        magic, _, flags, granule, serial, number, _, lacing = PAGE.unpack_from(data, at)
        assert magic == b"OggS", f"no page begins at {at}: {data[at : at + 8].hex()}"
        sizes = data[at + PAGE.size : at + PAGE.size + lacing]
        end = at + PAGE.size + lacing + sum(sizes)
        if len(sizes) < lacing or end > len(data):
            break
        found.append(Page(flags, granule, serial, number, data[at:end]))
        at = end
    return found


def split_headers(data: bytes) -> tuple[bytes, bytes]:
    """Cut Ogg into its header pages (granule 0, as in RFC 7845 §4) and what follows them."""
    headers = b""
    for page in pages(data):
        if page.granule != 0:
            break
        headers += page.data
    return headers, data[len(headers) :]


def chains(data: bytes) -> list[bytes]:
    """Cut Ogg where a new chain begins: at each BOS page that follows another kind of page."""
    parts: list[list[bytes]] = []
    was_bos = False
    for page in pages(data):
        is_bos = bool(page.flags & BOS)
        if not parts or (is_bos and not was_bos):
            parts.append([])
        parts[-1].append(page.data)
        was_bos = is_bos
    return [b"".join(part) for part in parts]


def skip_id3(data: bytes) -> int:
    """Return the size of the ID3v2 tag at the beginning (ID3v2.4 §3.1); 0 when there is none."""
    if data[:3] != b"ID3":
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size
