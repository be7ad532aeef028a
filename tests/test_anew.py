"""Sources that go on above the epoch against which they have lost: when, and how often."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import FakeEngine, FakeSource

from relay import _core
from relay.anew import ANEW_S
from relay.config import Config
from relay.sources import Sources


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Sources:
    """The sources of a node with default settings."""
    monkeypatch.setattr(_core, "Source", FakeSource)
    engine: Any = FakeEngine()
    return Sources(engine, Config.load(environ={}))


def wish(source: Any, epoch: int) -> None:
    """What a node below has said."""
    source.stream.epoch_wished = epoch


def test_a_source_that_has_lost_goes_on_above_the_winner_but_seldom(sources: Sources) -> None:
    """Once nodes below wish for it; again at the earliest ten seconds later."""
    source = sources.open("/live", "audio/mpeg")
    epoch = source.epoch
    wish(source, epoch)
    sources.tick(0.0)
    assert source.epoch == epoch, "not above its own"
    wish(source, epoch + 5)
    sources.tick(0.5)
    assert source.epoch == epoch + 5
    wish(source, epoch + 9)
    sources.tick(0.5 + ANEW_S - 0.1)
    assert source.epoch == epoch + 5
    sources.tick(0.5 + ANEW_S)
    assert source.epoch == epoch + 9


def test_what_cannot_begin_now_is_tried_again(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of header pages: the next tick does not wait."""
    source = sources.open("/live", "audio/ogg")
    epoch = source.epoch
    wish(source, epoch + 5)
    with monkeypatch.context() as patched:
        patched.setattr(FakeSource, "begin_anew", lambda self, least: 0)
        sources.tick(0.0)
    assert source.epoch == epoch
    sources.tick(0.5)
    assert source.epoch == epoch + 5


def test_a_source_that_is_closed_meanwhile_is_no_error(sources: Sources) -> None:
    """It has no epoch to begin."""
    source = sources.open("/live", "audio/mpeg")
    epoch = source.epoch
    source.close()
    wish(source, epoch + 5)
    sources.tick(0.0)
    assert source.epoch == epoch
