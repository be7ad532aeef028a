"""The flight recorder: what is kept, what is counted together; that no reader gets half of it."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe import RECORD_BYTES, RECORD_KINDS, FlightRecorder
from relay._probe_backbone import why_gone, why_switched

from relay import recorder
from relay.recorder import KINDS, NOBODY, Record, document, seconds, sentence, span

LOST, SKIP, REFUSE = RECORD_KINDS["lost"], RECORD_KINDS["skip"], RECORD_KINDS["refuse"]
MINUTE_US = 60_000_000
UP, LOST_STATE, VERSION, LOOP = 1, 2, 3, 4


def test_the_words_are_those_of_the_core() -> None:
    """Each kind that the core writes has a name here, and none is left over."""
    assert {kind.name: number for number, kind in KINDS.items()} == RECORD_KINDS
    assert RECORD_BYTES == 64
    for number, kind in KINDS.items():
        for reason in kind.reasons or ("",):
            told = {"kind": kind.name, "reason": reason} | dict.fromkeys(kind.fields, 1)
            told |= {"upstream": "tcp://a:1", "left": "tcp://b:1"}
            assert "?" not in sentence(told), (number, sentence(told))


def test_a_rare_record_is_told_at_once_with_both_clocks() -> None:
    """Monotonic time as it was handed in, the wall clock as of the last tick."""
    one = FlightRecorder(4, 4)
    one.tick(1000, 5_001_000)
    one.put(LOST, 1500, stream=7, reason=1, parent=2, a=10, b=20, c=30)
    (told,), common = one.told()
    assert common == []
    assert (told["at_us"], told["wall_us"], told["stream"], told["count"]) == (
        1500,
        5_001_500,
        7,
        1,
    )
    assert (told["kind"], told["reason"], told["parent"]) == (LOST, 1, 2)
    assert (told["a"], told["b"], told["c"]) == (10, 20, 30)
    one.tick(200_000, 1_200_000)  # the clock was set back
    one.put(LOST, 200_500)
    assert one.told()[0][1]["wall_us"] == 1_200_500


def test_an_attack_is_one_record_for_each_like_and_window() -> None:
    """Ten thousand refusals in a second: ten records, and none is missing from the counts."""
    one = FlightRecorder(4, 64)
    for i in range(10_000):
        one.put(REFUSE, i * 100, reason=i % 2, a=404, b=i, c=i)
        if i % 1000 == 999:
            one.tick(i * 100, 0)
    one.tick(2_000_000, 0)
    told = one.told()[1]
    assert len(told) <= 22
    assert sum(record["count"] for record in told) == 10_000
    assert {record["reason"] for record in told} == {0, 1}
    assert max(record["b"] for record in told) == 9_999  # the largest is kept


def test_a_storm_of_the_common_never_washes_out_the_rare() -> None:
    """More streams skip than fit anywhere; the one switch before is still there."""
    one = FlightRecorder(2, 8)
    one.put(RECORD_KINDS["switch"], 1, stream=1)
    for i in range(10_000):
        one.put(SKIP, 10 + i, stream=i)
    one.tick(MINUTE_US, 0)
    rare, common = one.told()
    assert [record["kind"] for record in rare] == [RECORD_KINDS["switch"]]
    assert len(common) == 8
    assert one.washed_total == 10_000 - 8


def test_what_is_overwritten_young_is_counted_and_what_is_old_is_not() -> None:
    """Ten minutes are promised."""
    one = FlightRecorder(2, 2)
    for minute in (0, 1, 10, 11):
        one.put(LOST, minute * MINUTE_US)
    assert one.washed_total == 0
    one.put(LOST, 12 * MINUTE_US)
    assert one.washed_total == 1
    assert [record["at_us"] // MINUTE_US for record in one.told()[0]] == [11, 12]


@given(st.integers(0, 40), st.integers(0, 50), st.integers(0, 20))
def test_a_reader_goes_on_where_it_was(written: int, number: int, newest: int) -> None:
    """From any number on: what is still there, the newest of it, in order."""
    one = FlightRecorder(16, 2)
    for i in range(written):
        one.put(LOST, i, a=i)
    first = max(number, written - min(newest, 16))
    assert [record["a"] for record in one.told(number, newest)[0]] == list(range(first, written))


def test_no_reader_gets_half_a_record() -> None:
    """A writer that laps its reader all the time; what is read is whole."""
    one = FlightRecorder(16, 2)
    records = 300_000
    writer = threading.Thread(target=one.write_until, args=(records,))
    writer.start()
    whole, torn = one.read_torn(records)
    writer.join()
    assert torn == 0
    assert whole > 0


def test_why_another_parent_feeds() -> None:
    """From what was true before it took over."""
    both, up = (True, True), (UP, UP)
    reasons = recorder.SWITCHES
    assert reasons[why_switched(8, 0, up, both)] == "first"
    assert reasons[why_switched(0, 1, up, both, joining=True)] == "first"
    assert reasons[why_switched(0, 1, (LOST_STATE, UP), both)] == "lost"
    assert reasons[why_switched(0, 1, up, (False, True))] == "lost"
    assert reasons[why_switched(0, 1, up, both, hear_us=5)] == "silent"
    assert reasons[why_switched(0, 1, up, both, trying=1)] == "better"
    assert reasons[why_switched(0, 1, up, both)] == "unfit"


def test_why_an_upstream_is_gone() -> None:
    """Silence is a loss after silence_ms; a goodbye comes with a sign of life."""
    reasons = recorder.GONE
    assert reasons[why_gone(LOST_STATE, 400_001, 400_000)] == "silent"
    assert reasons[why_gone(LOST_STATE, 0, 400_000)] == "goodbye"
    assert reasons[why_gone(LOOP, 900_000, 400_000)] == "loop"
    assert reasons[why_gone(VERSION, 900_000, 400_000)] == "version"


def record(kind: str, **fields: int) -> Record:
    """A record with nothing in it but what is said."""
    empty = dict.fromkeys(Record._fields, 0) | {"parent": NOBODY, "left": NOBODY, "times": 1}
    return Record(**(empty | {"kind": RECORD_KINDS[kind], "wall_us": 5} | fields))


def test_a_record_in_words() -> None:
    """Streams by their mounts, upstreams by their addresses; nothing that the kind does not say."""
    upstreams = ["tcp://a:9", "tcp://b:9"]
    one = record("switch", stream=9, reason=1, parent=1, left=0, a=2, b=120, c=412_000)
    told = document(one, {9: "/live"}.get, upstreams)
    assert told == {
        "wall_us": 5, "kind": "switch", "stream": "/live", "reason": "lost",
        "upstream": "tcp://b:9", "left": "tcp://a:9", "hops": 2, "load": 120,
        "silence_us": 412_000,
    }  # fmt: skip
    assert sentence(told, lambda address: address.replace("//b", "//edge")) == (
        "tcp://a:9 is lost: switched to tcp://edge:9 (2 hops, load 120 ‰), nothing new for 412 ms"
    )
    unknown = document(record("lost", stream=9, reason=200, parent=8), {}.get, upstreams)
    assert unknown["stream"] == "key 0000000000000009"
    assert "reason" not in unknown
    assert "upstream" not in unknown


# few letters: the tables of all of Unicode take a busy machine a minute
odd = st.none() | st.booleans() | st.integers() | st.floats()
odd |= st.text("a{}\x1b\n\u202eé", max_size=9)
FIELDS = ["kind", "reason", "upstream", "a_us", "count", "load"]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), odd))
def test_any_record_from_outside_is_one_printable_line(told: dict[str, object]) -> None:
    """No terminal is steered, nothing raises."""
    line = sentence(told | {"upstream": "\x1b[2J"})
    assert line.isprintable()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("0.5", 0.5), ("5 m", None), ("", None),
     ("-1", None), ("1e9", None), ("٣", None), ("9" * 10, None)],
)  # fmt: skip
def test_a_time_as_people_write_it(text: str, wanted: float | None) -> None:
    """Seconds where no unit stands."""
    assert seconds(text) == wanted


def test_a_span_for_people() -> None:
    """Three digits, in the unit that fits."""
    assert [span(us) for us in (0, 400, 412_000, 2_140_000, 660e6)] == [
        "0 ms", "0.4 ms", "412 ms", "2.14 s", "11 min",
    ]  # fmt: skip
