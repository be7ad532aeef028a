"""The rules that tests may break on purpose do break: else a planted defect would prove nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from tools.backbones import Ear, Node, Programme, until
from tools.planted import FAULTS

FRAMES = 200


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[tuple[Programme, Node, Ear]]:
    """An origin, two relays, an edge below both: a programme, the edge, who hears it there."""
    with contextlib.ExitStack() as stack:

        def make(*args: Any, **more: Any) -> Node:
            node = Node(*args, **more)
            stack.callback(node.backbone.close)
            return node

        origin = make()
        relays = [make(origin.address), make(origin.address)]
        addresses = [relay.address for relay in relays]
        edge = make(addresses, bind=None, prefetch=["/live"], redundancy=request.param)
        until(lambda: [up["state"] for up in edge.seen()["upstreams"]] == ["up", "up"])
        programme = Programme(origin)
        programme.push(50)
        ear = Ear(edge, programme)
        ear.reach(50)
        stack.callback(programme.stop)
        yield programme, edge, ear


def broken(row: tuple[Programme, Node, Ear], defect: str) -> None:
    """Break a rule, let frames come, and hear them all."""
    programme, edge, ear = row
    assert edge.backbone._core is not None
    often = {"drop_every": 3} if "drop_every" in FAULTS[defect] else {}
    edge.backbone._core.fault(**(FAULTS[defect] | often))
    programme.run()
    ear.reach(FRAMES)


@pytest.mark.parametrize("row", ["standby"], indirect=True)
def test_a_fault_that_is_mended_breaks_nothing(row: tuple[Programme, Node, Ear]) -> None:
    """Each third run is dropped, and all comes all the same."""
    broken(row, "drop-runs")
    assert row[2].stream.snapshot()["counters"]["lost_frames_total"] == 0


@pytest.mark.parametrize(
    ("row", "defect"),
    [("merge", "no-duplicate-check"), ("standby", "no-hole-rule")],
    indirect=["row"],
)
def test_a_broken_rule_is_heard(row: tuple[Programme, Node, Ear], defect: str) -> None:
    """Frames are missing, or not those that they should be; nothing is counted as lost."""
    with pytest.raises(AssertionError):
        broken(row, defect)
    assert row[2].stream.snapshot()["counters"]["lost_frames_total"] == 0


@pytest.mark.parametrize("row", ["standby"], indirect=True)
def test_without_repair_frames_are_lost(row: tuple[Programme, Node, Ear]) -> None:
    """Holes are waited for in vain, given up, and counted."""
    programme, edge, ear = row
    with pytest.raises(AssertionError):
        broken(row, "no-repair")
    assert edge.counted("repairs_asked_total") == 0
    until(lambda: ear.stream.snapshot()["counters"]["lost_frames_total"] > 0)
    assert programme.sent > 50
