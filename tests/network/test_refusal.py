"""Who is not let in: told so whole and at once, sent on where another node has room, never spun on.

Rules of this room
  1. Descriptors run out in a process of their own: what is lowered there harms no other test.
  2. A reply counts when its length is right and the connection ended without a reset.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest
from tools.engines import Address, Programme, answer, ask, dial, get, idle, read_all, running
from tools.nodes import wait_until

import relay._core as core
from relay.recorder import Record

REFUSE = 41  # relay/recorder.py
OTHERS = ["http://two.example:8000", "https://three.example/audio"]


def fill(address: Address, count: int, mount: str = "/live") -> list[socket.socket]:
    """Take so many places; the caller closes."""
    socks = [dial(address) for _ in range(count)]
    for sock in socks:
        sock.sendall(get(mount))
        assert sock.recv(100).startswith(b"HTTP/1.0 200")
    return socks


# --- full -----------------------------------------------------------------------------------------


def test_a_full_node_says_so() -> None:
    """Beyond listeners_max: a whole 503 with Retry-After; a place that is freed is given again."""
    with running(listeners_max=3) as (engine, address):
        Programme(engine).push(10)
        socks = fill(address, 3)
        status, fields, body = answer(ask(address, get()))
        assert status == 503
        assert 2 <= int(fields["retry-after"]) <= 10
        assert body.startswith(b"this node is full (listeners_max); ")
        status, fields, _ = answer(ask(address, get(method="HEAD")), to_head=True)
        assert status == 503
        assert "retry-after" in fields
        wait_until(lambda: engine.snapshot()["refused_full_total"] == 2)
        socks.pop().close()
        wait_until(lambda: engine.snapshot()["listeners"] == 2)
        assert answer(ask(address, get(method="HEAD")))[0] == 200
        socks += fill(address, 1)
        for sock in socks:
            sock.close()
        idle(engine)


def test_a_full_mount_leaves_room_on_others() -> None:
    """listeners_max of one mount is that mount's."""
    with running(config={"listeners_max": 1}) as (engine, address):
        for mount in ("/a", "/b"):
            Programme(engine, mount).push(10)
        socks = fill(address, 1, "/a")
        status, _, body = answer(ask(address, get("/a")))
        assert status == 503
        assert body.startswith(b"this mount is full (listeners_max); ")
        assert answer(ask(address, get("/a", method="HEAD")), to_head=True)[0] == 503
        socks += fill(address, 1, "/b")
        for sock in socks:
            sock.close()
        idle(engine)


def test_a_refusal_is_recorded_with_its_stream_where_there_is_one() -> None:
    """Of names that somebody thinks up nothing is kept."""
    with running(config={"listeners_max": 1}) as (engine, address):
        Programme(engine, "/a").push(10)
        socks = fill(address, 1, "/a")
        assert answer(ask(address, get("/a")))[0] == 503
        assert answer(ask(address, get("/thought-up")))[0] == 404
        refused: list[Record] = []

        def told() -> bool:
            refused.extend(
                one for row in engine.recorded(cursors) if (one := Record(*row)).kind == REFUSE
            )
            return len(refused) == 2

        cursors: list[int] = []
        wait_until(told, 5.0, what="both refusals")
        key = engine.find("/a").key
        assert {(one.reason_name, one.stream) for one in refused} == {
            ("full", key),
            ("not_found", 0),
        }
        for sock in socks:
            sock.close()
        idle(engine)


def test_those_who_are_refused_together_are_asked_back_apart() -> None:
    """Retry-After differs from one to the next, also between two nodes."""
    waits = []
    for _ in range(2):
        with running(listeners_max=1) as (engine, address):
            Programme(engine).push(10)
            [sock] = fill(address, 1)
            replies = [answer(ask(address, get())) for _ in range(40)]
            waits.append([int(fields["retry-after"]) for _, fields, _ in replies])
            sock.close()
    assert len(set(waits[0])) > 4
    assert waits[0] != waits[1]


def test_a_flood_against_a_full_node_is_refused_whole(crowd: Any) -> None:
    """4,000 who come as fast as they can: each a whole 503, no reset; incumbents miss nothing."""
    with running(listeners_max=20, heads_max=256) as (engine, address):
        live = Programme(engine)
        live.push(20)
        crowd.join_many(20, address)
        crowd.wait_audio()
        feeding = threading.Thread(target=live.push_live, args=(2.0,))
        feeding.start()
        begin = time.monotonic()
        told: Counter[int] = Counter()
        floods = [threading.Thread(target=flood, args=(address, 1000, told)) for _ in range(4)]
        for thread in floods:
            thread.start()
        for thread in [*floods, feeding]:
            thread.join()
        print(f"\n{4000 / (time.monotonic() - begin):.0f} refusals/s")
        assert told == {503: 4000}
        wait_until(lambda: engine.snapshot()["refused_full_total"] == 4000)
        crowd.wait_audio(len(live.audio))
        assert all(who.checker.clean for who in crowd.all)


def flood(address: Address, count: int, told: Counter[int]) -> None:
    """Ask so often, each time on a new connection that reads to its end."""
    for _ in range(count):
        told[answer(ask(address, get()))[0]] += 1


# --- sent on --------------------------------------------------------------------------------------


def test_a_full_node_sends_on_to_the_others_in_turn() -> None:
    """302 with path and query as they came and a count of the hops; GET and HEAD alike."""
    with running(listeners_max=1, redirects=OTHERS) as (engine, address):
        Programme(engine).push(10)
        [sock] = fill(address, 1)
        found = []
        for method in ("GET", "HEAD", "GET"):
            reply = ask(address, get("/l%69ve?a=%20b", method=method))
            status, fields, body = answer(reply, to_head=method == "HEAD")
            assert status == 302
            assert method == "HEAD" or body == b"places are free on another node; go there\n"
            assert "retry-after" not in fields
            found.append(fields["location"])
        path = "/l%69ve?a=%20b&relay-hops=1"
        assert found == [OTHERS[0] + path, OTHERS[1] + path, OTHERS[0] + path]
        wait_until(lambda: engine.snapshot()["redirects_total"] == 3)
        assert engine.snapshot()["refused_full_total"] == 0
        sock.close()


def test_who_was_sent_round_often_enough_is_told_so() -> None:
    """Full nodes that name each other end in a 503, not in a circle."""
    with running(listeners_max=1, redirects=OTHERS) as (engine, address):
        Programme(engine).push(10)
        [sock] = fill(address, 1)
        target, hops = "/live", 0
        while True:
            status, fields, _ = answer(ask(address, get(target)))
            if status != 302:
                break
            target = fields["location"].removeprefix(OTHERS[hops % 2])
            hops += 1
        assert (status, hops) == (503, 3)
        assert "retry-after" in fields
        sock.close()


def test_a_request_that_could_end_a_line_is_not_repeated() -> None:
    """No byte of a request gets into a reply that a client could take for a field of its own."""
    with running(listeners_max=1, redirects=OTHERS) as (engine, address):
        Programme(engine).push(10)
        [sock] = fill(address, 1)
        for target in ("/live?a\tSet-Cookie:x", "/live?a b", "/live?\x01"):
            assert answer(ask(address, get(target)))[0] == 503
        long = "/live?" + "a" * 7000
        assert answer(ask(address, get(long)))[1]["location"] == f"{OTHERS[0]}{long}&relay-hops=1"
        sock.close()


def test_what_is_missing_or_malformed_is_not_sent_on() -> None:
    """Another node would not have it either."""
    with running(redirects=OTHERS) as (_, address):
        assert answer(ask(address, get("/no")))[0] == 404
        assert answer(ask(address, get(method="DELETE")))[0] == 405
        assert answer(ask(address, b"GET /\r\n\r\n"))[0] == 400


@pytest.mark.parametrize("redirects", [["x" * 256], ["http://a b"], ["http://a"] * 17, [""]])
def test_the_engine_takes_only_clean_redirects(redirects: list[str]) -> None:
    """Checked again below config.py, since they go into replies as they are."""
    with pytest.raises(ValueError, match="at most 16"):
        core.Engine(redirects=redirects)


# --- going down -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_a_node_that_goes_down_sends_newcomers_on(threads: int) -> None:
    """With other nodes to name the door stays open to the end: 302, not refused by the kernel."""
    with running(threads=threads, redirects=OTHERS[:1]) as (engine, address):
        Programme(engine).push(10)
        engine.stop_accepting()
        for _ in range(20):
            status, fields, _ = answer(ask(address, get()))
            assert (status, fields["location"]) == (302, f"{OTHERS[0]}/live?relay-hops=1")
        engine.close()
        with pytest.raises(ConnectionRefusedError):
            dial(address)


@pytest.mark.parametrize("threads", [1, 3])
def test_nobody_is_left_in_the_queue_of_a_door_that_closes(threads: int) -> None:
    """Whoever had connected and asked before the door closed is answered, not reset; they are more
    than one turn accepts."""
    count = 3500
    engine = core.Engine(listeners_max=count, threads=threads)
    address = engine.listen("127.0.0.1", 0)
    socks = [dial(address) for _ in range(count)]
    for sock in socks:
        sock.sendall(get())
    engine.stop_accepting()  # before its threads have accepted any of them
    engine.start()
    wait_until(lambda: engine.snapshot()["refused_busy_total"] == count)
    assert [answer(read_all(sock))[0] for sock in socks] == [503] * count
    with pytest.raises(ConnectionRefusedError):
        dial(address)
    engine.close()
    for sock in socks:
        sock.close()


def test_closing_at_once_answers_those_who_wait() -> None:
    """Also without going down first."""
    engine = core.Engine(listeners_max=1000)
    address = engine.listen("127.0.0.1", 0)
    socks = [dial(address) for _ in range(100)]
    for sock in socks:
        sock.sendall(get())
    engine.start()
    engine.close()
    told = Counter(answer(read_all(sock))[0] for sock in socks)
    assert sum(told.values()) == 100
    assert set(told) <= {404, 503}
    for sock in socks:
        sock.close()


# --- descriptors ----------------------------------------------------------------------------------

FEW_FILES = """
import json, os, resource, sys, threading, time
import relay._core as core
engine = core.Engine(listeners_max=100, heads_max=100, heads_per_address_max=100)
engine.add_stream("/live").begin()
print(engine.listen("127.0.0.1", 0)[1], flush=True)
used = len(os.listdir("/proc/self/fd"))  # one more than stays: the listing itself
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 9, used + 9))
engine.start()
grabbed = []
def grab():
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        try:
            grabbed.append(os.dup(0))
        except OSError:
            pass
for line in sys.stdin:
    if line.strip() == "grab":
        grab()
    elif line.strip() == "release":
        while grabbed:
            os.close(grabbed.pop())
    print(json.dumps(engine.snapshot()), flush=True)
engine.close()
"""


class FewFiles:
    """An engine in a process that may open ten files more than it has."""

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", FEW_FILES],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    def tell(self, word: str = "") -> dict[str, int]:
        """Give a command; returns the engine's snapshot."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def cpu_s(self) -> float:
        """Return the processor time that it has used."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def few_files(core_env: dict[str, str]):
    """Run it; it is ended by the end of its input."""
    child = FewFiles(core_env)
    yield child
    assert child.process.stdin is not None
    child.process.stdin.close()
    try:
        assert child.process.wait(5.0) == 0
    finally:
        child.process.kill()


def read_told(sock: socket.socket) -> bytes:
    """Read all that it was told: what comes after its refusal finds nobody, and may reset."""
    found = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65_536):
            found += part
    return bytes(found)


def test_without_descriptors_newcomers_are_refused_and_later_served(few_files: FewFiles) -> None:
    """At EMFILE each newcomer is told 503 at once, nothing spins, and it recovers by itself."""
    socks = [dial(few_files.address) for _ in range(10)]
    wait_until(lambda: few_files.tell()["heads"] == 10)
    for _ in range(20):
        with dial(few_files.address) as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(get())  # it may be refused and closed before it asks
            assert answer(read_told(sock))[0] == 503
    # on a busy machine one turn may refuse all of them: it tells its counters when it is over
    wait_until(lambda: few_files.tell()["refused_descriptors_total"] == 20)
    before = few_files.tell()
    assert (before["heads"], before["heads_expired_total"]) == (10, 0)
    time.sleep(0.5)
    after = few_files.tell()
    assert after["turns_total"] - before["turns_total"] < 60
    assert after["refused_descriptors_total"] == 20
    for sock in socks:
        sock.close()
    wait_until(lambda: few_files.tell()["heads"] == 0)
    assert answer(ask(few_files.address, get("/missing")))[0] == 404


def test_a_hundred_who_wait_cost_nothing(few_files: FewFiles) -> None:
    """With every descriptor in use each is answered once; then no turn is spent on them."""
    holders = [dial(few_files.address) for _ in range(10)]
    wait_until(lambda: few_files.tell()["heads"] == 10)
    waiting = [dial(few_files.address) for _ in range(100)]
    wait_until(lambda: few_files.tell()["refused_descriptors_total"] == 100, 20.0)
    before, cpu = few_files.tell(), few_files.cpu_s()
    time.sleep(1.0)
    assert few_files.tell()["turns_total"] - before["turns_total"] < 120
    assert few_files.cpu_s() - cpu < 0.3
    for sock in [*holders, *waiting]:
        sock.close()


def test_without_descriptors_who_asks_is_sent_on_or_told(few_files: FewFiles) -> None:
    """The refusal is whole, with a Retry-After, when the request is here already."""
    holders = [dial(few_files.address) for _ in range(10)]
    wait_until(lambda: few_files.tell()["heads"] == 10)
    found = set()
    for _ in range(50):
        with dial(few_files.address) as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(get())
            status, fields, _ = answer(read_told(sock))
            assert status == 503
            found.add(int(fields["retry-after"]))
    assert found <= set(range(2, 11))
    for sock in holders:
        sock.close()


def test_even_without_a_reserve_the_door_does_not_spin(few_files: FewFiles) -> None:
    """When others take every descriptor at once, the door waits; then it serves who waited."""
    few_files.tell()
    grabbing = subprocess.Popen(
        [sys.executable, "-c", BESIEGE.format(port=few_files.address[1])],
        stdin=subprocess.DEVNULL,
    )
    few_files.tell("grab")
    before = few_files.tell()
    time.sleep(0.3)
    after = few_files.tell()
    assert after["turns_total"] - before["turns_total"] < 400
    few_files.tell("release")
    grabbing.wait(10.0)
    wait_until(lambda: few_files.tell()["heads"] == 0)
    assert answer(ask(few_files.address, get("/missing")))[0] == 404


BESIEGE = """
import socket, time
socks = []
until = time.monotonic() + 1.0
while time.monotonic() < until:
    socks.append(socket.create_connection(("127.0.0.1", {port})))
    time.sleep(0.001)
"""
