"""Listeners that stop reading, or whose host is gone: cheap while they stay, and soon ended.

Rules of this room
  1. Socket memory is what the kernel says of the node's own ports (`ss -tm`), overhead included.
  2. A vanished host is a namespace whose link carries nothing any more: no FIN, no reset.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from tools.engines import Address, Programme, body_of, dial, get, idle, running
from tools.namespaces import Lan
from tools.nodes import wait_until

STALLED_BYTES_MAX = 64 << 10
SLOW_READER = 4096


def socket_memory(address: Address, socks: list[socket.socket]) -> list[int]:
    """Return what the node's end of each connection holds: queued, unsent and reserved bytes.

    skmem (man ss): t, what is with the device; w, the send queue; f, reserved; r, received.
    """
    source = f"{address[0]}:{address[1]}"
    told = subprocess.run(
        ["ss", "-OtmnH", "src", source], capture_output=True, text=True, check=True
    ).stdout
    held = {}
    for line in told.splitlines():
        peer = line.split()[4]
        memory = dict(re.findall(r"([a-z]+)(\d+)", line.partition("skmem:(")[2]))
        held[peer] = sum(int(memory.get(name, 0)) for name in "twfr")
    return [held["{}:{}".format(*sock.getsockname())] for sock in socks]


def push_seconds(live: Programme, bit_rate_kbit: int, media_s: int) -> None:
    """Push frames of 20 ms: any bit rate, which MPEG frames have not."""
    frame = bytes(bit_rate_kbit * 20 // 8)
    for _ in range(media_s * 50):
        live.stream.push(frame, 20_000)


def read_for(live: Programme, bit_rate_kbit: int, socks: list[socket.socket]) -> None:
    """Let them hear four paces, so that their windows grow; then they stop."""
    for _ in range(40):
        push_seconds(live, bit_rate_kbit, 1)
        until = time.monotonic() + 0.1
        while ready := select.select(socks, [], [], max(0, until - time.monotonic()))[0]:
            for sock in ready:
                sock.recv(1 << 20)


@pytest.mark.parametrize("bit_rate_kbit", [64, 1400])
def test_a_stalled_listener_costs_little(ss: str, bit_rate_kbit: int) -> None:
    """At most 64 KiB of the node's socket memory at a pace of 1 s, with and without titles: of
    readers with a small window that read nothing, and of those who stop after a while. Above 256
    kbit/s a second of audio more: what a far listener's burst needs on its way."""
    config = {"pace_ms": 1000, "burst_ms": 3000, "ring_s": 60, "lag_ms_max": 40_000}
    with running(config=config) as (engine, address):
        live = Programme(engine)
        push_seconds(live, bit_rate_kbit, 4)
        socks = [dial(address, receive_bytes=SLOW_READER if n < 4 else 1 << 17) for n in range(8)]
        for number, sock in enumerate(socks):
            sock.sendall(get("/live", *(["Icy-MetaData: 1"] if number % 2 else [])))
        read_for(live, bit_rate_kbit, socks[4:])
        for _ in range(4):
            push_seconds(live, bit_rate_kbit, 8)
            sends = engine.snapshot()["sends_total"]
            wait_until(lambda before=sends: engine.snapshot()["sends_total"] >= before + 8)
        held = socket_memory(address, socks)
        print(f"\n{bit_rate_kbit} kbit/s: {held} B")
        assert max(held) > 16 << 10, "nobody is stalled"
        second_bytes = bit_rate_kbit * 125
        queued_bytes = second_bytes if second_bytes > 32 << 10 else 0
        assert max(held) <= STALLED_BYTES_MAX + queued_bytes
        for sock in socks:
            sock.close()
        idle(engine)


@pytest.fixture
def lan() -> Iterator[Lan]:
    """Two machines, and what carries their frames between."""
    with Lan(rtt_ms=2) as joined:
        yield joined


@pytest.mark.needs_root
def test_a_listener_whose_host_vanished_is_ended(lan: Lan) -> None:
    """No goodbye, and its socket takes bytes on: at 8 kbit/s for a quarter of a minute. It is gone
    3 s after stall_ms, counted as stalled."""
    with lan.a.inside():
        there = running(lan.a.address, config={"stall_ms": 1000, "pace_ms": 500})
        engine, address = there.__enter__()
    with contextlib.ExitStack() as opened:
        opened.push(there)
        live = Programme(engine)
        push_seconds(live, 8, 1)
        with lan.b.inside():
            socks = [opened.enter_context(dial(address)) for _ in range(3)]
        for sock in socks:
            sock.sendall(get())
            body_of(sock)
        lan.cut()
        begin = time.monotonic()
        while engine.snapshot()["ended_stalled_total"] < 3:
            assert time.monotonic() - begin < 12.0, engine.snapshot()
            live.stream.push(bytes(20), 20_000)
            time.sleep(0.02)
        told = engine.snapshot()
        assert (told["listeners"], told["ended_reset_total"]) == (0, 0)
        assert told["short_writes_total"] == 0, "the shard itself could not know"
