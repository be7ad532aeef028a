"""Server-sent events: what is told of a stream, to whom, and who is dropped."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest
from fake_desk import stream
from test_web_app import Site, read_all

from relay.following import Moment
from relay.web import events

UP = Moment(True, 5, "A", 1)


def told(*pairs: tuple[Moment | None, Moment | None]) -> list[tuple[str, dict[str, object]]]:
    """What is told of these changes, read as a browser does."""
    found = []
    for before, now in pairs:
        for raw in events.changes(before, now):
            name, data = raw.decode().removesuffix("\n\n").split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_follower_hears_first_what_is_and_then_what_changes() -> None:
    """up, title; nothing while nothing changes; another epoch is up again; down."""
    assert told((None, UP)) == [("up", {"epoch": 5}), ("title", {"title": "A"})]
    assert told((UP, UP)) == []
    assert told((UP, UP._replace(title="B", listeners=9))) == [("title", {"title": "B"})]
    assert told((UP, UP._replace(epoch=6))) == [("up", {"epoch": 6})]
    assert told((UP, UP._replace(live=False))) == [("down", {})]
    assert told((UP, None)) == [("down", {})]
    assert told((None, Moment(False, None, None, 0))) == []


def test_no_title_ends_its_event() -> None:
    """Line ends are JSON's to write."""
    [(_, data)] = told((UP, UP._replace(title='x\n\nevent: up\r"</script>\u2028')))
    assert data == {"title": 'x\n\nevent: up\r"</script>\u2028'}


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """An open page door that looks often."""
    monkeypatch.setattr(events, "LOOK_S", 0.01)
    made = Site()
    await made.door.start()
    yield made
    await made.door.close()


class Browser:
    """One follower."""

    def __init__(self, site: Site, target: str = "/api/v1/streams/live/events", minor: int = 1):
        head = f"GET {target} HTTP/1.{minor}\r\nHost: h\r\n\r\n"
        self.sock: socket.socket = site.hand_over(head.encode())
        self.raw = b""

    async def until(self, words: bytes) -> bytes:
        """Read until these have come."""
        async with asyncio.timeout(5):
            while words not in self.raw:
                more = await asyncio.get_running_loop().sock_recv(self.sock, 4096)
                assert more, self.raw
                self.raw += more
        return self.raw


@pytest.mark.parametrize("minor", [0, 1])
async def test_events_come_over_one_connection(site: Site, minor: int) -> None:
    """HTTP/1.1 in chunks, HTTP/1.0 until the end; pages' time does not end it."""
    browser = Browser(site, minor=minor)
    head = await browser.until(b'data: {"title":"First part"}\n\n')
    assert b"Content-Type: text/event-stream" in head
    assert (b"Transfer-Encoding: chunked" in head) == (minor == 1)
    site.desk.streams[0] = stream(title="Second part")
    await browser.until(b'event: title\ndata: {"title":"Second part"}\n\n')
    site.door.tick(asyncio.get_running_loop().time() + 1000)
    site.desk.streams[0] = stream(title="Second part", state="waiting")
    raw = await browser.until(b"event: down\ndata: {}\n\n")
    if minor:
        body = raw.partition(b"\r\n\r\n")[2]
        while body:
            size, _, rest = body.partition(b"\r\n")
            assert rest[int(size, 16) :][:2] == b"\r\n"
            body = rest[int(size, 16) + 2 :]
    browser.sock.close()


async def test_a_heartbeat_comes_where_nothing_changes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment, which browsers ignore."""
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.02)
    browser = Browser(site)
    await browser.until(b": \n\n")
    browser.sock.close()


async def test_unknown_mounts_are_404(site: Site) -> None:
    """No follower of nothing."""
    with site.hand_over(b"GET /api/v1/streams/none/events HTTP/1.1\r\nHost: h\r\n\r\n") as ours:
        assert b" 404 " in (await read_all(ours)).split(b"\r\n")[0]


async def test_followers_are_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """By address first; those who left give their places back."""
    monkeypatch.setattr(events, "FOLLOWERS_PER_ADDRESS_MAX", 2)
    first, second = Browser(site), Browser(site)
    await first.until(b"First part")
    await second.until(b"First part")
    with site.hand_over(b"GET /api/v1/streams/live/events HTTP/1.1\r\nHost: h\r\n\r\n") as ours:
        assert b" 503 " in (await read_all(ours)).split(b"\r\n")[0]
    first.sock.close()
    await asyncio.sleep(0.05)
    third = Browser(site)
    await third.until(b"First part")
    for browser in (second, third):
        browser.sock.close()


async def test_who_does_not_read_is_dropped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others hear on."""
    monkeypatch.setattr(events, "BUFFER_BYTES_MAX", 2000)
    slow, quick = Browser(site), Browser(site)
    slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await quick.until(b"First part")
    for number in range(2000):
        site.desk.streams[0] = stream(title=f"{number} " + "x" * 3000)
        await quick.until(b'{"title":"%d ' % number)
        quick.raw = b""
        if len(site.door._kept) == 1:
            break
        await asyncio.sleep(0.01)
        site.door.tick(asyncio.get_running_loop().time())
    else:
        raise AssertionError("the slow one was never dropped")
    assert site.door.snapshot()["followers_dropped_total"] == 1
    assert site.door.snapshot()["followers"] == 1
    for browser in (slow, quick):
        browser.sock.close()


async def test_closing_the_door_ends_followers(site: Site) -> None:
    """A node that goes does not wait for them."""
    browser = Browser(site)
    await browser.until(b"First part")
    async with asyncio.timeout(3):
        await site.door.close()
        await read_all(browser.sock)  # to the end of the connection: there is one
    browser.sock.close()


@pytest.mark.parametrize(
    ("address", "bound"), [("127.0.0.1", 2000), ("::1", 2000), ("192.0.2.1", 32), ("", 32)]
)
def test_a_proxy_on_this_machine_may_bring_all(address: str, bound: int) -> None:
    """It stands for many listeners."""
    assert events.bound_of(address) == bound
