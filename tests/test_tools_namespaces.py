"""The two machines really are apart: by a measured round trip and by frames of the MTU."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tools.namespaces import ETHERNET_BYTES, Lan, Namespace

pytestmark = pytest.mark.needs_root

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000), family=int(sys.argv[2]))
print("ready", flush=True)
while True:
    peer, _ = server.accept()
    with peer:
        while data := peer.recv(65536):
            peer.sendall(data)
"""

ROUND_TRIP = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], 7000), timeout=10)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times = []
for _ in range(7):
    begin = time.monotonic()
    sock.sendall(b"?")
    sock.recv(1)
    times.append(time.monotonic() - begin)
print(sorted(times)[3] * 1000)
"""

EXCHANGE = """
import hashlib, random, socket, sys, threading
data = random.Random(1).randbytes(int(sys.argv[2]))
sock = socket.create_connection((sys.argv[1], 7000), timeout=20)
threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
got = b""
while len(got) < len(data):
    part = sock.recv(65536)
    if not part:
        break
    got += part
print(got == data)
"""


@contextmanager
def echo_in(space: Namespace, address: str, family: int = 2) -> Iterator[None]:
    """An echo server on port 7000 of a namespace."""
    server = space.popen([sys.executable, "-c", ECHO, address, str(family)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.communicate()


def round_trip_ms(lan: Lan, address: str) -> float:
    """Measure from A the time that one byte takes to B and back."""
    return float(lan.a.run([sys.executable, "-c", ROUND_TRIP, address]))


def test_direct_link_joins_two_machines() -> None:
    """Without a forwarder A reaches B by its veth address, in well under a millisecond or two."""
    with Lan() as lan, echo_in(lan.b, lan.b.address):
        assert round_trip_ms(lan, lan.b.address) < 5


@pytest.mark.parametrize("rtt_ms", [20, 100])
def test_forwarder_adds_the_round_trip(rtt_ms: float) -> None:
    """The measured round trip is the one that was set, within some milliseconds."""
    with Lan(rtt_ms=rtt_ms) as lan, echo_in(lan.b, lan.b.address):
        assert rtt_ms <= round_trip_ms(lan, lan.b.address) < rtt_ms + 10


def test_forwarded_frames_keep_the_mtu_and_every_byte() -> None:
    """2 MB both ways are whole, no frame is larger than MTU + Ethernet head, none is lost."""
    with Lan(mtu=1500, rtt_ms=10) as lan, echo_in(lan.b, lan.b.address):
        told = lan.a.run([sys.executable, "-c", EXCHANGE, lan.b.address, "2000000"])
        assert told.strip() == "True"
        stats = lan.close()
    assert 1000 < stats["frame_bytes_max"] <= 1500 + ETHERNET_BYTES
    assert stats["frames"] > 2 * 2_000_000 / 1500
    assert stats["lost_frames"] == 0


def test_link_carries_ipv6() -> None:
    """The machines have IPv6 addresses too."""
    with Lan(rtt_ms=20) as lan, echo_in(lan.b, lan.b.address6, family=10):
        assert 20 <= round_trip_ms(lan, lan.b.address6) < 40


def test_socket_opened_inside_stays_inside() -> None:
    """The test's own thread can speak from a machine, and is back home afterwards."""
    with Lan() as lan, echo_in(lan.b, lan.b.address):
        with lan.a.inside():
            sock = socket.create_connection((lan.b.address, 7000), timeout=5)
        with sock:
            assert sock.getsockname()[0] == lan.a.address
            sock.sendall(b"?")
            assert sock.recv(1) == b"?"
        with socket.socket() as home, pytest.raises(OSError, match="assign"):
            home.bind((lan.a.address, 0))


def test_delay_changes_while_the_link_stands() -> None:
    """The round trip can be moved under a running connection."""
    with Lan(rtt_ms=100) as lan, echo_in(lan.b, lan.b.address):
        lan.delay(10)
        assert 10 <= round_trip_ms(lan, lan.b.address) < 30


def test_cut_link_loses_frames_until_it_heals() -> None:
    """A cut is silence, not a reset; TCP goes on afterwards."""
    with Lan(rtt_ms=2) as lan, echo_in(lan.b, lan.b.address):
        lan.cut()
        with pytest.raises(subprocess.TimeoutExpired):
            lan.a.run([sys.executable, "-c", ROUND_TRIP, lan.b.address], timeout_s=0.7)
        lan.heal()
        assert round_trip_ms(lan, lan.b.address) < 50
        assert lan.close()["lost_frames"] > 0


def test_closed_lan_leaves_nothing_behind() -> None:
    """Namespaces and links are gone with it."""
    with Lan() as lan:
        names = [lan.a.name, lan.b.name]
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not any(name in listed for name in names)
