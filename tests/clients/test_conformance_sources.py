"""What source clients say, byte for byte, against a running node: every handshake and its replies.

Rules of this room
  1. The transcripts are those of real clients (FFmpeg, libshout, BUTT, Liquidsoap, SHOUTcast 1),
     with headers in another order, names in another case, and bytes one at a time.
  2. A welcome is believed when a listener hears the audio that was sent, never before.
"""

from __future__ import annotations

import base64
import contextlib
import random
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

import pytest
from tools.encoders import encode, noise
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_until

pytestmark = pytest.mark.timeout(120)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = b"HTTP/1.0 200 OK\r\n\r\n"
WELCOME = b"OK2\r\nicy-caps:11\r\n\r\n"
REPLY_BYTES_MAX = 1000  # what BUTT reads of a reply
WITHOUT_TAG = (("id3v2_version", "0"),)
SOUND = {
    "audio/mpeg": encode("libmp3lame", "mp3", 44100, seconds=4, muxer=WITHOUT_TAG),
    "audio/aac": encode("aac", "adts", 44100, seconds=4),
    "audio/ogg": encode("libopus", "ogg", 48000, seconds=4),
    "audio/webm": encode("libopus", "webm", 48000, seconds=4, muxer=(("live", "1"),)),
    "audio/x-matroska": encode("flac", "matroska", 44100, bit_rate_bps=0, seconds=4),
}
MP3 = SOUND["audio/mpeg"]
BROKEN = "relay_source_broken_total"
SID_PASSWORD = "only-for-talk"
TOML = """
[http]
shoutcast = "127.0.0.1:{port}"
shoutcast_mount = "/shout"
[defaults]
burst_ms = 10000
[streams."/talk"]
shoutcast_sid = 7
source_password = "{sid_password}"
[streams."/silent"]
takeover = "silent"
[streams."/always"]
takeover = "always"
[streams."/short"]
source_timeout_ms = 400
[streams."/paged"]
ogg_page_ms = 40
"""


@pytest.fixture(scope="module")
def shoutcast() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, shoutcast: int) -> Iterator[NodeProcess]:
    """One node; each test has a mount of its own."""
    path: Path = tmp_path_factory.mktemp("node") / "relay.toml"
    path.write_text(TOML.format(port=shoutcast, sid_password=SID_PASSWORD))
    with Nodes() as nodes:
        yield nodes.start(str(path))


class Client:
    """A source's connection that says what it is told to say."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, 5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = b""

    def say(self, data: bytes | str, *, slowly: bool = False) -> Self:
        """Send; slowly: one byte at a time."""
        data = data.encode() if isinstance(data, str) else data
        for piece in [data[at : at + 1] for at in range(len(data))] if slowly else [data]:
            self.sock.sendall(piece)
        return self

    def hear(self, until: bytes = b"\r\n\r\n") -> bytes:
        """What is said up to here, or to its end; the rest is kept."""
        while until not in self.heard:
            data = self.sock.recv(4096)
            if not data:
                found, self.heard = self.heard, b""
                return found
            self.heard += data
        found, _, self.heard = self.heard.partition(until)
        return found + until

    def hear_all(self) -> bytes:
        """What is said until the node closes."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.sock.recv(4096):
                self.heard += data
        return self.heard

    def end(self) -> Self:
        """Close our half: all is said."""
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()


def basic(password: str = PASSWORD, user: str = "source") -> str:
    """The line of these credentials."""
    return f"Authorization: Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def head(start: str, *lines: str) -> str:
    """A request head."""
    return "\r\n".join([start, *lines, "", ""])


def listen(node: NodeProcess, mount: str, size: int) -> tuple[dict[str, str], bytes]:
    """The head and the first bytes of a mount, as a player gets them."""
    deadline = time.monotonic() + 10
    while True:
        with Client(node.address) as player:
            player.say(f"GET {mount} HTTP/1.0\r\n\r\n")
            raw = player.hear().decode()
            if " 200 " in raw.partition("\r\n")[0]:
                lines = (line.partition(":") for line in raw.split("\r\n")[1:])
                while len(player.heard) < size:
                    data = player.sock.recv(65536)
                    assert data, f"{mount} ended after {len(player.heard)} bytes"
                    player.heard += data
                return {k.lower(): v.strip() for k, _, v in lines if k}, player.heard[:size]
        assert time.monotonic() < deadline, raw
        time.sleep(0.05)


def expect_heard(
    node: NodeProcess, mount: str, sound: bytes = MP3, size: int = 20_000
) -> dict[str, str]:
    """Expect that a listener of this mount hears this sound."""
    told, heard = listen(node, mount, size)
    assert heard in sound
    return told


def counters(node: NodeProcess) -> dict[str, float]:
    """The counters of the source door, from /metrics."""
    lines = node.get("/metrics").body.decode().splitlines()
    return {
        k: float(v)
        for k, _, v in (x.rpartition(" ") for x in lines if "source" in x)
        if k[0] != "#"
    }


def titles(node: NodeProcess) -> list[str | None]:
    """What plays on this node."""
    return [stream["title"] for stream in node.json("/api/v1/status")["streams"]]


FFMPEG = [
    "User-Agent: Lavf/60.3.100", "Accept: */*", "Expect: 100-continue", "Connection: close",
    "Host: h:8000", "Content-Type: audio/mpeg", "Icy-MetaData: 1", "Ice-Name: N",
    "Ice-Description: D", "Ice-URL: http://u/", "Ice-Genre: G", "Ice-Public: 0", basic(),
]  # fmt: skip
VARIANTS = ["as it is", "other order", "lower case", "upper case", "slowly", "bare LF"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_ffmpeg(node: NodeProcess, variant: str) -> None:
    """A bare 100, then audio to the end, then the final 200; however the head is written."""
    mount = f"/a-{variant.replace(' ', '-')}"
    lines = list(FFMPEG)
    if variant == "other order":
        random.Random(5).shuffle(lines)
    if variant in ("lower case", "upper case"):
        change = str.lower if variant == "lower case" else str.upper
        lines = [
            change(name) + colon + value for name, colon, value in (x.partition(":") for x in lines)
        ]
    request = head(f"PUT {mount} HTTP/1.1", *lines)
    if variant == "bare LF":
        request = request.replace("\r\n", "\n")
    with Client(node.address) as client:
        client.say(request, slowly=variant == "slowly")
        assert client.hear() == CONTINUE
        client.say(MP3[:3000], slowly=variant == "slowly").say(MP3[3000:])
        told = expect_heard(node, mount)
        assert (told["icy-name"], told["icy-genre"], told["icy-url"]) == ("N", "G", "http://u/")
        assert client.end().hear_all() == OK


@pytest.mark.parametrize("method", ["PUT", "SOURCE"])
@pytest.mark.parametrize("same", [True, False], ids=["same-connection", "new-connection"])
def test_b_libshout(node: NodeProcess, method: str, same: bool) -> None:
    """A probe without a password gets 401 with Allow and a length, and counts as no break-in."""
    mount = f"/b-{method}-{same}"
    before = counters(node)
    probe = ["Host: h:8000", "Content-Length: 0", "Connection: Keep-Alive"]
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(node.address))
        client.say(head(f"{method} {mount} HTTP/1.{int(method == 'PUT')}", *probe))
        answer = client.hear().decode()
        assert answer.startswith("HTTP/1.0 401 ")
        assert 'WWW-Authenticate: Basic realm="Icecast2 Server"' in answer
        allow = re.search(r"^Allow: (.*)\r$", answer, re.M)
        assert allow
        assert {"PUT", "SOURCE", "POST", "OPTIONS", "GET"} <= set(allow[1].split(", "))
        length = re.search(r"^Content-Length: ([0-9]+)\r$", answer, re.M)
        assert length
        while len(client.heard) < int(length[1]):
            client.heard += client.sock.recv(4096)
        client.heard = b""
        if not same:
            client = stack.enter_context(Client(node.address))
        told = [
            "ice-public: 1",
            "ice-name: L",
            "ice-audio-info: bitrate=128;samplerate=44100;channels=2",
        ]
        client.say(
            head(
                f"PUT {mount} HTTP/1.1",
                basic(),
                "Expect: 100-continue",
                "Content-Type: audio/ogg",
                *told,
            )
        )
        assert client.hear() == CONTINUE
        client.say(SOUND["audio/ogg"])
        found = expect_heard(node, mount, SOUND["audio/ogg"])
        assert (found["icy-br"], found["icy-pub"]) == ("128", "1")
    refused = [k for k in before if "password" in k]
    assert [counters(node)[k] for k in refused] == [before[k] for k in refused]


@pytest.mark.parametrize(
    "probe",
    [
        head("OPTIONS * HTTP/1.1", "Host: h:8000", "Connection: Upgrade", "Upgrade: TLS/1.0"),
        head("GET /admin/!POKE HTTP/1.1", "Host: h:8000", "Connection: Keep-Alive"),
    ],
)
def test_b_libshout_asks_for_tls(node: NodeProcess, probe: str) -> None:
    """Its auto-TLS probes get one of the statuses that it knows, small, and with a length."""
    with Client(node.address) as client:
        client.say(probe)
        answer = client.hear()
        assert re.match(rb"HTTP/1\.[01] (2[0-9]{2}|400|401|405|426|101) ", answer), answer


def test_b_libshout_of_icecast_1(node: NodeProcess) -> None:
    """Its xaudiocast: password and mount in one line, an OK; the title with the password in it."""
    lines = ["x-audiocast-name: N", "x-audiocast-url: http://u/", "x-audiocast-genre: G"]
    lines += ["x-audiocast-bitrate: 128", "x-audiocast-public: 1", "x-audiocast-description: D"]
    with Client(node.address) as client:
        client.say("\n".join(["SOURCE wrong /b-old", *lines, "", ""]))
        assert client.hear_all() == b"ERROR - 401 Unauthorized\r\n"
    with Client(node.address) as client:
        client.say("\n".join([f"SOURCE {PASSWORD} /b-old", *lines, "", ""]), slowly=True)
        assert client.hear() == b"OK\r\n\r\n"
        client.say(MP3)
        told = expect_heard(node, "/b-old")
        assert [told[f"icy-{word}"] for word in ("name", "genre", "br", "pub")] == [
            *("N", "G", "128", "1")
        ]
        fields = {"mode": "updinfo", "pass": PASSWORD, "song": "T", "mount": "/b-old"}
        answer = node.request(f"/admin.cgi?{urlencode(fields)}")
        assert b"<return>1</return>" in answer.body


def test_c_butt_tries_again_with_source(node: NodeProcess) -> None:
    """After a 400 it repeats as SOURCE, and gets 200 at once."""
    told = "ice-audio-info: ice-bitrate=96;ice-channels=2;ice-samplerate=44100"
    with Client(node.address) as client:
        client.say(head("SOURCE /c HTTP/1.0", basic(), "Content-Type: audio/mpeg", told))
        assert client.hear() == OK
        client.say(MP3)
        assert expect_heard(node, "/c")["icy-br"] == "96"


def test_c_butt_is_told_403_while_the_mount_is_in_use(node: NodeProcess) -> None:
    """Before any 100, in fewer bytes than it reads; 401 for a wrong password."""
    with Client(node.address) as first:
        first.say(head("SOURCE /used HTTP/1.0", basic(), "Content-Type: audio/mpeg"))
        assert first.hear() == OK
        first.say(MP3[:4000])
        for lines, status in (([basic()], 403), ([basic("wrong")], 401)):
            with Client(node.address) as client:
                client.say(
                    head(
                        "PUT /used HTTP/1.1",
                        *lines,
                        "Expect: 100-continue",
                        "Content-Type: audio/mpeg",
                    )
                )
                answer = client.hear_all()
                assert answer.startswith(f"HTTP/1.0 {status} ".encode())
                assert b" 100 " not in answer
                assert len(answer) < REPLY_BYTES_MAX
        first.say(MP3[4000:])
        expect_heard(node, "/used")


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 100_000])
def test_d_liquidsoap(node: NodeProcess, chunk_bytes: int) -> None:
    """SOURCE in chunks of any size is answered 2xx at once, and heard without them."""
    mount = f"/d-{chunk_bytes}"
    sound = SOUND["audio/ogg"] if chunk_bytes > 1 else SOUND["audio/ogg"][:30_000]
    lines = [basic(), "Host: h:8000", "User-Agent: liquidsoap/2.1", "Content-Type: application/ogg"]
    with Client(node.address) as client:
        client.say(head(f"SOURCE {mount} HTTP/1.1", *lines, "Transfer-Encoding: chunked"))
        assert client.hear() == OK
        client.say(
            b"".join(
                b"%x\r\n%b\r\n" % (len(sound[at : at + chunk_bytes]), sound[at : at + chunk_bytes])
                for at in range(0, len(sound), chunk_bytes)
            )
        )
        expect_heard(node, mount, sound, 15_000)


def let_in(address: tuple[str, int], line: str, *, slowly: bool) -> Client:
    """Say a password line to the SHOUTcast port, again while the source of the test before has
    the mount; the client that was welcomed."""

    def tried() -> Client | None:
        client = Client(address).say(f"{line}\r\n", slowly=slowly)
        if (answer := client.hear()).startswith(b"mount in use"):
            client.sock.close()
            return None
        assert answer == WELCOME
        return client

    return wait_until(tried, 10.0, what="the mount to be free", every_s=0.1)


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        (PASSWORD, "/shout"), (f"source:{PASSWORD}", "/shout"), (f"{PASSWORD}:#1", "/shout"),
        (f"{SID_PASSWORD}:#7", "/talk"), (f"dj:{SID_PASSWORD}:#7", "/talk"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("slowly", [False, True], ids=["at-once", "slowly"])
def test_e_shoutcast(
    node: NodeProcess, shoutcast: int, line: str, mount: str, slowly: bool
) -> None:
    """OK2 for the password line, header lines, data; the title comes to the other port."""
    lines = [
        "icy-name:N",
        "icy-genre:G",
        "icy-url:U",
        "icy-pub:0",
        "icy-br:128",
        "content-type:audio/mpeg",
    ]
    secret = SID_PASSWORD if mount == "/talk" else PASSWORD
    with let_in(("127.0.0.1", shoutcast), line, slowly=slowly) as client:
        client.say("\r\n".join([*lines, "", ""]), slowly=slowly).say(MP3)
        told = expect_heard(node, mount)
        assert (told["icy-name"], told["icy-genre"], told["icy-br"]) == ("N", "G", "128")
        fields = {"pass": secret, "mode": "updinfo", "song": "T", "mount": mount}
        if mount == "/talk":
            fields = {"pass": secret, "mode": "updinfo", "song": "T", "sid": "7"}
        answer = node.request(
            f"/admin.cgi?{urlencode(fields)}", headers={"User-Agent": "X (Mozilla Compatible)"}
        )
        assert answer.status == 200
        assert b"<return>1</return>" in answer.body


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"wrong\r\n", b"invalid password\r\n"),
        (PASSWORD.encode() + b":#7\r\n", b"invalid password\r\n"),
        (SID_PASSWORD.encode() + b":#99\r\n", b"invalid password\r\n"),
        (b"x" * 2000, b"invalid password\r\n"),
        (b"\r\n", b"invalid password\r\n"),
        (b"GET / HTTP/1.0\r\n\r\n", b"invalid password\r\n"),
    ],
)
def test_e_shoutcast_refuses(node: NodeProcess, shoutcast: int, said: bytes, answer: bytes) -> None:
    """In the words that its encoders look for; then it closes."""
    with Client(("127.0.0.1", shoutcast)) as client:
        assert client.say(said).hear_all() == answer


def test_f_metadata(node: NodeProcess) -> None:
    """By GET and POST, with the source's password: Icecast's XML."""
    fields = {"mode": "updinfo", "mount": "/f", "charset": "UTF-8", "song": "Ä - T"}
    name, _, value = basic().partition(": ")
    with Client(node.address) as client:
        client.say(head("SOURCE /f HTTP/1.0", basic(), "Content-Type: audio/mpeg"))
        assert client.hear() == OK
        answers = [node.request(f"/admin/metadata?{urlencode(fields)}", headers={name: value})]
        client.say(MP3)  # a title may come before the first byte
        expect_heard(node, "/f")
        answers += [
            node.request("/admin/metadata", method="POST", body=urlencode(fields).encode(),
                         headers={name: value, "Content-Type": "application/x-www-form-urlencoded"})
        ]  # fmt: skip
        for answer in answers:
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/xml")
            assert b"<message>Metadata update successful</message><return>1</return>" in answer.body
        wait_until(lambda: "Ä - T" in titles(node), what="the title")


# --- what is sent, and what it was said to be -----------------------------------------------------


@pytest.mark.parametrize("told", [None, "application/octet-stream", "audio/mpeg", "audio/ogg"])
@pytest.mark.parametrize("content_type", SOUND)
def test_bytes_decide_where_the_content_type_is_wrong_or_missing(
    node: NodeProcess, content_type: str, told: str | None
) -> None:
    """Listeners are told what the bytes are, and hear them."""
    mount = f"/is-{content_type[6:]}-{(told or 'none')[6:]}"
    lines = [] if told is None else [f"Content-Type: {told}"]
    sound = SOUND[content_type]
    with Client(node.address) as client:
        client.say(head(f"SOURCE {mount} HTTP/1.0", basic(), *lines))
        assert client.hear() == OK
        client.say(sound)
        found, heard = listen(node, mount, 12_000)
        assert found["content-type"] == content_type
        if "webm" not in content_type and "matroska" not in content_type:
            assert heard in sound


FREE = (b"\xff\xfb\x00\x44" + bytes(412)) * 150


@pytest.mark.parametrize("expect", [True, False])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (noise(1, 60_000), "not one frame"), (noise(1, 200_000), "without a frame"),
        (FREE, "free format"), (b"fLaC" + bytes(50_000), "bare FLAC"),
        (b"RIFF" + bytes(50_000), "RIFF"),
    ],
    ids=["noise", "much-noise", "free-format", "flac", "wav"],
)  # fmt: skip
def test_what_is_no_audio_is_refused_with_what_was_found(
    node: NodeProcess, body: bytes, words: str, expect: bool
) -> None:
    """A length makes the reply the sender's last word: 400 or 415, never 200."""
    lines = [basic(), "Content-Type: audio/mpeg", f"Content-Length: {len(body)}"]
    lines += ["Expect: 100-continue"] * expect
    with Client(node.address) as client:
        client.say(head("PUT /no-audio HTTP/1.1", *lines))
        if expect:
            assert client.hear() == CONTINUE
        with contextlib.suppress(OSError):
            client.say(body)
        answer = client.hear_all()
    assert re.match(rb"HTTP/1\.0 4(00|15) ", answer), answer
    assert words.encode() in answer
    assert len(answer) < REPLY_BYTES_MAX


def test_noise_of_an_encoder_is_ended_and_counted(node: NodeProcess) -> None:
    """After its 200 nothing can be said any more."""
    before = counters(node)
    with Client(node.address) as client:
        client.say(head("SOURCE /noise HTTP/1.0", basic(), "Content-Type: audio/mpeg"))
        assert client.hear() == OK
        with contextlib.suppress(OSError):
            client.say(noise(2, 300_000))
        assert client.hear_all() == b""
    wait_until(lambda: counters(node)[BROKEN] > before[BROKEN], what=BROKEN)


# --- who has the mount ----------------------------------------------------------------------------


def source(node: NodeProcess, mount: str) -> Client:
    """An encoder that sends MP3."""
    client = Client(node.address)
    client.say(head(f"SOURCE {mount} HTTP/1.0", basic(), "Content-Type: audio/mpeg"))
    return client


@pytest.mark.parametrize(("mount", "wait_s", "is_taken"), [
    ("/always", 0.0, True), ("/silent", 0.0, False), ("/silent", 3.0, True), ("/never", 2.5, False),
])  # fmt: skip
def test_takeover(node: NodeProcess, mount: str, wait_s: float, is_taken: bool) -> None:
    """At once, only from one that is silent, or never; the one that loses is closed."""
    wait_until(lambda: mount not in [
        s["mount"] for s in node.json("/api/v1/status")["streams"] if s["source"] == "up"
    ], what=f"{mount} to be free")  # fmt: skip
    with source(node, mount) as first:
        assert first.hear() == OK
        first.say(MP3[:20_000])
        expect_heard(node, mount, size=15_000)
        time.sleep(wait_s + (1.5 if wait_s else 0))  # 20,000 B are 1.25 s; the node reads ahead
        with source(node, mount) as second:
            answer = second.hear()
            if not is_taken:
                assert answer.startswith(b"HTTP/1.0 403 ")
                return
            assert answer == OK
            second.say(MP3)
            assert first.hear_all() == b""
            wait_until(lambda: expect_heard(node, mount), what="the second source")


def test_silent_source_is_ended_after_the_time_of_its_mount(node: NodeProcess) -> None:
    """source_timeout_ms of 400, where the node's is 10 s."""
    with source(node, "/short") as client:
        assert client.hear() == OK
        client.say(MP3[:4000])
        began = time.monotonic()
        assert client.hear_all() == b""
        assert time.monotonic() - began < 5


def test_pages_are_divided_where_the_mount_wants_it(node: NodeProcess, ffmpeg: str) -> None:
    """Three pages of a second became many."""
    with Client(node.address) as client:
        client.say(head("SOURCE /paged HTTP/1.0", basic(), "Content-Type: audio/ogg"))
        assert client.hear() == OK
        client.say(SOUND["audio/ogg"])
        _, heard = listen(node, "/paged", 40_000)
    assert heard.count(b"OggS\0") > 20
