"""Content types and first bytes: what is taken, what is refused, and with which words."""

from __future__ import annotations

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe_data import Scanner
from tools.encoders import encode, noise, scan

from relay.errors import SourceError
from relay.formats import DETECT_BYTES, KINDS, SETTLE_BYTES, detect, format_of, settle

MATERIAL = {
    "mpeg": encode("libmp3lame", "mp3", 44100, muxer=(("id3v2_version", "0"),)),
    "adts": encode("aac", "adts", 44100),
    "ogg": encode("libopus", "ogg", 48000),
    "webm": encode("libopus", "webm", 48000, muxer=(("live", "1"),)),
    "matroska": encode("flac", "matroska", 44100, bit_rate_bps=0),
}


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("audio/mpeg", "mpeg"), ("audio/mp3", "mpeg"), ("audio/x-mpeg", "mpeg"),
        ("audio/aac", "adts"), ("audio/aacp", "adts"), ("audio/x-aac", "adts"),
        ("audio/aac-adts", "adts"), ("audio/ogg", "ogg"), ("application/ogg", "ogg"),
        ("audio/opus", "ogg"), ("audio/vorbis", "ogg"), ("audio/flac+ogg", "ogg"),
        ("audio/webm;codecs=opus", "webm"), ("video/webm", "webm"),
        ("audio/x-matroska", "matroska"), ("audio/matroska", "matroska"),
        ("audio/ogg; codecs=opus", "ogg"), (" Audio/MPEG ;rate=44100", "mpeg"),
    ],
)  # fmt: skip
def test_content_types_of_encoders_name_their_kind(content_type: str, kind: str) -> None:
    """Whatever an encoder calls it, it is one of a few things."""
    assert format_of(content_type) is KINDS[kind]


@pytest.mark.parametrize(
    ("content_type", "line"),
    [
        ("text/html", "'text/html' is not known; set it to one of audio/mpeg, audio/aac"),
        ("", "names no content type"),
        (";charset=utf-8", "names no content type"),
        ("audio/flac", "send FLAC in Ogg"),
        ("audio/mp4; codecs=mp4a.40.2", "send AAC as ADTS"),
        ("application/octet-stream", "is not known"),
    ],
)
def test_other_content_types_are_refused_with_the_way_out(content_type: str, line: str) -> None:
    """The message says what was sent and what to send instead."""
    with pytest.raises(SourceError, match=line):
        format_of(content_type)


@given(st.text(max_size=2000))
def test_any_text_is_a_format_or_a_short_refusal(content_type: str) -> None:
    """A header from a stranger makes one line at most: no line breaks, and bounded."""
    try:
        said = format_of(content_type).content_type
    except SourceError as error:
        said = str(error)
    assert len(said) < 600
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_what_the_core_and_ffmpeg_call_it(kind: str) -> None:
    """The table's numbers and names are those that its users go by."""
    known = KINDS[kind]
    assert known.kind == kind
    assert Scanner(kind).totals["kind"] == known.scan_kind
    assert known.content_type in known.content_types
    assert av.format.ContainerFormat(known.muxer, "w").is_output
    assert av.format.ContainerFormat(known.demuxer, "r").is_input
    assert scan(kind, MATERIAL[kind])


def test_no_content_type_names_two_kinds() -> None:
    """Kinds do not overlap."""
    names = [name for known in KINDS.values() for name in known.content_types]
    assert len(names) == len(set(names))
    assert all(name == name.lower().strip() for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_first_bytes_of_encoders_tell_their_kind(kind: str) -> None:
    """Four bytes are enough, with or without a tag before them; Matroska's name takes 64."""
    assert detect(MATERIAL[kind]) == kind
    assert detect(MATERIAL[kind][: 64 if kind == "matroska" else 4]) == kind


def test_a_tag_does_not_hide_what_follows_it() -> None:
    """ID3 stands before MPEG and before AAC; the bytes behind it decide."""
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
    assert detect(tag + MATERIAL["mpeg"]) == "mpeg"
    assert detect(tag + MATERIAL["adts"]) == "adts"
    assert detect(tag + b"fLaC" + bytes(20)) == "flac"
    assert detect(b"ID3\x04\x00\x00\x00\x01\x00\x00" + bytes(DETECT_BYTES)) is None


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [("flac", "flac", "flac"), ("mp4", "aac", "mp4"),
     ("wav", "pcm_s16le", "wav"), ("aiff", "pcm_s16be", "aiff")],
)  # fmt: skip
def test_strangers_are_named_and_the_core_refuses_them(
    container: str, codec: str, name: str
) -> None:
    """What real muxers of other containers write is known by its first bytes, in both rooms."""
    rate_hz = 48000
    data = encode(codec, container, rate_hz, bit_rate_bps=0, seconds=0.5)
    assert detect(data) == name
    for kind in KINDS:
        with pytest.raises(SourceError, match="the bytes are"):
            scan(kind, data[:4096])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_name_or_nothing(first: bytes) -> None:
    """No input breaks the detection."""
    assert detect(first) in {*KINDS, "flac", "mp4", "wav", "aiff", None}


TAG = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)


@pytest.mark.parametrize("promised", [None, *KINDS])
@pytest.mark.parametrize("kind", KINDS)
def test_certain_bytes_win_over_the_promise(kind: str, promised: str | None) -> None:
    """A magic number at once, MPEG and ADTS by frames in a row; WebM and Matroska are alike."""
    told = KINDS[promised] if promised else None
    alike = {kind, promised} == {"webm", "matroska"}
    found = settle(MATERIAL[kind][:SETTLE_BYTES], told)
    assert found is (told if alike else KINDS[kind])


def test_promised_frames_are_believed_as_soon_as_one_is_whole() -> None:
    """So a source that says the truth waits for no more than its scanner does."""
    for kind, size in (("mpeg", 500), ("adts", 900)):
        assert settle(MATERIAL[kind][:20], KINDS[kind]) is None
        sizes = (size for size in range(20, 3000) if settle(MATERIAL[kind][:size], KINDS[kind]))
        assert next(sizes) < 2 * size
    assert settle(MATERIAL["ogg"][:12], KINDS["mpeg"]) is KINDS["ogg"]
    assert settle(MATERIAL["ogg"][:11], KINDS["mpeg"]) is None


def test_tags_before_the_audio_hide_nothing_and_wait_for_nothing() -> None:
    """Behind a short tag the frames decide; a long one is taken for what was promised."""
    for kind in ("mpeg", "adts"):
        assert settle(TAG + MATERIAL[kind][:9000], KINDS["mpeg"]) is KINDS[kind]
    picture = b"ID3\x04\x00\x00\x00\x7f\x00\x00" + bytes(5000)
    assert settle(picture, None) is KINDS["mpeg"]
    assert settle(picture, KINDS["adts"]) is KINDS["adts"]


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (b"fLaC" + bytes(90), "bare FLAC.*in Ogg"), (b"\0\0\0\x20ftypM4A " + bytes(90), "MP4"),
        (b"RIFF" + bytes(90), "RIFF"), (b"FORM" + bytes(90), "AIFF"),
    ],
)  # fmt: skip
def test_what_is_not_carried_is_refused_whatever_was_promised(first: bytes, words: str) -> None:
    """With its name and the way out."""
    for told in (None, *KINDS.values()):
        with pytest.raises(SourceError, match=words):
            settle(first, told)


def test_noise_is_waited_for_then_left_to_the_scanner_or_refused() -> None:
    """The scanner's patience is longer; without a promise there is nothing to be patient for."""
    assert settle(noise(1, 4000), KINDS["mpeg"]) is None
    assert settle(noise(1, SETTLE_BYTES), KINDS["mpeg"]) is KINDS["mpeg"]
    assert settle(noise(1, 4000), None) is None
    with pytest.raises(SourceError, match=r"no content type .*4000 of them, [0-9a-f ]+ …"):
        settle(noise(1, 4000), None, whole=True)
    with pytest.raises(SourceError, match=r"\(0 of them, none …\)"):
        settle(b"", None, whole=True)


def test_free_format_is_refused_with_the_reason() -> None:
    """ISO/IEC 11172-3 §2.4.2.3: no header tells how long its frames are."""
    free = (b"\xff\xfb\x00\x44" + bytes(412)) * 60
    for told in (None, KINDS["mpeg"]):
        with pytest.raises(SourceError, match="free format"):
            settle(free, told)


@given(st.binary(max_size=3000), st.sampled_from([None, *KINDS]), st.booleans())
def test_any_first_bytes_settle_to_something(
    first: bytes, promised: str | None, whole: bool
) -> None:
    """A format, a wait or a short line."""
    told = KINDS[promised] if promised else None
    try:
        found = settle(first, told, whole=whole)
    except SourceError as wrong:
        said = str(wrong)
    else:
        said = ""
        assert found in {None, *KINDS.values()}
        assert found is not None or not whole
    assert len(said) < 400
