"""Ogg: pages by their checksum, headers by their codec, durations by the granule."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe_data import Scanner
from tools.encoders import (
    CHAIN,
    HEADER,
    START,
    Frame,
    damaged,
    demux,
    encode,
    noise,
    scan,
    split,
)

from relay.errors import SourceError

CONTINUED, BOS, EOS = 1, 2, 4
SHORT_PAGES = (("page_duration", "20000"),)
LONG_PAGES = (("page_duration", "10000000"),)


def crc32(data: bytes) -> int:
    """The checksum of RFC 3533 §6, bit by bit: slow, and independent of the one under test."""
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def page(
    *packets: bytes, granule: int = 0, serial: int = 1, sequence: int = 0, flags: int = 0,
    whole: bool = True,
) -> bytes:  # fmt: skip
    """A page of whole packets; with whole=False the last one goes on on the next page."""
    lacing = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in packets)
    if not whole:
        assert len(packets[-1]) % 255 == 0
        lacing = lacing[:-1]
    head = b"OggS\x00" + bytes([flags]) + granule.to_bytes(8, "little", signed=True)
    head += serial.to_bytes(4, "little") + sequence.to_bytes(4, "little")
    tail = bytes([len(lacing)]) + lacing + b"".join(packets)
    return head + crc32(head + bytes(4) + tail).to_bytes(4, "little") + tail


def opus_head(channels: int = 2) -> bytes:
    """RFC 7845 §5.1."""
    return b"OpusHead\x01" + bytes([channels]) + b"\x38\x01\x80\xbb\x00\x00\x00\x00\x00"


def vorbis_head(rate_hz: int = 44100) -> bytes:
    """Vorbis I §4.2.2; block sizes 256 and 2048."""
    rates = rate_hz.to_bytes(4, "little") + bytes(4) + (96_000).to_bytes(4, "little") + bytes(4)
    return b"\x01vorbis" + bytes(4) + b"\x02" + rates + b"\xb8\x01"


def flac_head(headers: int, rate_hz: int = 48000) -> bytes:
    """RFC 9639 §10.1 and §8.2, stereo, 16 bits."""
    info = b"\x10\x00\x10\x00" + bytes(6)
    info += (rate_hz << 44 | 1 << 41 | 15 << 36).to_bytes(8, "big") + bytes(16)
    return b"\x7fFLAC\x01\x00" + headers.to_bytes(2, "big") + b"fLaC\x00\x00\x00\x22" + info


def speex_head(extra: int = 0) -> bytes:
    """The Speex manual, §7: 16 kHz, mono, 320 samples a frame, 2 frames a packet."""
    fields = [1, 80, 16000, 1, 4, 1, 0xFFFFFFFF, 320, 0, 2, extra, 0, 0]
    return b"Speex   " + b"1.2".ljust(20, b"\0") + b"".join(f.to_bytes(4, "little") for f in fields)


FLAC_FRAME = b"\xff\xf8\xc9\x18\x00\x00" + b"\x11" * 50  # §9.1.1: 4096 samples
OPUS_20_MS = b"\xfc" + b"\x22" * 60  # RFC 6716 §3.1: configuration 31, stereo, one frame

# What each codec sends: (its headers' pages, one data packet, samples of it, samples a second).
HEADS: dict[str, tuple[list[list[bytes]], bytes, int, int]] = {
    "opus": ([[opus_head()], [b"OpusTags" + bytes(8)]], OPUS_20_MS, 960, 48000),
    "vorbis": (
        [[vorbis_head()], [b"\x03vorbis" + bytes(9), b"\x05vorbis" + bytes(30)]],
        b"\x08" * 70, 1024, 44100,
    ),
    "flac": ([[flac_head(2)], [b"\x04" + bytes(7)], [b"\x86" + bytes(9)]], FLAC_FRAME, 4096, 48000),
    "flac-uncounted": (
        [[flac_head(0)], [b"\x04" + bytes(7)], [b"\x86" + bytes(9)]], FLAC_FRAME, 4096, 48000,
    ),
    "speex": (
        [[speex_head(1)], [b"vendor" + bytes(8)], [b"extra" * 3]], b"\x1e" * 40, 640, 16000,
    ),
}  # fmt: skip


def chain(codec: str, pages: int = 10, *, serial: int = 1, first: int = 0) -> list[bytes]:
    """A chain of one track: header pages, then pages of one packet each, from a first granule."""
    heads, packet, samples, _ = HEADS[codec]
    made = [
        page(*packets, serial=serial, sequence=number, flags=0 if number else BOS)
        for number, packets in enumerate(heads)
    ]
    for number in range(pages):
        granule = first + samples * (number + 1)
        sequence = len(heads) + number
        made.append(page(packet, granule=granule, serial=serial, sequence=sequence))
    return made


def walk(data: bytes) -> list[bytes]:
    """The pages of an undamaged file, cut by their lengths alone."""
    pages, at = [], 0
    while at < len(data):
        assert data[at : at + 4] == b"OggS"
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        pages.append(data[at:end])
        at = end
    return pages


def granules(pages: list[bytes]) -> list[int]:
    """The granule positions of the pages."""
    return [int.from_bytes(one[6:14], "little", signed=True) for one in pages]


def flags_of(frames: list[Frame]) -> list[int]:
    """The flags alone."""
    return [flags for _, _, flags in frames]


def total_us(frames: list[Frame]) -> int:
    """The sum of all durations."""
    return sum(duration_us for _, duration_us, _ in frames)


LIVE = encode("libopus", "ogg", 48000, bit_rate_bps=256_000, seconds=8.0, muxer=SHORT_PAGES)
PAGES = walk(LIVE)


@pytest.mark.parametrize(
    ("codec", "rate_hz", "bit_rate_bps", "muxer"),
    [
        ("libopus", 48000, 96_000, ()),
        ("libopus", 48000, 32_000, SHORT_PAGES),
        ("libopus", 24000, 24_000, LONG_PAGES),
        ("libopus", 8000, 12_000, ()),
        ("vorbis", 44100, 96_000, ()),
        ("vorbis", 48000, 128_000, SHORT_PAGES),
        ("vorbis", 22050, 64_000, LONG_PAGES),
        ("flac", 44100, 0, ()),
        ("flac", 96000, 0, SHORT_PAGES),
    ],
)
def test_pages_are_whole_flagged_and_last_as_long_as_ffmpeg_says(
    codec: str, rate_hz: int, bit_rate_bps: int, muxer: tuple[tuple[str, str], ...]
) -> None:
    """Each byte goes out, headers first; the durations sum up to the last granule."""
    coder = (("strict", "-2"),) if codec == "vorbis" else ()
    data = encode(
        codec, "ogg", rate_hz, bit_rate_bps=bit_rate_bps, seconds=4.0, muxer=muxer, coder=coder
    )
    scanner = Scanner("ogg")
    frames = scanner.feed(data)
    pages = walk(data)
    assert [found for found, _, _ in frames] == pages
    # Vorbis begins with a packet that gives no sample, so its first data page may be at 0, too.
    headers = next(
        number
        for number, (one, granule) in enumerate(zip(pages, granules(pages), strict=True))
        if granule > 0 or (codec == "vorbis" and one[27 + one[26]] % 2 == 0)
    )
    assert flags_of(frames)[:headers] == [HEADER | CHAIN] + [HEADER] * (headers - 1)
    assert total_us(frames[:headers]) == 0
    for found, _, flags in frames[headers:]:
        assert flags == (0 if found[5] & CONTINUED else START)
    clock_hz = 48000 if codec == "libopus" else rate_hz
    assert total_us(frames) == granules(pages)[-1] * 1_000_000 // clock_hz
    seconds = sum(samples / packet_hz for _, samples, packet_hz in demux(data, "ogg"))
    assert total_us(frames) / 1e6 == pytest.approx(seconds, abs=0.06)
    assert scanner.totals["sample_rate_hz"] == clock_hz
    assert scanner.totals["channels"] == 2
    assert scanner.skipped_bytes_total == scanner.pending_bytes == 0


@pytest.mark.parametrize("codec", HEADS)
def test_headers_end_where_the_codec_says(codec: str) -> None:
    """Opus has two header packets, Vorbis three, FLAC and Speex tell how many."""
    heads, _, samples, rate_hz = HEADS[codec]
    scanner = Scanner("ogg")
    frames = scanner.feed(b"".join(chain(codec)))
    headers = [HEADER | CHAIN] + [HEADER] * (len(heads) - 1)
    assert flags_of(frames) == headers + [START] * 10
    assert total_us(frames) == samples * 10 * 1_000_000 // rate_hz
    assert scanner.totals["sample_rate_hz"] == rate_hz


@pytest.mark.parametrize("codec", ["opus", "vorbis", "flac", "flac-uncounted"])
def test_data_is_known_as_such_when_header_pages_were_lost(codec: str) -> None:
    """The count would take audio for headers; the packets themselves know better."""
    made = chain(codec)
    heads = len(HEADS[codec][0])
    frames = scan("ogg", made[0] + b"".join(made[heads:]))
    assert flags_of(frames) == [HEADER | CHAIN] + [START] * 10


def test_header_packets_may_span_pages() -> None:
    """A large comment header (cover art) fills pages; each is a header."""
    tags = b"OpusTags" + bytes(255 * 400 - 8)
    made = [
        page(opus_head(), flags=BOS),
        page(tags[: 255 * 200], granule=-1, whole=False),
        page(tags[255 * 200 :], flags=CONTINUED),
        page(OPUS_20_MS, granule=960),
    ]
    assert flags_of(scan("ogg", b"".join(made))) == [HEADER | CHAIN, HEADER, HEADER, START]


def test_chained_streams_begin_anew() -> None:
    """A source that restarts its encoder for each title: the header is replaced, time goes on."""
    made = chain("opus") + chain("vorbis", serial=2) + chain("opus", serial=1)
    frames = scan("ogg", b"".join(made))
    assert [found for found, _, _ in frames] == made
    begins = [number for number, flags in enumerate(flags_of(frames)) if flags & CHAIN]
    assert begins == [0, 12, 24]
    assert total_us(frames) == 2 * 200_000 + 10 * 1024 * 1_000_000 // 44100


def test_a_restart_within_the_headers_is_a_chain_of_its_own() -> None:
    """BOS after BOS with the same serial, or after any other page, cannot be the same chain."""
    head = chain("opus")
    frames = scan("ogg", head[0] + b"".join(head[:2]) + b"".join(chain("opus", serial=5)))
    assert [number for number, flags in enumerate(flags_of(frames)) if flags & CHAIN] == [0, 1, 3]


def test_multiplexed_streams_keep_the_clock_of_the_first_audio() -> None:
    """Skeleton and video go along; starts and durations belong to the sound."""
    made = [
        page(b"fishead\0" + bytes(56), serial=9, flags=BOS),
        page(b"\x80theora" + bytes(40), serial=8, flags=BOS),
        page(opus_head(), serial=1, flags=BOS),
        page(vorbis_head(), serial=2, flags=BOS),
        page(b"fisbone\0" + bytes(44), serial=9),
        page(b"\x81theora", b"\x82theora", serial=8),
        page(b"OpusTags" + bytes(8), serial=1),
        page(b"\x03vorbis" + bytes(9), b"\x05vorbis" + bytes(30), serial=2),
        page(b"", serial=9, flags=EOS),
        page(bytes(99), serial=8, granule=64),
        page(OPUS_20_MS, serial=1, granule=960),
        page(b"\x08" * 70, serial=2, granule=1024),
        page(OPUS_20_MS, serial=1, granule=1920),
    ]
    frames = scan("ogg", b"".join(made))
    assert [found for found, _, _ in frames] == made
    assert flags_of(frames) == [HEADER | CHAIN] + [HEADER] * 8 + [0, START, 0, START]
    assert [duration_us for _, duration_us, _ in frames[9:]] == [0, 20_000, 0, 20_000]


def test_more_tracks_than_are_followed_do_no_harm() -> None:
    """The ninth BOS page is kept as a header; its data, which nobody follows, is discarded."""
    begin = [page(opus_head(), serial=number, flags=BOS) for number in range(12)]
    scanner = Scanner("ogg")
    frames = scanner.feed(b"".join([*begin, *chain("opus", serial=0)[1:]]))
    assert len(frames) == 12 + 11
    stray = page(OPUS_20_MS, serial=11, granule=960)
    assert scanner.feed(stray) == []
    assert scanner.skipped_bytes_total == len(stray)


@pytest.mark.parametrize("codec", ["opus", "flac", "speex"])
@pytest.mark.parametrize("first", [10**6, 2**40])
def test_a_stream_joined_late_counts_the_packets_of_its_first_page(codec: str, first: int) -> None:
    """The first granule says how long the encoder runs, not how long the page is."""
    _, _, samples, rate_hz = HEADS[codec]
    frames = scan("ogg", b"".join(chain(codec, first=first)))
    assert total_us(frames) == samples * 10 * 1_000_000 // rate_hz


def test_a_vorbis_stream_joined_late_gives_its_first_page_no_time() -> None:
    """Vorbis packets do not tell their sizes, so the first page of a late join counts as 0."""
    frames = scan("ogg", b"".join(chain("vorbis", first=10**6)))
    assert frames[2][1] == 0
    assert total_us(frames) == 1024 * 9 * 1_000_000 // 44100


@pytest.mark.parametrize(
    ("toc", "samples"),
    [
        (b"\x00", 480), (b"\x08", 960), (b"\x10", 1920), (b"\x18", 2880),  # SILK
        (b"\x60", 480), (b"\x68", 960), (b"\x70", 480),                    # hybrid
        (b"\x80", 120), (b"\x88", 240), (b"\x90", 480), (b"\x98", 960),    # CELT
        (b"\x99", 1920), (b"\x9a", 1920), (b"\x9b\x03", 2880), (b"\x83\x30", 5760),
    ],
)  # fmt: skip
def test_opus_packets_are_as_long_as_their_toc_says(toc: bytes, samples: int) -> None:
    """RFC 6716 §3.1: configuration and frame count, here on the first page of a late join."""
    made = [*chain("opus", 0), page(toc + bytes(9), toc + bytes(300), granule=10**9)]
    assert total_us(scan("ogg", b"".join(made))) == 2 * samples * 1_000_000 // 48000


@pytest.mark.parametrize(
    ("head", "samples"),
    [
        ("fff8190000", 192), ("fff8590000", 4608), ("fff8290000", 576), ("fff8890000", 256),
        ("fff8f90000", 32768), ("fff86900" + "7f" + "0f", 16), ("fff86900" + "c280" + "ff", 256),
        ("fff97900" + "feb08080808080" + "0fff", 4096), ("fff87900" + "05" + "ffff", 65536),
    ],
)  # fmt: skip
def test_flac_frames_are_as_long_as_their_header_says(head: str, samples: int) -> None:
    """RFC 9639 §9.1.1: block sizes of the table, or behind a coded number of 1 to 7 bytes."""
    made = [*chain("flac", 0), page(bytes.fromhex(head) + bytes(20), granule=10**9)]
    assert total_us(scan("ogg", b"".join(made))) == samples * 1_000_000 // 48000


def test_pages_on_which_no_packet_ends_take_no_time() -> None:
    """Granule −1: the time of a packet that spans pages is that of the page where it ends."""
    made = [
        *chain("flac", 1),
        page(FLAC_FRAME + bytes(255 * 200 - len(FLAC_FRAME)), granule=-1, whole=False),
        page(bytes(80), granule=8192, flags=CONTINUED),
        page(FLAC_FRAME, granule=12288),
    ]
    frames = scan("ogg", b"".join(made))
    assert [duration_us for _, duration_us, _ in frames[-4:]] == [85_333, 0, 85_333, 85_334]
    assert flags_of(frames)[-4:] == [START, START, 0, START]


@pytest.mark.parametrize("leap", [-500_000, 48_000 * 11, 2**50])
def test_a_leap_of_the_granule_is_no_duration(leap: int) -> None:
    """Backwards, or more than ten seconds forwards: the page is as long as its packets."""
    made = chain("opus", 3, first=10**6)
    for number in range(3):
        made.append(page(OPUS_20_MS, granule=10**6 + 2880 + leap + 960 * (number + 1)))
    assert [duration_us for _, duration_us, _ in scan("ogg", b"".join(made))[2:]] == [20_000] * 6


def test_lost_pages_are_tolerated_and_their_time_is_kept() -> None:
    """A gap in the sequence numbers is no reason to stop; the granule spans it."""
    made = chain("opus", 20)
    frames = scan("ogg", b"".join(made[:5] + made[10:]))
    assert [found for found, _, _ in frames] == made[:5] + made[10:]
    assert total_us(frames) == 400_000


def test_the_largest_page_there_is_fits() -> None:
    """255 segments of 255 bytes: 65,307 bytes, and not a byte of look-ahead."""
    made = [*chain("flac", 1), page(bytes(255 * 255), granule=-1, whole=False)]
    assert len(made[-1]) == 65_307
    scanner = Scanner("ogg")
    frames = scanner.feed(b"".join(made))
    assert [found for found, _, _ in frames] == made
    assert scanner.pending_bytes == 0


def test_a_wrong_checksum_is_counted_and_the_page_discarded() -> None:
    """One flipped bit in the audio: the page is gone, its neighbours are not."""
    made = chain("opus")
    broken = made[5][:-1] + bytes([made[5][-1] ^ 1])
    scanner = Scanner("ogg")
    frames = scanner.feed(b"".join([*made[:5], broken, *made[6:]]))
    assert [found for found, _, _ in frames] == made[:5] + made[6:]
    assert scanner.totals["bad_checksum_total"] == scanner.totals["resyncs_total"] == 1
    assert scanner.skipped_bytes_total == len(broken)


def test_pages_without_their_headers_are_refused() -> None:
    """An encoder that goes on where it was cut off is told to start anew."""
    scanner = Scanner("ogg")
    with pytest.raises(SourceError, match="without their headers"):
        scanner.feed(b"".join(PAGES[5:]))


def test_ogg_without_audio_is_refused() -> None:
    """Video alone is no programme."""
    video = [
        page(b"\x80theora" + bytes(40), flags=BOS),
        page(b"\x81theora", b"\x82theora"),
    ]
    with pytest.raises(SourceError, match="Ogg: Opus, Vorbis"):
        scan("ogg", b"".join(video))


@settings(deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(min_value=0), max_size=60), seed=st.integers(0, 99))
def test_any_split_gives_the_same_frames(cuts: list[int], seed: int) -> None:
    """The network decides where reads end, never where frames do; not even amid noise."""
    data = LIVE[:19_000] + noise(seed, 3000) + LIVE[19_000:60_000]
    assert scan("ogg", *split(data, cuts)) == scan("ogg", data)


def test_byte_by_byte_gives_the_same_frames() -> None:
    """The smallest split there is, noise included."""
    data = noise(1, 500) + LIVE[:4000] + noise(2, 2000) + LIVE[:4000]
    assert scan("ogg", *(data[i : i + 1] for i in range(len(data)))) == scan("ogg", data)


@settings(deadline=None, max_examples=80)
@given(
    at=st.integers(2, 60),
    fault=st.sampled_from(["flip", "drop", "junk"]),
    seed=st.integers(0, 2**32),
)
def test_damage_costs_the_page_it_hits_and_no_other(at: int, fault: str, seed: int) -> None:
    """The checksum tells; a broken length only delays what follows, by 65,307 bytes at most."""
    begin = sum(map(len, PAGES[:at]))
    broken = damaged(LIVE, begin, begin + len(PAGES[at]), fault, seed)
    found = [one for one, _, _ in scan("ogg", broken)]
    assert found == PAGES[:at] + PAGES[at + (fault != "junk") :]


@settings(deadline=None, max_examples=150)
@given(
    made=st.lists(
        st.builds(
            page,
            st.sampled_from(
                [head for heads, *_ in HEADS.values() for heads in heads for head in heads]
            )
            | st.binary(max_size=300),
            granule=st.integers(-(2**63), 2**63 - 1),
            serial=st.integers(0, 3),
            flags=st.integers(0, 7),
        ),
        max_size=8,
    ),
    cuts=st.lists(st.integers(min_value=0), max_size=5),
)
def test_sound_pages_of_any_content_never_break_a_scanner(
    made: list[bytes], cuts: list[int]
) -> None:
    """Hostile granules, serials and headers under a right checksum: bounded, and split-proof."""

    def outcome(*pieces: bytes) -> list[Frame] | str:
        try:
            return scan("ogg", *pieces)
        except SourceError as error:
            return str(error)

    data = b"".join(itertools.chain(chain("opus", 2), made))
    frames = outcome(data)
    assert not isinstance(frames, str)
    assert all(duration_us <= 10_000_000 for _, duration_us, _ in frames)
    assert outcome(*split(data, cuts)) == frames
