"""The speaker of the tests: keeps real time, and ends its epoch."""

from __future__ import annotations

import time

from tools.nodes import wait_until
from tools.speaker import Speaker


def test_speaker_makes_frames_in_real_time_without_any_origin() -> None:
    """Nobody listens at port 1: the clock goes on, and a stop is a stop."""
    speaker = Speaker(["http://source:pw@127.0.0.1:1/live"])
    begin = time.monotonic()
    speaker.start()
    wait_until(lambda: speaker.maker.sequence >= 10, 10.0)
    speaker.stop()
    made = speaker.maker.sequence
    assert made <= (time.monotonic() - begin) / speaker.maker.frame_s + 2
    assert speaker.remote.origins()[0].state == "connecting"
