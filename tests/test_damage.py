"""A corpus of damaged input, made here: what stands before and behind the damage is delivered.

Rules of this room
  1. A damage has a name and a seed; it lies between two frames of a sound stream, or in one.
  2. It is fed as the intake does it, in reads of any size, through the scanner and into a ring.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.encoders import HEADER, START, encode, noise

from relay._core import Engine, Source
from relay.formats import KINDS

Frame = tuple[bytes, int]  # with its flags

JOINS, JOINS_AT_ONCE = 200, 50
WITHOUT_TAG = (("id3v2_version", "0"),)
SHORT = (("page_duration", "60000"),)
SOUND: dict[str, tuple[str, bytes]] = {
    "mp3": ("mpeg", encode("libmp3lame", "mp3", 44100, seconds=6, muxer=WITHOUT_TAG)),
    "mp3-vbr": (
        "mpeg",
        encode("libmp3lame", "mp3", 44100, seconds=6, bit_rate_bps=0, coder=(("q", "4"),)),
    ),
    "aac": ("adts", encode("aac", "adts", 44100, seconds=6)),
    "opus": ("ogg", encode("libopus", "ogg", 48000, seconds=6, muxer=SHORT)),
    "vorbis": (
        "ogg",
        encode("vorbis", "ogg", 44100, seconds=6, muxer=SHORT, coder=(("strict", "-2"),)),
    ),
    "flac": ("ogg", encode("flac", "ogg", 44100, seconds=4, bit_rate_bps=0, muxer=SHORT)),
    "webm": (
        "webm",
        encode("libopus", "webm", 48000, seconds=6, muxer=(("cluster_time_limit", "500"),)),
    ),
    "matroska": (
        "matroska",
        encode("flac", "matroska", 44100, seconds=4, bit_rate_bps=0,
               muxer=(("cluster_time_limit", "500"),)),
    ),
}  # fmt: skip

ID3V1 = b"TAG" + b"title".ljust(125, b"\0")
ID3V2 = b"ID3\x04\x00\x00\x00\x00\x07\x68" + b"\xff\xfb\x90\x64" * 250
APE = b"APETAGEX" + (2000).to_bytes(4, "little") + (32).to_bytes(4, "little") + bytes(4)
APE = APE + b"\0\0\0\xa0" + bytes(8) + (32).to_bytes(4, "little") + noise(4, 32)
ZERO = {
    "mpeg": b"\xff\xfb\x00\x00" + b"\xff\xfb\xf0\x00",  # free format, and a bit rate that is none
    "adts": b"\xff\xf1\x50\x80\x00\x1f\xfc",  # a length of 0
    "ogg": b"OggS\0\0" + bytes(20) + b"\0",  # no segment, and a wrong checksum
    "webm": b"\xa3\x80",
}
ZERO["matroska"] = ZERO["webm"]

Damage = Callable[[bytes, int, int, random.Random, str], bytes]


def _flip(data: bytes, begin: int, end: int, dice: random.Random, kind: str) -> bytes:
    at = dice.randrange(begin, end)
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def _remove(data: bytes, begin: int, end: int, dice: random.Random, kind: str) -> bytes:
    at = dice.randrange(begin, end)
    return data[:at] + data[dice.randrange(at, end) + 1 :]


def _cut_short(data: bytes, begin: int, end: int, dice: random.Random, kind: str) -> bytes:
    return data[: dice.randrange(begin, end)] + data[end:]


def _insert(junk: Callable[[random.Random, str], bytes]) -> Damage:
    def damage(data: bytes, begin: int, end: int, dice: random.Random, kind: str) -> bytes:
        return data[:begin] + junk(dice, kind) + data[begin:]

    return damage


DAMAGES: dict[str, Damage] = {
    "flip": _flip,
    "remove": _remove,
    "truncate": _cut_short,
    "noise": _insert(lambda dice, kind: dice.randbytes(dice.randrange(1, 5000))),
    "zeros": _insert(lambda dice, kind: bytes(dice.randrange(1, 5000))),
    "id3v1": _insert(lambda dice, kind: ID3V1),
    "id3v2": _insert(lambda dice, kind: ID3V2),
    "ape": _insert(lambda dice, kind: APE),
    "zero-length": _insert(lambda dice, kind: ZERO[kind] * 3),
}
TAGS = ("id3v1", "id3v2", "ape")


def served(kind: str, data: bytes, dice: random.Random) -> tuple[list[Frame], dict[str, int]]:
    """The frames in the ring, and what the scanner counted."""
    engine = Engine(streams_max=2)
    engine.configure("/live", ring_s=600)
    stream = engine.add_stream("/live")
    stream.claim()
    stream.begin()
    source = Source(stream, kind)
    at = 0
    while at < len(data):
        size = dice.randrange(1, 4000)
        source.feed(data[at : at + size])
        at += size
    found = []
    while (frame := stream.read(len(found))) is not None:
        found.append((frame[0], frame[4] & 7))
    totals: dict[str, int] = source.totals
    engine.close()
    return found, totals


def places(kind: str, data: bytes) -> tuple[list[Frame], list[int]]:
    """The frames of sound data, and where each begins in it.

    What a WebM source leaves out or changes is in the heads of its clusters: blocks are found.
    """
    frames, _ = served(kind, data, random.Random(1))
    begins, at = [], 0
    for frame, flags in frames:
        found = data.find(frame if not flags else frame[:4], at)
        assert found >= 0
        begins.append(found)
        at = found + (len(frame) if not flags else 4)
    return frames, begins


PLACES = {name: places(kind, data) for name, (kind, data) in SOUND.items()}


def check_counters(
    kind: str,
    damage: str,
    is_whole: bool,
    hurt: bytes,
    found: list[Frame],
    totals: dict[str, int],
) -> None:
    """Every byte was a frame's, a tag's or junk; `is_whole`: no frame was cut in two."""
    delivered = sum(len(frame) for frame, _ in found)
    assert len(hurt) == delivered + totals["tag_bytes_total"] + totals["junk_bytes_total"]
    if damage in ("remove", "truncate") and not is_whole:
        assert totals["resyncs_total"] >= 1
        assert totals["junk_bytes_total"] > 0
    if damage == "flip" and kind == "ogg":  # whose pages have a checksum
        assert totals["bad_checksum_total"] + totals["resyncs_total"] >= 1
        assert totals["junk_bytes_total"] > 0


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", SOUND)
def test_frames_before_and_behind_the_damage_are_delivered(name: str, damage: str) -> None:
    """All before it; behind it all but the next two (clusters: of WebM). The counters tell."""
    kind, data = SOUND[name]
    frames, begins = PLACES[name]
    is_webm = kind in ("webm", "matroska")
    starts = [number for number, (_, flags) in enumerate(frames) if flags & START]
    for seed in range(8):
        dice = random.Random(seed)
        nth = dice.randrange(2, len(starts) - 5)
        first = starts[nth]
        if is_webm:
            first = dice.randrange(first + 1, starts[nth + 1] - 1)
            behind = starts[nth + 3]
        else:
            behind = first + 4
        hurt = DAMAGES[damage](data, begins[first], begins[first + 1], dice, kind)
        found, totals = served(kind, hurt, dice)
        assert found[:first] == frames[:first]
        rest = [frame for frame, _ in frames[behind:]]
        assert [frame for frame, _ in found[-len(rest) :]] == rest, (name, damage, seed)
        if damage in TAGS and kind in ("mpeg", "adts"):
            assert totals["tag_bytes_total"] >= 32
            assert [frame for frame, _ in found] == [frame for frame, _ in frames]
        elif damage in ("noise", "zeros", "zero-length"):
            assert totals["resyncs_total"] + totals["junk_bytes_total"] > 0
        frame_bytes = begins[first + 1] - begins[first]
        check_counters(kind, damage, len(data) - len(hurt) in (0, frame_bytes), hurt, found, totals)
        if damage == "flip" and len(found) == len(frames):  # not in a head: nothing tells of it
            assert sum(one != other for one, other in zip(found, frames, strict=True)) == 1


@pytest.mark.parametrize("name", SOUND)
def test_files_glued_together_are_one_stream(name: str) -> None:
    """Twice the same file, with tags between where there are tags: twice its frames."""
    kind, data = SOUND[name]
    frames, _ = PLACES[name]
    between = ID3V1 + ID3V2 if kind in ("mpeg", "adts") else b""
    found, totals = served(kind, data + between + data, random.Random(2))
    assert len(found) == 2 * len(frames)
    assert totals["junk_bytes_total"] == 0
    if kind != "ogg":  # whose second chain has a serial of its own
        assert [frame for frame, _ in found] == [frame for frame, _ in frames] * 2


@pytest.mark.parametrize("name", SOUND)
def test_two_hundred_joins_at_random_moments_decode(name: str, ffmpeg: str, tmp_path: Path) -> None:
    """Headers, then from any start on: no error beyond MP3's first frame, which may lean on what
    is gone (ISO/IEC 11172-3 §2.4.3.4). Fifty inputs to each ffmpeg: it is dear to start."""
    kind, _ = SOUND[name]
    frames, _ = PLACES[name]
    header = b"".join(frame for frame, flags in frames if flags & HEADER)
    audio = [b"" if flags & HEADER else frame for frame, flags in frames]
    starts = [number for number, (_, flags) in enumerate(frames) if flags & START][:-3]
    dice = random.Random(3)
    for _ in range(JOINS // JOINS_AT_ONCE):
        words: list[str] = [ffmpeg, "-v", "error", "-nostdin"]
        for number in range(JOINS_AT_ONCE):
            path = tmp_path / f"{number}{KINDS[kind].extension}"
            moment = dice.choice(starts)
            path.write_bytes(header + b"".join(audio[moment : moment + 30]))
            words += ["-i", str(path)]
        for number in range(JOINS_AT_ONCE):
            words += ["-map", f"{number}:a", "-f", "null", "-"]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        assert ended.returncode == 0, lines[:5]
        assert len(lines) <= (3 * JOINS_AT_ONCE if kind == "mpeg" else 0), lines[:5]
