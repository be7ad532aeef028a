"""`relay postmortem`: the flight recorders of several nodes, as one timeline of sentences.

Rules of this room
  1. One request a node, bounded in time and size; or a file that was saved. A node that does not
     answer is named, and the rest is shown.
  2. What is read comes from outside: any field may be missing or odd, and none may steer a
     terminal.
  3. Clocks are compared, not trusted: a node's clock as it answered against ours at the middle of
     the question; half of its time is what that may be wrong by. A file's clock stays as it is.
  4. Knows the words of the flight recorder (relay/recorder.py), and nothing of the engine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from relay.address import printable
from relay.errors import ConfigError, RelayError
from relay.recorder import KEEP_S, RECORDS_MAX, seconds, sentence, span
from relay.status import ANSWER_BYTES_MAX, ask

NODES_MAX = 256
FETCHES_MAX = 8  # at once
PATH = "/api/v1/recorder"

Row = dict[str, Any]


class Recording(NamedTuple):
    """What one node recorded, or why that is not known."""

    name: str
    node_id: str = ""
    backbone: str = ""
    records: tuple[Row, ...] = ()
    ahead_us: int = 0  # its clock less ours
    unsure_us: int | None = None  # of that; None: not compared
    left_off: int = 0
    washed_total: int = 0
    problem: str = ""


class Entry(NamedTuple):
    """One decision, by our clock."""

    at_us: int
    node: str
    told: Row


def postmortem(
    places: Sequence[str],
    *,
    since: str = "10m",
    stream: str | None = None,
    admin_password: str | None = None,
) -> list[Recording]:
    """Ask nodes for their flight recorders, or read saved ones; blocks for a few seconds.

    Args:
        places: `http://HOST:PORT` of each node, or files that `--json` wrote.
        since: how far back, such as `90s` or `5m`; a node keeps ten minutes.
        stream: this mount alone, and what is the nodes' own.
        admin_password: of the nodes; one in a URL wins.

    Returns:
        one recording a node, in the order of `places`; `problem` where there is none.

    Raises:
        ConfigError: too many places, or `since` is no time.
    """
    since_s = seconds(since)
    if since_s is None:
        raise ConfigError(f'--since "{printable(since)}": write a time, such as 90s or 5m')
    if len(places) > NODES_MAX:
        raise ConfigError(f"{len(places)} nodes; the bound is {NODES_MAX}")

    def one(place: str) -> list[Recording]:
        try:
            if "://" not in place and Path(place).is_file():
                return _from_file(place)
            return [_from_node(place, min(since_s, KEEP_S), stream, admin_password)]
        except RelayError as wrong:
            return [Recording(printable(place), problem=str(wrong))]

    with ThreadPoolExecutor(FETCHES_MAX) as pool:
        found = [recording for told in pool.map(one, places) for recording in told]
    newest = max((entry.at_us for entry in timeline(found)), default=0)
    return [_narrowed(recording, newest - int(since_s * 1e6), stream) for recording in found]


def print_postmortem(places: Sequence[str], *, as_json: bool, **how: Any) -> int:
    """Print the timeline of several nodes; arguments and errors as for `postmortem`.

    Returns:
        the exit status: 1 where no node could be read.
    """
    found = postmortem(places, **how)
    print(json.dumps(saved(found), indent=1) if as_json else "\n".join(lines(found)))
    return int(all(recording.problem for recording in found))


# --- reading --------------------------------------------------------------------------------------


def _from_node(
    url: str, since_s: float, stream: str | None, admin_password: str | None
) -> Recording:
    query = f"?since={since_s:g}&limit={RECORDS_MAX}"
    before_us = time.time_ns() // 1000
    answer = ask(url, PATH + query, admin_password=admin_password)
    after_us = time.time_ns() // 1000
    found = read(answer, printable(url))
    there_us = _whole(answer.get("wall_us"))
    return found._replace(
        ahead_us=there_us - (before_us + after_us) // 2, unsure_us=(after_us - before_us + 1) // 2
    )


def _from_file(path: str) -> list[Recording]:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(NODES_MAX * ANSWER_BYTES_MAX + 1)
        return read_saved(raw, printable(path))
    except OSError as wrong:
        raise RelayError(f"{printable(path)}: {wrong.strerror}") from None


def read_saved(raw: bytes, name: str) -> list[Recording]:
    """The recordings of a file: what `--json` wrote, or a node's own answer.

    Raises:
        RelayError: it is neither.
    """
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        raise RelayError(f"{name}: is no JSON") from None
    rows = told.get("recordings") if isinstance(told, dict) else None
    if not isinstance(rows, list):
        return [read(told, name)]
    found = []
    for row in rows[:NODES_MAX]:
        recording = read(row, name)
        unsure = row.get("unsure_us")
        found.append(
            recording._replace(
                ahead_us=_whole(row.get("ahead_us"), signed=True),
                unsure_us=None if unsure is None else _whole(unsure),
                problem=printable(_text(row.get("problem"))),
            )
        )
    return found


def read(told: Any, name: str) -> Recording:
    """One node's answer.

    Raises:
        RelayError: it is none of a flight recorder.
    """
    if not isinstance(told, dict) or not isinstance(told.get("records"), list):
        raise RelayError(f"{name}: is no recording of a Relay node")
    node = told.get("node")
    node = node if isinstance(node, dict) else {}
    records = [row for row in told["records"][:RECORDS_MAX] if _is_record(row)]
    return Recording(
        name=printable(_text(node.get("name"))) or name,
        node_id=printable(_text(node.get("id"))),
        backbone=printable(_text(node.get("backbone"))),
        records=tuple(records),
        left_off=_whole(told.get("left_off")),
        washed_total=_whole(told.get("washed_total")),
    )


def _is_record(row: Any) -> bool:
    return isinstance(row, dict) and _whole(row.get("wall_us")) > 0 and bool(_text(row.get("kind")))


def _whole(value: object, *, signed: bool = False) -> int:
    """The integer, in the range of a time; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return value if (-(1 << 62) if signed else 0) <= value < 1 << 62 else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _narrowed(recording: Recording, since_us: int, stream: str | None) -> Recording:
    kept = [
        row
        for row in recording.records
        if row["wall_us"] - recording.ahead_us >= since_us
        and (stream is None or row.get("stream") in (None, stream))
    ]
    return recording._replace(records=tuple(kept))


# --- telling --------------------------------------------------------------------------------------


def names(found: Iterable[Recording]) -> list[str]:
    """One name a recording: two nodes of the same name are told apart by their ids."""
    told = [recording.name for recording in found]
    ids = [recording.node_id for recording in found]
    return [
        f"{name}({node_id[-4:]})" if told.count(name) > 1 and node_id else name
        for name, node_id in zip(told, ids, strict=True)
    ]


def timeline(found: Sequence[Recording]) -> list[Entry]:
    """All records of all nodes in the order in which they happened, by our clock."""
    entries = [
        Entry(row["wall_us"] - recording.ahead_us, name, row)
        for name, recording in zip(names(found), found, strict=True)
        for row in reversed(recording.records)  # newest first; of one moment in their order
    ]
    return sorted(entries, key=lambda entry: entry.at_us)


def saved(found: Sequence[Recording]) -> Row:
    """Everything as a JSON document, which `relay postmortem` reads again."""
    rows = []
    for recording in found:
        row: Row = recording._asdict()
        row["node"] = {
            "name": row.pop("name"), "id": row.pop("node_id"), "backbone": row.pop("backbone"),
        }  # fmt: skip
        rows.append(row)
    return {"recordings": rows}


def lines(found: Sequence[Recording]) -> list[str]:
    """The nodes, then the timeline, as lines for people."""
    told = [_head(name, one) for name, one in zip(names(found), found, strict=True)]
    name_of = _namer(found)
    entries = timeline(found)
    told.append("")
    told += [_line(entry, name_of) for entry in entries]
    return told if entries else [*told, "nothing was recorded"]


def _head(name: str, one: Recording) -> str:
    if one.problem:
        return f"node  {name}: {one.problem}"
    clock = "its clock was not compared"
    if one.unsure_us is not None:
        way = "ahead of" if one.ahead_us >= 0 else "behind"
        clock = f"its clock is {span(abs(one.ahead_us))} {way} ours, give or take "
        clock += span(one.unsure_us)
    parts = [f"{len(one.records)} records", clock]
    if one.left_off:
        parts.append(f"{one.left_off} older ones left off")
    if one.washed_total:
        parts.append(f"{one.washed_total} overwritten before their time")
    return f"node  {name}{f' {one.node_id}' if one.node_id else ''}: {', '.join(parts)}"


def _namer(found: Sequence[Recording]) -> Callable[[str], str]:
    """Another name for the address of an upstream that is among the nodes."""
    known = {
        one.backbone: name for name, one in zip(names(found), found, strict=True) if one.backbone
    }
    return lambda address: f"{known[address]} {address}" if address in known else address


def _line(entry: Entry, name_of: Callable[[str], str]) -> str:
    at_s, us = divmod(entry.at_us, 1_000_000)
    try:
        clock = time.strftime("%H:%M:%S", time.localtime(at_s))
    except (OverflowError, ValueError, OSError):
        clock = str(at_s)
    stream = printable(_text(entry.told.get("stream")))
    where = f"{entry.node} {stream}" if stream else entry.node
    return f"{clock}.{us // 1000:03d} {where}: {sentence(entry.told, name_of)}"
