"""A real node over real sockets: encoders in, listeners and pages out, the process around it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import itertools
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tools.listeners import Crowd
from tools.nodes import PASSWORD, Nodes, wait_until
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

import relay


def get(address: str, path: str) -> tuple[int, bytes]:
    """GET a page."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def where(address: str | None) -> tuple[str, int]:
    """HOST:PORT as a pair."""
    host, _, port = (address or "").rpartition(":")
    return host, int(port)


def frames(count: int) -> bytes:
    """Valid MP3 frames, each with its sequence."""
    maker = FrameMaker()
    return b"".join(maker.frame() for _ in range(count))


# --- the library ---------------------------------------------------------------------------------


async def test_library_node_serves_what_it_is_fed() -> None:
    """feed → ring → shard → listener, byte for byte, within one process."""
    maker = FrameMaker()
    sent = b"".join(maker.frame() for _ in range(60))
    async with (
        relay.Node(http="127.0.0.1:0") as node,
        node.source("/live", content_type="audio/mpeg", name="A talk") as live,
    ):
        live.feed(sent)
        reader, writer = await asyncio.open_connection(*where(node.http_address))
        writer.write(b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert b"icy-name:A talk" in head
        body = await asyncio.wait_for(reader.readexactly(4000), 5)
        assert body in sent
        writer.close()
        assert node.http_address is not None
        status, page = await asyncio.to_thread(get, node.http_address, "/api/v1/status")
        assert status == 200
        assert json.loads(page)["streams"][0]["state"] == "live"


async def test_library_reader_gets_the_frames_of_the_source() -> None:
    """subscribe yields what was fed, with sequences and media time."""
    maker = FrameMaker()
    made = [maker.frame() for _ in range(40)]
    async with relay.Node() as node:
        with node.source("/live", content_type="audio/mpeg") as live:
            live.feed(b"".join(made))
            got: list[relay.Frame] = []
            async with asyncio.timeout(5):
                async for item in node.subscribe("/live", burst_ms=3000):
                    assert isinstance(item, relay.Frame)
                    got.append(item)
                    if len(got) == 30:
                        break
        assert [frame.data for frame in got] == made[:30]
        assert [frame.sequence for frame in got] == list(range(30))
        steps = [b.media_us - a.media_us for a, b in itertools.pairwise(got)]
        assert set(steps) <= {26122, 26123}  # 1152 samples at 44.1 kHz


async def test_nodes_of_one_process_share_nothing_and_leave_nothing() -> None:
    """Opened and closed many times: no thread and no descriptor stays."""

    def left() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    async with relay.Node(http="127.0.0.1:0"):
        pass
    before = left()
    for _ in range(5):
        async with relay.Node(http="127.0.0.1:0") as one, relay.Node(http="127.0.0.1:0") as other:
            assert one.http_address != other.http_address
    after = left()
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 1  # asyncio's own helper threads


@pytest.mark.parametrize("kind", ["audio/mpeg", "audio/ogg"])
async def test_a_title_outlives_its_epoch(kind: str) -> None:
    """A source that returns does not take the title from those who join then."""
    async with relay.Node() as node:
        for title in ("A talk", None):
            async with node.source("/live", content_type=kind) as live:
                if title:
                    live.title(title)
                assert node._tells().gather().streams[0].title == "A talk"


async def test_a_stream_of_an_edge_is_ready_until_somebody_listens() -> None:
    """Its state says that it can be played here, and stops saying so when the source leaves."""
    async with (
        relay.Node(backbone="tcp://127.0.0.1:0") as origin,
        relay.Node(upstream=str(origin.backbone_address)) as edge,
    ):

        async def until_state(state: str) -> None:
            async with asyncio.timeout(10):
                while [stream.state for stream in edge.facts().streams] != [state]:
                    await asyncio.sleep(0.05)

        async with origin.source("/live", content_type="audio/mpeg") as live:
            live.feed(frames(100))
            await until_state("ready")
        await until_state("idle")


async def test_reader_on_an_edge_makes_its_node_ask_upstream() -> None:
    """Two nodes of one process: what the origin is fed comes out of the edge, frame by frame."""
    maker = FrameMaker()
    async with (
        relay.Node(backbone="tcp://127.0.0.1:0") as origin,
        origin.source("/live", content_type="audio/mpeg") as live,
        relay.Node(upstream=str(origin.backbone_address)) as edge,
    ):
        sent = [maker.frame() for _ in range(100)]
        live.feed(b"".join(sent))
        async with asyncio.timeout(10):
            while not edge.facts().streams:
                await asyncio.sleep(0.05)
            with pytest.raises(relay.MountError, match="upstream"):
                edge.source("/live", content_type="audio/mpeg").open()
            got = []
            async for item in edge.subscribe("/live", burst_ms=5000):
                assert isinstance(item, relay.Frame)
                got.append(item.data)
                if len(got) == 80:
                    break
        start = sent.index(got[0])
        assert got == sent[start : start + 80]
        await asyncio.sleep(relay.telling.FACTS_S)
        assert edge.facts().streams[0].role == "edge"
        assert edge.facts().upstream["state"] == "up"


async def test_taken_port_is_one_line() -> None:
    """Also when another Relay has it."""
    async with relay.Node(http="127.0.0.1:0") as node:
        assert node.http_address is not None
        with pytest.raises(relay.ConfigError, match=r"taken.*choose another") as caught:
            await relay.Node(http=node.http_address).open()
        assert "\n" not in str(caught.value)
        assert (await asyncio.to_thread(get, node.http_address, "/healthz"))[0] == 200


# --- encoders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expect", "chunked"),
    [("PUT", True, False), ("PUT", False, False), ("PUT", True, True), ("SOURCE", False, False)],
)
def test_each_way_of_sending_reaches_listeners(
    nodes: Nodes, crowd: Crowd, method: str, expect: bool, chunked: bool
) -> None:
    """PUT with and without Expect, chunked, SOURCE: the same frames come out."""
    node = nodes.start(backbone="none")
    source = Source(node.address, method=method, expect=expect, chunked=chunked)
    with source:
        assert source.connect() == (100 if expect else 200)
        source.send(frames(120))
        listener = crowd.join(node.address, "/live", checker=FrameChecker())
        crowd.wait_audio(10_000)
        assert listener.checker is not None
        assert listener.checker.clean
    wait_until(lambda: node.json("/api/v1/status")["streams"][0]["state"] == "waiting")


def test_a_source_that_says_ice_1_0_is_welcome(nodes: Nodes) -> None:
    """The engine's door hands it on, and the source door answers as to HTTP/1.0."""
    node = nodes.start(backbone="none")
    with Source(node.address, method="SOURCE", expect=False) as source:
        source.head = source.head.replace(b" HTTP/1.0\r\n", b" ICE/1.0\r\n", 1)
        assert source.connect() == 200


def test_refusals_of_sources_come_before_the_100(nodes: Nodes) -> None:
    """Wrong password 401, unknown type 415, in use 403, reserved 400; the node lives."""
    node = nodes.start(backbone="none")
    with Source(node.address) as first:
        assert first.connect() == 100
        for status, options in (
            (401, {"password": "wrong"}),
            (415, {"content_type": "video/mp4"}),
            (403, {}),
            (400, {"mount": "/metrics"}),
        ):
            with Source(node.address, **options) as other:  # type: ignore[arg-type]
                assert other.connect() == status
        first.send(frames(40))
        wait_until(lambda: node.json("/api/v1/status")["streams"][0]["head_sequence"])


def test_probe_of_libshout_and_its_request_share_a_connection(nodes: Nodes) -> None:
    """401 with a length, the connection kept, then 100."""
    node = nodes.start(backbone="none")
    with socket.create_connection(node.address, timeout=5) as sock:
        sock.sendall(
            b"PUT /live HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n"
        )
        told = sock.recv(4096)
        assert b" 401 " in told.split(b"\r\n")[0]
        token = base64.b64encode(f"source:{PASSWORD}".encode())
        sock.sendall(
            b"PUT /live HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Type: audio/mpeg\r\n"
            b"Authorization: Basic " + token + b"\r\n\r\n"
        )
        assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_garbage_as_audio_ends_the_source_alone(nodes: Nodes, crowd: Crowd) -> None:
    """One source sends noise: it is ended and told; a listener of another stream hears nothing."""
    node = nodes.start(backbone="none")
    with LiveSource(Source(node.address)):
        listener = crowd.join(node.address, "/live", checker=FrameChecker())
        crowd.wait_audio(4000)
        with Source(node.address, "/noise") as noise:
            assert noise.connect() == 100
            junk = bytes(range(1, 250)) * 1200
            with contextlib.suppress(ConnectionError):
                noise.send(junk)
        assert node.wait_event("source_down", mount="/noise")
        assert listener.alive
        assert listener.checker is not None
        assert listener.checker.clean
    counters = node.counters()
    assert counters["source_broken_total"] == 1


def test_source_that_runs_ahead_is_held_back_by_tcp(nodes: Nodes) -> None:
    """A file sent at once is read at real time plus ahead_ms, not at once."""
    node = nodes.start("--ahead-ms", "1000", backbone="none")
    with Source(node.address) as source:
        assert source.connect() == 100
        assert source.socket is not None
        source.socket.settimeout(1.0)
        sent = frames(20_000)
        with pytest.raises(TimeoutError):
            source.send(sent)
        stream = node.status()["streams"][0]
        assert stream["head_sequence"] < 400


def test_returning_source_goes_on_with_its_listeners(nodes: Nodes, crowd: Crowd) -> None:
    """The source leaves and returns: the same connection hears the next epoch."""
    node = nodes.start(backbone="none")
    maker = FrameMaker()
    with LiveSource(Source(node.address), maker):
        listener = crowd.join(node.address, "/live", checker=FrameChecker())
        crowd.wait_audio(4000)
    heard = listener.audio_bytes
    wait_until(lambda: node.json("/api/v1/status")["streams"][0]["state"] == "waiting")
    with LiveSource(Source(node.address), maker):
        wait_until(lambda: listener.audio_bytes > heard + 4000)
    assert listener.alive


def test_title_reaches_pages_and_players(nodes: Nodes, crowd: Crowd) -> None:
    """/admin/metadata → ICY block of a listener, status page."""
    node = nodes.start(backbone="none")
    with LiveSource(Source(node.address)):
        listener = crowd.join(node.address, "/live", icy=True)
        crowd.wait_audio(4000)
        token = base64.b64encode(f"source:{PASSWORD}".encode()).decode()
        reply = node.request(
            "/admin/metadata?mode=updinfo&mount=/live&song=A%20-%20T",
            headers={"Authorization": f"Basic {token}"},
        )
        assert reply.status == 200
        wait_until(lambda: any(b"A - T" in title.block for title in listener.titles))
        wait_until(lambda: node.json("/api/v1/status")["streams"][0]["title"] == "A - T")


# --- the process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_within_two_seconds(nodes: Nodes, crowd: Crowd, number: int) -> None:
    """With a source and listeners attached: status 0, every listener's last frame is whole."""
    node = nodes.start(backbone="none")
    with LiveSource(Source(node.address)):
        listener = crowd.join(node.address, "/live", checker=FrameChecker())
        crowd.wait_audio(4000)
        begun = time.monotonic()
        assert node.terminate(number=number) == 0
        assert time.monotonic() - begun < 2.0
        wait_until(lambda: not listener.alive)
        assert listener.checker is not None
        assert listener.checker.clean
        assert listener.checker.unfinished_bytes == 0


def test_second_signal_ends_at_once(nodes: Nodes, crowd: Crowd) -> None:
    """Who asks twice does not wait."""
    node = nodes.start(backbone="none")
    os.kill(node.pid, signal.SIGINT)
    os.kill(node.pid, signal.SIGTERM)
    assert node.wait(2.0) in (0, 1)


def test_taken_port_ends_serve_with_one_line(nodes: Nodes) -> None:
    """Exit status 2 and the next step."""
    node = nodes.start(backbone="none")
    other = nodes.spawn_later(http=node.http, backbone="none").spawn()
    assert other.wait(5.0) == 2
    assert re.search(r"relay: http\.bind = .*taken.*--http", other.output())
    assert "Traceback" not in other.output()


def test_made_up_password_opens_the_door(nodes: Nodes) -> None:
    """Without a password, serve makes one up and tells it once."""
    empty = {"RELAY_SOURCE_PASSWORD": "", "RELAY_ADMIN_PASSWORD": ""}
    node = nodes.start(backbone="none", env=empty)
    told = re.search(r"source password for this run: (\w+)", node.output())
    password = node.ready.get("source_password") or (told and told[1])
    assert password
    with Source(node.address, password=password) as source:
        assert source.connect() == 100


def test_pages_answer_while_nobody_listens(nodes: Nodes) -> None:
    """/, /healthz, /readyz, /metrics, /status-json.xsl of an idle node."""
    node = nodes.start(backbone="none")
    assert b"No stream yet" in node.get("/").body
    assert node.json("/healthz")["status"] == "ok"
    assert node.json("/readyz") == {"ready": True, "problems": []}
    assert b"relay_listeners 0.0" in node.get("/metrics").body
    assert "source" not in node.json("/status-json.xsl")["icestats"]
    answer: Any = node.get("/api/v1/none")
    assert answer.status == 404
