"""What a pulled stream is, and that a node without one pays nothing for it."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine, FakeSource
from tools.clock import FakeClock

from relay import _core
from relay.config import Config
from relay.errors import SourceError
from relay.pull import Pulls, Taking, Watch, content_type_of
from relay.pull_http import Head, IcyBody
from relay.source import LocalSource


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine of plain Python."""
    monkeypatch.setattr(_core, "Source", FakeSource)
    return FakeEngine()


@pytest.mark.parametrize(
    ("said", "first", "expected"),
    [
        ("audio/mpeg", b"", "audio/mpeg"),
        ("audio/aacp", b"", "audio/aac"),
        ("application/ogg", b"", "audio/ogg"),
        ("application/octet-stream", b"OggS\0\x02", "audio/ogg"),
        ("", b"\xff\xf1\x50\x80", "audio/aac"),
        ("", b"\xff\xfb\x90\x00", "audio/mpeg"),
        ("", b"what", "audio/mpeg"),
    ],
)
def test_the_content_type_is_told_or_seen(said: str, first: bytes, expected: str) -> None:
    """As the server says; else by the bytes; SHOUTcast's silence means MP3."""
    head = Head(200, "OK", {"content-type": said} if said else {})
    assert content_type_of(head, first) == expected


def test_a_page_is_no_stream() -> None:
    """A type that is told and not carried is refused with its name."""
    with pytest.raises(SourceError, match="text/html"):
        content_type_of(Head(200, "OK", {"content-type": "text/html"}), b"<html>")


class Transport:
    """A connection that knows whether it was broken off."""

    aborted = 0

    def abort(self) -> None:
        """Break it off."""
        self.aborted += 1


def test_a_connection_without_audio_is_broken_off_once(clock: FakeClock) -> None:
    """When its time is over, and not before."""
    transport: Any = Transport()
    watch = Watch(transport, clock() + 10)
    clock.advance(s=10)
    watch.look(clock())
    assert not watch.is_over
    watch.due += 5
    clock.advance(s=4)
    watch.look(clock())
    assert not transport.aborted
    clock.advance(s=2)
    watch.look(clock())
    watch.look(clock())
    assert watch.is_over
    assert transport.aborted == 1


def test_what_comes_too_fast_is_held_back(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it is ahead beyond the bound; each new title is set once, where it stands."""
    source = LocalSource(engine, "/x", "audio/mpeg")
    taking = Taking(source, IcyBody(0), ahead_us_max=2_000_000)
    monkeypatch.setattr(FakeSource, "ahead_us", 5_000_000)
    assert taking.take([b"a" * 1000, "One", b"b", "One", "Two"]) == 3.0
    monkeypatch.setattr(FakeSource, "ahead_us", 1_000_000)
    assert taking.take([b"c"]) == 0.0
    assert engine.find("/x").titles == ["One", "Two"]
    assert bytes(engine.find("/x").fed) == b"a" * 1000 + b"bc"


def test_a_node_that_pulls_nothing_has_no_thread() -> None:
    """Nothing is paid for what is not used."""
    engine: Any = FakeEngine()
    pulls = Pulls(engine, engine, Config(), agent="x", own=lambda: None)
    pulls.start()
    assert pulls.facts() == {}
    assert pulls.snapshot()["pulls"] == 0
    pulls.close()
