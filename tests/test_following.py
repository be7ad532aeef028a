"""Titles from the comments of Ogg sources, and streams that pages want."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeSource
from test_comments import OPUS, comments, page
from tools.encoders import encode
from tools.sources import FrameMaker

from relay import _core
from relay.config import Config
from relay.following import WANTED_S, Comments, Following, Intros, Wanted
from relay.formats import KINDS
from relay.intro import misfit
from relay.sources import Sources

CONFIG = Config.load(environ={})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine whose streams say what the test puts into their header pages."""
    monkeypatch.setattr(_core, "Source", FakeSource)
    return FakeEngine()


def ogg(*told: str, serial: int = 1) -> bytes:
    """Header pages."""
    return OPUS + page(serial, b"OpusTags" + comments(*told))


def test_the_comments_of_an_ogg_source_become_its_title(fake: Any) -> None:
    """Once a chain; a title that somebody sets later stays until the next chain."""
    sources = Sources(fake, CONFIG)
    source = sources.open("/live", "audio/ogg")
    looks = Comments(sources)
    stream: Any = source.stream
    stream.header_bytes = b""
    looks.tick()
    assert looks.told("/live").codec is None
    stream.header_bytes = ogg("ARTIST=A", "TITLE=T")
    for _ in range(3):
        looks.tick()
    assert stream.titles == ["A - T"]
    assert looks.told("/live").codec == "Opus"
    source.title("set by hand")
    looks.tick()
    stream.header_bytes = ogg("TITLE=Next")
    looks.tick()
    assert stream.titles == ["A - T", "set by hand", "Next"]
    sources.close(source)
    looks.tick()
    assert looks.told("/live").codec is None


@pytest.mark.parametrize("content_type", ["audio/ogg", ""])
def test_a_source_whose_format_is_not_known_yet_is_left_alone(
    fake: Any, tmp_path: Path, content_type: str
) -> None:
    """The comments of the source before it are not its own, and nothing is known to misfit."""
    intro = {"intro": str(tmp_path / "none.mp3")}
    config = Config.load(overrides={"streams": {"/live": intro}}, environ={})
    sources = Sources(fake, config)
    sources.close(sources.open("/live", "audio/ogg"))
    stream: Any = fake.find("/live")
    stream.header_bytes = ogg("TITLE=of the one before")
    source = sources.open("/live", content_type, waits=True)
    looks, intros = Comments(sources), Intros(sources, config)
    looks.tick()
    intros.tick()
    assert (stream.titles, looks.told("/live").codec, intros._seen) == ([], None, {})
    source.begin(KINDS["ogg"])
    looks.tick()
    assert stream.titles == ["of the one before"]


def test_other_formats_are_not_looked_at(fake: Any) -> None:
    """MPEG has no header pages."""
    sources = Sources(fake, CONFIG)
    source = sources.open("/live", "audio/mpeg")
    stream: Any = source.stream
    stream.header_bytes = ogg("TITLE=T")
    Comments(sources).tick()
    assert stream.titles == []


def test_a_real_encoders_chain_through_the_real_engine() -> None:
    """What ffmpeg writes is found in what the ring keeps for those who join late."""
    engine = _core.Engine(streams_max=4, listeners_max=16)
    try:
        sources = Sources(engine, CONFIG)
        source = sources.open("/live", "audio/ogg")
        following = Following(engine, sources, CONFIG)
        following.tick(0.0)
        source.feed(encode("libopus", "ogg", 48000, seconds=1.0))
        following.tick(0.5)
        assert following.facts("/live")["codec"] == "Opus"
        moment = following.moment("/live", 1.0)
        assert moment is not None
        assert (moment.live, moment.epoch) == (True, source.epoch)
        assert following.moment("/none", 1.0) is None
        sources.close_all()
    finally:
        engine.close()


def test_a_followed_stream_is_wanted_until_a_while_after_it_was_last_asked_for() -> None:
    """A reader counts; an edge fetches what is wanted."""
    engine = _core.Engine(streams_max=4, listeners_max=16)
    try:
        stream = engine.add_stream("/live")
        wanted = Wanted()
        for now in (0.0, 0.25, 4.0):
            wanted.want(stream, now)
        assert stream.snapshot()["readers"] == 1
        wanted.tick(4.0 + WANTED_S)
        assert stream.snapshot()["readers"] == 1
        wanted.tick(4.1 + WANTED_S)
        assert (stream.snapshot()["readers"], len(wanted)) == (0, 0)
    finally:
        engine.close()


def test_an_intro_that_does_not_fit_its_source_is_told_once_an_epoch(
    fake: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who set it up wonders why nobody hears it."""
    (tmp_path / "a.mp3").write_bytes(b"".join(FrameMaker(64).frames(4)))
    told = {"/live": {"intro": str(tmp_path / "a.mp3")}, "/ok": {"intro": str(tmp_path / "a.mp3")}}
    config = Config.load(overrides={"streams": told}, environ={})
    sources = Sources(fake, config)
    looks = Intros(sources, config)
    looks.tick()
    sources.open("/ok", "audio/mpeg")
    first = sources.open("/live", "audio/aac")
    for _ in range(3):
        looks.tick()
    assert [record.message for record in caplog.records] == [
        f'/live: its intro "{tmp_path / "a.mp3"}" is audio/mpeg, its source sends audio/aac: '
        "new listeners do not hear it"
    ]
    sources.close(first)
    sources.open("/live", "audio/aac")
    looks.tick()
    assert len(caplog.records) == 2
    (tmp_path / "a.mp3").unlink()
    assert misfit(str(tmp_path / "a.mp3"), "/live", "audio/aac") is None
