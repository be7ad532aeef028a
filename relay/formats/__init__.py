"""Which container a source sends: content types, first bytes, and what others call it.

Rules of this room
  1. A kind is what the core can cut: one entry of `KINDS` for each of its scanners.
  2. Content types are hints from strangers: parameters and case are ignored, what is unknown is
     refused with the list of what is known. Nothing is guessed.
  3. First bytes may tell a kind or name a stranger; the scanner's checks are the last word.
  4. No I/O here, and no audio is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.errors import SourceError

__all__ = ["DETECT_BYTES", "KINDS", "Format", "detect", "format_of"]

DETECT_BYTES = 4096
"""First bytes that `detect` looks at; a tag longer than that hides what follows it."""


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of stream, under the names that players, encoders and FFmpeg give it."""

    kind: str
    """The name in Relay: `mpeg`, `adts` or `ogg`; also the name of the core's scanner."""
    scan_kind: int
    """The core's number for it: SCAN_MPEG, SCAN_ADTS, SCAN_OGG of `_core/frames_state.pxd`."""
    content_type: str
    """What listeners are told."""
    content_types: frozenset[str]
    """What sources may say, in lower case and without parameters."""
    extension: str
    """What a recording's name ends with, with the dot."""
    muxer: str
    """FFmpeg's name for writing it."""
    demuxer: str
    """FFmpeg's name for reading it."""
    has_headers: bool
    """Whether a listener needs header frames before the first `start`."""
    takes_icy: bool
    """Whether ICY titles may stand between its bytes; Ogg carries its own."""


_MPEG = Format(
    kind="mpeg",
    scan_kind=1,
    content_type="audio/mpeg",
    content_types=frozenset(
        # RFC 3003; the rest is what encoders have sent since Winamp.
        [
            "audio/mpeg",
            "audio/mp3",
            "audio/x-mpeg",
            "audio/x-mp3",
            "audio/mpeg3",
            "audio/x-mpeg-3",
            "audio/mpa",
        ]
    ),
    extension=".mp3",
    muxer="mp3",
    demuxer="mp3",
    has_headers=False,
    takes_icy=True,
)
_ADTS = Format(
    kind="adts",
    scan_kind=2,
    content_type="audio/aac",
    content_types=frozenset(
        [
            "audio/aac",
            "audio/aacp",
            "audio/x-aac",
            "audio/x-aacp",
            "audio/aac-adts",
            "audio/x-hx-aac-adts",
            "audio/vnd.dlna.adts",
        ]
    ),
    extension=".aac",
    muxer="adts",
    demuxer="aac",
    has_headers=False,
    takes_icy=True,
)
_OGG = Format(
    kind="ogg",
    scan_kind=3,
    content_type="audio/ogg",
    content_types=frozenset(
        # RFC 5334 §10; audio/opus and audio/vorbis are RTP payloads by the book (RFC 7587, 5215),
        # but from a source client they mean Ogg.
        [
            "audio/ogg",
            "application/ogg",
            "audio/x-ogg",
            "application/x-ogg",
            "audio/opus",
            "audio/x-opus",
            "audio/x-opus+ogg",
            "audio/vorbis",
            "audio/x-vorbis",
            "audio/x-vorbis+ogg",
            "audio/vorbis+ogg",
            "audio/flac+ogg",
            "audio/x-flac+ogg",
            "audio/ogg+flac",
            "audio/speex",
            "audio/x-speex",
            "audio/x-speex+ogg",
        ]
    ),
    extension=".ogg",
    muxer="ogg",
    demuxer="ogg",
    has_headers=True,
    takes_icy=False,
)

KINDS: dict[str, Format] = {known.kind: known for known in (_MPEG, _ADTS, _OGG)}
"""Each kind of stream that Relay carries, by its name."""

_BY_CONTENT_TYPE = {name: known for known in KINDS.values() for name in known.content_types}

# Formats that sources do send and Relay does not carry, with the way out.
_STRANGERS = {
    "audio/flac": "send FLAC in Ogg, as audio/ogg",
    "audio/x-flac": "send FLAC in Ogg, as audio/ogg",
    "audio/mp4": "send AAC as ADTS, as audio/aac",
    "audio/x-m4a": "send AAC as ADTS, as audio/aac",
    "audio/webm": "send Opus in Ogg, as audio/ogg",
    "video/webm": "send Opus in Ogg, as audio/ogg",
    "audio/x-matroska": "send Opus in Ogg, as audio/ogg",
    "audio/wav": "encode it first, as audio/mpeg, audio/aac or audio/ogg",
    "audio/x-wav": "encode it first, as audio/mpeg, audio/aac or audio/ogg",
    "video/ogg": "send the sound alone, as audio/ogg",
}

# First bytes of what is not carried; the core refuses the same ones (`scan_foreign`).
_MAGIC = (
    (b"\x1a\x45\xdf\xa3", 0, "webm"),
    (b"fLaC", 0, "flac"),
    (b"ftyp", 4, "mp4"),
    (b"RIFF", 0, "wav"),
    (b"FORM", 0, "aiff"),
)


def format_of(content_type: str) -> Format:
    """Return the format that a content type names.

    Args:
        content_type: The header's value; parameters behind `;`, case and blanks are ignored.

    Returns:
        The entry of `KINDS`. Does not block.

    Raises:
        SourceError: The type is missing or not carried; HTTP answers 415 with its message.
    """
    name = content_type.partition(";")[0].strip().lower()
    if found := _BY_CONTENT_TYPE.get(name):
        return found
    if not name:
        raise SourceError(
            "the source names no content type; set Content-Type to one of " + _carried()
        )
    if way_out := _STRANGERS.get(name):
        raise SourceError(f"content type {name[:80]!r} is not carried; {way_out}")
    raise SourceError(f"content type {name[:80]!r} is not known; set it to one of {_carried()}")


def detect(first: bytes) -> str | None:
    """Tell what a stream is from its first bytes.

    Args:
        first: The beginning of the stream; `DETECT_BYTES` of it are enough.

    Returns:
        A key of `KINDS`; or the name of a format that is not carried (`webm`, `flac`, `mp4`,
        `wav`, `aiff`); or None where these bytes do not tell. Does not block.
    """
    first = bytes(first[:DETECT_BYTES])
    if first.startswith(b"OggS"):
        return _OGG.kind
    rest = first[_tag_bytes(first) :]
    for magic, offset, name in _MAGIC:
        if rest.startswith(magic, offset):
            return name
    if len(rest) < 2 or rest[0] != 0xFF:
        return None
    # Twelve ones and layer 0 are ADTS (ISO/IEC 14496-3 table 1.A.6); eleven ones and another
    # layer are MPEG audio (ISO/IEC 11172-3 §2.4.2.3; eleven because MPEG 2.5 took the twelfth).
    if rest[1] & 0xF6 == 0xF0:
        return _ADTS.kind
    if rest[1] & 0xE0 == 0xE0 and rest[1] & 0x06:
        return _MPEG.kind
    return None


def _tag_bytes(first: bytes) -> int:
    """Size of the ID3v2 tag at the front, 0 without one (ID3v2.4 structure §3.1)."""
    if len(first) < 10 or not first.startswith(b"ID3") or max(first[6:10]) > 0x7F:
        return 0
    body = first[6] << 21 | first[7] << 14 | first[8] << 7 | first[9]
    return body + (20 if first[5] & 0x10 else 10)


def _carried() -> str:
    """The content types to choose from, for messages."""
    return ", ".join(known.content_type for known in KINDS.values())
