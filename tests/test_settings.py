"""Settings of pulls, call-outs and recordings: what is refused, with key, value and bound."""

from __future__ import annotations

import pytest

from relay.config import Config
from relay.errors import ConfigError


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"pull": "ftp://a/x"}, "must begin with http"),
        ({"pull": [f"http://a/{n}" for n in range(9)]}, "list of up to 8"),
        ({"pull": ["http://a/x", "http://a/x"]}, "twice"),
        ({"pull": 7}, "list of up to 8"),
        ({"pull_on_demand": True}, "pulls nothing"),
        ({"pull": "http://a/x", "pull_idle_s": -1}, "pull_idle_s = -1"),
    ],
)
def test_wrong_settings_are_refused(table: dict[str, object], why: str) -> None:
    """With key, value and bound."""
    with pytest.raises(ConfigError, match=why):
        Config.load(overrides={"streams": {"/x": table}}, environ={})


def test_one_address_needs_no_list() -> None:
    """`pull = "http://…"` is a list of one."""
    told = Config.load(overrides={"streams": {"/x": {"pull": "http://a/x"}}}, environ={})
    assert told.for_stream("/x").pull == ("http://a/x",)


@pytest.mark.parametrize(
    "pattern",
    ["/srv/one", "/srv/%Y/", "/srv/../%Y", "/{mont}/%Y", "/srv/%Y{", "/srv/1%%", "%Y\n"],
)
def test_a_wrong_pattern_is_refused(pattern: str) -> None:
    """When the settings are read."""
    with pytest.raises(ConfigError, match="record"):
        Config.load(overrides={"defaults": {"record": pattern}}, environ={})
