"""MPEG audio: sizes from the standard's tables, lock and loss of it, what FFmpeg finds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe_data import Scanner
from tools.encoders import (
    START,
    damaged,
    demux,
    encode,
    is_exact,
    noise,
    scan,
    split,
)

from relay.errors import SourceError

# ISO/IEC 11172-3 §2.4.2.3 and 13818-3 §2.4.2.3, written down anew: (version, layer) to kbit/s.
MPEG_1, MPEG_2, MPEG_25 = 3, 2, 0
RATES_HZ = {
    MPEG_1: [44100, 48000, 32000],
    MPEG_2: [22050, 24000, 16000],
    MPEG_25: [11025, 12000, 8000],
}
LOW = "8 16 24 32 40 48 56 64 80 96 112 128 144 160"
KBPS = {
    (1, 1): "32 64 96 128 160 192 224 256 288 320 352 384 416 448",
    (1, 2): "32 48 56 64 80 96 112 128 160 192 224 256 320 384",
    (1, 3): "32 40 48 56 64 80 96 112 128 160 192 224 256 320",
    (2, 1): "32 48 56 64 80 96 112 128 144 160 176 192 224 256",
    (2, 2): LOW,
    (2, 3): LOW,
}
WITHOUT_TAG = (("id3v2_version", "0"),)


def header(
    version: int, layer: int, rate: int, index: int, padding: int = 0, mode: int = 0
) -> bytes:
    """The four bytes of a header, from the values of its fields."""
    word = 0x7FF << 21 | version << 19 | (4 - layer) << 17 | 1 << 16
    word |= index << 12 | rate << 10 | padding << 9 | mode << 6
    return word.to_bytes(4, "big")


def music(rate_hz: int = 44100, seconds: float = 3.0, **more: object) -> bytes:
    """MP3 from LAME without ID3."""
    return encode("libmp3lame", "mp3", rate_hz, seconds=seconds, muxer=WITHOUT_TAG, **more)


LIVE = music(seconds=6.0)
FRAMES = scan("mpeg", LIVE)


@pytest.mark.parametrize(
    ("version", "layer"), list(itertools.product([MPEG_1, MPEG_2, MPEG_25], [1, 2, 3]))
)
def test_every_legal_header_has_the_size_of_the_standard(version: int, layer: int) -> None:
    """All bit rates, sample rates and paddings of each version and layer cut where they must."""
    samples = 384 if layer == 1 else (576 if layer == 3 and version != MPEG_1 else 1152)
    slot = 4 if layer == 1 else 1
    table = KBPS[1 if version == MPEG_1 else 2, layer].split()
    for rate, rate_hz in enumerate(RATES_HZ[version]):
        whole, sizes = b"", []
        for index, padding in itertools.product(range(1, 15), (0, 1)):
            bps = int(table[index - 1]) * 1000
            size = (samples // 8 // slot * bps // rate_hz + padding) * slot
            whole += header(version, layer, rate, index, padding).ljust(size, b"\x55")
            sizes.append(size)
        frames = scan("mpeg", whole)
        assert [len(frame) for frame, _, _ in frames] == sizes
        assert is_exact(frames, samples * len(sizes), rate_hz)
        assert {flags for _, _, flags in frames} == {START}


@pytest.mark.parametrize(
    ("rate_hz", "bit_rate_bps", "channels"),
    [
        (48000, 320_000, 2), (44100, 128_000, 2), (44100, 64_000, 1), (32000, 96_000, 2),
        (24000, 64_000, 2), (22050, 56_000, 1), (16000, 32_000, 2), (12000, 24_000, 1),
        (11025, 16_000, 2), (8000, 8_000, 1),
    ],
)  # fmt: skip
def test_frames_of_lame_are_those_that_ffmpeg_finds(
    rate_hz: int, bit_rate_bps: int, channels: int
) -> None:
    """Same bytes, same order; FFmpeg hides the Info frame, which goes out as audio here."""
    data = music(rate_hz, bit_rate_bps=bit_rate_bps, channels=channels)
    scanner = Scanner("mpeg")
    frames = scanner.feed(data)
    packets = demux(data, "mp3")
    assert [frame for frame, _, _ in frames[1:]] == [packet for packet, _, _ in packets]
    assert b"Info" in frames[0][0]
    assert frames[0][2] == START
    assert is_exact(frames, packets[0][1] * len(frames), rate_hz)
    assert scanner.totals["sample_rate_hz"] == rate_hz
    assert scanner.totals["channels"] == channels
    assert scanner.totals["bit_rate_bps"] == pytest.approx(bit_rate_bps, rel=0.05)
    assert scanner.skipped_bytes_total == scanner.pending_bytes == 0


def test_variable_bit_rate_is_cut_and_averaged() -> None:
    """VBR changes size and bit rate index with each frame; what is reported is the mean."""
    data = music(bit_rate_bps=0, coder=(("q", "2"), ("compression_level", "7")))
    scanner = Scanner("mpeg")
    frames = scanner.feed(data)
    assert [frame for frame, _, _ in frames[1:]] == [packet for packet, _, _ in demux(data, "mp3")]
    mean_bps = len(data) * 8_000_000 / sum(duration_us for _, duration_us, _ in frames)
    if len({len(frame) for frame, _, _ in frames}) > 3:
        assert scanner.totals["bit_rate_bps"] == pytest.approx(mean_bps, rel=0.001)


@pytest.mark.parametrize("rate_hz", [48000, 44100, 32000, 24000, 22050, 16000])
def test_layer_ii_is_cut_as_ffmpeg_does(rate_hz: int) -> None:
    """Layer II is what broadcasters still send."""
    data = encode("mp2", "mp2", rate_hz)
    frames = scan("mpeg", data)
    assert [frame for frame, _, _ in frames] == [packet for packet, _, _ in demux(data, "mp3")]
    assert b"".join(frame for frame, _, _ in frames) == data
    assert is_exact(frames, 1152 * len(frames), rate_hz)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_free_format_is_refused_with_its_reason(layer: int) -> None:
    """A frame size that no header tells cannot be cut; the encoder must be set otherwise."""
    whole = b"".join(
        header(MPEG_1, layer, 0, 0, index % 2).ljust(1300 + index % 2 * (4 if layer == 1 else 1))
        for index in range(20)
    )
    with pytest.raises(SourceError, match="free format"):
        scan("mpeg", whole)


def test_in_lock_a_frame_goes_out_with_its_last_byte() -> None:
    """No look-ahead: the last frame of a source needs no end to be told."""
    scanner = Scanner("mpeg")
    last = len(FRAMES[-1][0])
    assert len(scanner.feed(LIVE[:-last])) == len(FRAMES) - 1
    assert scanner.feed(LIVE[-last:-1]) == []
    assert scanner.feed(LIVE[-1:]) == FRAMES[-1:]
    assert scanner.pending_bytes == 0


def test_out_of_lock_a_frame_waits_for_the_next_header() -> None:
    """One header proves nothing: the first frame goes out when the second shows its header."""
    scanner = Scanner("mpeg")
    first = len(FRAMES[0][0])
    assert scanner.feed(LIVE[: first + 3]) == []
    assert scanner.feed(LIVE[first + 3 : first + 4]) == FRAMES[:1]


def test_a_join_in_mid_frame_begins_with_the_next_whole_one() -> None:
    """What comes before the first whole frame is junk."""
    cut = sum(len(frame) for frame, _, _ in FRAMES[:3]) + 100
    scanner = Scanner("mpeg")
    later = scanner.feed(LIVE[cut:])
    assert [frame for frame, _, _ in later] == [frame for frame, _, _ in FRAMES[4:]]
    assert scanner.skipped_bytes_total == len(FRAMES[3][0]) - 100


def test_an_encoder_may_change_its_sample_rate_on_air() -> None:
    """The lock follows; the clock counts each frame at its own rate."""
    other = music(32000)
    frames = scan("mpeg", LIVE + other)
    assert b"".join(frame for frame, _, _ in frames) == LIVE + other
    assert sum(duration_us for _, duration_us, _ in frames[len(FRAMES) :]) == (
        (len(frames) - len(FRAMES)) * 36_000
    )


def test_two_files_in_a_row_with_their_tags_lose_nothing() -> None:
    """A playlist sent file after file: ID3v2, frames, ID3v1, again."""
    tagged = encode("libmp3lame", "mp3", 44100, muxer=(("write_id3v1", "1"),))
    one = [frame for frame, _, _ in scan("mpeg", tagged)]
    assert [frame for frame, _, _ in scan("mpeg", tagged * 3)] == one * 3


@settings(deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(min_value=0), max_size=60), seed=st.integers(0, 99))
def test_any_split_gives_the_same_frames(cuts: list[int], seed: int) -> None:
    """The network decides where reads end, never where frames do; not even amid noise."""
    data = LIVE[:9000] + noise(seed, 3000) + LIVE[9000:20_000]
    assert scan("mpeg", *split(data, cuts)) == scan("mpeg", data)


def test_byte_by_byte_gives_the_same_frames() -> None:
    """The smallest split there is, tags and noise included."""
    data = encode("libmp3lame", "mp3", 44100)[:4000] + noise(1, 2000) + LIVE[:4000]
    assert scan("mpeg", *(data[i : i + 1] for i in range(len(data)))) == scan("mpeg", data)


@settings(deadline=None, max_examples=80)
@given(
    at=st.integers(4, 150),
    fault=st.sampled_from(["flip", "drop", "junk"]),
    seed=st.integers(0, 2**32),
)
def test_damage_costs_the_frame_it_hits_and_at_most_what_that_frame_swallows(
    at: int, fault: str, seed: int
) -> None:
    """All before it go out; so do all after it that begin beyond the largest frame of its kind."""
    frames = [frame for frame, _, _ in FRAMES]
    begin = sum(map(len, frames[:at]))
    broken = damaged(LIVE, begin, begin + len(frames[at]), fault, seed)
    found = [frame for frame, _, _ in scan("mpeg", broken)]
    # A header that was hit may claim up to 1045 bytes at 44.1 kHz: the two and a half after it.
    swallowed = 0 if fault == "junk" else 4
    assert found[:at] == frames[:at]
    rest = frames[at + 1 + swallowed :]
    assert found[-len(rest) :] == rest


@settings(deadline=None, max_examples=40)
@given(
    words=st.lists(
        st.tuples(st.sampled_from([0xFF, 0xFB, 0xF3, 0xE3, 0x00, 0x90]), st.integers(0, 255)),
        max_size=3000,
    )
)
def test_bytes_that_look_like_headers_never_break_a_scanner(words: list[tuple[int, int]]) -> None:
    """Noise full of sync words is the worst case of a search; splitting it changes nothing."""
    data = b"\xff" + bytes(itertools.chain.from_iterable(words)) + LIVE[:5000]

    def outcome(*pieces: bytes) -> object:
        try:
            return scan("mpeg", *pieces)
        except SourceError as error:
            return str(error)

    assert outcome(data) == outcome(*(data[i : i + 97] for i in range(0, len(data), 97)))
