"""Shards: one port for all of them, one process, and a quick and orderly end."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import subprocess
import sys
import threading
import time

import pytest
from tools.engines import (
    MP3,
    Programme,
    answer,
    ask,
    body_of,
    dial,
    ended,
    get,
    idle,
    offset_of,
    read_all,
    running,
    slow,
)
from tools.listeners import Crowd, Listener
from tools.nodes import wait_until

import relay._core as core

MALFORMED = b"GET /live\r\n\r\n"


# --- addresses, threads, processes ----------------------------------------------------------------


def test_a_port_that_is_taken_is_refused() -> None:
    """A second engine on the same port is told so, whatever the number of their threads."""
    for first, second in ((1, 1), (1, 2), (2, 1), (2, 2)):
        late = core.Engine(threads=second, listeners_max=10)
        with running(threads=first) as (_, address), pytest.raises(OSError, match=r"in use.*:\d+"):
            late.listen(*address)


@pytest.mark.parametrize("port", [-1, 65536, 1 << 20])
def test_a_port_that_does_not_exist_is_refused(port: int) -> None:
    """Numbers beyond 16 bits are not cut to some other port."""
    with pytest.raises((ValueError, OverflowError)):
        core.Engine(listeners_max=10).listen("127.0.0.1", port)


def test_a_host_that_does_not_exist_is_refused() -> None:
    """The resolver's reason is passed on."""
    with pytest.raises(OSError, match=r"no such host\.invalid"):
        core.Engine(listeners_max=10).listen("no such host.invalid", 0)


def test_an_engine_is_opened_in_order() -> None:
    """Doors are bound before the threads start, each once; closing twice is closing once."""
    engine = core.Engine(listeners_max=10)
    engine.listen("127.0.0.1", 0)
    with pytest.raises(core.RelayError, match="listens already"):
        engine.listen("127.0.0.1", 0)
    engine.start()
    with pytest.raises(core.RelayError, match="started"):
        engine.start()
    engine.close()
    engine.close()
    with pytest.raises(core.RelayError, match="closed"):
        engine.snapshot()
    late = core.Engine(listeners_max=10)
    late.start()
    with pytest.raises(core.RelayError, match="started"):
        late.listen("127.0.0.1", 0)
    late.close()


def test_two_threads_share_one_port() -> None:
    """With threads=2 both shards get listeners, and each listener all of its frames."""
    with running(threads=2) as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push(20)
        crowd.join_many(60, address)
        crowd.wait_audio()
        live.push(20)
        crowd.wait_audio(len(live.audio))
        assert all(who.checker is not None and who.checker.clean for who in crowd.all)
        told = engine.snapshot()
        assert [shard["listeners"] > 5 for shard in told["shards"]] == [True, True]
        assert told["listeners"] == 60


def test_four_shards_share_the_connections_evenly() -> None:
    """8,000 from 200 addresses: each shard takes its quarter, give or take an eighth of it (the
    kernel's hash is a lottery of standard deviation 39), and what they count adds up."""
    count, shards = 8000, 4
    with running(threads=shards) as (engine, address):
        for number in range(count):
            with socket.socket() as sock:
                sock.bind((f"127.0.1.{number % 200 + 1}", 0))
                sock.connect(address)
                sock.sendall(MALFORMED)
                assert sock.recv(100).startswith(b"HTTP/1.0 400 ")
        # a shard books its turn when it ends, which may be after the replies
        wait_until(lambda: engine.snapshot()["accepts_total"] == count, 30.0, what="all booked")
        told = idle(engine)
        shares = [shard["accepts_total"] for shard in told["shards"]]
        assert all(abs(share - count / shards) < count / shards / 8 for share in shares), shares
        for name in ("accepts_total", "refused_malformed_total", "turns_total"):
            assert told[name] == sum(shard[name] for shard in told["shards"])
        assert told["accepts_total"] == told["refused_malformed_total"] == count


def test_the_places_of_a_node_are_bounded_whatever_its_shards() -> None:
    """listeners_max is the node's, and so are its places: heads of all shards together."""
    with running(threads=3, listeners_max=20, heads_max=30, head_grace_ms=200) as (engine, address):
        Programme(engine).push(10)
        socks = []
        try:
            for number in range(120):
                socks.append(socket.create_connection(address, 5.0, (f"127.0.2.{number + 1}", 0)))
            wait_until(lambda: engine.snapshot()["heads"] >= 30)
            assert engine.snapshot()["heads"] <= 20 + 30 + 3
            wait_until(lambda: engine.snapshot()["accepts_total"] == 120)
            wait_until(lambda: engine.snapshot()["heads"] <= 30)
            socks += [dial(address) for _ in range(30)]
            for sock in socks[120:]:
                sock.sendall(get())
            told = [sock.recv(100)[9:12] for sock in socks[120:]]
            assert (told.count(b"200"), told.count(b"503")) == (20, 10)
            assert engine.snapshot()["listeners"] == 20
        finally:
            for sock in socks:
                sock.close()
        idle(engine)


def test_ipv6_is_served_and_told() -> None:
    """`::1` works like 127.0.0.1, and the address of a hand-over is IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine ({error}): enable net.ipv6 on lo")
    with running("::1") as (engine, address):
        Programme(engine).push(10)
        assert answer(ask(address, get("/live", method="HEAD")))[0] == 200
        with dial(address) as sock:
            sock.sendall(get("/"))
            select.select([engine.page_fd], [], [], 5.0)
            fd, _, where = engine.take_page()
            os.close(fd)
            assert where == sock.getsockname()[:2]


def test_engines_in_one_process_do_not_know_each_other() -> None:
    """The same mount on two engines is two streams; closing one leaves the other playing."""
    with running() as (first, first_at), running() as (second, second_at), Crowd() as crowd:
        one, two = Programme(first), Programme(second, info=MP3 + b"icy-url: two\r\n")
        one.push(10)
        two.push(30)
        here, there = crowd.join(first_at), crowd.join(second_at)
        wait_until(lambda: here.audio_bytes == len(one.audio))
        wait_until(lambda: there.audio_bytes == len(two.audio))
        first.close()
        wait_until(lambda: not here.alive)
        two.push(10)
        wait_until(lambda: there.audio_bytes == len(two.audio))
        assert there.alive


FORKED = """
import os, sys, time
import relay._core as core
from relay.errors import RelayError
engine = core.Engine(listeners_max=10)
stream = engine.add_stream("/live")
stream.claim()
stream.begin()
stream.push(b"x" * 100, 20000)
view = stream.view()
engine.listen("127.0.0.1", 0)
engine.start()
source = core.Source(stream, "mpeg")
calls = [
    engine.snapshot, engine.start, engine.stop_accepting, engine.close, engine.take_page,
    engine.take_source, engine.streams, lambda: engine.add_stream("/x"),
    lambda: engine.find("/live"), lambda: engine.remove_stream(stream), engine.configure,
    lambda: engine.listen("127.0.0.1", 0),
    lambda: stream.push(b"x", 1), stream.claim, stream.unclaim, stream.begin, stream.end,
    stream.snapshot, stream.view, stream.header, lambda: stream.read(0), stream.give_up,
    lambda: stream.title("x"), lambda: stream.set_info(b""), lambda: stream.resize(1 << 20, 64),
    lambda: stream.place(1, 1, 1, b"x", 1), lambda: stream.burst_sequence(1),
    lambda: source.feed(b"x"),
]
while engine.snapshot()["turns_total"] < 2:  # a sanitizer's allocator is not safe to fork from
    time.sleep(0.01)  # while a thread begins
pid = os.fork()
if pid == 0:
    silent = []
    for number, call in enumerate(calls):
        try:
            call()
            silent.append(number)
        except RelayError as error:
            assert "forked" in str(error), error
    print(silent, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
assert engine.snapshot()["turns_total"] >= 0
engine.close()
print("parent closed", flush=True)
"""


def test_in_a_forked_child_every_call_raises(core_env: dict[str, str]) -> None:
    """The child is told that the engine is its parent's; the parent goes on undisturbed."""
    told = subprocess.run(
        [sys.executable, "-P", "-c", FORKED], env=core_env, capture_output=True, text=True,
        timeout=20,
    )  # fmt: skip
    assert told.stdout.splitlines() == ["[]", "parent closed"], told.stderr


def test_no_descriptor_is_left_behind() -> None:
    """An engine with listeners, heads, refusals and pages closes all that it opened."""
    gc.collect()  # engines of earlier tests go now, not between the two looks
    before = set(os.listdir("/proc/self/fd"))
    visit_in_every_way()
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


def visit_in_every_way() -> None:
    """Let twelve connections end in six ways on an engine that is then closed."""
    heads = [get(), get("/"), get("/no"), b"GE", MALFORMED, get(method="PUT")] * 2
    with running(threads=2) as (engine, address):
        Programme(engine).push(10)
        socks = [dial(address) for _ in heads]
        for sock, head in zip(socks, heads, strict=True):
            sock.sendall(head)
        wait_until(lambda: engine.snapshot()["pages_waiting"] == 2)
        wait_until(lambda: engine.snapshot()["listeners"] == 2)
        for sock in socks:
            sock.close()


# --- the pace -------------------------------------------------------------------------------------

PACES = {"fixed": {"pace_ms": 250}, "floor": {"pace_ms": None, "pace_ms_min": 250}}


MEMBERS, SLOTS_MAX = 300, 300


def has_nothing(sock: socket.socket) -> bool:
    """Whether nothing has come."""
    sock.setblocking(False)
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(5.0)


def test_who_comes_while_a_slot_is_served_is_let_in_before_its_last_listener() -> None:
    """300 are due in one slot, 2.4 ms of sends. Whoever dials when the first of them has heard is
    answered before the last one has, now and then at least; never, if the door waited for all."""
    with running(config={"pace_ms": 10}) as (engine, address), contextlib.ExitStack() as stack:
        live = Programme(engine)
        live.push(10)
        members = [stack.enter_context(dial(address)) for _ in range(MEMBERS)]
        for member in members:
            member.sendall(get())
            body_of(member)
        let_in = tried = 0
        while not let_in and tried < SLOTS_MAX:
            tried += 1
            live.push(1)
            members[0].recv(65_536)
            with dial(address) as late:
                late.sendall(get())
                assert late.recv(1) == b"H"
                let_in += has_nothing(members[-1])
            for member in members[1:]:
                member.recv(65_536)
        print(f"\nlet in before the last of {MEMBERS} at slot {tried}")
        assert let_in


@pytest.mark.parametrize("kind", PACES)
def test_listeners_are_served_once_a_pace(kind: str) -> None:
    """Not more often, whether it is fixed or the floor of auto; and nothing is left out."""
    with running(config=PACES[kind]) as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push_seconds(1)
        listeners = [crowd.join(address) for _ in range(20)]
        crowd.wait_audio(len(live.audio))
        before, begin = engine.snapshot(), time.monotonic()
        live.push_live(2.0)
        crowd.wait_audio(len(live.audio))
        told, paces = engine.snapshot(), (time.monotonic() - begin) / 0.25
        assert told["sends_total"] - before["sends_total"] <= len(listeners) * (paces + 1)
        assert all(bytes(who.body) == live.audio for who in listeners)
        assert told["pace_ms"] == told["shards"][0]["pace_ms"] == 250
        assert (told["pace_changes_total"], told["pace_moves_total"]) == (0, 0)


def test_each_mount_has_a_pace_of_its_own() -> None:
    """A fixed mount beside an auto one: the shard tells the range of those that leave a choice."""
    engine = core.Engine(listeners_max=10)
    engine.configure(pace_ms=700)
    engine.configure("/quick", pace_ms_min=50, pace_ms_max=300)
    engine.configure("/slow", pace_ms=1000)
    engine.listen("127.0.0.1", 0)
    engine.start()
    wait_until(lambda: engine.snapshot()["turns_total"] > 0)
    assert engine.snapshot()["pace_ms"] == 50
    engine.close()


# --- going down -----------------------------------------------------------------------------------


def drained(who: Listener, live: Programme) -> bool:
    """Say whether a listener got whole frames, from a frame boundary on."""
    at = offset_of(live, who.body)
    whole = at + len(who.body) in live.boundaries()
    return whole and bytes(who.body) == live.audio[at : at + len(who.body)]


def test_a_node_that_goes_down_finishes_each_frame() -> None:
    """After stop_accepting all listeners end within a pace or so, each at a frame boundary."""
    with running(config={"pace_ms": 100}) as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push_seconds(3)
        feeding = threading.Thread(target=live.push_live, args=(2.0,))
        feeding.start()
        listeners = [crowd.join(address, icy=n % 2 == 0) for n in range(50)]
        crowd.wait_audio(1000)
        with dial(address) as parked_head:
            parked_head.sendall(b"GET /li")
            wait_until(lambda: engine.snapshot()["heads"] == 1)
            begin = time.monotonic()
            engine.stop_accepting()
            wait_until(lambda: not any(who.alive for who in listeners), 2.0)
            assert time.monotonic() - begin < 1.0
            parked_head.sendall(b"ve HTTP/1.0\r\n\r\n")
            assert answer(read_all(parked_head))[0] == 503
        feeding.join()
        assert {who.end for who in listeners} == {"eof"}
        assert all(drained(who, live) for who in listeners)
        assert ended(engine, "shutdown", 50)["listeners"] == 0
        with pytest.raises(ConnectionRefusedError):
            dial(address)


def test_a_node_that_goes_down_ends_a_slow_listener_in_whole_frames() -> None:
    """One whose window is full gets the rest of its frame when it reads again, then the end."""
    with running(config={"lag_ms_max": 60_000, "ring_s": 60}) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        live.push(5)
        with slow(address) as sock:
            body = body_of(sock)
            live.push_seconds(10)
            wait_until(lambda: engine.snapshot()["short_writes_total"] > 0)
            engine.stop_accepting()
            body += read_all(sock)
            assert len(body) in live.boundaries()
            assert len(body) < len(live.audio)
            assert body == live.audio[: len(body)]


def test_closing_takes_no_longer_than_two_seconds_whoever_listens() -> None:
    """Stalled listeners, parked ones and half a head do not hold it up."""
    with running(join_wait_ms=60_000) as (engine, address), contextlib.ExitStack() as open_ones:
        live = Programme(engine, bit_rate_kbit=320)
        Programme(engine, "/parked", begin=False)
        for mount in ("/live", "/parked", "/live"):
            open_ones.enter_context(slow(address, mount))
        open_ones.enter_context(dial(address)).sendall(b"GET")
        live.push_seconds(5)
        wait_until(lambda: engine.snapshot()["short_writes_total"] > 1)
        begin = time.monotonic()
        engine.stop_accepting()
        engine.close()
        assert time.monotonic() - begin < 2.0


def test_parked_listeners_are_refused_when_the_node_goes_down() -> None:
    """They wait for nothing any more: 503 at once."""
    with running(join_wait_ms=60_000) as (engine, address), dial(address) as sock:
        Programme(engine, begin=False)
        sock.sendall(get())
        wait_until(lambda: engine.snapshot()["listeners"] == 1)
        engine.stop_accepting()
        assert answer(read_all(sock))[0] == 503
        assert idle(engine)["listeners"] == 0
