"""relay.push: back-off, pacing and the progress line; whole pushes into a small Icecast of ours."""

from __future__ import annotations

import io
import itertools
import socket
import struct
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from relay import push as push_module
from relay.backoff import Backoff
from relay.errors import SourceError
from relay.icecast import Connection, PushError, Target
from relay.media import Piece
from relay.programme import known_signal, programme_bytes
from relay.push import Link, PaceClock, Progress, Push, progress_line, push

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
IN_USE = b"HTTP/1.0 403 Mountpoint in use\r\n\r\n"


class Clock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """The time now."""
        return self.now_s


class IcecastServer:
    """Answers PUTs and title requests, and keeps what it was sent.

    `answers` holds what the next PUTs hear (then 100 for ever); `cuts` after how many bytes of
    body the next accepted ones are reset.
    """

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.cuts: list[int] = []
        self.heads: list[str] = []
        self.bodies: list[bytearray] = []
        self.titles: list[str] = []
        self._done = threading.Condition()
        self._ended = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, mount: str = "/live") -> str:
        """Where to push, with the account."""
        return f"http://source:hush@127.0.0.1:{self.port}{mount}"

    def close(self) -> None:
        """No more connections."""
        self._listener.close()

    def wait_for_bodies(self, count: int) -> list[bytes]:
        """The bodies, once `count` of them have ended."""
        with self._done:
            assert self._done.wait_for(lambda: self._ended >= count, 10)
        return [bytes(body) for body in self.bodies]

    def _accept(self) -> None:
        while True:
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := sock.recv(4096)):
                    return
                head += data
            text = head.decode()
            if text.startswith("GET"):
                self.titles.append(text.split(" ")[1])
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                return
            self.heads.append(text)
            answer = self.answers.pop(0) if self.answers else CONTINUE
            sock.sendall(answer)
            if answer == CONTINUE:
                self._take_body(sock)

    def _take_body(self, sock: socket.socket) -> None:
        body = bytearray()
        self.bodies.append(body)
        cut = self.cuts.pop(0) if self.cuts else None
        while data := sock.recv(65_536):
            body += data
            if cut is not None and len(body) >= cut:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                break
        with self._done:
            self._ended += 1
            self._done.notify_all()


@pytest.fixture
def server() -> Iterator[IcecastServer]:
    """A server of our own, on a free port."""
    icecast = IcecastServer()
    yield icecast
    icecast.close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "FLOOR_S", 0.01)
    monkeypatch.setattr(Backoff, "CEILING_S", 0.02)


@pytest.fixture
def mp3(tmp_path: Path) -> Path:
    """Three seconds of the programme; nothing but frames."""
    path = tmp_path / "a.mp3"
    path.write_bytes(programme_bytes("mp3", 3))
    return path


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """One second of the known signal as PCM."""
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(48_000)
        out.writeframes((known_signal(1) * 32767).astype("<i2").tobytes())
    return path


def decoded_seconds(data: bytes) -> float:
    """How much audio the container bytes hold; a broken container raises."""
    with av.open(io.BytesIO(data)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def ogg_flags(data: bytes) -> list[int]:
    """The flags of each page (RFC 3533 §6)."""
    return [page[0] for page in data.split(b"OggS\0")[1:]]


# --- pure parts -----------------------------------------------------------------------------------


def test_importing_push_loads_neither_av_nor_numpy() -> None:
    """The command line stays quick, and works without the extra."""
    code = (
        "import sys, relay.push, relay.programme, relay.demo;"
        "sys.exit(any(m in sys.modules for m in ('av', 'numpy', 'click', 'aiohttp')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_pyav_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, mp3: Path
) -> None:
    """What is missing, and the line that installs it."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SourceError, match=r"pip install 'relay-audio\[media\]'"):
        push(str(mp3), "http://source:hush@127.0.0.1:1/live")


def test_the_first_second_goes_ahead_and_the_rest_in_real_time() -> None:
    """Media time t is due at t − 1 s after the first packet."""
    clock = Clock()
    pace = PaceClock(ahead_s=1.0, now=clock)
    assert [pace.delay_s(t) for t in (0.0, 0.5, 1.0, 1.5, 3.0)] == [0, 0, 0, 0.5, 2.0]
    clock.now_s += 2.0
    assert pace.delay_s(3.0) == 0


def test_pacing_does_not_drift_and_a_late_packet_goes_at_once() -> None:
    """Every due time is counted from the first packet, not from the last."""
    clock = Clock()
    pace = PaceClock(ahead_s=1.0, now=clock)
    pace.delay_s(50.0)  # a first stamp that is not 0
    clock.now_s += 30.0
    assert pace.delay_s(60.0) == 0
    assert pace.delay_s(82.0) == pytest.approx(1.0)


def test_the_progress_line_tells_time_bytes_rate_and_reconnects() -> None:
    """The bit rate is that since the last line."""
    line = progress_line((60.0, 960_000), 3665.0, 58_640_000, 1, True)
    assert line == "01:01:05  58.64 MB  128 kbit/s  1 reconnect"
    assert progress_line((5.0, 10), 5.0, 10, 0, False).endswith("0 reconnects  connecting")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


@pytest.mark.parametrize(("out", "lines"), [(io.StringIO(), 2), (Terminal(), 20)])
def test_progress_is_rewritten_on_a_terminal_and_rare_elsewhere(
    out: io.StringIO, lines: int
) -> None:
    """Each second, or one line each ten seconds."""
    clock = Clock()
    progress = Progress(out, now=clock)
    for tenth in range(1, 201):
        clock.now_s = 100.0 + tenth / 10
        progress.tick(tenth / 10, tenth * 1600, 0, True)
    assert out.getvalue().count("kbit/s") == lines
    assert ("\r" in out.getvalue()) == out.isatty()


def test_progress_ends_with_how_much_it_was() -> None:
    """A push that is over in three seconds still tells what it did."""
    clock, out = Clock(), io.StringIO()
    progress = Progress(out, now=clock)
    progress.end()
    assert out.getvalue() == ""
    progress.begin("'a.mp3' goes to http://h:8000/live as audio/mpeg, as it is")
    progress.tick(3.0, 48_000, 0, True)
    progress.end()
    first, last = out.getvalue().splitlines()
    assert first == "relay push: 'a.mp3' goes to http://h:8000/live as audio/mpeg, as it is"
    assert last == "00:00:03  0.05 MB  128 kbit/s  0 reconnects"


def test_a_terminal_is_left_on_a_fresh_line_and_without_an_empty_one() -> None:
    """Behind a progress line a line break, behind a told line none."""
    out = Terminal()
    progress = Progress(out, now=Clock())
    progress.begin("a goes to b")
    progress.end()
    assert out.getvalue().count("\n") == 1
    progress.tick(3.0, 48_000, 0, True)
    progress.end()
    assert out.getvalue().endswith("0 reconnects\x1b[K\n")


def test_quiet_has_no_progress_but_tells_changes() -> None:
    """A lost connection is worth a line even then."""
    clock, out = Clock(), io.StringIO()
    progress = Progress(out, quiet=True, now=clock)
    progress.begin("'a.mp3' goes somewhere")
    clock.now_s += 60
    progress.tick(60.0, 1, 0, True)
    progress.say("connected")
    progress.end()
    assert out.getvalue() == "relay push: connected\n"


class Dials:
    """A dial function that plays a script of errors and connections."""

    def __init__(self, *script: PushError | object) -> None:
        self._script = list(script)
        self.count = 0

    def __call__(self) -> Any:
        """The next step of the script."""
        self.count += 1
        step = self._script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


def connection_pair() -> tuple[Connection, socket.socket]:
    """A connection that was accepted, and its other end."""
    ours, theirs = socket.socketpair()
    return Connection(ours, Target("h", 1, "/live")), theirs


def test_link_dials_again_until_it_is_accepted() -> None:
    """A repeated reason is told once, and so is the end of the trouble."""
    connection, _server = connection_pair()
    away = [PushError("cannot connect: refused") for _ in range(3)]
    told: list[str] = []
    link = Link(Dials(*away, connection), told.append)
    assert link.wait() is connection
    assert [line.partition(";")[0] for line in told] == ["cannot connect: refused", "connected"]


def test_link_gives_up_after_its_retries() -> None:
    """One attempt and two retries, then the last reason."""
    dials = Dials(*[PushError("cannot connect: refused") for _ in range(9)])
    link = Link(dials, lambda _: None, retries=2)
    with pytest.raises(SourceError, match="gave up after 2 retries: cannot connect"):
        link.wait()
    assert dials.count == 3


def test_link_does_not_repeat_what_is_final() -> None:
    """A wrong password stays wrong."""
    dials = Dials(PushError("401 Unauthorized", status=401, final=True))
    link = Link(dials, lambda _: None)
    with pytest.raises(PushError, match="401"):
        link.wait()
    assert dials.count == 1


def test_a_connection_that_was_steady_starts_the_backoff_afresh() -> None:
    """One that is lost at once does not: a server that throws us out is not hammered."""
    clock = Clock()
    connections = [connection_pair()[0] for _ in range(3)]
    backoff = Backoff()
    link = Link(Dials(*connections), lambda _: None, backoff=backoff, now=clock)
    link.wait()
    link.lost(PushError("lost"))
    link.wait()
    link.lost(PushError("lost"))
    assert backoff.failures == 2
    link.wait()
    clock.now_s += 60
    link._dial = Dials(connection_pair()[0])
    link.lost(PushError("lost"))
    assert backoff.failures == 1
    assert link.lost_total == 3


class ScriptedLink:
    """A link whose connection comes and goes with the media clock."""

    lost_total = 0

    def __init__(self, clock: Clock, up: list[tuple[float, Any]]) -> None:
        self._clock, self._up = clock, up

    def poll(self) -> Any:
        """The connection of this moment."""
        return next((c for start, c in reversed(self._up) if self._clock.now_s >= start), None)

    def wait(self, _timeout_s: float | None = None) -> Any:
        """As `poll`: this link never makes anybody wait."""
        return self.poll()


class Recorder:
    """A connection that notes when what was sent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.sent: list[tuple[float, bytes]] = []

    def send(self, data: bytes) -> None:
        """Note it."""
        self.sent.append((self._clock.now_s, data))


class EchoRun:
    """A muxer whose bytes are the number of the piece."""

    def add(self, piece: Piece) -> bytes:
        """The piece's number."""
        return bytes([piece.ticks])


class FileReader:
    """As much of a reader as a push looks at."""

    live = False
    shown = "talk.mp3"


def test_a_reconnection_goes_on_at_the_position_in_real_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Away from 3 s to 8 s: those five seconds are never sent, and what follows is not late."""
    clock = Clock()
    monkeypatch.setattr(
        push_module.time, "sleep", lambda s: setattr(clock, "now_s", clock.now_s + s)
    )
    first, second = Recorder(clock), Recorder(clock)
    link: Any = ScriptedLink(clock, [(0.0, first), (103.0, None), (108.0, second)])
    runs = itertools.count()
    new_run: Any = lambda: (next(runs), EchoRun())[1]  # noqa: E731
    reader: Any = FileReader()
    pace = PaceClock(ahead_s=1.0, now=clock)
    job = Push(reader, new_run, link, Progress(io.StringIO(), quiet=True), clock=pace)
    job.carry(Piece(float(second_), second_, None, ()) for second_ in range(12))
    assert [data[0] for _, data in first.sent] == [0, 1, 2, 3]
    assert [(at - 100, data[0]) for at, data in second.sent] == [(8, 9), (9, 10), (10, 11)]
    assert next(runs) == 2, "one run for each connection"


# --- whole pushes ---------------------------------------------------------------------------------


def test_an_mp3_file_arrives_byte_for_byte(server: IcecastServer, mp3: Path) -> None:
    """The frames as they are, under the content type that belongs to them."""
    assert push(str(mp3), server.url(), pace=False, name="Talk", quiet=True) == 0
    assert server.wait_for_bodies(1) == [mp3.read_bytes()]
    assert "Content-Type: audio/mpeg\r\n" in server.heads[0]
    assert "Ice-Name: Talk\r\n" in server.heads[0]


def test_tags_and_the_xing_frame_of_a_file_stay_behind(
    server: IcecastServer, mp3: Path, tmp_path: Path
) -> None:
    """ID3 before and after the frames is no audio."""
    tagged = tmp_path / "tagged.mp3"
    id3 = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
    tagged.write_bytes(id3 + mp3.read_bytes() + b"TAG" + bytes(125))
    push(str(tagged), server.url(), pace=False, quiet=True)
    assert server.wait_for_bodies(1) == [mp3.read_bytes()]


def test_an_opus_file_arrives_as_ogg_that_decodes(server: IcecastServer, tmp_path: Path) -> None:
    """All of it, in pages of our size."""
    path = tmp_path / "a.opus"
    path.write_bytes(programme_bytes("opus", 2))
    push(str(path), server.url(), pace=False, quiet=True)
    (body,) = server.wait_for_bodies(1)
    assert decoded_seconds(body) == pytest.approx(2.0, abs=0.05)
    assert body.count(b"OggS") >= 20
    assert "Content-Type: audio/ogg\r\n" in server.heads[0]


def test_pcm_becomes_opus_and_codec_decides_otherwise(server: IcecastServer, wav: Path) -> None:
    """Without and with `--codec`; the content type can be named."""
    push(str(wav), server.url(), pace=False, quiet=True)
    push(str(wav), server.url(), pace=False, codec="mp3", content_type="audio/x-mpeg", quiet=True)
    opus, mp3 = server.wait_for_bodies(2)
    assert opus.startswith(b"OggS")
    assert mp3.startswith(b"\xff\xfb")
    assert decoded_seconds(opus) == pytest.approx(1.0, abs=0.05)
    assert decoded_seconds(mp3) == pytest.approx(1.0, abs=0.1)
    assert "Content-Type: audio/x-mpeg\r\n" in server.heads[1]


def test_the_password_may_come_from_the_environment(
    server: IcecastServer, mp3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it is in no process list."""
    monkeypatch.setenv("RELAY_SOURCE_PASSWORD", "hush")
    push(str(mp3), f"http://127.0.0.1:{server.port}/live", pace=False, quiet=True)
    assert "Authorization: Basic c291cmNlOmh1c2g=\r\n" in server.heads[0]


def test_what_goes_where_is_told_first_without_a_password(
    server: IcecastServer, wav: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Input, address, content type, and that it is encoded; at the end, how much it was."""
    push(str(wav), server.url(), pace=False)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"relay push: {str(wav)!r} goes to http://127.0.0.1:{server.port}/")
    assert first.endswith("as audio/ogg, encoded")
    assert "hush" not in first
    assert last.startswith("00:00:0")


def test_a_wrong_password_ends_with_one_line(server: IcecastServer, mp3: Path) -> None:
    """Status, reason and the next step; no second attempt, no password."""
    server.answers = [b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"]
    with pytest.raises(PushError, match=r"401 Unauthorized; check the user") as caught:
        push(str(mp3), server.url(), quiet=True)
    assert "hush" not in str(caught.value)
    assert len(server.heads) == 1


def test_a_mount_in_use_is_asked_for_again(
    server: IcecastServer, mp3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """403 may end; nothing of the file is lost by the wait."""
    server.answers = [IN_USE, IN_USE]
    assert push(str(mp3), server.url(), pace=False, quiet=True) == 0
    assert server.wait_for_bodies(1) == [mp3.read_bytes()]
    assert capsys.readouterr().err.count("403 Mountpoint in use") == 1


def test_retries_bound_how_often_a_mount_in_use_is_asked_for(
    server: IcecastServer, mp3: Path
) -> None:
    """`--retries 1` is two attempts."""
    server.answers = [IN_USE] * 5
    with pytest.raises(SourceError, match=r"gave up after 1 retry: .*403"):
        push(str(mp3), server.url(), pace=False, retries=1, quiet=True)
    assert len(server.heads) == 2


def test_a_lost_server_gets_the_rest_in_a_new_ogg_run(
    server: IcecastServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second connection begins with headers and a serial of its own, and decodes."""
    path = tmp_path / "a.opus"
    path.write_bytes(programme_bytes("opus", 60))
    server.cuts = [20_000]
    assert push(str(path), server.url(), pace=False, quiet=True) == 0
    first, second = server.wait_for_bodies(2)
    assert second[28:36] == b"OpusHead"
    assert first[14:18] != second[14:18]
    assert decoded_seconds(second) > 10
    assert "connected" in capsys.readouterr().err


def test_a_file_is_held_to_real_time(
    server: IcecastServer, mp3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three seconds of audio, one of them ahead: two seconds of waiting, to a frame."""
    clock = Clock()
    monkeypatch.setattr(
        push_module.time, "sleep", lambda s: setattr(clock, "now_s", clock.now_s + s)
    )
    monkeypatch.setattr(push_module, "PaceClock", lambda: PaceClock(now=clock))
    push(str(mp3), server.url(), quiet=True)
    assert server.wait_for_bodies(1) == [mp3.read_bytes()]
    assert clock.now_s - 100.0 == pytest.approx(2.0, abs=0.05)


def test_a_loop_ends_with_an_interrupt_and_exit_status_0(
    server: IcecastServer, mp3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file goes round until Ctrl-C; the connection ends after a whole frame."""
    waits = itertools.count()

    def interrupt(_seconds: float) -> None:
        if next(waits) == 200:
            raise KeyboardInterrupt

    monkeypatch.setattr(push_module.time, "sleep", interrupt)
    assert push(str(mp3), server.url(), loop=True, quiet=True) == 0
    (body,) = server.wait_for_bodies(1)
    frames = mp3.read_bytes()
    assert len(body) > len(frames)
    assert body == (frames * 3)[: len(body)]
    assert decoded_seconds(body) > 3


def test_the_title_is_set_beside_the_audio(server: IcecastServer, mp3: Path) -> None:
    """Through `/admin/metadata`, for this mount."""
    assert push(str(mp3), server.url(), pace=False, title="A – B", quiet=True) == 0
    server.wait_for_bodies(1)
    for thread in threading.enumerate():
        if thread.name == "relay push: title":
            thread.join(5)
    assert server.titles == [
        "/admin/metadata?mode=updinfo&mount=%2Flive&song=A+%E2%80%93+B&charset=UTF-8"
    ]


def serve_audio(data: bytes, length: int) -> str:
    """The address of an HTTP server that sends these bytes once, under this Content-Length."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            sock.recv(4096)
            sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
            sock.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/in.mp3"


def test_a_network_input_is_carried_without_pacing(server: IcecastServer, mp3: Path) -> None:
    """One server's stream is another's source; its end is a clean end."""
    data = mp3.read_bytes()
    assert push(serve_audio(data, len(data)), server.url(), quiet=True) == 0
    (body,) = server.wait_for_bodies(1)
    assert len(body) > 0
    assert data.endswith(body)


def test_a_network_input_that_breaks_off_is_an_error(server: IcecastServer) -> None:
    """What came before it was sent, and the Ogg run has its last page."""
    data = programme_bytes("opus", 3)
    with pytest.raises(SourceError, match="broke off"):
        push(serve_audio(data[:20_000], len(data)), server.url(), quiet=True)
    for body in server.wait_for_bodies(1):
        assert ogg_flags(body)[-1] & 4


def test_an_input_that_is_no_audio_is_told_before_any_connection(
    server: IcecastServer, tmp_path: Path
) -> None:
    """The server never hears of it."""
    path = tmp_path / "a.txt"
    path.write_text("no audio " * 1000)
    with pytest.raises(SourceError, match=r"no audio|cannot open"):
        push(str(path), server.url(), quiet=True)
    assert server.heads == []
