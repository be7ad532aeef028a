"""relay.media: time lines, shapes, and runs that other readers can read."""

from __future__ import annotations

import io
import socket
from fractions import Fraction
from pathlib import Path

import av
import pytest

from relay import media
from relay.errors import ConfigError, SourceError
from relay.media import (
    SHAPES,
    Encoder,
    Piece,
    Pump,
    Reader,
    Remuxer,
    Timeline,
    choose_shape,
    encode_rate_hz,
    is_live,
    opus_preskip,
    without_password,
)
from relay.programme import known_signal

MILLISECONDS = Fraction(1, 1000)


def write_audio(path: Path, codec: str, seconds: float = 1.0, **options: str) -> Path:
    """A file of the known signal, made by FFmpeg's own muxers."""
    samples = known_signal(seconds, 48_000)
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="stereo")
    frame.sample_rate = 48_000
    with av.open(str(path), "w", options=options) as out:
        experimental = {"strict": "experimental"} if codec == "vorbis" else None
        stream = out.add_stream(codec, 48_000, options=experimental)
        stream.codec_context.layout = "stereo"
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def decoded_samples(data: bytes) -> int:
    """How many samples the container bytes hold; a broken container raises."""
    with av.open(io.BytesIO(data)) as container:
        return sum(frame.samples for frame in container.decode(audio=0))


def ogg_pages(data: bytes) -> list[tuple[int, int, int]]:
    """(flags, serial, size in bytes) of each page (RFC 3533 §6), which must fill the data."""
    pages, at = [], 0
    while at < len(data):
        assert data[at : at + 4] == b"OggS"
        lacing = data[at + 27 : at + 27 + data[at + 26]]
        size = 27 + len(lacing) + sum(lacing)
        pages.append((data[at + 5], int.from_bytes(data[at + 14 : at + 18], "little"), size))
        at += size
    assert at == len(data)
    return pages


def remux(path: Path, skip: int = 0) -> bytes:
    """The file from its piece `skip` on, as one run."""
    reader = Reader(str(path))
    run = Remuxer(SHAPES[reader.codec], reader.stream, {})
    pieces = list(reader.pieces(decode=False))[skip:]
    data = b"".join([run.add(piece) for piece in pieces])
    return data + run.finish()


def test_timeline_begins_at_zero_whatever_the_first_stamp() -> None:
    """A network input joined late starts at media time 0."""
    line = Timeline(MILLISECONDS)
    assert [line.place(pts, 20) for pts in (90_000, 90_020, 90_040)] == [0, 20, 40]


def test_timeline_closes_up_a_jump_in_either_direction() -> None:
    """A stamp that leaps ahead or back follows on the last one."""
    line = Timeline(MILLISECONDS)
    assert [line.place(pts, 20) for pts in (0, 20, 3_600_000, 3_600_020, 5)] == [0, 20, 40, 60, 80]


def test_timeline_keeps_a_short_hole() -> None:
    """Two seconds that the input really lacks stay two seconds."""
    line = Timeline(MILLISECONDS)
    assert [line.place(pts, 20) for pts in (0, 2_000)] == [0, 2_000]


def test_timeline_never_stands_still_or_goes_back() -> None:
    """A doubled stamp still moves on: muxers refuse what does not."""
    line = Timeline(MILLISECONDS)
    assert [line.place(pts, 20) for pts in (0, 0, -5, 20)] == [0, 1, 2, 20]


def test_timeline_fills_missing_stamps_from_durations() -> None:
    """Packets without stamps follow on one another."""
    line = Timeline(MILLISECONDS)
    assert [line.place(None, 20) for _ in range(3)] == [0, 20, 40]


def test_timeline_joins_the_rounds_of_a_loop() -> None:
    """The second round continues where the first ended."""
    line = Timeline(MILLISECONDS)
    line.place(0, 20)
    line.join()
    assert [line.place(pts, 20) for pts in (0, 20)] == [20, 40]


@pytest.mark.parametrize("found", ["mp3", "mp2", "aac", "opus", "vorbis", "flac"])
def test_audio_that_fits_goes_as_it_is(found: str) -> None:
    """No codec asked for, and one that listeners play: no encoding."""
    assert choose_shape(found, None, None) == (SHAPES[found], False)


@pytest.mark.parametrize("found", ["pcm_s16le", "alac", "unknown"])
def test_audio_that_does_not_fit_becomes_opus(found: str) -> None:
    """What no mount carries is encoded to a sensible default."""
    assert choose_shape(found, None, None) == (SHAPES["opus"], True)


def test_a_codec_or_a_bit_rate_asks_for_encoding() -> None:
    """`--codec` decides; a bit rate alone keeps the codec."""
    assert choose_shape("mp3", "aac", None) == (SHAPES["aac"], True)
    assert choose_shape("mp3", None, 64_000) == (SHAPES["mp3"], True)
    assert choose_shape("mp2", None, 64_000) == (SHAPES["opus"], True)


def test_a_wrong_codec_or_bit_rate_is_named_with_its_bound() -> None:
    """The message holds the value and what would do."""
    with pytest.raises(ConfigError, match=r"codec 'wma'.*mp3, aac, opus, vorbis, flac"):
        choose_shape("mp3", "wma", None)
    with pytest.raises(ConfigError, match=r"bitrate 128 is not within 6000"):
        choose_shape("mp3", "mp3", 128)


def test_the_sample_rate_stays_where_the_codec_has_it() -> None:
    """44.1 kHz stays for MP3 and becomes 48 kHz for Opus; 96 kHz stays only for FLAC and Vorbis."""
    assert encode_rate_hz(SHAPES["mp3"], 44_100) == 44_100
    assert encode_rate_hz(SHAPES["opus"], 44_100) == 48_000
    assert encode_rate_hz(SHAPES["aac"], 96_000) == 48_000
    assert encode_rate_hz(SHAPES["flac"], 96_000) == 96_000


def test_preskip_is_read_from_the_opus_head() -> None:
    """RFC 7845 §5.1: bytes 10 and 11, little endian; nothing from anything else."""
    head = b"OpusHead\x01\x02" + (312).to_bytes(2, "little") + bytes(7)
    assert opus_preskip(head) == 312
    assert opus_preskip(b"OpusHe") == opus_preskip(None) == 0


@pytest.mark.parametrize(
    ("address", "input_format", "live"),
    [
        ("talk.mp3", None, False),
        ("file:///talk.mp3", None, False),
        ("sine=440", "lavfi", False),
        ("-", None, False),
        ("http://example.org/live", None, True),
        ("srt://:9000", None, True),
        ("default", "alsa", True),
    ],
)
def test_devices_and_network_addresses_are_live(
    address: str, input_format: str | None, live: bool
) -> None:
    """What has a pace of its own is not paced again."""
    assert is_live(address, input_format) is live


def test_an_account_is_never_shown() -> None:
    """Neither in a good address nor in half of one."""
    assert without_password("rtsp://me:hush@cam:554/a") == "rtsp://cam:554/a"
    assert "hush" not in without_password("source:hush@host/live")
    assert "hush" not in without_password("http://[source:hush@host/live")
    assert without_password("talk.mp3") == "talk.mp3"


def test_mp3_goes_through_byte_for_byte(tmp_path: Path) -> None:
    """Nothing but the file's own frames: no tag, no Xing frame."""
    path = write_audio(tmp_path / "a.mp3", "libmp3lame", write_xing="0", id3v2_version="0")
    assert remux(path) == path.read_bytes()


def test_aac_goes_through_as_adts(tmp_path: Path) -> None:
    """From an MP4, whose packets have no headers, and from ADTS, byte for byte."""
    boxed, bare = (write_audio(tmp_path / name, "aac") for name in ("a.m4a", "a.aac"))
    assert remux(bare) == bare.read_bytes()
    assert remux(boxed)[:2] in (b"\xff\xf1", b"\xff\xf9")
    assert decoded_samples(remux(boxed)) >= 48_000


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.opus", "libopus"), ("a.ogg", "vorbis"), ("a.flac", "flac"), ("a.webm", "libopus")],
)
def test_ogg_runs_have_small_pages_and_all_samples(tmp_path: Path, name: str, codec: str) -> None:
    """Whole pages, one serial, first and last flagged, each of little more than 100 ms."""
    data = remux(write_audio(tmp_path / name, codec, seconds=2))
    pages = ogg_pages(data)
    assert pages[0][0] & 2, "the first page begins the stream (RFC 3533 §6)"
    assert pages[-1][0] & 4, "the last page ends it"
    assert len({serial for _, serial, _ in pages}) == 1
    assert len(pages) >= 12, "FLAC: one page for each frame of 4608 samples and more"
    assert decoded_samples(data) == pytest.approx(96_000, abs=2_000)


@pytest.mark.parametrize(("name", "codec"), [("a.opus", "libopus"), ("a.flac", "flac")])
def test_a_run_may_begin_in_the_middle(tmp_path: Path, name: str, codec: str) -> None:
    """After a reconnection: headers again, another serial, time from the beginning."""
    path = write_audio(tmp_path / name, codec, seconds=2)
    whole, rest = remux(path), remux(path, skip=8)
    assert ogg_pages(whole)[0][1] != ogg_pages(rest)[0][1]
    with av.open(io.BytesIO(rest)) as container:
        first = next(container.decode(audio=0))
        assert first.pts is not None
        assert abs(float(first.pts * first.time_base)) < 0.1


def test_a_piece_can_be_sent_in_a_second_run(tmp_path: Path) -> None:
    """A run that was lost leaves the packet as it found it."""
    reader = Reader(str(write_audio(tmp_path / "a.opus", "libopus")))
    pieces = list(reader.pieces(decode=False))
    runs = [Remuxer(SHAPES["opus"], reader.stream, {}) for _ in range(2)]
    sizes = [sum(len(run.add(piece)) for piece in pieces) + len(run.finish()) for run in runs]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("codec", ["mp3", "aac", "opus", "vorbis", "flac"])
def test_pcm_is_encoded_to_each_codec(tmp_path: Path, codec: str) -> None:
    """Every sample of a WAV file arrives, plus at most the codec's padding."""
    reader = Reader(str(write_audio(tmp_path / "a.wav", "pcm_s16le")))
    run = Encoder(SHAPES[codec], 48_000, 2)
    data = b"".join([run.add(piece) for piece in reader.pieces(decode=True)]) + run.finish()
    assert 48_000 <= decoded_samples(data) <= 48_000 + 4_096


def test_an_input_that_changes_its_form_is_still_encoded() -> None:
    """From stereo at 48 kHz to mono at 16 kHz in mid-stream: one run, no sample lost."""
    run, frames = Encoder(SHAPES["opus"], 48_000, 2), []
    for rate, channels, layout in ((48_000, 2, "stereo"), (16_000, 1, "mono")):
        samples = known_signal(1, rate, channels).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
        frame.sample_rate = rate
        frames.append(frame)
    data = run.add(Piece(0.0, 0, None, frames)) + run.finish()
    assert decoded_samples(data) == pytest.approx(96_000, abs=100)


def test_a_loop_goes_on_in_media_time(tmp_path: Path) -> None:
    """The second round of a file of one second begins at one second."""
    reader = Reader(str(write_audio(tmp_path / "a.wav", "pcm_s16le")), loop=True)
    for piece in reader.pieces(decode=False):
        if piece.media_s >= 2.0:
            break
    assert piece.media_s == pytest.approx(2.0, abs=0.1)


def test_inputs_that_are_no_audio_are_refused_in_one_line(tmp_path: Path) -> None:
    """Missing, garbage, or a loop over what cannot be read twice."""
    garbage = tmp_path / "a.bin"
    garbage.write_bytes(bytes(range(256)) * 64)
    for address in (str(tmp_path / "none.mp3"), str(garbage)):
        with pytest.raises(SourceError, match="cannot open") as caught:
            Reader(address)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="loop needs a file"):
        Reader("-", loop=True)


def test_a_network_input_that_is_silent_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the message says so in words."""
    monkeypatch.setattr(media, "LIVE_OPEN_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/live"
        with pytest.raises(SourceError, match=r"cannot open 'http://.*: nothing came in time"):
            Reader(address)


def test_a_pump_hands_on_pieces_and_then_the_error() -> None:
    """What the reading thread meets, the caller sees, in order."""

    def pieces() -> object:
        yield Piece(0.0, 0, None, ())
        raise SourceError("broke off")

    items = iter(Pump(pieces()))  # type: ignore[arg-type]
    assert next(items).media_s == 0.0
    with pytest.raises(SourceError, match="broke off"):
        next(items)
