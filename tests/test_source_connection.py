"""The first bytes of a source decide: begun with what they are, refused, or waited for."""

from __future__ import annotations

import pytest
from fake_engine import FakeSource
from test_source_door import EXPECT, Bench, head, say
from tools.encoders import encode, noise

from relay import _core
from relay.formats import SETTLE_BYTES

SOUND = {
    "audio/mpeg": encode("libmp3lame", "mp3", 44100, muxer=(("id3v2_version", "0"),))[:9000],
    "audio/ogg": encode("libopus", "ogg", 48000)[:9000],
    "audio/webm": encode("libopus", "webm", 48000)[:9000],
}
OK = b"HTTP/1.0 200 OK\r\n\r\n"


@pytest.fixture(autouse=True)
def _fake_cutter(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(self: FakeSource, data: bytes) -> int:
        self.stream.fed += data
        self.media_us += len(data)
        return 0

    monkeypatch.setattr(_core, "Source", FakeSource)
    monkeypatch.setattr(FakeSource, "feed", feed)


@pytest.fixture
def bench() -> Bench:
    """A node whose source password is pw."""
    return Bench()


@pytest.mark.parametrize("content_type", [None, "audio/aac", "application/octet-stream"])
@pytest.mark.parametrize("kind", SOUND)
def test_epoch_begins_with_what_the_bytes_are(
    bench: Bench, kind: str, content_type: str | None
) -> None:
    """Wrong or missing, one byte at a time: listeners are told the truth, and no byte is lost."""
    connection, transport = bench.connect(head("SOURCE", content_type=content_type))
    assert transport.sent == OK
    assert connection.state == "first"
    assert not bench.engine.find("/live").source_up
    for at in range(0, len(SOUND[kind])):
        say(connection, SOUND[kind][at : at + 1])
    assert connection.state == "body"
    assert bench.engine.find("/live").info().startswith(f"Content-Type: {kind}\r\n".encode())
    assert bytes(bench.engine.find("/live").fed) == SOUND[kind]


def test_chunks_are_looked_into(bench: Bench) -> None:
    """The chunk's size is no audio; the engine gets the body as it came."""
    connection, _ = bench.connect(head("PUT", "/live", "Transfer-Encoding: chunked"))
    body = b"".join(b"3\r\n" + SOUND["audio/ogg"][at : at + 3] + b"\r\n" for at in range(0, 99, 3))
    say(connection, body)
    assert bench.engine.find("/live").info().startswith(b"Content-Type: audio/ogg")
    assert bytes(bench.engine.find("/live").fed) == body


@pytest.mark.parametrize("lines", [(EXPECT,), ("Content-Length: 60000",)])
def test_refusal_is_the_final_reply_where_one_is_due(bench: Bench, lines: tuple[str, ...]) -> None:
    """415 with what was found; the mount is free again."""
    connection, transport = bench.connect(head("PUT", "/live", *lines))
    say(connection, b"fLaC" + bytes(200))
    assert b"HTTP/1.0 415 " in transport.sent
    assert b"bare FLAC" in transport.sent
    assert OK not in transport.sent
    assert bench.gate.counters["refused_415_total"] == 1
    assert bench.engine.streams() == []


def test_refusal_after_a_200_ends_the_connection(bench: Bench) -> None:
    """Nothing can be said any more; it is counted."""
    connection, transport = bench.connect(head("SOURCE"))
    say(connection, b"fLaC" + bytes(200))
    assert transport.sent == OK
    assert connection.state == "drain"
    assert bench.gate.counters["refused_415_total"] == 1


def test_file_is_welcomed_with_its_first_frame(bench: Bench) -> None:
    """A body with a length: not before there is a frame, and once."""
    connection, transport = bench.connect(head("PUT", "/live", "Content-Length: 9000"))
    say(connection, SOUND["audio/mpeg"][:300])
    assert transport.sent == b""
    say(connection, SOUND["audio/mpeg"][300:8999])
    connection.look()
    assert transport.sent == OK
    connection._source._cutter.end("whole")  # type: ignore[union-attr]
    connection.look()
    assert transport.sent == OK


def test_encoder_that_waits_for_the_reply_gets_it(bench: Bench) -> None:
    """It gave a length, and sends nothing before it is welcomed."""
    connection, transport = bench.connect(head("PUT", "/live", "Content-Length: 9000"))
    bench.tick(0.9, connection)
    assert transport.sent == b""
    bench.tick(0.3, connection)
    assert transport.sent == OK


def test_file_without_a_frame_gets_415(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 KB of noise, to the last byte."""
    monkeypatch.setattr(FakeSource, "feed", lambda self, data: 0)
    connection, transport = bench.connect(head("PUT", "/live", "Content-Length: 60000"))
    say(connection, noise(1, SETTLE_BYTES + 8192))
    connection._source._cutter.end("whole")  # type: ignore[union-attr]
    connection.look()
    assert transport.sent.startswith(b"HTTP/1.0 415 ")
    assert b"not one frame of audio/mpeg" in transport.sent
    assert bench.gate.counters["no_audio_total"] == 1


def test_source_that_sends_nothing_is_ended(bench: Bench) -> None:
    """As one that falls silent; its mount is free again."""
    connection, _ = bench.connect(head("SOURCE"))
    bench.tick(9.9, connection)
    assert connection.state == "first"
    bench.tick(0.2, connection)
    assert connection.state == "drain"
    assert bench.gate.counters["silent_total"] == 1
    assert bench.engine.streams() == []


def test_short_file_is_settled_by_its_end(bench: Bench) -> None:
    """Too short to be sure: what was promised counts, when nothing more will come."""
    connection, _ = bench.connect(head("PUT", "/live", EXPECT))
    say(connection, b"short")
    assert connection.state == "first"
    assert connection.eof_received()
    assert connection.state == "body"
    assert bytes(bench.engine.find("/live").fed) == b"short"


def test_mount_that_another_took_before_the_first_byte_is_not_begun() -> None:
    """The late one is closed, and writes nothing."""
    bench = Bench(streams={"/live": {"takeover": "always"}})
    first, _ = bench.connect(head("SOURCE"))
    second, _ = bench.connect(head("SOURCE"))
    say(second, SOUND["audio/mpeg"])
    say(first, SOUND["audio/ogg"])
    bench.tick(0.3, first)
    assert (first.state, second.state) == ("drain", "body")
    assert bytes(bench.engine.find("/live").fed) == SOUND["audio/mpeg"]


@pytest.mark.parametrize("kind", SOUND)
def test_password_before_the_mount_is_welcomed_with_an_ok_of_its_own(
    bench: Bench, kind: str
) -> None:
    """Icecast 1's protocol has no content type: the bytes tell. Some read but two of an answer."""
    connection, transport = bench.connect(b"SOURCE pw /live\nx-audiocast-name: N\n\n")
    assert transport.sent.startswith(b"OK")
    assert transport.sent.endswith(b"\n")
    say(connection, SOUND[kind])
    info = bench.engine.find("/live").info()
    assert info.startswith(f"Content-Type: {kind}\r\n".encode())
    assert b"icy-name:N\r\n" in info
    assert bytes(bench.engine.find("/live").fed) == SOUND[kind]


@pytest.mark.parametrize(
    ("said", "status"), [(b"SOURCE no /live\n\n", 401), (b"SOURCE pw /admin/x\n\n", 400)]
)
def test_refusal_of_icecast_1s_protocol_is_one_line(
    bench: Bench, said: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the password, also in the log."""
    _, transport = bench.connect(said)
    assert transport.sent.startswith(b"ERROR - %d " % status)
    assert transport.sent.count(b"\n") == 1
    assert transport.half_closed
    assert bench.engine.streams() == []
    assert "source refused" in caplog.text
    assert " no " not in caplog.text
    assert "pw" not in caplog.text


def test_bytes_that_are_refused_end_no_live_source() -> None:
    """`takeover` gives the mount to a source; what sends no audio is none."""
    bench = Bench(streams={"/live": {"takeover": "always"}})
    live, _ = bench.connect(head("SOURCE"))
    say(live, SOUND["audio/mpeg"])
    newcomer, transport = bench.connect(head("PUT", "/live", EXPECT))
    assert transport.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (newcomer.mount, newcomer.has_mount) == ("/live", False)
    bench.tick(0.3, live)
    assert live.state == "body"
    say(newcomer, b"fLaC" + bytes(200))
    assert b"HTTP/1.0 415 " in transport.sent
    bench.tick(0.3, live)
    assert (live.state, bench.sources.find("/live")) == ("body", live._source)
    third, _ = bench.connect(head("SOURCE"))
    say(third, SOUND["audio/ogg"])
    bench.tick(0.3, live)
    assert (live.state, third.state) == ("drain", "body")
