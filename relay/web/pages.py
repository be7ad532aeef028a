"""Texts for people and players: the page of a node, and playlists.

Rules of this room
  1. Titles, names and mounts come from strangers: HTML escaped here, textContent in the script.
  2. No asset from elsewhere; script and style are allowed by their hash and nothing else is.
  3. The list is whole without a script; the script only keeps it fresh.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from importlib.resources import files
from urllib.parse import quote

from relay.web.facts import Facts, StreamFacts

STREAMS_MAX = 500  # on one page
PLAYLISTS = {
    "m3u": "audio/x-mpegurl",
    "pls": "audio/x-scpls",
    "xspf": "application/xspf+xml",
}

_PAGE = files("relay.web").joinpath("page.html").read_text(encoding="utf-8")


def _hash_of(tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    assert found is not None
    digest = hashlib.sha256(found[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)


def path_of(mount: str) -> str:
    """The mount as a path in a link; `//x` must not become another host."""
    path = quote(mount, safe="/~:@!$&'()*+,;=")
    return f"/.{path}" if path.startswith("//") else path


def index(facts: Facts) -> str:
    """The page of a node: its streams, each with a player."""
    streams = facts.streams[:STREAMS_MAX]
    rows = "\n".join(_row(stream) for stream in streams)
    count = f"{len(facts.streams)} stream{'' if len(facts.streams) == 1 else 's'}"
    values = {
        "name": escape(facts.name),
        "version": escape(facts.version),
        "count": count,
        "rows": rows,
        "empty": " hidden" if streams else "",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], _PAGE)


def _row(stream: StreamFacts) -> str:
    mount, path = escape(stream.mount), escape(path_of(stream.mount))
    behind = stream.role == "edge" and stream.lag_ms is not None
    lag = f"{stream.lag_ms} ms behind" if behind else ""
    return (
        f'<li data-mount="{mount}" class="{stream.state}">'
        f'<div class="what"><a class="mount" href="{path}">{mount}</a>'
        f'<span class="state">{stream.state}</span>'
        f'<span class="role">{stream.role}</span></div>'
        f'<p class="title">{escape(stream.title or stream.name)}</p>'
        f'<audio controls preload="none" src="{path}"></audio>'
        f'<p class="numbers"><span class="listeners">{_people(stream.listeners)}</span>'
        f'<span class="lag">{lag}</span></p></li>'
    )


def _people(count: int) -> str:
    return f"{count} listener{'' if count == 1 else 's'}"


def playlist(kind: str, url: str, name: str) -> str:
    """A playlist of one stream, as m3u, pls or xspf."""
    name = "".join(c if c.isprintable() else " " for c in name)
    if kind == "m3u":
        return f"#EXTM3U\r\n#EXTINF:-1,{name}\r\n{url}\r\n"
    if kind == "pls":
        lines = ["[playlist]", "NumberOfEntries=1", f"File1={url}", f"Title1={name}"]
        return "\r\n".join([*lines, "Length1=-1", "Version=2", ""])
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<playlist version="1" xmlns="http://xspf.org/ns/0/"><trackList><track>'
        f"<location>{escape(url)}</location><title>{escape(name)}</title>"
        "</track></trackList></playlist>\n"
    )
