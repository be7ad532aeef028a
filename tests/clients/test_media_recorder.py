"""What a browser's MediaRecorder makes: WebM without sizes or cues, sent by curl, played on.

Rules of this room
  1. Chromium records the known signal in real time. Where the machine is slow it may leave some of
     it out; so what is heard is held against what was recorded, to the byte.
  2. curl sends it slowly, in pieces that end anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.audio import decode, find_marks, write_signal
from tools.browser import Browser
from tools.listeners import Crowd
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_known, wait_until
from tools.programs import Program, Programs

MEDIA_S, PIECE_MS = 6.0, 250
KIND = "audio/webm;codecs=opus"
LIMIT = "16k"  # B/s: somewhat more than it takes
EBML, SEGMENT, CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
CUES, UNKNOWN = b"\x1c\x53\xbb\x6b", b"\x01" + b"\xff" * 7  # RFC 9559 §5.1.5, RFC 8794 §6.2
BURST_MS = 10_000  # who comes while it is sent hears it from its beginning

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def row() -> Iterator[list[NodeProcess]]:
    """Three nodes; each test has a mount of its own."""
    with Nodes() as nodes:
        yield nodes.row(3, "--burst-ms", str(BURST_MS))


@pytest.fixture(scope="module")
def recording(
    browser: Browser, row: list[NodeProcess], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The signal as Chromium records it, piece by piece."""
    wav = write_signal(tmp_path_factory.mktemp("signal") / "signal.wav", MEDIA_S)
    browser.open(row[0].url("/"))
    pieces = browser.record(wav.read_bytes(), MEDIA_S, PIECE_MS, KIND)
    whole = b"".join(pieces)
    assert len(pieces) > MEDIA_S * 1000 / PIECE_MS / 2
    assert whole.startswith(EBML)
    assert SEGMENT + UNKNOWN in whole[:64]
    assert whole.count(CLUSTER + UNKNOWN) > 4
    assert CUES not in whole
    return whole


def push(
    programs: Programs, curl: str, recording: bytes, folder: Path, node: NodeProcess, mount: str
) -> Program:
    """A curl that sends the recording slowly, in chunks, as from a pipe."""
    path = folder / "recording.webm"
    path.write_bytes(recording)
    told = ["-u", f"source:{PASSWORD}", "-H", f"Content-Type: {KIND}", "--limit-rate", LIMIT]
    words = [curl, "-sSi", *told, "-T", "-", node.url(mount)]
    return programs.start("sh", "-c", 'exec "$@" <"$0"', str(path), *words)


def test_recording_of_a_browser_is_heard_whole(
    row: list[NodeProcess],
    recording: bytes,
    crowd: Crowd,
    programs: Programs,
    curl: str,
    ffmpeg: str,
    tmp_path: Path,
) -> None:
    """On the origin and two hops away, to the byte; it decodes to the end."""
    program = push(programs, curl, recording, tmp_path, row[0], "/recorded")
    wait_known(row[2], "/recorded", timeout_s=8.0)
    listeners = [crowd.join(node.address, "/recorded") for node in (row[0], row[2])]
    assert program.wait(MEDIA_S + 9.0) == 0, program
    wait_until(
        lambda: all(len(who.body) >= len(recording) for who in listeners), 5.0, what="the end"
    )
    for who in listeners:
        assert bytes(who.body) == recording
        assert who.headers["content-type"] == "audio/webm"
    decoded = decode(ffmpeg, recording)
    assert decoded.errors == ""
    assert decoded.media_s > MEDIA_S - 1.0
    assert len(find_marks(decoded.audio)) > MEDIA_S - 2


def test_recording_of_a_browser_plays_in_one_that_joins_in_mid_stream(
    row: list[NodeProcess],
    recording: bytes,
    browser: Browser,
    programs: Programs,
    curl: str,
    tmp_path: Path,
) -> None:
    """Two hops away, while it is sent: from a cluster on, behind the headers."""
    push(programs, curl, recording, tmp_path, row[0], "/played")
    wait_known(row[2], "/played", timeout_s=8.0)

    def held_ms() -> int:
        streams = row[0].json("/api/v1/status")["streams"]
        return int(next(s["held_ms"] for s in streams if s["mount"] == "/played"))

    wait_until(lambda: held_ms() > 2000, 10.0, what="2 s of it", every_s=0.1)
    browser.open(row[2].url("/"))  # a node's page plays what is its own
    browser.run("document.body.replaceChildren()")
    browser.play(row[2].url("/played"))
    browser.wait_played("/played", 3)
    assert browser.audio("/played")["error"] == ""
