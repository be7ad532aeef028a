"""What an engine's threads put into the flight recorder, and that an attack stays small there."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from tools.engines import Programme, answer, ask, body_of, get, running, slow
from tools.nodes import wait_until

from relay import recorder
from relay.recorder import KINDS, Record

pytestmark = pytest.mark.core


def told(engine: Any, kind: str, cursors: list[int] | None = None) -> list[Record]:
    """All records of that kind."""
    records = [Record(*one) for one in engine.recorded([] if cursors is None else cursors)]
    return [one for one in records if KINDS[one.kind].name == kind]


def test_a_skip_is_recorded_with_its_inputs() -> None:
    """How much, and how busy the shard was; the epoch before it, by both clocks."""
    config = {"burst_ms": 500, "lag_ms_max": 2000, "ring_s": 30}
    with running(config=config) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        live.push_seconds(0.6)
        with slow(address) as sock:
            body_of(sock)
            live.push_seconds(25)
            wait_until(lambda: engine.snapshot()["short_writes_total"] > 0)
            sock.settimeout(0.2)

            def read_until_it_skips() -> list[Record]:
                with contextlib.suppress(TimeoutError):
                    sock.recv(65_536)
                return told(engine, "skip")

            (skip,) = wait_until(read_until_it_skips, 30.0)
        live.stream.end()
        (begun,), (ended,) = told(engine, "epoch_begun"), told(engine, "epoch_ended")
    assert (skip.reason_name, skip.times, skip.stream) == ("lag", 1, live.stream.key)
    assert skip.b > 15_000_000
    assert skip.a <= 1000
    assert begun.at_us < skip.at_us < ended.at_us
    assert abs(skip.wall_us - time.time_ns() // 1000) < 60_000_000
    assert (ended.a, ended.b) == (begun.a, live.maker.sequence)


def test_a_flood_of_refusals_is_a_handful_of_records() -> None:
    """Counted, each reason for itself, and nothing is read twice."""
    with running() as (engine, address):
        cursors: list[int] = []
        for number in range(60):
            assert answer(ask(address, get(f"/no-{number}")))[0] == 404
        wait_until(lambda: sum(one.times for one in told(engine, "refuse")) == 60)
        found = told(engine, "refuse", cursors)
        assert told(engine, "refuse", cursors) == []
        assert {(one.reason_name, one.a, one.stream) for one in found} == {("not_found", 404, 0)}
        assert engine.washed_total == 0
        engine.note(recorder.GAP, 0, stream=5, a=7)
        assert [one.a for one in told(engine, "gap", cursors)] == [7]
        assert engine.recorded([], since_us=time.monotonic_ns() // 1000 + 1_000_000) == []
