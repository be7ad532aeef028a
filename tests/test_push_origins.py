"""`relay push` to several origins: what it does when its epoch has lost."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace
from typing import Any

from relay.errors import EpochLostError
from relay.push import EPOCH_S, Progress, Spread


class FakeRemote:
    """A source of several origins whose epoch has lost as soon as something is fed, or never."""

    def __init__(self, log: list[str], *, lost: bool) -> None:
        self.log, self.lost = log, lost

    def open(self) -> None:
        """A new epoch."""
        self.log.append("open")

    def title(self, text: str) -> None:
        """Told at once."""
        self.log.append(f"title {text}")

    def wait(self, timeout_s: float | None) -> bool:
        """Somebody is there."""
        return True

    def feed(self, data: bytes) -> None:
        """What the muxer made."""
        if self.lost:
            raise EpochLostError("it has lost")
        self.log.append(data.decode())

    def origins(self) -> list[Any]:
        """None of them matters."""
        return []

    def close(self) -> bool:
        """The end."""
        self.log.append("close")
        return not self.lost


class FakeRun:
    """A muxer whose bytes say which run they are of."""

    def __init__(self, number: int) -> None:
        self.number = number

    def add(self, piece: Any) -> bytes:
        """One piece."""
        return f"{self.number}:{piece.media_s:.0f}".encode()

    def finish(self) -> bytes:
        """The last bytes."""
        return f"{self.number}:end".encode()


class FakeReader:
    """Two pieces of a file."""

    live = False

    def pieces(self, *, decode: bool) -> list[Any]:
        """All of them."""
        return [SimpleNamespace(media_s=0.0), SimpleNamespace(media_s=1.0)]

    def close(self) -> None:
        """Nothing to close."""


def test_input_goes_on_in_a_new_epoch_when_its_own_has_lost() -> None:
    """A new run with a new title; no piece is missing, and not more than one epoch each 2 s."""
    log: list[str] = []
    runs = itertools.count()
    remotes = [FakeRemote(log, lost=True), FakeRemote(log, lost=True), FakeRemote(log, lost=False)]
    slept: list[float] = []
    spread: Any = Spread(
        FakeReader(),  # type: ignore[arg-type]
        lambda: FakeRun(next(runs)),  # type: ignore[arg-type, return-value]
        lambda: remotes.pop(0),  # type: ignore[arg-type, return-value]
        Progress(io.StringIO(), quiet=True),
        None,
        title="T",
        now=lambda: 100.0,
        sleep=slept.append,
    )
    spread.carry(decode=False)
    again = ["open", "title T", "close"]
    assert log == [*again, *again, "open", "title T", "2:0", "2:1", "2:end", "close"]
    assert slept == [EPOCH_S, EPOCH_S]
