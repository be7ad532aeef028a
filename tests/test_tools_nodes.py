"""The node tool is tested on a stand-in that prints and serves what a node does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tools.nodes import NodeProcess, Nodes, wait_until

STAND_IN = """
import http.server, json, signal, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
host, _, port = options["--http"].rpartition(":")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, "up": options.get("--upstream")}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
if options.get("--mode") == "refuse":
    sys.exit("the port is taken")
if options.get("--mode") == "silent":
    time.sleep(60)
http.server.HTTPServer.allow_reuse_address = True
server = http.server.HTTPServer((host, int(port)), Handler)
address = f"{host}:{server.server_address[1]}"
backbone = options["--backbone"].replace(":0", ":9")
print("a line that is not JSON", file=sys.stderr)
print(json.dumps({"event": "ready", "http": address, "backbone": backbone}), flush=True)
print(json.dumps({"event": "source", "mount": "/live"}), flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server.serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> list[str]:
    """The command of a program that behaves like `relay serve` on the outside."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    return [sys.executable, str(script)]


def test_node_is_found_by_its_ready_line(nodes: Nodes, stand_in: list[str]) -> None:
    """Port 0 becomes a real port, read from the first JSON event, and the node answers there."""
    node = nodes.start(command=stand_in)
    assert node.address[1] != 0
    assert node.json("/x") == {"path": "/x", "up": None}
    assert node.wait_event("source", mount="/live")["mount"] == "/live"
    wait_until(lambda: "a line that is not JSON" in node.output())


def test_killed_node_returns_on_its_ports(nodes: Nodes, stand_in: list[str]) -> None:
    """kill9 ends it at once; restart() serves on the same address."""
    node = nodes.start(command=stand_in)
    before = node.http
    node.kill9()
    assert not node.alive
    with pytest.raises(ConnectionRefusedError):
        node.get()
    assert node.restart().http == before
    assert node.get().status == 200


def test_terminated_node_gives_its_exit_status(nodes: Nodes, stand_in: list[str]) -> None:
    """SIGTERM is answered within the bound, and the status is told."""
    assert nodes.start(command=stand_in).terminate() == 0


def test_stopped_node_answers_after_it_continues(nodes: Nodes, stand_in: list[str]) -> None:
    """A frozen node keeps its sockets but not its word."""
    node = nodes.start(command=stand_in)
    node.stop()
    with pytest.raises(TimeoutError):
        node.get(timeout_s=0.2)
    node.cont()
    assert node.get().status == 200


def test_node_that_refuses_to_start_shows_its_line(nodes: Nodes, stand_in: list[str]) -> None:
    """The failure carries what the node printed."""
    with pytest.raises(AssertionError, match="the port is taken"):
        nodes.start("--mode", "refuse", command=stand_in)
    node = nodes.spawn_later("--mode", "refuse", command=stand_in).spawn()
    assert node.wait() == 1


def test_node_that_stays_silent_is_not_waited_for_forever(stand_in: list[str]) -> None:
    """The wait for `ready` has a bound."""
    with Nodes() as nodes, pytest.raises(AssertionError, match=r"waited 0.5 s for ready"):
        nodes.start("--mode", "silent", command=stand_in, timeout_s=0.5)
    assert not any(node.alive for node in nodes.all)


def test_row_makes_each_node_the_upstream_of_the_next(nodes: Nodes, stand_in: list[str]) -> None:
    """Three nodes in a row: origin, relay, relay."""
    origin, middle, last = nodes.row(3, command=stand_in)
    assert origin.json("/")["up"] is None
    assert (middle.json("/")["up"], last.json("/")["up"]) == (origin.backbone, middle.backbone)


def test_wait_until_returns_the_value_and_names_what_it_missed() -> None:
    """A wait gives what it waited for, or says what never came."""
    values = iter([None, 0, "here"])
    assert wait_until(lambda: next(values), every_s=0) == "here"
    with pytest.raises(AssertionError, match="waited 0 s for a miracle; last value False"):
        wait_until(lambda: False, 0, what="a miracle")


def test_node_url_spells_ipv6_hosts() -> None:
    """[::1]:8000 is an address and a URL."""
    node = NodeProcess(http="[::1]:8000")
    assert node.address == ("::1", 8000)
    assert node.url("/live") == "http://[::1]:8000/live"
    assert node.env["PYTHONUNBUFFERED"] == "1"
