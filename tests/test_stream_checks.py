"""What the settings of streams have to do with each other: chains of fallbacks, and their time."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import Config
from relay.config_told import summary
from relay.errors import ConfigError
from relay.stream_checks import CHAIN_MAX, chain_of


def load(**streams: dict[str, object]) -> Config:
    """Settings with these `[streams]` tables; a name stands for its mount."""
    tables = {f"/{name}": table for name, table in streams.items()}
    return Config.load(None, {"streams": tables}, environ={})


def problems(**streams: dict[str, object]) -> tuple[str, ...]:
    """The lines that loading refuses with."""
    with pytest.raises(ConfigError) as caught:
        load(**streams)
    return caught.value.problems


def test_a_chain_is_followed_to_its_end() -> None:
    """Each mount has its own, and all of them are configured."""
    config = load(live={"fallback": "/music"}, music={"fallback": "/tone"})
    assert config.fallback_chain("/live") == ("/music", "/tone")
    assert config.fallback_chain("/music") == ("/tone",)
    assert config.fallback_chain("/tone") == ()
    assert config.mounts() == ("/live", "/music", "/tone")
    assert [config.in_fallback(mount) for mount in ("/live", "/tone", "/other")] == [
        *(True, True, False)
    ]


def test_places_are_not_given_out_where_listeners_fall_back() -> None:
    """Refused, whoever said it; a mount may take back what `[defaults]` say for all."""
    both = problems(live={"fallback": "/music", "anchor": True})
    assert len(both) == 1
    assert both[0].startswith('streams."/live".anchor = true: not with a fallback')
    tables: dict[str, object] = {"streams": {"/live": {"fallback": "/music"}}}
    for own, refused in (({}, True), ({"anchor": False}, False)):
        tables["streams"] = {"/live": {"fallback": "/music", **own}}
        with pytest.raises(ConfigError) if refused else contextlib.nullcontext():
            Config.load(None, {"defaults": {"anchor": True}, **tables}, environ={})


def test_loops_are_refused_with_their_path() -> None:
    """A mount that leads to itself, at once or round others, or into somebody else's loop."""
    assert problems(live={"fallback": "/live"}) == (
        'streams."/live".fallback = "/live": leads in a loop, "/live" > "/live"; end it at a mount '
        "without fallback",
    )
    loop = problems(a={"fallback": "/b"}, b={"fallback": "/c"}, c={"fallback": "/b"})
    assert [line.partition(" = ")[0] for line in loop] == [
        *('streams."/a".fallback', 'streams."/b".fallback', 'streams."/c".fallback')
    ]
    assert '"/a" > "/b" > "/c" > "/b"' in loop[0]


def test_a_chain_has_a_bound() -> None:
    """Four fallbacks are taken, five are not."""
    chain = {f"m{i}": {"fallback": f"/m{i + 1}"} for i in range(CHAIN_MAX)}
    assert len(load(**chain).fallback_chain("/m0")) == CHAIN_MAX
    longer = problems(**chain, m4={"fallback": "/m5"})
    assert longer == (
        'streams."/m0".fallback = "/m1": makes a chain of 5, "/m0" > "/m1" > "/m2" > "/m3" > "/m4" '
        '> "/m5"; at most 4 fallbacks',
    )


def test_listeners_must_still_be_there_when_their_fallback_comes() -> None:
    """The silence before it is within the linger; without a fallback that is nobody's business."""
    assert load(live={"linger_s": 1}).for_stream("/live").fallback_after_ms == 3000
    assert problems(live={"linger_s": 1, "fallback": "/music"}) == (
        'streams."/live".fallback_after_ms = 3000: must be at most linger_s = 1, or its listeners '
        "are gone before they hear a fallback",
    )


@pytest.mark.parametrize("value", ["music", "/status", "", 7])
def test_a_fallback_is_a_mount(value: object) -> None:
    """What could never be one is refused, and nothing else is said of it."""
    (line,) = problems(live={"fallback": value})
    assert line.startswith('streams."/live".fallback = ')


def test_check_tells_the_whole_chain(tmp_path: Path) -> None:
    """The summary has what is configured, and what follows from it; it loads again."""
    config = load(live={"fallback": "/music"}, music={"fallback": "/tone"})
    shown = summary(config)
    assert 'fallback = "/music"' in shown
    assert '# then "/tone"' in shown
    path = tmp_path / "relay.toml"
    path.write_text(shown, encoding="utf-8")
    assert Config.load(path, {}, environ={}) == config


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("abcdef")))
def test_a_chain_always_ends_and_never_repeats(fallbacks: dict[str, str]) -> None:
    """Whatever points where."""
    streams = {name: SimpleNamespace(fallback=to) for name, to in fallbacks.items()}
    for mount in "abcdef":
        chain = chain_of(mount, streams)
        assert len({mount, *chain}) == 1 + len(chain)
