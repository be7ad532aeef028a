"""relay.demo: the plan, the children's lives, and the whole row, with stubs and with real nodes."""

from __future__ import annotations

import http.client
import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import pytest

from relay import demo as demo_module
from relay.demo import (
    Address,
    Broadcast,
    Child,
    Watch,
    addresses,
    child_environment,
    demo,
    die_with_parent,
    free_ports,
    plan,
    refuse_taken,
    send_paced,
    wait_healthy,
)
from relay.errors import ConfigError, RelayError
from relay.icecast import PushError
from relay.programme import encode
from relay.push import PaceClock

HOME = str(Path(demo_module.__file__).resolve().parent.parent)
SERVES = all(importlib.util.find_spec(f"relay.{n}") for n in ("cli", "__main__", "serve"))

# A node that only says it is well, takes PUTs, and is told its port.
STUB = """
import http.server, sys
class Stub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def do_PUT(self):
        self.wfile.write(b"HTTP/1.1 100 Continue\\r\\n\\r\\n")
        while self.rfile.read1(65536): pass
    def handle_expect_100(self): return True
    def log_message(self, *args): pass
print("stub is up", file=sys.stderr, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Stub).serve_forever()
"""


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stubs in place of real nodes, and shorter waits."""
    command = property(lambda self: [sys.executable, "-c", STUB, str(self.port)])
    monkeypatch.setattr(Address, "command", command)
    monkeypatch.setattr(demo_module, "RESTART_S", 0.2)


def until(predicate: Callable[[], Any], bound_s: float = 10.0) -> Any:
    """Poll until the predicate gives something true, and return it."""
    end = time.monotonic() + bound_s
    while not (value := predicate()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def runs(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def python_child(code: str, name: str = "relay 1") -> Child:
    """A child that runs some Python in place of a node."""

    class Scripted(Address):
        command = [sys.executable, "-c", code]  # type: ignore[assignment]  # noqa: RUF012

    return Child(Scripted(name, "127.0.0.1", free_ports(1)[0], "", None), dict(os.environ))


def test_the_row_is_an_origin_and_two_relays_one_after_the_other() -> None:
    """Each receives from the one before; the backbone is 1000 above HTTP, on loopback."""
    origin, middle, last = plan("127.0.0.1", 8000)
    assert [a.port for a in (origin, middle, last)] == [8000, 8001, 8002]
    assert (origin.backbone, origin.upstream) == ("tcp://127.0.0.1:9000", None)
    assert (middle.backbone, middle.upstream) == ("tcp://127.0.0.1:9001", origin.backbone)
    assert last.upstream == middle.backbone
    assert "--upstream" not in origin.command
    assert middle.command[-2:] == ["--upstream", "tcp://127.0.0.1:9000"]


def test_ports_stay_in_range_and_zero_takes_free_ones() -> None:
    """At the top the backbone goes below; out of range is told."""
    assert plan("::1", 65_533)[2].backbone == "tcp://127.0.0.1:64535"
    ports = [address.port for address in plan("127.0.0.1", 0)]
    assert len(set(ports)) == 3
    assert 0 not in ports
    with pytest.raises(ConfigError, match="http_port 65534 is not within"):
        plan("127.0.0.1", 65_534)


def test_addresses_can_be_opened_wherever_the_nodes_listen() -> None:
    """IPv6 in brackets; every-address as loopback."""
    assert Address("a", "::1", 8000, "", None).url() == "http://[::1]:8000/"
    assert Address("a", "0.0.0.0", 8000, "", None).url("/x") == "http://127.0.0.1:8000/x"
    assert "[::1]:8000" in Address("a", "::1", 8000, "", None).command


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_row_whose_address_is_taken_is_refused_at_once(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line with the node, its address and what to do; no child is started."""
    monkeypatch.setattr(Child, "start", lambda self: pytest.fail("a child was started"))
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=kind) as taken:
        port = taken.getsockname()[1]
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        with pytest.raises(ConfigError) as refused:
            demo(host=host, http_port=port)
    assert str(refused.value) == (
        f"origin cannot have {shown}: Address already in use; "
        "choose other ports with --http-port N (0 takes free ones)"
    )


def test_a_taken_backbone_is_refused_too_and_free_ports_are_not() -> None:
    """Each of the six addresses is tried, and let go again."""
    row = plan("127.0.0.1", 0)
    refuse_taken(row)
    refuse_taken(row)
    port = int(row[2].backbone.rpartition(":")[2])
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(ConfigError, match=rf"relay 2 cannot have 127\.0\.0\.1:{port}: Address"),
    ):
        refuse_taken(row)


def test_children_get_the_password_and_no_setting_of_ours() -> None:
    """In the environment, not on the command line; RELAY_UPSTREAM of a shell stays outside."""
    environ = {"PATH": "/bin", "RELAY_UPSTREAM": "tcp://x:1", "PYTHONPATH": "/lib"}
    env = child_environment("hush", environ)
    assert env["RELAY_SOURCE_PASSWORD"] == "hush"
    assert "RELAY_UPSTREAM" not in env
    assert env["PYTHONPATH"] == f"{HOME}:/lib"
    assert not any("hush" in word for a in plan("127.0.0.1", 8000) for word in a.command)


def test_the_screen_names_the_third_node_first_and_how_to_kill_the_middle() -> None:
    """What to open, and what to try."""
    children = [Child(address, {}) for address in plan("127.0.0.1", 8000)]
    screen = addresses(children)
    assert screen.startswith("Open http://127.0.0.1:8002/ ")
    assert "http://127.0.0.1:8002/demo.opus" in screen
    assert "kill -9 0" in screen


def test_a_child_that_dies_at_the_start_shows_its_last_lines() -> None:
    """The reason stands where the operator looks."""
    child = python_child("import sys; sys.exit('port 8001 is taken')")
    child.start()
    with pytest.raises(RelayError, match=r"relay 1 ended with status 1:\n    port 8001 is taken"):
        wait_healthy(child)


def test_a_child_whose_address_was_taken_names_the_option_of_the_demo() -> None:
    """What the node advises is an option that the demo does not have."""
    child = python_child("import sys; sys.exit('taken; choose another, with --http HOST:PORT')")
    child.start()
    with pytest.raises(RelayError, match=r"relay demo takes other ports with --http-port N"):
        wait_healthy(child)


def test_a_child_that_says_nothing_is_waited_for_within_a_bound() -> None:
    """And the message names what was asked."""
    child = python_child("import time; time.sleep(60)")
    child.start()
    with pytest.raises(RelayError, match=r"did not answer http://.*/healthz within 0 s"):
        wait_healthy(child, bound_s=0.1)
    child.terminate()
    child.wait_or_kill(time.monotonic() + 5)
    assert not runs(child.pid)


def test_a_child_that_ignores_sigterm_is_killed() -> None:
    """Ending has a bound."""
    code = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(1, file=sys.stderr,"
    child = python_child(code + " flush=True); time.sleep(60)")
    child.start()
    until(lambda: child._tail)
    child.terminate()
    child.wait_or_kill(time.monotonic() + 0.1)
    assert child.death().startswith("relay 1 ended with signal 9")


def test_children_die_with_a_demo_that_is_killed() -> None:
    """kill -9 leaves nobody behind: the kernel sees to it."""
    code = (
        f"import sys; sys.path.insert(0, {HOME!r})\n"
        "import subprocess, time\nfrom relay.demo import die_with_parent\n"
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=die_with_parent())\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert runs(pid)
        parent.kill()
        until(lambda: not runs(pid))


def test_die_with_parent_leaves_at_once_when_the_parent_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parent may die between fork and prctl."""
    left: list[int] = []
    monkeypatch.setattr(demo_module.ctypes, "CDLL", lambda *a, **k: type("C", (), {"prctl": print}))
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(demo_module.os, "getpid", lambda: 4711)
    die_with_parent()()
    assert left == [1]


class FakeChild:
    """A child whose life is decided by the test."""

    def __init__(self, name: str) -> None:
        self.address = Address(name, "127.0.0.1", 1, "", None)
        self.alive, self.pid, self.hasty, self.starts = True, 10, 0, 0
        self.died_at: float | None = None

    def death(self) -> str:
        """How it ended."""
        return f"{self.address.name} ended with signal 9"

    def dead_for_s(self, now_s: float) -> float:
        """Since when."""
        self.died_at = now_s if self.died_at is None else self.died_at
        return now_s - self.died_at

    def start(self) -> None:
        """Alive again, with another pid."""
        self.alive, self.died_at = True, None
        self.pid += 1
        self.starts += 1


class FakeBroadcast:
    """A broadcast that runs, until the test says otherwise."""

    error: Exception | None = None


@pytest.fixture
def row() -> tuple[list[Any], Any, list[str], Watch]:
    """Three children, a broadcast, what was said, and who watches."""
    children: list[Any] = [FakeChild(name) for name in ("origin", "relay 1", "relay 2")]
    broadcast: Any = FakeBroadcast()
    said: list[str] = []
    return children, broadcast, said, Watch(children, broadcast, said.append)


def test_a_dead_relay_is_started_again_after_two_seconds(row: Any) -> None:
    """Its death is told once, and its new pid."""
    children, _, said, watch = row
    children[1].alive = False
    assert [watch.step(now_s) for now_s in (10.0, 11.0, 11.9)] == ["", "", ""]
    assert children[1].starts == 0
    assert watch.step(12.0) == ""
    assert children[1].starts == 1
    assert len(said) == 2
    assert said[1] == "relay 1 is started again: pid 11"


def test_a_dead_origin_ends_the_demo(row: Any) -> None:
    """Without a source there is nothing to show."""
    children, _, _, watch = row
    assert watch.step(10.0) == ""
    children[0].alive = False
    assert watch.step(11.0) == "origin ended with signal 9"


def test_a_relay_that_cannot_live_ends_the_demo(row: Any) -> None:
    """Restarts that do not help have a bound."""
    children, _, _, watch = row
    children[2].alive, children[2].hasty = False, 6
    assert "5 restarts did not help" in watch.step(10.0)


def test_a_programme_that_stopped_ends_the_demo(row: Any) -> None:
    """With its reason."""
    _, broadcast, _, watch = row
    broadcast.error = PushError("401 Unauthorized", final=True)
    assert watch.step(10.0) == "the programme stopped: 401 Unauthorized"


class SentBytes:
    """A connection that only counts."""

    def __init__(self) -> None:
        self.data = b""
        self.ends: list[str] = []

    def send(self, data: bytes) -> None:
        """Keep it."""
        self.data += data

    def close(self) -> None:
        """A clean end."""
        self.ends.append("close")

    def abort(self) -> None:
        """The end in any case."""
        self.ends.append("abort")


def test_the_programme_is_sent_until_it_is_told_to_stop() -> None:
    """The first second at once, then waits; a stop is a clean end."""
    connection: Any = SentBytes()
    waits: list[float] = []

    def stopped(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > 60

    send_paced(connection, encode("mp3"), stopped, PaceClock(now=lambda: 7.0))
    chunks = list(islice(encode("mp3"), 60))
    assert connection.data == b"".join(chunk.data for chunk in chunks)
    assert connection.ends == ["close", "abort"]
    assert waits[:30] == [0.0] * 30
    assert waits[-1] > 0


def test_a_broadcast_that_is_refused_for_good_says_so() -> None:
    """The thread's error is where the watch looks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            for _ in range(2):
                sock = listener.accept()[0]
                with sock:
                    sock.recv(4096)
                    sock.sendall(b"HTTP/1.1 401 Unauthorized\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        port = listener.getsockname()[1]
        broadcast = Broadcast(Address("origin", "127.0.0.1", port, "", None), "wrong")
        broadcast.start()
        until(lambda: broadcast.error)
        broadcast.stop()
    assert "401 Unauthorized" in str(broadcast.error)


def test_a_demo_of_stubs_runs_restarts_its_middle_and_leaves_nobody(
    stubs: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole life: up, the middle killed -9, back with another pid, all ended in time."""
    seen: list[int] = []

    def kill_the_middle(watch: Any, seconds: float | None) -> int:
        middle = watch._children[1]
        seen.extend(child.pid for child in watch._children)
        os.kill(middle.pid, signal.SIGKILL)
        until(lambda: watch.step(time.monotonic()) or middle.pid != seen[1])
        wait_healthy(middle)
        seen.append(middle.pid)
        return 0

    monkeypatch.setattr(demo_module, "_watch", kill_the_middle)
    assert demo(http_port=0) == 0
    out = capfd.readouterr().out
    assert f"kill -9 {seen[1]} " in out
    assert f"relay 1 is started again: pid {seen[3]}" in out
    assert not any(runs(pid) for pid in seen)


def test_an_interrupt_is_a_clean_end(stubs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the children, and with exit status 0."""
    children: list[Child] = []

    def interrupt(watch: Any, seconds: float | None) -> int:
        children.extend(watch._children)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "_watch", interrupt)
    assert demo(http_port=0) == 0
    assert len(children) == 3
    assert not any(child.alive for child in children)


def test_a_demo_ends_after_its_seconds(stubs: None) -> None:
    """`--seconds` is exit status 0."""
    assert demo(http_port=0, seconds=0.2) == 0


# --- real nodes -----------------------------------------------------------------------------------


def listen(url: str, seconds: float) -> bytes:
    """What a listener of the mount gets within these seconds, after waiting for the mount."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)

    def answer() -> Any:
        connection.close()
        connection.request("GET", parts.path)
        reply = connection.getresponse()
        return reply if reply.status == 200 else None

    reply = until(answer)
    end, data = time.monotonic() + seconds, b""
    while time.monotonic() < end:
        data += reply.read1(65_536)
    connection.close()
    return data


def decoded_seconds(data: bytes) -> float:
    """How much audio decodes."""
    with av.open(io.BytesIO(data)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


@pytest.mark.skipif(not SERVES, reason="relay serve is not built yet")
def test_the_third_node_plays_both_mounts() -> None:
    """End to end with the real command: three processes, two listeners, audio that decodes."""
    code = "from relay.demo import demo; raise SystemExit(demo(http_port=0, seconds=8))"
    env = os.environ | {"PYTHONPATH": HOME}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")  # its end, if it fails
            screen = "".join(takewhile(lambda line: line != "  End       Ctrl-C\n", lines))
            for mount in ("/demo.mp3", "/demo.opus"):
                url = re.search(rf"http://\S+{mount}", screen)
                assert url, screen
                assert decoded_seconds(listen(url[0], 3.0)) > 2.5
            assert process.wait(20) == 0
        finally:
            process.kill()
