"""The page's players: each keeps its row while it waits, and asks again when it is refused.

Rules of this room
  1. A real node, encoder and browser. What a test takes into its hands are the page's timers and
     its questions for a place: so each moment lasts until it has been looked at.
  2. `refresh` is the page's own: what it would do each two seconds.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.audio import CODINGS, encoder
from tools.browser import Browser
from tools.listeners import Crowd
from tools.nodes import NodeProcess, Nodes, wait_until
from tools.programs import Program, Programs

MP3 = CODINGS["mp3"]
ROW = f'li[data-mount="{MP3.mount}"]'
PLAYER = f"{ROW} audio"

# From here on whoever wants to wait, waits for `go()`.
HOLD_TIMERS = """
window.held = [];
window.later = window.setTimeout;
window.setTimeout = act => held.push(act);
"""
HOLD_PLACES = """
const ask = window.fetch, told = new Promise(tell => { window.tell = tell; });
window.fetch = async (url, how) => {
  if (url.includes("at=live")) await told;
  return ask(url, how);
};
"""
HOLD_REPLIES = """
const ask = window.fetch, told = new Promise(tell => { window.tell = tell; });
window.replies = 0;
window.fetch = async (url, how) => {
  const reply = await ask(url, how);
  if (url.includes("at=live")) { window.replies += 1; await told; }
  return reply;
};
"""
ENTER = f"document.querySelector('{ROW}').dispatchEvent(new PointerEvent('pointerenter'));"
# The press and the reply in one turn of the page: the element plays, its event comes after both.
PRESS_AS_IT_COMES = f"document.querySelector('{PLAYER}').play().catch(() => {{}}); window.tell();"
GO = """
window.setTimeout = window.later;
if (window.tell) window.tell();
held.forEach(act => act());
"""
PAUSE = f"""
const done = arguments[arguments.length - 1], audio = document.querySelector('{PLAYER}');
audio.addEventListener("pause", () => setTimeout(() => done(true)), {{once: true}});
audio.pause();
"""
REFRESH = "const done = arguments[arguments.length - 1]; refresh().then(() => done(true));"
KEEP = f"document.querySelector('{ROW}').kept = true;"
KEPT = f"const row = document.querySelector('{ROW}'); return !!row && row.kept === true;"
STATE = f"""
const audio = document.querySelector('{PLAYER}');
return {{paused: audio.paused, time_s: audio.currentTime, src: audio.getAttribute("src") || ""}};
"""

pytestmark = pytest.mark.timeout(120)


class Station:
    """A node, its one encoder, and a browser on its page."""

    def __init__(
        self, node: NodeProcess, programs: Programs, browser: Browser, line: list[str]
    ) -> None:
        self.node, self.browser = node, browser
        self._programs, self._line = programs, line
        self._encoder: Program | None = None

    def listed(self) -> list[str]:
        """The mounts that the node has now."""
        return [stream["mount"] for stream in self.node.json("/api/v1/status")["streams"]]

    def start(self) -> None:
        """The encoder comes."""
        self._encoder = self._programs.start(*self._line)
        wait_until(self.listed, 20.0, what="the mount", every_s=0.1)

    def stop(self) -> None:
        """It leaves, and its mount with it."""
        assert self._encoder is not None
        self._encoder.kill()
        wait_until(lambda: not self.listed(), 20.0, what="the mount's end", every_s=0.1)

    def open(self) -> None:
        """The page is there, with its row."""
        self.browser.open(self.node.url("/"))
        row = "return !!document.querySelector(arguments[0])"
        wait_until(lambda: self.browser.run(row, PLAYER), 10.0, what="the row", every_s=0.1)
        self.browser.run(KEEP)

    def asked(self) -> None:
        """The pointer comes; the reply about its place is here, and held."""
        self.browser.run(HOLD_REPLIES)
        self.browser.run(ENTER)
        replies = "return window.replies"
        wait_until(lambda: self.browser.run(replies), 10.0, what="its place", every_s=0.05)

    def state(self) -> dict[str, object]:
        """What the player says of itself."""
        return dict(self.browser.run(STATE))

    def plays(self) -> None:
        """Wait until it has played for a second."""
        wait_until(
            lambda: float(str(self.state()["time_s"])) > 1.0, 20.0, what="audio", every_s=0.1
        )

    def keeps_its_row(self) -> None:
        """Expect that the row of a player that waits is kept, and that it plays on."""
        assert self.state()["paused"]
        self.browser.run_async(REFRESH)
        assert self.browser.run(KEPT)
        self.start()
        self.browser.run(GO)
        self.plays()
        assert self.browser.run(KEPT)

    def held(self) -> int:
        """How many wait for `go()`."""
        return int(self.browser.run("return held.length"))


@pytest.fixture
def station(
    nodes: Nodes,
    programs: Programs,
    browser: Browser,
    ffmpeg: str,
    signal_wav: Path,
    tmp_path: Path,
) -> Station:
    """On the air, for one listener at a time."""
    settings = tmp_path / "relay.toml"
    settings.write_text(f'[streams."{MP3.mount}"]\nlinger_s = 1\nlisteners_max = 1\n')
    node = nodes.start(str(settings))
    line = encoder(ffmpeg, signal_wav, MP3, node.address, loop=True)
    made = Station(node, programs, browser, line)
    made.start()
    return made


def test_a_player_whose_programme_ended_keeps_its_row_and_plays_on(station: Station) -> None:
    """It waits a moment before it asks again, and is paused meanwhile, as far as it knows."""
    station.open()
    station.browser.press_play(PLAYER)
    station.plays()
    station.browser.run(HOLD_TIMERS)
    refreshing = wait_until(station.held, 10.0, what="the page's own timer", every_s=0.1)
    station.stop()
    wait_until(lambda: station.held() > refreshing, 20.0, what="its return", every_s=0.1)
    station.keeps_its_row()


def test_a_player_that_asks_for_its_place_keeps_its_row(station: Station) -> None:
    """Play was pressed, the mount has just gone: it is asked for, without an address to play."""
    station.open()
    station.browser.run(HOLD_TIMERS + HOLD_PLACES)
    wait_until(station.held, 10.0, what="the page's own timer", every_s=0.1)
    station.stop()
    station.browser.press_play(PLAYER)
    wait_until(lambda: not station.state()["src"], 10.0, what="its question", every_s=0.05)
    station.keeps_its_row()


def test_a_press_is_kept_when_its_place_arrives_at_that_moment(station: Station) -> None:
    """The pointer came and play was pressed at once: a new address would have taken it back."""
    station.open()
    station.asked()
    station.browser.run(PRESS_AS_IT_COMES)
    station.plays()


def test_a_place_that_arrives_leaves_the_player_ready_to_be_pressed(station: Station) -> None:
    """A player with a new address takes no press for a moment; it gets its place with the press."""
    station.open()
    station.asked()
    address = station.state()["src"]
    station.browser.run("window.tell()")
    station.browser.run_async(REFRESH)
    assert station.state()["src"] == address
    station.browser.press_play(PLAYER)
    station.plays()
    assert "?at=" in str(station.state()["src"])


def test_a_player_that_was_paused_by_hand_does_not_come_back_by_itself(station: Station) -> None:
    """Its connection breaks meanwhile; the next press plays what is live then."""
    station.open()
    station.browser.press_play(PLAYER)
    station.plays()
    station.browser.run_async(PAUSE)
    before = station.state()
    station.browser.run(f"document.querySelector('{PLAYER}').dispatchEvent(new Event('error'))")
    station.browser.run_async(REFRESH)
    assert station.state() == before
    station.browser.press_play(PLAYER)
    wait_until(lambda: station.state()["src"] != before["src"], 10.0, what="its new place")
    station.plays()


def test_a_player_that_is_refused_asks_again_until_it_is_let_in(
    station: Station, crowd: Crowd
) -> None:
    """The mount is full: 503 each time, and then somebody leaves."""
    other = crowd.join(station.node.address, MP3.mount)
    crowd.wait_audio()
    station.open()
    station.browser.press_play(PLAYER)

    def refused() -> int:
        counters = station.node.counters()
        return int(counters["refused_full_total"])

    first = wait_until(refused, 20.0, what="a refusal", every_s=0.1)
    wait_until(lambda: refused() >= first + 2, 20.0, what="more of them", every_s=0.1)
    crowd.leave(other)
    station.plays()
    assert station.browser.run(KEPT)
