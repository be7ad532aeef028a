"""Real ffmpeg in, three nodes in a row, real ffmpeg and curl out: every byte, every second.

Rules of this room
  1. One run of SIGNAL_S serves all tests: all codings at the same time, each on its mount.
  2. The reference is what ffmpeg wrote to the origin, kept by a tap on the way; ffmpeg's command
     line is an ordinary one, without a flag that would make its bytes repeatable.
  3. Listeners come in the middle of the stream, and stay to its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tools.audio import (
    CODINGS,
    MORE_CODINGS,
    Coding,
    check_signal,
    decode,
    encoder,
    find_run,
    skip_id3,
    split_headers,
)
from tools.nodes import Nodes, wait_until
from tools.programs import Program, Programs, Tap, Tapped

ALL = CODINGS | MORE_CODINGS
HEARD_S_MIN = 50
TAIL_BYTES = 8192
JOIN_AT_S = 5.0  # into the stream: later than the burst of 3 s reaches back

pytestmark = pytest.mark.timeout(180)


@dataclass
class Heard:
    """One coding of the run: what was sent, what curl got, and the ffmpeg that listened."""

    coding: Coding
    pushing: Program
    sent: Tapped
    curl: Program
    player: Program


@pytest.fixture(scope="module")
def run(
    ffmpeg: str, curl: str, signal_wav: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Heard]]:
    """Push the whole signal through three nodes in each coding; listeners on the third node."""
    folder = tmp_path_factory.mktemp("chain")
    with Nodes() as nodes, Programs() as programs:
        origin, _, third = nodes.row(3)
        with Tap(origin.address) as tap:
            pushing = {
                name: programs.start(*encoder(ffmpeg, signal_wav, coding, tap.address))
                for name, coding in ALL.items()
            }
            sent = {name: tap.wait_for(coding.mount) for name, coding in ALL.items()}
            join_s = max(tapped.sent_s(0) for tapped in sent.values()) + JOIN_AT_S
            wait_until(lambda: time.monotonic() > join_s, JOIN_AT_S + 1, what="mid-stream")
            heard = {}
            for name, coding in ALL.items():
                url = third.url(coding.mount)
                listen = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-xerror", "-i", url]
                heard[name] = Heard(
                    coding,
                    pushing[name],
                    sent[name],
                    programs.start(
                        *(curl, "-sS", "--no-buffer", "--max-time", "120", url),
                        stdout=folder / name,
                    ),
                    programs.start(*listen, "-t", str(HEARD_S_MIN), "-f", "null", "-"),
                )
            for one in heard.values():
                one.pushing.wait(90.0)
            wait_until(lambda: all(map(has_all, heard.values())), 5.0, what="the last bytes")
        yield heard


def has_all(heard: Heard) -> bool:
    """Whether curl has the last bytes that the encoder wrote: more than what is alike in frames of
    silence, with which MP3 ends."""
    return heard.curl.output.endswith(heard.sent.body[-TAIL_BYTES:])


def headers_and_audio(coding: Coding, data: bytes) -> tuple[bytes, bytes]:
    """Cut off what comes before audio: Ogg's header pages; other formats have none."""
    return split_headers(data) if coding.is_ogg else (b"", data)


@pytest.mark.parametrize("name", ALL)
def test_curl_on_the_third_node_gets_the_encoders_bytes(run: dict[str, Heard], name: str) -> None:
    """What curl got is one run of what ffmpeg wrote, to its last byte; Ogg's headers lead it."""
    heard = run[name]
    assert heard.pushing.wait(0) == 0, heard.pushing
    headers, audio = headers_and_audio(heard.coding, heard.curl.output)
    sent_headers, _ = headers_and_audio(heard.coding, heard.sent.body)
    assert headers == sent_headers
    at = find_run(heard.sent.body, audio)
    assert at > len(sent_headers) + skip_id3(heard.sent.body), "it did not join in mid-stream"
    assert at + len(audio) == len(heard.sent.body)


@pytest.mark.parametrize("name", ALL)
def test_audio_on_the_third_node_decodes_and_is_the_signal(
    run: dict[str, Heard], ffmpeg: str, name: str
) -> None:
    """It decodes without an error line, and all seconds of the signal follow one another."""
    decoded = decode(ffmpeg, run[name].curl.output)
    assert decoded.errors == ""
    assert decoded.media_s >= HEARD_S_MIN
    seconds = check_signal(decoded.audio, HEARD_S_MIN)
    print(f"{name}: {decoded.media_s:.2f} s, seconds {seconds[0]} … {seconds[-1]}")


@pytest.mark.parametrize("name", ALL)
def test_ffmpeg_hears_the_third_node_live_without_an_error_line(
    run: dict[str, Heard], name: str
) -> None:
    """A player that stops at the first error hears HEARD_S_MIN seconds and says nothing."""
    assert run[name].player.wait(5.0) == 0
    assert run[name].player.errors == ""
