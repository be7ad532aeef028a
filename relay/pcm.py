"""PCM into a stream: numpy blocks, encoded on a thread of their own.

Rules of this room
  1. `PcmEncoder.feed` checks, copies and queues a block; audio callbacks may call it. It never
     waits: a block for which the queue has no room is dropped, and counted.
  2. The encoder's thread is the only one that touches the codec. Its cost is measured by its own
     CPU clock: `realtime_factor` is media encoded by CPU spent.
  3. Bounds: queue_ms of blocks that wait, BLOCK_FRAMES_MAX a block, CLOSE_S for what is left at
     the end.
  4. numpy and PyAV are imported when they are needed, never with the module.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

from relay.address import show
from relay.errors import ConfigError, SourceError
from relay.media import RATES_HZ, Encoder, choose_shape, encode_rate_hz, need_av

if TYPE_CHECKING:
    from relay.media import Shape

log = logging.getLogger("relay.pcm")

CODECS = ("opus", "mp3", "aac", "flac")
CHANNELS_MAX = 2
BLOCK_FRAMES_MAX = 1 << 20
CLOSE_S = 2.0
_FORMATS = {"int16": "s16", "float32": "flt"}


class PcmForm(NamedTuple):
    """What is fed, and what it becomes. Make one with `pcm_form`."""

    shape: Shape
    rate_hz: int
    channels: int
    bitrate_bps: int | None
    queue_ms: int


class PcmFacts(NamedTuple):
    """How encoding goes; frames are samples of each channel."""

    fed_frames_total: int  # taken into the queue
    encoded_frames_total: int
    dropped_blocks_total: int  # for which the queue had no room
    dropped_frames_total: int
    queued_ms: float
    realtime_factor: float  # seconds of audio encoded by each second of CPU; 0 before the first


def pcm_form(
    codec: str, rate_hz: int, channels: int, bitrate_bps: int | None, queue_ms: int
) -> PcmForm:
    """The settings of a source of PCM, checked.

    Raises:
        ConfigError: an unknown codec, or a number out of bounds.
        SourceError: the extra `media` is not installed.
    """
    if type(codec) is not str or codec not in CODECS:
        raise ConfigError(f"codec {codec!r:.60} is not known; choose one of {', '.join(CODECS)}")
    if bitrate_bps is not None and (bitrate_bps := _whole(bitrate := bitrate_bps)) is None:
        raise ConfigError(f"bitrate_bps is {_as_told(bitrate)}; it is a whole number, or None")
    shape, _ = choose_shape("", codec, bitrate_bps)
    if (rate := _whole(rate_hz)) not in RATES_HZ:
        known = ", ".join(str(rate) for rate in sorted(RATES_HZ))
        raise ConfigError(
            f"rate_hz {_as_told(rate_hz)} is no rate of these codecs; choose one of {known}"
        )
    if not 1 <= (count := _whole(channels) or 0) <= CHANNELS_MAX:
        raise ConfigError(f"channels is {_as_told(channels)}; the bound is 1 to {CHANNELS_MAX}")
    if not 10 <= (queue := _whole(queue_ms) or 0) <= 60_000:
        raise ConfigError(f"queue_ms is {_as_told(queue_ms)}; the bound is 10 to 60000")
    need_av()
    return PcmForm(shape, rate, count, bitrate_bps, queue)


def _whole(number: object) -> int | None:
    """A whole number, numpy's too, as an int; None for anything else, and for a bool."""
    is_whole = hasattr(number, "__index__") and not isinstance(number, bool)
    return index(number) if is_whole else None  # type: ignore[arg-type]


def _as_told(number: object) -> str:
    """What was given for a number: Python's own words, since 48000.0 is none here."""
    return show(number) if type(number) is int else f"{number!r:.60}"


def check_block(samples: Any, rate_hz: int | None, form: PcmForm, mount: str) -> Any:
    """The block as a (frames, channels) array; SourceError with the value and what is wanted."""
    import numpy as np

    if not isinstance(samples, np.ndarray):
        kind = type(samples).__name__
        raise SourceError(f"{mount}: PCM is a numpy array, not {kind}: numpy.asarray(…) makes one")
    if samples.dtype.name not in _FORMATS or not samples.dtype.isnative:
        raise SourceError(
            f"{mount}: PCM of dtype {samples.dtype}; int16 and float32 are taken: "
            f"convert it with .astype('float32')"
        )
    if samples.ndim == 1 and form.channels == 1:
        samples = samples[:, np.newaxis]
    if samples.ndim != 2 or samples.shape[1] != form.channels:
        raise SourceError(
            f"{mount}: PCM of shape {samples.shape}; this source takes (frames, {form.channels}): "
            "turn planes with .T, or open the source with other channels"
        )
    if samples.shape[0] > BLOCK_FRAMES_MAX:
        raise SourceError(
            f"{mount}: a block of {samples.shape[0]} frames; the bound is {BLOCK_FRAMES_MAX}: "
            "feed it in parts"
        )
    if rate_hz is not None and rate_hz != form.rate_hz:
        raise SourceError(
            f"{mount}: PCM at {rate_hz} Hz; this source was opened with rate_hz={form.rate_hz}: "
            "resample it, or open another source"
        )
    return samples


class PcmEncoder:
    """Encodes blocks on a thread and feeds what comes of them.

    Args:
        form: what is fed.
        feed: takes the stream's bytes; SourceError when it can take no more.
        mount: for messages.
        now: monotonic seconds.
    """

    def __init__(
        self,
        form: PcmForm,
        feed: Callable[[bytes], object],
        mount: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._form = form
        self._feed = feed
        self._mount = mount
        self._now = now
        self._encoder = Encoder(
            form.shape, encode_rate_hz(form.shape, form.rate_hz), form.channels, form.bitrate_bps
        )
        self._queue_frames_max = form.queue_ms * form.rate_hz // 1000
        self._blocks: deque[Any] = deque()
        self._wake = threading.Condition()
        self._queued_frames = 0
        self._is_closing = self._is_aborted = False
        self._error: SourceError | None = None
        self._began: float | None = None
        self._fed = self._encoded = self._dropped_blocks = self._dropped_frames = 0
        self._cpu_s = 0.0
        self._thread = threading.Thread(target=self._run, name="relay-pcm", daemon=True)
        self._thread.start()

    def feed(self, samples: Any, rate_hz: int | None = None) -> float:
        """Queue a block; ms that the source is ahead of real time. See `NodeSource.feed_pcm`."""
        block = check_block(samples, rate_hz, self._form, self._mount)
        frames = int(block.shape[0])
        now = self._now()
        with self._wake:
            if self._error is not None:
                raise self._error
            if self._is_closing:
                raise SourceError(f"{self._mount}: this source is closed; open a new one")
            if self._began is None:
                self._began = now
            # one block always fits, however long: else none of its size would ever be heard
            if self._queued_frames and self._queued_frames + frames > self._queue_frames_max:
                self._dropped_blocks += 1
                self._dropped_frames += frames
            elif frames:
                self._blocks.append(block.copy())
                self._queued_frames += frames
                self._fed += frames
                self._wake.notify()
            ahead_s = self._fed / self._form.rate_hz - (now - self._began)
        return ahead_s * 1000

    def facts(self) -> PcmFacts:
        """How it goes. Does not block."""
        with self._wake:
            return PcmFacts(
                self._fed,
                self._encoded,
                self._dropped_blocks,
                self._dropped_frames,
                self._queued_frames * 1000 / self._form.rate_hz,
                self._encoded / self._form.rate_hz / self._cpu_s if self._cpu_s else 0.0,
            )

    def finish(self) -> None:
        """Take no more: encode what is queued, then end. Does not block."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """The same, and wait for it for at most `timeout_s`. Twice is no error."""
        self.finish()
        self._thread.join(timeout_s)
        self._is_aborted = True

    # --- the encoder's thread ---

    def _run(self) -> None:
        try:
            while (block := self._next()) is not None:
                self._send(self._encode(block))
                with self._wake:
                    self._queued_frames -= len(block)
                    self._encoded += len(block)
                    self._cpu_s = time.thread_time()
            self._send(self._encoder.finish())
        except SourceError as error:
            self._fail(error)
        except Exception as error:
            log.exception("%s: the encoder failed", self._mount, extra={"event": "pcm_failed"})
            self._fail(SourceError(f"{self._mount}: the encoder failed: {error}; open a new one"))

    def _next(self) -> Any:
        with self._wake:
            while not self._blocks and not self._is_closing:
                self._wake.wait()
            return self._blocks.popleft() if self._blocks and not self._is_aborted else None

    def _encode(self, block: Any) -> bytes:
        import numpy as np
        from av.audio.frame import AudioFrame

        if block.dtype.name == "float32":
            # what is no number would spoil the encoder's state for good
            block = np.clip(np.nan_to_num(block, nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0)
        packed = np.ascontiguousarray(block).reshape(1, -1)
        layout = "mono" if self._form.channels == 1 else "stereo"
        frame = AudioFrame.from_ndarray(packed, format=_FORMATS[block.dtype.name], layout=layout)
        frame.sample_rate = self._form.rate_hz
        return self._encoder.encode([frame])

    def _send(self, data: bytes) -> None:
        if data and not self._is_aborted:
            self._feed(data)

    def _fail(self, error: SourceError) -> None:
        with self._wake:
            self._error = error
            self._blocks.clear()
            self._queued_frames = 0
