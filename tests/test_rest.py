"""The rest of the intake: one source is read at once, many are read together."""

from __future__ import annotations

import heapq

from hypothesis import given
from hypothesis import strategies as st
from relay._probe_door import rest

REST_US = 5000
FRAME_US = 24_000


def turns_of(sources: int, seconds: float = 1.0) -> tuple[int, int]:
    """Turns of an intake whose sources send a frame each 24 ms, spread; and the longest wait."""
    end = int(seconds * 1e6)
    pieces = [(FRAME_US * i // sources, i) for i in range(sources)]
    heapq.heapify(pieces)
    now = began = before = -REST_US
    turns = longest = 0
    while now < end:
        now = max(now, pieces[0][0])
        before, began, turns = began, now, turns + 1
        while pieces[0][0] <= now:
            came, number = heapq.heappop(pieces)
            longest = max(longest, began - came)
            heapq.heappush(pieces, (came + FRAME_US, number))
        now += 5
        now += rest(before + REST_US, began + REST_US, now + REST_US)
    return turns, longest


def test_a_source_alone_is_read_when_its_piece_comes() -> None:
    """No rest between pieces that are 24 ms apart."""
    assert turns_of(1) in ((42, 0), (43, 0))
    assert turns_of(4)[1] == 0


def test_many_sources_are_read_together() -> None:
    """20,800 pieces a second in at most two turns each 5 ms, none later than that."""
    turns, longest = turns_of(500)
    assert turns <= 410
    assert longest <= REST_US


def test_who_has_sent_more_than_a_read_takes_is_read_on_at_once() -> None:
    """A burst is not slowed to one read a rest."""
    assert rest(10_000, 10_100, 10_200) == 4_900
    assert rest(10_000, 10_100, 10_200, more=True) == 0


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_no_rest_is_longer_than_its_bound(before: int, gap: int, work: int) -> None:
    """Counted from the begin of the turn: a long one rests less, or not at all."""
    waits = rest(before, before + gap, before + gap + work)
    assert waits == (0 if gap >= REST_US else max(0, REST_US - work))
