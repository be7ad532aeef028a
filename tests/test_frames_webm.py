"""WebM and Matroska: headers, clusters, blocks; media time by their timestamps; hostile sizes."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from relay._probe_data import Scanner
from tools.audio import decode
from tools.encoders import (
    CHAIN,
    FRAME_BYTES_MAX,
    HEADER,
    START,
    damaged,
    encode,
    noise,
    scan,
    split,
)

from relay._core import Engine, Source
from relay.errors import SourceError

LIVE = (("live", "1"), ("cluster_time_limit", "1000"))
SHORT = (("cluster_time_limit", "1000"),)
MATERIAL = {
    "opus-live": encode("libopus", "webm", 48000, seconds=6.0, muxer=LIVE),
    "opus-file": encode("libopus", "webm", 48000, seconds=6.0, muxer=SHORT),
    "vorbis": encode(
        "vorbis", "webm", 44100, seconds=6.0, muxer=LIVE, coder=(("strict", "-2"),)
    ),
    "flac": encode("flac", "matroska", 44100, bit_rate_bps=0, seconds=4.0, muxer=SHORT),
    "mp3": encode("libmp3lame", "matroska", 44100, seconds=4.0, muxer=LIVE),
    "aac": encode("aac", "matroska", 48000, seconds=4.0, muxer=SHORT),
}  # fmt: skip
SECONDS = {"opus-live": 6.0, "opus-file": 6.0, "vorbis": 6.0, "flac": 4.0, "mp3": 4.0, "aac": 4.0}
UNKNOWN = b"\x01\xff\xff\xff\xff\xff\xff\xff"
CLUSTER, SEGMENT, EBML = b"\x1f\x43\xb6\x75", b"\x18\x53\x80\x67", b"\x1a\x45\xdf\xa3"


def vint(value: int) -> bytes:
    """A size of 8 bytes (RFC 8794 §4)."""
    return (value | 1 << 56).to_bytes(8, "big")


def element(name: bytes, *body: bytes) -> bytes:
    """An element whose size is told."""
    whole = b"".join(body)
    return name + vint(len(whole)) + whole


def block(ticks: int, size: int = 60, track: int = 1) -> bytes:
    """A SimpleBlock (RFC 9559 §10.1)."""
    return element(b"\xa3", bytes([0x80 | track]) + ticks.to_bytes(2, "big", signed=True) + b"\x80",
                   b"\x55" * size)  # fmt: skip


def cluster(ticks: int, *blocks: bytes, size: bytes = UNKNOWN, before: bytes = b"") -> bytes:
    """A Cluster of unknown size, unless told."""
    return CLUSTER + size + before + element(b"\xe7", ticks.to_bytes(4, "big")) + b"".join(blocks)


def headers(*, track_type: int = 2, scale_ns: int = 1_000_000, number: int = 1) -> bytes:
    """EBML header, Segment, Info and Tracks of one track."""
    ebml = element(EBML, element(b"\x42\x82", b"webm"))
    info = element(b"\x15\x49\xa9\x66", element(b"\x2a\xd7\xb1", scale_ns.to_bytes(4, "big")))
    entry = element(b"\xd7", bytes([number])) + element(b"\x83", bytes([track_type]))
    tracks = element(b"\x16\x54\xae\x6b", element(b"\xae", entry))
    return ebml + SEGMENT + UNKNOWN + info + tracks


def served(data: bytes) -> bytes:
    """What listeners get of it."""
    engine = Engine(streams_max=2)
    stream = engine.add_stream("/live")
    stream.claim()
    stream.begin()
    Source(stream, "webm").feed(data)
    heard = bytes(memoryview(stream.view()))
    engine.close()
    return heard


def total_us(frames: list[tuple[bytes, int, int]]) -> int:
    """The sum of all durations."""
    return sum(duration_us for _, duration_us, _ in frames)


@pytest.mark.parametrize("name", MATERIAL)
def test_headers_come_first_then_clusters_that_are_starts(name: str) -> None:
    """Nothing is refused or out of place, and the sum of the durations is how long it plays."""
    scanner = Scanner("webm")
    frames = scanner.feed(MATERIAL[name])
    flags = [flag for _, _, flag in frames]
    assert flags[0] == HEADER | CHAIN
    first = flags.index(START)
    assert set(flags[1:first]) == {HEADER}
    assert set(flags[first:]) == {START, 0}
    assert all(frame.startswith(CLUSTER) for frame, _, flag in frames if flag == START)
    assert flags.count(START) >= SECONDS[name] - 1
    assert total_us(frames) / 1e6 == pytest.approx(SECONDS[name], abs=0.13)
    assert scanner.totals["junk_bytes_total"] == scanner.totals["resyncs_total"] == 0
    assert scanner.totals["sample_rate_hz"] in {44100, 48000}
    assert scanner.totals["channels"] == 2
    assert scanner.pending_bytes == 0


@pytest.mark.parametrize("name", MATERIAL)
def test_ffmpeg_decodes_what_is_served_and_what_a_late_joiner_gets(name: str, ffmpeg: str) -> None:
    """Clusters have no size any more; who joins gets the header, then a later cluster."""
    heard = served(MATERIAL[name])
    assert len(heard) <= len(MATERIAL[name])
    whole = decode(ffmpeg, heard)
    assert whole.errors == ""
    assert whole.media_s == pytest.approx(decode(ffmpeg, MATERIAL[name]).media_s, abs=0.03)
    frames = scan("webm", heard)
    kept = b"".join(frame for frame, _, flag in frames if flag & HEADER)
    late = heard[[at for at in range(len(heard)) if heard.startswith(CLUSTER, at)][2] :]
    joined = decode(ffmpeg, kept + late)
    assert joined.errors == ""
    assert 0.5 < joined.media_s < whole.media_s


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(MATERIAL)), st.lists(st.integers(0, 2**20), max_size=30))
def test_any_split_gives_the_same_frames(name: str, cuts: list[int]) -> None:
    """Where reads end changes nothing."""
    assert scan("webm", *split(MATERIAL[name], cuts)) == scan("webm", MATERIAL[name])


def test_one_byte_at_a_time_gives_the_same_frames() -> None:
    """The extreme of the above."""
    data = MATERIAL["opus-live"][:40_000]
    assert scan("webm", *(data[at : at + 1] for at in range(len(data)))) == scan("webm", data)


def test_clock_follows_the_timestamps_of_the_first_audio_track() -> None:
    """Cluster and block together, in ticks of TimestampScale; other tracks have no say."""
    data = headers(scale_ns=500_000, number=3) + cluster(
        1000, block(0, track=3), block(7, track=1), block(40, track=3)
    ) + cluster(1100, block(-20, track=3), block(20, track=3))  # fmt: skip
    frames = scan("webm", data)
    assert [duration_us for _, duration_us, _ in frames[4:]] == [0, 0, 0, 20_000, 0, 20_000, 20_000]


def test_timestamps_that_jump_last_nothing() -> None:
    """Back, or on by more than ten seconds: the clock goes on from there."""
    data = headers() + cluster(90_000, block(0), block(20)) + cluster(0, block(0), block(20))
    data += cluster(5_000_000, block(0), block(20), block(10), block(40))
    frames = scan("webm", data)
    assert total_us(frames) == 20_000 * 4


def test_block_groups_carry_time_too() -> None:
    """A BlockGroup holds its Block behind other elements, or before."""
    group = element(b"\xa0", element(b"\x9b", b"\x14"), element(b"\xa1", block(20)[9:]))
    frames = scan("webm", headers() + cluster(0, block(0), group))
    assert total_us(frames) == 20_000


def test_what_refers_to_a_file_is_left_out() -> None:
    """SeekHead, Cues, Void, PrevSize: their places are true nowhere. A CRC becomes a Void."""
    crc, seek = element(b"\xbf", bytes(4)), element(b"\x11\x4d\x9b\x74", bytes(30))
    cues, void = element(b"\x1c\x53\xbb\x6b", bytes(300)), element(b"\xec", bytes(99))
    head = headers()
    at = head.index(b"\x15\x49\xa9\x66")
    data = head[:at] + seek + void + head[at:] + cues
    told = cluster(0, block(0), size=vint(12 + 12 + 72 + 108), before=crc)
    data += told + void + cues
    heard = served(data)
    assert heard == head + cluster(0, block(0), before=b"\xec" + crc[1:])


def test_sizes_become_unknown_in_as_many_bytes() -> None:
    """RFC 8794 §6.2: all ones, whatever the length of the size."""
    for width in range(1, 9):
        body = element(b"\xe7", b"\0") + block(0)
        size = (len(body) | 1 << (7 * width)).to_bytes(width, "big")
        heard = served(headers() + CLUSTER + size + body)
        assert heard[len(headers()) :] == (
            CLUSTER + bytes([(0x200 >> width) - 1]) + b"\xff" * (width - 1) + body
        )


def test_chain_that_begins_anew_is_one() -> None:
    """A second EBML header: a source that returned, or two files in a row."""
    one = headers() + cluster(7000, block(0), block(20))
    frames = scan("webm", one, one)
    assert sum(flag == HEADER | CHAIN for _, _, flag in frames) == 2
    assert total_us(frames) == 40_000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"OggS" + bytes(60), "Ogg"),
        (b"ID3\x04" + bytes(60), "ID3"),
        (b"RIFF" + bytes(60), "RIFF"),
        (noise(3, 200_000), "without a frame"),
        (headers(track_type=1) + cluster(0, block(0)), "no audio"),
        (cluster(0, block(0, size=60_000)) * 4, "without their headers"),
    ],
)
def test_what_is_no_webm_with_audio_is_refused(data: bytes, words: str) -> None:
    """With what was found."""
    with pytest.raises(SourceError, match=words):
        scan("webm", data)


def test_webm_is_told_to_who_promised_another_format() -> None:
    """By its first bytes."""
    for kind in ("mpeg", "adts", "ogg"):
        with pytest.raises(SourceError, match="as audio/webm"):
            scan(kind, MATERIAL["opus-live"])


@pytest.mark.parametrize(
    "lie",
    [
        block(0)[:1] + vint(1 << 40) + bytes(100),        # larger than any frame
        b"\xa3" + UNKNOWN + bytes(100),                   # of unknown size
        b"\xa3\x80",                                      # of none
        b"\x00" * 100,                                    # no element
        CLUSTER + UNKNOWN + block(0),                     # without its time
        CLUSTER + UNKNOWN + element(b"\xec", bytes(3000)),
        cluster(0, size=vint(3)),                         # smaller than what it holds
        CLUSTER + UNKNOWN + element(b"\xe7", b"\xff" * 8),  # a time beyond all bounds
        element(b"\x16\x54\xae\x6b", bytes(70_000)),      # a header too large, in mid-stream
        EBML + vint(1 << 30) + bytes(100),
        b"\xec" + vint(1 << 27),                           # filler without an end …
        b"\xec" + vint(100),                               # … or with a cluster in it
        b"\x1c\x53\xbb\x6b" + vint(1 << 27),               # an index of a file, in mid-stream
        CLUSTER + UNKNOWN + b"\xe7\x81\x07" + b"\xa3" + vint(80) + bytes(9),  # of no track of ours
    ],
)  # fmt: skip
def test_hostile_element_costs_no_more_than_its_cluster(lie: bytes) -> None:
    """What came before has gone out; the next cluster goes on."""
    before, after = cluster(0, block(0), block(20)), cluster(60, block(0), block(20))
    scanner = Scanner("webm")
    frames = scanner.feed(headers() + before + lie + after)
    blocks = [frame for frame, _, flag in frames if flag == 0]
    assert blocks[:2] == [block(0), block(20)]
    assert blocks[-2:] == [block(0), block(20)]
    assert scanner.pending_bytes == 0


def test_frames_are_bounded() -> None:
    """A block of more than a frame's bytes is left out; one of exactly those goes through."""
    fits = block(20, size=FRAME_BYTES_MAX - 13)
    assert len(fits) == FRAME_BYTES_MAX
    frames = scan("webm", headers() + cluster(0, block(0), fits, block(40, size=FRAME_BYTES_MAX)))
    assert [frame for frame, _, flag in frames if flag == 0] == [block(0), fits]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(MATERIAL)), st.sampled_from(["flip", "drop", "junk"]),
       st.integers(0, 2**32))  # fmt: skip
@example("opus-live", "junk", 409)  # begins like a Void of 36 kB
@example("aac", "junk", 1829)
def test_damage_costs_its_cluster_and_the_one_behind_it_at_most(
    name: str, fault: str, seed: int
) -> None:
    """All before and all after is delivered."""
    data = MATERIAL[name]
    whole = scan("webm", data)
    places = [at for at in range(len(data)) if data.startswith(CLUSTER, at)]
    hurt = scan("webm", damaged(data, places[1] + 20, places[2] - 1, fault, seed))
    starts = [number for number, (_, _, flag) in enumerate(whole) if flag == START]
    assert hurt[: starts[1]] == whole[: starts[1]]
    after = [frame for frame, _, _ in whole[starts[3] :]]
    assert [frame for frame, _, _ in hurt[-len(after) :]] == after


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32))
def test_any_bytes_are_frames_or_a_reason(seed: int) -> None:
    """Many small damages anywhere: never a frame out of bounds, and split as whole."""
    dice = random.Random(seed)
    data = bytearray(MATERIAL["opus-file"])
    for _ in range(30):
        data[dice.randrange(len(data))] = dice.randrange(256)
    pieces = split(bytes(data), [dice.randrange(1 << 20) for _ in range(9)])
    try:
        frames = scan("webm", bytes(data))
    except SourceError:
        return
    assert frames == scan("webm", *pieces)
    assert all(0 < len(frame) <= FRAME_BYTES_MAX for frame, _, _ in frames)
