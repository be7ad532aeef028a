"""What statistics readers and control panels read, beside Debian's Icecast, key by key.

Rules of this room
  1. Both servers get the same encoders and the same listener; what each answers must have the same
     elements in the same order. Values may differ (addresses, times), their kind may not.
  2. Icecast runs on ports of its own and is ended with the test.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pwd
import shutil
import socket
import time
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.nodes import PASSWORD, Nodes, wait_until
from tools.programs import Programs

Address = tuple[str, int]
CONFIG = """<icecast>
<location>Earth</location><admin>icemaster@localhost</admin><hostname>127.0.0.1</hostname>
<limits><clients>50</clients><sources>5</sources></limits>
<authentication><source-password>{password}</source-password>
<relay-password>{password}</relay-password>
<admin-user>admin</admin-user><admin-password>{password}</admin-password></authentication>
<listen-socket><port>{port}</port><bind-address>127.0.0.1</bind-address></listen-socket>
<paths><basedir>{share}</basedir><logdir>{logs}</logdir><webroot>{share}/web</webroot>
<adminroot>{share}/admin</adminroot></paths>
<logging><accesslog>access.log</accesslog><errorlog>error.log</errorlog></logging>
<security><chroot>0</chroot>{owner}</security>
</icecast>
"""

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def icecast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """Debian's Icecast 2.4 on a port of its own."""
    program = shutil.which("icecast2") or shutil.which("icecast")
    share = Path("/usr/share/icecast2")
    if program is None or not share.is_dir():
        pytest.skip("icecast2 is missing: apt-get install icecast2")
    place = tmp_path_factory.mktemp("icecast")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    owner = ""
    if os.geteuid() == 0:  # it will not run as root
        nobody = pwd.getpwnam("nobody")
        owner = "<changeowner><user>nobody</user><group>nogroup</group></changeowner>"
        for path in (place, *place.parents[:3]):
            with contextlib.suppress(PermissionError):
                path.chmod(0o755)
        os.chown(place, nobody.pw_uid, nobody.pw_gid)
    config = place / "icecast.xml"
    config.write_text(
        CONFIG.format(password=PASSWORD, port=port, share=share, logs=place, owner=owner)
    )
    with Programs() as programs:
        programs.start(program, "-c", str(config))
        address = ("127.0.0.1", port)
        wait_until(lambda: fetch(address, "/status-json.xsl"), 15.0, what="Icecast")
        yield address


def fetch(address: Address, path: str) -> tuple[int, str, str]:
    """Ask as the administrator: (status, content type, body); status 0: nobody is there."""
    request = urllib.request.Request("http://{}:{}{}".format(*address, path))
    token = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    request.add_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, reply.headers.get("Content-Type", ""), reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Content-Type", ""), error.read().decode()
    except OSError:
        return 0, "", ""


def encoder(ffmpeg: str, address: Address, mount: str, *words: str) -> list[str]:
    """An ffmpeg that sends a tone."""
    codec = "libopus" if mount.endswith(".ogg") else "libmp3lame"
    container = "ogg" if mount.endswith(".ogg") else "mp3"
    kind = "application/ogg" if mount.endswith(".ogg") else "audio/mpeg"
    return [
        *(ffmpeg, "-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i", "sine=r=48000"),
        *(
            "-t",
            "110",
            "-c:a",
            codec,
            "-b:a",
            "64k",
            "-f",
            container,
            "-content_type",
            kind,
            *words,
        ),
        "icecast://source:{}@{}:{}{}".format(PASSWORD, *address, mount),
    ]


def kind_of(text: str | None) -> str:
    """Of a value: a number, or a text."""
    return "number" if (text or "").isdigit() else "text"


def shape(node: ET.Element) -> Any:
    """The element without its values: name, attributes, kind, children in order."""
    children = [shape(child) for child in node]
    return node.tag, sorted(node.attrib), children or kind_of(node.text)


def json_shape(value: Any) -> Any:
    """The same of JSON."""
    if isinstance(value, dict):
        return {name: json_shape(inner) for name, inner in value.items()}
    return (
        [json_shape(inner) for inner in value] if isinstance(value, list) else type(value).__name__
    )


TELLS = ("/admin/stats", "/admin/listmounts", "/admin/streamlist")


def shape_of(at: Address, path: str) -> str:
    """What this server's answer looks like now."""
    return repr(shape(ET.fromstring(fetch(at, path)[2])))


def same_xml(one: Address, other: Address, path: str) -> None:
    """Both answer this path with the same elements, once both have read what their sources are."""
    end = time.monotonic() + 10
    while time.monotonic() < end and len({shape_of(at, path) for at in (one, other)}) > 1:
        time.sleep(0.1)
    (status, kind, text), (same_status, same_kind, same) = (fetch(at, path) for at in (one, other))
    assert (status, kind) == (same_status, same_kind)
    assert shape(ET.fromstring(text)) == shape(ET.fromstring(same)), f"{text}\n{same}"


def same_json(one: Address, other: Address, path: str) -> None:
    """Both answer this path with the same keys in the same order, and values of the same type."""
    (_, kind, text), (_, same_kind, same) = (fetch(at, path) for at in (one, other))
    assert kind.lower() == same_kind.lower()
    told, wanted = json_shape(json.loads(text)), json_shape(json.loads(same))
    assert told == wanted
    assert json.dumps(told) == json.dumps(wanted), "the order of keys"


def said_of(at: Address, mount: str) -> tuple[str, str]:
    """Artist and title of a mount, in the public JSON."""
    told = json.loads(fetch(at, f"/status-json.xsl?mount={mount}")[2])["icestats"]["source"]
    return told["artist"], told["title"]


def test_all_shapes_are_icecasts_with_no_one_and_several_sources(
    icecast: Address, ffmpeg: str, curl: str, tmp_path: Path
) -> None:
    """Stats, mounts, clients and the public JSON, as sources come one by one."""
    with Nodes() as nodes, Programs() as programs:
        ours = nodes.start(backbone="none").address
        both = (ours, icecast)

        def compare(*mounts: str) -> None:
            for path in TELLS:
                same_xml(ours, icecast, path)
            for path in ("/status-json.xsl", *(f"/status-json.xsl?mount={m}" for m in mounts)):
                same_json(ours, icecast, path)
            for mount in mounts:
                same_xml(ours, icecast, f"/admin/listclients?mount={mount}")

        def up(mount: str, listeners: int) -> bool:
            wanted = f'mount="{mount}"'
            told = [fetch(at, "/admin/stats")[2] for at in both]
            return all(wanted in text and f"<listeners>{listeners}<" in text for text in told)

        compare()
        same_json(ours, icecast, "/status-json.xsl?mount=/none")
        for at in both:
            programs.start(*encoder(ffmpeg, at, "/one.mp3", "-ice_name", "N & <x>"))
        wait_until(lambda: up("/one.mp3", 0), 20.0, what="the first source at both")
        compare("/one.mp3")
        for at in both:
            url = "http://{}:{}/one.mp3".format(*at)
            programs.start(curl, "-s", "-A", "a & <b>", "-o", str(tmp_path / str(at[1])), url)
            assert fetch(at, "/admin/metadata?mode=updinfo&mount=/one.mp3&song=A%20-%20T")[0] == 200
        wait_until(lambda: up("/one.mp3", 1), 10.0, what="one listener at both")
        wait_until(lambda: "A - T" in fetch(ours, "/status-json.xsl")[2], 5.0, what="the title")
        compare("/one.mp3")
        for at in both:
            programs.start(*encoder(ffmpeg, at, "/two.ogg"))
        wait_until(lambda: up("/two.ogg", 0), 20.0, what="the second source at both")
        wait_until(lambda: "Opus" in fetch(ours, "/status-json.xsl")[2], 5.0, what="the codec")
        compare("/one.mp3", "/two.ogg")
        # Vorbis alone: of Opus Icecast 2.4 does not read the comments, and Relay does.
        comments = ("-c:a", "libvorbis", "-metadata", "artist=Ä", "-metadata", "title=T & <x>")
        for at in both:
            programs.start(*encoder(ffmpeg, at, "/three.ogg", *comments))
        wait_until(lambda: up("/three.ogg", 0), 20.0, what="the third source at both")
        wait_until(lambda: "artist" in fetch(ours, "/status-json.xsl")[2], 5.0, what="the artist")
        compare("/one.mp3", "/two.ogg", "/three.ogg")
        for path in ("/admin/stats?mount=/three.ogg", "/admin/stats"):
            same_xml(ours, icecast, path)
        words = [said_of(at, "/three.ogg") for at in both]
        assert words[0] == words[1] == ("Ä", "T & <x>")


def test_commands_answer_with_icecasts_words(icecast: Address, ffmpeg: str, curl: str) -> None:
    """moveclients, killclient, killsource: message and return of both; fallbacks: there Icecast
    answers with a page, in the same words."""
    with Nodes() as nodes, Programs() as programs:
        ours = nodes.start(backbone="none").address
        answers: list[list[tuple[str, Any]]] = []
        for at in (ours, icecast):
            for mount in ("/a.mp3", "/b.mp3"):
                programs.start(*encoder(ffmpeg, at, mount))
            wait_until(lambda at=at: fetch(at, "/admin/listmounts")[2].count("mount=") == 2, 20.0)
            programs.start(curl, "-s", "-o", os.devnull, "http://{}:{}/a.mp3".format(*at))

            def listener(at: Address = at, mount: str = "/a.mp3") -> str | None:
                told = fetch(at, f"/admin/listclients?mount={mount}")[2]
                return ET.fromstring(told).findtext("source/listener/ID")

            number = wait_until(listener, 10.0, what="the listener")
            told = []
            for path in (
                "/admin/moveclients?mount=/a.mp3",
                "/admin/killclient?mount=/a.mp3&id=999999",
                f"/admin/killclient?mount=/a.mp3&id={number}",
                "/admin/moveclients?mount=/a.mp3&destination=/b.mp3",
                "/admin/updatemetadata?mount=/a.mp3",
                "/admin/killsource?mount=/b.mp3",
            ):
                status, kind, text = fetch(at, path)
                assert (status, kind) == (200, "text/xml; charset=utf-8")
                root = ET.fromstring(text)
                message = (root.findtext("message") or "").replace(str(number), "N")
                told.append((path.partition("?")[0], root.tag, message.partition(":")[0],
                             root.findtext("return")))  # fmt: skip
            answers.append(told)
            status, _, text = fetch(at, "/admin/fallbacks?mount=/a.mp3&fallback=/c.mp3")
            assert (status, "Fallback configured" in text) == (200, True)
        assert answers[0] == answers[1]
