"""What a new listener hears first: whole frames of a file, then the stream; titles stay exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_listener_flow import METAINT, Programme
from tools.audio import chains, pages
from tools.encoders import encode, noise
from tools.engines import Programme as Live
from tools.engines import answer, dial, get, read_until, running
from tools.listeners import IcyStripper
from tools.sources import FrameMaker

from relay.errors import ConfigError
from relay.intro import INTRO_BYTES_MAX, read_intro

pytestmark = pytest.mark.core


def written(path: Path, data: bytes) -> str:
    """The file's path, with this in it."""
    path.write_bytes(data)
    return str(path)


# --- the file -------------------------------------------------------------------------------------


def test_only_whole_frames_are_kept(tmp_path: Path) -> None:
    """Tags and half a frame at the end go, so that the stream's first frame can follow."""
    frames = FrameMaker(64).frames(40)
    tag = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)
    raw = tag + b"".join(frames) + frames[0][:50]
    data, content_type = read_intro(written(tmp_path / "a.wrong-name", raw), "/live")
    assert content_type == "audio/mpeg"
    assert data == b"".join(frames[: len(data) // len(frames[0])])
    assert len(data) >= 39 * len(frames[0])


def test_an_ogg_keeps_its_header_pages(tmp_path: Path) -> None:
    """It is a chain of its own."""
    raw = encode("libopus", "ogg", 48000, seconds=2.0)
    data, content_type = read_intro(written(tmp_path / "a.ogg", raw), "/live")
    assert content_type == "audio/ogg"
    assert data == raw
    assert len(chains(data)) == 1
    assert pages(data)[0].data[28:36] == b"OpusHead"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no audio that Relay knows"),
        (b"fLaC" + bytes(100), "is flac; an intro must be what the mount is: audio/mpeg"),
        (b"\xff\xfb" + bytes(1000), "audio/mpeg"),
        (bytes(INTRO_BYTES_MAX + 1), f"at most {INTRO_BYTES_MAX} bytes"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_reason(
    tmp_path: Path, data: bytes, why: str
) -> None:
    """Key, value, reason, in one line."""
    with pytest.raises(ConfigError) as caught:
        read_intro(written(tmp_path / "intro", data), "/live")
    [line] = caught.value.problems
    assert line.startswith('streams."/live".intro = ')
    assert why in line


@pytest.mark.parametrize("name", ["none", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    """No such file, a directory, no name at all."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_intro(str(tmp_path / name), "/live")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 3000))
def test_no_file_crashes_the_reader(seed: int, size: int) -> None:
    """Noise with a beginning that looks like a format."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        for first in (b"OggS", b"\xff\xfb\x90", b"\xff\xf1\x50", b"ID3\x04\0\0\0\0\0\x01"):
            try:
                read_intro(written(Path(place) / "x", first + noise(seed, size)), "/x")
            except ConfigError:
                continue


# --- one listener ---------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 60_000),
    st.lists(st.integers(0, 40_000), max_size=40),
    st.booleans(),
)
def test_the_intro_comes_whole_then_a_start_and_blocks_are_exact(
    intro_bytes: int, rooms: list[int], icy: bool
) -> None:
    """However the socket splits it; the counter of titles counts the intro's bytes, too."""
    live = Programme(icy=icy, burst_us=1_000_000)
    intro = bytes(i * 7 & 255 for i in range(intro_bytes))
    live.listener.hear_intro(intro)
    live.title(b"now")
    for _ in range(100):
        live.push(200)
    for room in rooms:
        live.send(room)
        live.push(50)
    for _ in range(100):
        live.send(1 << 30)
    strip = IcyStripper(METAINT)
    audio = strip.feed(bytes(live.out)) if icy else bytes(live.out)
    assert audio.startswith(intro)
    rest = audio[len(intro) :]
    first = int.from_bytes(rest[:4], "little")
    assert first * 4 in live.starts
    assert rest == b"".join(
        word.to_bytes(4, "little") for word in range(first, first + len(rest) // 4)
    )
    assert (first + len(rest) // 4) * 4 == live.position
    if icy and len(audio) > METAINT * (intro_bytes // METAINT + 2):
        assert [title.block for title in strip.titles] == [b"StreamTitle='now';"]
        assert strip.titles[0].position >= len(intro)


# --- over sockets ---------------------------------------------------------------------------------


def test_new_listeners_hear_it_before_the_burst_and_others_do_not() -> None:
    """A Range with N > 0 comes back; a place has no intro; HEAD and probes are told as ever."""
    intro = b"I" * 50_000
    with running() as (engine, address):
        engine_with(engine, intro)
        live = Live(engine)
        live.push_seconds(4)
        sock = dial(address)
        sock.sendall(get("/live"))
        head, _, body = read_until(sock, 60_000).partition(b"\r\n\r\n")
        assert body.startswith(intro)
        assert body[50_000:50_001] == b"\xff"
        assert b"Accept-Ranges: none" in head
        sock.close()
        sock = dial(address)
        sock.sendall(get("/live", "Range: bytes=70000-"))
        status, _, body = answer(read_until(sock, 8000))
        assert (status, body[:1]) == (206, b"\xff")
        sock.close()
        sock = dial(address)
        sock.sendall(get("/live?at=live"))
        assert b"302" not in read_until(sock, 1000).split(b"\r\n")[0]
        sock.close()


def test_an_intro_of_another_format_is_not_sent() -> None:
    """The mount's source decides what its listeners are promised."""
    with running() as (engine, address):
        engine_with(engine, b"I" * 1000, "audio/aac")
        live = Live(engine)
        live.push_seconds(1)
        sock = dial(address)
        sock.sendall(get("/live"))
        _, _, body = answer(read_until(sock, 3000))
        assert body[:1] == b"\xff"
        sock.close()


def engine_with(engine: Any, intro: bytes, content_type: str = "audio/mpeg") -> None:
    """Give /live this intro."""
    engine.configure("/live", pace_ms=20, intro=(intro, content_type))
