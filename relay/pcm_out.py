"""A stream as PCM: frames decoded to numpy, with the place of each sample.

Rules of this room
  1. `FrameDecoder` is fed frames of one epoch in order and told of gaps; it gives float32 blocks
     of shape (frames, channels). It decodes off the host's loop, on a thread of its own.
  2. A frame that cannot be decoded is silence that is left out, counted; never an exception: it
     came from a source, and the next one may be whole.
  3. Ogg pages are taken apart here (RFC 3533 §6): one packet may end in the next page, at most
     PACKET_BYTES_MAX. libavcodec leaves Opus' pre-skip out (RFC 7845 §4.2), wherever one begins;
     what the last page does not count (§4.4) is left out here.
  4. numpy and PyAV are imported when they are needed, never with the module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct

from relay.errors import SourceError
from relay.formats import format_of
from relay.media import av_errors, need_av
from relay.running import Closing, in_thread
from relay.subscribe import Frame, Skipped, Subscription

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from numpy.typing import NDArray

PACKET_BYTES_MAX = 1 << 20
PAGE_HEAD_BYTES = 27
CONTINUED = 1  # flags of an Ogg page, RFC 3533 §6
FIRST = 2
LAST = 4
DECODERS = {"mpeg": "mp3", "adts": "aac", "ogg": ""}  # libavcodec's; in Ogg the headers say which


class PcmBlock(Struct, frozen=True, kw_only=True):
    """Decoded audio that follows the block before it, unless a `Skipped` stood between them."""

    samples: NDArray[Any]
    """float32, shape (frames, channels), -1 … 1; its own memory."""
    rate_hz: int
    epoch: int  # of the source's run, ms
    media_us: int  # of the stream's frame that completed it, within the epoch
    position: int  # samples of each channel that this reader was given before, in this epoch


class Unpager:
    """Packets out of the pages of one logical stream."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_torn = True  # what a page continues is not here

    def gap(self) -> None:
        """Pages are missing."""
        self._rest, self._is_torn = b"", True

    def pages(self, data: bytes) -> Iterator[tuple[int, int, list[bytes]]]:
        """(flags, granule position, whole packets) of each page; what is no page ends them."""
        at = 0
        while data[at : at + 4] == b"OggS" and len(data) >= at + PAGE_HEAD_BYTES:
            table_end = at + PAGE_HEAD_BYTES + data[at + 26]
            laces = data[at + PAGE_HEAD_BYTES : table_end]
            end = table_end + sum(laces)
            if end > len(data):
                return
            granule = int.from_bytes(data[at + 6 : at + 14], "little", signed=True)
            yield data[at + 5], granule, self._packets(data[at + 5], laces, data[table_end:end])
            at = end

    def _packets(self, flags: int, laces: bytes, body: bytes) -> list[bytes]:
        if not flags & CONTINUED:
            self._rest, self._is_torn = b"", False
        found, at, size = [], 0, 0
        for lace in laces:
            size += lace
            if lace == 255:
                continue
            packet = self._rest + body[at : at + size]
            if not self._is_torn:
                found.append(packet)
            self._rest, self._is_torn = b"", False
            at, size = at + size, 0
        if size:
            self._rest += body[at:]
            if len(self._rest) > PACKET_BYTES_MAX:
                self.gap()
        return found


class OggCodec:
    """Which codec a logical stream holds, found in its header packets."""

    def __init__(self) -> None:
        self._headers: list[bytes] = []
        self.name = ""
        self.extradata = b""
        self.is_ready = False

    def take(self, packet: bytes) -> bool:
        """Whether this packet is a header; once they are all here, `is_ready`."""
        if self.is_ready:
            return False
        self._headers.append(packet)
        first = self._headers[0]
        if first.startswith(b"OpusHead"):
            self._settle("opus", 2, first)
        elif first.startswith(b"\x01vorbis"):
            self._settle("vorbis", 3, xiph_laced(self._headers))
        elif first.startswith(b"\x7fFLAC") and len(first) >= 51:
            # its header says how many follow; 0: unknown, then all that are no frame (ff f8)
            count = int.from_bytes(first[7:9], "big")
            self._settle("flac", count + 1 if count else 2, first[17:51])
        elif first.startswith(b"Speex   ") and len(first) >= 80:
            self._settle("speex", 2, first)
        else:
            raise SourceError("an Ogg stream of a codec that is not decoded here")
        return True

    def _settle(self, name: str, count: int, extradata: bytes) -> None:
        if len(self._headers) >= count:
            self.name, self.extradata, self.is_ready = name, extradata, True


def xiph_laced(headers: Sequence[bytes]) -> bytes:
    """Header packets as libavcodec takes them: count, sizes of all but the last, packets."""
    sizes = b"".join(b"\xff" * (len(h) // 255) + bytes([len(h) % 255]) for h in headers[:-1])
    return bytes([len(headers) - 1]) + sizes + b"".join(headers)


def check_kind(kind: str) -> None:
    """SourceError where streams of this kind are not decoded here."""
    if kind not in DECODERS:
        raise SourceError(
            f"a stream in {kind} is not decoded here, {', '.join(DECODERS)} are: "
            "read its frames with subscribe(…)"
        )


class FrameDecoder:
    """Decodes the frames of one epoch.

    Args:
        kind: `mpeg`, `adts` or `ogg`.
        header: the header pages that come before the first frame (Ogg).

    Raises:
        SourceError: the extra `media` is not installed, or nothing here decodes it.
    """

    def __init__(self, kind: str, header: bytes = b"") -> None:
        need_av()
        self._packets = Unpager()
        self._codec = OggCodec()
        self._context: AudioCodecContext | None = None
        self.rate_hz = 0
        self.broken_total = 0
        """Packets that could not be decoded."""
        self._granule = -1  # of the last page that ended a packet; -1: not known
        self._keep: int | None = None  # of the samples of a last page
        self._is_ogg = kind == "ogg"
        if not self._is_ogg:
            check_kind(kind)
            self._open(DECODERS[kind])
        elif header:
            self._ogg(header)

    def decode(self, data: bytes) -> NDArray[Any] | None:
        """The samples that a frame completed: float32 (frames, channels), or None."""
        import numpy as np

        packets = self._ogg(data) if self._is_ogg else [data]
        found = [block for packet in packets for block in self._samples(packet)]
        if not found:
            return None
        whole: NDArray[Any] = found[0] if len(found) == 1 else np.concatenate(found)
        keep, self._keep = self._keep, None
        return whole if keep is None else whole[:keep]

    def gap(self) -> None:
        """Frames are missing: what follows does not belong to what came before."""
        self._packets.gap()
        self._granule = -1
        if self._context is not None:
            self._context.flush_buffers()

    # --- inside ---

    def _open(self, name: str, extradata: bytes = b"") -> None:
        from av.codec import CodecContext

        try:
            context = CodecContext.create(name, "r")
            if extradata:
                context.extradata = extradata
        except av_errors() as error:
            raise SourceError(f"this PyAV decodes no {name}: {error}") from None
        self._context = context  # type: ignore[assignment]

    def _ogg(self, data: bytes) -> list[bytes]:
        audio: list[bytes] = []
        for flags, granule, packets in self._packets.pages(data):
            if flags & FIRST:  # a new chain: another codec perhaps
                self._codec, self._context = OggCodec(), None
                self._granule = -1
            if flags & LAST and 0 <= self._granule <= granule:
                self._keep = granule - self._granule
            self._granule = granule if granule >= 0 else self._granule
            for packet in packets:
                if not self._codec.take(packet):
                    audio.append(packet)
                elif self._codec.is_ready:
                    self._open(self._codec.name, self._codec.extradata)
        return audio

    def _samples(self, data: bytes) -> Iterator[NDArray[Any]]:
        import numpy as np
        from av.packet import Packet

        if self._context is None:
            return
        try:
            frames = self._context.decode(Packet(data))
        except av_errors():
            self.broken_total += 1
            return
        for frame in frames:
            self.rate_hz = frame.sample_rate
            samples = frame.to_ndarray()
            channels = frame.layout.nb_channels
            planar = samples if frame.format.is_planar else samples.reshape(-1, channels).T
            scale = {"s16": 1 / 32768, "s32": 1 / 2147483648}.get(frame.format.name.rstrip("p"))
            if scale is not None:
                planar = planar * np.float32(scale)
            yield np.ascontiguousarray(planar.T, dtype=np.float32)


class PcmSubscription(Closing):
    """An iterator of `PcmBlock` and `Skipped`, for `async for` and `for`; ends as its reader does.

    Args:
        reader: gives the frames.

    Raises:
        SourceError: the stream is of a kind that is not decoded here, as far as it is known.
    """

    def __init__(self, reader: Subscription) -> None:
        self._reader = reader
        self._decoder: FrameDecoder | None = None
        self._epoch = 0
        self._position = 0
        self._ready: deque[PcmBlock | Skipped] = deque()
        self.mount = reader.mount
        if reader.content_type:
            check_kind(format_of(reader.content_type).kind)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._reader!r}>"

    @property
    def broken_total(self) -> int:
        """Packets of this epoch that could not be decoded."""
        return 0 if self._decoder is None else self._decoder.broken_total

    def close(self) -> None:
        """End the iterator. From any thread; twice is no error."""
        self._reader.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PcmBlock | Skipped:
        while not self._ready:
            items = [await anext(self._reader), *self._reader.waiting()]
            work = partial(self._decode, items)
            self._ready.extend(await in_thread(work, "relay-decode"))
        return self._ready.popleft()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> PcmBlock | Skipped:
        while not self._ready:
            items = [next(self._reader), *self._reader.waiting()]
            self._ready.extend(self._decode(items))
        return self._ready.popleft()

    def _decode(self, items: Sequence[Frame | Skipped]) -> list[PcmBlock | Skipped]:
        found: list[PcmBlock | Skipped] = []
        for item in items:
            if isinstance(item, Skipped):
                if self._decoder is not None:
                    self._decoder.gap()
                found.append(item)
            elif (block := self._block(item)) is not None:
                found.append(block)
        return found

    def _block(self, frame: Frame) -> PcmBlock | None:
        if self._decoder is None or frame.epoch != self._epoch:
            header = b"" if frame.header else self._reader.header()
            self._decoder = FrameDecoder(format_of(self._reader.content_type).kind, header)
            self._epoch, self._position = frame.epoch, 0
        samples = self._decoder.decode(frame.data)
        if samples is None:
            return None
        block = PcmBlock(
            samples=samples,
            rate_hz=self._decoder.rate_hz,
            epoch=frame.epoch,
            media_us=frame.media_us,
            position=self._position,
        )
        self._position += len(samples)
        return block
