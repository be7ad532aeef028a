"""Players that decode by themselves, not through FFmpeg: mpg123, and ogg123 of the Vorbis tools.

Rules of this room
  1. Each hears the origin, and the third of three nodes; what it decodes must be the signal.
  2. A player of a live stream does not end by itself: it is ended when it has given enough.
  3. Over HTTP, ogg123 takes all Ogg for Vorbis, Icecast's too; so it hears that alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from tools.audio import CODINGS, MORE_CODINGS, RATE_HZ, check_signal, encoder
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_known, wait_until
from tools.programs import Program, Programs

ALL = CODINGS | MORE_CODINGS
NAMES = ("mp3", "vorbis")
TITLE = "Ada Lovelace - Teil 1"
HELD_MS = 4000  # of each stream when players come: they join in mid-stream
SECONDS_MIN = 4
PCM_BYTES = (SECONDS_MIN + 2) * RATE_HZ * 4  # 16 bits, stereo; a part of a second at each end

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def row(ffmpeg: str, signal_wav: Path) -> Iterator[list[NodeProcess]]:
    """Three nodes in a row, with all codings on the first."""
    with Nodes() as nodes, Programs() as programs:
        started = nodes.row(3)
        for name in NAMES:
            words = encoder(ffmpeg, signal_wav, ALL[name], started[0].address, loop=True)
            programs.start(*words)

        def is_old_enough() -> bool:
            streams = started[0].json("/api/v1/status")["streams"]
            return len(streams) == len(NAMES) and all(s["held_ms"] >= HELD_MS for s in streams)

        wait_until(is_old_enough, 20.0, what=f"{HELD_MS} ms of each stream", every_s=0.2)
        fields = {"mode": "updinfo", "pass": PASSWORD, "song": TITLE, "mount": ALL["mp3"].mount}
        assert started[0].get(f"/admin.cgi?{urlencode(fields)}").status == 200
        wait_known(started[2], *(ALL[name].mount for name in NAMES))
        yield started


@pytest.fixture(params=[0, 2], ids=["origin", "edge"])
def node(row: list[NodeProcess], request: pytest.FixtureRequest) -> NodeProcess:
    """The node that is heard."""
    found: NodeProcess = row[request.param]
    return found


def heard(program: Program) -> np.ndarray:
    """What a player decodes to its standard output (int16, stereo) as mono, once it is enough."""
    wait_until(
        lambda: program.output_bytes >= PCM_BYTES or not program.alive, 20.0, what=repr(program)
    )
    program.kill()
    pcm = np.frombuffer(program.output[: program.output_bytes // 4 * 4], dtype="<i2")
    return pcm.reshape(-1, 2)[:, 0]


def test_mpg123_decodes_the_signal_and_shows_the_title(
    node: NodeProcess, programs: Programs, mpg123: str
) -> None:
    """It asks for titles by itself, and takes them out of the audio."""
    program = programs.start(mpg123, "-v", "-s", node.url(ALL["mp3"].mount))
    check_signal(heard(program), SECONDS_MIN)
    assert f"StreamTitle='{TITLE}';" in program.errors


def test_ogg123_decodes_the_signal(node: NodeProcess, programs: Programs, ogg123: str) -> None:
    """By libvorbis, from pages whose time does not begin at 0."""
    program = programs.start(ogg123, "-q", "-d", "raw", "-f", "-", node.url(ALL["vorbis"].mount))
    check_signal(heard(program), SECONDS_MIN)
