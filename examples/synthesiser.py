"""A synthesiser in numpy, heard in the browser: PCM → Opus → a player.

    pip install relay-audio[media]
    python examples/synthesiser.py              # then open the address that it prints

Plain code: no event loop of its own, one thread that makes sound.
"""

from __future__ import annotations

import sys

import numpy as np

import relay

RATE_HZ = 48_000
BLOCK = 960  # 20 ms
NOTES_HZ = (261.6, 293.7, 329.6, 392.0, 440.0)  # a pentatonic scale
NOTE_S = 0.4


def block(at: int) -> np.ndarray:
    """20 ms of stereo from this sample on: a note, plucked."""
    seconds = (at + np.arange(BLOCK)) / RATE_HZ
    note = (seconds / NOTE_S).astype(int)
    hz = np.take(NOTES_HZ, note * 7 % 5)
    mono = np.sin(2 * np.pi * hz * seconds) * np.exp(-6 * (seconds - note * NOTE_S)) * 0.4
    return np.stack([mono, mono], axis=1).astype("float32")


def main(http: str, seconds: float) -> None:
    """Play for so long."""
    with relay.Node(http=http) as node:
        print(f"open http://{node.http_address}/ and press play", flush=True)
        with node.source("/synth", codec="opus", name="Five notes") as synth:
            clock = relay.AudioClock(RATE_HZ)
            for at in range(0, int(seconds * RATE_HZ), BLOCK):
                synth.feed_pcm(block(at))
                clock.wait(BLOCK)
            print(synth.pcm_facts())


if __name__ == "__main__":
    main(
        http=sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000",
        seconds=float(sys.argv[2]) if len(sys.argv) > 2 else 3600,
    )
