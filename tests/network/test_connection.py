"""One connection: slow, silent or rude, or left out of a smaller ring; whole frames or an end."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from tools.engines import (
    Programme,
    body_of,
    checked,
    dial,
    ended,
    get,
    idle,
    offset_of,
    read_all,
    read_until,
    running,
    slow,
)
from tools.listeners import Crowd
from tools.nodes import wait_until

# --- those who are slow, silent or rude -----------------------------------------------------------


def test_a_lagging_listener_skips_to_a_start_at_a_frame_boundary() -> None:
    """More than lag_ms_max behind: the frame it is in is finished, then it goes on a burst back."""
    config = {"burst_ms": 500, "lag_ms_max": 2000, "ring_s": 30}
    with running(config=config) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        live.push_seconds(0.5)
        with slow(address) as sock:
            body = body_of(sock)
            live.push_seconds(8)
            wait_until(lambda: engine.snapshot()["short_writes_total"] > 2)
            checker = checked(body)
            while checker.last != live.maker.sequence - 1:
                checker.feed(sock.recv(65_536), 0)
            assert checker.damaged_bytes == checker.repeated == 0
            assert checker.missing > 100
        told = idle(engine)
        assert told["skips_total"] == 1
        assert live.stream.snapshot()["counters"]["skips_total"] == 1


def test_a_listener_within_the_bound_is_never_skipped() -> None:
    """Slow for a while, but not by lag_ms_max: it gets every byte."""
    config = {"burst_ms": 500, "lag_ms_max": 8000, "ring_s": 30}
    with running(config=config) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        live.push_seconds(0.5)
        with slow(address) as sock:
            body = body_of(sock)
            live.push_seconds(7)
            wait_until(lambda: engine.snapshot()["short_writes_total"] > 2)
            body = read_until(sock, len(live.audio) - offset_of(live, body), body)
            assert body == live.audio[offset_of(live, body) :]
        assert idle(engine)["skips_total"] == 0


def test_a_stalled_listener_is_dropped() -> None:
    """Who takes nothing for stall_ms is ended; who takes a little is not."""
    with running(config={"stall_ms": 400, "lag_ms_max": 60_000, "ring_s": 60}) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        live.push(5)
        with slow(address) as silent, slow(address) as lively:
            silent_body, lively_body = body_of(silent), body_of(lively)
            live.push_seconds(20)
            begin = time.monotonic()
            while engine.snapshot()["ended_stalled_total"] == 0:
                assert time.monotonic() - begin < 5.0
                lively_body += lively.recv(2048)
                time.sleep(0.02)
            assert time.monotonic() - begin > 0.3
            lively_body = read_until(lively, len(live.audio), lively_body)
            assert lively_body == live.audio
            with contextlib.suppress(ConnectionResetError):
                silent_body += read_all(silent)
            assert live.audio.startswith(silent_body)
        told = idle(engine)
        assert (told["ended_stalled_total"], told["skips_total"]) == (1, 0)
        assert live.stream.snapshot()["counters"]["drops_total"] == 1


def test_a_listener_that_keeps_talking_is_ended() -> None:
    """A little after the head is forgiven; more than 64 KiB is not, and others do not notice."""
    with running() as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push(20)
        crowd.join_many(5, address)
        with dial(address) as polite, dial(address) as rude:
            for sock in (polite, rude):
                sock.sendall(get() + b"hello")
                body_of(sock)
            for _ in range(6):
                polite.sendall(b"x" * 10_000)
            with contextlib.suppress(OSError):
                for _ in range(100):
                    rude.sendall(b"x" * 10_000)
            ended(engine, "garbage")
            live.push(20)
            crowd.wait_audio(len(live.audio))
            assert len(read_until(polite, 20)) >= 20
        assert all(who.checker.clean for who in crowd.all)
        assert engine.snapshot()["ended_garbage_total"] == 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_listener_that_leaves_is_counted_and_forgotten(how: str) -> None:
    """Its place is free at once, whichever way it went."""
    with running() as (engine, address):
        Programme(engine).push(20)
        sock = dial(address)
        sock.sendall(get())
        body_of(sock)
        if how == "reset":
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        sock.close()
        told = idle(engine)
        assert told["ended_closed_total"] + told["ended_reset_total"] == 1
        assert told["listeners"] == told["shards"][0]["listeners"] == 0


# --- rings of another size ------------------------------------------------------------------------


def test_listeners_do_not_notice_a_resize() -> None:
    """The ring grows and shrinks under them: same bytes, same connection, no ring left."""
    with running() as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push_seconds(3)
        crowd.join_many(10, address)
        for size in (1 << 21, 1 << 19, 1 << 22, 1 << 18):
            live.push_live(0.5, speed=10)
            assert live.stream.resize(size, 4096)
            live.push_live(0.5, speed=10)
        wait_until(lambda: all(w.checker.last == live.maker.sequence - 1 for w in crowd.all))
        assert all(who.checker.clean for who in crowd.all)
        wait_until(lambda: live.stream.snapshot()["rings"] == 1)


def test_a_resize_that_leaves_a_slow_listener_out_never_gives_it_noise() -> None:
    """It reads on in the old ring to its end; then it skips, at a frame boundary."""
    config = {"burst_ms": 500, "lag_ms_max": 60_000, "ring_s": 5}
    with running(config=config) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        live.push_seconds(2)
        assert live.stream.resize(1 << 21, 4096)
        with slow(address) as sock:
            body = body_of(sock)
            live.push_seconds(15)
            wait_until(lambda: engine.snapshot()["short_writes_total"] > 0)
            assert live.stream.resize(1 << 18, 1024)
            live.push_seconds(10)
            checker = checked(body)
            while checker.last != live.maker.sequence - 1:
                checker.feed(sock.recv(65_536), 0)
            assert checker.damaged_bytes == checker.repeated == 0
            assert checker.missing > 0
        assert idle(engine)["skips_total"] == 1
        wait_until(lambda: live.stream.snapshot()["rings"] == 1)
