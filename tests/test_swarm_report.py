"""From counts to a verdict: quantiles, faults by name, and when the swarm is not to be believed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from relay._swarm import histogram_above_us
from relay.swarm_report import (
    COPIED,
    Group,
    Histogram,
    Report,
    SourceReport,
    Window,
    faults_of,
    group,
    histogram,
    reasons_of,
    table,
)

STATES = {"connecting": 0, "asked": 0, "playing": 5, "stalled": 0, "stalled_ended": 0,
          "lagging": 0}  # fmt: skip


def counts(*durations_us: int) -> dict[str, Any]:
    """What the loop tells of these durations."""
    filled = [0] * 200
    for us in durations_us:
        filled[next(i for i in range(200) if us < histogram_above_us(i))] += 1
    return {
        "total": len(durations_us),
        "sum_us": sum(durations_us),
        "max_us": max(durations_us, default=0),
        "counts": filled,
    }


def made(**told: Any) -> Group:
    """A group of five that play, all well but for what is told."""
    empty = counts()
    tally = dict.fromkeys((*COPIED, "longest_gap_us", "worst_lag_us"), 0)
    tally |= dict.fromkeys(("began_us", "last_us", "settled_us"), 1_000_000)
    histograms = dict.fromkeys(
        ("connect", "first_audio", "refusal", "lateness", "gap", "lag", "skip"), empty
    )
    states = STATES | told.pop("states", {})
    return group(
        tally | {"refused": {}, "failed": {}} | histograms | told, states, histogram_above_us
    )


def window(name: str = "start", **told: Any) -> Window:
    """Ten seconds, with nothing wrong but what is told."""
    settings: dict[str, Any] = {
        "name": name,
        "seconds": 10.0,
        "busy_share": 0.1,
        "source_share": 0.0,
        "cpu_s": 1.0,
        "delay_ms": 1.0,
        "groups": {},
    }
    return Window(**settings | told)


def test_quantiles_are_at_most_an_eighth_too_high() -> None:
    """And never more than the longest."""
    told = histogram(counts(*range(1, 1001)), histogram_above_us)
    assert told.total == 1000
    assert told.mean == pytest.approx(0.5005, abs=1e-3)
    for share, value in ((0.5, told.p50), (0.9, told.p90), (0.99, told.p99), (0.999, told.p999)):
        assert share <= value <= share * 9 / 8
    assert told.max == 1.0 >= told.p999
    assert sum(n for _, n in told.buckets) == 1000
    assert histogram(counts(), histogram_above_us) == Histogram()


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"frames_lost": 3, "skips": 2}, "3 frames lost in 2 skips"),
        ({"frames_repeated": 1}, "1 frame repeated"),
        ({"frames_damaged": 2}, "2 frames damaged"),
        ({"titles_wrong": 1}, "1 title wrong"),
        ({"behind": 2, "worst_lag_us": 1_500_000, "longest_gap_us": 1_400_000},
         "2 listeners behind; the worst lag 1500 ms, the longest gap 1400 ms"),
        ({"behind": 1, "unequal": 1, "missing_bytes": 192},
         "1 listener unequal to the head at the end: 192 bytes missing, 0 too many"),
        ({"ended": 1}, "1 listener ended"),
        ({"resets": 4}, "4 connections reset"),
        ({"cut": 1}, "1 reply cut short"),
        ({"unclosed": 1}, "1 refusal not closed"),
        ({"foreign": 1}, "1 listener heard another programme"),
        ({"syn_repeated": 7}, "7 joins by a repeated SYN"),
        ({"states": {"connecting": 1}}, "1 listener without audio yet"),
        ({"refused": {503: 2}}, "2 joins refused: 503"),
        ({"failed": {111: 1}}, "1 connection failed: ECONNREFUSED"),
    ],
)  # fmt: skip
def test_each_fault_is_named_once_with_its_window_and_group(
    told: dict[str, Any], named: str
) -> None:
    """One number, one line."""
    windows = [window(groups={"incumbents": made(**dict(told))})]
    assert faults_of(windows, [], set(), 1250) == [f"start, incumbents: {named}"]


def test_a_flood_must_be_refused_with_503() -> None:
    """What is right for it is wrong for a listener, and the other way round."""
    refused = window(groups={"flood": made(refused={503: 9, 404: 1}, admitted=2)})
    assert faults_of([refused], [], {"flood"}, 1250) == [
        "start, flood: 1 refusal with status 404, expected 503",
        "start, flood: 2 connections let in, expected a refusal",
    ]


def test_who_still_waits_at_a_mark_is_judged_at_the_end() -> None:
    """A window may begin while somebody joins."""
    waiting = {"incumbents": made(states={"asked": 1})}
    windows = [window(groups=waiting), window("end", groups={"incumbents": made()})]
    assert faults_of(windows, [], set(), 1250) == []
    assert len(faults_of([windows[0]], [], set(), 1250)) == 1


def source(**told: Any) -> SourceReport:
    """A source of /live that lives."""
    settings: dict[str, Any] = {
        "mount": "/live",
        "state": "live",
        "error": "",
        "frames": 1,
        "held_ms_max": 0.0,
        "titles_told": 0,
        "titles_refused": 0,
    }
    return SourceReport(**settings | told)


def test_what_befell_a_source_is_a_fault_of_the_server() -> None:
    """Ended, held back for longer than pace and tolerance, its titles not taken."""
    lost = source(state="lost", error="Broken pipe")
    assert faults_of([], [lost], set(), 1250) == [
        "the source of /live was ended by the server (Broken pipe)"
    ]
    assert faults_of([], [source(held_ms_max=1250.0)], set(), 1250) == []
    assert faults_of([], [source(held_ms_max=1400.0)], set(), 1250) == [
        "the source of /live was held back for 1400 ms"
    ]
    assert faults_of([], [source(titles_refused=2)], set(), 1250) == [
        "2 titles of /live not accepted"
    ]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"busy_share": 0.81}, "its loop was busy 81% of the time"),
        ({"source_share": 0.9}, "its sources' thread was busy 90%"),
        ({"delay_ms": 50.1}, "50 ms late to its own work"),
    ],
)
def test_a_swarm_that_was_too_slow_itself_is_not_valid(told: dict[str, Any], why: str) -> None:
    """Busy above 80 %, or late above 50 ms; the reason names the window."""
    (reason,) = reasons_of([window(), window("storm", **told)], 0)
    assert reason.startswith("storm: ")
    assert why in reason
    assert reasons_of([window(busy_share=0.8, delay_ms=50.0)], 0) == []


def test_a_share_of_less_than_a_second_is_noise() -> None:
    """Only its delay counts."""
    assert reasons_of([window(busy_share=0.9, seconds=0.5)], 0) == []


def test_joins_without_a_descriptor_are_the_swarms_own_fault() -> None:
    """The server never saw them."""
    assert reasons_of([], 3) == ["3 joins found no descriptor free"]


def report(**told: Any) -> Report:
    """A report of one window."""
    settings: dict[str, Any] = {
        "valid": True,
        "reasons": [],
        "faults": [],
        "busy_share": 0.1,
        "delay_ms": 1.0,
        "content": "frames",
        "pace_ms": 1000,
        "tolerance_ms": 250,
        "windows": {"start": window(groups={"incumbents": made(joined=5, asked=5)})},
        "sources": [source()],
    }
    return Report(**settings | told)


def test_a_report_survives_json() -> None:
    """For other programs."""
    told = report(faults=["x"])
    assert msgspec.json.decode(msgspec.json.encode(told), type=Report) == told
    assert told.groups("incumbents")[0].joined == 5
    assert told.groups("nobody") == []


def test_a_table_ends_with_the_verdict() -> None:
    """Passed, each fault, or NOT VALID."""
    assert table(report()).endswith("passed")
    assert "5 of 5" in table(report())
    assert table(report(faults=["start: a fault"])).endswith("FAULT  start: a fault")
    assert table(report(valid=False, reasons=["busy"])).endswith("NOT VALID  busy")
