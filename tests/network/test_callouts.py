"""Scripts decide who listens and who sends, on a running node, and hear who has left.

Rules of this room
  1. Real sockets: a node, a script behind HTTP, checking listeners, encoders.
  2. Waits have bounds and are for what must come.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.listeners import Crowd, Listener
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_until
from tools.script import ALLOW, Script
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

WAIT_S = 45.0

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def script() -> Iterator[Script]:
    """An operator's script."""
    with Script() as made:
        yield made


def start(nodes: Nodes, tmp_path: Path, script: Script, *actions: str, **more: Any) -> NodeProcess:
    """A node whose mounts ask the script for these actions."""
    lines = ["[defaults]", *(f'{action} = "{script.url}"' for action in actions)]
    lines += [f"{name} = {value!r}" for name, value in more.items()]
    path = tmp_path / "relay.toml"
    path.write_text("\n".join(lines) + "\n")
    return nodes.start(str(path), "--name", "studio", timeout_s=WAIT_S)


def join(crowd: Crowd, node: NodeProcess, target: str = "/live", user: str = "") -> Listener:
    """A listener, perhaps with an account."""
    headers = [("User-Agent", "VLC/3.0"), *(account(user, "pw").items() if user else ())]
    return crowd.join(node.address, target, checker=FrameChecker(), headers=headers)


def account(user: str, password: str) -> dict[str, str]:
    """The header line that tells it."""
    told = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {told}"}


def counter(node: NodeProcess, name: str) -> int:
    """One counter of the node."""
    return int(node.counters()[name])


def test_the_script_says_who_may_listen(
    nodes: Nodes, crowd: Crowd, tmp_path: Path, script: Script
) -> None:
    """Who may hears every frame; who may not gets 401 and the script's words; both are asked about
    with Icecast's fields, and who left is told with his time and bytes."""
    script.answer = lambda fields: (
        ALLOW if fields["user"] == "joe" else {"icecast-auth-message": "pay\tfirst"}
    )
    node = start(nodes, tmp_path, script, "listener_add", "listener_remove")
    with LiveSource(Source(node.address), FrameMaker(64)):
        good = join(crowd, node, "/live?token=7", user="joe")
        bad = join(crowd, node, user="eve")
        wait_until(lambda: good.audio_bytes > 20_000, WAIT_S)
        wait_until(lambda: not bad.alive, WAIT_S)
        assert good.checker is not None
        assert good.checker.clean
        assert bad.status == 401
        asked = script.of("listener_add")
        mine = next(fields for fields in asked if fields["user"] == "joe")
        assert mine["mount"] == "/live?token=7"
        assert (mine["pass"], mine["agent"], mine["ip"]) == ("pw", "VLC/3.0", "127.0.0.1")
        assert mine["port"] == str(node.address[1])
        assert not script.of("listener_remove")
        crowd.leave(good)
        wait_until(lambda: script.of("listener_remove"), WAIT_S)
        told = script.of("listener_remove")[0]
        assert told["client"] == mine["client"]
        assert int(told["sent"]) >= 20_000
        assert 0 <= int(told["duration"]) < 60
        wait_until(lambda: counter(node, "callout_notes_total") == 1, WAIT_S)
        assert counter(node, "callout_denied_total") == 1


def test_a_time_limit_is_kept(nodes: Nodes, crowd: Crowd, tmp_path: Path, script: Script) -> None:
    """He who may listen for two seconds is ended after them; the other goes on."""
    script.answer = lambda fields: (
        {**ALLOW, "icecast-auth-timelimit": "2"} if fields["user"] == "short" else ALLOW
    )
    node = start(nodes, tmp_path, script, "listener_add")
    with LiveSource(Source(node.address), FrameMaker(64)):
        short, long = join(crowd, node, user="short"), join(crowd, node, user="long")
        began = time.monotonic()
        wait_until(lambda: short.audio_bytes > 0, WAIT_S)
        wait_until(lambda: not short.alive, WAIT_S)
        assert time.monotonic() - began > 1.5
        assert short.checker is not None
        assert short.checker.damaged_bytes == 0
        assert long.alive
        wait_until(lambda: counter(node, "callout_limited_total") == 1, WAIT_S)


def test_a_time_limit_follows_who_is_moved(
    nodes: Nodes, crowd: Crowd, tmp_path: Path, script: Script
) -> None:
    """He is ended on the mount that an administrator sent him to; who has left before his time is
    over is not counted as ended by it."""
    script.answer = lambda fields: {**ALLOW, "icecast-auth-timelimit": "4"}
    node = start(nodes, tmp_path, script, "listener_add", "listener_remove")
    other = Source(node.address, "/other")
    with LiveSource(Source(node.address), FrameMaker(64)), LiveSource(other, FrameMaker(64)):
        moved, gone = join(crowd, node, user="moved"), join(crowd, node, user="gone")
        wait_until(lambda: moved.audio_bytes > 0 and gone.audio_bytes > 0, WAIT_S)
        crowd.leave(gone)
        wait_until(lambda: script.of("listener_remove"), WAIT_S)
        path = "/admin/moveclients?mount=/live&destination=/other"
        answer = node.request(path, headers=account("admin", PASSWORD))
        assert b"Clients moved from /live to /other: 1" in answer.body
        assert moved.alive
        wait_until(lambda: not moved.alive, WAIT_S)
        wait_until(lambda: len(script.of("listener_remove")) == 2, WAIT_S)
        assert counter(node, "callout_limited_total") == 1


@pytest.mark.parametrize(("policy", "status"), [("allow", 200), ("deny", 503)])
def test_a_script_that_hangs_disturbs_nobody(
    nodes: Nodes, crowd: Crowd, tmp_path: Path, script: Script, policy: str, status: int
) -> None:
    """Those who listen already hear on; who comes is let in or refused, as on_outage says."""
    node = start(nodes, tmp_path, script, "listener_add", callout_timeout_s=0.5, on_outage=policy)
    with LiveSource(Source(node.address), FrameMaker(64)):
        first = join(crowd, node)
        wait_until(lambda: first.audio_bytes > 8_000, WAIT_S)
        script.silent.set()
        others = [join(crowd, node) for _ in range(20)]
        wait_until(lambda: all(other.status for other in others), WAIT_S)
        assert {other.status for other in others} == {status}
        heard = first.audio_bytes
        wait_until(lambda: first.audio_bytes > heard + 16_000, WAIT_S)
        assert first.checker is not None
        assert first.checker.clean


def test_the_script_says_who_may_send_and_hears_of_mounts(
    nodes: Nodes, tmp_path: Path, script: Script
) -> None:
    """Instead of a password; whatever the encoder sends at once is not lost meanwhile."""
    script.answer = lambda fields: ALLOW if fields.get("pass") == "good" else {}
    node = start(nodes, tmp_path, script, "stream_auth", "mount_add", "mount_remove")
    bad = Source(node.address, password="bad")
    assert bad.connect() == 401
    live = LiveSource(
        Source(node.address, method="SOURCE", user="joe", password="good", expect=False),
        FrameMaker(64),
    ).start()
    wait_until(lambda: script.of("mount_add"), WAIT_S)
    asked = script.of("stream_auth")[-1]
    assert (asked["user"], asked["mount"], asked["ip"]) == ("joe", "/live", "127.0.0.1")
    assert script.of("mount_add")[0]["mount"] == "/live"
    with Crowd() as crowd:
        heard = join(crowd, node)
        wait_until(lambda: heard.audio_bytes > 20_000, WAIT_S)
        assert heard.checker is not None
        assert heard.checker.clean
    live.stop()
    wait_until(lambda: script.of("mount_remove"), WAIT_S)
    bad.close()


def test_the_script_says_who_may_set_titles_too(
    nodes: Nodes, crowd: Crowd, tmp_path: Path, script: Script
) -> None:
    """Of a mount whose sources it knows: encoders set titles with the account that they send with;
    others are refused, also with the node's password; the admin needs nobody's word."""
    script.answer = lambda fields: ALLOW if fields.get("pass") == "good" else {}
    node = start(nodes, tmp_path, script, "stream_auth", callout_timeout_s=3.0)
    frames = Source(node.address, user="joe", password="good")
    with LiveSource(frames, FrameMaker(64)):
        listener = crowd.join(node.address, icy=True)
        wait_until(lambda: listener.audio_bytes > 8_000, WAIT_S)

        def status(song: str, query: str = "", **headers: str) -> int:
            path = f"/admin/metadata?mode=updinfo&mount=/live&song={song}{query}"
            return node.request(path, headers=headers, timeout_s=WAIT_S).status

        def told(song: str) -> bool:
            return any(song.encode() in title.block for title in listener.titles)

        assert status("A", **account("joe", "good")) == 200
        asked = script.of("stream_auth")[-1]
        assert (asked["user"], asked["admin"], asked["mount"]) == ("joe", "1", "/live")
        assert asked["ip"] == "127.0.0.1"
        wait_until(lambda: told("A"), WAIT_S)
        assert status("B", "&pass=joe:good") == 200
        wait_until(lambda: told("B"), WAIT_S)
        assert status("C", **account("source", PASSWORD)) == 401
        assert status("D") == 401
        before = len(script.of("stream_auth"))
        assert status("E", **account("admin", PASSWORD)) == 200
        wait_until(lambda: told("E"), WAIT_S)
        assert len(script.of("stream_auth")) == before
        script.silent.set()
        assert status("F", **account("joe", "good")) == 401
        assert not told("C")
        assert not told("D")
