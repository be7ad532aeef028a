"""What a transcriber does: hear a stream as PCM, cut it where somebody pauses, hand each part on.

    pip install relay-audio[media]
    python examples/captions.py tcp://127.0.0.1:9000 /live     # an origin's backbone, a mount

Each part is mono at 16 kHz, as speech models want it. What would be a call to one is a line here:
when it was said, how long it is, how loud.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import NamedTuple

import numpy as np

import relay

MODEL_HZ = 16_000
QUIET = 0.01  # below this level nobody speaks
PAUSE_S = 0.3
PART_S_MAX = 15.0


class Part(NamedTuple):
    """A run of speech."""

    media_s: float  # where it begins, in the stream's own time
    samples: np.ndarray  # mono, MODEL_HZ


def for_model(block: relay.PcmBlock) -> np.ndarray:
    """Mono at MODEL_HZ. The mean of each run of samples is filter enough for speech."""
    mono = block.samples.mean(axis=1)
    step = block.rate_hz // MODEL_HZ
    runs: np.ndarray = mono[: len(mono) // step * step].reshape(-1, step)
    return np.asarray(runs.mean(axis=1))


async def parts(reader: relay.PcmSubscription) -> AsyncIterator[Part]:
    """Cut where it is quiet for PAUSE_S, after PART_S_MAX, and where something is missing."""
    spoken: list[np.ndarray] = []
    began_s = quiet_s = 0.0
    async for item in reader:
        if isinstance(item, relay.PcmBlock):
            samples = for_model(item)
            is_quiet = float(np.abs(samples).mean()) < QUIET
            quiet_s = quiet_s + len(samples) / MODEL_HZ if is_quiet else 0.0
            if not spoken and not is_quiet:
                began_s = item.media_us / 1e6
            if spoken or not is_quiet:
                spoken.append(samples)
        length_s = sum(map(len, spoken)) / MODEL_HZ
        is_gap = isinstance(item, relay.Skipped)
        if spoken and (is_gap or quiet_s >= PAUSE_S or length_s >= PART_S_MAX):
            yield Part(began_s, np.concatenate(spoken))
            spoken, quiet_s = [], 0.0


async def caption(node: relay.Node, mount: str) -> None:
    """One line for each part, until the stream ends."""
    while not node.has_mount(mount):
        await asyncio.sleep(0.05)
    async with node.subscribe_pcm(mount, start="burst", pace_ms=100) as reader:
        async for part in parts(reader):
            level = 20 * np.log10(max(1e-6, float(np.sqrt((part.samples**2).mean()))))
            seconds = len(part.samples) / MODEL_HZ
            print(f"{part.media_s:8.2f} s: {seconds:.2f} s of speech, {level:.0f} dB", flush=True)


async def main(upstream: str, mount: str) -> None:
    """Receive from an origin, as a node of its own."""
    async with relay.Node(upstream=upstream) as node:
        await caption(node, mount)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
