"""The library's source of several origins, fed in real time on a thread of its own.

Rules of this room
  1. Frames are those of a FrameMaker, so that no defect passes unseen.
  2. It keeps real time against one start instant, whatever the origins do.
"""

from __future__ import annotations

import threading
import time

from relay import RemoteSource
from tools.sources import FrameMaker


class Speaker:
    """The library's source, fed in real time on a thread."""

    def __init__(self, urls: list[str]) -> None:
        self.remote = RemoteSource(urls, content_type="audio/mpeg", name="A talk")
        self.maker = FrameMaker()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Speaker:
        """Connect and begin to speak."""
        self.remote.open()
        self._thread.start()
        return self

    def _run(self) -> None:
        begin, made = time.monotonic(), 0
        while not self._end.wait(0.02):
            due = int((time.monotonic() - begin) / self.maker.frame_s) + 1
            if due > made:
                self.remote.feed(b"".join(self.maker.frames(due - made)))
                made = due

    def stop(self) -> None:
        """End the epoch."""
        self._end.set()
        self._thread.join(5.0)
        self.remote.close()
