"""The source is killed and comes back after five seconds: nobody is thrown off, everybody goes on.

Rules of this room
  1. One outage serves all tests: ffmpeg pushes MP3 and Ogg Opus, both are killed and started again.
  2. It is heard by ten listeners a mount, spread over three nodes; on the third by ffmpeg and
     Chromium too.
  3. Times are those of one clock: a tap notes when the encoder's bytes left for the origin.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tools.audio import (
    BOS,
    CODINGS,
    EOS,
    Coding,
    chains,
    decode,
    encoder,
    find_run,
    pages,
    skip_id3,
    split_headers,
)
from tools.browser import Browser
from tools.listeners import Crowd, Listener
from tools.nodes import Nodes, wait_until
from tools.programs import Program, Programs, Tap, Tapped

NAMES = ("mp3", "opus")
LISTENERS = 10  # of each mount
JOIN_AT_S = 5.0  # into the stream
HEARD_S = 4.0  # between joining and the outage
OUTAGE_S = 5.0
AFTER_S = 15.0
PACE_S = 0.2
LATENESS_S_MAX = PACE_S + 1.0
PLAYER_S = 17  # 3 of burst, 4 before the outage, 10 after it
PLAYED_S_MIN = 9.0  # of the AFTER_S, by a player whose buffer has run dry

pytestmark = pytest.mark.timeout(150)


@dataclass
class Outage:
    """One mount through the outage."""

    coding: Coding
    before: Tapped  # what the first run of the encoder wrote
    after: Tapped  # what its second run wrote
    listeners: list[Listener]
    player: Program
    browser: dict[str, dict[str, Any]] = field(default_factory=dict)  # state by moment

    @property
    def audio_at(self) -> int:
        """Where frames begin in what the second run wrote."""
        return 0 if self.coding.is_ogg else skip_id3(self.after.body)

    def joint(self, listener: Listener) -> int:
        """Where the second run begins in what a listener heard."""
        mark = self.after.body[self.audio_at :][:128]
        at = listener.body.find(mark)
        assert at > 0, f"{listener!r} heard nothing of the second run"
        return at


def arrived_s(listener: Listener, position: int) -> float:
    """Return when a listener got the byte at this position of its audio."""
    for arrival in listener.arrivals:
        if position < arrival.audio_bytes:
            return arrival.at_s
        position -= arrival.audio_bytes
    raise AssertionError(f"{listener!r} did not get byte {position}")


@pytest.fixture(scope="module")
def outages(ffmpeg: str, signal_wav: Path, browser: Browser) -> Iterator[dict[str, Outage]]:
    """Two mounts whose sources are killed, and started again OUTAGE_S later."""
    with Nodes() as nodes, Programs() as programs, Crowd() as crowd:
        row = nodes.row(3, "--pace-ms", str(round(PACE_S * 1000)))

        def push_all(count: int) -> list[Tapped]:
            nonlocal pushing
            codings = [CODINGS[name] for name in NAMES]
            pushing = [
                programs.start(*encoder(ffmpeg, signal_wav, coding, tap.address))
                for coding in codings
            ]
            return [tap.wait_for(coding.mount, count) for coding in codings]

        with Tap(row[0].address) as tap:
            pushing: list[Program] = []
            before = push_all(1)
            time.sleep(JOIN_AT_S)
            found = {}
            browser.open(row[2].url("/healthz"))
            for name, tapped in zip(NAMES, before, strict=True):
                url = row[2].url(tapped.mount)
                listeners = [
                    crowd.join(node.address, tapped.mount)
                    for node in itertools.islice(itertools.cycle(row), LISTENERS)
                ]
                listen = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-xerror", "-i", url]
                player = programs.start(*listen, "-t", str(PLAYER_S), "-f", "null", "-")
                browser.play(url)
                found[name] = Outage(CODINGS[name], tapped, tapped, listeners, player)

            def note(moment: str) -> None:
                for one in found.values():
                    one.browser[moment] = browser.audio(one.coding.mount)

            note("joined")
            time.sleep(HEARD_S)
            for program in pushing:
                program.kill()
            note("killed")
            time.sleep(OUTAGE_S)
            note("dry")
            for one, tapped in zip(found.values(), push_all(2), strict=True):
                one.after = tapped
            time.sleep(AFTER_S)
            note("after")
            for program in pushing:
                program.kill()
            wait_until(
                lambda: all(one.after.ended_s for one in found.values()), what="the sources' end"
            )
            time.sleep(LATENESS_S_MAX)
        yield found


@pytest.mark.parametrize("name", NAMES)
def test_all_listeners_stay_connected(outages: dict[str, Outage], name: str) -> None:
    """Nobody is thrown off while the source is away, nor when it returns."""
    assert [listener.status for listener in outages[name].listeners] == [200] * LISTENERS
    assert [listener.end for listener in outages[name].listeners] == [""] * LISTENERS


@pytest.mark.parametrize("name", NAMES)
def test_first_new_frame_reaches_each_listener_within_pace_and_a_second(
    outages: dict[str, Outage], name: str
) -> None:
    """Counted from the encoder's write to the arrival, on each of three nodes."""
    outage = outages[name]
    headers = split_headers(outage.after.body)[0] if outage.coding.is_ogg else b""
    for what, at in ("frame", 0), ("audio", len(headers)):
        sent_s = outage.after.sent_s(outage.audio_at + at)
        late_s = [arrived_s(who, outage.joint(who) + at) - sent_s for who in outage.listeners]
        print(f"{name}: first new {what} after {min(late_s):.3f} … {max(late_s):.3f} s")
        assert min(late_s) >= 0
        assert max(late_s) <= LATENESS_S_MAX


@pytest.mark.parametrize("name", NAMES)
def test_each_listener_hears_the_end_of_one_run_and_all_of_the_next(
    outages: dict[str, Outage], name: str
) -> None:
    """The first run to its last whole frame, then the second from its first; nothing between."""
    outage = outages[name]
    for listener in outage.listeners:
        joint = outage.joint(listener)
        old, new = bytes(listener.body[:joint]), bytes(listener.body[joint:])
        headers, old = split_headers(old) if outage.coding.is_ogg else (b"", old)
        assert outage.before.body.startswith(headers)
        unheard = len(outage.before.body) - find_run(outage.before.body, old) - len(old)
        assert unheard < 1000, "more than a partial frame of the first run is missing"
        assert find_run(outage.after.body, new) == outage.audio_at
        assert len(outage.after.body) - outage.audio_at - len(new) < 1000


def test_returning_ogg_source_begins_a_new_chain(outages: dict[str, Outage]) -> None:
    """Two chains with serials of their own, each led by its header pages (RFC 3533 §4)."""
    for listener in outages["opus"].listeners:
        heard = chains(bytes(listener.body))
        assert len(heard) == 2
        serials = [{page.serial for page in pages(chain)} for chain in heard]
        assert [len(serial) for serial in serials] == [1, 1]
        assert serials[0] != serials[1]
        assert all(pages(chain)[0].flags & BOS for chain in heard)
        assert [pages(chain)[1].data[28:36] for chain in heard] == [b"OpusTags"] * 2
        assert not any(page.flags & EOS for page in pages(heard[0])[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_ffmpeg_decodes_across_without_an_error_line(
    outages: dict[str, Outage], ffmpeg: str, name: str
) -> None:
    """Live on the third node, and again from the bytes of each listener."""
    outage = outages[name]
    assert outage.player.wait(5.0) == 0
    assert outage.player.errors == ""
    assert outage.listeners[2].body  # of the third node
    heard = decode(ffmpeg, bytes(outage.listeners[2].body))
    assert heard.errors == ""
    assert heard.media_s >= HEARD_S + AFTER_S


@pytest.mark.parametrize("name", NAMES)
def test_chromium_plays_across(outages: dict[str, Outage], name: str) -> None:
    """Its clock goes on before and after; no error, and no end."""
    seen = outages[name].browser
    print(f"{name}: " + ", ".join(f"{at} {state['time_s']:.2f}" for at, state in seen.items()))
    assert seen["killed"]["time_s"] - seen["joined"]["time_s"] >= HEARD_S - 1.5
    assert seen["after"]["time_s"] - seen["dry"]["time_s"] >= PLAYED_S_MIN
    for state in seen.values():
        assert state["error"] == ""
        assert not state["ended"]
        assert not state["paused"]
        assert not {"ended", "error", "emptied"} & set(state["noted"])
