"""Debian's Icecast relays from Relay, and Relay from it: byte for byte, with titles.

Rules of this room
  1. Every frame carries its number and a checksum: a byte that is lost, moved or changed is seen.
  2. LISTEN_S of real time in the tests; the same for SOAK_S is marked soak.
  3. Who relays is no audience of the node that it relays from.
"""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.icecast import MASTER, RELAY, Icecast
from tools.listeners import Crowd, Listener
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_until
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

from relay.auth import as_text

LISTEN_S = float(os.environ.get("RELAY_ICECAST_S", "60"))
SOAK_S = 600.0
WAIT_S = 60.0

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def icecast2() -> str:
    """Debian's server."""
    found = shutil.which("icecast2") or shutil.which("icecast")
    return found or pytest.skip("icecast2 is missing: apt-get install icecast2")


@pytest.fixture
def live(nodes: Nodes) -> Iterator[tuple[NodeProcess, LiveSource]]:
    """A node with an encoder on /live."""
    node = nodes.start(timeout_s=WAIT_S)
    source = LiveSource(Source(node.address, "/live", headers=[("ice-name", "A show")])).start()
    yield node, source
    source.stop()


def set_title(address: tuple[str, int], mount: str, title: str) -> None:
    """As an encoder does, at either server."""
    fields = {"mode": "updinfo", "mount": mount, "song": title, "charset": "UTF-8"}
    account = base64.b64encode(f"source:{PASSWORD}".encode()).decode()
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request(
        "GET",
        "/admin/metadata?" + urllib.parse.urlencode(fields),
        headers={"Authorization": f"Basic {account}"},
    )
    assert connection.getresponse().status == 200
    connection.close()


def stream(node: NodeProcess, mount: str) -> dict[str, Any]:
    """What the node tells of the stream."""
    found = [s for s in node.json("/api/v1/streams")["streams"] if s["mount"] == mount]
    return found[0] if found else {}


def titles(listener: Listener) -> list[str]:
    """What it was told."""
    assert listener.icy is not None
    blocks = [as_text(title.block) for title in listener.icy.titles]
    return [block.partition("StreamTitle='")[2].partition("';")[0] for block in blocks]


def listen(crowd: Crowd, address: tuple[str, int], mount: str, seconds: float, source: Any) -> None:
    """Hear it for so long, with titles; each frame once, whole and in order."""
    listener = crowd.join(address, mount, icy=True, checker=FrameChecker(), keep=False)
    wait_until(lambda: listener.audio_bytes > 0, WAIT_S, what=f"audio of {mount} at {address}")
    until, number = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        number += 1
        source(f"Title {number} - 'ü'")
        wait_until(
            lambda at=number: any(f"Title {at} " in told for told in titles(listener)),
            WAIT_S,
            what=f"title {number}; heard {titles(listener)[-3:]}",
        )
        time.sleep(min(5.0, max(0.0, until - time.monotonic())))
    assert listener.alive
    checker = listener.checker
    assert checker is not None
    assert checker.clean, checker
    assert checker.missing == checker.repeated == checker.damaged_bytes == 0
    assert checker.frames >= seconds / 0.0262, "less than real time"
    assert f"Title {number} - 'ü'" in titles(listener)
    crowd.leave(listener)


def slave(node: NodeProcess, mount: str = "/live") -> Icecast:
    """An Icecast that relays one mount of this node."""
    return Icecast(RELAY.format(port=node.address[1], mount=mount, local="/from-relay"))


def as_slave(node: NodeProcess, crowd: Crowd, seconds: float) -> None:
    """An Icecast relays the node's /live for so long."""
    with slave(node) as icecast:
        wait_until(lambda: "/from-relay" in icecast.sources(), WAIT_S, what=icecast.log())
        listen(
            crowd,
            icecast.address,
            "/from-relay",
            seconds,
            lambda title: set_title(node.address, "/live", title),
        )
        told = stream(node, "/live")
        assert (told["relays"], told["listeners"]) == (1, 0), told
        assert icecast.sources()["/from-relay"]["server_name"] == "A show"


def as_master(nodes: Nodes, crowd: Crowd, tmp_path: Path, seconds: float) -> None:
    """A node pulls an Icecast's stream for so long."""
    with Icecast() as icecast:
        headers = [("ice-name", "A show"), ("ice-genre", "talk")]
        source = LiveSource(Source(icecast.address, "/show", headers=headers), FrameMaker()).start()
        path = tmp_path / "relay.toml"
        path.write_text(f'[streams."/x"]\npull = "{icecast.url("/show")}"\n')
        node = nodes.start(str(path), timeout_s=WAIT_S)
        wait_until(lambda: stream(node, "/x").get("state") == "live", WAIT_S)
        listen(
            crowd,
            node.address,
            "/x",
            seconds,
            lambda title: set_title(icecast.address, "/show", title),
        )
        assert stream(node, "/x")["name"] == "A show"
        assert icecast.sources()["/show"]["listeners"] == "1"
        source.stop()


def test_icecast_relays_a_mount_of_relay(
    live: tuple[NodeProcess, LiveSource], crowd: Crowd
) -> None:
    """`<relay>`: every frame and every title, and it is no audience."""
    as_slave(live[0], crowd, LISTEN_S)


def test_relay_pulls_from_icecast(nodes: Nodes, crowd: Crowd, tmp_path: Path) -> None:
    """The other way round."""
    as_master(nodes, crowd, tmp_path, LISTEN_S)


def test_icecast_relays_all_mounts_of_its_master(
    live: tuple[NodeProcess, LiveSource], crowd: Crowd
) -> None:
    """`<master-server>`: it asks /admin/streamlist.txt and relays what is listed, as it comes."""
    node, _ = live
    more = MASTER.format(port=node.address[1], user="admin", password=PASSWORD)
    with Icecast(more) as icecast:
        wait_until(lambda: "/live" in icecast.sources(), WAIT_S, what=icecast.log())
        second = LiveSource(Source(node.address, "/second")).start()
        wait_until(lambda: "/second" in icecast.sources(), WAIT_S, what=icecast.log())
        checker = FrameChecker()
        listener = crowd.join(icecast.address, "/second", checker=checker)
        wait_until(lambda: listener.audio_bytes > 60_000, WAIT_S)
        assert checker.clean, checker
        told = stream(node, "/second")
        assert (told["relays"], told["listeners"]) == (1, 0), told
        second.stop()


def test_a_loop_through_icecast_is_seen(nodes: Nodes, crowd: Crowd, tmp_path: Path) -> None:
    """Icecast relays what Relay pulls, and is Relay's second address: it is not taken for a source
    when the first one goes."""
    with Icecast() as first:
        source = LiveSource(Source(first.address, "/show"), FrameMaker()).start()
        with Icecast() as free:
            port = free.port
        path = tmp_path / "relay.toml"
        path.write_text(
            f'[streams."/x"]\npull = ["{first.url("/show")}", "http://127.0.0.1:{port}/back"]\n'
        )
        node = nodes.start(str(path), timeout_s=WAIT_S)
        wait_until(lambda: stream(node, "/x").get("state") == "live", WAIT_S)
        more = RELAY.format(port=node.address[1], mount="/x", local="/back")
        with Icecast(more, port=port) as second:
            wait_until(lambda: "/back" in second.sources(), WAIT_S, what=second.log())
            source.stop()
            first.close()
            wait_until(
                lambda: "leads back to this node" in node.output(1000),
                WAIT_S,
                what=f"the loop: {node.output(20)}",
            )


@pytest.mark.soak
@pytest.mark.timeout(2 * SOAK_S)
def test_ten_minutes_as_slave(live: tuple[NodeProcess, LiveSource], crowd: Crowd) -> None:
    """Nothing drifts, runs over or runs dry."""
    as_slave(live[0], crowd, SOAK_S)


@pytest.mark.soak
@pytest.mark.timeout(2 * SOAK_S)
def test_ten_minutes_as_master(nodes: Nodes, crowd: Crowd, tmp_path: Path) -> None:
    """Nor does it the other way round."""
    as_master(nodes, crowd, tmp_path, SOAK_S)
