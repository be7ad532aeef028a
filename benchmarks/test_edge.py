"""What one listener costs a shard: 2,000 of them at 64 kbit/s, beside a bare loop of sends.

Rules of this room
  1. The engine runs in a child process on core 0, the load is compiled and runs here on core 1.
  2. Loopback charges the receiver's half of each send to the sender, for both alike: the ratio to
     the bare loop is what travels to other machines.
  3. Counts that do not drift are asserted: sends, bytes, short writes. Times are shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from relay._probe import Drain

import relay
import relay._core as core

LISTENERS = 2000
PACE_MS = 200
RUN_S = 3.0
BYTES_PER_S = 8000  # 64 kbit/s
REQUEST = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n"

SERVER = """
import json, os, socket, sys, threading, time
os.sched_setaffinity(0, {0})
import relay._core as core
from relay._probe import bare_send
listeners, pace_ms, run_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

def cpu_s():
    mine = str(threading.get_native_id())
    total = 0
    for thread in os.listdir("/proc/self/task"):
        if thread != mine:
            with open(f"/proc/self/task/{thread}/schedstat") as told:
                total += int(told.read().split()[0])
    return total / 1e9

engine = core.Engine(listeners_max=listeners, heads_max=4096, heads_per_address_max=4096)
engine.configure(pace_ms=pace_ms)
stream = engine.add_stream("/live")
stream.claim()
stream.set_info(b"Content-Type: audio/mpeg\\r\\n")
stream.begin()
frame = bytes(209)
for _ in range(38 * 3):
    stream.push(frame, 26122)
port = engine.listen("127.0.0.1", 0)[1]
engine.start()
print(port, flush=True)
sys.stdin.readline()
joined, cpu = engine.snapshot(), cpu_s()
begin, pushed = time.monotonic(), 0
while pushed * 0.026122 < run_s:
    due = int((time.monotonic() - begin) / 0.026122) + 1
    while pushed < due:
        stream.push(frame, 26122)
        pushed += 1
    time.sleep(0.005)
window_s, cpu = time.monotonic() - begin, cpu_s() - cpu
told = engine.snapshot()
time.sleep(1.5 * pace_ms / 1000)
last = engine.snapshot()
print(json.dumps({
    "cpu_s": cpu, "window_s": window_s, "pushed_bytes": pushed * len(frame),
    "burst_bytes": 114 * len(frame), "joined": joined, "told": told, "last": last,
}), flush=True)
sys.stdin.readline()
engine.close()

door = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(door.getsockname()[1], flush=True)
size = 8000 * pace_ms // 1000
sends, cpu = bare_send(door.fileno(), listeners, size, pace_ms, run_s)
print(json.dumps({"sends": sends, "cpu_s": cpu, "size_bytes": size}), flush=True)
"""


@contextlib.contextmanager
def on_core(number: int) -> Iterator[None]:
    """Run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """The child process with the engine, then with the bare loop."""

    def __init__(self) -> None:
        home = str(Path(relay.__file__).resolve().parent.parent)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER, str(LISTENERS), str(PACE_MS), str(RUN_S)],
            env=os.environ | {"PYTHONPATH": home},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> Any:
        """Read one line of JSON."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server ended early"
        return json.loads(line)

    def tell(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def listen_to_the_engine(server: Server) -> tuple[dict[str, Any], list[int]]:
    """Let the crowd join, hear the programme, and count; returns the server's report and bytes."""
    crowd = Drain(LISTENERS)
    crowd.join(server.hear(), REQUEST)
    crowd.read(0.5)
    server.tell()
    crowd.read(RUN_S + 1.0)
    told = server.hear()
    assert crowd.ended == 0
    server.tell()
    return told, crowd.body_bytes


def listen_to_the_bare_loop(server: Server) -> dict[str, Any]:
    """Let the same crowd hear the loop; returns its report."""
    crowd = Drain(LISTENERS)
    crowd.join(server.hear(), REQUEST)
    crowd.read(RUN_S + 1.5)
    told: dict[str, Any] = server.hear()
    assert sum(crowd.body_bytes) == told["sends"] * told["size_bytes"]
    return told


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores: one serves, one listens")
def test_two_thousand_listeners_on_one_shard(benchmark: Any) -> None:
    """CPU per listener-second, sends per listener-second, and every byte where it belongs."""
    with on_core(1), Server() as server:
        told, got = benchmark.pedantic(listen_to_the_engine, args=(server,), rounds=1)
        bare = listen_to_the_bare_loop(server)
    heard = {told["burst_bytes"] + told["pushed_bytes"]}
    assert set(got) == heard, f"not all heard {heard} B: {sorted(set(got))[:5]}"
    now, before, last = told["told"], told["joined"], told["last"]
    assert before["listeners"] == last["listeners"] == LISTENERS
    sends = now["sends_total"] - before["sends_total"]
    listener_s = LISTENERS * told["window_s"]
    assert sends / listener_s <= 1000 / PACE_MS * 1.05
    assert last["short_writes_total"] <= LISTENERS // 100
    assert last["sent_bytes_total"] >= LISTENERS * got[0]
    bare_listener_s = LISTENERS * RUN_S
    cost_us = told["cpu_s"] / listener_s * 1e6
    bare_us = bare["cpu_s"] / bare_listener_s * 1e6
    benchmark.extra_info |= {
        "core": core.BUILD,
        "cpu_us_per_listener_second": round(cost_us, 2),
        "bare_us_per_listener_second": round(bare_us, 2),
        "ratio_to_bare_loop": round(cost_us / bare_us, 3),
        "sends_per_listener_second": round(sends / listener_s, 3),
        "cpu_us_per_send": round(told["cpu_s"] / sends * 1e6, 2),
        "bare_us_per_send": round(bare_us * PACE_MS / 1000, 2),
        "short_writes": last["short_writes_total"],
        "late_ms_max": last["late_us_max"] / 1000,
    }
    print(f"\n{benchmark.extra_info}")
