"""Which sources have lost against a higher epoch: each is told once."""

from __future__ import annotations

from typing import Any

from relay.shadows import Shadows
from relay.web.facts import shadowed_addresses, source_state

ABOVE = ["tcp://a:1", "tcp://b:1"]


def link(**more: Any) -> dict[str, dict[str, Any]]:
    """What the backbone knows of /live."""
    return {"/live": {"rival_epoch": None, "told_epoch": None, "shadowed": 0} | more}


def test_local_source_with_the_lower_epoch_is_told_once() -> None:
    """And again when it has ended and another one loses."""
    shadows = Shadows()
    assert shadows.look(link(rival_epoch=5), ABOVE, {"/live": 7}) == []
    assert shadows.look(link(rival_epoch=5), ABOVE, {"/live": None}) == []
    lost = shadows.look(link(rival_epoch=9), ABOVE, {"/live": 7})
    assert [news.mount for news in lost] == ["/live"]
    assert "epoch 7 has lost against 9" in lost[0].text
    assert shadows.look(link(rival_epoch=9), ABOVE, {"/live": 7}) == []
    assert shadows.look(link(), ABOVE, {}) == []
    assert shadows.look(link(rival_epoch=9), ABOVE, {"/live": 7})


def test_upstream_with_the_lower_epoch_is_told_once_with_its_address() -> None:
    """An edge sees both; the bits are those of its upstreams."""
    shadows = Shadows()
    seen = link(rival_epoch=4, told_epoch=9, shadowed=0b10)
    told = shadows.look(seen, ABOVE, {})
    assert len(told) == 1
    assert "tcp://b:1 is shadowed" in told[0].text
    assert shadows.look(seen, ABOVE, {}) == []
    assert shadowed_addresses(seen["/live"], [{"address": one} for one in ABOVE]) == [ABOVE[1]]


def test_state_of_a_source_on_this_node() -> None:
    """Shadowed comes before away: it has lost, whether it is there or not."""
    assert source_state(7, None, is_away=False) == "live"
    assert source_state(7, link()["/live"], is_away=True) == "away"
    assert source_state(7, link(rival_epoch=8)["/live"], is_away=True) == "shadowed"
    assert source_state(8, link(rival_epoch=8)["/live"], is_away=False) == "live"
