"""A TCP forwarder with named faults: delay, throttle, stall, half_open, cut, drop, garbage.

Rules of this room
  1. It forwards real connections between real processes, on one asyncio thread of the test process.
  2. Each direction holds at most QUEUE_BYTES_MAX in its delay queue: beyond, it stops reading and
     TCP holds the sender back. A long delay at a high rate thus also limits the rate.
  3. Order and bytes are never changed, except by `garbage`, which says so.
  4. A fault holds for connections that stand and for those that come, until `heal()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")

QUEUE_BYTES_MAX = 4 << 20
READ_BYTES = 65_536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


class Direction:
    """One way of one connection: a reader fills a delay queue, a writer empties it."""

    def __init__(
        self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.proxy, self.reader, self.writer = proxy, reader, writer
        self.queue: deque[tuple[float, bytes]] = deque()  # (due in loop time, bytes); b"" ends it
        self.queued_bytes = 0
        self.last_due_s = 0.0
        self.is_void = False  # what comes is taken, and goes nowhere
        self.changed = asyncio.Event()

    def put(self, data: bytes) -> None:
        """Queue bytes behind all before them."""
        due_s = asyncio.get_running_loop().time() + self.proxy.delay_ms / 1000
        self.last_due_s = max(self.last_due_s, due_s)
        self.queue.append((self.last_due_s, data))
        self.queued_bytes += len(data)
        self.changed.set()

    async def read(self) -> None:
        """Read while there is room."""
        while True:
            await self.proxy.flowing.wait()
            if self.queued_bytes >= QUEUE_BYTES_MAX:
                await asyncio.sleep(0.005)
                continue
            data = await self.reader.read(READ_BYTES)
            self.put(data)
            if not data:
                return

    async def write(self) -> None:
        """Write what came due, no faster than the throttle."""
        loop = asyncio.get_running_loop()
        while True:
            while not self.queue:
                self.changed.clear()
                await self.changed.wait()
            due_s, data = self.queue[0]
            if (wait_s := due_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            await self.proxy.flowing.wait()
            self.queue.popleft()
            if self.is_void:
                self.queued_bytes -= len(data)
                continue
            if not data:
                with contextlib.suppress(OSError):
                    self.writer.write_eof()
                return
            await self.send(data)
            self.queued_bytes -= len(data)

    async def send(self, data: bytes) -> None:
        """Write bytes at the throttled rate, and count them."""
        at = 0
        while at < len(data):
            rate = self.proxy.bytes_per_s
            step = max(1, int(rate * 0.02)) if rate else len(data)
            part = data[at : at + step]
            self.writer.write(part)
            await self.writer.drain()
            self.proxy.forwarded_bytes += len(part)
            at += step
            if rate:
                await asyncio.sleep(len(part) / rate)


class Proxy:
    """Listens on a port of its own and forwards to `target`. All methods may be called anywhere."""

    def __init__(self, target: tuple[str, int], *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.target = target
        self.delay_ms = 0.0  # one way
        self.bytes_per_s = 0.0  # 0: as fast as it goes
        self.forwarded_bytes = 0
        self.accepted = 0
        self.dropping = False
        self._ways: dict[asyncio.Task[None], tuple[Direction, Direction]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(self._open(host, port))
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]

    @property
    def port(self) -> int:
        """The port to connect to."""
        return self.address[1]

    @property
    def backbone(self) -> str:
        """The address as `--upstream` takes it."""
        return f"tcp://{self.address[0]}:{self.address[1]}"

    @property
    def connections(self) -> int:
        """How many connections stand."""
        return len(self._ways)

    def delay(self, ms: float) -> None:
        """Fault `delay`: each byte arrives so much later, one way; the round trip is twice that."""
        self._now(lambda: setattr(self, "delay_ms", ms))

    def throttle(self, bytes_per_s: float) -> None:
        """Fault `throttle`: no more than this, each way of each connection."""
        self._now(lambda: setattr(self, "bytes_per_s", bytes_per_s))

    def stall(self) -> None:
        """Fault `stall`: nothing moves, nothing is closed; connects succeed and stay silent."""
        self._now(self.flowing.clear)

    def half_open(self) -> None:
        """Fault `half_open`: those that stand take everything and carry nothing, not even an end,
        as where a host or a line is gone without a word; new ones work. `heal()` resets them."""
        self._now(self._void_all)

    def _void_all(self) -> None:
        for directions in self._ways.values():
            for direction in directions:
                direction.is_void = True

    def drop(self) -> None:
        """Fault `drop`: those that stand stay, each new one is accepted and closed at once."""
        self._now(lambda: setattr(self, "dropping", True))

    def cut(self) -> int:
        """Fault `cut`: break off all connections now (RST both ways); returns how many.

        New ones are forwarded as before; together with `drop()` the line is dead.
        """

        return self._now(lambda: self._break_off_all(lambda directions: True))

    def _break_off_all(self, which: Callable[[tuple[Direction, Direction]], bool]) -> int:
        ways = [(task, pair) for task, pair in self._ways.items() if which(pair)]
        for task, directions in ways:
            for direction in directions:
                break_off(direction.writer)
            task.cancel()
        return len(ways)

    def garbage(self, size: int = 1024, *, downward: bool = True) -> bytes:
        """Fault `garbage`: put random bytes into each connection; returns them.

        `downward` is from the target to the one that connected.
        """
        junk = os.urandom(size)

        def inject() -> None:
            for up, down in self._ways.values():
                (down if downward else up).put(junk)

        self._now(inject)
        return junk

    def heal(self) -> None:
        """End every fault."""

        def end() -> None:
            self.delay_ms = self.bytes_per_s = 0.0
            self.dropping = False
            self.flowing.set()
            self._break_off_all(lambda directions: directions[0].is_void)

        self._now(end)

    def close(self) -> None:
        """Break off all connections and end the thread."""
        if self._thread.is_alive():
            self.cut()
            self._call(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            self._loop.close()

    async def _open(self, host: str, port: int) -> asyncio.Server:
        self.flowing = asyncio.Event()
        self.flowing.set()
        return await asyncio.start_server(self._accept, host, port, backlog=1024)

    async def _close(self) -> None:
        self._server.close()
        await asyncio.gather(*self._ways, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection until both ways have ended or one broke."""
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        if self.dropping:
            break_off(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            break_off(writer)
            return
        for each in (writer, far_writer):
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.transport.set_write_buffer_limits(high=READ_BYTES)
        up = Direction(self, reader, far_writer)
        down = Direction(self, far_reader, writer)
        self._ways[task] = (up, down)
        work = [asyncio.ensure_future(job()) for job in (up.read, up.write, down.read, down.write)]
        try:
            await asyncio.gather(*work)
        except (OSError, asyncio.CancelledError):
            break_off(writer)
            break_off(far_writer)
        finally:
            for job in work:
                job.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            writer.close()
            far_writer.close()
            del self._ways[task]

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    def _now(self, change: Callable[[], T]) -> T:
        """Make a change on the proxy's thread and wait until it is made."""

        async def make() -> T:
            return change()

        return self._call(make())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.close()


def break_off(writer: asyncio.StreamWriter) -> None:
    """Close with RST and forget what was not sent."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


class Proxies:
    """The proxies of one test; leaving it closes them all."""

    def __init__(self) -> None:
        self.all: list[Proxy] = []

    def to(self, target: tuple[str, int] | str, *, delay_ms: float = 0.0) -> Proxy:
        """Put a proxy before (host, port) or "tcp://host:port"."""
        if isinstance(target, str):
            host, _, port = target.removeprefix("tcp://").rpartition(":")
            target = host.strip("[]"), int(port)
        proxy = Proxy(target)
        proxy.delay_ms = delay_ms
        self.all.append(proxy)
        return proxy

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        for proxy in self.all:
            proxy.close()


def round_trip_ms(address: tuple[str, int], count: int = 5) -> float:
    """Return the median time that one byte takes to an echo server and back, in ms."""
    times = []
    with socket.create_connection(address, timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            begin = time.monotonic()
            sock.sendall(b"?")
            assert sock.recv(1), "the echo ended"
            times.append(time.monotonic() - begin)
    return sorted(times)[count // 2] * 1000
