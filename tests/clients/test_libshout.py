"""Encoders that nobody here wrote, through libshout: files heard whole, two hops away, with titles.

Rules of this room
  1. Each sends a file of FILE_S once, in real time. Listeners on the first and the third node come
     while it does, and have that file from the first frame to the last, byte for byte.
  2. A tag before the audio is no frame, and not sent on. What an encoder said is kept by a tap.
  3. The title stands in the file; the encoder finds it there, and tells it in its own way.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tools.audio import CODINGS, MORE_CODINGS, check_signal, decode, skip_id3, write_signal
from tools.listeners import Crowd, Listener
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_known, wait_until
from tools.programs import Program, Programs, Tap, Tapped
from tools.shout import ShoutcastTaps, ezstream, free_port, ices, shout2send

ARTIST, SONG = "Ada Lovelace", "Über die Maschine's <Töne>; Teil 1"
TITLE = f"{ARTIST} - {SONG}"
NAME = "A talk & more"
FILE_S, SECONDS_MIN = 6.0, 4
BURST_MS = 10_000  # more than a file lasts: who comes while it is sent hears it from its beginning
SHOUTCAST_MOUNT = "/shoutcast"
TOML = """
[http]
shoutcast = "{}"
shoutcast_mount = "{}"
[streams."/gst-icy"]
shoutcast_sid = 2
"""
ALL = CODINGS | MORE_CODINGS
ENDS = {"mp3": ".mp3", "vorbis": ".ogg", "opus": ".opus", "flac": ".oga"}  # ezstream goes by them

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def shoutcast() -> tuple[str, int]:
    """The origin's door for SHOUTcast 1."""
    return "127.0.0.1", free_port()


@pytest.fixture(scope="module")
def row(
    shoutcast: tuple[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[NodeProcess]]:
    """Three nodes; each test has a mount of its own, of SHOUTcast the default or one with an id."""
    path = tmp_path_factory.mktemp("node") / "relay.toml"
    path.write_text(TOML.format("{}:{}".format(*shoutcast), SHOUTCAST_MOUNT))
    long = ["--burst-ms", str(BURST_MS)]
    with Nodes() as nodes:
        started = [nodes.start(str(path), *long)]
        for _ in range(2):
            started.append(nodes.start(*long, upstreams=[started[-1].backbone]))
        yield started


@pytest.fixture
def tap(row: list[NodeProcess]) -> Iterator[Tap]:
    """A tap before the origin."""
    with Tap(row[0].address) as opened:
        yield opened


@pytest.fixture(scope="module")
def file_of(ffmpeg: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The beginning of the signal in one coding, with a title; made once."""
    folder = tmp_path_factory.mktemp("files")
    signal = write_signal(folder / "signal.wav", FILE_S)
    told = ["-metadata", f"artist={ARTIST}", "-metadata", f"title={SONG}"]

    def make(name: str) -> Path:
        path = folder / f"signal{ENDS[name]}"
        if not path.exists():
            words = [ffmpeg, "-v", "error", "-i", str(signal), *ALL[name].codec, *told, str(path)]
            subprocess.run(words, check=True, timeout=60)
        return path

    return make


def sent_to(tap: Tap) -> Tapped:
    """The connection that carried audio: of those that were made, the one that said most."""
    return max(tap.all, key=lambda one: len(one.said))


def title_on(node: NodeProcess, mount: str) -> str | None:
    """What plays there."""
    streams = node.json("/api/v1/status")["streams"]
    return next((stream["title"] for stream in streams if stream["mount"] == mount), None)


def listen(row: list[NodeProcess], crowd: Crowd, mount: str) -> list[Listener]:
    """One listener each on the origin and two hops away, both with titles."""
    for node in (row[0], row[2]):
        wait_known(node, mount, timeout_s=8.0)
    return [crowd.join(node.address, mount, icy=True) for node in (row[0], row[2])]


def expect_whole(ffmpeg: str, listeners: list[Listener], file: Path, program: Program) -> None:
    """Once the encoder has ended: each listener has the whole file, and it is the signal."""
    assert program.wait(FILE_S + 9.0) == 0, program
    audio = file.read_bytes()
    audio = audio[skip_id3(audio) :]
    wait_until(
        lambda: all(len(who.body) >= len(audio) for who in listeners), 5.0, what="the last frame"
    )
    assert [bytes(who.body) == audio for who in listeners] == [True, True], listeners
    decoded = decode(ffmpeg, audio)
    assert decoded.errors == ""
    check_signal(decoded.audio, SECONDS_MIN)


def expect_titles(row: list[NodeProcess], listeners: list[Listener], mount: str) -> None:
    """The title is told on both nodes; and, but in Ogg, between the audio."""
    block = f"StreamTitle='{TITLE}';".encode()

    def is_told() -> bool:
        asked = [who for who in listeners if "icy-metaint" in who.headers]
        return all(title_on(node, mount) == TITLE for node in (row[0], row[2])) and all(
            block in [title.block for title in who.titles] for who in asked
        )

    wait_until(is_told, 8.0, what="the title", every_s=0.1)


@pytest.mark.parametrize(
    ("name", "kind", "tls"),
    [("mp3", "MP3", "None"), ("mp3", "MP3", "May"), ("vorbis", "Ogg", "None"),
     ("opus", "Ogg", "None"), ("flac", "Ogg", "May")],
)  # fmt: skip
def test_ezstream_is_heard_whole(
    row: list[NodeProcess],
    tap: Tap,
    crowd: Crowd,
    programs: Programs,
    ffmpeg: str,
    ezstream_path: str,
    file_of: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    kind: str,
    tls: str,
) -> None:
    """SOURCE at once; or, where TLS is wanted if there is some, a question about that, one without
    a password, and PUT."""
    mount = f"/ezstream-{name}-{tls}"
    words = ezstream(ezstream_path, tmp_path, file_of(name), tap.address, mount, kind, name=NAME,
                     tls=tls)  # fmt: skip
    program = programs.start(*words)
    listeners = listen(row, crowd, mount)
    expect_titles(row, listeners, mount)
    expect_whole(ffmpeg, listeners, file_of(name), program)
    assert sent_to(tap).said.startswith(b"SOURCE " if tls == "None" else b"PUT ")
    for who in listeners:
        assert who.headers["content-type"] == ALL[name].content_type.replace("application", "audio")
        assert (who.headers["icy-name"], who.headers["icy-pub"]) == (NAME, "1")


def test_ezstream_of_standard_input_is_heard_whole(
    row: list[NodeProcess],
    crowd: Crowd,
    programs: Programs,
    ffmpeg: str,
    ezstream_path: str,
    file_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """As at the end of a pipe: what another program encodes."""
    words = ezstream(ezstream_path, tmp_path, None, row[0].address, "/stdin", "Ogg")
    program = programs.start("sh", "-c", '"$@" <"$0"', str(file_of("vorbis")), *words)
    expect_whole(ffmpeg, listen(row, crowd, "/stdin"), file_of("vorbis"), program)


def test_ezstream_of_shoutcast_is_heard_whole(
    row: list[NodeProcess],
    shoutcast: tuple[str, int],
    crowd: Crowd,
    programs: Programs,
    ffmpeg: str,
    ezstream_path: str,
    file_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """ICY: audio to the port above, titles to /admin.cgi with the password; its question before
    it gives the password is no break-in."""

    def told_of() -> int:
        return sum(event.get("mount") == "SHOUTcast" for event in tuple(row[0].events))

    before = told_of()
    with ShoutcastTaps(row[0].address, shoutcast) as taps:
        words = ezstream(ezstream_path, tmp_path, file_of("mp3"), taps.titles.address, "/unused",
                         "MP3", name=NAME, protocol="ICY")  # fmt: skip
        program = programs.start(*words)
        listeners = listen(row, crowd, SHOUTCAST_MOUNT)
        expect_titles(row, listeners, SHOUTCAST_MOUNT)
        expect_whole(ffmpeg, listeners, file_of("mp3"), program)
        (question,) = [one for one in taps.audio.all if one.said.startswith(b"!POKE\n")]
    assert question.answer == b"invalid password\r\n"
    assert sent_to(taps.audio).answer == b"OK2\r\nicy-caps:11\r\n\r\n"
    assert told_of() == before
    assert listeners[1].headers["icy-name"] == NAME


@pytest.mark.parametrize(
    ("protocol", "said", "answer"),
    [
        ("http", b"PUT /gst-http HTTP/1.1\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("xaudiocast", b"SOURCE %b /gst-xaudiocast\n" % PASSWORD.encode(), b"OK\r\n\r\n"),
        ("icy", b"%b:#2\nicy-name:" % PASSWORD.encode(), b"OK2\r\nicy-caps:11\r\n\r\n"),
    ],
    ids=["http", "xaudiocast", "icy"],
)
def test_gstreamer_is_heard_whole(
    row: list[NodeProcess],
    shoutcast: tuple[str, int],
    crowd: Crowd,
    programs: Programs,
    ffmpeg: str,
    gst_launch: str,
    file_of: Callable[[str], Path],
    protocol: str,
    said: bytes,
    answer: bytes,
) -> None:
    """Three ways to say the same; Icecast 1's has the password before the mount, SHOUTcast's none
    but an id behind the password."""
    mount, secret = f"/gst-{protocol}", PASSWORD + (":#2" if protocol == "icy" else "")
    with ShoutcastTaps(row[0].address, shoutcast) as taps:
        words = shout2send(gst_launch, file_of("mp3"), taps.titles.address, mount, protocol, NAME,
                           password=secret)  # fmt: skip
        program = programs.start(*words)
        listeners = listen(row, crowd, mount)
        expect_titles(row, listeners, mount)
        expect_whole(ffmpeg, listeners, file_of("mp3"), program)
        sent = sent_to(taps.audio if protocol == "icy" else taps.titles)
    assert said in sent.said[:4000]
    assert answer in sent.answer
    assert listeners[1].headers["icy-name"] == NAME


def test_ices_is_heard_whole(
    row: list[NodeProcess],
    crowd: Crowd,
    programs: Programs,
    ffmpeg: str,
    ices_path: str,
    file_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Icecast's own source client, which sends Ogg Vorbis alone."""
    words = ices(ices_path, tmp_path, file_of("vorbis"), row[0].address, "/ices", NAME)
    program = programs.start(*words)
    listeners = listen(row, crowd, "/ices")
    expect_titles(row, listeners, "/ices")
    expect_whole(ffmpeg, listeners, file_of("vorbis"), program)
    assert listeners[1].headers["icy-name"] == NAME


@pytest.mark.parametrize("protocol", ["HTTP", "ICY"])
def test_wrong_password_is_told_by_ezstream(
    row: list[NodeProcess],
    shoutcast: tuple[str, int],
    programs: Programs,
    ezstream_path: str,
    file_of: Callable[[str], Path],
    tmp_path: Path,
    protocol: str,
) -> None:
    """It gives up, and says why; nothing is claimed."""
    with ShoutcastTaps(row[0].address, shoutcast) as taps:
        words = ezstream(ezstream_path, tmp_path, file_of("mp3"), taps.titles.address, "/no", "MP3",
                         protocol=protocol, password="wrong")  # fmt: skip
        said = programs.run(*words)
    assert said.wait(0) != 0
    assert "Login failed" in said.errors
    assert row[0].get("/no").status == 404
    row[0].wait_event("source_refused", mount="/no" if protocol == "HTTP" else "SHOUTcast")
