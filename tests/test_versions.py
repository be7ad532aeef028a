"""Which versions two nodes speak with each other: as docs/wire.md says, for any two."""

from __future__ import annotations

import pytest
from relay._probe_backbone import versions_meet

SPEAKS = {1: (1, 1), 2: (1, 2), 3: (2, 3), 4: (3, 4)}


@pytest.mark.parametrize("ours", SPEAKS)
@pytest.mark.parametrize("theirs", SPEAKS)
def test_neighbours_speak_the_newest_that_both_know(ours: int, theirs: int) -> None:
    """Either way round; a beacon tells both numbers; who is two versions away is none."""
    least, own = SPEAKS[theirs]
    flags = versions_meet(least, own, 1, 0)[3]
    told, near, between, _ = versions_meet(*SPEAKS[ours], least, flags | 3)
    assert told == [least, own]
    assert near == (abs(ours - theirs) <= 1)
    assert between == min(ours, theirs)


def test_version_1_said_nothing_in_the_upper_flags() -> None:
    """So its beacon tells one version, and ours of draining and goodbye mean the same to it."""
    assert versions_meet(1, 2, 1, 3)[:3] == ([1, 1], True, 1)
    assert versions_meet(1, 1, 1, 0)[3] == 0
    assert versions_meet(1, 2, 255, 255)[0] == [255, 255]
