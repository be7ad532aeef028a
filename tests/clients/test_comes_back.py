"""A listener's own node dies; real players come back to another, and go on from the byte they had.

Rules of this room
  1. Two edges behind one address, which the test moves from one to the other.
  2. What was heard is judged by the signal in the audio: each second once, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tools.audio import CODINGS, RATE_HZ, check_signal, encoder
from tools.browser import Browser
from tools.nodes import NodeProcess, Nodes, wait_until
from tools.programs import Programs
from tools.proxy import Proxies, Proxy

RECONNECT = ("-reconnect", "1", "-reconnect_streamed", "1", "-reconnect_at_eof", "1")
BEFORE_S, AFTER_S = 4.0, 4.0  # of audio, around the break
MP3 = CODINGS["mp3"].mount

pytestmark = pytest.mark.timeout(120)


class House(NamedTuple):
    """Two edges under one origin, and one address."""

    left: NodeProcess
    right: NodeProcess
    proxy: Proxy

    def place(self, mount: str) -> str:
        """Where one would begin now, as a URL behind the address."""

        def told() -> str:
            answer = self.left.request(f"{mount}?at=live", method="HEAD")
            return answer.headers.get("location", "")

        path = wait_until(told, 15.0, what=f"a place in {mount}", every_s=0.1)
        return f"http://127.0.0.1:{self.proxy.port}{path}"

    def break_off(self, how: str) -> None:
        """From here on the address leads to the other edge."""
        self.proxy.target = self.right.address
        if how == "kill":
            self.left.kill9()
        else:
            self.proxy.cut()

    def media_ms(self, url: str) -> int:
        """The media time of a place, or of that one which it stands for, by the other edge; 0: it
        is not there yet."""
        path = url.removeprefix(f"http://127.0.0.1:{self.proxy.port}")
        while (told := self.right.request(path, method="HEAD")).status == 302:
            path = told.headers["location"]
        return int(told.headers.get("relay-media-ms", 0))

    def exact(self) -> int:
        """How many joins of the right edge began exactly where they asked."""
        counters = self.right.counters()
        return int(counters["anchored_exact_total"])


@pytest.fixture(scope="module")
def edges(ffmpeg: str, signal_wav: Path) -> Iterator[list[NodeProcess]]:
    """Two edges that keep the streams of two encoders, some seconds old."""
    mounts = [CODINGS[name].mount for name in ("mp3", "opus")]
    with Nodes() as nodes, Programs() as programs:
        origin = nodes.start()
        for name in ("mp3", "opus"):
            programs.start(*encoder(ffmpeg, signal_wav, CODINGS[name], origin.address, loop=True))
        keep = ("--prefetch", mounts[0], "--prefetch", mounts[1])
        pair = [nodes.start(*keep, upstreams=[origin.backbone]) for _ in range(2)]

        def is_old_enough() -> bool:
            told = [node.json("/api/v1/status")["streams"] for node in pair]
            return all(len(t) == 2 and all(s["held_ms"] >= 4000 for s in t) for t in told)

        wait_until(is_old_enough, 20.0, what="4 s of each stream", every_s=0.2)
        yield pair


@pytest.fixture
def house(edges: list[NodeProcess]) -> Iterator[House]:
    """The address leads to the left edge, which runs."""
    left, right = edges
    if not left.alive:
        left.start()
    with Proxies() as proxies:
        yield House(left, right, proxies.to(left.address))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("mp3", "kill"),
        pytest.param("opus", "kill", marks=pytest.mark.soak),
        pytest.param("mp3", "reset", marks=pytest.mark.soak),
    ],
)
def test_ffmpeg_goes_on_from_the_byte_that_it_has(
    house: House, programs: Programs, ffmpeg: str, tmp_path: Path, name: str, how: str
) -> None:
    """Decoded, each second is there once and in order; and the other edge served that very byte."""
    before = house.exact()
    heard = tmp_path / "heard.pcm"
    sound = ("-ac", "1", "-ar", str(RATE_HZ), "-f", "s16le", "pipe:1")
    url = house.place(CODINGS[name].mount)
    quiet = ("-hide_banner", "-nostdin", "-v", "error")
    program = programs.start(ffmpeg, *quiet, *RECONNECT, "-i", url, *sound, stdout=heard)

    def seconds() -> float:
        return heard.stat().st_size / 2 / RATE_HZ

    wait_until(lambda: seconds() >= BEFORE_S, 20.0, what="audio before", every_s=0.1)
    house.break_off(how)
    had = seconds()
    wait_until(lambda: seconds() >= had + AFTER_S, 20.0, what="audio after", every_s=0.1)
    program.close()
    whole = heard.read_bytes()
    check_signal(np.frombuffer(whole[: len(whole) // 2 * 2], "<i2"), int(BEFORE_S + AFTER_S) - 2)
    wait_until(lambda: house.exact() == before + 1, what="an exact join", every_s=0.1)


@pytest.mark.soak
def test_chromium_comes_back_by_itself_from_a_reset(house: House, browser: Browser) -> None:
    """It asks for the byte that it lacks and plays on: no `ended`, no error, its clock goes on."""
    before = house.exact()
    browser.open(house.right.url("/healthz"))
    browser.play(house.place(MP3))
    browser.wait_played(MP3, 3)
    house.break_off("reset")
    at_s = browser.audio(MP3)["buffered_s"]
    browser.wait_played(MP3, at_s + 2)
    state = browser.audio(MP3)
    assert state["error"] == ""
    assert not {"ended", "error", "emptied"} & set(state["noted"])
    wait_until(lambda: house.exact() == before + 1, what="an exact join", every_s=0.1)


HEARD = """
const audio = document.querySelector(arguments[0]);
audio.addEventListener("ended", () => { window.ended_s = audio.currentTime; });
"""


@pytest.mark.parametrize("name", ["mp3", "opus"])
def test_the_page_comes_back_when_its_node_is_killed(
    house: House, browser: Browser, name: str
) -> None:
    """Chromium takes the end for the programme's, when it has played all that came; the page goes
    on elsewhere at that media time: with the nearest frame that may begin, of Ogg with a page.

    Of Ogg Chromium's clock shows where the pages are in the programme, else what it has played.
    """
    mount = CODINGS[name].mount
    before = house.exact()
    browser.open(f"http://127.0.0.1:{house.proxy.port}/")
    row = f'li[data-mount="{mount}"] audio'
    wait_until(lambda: browser.run("return !!document.querySelector(arguments[0])", row), 10.0)
    browser.run(HEARD, row)
    browser.press_play(row)
    browser.wait_played(mount, 3)
    first = browser.audio(mount)["url"]
    streams = house.left.status()["streams"]
    (head,) = (f"{s['epoch']}.{s['head_position']}" for s in streams if s["mount"] == mount)
    house.break_off("kill")
    wait_until(lambda: browser.audio(mount)["url"] != first, 20.0, what="its return", every_s=0.1)
    wait_until(lambda: house.exact() > before, 10.0, what="an exact join", every_s=0.1)
    urls = (first, browser.audio(mount)["url"])
    media_ms = [house.media_ms(url) for url in urls]
    ended_ms = 1000 * float(str(browser.run("return window.ended_s")))
    off_ms = media_ms[1] - ended_ms - (0 if CODINGS[name].is_ogg else media_ms[0])
    sent_ms = wait_until(lambda: house.media_ms(f"{mount}?at={head}"), 10.0, what="what was sent")
    print(f"\n{name}: goes on {off_ms:+.0f} ms from where it had come to")
    assert abs(off_ms) <= 60, urls
    assert abs(media_ms[1] - sent_ms) <= 1500  # a page, or what came between the look and the end
