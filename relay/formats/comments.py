"""What the header pages of an Ogg chain say: the codec, and the title from its comments.

Rules of this room
  1. Input is hostile: every length is checked against what is there, a wrong one ends the reading,
     and nothing is raised. At most PACKETS_MAX packets and COMMENTS_MAX comments are looked at.
  2. The first stream whose codec is known is the one that is heard (as in _core/frames_ogg.pxd).
  3. No I/O, no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

PACKETS_MAX = 64
COMMENTS_MAX = 1024
TITLE_CHARACTERS_MAX = 4000
_PAGE_HEADER_BYTES = 27
_BOS = 2

# First packet → the codec as Icecast calls it, and what stands before the comments in a later one.
# RFC 7845 §5; Vorbis I §4.2; RFC 9639 §10.1 and §8.6 (a block header of 4 bytes, type 4); Speex.
_CODECS = (
    (b"OpusHead", "Opus", b"OpusTags"),
    (b"\x01vorbis", "Vorbis", b"\x03vorbis"),
    (b"\x7fFLAC", "FLAC", b""),
    (b"Speex   ", "Speex", b""),
)
_FLAC_COMMENT = 4


class Told(NamedTuple):
    """What a chain says of itself."""

    codec: str | None
    title: str | None
    """`ARTIST - TITLE`, or what there is of it; None: it says nothing."""
    artist: str | None = None
    track: str | None = None
    """The two parts of the title, each where it says so."""
    head: tuple[tuple[str, str | int], ...] = ()
    """What Icecast 2.4 tells of the codec's own head, under its names."""


def read_chain(header: bytes) -> Told:
    """Read the header pages of a chain, as `Stream.header()` has them. Never raises."""
    packets = list(_packets(header))
    for number, (serial, packet) in enumerate(packets):
        for magic, codec, before in _CODECS:
            if packet.startswith(magic):
                rest = (later for of, later in packets[number + 1 :] if of == serial)
                comments = _comments_in(rest, codec, before)
                return Told(codec, title_of(comments), *parts_of(comments), _head(codec, packet))
    return Told(None, None)


def _packets(header: bytes) -> Iterator[tuple[int, bytes]]:
    """(serial, packet), each in the order of its end."""
    begun: dict[int, bytes] = {}
    at, count = 0, 0
    while header[at : at + 4] == b"OggS" and at + _PAGE_HEADER_BYTES <= len(header):
        segments = header[at + 26]
        lacing = header[at + _PAGE_HEADER_BYTES : at + _PAGE_HEADER_BYTES + segments]
        serial = int.from_bytes(header[at + 14 : at + 18], "little")
        at += _PAGE_HEADER_BYTES + segments
        for size in lacing:
            begun[serial] = begun.get(serial, b"") + header[at : at + size]
            at += size
            if size < 255:
                yield serial, begun.pop(serial)
                count += 1
                if count == PACKETS_MAX:
                    return


def _head(codec: str, packet: bytes) -> tuple[tuple[str, str | int], ...]:
    """Of Vorbis (Vorbis I §4.2.2) and FLAC (RFC 9639 §10.1): Icecast 2.4 reads these two."""
    if codec == "FLAC" and len(packet) >= 7:
        return (("FLAC_version", f"{packet[5]}.{packet[6]}"),)
    if codec != "Vorbis" or len(packet) < 24:
        return ()
    rate = int.from_bytes(packet[12:16], "little")
    nominal = int.from_bytes(packet[20:24], "little", signed=True)
    kbps = int(nominal / 1000)
    told = {"audio_bitrate": nominal, "audio_channels": packet[11], "audio_samplerate": rate}
    return (*told.items(), ("ice-bitrate", kbps))


def _comments_in(packets: Iterator[bytes], codec: str, before: bytes) -> dict[str, list[str]]:
    for packet in packets:
        if codec == "FLAC":
            if len(packet) > 4 and packet[0] & 0x7F == _FLAC_COMMENT:
                return read_comments(packet[4:])
        elif packet.startswith(before):
            return read_comments(packet[len(before) :])
    return {}


def read_comments(raw: bytes) -> dict[str, list[str]]:
    """Vorbis comments (Vorbis I §5.2.1) by name in upper case; as far as they are sound."""
    vendor_bytes = int.from_bytes(raw[:4], "little")
    at = 4 + vendor_bytes
    count = int.from_bytes(raw[at : at + 4], "little")
    at += 4
    found: dict[str, list[str]] = {}
    for _ in range(min(count, COMMENTS_MAX)):
        size = int.from_bytes(raw[at : at + 4], "little")
        text = raw[at + 4 : at + 4 + size]
        if at + 4 > len(raw) or len(text) < size:
            break
        at += 4 + size
        name, equals, value = text.partition(b"=")
        if equals and len(name) < 64:
            told = found.setdefault(name.decode("ascii", "replace").upper(), [])
            told.append(value[: 4 * TITLE_CHARACTERS_MAX].decode("utf-8", "replace"))
    return found


def parts_of(comments: dict[str, list[str]]) -> tuple[str | None, str | None]:
    """Artist and title, each as far as it is told; several with a comma between."""
    artist = ", ".join(filter(None, comments.get("ARTIST", [])))
    title = ", ".join(filter(None, comments.get("TITLE", [])))
    return artist[:TITLE_CHARACTERS_MAX] or None, title[:TITLE_CHARACTERS_MAX] or None


def title_of(comments: dict[str, list[str]]) -> str | None:
    """`ARTIST - TITLE`, or what there is of it."""
    told = " - ".join(filter(None, parts_of(comments)))
    return told[:TITLE_CHARACTERS_MAX] or None
