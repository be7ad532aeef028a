"""Which container a source sends: content types, first bytes, and what others call it.

Rules of this room
  1. A kind is what the core can cut: one entry of `KINDS` for each of its scanners.
  2. Content types are hints from strangers: parameters and case are ignored, what is unknown is
     refused with the list of what is known. Nothing is guessed.
  3. First bytes may tell a kind or name a stranger: `settle` believes them where they are certain
     (a magic number, or frames that confirm one another), else the content type. The scanner's
     checks are the last word.
  4. No I/O here, and no audio is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay import _core
from relay.errors import SourceError

__all__ = [
    "DETECT_BYTES",
    "KINDS",
    "SETTLE_BYTES",
    "Format",
    "detect",
    "format_of",
    "promise_of",
    "settle",
]

DETECT_BYTES = 4096
"""First bytes that `detect` looks at; a tag longer than that hides what follows it."""

SETTLE_BYTES = 16_384
"""First bytes after which `settle` waits for no more: two ADTS frames, or 11 of the largest MP3."""

FRAMES_CERTAIN = 3  # in a row, so that another format than promised is believed


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of stream, under the names that players, encoders and FFmpeg give it."""

    kind: str
    """The name in Relay: `mpeg`, `adts`, `ogg`, `webm`, `matroska`; also what the core calls it."""
    scan_kind: int
    """The core's number of its scanner: SCAN_MPEG, … of `_core/frames_state.pxd`."""
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
    """Whether ICY titles may stand between its bytes; Ogg and WebM carry their own."""


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

_WEBM = Format(
    kind="webm",
    scan_kind=4,
    content_type="audio/webm",
    content_types=frozenset(["audio/webm", "video/webm", "audio/x-webm"]),
    extension=".webm",
    muxer="webm",
    demuxer="webm",
    has_headers=True,
    takes_icy=False,
)
# The same elements; players that take WebM alone must know that this may hold other codecs.
_MATROSKA = Format(
    kind="matroska",
    scan_kind=4,
    content_type="audio/x-matroska",
    content_types=frozenset(  # RFC 9559 §27.3, and what was sent before it
        ["audio/matroska", "audio/x-matroska", "video/matroska", "video/x-matroska"]
    ),
    extension=".mka",
    muxer="matroska",
    demuxer="matroska",
    has_headers=True,
    takes_icy=False,
)

KINDS: dict[str, Format] = {known.kind: known for known in (_MPEG, _ADTS, _OGG, _WEBM, _MATROSKA)}
"""Each kind of stream that Relay carries, by its name."""

_BY_CONTENT_TYPE = {name: known for known in KINDS.values() for name in known.content_types}

# Formats that sources do send and Relay does not carry, with the way out.
_STRANGERS = {
    "audio/flac": "send FLAC in Ogg, as audio/ogg",
    "audio/x-flac": "send FLAC in Ogg, as audio/ogg",
    "audio/mp4": "send AAC as ADTS, as audio/aac",
    "audio/x-m4a": "send AAC as ADTS, as audio/aac",
    "audio/wav": "encode it first, as audio/mpeg, audio/aac or audio/ogg",
    "audio/x-wav": "encode it first, as audio/mpeg, audio/aac or audio/ogg",
    "video/ogg": "send the sound alone, as audio/ogg",
}

# First bytes of what is not carried; the core refuses the same ones (`scan_foreign`).
_MAGIC = (
    (b"fLaC", 0, "flac"),
    (b"ftyp", 4, "mp4"),
    (b"RIFF", 0, "wav"),
    (b"FORM", 0, "aiff"),
)

MAGIC_BYTES = 12  # enough for all of them

_NAMES = {"flac": "bare FLAC", "mp4": "MP4", "wav": "RIFF (WAV, AVI)", "aiff": "AIFF"}
_WAYS = {
    "flac": _STRANGERS["audio/flac"],
    "mp4": _STRANGERS["audio/mp4"],
    "wav": _STRANGERS["audio/wav"],
    "aiff": _STRANGERS["audio/wav"],
}


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


def promise_of(content_type: str) -> Format | None:
    """As `format_of`; None where the type is missing or says nothing (RFC 9110 §8.3)."""
    name = content_type.partition(";")[0].strip().lower()
    return None if name in ("", "application/octet-stream") else format_of(name)


def detect(first: bytes) -> str | None:
    """Tell what a stream is from its first bytes.

    Args:
        first: The beginning of the stream; `DETECT_BYTES` of it are enough.

    Returns:
        A key of `KINDS`; or the name of a format that is not carried (`flac`, `mp4`, `wav`,
        `aiff`); or None where these bytes do not tell. Does not block.
    """
    first = bytes(first[:DETECT_BYTES])
    if first.startswith(b"OggS"):
        return _OGG.kind
    if first.startswith(b"\x1a\x45\xdf\xa3"):  # RFC 8794 §11.2.1: EBML; §11.2.6: its DocType
        return _MATROSKA.kind if b"\x42\x82\x88matroska" in first[:64] else _WEBM.kind
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


def settle(
    first: bytes, promised: Format | None, *, whole: bool = False, sure: int = FRAMES_CERTAIN
) -> Format | None:
    """Tell which format a source sends, from its first bytes and what it promised.

    Args:
        first: What has come so far.
        promised: What its content type names; None where it names nothing.
        whole: Nothing more will come.
        sure: Frames in a row that are believed against the promise.

    Returns:
        The format; None where more bytes are needed. Does not block: at most `SETTLE_BYTES` are
        read, three times.

    Raises:
        SourceError: The bytes are certainly something that is not carried, or, without a promise,
            nothing that is known. HTTP answers 415 with its message.
    """
    first = bytes(first[:SETTLE_BYTES])
    is_last = whole or len(first) >= SETTLE_BYTES
    if len(first) < MAGIC_BYTES and not is_last:
        return None
    found = detect(first)
    if found is not None and found not in KINDS:
        raise SourceError(f"the bytes are {_NAMES[found]}, which is not carried; {_WAYS[found]}")
    if found is not None and KINDS[found].has_headers:
        is_alike = promised is not None and promised.scan_kind == KINDS[found].scan_kind
        return promised if is_alike else KINDS[found]
    guesses = [promised] if promised is not None else []
    for known in (*guesses, *(k for k in (_MPEG, _ADTS) if k is not promised)):
        frames, why_not = _core.find_frames(known.kind, first)
        if why_not is not None and known in (promised, KINDS.get(found or "")):
            raise SourceError(why_not)  # such as MPEG's free format
        if frames >= (1 if known is promised else sure):
            return known
    if not is_last and _tag_bytes(first) <= len(first):
        return None
    if promised is None and _tag_bytes(first) > len(first):
        return _MPEG  # so long a tag (ID3: a picture) stands before MP3
    if promised is None:
        raise SourceError(
            f"no content type is given, and the bytes ({_shown(first)}) do not tell it; "
            f"set Content-Type to one of {_carried()}"
        )
    return promised


def _shown(first: bytes) -> str:
    """What the stream begins with, for a message."""
    return f"{len(first)} of them, {first[:8].hex(' ') or 'none'} …"


def _tag_bytes(first: bytes) -> int:
    """Size of the ID3v2 tag at the front, 0 without one (ID3v2.4 structure §3.1)."""
    if len(first) < 10 or not first.startswith(b"ID3") or max(first[6:10]) > 0x7F:
        return 0
    body = first[6] << 21 | first[7] << 14 | first[8] << 7 | first[9]
    return body + (20 if first[5] & 0x10 else 10)


def _carried() -> str:
    """The content types to choose from, for messages."""
    return ", ".join(known.content_type for known in KINDS.values())
