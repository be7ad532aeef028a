"""`relay status`: asks a node how it is, over HTTP, and shows the answer as a table.

Rules of this room
  1. One request, bounded in time and size; blocks for at most about `TIMEOUT_S` each way.
  2. The answer comes from outside: any field may be missing or odd, and none may steer a terminal.
  3. The password goes to the node that was named, and along no redirect.
  4. This room knows the status page's words, and nothing of the engine.
"""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from relay.address import parse_host_port, printable
from relay.errors import ConfigError, RelayError

TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 16 << 20
UPSTREAMS_MAX = 64  # lines of them
PATH = "/api/v1/status"

Row = dict[str, Any]

STATES = {  # of the upstream
    "connecting": "not there yet",
    "up": "up",
    "lost": "lost, and tried again",
    "version": "speaks another protocol version",
    "loop": "leads back to this node, or is too deep",
}


MEASURED = (  # the word of a line, and the field that it tells
    ("join", "join"),
    ("lateness", "lateness"),
    ("gap", "gap"),
    ("skips", "skip"),
    ("busy", "busy"),
)


class Column(NamedTuple):
    """One column of the table of streams."""

    head: str
    field: str
    number: bool = False


COLUMNS = (
    Column("MOUNT", "mount"),
    Column("STATE", "state"),
    Column("ROLE", "role"),
    Column("LISTENERS", "listeners", number=True),
    Column("LAG ms", "lag_ms", number=True),
    Column("kbit/s", "bitrate_bps", number=True),
    Column("FALLBACK", "fallback"),
    Column("TYPE", "content_type"),
    Column("TITLE", "title"),
)


def status(url: str, *, admin_password: str | None = None) -> Row:
    """Ask a node for its status; blocks for a few seconds at most.

    Args:
        url: where its HTTP is: `http://HOST:PORT`, or `HOST:PORT`. A password may stand in it.
        admin_password: what an administrator must know, if the node asks for it.

    Returns:
        the answer: `node`, `streams`, `upstream`, `upstreams`, `counters`.

    Raises:
        ConfigError: the address is none.
        RelayError: no answer, or not a Relay node's; one line.
    """
    return ask(url, PATH, admin_password=admin_password)


def ask(url: str, path: str, *, admin_password: str | None = None) -> Row:
    """Ask a node for one of its JSON documents; errors and blocking as for `status`."""
    base, in_url = _base_url(url)
    shown = printable(base)
    try:
        answer = json.loads(_get(base + path, admin_password or in_url))
    except urllib.error.HTTPError as wrong:
        raise RelayError(f"{shown}: {_refusal(wrong.code, path.partition('?')[0])}") from None
    except http.client.HTTPException:
        raise RelayError(f"{shown}: answers, but not in HTTP; is it a Relay node's HTTP?") from None
    except (OSError, UnicodeError) as wrong:
        raise RelayError(
            f"nothing answers at {shown}: {_reason(wrong)}; "
            "is the node running? relay serve prints its address"
        ) from None
    except (ValueError, RecursionError):
        raise RelayError(f"{shown}: answers, but not as a Relay node does") from None
    if not isinstance(answer, dict):
        raise RelayError(f"{shown}: answers, but not as a Relay node does")
    return answer


def print_status(url: str, *, as_json: bool, admin_password: str | None = None) -> int:
    """Print a node's status, as a table or as JSON; arguments and errors as for `status`.

    Returns:
        the exit status, 0.
    """
    answer = status(url, admin_password=admin_password)
    print(json.dumps(answer, indent=2) if as_json else "\n".join(lines(answer)))
    return 0


def lines(answer: Row) -> list[str]:
    """The status as lines for people: the node, its upstreams, its streams."""
    streams = [stream for stream in _list(answer.get("streams")) if isinstance(stream, dict)]
    node = _node(_dict(answer.get("node"))) or "a node that tells nothing of itself"
    table = _table(streams) if streams else ["no streams"]
    measured = _measured(_dict(answer.get("measured")))
    return [f"node      {node}", *_upstreams(answer), *measured, "", *table]


def _base_url(url: str) -> tuple[str, str | None]:
    """The address without path, user and password; and the password."""
    scheme, _, rest = url.partition("://") if "://" in url else ("http", "", url)
    if scheme not in ("http", "https"):
        raise ConfigError(f"{printable(scheme)}://…: write http://HOST:PORT")
    user, _, host = rest.partition("/")[0].rpartition("@")
    password = unquote(user.partition(":")[2]) or None
    if not host or not host.isprintable() or " " in host:
        raise ConfigError(f'"{printable(host)}": lacks a host; write http://HOST:PORT')
    has_port = ":" in host.rpartition("]")[2]
    parse_host_port(host if has_port else f"{host}:80", port_min=1)
    return f"{scheme}://{host}", password


def _get(url: str, password: str | None) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    if password:
        token = base64.b64encode(f"admin:{password}".encode(errors="surrogateescape")).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        body: bytes = response.read(ANSWER_BYTES_MAX + 1)
    return body if len(body) <= ANSWER_BYTES_MAX else b""


def _refusal(code: int, path: str) -> str:
    if code in (401, 403):
        return f"wants the admin password ({code}); give --admin-password or RELAY_ADMIN_PASSWORD"
    if code == 404:
        return f"answers, but has no {path} (404); is it a Relay node?"
    return f"answers with an error ({code})"


def _reason(wrong: Exception) -> str:
    cause = wrong.reason if isinstance(wrong, urllib.error.URLError) else wrong
    if isinstance(cause, TimeoutError):
        return f"timed out after {TIMEOUT_S:g} s"
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return printable(text or type(cause).__name__)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: object) -> Row:
    return value if isinstance(value, dict) else {}


def _words(*parts: tuple[str, object]) -> str:
    """The parts that are known, in a row: `studio, id 5f…, version 0.1.0`."""
    return ", ".join(form.format(_cell(value)) for form, value in parts if _cell(value) != "-")


def _node(node: Row) -> str:
    """The node in words: `studio, id 5f…, version 0.1.0, up for 12.5 s, …`."""
    return _words(
        ("{}", node.get("name")),
        ("id {}", node.get("id")),
        ("version {}", node.get("version")),
        ("up for {} s", node.get("uptime_s")),
        ("HTTP on {}", node.get("http")),
        ("backbone on {}", node.get("backbone")),
        ("{}", "links with keys" if node.get("trust") == "keys" else None),
        ("{}", "open without keys" if node.get("insecure") is True else None),
    )


def _upstreams(answer: Row) -> list[str]:
    """A line for each upstream; older nodes tell of one only."""
    several = [told for told in _list(answer.get("upstreams")) if isinstance(told, dict)]
    told = several or [_dict(answer.get("upstream"))]
    return [f"upstream  {_upstream(one) or 'none'}" for one in told[:UPSTREAMS_MAX]]


def _upstream(upstream: Row) -> str:
    """The upstream in words: `tcp://o:9000, up, last sign 13 ms ago, feeds 2 streams`."""
    state = upstream.get("state")
    return _words(
        ("{}", upstream.get("address")),
        ("{}", STATES.get(state, state) if isinstance(state, str) else None),
        ("last sign {} ms ago", upstream.get("sign_age_ms")),
        ("feeds {} streams", upstream.get("feeds")),
        ("lost {} times", upstream.get("lost_total") or None),
    )


def _measured(measured: Row) -> list[str]:
    """What the node has seen since its start: a line for each kind, none from an older node."""
    found = []
    for name, field in MEASURED:
        seen = _dict(measured.get(field))
        told = _words(
            ("{} now", _percent(seen.get("last_percent"))),
            ("p50 {}", _span(seen.get("p50_ms")) or _percent(seen.get("p50_percent"))),
            ("p99 {}", _span(seen.get("p99_ms")) or _percent(seen.get("p99_percent"))),
            ("max {}", _span(seen.get("max_ms")) or _percent(seen.get("max_percent"))),
            ("{} in all", None if "max_percent" in seen else seen.get("total")),
        )
        if seen:
            found.append(f"{name:<8}  {told if seen.get('total') else 'none yet'}")
    return found


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1e15 else None


def _span(ms: object) -> str | None:
    """Milliseconds for people: `1.2 ms`, `2.1 s`."""
    number = _number(ms)
    if number is None:
        return None
    return f"{number:.3g} ms" if number < 999.5 else f"{number / 1000:.3g} s"


def _percent(share: object) -> str | None:
    number = _number(share)
    return None if number is None else f"{number:.3g} %"


def _table(streams: Sequence[Row]) -> list[str]:
    falls_back = any(stream.get("fallback") for stream in streams)
    columns = [column for column in COLUMNS if falls_back or column.field != "fallback"]
    rows = [[column.head for column in columns]]
    rows += [[_field(stream, column) for column in columns] for stream in streams]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [_line(row, widths, columns) for row in rows]


def _field(stream: Row, column: Column) -> str:
    value = stream.get(column.field)
    if column.field == "bitrate_bps" and isinstance(value, int | float) and 0 <= value < 1e15:
        value = round(value / 1000)
    if column.field == "fallback" and value and _number(stream.get("fallback_listeners")):
        return f"{_cell(value)} ({_cell(stream['fallback_listeners'])})"
    return _cell(value)


def _cell(value: object) -> str:
    if value is None or isinstance(value, list | dict):
        return "-"
    return printable(f"{value:g}" if isinstance(value, float) else str(value)) or "-"


def _line(row: list[str], widths: list[int], columns: Sequence[Column]) -> str:
    cells = [
        cell.rjust(width) if column.number else cell.ljust(width)
        for cell, width, column in zip(row, widths, columns, strict=True)
    ]
    return "  ".join(cells).rstrip()
