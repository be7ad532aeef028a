"""Icecast's shapes, made from facts: which keys, in which order, and nothing unescaped."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from fake_desk import HOSTILE, FakeDesk, stream
from hypothesis import given
from hypothesis import strategies as st

from relay.listeners import Listener, Roll
from relay.web import icestats

BASE = "http://radio.example:8000"


def sources(*streams: Any, mount: str | None = None) -> Any:
    """`source` of /status-json.xsl; None when it is absent."""
    return icestats.stats_json(FakeDesk(*streams).facts(), BASE, mount)["icestats"].get("source")


def test_json_has_an_object_for_one_a_list_for_several_and_nothing_for_none() -> None:
    """Readers were written against exactly that."""
    assert sources() is None
    one = sources(stream())
    assert (one["listenurl"], one["listeners"], one["title"]) == (BASE + "/live", 3, "First part")
    several = sources(stream(), stream("/b"), stream("/gone", state="waiting"))
    assert [told["listenurl"] for told in several] == [BASE + "/live", BASE + "/b"]
    assert sources(stream(), stream("/b"), mount="/b")["listenurl"] == BASE + "/b"
    assert sources(stream(), mount="/none") is None


def test_dummy_stands_where_the_last_child_is_hidden() -> None:
    """Icecast's stylesheet closes an object so; with a source the node's own last child shows."""
    empty = icestats.stats_json(FakeDesk().facts(), BASE)["icestats"]
    assert empty["dummy"] is None
    full = icestats.stats_json(FakeDesk(stream()).facts(), BASE)["icestats"]
    assert "dummy" not in full
    assert full["source"]["dummy"] is None
    assert list(full["source"]) == [*sorted(full["source"].keys() - {"dummy"}), "dummy"]


def test_json_hides_what_is_the_administrators() -> None:
    """Addresses, counts of bytes and connections are not for the public."""
    told = icestats.stats_json(FakeDesk(stream(source_address="192.0.2.9")).facts(), BASE)
    shown = told["icestats"].keys() | told["icestats"]["source"].keys()
    hidden = {"source_ip", "user_agent", "max_listeners", "public", "slow_listeners", "sources"}
    assert not shown & hidden
    assert not [name for name in shown if "connections" in name or "total_bytes" in name]


def test_stats_tell_what_the_source_said() -> None:
    """Keys of ice-audio-info stand for themselves, numbers as numbers."""
    info = {"ice-audio-info": "ice-samplerate=44100;ice-channels=2;=;x", "icy-pub": "1"}
    told = stream(info=info, listeners_max=50, source_address="192.0.2.9", source_agent="butt")
    root = ET.fromstring(icestats.xml_document(icestats.stats(FakeDesk(told).facts(), BASE)))
    source = root.find("source")
    assert source is not None
    assert source.get("mount") == "/live"
    found = {child.tag: child.text for child in source}
    assert found["ice-samplerate"] == "44100"
    assert (found["max_listeners"], found["public"]) == ("50", "1")
    assert (found["source_ip"], found["user_agent"]) == ("192.0.2.9", "butt")
    assert [child.tag for child in source] == sorted(child.tag for child in source)


def test_an_edge_tells_its_upstream_as_the_source() -> None:
    """Panels show where a relayed stream comes from."""
    told = stream(role="edge", upstream="tcp://198.51.100.7:9000")
    root = icestats.stats(FakeDesk(told).facts(), BASE)
    [source] = [node for node in root.children if node.name == "source"]
    assert {node.name: node.value for node in source.children}["source_ip"] == "198.51.100.7"
    assert {node.name: node.value for node in root.children}["source_relay_connections"] == 1


@given(st.text(), st.text(), st.text())
def test_no_text_breaks_the_xml_or_becomes_an_element(title: str, name: str, agent: str) -> None:
    """Titles, names and agents are hostile; what XML cannot hold is a blank."""
    told = stream(title=title, name=name)
    root = ET.fromstring(icestats.xml_document(icestats.stats(FakeDesk(told).facts(), BASE)))
    [source] = root.findall("source")
    assert all(len(child) == 0 for child in source)
    roll = Roll(1, [Listener(7, "192.0.2.1", 5, agent, 3.9, 10, 99)])
    root = ET.fromstring(icestats.xml_document(icestats.clients("/live", roll)))
    [listener] = root.findall("source/listener")
    assert [child.tag for child in listener] == ["IP", "UserAgent", "Connected", "ID"]
    told_of = [listener.findtext(name) for name in ("IP", "Connected", "ID")]
    assert told_of == ["192.0.2.1", "3", "7"]


def test_hostile_text_comes_back_whole() -> None:
    """Escaped once, not twice."""
    roll = Roll(1, [Listener(7, "192.0.2.1", 5, HOSTILE, 3.9, 10, 99)])
    root = ET.fromstring(icestats.xml_document(icestats.clients('/a"&<b', roll)))
    assert root.findtext("source/listener/UserAgent") == HOSTILE
    [source] = root.findall("source")
    assert source.get("mount") == '/a"&<b'


def test_what_an_edge_could_fetch_is_shown_without_a_begin() -> None:
    """Relays below and readers must find it; nobody here knows when it began."""
    told = stream(state="ready", role="edge", epoch=None, title=None)
    one = sources(told)
    assert one["listenurl"] == BASE + "/live"
    assert not {"stream_start", "stream_start_iso8601", "title"} & one.keys()
    [mount] = icestats.mounts(FakeDesk(told).facts(), 1_700_000_042.5).children
    assert {node.name: node.value for node in mount.children}["Connected"] == 0


def test_listmounts_are_icecasts() -> None:
    """Fallback, listeners, seconds, content type; an empty root for none."""
    told = stream(fallback_mount="/music", epoch=1_700_000_000_000)
    text = icestats.xml_document(icestats.mounts(FakeDesk(told).facts(), 1_700_000_042.5))
    assert text == (
        '<?xml version="1.0"?>\n<icestats><source mount="/live"><fallback>/music</fallback>'
        "<listeners>3</listeners><Connected>42</Connected>"
        "<content-type>audio/mpeg</content-type></source></icestats>\n"
    )
    empty = icestats.xml_document(icestats.mounts(FakeDesk().facts(), 0))
    assert empty == '<?xml version="1.0"?>\n<icestats/>\n'


@pytest.mark.parametrize(
    ("base", "host"),
    [
        ("http://h:8000", "h"),
        ("http://h", "h"),
        ("http://[2001:db8::1]:80", "[2001:db8::1]"),
        ("http://[2001:db8::1]", "[2001:db8::1]"),
        ("https://h/radio", "h"),
        ("https://h:8443/radio", "h"),
    ],
)
def test_host_is_told_without_its_port(base: str, host: str) -> None:
    """Also of an IPv6 address."""
    assert icestats.host_of(base) == host


def test_seven_values_of_shoutcast() -> None:
    """Listeners, up, peak, bound, unique, kbit/s, title; zeros without a stream."""
    told = stream(title="A <b>, c", listeners_peak=9)
    text = icestats.seven(FakeDesk(told).facts(), None)
    assert "<body>3,1,9,0,3,128,A &lt;b&gt;, c</body>" in text
    assert "<body>0,0,0,0,0,0,</body>" in icestats.seven(FakeDesk().facts(), None)


@pytest.mark.parametrize(
    ("artist", "track", "title", "told"),
    [
        ("A", "T", "A - T", {"artist": "A", "title": "T"}),
        ("A", None, "A", {"artist": "A"}),
        (None, "T", "T", {"title": "T"}),
        (None, None, "A - T", {"title": "A - T"}),
        ("A", "T", "set since", {"title": "set since"}),
        (None, None, None, {}),
    ],
)
def test_artist_and_title_are_apart_where_the_comments_tell_them(
    artist: str | None, track: str | None, title: str | None, told: dict[str, str]
) -> None:
    """Of Ogg, at Icecast; a title that was set is one piece."""
    shown = sources(stream(artist=artist, track=track, title=title))
    keys = ("artist", "title", "yp_currently_playing")
    assert {key: shown[key] for key in keys if key in shown} == told


def test_directories_readers_see_what_is_playing() -> None:
    """Only of a stream that is listed: Icecast writes it when it tells a directory."""
    public = {"icy-pub": "1"}
    told = {"artist": "A", "track": "T", "title": "A - T"}
    shown = sources(stream(is_listed=True, info=public, **told))
    assert shown["yp_currently_playing"] == "A - T"
    for other in ({"is_listed": True}, {"info": public}):
        assert "yp_currently_playing" not in sources(stream(**other, **told))
