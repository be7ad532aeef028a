"""Real encoders say hello: welcomed, refused with the right status, and their titles are heard.

Rules of this room
  1. Every way in is heard on the third of three nodes: a welcome that leads nowhere is none.
  2. What an encoder wrote is kept by a tap; what a listener hears must be a run of it.
  3. A refusal is checked in the client's own words, which are what its user sees.
"""

from __future__ import annotations

import random
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.audio import CODINGS, encoder, find_run, write_signal
from tools.listeners import Crowd
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_until
from tools.programs import Program, Programs, Tap, Tapped

TITLE = "Ada Lovelace - Über die Maschine's <Töne>; Teil 1"
HEARD_BYTES = 60_000  # more than a burst: live audio too
MP3 = CODINGS["mp3"]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def row() -> Iterator[list[NodeProcess]]:
    """Three nodes; each test has a mount of its own."""
    with Nodes() as nodes:
        yield nodes.row(3)


@pytest.fixture
def tap(row: list[NodeProcess]) -> Iterator[Tap]:
    """A tap before the origin."""
    with Tap(row[0].address) as opened:
        yield opened


@pytest.fixture(scope="module")
def mp3_file(ffmpeg: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of the signal as an MP3 file: more than the MiB from which curl asks first."""
    folder = tmp_path_factory.mktemp("mp3")
    words = ["-v", "error", "-i", str(write_signal(folder / "signal.wav", 70.0)), *MP3.codec]
    path = folder / "signal.mp3"
    subprocess.run([ffmpeg, *words, str(path)], check=True, timeout=60)
    assert path.stat().st_size > 1 << 20
    return path


def ffmpeg_words(ffmpeg: str, source: Path) -> list[str]:
    """An ffmpeg that encodes MP3 in real time; where to is up to the caller."""
    quiet = [ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "warning", "-re", "-i", str(source)]
    return [*quiet, *MP3.codec, "-content_type", MP3.content_type]


def curl_words(curl: str, password: str = PASSWORD, content_type: str = "audio/mpeg") -> list[str]:
    """A curl that uploads with a password and a content type, and shows the answer's head."""
    return [curl, "-sSi", "-u", f"source:{password}", "-H", f"Content-Type: {content_type}"]


def wait_for_mount(node: NodeProcess, mount: str) -> None:
    """Wait until a node knows of a mount: news of it travels from node to node."""

    def knows() -> bool:
        return any(stream["mount"] == mount for stream in node.json("/api/v1/status")["streams"])

    wait_until(knows, 2.0, what=f"{mount} at {node!r}")


def wait_answer(sent: Tapped) -> bytes:
    """Wait for the first lines that an encoder was told."""
    return wait_until(lambda: sent.answer, 2.0, what="an answer to the encoder")


def hear(crowd: Crowd, node: NodeProcess, sent: Tapped, mount: str) -> bytes:
    """Listen on a node until more than the burst has come; expects a run of what was sent."""
    wait_for_mount(node, mount)
    listener = crowd.join(node.address, mount)
    wait_until(
        lambda: listener.audio_bytes >= HEARD_BYTES or not listener.alive,
        15.0,
        what=f"audio of {mount}: {listener!r}",
    )
    heard = bytes(listener.body)
    assert listener.status == 200
    assert listener.headers["content-type"] == "audio/mpeg"
    if b"transfer-encoding: chunked" not in sent.said.partition(b"\r\n\r\n")[0].lower():
        find_run(sent.body, heard)
    return heard


def unchunk(body: bytes) -> bytes:
    """Return the audio of a chunked body (RFC 9112 §7.1); an unfinished chunk is left out."""
    audio, at = b"", 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:end], 16)
        if end + 2 + size > len(body):
            break
        audio += body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return audio


# --- welcome --------------------------------------------------------------------------------------


def test_ffmpeg_icecast_put_is_heard(
    row: list[NodeProcess], tap: Tap, crowd: Crowd, programs: Programs, ffmpeg: str, mp3_file: Path
) -> None:
    """`icecast://`: PUT with Expect, neither length nor chunks, `Ice-` headers passed on."""
    named = ["-ice_name", "A talk", "-ice_genre", "Speech", "-ice_public", "1"]
    programs.start(*encoder(ffmpeg, mp3_file, MP3, tap.address, *named, mount="/icecast"))
    sent = tap.wait_for("/icecast")
    assert sent.said.startswith(b"PUT ")
    assert wait_answer(sent) == b"HTTP/1.1 100 Continue\r\n\r\n"
    hear(crowd, row[2], sent, "/icecast")
    told = crowd.all[0].headers
    assert (told["icy-name"], told["icy-genre"], told["icy-pub"]) == ("A talk", "Speech", "1")


def test_ffmpeg_legacy_source_is_heard(
    row: list[NodeProcess], tap: Tap, crowd: Crowd, programs: Programs, ffmpeg: str, mp3_file: Path
) -> None:
    """`-legacy_icecast 1`: the method SOURCE, answered with 200 at once."""
    old = ["-legacy_icecast", "1"]
    programs.start(*encoder(ffmpeg, mp3_file, MP3, tap.address, *old, mount="/legacy"))
    sent = tap.wait_for("/legacy")
    assert sent.said.startswith(b"SOURCE ")
    assert wait_answer(sent) == b"HTTP/1.0 200 OK\r\n\r\n"
    hear(crowd, row[2], sent, "/legacy")


def test_ffmpeg_http_put_in_chunks_is_heard(
    row: list[NodeProcess], tap: Tap, crowd: Crowd, programs: Programs, ffmpeg: str, mp3_file: Path
) -> None:
    """`http://` with `-method PUT`: asks without a password first, then sends chunks."""
    host, port = tap.address
    url = f"http://source:{PASSWORD}@{host}:{port}/chunks"
    programs.start(*ffmpeg_words(ffmpeg, mp3_file), "-method", "PUT", "-f", "mp3", url)
    sent = tap.wait_for("/chunks", 2)
    first = tap.of("/chunks")[0]
    assert first.answer.startswith(b"HTTP/1.0 401 ")
    assert b"WWW-Authenticate: Basic " in first.answer
    heard = hear(crowd, row[2], sent, "/chunks")
    find_run(unchunk(sent.body), heard)


@pytest.mark.parametrize("expect", [True, False], ids=["with-expect", "without-expect"])
def test_curl_upload_of_a_file_is_heard(
    row: list[NodeProcess],
    tap: Tap,
    crowd: Crowd,
    programs: Programs,
    curl: str,
    mp3_file: Path,
    expect: bool,
) -> None:
    """`curl -T FILE`: has a length; sends Expect by itself, unless that is taken out."""
    mount = f"/upload-{expect}"
    url = "http://{}:{}{}".format(*tap.address, mount)
    options = [] if expect else ["-H", "Expect:"]
    programs.start(*curl_words(curl), *options, "-T", str(mp3_file), url)
    sent = tap.wait_for(mount)
    assert (b"\r\nExpect: 100-continue" in sent.said) == expect
    assert wait_answer(sent).startswith(b"HTTP/1.1 100 " if expect else b"HTTP/1.0 200 ")
    hear(crowd, row[2], sent, mount)


def test_file_sent_at_full_speed_is_held_back_to_real_time(
    row: list[NodeProcess], tap: Tap, crowd: Crowd, programs: Programs, curl: str, mp3_file: Path
) -> None:
    """`curl -T` without a limit would send 70 s at once; the origin reads `ahead_ms` of it."""
    url = "http://{}:{}/fast".format(*tap.address)
    program = programs.start(*curl_words(curl), "-T", str(mp3_file), url)
    sent = tap.wait_for("/fast")
    hear(crowd, row[2], sent, "/fast")
    assert program.alive, "the whole file was taken at once"
    stream = next(s for s in row[0].json("/api/v1/status")["streams"] if s["mount"] == "/fast")
    taken_s = stream["counters"]["received_bytes_total"] / 16_000
    assert taken_s < 30


def test_curl_upload_of_a_pipe_is_heard(
    row: list[NodeProcess],
    tap: Tap,
    crowd: Crowd,
    programs: Programs,
    ffmpeg: str,
    curl: str,
    mp3_file: Path,
) -> None:
    """`ffmpeg … | curl -T -`: chunks, of a length that nobody knows."""
    url = "http://{}:{}/pipe".format(*tap.address)
    left = shlex.join([*ffmpeg_words(ffmpeg, mp3_file), "-f", "mp3", "-"])
    right = shlex.join([*curl_words(curl), "-T", "-", url])
    programs.start("sh", "-c", f"{left} | {right}")
    sent = tap.wait_for("/pipe", timeout_s=8.0)
    heard = hear(crowd, row[2], sent, "/pipe")
    find_run(unchunk(sent.body), heard)


# --- refusals -------------------------------------------------------------------------------------


def refused(programs: Programs, *command: str) -> Program:
    """Run a client that is to be refused; it ends by itself."""
    return programs.run(*command, timeout_s=10.0)


def test_wrong_password_is_told_by_ffmpeg_and_curl(
    row: list[NodeProcess], programs: Programs, ffmpeg: str, curl: str, mp3_file: Path
) -> None:
    """401, in ffmpeg's words and in curl's; nothing is claimed."""
    mount = "/wrong"
    words = encoder(ffmpeg, mp3_file, MP3, row[0].address, password="wrong", mount=mount)
    said = refused(programs, *words)
    assert said.wait(0) != 0
    assert "401 Unauthorized" in said.errors
    told = refused(programs, *curl_words(curl, "wrong"), "-T", str(mp3_file), row[0].url(mount))
    assert told.output.startswith(b"HTTP/1.0 401 ")
    assert b"password is wrong" in told.output
    assert row[0].get(mount).status == 404


def test_mount_in_use_is_told_and_the_first_source_goes_on(
    row: list[NodeProcess],
    tap: Tap,
    crowd: Crowd,
    programs: Programs,
    ffmpeg: str,
    curl: str,
    mp3_file: Path,
) -> None:
    """403 for a second ffmpeg and a curl; who listens to the first one notices nothing."""
    mount = "/taken"
    programs.start(*encoder(ffmpeg, mp3_file, MP3, tap.address, mount=mount))
    sent = tap.wait_for(mount)
    said = refused(programs, *encoder(ffmpeg, mp3_file, MP3, row[0].address, mount=mount))
    assert said.wait(0) != 0
    assert "403 Forbidden" in said.errors
    told = refused(programs, *curl_words(curl), "-T", str(mp3_file), row[0].url(mount))
    assert told.output.startswith(b"HTTP/1.0 403 ")
    assert b"in use" in told.output
    hear(crowd, row[2], sent, mount)


def test_unknown_content_type_is_told(
    row: list[NodeProcess], programs: Programs, ffmpeg: str, curl: str, mp3_file: Path
) -> None:
    """415, with the types that are known."""
    mount = "/type"
    host, port = row[0].address
    url = f"icecast://source:{PASSWORD}@{host}:{port}{mount}"
    words = ffmpeg_words(ffmpeg, mp3_file)[:-1]
    said = refused(programs, *words, "video/mp4", "-f", "mp3", url)
    assert said.wait(0) != 0
    assert "415 Unsupported Media Type" in said.errors
    upload = curl_words(curl, content_type="text/plain")
    told = refused(programs, *upload, "-T", str(mp3_file), row[0].url(mount))
    assert told.output.startswith(b"HTTP/1.0 415 ")
    assert b"audio/mpeg, audio/aac, audio/ogg" in told.output


def test_garbage_ends_its_source_and_nobody_else_notices(
    row: list[NodeProcess],
    tap: Tap,
    crowd: Crowd,
    programs: Programs,
    ffmpeg: str,
    curl: str,
    mp3_file: Path,
    tmp_path: Path,
) -> None:
    """3 MB of noise as MP3: 400 with the reason; another mount of the same node plays on."""
    programs.start(*encoder(ffmpeg, mp3_file, MP3, tap.address, mount="/beside"))
    sent = tap.wait_for("/beside")
    noise = tmp_path / "noise"
    noise.write_bytes(random.Random(5).randbytes(3_000_000))
    told = refused(programs, *curl_words(curl), "-T", str(noise), row[0].url("/garbage"))
    assert b"HTTP/1.0 400 " in told.output
    assert b"without a frame of the promised format" in told.output
    row[0].wait_event("source_down", mount="/garbage")
    hear(crowd, row[2], sent, "/beside")
    assert row[0].get("/healthz").status == 200


def test_other_format_than_promised_is_taken_for_what_it_is(
    row: list[NodeProcess], programs: Programs, ffmpeg: str, mp3_file: Path
) -> None:
    """AAC sent as audio/mpeg: the first bytes have the last word, and the log has it, too."""
    host, port = row[0].address
    words = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-re", "-i", str(mp3_file)]
    url = f"icecast://source:{PASSWORD}@{host}:{port}/liar"
    programs.start(*words, "-c:a", "aac", "-content_type", "audio/mpeg", "-f", "adts", url)
    row[0].wait_event("source_format", 10.0, mount="/liar")
    wait_for_mount(row[0], "/liar")

    def told() -> dict[str, Any]:
        (stream,) = [s for s in row[0].json("/api/v1/status")["streams"] if s["mount"] == "/liar"]
        return stream  # type: ignore[no-any-return]

    assert told()["content_type"] == "audio/aac"
    wait_until(lambda: told()["counters"]["received_frames_total"] > 10, 10.0, what="frames of AAC")


# --- titles ---------------------------------------------------------------------------------------


def test_title_of_the_origin_is_shown_by_ffmpeg_and_curl_on_the_third_node(
    row: list[NodeProcess],
    tap: Tap,
    crowd: Crowd,
    programs: Programs,
    ffmpeg: str,
    curl: str,
    mp3_file: Path,
) -> None:
    """Told by curl to /admin/metadata; a new listener has it in its first block, audio unhurt."""
    mount = "/titled"
    programs.start(*encoder(ffmpeg, mp3_file, MP3, tap.address, mount=mount))
    sent = tap.wait_for(mount)
    wait_for_mount(row[2], mount)
    listener = crowd.join(row[2].address, mount, icy=True)
    wait_until(lambda: listener.audio_bytes > 0, 5.0, what="the first audio")
    told = programs.run(
        *(curl, "-sS", "--get", "-u", f"source:{PASSWORD}", row[0].url("/admin/metadata")),
        *("--data-urlencode", "mode=updinfo", "--data-urlencode", f"mount={mount}"),
        *("--data-urlencode", f"song={TITLE}"),
    )
    assert b"<return>1</return>" in told.output
    # who listens already
    wait_until(lambda: listener.titles, 5.0, what="the title at a listener")
    assert TITLE.partition("'")[0].encode() in listener.titles[-1].block
    find_run(sent.body, bytes(listener.body))
    # who comes later
    url = row[2].url(mount)
    player = programs.run(
        *(ffmpeg, "-hide_banner", "-nostdin", "-i", url, "-t", "1", "-f", "null", "-")
    )
    print(player.errors)
    shown = [line for line in player.errors.splitlines() if "StreamTitle" in line]
    assert shown, player
    assert TITLE in shown[0]
    raw = programs.run(curl, "-sSi", "-H", "Icy-MetaData: 1", "--max-time", "1.5", url)
    head, _, body = raw.output.partition(b"\r\n\r\n")
    assert b"\r\nicy-metaint:" in head
    metaint = int(head.split(b"\r\nicy-metaint:")[1].split(b"\r\n")[0])
    size = body[metaint] * 16
    block = body[metaint + 1 : metaint + 1 + size].rstrip(b"\0")
    assert block.decode() == f"StreamTitle='{TITLE}';"
