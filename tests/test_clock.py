"""AudioClock, stepped."""

from __future__ import annotations

import pytest
from tools.clock import FakeClock

from relay.clock import AudioClock
from relay.errors import RelayError


def stepped(clock: FakeClock, **options: float) -> AudioClock:
    """A clock at 48 kHz whose sleeps move the time."""
    return AudioClock(48_000, now=clock, wait=lambda s: clock.advance(s=s), **options)


def test_blocks_are_due_when_the_ones_before_have_sounded(clock: FakeClock) -> None:
    """The first at once, each next one after the length of those before; nothing drifts."""
    audio = stepped(clock)
    began = clock()
    for _ in range(50):
        audio.wait(960)
    assert clock() - began == pytest.approx(49 * 0.02)
    assert audio.resets_total == 0


def test_an_oversleep_is_made_up_for(clock: FakeClock) -> None:
    """Frames are counted, not sleeps."""
    audio = stepped(clock)
    audio.wait(960)
    clock.advance(50)
    assert audio.due_s(960) == 0
    assert audio.due_s(960) == 0
    assert audio.due_s(960) == pytest.approx(0.01)


def test_who_is_far_too_late_begins_anew(clock: FakeClock) -> None:
    """A laptop that slept does not send an hour at once."""
    audio = stepped(clock, late_ms_max=500)
    audio.wait(48_000)
    clock.advance(s=3600)
    assert audio.due_s(48_000) == 0
    assert audio.resets_total == 1
    assert audio.due_s(48_000) == pytest.approx(1.0)


def test_a_head_start_is_kept(clock: FakeClock) -> None:
    """ahead_ms: so much goes out at once."""
    audio = stepped(clock, ahead_ms=100)
    waits = [audio.due_s(960) for _ in range(7)]
    assert waits[:6] == [0] * 6
    assert waits[6] == pytest.approx(0.02)


async def test_it_ticks_on_a_loop() -> None:
    """The same, for coroutines."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    audio = AudioClock(1000, now=lambda: 0.0, sleep=sleep)
    await audio.tick(500)
    await audio.tick(500)
    assert slept == [0, 0.5]


@pytest.mark.parametrize(
    ("rate_hz", "ahead_ms", "says"),
    [(0, 0, "rate_hz is 0; the bound"), (8000, -1, "ahead_ms -1"), (8000, float("nan"), "nan")],
)
def test_what_is_no_rate_or_time_is_refused(rate_hz: float, ahead_ms: float, says: str) -> None:
    """With the value and the bound."""
    with pytest.raises(RelayError, match=says):
        AudioClock(rate_hz, ahead_ms=ahead_ms)
    with pytest.raises(RelayError, match="-1 frames"):
        AudioClock(8000).due_s(-1)
