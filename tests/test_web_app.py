"""The routes of the slow door, asked over connections that the engine hands over."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from fake_desk import FakeDesk, stream
from fake_engine import FakeEngine

from relay.config import Config
from relay.web.app import make_app
from relay.web.door import PAGE_S, PAGES_MAX, PageDoor


class Reply(NamedTuple):
    """One reply, read to the end of its connection."""

    status: int
    headers: dict[str, str]
    body: str

    def json(self) -> Any:
        """Parse the body, which is one line."""
        assert self.body.count("\n") == 1
        return json.loads(self.body)


class Site:
    """A node's pages behind a fake engine."""

    def __init__(self) -> None:
        self.engine: Any = FakeEngine()
        self.desk = FakeDesk(stream())
        self.door = PageDoor(self.engine, make_app(self.desk))

    def hand_over(self, head: bytes) -> socket.socket:
        """Connect as somebody whose head a shard has read."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.engine.hand_over("page", theirs.detach(), head)
        return ours

    async def ask(self, target: str, *lines: str, method: str = "GET", body: str = "") -> Reply:
        """One request, whole in the hands of the shard."""
        head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: h:8000", *lines, "", body])
        with self.hand_over(head.encode()) as ours:
            return await read_reply(ours)


async def read_all(sock: socket.socket) -> bytes:
    """What comes until the connection ends."""
    loop = asyncio.get_running_loop()
    raw = b""
    while more := await loop.sock_recv(sock, 65536):
        raw += more
    return raw


async def read_reply(sock: socket.socket) -> Reply:
    """Read one reply to its end; every reply ends its connection."""
    head, _, body = (await read_all(sock)).decode().partition("\r\n\r\n")
    first, *fields = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
    assert headers["connection"] == "close"
    assert headers["x-content-type-options"] == "nosniff"
    return Reply(int(first.split()[1]), headers, body)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """An open page door."""
    made = Site()
    await made.door.start()
    yield made
    await made.door.close()
    made.engine.close()


async def test_status_tells_node_and_streams(site: Site) -> None:
    """/api/v1/status and /api/v1/streams."""
    document = (await site.ask("/api/v1/status")).json()
    assert document["node"]["name"] == "studio"
    assert document["streams"][0]["mount"] == "/live"
    reply = await site.ask("/api/v1/streams")
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    assert reply.headers["access-control-allow-origin"] == "*"
    assert [s["mount"] for s in reply.json()["streams"]] == ["/live"]


async def test_the_recorder_is_for_the_admin(site: Site) -> None:
    """A password, bounds, and one line for what makes no sense."""
    asked = f"Authorization: Basic {base64.b64encode(b'admin:apw').decode()}"
    for wrong in ("", "admin:pw", "source:apw"):
        token = base64.b64encode(wrong.encode()).decode()
        refused = await site.ask("/api/v1/recorder", f"Authorization: Basic {token}")
        assert refused.status == 401
        assert "www-authenticate" in refused.headers
    told = (await site.ask("/api/v1/recorder?since=5m&limit=9&stream=/live", asked)).json()
    assert told["asked"] == [300.0, "/live", 9]
    told = (await site.ask("/api/v1/recorder?limit=99999999", asked)).json()
    assert told["asked"] == [600.0, None, 20_000]
    for query in ("since=soon", "limit=-1", "limit=many"):
        assert (await site.ask(f"/api/v1/recorder?{query}", asked)).status == 400


async def test_index_is_a_page_with_a_policy(site: Site) -> None:
    """GET / and HEAD /."""
    reply = await site.ask("/")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "/live" in reply.body
    assert (await site.ask("/", method="HEAD")).body == ""


async def test_icestats_uses_the_host_that_was_asked(site: Site) -> None:
    """Statistics readers get an address that works for them; an odd Host is not repeated."""
    source = (await site.ask("/status-json.xsl")).json()["icestats"]["source"]
    assert source["listenurl"] == "http://h:8000/live"
    site.desk.more["http"] = "127.0.0.1:9"
    ours = site.hand_over(b'GET /status-json.xsl HTTP/1.1\r\nHost: "evil<x>\r\n\r\n')
    assert "evil" not in (await read_reply(ours)).body
    empty = (await site.ask("/status-json.xsl?mount=/other")).json()["icestats"]
    assert "source" not in empty


async def test_health_and_readiness_differ(site: Site) -> None:
    """A node that lives may still want no listeners."""
    health = (await site.ask("/healthz")).json()
    assert (health["insecure"], health["trust"]) == (False, "loopback")
    assert (await site.ask("/readyz")).json() == {"ready": True, "problems": []}
    site.desk.wrong = ["draining"]
    reply = await site.ask("/readyz")
    assert (reply.status, reply.json()["problems"]) == (503, ["draining"])
    assert (await site.ask("/healthz")).status == 200


async def test_metrics_are_for_prometheus(site: Site) -> None:
    """/metrics in the text format."""
    reply = await site.ask("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'relay_stream_listeners{mount="/live"} 3.0' in reply.body


async def test_metadata_is_taken_by_get_and_post(site: Site) -> None:
    """/admin/metadata, /admin.cgi; raw bytes of the query and of a form."""
    token = "Authorization: Basic " + base64.b64encode(b"source:pw").decode()
    query = "mode=updinfo&mount=%2Flive&song=caf%E9"
    reply = await site.ask(f"/admin/metadata?{query}", token)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/xml; charset=utf-8"
    form = ("Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(query)}")
    assert (
        await site.ask("/admin/metadata", token, *form, method="POST", body=query)
    ).status == 200
    assert (await site.ask(f"/admin.cgi?pass=pw&{query}")).status == 200
    assert site.desk.titles == [("/live", "café")] * 3
    reply = await site.ask(f"/admin/metadata?{query}")
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == 'Basic realm="Icecast2 Server"'


async def test_a_script_is_asked_about_who_sets_a_title(site: Site) -> None:
    """Its word counts, not the password's; not about the admin, nor about who says nothing."""
    query = "mode=updinfo&mount=/live&song=T"
    site.desk.script_says = False
    token = "Authorization: Basic " + base64.b64encode(b"source:pw").decode()
    assert (await site.ask(f"/admin/metadata?{query}", token, "User-Agent: BUTT")).status == 401
    site.desk.script_says = True
    assert (await site.ask(f"/admin.cgi?pass=joe:his&{query}")).status == 200
    assert site.desk.done == [
        ("knows_source", "/live", ("source", "pw"), "BUTT"),
        ("knows_source", "/live", ("", "joe:his"), ""),
    ]
    admin = "Authorization: Basic " + base64.b64encode(b"admin:apw").decode()
    assert (await site.ask(f"/admin/metadata?{query}", admin)).status == 200
    assert (await site.ask(f"/admin/metadata?{query}")).status == 401
    assert len(site.desk.done) == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/admin/metadata", "/admin.cgi"])
async def test_metadata_that_another_site_asks_for_is_refused(
    site: Site, path: str, method: str
) -> None:
    """A browser adds the operator's password to whatever a strange page asks of it."""
    token = "Authorization: Basic " + base64.b64encode(b"admin:apw").decode()
    target = f"{path}?mode=updinfo&mount=/live&song=evil"
    for line in ("Sec-Fetch-Site: cross-site", "Origin: https://evil.example"):
        reply = await site.ask(target, token, line, method=method)
        assert reply.status == 403
        assert "<return>0</return>" in reply.body
    assert site.desk.titles == []
    assert (await site.ask(target, token, "Origin: http://h:8000", method=method)).status == 200


async def test_metadata_without_a_mount_means_the_only_stream_that_has_a_source(
    site: Site,
) -> None:
    """A stream whose source has left, and lingers, does not make it ambiguous."""
    site.desk.streams.append(stream("/gone", state="waiting"))
    assert (await site.ask("/admin.cgi?mode=updinfo&pass=pw&song=T")).status == 200
    assert site.desk.titles == [("/live", "T")]


@pytest.mark.parametrize(
    ("method", "target", "status", "words"),
    [
        ("GET", "/nothing", 404, "GET / lists the streams"),
        ("GET", "/api/v1/none", 404, "GET / lists the streams"),
        ("GET", "/none.m3u", 404, "GET / lists the streams"),
        ("POST", "/api/v1/status", 405, "this page takes GET"),
        ("DELETE", "/", 405, "this page takes GET"),
    ],
)
async def test_errors_are_json_of_one_line_with_a_next_step(
    site: Site, method: str, target: str, status: int, words: str
) -> None:
    """Unknown paths and methods."""
    reply = await site.ask(target, method=method)
    assert reply.status == status
    assert set(reply.json()) == {"error"}
    assert words in reply.json()["error"]


async def test_options_are_answered_everywhere(site: Site) -> None:
    """Browsers ask before they send Icy-MetaData; libshout asks OPTIONS *."""
    for target in ("/live", "/api/v1/status", "*"):
        reply = await site.ask(target, "Origin: https://x", method="OPTIONS")
        assert reply.status == 204
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "Icy-MetaData" in reply.headers["access-control-allow-headers"]
        assert "PUT" in reply.headers["allow"]


async def test_playlists_point_to_the_stream(site: Site) -> None:
    """/live.m3u for players that open files."""
    reply = await site.ask("/live.m3u")
    assert reply.headers["content-type"] == "audio/x-mpegurl"
    assert "http://h:8000/live\r\n" in reply.body


async def test_the_settings_say_how_the_node_is_called(site: Site) -> None:
    """Behind a proxy that ends TLS its own port and http lead nowhere; the Host header may lie."""
    overrides = {"admin_password": "apw", "http": {"base_url": "https://radio.example/on/"}}
    site.desk.config = Config.load(overrides=overrides, environ={})
    url = "https://radio.example/on/live"
    for kind in ("m3u", "pls", "xspf"):
        assert url in (await site.ask(f"/live.{kind}")).body
    told = (await site.ask("/status-json.xsl")).json()["icestats"]
    assert (told["host"], told["source"]["listenurl"]) == ("radio.example", url)
    admin = "Authorization: Basic " + base64.b64encode(b"admin:apw").decode()
    stats = await site.ask("/admin/stats", admin)
    assert f"<listenurl>{url}</listenurl>" in stats.body
    ask = "/admin/buildm3u?mount=/live&username=u&password=p"
    assert (await site.ask(ask, admin)).body == "https://u:p@radio.example/on/live\r\n"


async def test_bodies_are_bounded(site: Site) -> None:
    """A title is not 20 KB long."""
    form = ("Content-Type: application/x-www-form-urlencoded", "Content-Length: 20000")
    reply = await site.ask("/admin/metadata", *form, method="POST", body="x" * 20000)
    assert reply.status == 413
    assert "at most 16384 bytes" in reply.json()["error"]


async def test_body_in_pieces_is_awaited(site: Site) -> None:
    """The shard hands over what it has; the rest comes over the socket."""
    form = b"Content-Length: 36\r\n\r\nmode=updinfo&mount=/live"
    with site.hand_over(b"POST /admin.cgi HTTP/1.1\r\nHost: h\r\n" + form) as ours:
        await asyncio.get_running_loop().sock_sendall(ours, b"&song=T&pass")
        assert (await read_reply(ours)).status == 401


async def test_malformed_requests_are_refused(site: Site) -> None:
    """aiohttp has the last word on heads that the shard let through."""
    with site.hand_over(b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n") as ours:
        assert b" 400 " in await read_all(ours)


async def test_slow_pages_are_ended(site: Site) -> None:
    """A connection that asks nothing is not kept."""
    with site.hand_over(b"GET / HT") as ours:
        while not site.door._pages:
            await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        site.door.tick(now + PAGE_S - 1)
        assert site.door._pages
        site.door.tick(now + PAGE_S + 1)
        with contextlib.suppress(ConnectionError):
            assert await read_all(ours) == b""


async def test_pages_are_bounded(site: Site) -> None:
    """The oldest goes when there are too many; new ones are served."""
    waiting = [site.hand_over(b"GET / HT") for _ in range(PAGES_MAX)]
    while len(site.door._pages) < PAGES_MAX:
        await asyncio.sleep(0)
    assert (await site.ask("/healthz")).status == 200
    assert site.door.displaced_total == 1
    for sock in waiting:
        sock.close()


async def test_closed_door_leaves_no_descriptor(site: Site) -> None:
    """What still waits in the queue is closed with the door."""
    ours = site.hand_over(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    await site.door.close()
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(read_all(ours), 5) == b""
    assert site.engine.page_queue == []


async def test_requests_of_http_1_1_without_a_host_are_answered(site: Site) -> None:
    """With this node's own address where one is needed."""
    site.desk.more["http"] = "192.0.2.4:8000"
    for target, words in (("/live.m3u", "http://192.0.2.4:8000/live\r\n"), ("/healthz", "ok")):
        reply = await read_reply(site.hand_over(f"GET {target} HTTP/1.1\r\n\r\n".encode()))
        assert reply.status == 200
        assert words in reply.body
