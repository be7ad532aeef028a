"""What a node opens from its settings, and what it says when it cannot."""

from __future__ import annotations

import socket

import pytest

from relay.config import BackboneConfig, Config, HttpConfig
from relay.errors import ConfigError
from relay.opening import heads_that_fit, listeners_that_fit, open_engine, open_http, open_links


def test_room_for_listeners_follows_the_file_limit() -> None:
    """listeners + heads + 512 ≤ files; a small limit takes from the heads first."""
    assert listeners_that_fit(2048, 20_000) == 17_440
    assert listeners_that_fit(2048, 1024) == 0
    assert heads_that_fit(2048, 20_000) == 2048
    assert heads_that_fit(2048, 1024) == 256


def test_a_taken_address_is_a_config_error_that_names_the_key() -> None:
    """With the address and the option that changes it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        config = Config(http=HttpConfig(bind=bind))
        engine = open_engine(config)
        try:
            with pytest.raises(ConfigError, match=rf"http\.bind = {bind}.*--http HOST:PORT"):
                open_http(engine, config)
        finally:
            engine.close()


def test_a_node_without_backbone_and_upstream_opens_no_links() -> None:
    """`bind = "none"` and nobody above."""
    config = Config(backbone=BackboneConfig(bind="none"))
    engine = open_engine(config)
    try:
        assert open_links(engine, config) is None
    finally:
        engine.close()
