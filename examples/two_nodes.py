"""Two nodes in one process: an origin that is fed, and an edge that receives from it.

    pip install relay-audio[media]
    python examples/two_nodes.py                # listen to the address of either

What runs on two machines is the same, but for the addresses.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np

import relay

RATE_HZ = 44_100
BLOCK = 882  # 20 ms


async def main(seconds: float) -> None:
    """A tone on the origin, heard on the edge."""
    async with (
        relay.Node(http=0, backbone="tcp://127.0.0.1:0") as origin,
        relay.Node(http=0, upstream=str(origin.backbone_address)) as edge,
        origin.source("/tone", codec="mp3", rate_hz=RATE_HZ, channels=1) as tone,
    ):
        print(f"origin http://{origin.http_address}/tone", flush=True)
        print(f"edge   http://{edge.http_address}/tone", flush=True)
        clock = relay.AudioClock(RATE_HZ)
        for at in range(0, int(seconds * RATE_HZ), BLOCK):
            wave = np.sin(2 * np.pi * 440 * (at + np.arange(BLOCK)) / RATE_HZ)
            tone.feed_pcm((wave * 8000).astype("int16"))
            await clock.tick(BLOCK)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 3600))
