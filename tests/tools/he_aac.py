"""HE-AAC frames without an encoder of it, which Debian lacks: AAC-LC from FFmpeg, SBR from us.

Rules of this room
  1. What is made is HE-AAC as ISO/IEC 14496-3 has it: LC at half the rate, and in each frame a fill
     element with spectral band replication (§4.6.18): of a pair of channels for version 1, of one
     channel with parametric stereo (§8) for version 2. ADTS tells of neither: decoders find them
     (implicit signalling, §1.6.6).
  2. It is the least there can be: one envelope of one band, stereo parameters that are off. So it
     shows how such frames are carried and recognised, not how they can sound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

CHANNELS = {1: 2, 2: 1}  # of the LC that a version is made of
ADTS_HEADER_BYTES = 7  # without a checksum, as FFmpeg writes it
SBR_DATA = (13, 4)  # value, bits: extension_type of a fill element (table 4.121)
ID_FIL, ID_END = (6, 3), (7, 3)  # table 4.85

# 24 kHz in, 48 kHz out: the band from 7.5 kHz on is built (start 16, stop 21, the last of four),
# and nothing needs a Huffman code (tables 4.62 to 4.73).
HEADER = (
    (1, 1),  # bs_header_flag, then sbr_header
    *((1, 1), (8, 4), (0, 4), (3, 3), (0, 2), (0, 1), (0, 1)),
    (0, 1),  # bs_data_extra
)
EACH = (  # of each channel
    ((0, 2), (0, 2), (0, 1)),  # sbr_grid: FIXFIX, one envelope, low resolution
    ((0, 1), (0, 1)),  # sbr_dtdf: both along frequency
    ((0, 2),),  # sbr_invf: of the one noise band
    ((40, 7),),  # sbr_envelope: of the one band
    ((15, 5),),  # sbr_noise
    ((0, 1),),  # bs_add_harmonic_flag
)
PAIR = (*HEADER, (0, 1), *(field for part in EACH for field in (*part, *part)), (0, 1))
# §8.6.4: a header that switches intensity, coherence and extensions off; no envelopes of theirs.
STEREO = ((1, 1), (2, 4), (2, 2), *((1, 1), (0, 1), (0, 1), (0, 1)), (0, 1), (0, 2), (0, 7))
SINGLE = (*HEADER, *(field for part in EACH for field in part), *STEREO)


def bits_of(fields: Iterable[tuple[int, int]]) -> str:
    """Values and their sizes as noughts and ones."""
    return "".join(format(value, f"0{size}b") for value, size in fields)


def fill_element(version: int) -> str:
    """The element that makes AAC-LC to HE-AAC of this version, 1 or 2."""
    payload = bits_of((SBR_DATA, *(PAIR if version == 1 else SINGLE)))
    size = -(-len(payload) // 8)
    assert size < 15  # else the count is written in another way
    return bits_of((ID_FIL, (size, 4))) + payload.ljust(8 * size, "0")


def frames_of(adts: bytes) -> Iterator[bytes]:
    """The frames of a stream that has nothing else."""
    while adts:
        size = (adts[3] & 3) << 11 | adts[4] << 3 | adts[5] >> 5
        yield adts[:size]
        adts = adts[size:]


def extend(frame: bytes, element: str) -> bytes:
    """The same frame with one more element before its end."""
    assert frame[1] & 1, "a checksum would have to be made anew"
    body = bin(int.from_bytes(b"\1" + frame[ADTS_HEADER_BYTES:], "big"))[3:]
    end = bits_of([ID_END])
    whole = body.rstrip("0")  # the end is followed by noughts up to a byte
    assert whole.endswith(end)
    body = whole.removesuffix(end) + element + end
    data = int(body.ljust(-(-len(body) // 8) * 8, "0"), 2).to_bytes(-(-len(body) // 8), "big")
    size = ADTS_HEADER_BYTES + len(data)
    head = bytearray(frame[:ADTS_HEADER_BYTES])
    head[3] = head[3] & 0xFC | size >> 11
    head[4] = size >> 3 & 0xFF
    head[5] = head[5] & 0x1F | (size & 7) << 5
    return bytes(head) + data


def he_aac(adts: bytes, version: int) -> bytes:
    """AAC-LC at 24 kHz of as many channels as it needs as HE-AAC of this version, at 48 kHz."""
    element = fill_element(version)
    return b"".join(extend(frame, element) for frame in frames_of(adts))
