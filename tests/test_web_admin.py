"""/admin: who may give commands, what they do, and how a page of another site is refused."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator

import pytest
from fake_desk import HOSTILE, stream
from test_web_app import Reply, Site

from relay.config import Config

ADMIN = "Authorization: Basic " + base64.b64encode(b"admin:apw").decode()
SOURCE = "Authorization: Basic " + base64.b64encode(b"source:pw").decode()
CHANGES = (
    "/admin/killclient?mount=/live&id=7",
    "/admin/killsource?mount=/live",
    "/admin/moveclients?mount=/live&destination=/b",
    "/admin/updatemetadata?mount=/live&song=T",
    "/admin/fallbacks?mount=/live&fallback=/b",
    "/admin/killsource.xsl?mount=/live",
)
TELLS = (
    "/admin",
    "/admin/",
    "/admin/stats",
    "/admin/listmounts",
    "/admin/streamlist",
    "/admin/streamlist.txt",
    "/admin/streams",
    "/admin/listclients?mount=/live",
    "/admin/buildm3u?mount=/live&username=u&password=p",
    "/api/v1/streams/live/listeners",
)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """An open page door with two streams."""
    made = Site()
    made.desk.streams.append(stream("/b"))
    await made.door.start()
    yield made
    await made.door.close()


def message(reply: Reply) -> tuple[str | None, str | None]:
    """Message and return of an answer."""
    root = ET.fromstring(reply.body)
    assert root.tag == "iceresponse"
    return root.findtext("message"), root.findtext("return")


@pytest.mark.parametrize("target", [*CHANGES, *TELLS])
async def test_every_command_wants_a_password(site: Site, target: str) -> None:
    """None, a wrong one, the right one of another user; by GET and POST."""
    wrong = base64.b64encode(b"dj:pw").decode(), base64.b64encode(b":pw").decode()
    lines = [f"Authorization: Basic {token}" for token in wrong]
    for line in ("X: y", ADMIN.replace("Basic ", "Basic x"), *lines):
        for method in ("GET", "POST")[: 1 + (target in CHANGES)]:
            reply = await site.ask(target, line, method=method)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == 'Basic realm="Icecast2 Server"'
    assert site.desk.titles == []
    assert {name for name, *_ in site.desk.done} <= {"knows_source"}


@pytest.mark.parametrize("target", [*CHANGES, *TELLS])
async def test_a_source_may_do_with_its_mount_what_it_may_at_icecast(
    site: Site, target: str
) -> None:
    """Icecast 2.4's admin.c takes a source's password for what names its mount. What changes
    something takes it by POST: a GET may be a link, and wants the admin's."""
    is_named = "mount=/live" in target
    is_title = "updatemetadata" in target
    told = await site.ask(target, SOURCE)
    wanted = 401 if not is_named else 403 if target in CHANGES and not is_title else 200
    assert told.status == wanted
    if wanted == 403:
        assert "use POST" in told.body
        assert {name for name, *_ in site.desk.done} == {"knows_source"}
        assert (await site.ask(target, SOURCE, method="POST")).status == 200
        strange = await site.ask(target, SOURCE, "Origin: https://evil.example", method="POST")
        assert strange.status == 403


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_source_may_do_nothing_with_the_mount_of_another(site: Site, method: str) -> None:
    """Each has a password of its own; listeners are moved between mounts of one alone."""
    own = {"/live": {"source_password": "a"}, "/b": {"source_password": "b"}}
    overrides = {"admin_password": "apw", "streams": own}
    site.desk.config = Config.load(overrides=overrides, environ={})
    line = "Authorization: Basic " + base64.b64encode(b"source:a").decode()
    for target in (*CHANGES, *TELLS):
        if "destination" not in target:
            target = target.replace("=/live", "=/b").replace("streams/live", "streams/b")
        assert (await site.ask(target, line, method=method)).status in (401, 405), target
    assert {name for name, *_ in site.desk.done} <= {"knows_source"}


@pytest.mark.parametrize("says", [True, False])
async def test_a_script_that_knows_sources_is_asked_about_commands(site: Site, says: bool) -> None:
    """As about titles; whatever the settings have for a password."""
    site.desk.script_says = says
    user = "Authorization: Basic " + base64.b64encode(b"joe:x").decode()
    for line in (user, SOURCE):
        told = await site.ask("/admin/listclients?mount=/live", line)
        assert told.status == (200 if says else 401)
    assert ("knows_source", "/live", ("joe", "x"), "") in site.desk.done


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("target", CHANGES)
async def test_what_changes_something_is_refused_to_pages_of_other_sites(
    site: Site, target: str, method: str
) -> None:
    """A browser adds the operator's password to whatever a strange page asks of it."""
    for line in (
        "Sec-Fetch-Site: cross-site",
        "Origin: https://evil.example",
        "Referer: http://evil.example/h:8000",
        "Origin: null",
    ):
        reply = await site.ask(target, ADMIN, line, method=method)
        assert reply.status == 403
    assert site.desk.done == site.desk.titles == []


async def test_panels_and_our_own_pages_may(site: Site) -> None:
    """curl sends none of the headers; a form of ours names this host."""
    assert (await site.ask("/admin/killsource?mount=/live", ADMIN)).status == 200
    ours = ("Origin: http://h:8000", "Sec-Fetch-Site: same-origin")
    assert (await site.ask("/admin/killsource?mount=/live", ADMIN, *ours)).status == 200
    assert site.desk.done == [("end_source", "/live")] * 2


async def test_killclient_tells_whether_there_was_one(site: Site) -> None:
    """Icecast's words."""
    reply = await site.ask("/admin/killclient?mount=/live&id=7", ADMIN)
    assert (reply.status, message(reply)) == (200, ("Client 7 removed", "1"))
    reply = await site.ask("/admin/killclient?mount=/live&id=99", ADMIN)
    assert (reply.status, message(reply)) == (200, ("Client 99 not found", "0"))


async def test_moveclients_moves_and_tells_who_stayed(site: Site) -> None:
    """All, or one; without a destination the other mounts are told."""
    reply = await site.ask("/admin/moveclients?mount=/live&destination=/b", ADMIN)
    said, done = message(reply)
    assert done == "1"
    assert said is not None
    assert said.startswith("Clients moved from /live to /b: 2; 1 had to stay")
    await site.ask("/admin/moveclients?mount=live&destination=b&id=8", ADMIN)
    assert site.desk.done == [
        ("move_listeners", "/live", "/b", 0),
        ("move_listeners", "/live", "/b", 8),
    ]
    reply = await site.ask("/admin/moveclients?mount=/live", ADMIN)
    root = ET.fromstring(reply.body)
    assert root.findtext("current_source") == "/live"
    assert [source.get("mount") for source in root.findall("source")] == ["/b"]


async def test_fallbacks_sets_tells_and_takes_away(site: Site) -> None:
    """By Icecast's name and Icecast-KH's; an empty one is none, a missing one a question."""
    ask = site.ask
    nothing = await ask("/admin/fallbacks?mount=/live", ADMIN)
    assert message(nothing) == ("/live has no fallback", "1")
    for path in (
        "/admin/fallbacks?mount=/live&fallback=/b",
        "/admin/fallback?mount=live&fallback=b",
    ):
        reply = await ask(path, ADMIN)
        assert (reply.status, message(reply)) == (200, ("Fallback configured", "1"))
    told = await ask("/admin/fallbacks?mount=/live", ADMIN)
    assert message(told) == ("/b", "1")
    gone = await ask("/admin/fallbacks?mount=/live&fallback=", ADMIN)
    assert message(gone) == ("Fallback removed", "1")
    assert site.desk.done == [
        ("set_fallback", "/live", "/b"),
        ("set_fallback", "/live", "/b"),
        ("set_fallback", "/live", None),
    ]


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        ("/admin/killclient?mount=/live", 400, "Missing parameter: id"),
        ("/admin/killclient?mount=/live&id=x", 400, "number of a listener"),
        ("/admin/killclient?mount=/live&id=-1", 400, "number of a listener"),
        ("/admin/killclient?mount=/live&id=0", 400, "number of a listener"),
        ("/admin/killclient?id=7", 400, "Missing parameter: mount"),
        ("/admin/killclient?mount=/none&id=7", 404, "Source does not exist"),
        ("/admin/listclients", 400, "Missing parameter: mount"),
        ("/admin/listclients?mount=/none", 404, "Source does not exist"),
        ("/admin/stats?mount=/none", 404, "Source does not exist"),
        ("/admin/killsource?mount=/none", 404, "Source does not exist"),
        ("/admin/moveclients?mount=/live&destination=/live", 400, "identical"),
        ("/admin/moveclients?mount=/live&destination=/none", 404, "not on this node"),
        ("/admin/fallbacks?mount=/live&fallback=/live", 400, "leads in a loop"),
        ("/admin/fallbacks?mount=/none&fallback=/b", 404, "Source does not exist"),
        ("/admin/fallbacks?fallback=/b", 400, "Missing parameter: mount"),
        ("/admin/updatemetadata?mount=/none&song=x", 404, "Source does not exist"),
        ("/admin/buildm3u?mount=/live&username=u", 400, "Missing parameter"),
        ("/admin/nonsense", 404, "Unrecognised command"),
    ],
)
async def test_what_is_wrong_is_told(site: Site, target: str, status: int, words: str) -> None:
    """The status says whose fault it is, the message what is missing."""
    reply = await site.ask(target, ADMIN)
    said, done = message(reply)
    assert reply.status == status
    assert words in str(said)
    assert done == "0"


async def test_fields_of_a_form_count_as_those_of_the_query(site: Site) -> None:
    """POST, as our own pages send it."""
    body = "mount=%2Flive&id=8"
    form = ("Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}")
    reply = await site.ask("/admin/killclient", ADMIN, *form, method="POST", body=body)
    assert message(reply) == ("Client 8 removed", "1")


async def test_updatemetadata_sets_a_title_or_tells_the_mount(site: Site) -> None:
    """Icecast's page of that name asks for the title; with one it is set."""
    reply = await site.ask("/admin/updatemetadata?mount=/live", ADMIN)
    assert ET.fromstring(reply.body).find("source[@mount='/live']") is not None
    assert site.desk.titles == []
    await site.ask("/admin/updatemetadata?mount=/live&song=A%20-%20T", ADMIN)
    assert site.desk.titles == [("/live", "A - T")]


async def test_lists_for_relays(site: Site) -> None:
    """streamlist.txt and Icecast-KH's streams: one mount a line; streamlist: as listmounts."""
    site.desk.streams.append(stream("/gone", state="waiting"))
    for path in ("/admin/streamlist.txt", "/admin/streams", "/admin/streams?rserver=h&rport=8000"):
        reply = await site.ask(path, ADMIN)
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        assert reply.body == "/live\r\n/b\r\n"
    root = ET.fromstring((await site.ask("/admin/streamlist", ADMIN)).body)
    assert [source.get("mount") for source in root] == ["/live", "/b"]


async def test_buildm3u_escapes_what_it_is_given(site: Site) -> None:
    """No name or password can become another line or host."""
    query = "mount=/live&username=u%40x%0d%0a&password=p%2F%3A"
    reply = await site.ask(f"/admin/buildm3u?{query}", ADMIN)
    assert reply.headers["content-type"] == "audio/x-mpegurl"
    assert reply.body == "http://u%40x%0D%0A:p%2F%3A@h:8000/live\r\n"


async def test_listeners_as_json_tell_the_lag_too(site: Site) -> None:
    """For readers of today."""
    told = (await site.ask("/api/v1/streams/live/listeners", ADMIN)).json()
    assert told["found"] == 2
    assert told["listeners"][0] == {
        "id": 7, "address": "192.0.2.1", "port": 7, "agent": "VLC/3", "connected_s": 61.5,
        "lag_ms": 20, "sent_bytes": 9,
    }  # fmt: skip
    assert (await site.ask("/api/v1/streams/none/listeners", ADMIN)).status == 404


@pytest.mark.parametrize("target", ["/admin", "/admin/", "/admin/stats.xsl"])
async def test_the_page_for_people_has_forms_and_no_script(site: Site, target: str) -> None:
    """What changes something is a POST; hostile titles stay text."""
    site.desk.streams[0] = stream(title=HOSTILE)
    reply = await site.ask(target, ADMIN)
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "<script" not in reply.body
    assert 'method="post" action="/admin/killsource.xsl"' in reply.body
    assert 'href="/admin/killsource' not in reply.body


async def test_the_page_of_listeners_can_end_each(site: Site) -> None:
    """listclients.xsl."""
    reply = await site.ask("/admin/listclients.xsl?mount=/live", ADMIN)
    assert 'name="id" value="7"' in reply.body
    assert "&lt;script&gt;" in reply.body
    assert "<script" not in reply.body
