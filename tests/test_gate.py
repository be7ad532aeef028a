"""The gate's decisions: whom it lets in, what it counts, how often it speaks."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator

import pytest
import zmq

from relay.gate import (
    DOMAIN,
    HANDSHAKES_MAX,
    HANDSHAKES_S,
    LOGGED_MAX,
    Gate,
    Seldom,
    plain_address,
)
from relay.keys import Keys, make_secret

CHILD, STRANGER = Keys(make_secret()), Keys(make_secret())


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that lets one child in."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = Gate(context, Keys(make_secret()), {"edge-1": CHILD.public})
    yield made
    made.close()
    context.term()


def request(
    keys: Keys, *, domain: bytes = DOMAIN, mechanism: bytes = b"CURVE", address: bytes = b"10.0.0.9"
) -> list[bytes]:
    """What libzmq asks."""
    return [b"1.0", b"7", domain, address, b"", mechanism, keys.public_bytes]


def test_listed_child_is_let_in_under_its_name(gate: Gate) -> None:
    """200, and whom it is."""
    assert gate.answer(request(CHILD)) == [b"1.0", b"7", b"200", b"OK", b"edge-1", b""]
    assert gate.snapshot()["handshakes_total"] == 1
    assert gate.snapshot()["handshakes_refused_total"] == 0


@pytest.mark.parametrize(
    "asked",
    [
        request(STRANGER),
        request(CHILD, domain=b"other"),
        request(CHILD, mechanism=b"NULL"),
        request(CHILD, mechanism=b"PLAIN"),
    ],
)
def test_all_others_are_refused_and_counted(gate: Gate, asked: list[bytes]) -> None:
    """A key that is not listed, or a listed one that was not proven by CURVE."""
    assert gate.answer(asked)[2] == b"400"
    assert gate.snapshot()["handshakes_refused"]["key"] == 1


@pytest.mark.parametrize(
    "asked", [[], [b"1.0"], request(CHILD)[:-1], [b"2.0", *request(CHILD)[1:]]]
)
def test_what_is_not_understood_is_refused(gate: Gate, asked: list[bytes]) -> None:
    """A libzmq of another day does not open the gate."""
    assert gate.answer(asked)[2] == b"500"
    assert gate.snapshot()["handshakes_total"] == 0


def test_stranger_is_logged_once_a_minute_without_its_whole_key(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that tries ten times a second fills no log."""
    for _ in range(50):
        gate.answer(request(STRANGER))
    gate.answer(request(STRANGER, address=b"::ffff:10.0.0.8"))
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [line.split(":")[0] for line in lines] == [
        "refused a node at 10.0.0.9",
        "refused a node at 10.0.0.8",
    ]
    assert STRANGER.public not in caplog.text
    assert gate.snapshot()["handshakes_refused_total"] == 51


def test_child_that_was_turned_away_is_refused_for_a_minute(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own name and no other; then its key counts again."""
    now = 1000.0
    monkeypatch.setattr("relay.gate.time.monotonic", lambda: now)
    gate.turn_away("other")
    assert gate.answer(request(CHILD))[2] == b"200"
    gate.turn_away("edge-1")
    assert gate.answer(request(CHILD))[2] == b"400"
    assert gate.snapshot()["handshakes_refused"]["turned_away"] == 1
    now += 61
    assert gate.answer(request(CHILD))[2] == b"200"


def test_child_that_comes_too_often_waits_and_another_does_not(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many handshakes in so many seconds: who holds a key cannot open what it likes at once."""
    now = 1000.0
    monkeypatch.setattr("relay.gate.time.monotonic", lambda: now)
    other = Keys(make_secret())
    gate._names[other.public_bytes] = "edge-2"
    gate._came["edge-2"] = deque(maxlen=HANDSHAKES_MAX)
    told = [gate.answer(request(CHILD))[2] for _ in range(HANDSHAKES_MAX + 5)]
    assert told == [b"200"] * HANDSHAKES_MAX + [b"400"] * 5
    assert gate.snapshot()["handshakes_refused"]["often"] == 5
    assert gate.answer(request(other))[2] == b"200"
    now += HANDSHAKES_S
    assert gate.answer(request(CHILD))[2] == b"200"


def test_what_may_be_logged_is_bounded() -> None:
    """In time for one address, in memory for all of them."""
    seldom = Seldom()
    assert [seldom.may("a", "key", now) for now in (0, 59.9, 60, 61)] == [True, False, True, False]
    assert seldom.may("a", "none", 61)
    for number in range(10 * LOGGED_MAX):
        seldom.may(str(number), "key", 61)
    assert len(seldom._until) == LOGGED_MAX


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("10.0.0.1", "10.0.0.1"),
        ("nonsense", "nonsense"),
    ],
)
def test_addresses_are_shown_as_people_write_them(text: str, shown: str) -> None:
    """IPv4 within IPv6 is IPv4."""
    assert plain_address(text) == shown


def test_an_error_while_judging_refuses_that_one_and_the_next_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over the socket that libzmq asks: a request without a reply would be the last."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = Gate(context, Keys(make_secret()), {"edge-1": CHILD.public})
    judge, asked = made.answer, context.socket(zmq.REQ)

    def fails_once(words: list[bytes]) -> list[bytes]:
        monkeypatch.setattr(made, "answer", judge)
        raise ValueError("planted")

    monkeypatch.setattr(made, "answer", fails_once)
    made.start()
    asked.setsockopt(zmq.RCVTIMEO, 5000)
    asked.setsockopt(zmq.LINGER, 0)
    asked.connect("inproc://zeromq.zap.01")
    try:
        for status in (b"500", b"200"):
            asked.send_multipart(request(CHILD))
            assert asked.recv_multipart()[2] == status
    finally:
        asked.close()
        made.close()
        context.term()
