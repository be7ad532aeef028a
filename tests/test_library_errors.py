"""What a host does wrong, told by the documented class, with the value, the bound, the next step.

Rules of this room
  1. One row a mistake; the patterns are those parts of the message that a reader acts upon.
  2. The table of classes is that of docs/library.md.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import relay
from relay.testing import silence

pytestmark = pytest.mark.core

PAGE = Path(__file__).resolve().parent.parent / "docs" / "library.md"


class Hall(NamedTuple):
    """What a mistake can be made with."""

    node: relay.Node
    source: relay.NodeSource  # of bytes, on /live
    pcm: relay.NodeSource  # on /pcm, 48 kHz, stereo
    closed: relay.NodeSource
    closed_pcm: relay.NodeSource
    closed_node: relay.Node


@pytest.fixture
def hall(relay_node: relay.Node, relay_source: relay.NodeSource) -> Hall:
    """An open node with sources, and some that are closed."""
    pytest.importorskip("av")
    pcm = relay_node.source("/pcm", codec="flac").open()
    relay_node.source("/webm", content_type="audio/webm").open()
    closed = relay_node.source("/closed", content_type="audio/mpeg").open()
    closed_pcm = relay_node.source("/closed", codec="flac")
    closed.close()
    with closed_pcm:
        pass
    with relay.Node() as closed_node:
        pass
    return Hall(relay_node, relay_source, pcm, closed, closed_pcm, closed_node)


def pcm(dtype: str = "int16", shape: tuple[int, ...] = (480, 2)) -> Any:
    """A block."""
    return np.zeros(shape, dtype)


Row = tuple[Callable[[Hall], object], type[Exception], list[str]]
CONFIG, MOUNT, SOURCE = relay.ConfigError, relay.MountError, relay.SourceError
CLOSED = [r"this source is closed", r"open a new one"]
NOT_OPEN = [r"this node is not open", r"async with relay\.Node"]
ANY: Any = None  # hides a wrong type from the type checker

ROWS: dict[str, Row] = {
    # PCM
    "dtype": (
        lambda h: h.pcm.feed_pcm(pcm("float64")),
        SOURCE,
        ["/pcm", "float64", "int16 and float32", r"astype\('float32'\)"],
    ),
    "byte order": (lambda h: h.pcm.feed_pcm(pcm(">i2")), SOURCE, [">i2", "astype"]),
    "shape": (
        lambda h: h.pcm.feed_pcm(pcm(shape=(2, 480))),
        SOURCE,
        [r"\(2, 480\)", r"\(frames, 2\)", r"\.T"],
    ),
    "one dimension": (lambda h: h.pcm.feed_pcm(pcm(shape=(480,))), SOURCE, [r"\(480,\)"]),
    "no array": (lambda h: h.pcm.feed_pcm([0.0]), SOURCE, ["list", r"numpy\.asarray"]),
    "rate": (
        lambda h: h.pcm.feed_pcm(pcm(), 44_100),
        SOURCE,
        ["44100 Hz", "rate_hz=48000", "resample"],
    ),
    "block": (
        lambda h: h.pcm.feed_pcm(pcm(shape=(1 << 21, 2))),
        SOURCE,
        [str(1 << 21), str(1 << 20), "in parts"],
    ),
    "bytes to PCM": (lambda h: h.pcm.feed(b"x"), SOURCE, ["takes PCM", "feed_pcm"]),
    "PCM to bytes": (lambda h: h.source.feed_pcm(pcm()), SOURCE, ["takes bytes", "codec=…"]),
    "rate of a source": (
        lambda h: h.node.source("/x", codec="opus", rate_hz=47_999),
        CONFIG,
        ["47999", "choose one of 8000, .*48000"],
    ),
    "channels": (lambda h: h.node.source("/x", codec="opus", channels=6), CONFIG, ["6", "1 to 2"]),
    "bit rate": (
        lambda h: h.node.source("/x", codec="mp3", bitrate_bps=128),
        CONFIG,
        ["128", "6000 … 1000000"],
    ),
    "queue": (
        lambda h: h.node.source("/x", codec="mp3", queue_ms=ANY or "1 s"),
        CONFIG,
        ["1 s", "10 to 60000"],
    ),
    "codec": (
        lambda h: h.node.source("/x", codec="wma"),
        CONFIG,
        ["'wma'", "choose one of opus, mp3, aac, flac"],
    ),
    "neither codec nor type": (lambda h: h.node.source("/x"), CONFIG, ["/x", "either .* or"]),
    # sources
    "content type": (
        lambda h: h.node.source("/x", content_type="audio/x-none").open(),
        SOURCE,
        ["audio/x-none", "set it to one of .*audio/mpeg"],
    ),
    "taken": (
        lambda h: h.node.source("/live", content_type="audio/mpeg").open(),
        MOUNT,
        ["'/live' is in use", "end its source, or take another"],
    ),
    "no path": (
        lambda h: h.node.source("live", content_type="audio/mpeg").open(),
        MOUNT,
        ['"live"', "begins with /"],
    ),
    "a path of Relay's own": (
        lambda h: h.node.source("/status", content_type="audio/mpeg").open(),
        MOUNT,
        ['"/status"', "choose another name"],
    ),
    "feed after close": (lambda h: h.closed.feed(b"x"), SOURCE, ["/closed", *CLOSED]),
    "title after close": (lambda h: h.closed.title("x"), SOURCE, CLOSED),
    "PCM after close": (lambda h: h.closed_pcm.feed_pcm(pcm()), SOURCE, CLOSED),
    "open after close": (lambda h: h.closed.open(), SOURCE, CLOSED),
    "feed before open": (
        lambda h: h.node.source("/x", content_type="audio/mpeg").feed(b"x"),
        relay.RelayError,
        ["open the source first", "async with"],
    ),
    "text": (lambda h: h.source.feed(ANY or "text"), TypeError, ["bytes-like", "'str'"]),
    "pieces": (lambda h: h.source.feed(memoryview(bytes(8))[::2]), BufferError, ["contiguous"]),
    "a title that is none": (lambda h: h.source.title(ANY or 5), TypeError, ["str", "int"]),
    "no audio": (
        lambda h: [h.source.feed(b"\xaa" * 65_536) for _ in range(9)],
        SOURCE,
        ["/live", "frame"],
    ),
    # readers
    "no such stream": (
        lambda h: h.node.subscribe("/other"),
        MOUNT,
        ['"/other"', "no such stream", "has_mount"],
    ),
    "no such PCM": (lambda h: h.node.subscribe_pcm("/other"), MOUNT, ['"/other"', "has_mount"]),
    "PCM of WebM": (
        lambda h: h.node.subscribe_pcm("/webm"),
        SOURCE,
        ["webm is not decoded here", "mpeg, adts, ogg", r"subscribe\("],
    ),
    "start": (
        lambda h: h.node.subscribe("/live", start=ANY or "now"),
        relay.RelayError,
        ['"now"', "'live', 'burst', a Position"],
    ),
    "burst": (
        lambda h: h.node.subscribe("/live", start="burst", burst_ms=-1),
        relay.RelayError,
        ["-1", "0 to 3600000"],
    ),
    "pace": (
        lambda h: h.node.subscribe("/live", pace_ms=5),
        relay.RelayError,
        ["pace_ms is 5", "10 to 1000"],
    ),
    "a mount that is no text": (
        lambda h: h.node.subscribe(ANY or 5),
        MOUNT,
        ["5", "a mount is text, such as /live"],
    ),
    # nodes
    "closed node: source": (
        lambda h: h.closed_node.source("/x", content_type="audio/mpeg"),
        relay.RelayError,
        NOT_OPEN,
    ),
    "closed node: subscribe": (
        lambda h: h.closed_node.subscribe("/x"),
        relay.RelayError,
        NOT_OPEN,
    ),
    "closed node: events": (lambda h: h.closed_node.events(), relay.RelayError, NOT_OPEN),
    "closed node: snapshot": (lambda h: h.closed_node.snapshot(), relay.RelayError, NOT_OPEN),
    "opened twice": (lambda h: h.node.__enter__(), relay.RelayError, ["is open already"]),
    "http": (lambda h: relay.Node(http="8000"), CONFIG, ['"8000"', "write HOST:PORT"]),
    "http port": (lambda h: relay.Node(http=70_000), CONFIG, ['"70000"', "0 to 65535"]),
    "http flag": (lambda h: relay.Node(http=True), CONFIG, ["http", "true"]),
    "http empty": (lambda h: relay.Node(http=""), CONFIG, ["http", "HOST:PORT"]),
    "backbone": (lambda h: relay.Node(backbone=":9000"), CONFIG, ['":9000"', "tcp://"]),
    "upstream": (
        lambda h: relay.Node(upstream="127.0.0.1:9000"),
        CONFIG,
        ['"127.0.0.1:9000"', "tcp://"],
    ),
    "upstream that is no text": (lambda h: relay.Node(upstream=ANY or 5), CONFIG, ["upstream.*5"]),
    "option": (lambda h: relay.Node(burst=5), CONFIG, ["burst: unknown", "did you mean burst_ms"]),
    "option's bound": (lambda h: relay.Node(burst_ms=-1), CONFIG, ["burst_ms.*-1"]),
    "config": (lambda h: relay.Node(config=ANY or {}), CONFIG, [r"relay\.Config", r"Config\.load"]),
    "config and more": (
        lambda h: relay.Node(http=0, config=relay.Config()),
        CONFIG,
        ["either config or single settings"],
    ),
    "on_join": (lambda h: relay.Node(on_join=ANY or 5), relay.RelayError, ["on_join is 5", "Join"]),
    "join time-out": (
        lambda h: relay.Node(on_join=lambda join: relay.Allow(), join_timeout_s=0),
        relay.RelayError,
        ["join_timeout_s is 0", "0 to 60"],
    ),
    # the rest
    "clock": (lambda h: relay.AudioClock(0), relay.RelayError, ["rate_hz is 0", "1 to 768000"]),
    "denial": (lambda h: relay.Deny(200), relay.RelayError, ["200", "400 to 599"]),
    "redirect": (lambda h: relay.Redirect("/x"), relay.RelayError, ['"/x"', "absolute http"]),
    "no origins": (
        lambda h: relay.RemoteSource([], content_type="audio/mpeg"),
        CONFIG,
        ["0 URLs", "1 to 8"],
    ),
    "remote password": (
        lambda h: relay.RemoteSource("http://a.example/live", content_type="audio/mpeg"),
        CONFIG,
        ["http://a.example", "RELAY_SOURCE_PASSWORD"],
    ),
    "remote type": (
        lambda h: relay.RemoteSource("http://a:b@c/d", content_type="audio/x-none").open(),
        SOURCE,
        ["audio/x-none", "set it to one of"],
    ),
    "remote before open": (
        lambda h: relay.RemoteSource("http://a:b@c/d", content_type="audio/mpeg").feed(b"x"),
        relay.RelayError,
        ["open the source first"],
    ),
}


@pytest.mark.parametrize("mistake", ROWS)
def test_a_mistake_is_told_with_value_bound_and_next_step(hall: Hall, mistake: str) -> None:
    """By the very class that the page names, not by one below it."""
    make, kind, parts = ROWS[mistake]
    with pytest.raises(Exception) as told:  # noqa: PT011
        make(hall)
    assert type(told.value) is kind, repr(told.value)
    for part in parts:
        assert re.search(part, str(told.value)), f"{part} is not in: {told.value}"


def test_a_missing_extra_is_told_with_its_command(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if PyAV were not installed."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(relay.SourceError, match=r"pip install 'relay-audio\[media\]'"):
        hall.node.source("/x", codec="opus")
    with pytest.raises(relay.SourceError, match=r"pip install 'relay-audio\[media\]'"):
        hall.node.subscribe_pcm("/live")


async def test_what_cannot_be_handed_over_is_told() -> None:
    """No socket, one that is not connected, half a request."""
    async with relay.Node() as node:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for thing, head, parts in (
                (ANY or "socket", b"", "str: a socket, or an asyncio transport"),
                (theirs, b"GET / HTTP/1.1\r\n", "16 bytes without its blank line: read it to its"),
                (theirs, b"hello\r\n\r\n", '"hello"'),
                (theirs, b"GET / HTTP/1.1\r\nUser-Agent: " + b"x" * 9000 + b"\r\n\r\n", "8192"),
            ):
                with pytest.raises(relay.RelayError, match=re.escape(parts)):
                    await node.admit(thing, "/live", head)
            assert theirs.fileno() >= 0  # still the caller's
        with socket.socket() as alone, pytest.raises(relay.RelayError, match="that was accepted"):
            await node.admit(alone, "/live")


def test_an_address_that_cannot_be_had_is_told() -> None:
    """A port that another has, a host of another machine."""
    with relay.Node(http=0) as node:
        with pytest.raises(relay.ConfigError, match=r"the port is taken .* choose another, or 0"):
            relay.Node(http=node.http_address).__enter__()
        with pytest.raises(relay.ConfigError, match="this machine has no such address"):
            relay.Node(http="192.0.2.1:0").__enter__()


def test_a_node_that_closes_meanwhile_ends_its_sources_and_readers() -> None:
    """Each later call says what is to be done."""
    with relay.Node() as node:
        source = node.source("/live", content_type="audio/mpeg").open()
        source.feed(silence(1.0))
        reader = node.subscribe("/live", start="burst")
    with pytest.raises(relay.SourceError, match="closed; open a new one"):
        source.feed(silence(1.0))
    source.close()
    assert all(isinstance(item, relay.Frame) for item in reader)


def test_the_page_names_every_class() -> None:
    """And no other."""
    text = PAGE.read_text(encoding="utf-8").partition("## Errors")[2]
    named = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    ours = {name for name in relay.__all__ if name.endswith("Error")}
    assert named - {"TypeError"} == ours
