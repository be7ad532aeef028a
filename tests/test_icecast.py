"""relay.icecast: addresses, answers, and one connection against a socket's other end."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator

import pytest

from relay.errors import ConfigError
from relay.icecast import (
    Connection,
    PushError,
    Target,
    parse_status,
    parse_url,
    refusal,
    request_head,
    update_title,
)

TARGET = Target("127.0.0.1", 8000, "/live", "source", "hush")


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection that was accepted, and the server's end of it."""
    ours, theirs = socket.socketpair()
    with theirs:
        yield Connection(ours, TARGET, send_timeout_s=0.2), theirs
        ours.close()


def serve_once(answer: bytes) -> tuple[Target, list[bytes], threading.Thread]:
    """A server for one request: it answers and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)
    heads: list[bytes] = []

    def run() -> None:
        with listener, listener.accept()[0] as sock:
            sock.settimeout(5)
            while b"\r\n\r\n" not in b"".join(heads):
                heads.append(sock.recv(4096))
            sock.sendall(answer)

    thread = threading.Thread(target=run)
    thread.start()
    return Target("127.0.0.1", listener.getsockname()[1], "/live", password="hush"), heads, thread


def test_url_gives_host_port_mount_and_account() -> None:
    """All of it, with the escapes taken out of the account."""
    target = parse_url("http://dj:p%40ss@radio.example:8010/a/live.ogg", {})
    assert target == Target("radio.example", 8010, "/a/live.ogg", "dj", "p@ss")


def test_url_defaults_are_source_and_the_port_of_the_scheme() -> None:
    """`icecast://` means 8000, `http://` 80; the password may come from the environment."""
    environ = {"RELAY_SOURCE_PASSWORD": "hush"}
    assert parse_url("icecast://h/live", environ) == Target("h", 8000, "/live", "source", "hush")
    assert parse_url("http://[::1]/live", environ).authority == "[::1]:80"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://source:hush@h/live", "must begin with http:// or icecast://"),
        ("source:hush@h:8000/live", "must begin with http:// or icecast://"),
        ("http://source:hush@h:8000/", "must end with a mount"),
        ("http://source:hush@h:8000", "must end with a mount"),
        ("http://source:hush@h:8000/live?a=b", "must end with a mount"),
        ("http://source:hush@h:99999/live", "cannot be read"),
        ("http://source:hush@:8000/live", "names no host"),
        ("http://h:8000/live", "RELAY_SOURCE_PASSWORD"),
    ],
)
def test_a_wrong_url_is_told_without_its_password(url: str, says: str) -> None:
    """One line: what is wrong and what to write; never the account."""
    with pytest.raises(ConfigError, match=says) as caught:
        parse_url(url, {})
    assert "hush" not in str(caught.value)


def test_a_target_shows_no_password() -> None:
    """Neither printed nor as a repr in a traceback."""
    assert str(TARGET) == "http://127.0.0.1:8000/live"
    assert "hush" not in repr(TARGET)


def test_the_request_is_a_put_that_asks_before_it_sends() -> None:
    """Expect, Basic auth and the content type; a name cannot smuggle in a header."""
    lines = request_head(TARGET, "audio/ogg", "Talk\r\nX-Evil: 1").decode().split("\r\n")
    assert lines[0] == "PUT /live HTTP/1.1"
    assert "Expect: 100-continue" in lines
    assert "Content-Type: audio/ogg" in lines
    assert f"Authorization: Basic {base64.b64encode(b'source:hush').decode()}" in lines
    assert "Ice-Name: Talk  X-Evil: 1" in lines
    assert lines[-2:] == ["", ""]


def test_status_lines_are_read_and_nothing_else_is() -> None:
    """With and without a reason; garbage is None."""
    assert parse_status(b"HTTP/1.0 403 Mountpoint in use\r") == (403, "Mountpoint in use")
    assert parse_status(b"HTTP/1.1 100") == (100, "")
    assert parse_status(b"ICY 200 OK") is parse_status(b"") is parse_status(b"\xff\xfe 1") is None


@pytest.mark.parametrize(
    ("status", "reason", "final"),
    [
        (400, "Bad Request", True),
        (401, "Unauthorized", True),
        (415, "Unsupported Media Type", True),
        (404, "Not Found", True),
        (403, "Mountpoint in use", False),
        (403, "Content-type not supported", True),
        (409, "Conflict", False),
        (503, "Service Unavailable", False),
    ],
)
def test_a_refusal_names_status_reason_and_whether_it_is_final(
    status: int, reason: str, final: bool
) -> None:
    """What cannot change by waiting is final."""
    error = refusal(TARGET, status, reason)
    assert (error.status, error.final) == (status, final)
    assert f"{status} {reason}" in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"])
def test_open_is_accepted_by_100_or_200(answer: bytes) -> None:
    """The two answers that servers give."""
    target, heads, thread = serve_once(answer)
    Connection.open(target, "audio/mpeg", name="Talk").abort()
    thread.join()
    assert b"Ice-Name: Talk" in b"".join(heads)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "401 Unauthorized; check the"),
        (
            b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b'\r\n"/metrics": Relay answers\x1b this path itself\nmore\n',
            '400 Bad Request: "/metrics": Relay answers  this path itself; check the mount',
        ),
        (
            b"HTTP/1.0 403 Forbidden\r\ncontent-type:text/plain\r\n\r\nmount is in use",
            "403 Forbidden: mount is in use; another source may hold the mount",
        ),
        (
            b"HTTP/1.0 403 No\r\nContent-Type: text/html\r\n\r\n<html>\n",
            "403 No; another source may hold the mount",
        ),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not answer in HTTP"),
        (b"", "closed the connection instead of answering"),
        (b"x" * 20_000, "does not answer in HTTP"),
    ],
)
def test_open_says_why_it_was_not_accepted(answer: bytes, says: str) -> None:
    """A refusal, another protocol, a hang-up, a flood."""
    target, _, thread = serve_once(answer)
    with pytest.raises(PushError, match=says):
        Connection.open(target, "audio/mpeg")
    thread.join()


def test_open_does_not_wait_for_ever() -> None:
    """A server that accepts and says nothing is lost after the bound."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = Target("127.0.0.1", silent.getsockname()[1], "/live", password="hush")
        with pytest.raises(PushError, match="gave no answer"):
            Connection.open(target, "audio/mpeg", answer_s=0.1)


def test_open_says_when_nobody_listens() -> None:
    """A closed port is a connection error, and not final."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(PushError, match=r"cannot connect to .*refused") as caught:
        Connection.open(Target("127.0.0.1", port, "/live", password="hush"), "audio/mpeg")
    assert not caught.value.final


def test_a_second_200_is_no_trouble(pair: tuple[Connection, socket.socket]) -> None:
    """Icecast 2.4 sends its 200 right behind the 100."""
    connection, server = pair
    server.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    connection.send(b"audio")
    assert server.recv(100) == b"audio"


def test_a_late_refusal_is_heard_before_the_next_send(
    pair: tuple[Connection, socket.socket],
) -> None:
    """A server that finds garbage says so in mid-stream."""
    connection, server = pair
    connection.send(b"garbage")
    server.sendall(b"HTTP/1.1 415 Unsupported Media Type\r\n\r\n")
    with pytest.raises(PushError, match="415") as caught:
        connection.send(b"more")
    assert caught.value.final


def test_a_closed_server_is_noticed_at_the_next_send(
    pair: tuple[Connection, socket.socket],
) -> None:
    """Its FIN is enough: nothing is sent into the void."""
    connection, server = pair
    server.close()
    with pytest.raises(PushError, match="closed the connection") as caught:
        connection.send(b"audio")
    assert not caught.value.final


def test_a_stalled_server_is_lost_after_the_bound(pair: tuple[Connection, socket.socket]) -> None:
    """And no whole frame can follow one that was cut in two: close sends nothing more."""
    connection, server = pair
    with pytest.raises(PushError, match="took no audio"):
        connection.send(bytes(4_000_000))
    connection.close(b"tail")
    server.settimeout(5)
    received = b"".join(iter(lambda: server.recv(65_536), b""))
    assert not received.endswith(b"tail")


def test_close_sends_the_last_bytes_and_hears_the_end(
    pair: tuple[Connection, socket.socket],
) -> None:
    """FIN after the last byte; the server's 200 is no error."""
    connection, server = pair
    closer = threading.Thread(target=connection.close, args=(b"tail",))
    closer.start()
    assert server.recv(100) == b"tail"
    assert server.recv(100) == b""
    server.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    server.close()
    closer.join(5)
    assert not closer.is_alive()


def test_a_title_is_set_with_the_source_account() -> None:
    """The metadata request that every Icecast knows, in UTF-8."""
    target, heads, thread = serve_once(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    update_title(target, "Björk – Jóga")
    thread.join()
    head = b"".join(heads).decode()
    assert head.startswith("GET /admin/metadata?mode=updinfo&mount=%2Flive&song=Bj%C3%B6rk")
    assert f"Authorization: {target.authorization}" in head


def test_a_title_that_was_refused_is_told() -> None:
    """With the status, so that the next step is clear."""
    target, _, thread = serve_once(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(PushError, match=r"title of .* was not set: 404 Not Found"):
        update_title(target, "x")
    thread.join()
