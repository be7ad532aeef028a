"""The library in hosts of every kind: opened and closed often, forked, ended without a word.

Rules of this room
  1. What ends an interpreter or forks runs in a process of its own, and is judged by its exit code
     and by what it says.
  2. Counts of threads, descriptors and memory are the kernel's, from /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import relay
from relay._core import BUILD
from relay.testing import Listener, silence, wait_for

pytestmark = pytest.mark.core

# `import relay` and what it may bring along
IMPORT_MS_MAX = 80
HEAVY = {"click", "aiohttp", "numpy", "zmq", "msgspec", "prometheus_client", "asyncio", "av"}


def run(code: str, env: dict[str, str], *, status: int = 0, timeout_s: float = 60) -> str:
    """Run a program; what it printed. Its errors must be empty, where it is to end well."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=env,
        timeout=timeout_s,
    )
    assert done.returncode == status, done.stderr
    assert "Fatal" not in done.stderr, done.stderr
    if status == 0:
        assert done.stderr == ""
    return done.stdout


def held() -> tuple[int, int]:
    """Threads and descriptors of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def holds(wanted: tuple[int, int]) -> bool:
    """Whether it comes to hold so many: the kernel lists a thread for a moment after its end."""
    wait_for(lambda: all(now <= then for now, then in zip(held(), wanted, strict=True)), 5)
    return True


def memory_kib() -> int:
    """What this process holds itself; what its heaps keep for the next one is given back first."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
        told = {line.split()[0]: int(line.split()[1]) for line in rollup if " kB" in line}
    return (
        told["Pss_Anon:"] + told["Pss_Shmem:"]
    )  # a library's page is shared by who lives just now


def use(node: relay.Node) -> None:
    """A source, a reader, and a listener by the host's side."""
    with node.source("/live", content_type="audio/mpeg") as source:
        source.feed(silence(0.5))
        with node.subscribe("/live", start="burst") as reader:
            assert isinstance(next(reader), relay.Frame)
        with Listener(node, "/live") as listener:
            listener.read(417)


def test_import_is_quick_and_light(core_env: dict[str, str]) -> None:
    """At most 80 ms of CPU, and none of the heavy modules."""
    code = """
        import sys, time
        began = time.process_time()
        import relay
        print((time.process_time() - began) * 1000, *sys.modules)
    """
    told = [run(code, core_env).split() for _ in range(3)]
    assert min(float(words[0]) for words in told) <= IMPORT_MS_MAX
    assert not HEAVY & set(told[0][1:])


@pytest.mark.timeout(300)
def test_a_hundred_nodes_leave_nothing_behind() -> None:
    """No thread, no descriptor; and the memory of the last fifty is that of none."""
    with relay.Node(http=0, backbone="tcp://127.0.0.1:0") as node:
        use(node)  # what is loaded once is loaded now
    before = held()
    lows = [sys.maxsize, sys.maxsize]  # the least: what threads' heaps keep for a while is no leak
    for number in range(100):
        with relay.Node(http=0, backbone="tcp://127.0.0.1:0") as node:
            use(node)
        if number % 50 >= 25:
            lows[number // 50] = min(lows[number // 50], memory_kib())
    assert holds(before)
    assert lows[1] - lows[0] < 50 * 64


async def test_nodes_on_the_hosts_own_loop_leave_nothing_behind() -> None:
    """The same in a coroutine; the loop's default executor is not used."""
    async with relay.Node(http=0, backbone="tcp://127.0.0.1:0"):
        pass
    before = held()
    for _ in range(10):
        async with (
            relay.Node(http=0, backbone="tcp://127.0.0.1:0") as node,
            node.source("/live", content_type="audio/mpeg") as source,
        ):
            source.feed(silence(0.5))
    assert holds(before)


def test_it_runs_on_uvloop(core_env: dict[str, str]) -> None:
    """Doors, pages, sources, readers, transports that give up their sockets."""
    pytest.importorskip("uvloop")
    code = """
        import asyncio, socket, urllib.request
        import uvloop, relay
        from relay.testing import silence

        class Host(asyncio.Protocol):
            def __init__(self, node):
                self.node = node
            def connection_made(self, transport):
                self.transport = transport
            def data_received(self, data):
                self.task = asyncio.ensure_future(self.node.admit(self.transport, "/live", data))

        def get(url):
            return urllib.request.urlopen(url, timeout=10).read(400)

        async def main():
            async with relay.Node(http=0, backbone="tcp://127.0.0.1:0") as node:
                async with node.source("/live", content_type="audio/mpeg") as live:
                    live.feed(silence(1.0))
                    for path in ("/healthz", "/live", "/api/v1/status"):
                        assert await asyncio.to_thread(get, f"http://{node.http_address}{path}")
                    async for item in node.subscribe("/live", start="burst"):
                        print(type(item).__name__)
                        break
                    server = await asyncio.get_running_loop().create_server(
                        lambda: Host(node), "127.0.0.1", 0
                    )
                    host, port = server.sockets[0].getsockname()
                    heard = await asyncio.to_thread(get, f"http://{host}:{port}/x")
                    assert heard == silence(1)[:400]
                    server.close()
                    print(type(asyncio.get_running_loop()).__module__)

        uvloop.run(main())
    """
    assert run(code, core_env).split() == ["Frame", "uvloop"]


@pytest.mark.parametrize("ends", ["well", "by an exception", "by sys.exit", "in a thread"])
@pytest.mark.parametrize("form", ["plain", "async"])
def test_an_interpreter_ends_with_running_nodes(
    ends: str, form: str, core_env: dict[str, str]
) -> None:
    """No hang, no crash, no words but the host's own; whoever listens gets an end."""
    last = {
        "well": "pass",
        "by an exception": "raise KeyError('the host')",
        "by sys.exit": "raise SystemExit(3)",
        "in a thread": "threading.Thread(target=feed, daemon=True).start()",
    }[ends]
    code = f"""
        import asyncio, threading, time
        import relay
        from relay.testing import Listener, silence

        nodes = []

        def feed():
            try:
                with nodes[0].source("/fed", content_type="audio/mpeg") as source:
                    while True:
                        source.feed(silence(0.1))
                        time.sleep(0.01)
            except relay.RelayError:
                pass  # the node has closed

        async def open_node():
            node = relay.Node(http=0, backbone="tcp://127.0.0.1:0")
            nodes.append(await node.open())
            begin(node)
            {last if form == "async" else "pass"}

        def begin(node):
            source = node.source("/live", content_type="audio/mpeg").open()
            source.feed(silence(1.0))
            listener = Listener(node, "/live")
            listener.read(417)
            nodes.extend([source, listener, node.subscribe("/live"), node.events()])

        if {form == "plain"}:
            nodes.append(relay.Node(http=0, backbone="tcp://127.0.0.1:0").__enter__())
            begin(nodes[0])
            {last if form == "plain" else "pass"}
        else:
            asyncio.run(open_node())
        print("last words")
    """
    status = {"by an exception": 1, "by sys.exit": 3}.get(ends, 0)
    said = run(code, core_env, status=status, timeout_s=20)
    assert said == ("" if status else "last words\n")


FORKS = """
import asyncio, contextlib, os, signal, socket
import numpy as np
import relay
from relay.testing import Listener, silence

with relay.Node(http=0) as node:
    source = node.source("/live", content_type="audio/mpeg").open()
    source.feed(silence(1.0))
    pcm = node.source("/pcm", codec="flac").open()
    remote = relay.RemoteSource(
        "http://a:b@127.0.0.1:9/x", content_type="audio/mpeg", say=lambda line: None
    ).open()
    reader = node.subscribe("/live", start="burst")
    events = node.events()
    view = reader.view()
    calls = [
        lambda: node.snapshot(), lambda: node.events(), lambda: Listener(node, "/live"),
        lambda: node.subscribe("/live"), lambda: node.has_mount("/live"),
        lambda: node.set_title("/live", "x"), lambda: node.listeners_max,
        lambda: node.source("/other", content_type="audio/mpeg"),
        lambda: asyncio.run(node.admit(socket.socket(), "/live")),
        lambda: asyncio.run(relay.Node().open()),
        lambda: source.feed(b"x"), lambda: source.title("x"),
        lambda: pcm.feed_pcm(np.zeros((480, 2), "int16")), lambda: pcm.pcm_facts(),
        lambda: remote.feed(b"x"), lambda: remote.title("x"), lambda: remote.wait(1),
        lambda: next(reader), lambda: reader.waiting(), lambda: reader.view(),
        lambda: asyncio.run(anext(reader)), lambda: view.check(),
        lambda: next(events), lambda: asyncio.run(anext(events)),
    ]
    locks = [source._source._lock, pcm._encoder._wake, events._news, remote._source._lock]
    with contextlib.ExitStack() as held:
        for lock in locks:  # as if other threads were in the midst of a call
            held.enter_context(lock)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a lock that nobody gives back would hold it for ever
            for number, call in enumerate(calls):
                try:
                    call()
                except relay.RelayError as error:
                    assert "forked" in str(error), (number, error)
                else:
                    os._exit(100 + number)
            for thing in (source, pcm, remote, events, reader):
                thing.close()
            held.pop_all()
            raise SystemExit(0)  # through the block's end, and the interpreter's
    _, status = os.waitpid(child, 0)
    assert status == 0, os.waitstatus_to_exitcode(status)
    remote.close()
    pcm.close()
    source.feed(silence(1.0))
    assert len([f for f in reader.waiting() if isinstance(f, relay.Frame)]) > 30
    with Listener(node, "/live") as listener:
        listener.read(417)
print("done")
"""


def test_a_forked_child_is_told_and_its_parent_goes_on(core_env: dict[str, str]) -> None:
    """Every call in the child raises, whatever was going on at the fork; closing does nothing, and
    it ends without touching what is its parent's."""
    pytest.importorskip("av")
    assert run(FORKS, core_env).strip().endswith("done")


def test_the_hosts_process_stays_the_hosts(core_env: dict[str, str]) -> None:
    """No signal handler, no policy, no logging configuration, no shared ZeroMQ context."""
    code = """
        import asyncio, logging, signal, sys
        import zmq, relay

        def state():
            return (
                [signal.getsignal(s) for s in signal.valid_signals()],
                asyncio.get_event_loop_policy(), logging.getLogger().handlers[:],
                logging.getLogger("relay").handlers[:], logging.getLogger("relay").level,
                zmq.Context._instance, sys.excepthook, signal.pthread_sigmask(0, []),
            )

        before = state()
        with relay.Node(http=0, backbone="tcp://127.0.0.1:0"):
            assert state() == before
        assert state() == before
    """
    run(code, core_env)


def test_two_open_and_close_beside_two_that_are_fed() -> None:
    """Threads of the host: nodes come and go while others work. Long form: the soak below."""
    stir(seconds=3.0)


@pytest.mark.soak
def test_threads_of_the_host_stir_for_a_minute() -> None:
    """The same, 60 s: run on the checked build and under ASan."""
    stir(seconds=60.0)


LEAKS = 23  # what LeakSanitizer ends a process with


if BUILD == "asan":  # LeakSanitizer comes with it: `make asan`

    @pytest.mark.parametrize("planted", [False, True])
    def test_not_a_byte_is_leaked(planted: bool, core_env: dict[str, str]) -> None:
        """Memory that nobody points at when the interpreter ends; one that is planted is found."""
        code = f"""
            import ctypes, sys
            sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]}
            import test_library_life

            if {planted}:
                ctypes.CDLL(None).malloc(4711)
            test_library_life.stir(3.0)
        """
        env = core_env | {"ASAN_OPTIONS": f"detect_leaks=1:exitcode={LEAKS}"}
        run(code, env, status=LEAKS if planted else 0, timeout_s=100)


def stir(seconds: float) -> None:
    """Two threads feed two sources, a third subscribes, a fourth opens and closes nodes."""
    stop = threading.Event()
    wrong: list[BaseException] = []
    counts = {"frames": 0, "nodes": 0}

    def guarded(work: object) -> threading.Thread:
        def body() -> None:
            try:
                work()  # type: ignore[operator]
            except BaseException as error:
                wrong.append(error)
                stop.set()

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    def feed(mount: str) -> None:
        clock = relay.AudioClock(1000)
        while not stop.is_set():
            with node.source(mount, content_type="audio/mpeg") as source:
                for _ in range(50):
                    source.feed(silence(0.026))
                    source.title(mount)
                    clock.wait(5)

    def subscribe() -> None:
        while not stop.is_set():
            if node.has_mount("/a"):
                with node.subscribe("/a", start="burst") as reader:
                    for _ in range(20):
                        counts["frames"] += len(reader.waiting())
                        stop.wait(0.005)

    def come_and_go() -> None:
        while not stop.is_set():
            with relay.Node(http=0) as other:
                use(other)
            counts["nodes"] += 1

    with relay.Node(http=0) as node:
        use(node)  # what is loaded once is loaded now
    before = held()
    with relay.Node() as node:
        threads = [guarded(lambda: feed("/a")), guarded(lambda: feed("/b"))]
        threads += [guarded(subscribe), guarded(come_and_go)]
        stop.wait(seconds)
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not wrong, wrong
    assert counts["frames"] > 0
    assert counts["nodes"] > 0
    assert holds(before)
    print(counts)
