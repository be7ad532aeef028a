"""The words of the flight recorder: what its numbers mean, and how a decision is told.

Rules of this room
  1. Tables and functions of them: no I/O, no clock, and nothing of the engine, so that a recording
     can be read where no node runs. The numbers are those of `relay/_core/recorder.pxd` and of
     the rooms that record; a test holds them together.
  2. A recording comes from outside: any field may be missing or odd, and none may steer a terminal.
  3. What a kind does not say is left out, never told as 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from relay.address import printable

KEEP_S = 600
RECORDS_DEFAULT = 5000
RECORDS_MAX = 20000
NOBODY = 255

STARTED, SOURCE_OUT, GAP, SOURCE_REFUSED = 1, 11, 17, 42
LOST, EPOCH_BEGUN, EPOCH_ENDED, SWITCH, SKIP, PAUSED = 6, 7, 8, 5, 39, 16


class Kind(NamedTuple):
    """One kind of record: its name, its reasons by number, what a, b and c are ("": nothing)."""

    name: str
    reasons: tuple[str, ...] = ()
    fields: tuple[str, str, str] = ("", "", "")


GONE = ("silent", "goodbye", "loop", "version")
SWITCHES = ("first", "lost", "silent", "better", "unfit", "answered", "leaving")
LOSSES = ("gone", "wait", "outage")
ENDS = (
    *("none", "closed", "reset", "stalled", "torn", "stream", "garbage", "shutdown", "memory"),
    "killed",
)
REFUSALS = (
    "not_found", "full", "upstream", "malformed", "too_large", "method", "busy", "descriptors",
)  # fmt: skip
ASKED = ("repair", "backfill", "join")
SOURCE_ENDS = (
    *("ended", "closed", "lost", "whole", "broken", "silent", "shutdown", "killed"),
    "taken",
)
CAUSES = ("source", "hop", "own overload", "listener")
SPAN = ("from_sequence", "to_sequence", "waited_us")

KINDS: dict[int, Kind] = {
    STARTED: Kind("started", ("standby", "merge"), ("silence_ms", "repair_wait_ms", "upstreams")),
    2: Kind("upstream_up", (), ("node_low", "away_us", "hops")),
    3: Kind("upstream_lost", GONE, ("silence_us", "load", "feeds")),
    4: Kind("upstream_other", (), ("node_low", "", "hops")),
    SWITCH: Kind("switch", SWITCHES, ("hops", "load", "silence_us")),
    LOST: Kind("lost", LOSSES, ("from_sequence", "frames", "media_us")),
    EPOCH_BEGUN: Kind(
        "epoch_begun",
        ("here", "above", "newer", "anew"),
        ("epoch", "first_sequence", "head_sequence"),
    ),
    EPOCH_ENDED: Kind("epoch_ended", ("here", "above", "newer"), ("epoch", "head_sequence", "")),
    9: Kind("shadowed", (), ("epoch", "winner_epoch", "")),
    SOURCE_OUT: Kind("source_out", SOURCE_ENDS, ("", "media_us", "")),
    12: Kind("source_read", SOURCE_ENDS, ("errno", "media_us", "")),
    13: Kind("pace", (), ("from_us", "to_us", "busy_permille")),
    14: Kind("child_expelled", (), ("total", "", "")),
    15: Kind("goodbye"),
    PAUSED: Kind("paused", (), ("paused_us", "", "")),
    GAP: Kind("gap", CAUSES, ("duration_us", "frames", "listeners")),
    18: Kind("fallback", ("away", "back"), ("from_member", "to_member", "silence_us")),
    32: Kind("join_asked", ("repair", "backfill", "join", "above"), ("above_epoch", "", "")),
    33: Kind("hole", (), ("from_sequence", "to_sequence", "")),
    34: Kind("repair_asked", ASKED, ("from_sequence", "to_sequence", "")),
    35: Kind("repair_done", ASKED, SPAN),
    36: Kind("repair_gone", ASKED, SPAN),
    37: Kind("repair_later", ASKED, ("", "", "waited_us")),
    38: Kind("repair_timeout", ASKED, ("from_sequence", "answer_us", "")),
    SKIP: Kind("skip", ("lag", "hole"), ("busy_permille", "skipped_us", "put_off")),
    40: Kind("drop", ENDS, ("busy_permille", "lag_us", "sent_bytes")),
    41: Kind("refuse", REFUSALS, ("status", "", "")),
    SOURCE_REFUSED: Kind("source_refused", (), ("status", "", "")),
    43: Kind("move", ("away", "back"), ("silence_us", "", "")),
}
"""By number. From 32 on all of one stream, reason and upstream within 100 ms are one record."""


class Record(NamedTuple):
    """One record as the core hands it out."""

    at_us: int
    wall_us: int
    kind: int
    reason: int
    parent: int
    left: int
    times: int
    stream: int
    a: int
    b: int
    c: int

    @property
    def reason_name(self) -> str | None:
        """The reason in words; None where the kind has none."""
        reasons = KINDS[self.kind].reasons if self.kind in KINDS else ()
        return reasons[self.reason] if self.reason < len(reasons) else None


def document(
    one: Record, mount_of: Callable[[int], str | None], upstreams: Sequence[str]
) -> dict[str, Any]:
    """One record in words, for JSON.

    Args:
        one: as the core has it.
        mount_of: the mount of a stream's key, where it is known.
        upstreams: their addresses, in the order of the settings.
    """
    kind = KINDS.get(one.kind, Kind(f"kind_{one.kind}"))
    told: dict[str, Any] = {"wall_us": one.wall_us, "kind": kind.name}
    if one.stream:
        told["stream"] = mount_of(one.stream) or f"key {one.stream:016x}"
    if one.reason_name is not None:
        told["reason"] = one.reason_name
    for name, place in (("upstream", one.parent), ("left", one.left)):
        if place < len(upstreams):
            told[name] = upstreams[place]
    if one.times != 1:
        told["count"] = one.times
    told |= {name: value for name, value in zip(kind.fields, one[8:], strict=True) if name}
    return told


# --- for people -----------------------------------------------------------------------------------

_SENTENCES: dict[str, str] = {
    "started": "started: {reason}, silence_ms {silence_ms}, repair_wait_ms {repair_wait_ms}, "
    "{upstreams} upstreams",
    "upstream_up": "upstream {upstream} is up ({hops} hops from the top), after {away_us}",
    "upstream_lost silent": "upstream {upstream} silent for {silence_us}: lost, with {feeds} "
    "streams that it fed",
    "upstream_lost goodbye": "upstream {upstream} said goodbye, with {feeds} streams that it fed",
    "upstream_lost loop": "upstream {upstream} leads back to this node: refused",
    "upstream_lost version": "upstream {upstream} speaks another protocol version: refused",
    "upstream_other": "upstream {upstream} is another process than before",
    "switch first": "fed by {upstream} ({hops} hops, load {load} ‰)",
    "switch lost": "{left} is lost: switched to {upstream} ({hops} hops, load {load} ‰), nothing "
    "new for {silence_us}",
    "switch silent": "{left} brought nothing for {silence_us}: switched to {upstream} ({hops} "
    "hops, load {load} ‰)",
    "switch better": "{upstream} is better than {left} ({hops} hops, load {load} ‰): taken",
    "switch unfit": "{left} no longer fits: switched to {upstream} ({hops} hops, load {load} ‰)",
    "switch answered": "{upstream} answered in the place of {left}: switched to it",
    "switch leaving": "{left} is about to stop: switched to {upstream} ({hops} hops, load {load} "
    "‰), nothing new for {silence_us}",
    "lost gone": "lost {frames} frames ({media_us}) from sequence {from_sequence}: no upstream "
    "has them, last asked {upstream}",
    "lost wait": "lost {frames} frames ({media_us}) from sequence {from_sequence}: {upstream} did "
    "not bring them in time",
    "lost outage": "lost {frames} frames ({media_us}) from sequence {from_sequence}: an outage "
    "longer than the ring, begun anew from {upstream}",
    "epoch_begun here": "epoch {epoch} begun by a source here",
    "epoch_begun anew": "epoch {epoch} begun by the source here, above one of another origin that "
    "is silent",
    "epoch_begun above": "epoch {epoch} begun from {upstream}, at sequence {first_sequence}",
    "epoch_ended here": "epoch {epoch} ended here, at sequence {head_sequence}",
    "epoch_ended above": "epoch {epoch} ended, at sequence {head_sequence}",
    "epoch_ended newer": "epoch {epoch} ended at sequence {head_sequence}: a newer one goes on",
    "shadowed": "epoch {epoch} of {upstream} has lost against {winner_epoch}",
    "source_out": "source gone ({reason}) after {media_us} of audio",
    "source_read": "source's connection ended ({reason}) after {media_us} of audio",
    "pace": "pace from {from_us} to {to_us}, shard {busy_permille} ‰ busy",
    "child_expelled": "a child was cut for its subscriptions",
    "goodbye": "goodbye said to the children",
    "paused": "this node stood still for {paused_us}: it waits anew before it judges",
    "gap source": "GAP of {duration_us}, {frames} frames: the source",
    "gap hop": "GAP of {duration_us}, {frames} frames: the hop from {upstream}",
    "gap own overload": "GAP of {duration_us}, {frames} frames: this node's overload, at "
    "{listeners} listeners",
    "gap listener": "GAP of {duration_us}: {listeners} listeners too slow",
    "join_asked": "asked {upstream} for its ring",
    "join_asked above": "wished {upstream} to go on as epoch {above_epoch} or above: nothing new "
    "comes of the one before",
    "hole": "hole from {from_sequence} to {to_sequence}",
    "repair_asked": "asked {upstream} for [{from_sequence}, {to_sequence}) ({reason})",
    "repair_done": "{upstream} gave [{from_sequence}, {to_sequence}) ({reason}), "
    "waited {waited_us}",
    "repair_gone": "{upstream} says gone: [{from_sequence}, {to_sequence}) ({reason})",
    "repair_later": "{upstream} says later ({reason})",
    "repair_timeout": "{upstream} did not answer within {answer_us} ({reason})",
    "skip lag": "listener skipped {skipped_us}: it lagged (shard {busy_permille} ‰ busy)",
    "skip hole": "listener skipped {skipped_us}: over lost frames",
    "drop": "listener dropped: {reason}, {lag_us} behind (shard {busy_permille} ‰ busy)",
    "refuse": "refused at the door: {reason} ({status})",
    "fallback away": "silent for {silence_us}: its listeners hear member {to_member} of its chain",
    "fallback back": "its listeners hear their own stream again, after member {from_member}",
    "move away": "a listener moved on along the chain, after {silence_us} without audio",
    "move back": "a listener moved back to its own stream, after {silence_us} without audio",
    "source_refused": "source refused ({status})",
}


class _Told(dict[str, str]):
    """What a sentence may name; what is not known is a question mark."""

    def __missing__(self, name: str) -> str:
        return "?"


def seconds(text: str) -> float | None:
    """A time as people write it: `90`, `90s`, `5m`, `1h`; None for anything else."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(s|m|h|)", text.strip(), re.ASCII)
    return None if found is None else float(found[1]) * {"m": 60, "h": 3600}.get(found[2], 1)


def span(us: float) -> str:
    """A time for people: `0.4 ms`, `412 ms`, `2.14 s`."""
    if us < 999_500:
        return f"{us / 1000:.3g} ms"
    return f"{us / 1e6:.3g} s" if us < 600e6 else f"{us / 60e6:.0f} min"


def sentence(told: Mapping[str, Any], name_of: Callable[[str], str] = str) -> str:
    """One record of a recording as a sentence, safe for a terminal.

    Args:
        told: as `document` made it, or whatever else came.
        name_of: another name for an upstream's address, where one is known.
    """
    kind, reason = told.get("kind"), told.get("reason")
    form = _SENTENCES.get(f"{kind} {reason}", _SENTENCES.get(str(kind), "{kind} {reason}"))
    values = _Told()
    for field, value in told.items():
        if isinstance(value, str):
            values[field] = printable(name_of(value) if field in {"upstream", "left"} else value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            is_span = field.endswith("_us") and field != "wall_us" and 0 <= value < 1e15
            values[field] = span(value) if is_span else f"{value:g}" if value > 1e15 else str(value)
    count = told.get("count")
    times = f", {count} times in 100 ms" if isinstance(count, int) and count > 1 else ""
    return form.format_map(values) + times
