"""The messages between nodes: what is encoded decodes to the same, anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay._probe_backbone import wire_decode, wire_encode

U62 = st.integers(0, 2**62 - 1)
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
U16 = st.integers(0, 2**16 - 1)
NODE = st.lists(U64, min_size=2, max_size=2)
TITLE = 8
PUBLISHED = "BS"


def text(least: int, most: int, letters: str = "abcXYZ019/-_.~%äß") -> st.SearchStrategy[bytes]:
    """Mounts, names, addresses: letters that may stand there."""
    return st.text(letters, min_size=least, max_size=most).map(lambda word: word.encode()[:255])


def message(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A message of this kind."""
    request = st.just(0) if kind in PUBLISHED else U32
    return st.fixed_dictionaries({"kind": st.just(kind), "key": U64, "request": request, **fields})


FRAMES = st.lists(
    st.tuples(st.binary(min_size=1, max_size=400), st.integers(0, 15), st.integers(0, 60_000_000)),
    max_size=20,
)
RUN = {
    "flags": st.integers(0, 1),
    "origin": U64,
    "epoch": U62,
    "first_sequence": U62,
    "first_position": U62,
    "first_media_us": U62,
    "frames": FRAMES,
}
SPAN = {"flags": st.integers(0, 1), "epoch": U64}
INFO = st.lists(st.tuples(text(1, 10, "abc-"), text(0, 20, "abc: äß")), max_size=4).map(
    lambda lines: b"".join(name + b":" + value + b"\r\n" for name, value in lines)
)
ENTRY = st.fixed_dictionaries(
    {
        "version": U64,
        "flags": st.integers(0, 3),
        "hops": st.integers(0, 16),
        "epoch": U62,
        "origin": U64,
        "mount": text(0, 40).map(lambda rest: b"/" + rest),
        "info": INFO,
    }
)


def pair(low: str, high: str) -> Any:
    """Two numbers in order, under these names."""
    return lambda fields: {
        **fields,
        **dict(zip((low, high), sorted((fields[low], fields[high])), strict=True)),
    }


def header_of(fields: dict[str, Any]) -> dict[str, Any]:
    """A piece that lies within its blob."""
    offset = fields["offset"] % (2**20 - len(fields["bytes"]))
    return {**fields, "offset": offset, "total_bytes": max(1, offset + len(fields["bytes"]))}


MESSAGES = st.one_of(
    message("S", **RUN),
    message("s", **RUN),
    message(
        "B",
        flags=st.integers(0, 3),
        node_id=NODE,
        directory_version=U64,
        turn=U64,
        load=U16,
        router_port=U16,
        path=st.lists(U64, max_size=16),
        address=text(0, 60, "abc.:[]019%-"),
        entries=st.lists(st.tuples(U64, U64, U62, st.integers(0, 1)), max_size=30),
    ),
    message(
        "h",
        flags=st.integers(0, 1),
        epoch=U62.filter(bool),
        origin=U64,
        first_sequence=U62,
        first_position=U62,
        first_media_us=U62,
        head_sequence=U62,
        title_sequence=st.just(0),
        title_position=U62,
        title=st.binary(max_size=4080),
    ).map(pair("first_sequence", "head_sequence")),
    message("R", **SPAN, **{"from": U62, "to": U62}).map(pair("from", "to")),
    message("d", **SPAN, **{"from": U62, "to": U62}).map(pair("from", "to")),
    message("g", **SPAN, **{"from": U62, "to": U62}).map(pair("from", "to")),
    message(
        "e",
        epoch=U64,
        end_sequence=U62,
        total_bytes=st.just(1),
        offset=st.integers(0, 2**20),
        bytes=st.binary(max_size=2000),
    ).map(header_of),
    message("J", epoch=U64, burst_us=U62),
    message("D", node_id=NODE, since=U64),
    message("l"),
    message("u"),
    message(
        "p", node_id=NODE, version=U64, flags=st.integers(0, 3), entries=st.lists(ENTRY, max_size=8)
    ),
)


@settings(deadline=None)
@given(MESSAGES)
def test_what_is_encoded_decodes_to_the_same(fields: dict[str, Any]) -> None:
    """Every kind, every field."""
    assert wire_decode(wire_encode(fields)) == ("", fields)


@settings(deadline=None)
@given(MESSAGES, st.data())
def test_a_message_cut_or_lengthened_anywhere_is_refused(
    fields: dict[str, Any], data: st.DataObject
) -> None:
    """One byte less, or one more, is another message or none."""
    whole = wire_encode(fields)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert wire_decode(whole[:cut])[0] != ""
    assert wire_decode(whole + b"\0")[0] != ""


@settings(max_examples=500)
@given(st.sampled_from("BSJRDhedlgups"), st.binary(max_size=600), st.booleans())
def test_random_bytes_never_crash(kind: str, tail: bytes, framed: bool) -> None:
    """Behind a valid head or not: a reason, or fields within their bounds."""
    data = kind.encode()[:1] + bytes(8) + b"\x01" + tail if framed else tail
    reason, fields = wire_decode(data)
    if not reason and "frames" in fields:
        assert all(1 <= len(frame) <= 65536 for frame, _, _ in fields["frames"])


@settings(deadline=None)
@given(MESSAGES, st.data())
def test_one_flipped_byte_never_crashes(fields: dict[str, Any], data: st.DataObject) -> None:
    """Damage in any place."""
    damaged = bytearray(wire_encode(fields))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    wire_decode(bytes(damaged))


def run(**changes: Any) -> dict[str, Any]:
    """A run of one frame, with changes."""
    fields: dict[str, Any] = {
        "kind": "S",
        "key": 7,
        "request": 0,
        "flags": 0,
        "origin": 1,
        "epoch": 2,
        "first_sequence": 3,
        "first_position": 4,
        "first_media_us": 5,
        "frames": [(b"frame", 1, 26_000)],
    }
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (run(first_sequence=2**62), "field"),
        (run(first_position=2**62), "field"),
        (run(first_media_us=2**63), "field"),
        (run(epoch=2**62), "field"),
        (run(frames=[(b"", 1, 0)]), "field"),
        (run(frames=[(bytes(65537), 1, 0)]), "field"),
        (run(frames=[(b"x", 16, 0)]), "field"),
        (run(frames=[(b"x", 1, 60_000_001)]), "field"),
        (run(frames=[(bytes(4081), TITLE, 0)]), "field"),
        (run(frames=[(b"x", 1, 0)] * 4097), "field"),
        (run(frames=[(bytes(65536), 1, 0)] * 2), "size"),
        (run(kind="x"), "kind"),
        ({"kind": "R", "key": 1, "flags": 0, "epoch": 1, "from": 5, "to": 4}, "field"),
        ({"kind": "R", "key": 1, "flags": 0, "epoch": 1, "from": 5, "to": 2**62}, "field"),
    ],
)
def test_what_is_out_of_bounds_is_refused(fields: dict[str, Any], reason: str) -> None:
    """Each bound by its name."""
    assert wire_decode(wire_encode(fields)) == (reason, {})


@pytest.mark.parametrize(
    ("mount", "info"),
    [
        (b"live", b""),
        (b"", b""),
        (b"/a b", b""),
        (b"/a\r\nX: y", b""),
        (b"/\x7f", b""),
        (b"/live", b"\r\n"),
        (b"/live", b"Name: value"),
        (b"/live", b"Name value\r\n"),
        (b"/live", b"A: b\r\n\r\nbody"),
        (b"/live", b"A: b\nC: d\r\n"),
        (b"/live", b": x\r\n"),
        (b"/live", b"A: b\0\r\n"),
    ],
)
def test_text_that_could_reach_a_listener_is_checked(mount: bytes, info: bytes) -> None:
    """No space, no control byte, no empty header line: nothing can be smuggled into a reply."""
    entry = {
        "version": 1,
        "flags": 1,
        "hops": 0,
        "epoch": 1,
        "origin": 1,
        "mount": mount,
        "info": info,
    }
    page = {
        "kind": "p",
        "key": 0,
        "request": 1,
        "node_id": [1, 2],
        "version": 1,
        "flags": 1,
        "entries": [entry],
    }
    assert wire_decode(wire_encode(page)) == ("text", {})


# --- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 3, 4, 255])
def test_a_version_that_is_no_neighbour_is_told_apart(version: int) -> None:
    """The version stands at the same place in every message, for all versions to come."""
    assert wire_decode(wire_encode(run(), version)) == ("version", {})
    assert wire_decode(wire_encode(run(), 1), 3, 4) == ("version", {})
    assert wire_decode(wire_encode(run(), 1), 2, 3) == ("", run())  # what version 2 publishes


def plain(value: Any) -> Any:
    """Fields as they stand in the recording: bytes as Latin-1 text, tuples as lists."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def recorded() -> dict[str, tuple[bytes, dict[str, Any]]]:
    """(message, fields) by name, of the file of recorded messages."""
    path = Path(__file__).parent / "data" / "wire_version_1.txt"
    found = {}
    for part in path.read_text(encoding="utf-8").split("\n\n")[1:]:
        name, digits, fields = part.strip().split("\n")
        found[name] = bytes.fromhex(digits), json.loads(fields)
    return found


RECORDED = recorded()


def test_every_kind_is_recorded() -> None:
    """Each one that a node of version 1 sends."""
    assert {message[:1] for message, _ in RECORDED.values()} == {
        kind.encode() for kind in "BSJRDhesdglup"
    }


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_message_of_version_1_still_means_the_same(name: str) -> None:
    """What nodes of version 1 send; and what is sent to them is written as they wrote it."""
    message, fields = RECORDED[name]
    reason, decoded = wire_decode(message)
    assert (reason, plain(decoded)) == ("", fields)
    assert wire_encode(decoded, 1) == message


@settings(deadline=None)
@given(MESSAGES, st.binary(min_size=1, max_size=50))
def test_what_a_later_version_has_appended_is_not_looked_at(
    fields: dict[str, Any], tail: bytes
) -> None:
    """From version 2 on; in a message of version 1 it is damage."""
    whole = wire_encode(fields, 2)
    assert wire_decode(whole + tail) == ("", fields)
    assert wire_decode(whole + tail, 2, 3) == ("", fields)
    assert wire_decode(wire_encode(fields, 1) + tail)[0] != ""


@settings(deadline=None)
@given(MESSAGES, st.data())
def test_a_message_of_version_2_that_is_cut_is_refused(
    fields: dict[str, Any], data: st.DataObject
) -> None:
    """More may come, less may not."""
    whole = wire_encode(fields, 2)
    assert wire_decode(whole[: data.draw(st.integers(0, len(whole) - 1))])[0] != ""
