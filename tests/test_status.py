"""`relay status`: a node's answer as a table, and what is said when there is none."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.errors import ConfigError, RelayError
from relay.status import lines, print_status, status

ANSWER: dict[str, Any] = {
    "node": {"name": "studio", "id": "5f"},
    "streams": [
        {
            "mount": "/live",
            "state": "live",
            "role": "origin",
            "epoch": 7,
            "listeners": 1200,
            "lag_ms": 180.0,
            "bitrate_bps": 127_999,
            "content_type": "audio/mpeg",
            "title": "A talk",
        },
        {"mount": "/quiet", "state": "lingering", "listeners": 0},
    ],
    "upstream": None,
    "counters": {},
}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@contextmanager
def node(body: bytes, code: int = 200) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that gives one answer to all; yields its HOST:PORT and the heads it saw."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        """Answers."""

        def do_GET(self) -> None:
            """Note the head and answer."""
            seen.append({"path": self.path, **dict(self.headers)})
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


def test_the_table_is_aligned() -> None:
    """One line a stream; what is not known is a dash."""
    assert lines(ANSWER) == [
        "node      studio, id 5f",
        "upstream  none",
        "",
        "MOUNT   STATE      ROLE    LISTENERS  LAG ms  kbit/s  TYPE        TITLE",
        "/live   live       origin       1200     180     128  audio/mpeg  A talk",
        "/quiet  lingering  -               0       -       -  -           -",
    ]


def test_who_hears_a_fallback_is_told_where_anybody_does() -> None:
    """A column that is there only when it says something."""
    live = {"mount": "/live", "fallback": "/music", "fallback_listeners": 12}
    told = lines({"streams": [live, {"mount": "/music", "fallback": None}]})[-3:]
    assert [line.split("  ")[0] for line in told] == ["MOUNT", "/live", "/music"]
    assert "FALLBACK" in told[0]
    assert "/music (12)" in told[1]
    assert "(" not in told[2]


def test_the_node_and_its_upstream_are_told_in_words() -> None:
    """Where it is and how it is; what is not known is left out."""
    node = {"name": "studio", "version": "0.1.0", "uptime_s": 12.5, "http": "[::]:8000"}
    upstream = {"address": "tcp://o:9000", "state": "up", "sign_age_ms": 13, "node_id": "5f"}
    assert lines({"node": {**node, "insecure": True}, "upstream": upstream}) == [
        "node      studio, version 0.1.0, up for 12.5 s, HTTP on [::]:8000, open without keys",
        "upstream  tcp://o:9000, up, last sign 13 ms ago",
        "",
        "no streams",
    ]
    keyed = lines({"node": {"name": "studio", "trust": "keys", "insecure": False}})[0]
    assert keyed == "node      studio, links with keys"
    lost = lines({"upstream": {"address": "tcp://o:9000", "state": "lost", "more": []}})[1]
    assert lost == "upstream  tcp://o:9000, lost, and tried again"


def test_each_of_several_upstreams_has_its_line() -> None:
    """With what it feeds, and how often it was lost."""
    told = [
        {"address": "tcp://a:9000", "state": "up", "sign_age_ms": 13, "feeds": 2, "lost_total": 0},
        {"address": "tcp://b:9000", "state": "lost", "feeds": 0, "lost_total": 3},
    ]
    assert lines({"upstream": told[0], "upstreams": told})[1:3] == [
        "upstream  tcp://a:9000, up, last sign 13 ms ago, feeds 2 streams",
        "upstream  tcp://b:9000, lost, and tried again, feeds 0 streams, lost 3 times",
    ]


def test_what_was_measured_has_a_line_for_each_kind() -> None:
    """Spans in ms or s, shares in percent; kinds that have not occurred say so."""
    span = {"total": 1200, "p50_ms": 1.234, "p90_ms": 3, "p99_ms": 12.5, "max_ms": 2100}
    share = {"total": 9, "p50_percent": 10, "p99_percent": 37.5, "max_percent": 60}
    told = lines(
        {
            "measured": {
                "join": span,
                "lateness": {"total": 0, "p50_ms": 0},
                "gap": {"total": 3, "p50_ms": None, "p99_ms": "soon", "max_ms": True},
                "skip": [],
                "busy": {**share, "last_percent": 12.34},
            }
        }
    )
    assert told[2:-2] == [
        "join      p50 1.23 ms, p99 12.5 ms, max 2.1 s, 1200 in all",
        "lateness  none yet",
        "gap       3 in all",
        "busy      12.3 % now, p50 10 %, p99 37.5 %, max 60 %",
    ]


def test_an_answer_cannot_steer_the_terminal() -> None:
    """A title from a stranger's encoder stays text."""
    shown = "\n".join(lines({"streams": [{"mount": "/a", "title": "\x1b[2J\r\nx"}]}))
    assert "\x1b" not in shown
    assert r"\x1b[2J\r\nx" in shown


@pytest.mark.parametrize("form", ["{}", "http://{}", "http://{}/", "http://{}/live"])
def test_status_is_asked_at_its_path(form: str) -> None:
    """However the address is written, the question is the same."""
    with node(json.dumps(ANSWER).encode()) as (address, seen):
        assert status(form.format(address)) == ANSWER
    assert seen[0]["path"] == "/api/v1/status"
    assert "Authorization" not in seen[0]


@pytest.mark.parametrize("way", ["argument", "url"])
def test_the_password_goes_along(way: str) -> None:
    """As Basic auth of the user admin, from the option or out of the URL."""
    with node(b"{}") as (address, seen):
        if way == "url":
            status(f"http://admin:p%20w@{address}")
        else:
            status(address, admin_password="p w")
    assert seen[0]["Authorization"] == "Basic " + base64.b64encode(b"admin:p w").decode()


def test_json_is_printed_as_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    """For machines: the whole answer."""
    with node(json.dumps(ANSWER).encode()) as (address, _):
        assert print_status(address, as_json=True) == 0
        assert json.loads(capsys.readouterr().out) == ANSWER
        assert print_status(address, as_json=False) == 0
        assert capsys.readouterr().out.startswith("node      studio")


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (401, b"", "wants the admin password (401); give --admin-password"),
        (404, b"", "answers, but has no /api/v1/status (404); is it a Relay node?"),
        (500, b"", "answers with an error (500)"),
        (200, b"<html>", "answers, but not as a Relay node does"),
        (200, b"[]", "answers, but not as a Relay node does"),
        (200, b"\xff\xfe", "answers, but not as a Relay node does"),
        (200, b"[" * 100_000, "answers, but not as a Relay node does"),
    ],
)
def test_another_answer_is_told_in_one_line(code: int, body: bytes, said: str) -> None:
    """A refusal says what to do; a stranger is recognised."""
    with node(body, code) as (address, _), pytest.raises(RelayError) as caught:
        status(address)
    assert str(caught.value).startswith(f"http://{address}: {said}")


def test_no_answer_is_told_in_one_line() -> None:
    """Nobody there: the address and the reason; a password in the URL is not repeated."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RelayError) as caught:
            status(f"http://admin:hunter2@{address}")
    assert str(caught.value) == (
        f"nothing answers at http://{address}: Connection refused; "
        "is the node running? relay serve prints its address"
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "lacks a host"),
        ("http://", "lacks a host"),
        ("file:///etc/passwd", "write http://HOST:PORT"),
        ("tcp://h:1", "write http://HOST:PORT"),
        ("http://a b", "lacks a host"),
        ("h:x", '"h:x": the port "x" is not a number'),
        ("h:99999", '"h:99999": the port "99999" is out of range 1 to 65535'),
        ("http://[::1:8000", "is not an IPv6 address"),
        ("http://[::1", "is not an IPv6 address"),
        ("http://::1:8000", "an IPv6 address stands in brackets"),
    ],
)
def test_a_wrong_url_is_told_in_one_line(url: str, said: str) -> None:
    """Only http and https, a host, and a port that there is."""
    with pytest.raises(ConfigError) as caught:
        status(url)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_answer_in_another_protocol_is_told() -> None:
    """Such as that of a backbone, whose port was taken for HTTP's."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with server.accept()[0] as sock:
                sock.recv(4096)
                sock.sendall(b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(RelayError, match="answers, but not in HTTP"):
            status(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


@given(
    st.dictionaries(
        st.sampled_from(
            ["node", "streams", "upstream", "mount", "title", "bitrate_bps", "measured"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from(["mount", "bitrate_bps", "title", "gap", "total"]), inner
                )
            ),
            max_leaves=6,
        ),
    )
)
@example({"streams": [{"bitrate_bps": float("inf")}, {"bitrate_bps": float("nan")}]})
@example({"measured": {"gap": {"total": 1, "max_ms": float("nan"), "p50_ms": 10**400}}})
@example({"measured": {"busy": {"total": [1], "max_percent": "\x1b"}}})
@example({"streams": [{"bitrate_bps": 10**400, "lag_ms": 1e300}]})
def test_any_answer_is_shown(answer: dict[str, Any]) -> None:
    """Whatever JSON comes, each line can be printed."""
    assert all(line.isprintable() for line in lines(answer))
