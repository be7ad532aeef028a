"""Who may listen: what the hook is told, what becomes of each answer, and the bounds."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import RelayError
from relay.joining import (
    ASKED_MAX,
    BUSY,
    NOBODY,
    Allow,
    Askers,
    Deny,
    Join,
    Redirect,
    read_join,
    reply_to,
)

HEAD = b"GET /live?token=a%20b HTTP/1.1\r\nHost: h\r\nUser-Agent: VLC/3\r\n\r\n"


class Door:
    """A fake engine with one asker at each `come`, and a hook."""

    def __init__(self, on_join: Any, timeout_s: float = 5.0) -> None:
        self.engine: Any = FakeEngine()
        self.askers = Askers(on_join, timeout_s)
        self.askers.start(self.engine)

    def come(self, head: bytes = HEAD) -> socket.socket:
        """Somebody asks; his end of the connection."""
        theirs, ours = socket.socketpair()
        theirs.settimeout(5)
        self.engine.hand_over("asker", ours.detach(), head)
        return theirs

    async def settle(self) -> None:
        """Until all have their answer."""
        for _ in range(3):
            await asyncio.sleep(0)
        while self.askers._tasks:
            await asyncio.sleep(0.001)


async def test_who_may_listen_goes_back_to_the_engine_with_his_head() -> None:
    """A coroutine says so; it was told who it is."""
    seen: list[Join] = []

    async def hook(join: Join) -> Allow:
        seen.append(join)
        return Allow()

    door = Door(hook)
    with door.come():
        await door.settle()
        [(_, head)] = door.engine.admitted
        assert head == HEAD
    [join] = seen
    assert (join.mount, join.address, join.port) == ("/live", "192.0.2.7", 4711)
    assert join.query == {"token": "a b"}
    assert join.user_agent == "VLC/3"
    assert door.askers.snapshot()["join_allowed_total"] == 1
    door.askers.close()
    door.engine.close()


@pytest.mark.parametrize(
    ("verdict", "status", "holds"),
    [
        (Deny(), b"403 Forbidden", b"\r\n\r\nForbidden\n"),
        (Deny(401, "who\r\nare you\x00"), b"401 Unauthorized", b"\r\n\r\nwho  are you\n"),
        (Deny(401), b"401 Unauthorized", b"WWW-Authenticate: Basic"),
        (Redirect("https://b.example/live"), b"302 Found", b"Location: https://b.example/live\r\n"),
    ],
)
async def test_who_may_not_gets_one_whole_reply(verdict: Any, status: bytes, holds: bytes) -> None:
    """A plain function answers on a thread of its own; then the connection is closed."""
    threads: list[str] = []

    def hook(join: Join) -> Any:
        threads.append(threading.current_thread().name)
        return verdict

    door = Door(hook)
    with door.come() as theirs:
        await door.settle()
        reply = theirs.recv(65536)
        assert reply.startswith(b"HTTP/1.0 " + status)
        assert holds in reply
        assert theirs.recv(1) == b""
    assert threads == ["relay-work"]
    assert door.engine.admitted == []
    door.askers.close()
    door.engine.close()


@pytest.mark.parametrize("answer", ["late", "broken", "nonsense"])
async def test_no_answer_is_a_refusal(answer: str, caplog: pytest.LogCaptureFixture) -> None:
    """With 503 and Retry-After, and one line that says why."""

    async def hook(join: Join) -> Any:
        if answer == "late":
            await asyncio.sleep(3600)
        if answer == "broken":
            raise KeyError("token")
        return True

    door = Door(hook, timeout_s=0.01)
    with door.come() as theirs, caplog.at_level(logging.WARNING):
        await door.settle()
        reply = theirs.recv(65536)
    assert reply.startswith(b"HTTP/1.0 503 ")
    assert b"Retry-After: " in reply
    says = {"late": "no answer within 0.01 s", "broken": "KeyError", "nonsense": "no Allow, Deny"}
    assert says[answer] in caplog.text
    assert door.askers.counters["failed"] == 1
    door.askers.close()
    door.engine.close()


async def test_so_many_are_asked_about_at_once_and_the_others_wait() -> None:
    """The engine's queue holds them; each answer takes the next one."""
    gate = asyncio.Event()
    asked = 0

    async def hook(join: Join) -> Allow:
        nonlocal asked
        asked += 1
        await gate.wait()
        return Allow()

    door = Door(hook)
    theirs = [door.come() for _ in range(ASKED_MAX + 5)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert asked == ASKED_MAX
    assert len(door.engine.asker_queue) == 5
    gate.set()
    await door.settle()
    assert len(door.engine.admitted) == ASKED_MAX + 5
    for one in theirs:
        one.close()
    door.askers.close()
    door.engine.close()


async def test_a_closing_node_lets_those_go_who_are_asked_about() -> None:
    """Nothing stays open."""

    async def hook(join: Join) -> Allow:
        await asyncio.sleep(3600)
        return Allow()

    door = Door(hook)
    with door.come() as theirs:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        door.askers.close()
        await door.settle()
        assert theirs.recv(1) == b""
    with pytest.raises(RelayError, match="closing"):
        door.askers.ask(socket.socket(), HEAD)
    door.engine.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Deny(302), "status 302"),
        (lambda: Deny(503, retry_s=-1), "retry_s is -1"),
        (lambda: Redirect("/other"), "absolute http or https URL"),
        (lambda: Redirect("http://a\r\nSet-Cookie: x"), "absolute http or https URL"),
        (lambda: Redirect("javascript:alert(1)"), "absolute http or https URL"),
        (lambda: Askers(lambda join: Allow(), 0), "join_timeout_s is 0"),
        (lambda: Askers(5, 1), "on_join is 5"),  # type: ignore[arg-type]
    ],
)
async def test_an_answer_that_is_none_cannot_be_made(make: Callable[[], Any], says: str) -> None:
    """The host's mistake is told to the host."""
    with pytest.raises(RelayError, match=says):
        make()


@given(st.binary(max_size=300))
def test_whatever_a_head_says_is_read_without_an_error(noise: bytes) -> None:
    """And holds no control characters in what the hook is likely to log."""
    join = read_join(b"GET /live HTTP/1.1\r\nUser-Agent: " + noise + b"\r\n\r\n", "h", 1)
    assert join.user_agent.isprintable()
    assert all(value.isprintable() for value in join.headers.values())


@given(st.text(max_size=300))
def test_a_reason_never_breaks_the_reply(reason: str) -> None:
    """One head, one body of the told length."""
    head, _, body = reply_to(Deny(403, reason)).partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert head.count(b"\r\n") == 5


def test_of_a_query_with_very_many_fields_the_first_are_told() -> None:
    """A stranger's request is read, whatever it is: only its form was checked."""
    query = "&".join(f"f{number}={number}" for number in range(500))
    join = read_join(f"GET /live?{query} HTTP/1.1\r\n\r\n".encode(), "h", 1)
    assert join.query == {f"f{number}": str(number) for number in range(64)}
    assert len(read_join(b"GET /live?" + b"a&" * 4000 + b" HTTP/1.1\r\n\r\n", "h", 1).query) == 1


async def test_a_burst_from_the_host_is_bounded_like_any_other() -> None:
    """Each counts from the call that brings him, before a task for him has begun."""

    async def hook(join: Join) -> Allow:
        await asyncio.sleep(3600)
        return Allow()

    door = Door(hook)
    ends = [socket.socketpair() for _ in range(ASKED_MAX + 1)]
    for _, ours in ends[:-1]:
        door.askers.ask(ours, HEAD)
    with pytest.raises(RelayError, match="128 listeners are asked about already"):
        door.askers.ask(ends[-1][1], HEAD)
    assert ends[-1][1].fileno() >= 0, "it stays the caller's"
    assert await door.askers.verdict(read_join(HEAD, "h", 1)) == BUSY
    await asyncio.sleep(0)
    door.askers.close()
    await door.settle()
    door.askers.start(door.engine)
    assert door.askers._reserve(), "those who were asked about have made room"
    for pair in ends:
        for one in pair:
            one.close()
    door.askers.close()
    door.engine.close()


@pytest.mark.parametrize("answer", [Allow(7), Deny(402), Redirect("https://b.example/live")])
async def test_the_hosts_own_listeners_are_asked_about_from_any_loop(answer: Any) -> None:
    """The hook runs on the node's loop; its answer comes back to the one that asks."""
    loops: list[Any] = []

    async def hook(join: Join) -> Any:
        loops.append(asyncio.get_running_loop())
        return answer

    door = Door(hook)
    join = read_join(HEAD, "192.0.2.7", 4711)
    assert await door.askers.verdict(join) == answer
    other = asyncio.to_thread(lambda: asyncio.run(door.askers.verdict(join)))
    assert await other == answer
    assert loops == [asyncio.get_running_loop()] * 2
    assert sum(door.askers.snapshot().values()) == 2
    door.askers.close()
    assert await door.askers.verdict(join) == NOBODY
    door.engine.close()


async def test_a_closing_node_refuses_the_hosts_listeners() -> None:
    """Who waits for his answer has it at once."""

    async def hook(join: Join) -> Allow:
        await asyncio.sleep(3600)
        return Allow()

    door = Door(hook)
    waiting = asyncio.ensure_future(door.askers.verdict(read_join(HEAD, "h", 1)))
    await asyncio.sleep(0.01)
    door.askers.close()
    assert await asyncio.wait_for(waiting, 30) == NOBODY
    door.engine.close()


async def test_what_is_not_connected_stays_the_callers() -> None:
    """The same error as without a hook."""
    door = Door(lambda join: Allow())
    with socket.socket() as alone, pytest.raises(RelayError, match="no connected stream socket"):
        door.askers.ask(alone, HEAD)
    door.askers.close()
    door.engine.close()
