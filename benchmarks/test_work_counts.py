"""Work that does not drift: what a shard asks of the system for each turn and listener, counted.

Rules of this room
  1. The counts come from the process itself: counting.c is preloaded and sees the engine's threads.
  2. No time is judged here; a count above its bound is a failure on any machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tools.nodes import child_env

from relay._core import BUILD

HERE = Path(__file__).parent
LISTENERS = 100
PACE_MS = 100
WINDOW_S = 3

SERVER = f"""
import ctypes, json, sys, time
from relay import _core
kinds = ("mallocs", "sends", "epoll_waits", "recvs", "looks")
shim = ctypes.CDLL(None)
shim.counted.restype = ctypes.c_uint64
engine = _core.Engine(listeners_max=1000)
engine.configure(pace_ms={PACE_MS})
host, port = engine.listen("127.0.0.1", 0)
stream = engine.add_stream("/live")
stream.claim()
stream.set_info(b"Content-Type: audio/mpeg\\r\\n")
stream.begin()
engine.start()
print(port, flush=True)
begin, pushed = time.monotonic(), 0
def play(seconds):
    global pushed
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        while pushed * 0.02 < time.monotonic() - begin:
            stream.push(bytes(160), 20_000)
            pushed += 1
        time.sleep(0.005)
play(0.2)
before_joins = shim.counted(0)
end = time.monotonic() + 20
while engine.snapshot()["joins_total"] < {LISTENERS} and time.monotonic() < end:
    play(0.1)
joining = shim.counted(0) - before_joins
play(1.0)
def look():
    counts = {{kind: shim.counted(number) for number, kind in enumerate(kinds)}}
    return counts | {{"turns": engine.snapshot()["turns_total"]}}
before = look()
play({WINDOW_S})
after = look()
told = {{name: after[name] - before[name] for name in after}}
told["mallocs_joining"] = joining
told["short_writes"] = engine.snapshot()["short_writes_total"]
print(json.dumps(told), flush=True)
"""


def run_server(shim: Path) -> dict[str, Any]:
    """Serve LISTENERS that read; returns what the engine's threads did within WINDOW_S."""
    env = child_env(LD_PRELOAD=str(shim))
    with subprocess.Popen([sys.executable, "-c", SERVER], env=env, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        address = ("127.0.0.1", int(child.stdout.readline()))
        crowd = []
        for _ in range(LISTENERS):
            crowd.append(socket.create_connection(address, timeout=5))
            crowd[-1].sendall(b"GET /live HTTP/1.0\r\n\r\n")
            assert crowd[-1].recv(15) == b"HTTP/1.0 200 OK"
        told: dict[str, Any] = json.loads(child.stdout.readline())
        for sock in crowd:
            sock.close()
    return told


@pytest.mark.skipif(BUILD == "asan", reason="the sanitizer counts allocations itself")
def test_a_turn_costs_one_wait_and_a_send_for_each_who_is_due(
    benchmark: Any, tmp_path: Path
) -> None:
    """No allocation, no read, no call but epoll_wait and the sends; sends as the pace says."""
    shim = tmp_path / "counting.so"
    cc = os.environ.get("CC", "gcc")
    subprocess.run(
        [cc, "-O2", "-shared", "-fPIC", "-o", shim, HERE / "counting.c", "-ldl"], check=True
    )
    told = benchmark.pedantic(run_server, args=(shim,), rounds=1)
    sends_per_listener_s = told["sends"] / LISTENERS / WINDOW_S
    assert told["mallocs"] == 0
    assert told["mallocs_joining"] == 0, "a join takes a record that is there, and nothing else"
    assert told["recvs"] == 0
    assert abs(told["epoll_waits"] - told["turns"]) <= 2
    assert told["turns"] <= 105 * WINDOW_S, "a slot of the wheel is 10 ms: 100 turns a second"
    assert sends_per_listener_s <= 1000 / PACE_MS * 1.05
    assert told["short_writes"] == 0
    benchmark.extra_info |= {
        "core": BUILD,
        "allocations_per_join": told["mallocs_joining"] / LISTENERS,
        "allocations_per_turn": told["mallocs"] / told["turns"],
        "calls_per_turn_beside_sends": round(told["epoll_waits"] / told["turns"], 3),
        # within slots that took over 0.25 ms, by the clock: how many is the machine's doing
        "looks_at_the_door_per_turn": round(told["looks"] / told["turns"], 3),
        "sends_per_listener_second": round(sends_per_listener_s, 3),
    }
