"""Joining at any time: a running node, real encoders, and every join decodes from its first byte.

Rules of this room
  1. Listeners come at random moments while the encoders go on; then the encoders are killed, and
     each body ends where its stream does: behind a whole frame.
  2. What a decoder says is an error, but for MP3's first frames: those may lean on bits of frames
     from before the join (the reservoir, ISO/IEC 11172-3 §2.4.3.4).
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tools.audio import CODINGS, MORE_CODINGS, Coding, encoder
from tools.listeners import Crowd, Listener
from tools.nodes import Nodes, wait_until
from tools.programs import Programs

JOINS, JOINS_SOAK, AT_ONCE = 20, 200, 50
SPREAD_S = 6.0  # over which the joins are spread
LAST_S = 2.0  # that the last one hears
RESERVOIR = ("invalid new backstep", "overread", "Error while decoding", "Invalid data found")
CLUSTERS = ("-c:a", "libopus", "-b:a", "96k", "-cluster_time_limit", "500")
ALL = CODINGS | MORE_CODINGS | {"webm": Coding("/talk.webm", "audio/webm", CLUSTERS, "webm")}

pytestmark = pytest.mark.timeout(300)


def join_all(
    crowd: Crowd, address: tuple[str, int], count: int, dice: random.Random
) -> dict[str, list[Listener]]:
    """So many of each coding, in any order, over SPREAD_S."""
    wanted = [name for name in ALL for _ in range(count)]
    dice.shuffle(wanted)
    moments = sorted(dice.uniform(0, SPREAD_S) for _ in wanted)
    found: dict[str, list[Listener]] = {name: [] for name in ALL}
    begin = time.monotonic()
    for moment, name in zip(moments, wanted, strict=True):
        time.sleep(max(0.0, begin + moment - time.monotonic()))
        found[name].append(crowd.join(address, ALL[name].mount))
    time.sleep(LAST_S)
    return found


def said(ffmpeg: str, paths: Sequence[Path]) -> list[str]:
    """What ffmpeg has to say of these files, decoded whole."""
    words = [ffmpeg, "-v", "error", "-nostdin"]
    for path in paths:
        words += ["-i", str(path)]
    for number in range(len(paths)):
        words += ["-map", f"{number}:a", "-f", "null", "-"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert ended.returncode == 0, lines[:5]
    return lines


@pytest.mark.parametrize("count", [JOINS, pytest.param(JOINS_SOAK, marks=pytest.mark.soak)])
def test_joins_at_random_moments_decode(
    ffmpeg: str, signal_wav: Path, tmp_path: Path, count: int
) -> None:
    """All codings at once, on one node."""
    settings = tmp_path / "relay.toml"
    settings.write_text("[defaults]\nlinger_s = 1\n")
    with Nodes() as nodes, Programs() as programs, Crowd() as crowd:
        node = nodes.start(str(settings), backbone="none")
        encoders = [
            programs.start(*encoder(ffmpeg, signal_wav, coding, node.address, loop=True))
            for coding in ALL.values()
        ]

        def up() -> bool:
            told = node.json("/api/v1/status")["streams"]
            return sum(stream["state"] == "live" for stream in told) == len(ALL)

        wait_until(up, 60.0, what="every encoder", every_s=0.2)
        heard = join_all(crowd, node.address, count, random.Random(3))
        for program in encoders:
            program.kill()
        everybody = [listener for listeners in heard.values() for listener in listeners]
        wait_until(lambda: not any(one.alive for one in everybody), 30.0, what="the end of all")
    for name, listeners in heard.items():
        paths = []
        for number, listener in enumerate(listeners):
            assert listener.status == 200, (name, listener)
            assert len(listener.body) > 8000, (name, listener)
            paths.append(tmp_path / f"{name}-{number}")
            paths[-1].write_bytes(listener.body)
        parts = [paths[at : at + AT_ONCE] for at in range(0, count, AT_ONCE)]
        lines = [line for part in parts for line in said(ffmpeg, part)]
        print(f"{name}: {count} joins, {len(lines)} lines of the decoder: {sorted(set(lines))[:3]}")
        if name == "mp3":
            assert all(any(word in line for word in RESERVOIR) for line in lines), lines
            assert len(lines) <= 3 * count
        else:
            assert lines == []
