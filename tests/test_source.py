"""The source side without sockets: claims, promises, header lines, titles, and the linger."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fake_engine import FakeEngine, FakeSource
from hypothesis import given
from hypothesis import strategies as st

from relay import _core
from relay.config import Config
from relay.errors import MountError, SourceError
from relay.source import LocalSource, Sources, clean, info_lines, read_info


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine of plain Python."""
    monkeypatch.setattr(_core, "Source", FakeSource)
    return FakeEngine()


@pytest.fixture
def sources(engine: Any) -> Sources:
    """The sources of a node with default settings."""
    return Sources(engine, Config.load(environ={}))


def told(**headers: str) -> dict[str, str]:
    """What listeners are told when a source says this."""
    return read_info(info_lines("audio/mpeg", {k.replace("_", "-"): v for k, v in headers.items()}))


@pytest.mark.parametrize("prefix", ["ice-", "icy-", "x-audiocast-", "Ice-", "ICY-"])
def test_names_are_taken_in_every_spelling(prefix: str) -> None:
    """Encoders write ice-, icy- and x-audiocast-, in any case."""
    lines = info_lines("audio/mpeg", {f"{prefix}Name": "A talk", f"{prefix}genre": "speech"})
    assert b"icy-name:A talk\r\n" in lines
    assert b"icy-genre:speech\r\n" in lines
    assert lines.startswith(b"Content-Type: audio/mpeg\r\n")


@pytest.mark.parametrize(
    ("headers", "bit_rate"),
    [
        ({"ice-bitrate": "128"}, "128"),
        ({"ice-audio-info": "ice-samplerate=44100;ice-bitrate=96;ice-channels=2"}, "96"),
        ({"ice-audio-info": "bitrate=64"}, "64"),
        ({"ice-bitrate": "Quality 4", "ice-audio-info": "bitrate=112"}, "112"),
        ({"ice-bitrate": "Quality 4"}, None),
        ({}, None),
    ],
)
def test_bit_rate_is_found_where_encoders_put_it(
    headers: dict[str, str], bit_rate: str | None
) -> None:
    """From ice-bitrate or from ice-audio-info; words are no bit rate."""
    assert read_info(info_lines("audio/mpeg", headers)).get("icy-br") == bit_rate


@pytest.mark.parametrize(("value", "public"), [("1", "1"), ("true", "1"), ("0", "0"), ("x", "0")])
def test_public_is_one_or_nought(value: str, public: str) -> None:
    """Listeners are told 1 or 0; who says nothing is not public."""
    assert told(ice_public=value)["icy-pub"] == public
    assert told()["icy-pub"] == "0"


@given(st.dictionaries(st.sampled_from(["ice-name", "icy-url", "ice-description"]), st.text()))
def test_no_value_breaks_out_of_its_line(headers: dict[str, str]) -> None:
    """Whatever a source says, the reply has the lines that we wrote, and stays small."""
    lines = info_lines("audio/mpeg", headers)
    assert len(lines) <= 4096
    assert lines.count(b"\r\n") == lines.count(b"\r") == lines.count(b"\n")
    assert lines.count(b"\n") <= 2 + len(headers)
    assert b"\0" not in lines


def test_long_values_are_cut_between_characters() -> None:
    """A bound in bytes never leaves half a character."""
    assert clean("ä" * 10, 5) == "ää"
    assert clean(" a\r\nb\x00c\x1b[31m ", 100) == "a  b c [31m"


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


@pytest.mark.parametrize("mount", ["live", "/admin/x", "/status.mp3", "/a b", "/", "/x.m3u"])
def test_reserved_or_malformed_mounts_are_refused(engine: Any, mount: str) -> None:
    """Relay's own pages and what is no path never become a mount."""
    with pytest.raises(MountError):
        LocalSource(engine, mount, "audio/mpeg")
    assert engine.streams() == []


def test_unknown_content_type_is_refused_before_the_claim(engine: Any) -> None:
    """Nothing is left behind by a source that cannot be."""
    with pytest.raises(SourceError, match="not carried"):
        LocalSource(engine, "/live", "audio/webm")
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


def test_mount_from_upstream_is_refused(engine: Any) -> None:
    """A mount that comes from upstream has its source elsewhere."""
    sources = Sources(engine, Config.load(environ={}), lambda mount: mount == "/far")
    with pytest.raises(MountError, match="upstream"):
        sources.open("/far", "audio/mpeg")
    assert sources.open("/near", "audio/mpeg").is_open


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


def test_title_goes_to_the_source_of_its_mount(engine: Any, sources: Sources) -> None:
    """A title needs a source here; elsewhere its origin has to be told."""
    sources.open("/live", "audio/mpeg")
    sources.title("/live", "A talk")
    assert engine.find("/live").titles == ["A talk"]
    with pytest.raises(MountError, match="no source on this node"):
        sources.title("/other", "A talk")


def test_stream_without_source_is_removed_after_its_linger(engine: Any, sources: Sources) -> None:
    """Listeners get linger_s (60 s) for the source to return; then the stream goes."""
    source = sources.open("/live", "audio/mpeg")
    assert sources.tick(1000.0) == []
    sources.close(source)
    assert sources.tick(1001.0) == []
    assert sources.tick(1061.0) == []
    stream = engine.find("/live")
    assert sources.tick(1061.1) == ["/live"]
    assert engine.find("/live") is None
    with pytest.raises(MountError):
        stream.claim()  # nobody begins what is gone


def test_linger_counts_from_the_last_audio_of_a_fallback(engine: Any, sources: Sources) -> None:
    """Listeners who hear another mount are not ended; nor is a stand-in that they hear by."""
    sources.close(sources.open("/live", "audio/mpeg"))
    engine.stand_in("/talk", b"Content-Type: audio/mpeg\r\n")
    for mount in ("/live", "/talk"):
        engine.find(mount).fallback = "/music"
    assert sources.tick(0.0) == sources.tick(500.0) == []
    for mount in ("/live", "/talk"):
        engine.find(mount).fallback = None
    assert sources.tick(501.0) == sources.tick(560.9) == []
    assert sorted(sources.tick(561.1)) == ["/live", "/talk"]


def test_returning_source_ends_the_linger(engine: Any, sources: Sources) -> None:
    """Each outage is waited for anew."""
    sources.close(sources.open("/live", "audio/mpeg"))
    sources.tick(0.0)
    source = sources.open("/live", "audio/mpeg")
    sources.tick(50.0)
    sources.close(source)
    assert sources.tick(61.0) == []
    assert sources.tick(121.0) == []
    assert sources.tick(121.5) == ["/live"]


def test_stream_of_another_writer_is_left_alone(engine: Any, sources: Sources) -> None:
    """What a link writes, the backbone removes."""
    engine.add_stream("/far").writer = "link"
    sources.tick(0.0)
    assert sources.tick(1000.0) == []


def test_stream_that_an_upstream_lists_is_left_alone(engine: Any, sources: Sources) -> None:
    """Nobody wants it now, so nobody writes it: it has had no epoch here, and it stays."""
    engine.add_stream("/far").epoch = None
    sources.tick(0.0)
    assert sources.tick(1000.0) == []


def test_listeners_wait_as_long_as_the_upstream_does(engine: Any) -> None:
    """An edge's shorter linger ends no stream that the origin still lists."""
    listed = {"/far"}
    sources = Sources(engine, Config.load(environ={}), upstream_mounts=lambda: listed)
    stream = engine.add_stream("/far")
    stream.epoch, stream.source_up, stream.listeners = 7, False, 2
    sources.tick(0.0)
    assert sources.tick(1000.0) == []
    stream.listeners = 0  # children of this node may hear it
    assert sources.tick(1001.0) == []
    listed.clear()
    assert sources.tick(1001.5) == ["/far"]


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


def test_closing_all_ends_every_source(engine: Any, sources: Sources) -> None:
    """A node that goes ends its epochs and takes no more."""
    first = sources.open("/a", "audio/mpeg")
    sources.open("/b", "audio/ogg")
    sources.close_all()
    assert not first.is_open
    assert not sources.mounts()
    with pytest.raises(MountError, match="shutting down"):
        sources.open("/c", "audio/mpeg")
