"""Call-outs: what is asked and answered, who waits for whom, and what is told of those who left."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools.clock import FakeClock
from tools.engines import Programme, get, read_all, read_until, running
from tools.nodes import wait_until
from tools.script import ALLOW, Script

from relay import listeners
from relay.callouts import (
    CALLS_MAX,
    ENDED_MAX,
    FIELD_BYTES_MAX,
    NOTES_MAX,
    QUEUES,
    QUIET_S,
    TIMELIMIT_S_MAX,
    Answer,
    Book,
    Callouts,
    SourceCallouts,
    Who,
    form,
    read_answer,
    who_asks,
)
from relay.config import Config
from relay.errors import RelayError
from relay.source_http import Request, parse_head

WHO = Who("/live?token=1", "1.2.3.4", "VLC/3.0", "joe", "pw")

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def script() -> Iterator[Script]:
    """An operator's script."""
    with Script() as made:
        yield made


class House:
    """An engine that ends listeners, as far as call-outs know one."""

    def __init__(self, *there: int) -> None:
        self.there = set(there)
        self.asked: list[list[int]] = []
        self.stuck = False

    async def end(self, numbers: list[int]) -> set[int]:
        """Those of these who are there."""
        self.asked.append(numbers)
        if self.stuck:
            raise RelayError("the engine did not answer")
        found = self.there & set(numbers)
        self.there -= found
        return found


def house(
    script: Script, clock: Callable[[], float], engine: House | None = None, **settings: Any
) -> Callouts:
    """The call-outs of a node whose every mount asks the script."""
    url = script.url.replace("http://", "http://user:hunter2@")
    names = ("listener_add", "listener_remove", "mount_add", "mount_remove", "stream_auth")
    defaults = {**dict.fromkeys(names, url), "callout_timeout_s": 1.0, **settings}
    config = Config.load(overrides={"defaults": defaults}, environ={})
    end = (engine or House()).end
    return Callouts(config, agent="Relay/1", where=lambda: ("radio", 8000), end=end, clock=clock)


# --- pure ---


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"icecast-auth-user": "1"}, Answer(True, 0, "")),
        ({"Icecast-Auth-User": " 1 ", "ICECAST-AUTH-TIMELIMIT": "300"}, Answer(True, 300, "")),
        ({"icecast-auth-user": "0", "icecast-auth-message": "no"}, Answer(False, 0, "no")),
        ({"icecast-auth-user": "10"}, Answer(False, 0, "")),
        ({}, Answer(False, 0, "")),
        ({"icecast-auth-user": "1", "icecast-auth-timelimit": "-5"}, Answer(True, 0, "")),
        ({"icecast-auth-user": "1", "icecast-auth-timelimit": "1e9"}, Answer(True, 0, "")),
        (
            {"icecast-auth-user": "1", "icecast-auth-timelimit": "999999999"},
            Answer(True, TIMELIMIT_S_MAX, ""),
        ),
        (
            {"icecast-auth-message": "a\r\nb\0" + "x" * 999},
            Answer(False, 0, "a  b " + "x" * 195),
        ),
    ],
)
def test_header_lines_are_the_answer(headers: dict[str, str], answer: Answer) -> None:
    """Names in any case; nothing lets in but a 1; bounded, on one line."""
    assert read_answer(headers) == answer


def test_a_question_has_icecasts_fields() -> None:
    """By their names, the mount with its query."""
    fields = form("listener_add", "radio", 8000, 7, WHO)
    assert fields == {
        "action": "listener_add", "server": "radio", "port": "8000", "client": "7",
        "mount": "/live?token=1", "user": "joe", "pass": "pw", "ip": "1.2.3.4", "agent": "VLC/3.0",
    }  # fmt: skip


@given(st.text(max_size=2000), st.text(max_size=100))
def test_what_a_listener_says_is_bounded_and_on_one_line(agent: str, user: str) -> None:
    """Nothing of it becomes another field or line."""
    fields = form("listener_add", "r", 1, 1, Who("/x", "::1", agent, user, "p"))
    assert all(value.isprintable() for value in fields.values())
    assert all(len(value.encode()) <= FIELD_BYTES_MAX for value in fields.values())


def test_who_asks_is_read_from_the_request() -> None:
    """Basic credentials and query; without any they are empty."""
    headers = {"authorization": "Basic am9lOnB3", "user-agent": "VLC/3.0"}
    assert who_asks("/live", {"token": "1"}, headers, "1.2.3.4") == WHO
    assert who_asks("/live", {}, {}, "") == Who("/live", "", "", "", "")


def test_the_book_forgets_the_oldest_beyond_its_bound(clock: FakeClock) -> None:
    """Memory has an end, whatever the engine fails to tell."""
    book = Book(live_max=3)
    tickets = [book.ticket() for _ in range(5)]
    for ticket in tickets:
        book.enter(ticket, "/x", WHO, 0, clock())
    assert len(book) == 3
    assert book.left(tickets[0]) is None
    assert book.left(tickets[4]) is not None


def test_who_never_came_is_told_after_a_minute(clock: FakeClock) -> None:
    """Let in, and gone before a shard had him."""
    book = Book()
    came, lost = book.ticket(), book.ticket()
    for ticket in (came, lost):
        book.enter(ticket, "/x", WHO, 0, clock())
    book.joined(came, 5)
    clock.advance(s=59)
    assert book.never_came(clock()) == []
    clock.advance(s=2)
    assert [ticket for ticket, _ in book.never_came(clock())] == [lost]
    assert book.never_came(clock()) == []
    assert len(book) == 1


def test_a_time_limit_waits_for_who_does_not_listen_yet(clock: FakeClock) -> None:
    """He is told as soon as he can be ended, and again where that failed."""
    book = Book()
    ticket = book.ticket()
    book.enter(ticket, "/x", WHO, 10, clock())
    clock.advance(s=11)
    assert book.overdue(clock()) == []
    book.joined(ticket, 5)
    clock.advance(s=1)
    assert [t for t, _ in book.overdue(clock())] == [ticket]
    assert book.overdue(clock()) == []
    book.again(ticket, clock())
    clock.advance(s=1)
    assert [t for t, _ in book.overdue(clock())] == [ticket]
    book.left(ticket)
    book.again(ticket, clock())
    clock.advance(s=2)
    assert book.overdue(clock()) == []


# --- with a script ---


def test_a_listener_is_let_in_with_a_ticket_and_his_end_is_told(
    script: Script, clock: FakeClock
) -> None:
    """Duration and bytes with the same client number; the URL's account goes along."""

    async def inside() -> None:
        made = house(script, clock)
        answer, ticket = await made.may_listen("/live", WHO)
        assert answer.is_allowed
        assert ticket
        made.see([(0, 1, 77, "1.2.3.4", 9, 0, 0, None, ticket)])
        made.see([(0, 1, 77, "1.2.3.4", 9, 12_900_000, 4711, "closed", ticket)])
        made.see([(0, 1, 77, "1.2.3.4", 9, 1, 1, "closed", 0)])
        await made.close()
        assert made.counters["notes"] == 1

    asyncio.run(inside())
    add, remove = script.asked
    assert add["action"] == "listener_add"
    assert add["agent"] == "VLC/3.0"
    assert remove["action"] == "listener_remove"
    assert (remove["duration"], remove["sent"]) == ("12", "4711")
    assert add["client"] == remove["client"]
    assert all(head["authorization"].startswith("Basic ") for head in script.heads)


def test_who_is_refused_gets_no_ticket(script: Script, clock: FakeClock) -> None:
    """And hears why, as the script puts it."""
    script.answer = lambda fields: {"icecast-auth-message": "pay first"}

    async def inside() -> tuple[Answer, int]:
        made = house(script, clock)
        try:
            return await made.may_listen("/live", WHO)
        finally:
            await made.close()

    assert asyncio.run(inside()) == (Answer(False, 0, "pay first"), 0)


@pytest.mark.parametrize(("policy", "allowed"), [("allow", True), ("deny", False)])
@pytest.mark.parametrize("fault", ["silent", "error", "away"])
def test_an_outage_is_decided_by_the_settings(
    clock: FakeClock, policy: str, allowed: bool, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No answer, a server's error, or nobody there; told once, without the account."""

    async def inside() -> list[bool]:
        with Script() as script:
            made = house(script, clock, on_outage=policy, callout_timeout_s=0.3)
            script.status = 500 if fault == "error" else 200
            script.answer = lambda fields: {}
            if fault == "silent":
                script.silent.set()
            if fault == "away":
                script.close()
            told = [(await made.may_listen("/live", WHO))[0].is_allowed for _ in range(2)]
            await made.close()
            assert made.counters["outages"] == 2
            return told

    assert asyncio.run(inside()) == [allowed, allowed]
    lines = [r.getMessage() for r in caplog.records if "call-out to" in r.getMessage()]
    assert len(lines) == 1
    assert f"on_outage says {policy}" in lines[0]
    assert "hunter2" not in caplog.text


def test_many_questions_wait_for_each_other_within_the_bound(
    script: Script, clock: FakeClock
) -> None:
    """More than CALLS_MAX at once: all get an answer."""

    async def inside() -> int:
        made = house(script, clock, callout_timeout_s=30.0)
        told = await asyncio.gather(*(made.may_listen("/live", WHO) for _ in range(3 * CALLS_MAX)))
        await made.close()
        return sum(answer.is_allowed for answer, _ in told)

    assert asyncio.run(inside()) == 3 * CALLS_MAX


async def turn(made: Callouts) -> None:
    """Housekeeping, and all that it has begun."""
    made.tick([])
    for _ in range(5):
        await asyncio.sleep(0)


def limited(script: Script, clock: FakeClock, engine: House) -> Callouts:
    """Call-outs whose script lets everybody in for 300 s."""
    script.answer = lambda fields: {**ALLOW, "icecast-auth-timelimit": "300"}
    return house(script, clock, engine)


async def let_in(made: Callouts, *ids: int) -> list[int]:
    """Each of these is asked about, and listens; their tickets."""
    tickets = []
    for id_ in ids:
        _, ticket = await made.may_listen("/live", WHO)
        made.see([(0, 1, id_, "", 0, 0, 0, None, ticket)])
        tickets.append(ticket)
    return tickets


def test_time_limits_end_their_listeners(script: Script, clock: FakeClock) -> None:
    """Once he is known to listen and his time is over, all that are due together; each is counted
    once."""
    engine = House(77, 78)

    async def inside() -> None:
        made = limited(script, clock, engine)
        await let_in(made, 77, 78)
        clock.advance(s=299)
        await turn(made)
        assert not engine.asked
        clock.advance(s=2)
        await turn(made)
        await turn(made)
        assert engine.asked == [[77, 78]]
        assert made.counters["limited"] == 2
        await made.close()

    asyncio.run(inside())


def test_who_was_not_there_to_be_ended_is_not_counted_as_ended(
    script: Script, clock: FakeClock
) -> None:
    """Nor asked for again for ever: once his end was told, or at the second look."""
    engine = House()

    async def inside() -> None:
        made = limited(script, clock, engine)
        told, _ = await let_in(made, 77, 78)
        clock.advance(s=301)
        await turn(made)
        made.see([(0, 1, 77, "", 0, 1, 1, "closed", told)])
        clock.advance(s=2)
        await turn(made)
        for _ in range(5):
            clock.advance(s=2)
            await turn(made)
        assert engine.asked == [[77, 78], [78]]
        assert made.counters["limited"] == 0
        await made.close()
        assert len(script.of("listener_remove")) == 1

    asyncio.run(inside())


def test_an_engine_that_does_not_answer_is_asked_again(script: Script, clock: FakeClock) -> None:
    """A second later, and nobody is counted or forgotten meanwhile."""
    engine = House(77)
    engine.stuck = True

    async def inside() -> None:
        made = limited(script, clock, engine)
        await let_in(made, 77)
        clock.advance(s=301)
        for _ in range(3):
            await turn(made)
            clock.advance(s=2)
        assert engine.asked == [[77]] * 3
        assert made.counters["limited"] == 0
        engine.stuck = False
        await turn(made)
        assert made.counters["limited"] == 1
        await made.close()

    asyncio.run(inside())


def test_more_than_one_order_can_hold_are_ended_one_after_the_other(
    script: Script, clock: FakeClock
) -> None:
    """Oldest limit first."""
    engine = House(*range(1, ENDED_MAX + 11))

    async def inside() -> None:
        made = limited(script, clock, engine)
        for id_ in range(1, ENDED_MAX + 11):
            made._book.enter(id_, "/live", WHO, 300, clock())
            made._book.joined(id_, id_)
        clock.advance(s=301)
        await turn(made)
        assert not engine.there & set(range(1, ENDED_MAX + 1))
        await turn(made)
        assert [len(asked) for asked in engine.asked] == [ENDED_MAX, 10]
        assert made.counters["limited"] == ENDED_MAX + 10
        await made.close()

    asyncio.run(inside())


@pytest.mark.core
def test_a_listener_who_was_moved_is_ended_on_a_real_engine(
    script: Script, clock: FakeClock
) -> None:
    """His time goes on running on the other mount; who has left is not counted."""
    script.answer = lambda fields: {**ALLOW, "icecast-auth-timelimit": "300"}

    async def inside() -> None:
        with running() as (engine, _):
            for mount in ("/live", "/other"):
                Programme(engine, mount).push_seconds(1)
            engine.keep_visits(True)
            made = house(script, clock)
            made._end = lambda numbers: listeners.end_wherever(engine, numbers)
            socks = []
            for _ in range(2):
                _, ticket = await made.may_listen("/live", WHO)
                ours, theirs = socket.socketpair()
                engine.admit(theirs.detach(), get("/live"), ticket=ticket)
                await asyncio.to_thread(ours.settimeout, 10.0)
                await asyncio.to_thread(read_until, ours, 500)
                socks.append(ours)
            made.see(engine.take_visits()[0])
            roll = await listeners.roll(engine, "/live")
            assert await listeners.move(engine, "/live", "/other", roll.listeners[0].id) == (1, 0)
            socks[1].close()
            await asyncio.to_thread(wait_until, lambda: engine.snapshot()["listeners"] == 1)
            clock.advance(s=301)
            made.tick([])
            assert made._ending is not None
            await made._ending
            assert made.counters["limited"] == 1
            await asyncio.to_thread(read_all, socks[0])
            assert engine.snapshot()["ended_killed_total"] == 1
            made.see(engine.take_visits()[0])
            socks[0].close()
            await made.close()
            assert len(script.of("listener_remove")) == 2

    asyncio.run(inside())


def test_mounts_that_come_and_go_are_told_in_order(script: Script, clock: FakeClock) -> None:
    """Each change once."""

    async def inside() -> None:
        made = house(script, clock)
        made.tick(["/a", "/b"])
        made.tick(["/a", "/b"])
        made.tick(["/b"])
        made.tick(["/a", "/b"])
        await made.close()

    asyncio.run(inside())
    told = [fields["action"] for fields in script.asked if fields["mount"] == "/a"]
    assert told == ["mount_add", "mount_remove", "mount_add"]
    assert [f["action"] for f in script.asked if f["mount"] == "/b"] == ["mount_add"]


def test_notes_that_find_no_room_are_dropped_and_counted(script: Script, clock: FakeClock) -> None:
    """A script that hangs costs neither memory nor anybody's time."""
    script.silent.set()

    async def inside() -> None:
        made = house(script, clock, callout_timeout_s=60.0)
        began = time.monotonic()
        for number in range(QUEUES * NOTES_MAX + 100):
            made.tick([f"/{number}"])
        assert made.counters["notes_dropped"] >= 100
        await made.close()
        assert time.monotonic() - began < 20
        assert made.counters["notes"] == 0

    asyncio.run(inside())


def test_nobody_is_asked_where_nothing_is_set(clock: FakeClock) -> None:
    """No URL: everybody may, and nothing is kept."""

    async def inside() -> tuple[Answer, int]:
        made = Callouts(Config(), agent="x", where=lambda: ("", 0), end=House().end, clock=clock)
        return await made.may_listen("/live", WHO)

    assert asyncio.run(inside()) == (Answer(True, 0, ""), 0)


def request(*lines: str, method: str = "PUT", target: str = "/live") -> Request:
    """A source's request."""
    parsed = parse_head("\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode())
    assert parsed is not None
    return parsed[0]


@pytest.mark.parametrize("fault", ["", "deny", "away"])
def test_a_source_is_asked_about_and_refused_while_nobody_answers(
    script: Script, fault: str
) -> None:
    """`on_outage = "allow"` is about listeners: no stranger goes on the air."""
    if fault == "deny":
        script.answer = lambda fields: {}

    async def inside() -> bool:
        timeout_s = 0.5 if fault == "away" else 20.0
        defaults = {"stream_auth": script.url, "on_outage": "allow"}
        defaults["callout_timeout_s"] = timeout_s
        config = Config.load(overrides={"defaults": defaults}, environ={})
        made = SourceCallouts(config, agent="x", where=lambda: ("radio", 8000))
        source = request("Authorization: Basic am9lOnB3", "User-Agent: BUTT")
        assert made.must_ask(source)
        assert not made.must_ask(request())
        assert not made.must_ask(request("Authorization: x", method="POST"))
        assert not made.must_ask(request("Authorization: x", target="/%ff"))
        if fault == "away":
            script.silent.set()
        allowed = await made.may_send(source, "1.2.3.4")
        await made.close()
        return allowed

    assert asyncio.run(inside()) is (fault == "")
    asked = script.of("stream_auth")[0]
    assert (asked["user"], asked["pass"], asked["mount"]) == ("joe", "pw", "/live")
    assert (asked["ip"], asked["agent"]) == ("1.2.3.4", "BUTT")
    assert "admin" not in asked


@pytest.mark.parametrize("fault", ["", "deny", "away"])
@pytest.mark.parametrize(
    ("user", "password", "account"),
    [
        ("joe", "pw", ("joe", "pw")), ("", "pw", ("source", "pw")), ("", "joe:pw", ("joe", "pw")),
        ("", "joe:pw:#7", ("joe", "pw")),
    ],
)  # fmt: skip
def test_who_sets_a_title_is_asked_about_as_a_source_is(
    script: Script, fault: str, user: str, password: str, account: tuple[str, str]
) -> None:
    """With Icecast's `admin=1`; SHOUTcast's password may hold a user, or be the source's."""
    if fault == "deny":
        script.answer = lambda fields: {}

    async def inside() -> bool:
        streams = {"/live": {"stream_auth": script.url}}
        timeout_s = 0.5 if fault == "away" else 20.0
        tables = {"streams": streams, "defaults": {"callout_timeout_s": timeout_s}}
        config = Config.load(overrides=tables, environ={})
        made = SourceCallouts(config, agent="x", where=lambda: ("radio", 8000))
        assert [made.asks_about(mount) for mount in ("/live", "/other", "")] == [True, False, False]
        if fault == "away":
            script.silent.set()
        allowed = await made.may_set_title(Who("/live", "1.2.3.4", "BUTT", user, password))
        await made.close()
        return allowed

    assert asyncio.run(inside()) is (fault == "")
    asked = script.of("stream_auth")[0]
    assert (asked["user"], asked["pass"]) == account
    assert (asked["admin"], asked["mount"], asked["ip"]) == ("1", "/live", "1.2.3.4")


def test_a_script_that_is_away_is_told_of_once_for_all_sources(
    script: Script, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An encoder that comes back each second fills no log; who is refused is counted elsewhere."""
    streams = {name: {"stream_auth": script.url} for name in ("/live", "/talk")}
    config = Config.load(overrides={"streams": streams}, environ={})
    script.close()

    async def inside() -> None:
        made = SourceCallouts(config, agent="x", where=lambda: ("radio", 8000), clock=clock)
        source = request("Authorization: Basic am9lOnB3")
        for _ in range(5):
            assert not await made.may_send(source, "1.2.3.4")
            assert not await made.may_set_title(Who("/talk", "1.2.3.4", "", "joe", "pw"))
        assert len(caplog.records) == 1
        clock.advance(s=QUIET_S)
        assert not await made.may_send(source, "1.2.3.4")
        await made.close()

    asyncio.run(inside())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all("call-out to" in line and "nobody may be the source" in line for line in lines)
