"""Real players ask in their own ways, and each gets audio and the lines that it needs.

Rules of this room
  1. The third of three nodes answers; what is asked of it is what players send, through curl and
     ffmpeg, not a request of our own making.
  2. One ffmpeg pushes MP3 for the whole file, kept by a tap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tools.audio import CODINGS, decode, encoder, find_run
from tools.listeners import IcyStripper
from tools.nodes import NodeProcess, Nodes, wait_until
from tools.programs import Programs, Tap, Tapped
from tools.proxy import Proxies

MP3 = CODINGS["mp3"]
BURST_BYTES = 48_000  # 3 s of 128 kbit/s

pytestmark = pytest.mark.timeout(60)


@dataclass
class Live:
    """A stream on the air: what is sent, and the node that is asked."""

    sent: Tapped
    node: NodeProcess

    @property
    def url(self) -> str:
        """Its address."""
        return self.node.url(MP3.mount)

    def listeners(self) -> int:
        """How many listeners the node counts now."""
        streams = self.node.json("/api/v1/status")["streams"]
        return sum(s["listeners"] for s in streams if s["mount"] == MP3.mount)


@pytest.fixture(scope="module")
def live(ffmpeg: str, signal_wav: Path) -> Iterator[Live]:
    """ffmpeg's MP3 on the first of three nodes, some seconds old."""
    with Nodes() as nodes, Programs() as programs:
        row = nodes.row(3)
        with Tap(row[0].address) as tap:
            programs.start(*encoder(ffmpeg, signal_wav, MP3, tap.address, loop=True))
            sent = tap.wait_for(MP3.mount)
            wait_until(lambda: len(sent.body) > 2 * BURST_BYTES, 15.0, what="6 s of audio")
            yield Live(sent, row[2])


def split(answer: bytes) -> tuple[str, dict[str, str], bytes]:
    """Cut an answer into status line, header lines by name in lower case, and body."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    assert blank, f"no whole head in {answer[:200]!r}"
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return status, {name.lower(): value.strip() for name, _, value in fields}, body


def test_curl_with_http_1_0_gets_audio_until_close(
    live: Live, programs: Programs, curl: str
) -> None:
    """No length, no chunks, a connection that closes: what the oldest players understand."""
    program = programs.run(curl, "-sSi", "--http1.0", "--max-time", "2", live.url)
    status, fields, body = split(program.output)
    assert status == "HTTP/1.0 200 OK"
    assert fields["content-type"] == "audio/mpeg"
    assert fields["connection"].lower() == "close"
    assert "no-cache" in fields["cache-control"]
    assert not {"content-length", "transfer-encoding", "icy-metaint"} & fields.keys()
    assert len(body) >= 0.8 * BURST_BYTES
    find_run(live.sent.body, body)


def test_head_gets_the_same_lines_and_is_no_listener(
    live: Live, programs: Programs, curl: str
) -> None:
    """Hardware players ask HEAD first; it ends at once, and nobody is counted."""
    wait_until(lambda: live.listeners() == 0, 5.0, what="those before to be gone")
    told = programs.run(curl, "-sSI", "--max-time", "2", live.url)
    assert told.wait(0) == 0
    status, fields, body = split(told.output)
    asked = programs.run(curl, "-sSi", "--max-time", "1", live.url)
    same, fields_of_get, _ = split(asked.output)
    assert (status, body) == (same, b"")
    assert fields.keys() == fields_of_get.keys()
    assert fields["content-type"] == "audio/mpeg"
    joins = live.node.counters()["joins_total"]
    programs.run(curl, "-sSI", live.url)
    assert live.node.counters()["joins_total"] == joins


def test_curl_with_icy_gets_blocks_at_the_exact_places(
    live: Live, programs: Programs, curl: str
) -> None:
    """With the blocks taken out, what is left is a run of what was sent; lines have no space."""
    program = programs.run(curl, "-sSi", "-H", "Icy-MetaData: 1", "--max-time", "3", live.url)
    _, fields, body = split(program.output)
    stripper = IcyStripper(int(fields["icy-metaint"]))
    audio = stripper.feed(body)
    find_run(live.sent.body, audio)
    # a block may wait for the audio behind it
    blocks = [(len(audio) - 1) // stripper.metaint, len(audio) // stripper.metaint]
    assert stripper.blocks in blocks
    assert stripper.blocks >= 4
    assert re.search(rb"\r\nicy-metaint:\d", program.output)


def test_ffmpeg_asks_for_icy_and_hears_without_an_error(
    live: Live, programs: Programs, ffmpeg: str
) -> None:
    """Its own way of asking: Range, Icy-MetaData, Connection: close."""
    with Tap(live.node.address) as tap:
        url = "http://{}:{}{}".format(*tap.address, MP3.mount)
        words = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-xerror", "-i", url]
        program = programs.run(*words, "-t", "6", "-f", "null", "-")
        assert (program.wait(0), program.errors) == (0, "")
        (asked,) = tap.of(MP3.mount)
    head = asked.said.lower()
    assert b"range: bytes=0-" in head
    assert b"icy-metadata: 1" in head
    assert asked.answer.startswith(b"HTTP/1.0 200 OK\r\n")


def test_ffmpeg_reconnects_after_a_cut_and_goes_on(
    live: Live, proxies: Proxies, programs: Programs, ffmpeg: str
) -> None:
    """With `-reconnect_*` a cut connection is made again, and the audio decodes to its end."""
    proxy = proxies.to(live.node.address)
    url = "http://{}:{}{}".format(*proxy.address, MP3.mount)
    again = ["-reconnect", "1", "-reconnect_at_eof", "1", "-reconnect_streamed", "1"]
    words = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", *again, "-i", url]
    program = programs.start(*words, "-t", "10", "-c", "copy", "-f", "mp3", "pipe:1")
    wait_until(lambda: program.output_bytes > BURST_BYTES, 10.0, what="the burst")
    proxy.cut()
    wait_until(lambda: program.output_bytes > 2 * BURST_BYTES, 15.0, what="audio after the cut")
    assert program.wait(20.0) == 0
    assert decode(ffmpeg, program.output).media_s == pytest.approx(10.0, abs=0.5)


def test_player_without_host_line_gets_audio(live: Live, programs: Programs, curl: str) -> None:
    """Some hardware sends none."""
    program = programs.run(
        curl, "-sSi", "--http1.0", "-H", "Host:", "-H", "User-Agent:", "--max-time", "1", live.url
    )
    status, _, body = split(program.output)
    assert status == "HTTP/1.0 200 OK"
    find_run(live.sent.body, body)


def test_curl_of_a_missing_mount_is_told_where_to_look(
    live: Live, programs: Programs, curl: str
) -> None:
    """404 at once, with a line for people."""
    told = programs.run(curl, "-sSi", "--max-time", "3", live.node.url("/missing"), timeout_s=4.0)
    assert told.wait(0) == 0
    status, fields, body = split(told.output)
    assert status.endswith("404 Not Found")
    assert int(fields["content-length"]) == len(body)
    assert b"no such mount" in body


def test_web_page_of_another_site_may_ask_for_titles(
    live: Live, programs: Programs, curl: str
) -> None:
    """A preflight for `Icy-MetaData`, then a GET whose icy- lines scripts may read (CORS)."""
    asks = ["-H", "Origin: https://example.org", "-H", "Access-Control-Request-Method: GET"]
    asks += ["-H", "Access-Control-Request-Headers: icy-metadata"]
    told = programs.run(curl, "-sSi", "-X", "OPTIONS", *asks, "--max-time", "3", live.url)
    status, fields, _ = split(told.output)
    assert status.split(" ")[1] in {"200", "204"}
    assert fields["access-control-allow-origin"] == "*"
    assert "icy-metadata" in fields["access-control-allow-headers"].lower()
    assert "GET" in fields["access-control-allow-methods"]
    raw = programs.run(
        *(curl, "-sSi", "-H", "Origin: https://example.org", "-H", "Icy-MetaData: 1"),
        *("--max-time", "1", live.url),
    )
    _, fields, _ = split(raw.output)
    assert fields["access-control-allow-origin"] == "*"
    assert "icy-metaint" in fields["access-control-expose-headers"].lower()
