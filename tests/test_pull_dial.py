"""Who is ourselves, and how a pulled stream says by whom it was pulled."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from relay.address import Address
from relay.pull_dial import Dialler, is_own
from relay.pull_http import Head

NODE = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("peer", "local", "own", "expected"),
    [
        (("127.0.0.1", 8000), ("127.0.0.1", 4711), Address("0.0.0.0", 8000), True),
        (("127.0.0.1", 8000), ("127.0.0.1", 4711), Address("127.0.0.1", 8000), True),
        (("127.0.0.1", 8001), ("127.0.0.1", 4711), Address("0.0.0.0", 8000), False),
        (("10.0.0.1", 8000), ("10.0.0.1", 4711), Address("0.0.0.0", 8000), True),
        (("10.0.0.1", 8000), ("10.0.0.1", 4711), Address("127.0.0.1", 8000), False),
        (("10.0.0.2", 8000), ("10.0.0.1", 4711), Address("0.0.0.0", 8000), False),
        (("::1", 8000, 0, 0), ("::1", 4711, 0, 0), Address("::", 8000), True),
        (("127.0.0.2", 8000), ("127.0.0.1", 4711), Address("0.0.0.0", 8000), True),
        (("fe80::1%eth0", 8000), ("fe80::1%eth0", 1), Address("::", 8000), True),
        (("a name", 8000), ("a name", 1), Address("::", 8000), False),
        (("127.0.0.1", 8000), ("127.0.0.1", 4711), None, False),
    ],
)
def test_a_connection_to_our_own_door_is_known(
    peer: tuple[str, int], local: tuple[str, int], own: Address | None, expected: bool
) -> None:
    """Same machine, our port, and a bind that answers there."""
    assert is_own(peer, local, own) is expected


def test_we_are_named_among_those_who_have_pulled() -> None:
    """First ourselves, then those before; other lines stay as they are."""

    async def told() -> dict[str, str]:
        dialler = Dialler("Relay/1", NODE, lambda: None, Counter())
        return dialler.told(Head(200, "", {"icy-relay-via": "f" * 32, "icy-name": "N"}))

    assert asyncio.run(told()) == {"icy-name": "N", "icy-relay-via": f"{NODE},{'f' * 32}"}
