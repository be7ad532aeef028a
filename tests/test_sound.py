"""What a decoder must be set up for, out of frames of real encoders and headers by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe_listener import sound
from test_frames_ogg import flac_head, opus_head, page, speex_head, vorbis_head

MPEG_STEREO = bytes([0xFF, 0xFB, 0x90, 0x00])  # 1, layer III, 128 kbit/s, 44.1 kHz
MPEG_JOINT = bytes([0xFF, 0xFB, 0x90, 0x40])
MPEG_MONO = bytes([0xFF, 0xFB, 0x90, 0xC0])
MPEG_48 = bytes([0xFF, 0xFB, 0x94, 0x00])
MPEG_FAST = bytes([0xFF, 0xFB, 0xB0, 0x00])  # 192 kbit/s
MPEG_LAYER_2 = bytes([0xFF, 0xFD, 0x90, 0x00])
ADTS_44 = bytes([0xFF, 0xF1, 0x50, 0x80])  # LC, 44.1 kHz, two channels
ADTS_48 = bytes([0xFF, 0xF1, 0x4C, 0x80])
ADTS_MONO = bytes([0xFF, 0xF1, 0x50, 0x40])


def first_page(head: bytes) -> bytes:
    """The first header page of a chain."""
    return page(head, flags=2)


def test_frames_with_the_same_set_up_are_the_same() -> None:
    """Bit rates and joint stereo make no difference."""
    assert sound(MPEG_STEREO) == sound(MPEG_JOINT) == sound(MPEG_FAST) != 0


def test_rate_channels_layer_and_codec_make_one() -> None:
    """Each of them."""
    frames = [MPEG_STEREO, MPEG_MONO, MPEG_48, MPEG_LAYER_2, ADTS_44, ADTS_48, ADTS_MONO]
    assert len({sound(frame) for frame in frames}) == len(frames)
    assert 0 not in {sound(frame) for frame in frames}


def test_the_first_page_of_a_chain_tells() -> None:
    """Codec, channels and rate of all four."""
    heads = [
        opus_head(1), opus_head(2), vorbis_head(44100), vorbis_head(48000),
        flac_head(1, 44100), flac_head(1, 48000), speex_head(),
    ]  # fmt: skip
    assert len({sound(first_page(head)) for head in heads}) == len(heads)
    assert 0 not in {sound(first_page(head)) for head in heads}


@pytest.mark.parametrize("head", [opus_head(), vorbis_head(), flac_head(1), speex_head()])
def test_of_a_header_that_is_cut_short_nothing_beyond_is_read(head: bytes) -> None:
    """Each length; what tells too little is unknown."""
    whole = first_page(head)
    told = {sound(whole[:size]) for size in range(len(whole))}
    assert told <= {0, sound(whole)}


@given(st.binary(max_size=300))
def test_no_bytes_make_it_read_beyond_them(data: bytes) -> None:
    """Anything at all is a number."""
    assert sound(data) >= 0
    assert sound(b"OggS" + data) >= 0
