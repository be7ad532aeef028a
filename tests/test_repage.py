"""Pages of an Ogg source are divided: same packets, right granules, numbers, checksums, starts."""

from __future__ import annotations

import random
import subprocess
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_frames_ogg import BOS, CONTINUED, EOS, HEADS, OPUS_20_MS, chain, crc32, opus_head, page
from tools.audio import decode
from tools.encoders import CHAIN, HEADER, START, encode, split

from relay._core import Engine, Source

PAGE_MS = 100
LONG_PAGES = (("page_duration", "1000000"),)


def vorbis(rate_hz: int, channels: int) -> bytes:
    """libvorbis, with short and long blocks: clicks between seconds of a tone. FFmpeg's own
    encoder, where there is no ffmpeg with it, writes long ones alone."""
    clicks = f"aevalsrc='0.3*sin(440*t)+0.6*random(0)*lt(mod(t,0.4),0.02)':s={rate_hz}:d=6"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", clicks, "-ac", str(channels)]
    command += ["-c:a", "libvorbis", "-page_duration", "1000000", "-f", "ogg", "pipe:1"]
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError):
        coder = (("strict", "-2"),)
        return encode("vorbis", "ogg", rate_hz, seconds=6.0, muxer=LONG_PAGES, coder=coder)


MATERIAL = {
    "opus": encode("libopus", "ogg", 48000, bit_rate_bps=96_000, seconds=6.0),
    "opus-60ms": encode(
        "libopus", "ogg", 48000, seconds=4.0, coder=(("frame_duration", "60"),), muxer=LONG_PAGES
    ),
    "vorbis": vorbis(44100, 2),
    "vorbis-mono": vorbis(22050, 1),
    "flac": encode("flac", "ogg", 44100, bit_rate_bps=0, seconds=4.0, muxer=LONG_PAGES),
}
RATES_HZ = {"opus": 48000, "opus-60ms": 48000, "vorbis": 44100, "vorbis-mono": 22050, "flac": 44100}


def repaged(*pieces: bytes, page_ms: int = PAGE_MS, own_serial: bool = False) -> list[bytes]:
    """The pages that listeners of a mount with `ogg_page_ms` get."""
    return [frame for frame, _, _ in frames(*pieces, page_ms=page_ms, own_serial=own_serial)]


def frames(
    *pieces: bytes, page_ms: int = PAGE_MS, own_serial: bool = False
) -> list[tuple[bytes, int, int]]:
    """The same with duration (µs) and flags."""
    engine = Engine(streams_max=2)
    engine.configure("/talk", ogg_page_ms=page_ms, own_serial=own_serial, ring_s=600)
    stream = engine.add_stream("/talk")
    stream.claim()
    stream.begin()
    source = Source(stream, "ogg")
    for piece in pieces:
        source.feed(piece)
    found = []
    sequence = 0
    while (frame := stream.read(sequence)) is not None:
        data, _, _, duration_us, flags = frame
        found.append((data, duration_us, flags & 7))
        sequence += 1
    engine.close()
    return found


class Page:
    """One page, read by its lengths."""

    def __init__(self, data: bytes) -> None:
        assert data[:5] == b"OggS\0"
        assert crc32(data[:22] + bytes(4) + data[26:]) == int.from_bytes(data[22:26], "little")
        self.flags = data[5]
        self.granule = int.from_bytes(data[6:14], "little", signed=True)
        self.serial, self.sequence = (int.from_bytes(data[n : n + 4], "little") for n in (14, 18))
        self.lacing = data[27 : 27 + data[26]]
        self.body = data[27 + data[26] :]
        assert len(self.body) == sum(self.lacing)


def packets(pages: list[bytes]) -> list[bytes]:
    """The packets of one logical stream, put together as RFC 3533 §5 says."""
    found, whole = [], b""
    for one in map(Page, pages):
        assert bool(one.flags & CONTINUED) == bool(whole)
        at = 0
        for segment in one.lacing:
            whole += one.body[at : at + segment]
            at += segment
            if segment < 255:
                found.append(whole)
                whole = b""
    return found


def cut(data: bytes) -> list[bytes]:
    """The pages of a sound file, cut by their lengths alone."""
    pages, at = [], 0
    while at < len(data):
        end = at + 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
        pages.append(data[at:end])
        at = end
    return pages


@pytest.mark.parametrize("name", MATERIAL)
def test_pages_get_short_and_hold_the_same_packets(name: str) -> None:
    """At most ogg_page_ms or one packet; numbered in a row; only the last one ends the chain."""
    data = MATERIAL[name]
    made = frames(data)
    pages = [Page(found) for found, _, _ in made]
    assert packets([found for found, _, _ in made]) == packets(cut(data))
    assert [one.sequence for one in pages] == list(range(len(pages)))
    assert len(pages) > 2 * len(cut(data))
    assert [bool(one.flags & EOS) for one in pages] == [False] * (len(pages) - 1) + [True]
    for (_, duration_us, flags), one in zip(made, pages, strict=True):
        if not flags & HEADER and sum(segment < 255 for segment in one.lacing) > 1:
            assert duration_us <= PAGE_MS * 1000 + 1
        assert bool(flags & START) == (not flags & HEADER and not one.flags & CONTINUED)
    assert sum(duration_us for _, duration_us, _ in made) == sum(
        duration_us for _, duration_us, _ in frames(data, page_ms=0)
    )


@pytest.mark.parametrize("name", MATERIAL)
def test_granules_are_those_of_the_source_and_of_the_packets_between(name: str) -> None:
    """Never back; where a page of the source ended, exactly what it said; ffmpeg agrees."""
    data = MATERIAL[name]
    granules = [one.granule for one in map(Page, repaged(data)) if one.granule >= 0]
    assert all(before <= after for before, after in pairwise(granules))
    assert {one.granule for one in map(Page, cut(data)) if one.granule >= 0} <= set(granules)
    made = frames(data)
    clock = 0
    first = next(n for n, (_, _, flags) in enumerate(made) if not flags & HEADER)
    begin = Page(made[first][0]).granule * 1_000_000 / RATES_HZ[name] - made[first][1]
    for found, duration_us, flags in made:
        clock += duration_us
        one = Page(found)
        if not flags & HEADER and one.granule >= 0:
            assert one.granule * 1e6 / RATES_HZ[name] - begin == pytest.approx(clock, abs=3)


@pytest.mark.parametrize("name", MATERIAL)
def test_ffmpeg_decodes_the_same_samples(name: str, ffmpeg: str) -> None:
    """Not a sample more or less, and no complaint."""
    before, after = (decode(ffmpeg, d) for d in (MATERIAL[name], b"".join(repaged(MATERIAL[name]))))
    assert before.errors == after.errors == ""
    assert after.media_s == pytest.approx(before.media_s, abs=0.001)


def test_pages_that_are_short_enough_are_passed_on_bit_for_bit() -> None:
    """Nothing is changed where nothing has to be."""
    data = encode("libopus", "ogg", 48000, seconds=3.0, muxer=(("page_duration", "60000"),))
    assert b"".join(repaged(data)) == data
    assert b"".join(repaged(MATERIAL["opus"], page_ms=0)) == MATERIAL["opus"]


@pytest.mark.parametrize("codec", HEADS)
def test_each_codec_of_ogg_is_divided(codec: str) -> None:
    """Speex too, whose packets all last the same; Vorbis without a readable setup stays whole."""
    _, packet, samples, _ = HEADS[codec]
    headers = chain(codec, 0)
    long = page(*[packet] * 3, granule=3 * samples, sequence=len(headers))
    last = page(*[packet] * 3, granule=6 * samples, sequence=len(headers) + 1, flags=EOS)
    made = [Page(one) for one in repaged(b"".join([*headers, long, last]), page_ms=10)]
    if codec == "vorbis":
        assert len(made) == len(headers) + 2
        return
    data = made[len(headers) :]
    assert [one.granule for one in data] == [samples * n for n in range(1, 7)]
    assert [one.sequence for one in made] == list(range(len(made)))
    assert [one.flags for one in data] == [0] * 5 + [EOS]


def test_packet_over_several_pages_is_continued_as_it_was() -> None:
    """Its parts stay where they are; what follows is divided; its length is counted once."""
    big = b"\xfc" + b"\x33" * (255 * 100 - 1)
    headers = chain("opus", 0)
    pages = [
        page(OPUS_20_MS, OPUS_20_MS, big, granule=1920, sequence=2, whole=False),
        page(b"\x44" * 51, OPUS_20_MS, OPUS_20_MS, granule=4800, sequence=3, flags=CONTINUED),
    ]
    made = frames(b"".join(headers + pages), page_ms=20)
    told = [Page(found) for found, _, _ in made[2:]]
    assert packets([found for found, _, _ in made[2:]]) == [
        OPUS_20_MS, OPUS_20_MS, big + b"\x44" * 51, OPUS_20_MS, OPUS_20_MS
    ]  # fmt: skip
    assert [one.granule for one in told] == [960, 1920, 2880, 3840, 4800]
    assert [one.flags for one in told] == [0, 0, CONTINUED, 0, 0]
    assert [flags for _, _, flags in made[2:]] == [START, START, 0, START, START]


def test_what_the_source_lost_still_shows() -> None:
    """A gap in its numbers is a gap of the same size in ours."""
    headers = chain("opus", 0)
    pages = [page(*[OPUS_20_MS] * 4, granule=3840 * (n + 1), sequence=2 + n) for n in (0, 1, 5)]
    told = [Page(one).sequence for one in repaged(b"".join(headers + pages), page_ms=40)]
    assert told == [0, 1, 2, 3, 4, 5, 9, 10]


def test_last_page_keeps_the_granule_that_trims_it() -> None:
    """RFC 7845 §4.4: the end is told by a granule that is less than its packets are long."""
    headers = chain("opus", 0)
    pages = [
        page(*[OPUS_20_MS] * 2, granule=1920, sequence=2),
        page(*[OPUS_20_MS] * 3, granule=1920 + 2000, sequence=3, flags=EOS),
    ]
    told = [Page(one).granule for one in repaged(b"".join(headers + pages), page_ms=20)[2:]]
    assert told == [960, 1920, 2880, 3840, 3920]


def test_each_chain_is_numbered_for_itself_and_others_are_left_alone() -> None:
    """What was added counts for its own track and chain alone; multiplexed tracks keep theirs."""
    head = [page(opus_head(), serial=1, flags=BOS)]
    head += [page(b"fishead\0" + bytes(60), serial=9, flags=BOS)]
    tags = page(b"OpusTags" + bytes(8), serial=1, sequence=1)
    long = page(*[OPUS_20_MS] * 4, granule=3840, serial=1, sequence=2)
    other = page(b"bone", serial=9, sequence=1)
    more = page(*[OPUS_20_MS] * 4, granule=7680, serial=1, sequence=3)
    one = b"".join([*head, tags, long, other, more])
    told = frames(one, one, page_ms=40)
    assert sum(bool(flags & CHAIN) for _, _, flags in told) == 2
    half = [Page(found) for found, _, _ in told[: len(told) // 2]]
    assert [(p.serial, p.sequence) for p in half] == [
        (1, 0), (9, 0), (1, 1), (1, 2), (1, 3), (9, 1), (1, 4), (1, 5)
    ]  # fmt: skip


def test_serial_of_its_own_and_short_pages_go_together() -> None:
    """One checksum for both changes."""
    made = [Page(one) for one in repaged(MATERIAL["opus"], own_serial=True)]
    assert len({one.serial for one in made}) == 1
    assert made[0].serial != Page(cut(MATERIAL["opus"])[0]).serial


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2**20), max_size=8), st.sampled_from(sorted(MATERIAL)))
def test_any_split_gives_the_same_pages(cuts: list[int], name: str) -> None:
    """Where the encoder's writes end changes nothing."""
    assert frames(*split(MATERIAL[name], cuts)) == frames(MATERIAL[name])


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 500))
def test_any_damage_leaves_sound_pages(seed: int, page_ms: int) -> None:
    """What goes out has right checksums, whatever came in."""
    dice = random.Random(seed)
    data = bytearray(MATERIAL["vorbis"])
    for _ in range(20):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    for found in repaged(bytes(data), page_ms=page_ms):
        Page(found)
