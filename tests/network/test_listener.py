"""Listeners over real sockets: every byte in order, or a counted skip or end; never noise."""

from __future__ import annotations

import time

import pytest
from tools.engines import (
    CHAIN,
    HEADER,
    OGG,
    SMALL,
    START,
    Programme,
    answer,
    ask,
    body_of,
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
from tools.listeners import Crowd, IcyStripper
from tools.nodes import wait_until
from tools.sources import FrameChecker

import relay._core as core

# --- joining --------------------------------------------------------------------------------------


@pytest.mark.parametrize("burst_ms", [0, 500, 3000, 60_000])
def test_a_burst_is_media_time_and_begins_at_a_start(burst_ms: int) -> None:
    """A newcomer gets at most burst_ms at once, from the oldest start within it."""
    with running(config={"burst_ms": burst_ms}) as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        for number, frame in enumerate(live.maker.frames(300)):
            live.stream.push(frame, live.duration_us, START if number % 7 == 0 else 0)
        who = crowd.join(address, checker=FrameChecker())
        last_start = 294
        expected = min(
            (n for n in range(0, 300, 7) if (300 - n) * live.duration_us <= burst_ms * 1000),
            default=last_start,
        )
        wait_until(lambda: who.checker.frames == 300 - expected)
        assert who.checker.clean
        assert who.checker.first == expected
        assert who.first_audio_ms < 1000


def test_each_byte_from_the_join_on_arrives_once_and_in_order() -> None:
    """Whenever they join, listeners hold the programme's bytes from one frame to the head."""
    with running() as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push_seconds(1)
        for _ in range(12):
            crowd.join(address)
            live.push_live(1.0, speed=10)
        wait_until(lambda: all(bool(who.body) for who in crowd.all))
        for who in crowd.all:
            at = offset_of(live, who.body)
            assert at in live.boundaries()
            wait_until(lambda w=who, a=at: len(w.body) == len(live.audio) - a)
            assert who.body == live.audio[at:]
        told = engine.snapshot()
        assert told["skips_total"] == 0
        assert told["listeners"] == 12


def test_three_hundred_listeners_hear_each_frame_once() -> None:
    """A crowd that joins at once, with a source in time: every frame of it is checked."""
    with running() as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push_seconds(3)
        crowd.join_many(300, address)
        live.push_live(4.0, speed=2)
        wait_until(
            lambda: all(who.checker.last == live.maker.sequence - 1 for who in crowd.all), 15.0
        )
        assert all(who.checker.clean for who in crowd.all)
        told = engine.snapshot()
        assert told["listeners"] == told["joins_total"] == 300
        crowd.close()
        assert idle(engine)["listeners"] == 0
        assert live.stream.snapshot()["listeners"] == 0


def test_those_who_caught_up_together_spread_over_the_pace_again() -> None:
    """A storm whose bursts take more than one turn does not come back at one instant each pace."""
    config = {"pace_ms": 500, "burst_ms": 3000}
    with running(config=config) as (engine, address), Crowd() as crowd:
        live = Programme(engine, bit_rate_kbit=320)
        live.push_seconds(3.2)
        listeners = [crowd.join(address, icy=True) for _ in range(30)]
        wait_until(lambda: all(who.audio_bytes > 118_000 for who in listeners))
        had = {who: who.audio_bytes for who in listeners}
        since = time.monotonic()
        live.push(1)
        wait_until(lambda: all(who.audio_bytes > had[who] for who in listeners))
        times = [who.arrivals[-1].at_s - since for who in listeners]
        assert max(times) - min(times) > 0.25


# --- titles ---------------------------------------------------------------------------------------


def test_icy_counts_stay_exact_over_minutes_and_partial_writes() -> None:
    """Three minutes through a small window: the audio between the blocks is the programme's."""
    config = {"burst_ms": 5000, "lag_ms_max": 60_000, "ring_s": 60}
    with running(config=config) as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push(5)
        who = crowd.join(address, icy=True, receive_bytes=SMALL)
        wait_until(lambda: who.audio_bytes == len(live.audio))
        titles = []
        for part in range(18):
            titles.append(f"StreamTitle='Title {part} {'é' * (part * 7)}';".encode())
            live.stream.title(f"Title {part} {'é' * (part * 7)}")
            live.push_seconds(10)
            wait_until(lambda: who.audio_bytes == len(live.audio), 10.0)
        assert who.body == live.audio
        assert [title.block for title in who.titles] == titles
        assert who.icy.blocks == (len(live.audio) - 1) // 16_000
        assert engine.snapshot()["short_writes_total"] > 10


def test_a_title_comes_with_the_first_block_after_its_place() -> None:
    """The block before its place does not know it, the one after it does; then it is not said."""
    with running(config={"burst_ms": 60_000}) as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push_seconds(1)
        live.stream.title("one")
        live.push_seconds(6)
        place = len(live.audio)
        live.stream.title("two")
        live.push_seconds(9)
        who = crowd.join(address, icy=True)
        wait_until(lambda: who.audio_bytes == len(live.audio))
        first = -(-place // 16_000) * 16_000
        assert [(title.position, title.block) for title in who.titles] == [
            (16_000, b"StreamTitle='one';"),
            (first, b"StreamTitle='two';"),
        ]
        assert who.icy.blocks == (len(live.audio) - 1) // 16_000


def test_titles_of_a_new_epoch_are_sent_though_their_numbers_repeat() -> None:
    """Sequences begin anew with each epoch: the first title of each is news."""
    with running() as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.stream.title("one")
        live.push_seconds(2.5)
        who = crowd.join(address, icy=True)
        wait_until(lambda: who.audio_bytes == len(live.audio))
        live.stream.end()
        live.stream.begin()
        live.stream.title("two")
        live.push_seconds(3)
        wait_until(lambda: who.audio_bytes == len(live.audio))
        assert [title.block for title in who.titles] == [
            b"StreamTitle='one';",
            b"StreamTitle='two';",
        ]
        assert who.body == live.audio


def test_icy_stays_exact_across_a_skip() -> None:
    """After a skip the count goes on, frames are whole, and the next block tells the new title."""
    config = {"burst_ms": 500, "lag_ms_max": 2000, "ring_s": 30}
    with running(config=config) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        live.push_seconds(0.6)
        with slow(address, "/live", "Icy-MetaData: 1") as sock:
            body = body_of(sock)
            live.push_seconds(4)
            live.stream.title("later")
            live.push_seconds(4)
            wait_until(lambda: engine.snapshot()["short_writes_total"] > 2)
            icy, audio = IcyStripper(16_000), bytearray()
            audio += icy.feed(body)
            checker = FrameChecker()
            checker.feed(bytes(audio), 0)
            sock.settimeout(5.0)
            while checker.last != live.maker.sequence - 1:
                checker.feed(icy.feed(sock.recv(65_536)), 0)
            live.push_seconds(1)
            while checker.last != live.maker.sequence - 1:
                checker.feed(icy.feed(sock.recv(65_536)), 0)
            assert checker.damaged_bytes == checker.repeated == checker.late == 0
            assert checker.missing > 50
            assert [title.block for title in icy.titles] == [b"StreamTitle='later';"]
        assert idle(engine)["skips_total"] == 1


# --- sources that come and go ---------------------------------------------------------------------


def test_listeners_stay_when_the_source_returns() -> None:
    """Twenty epochs on one connection: all frames of each, and of rings one is left behind: that of
    the epoch before, for those who come back.
    """
    with running() as (engine, address), Crowd() as crowd:
        live = Programme(engine)
        live.push(10)
        crowd.join_many(10, address)
        crowd.wait_audio(len(live.audio))
        for _ in range(20):
            live.stream.end()
            live.stream.begin()
            live.push(15)
            crowd.wait_audio(len(live.audio))
        assert all(who.alive and who.checker.clean for who in crowd.all)
        wait_until(lambda: live.stream.snapshot()["rings"] == 2)
        wait_until(lambda: engine.snapshot()["retired"] == 0)
        assert engine.snapshot()["joins_total"] == 10


def test_epochs_that_pass_while_a_listener_is_behind_end_in_the_newest() -> None:
    """It finishes the epoch it is in, then goes on in the newest one from its first frame."""
    with running(config={"lag_ms_max": 60_000, "ring_s": 60}) as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        live.push(5)
        with slow(address) as sock:
            body = body_of(sock)
            live.push_seconds(10)
            wait_until(lambda: engine.snapshot()["short_writes_total"] > 0)
            first = bytes(live.audio)
            for _ in range(3):
                live.stream.end()
                live.stream.begin()
                before = len(live.audio)
                live.push_seconds(1)
            expected = first + live.audio[before:]
            assert read_until(sock, len(expected), body) == expected
        idle(engine)
        # the newest, the epoch before, and what followed it before its size was known
        wait_until(lambda: live.stream.snapshot()["rings"] <= 3)


def test_a_slow_listener_in_an_old_epoch_does_not_keep_the_source_out() -> None:
    """Its ring holds all later ones: once half of what a stream may have is held, it is dropped."""
    with running() as (engine, address):
        live = Programme(engine, bit_rate_kbit=320)
        with slow(address) as sock:
            live.push_seconds(10)
            body_of(sock)
            wait_until(lambda: engine.snapshot()["short_writes_total"] > 0)
            for _ in range(20):
                live.stream.end()
                live.stream.begin()
                live.push(10)
                time.sleep(0.1)
            assert ended(engine, "stalled")["listeners"] == 0
            assert live.stream.snapshot()["rings"] == 2


def test_who_joins_while_the_source_is_away_waits_with_a_200() -> None:
    """Linger: the reply comes at once, the audio with the next epoch, and nothing of the last."""
    with running() as (engine, address):
        live = Programme(engine)
        live.push_seconds(3)
        live.stream.end()
        with dial(address) as sock:
            sock.sendall(get())
            assert body_of(sock) == b""
            live.stream.begin()
            before = len(live.audio)
            live.push(10)
            new = bytes(live.audio[before:])
            assert read_until(sock, len(new)) == new
        idle(engine)


def test_who_asks_before_the_first_source_hears_it_when_it_comes() -> None:
    """A mount without a ring parks its listeners; the first epoch starts them at once."""
    with running(join_wait_ms=3000) as (engine, address), Crowd() as crowd:
        live = Programme(engine, begin=False)
        crowd.join_many(5, address)
        wait_until(lambda: engine.snapshot()["listeners"] == 5)
        assert engine.snapshot()["joins_total"] == 0
        live.stream.begin()
        live.push(10)
        crowd.wait_audio(len(live.audio), 2.0)
        assert all(who.checker.clean for who in crowd.all)
        crowd.close()
        told = idle(engine)
        assert (told["joins_total"], live.stream.snapshot()["listeners"]) == (5, 0)


def test_a_parked_listener_gets_its_200_after_join_wait() -> None:
    """With no upstream there is nothing more to wait for: it is told yes, and the audio follows."""
    with running(join_wait_ms=300) as (engine, address):
        live = Programme(engine, begin=False)
        begin = time.monotonic()
        with dial(address) as sock:
            sock.sendall(get())
            assert body_of(sock) == b""
            assert 0.25 < time.monotonic() - begin < 1.5
            live.stream.begin()
            live.push(10)
            assert read_until(sock, len(live.audio)) == live.audio
        idle(engine)


def test_the_wait_of_a_parked_listener_counts_from_its_whole_head() -> None:
    """A head that took long to come does not use up join_wait_ms."""
    with running(join_wait_ms=400) as (engine, address):
        Programme(engine, begin=False)
        with dial(address) as sock:
            sock.sendall(get()[:-2])
            time.sleep(0.5)
            begin = time.monotonic()
            sock.sendall(get()[-2:])
            assert body_of(sock) == b""
            assert time.monotonic() - begin > 0.3
        idle(engine)


def test_parked_listeners_that_leave_or_lose_their_stream_are_not_counted_on() -> None:
    """One hangs up, one has its stream removed and is told 404: no count stays behind."""
    with running(join_wait_ms=5000) as (engine, address):
        live = Programme(engine, begin=False)
        leaves, loses = dial(address), dial(address)
        for sock in (leaves, loses):
            sock.sendall(get())
        wait_until(lambda: engine.snapshot()["listeners"] == 2)
        leaves.close()
        wait_until(lambda: engine.snapshot()["listeners"] == 1)
        engine.remove_stream(live.stream)
        assert answer(read_all(loses))[0] == 404
        loses.close()
        told = idle(engine)
        assert (told["listeners"], live.stream.snapshot()["listeners"]) == (0, 0)


def test_a_removed_stream_ends_its_listeners_and_no_others() -> None:
    """They get what there was and a clean end; the mount is 404 from then on."""
    with running() as (engine, address), Crowd() as crowd:
        live, other = Programme(engine), Programme(engine, "/other")
        live.push(20)
        other.push(20)
        gone = [crowd.join(address) for _ in range(10)]
        stays = crowd.join(address, "/other")
        crowd.wait_audio(len(live.audio))
        engine.remove_stream(live.stream)
        wait_until(lambda: not any(who.alive for who in gone))
        assert {who.end for who in gone} == {"eof"}
        assert all(who.body == live.audio for who in gone)
        assert stays.alive
        assert ended(engine, "stream", 10)["listeners"] == 1
        assert answer(ask(address, get()))[0] == 404


# --- Ogg ------------------------------------------------------------------------------------------


class Pages:
    """An Ogg-like programme: pages that say what they are. The engine looks at flags alone."""

    def __init__(self, stream: core.Stream) -> None:
        self.stream = stream
        self.pages: list[bytes] = []

    def push(self, name: str, flags: int, duration_us: int = 0, size: int = 200) -> bytes:
        """Push one page."""
        page = f"[{name}]".encode().ljust(size, b".")
        self.stream.push(page, duration_us, flags)
        self.pages.append(page)
        return page

    def chain(self, name: str) -> bytes:
        """Push the two header pages of a new chain; returns both."""
        return self.push(f"{name} BOS", HEADER | CHAIN) + self.push(f"{name} tags", HEADER)

    def audio(self, name: str, count: int, *, size: int = 200) -> bytes:
        """Push pages of 100 ms, of which every third may be begun at."""
        pages = [
            self.push(f"{name} {n}", START if n % 3 == 0 else 0, 100_000, size)
            for n in range(count)
        ]
        return b"".join(pages)


def test_a_late_joiner_of_an_ogg_stream_gets_its_headers_first() -> None:
    """Header pages, then a burst that begins at a start page, then every page."""
    with running(config={"burst_ms": 1000}) as (engine, address):
        pages = Pages(Programme(engine, info=OGG).stream)
        head = pages.chain("a")
        pages.audio("a", 50)
        with dial(address) as sock:
            sock.sendall(get("/live", "Icy-MetaData: 1"))
            expected = head + b"".join(pages.pages[2 + 42 :])
            assert read_until(sock, len(expected), body_of(sock)) == expected
            more = pages.audio("a more", 5) + pages.chain("b") + pages.audio("b", 5)
            assert read_until(sock, len(more)) == more
            late = head = pages.chain("c") + pages.audio("c", 9)
            assert read_until(sock, len(late)) == head
        with dial(address) as sock:
            sock.sendall(get())
            assert read_until(sock, len(late), body_of(sock)) == late
        idle(engine)


def test_a_new_epoch_of_an_ogg_stream_is_a_new_chain() -> None:
    """Listeners who stayed get the new headers in their place, once."""
    with running() as (engine, address):
        stream = Programme(engine, info=OGG).stream
        pages = Pages(stream)
        first = pages.chain("a") + pages.audio("a", 5)
        with dial(address) as sock:
            sock.sendall(get())
            assert read_until(sock, len(first), body_of(sock)) == first
            stream.end()
            stream.begin()
            second = pages.chain("b") + pages.audio("b", 5)
            assert read_until(sock, len(second)) == second


def test_a_skip_into_another_chain_brings_its_headers() -> None:
    """Who skipped over the header pages of a chain gets them before its first page."""
    config = {"burst_ms": 1000, "lag_ms_max": 3000, "ring_s": 60}
    with running(config=config) as (engine, address):
        pages = Pages(Programme(engine, info=OGG).stream)
        pages.chain("a")
        pages.audio("a", 3, size=8000)
        with slow(address) as sock:
            body = body_of(sock)
            pages.audio("a more", 60, size=8000)
            wait_until(lambda: engine.snapshot()["short_writes_total"] > 0)
            head = pages.chain("b")
            pages.audio("b", 60, size=8000)
            wait_until(lambda: engine.snapshot()["short_writes_total"] > 4)
            while not body.endswith(pages.pages[-1]):
                body += sock.recv(65_536)
            before, found, after = body.partition(head)
            assert found
            assert b"[b" not in before
            assert b"".join(pages.pages).startswith(before)
            assert len(before) % 8000 == len(pages.chain("x"))  # whole pages behind the headers
            assert after == b"".join(pages.pages[:-2])[-len(after) :]
            assert after.startswith(b"[b ")
        assert idle(engine)["skips_total"] == 1
