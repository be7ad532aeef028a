"""An answer of /admin for people: the tree as tables, with the commands as forms.

Rules of this room
  1. Everything is escaped; there is no script, and nothing from elsewhere.
  2. What changes something is a POST form, so that no link does it by being followed.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

if TYPE_CHECKING:
    from relay.web.icestats import Node

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}"
    "td,th{text-align:left;padding:.15rem 1rem .15rem 0;vertical-align:top}"
    "form{display:inline;margin-right:1rem}"
)
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


def page(told: Node | str, name: str) -> web.Response:
    """The page; `told` is a tree, or the XML of a command's answer."""
    body = f"<pre>{escape(told)}</pre>" if isinstance(told, str) else _tree(told)
    text = (
        f'<!doctype html><meta charset="utf-8"><title>{escape(name)}: admin</title>'
        f"<style>{_STYLE}</style><h1>{escape(name)}</h1>"
        '<p><a href="/admin/stats.xsl">Stats</a> <a href="/admin/listmounts.xsl">Mounts</a> '
        f'<a href="/">Listen</a></p>{body}\n'
    )
    headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "same-origin"}
    return web.Response(text=text, content_type="text/html", headers=headers)


def _tree(root: Node) -> str:
    own = [node for node in root.children if not node.children and node.name != "source"]
    parts = [_table(own)] if own else []
    for source in (node for node in root.children if node.name == "source"):
        mount = source.mount or ""
        parts.append(f"<h2>{escape(mount)}</h2>{_commands(mount)}")
        parts.append(_table([node for node in source.children if not node.children]))
        listeners = [node for node in source.children if node.name == "listener"]
        if listeners:
            parts.append(_listeners(mount, listeners))
    return "".join(parts)


def _table(nodes: list[Node]) -> str:
    rows = (
        f"<tr><th>{escape(node.name)}</th><td>{escape(str(node.value))}</td></tr>" for node in nodes
    )
    return f"<table>{''.join(rows)}</table>"


def _commands(mount: str) -> str:
    query = f"?mount={quote(mount, safe='')}"
    field = f'<input type="hidden" name="mount" value="{escape(mount)}">'
    return (
        f'<p><a href="/admin/listclients.xsl{query}">Listeners</a></p>'
        f'<form method="post" action="/admin/updatemetadata.xsl">{field}'
        '<input name="song"><button>Set title</button></form>'
        f'<form method="post" action="/admin/moveclients.xsl">{field}'
        '<input name="destination" placeholder="/other"><button>Move listeners</button></form>'
        f'<form method="post" action="/admin/fallbacks.xsl">{field}'
        '<input name="fallback" placeholder="/other, or none"><button>Set fallback</button></form>'
        f'<form method="post" action="/admin/killsource.xsl">{field}'
        "<button>End source</button></form>"
    )


def _listeners(mount: str, listeners: list[Node]) -> str:
    names = [node.name for node in listeners[0].children]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    told = ([str(node.value) for node in one.children] for one in listeners)
    rows = "".join(_listener(mount, values) for values in told)
    return f"<table><tr>{head}<th></th></tr>{rows}</table>"


def _listener(mount: str, values: list[str]) -> str:
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    return (
        f'<tr>{cells}<td><form method="post" action="/admin/killclient.xsl">'
        f'<input type="hidden" name="mount" value="{escape(mount)}">'
        f'<input type="hidden" name="id" value="{escape(values[-1])}">'
        "<button>End</button></form></td></tr>"
    )
