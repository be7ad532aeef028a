"""Fallbacks as a node knows them: what it says, stand-ins, and what an administrator sets."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fake_engine import FakeEngine

from relay.config import Config
from relay.errors import ConfigError, MountError
from relay.fallback import Fallbacks, changes


def told(fallback: str | None, **unfit: str) -> dict[str, Any]:
    """As Engine.fallbacks tells it."""
    return {"mount": "/live", "chain": ("/music",), "fallback": fallback, "unfit": unfit}


def test_one_line_for_each_change() -> None:
    """Over, back, and what does not fit; none while nothing changes."""
    over = list(changes(told(None), told("/music")))
    assert [(line.event, line.mount, line.fallback) for line in over] == [
        ("fallback", "/live", "/music")
    ]
    assert [line.event for line in changes(told("/music"), told(None))] == ["fallback_over"]
    assert not list(changes(told("/music"), told("/music")))
    unfit = told(None) | {"unfit": {"/music": "format"}}
    line = next(changes({}, unfit))
    assert line.event == "fallback_unfit"
    assert line.text == "/live: its fallback /music has another content type than /live: not used"
    assert not list(changes(unfit, unfit))


def test_a_mount_without_a_stream_gets_a_stand_in_once_its_fallback_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the fallback's format, and without its other lines; a change is logged once."""
    engine = FakeEngine()
    engine.rules = [told(None)]
    fallbacks = Fallbacks(engine, Config())  # type: ignore[arg-type]
    fallbacks.tick()
    assert engine.find("/live") is None
    music = engine.add_stream("/music")
    music.set_info(b"Content-Type: audio/mpeg\r\nicy-name: music\r\n")
    fallbacks.tick()
    assert engine.find("/live") is None
    music.claim()
    music.begin()
    fallbacks.tick()
    live = engine.find("/live")
    assert live is not None
    assert live.stands_in
    assert live.info() == b"Content-Type: audio/mpeg\r\n"
    engine.rules = [told("/music")]
    with caplog.at_level(logging.INFO, "relay.fallback"):
        fallbacks.tick()
        fallbacks.tick()
    assert [record.getMessage() for record in caplog.records] == [
        "/live is silent: its listeners hear /music"
    ]


# --- what an administrator sets ------------------------------------------------------------------


def made(*mounts: str, **streams: dict[str, Any]) -> tuple[FakeEngine, Fallbacks]:
    """A node with these streams, in MP3, and these settings (names without the slash)."""
    engine = FakeEngine()
    for mount in mounts:
        engine.add_stream(mount).set_info(b"Content-Type: audio/mpeg\r\n")
    tables = {f"/{name}": table for name, table in streams.items()}
    config = Config.load(overrides={"streams": tables}, environ={})
    return engine, Fallbacks(engine, config)  # type: ignore[arg-type]


def test_a_fallback_is_set_changed_and_taken_away(caplog: pytest.LogCaptureFixture) -> None:
    """The engine gets the chain, whoever asks the new one; saying it twice changes nothing."""
    engine, fallbacks = made("/live", "/music", "/night")
    with caplog.at_level(logging.INFO, "relay.fallback"):
        for wanted in ("/music", "/music", "/night", None):
            fallbacks.set("/live", wanted)
            assert fallbacks.of("/live") == wanted
            assert fallbacks.chain("/live") == (() if wanted is None else (wanted,))
    after_ms = Config().defaults.fallback_after_ms
    assert engine.fallbacks_set == [
        ("/live", ("/music",), after_ms),
        ("/live", ("/night",), after_ms),
        ("/live", (), after_ms),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"/live: its fallback is now {told}" for told in ("/music", "/night", "none")
    ]


def test_a_chain_is_changed_for_all_who_go_through_it() -> None:
    """Of a mount in the midst of others' chains; each with its own patience."""
    engine, fallbacks = made(
        live={"fallback": "/music", "fallback_after_ms": 5000}, music={"fallback": "/night"}
    )
    fallbacks.set("/music", "/news")
    assert engine.fallbacks_set == [
        ("/music", ("/news",), 3000),
        ("/live", ("/music", "/news"), 5000),
    ]
    fallbacks.set("/music", None)
    assert engine.fallbacks_set[2:] == [("/music", (), 3000), ("/live", ("/music",), 5000)]


@pytest.mark.parametrize(
    ("mount", "fallback", "why"),
    [
        ("/live", "/live", "leads in a loop"),
        ("/night", "/live", "leads in a loop"),
        ("/new", "/one", "chain of 5"),
        ("/live", "/a b", "may not hold"),
        ("/live", "/admin/stats", "answers this path itself"),
        ("/places", "/music", "anchor = true: not with a fallback"),
        ("/short", "/music", "must be at most linger_s"),
        ("/live", "/ogg", '/ogg" is audio/ogg, "/live" is audio/mpeg'),
    ],
)
def test_what_the_settings_would_be_refused_for_is_refused(
    mount: str, fallback: str, why: str
) -> None:
    """With the reason, and nothing is changed."""
    engine, fallbacks = made(
        *("/live", "/new", "/one"),
        live={"fallback": "/music"},
        music={"fallback": "/night"},
        one={"fallback": "/two"},
        two={"fallback": "/three"},
        three={"fallback": "/four"},
        four={"fallback": "/five"},
        places={"anchor": True},
        short={"linger_s": 1},
    )
    engine.add_stream("/ogg").set_info(b"Content-Type: audio/ogg\r\n")
    before = fallbacks.of(mount)
    with pytest.raises(ConfigError, match=why):
        fallbacks.set(mount, fallback)
    assert engine.fallbacks_set == []
    assert fallbacks.of(mount) == before


def test_a_mount_that_nobody_knows_gets_no_fallback() -> None:
    """A slip of the pen is told; one that waits for its source, or is named in the settings, is
    known."""
    engine, fallbacks = made("/here", named={"fallback": "/music"})
    with pytest.raises(MountError, match="not on this node"):
        fallbacks.set("/heer", "/music")
    for mount in ("/here", "/named", "/music"):
        fallbacks.set(mount, "/night")
    assert [mount for mount, _, _ in engine.fallbacks_set][:2] == ["/here", "/named"]
