"""`python -m relay.swarm` as it is typed: verdicts, exit status, and when not to believe it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from tools.faulty import Fault, FaultyServer
from tools.nodes import PASSWORD, Nodes

COMMAND = [sys.executable, "-P", "-m", "relay.swarm"]
TOLERANT = ("--tolerance-ms", "8000", "--pace-ms", "100", "--warm-up-s", "1", "--after-s", "1")


def started(env: dict[str, str], *words: str) -> subprocess.Popen[str]:
    """The command, running."""
    env = {name: value for name, value in env.items() if name != "RELAY_SOURCE_PASSWORD"}
    return subprocess.Popen(
        [*COMMAND, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status and both outputs; killed when it does not end."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, out, err


def url(server: FaultyServer) -> str:
    """Where the faulty server's mount is."""
    return f"http://127.0.0.1:{server.address[1]}/live"


def believed(told: dict[str, Any]) -> bool:
    """Whether the machine let the swarm run; a test may not depend on that."""
    return bool(told["valid"])


def test_a_scenario_with_everything_passes_against_a_node(
    nodes: Nodes, core_env: dict[str, str]
) -> None:
    """Sources of two mounts, titles, a storm, a flood against a full node, and the deaf."""
    node = nodes.start("--pace-ms", "100", "--listeners-max", "60", backbone="none")
    process = started(
        core_env,
        *(node.url("/talk"), "--mounts", "2", "--source-password", PASSWORD, "--json"),
        *("--listeners", "40", "--rate", "400", "--seconds", "1", "--icy", "0.5"),
        *("--title-every", "1", "--storm", "20", "--storm-s", "0.1", "--flood", "30"),
        *("--flood-s", "0.2", "--stall", "5", "--sample", "30", *TOLERANT),
    )
    status, out, err = ended(process)
    told = json.loads(out)
    assert told["faults"] == [], err
    assert status == (0 if believed(told) else 3)
    assert list(told["windows"]) == ["start", "steady", "storm", "flood", "stall"]
    assert told["windows"]["storm"]["groups"]["storm"]["joined"] == 20
    assert told["windows"]["flood"]["groups"]["flood"]["refused"] == {"503": 30}
    assert told["windows"]["stall"]["groups"]["incumbents"]["stalled"] == 5
    assert sum(w["groups"]["incumbents"]["titles_heard"] for w in told["windows"].values()) > 0
    assert {source["mount"] for source in told["sources"]} == {"/talk-0", "/talk-1"}
    assert "steady: 40 playing" in err
    assert PASSWORD not in out + err


def test_a_fault_is_named_and_the_status_is_1(core_env: dict[str, str]) -> None:
    """The table ends with it."""
    with FaultyServer(Fault("drop")) as server:
        words = ("--source-password", "any", "--listeners", "5", "--seconds", "1", *TOLERANT)
        status, out, _ = ended(started(core_env, url(server), *words, "--quiet"))
    assert "FAULT  start, incumbents: 1 frame lost in 1 skip" in out
    assert status == (3 if "NOT VALID" in out else 1)


def test_somebody_elses_programme_is_judged_by_the_median(core_env: dict[str, str]) -> None:
    """Without a password the swarm is no source; a listener that is cut off is still named."""
    with FaultyServer(Fault("close", 3, frame=0)) as server:
        server.frames.extend(bytes(192) for _ in range(100))
        words = ("--listeners", "5", "--seconds", "0.5", *TOLERANT)
        status, out, _ = ended(started(core_env, url(server), *words))
    assert "FAULT  start, incumbents: 1 listener ended" in out
    assert "frames checked" not in out
    assert status == (3 if "NOT VALID" in out else 1)


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_a_swarm_that_did_not_run_for_200_ms_says_not_valid(
    core_env: dict[str, str], form: tuple[str, ...]
) -> None:
    """Stopped and continued: the server did nothing wrong, and nothing can be said of it."""
    with FaultyServer() as server:
        words = ("--source-password", "any", "--listeners", "5", "--seconds", "3", *TOLERANT)
        process = started(core_env, url(server), *words, *form)
        assert process.stderr is not None
        while "steady" not in process.stderr.readline():
            assert process.poll() is None, "it ended before it was steady"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGCONT)
        status, out, errors = ended(process)
    assert status == 3
    assert ("NOT VALID: steady: it came" in errors) if form else ("NOT VALID  steady: it" in out)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("http://192.0.2.1:80/live",), "is not on loopback"),
        (("127.0.0.1:8000/live",), "write http://HOST:PORT/mount"),
        (("http://127.0.0.1:9/live", "--listeners", "30000"), "more fit"),
        (("http://127.0.0.1:9/live", "--icy", "2"), "--icy"),
    ],
    ids=["not ours", "no URL", "too many", "no share"],
)
def test_usage_is_told_in_lines_with_status_2(
    core_env: dict[str, str], words: tuple[str, ...], line: str
) -> None:
    """What is wrong, the bound, and the way out."""
    status, _, err = ended(started(core_env, *words))
    assert status == 2
    assert line in err
    assert "Traceback" not in err


def test_a_server_that_is_not_there_is_named(core_env: dict[str, str]) -> None:
    """The source is what meets it first."""
    words = ("http://127.0.0.1:9/live", "--source-password", "any")
    status, _, err = ended(started(core_env, *words))
    assert (status, "cannot connect" in err) == (1, True)
