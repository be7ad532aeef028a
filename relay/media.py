"""Audio in and out through FFmpeg's libraries: packets of any input, container bytes of ours.

Rules of this room
  1. A reader gives pieces in media time that never jumps; a muxer makes one run of container bytes
     out of them. An Ogg run begins with headers and a serial of its own, and ends with a last page.
  2. Audio goes through as it is where its codec fits; only what does not fit is encoded.
  3. A reader belongs to one thread: the caller's, or that of a `Pump`.
  4. PyAV is imported when it is needed, never with the module.
  5. This room knows no server, no real time and no terminal.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import urlsplit, urlunsplit

from relay.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet

PAGE_US = 100_000  # an Ogg page; libavformat holds one back, so the delay is two
HOLE_S, BACK_S = 10.0, 0.5  # larger jumps of the input's time stamps are closed up
LIVE_OPEN_S, LIVE_READ_S = 15.0, 30.0
QUEUE_PACKETS = 256
LIVE_FORMATS = frozenset({"alsa", "pulse", "oss", "jack", "sndio", "openal", "rtsp", "rtp", "sdp"})
RATES_HZ = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})


def without_password(address: str) -> str:
    """The address as it may be shown: its account taken out."""
    if "@" not in address:
        return address
    try:
        parts = urlsplit(address)
    except ValueError:
        return "(an address that cannot be read)"
    if "@" in parts.netloc:
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    # Half an address, such as `user:pass@host/live`: better to show too little.
    return address if os.path.exists(address) else "…@" + address.rpartition("@")[2]


def why(error: Exception) -> str:
    """What an error of the system or of libavformat says."""
    if type(error).__name__ == "ExitError":  # PyAV: its time-out has interrupted libavformat
        return "nothing came in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Timeline:
    """Media time without jumps, in ticks from 0, out of whatever time stamps the input has."""

    def __init__(self, time_base: Fraction) -> None:
        self._hole_ticks, self._back_ticks = int(HOLE_S / time_base), int(BACK_S / time_base)
        self._offset = 0
        self._end = 0  # where the next packet is expected
        self._last = -1
        self._joint = True  # the next packet follows on, whatever its stamp

    def place(self, pts: int | None, duration: int | None) -> int:
        """The packet's place, always after the last one's."""
        at = self._end if pts is None else pts + self._offset
        jumped = not self._last - self._back_ticks <= at <= self._end + self._hole_ticks
        if self._joint or jumped:
            self._offset += self._end - at
            at = self._end
            self._joint = False
        at = max(at, self._last + 1)
        self._last = at
        self._end = at + (duration or 0)
        return at

    def join(self) -> None:
        """A new round of a loop: the next stamp begins again."""
        self._joint = True


class Shape(NamedTuple):
    """How a codec goes out: container, content type, and the encoder when we make it ourselves."""

    codec: str
    container: str
    content_type: str
    encoder: str = ""
    bitrate: int = 0  # bit/s by default; 0 where the encoder has none


SHAPES = {
    "mp3": Shape("mp3", "mp3", "audio/mpeg", "libmp3lame", 128_000),
    "mp2": Shape("mp2", "mp2", "audio/mpeg"),
    "aac": Shape("aac", "adts", "audio/aac", "aac", 128_000),
    "opus": Shape("opus", "ogg", "audio/ogg", "libopus", 96_000),
    "vorbis": Shape("vorbis", "ogg", "audio/ogg", "libvorbis", 128_000),
    "flac": Shape("flac", "ogg", "audio/ogg", "flac"),
}
ENCODERS = tuple(name for name, shape in SHAPES.items() if shape.encoder)
CONTAINER_OPTIONS = {
    # No tags and no Xing frame: nothing but the frames themselves.
    "mp3": {"write_xing": "0", "id3v2_version": "0", "write_id3v1": "0"},
    "ogg": {"page_duration": str(PAGE_US)},
}
ENCODER_OPTIONS = {
    "libopus": {"vbr": "constrained"},  # a live stream keeps to its bit rate
    "vorbis": {"strict": "experimental"},
}
# PyAV's wheels carry no libvorbis; FFmpeg's own encoder has two channels or none.
STAND_INS = {"libvorbis": "vorbis"}
STEREO_ENCODERS = frozenset({"vorbis"})


def choose_shape(found: str, codec: str | None, bitrate: int | None) -> tuple[Shape, bool]:
    """The shape for an input of codec `found`, and whether it must be encoded for that.

    As it is where it fits; with a bit rate asked for, again in its own codec; otherwise as Opus.

    Raises:
        ConfigError: An unknown codec, or a bit rate that is none.
    """
    if codec is not None and codec not in ENCODERS:
        raise ConfigError(f"codec {codec!r} is not known; choose one of {', '.join(ENCODERS)}")
    if bitrate is not None and not 6_000 <= bitrate <= 1_000_000:
        raise ConfigError(f"bitrate {bitrate} is not within 6000 … 1000000 bit/s")
    if codec is not None:
        return SHAPES[codec], True
    if bitrate is None and found in SHAPES:
        return SHAPES[found], False
    return SHAPES[found if found in ENCODERS else "opus"], True


def encode_rate_hz(shape: Shape, input_rate_hz: int) -> int:
    """The sample rate to encode at: the input's own where the codec has it."""
    keeps = shape.codec in ("flac", "vorbis") or input_rate_hz in RATES_HZ
    return input_rate_hz if keeps and shape.codec != "opus" else 48_000


def opus_preskip(extradata: bytes | None) -> int:
    """Samples at 48 kHz to skip, out of the OpusHead (RFC 7845 §5.1); 0 when there is none."""
    if extradata is None or len(extradata) < 12 or not extradata.startswith(b"OpusHead"):
        return 0
    return int.from_bytes(extradata[10:12], "little")


class Sink:
    """Where a muxer writes: bytes to be taken away."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        """Called by libavformat."""
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        """All that was written since the last call."""
        data = bytes(self._bytes)
        self._bytes.clear()
        return data


class Piece(NamedTuple):
    """What the reader hands on: a packet as it is, or what was decoded from it."""

    media_s: float
    ticks: int  # the same in the stream's time base
    packet: Packet[AudioStream] | None
    frames: Sequence[AudioFrame]


class Remuxer:
    """One run of container bytes out of packets as they are."""

    def __init__(self, shape: Shape, template: AudioStream, tags: Mapping[str, str]) -> None:
        self._sink = Sink()
        self._container = _open_output(shape, self._sink, tags)
        self._stream = self._container.add_stream_from_template(template)
        self._time_base = template.time_base or Fraction(1, 1000)
        self._preskip = Fraction(opus_preskip(template.codec_context.extradata), 48_000)
        self._first_ticks: int | None = None

    def add(self, piece: Piece) -> bytes:
        """The bytes that this piece completed."""
        packet = piece.packet
        if packet is None:
            return b""
        if self._first_ticks is None:
            # RFC 7845 §4.3: a granule position counts the pre-skip; libavformat adds it.
            self._first_ticks = piece.ticks + int(self._preskip / self._time_base)
        packet.stream = self._stream
        packet.pts = packet.dts = piece.ticks - self._first_ticks
        duration = packet.duration
        self._container.mux(packet)
        # The muxer has rescaled the packet; another run may take it too.
        packet.time_base, packet.duration = self._time_base, duration
        return self._sink.take()

    def finish(self) -> bytes:
        """The last bytes; the run is over."""
        self._container.close()
        return self._sink.take()


class Encoder:
    """One run of container bytes that we encode: frames of any kind in, mono or stereo out."""

    def __init__(
        self,
        shape: Shape,
        rate_hz: int,
        channels: int,
        bitrate: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._sink = Sink()
        self._container = _open_output(shape, self._sink, tags or {})
        self._rate_hz = rate_hz
        encoder = _encoder_name(shape)
        options = ENCODER_OPTIONS.get(encoder)
        added = self._container.add_stream(encoder, rate_hz, options=options)
        self._stream = cast("AudioStream", added)
        mono = channels == 1 and encoder not in STEREO_ENCODERS
        self._stream.codec_context.layout = "mono" if mono else "stereo"
        if shape.bitrate:
            self._stream.codec_context.bit_rate = bitrate or shape.bitrate
        self._resampler: AudioResampler | None = None
        self._resampled_from: tuple[str, str, int] | None = None
        self._samples = 0

    def add(self, piece: Piece) -> bytes:
        """The bytes that the piece's frames completed."""
        return self.encode(piece.frames)

    def encode(self, frames: Sequence[AudioFrame]) -> bytes:
        """The bytes that these frames completed."""
        for frame in frames:
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            if kind != self._resampled_from:
                self._flush_resampler()
                self._start_resampler(kind)
            frame.pts = None
            self._take(self._resampler.resample(frame) if self._resampler else ())
        return self._sink.take()

    def finish(self) -> bytes:
        """The last bytes; the run is over."""
        self._flush_resampler()
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()

    def _start_resampler(self, kind: tuple[str, str, int]) -> None:
        from av.audio.resampler import AudioResampler

        context = self._stream.codec_context
        self._resampler = AudioResampler(context.format, context.layout, self._rate_hz)
        self._resampled_from = kind

    def _flush_resampler(self) -> None:
        if self._resampler is not None:
            self._take(self._resampler.resample(None))
            self._resampler = None

    def _take(self, frames: Iterable[AudioFrame]) -> None:
        for frame in frames:
            frame.pts, frame.time_base = self._samples, Fraction(1, self._rate_hz)
            self._samples += frame.samples
            self._container.mux(self._stream.encode(frame))


def _encoder_name(shape: Shape) -> str:
    import av

    known = shape.encoder in av.codecs_available
    return shape.encoder if known else STAND_INS.get(shape.encoder, shape.encoder)


def _open_output(shape: Shape, sink: Sink, tags: Mapping[str, str]) -> OutputContainer:
    need_av()
    import av

    options = {"flush_packets": "1", **CONTAINER_OPTIONS.get(shape.container, {})}
    container = av.open(sink, "w", format=shape.container, options=options)
    if shape.container == "ogg":
        container.metadata.update(tags)
    return container


def av_errors() -> tuple[type[Exception], ...]:
    """What PyAV raises; FFmpeg's own errors are not all of them OSError or ValueError."""
    from av.error import FFmpegError

    return (FFmpegError, OSError, ValueError)


def need_av() -> None:
    """Raise a SourceError with the next step when PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise SourceError(
            "encoding and decoding need PyAV, which is not installed: "
            "pip install 'relay-audio[media]'"
        ) from None


def is_live(address: str, input_format: str | None) -> bool:
    """True for a device or a network address, which set their own pace; False for a file."""
    if input_format in LIVE_FORMATS:
        return True
    return "://" in address and not address.lower().startswith("file:")


class Reader:
    """The audio of one input, in media time."""

    def __init__(self, address: str, input_format: str | None = None, loop: bool = False) -> None:
        need_av()
        self.live = is_live(address, input_format)
        self.shown = without_password(address)
        if loop and (self.live or address == "-"):
            raise ConfigError(f"loop: {self.shown!r} cannot be read again; loop needs a file")
        self._address = "pipe:0" if address == "-" else address
        self._format = input_format
        self._loop = loop
        self._container = self._open()

    def _open(self) -> InputContainer:
        import av

        def opened() -> InputContainer:
            timeout = (LIVE_OPEN_S, LIVE_READ_S) if self.live else None
            return av.open(self._address, "r", format=self._format, timeout=timeout)

        try:
            container = _aside(opened) if self.live else opened()
        except av_errors() as error:
            raise SourceError(f"cannot open {self.shown!r} as audio: {why(error)}") from None
        if not container.streams.audio:
            container.close()
            raise SourceError(f"{self.shown!r} has no audio stream")
        return container

    @property
    def stream(self) -> AudioStream:
        """The input's first audio stream."""
        return self._container.streams.audio[0]

    @property
    def codec(self) -> str:
        """The codec's common name, such as `mp3`."""
        context = self.stream.codec_context
        return context.codec.canonical_name if context else "unknown"

    def pieces(self, decode: bool) -> Iterator[Piece]:
        """The audio, piece by piece; with `decode` as frames. Blocks while the input has none.

        Raises:
            SourceError: The input is broken off, or holds no audio.
        """
        time_base = self.stream.time_base or Fraction(1, 1000)
        timeline = Timeline(time_base)
        while True:
            count = ticks = 0
            for packet in self._packets():
                count += packet.size > 0
                if packet.size:  # else it is the end, which gives the decoder's last frames
                    ticks = timeline.place(packet.pts, packet.duration)
                frames = _decode(self.stream, packet) if decode else ()
                if packet.size or frames:
                    yield Piece(float(ticks * time_base), ticks, packet, frames)
            if not count:
                raise SourceError(f"{self.shown!r} holds no audio")
            if not self._loop:
                return
            self._container.close()
            self._container = self._open()
            timeline.join()

    def _packets(self) -> Iterator[Packet[AudioStream]]:
        try:
            yield from self._container.demux(self.stream)
        except av_errors() as error:
            raise SourceError(f"{self.shown!r} broke off: {why(error)}") from None

    def close(self) -> None:
        """Let go of the input."""
        self._container.close()


def _decode(stream: AudioStream, packet: Packet[AudioStream]) -> Sequence[AudioFrame]:
    try:
        return stream.codec_context.decode(packet if packet.size else None)
    except av_errors():
        return ()  # a damaged packet: the next ones are whole


def _aside(work: Callable[[], InputContainer]) -> InputContainer:
    """Do it on another thread and wait: libavformat holds up Ctrl-C, a wait in Python does not."""
    done: queue.Queue[InputContainer | Exception] = queue.Queue()

    def run() -> None:
        try:
            done.put(work())
        except Exception as error:
            done.put(error)

    threading.Thread(target=run, daemon=True).start()
    result = done.get()
    if isinstance(result, Exception):
        raise result
    return result


class Pump:
    """A live input, read on a thread of its own, so that the caller can be interrupted."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._queue: queue.Queue[Piece | Exception | None] = queue.Queue(QUEUE_PACKETS)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(pieces,), daemon=True)
        self._thread.start()

    def _run(self, pieces: Iterator[Piece]) -> None:
        end: Exception | None = None
        try:
            for piece in pieces:
                self._queue.put(piece)
                if self._stopped:
                    break
        except Exception as error:
            end = error
        self._queue.put(end)

    def __iter__(self) -> Iterator[Piece]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def stop(self) -> None:
        """Tell the thread to end at its next piece; a silent input may take LIVE_READ_S."""
        self._stopped = True
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
