"""The swarm's frames: valid MP3 of one size, and no damage passes unseen."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from relay._probe_swarm import FRAME_BYTES, FRAME_US, find_frame, frame
from tools.encoders import scan

MARKS = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(0, 1023),
    st.integers(0, 2**48),
    st.integers(0, 2**62),
)


@given(MARKS)
def test_a_frame_says_what_it_was_told_and_holds_no_second_sync_word(
    mark: tuple[int, int, int, int],
) -> None:
    """Run, mount, sequence and time come back; nothing behind the header has its top bit set."""
    made = frame(*mark)
    assert len(made) == FRAME_BYTES == 192
    assert find_frame(made) == (0, mark)
    assert made[:4] == b"\xff\xfb\x54\xc0"
    assert all(byte < 0x80 for byte in made[4:])


@given(MARKS, st.integers(0, FRAME_BYTES - 1), st.integers(1, 255))
def test_one_changed_byte_is_always_found(
    mark: tuple[int, int, int, int], at: int, change: int
) -> None:
    """Wherever it is and whatever it becomes."""
    broken = bytearray(frame(*mark))
    broken[at] ^= change
    assert find_frame(bytes(broken)) is None


@given(MARKS, st.integers(0, FRAME_BYTES - 1), st.integers(0, 400))
def test_the_first_whole_frame_is_found_behind_the_rest_of_another(
    mark: tuple[int, int, int, int], cut: int, more: int
) -> None:
    """A burst cut by bytes may begin anywhere."""
    run, mount, sequence, written_us = mark
    bytes_ = frame(*mark) + frame(run, mount, sequence + 1, written_us) + bytes(more)
    found = find_frame(bytes_[cut:])
    assert found is not None
    at, (_, _, second, _) = found
    assert (at, second) == ((0, sequence) if cut == 0 else (FRAME_BYTES - cut, sequence + 1))


def test_relays_own_scanner_takes_each_of_them_as_a_frame() -> None:
    """Cut where they were made, 24 ms each, nothing discarded."""
    made = [frame(7, 0, n, n * FRAME_US) for n in range(50)]
    cut = scan("mpeg", b"".join(made))
    assert [data for data, _, _ in cut] == made
    assert {duration_us for _, duration_us, _ in cut} == {FRAME_US} == {24000}


def test_a_decoder_finds_nothing_to_complain_about(ffmpeg: str, tmp_path: Path) -> None:
    """It is silence of the right length: 200 frames of 1152 samples."""
    path = tmp_path / "swarm.mp3"
    path.write_bytes(b"".join(frame(1 << 31, 3, n, 10**12 + n * FRAME_US) for n in range(200)))
    command = [ffmpeg, "-v", "error", "-f", "mp3", "-i", str(path), "-f", "s16le", "-"]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.stderr == b""
    assert done.stdout == bytes(200 * 1152 * 2)
