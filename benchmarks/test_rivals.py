"""The judges of benchmarks/edge.py are judged: what is read, what is made of it, what is missed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import edge
import pytest
from rivals import chart, command, figures, forms, measure, servers, storms, verdict
from rivals.bench import Bench
from rivals.crowd import Heard, Run, judge_core
from rivals.measure import Cost, Spread, Times

SS = """\
0      0      127.0.0.1:8000   127.0.0.9:41000
\t skmem:(r0,rb131072,t0,tb2626560,f4096,w0,o0,bl0,d0)
0      48000  127.0.0.1:8000   127.0.0.9:41002
\t skmem:(r512,rb131072,t50176,tb2626560,f1024,w50176,o64,bl256,d3)
"""


def test_a_socket_holds_what_it_reads_writes_reserves_and_keeps_back() -> None:
    """Fields of skmem by name: bounds (rb, tb), drops and what is in w already do not count."""
    held = [measure.held_bytes(fields) for fields in measure.skmem_fields(SS)]
    assert held == [4096, 512 + 50176 + 1024 + 64 + 256]


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss is missing: apt-get install iproute2")
def test_only_the_servers_ends_are_counted() -> None:
    """Three clients: three sockets of the server, though six are established."""
    port = measure.free_port()
    with socket.create_server(("127.0.0.1", port)) as door:
        pairs = [(socket.create_connection(("127.0.0.1", port)), door.accept()[0]) for _ in "abc"]
        for _, server in pairs:
            server.setblocking(False)
        before = measure.socket_bytes(port)
        assert len(before) == 3
        pairs[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(BlockingIOError):
            for _ in range(1000):
                pairs[0][1].send(bytes(65536))
        after = measure.socket_bytes(port)
        assert max(after) > 100_000
        assert sorted(after)[:2] == sorted(before)[:2]
        for pair in pairs:
            for sock in pair:
                sock.close()


def test_cpu_of_a_window_is_summed_over_threads() -> None:
    """A thread that is new began with nothing, one that ended is left out; names are kept."""
    before = {1: Times("main", 5_000_000_000, 1_000_000), 2: Times("gone", 7, 7)}
    after = {
        1: Times("main", 6_000_000_000, 3_000_000),
        3: Times("shard", 500_000_000, 0),
        4: Times("shard", 250_000_000, 4_000_000),
    }
    cost = measure.cost_between(before, after)
    assert cost.threads_s == {"main": 1.0, "shard": 0.75}
    assert cost.cpu_s == 1.75
    assert cost.wait_s == pytest.approx(0.006)


def test_a_window_sees_the_work_of_another_thread() -> None:
    """A quarter of a second of work is a quarter of a second, and not more than the window."""
    window = measure.Window(os.getpid(), 0)

    def work() -> None:
        until = time.thread_time() + 0.25
        while time.thread_time() < until:
            pass
        done.wait(5)

    done = threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    until = time.monotonic() + 20
    while window.close().cpu_s < 0.24 and time.monotonic() < until:
        time.sleep(0.02)
    cost = window.close()
    done.set()
    worker.join()
    assert 0.24 <= cost.cpu_s <= cost.window_s * 2


def test_a_server_that_shared_its_core_is_not_judged() -> None:
    """Idle and waiting for a disk is nobody's; what is left beside the server is foreign."""
    text = "cpu  9 9 9 9 9 9 9\ncpu1 5 0 5 700 50 3 20 0 0 0\n"
    assert measure.idle_s(1, text) == 750 / os.sysconf("SC_CLK_TCK")
    assert measure.softirq_s(1, text) == 20 / os.sysconf("SC_CLK_TCK")
    with pytest.raises(ValueError, match="cpu2"):
        measure.idle_s(2, text)
    run = Run("relay")
    run.costs["window"] = Cost(10.0, 5.0, 0.0, 0.0, {}, foreign_s=0.9)
    assert judge_core(run, 0.1).valid
    run.costs["window"] = Cost(10.0, 5.0, 0.0, 0.0, {}, foreign_s=1.1)
    assert judge_core(run, 1.0).valid
    assert not judge_core(run, 0.1).valid
    assert "busy with other work 11% of the time" in run.why


def test_memory_is_the_share_of_pages_not_the_resident_size() -> None:
    """The line Pss, in bytes; the lines Pss_Dirty and Rss are others."""
    text = "Rss:  999 kB\nPss:                 120 kB\nPss_Dirty:  7 kB\n"
    assert measure.pss_bytes(0, text) == 120 * 1024
    assert measure.pss_bytes(os.getpid()) > 1 << 20
    with pytest.raises(ValueError, match="Pss"):
        measure.pss_bytes(0, "Rss: 1 kB\n")


def test_a_pair_with_an_invalid_run_is_left_out_whole() -> None:
    """Ratios are of neighbours; nothing is taken from another pair."""
    assert measure.ratios([1.0, None, 3.0, 4.0], [2.0, 5.0, None, 2.0]) == [0.5, 2.0]
    assert measure.spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="no valid run"):
        measure.spread([])


def test_a_goal_is_held_to_the_median_and_what_must_not_happen_to_the_worst() -> None:
    """A time may be off once; a lost frame may not."""
    assert verdict.at_most("f", "x", [1.0, 1.1, 9.0], 1.1).verdict == "met"
    assert verdict.at_most("f", "x", [1.0, 1.2, 1.3], 1.1).verdict == "MISSED"
    assert verdict.at_least("f", "x", [4000, 3000, 5000], 4000).verdict == "met"
    assert verdict.never("f", "x", [0, 0, 0]).verdict == "met"
    assert verdict.never("f", "x", [0, 0, 1]).verdict == "MISSED"
    assert verdict.always("f", "x", [10, 10, 10], 10).verdict == "met"
    assert verdict.always("f", "x", [10, 9, 10], 10).verdict == "MISSED"
    assert verdict.always("f", "x", [10, 11, 10], 10).verdict == "MISSED"


def test_what_was_not_valid_is_no_number() -> None:
    """Neither met nor missed, and the exit status says so before it says missed."""
    line = verdict.at_most("f", "x", [None, None], 1.0)
    assert (line.verdict, line.values) == ("not valid", ())
    assert verdict.at_most("f", "x", [None, 0.5], 1.0).values == (0.5,)
    missed = verdict.at_most("f", "x", [2.0], 1.0)
    assert [command.status(lines) for lines in ([], [missed], [missed, line])] == [0, 1, 3]
    assert verdict.summary([missed, line]) == "0 met, 1 MISSED, 1 not valid"
    assert "MISSED" in verdict.table([missed]).splitlines()[2]


class Canned(Bench):
    """A bench whose runs are made up."""

    def __init__(self, make: Callable[[str], Run | None]) -> None:
        super().__init__(forms.with_pairs(forms.TINY, 3), 0, 1, say=lambda _: None)
        self.make = make

    def run(self, name: str, contestant: Any, plan: Any) -> Run | None:
        """Answer what was made up."""
        return self.make(name)


def sound(name: str) -> Run:
    """A run in which nothing went wrong, as each figure reads it."""
    run = Run(name, listeners=300)
    run.crowds = dict.fromkeys(("window", "quiet", "storm", "stalled", "flood"), 300)
    for window in ("window", "quiet", "storm", "stalled", "flood"):
        run.costs[window] = Cost(10.0, 0.1, 0.0, 0.0, {"relay-shard": 0.1})
        for group in ("incumbents", "storm", "flood"):
            run.heard.setdefault(group, {})[window] = Heard(first_audio_p99_ms=50.0, settled_s=0.01)
    form = forms.TINY
    run.heard["storm"]["storm"].joined = form.storm_joins
    run.heard["flood"]["flood"].refused = form.refused
    run.heard["incumbents"]["window"].joined = form.house_listeners
    run.numbers.update(socket_bytes_max=1000, socket_bytes_stalled=1000, bytes_per_listener=300)
    return run


@pytest.mark.parametrize("name", edge.ALL)
def test_each_figure_is_met_by_runs_that_are_sound(name: str) -> None:
    """Every figure makes lines, and misses none of them for no reason."""
    lines = list(edge.ALL[name](Canned(sound)))
    assert lines
    assert {line.verdict for line in lines} <= {"met", "shown"}


@pytest.mark.parametrize("name", edge.ALL)
def test_each_figure_says_when_it_has_no_valid_run(name: str) -> None:
    """No number comes from nothing. (What a form is too short for is not tried at all.)"""
    lines = list(edge.ALL[name](Canned(lambda _: None)))
    assert {line.verdict for line in lines if line.what != "not tried"} == {"not valid"}


def spoiled(field: str, value: float, group: str = "incumbents", window: str = "window") -> Any:
    """Make runs in which one field of one group is wrong, in the second pair of relay alone."""

    def make(name: str) -> Run:
        run = sound(name)
        if "#2" in name and not any(rival in name for rival in ("bare", "accept", "none", "one")):
            setattr(run.heard[group][window], field, value)
        return run

    return make


@pytest.mark.parametrize(
    ("figure", "field", "value", "group", "window"),
    [
        (figures.pace, "frames_wrong", 1, "incumbents", "window"),
        (figures.house, "frames_wrong", 1, "incumbents", "window"),
        (figures.house, "ended", 1, "incumbents", "window"),
        (figures.house, "behind", 1, "incumbents", "window"),
        (figures.house, "unequal", 1, "incumbents", "window"),
        (figures.house, "joined", 299, "incumbents", "window"),
        (figures.icy, "titles_wrong", 1, "incumbents", "window"),
        (figures.mounts, "frames_wrong", 1, "incumbents", "window"),
        (figures.stalled, "ended", 1, "incumbents", "stalled"),
        (figures.refuse, "refused", 199, "flood", "flood"),
        (figures.refuse, "failed", 1, "flood", "flood"),
        (figures.refuse, "frames_wrong", 1, "incumbents", "flood"),
        (storms.storm1s, "joined", 199, "storm", "storm"),
        (storms.storm1s, "syn_repeated", 1, "storm", "storm"),
        (storms.storm100ms, "frames_wrong", 1, "incumbents", "storm"),
    ],
)
def test_what_must_not_happen_is_missed_when_it_happens_once(
    figure: figures.Figure, field: str, value: float, group: str, window: str
) -> None:
    """One of three runs is enough."""
    lines = list(figure(Canned(spoiled(field, value, group, window))))
    assert "MISSED" in {line.verdict for line in lines}


def test_a_ratio_above_its_bound_is_missed() -> None:
    """A fifth more CPU than the bare loop is too much; so is a gap that it did not have."""

    def dear(name: str) -> Run:
        run = sound(name)
        if "relay" in name:
            run.costs["window"] = Cost(10.0, 0.12, 0.0, 0.0, {})
            run.heard["incumbents"]["window"].gap_longest_ms = 200.0
        return run

    missed = [line.what for line in figures.house(Canned(dear)) if line.verdict == "MISSED"]
    assert missed == ["longest gap beside bare loop's, ms", "CPU ÷ bare loop"]


def test_uring_is_chosen_only_when_it_saves_a_tenth_at_every_size() -> None:
    """The decision follows from the smallest saving."""

    def decide(cost_s: float) -> str:
        def make(name: str) -> Run:
            run = sound(name)
            if name.endswith(("uring #1", "uring #2", "uring #3")):
                run.costs["window"] = Cost(10.0, cost_s, 0.0, 0.0, {})
            return run

        return list(figures.uring(Canned(make)))[-1].measured

    assert decide(0.095).endswith("Relay stays with send")
    assert decide(0.085).endswith("io_uring is worth a backend")


class Scripted(Bench):
    """A bench whose attempts come from a list."""

    def __init__(self, attempts: list[Run]) -> None:
        super().__init__(forms.TINY, 0, 1, say=lambda _: None)
        self.attempts = attempts

    def _once(self, contestant: Any, plan: Any) -> Run:
        return self.attempts.pop(0)


def test_a_run_that_is_not_valid_is_repeated_once_and_is_then_no_number() -> None:
    """Both attempts are kept with their reason; the second one counts when it is valid."""
    busy = Run("relay", valid=False, why="busy")
    bench = Scripted([busy, Run("relay")])
    assert bench.run("a", servers.Server, lambda _: None) == Run("relay")
    assert [told["why"] for told in bench.runs] == ["busy", ""]
    bench = Scripted([busy, busy, Run("relay")])
    assert bench.run("a", servers.Server, lambda _: None) is None
    assert len(bench.attempts) == 1


def test_contestants_alternate() -> None:
    """Pairs are made of neighbours in time."""
    bench = Canned(sound)
    order: list[str] = []
    bench.make = lambda name: order.append(name) or sound(name)  # type: ignore[func-returns-value]
    both = dict.fromkeys(("ours", "theirs"), (servers.Server, lambda _: None))
    bench.in_turns("f", both, pairs=2)  # type: ignore[arg-type]
    assert order == ["f ours #1", "f theirs #1", "f ours #2", "f theirs #2"]


def test_a_bare_loop_that_waits_in_vain_is_broken_not_slow() -> None:
    """Fewer listeners than it waits for: it has served nobody, and its CPU is no figure."""
    with (
        servers.Bare(measure.cores()[0], listeners=2) as loop,
        pytest.raises(servers.ServerError, match="waits for 2 listeners"),
    ):
        loop.end()


def test_a_server_that_ends_by_itself_is_an_error() -> None:
    """Its last words are told."""
    with servers.Bare(measure.cores()[0]) as loop:
        assert loop.process is not None
        loop.process.kill()
        loop.process.wait()
        with pytest.raises(servers.ServerError, match="ended by itself"):
            loop.end()


def test_a_server_that_does_not_start_says_why() -> None:
    """The bare loop with arguments that it refuses: its own words are in the error."""
    with pytest.raises(servers.ServerError, match="arguments"):
        servers.Bare(measure.cores()[0], pace_ms=5000).__enter__()


def test_chart_draws_the_medians_and_nothing_that_was_not_measured() -> None:
    """A bar for each server, the lateness below, the machine's name escaped."""
    lines = [
        {"figure": "pace 100", "what": chart.CPU, "values": [81.0, 90.0, None, 83.0]},
        {"figure": "pace 100", "what": chart.BARE, "values": [80.0]},
        {"figure": "pace 100", "what": chart.LATE, "values": [104.0]},
        {"figure": "pace 1000", "what": chart.CPU, "values": [12.0]},
        {"figure": "pace icecast", "what": chart.CPU, "values": [None]},
    ]
    told = {"lines": lines, "cpu": "A & B", "kernel": "6.1", "commit": "abc"}
    picture = ElementTree.fromstring(chart.draw(told))
    words = [found.text for found in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"83", "80", "12", "100 ms", "1000 ms", "p99 104 ms late"} <= set(words)
    assert "Icecast 2.4" not in words
    assert any("A & B" in str(word) for word in words)
    with pytest.raises(SystemExit, match="pace"):
        chart.draw(told | {"lines": []})
