"""Each fault of the TCP proxy does what its name says, and ends with heal()."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tools.nodes import wait_until
from tools.proxy import Proxies, Proxy, round_trip_ms


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65_536):
                    peer.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.fixture
def proxy(proxies: Proxies, echo: tuple[str, int]) -> Proxy:
    """A proxy before the echo server."""
    return proxies.to(echo)


def connect(proxy: Proxy) -> socket.socket:
    """Connect through the proxy, with a bound on every wait."""
    return socket.create_connection(proxy.address, timeout=5)


def end_of(sock: socket.socket) -> str:
    """Read until the connection ends; returns how: "eof" or "reset"."""
    try:
        while sock.recv(65_536):
            pass
    except ConnectionResetError:
        return "reset"
    return "eof"


def fate_of_a_new_one(proxy: Proxy) -> str:
    """Connect and read to the end; a reset may overtake the connect itself."""
    try:
        with connect(proxy) as sock:
            return end_of(sock)
    except ConnectionResetError:
        return "reset"


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send bytes and read as many back."""
    threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
    got = b""
    while len(got) < len(data):
        part = sock.recv(65_536)
        if not part:
            break
        got += part
    return got


def test_bytes_pass_unchanged_and_in_order(proxy: Proxy) -> None:
    """Without a fault it is invisible, also for more than its queue holds."""
    data = bytes(range(256)) * 40_000
    with connect(proxy) as sock:
        assert exchange(sock, data) == data
    assert proxy.forwarded_bytes == 2 * len(data)
    wait_until(lambda: proxy.connections == 0)


def test_end_of_one_way_leaves_the_other(proxy: Proxy) -> None:
    """A half-close passes through."""
    with connect(proxy) as sock:
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while part := sock.recv(100):
            got += part
    assert got == b"last words"


@pytest.mark.parametrize("ms", [0, 20, 50])
def test_delay_adds_itself_each_way(proxy: Proxy, ms: float) -> None:
    """The round trip grows by twice the delay."""
    proxy.delay(ms)
    assert 2 * ms <= round_trip_ms(proxy.address) < 2 * ms + 15


def test_delay_keeps_the_rate(proxy: Proxy) -> None:
    """A delayed megabyte arrives one delay later, not one delay per read."""
    proxy.delay(50)
    data = bytes(1_000_000)
    begin = time.monotonic()
    with connect(proxy) as sock:
        assert exchange(sock, data) == data
    assert time.monotonic() - begin < 1.0


def test_throttle_bounds_the_rate(proxy: Proxy) -> None:
    """20,000 B at 50,000 B/s take 0.4 s (each way, one after the other it overlaps)."""
    proxy.throttle(50_000)
    begin = time.monotonic()
    with connect(proxy) as sock:
        exchange(sock, bytes(20_000))
    assert 0.35 < time.monotonic() - begin < 1.5


def test_stall_keeps_connections_open_and_silent(proxy: Proxy) -> None:
    """Nothing arrives and nothing ends; heal() delivers what was held."""
    with connect(proxy) as sock:
        assert exchange(sock, b"before") == b"before"
        proxy.stall()
        sock.sendall(b"held")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(10)
        sock.settimeout(5)
        proxy.heal()
        assert sock.recv(10) == b"held"


def test_cut_resets_those_that_stand_and_lets_new_ones_in(proxy: Proxy) -> None:
    """Both ends see a broken connection at once; the next connect works."""
    with connect(proxy) as sock:
        exchange(sock, b"x")
        assert proxy.cut() == 1
        assert end_of(sock) == "reset"
    with connect(proxy) as sock:
        assert exchange(sock, b"again") == b"again"


def test_drop_closes_new_connections_only(proxy: Proxy) -> None:
    """The one that stands goes on."""
    with connect(proxy) as standing:
        exchange(standing, b"x")
        proxy.drop()
        assert fate_of_a_new_one(proxy) == "reset"
        assert exchange(standing, b"still here") == b"still here"
        proxy.heal()
        with connect(proxy) as new:
            assert exchange(new, b"back") == b"back"


def test_garbage_is_put_between_the_bytes(proxy: Proxy) -> None:
    """What was injected arrives, and the real bytes around it are whole."""
    with connect(proxy) as sock:
        assert exchange(sock, b"before") == b"before"
        junk = proxy.garbage(100)
        got = b""
        while len(got) < 100:
            got += sock.recv(100)
        assert got == junk
        assert exchange(sock, b"after") == b"after"


def test_unreachable_target_is_a_reset(proxies: Proxies) -> None:
    """With nobody behind it the proxy breaks off, as a dead host's machine would."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    proxy = proxies.to(f"tcp://{address[0]}:{address[1]}")
    assert proxy.backbone.startswith("tcp://127.0.0.1:")
    assert fate_of_a_new_one(proxy) == "reset"


def test_half_open_carries_nothing_and_ends_nothing(proxy: Proxy) -> None:
    """What stands takes bytes and stays silent; who connects anew is served; healing resets."""
    with connect(proxy) as old:
        old.sendall(b"before")
        assert old.recv(100) == b"before"
        proxy.half_open()
        old.sendall(b"into the void")
        with connect(proxy) as new:
            new.sendall(b"anew")
            assert new.recv(100) == b"anew"
        old.settimeout(0.1)
        with pytest.raises(TimeoutError):
            old.recv(100)
        old.settimeout(5)
        proxy.heal()
        assert end_of(old) == "reset"
