"""The head of a reply: whichever server wrote it, however little of it is here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe_swarm import parse_reply

ICECAST = (
    b"HTTP/1.0 200 OK\r\nServer: Icecast 2.4.4\r\nicy-br:64\r\nIcy-MetaInt: 16000\r\n\r\n"
)  # fmt: skip
FULL = b"HTTP/1.0 503 Service Unavailable\r\ncontent-LENGTH:  12\r\nRetry-After: 5\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (ICECAST, (200, -1, 16000)),
        (FULL, (503, 12, 0)),
        (b"ICY 200 OK\r\nicy-metaint:8192\r\n\r\n", (200, -1, 8192)),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", (302, -1, 0)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 99999999999\r\n\r\n", (200, -1, 0)),
        (b"HTTP/1.0 200 OK\r\nicy-metaint: many\r\n\r\n", (200, -1, 0)),
    ],
)
def test_status_and_the_two_fields_that_count_are_read(
    head: bytes, told: tuple[int, int, int]
) -> None:
    """In any case of letters; the body begins behind the head; odd numbers are none."""
    status, content, metaint = told
    assert parse_reply(head + b"body") == (status, len(head), content, metaint)
    assert all(parse_reply(head[:size]) == 0 for size in range(len(head)))


@pytest.mark.parametrize(
    "head",
    [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.0 20 OK\r\n\r\n", b"HTTP/1.0 999 X\r\n\r\n", b"\r\n\r\n",
     b"HTTP/1.0 \r\n\r\n", bytes(16384)],
)  # fmt: skip
def test_what_is_no_http_is_broken(head: bytes) -> None:
    """Another protocol, no status, or no end within 16 KiB."""
    assert parse_reply(head) == -1


@given(st.binary(max_size=300))
def test_any_bytes_get_an_answer(noise: bytes) -> None:
    """More, broken, or a status: and nothing is read beyond the end (sanitizer build)."""
    answer = parse_reply(b"HTTP/1.0 200" + noise)
    assert answer in (0, -1) or 100 <= answer[0] <= 599
