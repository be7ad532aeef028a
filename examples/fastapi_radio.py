"""A FastAPI service with live audio beside its own pages; the node lives in its lifespan.

    pip install relay-audio[media] fastapi uvicorn
    python examples/fastapi_radio.py            # then open http://127.0.0.1:8080/radio/live

The engine takes each listener's connection over from uvicorn: however busy this service is, no
listener hears it. A voice agent or a game would feed what it says instead of the chord.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import uvicorn
from fastapi import FastAPI

import relay

RATE_HZ = 48_000
BLOCK = RATE_HZ // 50

node = relay.Node()


async def play(live: relay.NodeSource) -> None:
    """A chord that never ends, in real time."""
    clock = relay.AudioClock(RATE_HZ)
    at = 0
    while True:
        seconds = (at + np.arange(BLOCK)) / RATE_HZ
        chord = sum(np.sin(2 * np.pi * hz * seconds) for hz in (220.0, 277.2, 329.6)) / 5
        live.feed_pcm(np.stack([chord, chord], axis=1).astype("float32"))
        at += BLOCK
        await clock.tick(BLOCK)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the node with the service, close it with the service."""
    async with node, node.source("/live", codec="mp3", name="A chord") as live:
        playing = asyncio.create_task(play(live))
        yield
        playing.cancel()


app = FastAPI(lifespan=lifespan)
app.mount("/radio", node.asgi())


@app.get("/listeners")
async def listeners() -> dict[str, int]:
    """How many listen now."""
    return {"listeners": node.snapshot()["listeners"]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8080)
