"""The examples, each as its reader runs it: a process, an address that it prints, a client.

Rules of this room
  1. An example is run as it is; ports come from its command line.
  2. What it promises is heard by ffmpeg, played by Chromium, or read from what it prints.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tools.audio import decode
from tools.browser import Browser
from tools.hosts import ask, hear
from tools.nodes import wait_until
from tools.programs import Program, Programs

import relay

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
READY_S = 30.0
HEARD_BYTES = 40_000  # 2.5 s at 128 kbit/s

pytestmark = [pytest.mark.timeout(120), pytest.mark.core]
pytest.importorskip("av")


@pytest.fixture
def programs() -> Iterator[Programs]:
    """Processes that end with the test."""
    with Programs() as started:
        yield started


def start(programs: Programs, name: str, *words: str) -> Program:
    """Run an example."""
    return programs.start(sys.executable, "-u", str(EXAMPLES / name), *words)


def told(program: Program, pattern: str) -> str:
    """What it comes to print."""

    def look() -> str:
        assert program.alive, program.errors
        text = program.output.decode() + program.errors
        found = re.search(pattern, text)
        return found[1] if found else ""

    return wait_until(look, READY_S, what=f"{pattern} of {program!r}")


def address_of(text: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def listen(address: tuple[str, int], path: str, size_bytes: int = HEARD_BYTES) -> bytes:
    """So much of a stream, once it is there."""

    def look() -> bytes:
        with ask(address, path) as sock:
            head, body = hear(sock, size_bytes)
            return body if b" 200 " in head.split(b"\r\n")[0] else b""

    return wait_until(look, READY_S, what=path, every_s=0.2)


def test_fastapi_radio_sounds_beside_its_pages(programs: Programs, ffmpeg: str) -> None:
    """By uvicorn: a chord, and a page that counts who listens."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    radio = start(programs, "fastapi_radio.py", "0")
    address = address_of(told(radio, r"running on http://([\d.]+:\d+)"))
    heard = decode(ffmpeg, listen(address, "/radio/live"))
    assert np.abs(heard.audio.astype(int)).max() > 3000
    with ask(address, "/radio/live") as sock:
        hear(sock, 1000)
        with ask(address, "/listeners", "Connection: close") as page:
            assert hear(page, 1 << 20)[1] == b'{"listeners":1}'
    assert radio.interrupt() in (0, -2)
    assert "Traceback" not in radio.errors


def test_synthesiser_plays_in_a_browser(
    programs: Programs, chromium: str, chromedriver: str
) -> None:
    """Opus out of numpy: the player's own clock moves on, without an error."""
    # longer than a browser takes to open on a busy machine
    synth = start(programs, "synthesiser.py", "127.0.0.1:0", "600")
    url = told(synth, r"open (http://[\d.:]+/)")
    listen(address_of(url[7:-1]), "/synth", 5000)
    browser = Browser(chromium, chromedriver)
    try:
        browser.open(url)
        wait_until(lambda: browser.audio("/synth"), READY_S, what="a player", every_s=0.2)
        browser.watch()
        browser.press_play('li[data-mount="/synth"] audio')
        browser.wait_played("/synth", 2)
        assert browser.audio("/synth")["error"] == ""
    finally:
        browser.close()


def test_captions_find_what_is_spoken(programs: Programs) -> None:
    """Two words with a pause: two lines, with their times."""
    rate_hz = 48_000
    word = (0.5 * np.sin(np.arange(rate_hz) / 7)).astype("float32")
    pause = np.zeros(rate_hz, "float32")
    with relay.Node(backbone="tcp://127.0.0.1:0") as origin:
        captions = start(programs, "captions.py", str(origin.backbone_address), "/talk")
        with origin.source("/talk", codec="flac", channels=1) as talk:
            links = origin._backbone
            assert links is not None
            wait_until(
                lambda: any(link["downstream"] for link in links.snapshot()["links"]),
                READY_S,
                what="the captions to subscribe",
            )
            clock = relay.AudioClock(rate_hz)
            for part in (word, pause, word, pause):
                for at in range(0, rate_hz, 960):
                    talk.feed_pcm(part[at : at + 960])
                    clock.wait(960)
            told(captions, r"speech[^$]*\n( *[1-3]\.\d\d s: [\d.]+ s of speech)")
    lines = re.findall(r"([\d.]+) s: ([\d.]+) s of speech, (-?\d+) dB", captions.output.decode())
    begins = [float(begin) for begin, _, _ in lines[:2]]
    assert 1.7 < begins[1] - begins[0] < 2.3
    assert all(0.9 < float(length) < 1.7 for _, length, _ in lines[:2])


def test_two_nodes_sound_alike(programs: Programs, ffmpeg: str) -> None:
    """What the origin is fed is heard on the edge."""
    nodes = start(programs, "two_nodes.py", "60")
    for role in ("origin", "edge"):
        address = address_of(told(nodes, rf"{role} +http://([\d.:]+)/tone"))
        heard = decode(ffmpeg, listen(address, "/tone", 20_000)).audio.astype(float)
        loud = np.abs(np.fft.rfft(heard[4000 : 4000 + 44_100]))
        assert abs(int(np.argmax(loud)) - 440) <= 45  # decoded at 48 kHz


def test_aiohttp_radio_asks_for_the_key_and_keeps_accounts(
    programs: Programs, ffmpeg: str, tmp_path: Path
) -> None:
    """An encoder by the node's door, listeners by the service's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service = start(programs, "aiohttp_radio.py", "127.0.0.1:0", str(port))
    url = told(service, r"send audio to (http://\S+/live)")
    programs.start(
        *(ffmpeg, "-v", "error", "-re", "-f", "lavfi", "-i", "sine=440", "-c:a", "libmp3lame"),
        *("-f", "mp3", "-content_type", "audio/mpeg", url.replace("http", "icecast", 1)),
    )
    told(service, r"(SourceUp)")
    address = ("127.0.0.1", port)
    assert listen(address, "/radio/live?key=open", 10_000)
    with ask(address, "/radio/live?key=wrong") as sock:
        assert hear(sock, 5)[0].split(b" ")[1] == b"403"
    assert told(service, r"127\.0\.0\.1 (heard /live) for [\d.]+ s")
    assert service.interrupt() == 0
    assert "Traceback" not in service.errors
