"""Listeners through a host's ASGI server: real uvicorn, FastAPI and Starlette, both ways."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tools.hosts import ask, hear, hear_on, reasons_of_a_stall, uvicorn_serving
from tools.script import ALLOW, Script

import relay
from relay.asgi import mount_of, transport_of
from relay.joining import ASKED_MAX
from relay.testing import silence, wait_for

pytestmark = pytest.mark.core
fastapi = pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

SECOND = silence(1.0)


def service(node: relay.Node, radio: Any) -> Any:
    """A FastAPI service with a page of its own, and the radio beside it."""
    app = fastapi.FastAPI()

    @app.get("/")
    def page() -> dict[str, int]:
        return {"listeners": node.snapshot()["listeners"]}

    app.mount("/radio", radio)
    return app


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("takes_socket", [True, False])
async def test_listeners_come_by_the_hosts_server(http: str, takes_socket: bool) -> None:
    """The engine takes the connection, or the audio goes through the host; the page goes on."""
    if http == "httptools":
        pytest.importorskip("httptools")
    async with relay.Node() as node:
        radio = node.asgi(takes_socket=takes_socket)
        async with (
            node.source("/live", content_type="audio/mpeg") as live,
            uvicorn_serving(service(node, radio), http=http) as address,
        ):
            live.feed(SECOND)
            sock = await asyncio.to_thread(ask, address, "/radio/live", "Icy-MetaData: 1")
            head, _ = await asyncio.to_thread(hear, sock, 417)
            assert b" 200 " in head.split(b"\r\n")[0]
            assert b"audio/mpeg" in head
            assert (b"icy-metaint" in head) == takes_socket
            live.feed(SECOND)
            await asyncio.to_thread(hear_on, sock, len(SECOND))
            assert (radio.taken_total, radio.streamed_total) == (takes_socket, not takes_socket)
            other = await asyncio.to_thread(ask, address, "/", "Connection: close")
            assert b'"listeners":' in (await asyncio.to_thread(hear, other, 9999))[1]
            sock.close()
            other.close()


async def test_what_is_no_stream_is_the_hosts_404() -> None:
    """The connection stays the host's: keep-alive, its log, its counters."""
    async with relay.Node() as node, uvicorn_serving(service(node, node.asgi())) as address:
        for path in ("/radio/none", "/radio/", "/radio/a%0d%0ab"):
            sock = await asyncio.to_thread(ask, address, path)
            head, _ = await asyncio.to_thread(hear, sock, 5)
            assert b" 404 " in head.split(b"\r\n")[0]
            sock.close()
        sock = await asyncio.to_thread(ask, address, "/radio/live", method="POST")
        head, _ = await asyncio.to_thread(hear, sock, 5)
        assert b" 405 " in head.split(b"\r\n")[0]
        sock.close()


async def test_a_listener_who_leaves_ends_what_is_streamed_for_him() -> None:
    """Nothing reads on for nobody; a slow one never holds memory beyond its socket's."""
    async with relay.Node() as node:
        radio = node.asgi("/live", takes_socket=False)
        async with (
            node.source("/live", content_type="audio/mpeg") as live,
            uvicorn_serving(service(node, radio)) as address,
        ):
            live.feed(SECOND)
            sock = await asyncio.to_thread(ask, address, "/radio/")
            await asyncio.to_thread(hear, sock, 417)
            stream = next(s for s in node._opened().streams() if s.mount == "/live")
            assert stream.snapshot()["readers"] == 1
            sock.close()
            await asyncio.to_thread(wait_for, lambda: stream.snapshot()["readers"] == 0)


async def test_head_is_answered_without_a_body() -> None:
    """By the engine, which closes; or by the host."""
    async with relay.Node() as node, node.source("/live", content_type="audio/mpeg") as live:
        live.feed(SECOND)
        for takes in (True, False):
            radio = node.asgi(takes_socket=takes)
            async with uvicorn_serving(service(node, radio)) as address:
                sock = await asyncio.to_thread(ask, address, "/radio/live", method="HEAD")
                data = await asyncio.to_thread(sock.recv, 65536)
                assert b" 200 " in data.split(b"\r\n")[0]
                assert data.endswith(b"\r\n\r\n")
                sock.close()


async def test_it_may_be_a_server_of_its_own() -> None:
    """Lifespan is answered; a web socket is refused."""
    async with relay.Node() as node:
        app = node.asgi("/live")
        sent: list[Any] = []
        events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> Any:
            return next(events)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await app({"type": "lifespan"}, receive, send)
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        with pytest.raises(relay.RelayError, match="'websocket'; only http"):
            await app({"type": "websocket"}, receive, send)
    with pytest.raises(relay.MountError):
        node.asgi("live")


@pytest.mark.parametrize(
    ("path", "root", "mount"),
    [("/radio/live", "/radio", "/live"), ("/live", "", "/live"), ("/radio", "/radio", "/"),
     ("/live", "/radio", "/live")],
)  # fmt: skip
def test_the_path_behind_the_root_names_the_mount(path: str, root: str, mount: str) -> None:
    """ASGI 3: root_path is a part of path."""
    assert mount_of({"path": path, "root_path": root}) == mount


def test_a_server_that_gives_up_no_socket_is_not_guessed_at() -> None:
    """What has no transport, or has begun to answer, is streamed."""

    class Cycle:
        transport = object()
        response_started = False

        async def receive(self) -> Any:
            return {}

    async def receive() -> Any:
        return {}

    assert transport_of(receive) is None
    assert transport_of(Cycle().receive) is None


def test_a_middleware_that_passes_receive_on_is_seen_through() -> None:
    """By its own word for it; one that wants a response itself is not."""

    class Transport:
        def close(self) -> None: ...

        get_extra_info = get_write_buffer_size = is_closing = pause_reading = close

    class Cycle:
        transport = Transport()
        response_started = False

        async def receive(self) -> Any:
            return {}

    class Limiter:
        def __init__(self, receive: Any) -> None:
            self.receive = receive

        async def limited(self) -> Any:
            return await self.receive()

    def closing_over(receive: Any) -> Any:
        async def inner() -> Any:
            return await receive()

        return inner

    def another(wrapped_receive: Any) -> Any:
        async def inner() -> Any:
            return await wrapped_receive()

        return inner

    cycle = Cycle()
    wrapped = Limiter(closing_over(cycle.receive)).limited
    assert transport_of(wrapped) is Cycle.transport
    assert transport_of(another(wrapped)) is None
    for _ in range(20):
        wrapped = closing_over(wrapped)
    assert transport_of(wrapped) is None
    cycle.response_started = True
    assert transport_of(cycle.receive) is None


ANSWERS = [
    (relay.Allow(), 200, b"audio/mpeg"),
    (relay.Deny(402, "pay first"), 402, b"pay first"),
    (relay.Redirect("https://b.example/live"), 302, b"location: https://b.example/live"),
    (None, 503, b"retry-after: "),  # none in time
]


@pytest.mark.parametrize(("verdict", "status", "holds"), ANSWERS)
async def test_who_is_streamed_to_is_asked_about(
    verdict: relay.Verdict | None, status: int, holds: bytes
) -> None:
    """Allow, deny, redirect and time-out are the same whoever serves him; HEAD is not asked."""
    seen: list[relay.Join] = []

    async def on_join(join: relay.Join) -> Any:
        seen.append(join)
        return verdict if verdict is not None else await asyncio.sleep(3600)

    async with (
        relay.Node(on_join=on_join, join_timeout_s=0.2) as node,
        node.source("/live", content_type="audio/mpeg") as live,
        uvicorn_serving(service(node, node.asgi(takes_socket=False))) as address,
    ):
        live.feed(SECOND)
        fields = ("User-Agent: VLC/3", "Connection: close")
        with await asyncio.to_thread(ask, address, "/radio/live?key=a%20b", *fields) as sock:
            head, body = await asyncio.to_thread(hear, sock, 417 if status == 200 else 1 << 20)
        assert int(head.split(b" ")[1]) == status
        assert holds in head + body
        [join] = seen
        assert (join.mount, join.address, join.query) == ("/live", "127.0.0.1", {"key": "a b"})
        assert join.user_agent == "VLC/3"
        with await asyncio.to_thread(ask, address, "/radio/live", method="HEAD") as sock:
            head, _ = await asyncio.to_thread(hear, sock, 0)
        assert b" 200 " in head
        assert len(seen) == 1


@pytest.mark.parametrize("takes_socket", [True, False])
async def test_beyond_the_bound_nobody_is_served_unasked(takes_socket: bool) -> None:
    """128 are asked about; the next one is told to come again, and by nobody else's way in."""
    gate = asyncio.Event()

    async def on_join(join: relay.Join) -> relay.Verdict:
        await gate.wait()
        return relay.Allow()

    async with (
        relay.Node(on_join=on_join, join_timeout_s=60) as node,
        node.source("/live", content_type="audio/mpeg") as live,
        uvicorn_serving(service(node, node.asgi(takes_socket=takes_socket))) as address,
    ):
        live.feed(SECOND)
        asked = [await asyncio.to_thread(ask, address, "/radio/live") for _ in range(ASKED_MAX)]
        askers = node._who_asks()
        assert askers is not None
        await asyncio.to_thread(wait_for, lambda: askers._asked == ASKED_MAX)
        with await asyncio.to_thread(ask, address, "/radio/live", "Connection: close") as sock:
            head, _ = await asyncio.to_thread(hear, sock, 1 << 20)
        assert b" 503 " in head.split(b"\r\n")[0]
        assert b"retry-after: 5" in head
        gate.set()
        for sock in asked:
            head, _ = await asyncio.to_thread(hear, sock, 417)
            assert b" 200 " in head.split(b"\r\n")[0]
            sock.close()


async def test_who_is_streamed_to_counts_like_any_listener() -> None:
    """In events and in snapshot(); towards listeners_max; and his id ends him."""
    async with (
        relay.Node(listeners_max=1) as node,
        node.source("/live", content_type="audio/mpeg") as live,
        uvicorn_serving(service(node, node.asgi(takes_socket=False))) as address,
    ):
        events = node.events()
        live.feed(SECOND)
        with await asyncio.to_thread(ask, address, "/radio/live") as sock:
            await asyncio.to_thread(hear, sock, 417)
            assert node.snapshot()["listeners_streamed"] == 1
            with await asyncio.to_thread(ask, address, "/radio/live") as other:
                head, _ = await asyncio.to_thread(hear, other, 0)
            assert b" 503 " in head
            assert b"retry-after: 5" in head
            joined = await told(events, relay.Joined)
            [visit] = joined.visits
            assert (joined.mount, visit.address) == ("/live", "127.0.0.1")
            assert await node.end_listeners("/live", visit.id) == 1
            await asyncio.to_thread(hear, sock, 1 << 20)
        left = await told(events, relay.Left)
        assert left.visits[0].id == visit.id
        assert left.visits[0].reason == "killed"
        assert left.visits[0].sent_bytes >= 417
        assert node.snapshot()["listeners_streamed"] == 0


async def told(events: relay.Events, kind: Any) -> Any:
    """The next event of this kind."""
    async with asyncio.timeout(30):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise EOFError(f"the node closed before a {kind.__name__}")


async def test_scripts_decide_about_who_is_streamed_to() -> None:
    """They let him in for a second, and are told that he has left."""
    with Script() as script:
        script.answer = lambda fields: ALLOW | {"icecast-auth-timelimit": "1"}
        async with (
            relay.Node(listener_add=script.url, listener_remove=script.url) as node,
            node.source("/live", content_type="audio/mpeg") as live,
            uvicorn_serving(service(node, node.asgi(takes_socket=False))) as address,
        ):
            live.feed(SECOND)
            with await asyncio.to_thread(ask, address, "/radio/live?token=7") as sock:
                sock.settimeout(30)
                await asyncio.to_thread(hear, sock, 1 << 20)  # to his end
            await asyncio.to_thread(wait_for, lambda: script.of("listener_remove"))
            [asked], [gone] = script.of("listener_add"), script.of("listener_remove")
            assert asked["mount"] == "/live?token=7"
            assert gone["client"] == asked["client"]
            assert int(gone["sent"]) >= 417
            script.answer = lambda fields: {"icecast-auth-message": "pay first"}
            with await asyncio.to_thread(ask, address, "/radio/live", "Connection: close") as sock:
                head, body = await asyncio.to_thread(hear, sock, 1 << 20)
            assert b" 401 " in head
            assert body == b"pay first\n"


@pytest.mark.parametrize("codec", ["opus", "flac"])
async def test_what_is_streamed_can_be_decoded_from_its_first_byte(codec: str) -> None:
    """Who joins in the middle of an Ogg stream has its header pages, once, and then audio."""
    pytest.importorskip("av")
    np = pytest.importorskip("numpy")
    async with (
        relay.Node(burst_ms=1000) as node,
        node.source("/live", codec=codec, channels=1, queue_ms=20_000) as live,
        uvicorn_serving(service(node, node.asgi(takes_socket=False))) as address,
    ):
        noise = np.random.default_rng(1).integers(-9000, 9000, (10 * 48_000, 1), dtype="int16")
        live.feed_pcm(noise)
        stream = next(s for s in node._opened().streams() if s.mount == "/live")
        await asyncio.to_thread(wait_for, lambda: encoded(live) == len(noise))
        header = stream.header()
        with await asyncio.to_thread(ask, address, "/radio/live", "Connection: close") as sock:
            _, body = await asyncio.to_thread(hear, sock, len(header) + 5000)
        body = unchunked(body)
        assert body.startswith(header)
        assert body.count(header[:4] + bytes([0, 2])) == 1, "one first page of a chain"
        assert body[len(header) :].startswith(b"OggS")


def encoded(source: relay.NodeSource) -> int:
    """How many samples of each channel have become bytes of the stream."""
    facts = source.pcm_facts()
    return 0 if facts is None else facts.encoded_frames_total


def unchunked(body: bytes) -> bytes:
    """The bytes within HTTP/1.1's chunks, as far as they are here."""
    found = b""
    while b"\r\n" in body:
        size, _, body = body.partition(b"\r\n")
        found += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return found


async def test_who_takes_nothing_is_ended_after_stall_ms() -> None:
    """As the engine's are: he would hold a listener's place for good."""
    async with (
        relay.Node(stall_ms=200) as node,
        node.source("/live", content_type="audio/mpeg") as live,
        uvicorn_serving(service(node, node.asgi(takes_socket=False))) as address,
    ):
        live.feed(SECOND)
        assert await reasons_of_a_stall(node, live, address, "/radio/live") == ["stalled"]
