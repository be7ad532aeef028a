"""Planted defects: a server that errs on purpose is caught at each, and the fault is named."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from relay._probe_swarm import frame
from tools.faulty import SKIPPED, Fault, FaultyServer

from relay.swarm import Swarm
from relay.swarm_report import Group, Report

LISTENERS = 12


def judge(
    server: FaultyServer,
    *,
    sample: int = LISTENERS,
    icy_share: float = 0.0,
    titles: bool = False,
    seconds: float = 1.0,
    tolerance_ms: int = 5000,
    tail_bytes: int = 0,
) -> Report:
    """Let a small swarm hear the server for a while.

    The tolerance is wide: how late a server in Python is on a busy machine is not what is tested.
    """
    swarm = Swarm(
        server.address[1],
        sample=sample,
        pace_ms=100,
        tolerance_ms=tolerance_ms,
        tail_bytes=tail_bytes,
    )
    with swarm:
        swarm.source("/live", password="any", title_every_s=0.4 if titles else 0)
        swarm.run(0.6)
        swarm.join(LISTENERS, 0.1, icy_share=icy_share)
        swarm.run(seconds)
        return swarm.finish()


@pytest.mark.parametrize("icy_share", [0.0, 0.5])
def test_a_server_without_a_fault_passes(icy_share: float) -> None:
    """Nothing is found where nothing is."""
    with FaultyServer() as server:
        report = judge(server, icy_share=icy_share, titles=icy_share > 0, seconds=2.0)
    assert report.faults == []
    group = report.windows["start"].groups["incumbents"]
    assert group.joined == group.playing == LISTENERS
    assert group.frames_checked >= LISTENERS * 70
    assert (group.titles_heard > 0) == (icy_share > 0)
    if icy_share:
        assert report.sources[0].titles_told >= 4


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (Fault("drop"), "1 frame lost in 1 skip"),
        (Fault("repeat"), "1 frame repeated"),
        (Fault("damage"), "1 frame damaged"),
        (Fault("shift"), "1 frame damaged"),
        (Fault("close"), "1 listener ended"),
        (Fault("reset"), "1 connection reset"),
        (Fault("refuse"), "1 join refused: 503"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_a_defect_of_one_listener_is_caught_in_the_sample(fault: Fault, named: str) -> None:
    """One frame, one byte, one connection, of one listener of twelve."""
    with FaultyServer(fault) as server:
        report = judge(server)
    assert f"start, incumbents: {named}" in report.faults


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("drop", "192 bytes missing, 0 too many"),
        ("repeat", "0 bytes missing, 192 too many"),
        ("shift", "1 bytes missing, 0 too many"),
    ],
)
@pytest.mark.parametrize("icy_share", [0.0, 1.0])
def test_a_byte_too_few_is_caught_where_nobody_looks(
    kind: str, named: str, icy_share: float
) -> None:
    """Outside the sample, at the end: bytes are the head's advance, or the fault is named."""
    with FaultyServer(Fault(kind)) as server:  # type: ignore[arg-type]
        report = judge(server, sample=0, icy_share=icy_share)
    assert report.faults == [
        f"start, incumbents: 1 listener unequal to the head at the end: {named}"
    ]
    assert report.windows["start"].groups["incumbents"].behind == 1


@pytest.mark.parametrize("sample", [0, LISTENERS])
def test_a_stall_of_two_seconds_is_caught(sample: int) -> None:
    """While it lasts, and with its length, though everything comes in the end."""
    with FaultyServer(Fault("stall")) as server:
        report = judge(server, sample=sample, seconds=3.5, tolerance_ms=1000)
    group = report.windows["start"].groups["incumbents"]
    assert group.behind == 1
    assert group.unequal == 0
    assert group.worst_lag_ms >= 2000
    assert group.longest_gap_ms >= 2000
    assert any("1 listener behind" in fault for fault in report.faults)


@pytest.mark.parametrize("kind", ["title", "stale"])
def test_a_wrong_title_is_caught(kind: str) -> None:
    """Another text, or none although one is owed (pace, a block's time and a second)."""
    with FaultyServer(Fault(kind)) as server:  # type: ignore[arg-type]
        report = judge(server, icy_share=1.0, titles=True, seconds=4.0)
    assert [fault for fault in report.faults if "title" in fault and "wrong" in fault]


def judge_after_a_lag(server: FaultyServer) -> Group:
    """Let all of a small swarm stop reading for a while, and read on."""
    with Swarm(server.address[1], sample=LISTENERS, pace_ms=100, tolerance_ms=1000) as swarm:
        swarm.source("/live", password="any", title_every_s=0.4)
        swarm.run(0.6)
        swarm.join(LISTENERS, 0, icy_share=1.0)
        swarm.run(0.4)
        assert swarm.lag(LISTENERS) == LISTENERS
        swarm.run(2.5)
        assert swarm.read_on() == LISTENERS
        swarm.run(3.5)
        return swarm.finish().windows["start"].groups["incumbents"]


FRAME_MS = 24
SKIP_AT = 60  # while they lag: 20 of the burst, and a second


def test_a_skip_of_one_that_lagged_on_our_will_is_counted_and_no_loss() -> None:
    """Between two frames; all after it is right, and its position ends at the head."""
    with FaultyServer(Fault("skip", 3, SKIP_AT)) as server:
        group = judge_after_a_lag(server)
    assert (group.skips_allowed, group.frames_skipped) == (1, SKIPPED)
    assert group.skip_ms.total == 1
    assert group.skip_ms.max >= SKIPPED * FRAME_MS
    assert (group.frames_lost, group.frames_damaged, group.frames_repeated) == (0, 0, 0)
    assert (group.titles_wrong, group.unequal) == (0, 0)
    assert group.titles_heard > LISTENERS


def test_a_splice_and_a_forgotten_title_after_a_skip_are_caught() -> None:
    """The one cuts a frame in two, the other goes on with what was said before it."""
    faults = Fault("splice", 3, SKIP_AT), Fault("skip", 5, SKIP_AT), Fault("forget", 5)
    with FaultyServer(*faults) as server:
        group = judge_after_a_lag(server)
    assert group.frames_damaged == 1
    assert group.titles_wrong >= 1
    assert group.frames_lost == 0


def test_a_skip_of_one_that_has_caught_up_is_a_loss() -> None:
    """The leave to skip ends with the lag."""
    with FaultyServer(Fault("skip", 3, frame=200)) as server:
        group = judge_after_a_lag(server)
    assert (group.skips_allowed, group.skips, group.frames_lost) == (0, 1, SKIPPED)


def test_titles_that_the_server_does_not_take_are_named() -> None:
    """The answer to /admin/metadata is read."""
    with FaultyServer(Fault("refuse_title")) as server:
        report = judge(server, titles=True)
    assert [fault for fault in report.faults if fault.endswith("of /live not accepted")]


def test_a_source_that_the_server_ends_is_named() -> None:
    """Whatever the listeners heard."""
    with FaultyServer(Fault("drop_source", frame=40)) as server:
        report = judge(server)
    assert any(fault.startswith("the source of /live was ended") for fault in report.faults)
    assert report.sources[0].state == "lost"


def test_a_source_that_is_not_read_any_more_is_named() -> None:
    """It is held back by the server's window, for longer than pace and tolerance."""
    with FaultyServer(Fault("deaf", frame=30)) as server:
        report = judge(server, seconds=6.0, tolerance_ms=500)
    assert any("the source of /live was held back for" in fault for fault in report.faults)
    assert report.sources[0].held_ms_max > 600


def test_another_programme_than_ours_is_named() -> None:
    """Frames of another run, such as a recording of one."""
    with FaultyServer() as server:
        server.frames.extend(frame(1, 0, n, 0) for n in range(40))
        with Swarm(server.address[1], pace_ms=100) as swarm:
            swarm.source("/live", password="any")
            swarm.join(3, 0)
            swarm.run(0.3)
            report = swarm.finish()
    assert "start, incumbents: 3 listeners heard another programme" in report.faults


def test_a_full_backlog_shows_as_a_repeated_syn() -> None:
    """Who meets it waits a second for the next try; TCP_INFO tells."""
    with socket.socket() as door, ThreadPoolExecutor() as pool:
        door.bind(("127.0.0.1", 0))
        door.listen(1)

        def answer_late() -> None:
            time.sleep(0.5)  # the queue is full by then, and whoever came later was not heard
            door.settimeout(5.0)
            for _ in range(8):
                connection, _ = door.accept()
                connection.recv(1024)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\naudio")
                connections.append(connection)

        connections: list[socket.socket] = []
        answers = pool.submit(answer_late)
        with Swarm(door.getsockname()[1], content="any") as swarm:
            swarm.join(8, 0)
            swarm.run(2.5)
            report = swarm.finish()
        answers.result()
        for connection in connections:
            connection.close()
    group = report.windows["start"].groups["incumbents"]
    assert group.joined == 8
    # a queue of one holds two
    assert 1 <= group.syn_repeated <= 7
    assert f"start, incumbents: {group.syn_repeated} joins by a repeated SYN" in report.faults
    assert group.connect_ms.max > 900


def test_a_server_that_never_answers_is_named() -> None:
    """Connected by the kernel, asked, and nothing heard."""
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        Swarm(door.getsockname()[1], content="any") as swarm,
    ):
        swarm.join(3, 0)
        swarm.run(0.2)
        report = swarm.finish()
    assert report.faults == ["start, incumbents: 3 listeners without audio yet"]


def test_a_closed_port_is_named_by_its_errno() -> None:
    """Nobody listens."""
    with Swarm(9, content="any") as swarm:
        swarm.join(3, 0)
        swarm.run(0.1)
        report = swarm.finish()
    assert report.faults == ["start, incumbents: 3 connections failed: ECONNREFUSED"]


def test_a_burst_that_begins_inside_a_frame_is_placed_by_its_first_whole_one() -> None:
    """As Icecast's does, which counts bytes."""
    with FaultyServer(inside=100) as server:
        report = judge(server, sample=4)
    assert report.faults == []


def test_a_server_of_whole_blocks_may_keep_the_last_one_back() -> None:
    """As Icecast does; and without that word it is a fault."""
    with FaultyServer(block_bytes=1400) as server:
        report = judge(server, tail_bytes=1400)
    assert report.faults == []


def flood(server: FaultyServer, seconds: float = 0.8) -> Report:
    """Fill the server, then let ten more come."""
    with Swarm(server.address[1], sample=4, pace_ms=100, tolerance_ms=5000) as swarm:
        swarm.source("/live", password="any")
        swarm.run(0.5)
        swarm.join(4, 0.1)
        swarm.run(0.5)
        swarm.mark("flood")
        swarm.flood(10, 0.2)
        swarm.run(seconds)
        return swarm.finish()


def test_whole_refusals_pass() -> None:
    """Status line, body as long as it says, EOF; and each is counted and timed."""
    with FaultyServer(listeners_max=4) as server:
        report = flood(server)
    assert report.faults == []
    group = report.windows["flood"].groups["flood"]
    assert group.refused == {"503": 10}
    assert group.refusal_ms.total == 10


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (Fault("reset_refusal", 7), "1 connection reset"),
        (Fault("cut_refusal", 7), "1 reply cut short"),
        (Fault("hold_refusal", 7), "1 refusal not closed"),
        (Fault("admit", 7), "1 connection let in, expected a refusal"),
    ],
    ids=["reset", "cut", "hold", "admit"],
)
def test_a_refusal_that_is_not_whole_is_caught(fault: Fault, named: str) -> None:
    """The connection is reset, the body ends early, or it is none."""
    with FaultyServer(fault, listeners_max=4) as server:
        # a refusal may stay open for two seconds; a sweep looks once a second
        report = flood(server, 4.0 if fault.kind == "hold_refusal" else 0.8)
    assert f"flood, flood: {named}" in report.faults
