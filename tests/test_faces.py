"""The reading and handing side of a node: on a real engine, without a port."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import weakref
from typing import Any

import pytest
from tools.script import ALLOW, Script
from tools.sources import FrameMaker

import relay
from relay.testing import Listener, silence, wait_for

pytestmark = pytest.mark.core


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_are_fed_and_read(
    relay_node: relay.Node, relay_source: relay.NodeSource, kind: Any
) -> None:
    """Cut anywhere; frames come out whole, with their places."""
    data = FrameMaker().seconds(1.0)
    for at in range(0, len(data), 997):
        relay_source.feed(kind(data[at : at + 997]))
    frames = relay_node.subscribe("/live", burst_ms=60_000).waiting()
    assert len(frames) > 30
    assert b"".join(f.data for f in frames if isinstance(f, relay.Frame)) in data


def test_plain_code_reads_from_a_place(
    relay_node: relay.Node, relay_source: relay.NodeSource
) -> None:
    """One reader stops, another goes on behind it."""
    relay_source.feed(silence(1.0))
    with relay_node.subscribe("/live", start="burst") as reader:
        first = next(iter(reader))
    assert isinstance(first, relay.Frame)
    with relay_node.subscribe("/live", start=first.after) as other:
        second = next(iter(other))
    assert isinstance(second, relay.Frame)
    assert second.sequence == first.sequence + 1
    with relay_node.subscribe("/live", start=second.position) as bytewise:
        assert next(iter(bytewise)) == second


async def test_an_epoch_is_heard_out_before_the_next(relay_node: relay.Node) -> None:
    """A reader that was busy meanwhile misses nothing of either."""
    for number in range(2):
        with relay_node.source("/live", content_type="audio/mpeg") as source:
            source.feed(silence(0.5))
            if number == 0:
                reader = relay_node.subscribe("/live", burst_ms=10_000)
                assert isinstance(await anext(reader), relay.Frame)
            source.feed(silence(0.5))
    relay_node_frames = []
    async with asyncio.timeout(10):
        async for item in reader:
            assert isinstance(item, relay.Frame)
            relay_node_frames.append(item)
            if len(relay_node_frames) == 38 + 38 - 1 - 2:
                break
    epochs = [frame.epoch for frame in relay_node_frames]
    assert len(set(epochs)) == 2
    assert epochs == sorted(epochs)


@pytest.mark.parametrize("is_fed", [True, False])
def test_a_loop_that_is_closed_is_not_kept(
    relay_node: relay.Node, relay_source: relay.NodeSource, is_fed: bool
) -> None:
    """A host that runs a loop now and then, as asyncio.run does, pays for none of the past ones:
    whether its reader got a frame, or waited for one to the end."""
    relay_source.feed(silence(1.0))
    loop = asyncio.new_event_loop()
    reader = relay_node.subscribe("/live", start="burst" if is_fed else "live")

    async def read() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                async for _ in reader:
                    pass

    try:
        loop.run_until_complete(read())
    finally:
        loop.close()
    kept = weakref.ref(loop)
    del loop
    gc.collect()
    assert kept() is None
    assert not relay_node._pulses


async def test_readers_of_one_pace_are_woken_together(
    relay_node: relay.Node, relay_source: relay.NodeSource
) -> None:
    """On each loop one pulse a pace; all of them get their frames."""
    readers = [relay_node.subscribe("/live", pace_ms=pace_ms) for pace_ms in (20, 20, 10)]
    waiting = [asyncio.ensure_future(anext(reader)) for reader in readers]
    await asyncio.sleep(0)
    [pulses] = relay_node._pulses.values()
    assert sorted(pulses) == [0.01, 0.02]
    relay_source.feed(silence(0.1))
    async with asyncio.timeout(10):
        frames = await asyncio.gather(*waiting)
    assert len({frame.sequence for frame in frames if isinstance(frame, relay.Frame)}) == 1


async def test_a_slow_reader_holds_a_bounded_batch_and_learns_what_it_missed(
    relay_node: relay.Node, relay_source: relay.NodeSource
) -> None:
    """The ring is the buffer."""
    relay_source.feed(silence(1.0))
    reader = relay_node.subscribe("/live", start="burst")
    first = await anext(reader)
    for _ in range(120):
        relay_source.feed(silence(1.0))
    while isinstance(item := await anext(reader), relay.Frame):
        last = item
    assert isinstance(item, relay.Skipped)
    assert item.reason == "slow"
    after = await anext(reader)
    assert isinstance(first, relay.Frame)
    assert isinstance(after, relay.Frame)
    assert after.sequence == last.sequence + 1 + item.frames


async def test_readers_end_when_the_node_closes() -> None:
    """No error, no task that hangs; also events, and one that waits in plain code."""
    node = await relay.Node().open()
    with node.source("/live", content_type="audio/mpeg") as source:
        source.feed(silence(0.1))
        reader, events = node.subscribe("/live"), node.events()
        assert isinstance(await anext(events), relay.SourceUp)
        waiting = asyncio.ensure_future(anext(reader, None))
        told = asyncio.ensure_future(anext(events, None))
        await asyncio.sleep(0)
        plain = asyncio.create_task(asyncio.to_thread(list, node.subscribe("/live")))
        await asyncio.sleep(0)
    await node.close()
    async with asyncio.timeout(10):
        assert await told is None or isinstance(await told, relay.SourceDown)
        assert isinstance(await waiting, relay.Frame | None)
        assert all([isinstance(item, relay.Frame) async for item in reader])
        assert all(isinstance(item, relay.Frame) for item in await plain)


async def test_a_socket_of_the_host_is_admitted() -> None:
    """With the head that the host has read; ended by TLS's absence alone."""
    async with relay.Node() as node:
        with node.source("/live", content_type="audio/mpeg") as source:
            source.feed(silence(1.0))
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            head = b"GET /radio/live HTTP/1.1\r\nHost: h\r\nIcy-MetaData: 1\r\n\r\n"
            await node.admit(theirs, "/live", head)
            loop = asyncio.get_running_loop()
            reply = await asyncio.wait_for(loop.sock_recv(ours, 65536), 10)
            assert b"icy-metaint" in reply
            ours.close()
            with pytest.raises(relay.MountError):
                await node.admit(ours, "live")
            with pytest.raises(relay.RelayError, match="no connected stream socket"):
                await node.admit(socket.socket(), "/live")
    with pytest.raises(relay.RelayError, match="not open"):
        await node.admit(theirs, "/live")


@pytest.mark.parametrize(
    ("verdict", "status"),
    [(relay.Allow(), 200), (relay.Deny(402), 402), (relay.Redirect("http://b.example/"), 302)],
)
def test_who_is_handed_in_is_asked_about(verdict: Any, status: int) -> None:
    """on_join has the word, whichever way a listener comes."""
    seen: list[relay.Join] = []

    def on_join(join: relay.Join) -> Any:
        seen.append(join)
        return verdict

    with relay.Node(on_join=on_join) as node:
        with node.source("/live", content_type="audio/mpeg") as source:
            source.feed(silence(1.0))
            with Listener(node, "/live", {"User-Agent": "VLC/3"}) as listener:
                assert listener.status == status
        assert [(j.mount, j.user_agent) for j in seen] == [("/live", "VLC/3")]


def test_scripts_are_asked_about_who_is_handed_in() -> None:
    """Without a hook of the host's, too: they let in, refuse, and are told who has left."""
    with Script() as script:
        script.answer = lambda fields: ALLOW if fields["agent"] == "good" else {}
        asked = {"listener_add": script.url, "listener_remove": script.url}
        with (
            relay.Node(**asked) as node,
            node.source("/live", content_type="audio/mpeg") as source,
        ):
            source.feed(silence(1.0))
            with Listener(node, "/live", {"User-Agent": "bad"}) as listener:
                assert listener.status == 401
            with Listener(node, "/live", {"User-Agent": "good"}) as listener:
                listener.read(417)
            wait_for(lambda: script.of("listener_remove"))
        [told] = script.of("listener_remove")
        assert int(told["sent"]) >= 417
        assert told["client"] == script.of("listener_add")[1]["client"]


def test_on_join_is_asked_at_the_door_too() -> None:
    """By HTTP, for every mount; snapshot() counts the answers."""
    tokens: list[str] = []

    async def on_join(join: relay.Join) -> relay.Verdict:
        tokens.append(join.query.get("token", ""))
        return relay.Allow() if tokens[-1] == "good" else relay.Deny()

    with relay.Node(http=0, on_join=on_join) as node:
        with node.source("/live", content_type="audio/mpeg") as source:
            source.feed(silence(1.0))
            assert node.http_address is not None
            host, _, port = node.http_address.partition(":")
            for token, status in (("good", b"200"), ("bad", b"403")):
                with socket.create_connection((host, int(port)), 10) as sock:
                    sock.sendall(f"GET /live?token={token} HTTP/1.0\r\n\r\n".encode())
                    assert sock.recv(100).split(b" ")[1] == status
        told = node.snapshot()
        assert (told["join_allowed_total"], told["join_denied_total"]) == (1, 1)
    assert tokens == ["good", "bad"]


def test_events_tell_who_came_and_left(
    relay_node: relay.Node, relay_source: relay.NodeSource
) -> None:
    """In plain code: up, joined, left with what was sent, down."""
    events = relay_node.events()
    relay_source.feed(silence(1.0))
    with Listener(relay_node, "/live") as listener:
        listener.read(417)
        wait_for(lambda: relay_node.snapshot()["listeners"] == 1)
    kinds = {}
    for event in events:
        kinds[type(event)] = event
        if isinstance(event, relay.Left):
            relay_source.close()
        if isinstance(event, relay.SourceDown):
            break
    assert list(kinds) == [relay.SourceUp, relay.Joined, relay.Left, relay.SourceDown]
    [visit] = kinds[relay.Left].visits  # type: ignore[attr-defined]
    assert visit.sent_bytes >= 417
    events.close()
