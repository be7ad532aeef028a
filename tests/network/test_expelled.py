"""Children that hold a key and take too much: who has to go, and from when on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tools.backbones import Node, Programme, until
from tools.children import Child

from relay.keys import Keys, make_secret

SECRETS = {name: make_secret() for name in ("parent", "ill", "edge")}
TOPICS_MAX = 40


def keys_of(name: str) -> Keys:
    """Both halves of this one's key."""
    return Keys(SECRETS[name])


def curve(name: str) -> tuple[str, str, str]:
    """What a socket by hand needs to attach under this name."""
    own, parent = keys_of(name), keys_of("parent")
    return own.public, own.secret_bytes.hex(), parent.public


@pytest.fixture
def parent() -> Iterator[Node]:
    """A node that lets `ill` and `edge` in; nobody looks at it but the test."""
    node = Node(
        keys=keys_of("parent"),
        children={name: keys_of(name).public for name in ("ill", "edge")},
        subscriptions_max=TOPICS_MAX,
    )
    yield node
    node.backbone.close()


def topics(count: int) -> list[bytes]:
    """Topics of mounts that nobody has."""
    return [b"S" + os.urandom(8) for _ in range(count)]


def test_a_child_that_was_cut_is_off_the_list_though_nobody_looks(parent: Node) -> None:
    """Its next handshake is refused; no snapshot was asked for in between."""
    gate: Any = parent.backbone._gate
    with Child(parent.address, curve=curve("ill")) as ill:
        for topic in topics(TOPICS_MAX + 5):
            ill.subscribe(topic)
        until(lambda: gate.refused["turned_away"] > 0, 5.0)


def test_a_child_with_many_connections_leaves_room_for_an_honest_one(parent: Node) -> None:
    """Ten connections, each below the bound: they count as one child's, and that one is cut."""
    Programme(parent).push(10)
    ill = [Child(parent.address, curve=curve("ill")) for _ in range(10)]
    try:
        for child in ill:
            for topic in topics(TOPICS_MAX - 2):
                child.subscribe(topic)
        until(lambda: parent.counted("expelled_total") >= 1, 5.0)
        with Child(parent.address, curve=curve("edge")) as edge:
            edge.subscribe_mount("/live")
            until(lambda: parent.link()["downstream"], 5.0)
            time.sleep(0.5)
            assert edge.join("/live")[:1] == b"h"
            assert parent.link()["downstream"]
        names = parent.backbone._core.expelled()[1] if parent.backbone._core else []
        assert "ill" in names
        assert "edge" not in names
    finally:
        for child in ill:
            child.close()
