"""The swarm against a real node: joins, its own programme, the end without a byte too few."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.nodes import PASSWORD, NodeProcess, Nodes

from relay.swarm import Swarm
from relay.swarm_report import Group

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "swarm.md"
PACE_MS = 100
LISTENERS = 60


@pytest.fixture
def node(nodes: Nodes) -> NodeProcess:
    """A node that serves each listener every 100 ms."""
    return nodes.start("--pace-ms", str(PACE_MS), backbone="none")


@pytest.fixture
def swarm(node: NodeProcess) -> Iterator[Swarm]:
    """A swarm with a source of /live, whose burst is there."""
    # the tests share two cores with much else: what is late here is no fault of the node
    with Swarm(node.address[1], sample=20, pace_ms=PACE_MS, tolerance_ms=5000) as one:
        one.source("/live", password=PASSWORD)
        one.run(0.5)
        yield one


def all_of(group: Group) -> tuple[int, ...]:
    """Everything that a clean server leaves at zero."""
    return (
        *(group.frames_lost, group.frames_repeated, group.frames_damaged, group.skips),
        *(group.behind, group.unequal, group.titles_wrong, group.ended, group.resets),
        *(group.cut, group.foreign, group.waiting, len(group.refused), len(group.failed)),
    )


def test_a_clean_server_passes_with_every_byte_accounted_for(swarm: Swarm) -> None:
    """All join, each frame of the sample comes once, and at the end all positions are the head."""
    swarm.join(LISTENERS, 0.2)
    swarm.run(1.0)
    swarm.mark("steady")
    swarm.run(1.0)
    report = swarm.finish()
    assert report.faults == []
    start, steady = (window.groups["incumbents"] for window in report.windows.values())
    assert start.joined == start.asked == LISTENERS
    assert start.first_audio_ms.total == LISTENERS
    assert steady.playing == LISTENERS
    assert all_of(start) == all_of(steady) == (0,) * 14
    assert start.frames_checked + steady.frames_checked >= 20 * 60
    # from the pace on, each listener's arrivals are counted, and each has its gap
    assert steady.gap_ms.total == steady.arrivals >= LISTENERS * 5
    assert steady.lateness_ms.total > 20 * 20
    assert report.sources[0].state == "live"


def test_a_window_counts_anew_and_keeps_the_one_before(swarm: Swarm) -> None:
    """Marks part the numbers, and what a listener did before does not come back."""
    swarm.join(10, 0.0)
    swarm.run(0.5)
    swarm.mark("second")
    swarm.run(0.3)
    report = swarm.report()
    assert list(report.windows) == ["start", "second"]
    assert report.windows["start"].groups["incumbents"].joined == 10
    assert report.windows["second"].groups["incumbents"].joined == 0
    assert report.windows["second"].groups["incumbents"].playing == 10


def test_the_example_of_the_page_does_what_it_says(nodes: Nodes) -> None:
    """Its numbers made small: everybody gets in, nothing is lost."""
    found = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    names: dict[str, Any] = {}
    exec(found[1], names)
    node = nodes.start("--pace-ms", "100", backbone="none")
    _, faults, p99 = names["storm"](node.address[1], PASSWORD, 20, 30, seconds=1)
    # how late a busy machine makes it is not judged here
    assert [fault for fault in faults if "behind" not in fault] == []
    assert p99 > 0


def test_a_pause_between_two_runs_is_the_swarms_own_delay() -> None:
    """Nobody was read meanwhile: whatever is found then is not to be believed."""
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        Swarm(door.getsockname()[1], content="any") as swarm,
    ):
        swarm.join(1, 0)
        swarm.run(0.1)
        time.sleep(0.2)
        swarm.run(0.1)
        report = swarm.report()
    assert report.delay_ms >= 180
    assert not report.valid
    assert "late to its own work" in report.reasons[0]


def test_joins_that_come_late_are_the_swarms_own_delay() -> None:
    """The storm was not the one that was asked for."""
    with Swarm(9, content="any") as swarm:
        swarm.join(10, 0.2)
        swarm.run(0.1)
        time.sleep(0.3)  # with nobody connected there is no tick to be late
        swarm.run(0.2)
        report = swarm.finish()
    assert report.windows["start"].groups["incumbents"].failed == {"ECONNREFUSED": 10}
    assert report.delay_ms >= 250
    assert not report.valid
