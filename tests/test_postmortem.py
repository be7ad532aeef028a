"""`relay postmortem`: recordings of several nodes, read from anywhere, as one timeline."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.cli import main
from relay.errors import ConfigError, RelayError
from relay.postmortem import (
    Recording,
    lines,
    names,
    postmortem,
    read,
    read_saved,
    saved,
    timeline,
)  # fmt: skip

AT_US = 1_700_000_000_000_000


def answer(name: str, *records: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a node answers."""
    node = {"name": name, "id": "ab" * 16, "backbone": f"tcp://{name}:9000"}
    return {"node": node, "wall_us": AT_US, "records": list(records), **more}


def row(at_us: int, kind: str = "goodbye", **more: Any) -> dict[str, Any]:
    """One record."""
    return {"wall_us": at_us, "kind": kind, **more}


# few letters: the tables of all of Unicode take a busy machine a minute
LETTERS = "a{}\x1b\n\u202eé"
odd = st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS, max_size=5)
odd |= st.just([]) | st.just({"a": [1]}) | st.just(["\x1b[2J"])
rows = odd | st.fixed_dictionaries(
    {"wall_us": st.integers(), "kind": st.text(LETTERS, max_size=5)},
    optional={"stream": odd, "count": odd},
)
FIELDS = ("node", "wall_us", "left_off", "washed_total", "ahead_us", "unsure_us", "problem")
recordings = st.fixed_dictionaries(
    {"records": st.lists(rows, max_size=4)}, optional=dict.fromkeys(FIELDS, odd)
)


@settings(max_examples=60, deadline=None)
@given(recordings | st.fixed_dictionaries({"recordings": st.lists(recordings, max_size=3)}) | odd)
def test_any_json_is_read_or_refused(told: Any) -> None:
    """Whatever a file or a node says: lines that can be printed, or an error of one line."""
    raw = json.dumps(told).encode()
    try:
        found = read_saved(raw, "f.json")
    except RelayError:
        return  # it is one line: the next test
    assert all(line.isprintable() for line in lines(found))
    again = json.dumps(saved(found)).encode()
    assert timeline(read_saved(again, "f.json")) == timeline(found)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Garbage is named, not raised through. (A NUL before a digit is JSON, in UTF-16.)"""
    with pytest.raises(RelayError, match=r"^f\.json: is no (JSON|recording of a Relay node)$"):
        read_saved(b"\x00" + raw, "f.json")


def test_one_timeline_by_our_clock() -> None:
    """A node whose clock is ahead is put where it belongs."""
    one = read(answer("a", row(AT_US + 1_000_000)), "x")
    ahead = read(answer("b", row(AT_US + 5_500_000)), "y")._replace(
        ahead_us=5_000_000, unsure_us=2000
    )
    found = [one, ahead]
    assert [entry.node for entry in timeline(found)] == ["b", "a"]
    told = lines(found)
    assert "clock was not compared" in told[0]
    assert "5 s ahead of ours, give or take 2 ms" in told[1]


def test_upstreams_are_called_by_the_names_of_their_nodes() -> None:
    """An address that is one of the nodes' own gets its name."""
    switch = row(AT_US, "switch", reason="lost", upstream="tcp://b:9000", left="tcp://c:9000")
    told = lines([read(answer("a", switch | {"stream": "/live"}), ""), read(answer("b"), "")])
    assert "a /live: tcp://c:9000 is lost: switched to b tcp://b:9000" in told[-1]
    twice = [Recording("edge", "00aa"), Recording("edge", "00bb"), Recording("o", "1")]
    assert names(twice) == ["edge(00aa)", "edge(00bb)", "o"]


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts little nodes, each with one answer; ends them."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(told: dict[str, Any], *, ahead_us: int = 0, password: str = "") -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = "Basic YWRtaW46cHc=" if password else None
                self.send_response(200 if self.headers.get("Authorization") == wanted else 401)
                self.end_headers()
                now_us = time.time_ns() // 1000 + ahead_us
                self.wfile.write(json.dumps(told | {"wall_us": now_us}).encode())

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_several_nodes_one_away_and_one_file(serve: Callable[..., str], tmp_path: Path) -> None:
    """The rest is shown, who is away is named, and what was saved is read again."""
    now_us = time.time_ns() // 1000
    hour_us = 3_600_000_000
    url = serve(answer("a", row(now_us - 1000), row(now_us - hour_us)))
    ahead = serve(answer("b", row(now_us + hour_us)), ahead_us=hour_us, password="pw")
    file = tmp_path / "c.json"
    file.write_text(json.dumps(answer("c", row(now_us - 2_000_000, stream="/other"))))
    places = [url, ahead, str(file), "http://127.0.0.1:1"]
    found = postmortem(places, admin_password="pw", since="5m")
    assert "wants the admin password" in found[0].problem  # that one wants none at all
    found = postmortem([url, *places[2:]], since="5m")
    assert [len(one.records) for one in found] == [1, 1, 0]
    assert "nothing answers" in found[2].problem
    assert postmortem(places[2:3], stream="/live")[0].records == ()
    (told,) = postmortem([ahead], admin_password="pw")
    assert told.unsure_us is not None
    assert abs(told.ahead_us - hour_us) <= told.unsure_us + 50_000
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(saved(found)))
    assert timeline(postmortem([str(kept)])) == timeline(found)


def test_the_command(serve: Callable[..., str]) -> None:
    """Exit status 0 where anybody answered; help that teaches; one line for a wrong time."""
    run = CliRunner()
    url = serve(answer("a", row(time.time_ns() // 1000)))
    shown = run.invoke(main, ["postmortem", url, "http://127.0.0.1:1"])
    assert shown.exit_code == 0
    assert "a: goodbye said to the children" in shown.output
    assert "nothing answers at http://127.0.0.1:1" in shown.output
    told = run.invoke(main, ["postmortem", url, "--json"])
    assert json.loads(told.output)["recordings"][0]["node"]["name"] == "a"
    assert run.invoke(main, ["postmortem", "http://127.0.0.1:1"]).exit_code == 1
    wrong = run.invoke(main, ["postmortem", url, "--since", "soon"])
    assert wrong.exit_code == 2
    assert "Examples:" in run.invoke(main, ["postmortem", "--help"]).output
    with pytest.raises(ConfigError, match="the bound is 256"):
        postmortem(["http://h:1"] * 257)
