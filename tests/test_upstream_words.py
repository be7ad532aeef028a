"""One log line for each change of an upstream."""

from __future__ import annotations

from typing import Any

import pytest

from relay.upstream_words import UpstreamWords


def up(state: str, **more: Any) -> list[dict[str, Any]]:
    """One upstream."""
    return [{"address": "tcp://a:1", "state": state, **more}]


def test_each_change_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A young node waits a moment before it complains; then each state has its words."""
    caplog.set_level("INFO")
    words = UpstreamWords()
    words.tell(up("connecting"), 0.5)
    words.tell(up("connecting"), 1.5)
    words.tell(up("up"), 2.0)
    words.tell(up("up"), 2.5)
    words.tell(up("version", versions=[7, 9]), 3.0)
    words.tell(up("lost"), 4.0)
    told = [record.getMessage() for record in caplog.records]
    assert [text.split()[2:4] for text in told] == [
        ["is", "not"], ["is", "up"], ["speaks", "version"], ["is", "lost;"],
    ]  # fmt: skip
    assert "version 7 to 9" in told[2]
