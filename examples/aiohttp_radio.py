"""An aiohttp service with `/radio`: who may listen is decided here, who listens is told here.

    pip install relay-audio[media]
    python examples/aiohttp_radio.py            # then open http://127.0.0.1:8080/radio/live?key=open

Encoders send to the node's own HTTP door (source password `hackme`), listeners come by this
service's: the engine takes their connections over.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from aiohttp import web

import relay


async def on_join(join: relay.Join) -> relay.Verdict:
    """Whoever knows the key may listen; a service would look into its own accounts."""
    if join.query.get("key") == "open":
        return relay.Allow()
    return relay.Deny(403, "the key is not that one")


async def keep_accounts(node: relay.Node) -> None:
    """A line for whatever happens."""
    async for event in node.events():
        if isinstance(event, relay.Left):
            for visit in event.visits:
                print(f"{visit.address} heard {event.mount} for {visit.seconds:.1f} s", flush=True)
        elif isinstance(event, relay.SourceUp | relay.SourceDown):
            print(event, flush=True)


def application(http: str = "127.0.0.1:8000") -> web.Application:
    """The service; the node opens and closes with it."""
    app = web.Application()
    node = relay.Node(http=http, source_password="hackme", on_join=on_join)

    async def node_of_the_service(app: web.Application) -> AsyncIterator[None]:
        async with node:
            print(f"send audio to http://source:hackme@{node.http_address}/live", flush=True)
            accounts = asyncio.create_task(keep_accounts(node))
            yield
        await accounts  # ends with the node

    app.cleanup_ctx.append(node_of_the_service)
    app.router.add_get("/radio/{mount}", node.aiohttp_handler())
    return app


if __name__ == "__main__":
    http, port = (sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 2 else ("127.0.0.1:8000", 8080)
    web.run_app(application(http), host="127.0.0.1", port=port)
