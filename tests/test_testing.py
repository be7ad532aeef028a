"""The fixtures that programs which embed Relay have for their own tests."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

import relay
from relay.testing import Listener, silence, wait_for

pytestmark = pytest.mark.core


def test_a_listener_hears_what_the_source_sends(
    relay_source: relay.NodeSource, relay_listener: Callable[..., Listener]
) -> None:
    """The fixtures' own example: no port, no sleep."""
    relay_source.feed(silence(1.0))
    listener = relay_listener("/live")
    assert listener.status == 200
    assert repr(listener) == "<Listener 200>"
    assert listener.headers["content-type"] == "audio/mpeg"
    assert listener.read(417 * 10) == silence(0.26)
    relay_source.feed(silence(1.0))
    assert len(listener.read(417 * 50)) == 417 * 50


def test_titles_reach_who_asks_for_them(
    relay_source: relay.NodeSource, relay_listener: Callable[..., Listener]
) -> None:
    """ICY, as by the door."""
    relay_source.title("A talk")
    relay_source.feed(silence(4.0))
    listener = relay_listener("/live", {"Icy-MetaData": "1"})
    metaint = int(listener.headers["icy-metaint"])
    listener.read(metaint)
    assert b"A talk" in listener.read(64)


def test_a_mount_that_is_not_there_is_the_engines_own_answer(
    relay_node: relay.Node, relay_listener: Callable[..., Listener]
) -> None:
    """404, and the connection is closed."""
    listener = relay_listener("/other")
    assert listener.status == 404
    listener.read_to_end()
    with pytest.raises(EOFError):
        listener.read(1)
    assert not relay_node.has_mount("/other")


def test_a_read_that_nothing_comes_for_ends(relay_source: relay.NodeSource) -> None:
    """After its time-out, as a condition that does not become true."""
    relay_source.feed(silence(0.1))
    node_of = [t for t in threading.enumerate() if t.name == "relay-node"]
    assert len(node_of) == 1
    with pytest.raises(TimeoutError, match="not so within"):
        wait_for(lambda: False, 0.01)


def test_silence_is_whole_frames_of_mp3() -> None:
    """417 bytes each, one at least."""
    assert silence(0) == silence(0.026)
    assert len(silence(1.0)) == 38 * 417
