"""A node fetches its streams from other servers: on demand or always, through what servers do.

Rules of this room
  1. Real sockets: a radio of the tests plays numbered frames, nodes pull it, listeners check all.
  2. Waits have bounds and are for what must come; no sleep decides anything but that nothing comes.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tools.faults import reset
from tools.listeners import Crowd, Listener
from tools.nodes import NodeProcess, Nodes, wait_until
from tools.radio import Radio
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

WAIT_S = 45.0

pytestmark = pytest.mark.timeout(180)

QUICK = ("--join-wait-ms", "20000", "--linger-s", "20", "--source-timeout-s", "1.5")


@pytest.fixture
def radio() -> Iterator[Radio]:
    """A server of streams."""
    with Radio() as made:
        yield made


def start(nodes: Nodes, tmp_path: Any, table: dict[str, Any], **options: Any) -> NodeProcess:
    """A node that pulls /x with these settings."""
    return start_many(nodes, tmp_path, {"/x": table}, **options)


def start_many(
    nodes: Nodes, tmp_path: Any, tables: dict[str, dict[str, Any]], **options: Any
) -> NodeProcess:
    """A node that pulls several mounts, each with its settings."""
    lines: list[str] = []
    for mount, table in tables.items():
        lines += [f'[streams."{mount}"]']
        lines += [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    path = tmp_path / f"relay-{len(list(tmp_path.iterdir()))}.toml"
    path.write_text("\n".join(lines) + "\n")
    return nodes.start(str(path), *QUICK, timeout_s=WAIT_S, **options)


def stream(node: NodeProcess, mount: str = "/x") -> dict[str, Any]:
    """What the node tells of the stream."""
    found = [s for s in node.json("/api/v1/streams")["streams"] if s["mount"] == mount]
    return found[0] if found else {}


def is_up(node: NodeProcess, mount: str = "/x") -> bool:
    """Whether the pull has audio."""
    return (stream(node, mount).get("pull") or {}).get("state") == "up"


def error(node: NodeProcess, mount: str = "/x") -> str:
    """Why it has none."""
    return str((stream(node, mount).get("pull") or {}).get("error", ""))


def counter(node: NodeProcess, name: str) -> int:
    """One counter of the node."""
    return int(node.counters()[name])


def join(crowd: Crowd, node: NodeProcess, mount: str = "/x") -> Listener:
    """A listener that checks what it gets."""
    return crowd.join(node.address, mount, checker=FrameChecker())


def heard_well(
    crowd: Crowd, node: NodeProcess, mount: str = "/x", audio_bytes: int = 24_000
) -> FrameChecker:
    """A listener who gets so much, all of it whole and in order."""
    listener = join(crowd, node, mount)
    wait_until(lambda: listener.audio_bytes >= audio_bytes, WAIT_S, what=f"audio of {node!r}")
    assert listener.checker is not None
    assert listener.checker.clean, listener.checker
    assert listener.checker.missing == listener.checker.repeated == 0
    return listener.checker


def test_streams_are_pulled_whole(nodes: Nodes, crowd: Crowd, tmp_path: Any) -> None:
    """Every frame, in order, from HTTP, in chunks, and from SHOUTcast; header lines are taken
    over."""
    lines = {"/a": "HTTP/1.0 200 OK", "/b": "ICY 200 OK", "/c": "HTTP/1.1 200 OK"}
    with ExitStack() as stack:
        radios = {m: stack.enter_context(Radio(first=line)) for m, line in lines.items()}
        radios["/c"].chunked = True
        node = start_many(nodes, tmp_path, {m: {"pull": r.url} for m, r in radios.items()})
        for mount, radio in radios.items():
            wait_until(lambda on=mount: is_up(node, on), WAIT_S)
            heard_well(crowd, node, mount)
            told = stream(node, mount)
            assert told["name"] == "A radio"
            assert told["pull"]["url"] == radio.url
            assert "User-Agent: Relay/" in radio.asked[0]
            assert "Icy-MetaData: 1" in radio.asked[0]


def test_titles_are_followed_and_their_blocks_removed(
    nodes: Nodes, crowd: Crowd, radio: Radio, tmp_path: Any
) -> None:
    """Blocks with hostile titles between any bytes: the audio is exact, the title is one line."""
    radio.metaint = 777
    radio.title = "It's <b>one</b>\r\nX-Evil: yes; a"
    node = start(nodes, tmp_path, {"pull": radio.url})
    wait_until(lambda: is_up(node), WAIT_S)
    heard_well(crowd, node)
    wait_until(lambda: stream(node)["title"] == "It's <b>one</b>  X-Evil: yes; a", WAIT_S)
    radio.title = "Two"
    wait_until(lambda: stream(node)["title"] == "Two", WAIT_S)
    assert "<b>one" not in node.get("/").body.decode()


def test_on_demand_it_is_pulled_while_somebody_listens(
    nodes: Nodes, crowd: Crowd, radio: Radio, tmp_path: Any
) -> None:
    """Nobody: no connection. One: he waits for it and hears it. Gone: it ends after its grace."""
    table = {"pull": radio.url, "pull_on_demand": True, "pull_idle_s": 0.5}
    node = start(nodes, tmp_path, table)
    wait_until(lambda: stream(node).get("pull"), WAIT_S)
    time.sleep(0.5)
    assert not radio.asked
    for turn in range(2):
        listener = join(crowd, node)
        wait_until(lambda heard=listener: heard.audio_bytes >= 12_000, WAIT_S)
        assert listener.checker is not None
        assert listener.checker.clean
        assert listener.checker.first == 0 or turn, "the second turn begins with what is live"
        crowd.leave(listener)
        wait_until(lambda: radio.listening == 0, WAIT_S, what="the end of the connection")
        wait_until(lambda: stream(node)["pull"]["state"] == "idle", WAIT_S)
    assert len(radio.asked) == 2


def test_on_demand_it_is_pulled_for_a_downstream_node(
    nodes: Nodes, crowd: Crowd, radio: Radio, tmp_path: Any
) -> None:
    """The edge lists it without a source; its listener makes the origin fetch it."""
    table = {"pull": radio.url, "pull_on_demand": True, "pull_idle_s": 0.5}
    origin = start(nodes, tmp_path, table)
    edge = nodes.start(*QUICK, "--linger-s", "1", upstreams=[origin.backbone])
    wait_until(lambda: stream(edge), WAIT_S, what="the mount at the edge")
    assert not radio.asked
    listener = join(crowd, edge)
    wait_until(lambda: listener.audio_bytes >= 12_000, WAIT_S)
    assert listener.headers["content-type"] == "audio/mpeg"
    assert listener.checker is not None
    assert listener.checker.clean
    assert stream(origin)["listeners"] == 0
    crowd.leave(listener)
    wait_until(lambda: radio.listening == 0, WAIT_S, what="the end of the connection")


def test_a_stream_that_breaks_off_is_fetched_again(
    nodes: Nodes, crowd: Crowd, radio: Radio, tmp_path: Any
) -> None:
    """Listeners stay where they are, and hear the next epoch."""
    node = start(nodes, tmp_path, {"pull": radio.url})
    listener = join(crowd, node)
    wait_until(lambda: listener.audio_bytes >= 12_000, WAIT_S)
    radio.cut()
    node.wait_event("source_down", WAIT_S, mount="/x")
    heard = listener.audio_bytes
    wait_until(lambda: listener.audio_bytes >= heard + 16_000, WAIT_S)
    assert listener.alive
    assert listener.checker is not None
    assert listener.checker.damaged_bytes == 0


def test_the_next_address_is_taken_when_the_first_is_dead(
    nodes: Nodes, crowd: Crowd, radio: Radio, tmp_path: Any
) -> None:
    """In order, at once; the reason for each is in the log, without an account."""
    with Radio() as dead:
        pass
    first = dead.url.replace("http://", "http://joe:hunter2@")
    node = start(nodes, tmp_path, {"pull": [first, radio.url]})
    wait_until(lambda: is_up(node), WAIT_S)
    assert stream(node)["pull"]["url"] == radio.url
    heard_well(crowd, node)
    assert node.wait_event("pull_failed", WAIT_S, mount="/x")
    assert "hunter2" not in node.output(1000)
    assert "hunter2" not in node.get("/api/v1/status").body.decode()


def reset_at_once(door: socket.socket) -> None:
    """Take one connection, answer as a stream does, and break it before any audio."""
    sock, _ = door.accept()
    sock.recv(4096)
    sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n")
    time.sleep(0.2)  # the head has been read
    reset(sock)


def test_a_reset_before_the_first_audio_is_told_and_the_next_address_taken(
    nodes: Nodes, radio: Radio, tmp_path: Any
) -> None:
    """It is no fault of ours, which would be logged with where it happened."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=reset_at_once, args=(door,), daemon=True).start()
        first = f"http://127.0.0.1:{door.getsockname()[1]}/x"
        node = start(nodes, tmp_path, {"pull": [first, radio.url]})
        wait_until(lambda: is_up(node), WAIT_S, what="the second")
    assert "was lost" in node.output()
    assert "Traceback" not in node.output()


@pytest.mark.parametrize(("own", "said_s"), [({}, "1.5"), ({"source_timeout_ms": 700}, "0.7")])
def test_a_server_that_falls_silent_is_left_for_the_next(
    nodes: Nodes, radio: Radio, tmp_path: Any, own: dict[str, int], said_s: str
) -> None:
    """After source_timeout_s, or what the mount has of its own, however well its connection
    stands."""
    with Radio() as second:
        node = start(nodes, tmp_path, {"pull": [radio.url, second.url], **own})
        wait_until(lambda: is_up(node), WAIT_S)
        radio.silent = True
        wait_until(lambda: second.listening == 1, WAIT_S, what="the second server")
        said = f"no audio for {said_s} s"
        wait_until(lambda: said in node.output(1000), WAIT_S, what=said)


def test_redirects_are_followed_within_bounds(
    nodes: Nodes, crowd: Crowd, radio: Radio, tmp_path: Any
) -> None:
    """To other servers, at most five; the account is told to nobody else."""
    with Radio() as sender:

        def answer(target: str) -> bytes:
            number = int(target[1:] or 0)
            to = radio.url if number == 0 else f"/{number - 1}"
            return f"HTTP/1.0 302 Found\r\nLocation: {to}\r\n\r\n".encode()

        sender.answer = answer
        base = f"http://joe:pw@127.0.0.1:{sender.port}"
        node = start(nodes, tmp_path, {"pull": f"{base}/4"})
        heard_well(crowd, node)
        assert all("Authorization: Basic" in asked for asked in sender.asked)
        assert not any("Authorization" in asked for asked in radio.asked)
        wait_until(lambda: counter(node, "pull_redirects_total") == 5, WAIT_S)
        more = start(nodes, tmp_path, {"pull": f"{base}/5"})
        wait_until(lambda: "more than 5 times" in error(more), WAIT_S)


REPLIES = [
    (b"HTTP/1.0 404 Not Found\r\n\r\n", "404 Not Found"),
    (b"HTTP/1.0 401 Unauthorized\r\n\r\n", "USER:PASSWORD"),
    (b"HTTP/1.0 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "must begin with http"),
    (b"HTTP/1.0 302 Found\r\n\r\n", "more than 5 times"),
    (b"SSH-2.0-OpenSSH\r\n", "neither in HTTP"),
    (b"", "closed the connection instead of answering"),
    (b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", "text/html"),
    (b"HTTP/1.0 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n", "no audio"),
    (b"HTTP/1.0 200 OK\r\nicy-metaint: none\r\n\r\n", "icy-metaint"),
    (b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "gzip"),
    (b"HTTP/1.0 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n" + b"noise " * 40_000, "frame"),
]


def test_what_is_no_stream_is_told_and_tried_again(nodes: Nodes, tmp_path: Any) -> None:
    """The reason in words; the servers get well and the streams come."""
    with ExitStack() as stack:
        radios = {f"/r{n}": stack.enter_context(Radio()) for n in range(len(REPLIES))}
        for radio, (reply, _) in zip(radios.values(), REPLIES, strict=True):
            radio.answer = lambda target, said=reply: said
        node = start_many(nodes, tmp_path, {m: {"pull": r.url} for m, r in radios.items()})
        for mount, (_, why) in zip(radios, REPLIES, strict=True):
            wait_until(lambda on=mount, part=why: part in error(node, on), WAIT_S, what=why)
        for radio in radios.values():
            radio.answer = lambda target: None
        for mount in radios:
            wait_until(lambda on=mount: is_up(node, on), WAIT_S, what=mount)
            assert error(node, mount) == ""


def test_a_node_does_not_pull_from_itself(nodes: Nodes, tmp_path: Any) -> None:
    """Its own door is known by the connection."""
    with Radio() as free:
        port = free.port
    table = {"pull": f"http://127.0.0.1:{port}/x"}
    node = start(nodes, tmp_path, table, http=f"127.0.0.1:{port}")
    wait_until(lambda: "this node itself" in error(node), WAIT_S)
    wait_until(lambda: counter(node, "pull_loops_total") >= 1, WAIT_S)


def test_two_nodes_do_not_pull_from_each_other(
    nodes: Nodes, crowd: Crowd, radio: Radio, tmp_path: Any
) -> None:
    """When the real source is away, the second address of the first leads back to it."""
    with Radio() as free:
        port = free.port
    second_url = f"http://127.0.0.1:{port}/x"
    first = start(nodes, tmp_path, {"pull": [radio.url, second_url]})
    wait_until(lambda: is_up(first), WAIT_S)
    second = start(nodes, tmp_path, {"pull": first.url("/x")}, http=f"127.0.0.1:{port}")
    heard_well(crowd, second)
    wait_until(lambda: stream(first)["relays"] == 1, WAIT_S)
    assert stream(first)["listeners"] == 0, "who passes it on is no audience"
    radio.close()
    wait_until(lambda: "leads back to this node" in first.output(1000), WAIT_S)
    wait_until(lambda: counter(first, "pull_loops_total") >= 1, WAIT_S)


def test_an_encoder_that_has_the_mount_keeps_it(
    nodes: Nodes, crowd: Crowd, radio: Radio, tmp_path: Any
) -> None:
    """A pull takes nobody's mount: it says why it waits, and comes when the encoder has gone."""
    radio.answer = lambda target: b"HTTP/1.0 404 Not Found\r\n\r\n"
    node = start(nodes, tmp_path, {"pull": radio.url})
    live = LiveSource(Source(node.address, "/x"), FrameMaker(64)).start()
    radio.answer = lambda target: None
    wait_until(lambda: "is in use" in error(node), WAIT_S)
    assert heard_well(crowd, node)
    live.stop()
    wait_until(lambda: is_up(node), WAIT_S)


def test_a_node_that_ends_lets_its_servers_go(nodes: Nodes, radio: Radio, tmp_path: Any) -> None:
    """Within the time that a node may take."""
    node = start(nodes, tmp_path, {"pull": radio.url})
    wait_until(lambda: is_up(node), WAIT_S)
    assert node.terminate(timeout_s=5.0) == 0
    wait_until(lambda: radio.listening == 0, WAIT_S)
