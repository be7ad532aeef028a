"""The load program keeps its rate, counts each answer, and never runs on."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest
from tools.load import Getter


class Answers(http.server.BaseHTTPRequestHandler):
    """404 for what begins with /no, 200 for the rest."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_error(404) if self.path.startswith("/no") else self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """One that can be late for many: the system would make who finds no room wait for seconds."""

    request_queue_size = 128


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    """A small HTTP server."""
    with Server(("127.0.0.1", 0), Answers) as one:
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        yield ("127.0.0.1", one.server_port)
        one.shutdown()


@pytest.mark.usefixtures("gcc")
@pytest.mark.parametrize(("path", "field"), [("/nothing", "status_404"), ("/here", "other")])
def test_gets_are_counted_by_their_answer(server: tuple[str, int], path: str, field: str) -> None:
    """All were sent, at about the rate, and each is in one of the counts."""
    with Getter(server, path, rate_per_s=100, seconds=1.0) as getter:
        gets = getter.wait()
    assert gets.sent == 100
    assert getattr(gets, field) == 100, gets
    assert 0.9 <= gets.elapsed_s < 5.0
    assert gets.per_s == pytest.approx(100 / gets.elapsed_s)


@pytest.mark.usefixtures("gcc")
def test_gets_of_a_closed_port_fail_and_end() -> None:
    """Nobody listens: each GET failed, and the program says so."""
    with Getter(("127.0.0.1", 1), "/", rate_per_s=100, seconds=0.2) as getter:
        gets = getter.wait()
    assert gets.failed == gets.sent == 20
