"""SHOUTcast 1 over a transport of plain Python: the line, the lines, the audio, however split."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from typing import Any

import pytest
from fake_engine import FakeSource
from hypothesis import given, settings
from hypothesis import strategies as st
from test_source_door import Bench, FakeTransport, say
from tools.encoders import encode

from relay import _core
from relay.auth import credentials
from relay.errors import ConfigError
from relay.source_http import HEAD_BYTES_MAX, Request
from relay.source_shoutcast import (
    LINE_BYTES_MAX,
    POKE,
    TAKEN,
    WELCOME,
    WRONG,
    ShoutcastConnection,
    as_request,
    open_shoutcast,
)

MP3 = encode("libmp3lame", "mp3", 44100, muxer=(("id3v2_version", "0"),))[:5000]
LINES = b"icy-name:N\r\nicy-br:128\r\ncontent-type:audio/mpeg\r\n\r\n"


@pytest.fixture(autouse=True)
def _fake_cutter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "Source", FakeSource)
    monkeypatch.setattr(FakeSource, "feed", _fed)


def _fed(self: FakeSource, data: bytes) -> int:
    """Keep what came: real audio is full of what the fake takes for none."""
    self.stream.fed += data
    return 0


class Asked:
    """A script about the sources of mounts: who is asked about, and what it says."""

    def __init__(self, answer: bool, mount: str = "/stream") -> None:
        self.answer = answer
        self.mount = mount
        self.accounts: list[tuple[str, tuple[str, str] | None, str]] = []
        self.go_on = asyncio.Event()

    def must_ask(self, request: Request) -> bool:
        """Of one mount."""
        return request.mount == self.mount

    async def may_send(self, request: Request, address: str) -> bool:
        """Once the test lets it."""
        account = credentials(request.headers["authorization"])
        self.accounts.append((request.mount, account, address))
        await self.go_on.wait()
        return self.answer


def connect(bench: Bench, callouts: Any = None) -> tuple[ShoutcastConnection, FakeTransport]:
    """An encoder that has connected."""
    connection = ShoutcastConnection(
        bench.gate,
        bench.sources,
        ahead_ms=lambda mount: 5000,
        clock=lambda: bench.now,
        gone=bench.gone.append,
        peer=("192.0.2.7", 4711),
        callouts=callouts,
    )
    transport = FakeTransport()
    connection.connection_made(transport)
    return connection, transport


def test_encoder_waits_for_ok2_then_sends_all_at_once() -> None:
    """The mount is claimed before OK2."""
    bench = Bench()
    connection, transport = connect(bench)
    say(connection, b"pw\r\n")
    assert transport.sent == WELCOME
    assert bench.engine.find("/stream").writer == "local"
    say(connection, LINES + MP3)
    stream = bench.engine.find("/stream")
    assert stream.info().startswith(b"Content-Type: audio/mpeg\r\nicy-br:128\r\n")
    assert bytes(stream.fed) == MP3
    assert connection.state == "body"
    source = bench.sources.find("/stream")
    assert source is not None
    assert source.address == "192.0.2.7"


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize(
    ("line", "account"),
    [("pw", ("source", "pw")), ("joe:pä", ("joe", "pä")), ("joe:a:b", ("joe", "a:b"))],
)
def test_a_script_that_decides_is_asked_before_ok2(
    line: str, account: tuple[str, str], says: bool
) -> None:
    """Its word alone holds, not the password of the settings; nothing more is read meanwhile."""

    async def inside() -> None:
        bench, script = Bench(), Asked(says)
        connection, transport = connect(bench, script)
        say(connection, f"{line}\r\n".encode() + LINES + MP3)
        await asyncio.sleep(0)
        assert (connection.state, transport.paused, transport.sent) == ("asking", True, b"")
        assert script.accounts == [("/stream", account, "192.0.2.7")]
        assert bench.engine.find("/stream") is None
        script.go_on.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert transport.sent == (WELCOME if says else WRONG)
        assert connection.state == ("body" if says else "drain")
        assert bench.gate.counters["refused_password_total"] == (0 if says else 1)
        if says:
            assert bytes(bench.engine.find("/stream").fed) == MP3

    asyncio.run(inside())


def test_an_encoder_that_goes_while_a_script_is_asked_becomes_no_source() -> None:
    """Its word comes too late."""

    async def inside() -> None:
        bench, script = Bench(), Asked(answer=True)
        connection, transport = connect(bench, script)
        say(connection, b"pw\r\n")
        await asyncio.sleep(0)
        connection.connection_lost(None)
        script.go_on.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (connection.state, transport.sent) == ("closed", b"")
        assert bench.engine.streams() == []

    asyncio.run(inside())


def test_a_mount_in_the_settings_is_a_target_as_any() -> None:
    """It may have a blank or a percent sign in it."""
    assert as_request("/a%20ä b", "pw").mount == "/a%20ä b"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5000), max_size=12), st.sampled_from([b"\r\n", b"\n"]))
def test_any_split_and_line_end_gives_the_same_source(cuts: list[int], end: bytes) -> None:
    """Bytes are not lines."""
    bench = Bench()
    connection, transport = connect(bench)
    said = (b"pw\r\n" + LINES).replace(b"\r\n", end) + MP3
    for begin, stop in itertools.pairwise([0, *sorted(cuts), len(said)]):
        say(connection, said[begin:stop])
    assert transport.sent == WELCOME
    assert bytes(bench.engine.find("/stream").fed) == MP3


def test_encoder_without_header_lines_is_taken_for_mp3() -> None:
    """A blank line alone: older than the other formats."""
    bench = Bench()
    connection, _ = connect(bench)
    say(connection, b"pw\r\n\r\n" + MP3)
    assert bytes(bench.engine.find("/stream").fed) == MP3


@pytest.mark.parametrize("line", [b"no\r\n", b"\n", b"p" * LINE_BYTES_MAX])
def test_wrong_password_is_told_in_its_own_words(line: bytes) -> None:
    """And nothing is claimed."""
    bench = Bench()
    connection, transport = connect(bench)
    say(connection, line)
    assert transport.sent == WRONG
    assert transport.half_closed
    assert bench.engine.streams() == []


def test_question_of_libshout_is_no_break_in(caplog: pytest.LogCaptureFixture) -> None:
    """It asks with a password that is none, looks for the answer's line end, and comes again."""
    bench = Bench()
    connection, transport = connect(bench, Asked(answer=True))
    with caplog.at_level(logging.INFO, "relay.source"):
        say(connection, f"{POKE}\nicy-name:libshout server poke request\n\n".encode())
    assert (transport.sent, transport.half_closed) == (WRONG, True)
    assert bench.gate.counters["probes_total"] == 1
    assert bench.gate.counters["refused_password_total"] == 0
    assert caplog.records == []


@pytest.mark.parametrize("mount", ["/stream", "/OK2"])
def test_mount_in_use_is_told_before_ok2(mount: str, caplog: pytest.LogCaptureFixture) -> None:
    """After it encoders listen to nothing; and no OK may stand in it, which libshout looks for."""
    bench = Bench(shoutcast_mount=mount)
    bench.sources.open(mount, "audio/mpeg")
    connection, transport = connect(bench)
    say(connection, b"pw\r\n")
    assert transport.sent == TAKEN
    assert b"OK" not in TAKEN
    assert f"mount '{mount}' is in use" in caplog.text
    assert bench.gate.counters["refused_403_total"] == 1


@pytest.mark.parametrize(
    "lines",
    [b"no colon\r\n\r\n", b"a" * HEAD_BYTES_MAX, b"content-type:text/plain\r\n\r\n",
     b"x:y\r\n" * 70 + b"\r\n", b"icy-name:a\0b\r\n\r\n"],
)  # fmt: skip
def test_lines_that_are_none_end_the_source(lines: bytes) -> None:
    """Bounded and clean, as in HTTP; the mount is free again."""
    bench = Bench()
    connection, _ = connect(bench)
    say(connection, b"pw\r\n" + lines)
    assert connection.state == "drain"
    assert bench.engine.streams() == []


def test_encoder_that_goes_after_ok2_gives_its_mount_back() -> None:
    """At once, or when its time for the lines is over."""
    for hangs_up in (True, False):
        bench = Bench()
        connection, transport = connect(bench)
        say(connection, b"pw\r\n")
        if hangs_up:
            connection.connection_lost(None)
        else:
            bench.tick(10.1, connection)
            assert transport.closed
            connection.connection_lost(None)
        assert bench.engine.streams() == []


def test_port_that_is_taken_is_told() -> None:
    """With the key, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"http.shoutcast = {bind}: .*another"):
            open_shoutcast(bind)
