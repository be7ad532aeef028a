"""The swarm's plan and bounds: who joins what, how many fit, and whom it will not attack."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import _swarm
from relay.errors import ConfigError
from relay.swarm import RESERVED, Swarm, plan_joins, raise_limit, resolve

PORT = 9  # nobody is asked here


def planned(count: int, mounts: list[int], **more: float) -> list[tuple[int, int]]:
    """Mount and flags of each join."""
    settings = {"icy_share": 0.0, "sample": 0, "flags": 0} | more
    draw = np.random.default_rng(1)
    plan = plan_joins(count, mounts, draw=draw, **settings)  # type: ignore[arg-type]
    return list(struct.iter_unpack("<HBx", plan))


@given(
    st.integers(1, 400),
    st.lists(st.integers(0, 1023), min_size=1, max_size=30, unique=True),
    st.floats(0, 1),
    st.integers(0, 300),
)
def test_a_plan_spreads_listeners_titles_and_the_sample(
    count: int, mounts: list[int], icy_share: float, sample: int
) -> None:
    """Listener i takes mount i; so many ask for titles; the sample is as even as goes."""
    plan = planned(count, mounts, icy_share=icy_share, sample=sample)
    assert [mount for mount, _ in plan] == [mounts[i % len(mounts)] for i in range(count)]
    assert sum(flags & _swarm.FLAG_ICY != 0 for _, flags in plan) == round(count * icy_share)
    strata = Counter((mount, flags & _swarm.FLAG_ICY) for mount, flags in plan)
    taken = Counter(
        (mount, flags & _swarm.FLAG_ICY) for mount, flags in plan if flags & _swarm.FLAG_SAMPLED
    )
    assert taken.total() == min(count, sample)
    most = max(taken.values(), default=0)
    assert all(taken[key] >= min(strata[key], most - 1) for key in strata)


def test_the_same_seed_plans_the_same_joins() -> None:
    """A run can be repeated."""
    assert planned(500, [0, 1], icy_share=0.3, sample=50) == planned(
        500, [0, 1], icy_share=0.3, sample=50
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0"])
def test_a_server_beyond_loopback_is_refused_unless_that_is_said(host: str) -> None:
    """The message names the way out, for those whose server it is."""
    with pytest.raises(ConfigError, match=r"not on loopback.*--anywhere"):
        Swarm(PORT, host)
    assert resolve(host, anywhere=True) == host
    assert resolve("localhost", anywhere=False) == "127.0.0.1"


def test_a_host_without_an_address_is_named() -> None:
    """And nothing is connected."""
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid"):
        resolve("no-such-host.invalid", anywhere=False)


def test_the_limit_of_open_files_is_raised_and_more_than_fit_are_refused() -> None:
    """The message says how many do."""
    raise_limit()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
    with Swarm(PORT, content="any") as swarm:
        assert 0 < swarm.room <= hard - RESERVED
        with pytest.raises(ConfigError, match=f"{swarm.room} more fit"):
            swarm.join(swarm.room + 1, 1.0)
    with Swarm(PORT, content="any", listeners_max=10) as swarm:
        swarm.join(6, 1.0)
        with pytest.raises(ConfigError, match=r"5 listeners beside 6 .* listeners_max is 10"):
            swarm.join(5, 1.0)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"addresses": 0}, "addresses 0: 1 to 254"),
        ({"addresses": 255}, "addresses 255: 1 to 254"),
        ({"sample": -1}, "sample -1: 0 to 5000"),
        ({"pace_ms": 0, "seed": -1}, "pace_ms 0: 1 to 60000\nseed -1: 0 to 9223372036854775808"),
        ({"tail_bytes": 65537}, "tail_bytes 65537: 0 to 65536"),
    ],
)
def test_each_number_has_bounds_that_the_message_names(settings: dict[str, int], line: str) -> None:
    """All that is wrong at once."""
    with pytest.raises(ConfigError) as wrong:
        Swarm(PORT, **settings)  # type: ignore[arg-type]
    assert str(wrong.value) == line


def test_a_mount_needs_a_source_where_frames_are_checked() -> None:
    """And has none of ours where they are not."""
    with Swarm(PORT) as swarm, pytest.raises(ConfigError, match=r"call source\('/live'\) first"):
        swarm.join(1, 0)
    with Swarm(PORT, content="any") as swarm, pytest.raises(ConfigError, match="somebody else"):
        swarm.source("/live", password="any")


def test_groups_have_a_bound() -> None:
    """Thirty-two, in the compiled part too."""
    with Swarm(PORT, content="any") as swarm:
        for number in range(_swarm.GROUPS_MAX):
            swarm.join(1, 0, group=f"group {number}")
        with pytest.raises(ConfigError, match="32 are the bound"):
            swarm.join(1, 0, group="one more")


def test_a_mount_of_any_length_is_refused_or_fits() -> None:
    """Its request heads have a bound."""
    with (
        Swarm(PORT, content="any") as swarm,
        pytest.raises(ConfigError, match="a request head of"),
    ):
        swarm.join(1, 0, mounts=["/" + "x" * 1100])


def test_a_listener_costs_at_most_192_bytes() -> None:
    """Beside 16 KiB for each of the sample."""
    assert _swarm.LISTENER_BYTES <= 192


def test_a_closed_swarm_says_so() -> None:
    """And may be closed again."""
    swarm = Swarm(PORT, content="any")
    swarm.close()
    swarm.close()
    with pytest.raises(RuntimeError, match="closed"):
        swarm.join(1, 0)


def test_a_window_has_a_name_of_its_own() -> None:
    """The first one is called start."""
    with Swarm(PORT, content="any") as swarm:
        swarm.mark("storm")
        for name in ("start", "storm"):
            with pytest.raises(ConfigError, match=f"there is a window '{name}' already"):
                swarm.mark(name)


def test_a_forked_child_may_neither_use_nor_close_a_swarm() -> None:
    """It has no threads, and the connections are its parent's."""
    with Swarm(PORT, content="any") as swarm:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(RuntimeError):
                swarm.run(0.01)
                os._exit(1)
            swarm.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        swarm.run(0.01)
