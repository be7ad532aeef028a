"""A stream falls silent and its listeners go on with another, on the same connections.

Rules of this room
  1. Frames say which they are, and so who heard what when (tools/studio.py).
  2. Times are bounds for waiting, far above what is promised; the promise is printed.
"""

from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path

import pytest
from tools.engines import MP3, answer, ask, get
from tools.listeners import Crowd
from tools.nodes import Nodes, wait_known, wait_until
from tools.studio import (
    LIVE,
    MUSIC,
    STEP,
    TONE,
    WAIT_S,
    entitle,
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

from relay.config import Config
from relay.fallback import Fallbacks

pytestmark = [pytest.mark.timeout(90), pytest.mark.core]


# --- one engine ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_down_a_chain_and_back(threads: int) -> None:
    """/live, /music, /tone, /music, /live: each time whole frames, on one connection."""
    with studio(threads=threads) as house:
        for kind, mount in enumerate(("/live", "/music", "/tone")):
            house.start(kind, mount)
        everybody = [house.join() for _ in range(6)]
        hears(everybody, LIVE)
        house.stop(LIVE)
        hears(everybody, MUSIC)
        house.stop(MUSIC)
        hears(everybody, TONE)
        assert house.state()["fallback"] == "/tone"
        house.start(MUSIC, "/music")
        hears(everybody, MUSIC)
        house.start(LIVE, "/live")
        hears(everybody, LIVE)
        for listener in everybody:
            assert order(listener) == [LIVE, MUSIC, TONE, MUSIC, LIVE]
        counters = house.state()["counters"]
        assert counters["fallbacks_total"] == 3 * len(everybody)
        assert counters["returns_total"] == len(everybody)
        assert house.state()["fallback_listeners"] == 0
        assert house.engine.snapshot()["listeners"] == len(everybody)
        # the first run of /live whole to its end, the second from its beginning
        live = house.programmes[LIVE]
        ends = [run for run in runs(heard(everybody[0])) if run[0] == LIVE]
        assert ends[1][1] == ends[0][2] + 1, "a frame of /live is missing"
        assert live.maker.sequence > ends[1][2]


def test_a_chain_that_returns_in_the_other_order_repeats_nothing() -> None:
    """Down to /tone; /live returns, and /music only after it: nobody goes there before /live is
    silent again, and then it goes on where they left it."""
    with studio() as house:
        for kind, mount in enumerate(("/live", "/music", "/tone")):
            house.start(kind, mount)
        everybody = [house.join() for _ in range(3)]
        hears(everybody, LIVE)
        house.stall(LIVE)
        hears(everybody, MUSIC)
        house.stall(MUSIC)
        hears(everybody, TONE)
        house.start(LIVE, "/live", begins=False)
        hears(everybody, LIVE)
        house.start(MUSIC, "/music", begins=False)
        hears(everybody, LIVE, 60)
        house.stall(LIVE)
        hears(everybody, MUSIC, 0)
        for listener in everybody:
            assert order(listener) == [LIVE, MUSIC, TONE, LIVE, MUSIC]
            numbers = heard(listener)
            for kind in (LIVE, MUSIC, TONE):
                its = [number for number in numbers if number // STEP == kind]
                assert its == sorted(set(its)), "heard twice"


def test_newcomers_hear_the_fallback_at_once_and_its_bound_does_not_concern_them() -> None:
    """While /live is away; /music takes one listener only, and has three."""
    with studio(listeners_max=1) as house:
        house.start(MUSIC, "/music")
        house.engine.stand_in("/live", MP3)
        wait_until(lambda: house.state()["fallback"] == "/music", WAIT_S)
        guests = [house.join(), house.join()]
        own = house.join("/music")
        hears([*guests, own], MUSIC)
        assert answer(ask(house.address, get("/music")))[0] == 503
        assert house.state()["listeners"] == house.state()["fallback_listeners"] == 2
        assert house.state("/music")["listeners"] == 1
        live = house.engine.find("/live")
        live.claim()
        live.set_info(MP3)
        live.begin()
        made = maker(LIVE)
        for _ in range(40):
            for frame in made.frames(2):
                live.push(frame, round(made.frame_s * 1e6))
            time.sleep(0.05)
        hears(guests, LIVE)
        assert [order(guest) for guest in guests] == [[MUSIC, LIVE]] * 2
        assert order(own) == [MUSIC]


def test_a_stream_that_stalls_and_goes_on_repeats_nothing() -> None:
    """Its source and its epoch are the same all the time: each frame comes once, the rest too."""
    with studio() as house:
        for kind, mount in enumerate(("/live", "/music")):
            house.start(kind, mount)
        everybody = [house.join() for _ in range(3)]
        hears(everybody, LIVE)
        for _ in range(2):
            house.stall(LIVE)
            hears(everybody, MUSIC)
            house.start(LIVE, "/live", begins=False)
            hears(everybody, LIVE)
        for listener in everybody:
            own = [number for number in heard(listener) if number < MUSIC * STEP]
            assert len(own) == len(set(own)), "heard twice"
            assert own == sorted(own)
        assert house.state()["counters"]["returns_total"] == 2 * len(everybody)
        assert house.state()["counters"]["epochs_total"] == 1


def test_no_place_is_given_out_where_listeners_fall_back_and_nobody_waits() -> None:
    """A place that another node gave is served while it holds; a move is counted."""
    with studio() as house:
        for kind, mount in enumerate(("/live", "/music")):
            house.start(kind, mount)
        for mount, status in (("/live", 200), ("/music", 302)):
            wait_until(lambda m=mount: house.state(m).get("head_position"), WAIT_S)
            asked = ask(house.address, get(f"{mount}?at=live", method="HEAD"))
            assert answer(asked, to_head=True)[0] == status
        epoch = house.state()["epoch"]
        named = house.join(f"/live?at={epoch}.0")
        hears([named], LIVE)
        assert heard(named)[0] == 0
        assert house.engine.snapshot()["anchored_exact_total"] == 1
        house.stop(LIVE)
        hears([named], MUSIC)
        assert house.engine.snapshot()["anchors_lost_total"] == 1
        late = house.join(f"/live?at={epoch + 1}.0")
        hears([late], MUSIC)


def test_another_format_is_not_switched_to_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    """Listeners stay, silent; one line names both mounts."""
    with studio() as house:
        house.start(LIVE, "/live")
        house.start(MUSIC, "/music", b"Content-Type: audio/aac\r\n")
        lines = Fallbacks(house.engine, Config())
        listener = house.join()
        hears([listener], LIVE)
        house.stop(LIVE)
        time.sleep(1.0)
        with caplog.at_level(logging.INFO, "relay.fallback"):
            lines.tick()
            lines.tick()
        assert [record.getMessage() for record in caplog.records] == [
            "/live: its fallback /music has another content type than /live: not used"
        ]
        assert order(listener) == [LIVE]
        assert listener.alive
        assert house.state()["counters"]["fallbacks_total"] == 0


@pytest.mark.soak
def test_a_slow_listener_goes_over_at_the_end_of_a_frame() -> None:
    """One that takes a few bytes at a time is never cut in the midst of one."""
    with studio() as house:
        house.start(LIVE, "/live")
        house.start(MUSIC, "/music")
        slow = [house.join(receive_bytes=2048) for _ in range(3)]
        hears(slow, LIVE)
        for listener in slow:
            listener.drip(9000)
        house.stop(LIVE)
        hears(slow, MUSIC)
        house.start(LIVE, "/live")
        hears(slow, LIVE)
        for listener in slow:
            kinds = [kind for kind, _ in itertools.groupby(order(listener))]
            assert kinds == [LIVE, MUSIC, LIVE]


# --- nodes ---------------------------------------------------------------------------------------


def test_a_source_dies_and_returns_with_titles_on_two_nodes(
    nodes: Nodes, crowd: Crowd, tmp_path: Path
) -> None:
    """The edge fetches /music only when it is needed; titles are those of what is heard."""
    file = settings(tmp_path / "relay.toml", live={"fallback": "/music"})
    origin, edge = nodes.row(2, file)
    live, music = maker(LIVE, 320), maker(MUSIC, 320)  # a block of titles each 16 frames
    encoder, player = source(origin, "/live", live), source(origin, "/music", music)
    entitle(origin, "/live", "the talk")
    entitle(origin, "/music", "a waltz")
    wait_known(edge, "/live", "/music")
    everybody = [crowd.join(node.address, icy=True) for node in (origin, edge) for _ in range(3)]
    hears(everybody, LIVE, 40)
    assert stream(edge, "/music")["state"] == "ready", "fetched while nobody needs it"
    encoder.stop(reset=True)
    lost_s = time.monotonic()
    hears(everybody, MUSIC, 1)
    print(f"heard music on both nodes after {time.monotonic() - lost_s:.2f} s")
    origin.wait_event("fallback", mount="/live", fallback="/music")
    edge.wait_event("fallback", mount="/live", fallback="/music")
    wait_until(lambda: stream(edge, "/live").get("fallback_listeners") == 3, what="the facts")
    assert stream(edge, "/live")["fallback"] == "/music"
    metrics = edge.get("/metrics").body.decode()
    assert 'relay_stream_fallback_listeners{mount="/live"} 3.0' in metrics
    assert "\nrelay_fallbacks_total 3.0" in metrics
    hears(everybody, MUSIC, 40)
    encoder = source(origin, "/live", live)
    hears(everybody, LIVE)
    for node in (origin, edge):
        node.wait_event("fallback_over", mount="/live")
    for listener in everybody:
        assert order(listener) == [LIVE, MUSIC, LIVE]
        told = [title.block for title in listener.titles]
        assert told[:2] == [b"StreamTitle='the talk';", b"StreamTitle='a waltz';"]
    encoder.stop()
    player.stop()


def test_an_edge_loses_its_upstream_and_goes_on_with_its_own_programme(
    nodes: Nodes, crowd: Crowd, tmp_path: Path
) -> None:
    """Those without a fallback stay, silent, for their linger; all that stay hear the return."""
    file = settings(
        tmp_path / "relay.toml",
        live={"fallback": "/music", "linger_s": 2},
        talk={},
        brief={"linger_s": 1},
    )
    origin = nodes.start(file)
    edge = nodes.start(file, upstreams=[origin.backbone])
    frames = {mount: maker(LIVE) for mount in ("/live", "/talk", "/brief")}
    encoders = [source(origin, mount, made) for mount, made in frames.items()]
    player = source(edge, "/music", maker(MUSIC))
    wait_known(edge, *frames)
    # who is the first hears /music until /live has been fetched, where that takes a while
    hears([crowd.join(edge.address, "/live")], LIVE)
    live, talk, brief = (crowd.join(edge.address, mount) for mount in frames)
    hears([live, talk, brief], LIVE)
    origin.kill9()
    for encoder in encoders:
        encoder.stop()
    hears([live], MUSIC)
    wait_until(lambda: brief.end == "eof", WAIT_S, what="the end of the linger")
    hears([live], MUSIC, 100)  # more than its own linger
    assert talk.alive
    assert order(talk) == [LIVE]
    late = crowd.join(edge.address, "/live")
    hears([late], MUSIC)
    origin.restart()
    encoders = [source(origin, mount, made) for mount, made in frames.items()]
    hears([live, talk, late], LIVE)
    assert order(live) == [LIVE, MUSIC, LIVE]
    assert order(late) == [MUSIC, LIVE]
    assert [kind for kind, _ in itertools.groupby(order(talk))] == [LIVE]
    assert stream(edge, "/live")["role"] == "edge"
    for encoder in [*encoders, player]:
        encoder.stop()


def test_a_loop_is_refused_by_the_command(nodes: Nodes, tmp_path: Path) -> None:
    """With its path, and before anything is opened."""
    file = settings(tmp_path / "relay.toml", a={"fallback": "/b"}, b={"fallback": "/a"})
    node = nodes.spawn_later(file).spawn()
    assert node.wait(15.0) != 0
    assert '"/a" > "/b" > "/a"' in node.output()
