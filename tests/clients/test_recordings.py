"""Recordings are files that real decoders play, from their first byte to their last.

Rules of this room
  1. ffmpeg sends, a node records, ffmpeg reads each file whole and says nothing about it.
  2. Waits have bounds and are for what must come.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path

import pytest
from tools.audio import (
    CODINGS,
    MORE_CODINGS,
    Coding,
    decode,
    encoder,
    pages,
    split_headers,
)
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_until
from tools.programs import Programs

WAIT_S = 60.0
# A cluster is what a WebM is cut at; FFmpeg's own last up to five seconds.
SHORT = ("-cluster_time_limit", "1000")
CODED = {
    **CODINGS,
    **MORE_CODINGS,
    "speex": Coding(
        "/talk.spx", "audio/ogg", ("-c:a", "libspeex", "-ar", "32000", "-ac", "1"), "ogg"
    ),
    "webm": Coding("/talk.webm", "audio/webm", ("-c:a", "libopus", "-b:a", "96k", *SHORT), "webm"),
    "matroska": Coding(
        "/talk.mka", "audio/x-matroska", ("-c:a", "aac", "-b:a", "96k", *SHORT), "matroska"
    ),
}
SUFFIXES = {"mp3": ".mp3", "aac": ".aac", "webm": ".webm", "matroska": ".mka"}
BEGINS = {".webm": b"\x1a\x45\xdf\xa3", ".mka": b"\x1a\x45\xdf\xa3", ".ogg": b"OggS"}
CLUSTER = b"\x1f\x43\xb6\x75"

pytestmark = pytest.mark.timeout(240)


def set_title(node: NodeProcess, mount: str, title: str) -> None:
    """As an encoder does."""
    fields = {"mode": "updinfo", "mount": mount, "song": title, "pass": PASSWORD}
    answer = node.get("/admin.cgi?" + urllib.parse.urlencode(fields))
    assert answer.status == 200, answer


def finished(home: Path) -> list[Path]:
    """The recordings that are done, oldest first."""
    return sorted(p for p in home.rglob("*") if p.suffix in {".ogg", *SUFFIXES.values()})


def parts(home: Path) -> list[Path]:
    """The recordings that are being written; the list of what is done is written so, too."""
    return [path for path in home.rglob("*.part") if not path.name.startswith(".")]


def part_with_audio(home: Path) -> Path:
    """The file that is written now, once more than what it began with is in it."""
    part = wait_until(lambda: next(iter(parts(home)), None), WAIT_S, what="a file")
    size = part.stat().st_size
    wait_until(lambda: part.stat().st_size > size + 10_000, WAIT_S, what="audio")
    return part


def check_begin(file: Path, coding: Coding) -> None:
    """A file has the headers of its container once, in front, and then what may follow them."""
    data = file.read_bytes()
    magic = BEGINS.get(file.suffix)
    if magic is None:
        return
    assert data.startswith(magic)
    if coding.is_ogg:
        headers, audio = split_headers(data)
        assert headers
        assert audio.startswith(magic)
        assert len({page.serial for page in pages(data)}) == 1
    else:
        assert data.count(magic) == 1
        assert data.index(CLUSTER) < 4096


@pytest.mark.parametrize("name", list(CODED))
def test_each_file_plays_whole(
    nodes: Nodes, programs: Programs, ffmpeg: str, signal_wav: Path, tmp_path: Path, name: str
) -> None:
    """Cut by title and by time, in the middle of a programme."""
    coding = CODED[name]
    suffix = SUFFIXES.get(name, ".ogg")
    config = tmp_path / "relay.toml"
    config.write_text(
        f'[defaults]\nrecord = "{tmp_path}/{{mount}}/%H%M%S {{title}}{suffix}"\n'
        "record_cut_s = 0\nrecord_cut_on_title = true\n"
    )
    node = nodes.start(str(config), timeout_s=WAIT_S)
    programs.start(*encoder(ffmpeg, signal_wav, coding, node.address, loop=True))
    home = tmp_path / coding.mount.strip("/")
    for title in ("One/../..", "Two"):
        part = part_with_audio(home)
        set_title(node, coding.mount, title)
        wait_until(lambda file=part: not file.exists(), WAIT_S, what=f"the cut at {title}")
    part_with_audio(home)  # a file without a frame is removed when the node ends
    node.terminate(timeout_s=10.0)
    files = finished(home)
    assert len(files) == 3, files
    assert any("One_.._" in file.name for file in files)
    for file in files:
        said = programs.run(
            *(ffmpeg, "-v", "warning", "-i", str(file), "-f", "null", "-"), timeout_s=WAIT_S
        )
        assert said.process.returncode == 0
        assert "Header missing" not in said.errors
        assert "Invalid" not in said.errors, said.errors
        check_begin(file, coding)
        heard = decode(ffmpeg, file.read_bytes())
        assert heard.media_s > 0.5
        assert name == "mp3" or not heard.errors, heard.errors  # the reservoir of its first frames
    assert not list(home.rglob("*.part"))
