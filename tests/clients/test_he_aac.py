"""HE-AAC, versions 1 and 2: carried byte for byte at its own pace, and decoded as what it is.

Rules of this room
  1. The frames are AAC-LC from FFmpeg with band replication and parametric stereo of our own
     (tools/he_aac.py): Debian has no encoder of it. FFmpeg's decoder says whether they are HE-AAC.
  2. curl sends a file; the node reads it at the pace of its media time.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tools.audio import check_signal, decode, write_signal
from tools.he_aac import CHANNELS, he_aac
from tools.listeners import Crowd
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_known, wait_until
from tools.programs import Programs

FILE_S, SECONDS_MIN = 8.0, 6
BURST_MS = 12_000
PROFILES = {1: "HE-AAC", 2: "HE-AACv2"}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def row() -> Iterator[list[NodeProcess]]:
    """Three nodes; who comes hears a stream from its beginning."""
    with Nodes() as nodes:
        yield nodes.row(3, "--burst-ms", str(BURST_MS))


@pytest.fixture(scope="module")
def sound_of(ffmpeg: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], bytes]:
    """The signal as HE-AAC of a version."""
    signal = write_signal(tmp_path_factory.mktemp("signal") / "signal.wav", FILE_S)

    def make(version: int) -> bytes:
        how = ["-ac", str(CHANNELS[version]), "-ar", "24000", "-c:a", "aac", "-b:a", "48k"]
        words = [ffmpeg, "-v", "error", "-i", str(signal), *how, "-f", "adts", "pipe:1"]
        done = subprocess.run(words, capture_output=True, check=True, timeout=60)
        return he_aac(done.stdout, version)

    return make


def profile_of(ffmpeg: str, data: bytes) -> str:
    """What FFmpeg's decoder takes it for."""
    words = [ffmpeg, "-hide_banner", "-i", "pipe:0", "-f", "null", "-"]
    done = subprocess.run(words, input=data, capture_output=True, check=True, timeout=60)
    (line,) = [x for x in done.stderr.decode().splitlines() if "Stream #0:0: Audio: aac" in x]
    return line.partition("Audio: aac ")[2]


@pytest.mark.parametrize("version", [1, 2])
def test_he_aac_is_carried_and_decoded(
    row: list[NodeProcess],
    crowd: Crowd,
    programs: Programs,
    ffmpeg: str,
    curl: str,
    sound_of: Callable[[int], bytes],
    tmp_path: Path,
    version: int,
) -> None:
    """As `audio/aacp`, the name that encoders give it; a frame lasts as long as its LC."""
    mount, path = f"/he-{version}", tmp_path / "sound.aac"
    sound = sound_of(version)
    path.write_bytes(sound)
    words = ["-u", f"source:{PASSWORD}", "-H", "Content-Type: audio/aacp", "-T", str(path)]
    program = programs.start(curl, "-sSi", *words, row[0].url(mount))
    wait_known(row[2], mount, timeout_s=8.0)
    listeners = [crowd.join(node.address, mount) for node in (row[0], row[2])]
    assert program.wait(FILE_S + 5.0) == 0, program
    told = row[0].wait_event("source_down", mount=mount)["text"]
    (media_s,) = re.findall(r"after ([\d.]+) s of audio", told)
    assert float(media_s) == pytest.approx(FILE_S, abs=0.2)
    wait_until(
        lambda: all(len(who.body) >= len(sound) for who in listeners), 5.0, what="the last frame"
    )
    for who in listeners:
        assert bytes(who.body) == sound
        assert who.headers["content-type"] == "audio/aac"
    assert profile_of(ffmpeg, sound).startswith(f"({PROFILES[version]}), 48000 Hz, stereo")
    decoded = decode(ffmpeg, sound)
    assert decoded.errors == ""
    check_signal(decoded.audio, SECONDS_MIN)
