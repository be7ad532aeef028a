"""The demo's programme: music made here, with a time mark each second; and signals for tests.

Rules of this room
  1. Every second is a pure function of (seed, second): the programme can begin anywhere, and two
     runs with one seed are the same, sample by sample.
  2. The marks: second n begins with a short beep of 1000 + 100 × (n mod 10) Hz; each tenth second
     with a long one of 1000 + 100 × (n div 10 mod 6) Hz. A listener can read the time off them.
  3. 48 kHz, stereo, float32, shape (samples, 2), within ±1.
  4. numpy and PyAV are imported when they are needed, never with the module. No clock here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from relay.media import SHAPES, Encoder, need_av

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

RATE_HZ = 48_000
BLOCK_SAMPLES = 960  # 20 ms: one Opus frame
SEED = 1
BAR_S = 4
CHORDS = ((57, 60, 64, 69), (53, 57, 60, 65), (48, 55, 60, 64), (55, 59, 62, 67))  # Am F C G
NOTES_PER_S = 4
NOTE_S = 0.9
MARK_S, LONG_MARK_S = 0.06, 0.3
BITRATES = {"mp3": 128_000, "opus": 96_000}

Codec = Literal["mp3", "opus"]


class Chunk(NamedTuple):
    """Container bytes, and the media time up to which they were made."""

    media_s: float
    data: bytes


def mark_of(second: int) -> tuple[int, float]:
    """The time mark of a second of the programme: pitch in Hz, length in seconds."""
    if second % 10 == 0:
        return 1000 + 100 * (second // 10 % 6), LONG_MARK_S
    return 1000 + 100 * (second % 10), MARK_S


def title_at(second: int) -> str:
    """The title that belongs to this second: it changes with each round of the chords."""
    names = ("Morning", "Harbour", "Long Road", "Lanterns", "Low Tide", "Clear Sky")
    return f"Relay Demo - {names[second // 15 % len(names)]} ({second // 60:02d}:{second % 60:02d})"


def second_of(second: int, seed: int = SEED) -> Samples:
    """One second of the programme, shape (48000, 2)."""
    import numpy as np

    music = _pad(second, seed)
    music += _arpeggio(second, seed)
    pitch_hz, length_s = mark_of(second)
    samples = int(length_s * RATE_HZ)
    t_s = np.arange(samples) / RATE_HZ
    fade = np.minimum(1.0, np.minimum(t_s, t_s[::-1]) / 0.005)
    music[:samples] *= (1 - 0.8 * fade)[:, None]
    music[:samples] += (0.35 * fade * np.sin(2 * np.pi * pitch_hz * t_s))[:, None]
    return np.clip(music, -1.0, 1.0).astype(np.float32)


def blocks(seed: int = SEED, first_s: int = 0) -> Iterator[Samples]:
    """The programme without end, in blocks of 20 ms, shape (960, 2), from second `first_s` on."""
    for second in count(first_s):
        samples = second_of(second, seed)
        for at in range(0, RATE_HZ, BLOCK_SAMPLES):
            yield samples[at : at + BLOCK_SAMPLES]


def encode(codec: Codec, *, seed: int = SEED, first_s: int = 0) -> Iterator[Chunk]:
    """The programme without end as MP3 (128 kbit/s) or Ogg Opus (96 kbit/s), in small pieces.

    Media time counts from 0 at the first block, whatever `first_s` is.

    Raises:
        SourceError: PyAV is not installed.
    """
    need_av()
    encoder = Encoder(SHAPES[codec], RATE_HZ, 2, BITRATES[codec], {"title": "Relay Demo"})
    for number, block in enumerate(blocks(seed, first_s), start=1):
        if data := _encode_block(encoder, block):
            yield Chunk(number * BLOCK_SAMPLES / RATE_HZ, data)


def programme_bytes(codec: Codec, seconds: float, seed: int = SEED) -> bytes:
    """The first seconds of the programme as one whole file of container bytes."""
    need_av()
    encoder = Encoder(SHAPES[codec], RATE_HZ, 2, BITRATES[codec], {"title": "Relay Demo"})
    wanted = round(seconds * RATE_HZ / BLOCK_SAMPLES)
    data = [_encode_block(encoder, block) for block in islice(blocks(seed), wanted)]
    return b"".join(data) + encoder.finish()


def known_signal(
    seconds: float, rate: int = RATE_HZ, channels: int = 2, seed: int = SEED
) -> Samples:
    """A signal to recognise: a tone for each channel under noise that the seed decides.

    Returns:
        float32, shape (samples, channels), within ±0.6.
    """
    import numpy as np

    samples = round(seconds * rate)
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, (samples, channels))
    tones_hz = 440.0 * 1.5 ** np.arange(channels)
    phase = 2 * np.pi * np.arange(samples)[:, None] / rate * tones_hz
    signal: Samples = (0.5 * np.sin(phase) + noise).astype(np.float32)
    return signal


def _encode_block(encoder: Encoder, block: Samples) -> bytes:
    import numpy as np
    from av.audio.frame import AudioFrame

    interleaved = np.ascontiguousarray(block).reshape(1, -1)
    frame = AudioFrame.from_ndarray(interleaved, format="flt", layout="stereo")
    frame.sample_rate = RATE_HZ
    return encoder.encode((frame,))


def _chord(bar: int, seed: int) -> tuple[list[float], list[int]]:
    """A bar's pitches in Hz, and the order in which the arpeggio plays them."""
    import numpy as np

    shift = int(np.random.default_rng(seed).integers(-3, 4))
    order = np.random.default_rng((seed, bar)).permutation(4).tolist()
    notes = CHORDS[bar % len(CHORDS)]
    return [440.0 * 2.0 ** ((note + shift - 69) / 12) for note in notes], order


def _pad(second: int, seed: int) -> NDArray[np.float64]:
    """The chord under everything: it swells in and out with its bar."""
    import numpy as np

    pitches_hz, _ = _chord(second // BAR_S, seed)
    t_s = second + np.arange(RATE_HZ) / RATE_HZ  # time of the programme: phases run through
    swell = np.sin(np.pi * (t_s % BAR_S) / BAR_S) ** 0.5
    music = np.zeros((RATE_HZ, 2))
    for voice, pitch_hz in enumerate(pitches_hz):
        tone = np.sin(2 * np.pi * pitch_hz / 2 * t_s) + 0.3 * np.sin(2 * np.pi * pitch_hz * t_s)
        sides = [0.05, 0.03] if voice % 2 else [0.03, 0.05]
        music += (swell * tone)[:, None] * sides
    return music


def _arpeggio(second: int, seed: int) -> NDArray[np.float64]:
    """Plucked notes; those of the second before still ring."""
    import numpy as np

    length = int(NOTE_S * RATE_HZ)
    t_s = np.arange(length) / RATE_HZ
    attack, release = np.minimum(1.0, t_s / 0.004), np.minimum(1.0, (NOTE_S - t_s) / 0.05)
    envelope = attack * np.exp(-5 * t_s) * release
    music = np.zeros((3 * RATE_HZ, 2))  # the second before, this one, and room for the tails
    for before, start_s in ((RATE_HZ, second), (0, second - 1)):
        if start_s < 0:
            continue
        pitches_hz, order = _chord(start_s // BAR_S, seed)
        for step in range(NOTES_PER_S):
            pitch_hz = 2 * pitches_hz[order[(start_s * NOTES_PER_S + step) % 4]]
            note = np.sin(2 * np.pi * pitch_hz * t_s) + 0.4 * np.sin(4 * np.pi * pitch_hz * t_s)
            at = before + step * RATE_HZ // NOTES_PER_S
            pan = 0.25 + 0.5 * (step / (NOTES_PER_S - 1))
            music[at : at + length] += (0.12 * envelope * note)[:, None] * [1 - pan, pan]
    return music[RATE_HZ : 2 * RATE_HZ]
