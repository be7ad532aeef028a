"""Who may be a source: SHOUTcast's password lines, and which refusals are news."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_source_door import Bench

from relay.source_gate import QUIET_S, TOLD_MAX

STREAMS = {"/talk": {"shoutcast_sid": 7, "source_password": "own"}, "/b": {"shoutcast_sid": 2}}


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        ("pw", "/stream"), ("source:pw", "/stream"), ("dj:pw", "/stream"), ("pw:#1", "/stream"),
        ("pw:#2", "/b"), ("x:pw:#2", "/b"), ("own:#7", "/talk"), ("x:own:#7", "/talk"),
        ("pw:#7", None), ("own", None), ("own:#2", None), ("pw:#3", None), ("pw:#", None),
        ("", None), (":", None), (":pw", "/stream"), ("pw:", None), ("pw ", None),
    ],
)  # fmt: skip
def test_password_line_names_a_mount(line: str, mount: str | None) -> None:
    """By its id, or the one of `http.shoutcast_mount`; with the password of that very mount."""
    gate = Bench(streams=STREAMS).gate
    assert gate.shoutcast_mount(line) == mount
    assert gate.counters["refused_password_total"] == (mount is None)


@pytest.mark.parametrize("password", ["pw:#12", "pw:#1", "a:b:#7"])
def test_password_may_end_as_an_id_does(password: str) -> None:
    """It was the operator's to choose; with an id behind it, too."""
    gate = Bench(streams=STREAMS, source_password=password).gate
    for said in (password, f"dj:{password}"):
        assert gate.shoutcast_mount(said) == "/stream"
        assert gate.shoutcast_mount(f"{said}:#2") == "/b"
    assert gate.shoutcast_mount("pw") is None
    assert gate.counters["refused_password_total"] == 1


@given(st.text(max_size=40))
def test_no_other_line_gets_in(line: str) -> None:
    """Whatever is typed: without the password there is no mount."""
    if "pw" not in line and "own" not in line:
        assert Bench(streams=STREAMS).gate.shoutcast_mount(line) is None


def test_refusals_of_invented_mounts_do_not_fill_the_log() -> None:
    """TOLD_MAX lines in QUIET_S, however many mounts are tried; later there are new ones."""
    gate = Bench().gate
    assert sum(gate.is_news(f"/{i}", 401, 100.0) for i in range(3 * TOLD_MAX)) == TOLD_MAX
    assert not gate.is_news("/0", 401, 100.0 + QUIET_S - 1)
    assert gate.is_news("/0", 401, 100.0 + QUIET_S)
