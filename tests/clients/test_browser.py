"""A real browser opens a node's page, presses play, and hears.

Rules of this room
  1. The play button is pressed as a hand does it: a click where it is seen.
  2. What the player did is read from its own clock, over PLAY_S of ours.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.audio import CODINGS, encoder
from tools.browser import Browser
from tools.nodes import NodeProcess, Nodes, child_env, wait_until
from tools.programs import Program, Programs

PLAY_S, PLAYED_S_MIN = 10.0, 9.0
BEGIN_S_MAX = 20.0
HELD_MS = 5000  # of a stream before somebody joins: more than a burst, as in mid-stream
NAMES = ("mp3", "opus")

pytestmark = pytest.mark.timeout(120)


def play_all(browser: Browser, mounts: list[str]) -> dict[str, float]:
    """Press the play button of each mount; returns how far each clock went in PLAY_S."""
    browser.watch()
    for mount in mounts:
        browser.press_play(f'li[data-mount="{mount}"] audio')

    def begun() -> bool:
        return all(browser.audio(mount)["time_s"] > 0 for mount in mounts)

    wait_until(begun, BEGIN_S_MAX, what=f"{mounts} to begin", every_s=0.1)
    browser.run("for (const a of document.querySelectorAll('audio')) a.noted.length = 0")
    first = {mount: browser.audio(mount) for mount in mounts}
    began_s = time.monotonic()
    wait_until(lambda: time.monotonic() >= began_s + PLAY_S, PLAY_S + 1, what="listening")
    last = {mount: browser.audio(mount) for mount in mounts}
    for state in last.values():
        assert state["error"] == ""
        assert not state["ended"]
        assert not {"ended", "error", "emptied"} & set(state["noted"])
    return {mount: last[mount]["time_s"] - first[mount]["time_s"] for mount in mounts}


@pytest.fixture(scope="module")
def edge(ffmpeg: str, signal_wav: Path) -> Iterator[NodeProcess]:
    """The third node of a row, with ffmpeg's MP3 and Ogg Opus on the first."""
    with Nodes() as nodes, Programs() as programs:
        origin, _, third = nodes.row(3)
        for name in NAMES:
            programs.start(*encoder(ffmpeg, signal_wav, CODINGS[name], origin.address, loop=True))

        def is_old_enough() -> bool:
            streams = origin.json("/api/v1/status")["streams"]
            return len(streams) == len(NAMES) and all(s["held_ms"] >= HELD_MS for s in streams)

        wait_until(is_old_enough, 15.0, what=f"{HELD_MS} ms of each stream", every_s=0.2)
        yield third


def wait_for_rows(browser: Browser, count: int) -> None:
    """Wait until the page lists so many streams."""
    rows = "return document.querySelectorAll('li[data-mount] audio[controls]').length"
    wait_until(lambda: browser.run(rows) == count, 15.0, what=f"{count} streams on the page")


def test_page_of_an_edge_plays_each_stream(
    edge: NodeProcess, browser: Browser, tmp_path: Path
) -> None:
    """Both players are pressed, and go on for 10 s."""
    browser.open(edge.url("/"))
    wait_for_rows(browser, len(NAMES))
    browser.console()  # what was before is not ours
    played = play_all(browser, [CODINGS[name].mount for name in NAMES])
    print(played, browser.screenshot(tmp_path / "page.png"))
    assert min(played.values()) >= PLAYED_S_MIN, played
    assert max(played.values()) <= PLAY_S + 1
    assert [line for line in browser.console() if line.startswith("SEVERE")] == []


def test_page_tells_state_and_listeners(edge: NodeProcess, browser: Browser) -> None:
    """A stream that is heard is live, and the page counts the browser itself."""
    browser.open(edge.url("/"))
    wait_for_rows(browser, len(NAMES))
    mount = CODINGS["mp3"].mount
    browser.press_play(f'li[data-mount="{mount}"] audio')
    row = f"document.querySelector('li[data-mount=\"{mount}\"]')"
    wait_until(
        lambda: browser.run(f"return {row}.innerText").count("1 listener") == 1,
        10.0,
        what="the listener on the page",
        every_s=0.2,
    )
    assert browser.run(f"return {row}.querySelector('.state').textContent") == "live"


def test_page_fits_a_phone(edge: NodeProcess, browser: Browser, tmp_path: Path) -> None:
    """At 360 px nothing is cut off or pushed to the side."""
    browser.open(edge.url("/"))
    wait_for_rows(browser, len(NAMES))
    browser.resize(360, 740)
    try:
        scroll, client = browser.run(
            "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
        )
        browser.screenshot(tmp_path / "phone.png")
    finally:
        browser.unresize()
    assert (scroll, client) == (360, 360)


@pytest.fixture
def demo(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """The real `relay demo`, ended as with Ctrl-C."""
    for name, value in child_env().items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-P", "-m", "relay", "demo", "--http-port", "0"]
    program = programs.start(*command)
    yield program
    assert program.interrupt(10.0) in {0, 130, -signal.SIGINT}


def test_demo_page_plays_both_mounts(demo: Program, browser: Browser, tmp_path: Path) -> None:
    """`relay demo` names the last relay's address; its page plays MP3 and Opus for 10 s."""

    def address() -> str:
        assert demo.alive, demo
        found = re.search(r"relay 2 +(http://[\d.:]+/)", demo.output.decode())
        return found[1] if found else ""

    browser.open(wait_until(address, 30.0, what="the address of the demo's last relay"))
    wait_for_rows(browser, 2)
    played = play_all(browser, ["/demo.mp3", "/demo.opus"])
    print(played, browser.screenshot(tmp_path / "demo.png"))
    assert min(played.values()) >= PLAYED_S_MIN, played
