"""The page of a node and playlists, as text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
from fake_desk import HOSTILE, FakeDesk, stream

from relay.web.pages import CONTENT_SECURITY_POLICY, STREAMS_MAX, index, path_of, playlist


class Seen(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep."""
        self.text += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        """The attributes of all tags of this name."""
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_lists_each_stream_with_a_player() -> None:
    """Whole without a script: mount, title, numbers, a player that loads nothing by itself."""
    page = index(FakeDesk(stream(), stream("/b", lag_ms=120, role="edge")).facts())
    seen = Seen(page)
    assert [audio["src"] for audio in seen.all("audio")] == ["/live", "/b"]
    assert all(audio["preload"] == "none" and "controls" in audio for audio in seen.all("audio"))
    for text in ("studio", "First part", "3 listeners", "120 ms behind", "2 streams", "edge"):
        assert text in seen.text
    assert page.count("ms behind</span>") == 1  # an origin is behind nobody


def test_page_without_streams_says_so() -> None:
    """An empty node is not an empty page."""
    seen = Seen(index(FakeDesk().facts()))
    assert seen.all("audio") == []
    assert "hidden" not in next(p for p in seen.all("p") if p.get("id") == "empty")


def test_what_sources_say_stays_text() -> None:
    """A title with markup is shown, not run; one in our own braces is not filled in."""
    hostile = stream(f"/{HOSTILE}", title=HOSTILE + "{{name}}", name=HOSTILE)
    seen = Seen(index(FakeDesk(hostile).facts()))
    assert len(seen.all("script")) == 1
    assert HOSTILE + "{{name}}" in seen.text
    assert seen.all("li")[0]["data-mount"] == f"/{HOSTILE}"
    assert all(not name.startswith("on") for _, attrs in seen.tags for name in attrs)


def test_page_needs_nothing_from_elsewhere() -> None:
    """No address of another host, and a policy that would not allow it."""
    page = index(FakeDesk(stream()).facts())
    assert not re.search(r"(?:src|href)=.(?:https?:)?//", page)
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.count("'sha256-") == 2
    assert "unsafe" not in CONTENT_SECURITY_POLICY


def test_page_is_bounded() -> None:
    """Thousands of streams do not make a page of megabytes."""
    desk = FakeDesk(*(stream(f"/{number}") for number in range(STREAMS_MAX + 5)))
    seen = Seen(index(desk.facts()))
    assert len(seen.all("audio")) == STREAMS_MAX
    assert f"{STREAMS_MAX + 5} streams" in seen.text


@pytest.mark.parametrize(
    ("mount", "path"),
    [
        ("/live", "/live"),
        ("/café", "/caf%C3%A9"),
        ("//evil.example/x", "/.//evil.example/x"),
        ('/a"b', "/a%22b"),
        ("/100%", "/100%25"),
    ],
)
def test_mounts_become_paths_on_this_host(mount: str, path: str) -> None:
    """Whatever a mount is called, its link stays here."""
    assert path_of(mount) == path


def test_playlists_hold_one_stream() -> None:
    """m3u, pls and xspf; a name never breaks out of its line."""
    url = "http://h:8000/live"
    m3u = playlist("m3u", url, "A\r\ntalk")
    assert m3u.splitlines() == ["#EXTM3U", "#EXTINF:-1,A  talk", url]
    assert f"File1={url}" in playlist("pls", url, "A talk").splitlines()
    found = ET.fromstring(playlist("xspf", url, HOSTILE))
    assert [e.text for e in found.iter() if e.tag.endswith("location")] == [url]
    assert [e.text for e in found.iter() if e.tag.endswith("title")] == [HOSTILE]
