"""/metrics: what Prometheus reads."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from fake_desk import HOSTILE, FakeDesk, stream
from prometheus_client.parser import text_string_to_metric_families

import relay
from relay.web.facts import Facts
from relay.web.metrics import exposition

PAGE = Path(__file__).parent.parent / "docs" / "http-api.md"
ROW = re.compile(r"^\| `(relay_\w+)` \| (counter|gauge|histogram) \| (.*) \|$", re.MULTILINE)


def scrape(desk: FakeDesk) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name and label values, as Prometheus' own parser reads them."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(exposition(desk.facts)().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_counters_and_gauges_have_the_names_of_the_glossary() -> None:
    """relay_ first, units last, counters in _total."""
    found = scrape(FakeDesk(stream(), stream("/b", state="waiting", lag_ms=None)))
    assert found["relay_listeners"] == {(): 3.0}
    assert found["relay_joins_total"] == {(): 5.0}
    assert found["relay_shard_listeners"] == {("0",): 3.0}
    assert found["relay_stream_live"] == {("/live",): 1.0, ("/b",): 0.0}
    assert found["relay_stream_lag_ms"] == {("/live",): 0.0}
    assert found["relay_stream_sent_bytes_total"] == {("/live",): 1000.0, ("/b",): 1000.0}
    assert found["relay_uptime_s"] == {(): 12.5}


def test_gaps_have_a_cause() -> None:
    """Four series a mount at most."""
    desk = FakeDesk(stream(gaps_total={"source": 2, "hop": 1}), stream("/b"))
    assert scrape(desk)["relay_stream_gaps_total"] == {
        ("source", "/live"): 2.0,
        ("hop", "/live"): 1.0,
    }


def test_each_upstream_has_its_label() -> None:
    """Its address; a lost one is not alive."""
    desk = FakeDesk()
    row = {"feeds": 2, "load": 9, "lost_total": 1, "sign_age_ms": 13}
    desk.more["upstreams"] = [
        {"address": "tcp://a:9000", "state": "up", **row},
        {"address": "tcp://b:9000", "state": "lost", **row, "sign_age_ms": None},
    ]
    found = scrape(desk)
    assert found["relay_upstream_alive"] == {("tcp://a:9000",): 1.0, ("tcp://b:9000",): 0.0}
    assert found["relay_upstream_sign_age_ms"] == {("tcp://a:9000",): 13.0}
    assert found["relay_upstream_lost_total"] == {("tcp://a:9000",): 1.0, ("tcp://b:9000",): 1.0}


def test_histograms_have_edges_in_seconds_and_every_count_below() -> None:
    """The engine's own edges, 1.024 ms and its doublings; nothing is counted that is not below."""
    found = scrape(FakeDesk(stream()))
    join = found["relay_join_seconds_bucket"]
    edges = [float(le) for (le,) in join]
    assert edges == [1024 * 2**i / 1e6 for i in range(16)] + [float("inf")]
    assert list(join.values())[:3] == [1.0, 4.0, 5.0]
    assert join[("+Inf",)] == found["relay_join_seconds_count"][()] == 5.0
    assert found["relay_join_seconds_sum"] == {(): 0.009}
    busy = found["relay_busy_percent_bucket"]
    assert [float(le) for (le,) in busy] == [*range(10, 101, 10), float("inf")]
    assert (busy[("10.0",)], busy[("20.0",)], busy[("+Inf",)]) == (28.0, 30.0, 30.0)
    assert found["relay_busy_percent_sum"] == {(): 90.0}
    assert found["relay_lateness_seconds_count"] == {(): 0.0}


def test_two_nodes_in_a_process_do_not_meet() -> None:
    """Each has a registry of its own."""
    assert scrape(FakeDesk(stream())) != scrape(FakeDesk())
    assert scrape(FakeDesk(stream())) == scrape(FakeDesk(stream()))


def test_labels_from_strangers_stay_labels() -> None:
    """A mount with quotes and backslashes does not break out of its label."""
    mount = f'/{HOSTILE}\\"}} 1'
    assert (mount,) in scrape(FakeDesk(stream(mount)))["relay_stream_listeners"]


def families(text: str) -> list[tuple[str, str, str]]:
    """(name, kind, help) of each family, in order."""
    helps = re.findall(r"^# HELP (\w+) (.*)$", text, re.MULTILINE)
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    return [(name, kinds[name], help_) for name, help_ in helps]


@pytest.mark.core
async def test_the_docs_have_every_metric_that_a_node_exposes() -> None:
    """The table of docs/http-api.md is the one of a node with shards, streams and an upstream."""
    async with (
        relay.Node(http="127.0.0.1:0", backbone="tcp://127.0.0.1:0") as origin,
        origin.source("/live", content_type="audio/mpeg"),
        relay.Node("127.0.0.1:0", upstream=origin.backbone_address or "") as edge,
    ):
        async with asyncio.timeout(10):
            while not (facts := edge.facts()).streams:
                await asyncio.sleep(0.05)
        told = families(exposition(lambda: facts)().decode())
        counted = {name for name in facts.counters if name != "shards"}
        assert set(facts.measured) == {"join", "lateness", "gap", "skip", "busy"}
    documented = ROW.findall(PAGE.read_text())
    assert documented == told
    named = {name.removeprefix("relay_") for name, _, _ in told}
    of_shards = {
        "turns_total", "busy_us_total", "late_us_max", "behind_us_total", "pace_ms",
        "pace_changes_total", "pace_moves_total",
    }  # fmt: skip
    assert counted - of_shards <= named, "give these a line in relay/web/metrics.py"


@pytest.mark.core
async def test_a_node_without_upstream_tells_nothing_of_one() -> None:
    """An upstream that is not there is neither up nor down."""
    async with relay.Node(http="127.0.0.1:0") as node:
        facts: Facts = node.facts()
    text = exposition(lambda: facts)().decode()
    assert "relay_upstream_up" not in text
    assert "relay_directory_known" not in text
    assert "relay_turns_total" not in text
    assert 'relay_shard_turns_total{shard="0"}' in text
