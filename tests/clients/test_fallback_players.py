"""Real encoders and players across a fallback: MP3 and Ogg Opus, over and back.

Rules of this room
  1. One outage serves all tests: for each coding an ffmpeg pushes the talk and one the music; the
     talk's is killed and started again.
  2. What players make of it is judged by FFmpeg, which stops at its first error.
"""

from __future__ import annotations

import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tools.audio import (
    BOS,
    CODINGS,
    PLACE_BYTES,
    RATE_HZ,
    Coding,
    chains,
    decode,
    encoder,
    pages,
    signal,
    skip_id3,
)
from tools.listeners import Crowd, Listener
from tools.nodes import Nodes, wait_until
from tools.programs import Program, Programs, Tap, Tapped

NAMES = ("mp3", "opus")
HEARD_S = 2.0
AWAY_S = 3.5
AFTER_S = 2.5
PLAYER_S = 7  # of media, from before the outage to after it

pytestmark = [pytest.mark.timeout(90), pytest.mark.soak]


def longest(reference: bytes, received: bytes) -> tuple[int, int]:
    """Where what was received begins in the reference, and how much of it follows there."""
    begin = reference.find(received[:PLACE_BYTES])
    assert begin >= 0, f"{received[:16].hex()}… was never sent"
    wanted = np.frombuffer(reference[begin : begin + len(received)], np.uint8)
    differs = np.flatnonzero(wanted != np.frombuffer(received[: len(wanted)], np.uint8))
    return begin, int(differs[0]) if len(differs) else len(wanted)


def write_music(path: Path) -> Path:
    """Something else than the talk, from its first frame on; returns the path."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        mono = signal(60.0)[::-1]
        file.writeframes(np.column_stack([mono, mono]).tobytes())
    return path


@dataclass
class Outage:
    """One mount through the outage."""

    coding: Coding
    talks: list[Tapped]  # what the two runs of its encoder wrote
    music: Tapped
    listener: Listener
    player: Program


@pytest.fixture(scope="module")
def outages(
    ffmpeg: str, signal_wav: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Outage]]:
    """Two mounts, each with a fallback in its format."""
    home = tmp_path_factory.mktemp("fallback")
    path, music_wav = home / "relay.toml", write_music(home / "music.wav")
    lines = ["[defaults]", "pace_ms = 100", "burst_ms = 2000", "fallback_after_ms = 1500"]
    for name in NAMES:
        mount = CODINGS[name].mount
        lines += [f'[streams."{mount}"]', f'fallback = "{mount}.music"']
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with Nodes() as nodes, Programs() as programs, Crowd() as crowd:
        origin, edge = nodes.row(2, str(path))
        codings = [CODINGS[name] for name in NAMES]
        with Tap(origin.address) as tap:

            def push(wav: Path, more: str = "") -> list[Program]:
                commands = [
                    encoder(ffmpeg, wav, coding, tap.address, mount=coding.mount + more)
                    for coding in codings
                ]
                return [programs.start(*command) for command in commands]

            push(music_wav, ".music")
            talkers = push(signal_wav)
            music = [tap.wait_for(f"{coding.mount}.music") for coding in codings]
            before = [tap.wait_for(coding.mount) for coding in codings]
            time.sleep(HEARD_S)
            found = {}
            for at, name in enumerate(NAMES):
                mount = CODINGS[name].mount
                listen = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-xerror"]
                player = programs.start(
                    *listen, "-i", edge.url(mount), "-t", str(PLAYER_S), "-f", "null", "-"
                )
                listener = crowd.join(edge.address, mount)
                found[name] = Outage(CODINGS[name], [before[at]], music[at], listener, player)
            time.sleep(HEARD_S)
            for talker in talkers:
                talker.kill()
            time.sleep(AWAY_S)
            talkers = push(signal_wav)
            for one in found.values():
                one.talks.append(tap.wait_for(one.coding.mount, 2))
            time.sleep(AFTER_S)
            wait_until(lambda: all(not one.player.alive for one in found.values()), 10.0)
        yield found


@pytest.mark.parametrize("name", NAMES)
def test_ffmpeg_decodes_over_and_back_without_an_error_line(
    outages: dict[str, Outage], ffmpeg: str, name: str
) -> None:
    """Live at the edge, and again from the bytes of a listener."""
    outage = outages[name]
    assert outage.player.wait(5.0) == 0
    assert outage.player.errors == ""
    heard = decode(ffmpeg, bytes(outage.listener.body))
    assert heard.errors == ""
    assert heard.media_s >= PLAYER_S


@pytest.mark.parametrize("name", NAMES)
def test_the_listener_stays_and_hears_the_talk_the_music_and_the_talk(
    outages: dict[str, Outage], name: str
) -> None:
    """Bytes of the music between those of the two runs, on one connection."""
    outage = outages[name]
    body = bytes(outage.listener.body)
    assert outage.listener.end == ""
    if outage.coding.is_ogg:
        parts = chains(body)
        assert len(parts) == 3
        serials = [{page.serial for page in pages(part)} for part in parts]
        assert [len(serial) for serial in serials] == [1, 1, 1]
        assert serials[0] != serials[1] != serials[2]
        assert all(pages(part)[0].flags & BOS for part in parts)
        return
    at = 0
    written = [outage.talks[0].body, outage.music.body, outage.talks[1].body]
    begins = []
    for reference in written:
        begin, size = longest(reference, body[at:])
        begins.append(begin)
        at += size
    assert at == len(body)
    # a byte or two of the next frame's head are those that would have come anyway
    assert 0 <= begins[2] - skip_id3(written[2]) < 8, "not from the beginning of its new run"
