"""All sources of a node without sockets: who has a mount, takeovers, titles, and the linger."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine, FakeSource

from relay import _core
from relay.config import Config
from relay.errors import MountError, SourceError
from relay.formats import KINDS
from relay.sources import SILENT_S, Sources


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine of plain Python."""
    monkeypatch.setattr(_core, "Source", FakeSource)
    return FakeEngine()


@pytest.fixture
def sources(engine: Any) -> Sources:
    """The sources of a node with default settings."""
    return Sources(engine, Config.load(environ={}))


def test_mount_from_upstream_is_refused(engine: Any) -> None:
    """A mount that comes from upstream has its source elsewhere."""
    sources = Sources(engine, Config.load(environ={}), lambda mount: mount == "/far")
    with pytest.raises(MountError, match="upstream"):
        sources.open("/far", "audio/mpeg")
    assert sources.open("/near", "audio/mpeg").is_open


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


def test_closing_all_ends_every_source(engine: Any, sources: Sources) -> None:
    """A node that goes ends its epochs and takes no more."""
    first = sources.open("/a", "audio/mpeg")
    sources.open("/b", "audio/ogg")
    sources.close_all()
    assert not first.is_open
    assert not sources.mounts()
    with pytest.raises(MountError, match="shutting down"):
        sources.open("/c", "audio/mpeg")


# --- a mount that is taken before its format is known, or from another ----------------------------


def test_source_that_waits_begins_with_what_its_bytes_are(engine: Any, sources: Sources) -> None:
    """The mount is taken at once; listeners are told of the format that was found."""
    source = sources.open("/live", "audio/mpeg", {"ice-name": "A"}, waits=True)
    stream = engine.find("/live")
    assert (stream.writer, stream.source_up, stream.info()) == ("local", False, b"")
    assert source.intake().state == "none"
    with pytest.raises(SourceError, match="closed"):
        source.feed(b"abc")
    source.title("earlier")
    source.title("before the first byte", "http://x/a")
    assert not source.has_begun
    source.begin(KINDS["ogg"])
    assert source.has_begun
    assert stream.info().startswith(b"Content-Type: audio/ogg\r\nicy-name:A\r\n")
    assert stream.titles == ["before the first byte\0http://x/a"]
    assert source.feed(b"abc") is not None
    assert stream.source_up


def test_source_that_never_sent_anything_leaves_nothing_behind(
    engine: Any, sources: Sources
) -> None:
    """A mount that was claimed in vain is no stream; one with listeners of before stays one."""
    sources.close(sources.open("/live", "", waits=True))
    assert engine.streams() == []
    sources.close(sources.open("/live", "audio/mpeg"))
    sources.close(sources.open("/live", "", waits=True))
    assert engine.find("/live").writer == "none"


def test_source_that_never_sent_anything_leaves_a_listed_mount_to_its_upstream(
    engine: Any, sources: Sources
) -> None:
    """Who has asked for it waits for that one, not for whoever tried to be its source."""
    listed = engine.add_stream("/live")
    listed.set_info(b"Content-Type: audio/mpeg\r\n")
    sources.close(sources.open("/live", "", waits=True))
    assert engine.find("/live") is listed
    assert listed.writer == "none"


def test_source_that_has_not_begun_has_no_epoch_to_begin_anew(
    engine: Any, sources: Sources
) -> None:
    """A wish of nodes below is about an epoch; it is heard once there is one."""
    source = sources.open("/live", "audio/mpeg", waits=True)
    engine.find("/live").epoch_wished = 5000
    sources.tick(0.0)
    assert (source.epoch, engine.find("/live").epochs) == (0, 0)
    source.begin(KINDS["mpeg"])
    engine.find("/live").epoch_wished = source.epoch + 1
    sources.tick(0.5)
    assert engine.find("/live").epochs == 2


def test_administrator_ends_a_source(engine: Any, sources: Sources) -> None:
    """Whether it has begun or not; the reason is kept for its log line."""
    for waits in (False, True):
        source = sources.open("/live", "audio/mpeg", {"user-agent": "B\r\nUTT/1"}, waits=waits)
        assert source.agent == "B  UTT/1"
        sources.end("/live")
        assert (source.is_open, source.ended, sources.find("/live")) == (False, "killed", None)
    with pytest.raises(MountError, match="no source on this node"):
        sources.end("/live")


def test_other_format_is_refused_when_the_bytes_tell_it(engine: Any, sources: Sources) -> None:
    """Those who wait were promised MP3: neither a promise nor the bytes may break it."""
    sources.close(sources.open("/live", "audio/mpeg"))
    engine.find("/live").listeners = 1
    with pytest.raises(SourceError, match="promised to 1 listener"):
        sources.open("/live", "audio/ogg", waits=True)
    source = sources.open("/live", "", waits=True)
    with pytest.raises(SourceError, match="promised to 1 listener"):
        source.begin(KINDS["ogg"])
    sources.close(source)
    assert engine.find("/live").writer == "none"


@pytest.mark.parametrize(
    ("rule", "silent_s", "is_taken"),
    [
        ("never", 1000.0, False), ("always", 0.0, True), ("silent", SILENT_S - 0.1, False),
        ("silent", SILENT_S, True), ("silent", None, False),
    ],
)  # fmt: skip
def test_takeover_as_the_mount_has_it(
    engine: Any, rule: str, silent_s: float | None, is_taken: bool
) -> None:
    """Never, from who is silent (as far as its door can hear), or always."""
    config = Config.load(overrides={"streams": {"/live": {"takeover": rule}}}, environ={})
    sources = Sources(engine, config)
    first = sources.open("/live", "audio/mpeg")
    first.audible_at = None if silent_s is None else 100.0
    if is_taken:
        second = sources.open("/live", "audio/mpeg", now=100.0 + (silent_s or 0.0))
        assert (first.is_open, first.ended, second.is_open) == (False, "taken", True)
        assert sources.find("/live") is second
        with pytest.raises(SourceError, match="closed"):
            first.begin(KINDS["mpeg"])
    else:
        with pytest.raises(MountError, match="in use"):
            sources.open("/live", "audio/mpeg", now=100.0 + (silent_s or 0.0))
        assert first.is_open


# --- a newcomer that is refused ends nobody -------------------------------------------------------


@pytest.fixture
def yielding(engine: Any) -> Sources:
    """A node on which every source gives way."""
    always = {"defaults": {"takeover": "always"}}
    return Sources(engine, Config.load(overrides=always, environ={}))


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("content_type", ["video/mp4", "audio/ogg"])
def test_refused_newcomer_leaves_the_live_source_alone(
    engine: Any, yielding: Sources, waits: bool, content_type: str
) -> None:
    """A type that is not carried, or another than the listeners were promised."""
    live = yielding.open("/live", "audio/mpeg")
    engine.find("/live").listeners = 1
    with pytest.raises(SourceError):
        yielding.open("/live", content_type, waits=waits)
    assert (live.is_open, live.ended, yielding.find("/live")) == (True, "", live)
    assert engine.find("/live").epochs == 1
    live.feed(b"abc")


def test_live_source_is_heard_until_the_newcomers_bytes_are_known(
    engine: Any, yielding: Sources
) -> None:
    """They may be of another format than its head says."""
    live = yielding.open("/live", "audio/mpeg")
    engine.find("/live").listeners = 1
    wrong = yielding.open("/live", "audio/mpeg", waits=True)
    right = yielding.open("/live", "", waits=True)
    assert (wrong.has_mount, right.has_mount) == (False, False)
    yielding.title("/live", "of the one that is heard")
    with pytest.raises(SourceError, match="promised to 1 listener"):
        wrong.begin(KINDS["ogg"])
    yielding.close(wrong)
    live.feed(b"abc")
    assert (live.is_open, yielding.find("/live"), engine.noted) == (True, live, [])
    right.begin(KINDS["mpeg"])
    assert (live.ended, yielding.find("/live"), right.has_mount) == ("taken", right, True)
    yielding.close(live)
    right.feed(b"def")
    yielding.close(right)
    assert engine.find("/live").writer == "none"


def test_newcomer_that_leaves_before_its_first_byte_takes_nothing(
    engine: Any, yielding: Sources
) -> None:
    """Nor does it give back what is another's."""
    live = yielding.open("/live", "audio/mpeg")
    yielding.close(yielding.open("/live", "audio/mpeg", waits=True))
    assert (live.is_open, engine.find("/live").writer) == (True, "local")


def test_newcomer_takes_the_place_of_a_source_that_left_meanwhile(
    engine: Any, yielding: Sources
) -> None:
    """Whether its stream is still there or not."""
    for left in ("", "audio/mpeg"):
        first = yielding.open("/live", left, waits=not left)
        second = yielding.open("/live", "audio/mpeg", waits=True)
        yielding.close(first)
        second.begin(KINDS["mpeg"])
        assert yielding.find("/live") is second
        yielding.close(second)


def test_silent_source_that_is_heard_again_keeps_its_mount(engine: Any) -> None:
    """It was silent when the newcomer came, and spoke before that one did."""
    silent = {"defaults": {"takeover": "silent"}}
    sources = Sources(engine, Config.load(overrides=silent, environ={}))
    live = sources.open("/live", "audio/mpeg")
    live.audible_at = 100.0
    newcomer = sources.open("/live", "audio/mpeg", waits=True, now=105.0)
    live.audible_at = 106.0
    with pytest.raises(MountError, match="in use: its source is back"):
        newcomer.begin(KINDS["mpeg"])
    assert sources.find("/live") is live


def test_newcomer_takes_no_mount_of_a_node_that_goes(engine: Any, yielding: Sources) -> None:
    """All sources have ended then."""
    yielding.open("/live", "audio/mpeg")
    newcomer = yielding.open("/live", "audio/mpeg", waits=True)
    yielding.close_all()
    with pytest.raises(MountError, match="shutting down"):
        newcomer.begin(KINDS["mpeg"])
    assert (list(yielding.mounts()), engine.find("/live").writer) == ([], "none")


def test_source_that_yields_takes_no_mount(engine: Any, yielding: Sources) -> None:
    """A pull: it would come back after each encoder, and each encoder after it."""
    live = yielding.open("/live", "audio/mpeg")
    with pytest.raises(MountError, match="in use"):
        yielding.open("/live", "audio/mpeg", yields=True)
    assert live.is_open
