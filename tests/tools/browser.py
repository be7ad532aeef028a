"""A real Chromium, driven over WebDriver (W3C) with nothing but http.client.

Rules of this room
  1. One driver process and one browser with a fresh profile; both end with the `Browser`.
  2. Every question to the page has a bound; the browser's own log is shown when a test fails.
  3. What an <audio> element did is read from its own fields and from events that `watch` notes.
"""

from __future__ import annotations

import base64
import http.client
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from tools.nodes import wait_until
from tools.programs import Program

READY_S = 60.0
ANSWER_S = 30.0
PLAY_BUTTON_PX = 25  # from the left end of Chromium's player
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C WebDriver §11

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--window-size=1000,900",
)

# Notes events of each <audio> on the page, with the media time at which they came.
WATCH = """
for (const audio of document.querySelectorAll("audio")) {
  if (audio.noted) continue;
  audio.noted = [];
  for (const name of ["playing", "waiting", "stalled", "ended", "error", "emptied"])
    audio.addEventListener(name, () => audio.noted.push(name));
}
"""
STATE = """
const path = url => url ? new URL(url).pathname : "";
const a = [...document.querySelectorAll("audio")].find(
  a => path(a.currentSrc).endsWith(arguments[0]) || path(a.src).endsWith(arguments[0]));
return a ? {url: a.src, time_s: a.currentTime, paused: a.paused, ended: a.ended,
  error: a.error ? a.error.code + " " + a.error.message : "", noted: a.noted || [],
  buffered_s: a.buffered.length ? a.buffered.end(a.buffered.length - 1) : 0} : null;
"""
PLAY = """
const done = arguments[arguments.length - 1];
const audio = document.createElement("audio");
audio.controls = true; audio.src = arguments[0];
document.body.append(audio);
audio.play().then(() => done(""), problem => done(String(problem)));
"""
# A file of sound through MediaRecorder, as a page would send a microphone; answers with the pieces.
RECORD = """
const done = arguments[arguments.length - 1], [wav, seconds, piece_ms, kind] = arguments;
const text = async blob => {
  let told = "";
  for (const byte of new Uint8Array(await blob.arrayBuffer())) told += String.fromCharCode(byte);
  return btoa(told);
};
(async () => {
  const context = new AudioContext(), sink = context.createMediaStreamDestination();
  const sound = context.createBufferSource();
  sound.buffer = await context.decodeAudioData(
    Uint8Array.from(atob(wav), byte => byte.charCodeAt(0)).buffer);
  sound.connect(sink);
  const recorder = new MediaRecorder(sink.stream, {mimeType: kind}), pieces = [];
  recorder.ondataavailable = event => pieces.push(event.data);
  recorder.onstop = async () => done(await Promise.all(pieces.map(text)));
  recorder.start(piece_ms);
  sound.start();
  setTimeout(() => recorder.stop(), seconds * 1000);
})().catch(problem => done(String(problem)));
"""


class Browser:
    """One headless Chromium."""

    def __init__(self, chromium: str, chromedriver: str) -> None:
        self._profile = tempfile.TemporaryDirectory(
            prefix="relay-browser-", ignore_cleanup_errors=True
        )
        self._session = ""
        self._driver = Program([chromedriver, "--port=0"])
        self._port = 0
        try:
            self._open(chromium)
        except BaseException:
            self.close()
            raise

    def _open(self, chromium: str) -> None:
        port = wait_until(self._told_port, READY_S, what=f"the port of {self._driver!r}")
        self._port = port
        options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={self._profile.name}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options}
        wanted["goog:loggingPrefs"] = {"browser": "ALL"}
        told = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{told['sessionId']}"

    def _told_port(self) -> int:
        for word in self._driver.output.decode(errors="replace").split("on port ")[1:]:
            digits = word.split(".")[0].strip()
            if digits.isdigit():
                return int(digits)
        return 0

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One WebDriver command; AssertionError with its message when it fails."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            value = json.loads(answer.read())["value"]
        finally:
            connection.close()
        assert answer.status == 200, f"{method} {path}: {value}"
        return value

    def open(self, url: str) -> None:
        """Load a page and wait until it is there."""
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """Run JavaScript in the page; returns what it returns."""
        command = {"script": script, "args": list(args)}
        return self._ask("POST", f"{self._session}/execute/sync", command)

    def run_async(self, script: str, *args: Any) -> Any:
        """Run JavaScript that calls its last argument when it is done; returns what that gets."""
        command = {"script": script, "args": list(args)}
        return self._ask("POST", f"{self._session}/execute/async", command)

    def element(self, css: str) -> str:
        """Return the id of the first element that a selector finds."""
        found = self._ask(
            "POST", f"{self._session}/element", {"using": "css selector", "value": css}
        )
        return str(found[ELEMENT])

    def click(self, css: str) -> None:
        """Click on the middle of an element, as a hand does."""
        self._ask("POST", f"{self._session}/element/{self.element(css)}/click", {})

    def press_play(self, css: str) -> None:
        """Click on the play button of an <audio controls>, at the left end of its bar."""
        player = self.element(css)
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", css)
        width = self._ask("GET", f"{self._session}/element/{player}/rect")["width"]
        at = {"origin": {ELEMENT: player}, "x": round(PLAY_BUTTON_PX - width / 2), "y": 0}
        moves = [
            {"type": "pointerMove", "duration": 0, **at},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        hand = {"type": "pointer", "id": "hand", "actions": moves}
        self._ask("POST", f"{self._session}/actions", {"actions": [hand]})

    def play(self, url: str) -> None:
        """Put an <audio> for this address on the page and play it."""
        problem = self.run_async(PLAY, url)
        assert not problem, f"{url} does not play: {problem}"
        self.watch()

    def record(self, wav: bytes, media_s: float, piece_ms: int, kind: str) -> list[bytes]:
        """Let MediaRecorder encode the beginning of a WAV file in real time; returns its pieces."""
        told = self.run_async(RECORD, base64.b64encode(wav).decode(), media_s, piece_ms, kind)
        assert isinstance(told, list), f"{kind} is not recorded: {told}"
        return [base64.b64decode(piece) for piece in told]

    def watch(self) -> None:
        """Note events of the <audio> elements that are on the page now."""
        self.run(WATCH)

    def audio(self, path: str) -> dict[str, Any]:
        """Return the state of the <audio> whose address has a path that ends so."""
        state = self.run(STATE, path)
        assert state is not None, f"no <audio> of {path} on the page"
        return dict(state)

    def wait_played(self, path: str, media_s: float, timeout_s: float = 30.0) -> None:
        """Wait until its clock is past so many seconds; AssertionError tells what it did."""
        until = time.monotonic() + timeout_s
        while (state := self.audio(path))["time_s"] <= media_s:
            assert time.monotonic() < until, f"{path} at {media_s:g} s: {state}, {self.console()}"
            time.sleep(0.2)

    def console(self) -> list[str]:
        """Return the page's own log so far."""
        lines = self._ask("POST", f"{self._session}/se/log", {"type": "browser"})
        return [f"{line['level']} {line['message']}" for line in lines]

    def resize(self, width: int, height: int) -> None:
        """Give the page a screen of this size in pixels, smaller than any window if need be."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
        self._ask("POST", f"{self._session}/goog/cdp/execute", command)

    def unresize(self) -> None:
        """Give it back the screen that it had."""
        command = {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}}
        self._ask("POST", f"{self._session}/goog/cdp/execute", command)

    def screenshot(self, path: Path) -> Path:
        """Write what is seen as PNG; returns the path."""
        path.write_bytes(base64.b64decode(self._ask("GET", f"{self._session}/screenshot")))
        return path

    def close(self) -> None:
        """End browser and driver."""
        try:
            if self._session:
                self._ask("DELETE", self._session)
        except (OSError, AssertionError, http.client.HTTPException):
            pass
        finally:
            self._session = ""
            self._driver.close()
            self._profile.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        if error is not None:
            try:
                print("--- the browser's log:", *self.console(), sep="\n")
            except (OSError, AssertionError, http.client.HTTPException) as silent:
                print(f"--- the browser says no more: {silent}")
        self.close()
