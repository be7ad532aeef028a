"""The browser opens pages, plays a file, tells what the player did, and leaves nothing behind."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.audio import CODINGS, write_signal
from tools.browser import Browser
from tools.nodes import wait_until
from tools.programs import Programs


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, without a log."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A folder with a page, over HTTP."""
    (tmp_path / "index.html").write_text("<title>A page</title><body><p id=word>hello</p>")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(5.0)


def test_browser_plays_a_file_and_tells_its_state(
    ffmpeg: str, chromium: str, chromedriver: str, site: str, tmp_path: Path
) -> None:
    """currentTime goes on; an end and a missing file are told as such."""
    source = write_signal(tmp_path / "signal.wav", 2.0)
    words = ["-v", "error", "-i", str(source), *CODINGS["opus"].codec, str(tmp_path / "a.ogg")]
    with Programs() as programs:
        assert programs.run(ffmpeg, *words).wait(0) == 0
    with Browser(chromium, chromedriver) as browser:
        browser.open(site)
        assert browser.run("return document.title") == "A page"
        browser.play(f"{site}/a.ogg")
        wait_until(lambda: browser.audio("/a.ogg")["ended"], 10, what="the end of 2 s", every_s=0.1)
        state = browser.audio("/a.ogg")
        assert state["time_s"] == pytest.approx(2.0, abs=0.2)
        assert "ended" in state["noted"]
        with pytest.raises(AssertionError, match="does not play"):
            browser.play(f"{site}/missing.ogg")
        assert browser.screenshot(tmp_path / "page.png").stat().st_size > 1000
    assert not browser._driver.alive
