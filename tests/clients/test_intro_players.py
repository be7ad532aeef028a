"""An intro in front of a stream, heard by real players on the origin and two hops away.

Rules of this room
  1. The intro is what one ffmpeg wrote to a file, with tags; the stream is another's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.audio import CODINGS, chains, decode, encoder, find_run, skip_id3, split_headers
from tools.listeners import IcyStripper
from tools.nodes import NodeProcess, Nodes, wait_until
from tools.programs import Programs, Tap, Tapped

MP3, OPUS = CODINGS["mp3"], CODINGS["opus"]
INTRO_S = 2.0

pytestmark = pytest.mark.timeout(120)


class Row:
    """What is on the air: two mounts with an intro each, and the nodes that are asked."""

    def __init__(self, nodes: list[NodeProcess], sent: dict[str, Tapped], files: dict[str, Path]):
        self.nodes = nodes
        self.sent = sent
        self.files = files


@pytest.fixture(scope="module")
def row(ffmpeg: str, signal_wav: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Row]:
    """Three nodes in a row, all with the same settings."""
    place = tmp_path_factory.mktemp("intro")
    with Nodes() as nodes, Programs() as programs:
        files = {}
        for coding in (MP3, OPUS):
            files[coding.mount] = path = place / f"intro.{coding.muxer}"
            words = ("-f", "lavfi", "-i", "sine=f=700:r=48000", "-t", str(INTRO_S))
            programs.run(
                *(ffmpeg, "-v", "error", "-nostdin", *words, "-ac", "2", *coding.codec),
                *("-metadata", "title=Intro", "-f", coding.muxer, str(path)),
            )
        config = place / "relay.toml"
        config.write_text(
            "".join(f'[streams."{m}"]\nintro = "{f}"\nicy_ogg = true\n' for m, f in files.items())
        )
        started = nodes.row(3, str(config))
        with Tap(started[0].address) as tap:
            for coding in (MP3, OPUS):
                programs.start(*encoder(ffmpeg, signal_wav, coding, tap.address, loop=True))
            sent = {coding.mount: tap.wait_for(coding.mount) for coding in (MP3, OPUS)}
            wait_until(lambda: len(sent[MP3.mount].body) > 80_000, 20.0, what="5 s of audio")
            yield Row([started[0], started[2]], sent, files)


def got(programs: Programs, curl: str, url: str, icy: bool) -> bytes:
    """What curl has of a stream after three seconds, without title blocks."""
    ask = ["-H", "Icy-MetaData: 1"] if icy else []
    body = programs.run(curl, "-sS", *ask, "--max-time", "3", url).output
    return IcyStripper(16_000).feed(body) if icy else body


@pytest.mark.parametrize("number", [0, 1], ids=["origin", "edge"])
@pytest.mark.parametrize("icy", [False, True])
def test_an_mp3_begins_with_the_intro_and_goes_on_at_a_frame(
    row: Row, programs: Programs, curl: str, ffmpeg: str, number: int, icy: bool
) -> None:
    """Every byte of its frames, then a run of the stream; it decodes without an error."""
    audio = got(programs, curl, row.nodes[number].url(MP3.mount), icy)
    intro = row.files[MP3.mount].read_bytes()
    intro = intro[skip_id3(intro) :]
    size = next(n for n in range(len(intro), 0, -1) if audio[:n] == intro[:n])
    assert size >= len(intro) - 1000, "the intro is not whole"
    rest = audio[size:]
    find_run(row.sent[MP3.mount].body, rest)
    assert rest[0] == 0xFF
    whole = decode(ffmpeg, audio[: len(audio) // 4 * 4])
    assert whole.media_s > INTRO_S + 4


@pytest.mark.parametrize("number", [0, 1], ids=["origin", "edge"])
@pytest.mark.parametrize("icy", [False, True])
def test_an_ogg_is_a_chain_of_its_own_before_the_stream(
    row: Row, programs: Programs, curl: str, ffmpeg: str, number: int, icy: bool
) -> None:
    """Its pages, then the stream's header pages, then audio."""
    audio = got(programs, curl, row.nodes[number].url(OPUS.mount), icy)
    whole = audio[: audio.rindex(b"OggS")]
    intro, stream = chains(whole)[:2]
    assert intro == row.files[OPUS.mount].read_bytes()
    header, _ = split_headers(row.sent[OPUS.mount].body)
    assert stream.startswith(header)
    assert decode(ffmpeg, whole).errors == ""


@pytest.mark.parametrize("coding", [MP3, OPUS], ids=["mp3", "opus"])
def test_mpv_plays_over_the_join(row: Row, programs: Programs, mpv: str, coding: object) -> None:
    """Longer than the intro, to the end that was asked for."""
    url = row.nodes[1].url(coding.mount)  # type: ignore[attr-defined]
    program = programs.run(
        *(mpv, "--no-config", "--no-video", "--ao=null", "--end=6", "--term-status-msg=", url),
        timeout_s=40.0,
    )
    assert program.wait(0) == 0, program.output


def test_a_wrong_intro_keeps_the_node_from_starting(tmp_path: Path) -> None:
    """With a line that names the file and the reason."""
    (tmp_path / "x.flac").write_bytes(b"fLaC" + bytes(1000))
    config = tmp_path / "relay.toml"
    config.write_text(f'[streams."/live"]\nintro = "{tmp_path / "x.flac"}"\n')
    node = NodeProcess(str(config), backbone="none")
    node.spawn()
    assert node.wait(15.0) == 2
    assert "is flac; an intro must be what the mount is" in node.output()
