"""/metrics: what Prometheus reads."""

from __future__ import annotations

from fake_desk import HOSTILE, FakeDesk, stream
from prometheus_client.parser import text_string_to_metric_families

from relay.web.metrics import exposition


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


def test_two_nodes_in_a_process_do_not_meet() -> None:
    """Each has a registry of its own."""
    assert scrape(FakeDesk(stream())) != scrape(FakeDesk())
    assert scrape(FakeDesk(stream())) == scrape(FakeDesk(stream()))


def test_labels_from_strangers_stay_labels() -> None:
    """A mount with quotes and backslashes does not break out of its label."""
    mount = f'/{HOSTILE}\\"}} 1'
    assert (mount,) in scrape(FakeDesk(stream(mount)))["relay_stream_listeners"]
