"""Node: what is opened, in which order, and that nothing stays; over a fake engine."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeSource

import relay
from relay.node import Node

HEAVY = {"click", "aiohttp", "numpy", "zmq", "msgspec", "prometheus_client", "asyncio"}


def test_import_is_light() -> None:
    """`import relay` pulls in none of the heavy modules; the names come when asked for."""
    code = "import sys, relay; print(*sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(seen.stdout.split())
    assert "relay.node" not in seen.stdout.split()


def test_public_names_are_all_there() -> None:
    """Each name of the door leads somewhere, and no other does."""
    for name in relay.__all__:
        assert getattr(relay, name) is not None
        assert name in dir(relay)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = relay.nonsense  # type: ignore[attr-defined]


async def test_a_source_tells_its_mount_and_state(engines: list[Any]) -> None:
    """In its repr; and a title that is no text is the caller's mistake, in one line."""
    async with relay.Node() as node:
        live = node.source("/live", content_type="audio/mpeg")
        assert repr(live) == "<NodeSource /live audio/mpeg new>"
        with live:
            assert repr(live) == "<NodeSource /live audio/mpeg open>"
            with pytest.raises(TypeError, match=r"a title is text \(str\), not int"):
                live.title(5)  # type: ignore[arg-type]
        assert repr(live) == "<NodeSource /live audio/mpeg closed>"


async def test_node_opens_and_closes_in_order(engines: list[Any]) -> None:
    """Listening before threads; no new listeners before the drain; the engine last."""
    async with relay.Node(http="127.0.0.1:0") as node:
        assert node.http_address == "127.0.0.1:8123"
        assert node.backbone_address is None
        assert "open" in repr(node)
    assert engines[0].calls == ["listen", "start", "stop_accepting", "close"]
    assert node.http_address is None
    await node.close()


async def test_node_without_http_listens_to_nobody(engines: list[Any]) -> None:
    """Node() is a library alone: no door."""
    async with relay.Node() as node:
        assert node.http_address is None
        assert node.problems() == []
        assert "listeners" in node.snapshot()
    assert "listen" not in engines[0].calls


async def test_settings_reach_the_engine(engines: list[Any]) -> None:
    """Defaults, then one mount's own; seconds are rounded up."""
    options = {"burst_ms": 500, "linger_s": 0.5, "streams": {"/live": {"burst_ms": 250}}}
    async with relay.Node(http="127.0.0.1:0", heads_max=20, heads_per_address_max=5, **options):
        settings = engines[0].configured
        assert settings[None]["burst_ms"] == 500
        assert settings[None]["linger_s"] == 1
        assert settings["/live"]["burst_ms"] == 250
        assert engines[0].options["heads_max"] == 20


async def test_the_pace_reaches_the_engine(engines: list[Any]) -> None:
    """A number, or None with the bounds between which the engine chooses."""
    options = {"pace_ms_max": 500, "streams": {"/live": {"pace_ms": 250}}}
    async with relay.Node(http="127.0.0.1:0", **options):
        told = engines[0].configured
        paces = [
            (told[m]["pace_ms"], told[m]["pace_ms_min"], told[m]["pace_ms_max"])
            for m in (None, "/live")
        ]
        assert paces == [(None, 100, 500), (250, 100, 500)]


def test_config_and_single_settings_do_not_mix() -> None:
    """Two answers to one question would be a guess."""
    with pytest.raises(relay.ConfigError, match="not both"):
        relay.Node(config=relay.Config.load(environ={}), burst_ms=1)


def test_wrong_settings_are_named() -> None:
    """All at once, before anything is opened; the environment is not asked."""
    with pytest.raises(relay.ConfigError) as caught:
        relay.Node(http="nonsense", burst_ms=-1)
    assert len(caught.value.problems) == 2


async def test_address_that_cannot_be_had_leaves_nothing_open(
    engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A taken port is one line that names the next step."""

    def taken(self: FakeEngine, host: str, port: int) -> tuple[str, int]:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(FakeEngine, "listen", taken)
    node = relay.Node(http="127.0.0.1:8000")
    with pytest.raises(relay.ConfigError, match=r"http\.bind = 127\.0\.0\.1:8000.*taken.*--http"):
        await node.open()
    assert engines[0].calls == ["stop_accepting", "close"]
    assert "closed" in repr(node)


async def test_a_node_without_http_takes_no_port_for_it(engines: list[Any]) -> None:
    """Its backbone may have the port that HTTP has by default."""
    assert relay.Node(backbone="tcp://127.0.0.1:8000").http_address is None


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(99, "Cannot assign"), "this machine has no such address; use one of its own"),
        (OSError(13, "Permission denied"), "a port below 1024 needs a privilege"),
        (OSError("no.such.invalid: Name or service not known"), "the name is not known here"),
        (OSError(97, "Address family"), "this machine has no IPv6"),
        (OSError(105, "x"), "No buffer space available"),
    ],
)
async def test_each_address_that_cannot_be_had_gets_its_advice(
    engines: list[Any], monkeypatch: pytest.MonkeyPatch, error: OSError, says: str
) -> None:
    """IPv6 in brackets, the reason, what can be had instead, and the option."""

    def refuse(self: FakeEngine, host: str, port: int) -> tuple[str, int]:
        raise error

    monkeypatch.setattr(FakeEngine, "listen", refuse)
    with pytest.raises(relay.ConfigError) as caught:
        await relay.Node(http="[::]:80").open()
    assert str(caught.value).startswith(f"http.bind = [::]:80: {says}")
    assert str(caught.value).endswith(", with --http HOST:PORT")


async def test_source_feeds_its_stream(engines: list[Any]) -> None:
    """The README's words: source, feed, title; the epoch ends with the block."""
    async with relay.Node() as node:
        async with node.source("/live", content_type="audio/mpeg", name="A talk") as live:
            assert live.feed(b"abc") == 0
            live.title("First part")
            stream = engines[0].find("/live")
            assert bytes(stream.fed) == b"abc"
            assert stream.titles == ["First part"]
            assert b"icy-name:A talk\r\n" in stream.info()
            assert live.epoch == stream.epoch
            with pytest.raises(relay.MountError), node.source("/live", content_type="audio/ogg"):
                pass
        assert not stream.source_up
        with pytest.raises(relay.SourceError, match="closed"):
            live.feed(b"abc")


async def test_source_says_how_far_it_is_ahead(
    engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ms, for generators that keep their own pace."""
    monkeypatch.setattr(FakeSource, "ahead_us", 1500)
    async with relay.Node() as node:
        with node.source("/live", content_type="audio/mpeg") as live:
            assert live.feed(b"abc") == 1.5


async def test_calls_on_a_closed_node_say_so(engines: list[Any]) -> None:
    """Not an AttributeError from the inside."""
    node = relay.Node()
    with pytest.raises(relay.RelayError, match="not open"):
        node.source("/live", content_type="audio/mpeg")
    with pytest.raises(relay.RelayError, match="not open"):
        node.snapshot()
    async with node:
        with pytest.raises(relay.RelayError, match="open already"):
            await node.open()
        with pytest.raises(relay.RelayError, match="open the source first"):
            node.source("/live", content_type="audio/mpeg").feed(b"")
    assert node.problems() == ["draining"]


async def test_closing_node_ends_its_sources(engines: list[Any]) -> None:
    """Epochs end with the node, also those whose block goes on."""
    node = await relay.Node().open()
    live = node.source("/live", content_type="audio/mpeg").open()
    stream = engines[0].find("/live")
    await node.close()
    assert not stream.source_up
    live.close()


async def test_several_nodes_live_in_one_process(engines: list[Any]) -> None:
    """Nothing is shared between them."""
    async with relay.Node() as one, relay.Node() as other:
        with one.source("/live", content_type="audio/mpeg") as live:
            live.feed(b"x")
            assert engines[0].find("/live")
            assert engines[1].find("/live") is None
            assert other.facts().streams == []


async def test_housekeeping_goes_on_after_an_error(
    engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure must not keep streams without a source, and slow pages, for ever."""
    async with Node(http="127.0.0.1:0") as node:
        before = node._timer
        assert before is not None
        monkeypatch.setattr(node._sources, "tick", lambda now: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            node._tick()
        assert node._timer is not before
        before.cancel()


async def test_housekeeping_frees_what_was_retired(engines: list[Any]) -> None:
    """On a node where nothing else is retired and nobody looks at a page, too."""
    async with Node(http="127.0.0.1:0") as node:
        assert node._timer is not None
        node._timer.cancel()
        before = engines[-1].sweeps
        node._tick()
        assert engines[-1].sweeps == before + 1


async def test_subscribe_reads_what_is_fed(engines: list[Any]) -> None:
    """Frames come out as they went in."""
    async with relay.Node() as node:
        with node.source("/live", content_type="audio/mpeg") as live:
            live.feed(b"abc")
            async for frame in node.subscribe("/live", burst_ms=3000):
                assert isinstance(frame, relay.Frame)
                assert frame.data == b"abc"
                break
        with pytest.raises(relay.MountError):
            node.subscribe("/other")


async def test_no_signal_handler_and_no_logging_is_set(engines: list[Any]) -> None:
    """The host's process stays the host's."""
    import logging
    import signal

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    handlers = list(logging.getLogger().handlers), list(logging.getLogger("relay").handlers)
    async with Node(http="127.0.0.1:0"):
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        now = list(logging.getLogger().handlers), list(logging.getLogger("relay").handlers)
        assert now == handlers
