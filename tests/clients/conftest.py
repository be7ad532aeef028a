"""What the tests with real clients share: the signal, their processes, a tap, one browser.

Rules of this room
  1. Nodes here are rows of three: what the third one sends has gone through two hops.
  2. One browser serves a whole file of tests; each test opens a page of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.audio import write_signal
from tools.browser import Browser
from tools.nodes import Nodes
from tools.programs import Programs

SIGNAL_S = 60.0


@pytest.fixture(scope="session")
def signal_wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The known signal, SIGNAL_S long, as a WAV file."""
    return write_signal(tmp_path_factory.mktemp("signal") / "signal.wav", SIGNAL_S)


@pytest.fixture
def programs() -> Iterator[Programs]:
    """Start real clients; all are ended with the test."""
    with Programs() as started:
        yield started


@pytest.fixture(scope="module")
def browser(chromium: str, chromedriver: str) -> Iterator[Browser]:
    """A headless Chromium for the tests of one file."""
    with Browser(chromium, chromedriver) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_nodes() -> Iterator[Nodes]:
    """Nodes that the tests of one file share."""
    with Nodes() as started:
        yield started
