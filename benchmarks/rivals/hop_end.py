"""One end of a hop as a process: an engine and its backbone, as the library opens them.

Rules of this room
  1. A command is a line of JSON in, its answer a line of JSON out; the end of input ends it.
  2. The main thread pushes and watches; its CPU is no node's, those of the other threads are.
  3. Everything here is told by its caller (benchmarks/rivals/ends.py): it judges nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from relay import _core, _probe_hop
from relay.backbone import open_backbone
from relay.keys import Keys

WAIT_S = 30.0


class End:
    """A node without pages; what the commands of the same names do."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.engine = _core.Engine(streams_max=told["streams"] + 4)
        self.engine.configure(ring_s=told["ring_s"], ring_bytes_max=told["ring_bytes_max"])
        self.mounts = [f"/{number}" for number in range(told["streams"])]
        self.backbone = open_backbone(
            self.engine,
            bind="tcp://127.0.0.1:0",
            upstreams=told["upstreams"],
            prefetch=self.mounts if told["upstreams"] else (),
            keys=Keys(told["secret"]) if told["secret"] else None,
            children=told["children"],
        )
        frame = bytes(number % 251 for number in range(told["frame_bytes"]))
        self.frame = _probe_hop.Frame(frame)
        self.duration_us = int(told["duration_us"])
        self.streams: list[_core.Stream] = []
        self.pointers: list[int] = []
        self.watcher: Any = None
        if not told["upstreams"]:
            self.hold([self.engine.add_stream(mount) for mount in self.mounts])
            for stream in self.streams:
                stream.set_info(b"Content-Type: audio/mpeg\r\n")
                stream.claim()
                stream.begin()

    def hold(self, streams: Sequence[_core.Stream]) -> None:
        """Keep the handles, and where their structs are."""
        self.streams = list(streams)
        self.pointers = [_core.pointer_of(stream) for stream in streams]

    def about(self) -> dict[str, Any]:
        """Where children reach it."""
        return {"address": self.backbone.address}

    def push(self, frames: int) -> dict[str, Any]:
        """So many frames into each stream, one after the other, as in a turn of a source."""
        for pointer in self.pointers:
            _probe_hop.pace([pointer], self.frame, self.duration_us, 1e9, frames, 0)
        return {}

    def lap(self, frames: int) -> dict[str, Any]:
        """A lap into the first stream, while the backbone is held; when it was let go."""
        assert self.backbone._core is not None
        lock = _core.turn_lock_of(self.backbone._core)
        return {
            "at_us": _probe_hop.push_lap(
                self.pointers[0], lock, self.frame, self.duration_us, frames
            )
        }

    def follow(self, sequence: int) -> dict[str, Any]:
        """Wait until each stream is here up to that sequence."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            found = [self.engine.find(mount) for mount in self.mounts]
            streams = [stream for stream in found if stream is not None]
            if len(streams) == len(found) and all(
                stream.snapshot()["epoch"] is not None
                and stream.snapshot()["head_sequence"] >= sequence
                for stream in streams
            ):
                self.hold(streams)
                return {"streams": len(streams)}
            time.sleep(0.05)
        raise TimeoutError(f"not all of {len(self.mounts)} streams came up to {sequence}")

    def reach(self, sequence: int) -> dict[str, Any]:
        """When the first stream's head had passed all before the sequence."""
        print(json.dumps({"waiting": sequence}), flush=True)
        at_us = _probe_hop.await_head(self.pointers[0], sequence, int(WAIT_S * 1e6))
        if not at_us:
            raise TimeoutError(f"frame {sequence - 1} has not come within {WAIT_S:g} s")
        return {"at_us": at_us}

    def sum(self, first: int, end: int) -> dict[str, Any]:
        """What the first stream holds of [first, end)."""
        frames, total = _probe_hop.held_sum(self.pointers[0], first, end)
        return {"frames": frames, "sum": total}

    def pace(self, frames_per_s: float, frames: int, rest_us: int) -> dict[str, Any]:
        """Push at a pace, to all streams in turn."""
        found: dict[str, Any] = _probe_hop.pace(
            self.pointers, self.frame, self.duration_us, frames_per_s, frames, rest_us
        )
        return found

    def watch(self, streams: int) -> dict[str, Any]:
        """See the frames of so many streams from now on."""
        step = max(1, len(self.pointers) // streams)
        chosen = self.pointers[::step][:streams]
        self.watcher = _probe_hop.Watcher(chosen)
        return {"streams": len(chosen)}

    def hear(self, frames: int, timeout_s: float, look_us: int = 50) -> dict[str, Any]:
        """How late they were; returns when so many have come."""
        found: dict[str, Any] = self.watcher.hear(frames, int(timeout_s * 1e6), look_us)
        return found

    def state(self) -> dict[str, Any]:
        """The backbone's counters, heads, losses, and what the rings hold."""
        seen = self.backbone.snapshot()
        held, readable, laid, places = _probe_hop.held_bytes(self.pointers)
        streams = [stream.snapshot() for stream in self.streams]
        return {
            "counters": seen["counters"],
            "head_sequence": min((one["head_sequence"] for one in streams), default=0),
            "lost": sum(one["counters"]["lost_frames_total"] for one in streams),
            "repaired": sum(one["counters"]["repaired_frames_total"] for one in streams),
            "held_bytes": held,
            "readable_bytes": readable,
            "laid_bytes": laid,
            "places": places,
        }


def main() -> None:
    """Open the end that the first argument describes; then one command after the other."""
    end = End(json.loads(sys.argv[1]))
    print(json.dumps(end.about()), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        try:
            answer = getattr(end, told.pop("do"))(**told)
        except (TimeoutError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    end.backbone.close()


if __name__ == "__main__":
    main()
