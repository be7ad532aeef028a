"""An operator's script behind HTTP: what call-outs ask, and what it answers.

Rules of this room
  1. What it was asked is kept, field by field; `answer` decides.
  2. Its faults have names: `silent` (no answer), and closing it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qsl

ALLOW = {"icecast-auth-user": "1"}


class Server(ThreadingHTTPServer):
    """A thread a connection, and room for a crowd that knocks at once: beyond the queue, which is
    5 by default, a connection is tried again a second later, then three, seven, …"""

    request_queue_size = 256
    daemon_threads = True


class Script:
    """One script; `url` is where it is."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.heads: list[dict[str, str]] = []
        self.answer: Callable[[dict[str, str]], Mapping[str, str]] = lambda fields: ALLOW
        self.status = 200
        self.silent = threading.Event()
        self._go_on = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                text = self.rfile.read(size).decode()
                fields = dict(parse_qsl(text, keep_blank_values=True))
                outer.asked.append(fields)
                outer.heads.append({name.lower(): value for name, value in self.headers.items()})
                if outer.silent.is_set():
                    outer._go_on.wait(60)
                    return
                self.send_response(outer.status)
                for name, value in outer.answer(fields).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *said: object) -> None:
                """Nothing: the test looks at what was asked."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/auth?x=1"

    def of(self, action: str) -> list[dict[str, str]]:
        """What was asked of this kind."""
        return [fields for fields in self.asked if fields["action"] == action]

    def close(self) -> None:
        """No door any more."""
        self._go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
