"""Who comes back names a byte, and any node goes on from that byte: none is missing, none twice.

Rules of this room
  1. What the door answers is asked of an engine in this process; what survives a kill, of two
     edges behind one address, whose relay has the origin above it: two hops.
  2. The client counts the bytes of the body that it has, and nothing else, as players do.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from tools.engines import (
    CHAIN,
    HEADER,
    OGG,
    START,
    Address,
    Programme,
    answer,
    ask,
    dial,
    get,
    idle,
    read_all,
    read_until,
    running,
)
from tools.nodes import NodeProcess, Nodes, wait_known, wait_until
from tools.proxy import Proxies
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

import relay._core as core

assert core.BUILD

TOTAL = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def opened(address: Address, head: bytes) -> tuple[socket.socket, int, dict[str, str], bytes]:
    """Ask, and read to the end of the reply's head: socket, status, fields, what follows."""
    sock = dial(address)
    sock.sendall(head)
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65_536)
        assert part, f"ended within the head: {data!r}"
        data += part
    head_text, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head_text.decode("latin-1").split("\r\n")
    fields = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
    return sock, int(first.split(" ")[1]), fields, body


def read(address: Address, head: bytes, size: int) -> tuple[int, dict[str, str], bytes]:
    """Ask, read at least so much of the body, and hang up."""
    sock, status, fields, body = opened(address, head)
    with sock:
        return status, fields, read_until(sock, size, body)


def counted(engine: Any, **wanted: int) -> None:
    """Wait until the engine counts so many (a turn may be over before its counters are told)."""

    def agrees() -> bool:
        told = engine.snapshot()
        return all(told[name] == count for name, count in wanted.items())

    wait_until(agrees, what=f"{wanted}")


def place_of(address: Address, mount: str = "/live") -> str:
    """Ask where one would begin now; returns path and query."""
    status, fields, _ = answer(ask(address, get(f"{mount}?at=live", method="HEAD")), to_head=True)
    assert status == 302
    return fields["location"]


# --- what the door answers ------------------------------------------------------------------------


def test_an_anchored_mount_sends_who_names_no_place_to_one() -> None:
    """The place is where its burst begins; what else was asked for stays."""
    with running(config={"anchor": True, "burst_ms": 1000}) as (engine, address):
        live = Programme(engine)
        live.push_seconds(5)
        status, fields, body = answer(ask(address, get("/live?a=b")))
        assert (status, body) == (302, b"")
        epoch, position = re.fullmatch(r"/live\?a=b&at=(\d+)\.(\d+)", fields["location"]).groups()
        assert int(epoch) == live.stream.snapshot()["epoch"]
        status, fields, body = read(address, get(fields["location"]), 4000)
        assert status == 200
        assert fields["accept-ranges"] == "bytes"
        assert bytes(live.audio[int(position) :]).startswith(body)
        counted(engine, anchors_given_total=1, anchored_exact_total=1)


@pytest.mark.parametrize(
    ("field", "status"),
    [("Icy-MetaData: 1", 200), ("Range: bytes=0-1", 206), ("Range: bytes=9-", 206)],
)
def test_those_who_cannot_be_anchored_are_not_sent_anywhere(field: str, status: int) -> None:
    """Title blocks, a probe, and somebody who counts from another beginning."""
    with running(config={"anchor": True}) as (engine, address):
        Programme(engine).push_seconds(2)
        assert opened(address, get("/live", field))[1] == status
        assert opened(address, get("/live", "Range: bytes=0-"))[1] == 302
        assert answer(ask(address, get(method="HEAD")), to_head=True)[0] == 200


def test_n_bytes_after_a_place_come_as_a_part() -> None:
    """206 that tells the first byte, and the rest of the stream from it on."""
    with running() as (engine, address):
        live = Programme(engine)
        live.push_seconds(3)
        place = place_of(address)
        position = int(place.rpartition(".")[2])
        status, fields, body = read(address, get(place, "Range: bytes=1001-"), 5000)
        assert status == 206
        first, last, total = map(int, TOTAL.fullmatch(fields["content-range"]).groups())
        assert first == 1001
        assert last + 1 == total > 1 << 40
        assert "content-length" not in fields
        assert bytes(live.audio[position + 1001 :]).startswith(body)


def test_a_place_tells_its_media_time_and_that_time_leads_to_it() -> None:
    """For players that know in seconds what they have heard; one that counts bytes needs it not."""
    with running() as (engine, address):
        Programme(engine).push_seconds(5)
        place = place_of(address)
        epoch = place.partition("at=")[2].partition(".")[0]
        _, fields, _ = read(address, get(place), 100)
        media_ms = int(fields["relay-media-ms"])
        assert 0 < media_ms < 5000
        head = answer(ask(address, get(place, method="HEAD")), to_head=True)[1]
        assert head["relay-media-ms"] == fields["relay-media-ms"]
        for method in ("GET", "HEAD"):
            asked = get(f"/live?at={epoch}.t{media_ms}", method=method)
            status, told, _ = answer(ask(address, asked), to_head=method == "HEAD")
            assert (status, told["location"]) == (302, place)
        for plain in (get(place, "Range: bytes=9-"), get()):
            assert "relay-media-ms" not in read(address, plain, 100)[1]


@pytest.mark.parametrize("time", ["1.t5", "{epoch}.t999999999"])
def test_a_media_time_that_is_not_here_leads_to_where_one_begins_now(time: str) -> None:
    """Of another epoch, or far ahead: who knows places by time alone needs one. Who counts bytes
    from there begins live, as from a place that is not here."""
    with running() as (engine, address):
        live = Programme(engine)
        live.push_seconds(5)
        place = place_of(address)
        asked = "/live?at=" + time.format(epoch=live.stream.snapshot()["epoch"])
        for method in ("GET", "HEAD"):
            told = answer(ask(address, get(asked, method=method)), to_head=method == "HEAD")
            assert (told[0], told[1]["location"]) == (302, place)
        assert read(address, get(asked, "Range: bytes=9-"), 100)[0] == 206


def test_a_media_time_just_ahead_is_no_answer_to_head() -> None:
    """A GET waits for it; where one would begin now is not what was asked for."""
    with running() as (engine, address):
        live = Programme(engine)
        live.push_seconds(5)
        ring = live.stream.snapshot()
        asked = f"/live?at={ring['epoch']}.t{ring['head_media_us'] // 1000 + 30}"
        assert answer(ask(address, get(asked, method="HEAD")), to_head=True)[0] == 200
        with dial(address) as sock:
            sock.sendall(get(asked))
            live.push_seconds(1)
            assert sock.recv(1000).startswith(b"HTTP/1.0 302 ")


def test_no_place_by_time_where_none_is_handed_out() -> None:
    """On a mount with an intro: live, as all are."""
    with running() as (engine, address):
        engine.configure("/live", intro=(bytes(1000), "audio/mpeg"))
        live = Programme(engine)
        live.push_seconds(5)
        asked = get(f"/live?at={live.stream.snapshot()['epoch']}.t2000", method="HEAD")
        assert answer(ask(address, asked), to_head=True)[0] == 200


def test_a_place_has_no_title_blocks() -> None:
    """They would be bytes that no place counts."""
    with running() as (engine, address):
        live = Programme(engine)
        live.push_seconds(3)
        status, fields, body = read(address, get(place_of(address), "Icy-MetaData: 1"), 20_000)
        assert status == 200
        assert "icy-metaint" not in fields
        assert bytes(live.audio).find(body) >= 0


@pytest.mark.parametrize("place", ["", "?at=7.1", "?at=x"])
def test_who_comes_back_without_a_place_that_is_here_gets_live_audio(place: str) -> None:
    """As a part all the same: Chromium would throw N bytes of a 200 away."""
    with running() as (engine, address):
        live = Programme(engine)
        live.push_seconds(3)
        status, fields, body = read(address, get(f"/live{place}", "Range: bytes=123456-"), 9000)
        assert status == 206
        assert fields["content-range"].startswith("bytes 123456-")
        assert bytes(live.audio).find(body) >= 0
        counted(engine, anchored_epoch_total=int(place == "?at=7.1"), joins_total=1)


def test_a_probe_gets_its_bytes_and_is_no_listener() -> None:
    """Safari asks for two bytes first, and will not play a server that sends more."""
    with running(config={"listeners_max": 1}) as (engine, address):
        live = Programme(engine)
        live.push_seconds(3)
        status, fields, body = answer(ask(address, get("/live", "Range: bytes=0-1")))
        assert status == 206
        assert fields["content-range"] == "bytes 0-1/1073741823"
        assert body == bytes(live.audio[:2])
        wait_until(lambda: engine.snapshot()["probes_total"] == 1)  # told at the turn's end
        assert idle(engine)["joins_total"] == 0


def test_a_byte_that_is_on_its_way_is_waited_for() -> None:
    """An edge may be behind the one that died; nothing is sent before the byte is there."""
    with running(join_wait_ms=20_000) as (engine, address):
        live = Programme(engine)
        live.push_seconds(2)
        place = f"/live?at={live.stream.snapshot()['epoch']}.0"
        ahead = len(live.audio) + 1000
        with dial(address) as sock:
            sock.sendall(get(place, f"Range: bytes={ahead}-"))
            wait_until(lambda: engine.snapshot()["listeners"] == 1, what="the listener")
            assert engine.snapshot()["joins_total"] == 0
            live.push_seconds(1)
            head, _, body = read_until(sock, 1000).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 206 ")
            body = read_until(sock, 1000, body)
        assert bytes(live.audio[ahead:]).startswith(body)
        counted(engine, anchored_exact_total=1)


def test_a_byte_that_does_not_come_is_not_waited_for_longer_than_a_join() -> None:
    """Then it is live, and counted."""
    with running(join_wait_ms=50) as (engine, address):
        live = Programme(engine)
        live.push_seconds(2)
        epoch = live.stream.snapshot()["epoch"]
        ahead = len(live.audio) + 1000
        for place, name in ((f"{epoch}.0", "ahead"), (f"{epoch + 9}.0", "epoch")):
            head = get(f"/live?at={place}", f"Range: bytes={ahead}-")
            assert read(address, head, 100)[0] == 206
            counted(engine, **{f"anchored_{name}_total": 1})


def test_no_place_is_given_out_in_an_epoch_that_is_over() -> None:
    """HEAD says at once what a GET would be told in the end; that one waits for the next epoch."""
    with running(join_wait_ms=60_000) as (engine, address):
        live = Programme(engine)
        live.push_seconds(2)
        live.stream.end()
        head = ask(address, get("/live?at=live", method="HEAD"))
        assert answer(head, to_head=True)[0] == 200
        with dial(address, timeout_s=20.0) as sock:
            sock.sendall(get("/live?at=live"))
            wait_until(lambda: engine.snapshot()["listeners"] == 1)
            live.stream.begin()
            live.push_seconds(1)
            status, fields, _ = answer(read_all(sock))
        assert status == 302
        assert fields["location"] == f"/live?at={live.stream.snapshot()['epoch']}.0"


def test_head_is_sent_on_from_a_place_that_is_no_start_as_get_is() -> None:
    """To the same one; and told the same of one that is."""
    with running() as (engine, address):
        live = Programme(engine)
        live.push_seconds(2)
        epoch = live.stream.snapshot()["epoch"]
        told = {}
        for method in ("GET", "HEAD"):
            asked = ask(address, get(f"/live?at={epoch}.1", method=method))
            told[method] = answer(asked, to_head=method == "HEAD")[:2]
        assert told["GET"][0] == told["HEAD"][0] == 302
        assert told["GET"][1]["location"] == told["HEAD"][1]["location"]
        there = ask(address, get(told["HEAD"][1]["location"], method="HEAD"))
        assert answer(there, to_head=True)[0] == 200


def test_a_place_in_an_ogg_stream_counts_its_header_pages() -> None:
    """They come first, once; who comes back gets the byte that he lacks, wherever it lies."""
    blob = b"OggS the first page" + b"OggS the comments"
    with running() as (engine, address):
        live = Programme(engine, info=OGG)
        live.stream.push(blob[:19], 0, HEADER | CHAIN)
        live.stream.push(blob[19:], 0, HEADER)
        audio = b""
        for frame in live.maker.frames(100):
            live.stream.push(frame, live.duration_us, START)
            audio += frame
        place = place_of(address)
        position, header = (int(n) for n in place.split(".")[1:])
        assert header == len(blob)
        whole = blob + audio[position - len(blob) :]
        status, _, body = read(address, get(place), len(whole))
        assert (status, body) == (200, whole)
        for first in (1, len(blob) - 1, len(blob), len(blob) + 1, len(whole) - 7):
            head = get(place, f"Range: bytes={first}-")
            status, _, body = read(address, head, len(whole) - first)
            assert (status, body) == (206, whole[first:])


def test_slow_request_heads_give_the_same_places() -> None:
    """A head that comes byte by byte is read as one that comes at once."""
    with running() as (engine, address):
        live = Programme(engine)
        live.push_seconds(2)
        head = get(place_of(address), "Range: bytes=77-")
        with dial(address) as sock:
            for byte in head:
                sock.sendall(bytes([byte]))
            reply = read_until(sock, 1000)
        assert b"Content-Range: bytes 77-" in reply


# --- two edges behind one address -----------------------------------------------------------------


class Returning:
    """A client that counts what it has of the body, and asks for the rest when it breaks."""

    def __init__(self, address: Address, path: str) -> None:
        self.address, self.path = address, path
        self.body = b""
        self.replies: list[int] = []
        self.sock: socket.socket | None = None

    def read_to(self, enough: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Read, and come back when the connection ends, until it is enough."""
        until_s = time.monotonic() + timeout_s
        while not enough():
            assert time.monotonic() < until_s, f"{len(self.body)} B in {timeout_s} s"
            if self.sock is None:
                self.sock = self._ask()
                continue
            try:
                part = self.sock.recv(65_536)
            except OSError:
                part = b""
            self.body += part
            if not part:
                self.close()

    def close(self) -> None:
        """Hang up."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def _ask(self) -> socket.socket | None:
        fields = [f"Range: bytes={len(self.body)}-"] if self.body else []
        try:
            sock, status, told, body = opened(self.address, get(self.path, *fields))
        except (OSError, AssertionError):
            time.sleep(0.02)
            return None
        self.replies.append(status)
        if self.body:
            assert status == 206
            assert told["content-range"].startswith(f"bytes {len(self.body)}-")
        self.body += body
        return sock


def wait_exact(node: NodeProcess) -> None:
    """Wait until a node tells of one listener that began exactly at its byte (0.5 s late)."""
    wait_until(
        lambda: node.counters()["anchored_exact_total"] == 1,
        what=f"one exact join at {node!r}",
        every_s=0.1,
    )


@pytest.mark.timeout(60)
def test_another_edge_goes_on_from_the_byte_that_a_listener_has() -> None:
    """The listener's own edge is killed: every frame once, in order, and the origin's bytes."""
    with Nodes() as nodes, Proxies() as proxies:
        origin, middle = nodes.row(2)
        left, right = (nodes.start(upstreams=[middle.backbone]) for _ in range(2))
        proxy = proxies.to(left.address)
        with LiveSource(Source(origin.address, "/live"), FrameMaker(128)):
            for node in (left, right):
                wait_known(node, "/live")
            with dial(left.address) as first:  # the ring is there from now on
                first.sendall(get())
                place = wait_until(lambda: place_if_any(left), 10.0, what="a place", every_s=0.05)
                client = Returning(proxy.address, place)
                client.read_to(lambda: len(client.body) >= 60_000)
                proxy.target = right.address
                left.kill9()
                client.read_to(lambda: client.replies[1:] == [206])
                had = len(client.body)
                client.read_to(lambda: len(client.body) >= had + 40_000)
                client.close()
            checker = FrameChecker()
            checker.feed(client.body)
            assert checker.clean, checker
            assert checker.frames > 200
            # the same place is the same byte at the origin, and on the relay between
            for node in (origin, middle):
                _, _, same = read(node.address, get(place, "Range: bytes=50000-"), 8000)
                same = same[: len(client.body) - 50_000]
                assert client.body[50_000 : 50_000 + len(same)] == same
                wait_exact(node)
            wait_exact(right)
        assert client.replies == [200, 206]


def place_if_any(node: NodeProcess) -> str:
    """Where one would begin at this node; "" while there is nothing."""
    told = node.request("/live?at=live", method="HEAD")
    return told.headers.get("location", "")
