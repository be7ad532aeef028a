"""Public directories: when a stream is added, touched and removed, and what goes wrong there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools.clock import FakeClock
from tools.script import Script

from relay.backoff import Backoff
from relay.config import Config
from relay.errors import ConfigError
from relay.urls import parse_http_url
from relay.yp import (
    CEILING_S,
    LISTED_MAX,
    SETTLE_S,
    TOUCH_S,
    TOUCH_S_MAX,
    TOUCH_S_MIN,
    Directories,
    Listing,
    Station,
    Verdict,
    form,
    read_verdict,
)

SHOW = Station("/live", "A show", "audio/mpeg", "talk", "Words", "http://s", "64", "Title", 3)
TAKEN = Verdict(True, "sid1", 100.0, "")

pytestmark = pytest.mark.timeout(60)


def listing(clock: FakeClock) -> Listing:
    """One whose waits are the longest that the back-off draws."""
    made = Listing(clock(), Backoff(draw=lambda low, high: high, ceiling_s=CEILING_S))
    clock.advance(s=SETTLE_S)
    return made


def test_a_stream_is_added_touched_and_removed(clock: FakeClock) -> None:
    """Once it has lasted; as often as the directory says; when it is not wanted any more."""
    made = Listing(clock())
    assert made.act(clock()) is None
    clock.advance(s=SETTLE_S)
    assert made.act(clock()) == "add"
    assert made.taken("add", TAKEN, clock())
    assert made.act(clock()) is None
    clock.advance(s=100)
    assert made.act(clock()) == "touch"
    assert made.taken("touch", Verdict(True, "", 60.0, ""), clock())
    assert made.sid == "sid1"
    clock.advance(s=60)
    assert made.act(clock()) == "touch"
    made.is_wanted = False
    assert made.act(clock()) == "remove"
    made.taken("remove", TAKEN, clock())
    assert made.is_over


def test_one_that_never_was_listed_needs_no_removal(clock: FakeClock) -> None:
    """It came and went before its turn."""
    made = Listing(clock())
    made.is_wanted = False
    assert made.act(clock()) is None
    assert made.is_over


def test_failures_are_tried_again_later_and_later(clock: FakeClock) -> None:
    """At least TOUCH_S_MIN, at most CEILING_S; a success begins anew."""
    made = listing(clock)
    waits = []
    for _ in range(12):
        assert made.act(clock()) == "add"
        made.failed("add", clock())
        waited = 0
        while made.act(clock()) is None:
            clock.advance(s=1)
            waited += 1
        waits.append(waited)
    assert waits[0] == TOUCH_S_MIN
    assert waits[-1] <= CEILING_S
    assert waits == sorted(waits)
    made.taken("add", TAKEN, clock())
    made.failed("touch", clock())
    clock.advance(s=TOUCH_S_MIN)
    assert made.act(clock()) == "touch"


def test_a_directory_that_has_forgotten_us_is_told_anew(clock: FakeClock) -> None:
    """A refused touch ends the session; the stream is added again."""
    made = listing(clock)
    made.taken("add", TAKEN, clock())
    clock.advance(s=100)
    assert not made.taken("touch", Verdict(False, "", TOUCH_S, "who?"), clock())
    clock.advance(s=CEILING_S)
    assert made.act(clock()) == "add"


@pytest.mark.parametrize(
    ("headers", "verdict"),
    [
        ({"YPResponse": "1", "SID": "7", "TouchFreq": "300"}, Verdict(True, "7", 300, "")),
        ({"ypresponse": "1"}, Verdict(True, "", TOUCH_S, "")),
        ({"YPResponse": "0", "YPMessage": "no\r\nX: y"}, Verdict(False, "", TOUCH_S, "no  X: y")),
        ({}, Verdict(False, "", TOUCH_S, "")),
        ({"YPResponse": "1", "TouchFreq": "0"}, Verdict(True, "", TOUCH_S_MIN, "")),
        ({"YPResponse": "1", "TouchFreq": "999999"}, Verdict(True, "", TOUCH_S_MAX, "")),
        ({"YPResponse": "1", "TouchFreq": "1e5"}, Verdict(True, "", TOUCH_S, "")),
        ({"YPResponse": "1", "SID": "x" * 999}, Verdict(True, "x" * 128, TOUCH_S, "")),
    ],
)
def test_answers_are_read_within_bounds(headers: dict[str, str], verdict: Verdict) -> None:
    """A directory cannot make us call all the time, nor keep what it likes."""
    assert read_verdict(headers) == verdict


@given(st.text(max_size=2000))
def test_what_a_source_says_of_itself_stays_one_field(text: str) -> None:
    """Bounded, on one line."""
    told = SHOW._replace(name=text, title=text, genre=text)
    for act in ("add", "touch"):
        for value in form(act, "s", told, "http://a/x").values():
            assert value.isprintable()
            assert len(value.encode()) <= 512


# --- with a directory ---


@pytest.fixture
def script() -> Iterator[Script]:
    """A made-up directory."""
    with Script() as made:
        made.answer = lambda fields: {"YPResponse": "1", "SID": "s1", "TouchFreq": "60"}
        yield made


async def until(done: object) -> None:
    """Let calls be made."""
    assert callable(done)
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.01)


def test_a_directory_is_told_what_it_needs(script: Script, clock: FakeClock) -> None:
    """Where to listen, encoded; titles and listeners with a touch; a removal at the end."""

    async def inside() -> None:
        made = Directories([parse_http_url(script.url)], "http://radio:8000", "Relay/1", clock)
        show = SHOW._replace(mount="/a show")
        made.tick([show])
        clock.advance(s=SETTLE_S)
        made.tick([show])
        await until(lambda: made.snapshot()["yp_listed"] == 1)
        clock.advance(s=60)
        made.tick([show._replace(title="Next")])
        await until(lambda: made.snapshot()["yp_touched_total"] == 1)
        await made.close()
        assert made.snapshot()["yp_removed_total"] == 1

    asyncio.run(inside())
    add, touch, remove = script.asked
    assert (add["action"], add["listenurl"]) == ("add", "http://radio:8000/a%20show")
    assert (add["sn"], add["type"], add["b"]) == ("A show", "audio/mpeg", "64")
    assert (touch["action"], touch["st"], touch["listeners"]) == ("touch", "Next", "3")
    assert remove == {"action": "remove", "sid": "s1"}


def test_a_directory_that_refuses_is_told_once_in_the_log(
    script: Script, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted each time."""
    script.answer = lambda fields: {"YPResponse": "0", "YPMessage": "bad stream"}

    async def inside() -> None:
        made = Directories([parse_http_url(script.url)], "http://radio:8000", "Relay/1", clock)
        made.tick([SHOW])
        for turn in range(3):
            clock.advance(s=CEILING_S)
            made.tick([SHOW])
            await until(lambda at=turn: made.snapshot()["yp_failures_total"] == at + 1)
        await made.close()

    asyncio.run(inside())
    assert [r.getMessage() for r in caplog.records if "bad stream" in r.getMessage()][1:] == []
    assert {fields["action"] for fields in script.asked} == {"add"}


def test_so_many_streams_are_listed_and_no_more(script: Script, clock: FakeClock) -> None:
    """A bound like everywhere."""

    async def inside() -> int:
        made = Directories([parse_http_url(script.url)], "http://radio:8000", "Relay/1", clock)
        every = [SHOW._replace(mount=f"/{number}") for number in range(LISTED_MAX + 50)]
        made.tick(every)
        clock.advance(s=SETTLE_S)
        made.tick(every)
        await until(lambda: made.snapshot()["yp_listed"] == LISTED_MAX)
        await asyncio.sleep(0.1)
        listed = made.snapshot()["yp_listed"]
        script.close()
        await made.close()
        return listed

    assert asyncio.run(inside()) == LISTED_MAX


def test_a_directory_needs_to_know_where_listeners_go() -> None:
    """A setting without the other is refused; both together are taken, the door's name too."""
    url = {"url": "http://dir.example/yp"}
    with pytest.raises(ConfigError, match="base_url"):
        Config.load(overrides={"directory": url}, environ={})
    told = Config.load(overrides={"directory": {**url, "base_url": "http://r:80"}}, environ={})
    assert told.directory.url == ("http://dir.example/yp",)
    told = Config.load(overrides={"directory": url, "http": {"base_url": "https://r"}}, environ={})
    assert (told.directory.base_url, told.http.base_url) == (None, "https://r")
    for wrong in ("radio.example", "ftp://r", "https://r?x", "https://", "https://r:99999"):
        with pytest.raises(ConfigError, match=r"http\.base_url"):
            Config.load(overrides={"http": {"base_url": wrong}}, environ={})
