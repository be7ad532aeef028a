"""Which streams a node has while its upstreams come, go, restart and contradict each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools.backbones import Ear, Node, Programme, until
from tools.parents import HandParent


@pytest.fixture
def nodes() -> Iterator[Callable[..., Node]]:
    """Makes nodes; closes them last first."""
    made: list[Node] = []

    def make(*args: Any, **more: Any) -> Node:
        made.append(Node(*args, **more))
        return made[-1]

    yield make
    for node in reversed(made):
        node.backbone.close()


# --- whose directory is waited for ---------------------------------------------------------------


def test_an_upstream_that_never_knows_its_directory_does_not_silence_the_others(
    nodes: Callable[..., Node],
) -> None:
    """It is waited for 2 s after another has told; then children are told what there is."""
    origin = nodes()
    programme = Programme(origin)
    programme.push(20)
    with HandParent(whole=False) as stuck:
        relay = nodes([origin.address, stuck.address])
        edge = nodes(relay.address, bind=None, prefetch=["/live"])
        until(lambda: [up["state"] for up in relay.seen()["upstreams"]] == ["up", "up"])
        until(lambda: relay.seen()["upstreams"][0]["directory_known"])
        begin = time.monotonic()
        assert not relay.seen()["upstream"]["directory_known"]
        until(lambda: relay.seen()["upstream"]["directory_known"], 8.0)
        print(f"\nwaited {time.monotonic() - begin:.1f} s for the one that never tells")
        Ear(edge, programme).reach(20)
        assert [up["directory_known"] for up in relay.seen()["upstreams"]] == [True, False]
