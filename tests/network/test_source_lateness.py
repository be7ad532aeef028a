"""Asking for what is not there costs no listener anything: 5,000 GET/s of a missing mount.

Rules of this room
  1. Load, source and listeners are real; the load is a process of its own (tools.load).
  2. Lateness runs from the source's write to the read of an incumbent listener. The pace is not
     lateness: what is judged is what the load adds to the same listeners, measured just before.
  3. Only the soak judges times and rates; each run judges what was delivered under the load.
"""

from __future__ import annotations

import time

import pytest
from tools.lateness import LatenessChecker, lateness_ms, percentile
from tools.listeners import Crowd, Listener
from tools.load import Gets, Getter, program
from tools.nodes import NodeProcess, Nodes, wait_until
from tools.sources import FrameMaker, LiveSource, Source

GETS_PER_S = 5_000
SOAK_LOAD_S = 10.0
LOAD_S = 3.0
QUIET_S = 4.0
LISTENERS = 8
INCUMBENT_S = 1.0  # the burst is over, what comes now is live
ADDED_MS_MAX = 20.0
PACE_MS = 200


def join_checked(crowd: Crowd, node: NodeProcess) -> list[Listener]:
    """Let the incumbents join, and wait until they are."""
    listeners = [
        crowd.join(node.address, checker=LatenessChecker(), keep=False) for _ in range(LISTENERS)
    ]
    crowd.wait_audio()
    since_s = time.monotonic()
    wait_until(lambda: time.monotonic() - since_s > INCUMBENT_S, what="the burst to be over")
    return listeners


def p99_ms(listeners: list[Listener], since_s: float, until_s: float) -> float:
    """Return the lateness p99 of all frames made in this time, over all listeners."""
    wait_until(lambda: time.monotonic() > until_s + PACE_MS / 1000 + 0.1, 60.0, every_s=0.05)
    late = []
    for listener in listeners:
        assert isinstance(listener.checker, LatenessChecker)
        late += lateness_ms(listener.checker.heard, since_s, until_s)
    return percentile(late, 99)


def measure(
    node: NodeProcess, listeners: list[Listener], load_s: float
) -> tuple[float, float, Gets]:
    """Return the lateness p99 without and under the load, and what became of the load."""
    begin_s = time.monotonic()
    quiet_ms = p99_ms(listeners, begin_s, begin_s + QUIET_S)
    begin_s = time.monotonic()
    with Getter(node.address, "/nothing", rate_per_s=GETS_PER_S, seconds=load_s) as getter:
        loaded_ms = p99_ms(listeners, begin_s, begin_s + load_s)
        gets = getter.wait()
    print(
        f"\n{gets.per_s:.0f} GET/s of a missing mount ({gets.status_404} answered 404, "
        f"{gets.failed} failed): lateness p99 {loaded_ms:.1f} ms, without load {quiet_ms:.1f} ms, "
        f"pace {PACE_MS} ms"
    )
    return quiet_ms, loaded_ms, gets


def refused_not_found(node: NodeProcess) -> int:
    """Return how many GETs the node has answered with 404."""
    counters = node.counters()
    return int(counters["refused_not_found_total"])


@pytest.fixture
def compiled(gcc: str) -> str:
    """The load program, ready to run."""
    return program()


@pytest.mark.usefixtures("compiled")
def test_gets_of_a_missing_mount_are_all_refused_and_no_listener_notices(
    nodes: Nodes, crowd: Crowd
) -> None:
    """Each GET sent gets its 404; incumbents hear every frame, in order, and none skips."""
    node = nodes.start("--pace-ms", str(PACE_MS), backbone="none")
    with LiveSource(Source(node.address), FrameMaker()):
        listeners = join_checked(crowd, node)
        before = refused_not_found(node)
        _, _, gets = measure(node, listeners, LOAD_S)
        assert gets.sent > 0, gets
        assert gets.other == gets.failed == 0, gets
        assert refused_not_found(node) >= before + gets.status_404 > before
    assert_undisturbed(listeners)


@pytest.mark.soak
@pytest.mark.usefixtures("compiled")
def test_5000_gets_of_a_missing_mount_do_not_delay_a_source(nodes: Nodes, crowd: Crowd) -> None:
    """For 10 s of 5,000 GET/s the lateness p99 of incumbents grows by at most 20 ms, none skips."""
    node = nodes.start("--pace-ms", str(PACE_MS), backbone="none")
    with LiveSource(Source(node.address), FrameMaker()):
        listeners = join_checked(crowd, node)
        for attempt in (1, 2):
            quiet_ms, loaded_ms, gets = measure(node, listeners, SOAK_LOAD_S)
            if loaded_ms <= max(quiet_ms, PACE_MS) + ADDED_MS_MAX or attempt == 2:
                break
        assert gets.status_404 > 0.95 * GETS_PER_S * SOAK_LOAD_S, gets
        assert loaded_ms <= max(quiet_ms, PACE_MS) + ADDED_MS_MAX
    assert_undisturbed(listeners)


def assert_undisturbed(listeners: list[Listener]) -> None:
    """All of them are still there and have heard every frame in order."""
    for listener in listeners:
        assert listener.alive, listener
        assert listener.checker is not None
        assert listener.checker.clean, listener.checker
