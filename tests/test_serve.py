"""`relay serve` without a process: limits, first words, log lines."""

from __future__ import annotations

import io
import json
import logging
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.config import Config
from relay.errors import ConfigError
from relay.node import Node
from relay.serve import (
    check_limits,
    raise_file_limit,
    say_ready,
    set_up_logging,
    warn_of_trust,
)


@pytest.fixture
def root_log() -> Iterator[io.StringIO]:
    """Where the log goes; as before afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("relay")
    before = list(root.handlers), root.level, ours.level
    yield io.StringIO()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def node(**settings: Any) -> Node:
    """Something with the addresses of an open node."""
    config = Config.load(overrides=settings, environ={})
    told = SimpleNamespace(
        config=config,
        http_address="0.0.0.0:8000",
        backbone_address="tcp://127.0.0.1:9000",
        backbone_key=config.backbone.secret_key and "1a" * 32,
        listeners_max=17_440,
    )
    return cast(Node, told)


def test_ready_line_is_one_json_object() -> None:
    """Tools read ports and process from it; a password only when it was made up."""
    to = io.StringIO()
    say_ready(node(log_format="json"), {"source password": "abc"}, to)
    assert to.getvalue().count("\n") == 1
    told = json.loads(to.getvalue())
    assert told["event"] == "ready"
    assert told["http"] == "0.0.0.0:8000"
    assert told["backbone"] == "tcp://127.0.0.1:9000"
    assert told["source_password"] == "abc"
    assert isinstance(told["pid"], int)
    to = io.StringIO()
    say_ready(node(log_format="json", source_password="given"), {}, to)
    assert "given" not in to.getvalue()
    assert "password" not in to.getvalue()


def test_ready_lines_tell_people_what_to_do_next() -> None:
    """Where to push, where to listen, how many fit, how to add a relay."""
    to = io.StringIO()
    say_ready(node(), {"source password": "abc"}, to)
    for words in (
        "icecast://source:abc@localhost:8000/live",
        "http://localhost:8000/",
        "17440 listeners",
        "--upstream tcp://127.0.0.1:9000",
    ):
        assert words in to.getvalue()
    to = io.StringIO()
    say_ready(node(secret_key="secret:" + "5e" * 32), {}, to)
    assert f"--upstream tcp://127.0.0.1:9000#{'1a' * 32}" in to.getvalue()
    assert "5e5e" not in to.getvalue()


def test_more_listeners_than_files_are_refused() -> None:
    """The sum is named, and what would fit."""
    config = Config.load(overrides={"listeners_max": 20_000}, environ={})
    with pytest.raises(ConfigError, match=r"22560 files.*open 20000; lower it to 17440"):
        check_limits(config, 20_000)
    check_limits(Config.load(overrides={"listeners_max": 17_440}, environ={}), 20_000)


def test_few_files_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A node that hardly anyone can hear says so, with the sum and the next step."""
    config = Config.load(environ={})
    check_limits(config, 4 * 2048, tmp_path / "missing")
    assert not caplog.records
    check_limits(config, 600, tmp_path / "missing")
    for words in ("may open 600 files", "heads_max 150 and 512", "ulimit -n", "--heads-max"):
        assert words in caplog.text


def test_heads_that_are_lowered_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At most a quarter of the files; and the sum for listeners is made with what holds."""
    check_limits(
        Config.load(overrides={"heads_max": 19_600}, environ={}), 20_000, tmp_path / "missing"
    )
    assert [record.event for record in caplog.records] == ["heads_lowered"]
    assert "http.heads_max = 19600" in caplog.text
    assert "5000 hold" in caplog.text
    with pytest.raises(ConfigError, match=r"with heads_max 100 .*open 400; raise the limit"):
        check_limits(Config.load(overrides={"listeners_max": 5}, environ={}), 400)


def test_short_backlog_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """somaxconn below the backlog: a warning with the next step; unreadable: nothing."""
    short, enough = tmp_path / "short", tmp_path / "enough"
    short.write_text("128\n")
    enough.write_text("4096\n")
    config = Config.load(environ={})
    check_limits(config, 20_000, enough)
    check_limits(config, 20_000, tmp_path / "missing")
    assert not caplog.records
    check_limits(config, 20_000, short)
    assert "net.core.somaxconn is 128" in caplog.text


def test_backbone_without_keys_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """At every start, and only where it was allowed off loopback."""
    warn_of_trust(Config.load(environ={}))
    assert not caplog.records
    warn_of_trust(Config.load(overrides={"insecure_backbone": True}, environ={}))
    assert "no keys" in caplog.text


def test_file_limit_is_raised_to_the_hard_limit() -> None:
    """Never lowered."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert raise_file_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_json_log_holds_event_and_fields(root_log: io.StringIO) -> None:
    """One object a line, with what the caller gave beside the text."""
    set_up_logging("json", root_log)
    log = logging.getLogger("relay.source")
    log.info("source up: %s", "/live", extra={"event": "source_up", "mount": "/live"})
    log.debug("not shown")
    told = json.loads(root_log.getvalue())
    assert (told["event"], told["mount"], told["level"]) == ("source_up", "/live", "info")
    assert told["text"] == "source up: /live"


def test_text_log_cannot_be_forged(root_log: io.StringIO) -> None:
    """What a stranger sent stays within its line."""
    set_up_logging("text", root_log)
    logging.getLogger("relay.source").warning("refused: %s", "a\nb\x1b[31m")
    assert root_log.getvalue().count("\n") == 1
    assert "warning: refused: a\\nb\\x1b[31m" in root_log.getvalue()
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("relay").exception("broke")
    assert "ValueError: inside" in root_log.getvalue()
