"""The signal says where it is, comparers name the first wrong byte, and a tap keeps what passed."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from tools.audio import (
    BOS,
    CODINGS,
    RATE_HZ,
    chains,
    check_signal,
    decode,
    find_marks,
    find_run,
    pages,
    signal,
    skip_id3,
    split_headers,
    write_signal,
)
from tools.nodes import wait_until
from tools.programs import Programs, Tap


def encoded(ffmpeg: str, tmp_path: Path, name: str, media_s: float = 5.0) -> bytes:
    """Some seconds of the signal as one of the encoders writes them."""
    coding, source = CODINGS[name], write_signal(tmp_path / "signal.wav", media_s)
    target = tmp_path / f"signal.{coding.muxer}"
    with Programs() as programs:
        words = [ffmpeg, "-v", "error", "-y", "-i", str(source), *coding.codec]
        assert programs.run(*words, "-f", coding.muxer, str(target)).wait(0) == 0
    return target.read_bytes()


def test_signal_has_a_mark_each_second_and_tells_its_place() -> None:
    """Cut anywhere, the seconds that are whole are named."""
    audio = signal(8)[round(2.3 * RATE_HZ) :]
    assert np.allclose(find_marks(audio), np.arange(5) + 0.7, atol=0.01)
    assert check_signal(audio, 5) == [3, 4, 5, 6, 7]


def test_missing_second_is_noticed() -> None:
    """A whole second cut out leaves the marks in step; the tone tells."""
    audio = signal(8)
    cut = np.concatenate([audio[: 3 * RATE_HZ], audio[4 * RATE_HZ :]])
    with pytest.raises(AssertionError, match="seconds"):
        check_signal(cut, 5)


def test_missing_frame_is_noticed() -> None:
    """24 ms less, and two marks are too near to one another."""
    audio = signal(8)
    cut = np.concatenate([audio[: round(3.5 * RATE_HZ)], audio[round(3.524 * RATE_HZ) :]])
    with pytest.raises(AssertionError, match="apart"):
        check_signal(cut, 5)


@pytest.mark.parametrize("name", CODINGS)
def test_encoded_signal_is_still_known(ffmpeg: str, tmp_path: Path, name: str) -> None:
    """Marks and tone survive each of the encoders."""
    heard = decode(ffmpeg, encoded(ffmpeg, tmp_path, name))
    assert heard.errors == ""
    assert heard.media_s == pytest.approx(5.0, abs=0.1)
    assert check_signal(heard.audio, 4)[0] == 0


def test_damage_is_an_error_line(ffmpeg: str, tmp_path: Path) -> None:
    """A frame with a hole in it does not decode in silence."""
    data = encoded(ffmpeg, tmp_path, "aac")
    assert decode(ffmpeg, data[:30_000] + data[30_100:]).errors


def test_run_is_found_and_its_first_wrong_byte_named() -> None:
    """A run begins anywhere; a hole, a repetition and foreign bytes are told apart."""
    sent = np.random.default_rng(1).bytes(10_000)
    assert find_run(sent, sent[1234:9000]) == 1234
    with pytest.raises(AssertionError, match=r"1000 of .* \+50 B away"):
        find_run(sent, sent[2000:3000] + sent[3050:4000])
    with pytest.raises(AssertionError, match=r"1000 of .* -50 B away"):
        find_run(sent, sent[2000:3000] + sent[2950:4000])
    with pytest.raises(AssertionError, match=r"1000 of .* never sent"):
        find_run(sent, sent[2000:3000] + bytes(500))
    with pytest.raises(AssertionError, match="never sent"):
        find_run(sent, bytes(500))
    with pytest.raises(AssertionError, match=r"300 of 600 .* -300 B away"):
        find_run(sent[:300], sent[:300] * 2)


def test_ogg_is_cut_into_headers_and_chains(ffmpeg: str, tmp_path: Path) -> None:
    """Two header pages lead an Opus stream; a second BOS page begins a new chain."""
    data = encoded(ffmpeg, tmp_path, "opus")
    headers, rest = split_headers(data)
    assert [page.data[28:36] for page in pages(headers)] == [b"OpusHead", b"OpusTags"]
    assert headers + rest == data
    assert pages(data)[0].flags & BOS
    assert chains(data * 2 + data[:20]) == [data, data]


def test_id3_tag_is_measured() -> None:
    """The size is written in seven bits a byte."""
    assert skip_id3(b"ID3\4\0\0\0\0\1\1" + bytes(200)) == 10 + 129
    assert skip_id3(b"\xff\xfb") == 0


def test_tap_keeps_what_passes_with_its_time() -> None:
    """Head, mount, body and the time of each byte are told; both directions are forwarded."""
    with socket.create_server(("127.0.0.1", 0)) as server, Tap(server.getsockname()) as tap:
        with socket.create_connection(tap.address, timeout=5) as client:
            peer, _ = server.accept()
            client.sendall(b"PUT /live HTTP/1.1\r\n\r\n")
            assert peer.recv(100).startswith(b"PUT")
            client.sendall(b"first")
            assert peer.recv(100) == b"first"
            client.sendall(b"second")
            assert peer.recv(100) == b"second"
            peer.sendall(b"answer")
            assert client.recv(100) == b"answer"
        tapped = tap.wait_for("/live")
        assert tapped.body == b"firstsecond"
        assert tapped.sent_s(0) <= tapped.sent_s(4) < tapped.sent_s(5)
        assert tapped.answer == b"answer"
        wait_until(lambda: tapped.ended_s, what="the end of the connection")
        assert peer.recv(100) == b""
        peer.close()


def test_program_keeps_what_it_says(tmp_path: Path) -> None:
    """Both outputs can be read while it runs, and the end is bounded."""
    with Programs() as programs:
        program = programs.run("sh", "-c", "echo out; echo err >&2; exit 3", timeout_s=5)
        assert (program.output, program.errors, program.wait(0)) == (b"out\n", "err", 3)
        sleeper = programs.start("sleep", "60", stdout=tmp_path / "out")
        with pytest.raises(AssertionError, match="sleep 60"):
            sleeper.wait(0.05)
    assert not sleeper.alive
