"""One source without sockets: its claim, what it promised, its titles, its end."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fake_engine import FakeEngine, FakeSource

from relay import _core
from relay.errors import MountError, SourceError
from relay.source import LocalSource
from relay.source_info import read_info


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine of plain Python."""
    monkeypatch.setattr(_core, "Source", FakeSource)
    return FakeEngine()


def test_source_claims_its_mount_and_gives_it_back(engine: Any) -> None:
    """One writer at a time; the epoch ends with the source, the stream stays."""
    source = LocalSource(engine, "/live", "audio/mpeg", {"ice-name": "A talk"})
    stream = engine.find("/live")
    assert stream.source_up
    assert source.epoch == stream.epoch
    with pytest.raises(MountError, match="in use"):
        LocalSource(engine, "/live", "audio/mpeg")
    source.close()
    source.close()
    assert not stream.source_up
    assert stream.writer == "none"
    assert LocalSource(engine, "/live", "audio/mpeg").epoch > source.epoch


def test_fed_bytes_reach_the_stream(engine: Any) -> None:
    """feed answers how far the source is ahead; titles are cleaned on their way."""
    with LocalSource(engine, "/live", "audio/mpeg") as source:
        assert source.feed(b"x" * 10) == 0
        source.title("A\r\ntalk")
        assert bytes(engine.find("/live").fed) == b"x" * 10
        assert engine.find("/live").titles == ["A  talk"]
        assert source.media_us() == 10_000


def test_closed_source_takes_nothing(engine: Any) -> None:
    """What comes after the end is an error that says so, not silence."""
    source = LocalSource(engine, "/live", "audio/mpeg")
    source.close()
    with pytest.raises(SourceError, match="closed"):
        source.feed(b"x")
    with pytest.raises(SourceError, match="closed"):
        source.title("x")
    assert "closed" in repr(source)


@pytest.mark.parametrize("mount", ["live", "/admin/x", "/status.mp3", "/a b", "/", "/7.html"])
def test_reserved_or_malformed_mounts_are_refused(engine: Any, mount: str) -> None:
    """Relay's own pages and what is no path never become a mount."""
    with pytest.raises(MountError):
        LocalSource(engine, mount, "audio/mpeg")
    assert engine.streams() == []


def test_unknown_content_type_is_refused_before_the_claim(engine: Any) -> None:
    """Nothing is left behind by a source that cannot be."""
    with pytest.raises(SourceError, match="not carried"):
        LocalSource(engine, "/live", "audio/flac")
    assert engine.streams() == []


def test_another_format_is_refused_while_listeners_wait(engine: Any) -> None:
    """Who was promised MP3 and still listens must not get Ogg."""
    LocalSource(engine, "/live", "audio/mpeg").close()
    engine.find("/live").listeners = 2
    with pytest.raises(SourceError, match="promised to 2 listeners"):
        LocalSource(engine, "/live", "audio/ogg")
    engine.find("/live").listeners = 1
    with pytest.raises(SourceError, match="promised to 1 listener as"):
        LocalSource(engine, "/live", "audio/ogg")
    assert engine.find("/live").writer == "none"
    LocalSource(engine, "/live", "audio/mp3").close()
    engine.find("/live").listeners = 0
    LocalSource(engine, "/live", "audio/ogg")
    assert read_info(engine.find("/live").info())["content-type"] == "audio/ogg"


def test_epoch_that_cannot_begin_leaves_the_mount_free(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that fails half-way holds nothing."""
    engine.add_stream("/live")
    stream = engine.find("/live")

    def full() -> int:
        raise SourceError("too many epochs")

    monkeypatch.setattr(stream, "begin", full)
    with pytest.raises(SourceError, match="too many epochs"):
        LocalSource(engine, "/live", "audio/mpeg")
    assert stream.writer == "none"


def test_a_source_that_returns_keeps_the_title_of_its_stream(engine: Any) -> None:
    """Of a stream that lingered; a new mount begins without one."""
    with LocalSource(engine, "/live", "audio/mpeg") as source:
        assert engine.find("/live").titles == []
        source.title("A talk")
    with LocalSource(engine, "/live", "audio/mpeg"):
        assert engine.find("/live").titles == ["A talk", "A talk"]
    with LocalSource(engine, "/live", "audio/mpeg") as source:
        source.title("Another")
        assert engine.find("/live").titles[-2:] == ["A talk", "Another"]


def test_source_that_finds_a_removed_stream_takes_a_new_one(engine: Any) -> None:
    """Found, removed by the sweeper, claimed: the source begins again with a fresh stream."""
    stale = engine.add_stream("/live")
    finds = [stale]

    class Racing(FakeEngine):
        def find(self, mount: str) -> Any:
            return finds.pop() if finds else super().find(mount)

    stale.claim()
    source = LocalSource(cast(Any, Racing()), "/live", "audio/mpeg")
    assert cast(Any, source.stream) is not stale
