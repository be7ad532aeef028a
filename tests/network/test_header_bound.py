"""Header blobs in pieces, from a parent that never brings the last: what a node keeps of them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from tools.backbones import Node, until
from tools.children import mount_key
from tools.parents import REQUEST, HandParent, entry

from relay import _core

STREAMS = 60
EPOCH, ORIGIN = 1_000, 7
PIECE_BYTES, PIECES = 1 << 16, 15
TOTAL_BYTES = 1 << 20  # a header blob's bound: one piece is always missing
KEPT_BYTES_MAX = 16 << 20  # docs/wire.md: 1 MiB an upstream, and what Python takes for itself
WHOLE = "/whole"
HERE = struct.Struct("<BQQQQQQQQH")  # flags, epoch, origin, first, position, µs, head, title
PIECE = struct.Struct("<QQIII")  # epoch, end sequence, total, offset, size


class Hoarder(HandParent):
    """Answers each join with a header, which lacks its end but for one stream."""

    def _answer(self, what: bytes) -> bytes:
        kind, key, version, request = REQUEST.unpack_from(what)
        if kind != b"J":
            return super()._answer(what)
        here = HERE.pack(0, EPOCH, ORIGIN, 0, 0, 0, 0, 0, 0, 0)
        return REQUEST.pack(b"h", key, version, request) + here

    def _behind(self, what: bytes) -> list[bytes]:
        kind, key, version, request = REQUEST.unpack_from(what)
        if kind != b"J":
            return []
        head = REQUEST.pack(b"e", key, version, request)
        count = PIECES + (key == mount_key(WHOLE))
        return [
            head + PIECE.pack(EPOCH, 0, TOTAL_BYTES, number * PIECE_BYTES, PIECE_BYTES)
            + bytes([number]) * PIECE_BYTES
            for number in range(count)
        ]  # fmt: skip


def resident_bytes() -> int:
    """What this process holds in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_header_blobs_that_never_end_cost_one_an_upstream(make_node: Callable[..., Node]) -> None:
    """Of sixty streams: 65 MB before. The one that comes whole between them is whole."""
    mounts = [f"/s{number}" for number in range(STREAMS)]
    mounts.insert(STREAMS // 2, WHOLE)
    with Hoarder(*(entry(mount, EPOCH, origin=ORIGIN) for mount in mounts)) as above:
        before = resident_bytes()
        node = make_node(above.address, bind=None, prefetch=mounts)
        until(lambda: node.counted("received_bytes_total") > STREAMS * PIECES * PIECE_BYTES, 30.0)
        header = until(node.stream(WHOLE).header, 30.0)
        grown = resident_bytes() - before
        print(f"\nkept of {STREAMS} headers: {grown / 1e6:.1f} MB")
        assert header == b"".join(bytes([number]) * PIECE_BYTES for number in range(PIECES + 1))
        if _core.BUILD != "asan":  # its quarantine keeps what was freed
            assert grown <= KEPT_BYTES_MAX
