"""What crowds do: come, stay, storm the door, stop reading, find the house full.

Rules of this room
  1. A plan is a function of a crowd; it decides when windows open, and judges nothing.
  2. Names of windows: `quiet` before the event, `window` or the event's own name after it.
"""

from __future__ import annotations

from .bench import Plan
from .crowd import Crowd
from .forms import Form
from .measure import pss_bytes


def gather(crowd: Crowd, form: Form, listeners: int, *, icy_share: float = 0.0) -> None:
    """Let the incumbents come in no hurry, and a pace pass after the last."""
    over_s = max(0.2, listeners / min(form.joins_per_s, crowd.server.joins_per_s_max))
    crowd.join(listeners, over_s, group="incumbents", icy_share=icy_share)
    crowd.run(over_s + crowd.server.pace_ms / 1000)


def hold(
    form: Form,
    listeners: int,
    window_s: float,
    *,
    icy_share: float = 0.0,
    title_every_s: float = 0.0,
    mounts: int = 1,
    settle_s: float | None = None,
) -> Plan:
    """A house of so many that just listens; CPU and all else are those of the window."""

    def play(crowd: Crowd) -> None:
        crowd.open(mounts, title_every_s)
        gather(crowd, form, listeners, icy_share=icy_share)
        crowd.run(form.settle_s if settle_s is None else settle_s)
        crowd.window("window", window_s)

    return play


def storm(form: Form, over_s: float) -> Plan:
    """Joins within `over_s` onto incumbents."""

    def play(crowd: Crowd) -> None:
        crowd.open()
        gather(crowd, form, form.storm_incumbents)
        crowd.run(form.incumbent_s)
        crowd.join(form.storm_joins, over_s, group="storm")
        crowd.window("storm", over_s + form.after_s)

    return play


def stall(form: Form) -> Plan:
    """Some of a full house stop reading; the memory of the server's sockets is looked at."""

    def play(crowd: Crowd) -> None:
        crowd.open()
        others = form.house_listeners - form.stalled
        crowd.join(form.stalled, form.stalled / form.joins_per_s, group="stalled")
        gather(crowd, form, others)
        crowd.run(max(form.settle_s, form.stalled / form.joins_per_s))
        crowd.window("quiet", form.window_s)
        crowd.stall(form.stalled, group="stalled")
        with crowd.watching_sockets(form.stalled_s, form.stalled):
            crowd.window("stalled", form.stalled_s)

    return play


def lag(form: Form) -> Plan:
    """Some of a full house with ICY stop reading until they are skipped, then read on."""

    def play(crowd: Crowd) -> None:
        crowd.open(title_every_s=form.title_every_s)
        crowd.join(form.lagging, form.lagging / form.joins_per_s, group="laggards", icy_share=1.0)
        gather(crowd, form, form.house_listeners - form.lagging, icy_share=1.0)
        crowd.run(form.settle_s)
        crowd.lag(form.lagging, group="laggards")
        crowd.window("lag", form.lag_s)
        crowd.read_on("laggards")
        crowd.window("after", max(form.after_s, form.title_every_s) + form.after_s)

    return play


def flood(form: Form) -> Plan:
    """A house that is full, and many more at its door."""

    def play(crowd: Crowd) -> None:
        crowd.open()
        gather(crowd, form, form.storm_incumbents)
        crowd.run(form.incumbent_s)
        crowd.window("quiet", form.window_s)
        crowd.flood(form.refused, 0.9 * form.refuse_s)  # a little faster than the goal
        crowd.window("flood", form.refuse_s + form.after_s)

    return play


def fill(form: Form) -> Plan:
    """User-space memory of a server with nobody, then with a full house."""

    def play(crowd: Crowd) -> None:
        crowd.open()
        crowd.run(form.settle_s)
        empty = pss_bytes(crowd.server.pid)
        gather(crowd, form, form.house_listeners)
        crowd.run(form.settle_s)
        full = pss_bytes(crowd.server.pid)
        crowd.numbers["bytes_per_listener"] = (full - empty) / form.house_listeners
        crowd.numbers["empty_bytes"], crowd.numbers["full_bytes"] = empty, full

    return play
