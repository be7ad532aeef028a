"""Each listener's request, byte for byte as clients send it, on the origin and two hops away.

Rules of this room
  1. The bytes are those of the transcripts that players, browsers and relays were seen to send; a
     variant differs from its transcript in what its name says.
  2. Of an answer all that a client relies on is checked, in any order of its lines.
  3. MP3 and Ogg Opus from ffmpeg, which tells its title in the comments of the Ogg.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tools.audio import CODINGS, decode, encoder, find_run, split_headers
from tools.browser import Browser
from tools.listeners import IcyStripper
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_until
from tools.programs import Programs, Tap, Tapped

MP3, OPUS = CODINGS["mp3"], CODINGS["opus"]
TITLE = "Ärtist - <Song> & 'more'"
BURST_BYTES = 48_000  # 3 s of 128 kbit/s
CORS_HEADERS = "Icy-MetaData, Range, If-Range, Authorization, Content-Type"

pytestmark = pytest.mark.timeout(120)


@dataclass
class Answer:
    """Status line, lines by name in lower case, and what came of the body."""

    status: str
    lines: dict[str, str]
    body: bytes
    ended: bool


@dataclass
class Place:
    """A node that is asked, and what was sent to the origin."""

    node: NodeProcess
    mp3: Tapped
    opus: Tapped
    is_origin: bool
    asked_at: int = 0  # how much had been sent when it was last asked

    def ask(self, *lines: str, body_bytes: int = 0, timeout_s: float = 10.0) -> Answer:
        """Send a request of these lines; read until so much of the body is here, or the end."""
        raw, ended, self.asked_at = b"", False, len(self.mp3.body)
        with socket.create_connection(self.node.address, timeout=timeout_s) as sock:
            sock.sendall("\r\n".join([*lines, "", ""]).encode())
            until = time.monotonic() + timeout_s
            while time.monotonic() < until:
                part = sock.recv(65_536)
                raw += part
                ended = not part
                head, blank, body = raw.partition(b"\r\n\r\n")
                if ended or (blank and body_bytes and len(body) >= body_bytes):
                    break
        status, *fields = head.decode("latin-1").split("\r\n")
        told = (field.partition(":") for field in fields)
        return Answer(status, {n.lower(): v.strip() for n, _, v in told}, body, ended)

    def counts(self) -> tuple[int, int, int]:
        """Listeners of the MP3, joins and probes of the node."""
        told = self.node.status()
        listeners = [s["listeners"] for s in told["streams"] if s["mount"] == MP3.mount]
        counters = told["counters"]
        return sum(listeners), counters["joins_total"], counters["probes_total"]

    def settled(self) -> tuple[int, int, int]:
        """The counts, once nobody listens any more and all is told (up to half a second old)."""

        def still() -> tuple[int, int, int] | None:
            first = self.counts()
            time.sleep(0.6)
            return first if first == self.counts() and first[0] == 0 else None

        found = wait_until(still, 15.0, what="those before to be gone")
        assert found is not None
        return found

    def heard(self, audio: bytes) -> None:
        """These bytes of the MP3 were sent in a row, and lately: the signal repeats itself."""
        find_run(self.mp3.body, audio, max(0, self.asked_at - 20 * BURST_BYTES // 3))


@pytest.fixture(scope="module")
def row(ffmpeg: str, signal_wav: Path) -> Iterator[list[Place]]:
    """Three nodes in a row with both streams on the first; the first and the third are asked."""
    told = ["-metadata", f"title={TITLE.partition(' - ')[2]}", "-metadata", "artist=Ärtist"]
    with Nodes() as nodes, Programs() as programs:
        started = nodes.row(3, "--icy-ogg")
        with Tap(started[0].address) as tap:
            for coding, more in ((MP3, []), (OPUS, told)):
                programs.start(*encoder(ffmpeg, signal_wav, coding, tap.address, *more, loop=True))
            mp3, opus = tap.wait_for(MP3.mount), tap.wait_for(OPUS.mount)
            wait_until(lambda: len(mp3.body) > 2 * BURST_BYTES, 20.0, what="6 s of audio")
            set_title(started[0])
            titled = len(mp3.body)
            wait_until(lambda: len(mp3.body) > titled + 1.5 * BURST_BYTES, 20.0, what="the title")
            yield [Place(started[0], mp3, opus, True), Place(started[2], mp3, opus, False)]


def set_title(origin: NodeProcess) -> None:
    """As an encoder does it (transcript F)."""
    token = base64.b64encode(f"source:{PASSWORD}".encode()).decode()
    query = "mode=updinfo&mount=%2Ftalk.mp3&charset=UTF-8&song=A%20-%20T"
    answer = origin.request(f"/admin/metadata?{query}", headers={"Authorization": f"Basic {token}"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/xml; charset=utf-8"
    assert b"<message>Metadata update successful</message><return>1</return>" in answer.body


@pytest.fixture(params=["origin", "edge"])
def place(row: list[Place], request: pytest.FixtureRequest) -> Place:
    """The node that is asked."""
    return row[0] if request.param == "origin" else row[1]


def check_baseline(answer: Answer) -> None:
    """What every reply with audio says (§1.3)."""
    assert re.fullmatch(r"HTTP/1\.[01] 200 OK", answer.status)
    lines = answer.lines
    assert lines["content-type"] == "audio/mpeg"
    assert lines["connection"].lower() == "close"
    assert "no-cache" in lines["cache-control"]
    assert "no-store" in lines["cache-control"]
    assert "1997" in lines["expires"]
    assert lines["pragma"] == "no-cache"
    assert lines["server"]
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", lines["date"])
    assert lines["access-control-allow-origin"] == "*"
    assert "icy-metaint" in lines["access-control-expose-headers"]
    assert lines["icy-pub"] == "0"
    assert lines["accept-ranges"] == "none"
    assert not {"content-length", "transfer-encoding", "content-range"} & lines.keys()


# --- G: a listener, with and without ICY ----------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        ["GET /talk.mp3 HTTP/1.1", "Host: h:8000", "User-Agent: x", "Accept: */*"],
        ["GET /talk.mp3 HTTP/1.0"],
        ["GET /talk.mp3 HTTP/1.1"],
        ["GET /talk.mp3 HTTP/1.0", "Host: h", "Connection: keep-alive"],
        ["GET /talk.mp3 HTTP/1.1", "Host: h", "Connection: Keep-Alive", "Keep-Alive: 300"],
        ["GET /talk.mp3?x=1 HTTP/1.1", "Host: h", "Accept-Encoding: gzip, deflate"],
        ["GET http://h:8000/talk.mp3 HTTP/1.1", "Host: h:8000"],
        ["GET /talk%2Emp3 HTTP/1.1", "host:h"],
        ["GET /talk.mp3 HTTP/1.1", "Host: h", "Range: bytes=0-"],
        ["GET /talk.mp3 HTTP/1.1", "Host: h", "Icy-MetaData: 0"],
    ],
)
def test_plain_listeners_get_audio_from_a_frame_on(place: Place, head: list[str]) -> None:
    """HTTP/1.0 or 1.1, with a Host or none, keep-alive wanted or not: audio until the end."""
    answer = place.ask(*head, body_bytes=BURST_BYTES // 2)
    check_baseline(answer)
    assert "icy-metaint" not in answer.lines
    place.heard(answer.body)
    assert answer.body[0] == 0xFF


@pytest.mark.parametrize(
    "name", ["Icy-MetaData: 1", "icy-metadata:1", "ICY-METADATA:   1", "Icy-MetaData: 1 "]
)
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_transcript_g_title_blocks_at_exact_places(place: Place, name: str, version: str) -> None:
    """The title in the first block, then empty ones; `icy-metaint` without a space behind it."""
    answer = place.ask(f"GET /talk.mp3 {version}", name, body_bytes=BURST_BYTES)
    assert answer.lines["icy-metaint"] == "16000"
    stripper = IcyStripper(16000)
    audio = stripper.feed(answer.body)
    place.heard(audio)
    assert answer.body[16_001:].startswith(b"StreamTitle='A - T';")
    assert stripper.blocks >= 2
    assert len(stripper.titles) == 1


def test_a_new_title_is_heard_on_every_node(row: list[Place]) -> None:
    """Set at the origin, by POST, while listeners of both nodes are in mid-stream."""
    bodies: list[bytes] = []
    with contextlib.ExitStack() as stack:
        socks = []
        for place in row:
            sock = stack.enter_context(socket.create_connection(place.node.address, timeout=15))
            sock.sendall(b"GET /talk.mp3 HTTP/1.0\r\nIcy-MetaData: 1\r\n\r\n")
            socks.append((sock, bytearray(sock.recv(4096))))
        token = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
        form = b"mode=updinfo&mount=/talk.mp3&artist=N%E9w&title=O%27ne%3B&url=http%3A%2F%2Fx%2F1"
        told = row[0].node.request(
            "/admin/metadata",
            method="POST",
            body=form,
            headers={
                "Authorization": f"Basic {token}",
                "Content-Type": "application/x-www-form-urlencoded",
            },
        )
        assert told.status == 200
        for sock, body in socks:
            while "StreamTitle='Néw - O'ne;';StreamUrl='http://x/1';".encode() not in body:
                part = sock.recv(65_536)
                assert part
                body += part
            bodies.append(bytes(body))
    set_title(row[0].node)
    assert all(b"icy-metaint:16000" in body for body in bodies)


# --- H, I: ranges ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("last", "size"), [(0, 1), (1, 2), (9, 10), (99, 100)])
def test_transcript_h_safaris_probe_is_a_part_and_no_listener(
    place: Place, last: int, size: int
) -> None:
    """206 with exactly these bytes of a frame, and the connection ends; nobody is counted."""
    _, joins, probes = place.settled()
    answer = place.ask(
        "GET /talk.mp3 HTTP/1.1", "Host: h", f"Range: bytes=0-{last}", "X-Playback-Session-Id: 1"
    )
    assert answer.status == "HTTP/1.1 206 Partial Content"
    assert answer.lines["content-range"] == f"bytes 0-{last}/1073741823"
    assert answer.lines["content-length"] == str(size) == str(len(answer.body))
    assert answer.lines["accept-ranges"] == "bytes"
    assert answer.ended
    if place.is_origin:  # elsewhere the stream may not be here: then they are zeros
        assert answer.body[0] == 0xFF
    wait_until(lambda: place.counts()[2] == probes + 1, what="the probe to be counted")
    assert place.settled()[:2] == (0, joins)
    after = place.ask("GET /talk.mp3 HTTP/1.1", "Host: h", "Range: bytes=0-", body_bytes=4000)
    check_baseline(after)


@pytest.mark.parametrize("first", [1, 1_234_567, 2**33])
def test_transcript_i_chromium_comes_back_with_a_part(place: Place, first: int) -> None:
    """206 from byte N, which begins a frame of now, without an end."""
    answer = place.ask(
        "GET /talk.mp3 HTTP/1.1",
        "Host: h",
        f"Range: bytes={first}-",
        "Accept-Encoding: identity;q=1, *;q=0",
        body_bytes=4000,
    )
    assert answer.status == "HTTP/1.1 206 Partial Content"
    assert answer.lines["content-range"].startswith(f"bytes {first}-")
    assert "content-length" not in answer.lines
    place.heard(answer.body)


@pytest.mark.parametrize(
    "value",
    [
        "bytes=0-99999",
        "bytes=5-10",
        "bytes=-500",
        "bytes=0-1,5-9",
        "bytes=0-,-1",
        "bytes=x-",
        "bytes=",
        "items=0-1",
        "bytes=1-0",
        "bytes=99999999999999999999-",
    ],
)
def test_other_ranges_are_as_if_they_were_not_there(place: Place, value: str) -> None:
    """RFC 9110 §14.2: a range that is not served in parts is left out."""
    answer = place.ask("GET /talk.mp3 HTTP/1.1", "Host: h", f"Range: {value}", body_bytes=4000)
    check_baseline(answer)
    place.heard(answer.body)


# --- HEAD, OPTIONS --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("more", [[], ["Host: h"], ["Icy-MetaData: 1", "Connection: keep-alive"]])
def test_head_tells_the_stream_and_counts_nobody(
    place: Place, version: str, more: list[str]
) -> None:
    """200 with the stream's lines, no body, no credentials asked for."""
    _, joins, _ = place.settled()
    answer = place.ask(f"HEAD /talk.mp3 {version}", *more)
    check_baseline(answer)
    assert (answer.body, answer.ended) == (b"", True)
    assert ("icy-metaint" in answer.lines) == bool("Icy-MetaData: 1" in more)
    assert place.settled()[:2] == (0, joins)


def test_transcript_j_the_preflight_is_answered_exactly(place: Place) -> None:
    """A page of another site may ask for titles and ranges."""
    answer = place.ask(
        "OPTIONS /talk.mp3 HTTP/1.1",
        "Origin: https://x",
        "Access-Control-Request-Method: GET",
        "Access-Control-Request-Headers: icy-metadata",
    )
    assert answer.status == "HTTP/1.1 204 No Content"
    assert answer.lines["access-control-allow-origin"] == "*"
    assert answer.lines["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
    assert answer.lines["access-control-allow-headers"] == CORS_HEADERS
    assert answer.lines["access-control-max-age"] == "86400"
    assert answer.body == b""


# --- K: a relay -----------------------------------------------------------------------------------


def test_transcript_k_an_icecast_relay_finds_the_mounts_and_pulls(place: Place) -> None:
    """streamlist.txt with the admin's credentials, then each mount as any listener."""
    token = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    asked = ["GET /admin/streamlist.txt HTTP/1.0", "User-Agent: Icecast 2.4.4"]
    assert " 401 " in place.ask(*asked).status
    answer = place.ask(*asked, f"Authorization: Basic {token}")
    assert " 200 " in answer.status
    assert answer.lines["content-type"].startswith("text/plain")
    assert {b"/talk.mp3", b"/talk.opus"} <= set(answer.body.split())
    pulled = place.ask(
        "GET /talk.mp3 HTTP/1.0",
        "User-Agent: Icecast 2.4.4",
        "Icy-MetaData: 1",
        f"Authorization: Basic {token}",
        body_bytes=20_000,
    )
    assert pulled.lines["icy-metaint"] == "16000"
    assert pulled.lines["content-type"] == "audio/mpeg"


# --- Ogg, playlists, events -----------------------------------------------------------------------


def test_ogg_without_icy_begins_with_the_header_pages(place: Place) -> None:
    """Those who do not ask for blocks get none."""
    answer = place.ask("GET /talk.opus HTTP/1.1", "Host: h", body_bytes=20_000)
    assert answer.lines["content-type"] == "audio/ogg"
    assert "icy-metaint" not in answer.lines
    header, _ = split_headers(place.opus.body)
    assert answer.body.startswith(header)


def test_ogg_with_icy_is_the_same_with_blocks_between(place: Place, ffmpeg: str) -> None:
    """icy_ogg: header pages are counted; without the blocks it decodes to its end."""
    answer = place.ask("GET /talk.opus HTTP/1.1", "Host: h", "Icy-MetaData: 1", body_bytes=60_000)
    stripper = IcyStripper(int(answer.lines["icy-metaint"]))
    audio = stripper.feed(answer.body)
    header, _ = split_headers(place.opus.body)
    assert audio.startswith(header)
    whole = audio[: audio.rindex(b"OggS")]
    assert decode(ffmpeg, whole).errors == ""
    assert stripper.titles[0].block.decode().startswith(f"StreamTitle='{TITLE}';")


@pytest.mark.parametrize(
    ("kind", "content_type"),
    [
        ("m3u", "audio/x-mpegurl"),
        ("pls", "audio/x-scpls"),
        ("xspf", "application/xspf+xml"),
    ],
)
def test_playlists_name_the_stream_as_it_was_asked_for(
    place: Place, kind: str, content_type: str
) -> None:
    """With the Host of the request, whatever version it has."""
    answer = place.ask(f"GET /talk.mp3.{kind} HTTP/1.1", "Host: radio.example:8000")
    assert " 200 " in answer.status
    assert answer.lines["content-type"] == content_type
    assert b"http://radio.example:8000/talk.mp3" in answer.body
    assert " 200 " in place.ask(f"HEAD /talk.mp3.{kind} HTTP/1.1", "Host: h").status
    assert " 404 " in place.ask(f"GET /none.{kind} HTTP/1.0").status


def test_events_tell_titles_on_every_node(row: list[Place]) -> None:
    """Also on a node where nobody listens: following makes the stream wanted."""
    for place in row:
        answer = place.ask(
            "GET /api/v1/streams/talk.opus/events HTTP/1.0", "Accept: text/event-stream",
            body_bytes=10, timeout_s=15.0,
        )  # fmt: skip
        assert answer.lines["content-type"] == "text/event-stream"
        with socket.create_connection(place.node.address, timeout=15) as sock:
            sock.sendall(b"GET /api/v1/streams/talk.opus/events HTTP/1.0\r\n\r\n")
            raw = b""
            while b"event: title" not in raw or not raw.endswith(b"\n\n"):
                part = sock.recv(4096)
                assert part, raw
                raw += part
        assert b"event: up\ndata: {" in raw
        assert TITLE.encode() in raw


# --- players --------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", [MP3, OPUS], ids=["mp3", "opus"])
def test_ffmpeg_hears_both_without_an_error(
    place: Place, coding: object, programs: Programs, ffmpeg: str
) -> None:
    """It asks for ICY by itself, in Ogg too."""
    url = place.node.url(coding.mount)  # type: ignore[attr-defined]
    words = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-xerror", "-i", url]
    program = programs.run(*words, "-t", "5", "-f", "null", "-")
    assert (program.wait(0), program.errors) == (0, "")


@pytest.mark.parametrize("coding", [MP3, OPUS], ids=["mp3", "opus"])
def test_mpv_hears_and_shows_the_title(
    place: Place, coding: object, programs: Programs, mpv: str
) -> None:
    """A player of Debian that speaks ICY through ffmpeg's protocols."""
    url = place.node.url(coding.mount)  # type: ignore[attr-defined]
    program = programs.run(
        *(mpv, "--no-config", "--no-video", "--ao=null", "--length=5", "--msg-level=all=v"),
        *("--term-status-msg=", url),
        timeout_s=40.0,
    )
    said = program.output.decode(errors="replace") + program.errors
    assert program.wait(0) == 0, said
    title = "A - T" if coding is MP3 else TITLE.partition(" - ")[2]
    assert title in said
    assert "error" not in said.lower().replace("errors", "")


def test_chromium_plays_both(place: Place, browser: Browser) -> None:
    """An <audio> of a page, for some seconds each."""
    browser.open(place.node.url("/"))
    for coding in (MP3, OPUS):
        browser.run("document.body.replaceChildren()")
        browser.play(place.node.url(coding.mount))
        browser.wait_played(coding.mount, 2)
        assert browser.audio(coding.mount)["error"] == ""
