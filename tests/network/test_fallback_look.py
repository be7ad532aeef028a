"""A mount's fallback is set, changed and taken away while it plays: who listens goes along.

Rules of this room
  1. Frames say which they are, and so who heard what when (tools/studio.py).
  2. What is set holds for streams that are here, for those that come later, and for Ogg's serials.
"""

from __future__ import annotations

import base64
import itertools
import random
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_ogg_serial import serials, talk
from tools.engines import MP3, OGG, answer, ask, get
from tools.listeners import Crowd
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_until
from tools.sources import FrameChecker
from tools.studio import (
    LIVE,
    MUSIC,
    TONE,
    WAIT_S,
    Studio,
    heard,
    hears,
    maker,
    order,
    runs,
    settings,
    source,
    stream,
    studio,
)

from relay import _core
from relay.errors import RelayError

AFTER_MS = 300

pytestmark = pytest.mark.timeout(90)


def set_fallback(house: Studio, mount: str, *chain: str) -> None:
    """Set it, and wait until the engine has taken it over."""
    house.engine.set_fallback(mount, chain, AFTER_MS)

    def holds() -> bool:
        return any(
            told["mount"] == mount and told["chain"] == chain for told in house.engine.fallbacks()
        )

    wait_until(holds, WAIT_S, what=f"{mount} to fall back to {chain}")


def test_a_mount_gets_a_fallback_another_one_and_none_while_it_is_heard() -> None:
    """/tone has none in the settings: to /music, to /live, on one connection; when that goes, too,
    its listeners go on with what they hear until /tone is back."""
    with studio(threads=2) as house:
        house.engine.set_fallback("/live", (), AFTER_MS)
        for kind, mount in enumerate(("/live", "/music", "/tone")):
            house.start(kind, mount)
        everybody = [house.join("/tone") for _ in range(6)]
        hears(everybody, TONE)
        set_fallback(house, "/tone", "/music")
        house.stop(TONE)
        hears(everybody, MUSIC)
        assert house.state("/tone")["fallback"] == "/music"
        set_fallback(house, "/tone", "/live")
        hears(everybody, LIVE)
        assert house.state("/tone")["fallback"] == "/live"
        set_fallback(house, "/tone")
        hears(everybody, LIVE, 40)
        assert house.state("/tone")["fallback"] is None
        house.start(TONE, "/tone")
        hears(everybody, TONE)
        for listener in everybody:
            assert order(listener) == [TONE, MUSIC, LIVE, TONE]
        assert house.state("/tone")["fallback_listeners"] == 0
        assert house.engine.find("/music").snapshot()["listeners"] == 0


def test_what_comes_later_follows_the_fallback_that_was_set_before() -> None:
    """Neither mount is there when it is set, nor has settings of its own."""
    with studio() as house:
        house.engine.set_fallback("/new", ("/news",), AFTER_MS)
        house.start(LIVE, "/new")
        listener = house.join("/new")
        hears([listener], LIVE)
        house.start(MUSIC, "/news")
        house.stop(LIVE)
        hears([listener], MUSIC)
        late = house.join("/new")
        hears([late], MUSIC)
        assert (order(listener), order(late)) == ([LIVE, MUSIC], [MUSIC])


def test_a_fallback_that_is_set_in_silence_is_heard_once_it_comes() -> None:
    """The mount's source has left; the one that is to stand in is not there yet."""
    with studio() as house:
        house.start(TONE, "/tone")
        listener = house.join("/tone")
        hears([listener], TONE)
        house.stop(TONE)
        set_fallback(house, "/tone", "/nobody", "/music")
        house.start(MUSIC, "/music")
        hears([listener], MUSIC)
        assert order(listener) == [TONE, MUSIC]


def test_places_are_given_out_again_where_the_fallback_was_taken_away() -> None:
    """Of a mount with one they would count what its listeners may not have heard."""
    with studio() as house:
        house.start(TONE, "/tone")
        wait_until(lambda: house.state("/tone").get("head_position"), WAIT_S)
        for chain, status in (((), 302), (("/music",), 200), ((), 302)):
            set_fallback(house, "/tone", *chain)
            asked = ask(house.address, get("/tone?at=live", method="HEAD"))
            assert answer(asked, to_head=True)[0] == status


def test_ogg_streams_get_serials_of_their_own_from_their_next_chain_on() -> None:
    """Both encoders write one serial; the chain that plays when it is set stays what it is."""
    engine = _core.Engine(listeners_max=10)
    try:
        engine.listen("127.0.0.1", 0)
        engine.start()
        feeds: dict[str, Any] = {}
        for mount in ("/one", "/two"):
            made = engine.add_stream(mount)
            made.claim()
            made.set_info(OGG)
            made.begin()
            feeds[mount] = made, _core.Source(made, "ogg")
            feeds[mount][1].feed(talk(7))
        engine.set_fallback("/one", ("/two",), AFTER_MS)
        wait_until(lambda: engine.fallbacks()[0]["unfit"] == {"/two": "serial"}, WAIT_S)
        for _, feed in feeds.values():
            feed.feed(talk(7))
        told = [serials(bytes(memoryview(made.view()))) for made, _ in feeds.values()]
        assert [chain[0] for chain in told] == [7, 7]
        assert len({7, *(chain[1] for chain in told)}) == 3
        wait_until(lambda: engine.fallbacks()[0]["unfit"] == {}, WAIT_S)
    finally:
        engine.close()


def test_chains_that_change_all_the_time_tear_nothing(seed: int) -> None:
    """Hundreds of times, under the feet of listeners on two shards: whole frames, and in the end
    each hears what holds."""
    dice = random.Random(seed)
    chains = [(), ("/music",), ("/live",), ("/music", "/live"), ("/live", "/none", "/music")]
    with studio(threads=2) as house:
        house.engine.set_fallback("/live", (), AFTER_MS)
        for kind, mount in enumerate(("/live", "/music", "/tone")):
            house.start(kind, mount)
        everybody = [house.join("/tone", checker=FrameChecker()) for _ in range(10)]
        wait_until(lambda: all(one.audio_bytes > 4000 for one in everybody), WAIT_S)
        house.stop(TONE)
        done = threading.Event()

        def change() -> None:
            for _ in range(400):
                house.engine.set_fallback("/tone", dice.choice(chains), AFTER_MS)
                done.wait(0.005)
            house.engine.set_fallback("/tone", ("/music",), AFTER_MS)

        thread = threading.Thread(target=change)
        thread.start()
        thread.join()
        heard_before = [one.audio_bytes for one in everybody]
        wait_until(lambda: house.state("/tone")["fallback"] == "/music", WAIT_S)
        wait_until(
            lambda: all(
                one.audio_bytes > before + 8000
                for one, before in zip(everybody, heard_before, strict=True)
            ),
            WAIT_S,
        )
        for listener in everybody:
            assert listener.checker is not None
            assert listener.checker.damaged_bytes == 0
            assert listener.alive
        assert house.state("/tone")["fallback_listeners"] == len(everybody)
        assert len(house.engine.fallbacks()) == 2


def test_more_mounts_than_there_is_room_for_are_refused() -> None:
    """And what was set before holds."""
    engine = _core.Engine(listeners_max=10)
    try:
        for number in range(512):  # two mounts each
            engine.set_fallback(f"/{number}", (f"/of/{number}",), AFTER_MS)
        with pytest.raises(RelayError, match="more than 1024 mounts"):
            engine.set_fallback("/512", ("/of/512",), AFTER_MS)
        told = engine.fallbacks()
        assert [one["mount"] for one in told] == [f"/{number}" for number in range(512)]
        assert [one["chain"] for one in told] == [(f"/of/{number}",) for number in range(512)]
        engine.set_fallback("/0", ("/1", "/2"), AFTER_MS)
        with pytest.raises(ValueError, match="at most 4"):
            engine.set_fallback("/0", tuple("abcde"), AFTER_MS)
    finally:
        engine.close()


# --- a node --------------------------------------------------------------------------------------


def admin(node: NodeProcess, path: str, **headers: str) -> tuple[int, str]:
    """What the node answers the administrator: status and message."""
    token = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    reply = node.request(path, headers={"Authorization": f"Basic {token}", **headers})
    return reply.status, ElementTree.fromstring(reply.body).findtext("message") or ""


def test_an_administrator_sets_it_on_a_running_node(
    nodes: Nodes, crowd: Crowd, tmp_path: Path
) -> None:
    """/admin/fallbacks, as Icecast 2.4 has it: who listens goes over when the source leaves; lists
    tell it; a loop and a page of another site are refused."""
    node = nodes.start(settings(tmp_path / "relay.toml"), "--backbone", "none")
    live, music = source(node, "/live", maker(LIVE)), source(node, "/music", maker(MUSIC))
    listener = crowd.join(node.address, "/live", keep=True)
    hears([listener], LIVE)
    path = "/admin/fallbacks?mount=/live&fallback=/music"
    assert admin(node, path, Origin="http://evil.example")[0] == 403
    assert node.get(path).status == 401
    assert admin(node, path) == (200, "Fallback configured")
    assert admin(node, "/admin/fallbacks?mount=/live") == (200, "/music")
    status, why = admin(node, "/admin/fallbacks?mount=/music&fallback=/live")
    assert (status, "leads in a loop" in why) == (400, True)
    node.wait_event("fallback_set", mount="/live", fallback="/music")
    live.stop()
    hears([listener], MUSIC)
    node.wait_event("fallback", mount="/live", fallback="/music")
    wait_until(lambda: stream(node, "/live").get("fallback") == "/music", WAIT_S)
    assert admin(node, "/admin/fallbacks?mount=/live&fallback=") == (200, "Fallback removed")
    live = source(node, "/live", maker(LIVE))
    hears([listener], LIVE)
    kinds = [kind for kind, _ in itertools.groupby(run[0] for run in runs(heard(listener)))]
    assert kinds == [LIVE, MUSIC, LIVE]
    for encoder in (live, music):
        encoder.stop()


def test_a_mount_that_waits_without_a_source_gets_a_stand_in(
    nodes: Nodes, crowd: Crowd, tmp_path: Path
) -> None:
    """It is named in the settings alone; newcomers hear what is to stand in."""
    node = nodes.start(settings(tmp_path / "relay.toml", empty={}), "--backbone", "none")
    music = source(node, "/music", maker(MUSIC))
    wait_until(lambda: stream(node, "/music").get("state") == "live", WAIT_S)
    assert admin(node, "/admin/fallbacks?mount=/empty&fallback=/music")[0] == 200
    wait_until(lambda: stream(node, "/empty").get("fallback") == "/music", WAIT_S)
    listener = crowd.join(node.address, "/empty", keep=True)
    hears([listener], MUSIC)
    assert listener.headers["content-type"] == MP3.split(b"\r\n")[0].partition(b": ")[2].decode()
    assert admin(node, "/admin/fallbacks?mount=/emty&fallback=/music")[0] == 404
    music.stop()
