"""The admin's page: every text escaped, nothing followed by a link changes anything."""

from __future__ import annotations

import re

from fake_desk import HOSTILE, FakeDesk, stream
from hypothesis import given
from hypothesis import strategies as st

from relay.listeners import Listener, Roll
from relay.web import admin_page, icestats

TAGS = {
    "!doctype", "meta", "title", "style", "h1", "h2", "p", "a", "table", "tr", "th", "td", "form",
    "input", "button", "pre",
}  # fmt: skip


def html(told: object) -> str:
    """The page."""
    text = admin_page.page(told, HOSTILE).text  # type: ignore[arg-type]
    assert text is not None
    return text


@given(st.text(), st.text(min_size=1))
def test_no_text_becomes_a_tag_or_leaves_its_attribute(title: str, name: str) -> None:
    """Titles, mounts and what listeners call themselves."""
    facts = FakeDesk(stream(f"/{name}", title=title)).facts()
    roll = Roll(1, [Listener(7, "192.0.2.1", 5, title, 3.9, 10, 99)])
    for told in (
        icestats.stats(facts, "http://h"),
        icestats.clients(f"/{name}", roll),
        icestats.response(title),
    ):
        found = re.findall(r"<(?!/)(\S*?)[\s>]", html(told))
        assert {tag.lower() for tag in found} <= TAGS


def test_links_only_tell() -> None:
    """What changes something is a form that is posted."""
    text = html(icestats.stats(FakeDesk(stream()).facts(), "http://h"))
    links = re.findall(r'href="([^"]*)"', text)
    assert links
    assert not [link for link in links if re.search("kill|move|update", link)]
    assert set(re.findall(r'<form method="(\w+)"', text)) == {"post"}
