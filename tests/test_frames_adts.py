"""ADTS: sizes, samples and rates from the header, lock and loss of it, what FFmpeg finds."""

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

# ISO/IEC 14496-3 table 1.18, written down anew.
RATES_HZ = [
    96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350,
]  # fmt: skip


def header(
    frame_bytes: int, *, rate: int = 4, channels: int = 2, blocks: int = 1, crc: bool = False,
    layer: int = 0, profile: int = 1,
) -> bytes:  # fmt: skip
    """The seven bytes of a header, from the values of its fields (14496-3 tables 1.A.6, 1.A.7)."""
    word = 0xFFF << 44 | layer << 41 | (not crc) << 40 | profile << 38 | rate << 34
    word |= channels << 30 | frame_bytes << 13 | 0x7FF << 2 | (blocks - 1)
    return word.to_bytes(7, "big")


def frame(frame_bytes: int, fill: bytes = b"\x55", **fields: int) -> bytes:
    """A frame with a body of no meaning."""
    return header(frame_bytes, **fields).ljust(frame_bytes, fill)


LIVE = encode("aac", "adts", 44100, seconds=6.0)
FRAMES = scan("adts", LIVE)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("rate", range(13))
def test_the_duration_is_1024_samples_a_block(rate: int, blocks: int) -> None:
    """Every sample rate and number of raw data blocks; no microsecond is lost."""
    frames = scan("adts", frame(300, rate=rate, blocks=blocks) * 50)
    assert len(frames) == 50
    assert is_exact(frames, 50 * 1024 * blocks, RATES_HZ[rate])


@pytest.mark.parametrize(
    ("fields", "bytes_min"),
    [
        ({}, 7),
        ({"crc": True}, 9),
        ({"crc": True, "blocks": 4}, 15),
        ({"blocks": 4}, 7),
    ],
)
def test_a_frame_is_no_shorter_than_its_header(fields: dict[str, int], bytes_min: int) -> None:
    """A length below the header's own is no header; at it, and up to 13 bits, it is one."""
    for frame_bytes in (bytes_min, 8191):
        frames = scan("adts", frame(frame_bytes, **fields) * 3)
        assert [len(found) for found, _, _ in frames] == [frame_bytes] * 3
    short = header(bytes_min - 1, **fields) * 30
    assert scan("adts", short) == []


@pytest.mark.parametrize("fields", [{"rate": 13}, {"rate": 15}, {"layer": 1}, {"layer": 3}])
def test_reserved_values_are_no_header(fields: dict[str, int]) -> None:
    """Reserved sample rates, and a layer, which is how MPEG audio differs from ADTS."""
    assert scan("adts", frame(200, **fields) * 20) == []


@pytest.mark.parametrize(("configuration", "channels"), [(0, 0), (1, 1), (2, 2), (6, 6), (7, 8)])
def test_channels_are_read_from_the_configuration(configuration: int, channels: int) -> None:
    """7 stands for eight channels; 0 leaves it to the frame's inside."""
    scanner = Scanner("adts")
    scanner.feed(frame(100, channels=configuration) * 3)
    assert scanner.totals["channels"] == channels


@pytest.mark.parametrize(
    ("rate_hz", "bit_rate_bps", "channels"),
    [
        (48000, 192_000, 2), (44100, 128_000, 2), (32000, 64_000, 1), (24000, 48_000, 2),
        (22050, 32_000, 1), (16000, 32_000, 2), (12000, 24_000, 1), (8000, 16_000, 1),
        (96000, 256_000, 2),
    ],
)  # fmt: skip
def test_frames_of_aac_are_those_that_ffmpeg_finds(
    rate_hz: int, bit_rate_bps: int, channels: int
) -> None:
    """Same bytes, same order, same samples."""
    data = encode("aac", "adts", rate_hz, bit_rate_bps=bit_rate_bps, channels=channels)
    scanner = Scanner("adts")
    frames = scanner.feed(data)
    packets = demux(data, "aac")
    assert [found for found, _, _ in frames] == [packet for packet, _, _ in packets]
    assert {flags for _, _, flags in frames} == {START}
    assert is_exact(frames, 1024 * len(packets), rate_hz)
    mean_bps = len(data) * 8 * rate_hz / (1024 * len(frames))
    assert scanner.totals["bit_rate_bps"] == pytest.approx(mean_bps, rel=0.001)
    assert (scanner.totals["sample_rate_hz"], scanner.totals["channels"]) == (rate_hz, channels)
    assert scanner.skipped_bytes_total == scanner.pending_bytes == 0


def test_in_lock_a_frame_goes_out_with_its_last_byte() -> None:
    """No look-ahead: the last frame of a source needs no end to be told."""
    scanner = Scanner("adts")
    last = len(FRAMES[-1][0])
    assert len(scanner.feed(LIVE[:-last])) == len(FRAMES) - 1
    assert scanner.feed(LIVE[-last:-1]) == []
    assert scanner.feed(LIVE[-1:]) == FRAMES[-1:]


def test_a_join_in_mid_frame_begins_with_the_next_whole_one() -> None:
    """What comes before the first whole frame is junk."""
    cut = sum(len(found) for found, _, _ in FRAMES[:3]) + 50
    later = scan("adts", LIVE[cut:])
    assert [found for found, _, _ in later] == [found for found, _, _ in FRAMES[4:]]


def test_mpeg_audio_is_never_taken_for_adts_nor_the_other_way_round() -> None:
    """Both begin with eleven ones; the layer bits keep them apart."""
    mp3 = encode("libmp3lame", "mp3", 44100, muxer=(("id3v2_version", "0"),))
    assert scan("adts", mp3) == []
    assert scan("mpeg", LIVE[:100_000]) == []


def test_an_encoder_may_change_its_configuration_on_air() -> None:
    """Another sample rate or channel count is a new run of the same source."""
    other = encode("aac", "adts", 32000, channels=1)
    frames = scan("adts", LIVE + other)
    assert b"".join(found for found, _, _ in frames) == LIVE + other
    assert is_exact(frames[len(FRAMES) :], 1024 * (len(frames) - len(FRAMES)), 32000)


@settings(deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(min_value=0), max_size=60), seed=st.integers(0, 99))
def test_any_split_gives_the_same_frames(cuts: list[int], seed: int) -> None:
    """The network decides where reads end, never where frames do; not even amid noise."""
    data = LIVE[:9000] + noise(seed, 3000) + LIVE[9000:20_000]
    assert scan("adts", *split(data, cuts)) == scan("adts", data)


def test_byte_by_byte_gives_the_same_frames() -> None:
    """The smallest split there is, noise included."""
    data = noise(1, 500) + LIVE[:4000] + noise(2, 2000) + LIVE[:4000]
    assert scan("adts", *(data[i : i + 1] for i in range(len(data)))) == scan("adts", data)


@settings(deadline=None, max_examples=80)
@given(
    at=st.integers(4, 150),
    fault=st.sampled_from(["flip", "drop", "junk"]),
    seed=st.integers(0, 2**32),
)
def test_damage_costs_the_frame_it_hits_and_at_most_what_that_frame_swallows(
    at: int, fault: str, seed: int
) -> None:
    """All before it go out; so do all after it beyond the longest length that it can claim."""
    frames = [found for found, _, _ in FRAMES]
    begin = sum(map(len, frames[:at]))
    broken = damaged(LIVE, begin, begin + len(frames[at]), fault, seed)
    found = [one for one, _, _ in scan("adts", broken)]
    assert found[:at] == frames[:at]
    # A header that was hit may claim up to 8191 bytes.
    sizes = itertools.accumulate(map(len, frames[at + 1 :]))
    swallowed = 0 if fault == "junk" else sum(1 for size in sizes if size < 8191) + 1
    rest = frames[at + 1 + swallowed :]
    assert found[-len(rest) :] == rest
