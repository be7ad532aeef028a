"""The shapes that Icecast 2.4 gives its facts: XML for control panels, JSON for everybody.

Rules of this room
  1. Names, order (alphabetical) and presence of keys are Icecast 2.4.4's, since readers were
     written against exactly that; tests/clients/test_icecast_shapes.py holds both side by side.
  2. A document is a tree of `Node`; XML and JSON are written from the same one.
  3. What sources and listeners say is hostile: escaped by the writers, and what XML cannot hold is
     left out.
  4. Streams without a source are not shown.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from relay.listeners import Roll
from relay.web.facts import Facts, StreamFacts

_WITH_SOURCE = ("live", "ready")
# What the public page leaves out (web/status-json.xsl there).
_HIDDEN_OF_NODE = re.compile(r"sources|clients|stats|listeners|.*connections.*")
_HIDDEN_OF_SOURCE = re.compile(
    r"max_listeners|public|source_ip|slow_listeners|.*total_bytes.*|user_agent|.*connections.*"
)
# XML 1.0 §2.2: what a document may hold.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_AUDIO_INFO = re.compile(r"(?:^|;)\s*([a-z][a-z-]{0,30})=([^;]{0,100})")


@dataclass(slots=True)
class Node:
    """One element: a text, or children."""

    name: str
    value: str | int = ""
    children: list[Node] = field(default_factory=list)
    mount: str | None = None


def xml_text(text: str) -> str:
    """The text without what XML cannot hold, escaped."""
    return escape(_NO_XML.sub(" ", text))


def xml_document(root: Node) -> str:
    """The tree as Icecast writes it."""
    return f'<?xml version="1.0"?>\n{_element(root)}\n'


def _element(node: Node) -> str:
    mount = "" if node.mount is None else f" mount={quoteattr(_NO_XML.sub(' ', node.mount))}"
    inner = "".join(map(_element, node.children)) or xml_text(str(node.value))
    if not inner and node.children == [] and (node.mount is not None or node.name == "icestats"):
        return f"<{node.name}{mount}/>"
    return f"<{node.name}{mount}>{inner}</{node.name}>"


def response(message: str, *, done: bool = True) -> str:
    """What a command is answered with."""
    told = Node("iceresponse", children=[Node("message", message), Node("return", int(done))])
    return xml_document(told)


def _leaves(told: dict[str, str | int | None]) -> list[Node]:
    """Those that are known, in order."""
    return [Node(name, value) for name, value in sorted(told.items()) if value is not None]


def _moment(seconds: float | None, name: str) -> dict[str, str | int | None]:
    """A time in both of Icecast's forms, UTC; nothing where it is not known."""
    if seconds is None:
        return {}
    when = time.gmtime(seconds)
    return {
        name: time.strftime("%a, %d %b %Y %H:%M:%S +0000", when),
        f"{name}_iso8601": time.strftime("%Y-%m-%dT%H:%M:%S+0000", when),
    }


def host_of(base_url: str) -> str:
    """The host of `http://host:port/path`."""
    authority = base_url.partition("://")[2].partition("/")[0]
    return re.sub(r":[0-9]*$", "", authority) if not authority.endswith("]") else authority


def live_streams(facts: Facts, mount: str | None = None) -> list[StreamFacts]:
    """Those with a source, here or upstream; of one mount if it is named."""
    return [s for s in facts.streams if s.state in _WITH_SOURCE and mount in (None, s.mount)]


def stats(facts: Facts, base_url: str, mount: str | None = None) -> Node:
    """/admin/stats: the node, then its sources."""
    live = live_streams(facts)
    origins = [stream for stream in live if stream.role == "origin"]
    count = facts.counters
    epochs = sum(s.counters.get("epochs_total", 0) for s in facts.streams if s.role == "origin")
    relays = len(live) - len(origins)
    told: dict[str, str | int | None] = {
        "admin": "",
        "client_connections": count.get("accepts_total", 0),
        "clients": count.get("listeners", 0) + len(origins),
        "connections": count.get("accepts_total", 0),
        "file_connections": 0,
        "host": host_of(base_url),
        "listener_connections": count.get("joins_total", 0),
        "listeners": count.get("listeners", 0),
        "location": "",
        "server_id": f"Relay {facts.version}",
        **_moment(facts.started_at, "server_start"),
        "source_client_connections": epochs,
        "source_relay_connections": relays,
        "source_total_connections": epochs + relays,
        "sources": len(live),
        "stats": 0,
        "stats_connections": 0,
    }
    shown = [stream for stream in live if mount in (None, stream.mount)]
    return Node("icestats", children=_leaves(told) + [_source(s, base_url) for s in shown])


def _audio_info(info: str) -> dict[str, str | int | None]:
    """`bitrate=128;channels=2` as keys of their own, as Icecast has it."""
    return {name: _number(value.strip()) for name, value in _AUDIO_INFO.findall(info)[:16]}


def _number(text: str) -> int | str:
    """Digits as a number."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text


def _source(stream: StreamFacts, base_url: str) -> Node:
    """One source, with what it and we know of it."""
    info, count = stream.info, stream.counters
    bit_rate = info.get("icy-br", "")
    told: dict[str, str | int | None] = {
        **_audio_info(info.get("ice-audio-info", "")),
        **stream.codec_head,
        "audio_info": info.get("ice-audio-info"),
        "bitrate": _number(bit_rate) if bit_rate else None,
        "genre": info.get("icy-genre", "various"),
        "listener_peak": stream.listeners_peak,
        "listeners": stream.listeners,
        "listenurl": base_url + stream.mount,
        "max_listeners": stream.listeners_max or "unlimited",
        "public": int(info.get("icy-pub") == "1"),
        "server_description": info.get("icy-description", "Unspecified description"),
        "server_name": stream.name or "Unspecified name",
        "server_type": stream.content_type,
        "server_url": info.get("icy-url"),
        "slow_listeners": count.get("drops_total", 0),
        "source_ip": stream.source_address or _host_of_upstream(stream),
        **_moment(None if stream.epoch is None else stream.epoch / 1000, "stream_start"),
        "subtype": stream.codec,
        **_song(stream),
        "total_bytes_read": count.get("received_bytes_total", 0),
        "total_bytes_sent": count.get("sent_bytes_total", 0),
        "user_agent": stream.source_agent,
    }
    return Node("source", children=_leaves(told), mount=stream.mount)


def _song(stream: StreamFacts) -> dict[str, str | int | None]:
    """What is playing, as Icecast tells it: artist and title apart where an Ogg source's comments
    do, and nobody has set another title since; both in one for who reads them in a directory."""
    is_public = stream.is_listed and stream.info.get("icy-pub") == "1"
    told: dict[str, str | int | None] = {"title": stream.title}
    if stream.artist and " - ".join(filter(None, (stream.artist, stream.track))) == stream.title:
        told = {"artist": stream.artist, "title": stream.track}
    return told | {"yp_currently_playing": stream.title if is_public else None}


def _host_of_upstream(stream: StreamFacts) -> str:
    return host_of(stream.upstream) if stream.upstream else ""


def stats_json(facts: Facts, base_url: str, mount: str | None = None) -> dict[str, Any]:
    """/status-json.xsl: the same without what is hidden.

    `source` is an object for one stream, a list for several and absent for none. Where the last
    child of an element is hidden, Icecast's stylesheet ends the object with `"dummy": null`, and
    so it is here.
    """
    root = stats(facts, base_url, mount)
    told = _object([node for node in root.children if node.name != "source"], _HIDDEN_OF_NODE)
    sources = [
        _object(node.children, _HIDDEN_OF_SOURCE) for node in root.children if node.name == "source"
    ]
    if sources:
        told.pop("dummy", None)  # it is not the last any more
        told["source"] = sources[0] if len(sources) == 1 else sources
    return {"icestats": told}


def _object(nodes: list[Node], hidden: re.Pattern[str]) -> dict[str, Any]:
    told: dict[str, Any] = {n.name: n.value for n in nodes if not hidden.fullmatch(n.name)}
    if nodes and hidden.fullmatch(nodes[-1].name):
        told["dummy"] = None
    return told


def mounts(facts: Facts, now: float) -> Node:
    """/admin/listmounts, /admin/streamlist; `now`: the wall clock, s."""
    return Node("icestats", children=[_mount(stream, now) for stream in live_streams(facts)])


def _mount(stream: StreamFacts, now: float) -> Node:
    children = [
        Node("fallback", stream.fallback_mount or ""),
        Node("listeners", stream.listeners),
        Node("Connected", max(0, int(now - stream.epoch / 1000)) if stream.epoch else 0),
        Node("content-type", stream.content_type),
    ]
    return Node("source", children=children, mount=stream.mount)


def clients(mount: str, roll: Roll) -> Node:
    """/admin/listclients."""
    listeners = [
        Node(
            "listener",
            children=[
                Node("IP", listener.address),
                Node("UserAgent", listener.agent),
                Node("Connected", int(listener.connected_s)),
                Node("ID", listener.id),
            ],
        )
        for listener in roll.listeners
    ]
    source = Node("source", children=[Node("Listeners", roll.found), *listeners], mount=mount)
    return Node("icestats", children=[source])


def one_mount(mount: str) -> Node:
    """/admin/updatemetadata without a title: which mount it is for."""
    return Node("icestats", children=[Node("source", mount=mount)])


def destinations(mount: str, facts: Facts, now: float) -> Node:
    """/admin/moveclients without a destination: which there are."""
    others = [s for s in live_streams(facts) if s.mount != mount]
    children: Iterable[Node] = (_mount(stream, now) for stream in others)
    return Node("icestats", children=[Node("current_source", mount), *children])


def seven(facts: Facts, mount: str | None) -> str:
    """/7.html of SHOUTcast 1: seven values of one stream (the first, unless one is named)."""
    live = live_streams(facts, mount)
    if not live:
        values = [0, 0, 0, 0, 0, 0, ""]
    else:
        one = live[0]
        kbps = round((one.bitrate_bps or 0) / 1000)
        bound = one.listeners_max or facts.listeners_max
        values = [one.listeners, 1, one.listeners_peak, bound, one.listeners, kbps, one.title or ""]
    text = xml_text(",".join(map(str, values)))
    return f'<HTML><meta http-equiv="Pragma" content="no-cache"></head><body>{text}</body></html>'
