"""What tests over real sockets share.

Rules of this room
  1. What a fixture starts, it ends, also when the test failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.backbones import Node


@pytest.fixture
def make_node() -> Iterator[Callable[..., Node]]:
    """Makes nodes of this process, an engine and a backbone each; closes them last first.

    `version=N`: one that speaks this version of the protocol, and the one before it.
    """
    made: list[Node] = []

    def make(*args: Any, version: int | None = None, **more: Any) -> Node:
        made.append(Node(*args, **more))
        core = made[-1].backbone._core
        if version is not None:
            assert core is not None
            core.fault(version=version)
        return made[-1]

    yield make
    for node in reversed(made):
        node.backbone.close()
