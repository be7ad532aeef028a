"""Two nodes on two machines: only with the flag that says so, and then it works.

Rules of this room
  1. The machines are network namespaces joined by a veth pair; nodes, source and listener are real.
  2. The refusal is the documented line, and nothing but it: no traceback, status 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tools.listeners import Crowd
from tools.namespaces import Lan, Namespace
from tools.nodes import NodeProcess, Nodes, wait_known, wait_until
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

pytestmark = pytest.mark.needs_root


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    """Two machines, directly joined."""
    with Lan() as joined:
        yield joined


def host_of(space: Namespace, family: str) -> str:
    """Return the machine's address as a URL writes it."""
    return f"[{space.address6}]" if family == "IPv6" else space.address


def node_on(
    nodes: Nodes, space: Namespace, family: str, *args: str, upstream: str = ""
) -> NodeProcess:
    """Prepare a node with HTTP and backbone on the machine's veth address."""
    host = host_of(space, family)
    return nodes.spawn_later(
        *args,
        http=f"{host}:0",
        backbone=f"tcp://{host}:0",
        upstreams=[upstream] if upstream else [],
        prefix=space.prefix,
    )


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_backbone_off_loopback_is_refused_without_the_flag(
    lan: Lan, nodes: Nodes, family: str
) -> None:
    """One line names the setting, the reason and the flag; the status is 2."""
    node = node_on(nodes, lan.a, family).spawn()
    assert node.wait(10.0) == 2
    wrong = [line for line in node.lines if "password for this run" not in line]
    bind = f"tcp://{host_of(lan.a, family)}:0"
    assert wrong == [
        f'relay: backbone.bind = "{bind}": is not loopback, and without keys anyone who '
        "reaches it can read and write; make keys with relay keygen and give --secret-key-file, "
        "bind to tcp://127.0.0.1:9000, or accept that with --insecure-backbone "
        "(backbone.insecure = true)"
    ]


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_nodes_on_two_machines_work_with_the_flag(
    lan: Lan, nodes: Nodes, crowd: Crowd, family: str
) -> None:
    """With --insecure-backbone the audio arrives on the other machine, whole, and it warns."""
    origin = node_on(nodes, lan.a, family, "--insecure-backbone").start()
    edge = node_on(nodes, lan.b, family, "--insecure-backbone", upstream=origin.backbone).start()
    with lan.a.inside():
        source = LiveSource(Source(origin.address), FrameMaker())
        source.start()
    with lan.b.inside():
        wait_known(edge, "/live")
        listener = crowd.join(edge.address, checker=FrameChecker())
        wait_until(lambda: listener.audio_bytes > 3 * 8_000, 10.0, what="3 s of audio")
        health = edge.json("/healthz")
    source.stop()
    assert listener.checker is not None
    assert listener.checker.clean, listener.checker
    assert health["insecure"] is True
    assert "no keys" in edge.wait_event("insecure_backbone", 1.0)["text"]
