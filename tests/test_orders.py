"""What an administrator asks of listeners: moved frame by frame, told, ended; counts stay right."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe_listener import TwoMounts
from test_fallback_move import METAINT, MUSIC, Two
from tools.engines import Programme, dial, ended, get, read_until, running
from tools.listeners import IcyStripper
from tools.nodes import wait_until

pytestmark = pytest.mark.core


class Moved(Two):
    """Two mounts, and one listener that is sent from the first to the second."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pair: Any = TwoMounts(**options)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 1), st.integers(1, 2000)),
        st.tuples(st.just("part"), st.integers(0, 1), st.integers(1, 500)),
        st.tuples(st.just("title"), st.integers(0, 1), st.integers(0, 400)),
        st.tuples(st.just("send"), st.integers(0, 60_000), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, STEPS, st.booleans())
def test_a_listener_that_is_moved_goes_over_at_the_end_of_a_frame(
    before: list[Any], after: list[Any], icy: bool
) -> None:
    """Left at a frame's end, begun at a start, blocks exact; counted at the other mount at once."""
    two = Moved(icy=icy, burst_us=200_000, lag_us_max=600_000)
    for number, (kind, first, second) in enumerate([*before, ("go", 0, 0), *after]):
        if kind == "go":
            assert two.pair.send_over()
            assert two.pair.places[:2] == (0, 1)
        elif kind in {"push", "part"}:
            two.push(first, second, start=kind == "push")
        elif kind == "title":
            two.pair.push_to(first, b"%03d" % number + b"t" * second, 0, 8)
        else:
            two.send(first)
    two.push(1, 100)
    two.send_all()
    strip = IcyStripper(METAINT)
    audio = strip.feed(bytes(two.out)) if icy else bytes(two.out)
    runs = two.runs(audio)
    assert runs
    assert runs[-1][0] >= MUSIC, "it never came to the other mount"
    assert runs[0][0] in two.starts
    for (_, left), (begun, _) in itertools.pairwise(runs):
        assert left in two.begins, "left in the midst of a frame"
        assert begun in two.starts, "went on where no listener may begin"
    assert [run[0] >= MUSIC for run in runs] == sorted(run[0] >= MUSIC for run in runs)
    assert two.pair.places == (0, 1, 0, 1)


def test_nobody_is_moved_to_another_format_or_to_a_full_mount() -> None:
    """It stays where it is, and is counted there."""
    two = Moved(icy=False)
    two.push(0, 100)
    two.send_all()
    two.pair.inform(1, b"Content-Type: audio/aac\r\n")
    assert not two.pair.send_over()
    two.pair.inform(1, b"Content-Type: audio/mpeg\r\n")
    two.pair.bound(1)
    assert two.pair.send_over()
    assert not two.pair.send_over(), "it is there already"
    assert two.pair.places == (0, 1, 1, 0)


def test_where_the_other_mount_is_silent_it_hears_its_old_one_until_that_returns() -> None:
    """Silence is no reason to be thrown out, nor to hear nothing."""
    two = Moved(icy=False, burst_us=0)
    two.push(0, 100)
    two.send_all()
    two.pair.epoch_of(1, 2, ends=True)
    assert two.pair.send_over()
    two.push(0, 100)
    two.send_all()
    assert two.runs(bytes(two.out)) == [(0, 200)]
    two.words[1] = 0
    two.pair.epoch_of(1, 3)
    two.push(1, 50)
    two.send_all()
    two.push(1, 50)
    two.send_all()
    assert two.runs(bytes(two.out))[1:] == [(MUSIC, MUSIC + 100)]


def test_who_is_moved_to_what_it_has_heard_of_before_hears_it_on() -> None:
    """The fallback that it left becomes its own mount: nothing of it is heard twice."""
    two = Moved(icy=False, burst_us=10_000_000)
    for stream in (0, 1):
        for _ in range(20):
            two.push(stream, 10)
    two.send_all()
    for at in (1, 0):
        two.pair.rule(at)
        two.push(at, 10)
        two.send_all()
    assert two.pair.send_over()
    two.now_us += 20_000_000
    two.push(1, 10)
    two.send_all()
    runs = two.runs(bytes(two.out))
    assert runs == [
        (0, 200), (MUSIC, MUSIC + 210), (200, 210), (MUSIC + 210, MUSIC + 220),
    ]  # fmt: skip


# --- a real engine --------------------------------------------------------------------------------


def carried_out(engine: Any, *asked: Any, **options: Any) -> Any:
    """An order, once it is done; the engine's threads do it meanwhile."""
    order = wait_until(lambda: engine.order(*asked, **options), what="a place for the order")
    wait_until(order.is_done, what=f"{asked[0]} to be carried out")
    return order


def test_the_roll_tells_each_listener_once_with_what_it_calls_itself() -> None:
    """Address, agent (hostile, cut), time, bytes; ids are never given twice."""
    with running(threads=2) as (engine, address):
        live = Programme(engine)
        live.push_seconds(2)
        Programme(engine, "/other")
        agents = [b"VLC/3", b"", b"<\xff\x80&\x01\xe2\x98\x83", b"x" * 500]
        socks = []
        for agent in agents:
            sock = dial(address)
            sock.sendall(get("/live")[:-2] + b"uSeR-aGeNt:  " + agent + b"\r\n\r\n")
            read_until(sock, 2000)
            socks.append(sock)
        other = dial(address)
        other.sendall(get("/other"))
        order = carried_out(engine, "list", live.stream, rolls_max=10)
        rolls = order.rolls()
        assert order.found() == (4, 0)
        assert sorted(roll[5] for roll in rolls) == sorted([*agents[:3], b"x" * 190])
        assert len({roll[0] for roll in rolls}) == 4
        assert {roll[4] for roll in rolls} == {sock.getsockname() for sock in socks}
        assert all(roll[1] > 0 and roll[3] > 1000 for roll in rolls)
        short = carried_out(engine, "list", live.stream, rolls_max=2)
        assert (len(short.rolls()), short.found()) == (2, (4, 0))
        [first] = [roll[0] for roll in rolls if roll[5] == b"VLC/3"]
        assert carried_out(engine, "end", live.stream, ids=[first]).found() == (1, 0)
        assert carried_out(engine, "end", live.stream, ids=[first]).found() == (0, 0)
        ended(engine, "killed", 1)
        assert carried_out(engine, "end", live.stream).found() == (3, 0)
        for sock in socks:
            sock.settimeout(5)
            read_until_end(sock)
        again = dial(address)
        again.sendall(get("/live"))
        read_until(again, 2000)
        [newest] = carried_out(engine, "list", live.stream, rolls_max=9).rolls()
        assert newest[0] not in {roll[0] for roll in rolls}
        for sock in (again, other):
            sock.close()


def read_until_end(sock: Any) -> None:
    """To the end of the connection."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    sock.close()


def test_listeners_are_ended_by_their_ids_wherever_they_are_now() -> None:
    """Of several mounts, one moved meanwhile, with one order, which tells who was there; an id of
    nobody, or of a listener of another stream than the one that is named, ends nobody."""
    with running(threads=2) as (engine, address):
        one, two = Programme(engine), Programme(engine, "/two")
        socks = {}
        for live in (one, two):
            live.push_seconds(1)
            for _ in range(4):
                sock = dial(address)
                sock.sendall(get(live.mount))
                read_until(sock, 500)
                [number] = [
                    roll[0]
                    for roll in carried_out(engine, "list", live.stream, rolls_max=9).rolls()
                    if roll[4] == sock.getsockname()
                ]
                socks[number] = sock, live.mount
        numbers = sorted(socks)
        there = [number for number in numbers if socks[number][1] == "/two"]
        here = [number for number in numbers if socks[number][1] == "/live"]
        assert carried_out(engine, "move", one.stream, two.stream, ids=here[:1]).found() == (1, 0)
        assert carried_out(engine, "end", one.stream, ids=[here[0], *there]).found() == (0, 0)
        wanted = [there[-1], here[1], here[0], 10**18]
        order = carried_out(engine, "end", None, ids=wanted, rolls_max=len(wanted))
        assert order.found() == (3, 0)
        assert {roll[0] for roll in order.rolls()} == {there[-1], here[1], here[0]}
        ended(engine, "killed", 3)
        for number in wanted[:3]:
            read_until_end(socks.pop(number)[0])
        left = [roll[0] for roll in carried_out(engine, "list", None, rolls_max=9).rolls()]
        assert sorted(left) == sorted(socks)
        for sock, _ in socks.values():
            sock.close()


def test_one_order_at_a_time_and_none_after_the_end() -> None:
    """A second one is not taken while shards are at the first; a closed engine takes none."""
    with running() as (engine, _):
        live = Programme(engine)
        taken = [engine.order("list", live.stream, rolls_max=1) for _ in range(50)]
        assert taken[0] is not None
        wait_until(lambda: all(order is None or order.is_done() for order in taken))
        with pytest.raises(ValueError, match="to which stream"):
            engine.order("move", live.stream)
        with pytest.raises(KeyError):
            engine.order("sing", live.stream)
        kept = engine.order("list", live.stream, rolls_max=1)
    del live
    assert kept is None or kept.found()[0] == 0


@pytest.mark.parametrize("icy", [False, True])
def test_moved_over_a_socket_the_bytes_are_whole_frames_of_both(icy: bool) -> None:
    """A hundred milliseconds later all hear the other mount, on the same connections."""
    with running(config={"burst_ms": 200}) as (engine, address):
        one, two = Programme(engine), Programme(engine, "/two")
        for live in (one, two):
            live.push_seconds(1)
        sock = dial(address)
        sock.sendall(get("/live", *(["Icy-MetaData: 1"] if icy else [])))
        head = read_until(sock, 100)
        order = carried_out(engine, "move", one.stream, two.stream)
        assert order.found() == (1, 0)
        assert one.stream.snapshot()["listeners"] == 0
        assert two.stream.snapshot()["listeners"] == 1
        until = time.monotonic() + 5
        while engine.snapshot()["moves_total"] < 1 and time.monotonic() < until:
            for live in (one, two):
                live.push(2)
            time.sleep(0.02)
        assert engine.snapshot()["moves_total"] == 1
        two.push(40)
        wanted = bytes(two.audio[-2000:])
        body = head
        sock.settimeout(5)
        while wanted not in body:
            more = sock.recv(65536)
            assert more, "the connection ended"
            body += more
        sock.close()
