"""A fleet of real nodes: two origins, two rows of relays, four edges with two parents each.

Rules of this room
  1. Every node is a `relay serve` process on ports below the ephemeral range, so that all start at
     once and a restarted one finds its ports free.
  2. `/one` is sent to the first origin, `/two` to the second; listeners of every edge and relay
     check every frame of both. Those of a node that is killed are judged before, and join it anew.
     A further edge, `control`, hangs on the origins alone: nothing is done to it.
  3. With `linked`, whatever children hear of a relay or an origin passes a `Link`: both its
     sockets behind proxies, whose faults then have names.
  4. Redundancy is one word for the whole fleet, or "mixed": by turns.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from tools.backbones import free_port
from tools.children import split_address
from tools.listeners import Crowd, Listener
from tools.nodes import PASSWORD, NodeProcess, Nodes, wait_known, wait_until
from tools.proxy import Proxies, Proxy
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

MOUNTS = ("/one", "/two")
MODES = ("standby", "merge")
RELAYS = ("upper-1", "upper-2", "lower-1", "lower-2")
EDGES = ("edge-1", "edge-2", "edge-3", "edge-4")
START_S = 40.0  # ten processes on two cores that do other work as well
NEWS_S = 20.0


class Link:
    """What all children of one node hear of it: two proxies, before XPUB and ROUTER."""

    def __init__(self, proxies: Proxies) -> None:
        """Make both; the node is to bind `node_port` and to get `options`."""
        self.node_port = free_port()
        self.data = proxies.to(("127.0.0.1", self.node_port))
        repair_port = free_port()  # the ROUTER binds it on 127.0.0.1, children are told 127.0.0.2
        self.repair = Proxy(("127.0.0.1", repair_port), host="127.0.0.2", port=repair_port)
        proxies.all.append(self.repair)
        self.options = ("--advertise", f"127.0.0.2:{repair_port}")

    @property
    def both(self) -> tuple[Proxy, Proxy]:
        """The two proxies."""
        return self.data, self.repair

    def cut(self) -> None:
        """Fault `cut`: all connections break off, and no new one gets through."""
        for proxy in self.both:
            proxy.drop()
            proxy.cut()

    def stall(self) -> None:
        """Fault `stall`: nothing moves, nothing is closed."""
        for proxy in self.both:
            proxy.stall()

    def half_open(self) -> None:
        """Fault `half_open`: what stands carries nothing for ever; new connections work."""
        for proxy in self.both:
            proxy.half_open()

    def garbage(self) -> None:
        """Fault `garbage`: random bytes in the middle of every connection, toward the child."""
        self.data.garbage(700)
        self.repair.garbage(700)

    def drip(self, bytes_per_s: float) -> None:
        """Fault `drip`: no more than this, each way of each connection."""
        for proxy in self.both:
            proxy.throttle(bytes_per_s)

    def delay(self, ms: float) -> None:
        """Fault `delay`: everything comes so much later, each way."""
        for proxy in self.both:
            proxy.delay(ms)

    def heal(self) -> None:
        """End every fault."""
        for proxy in self.both:
            proxy.heal()


class Fleet:
    """The nodes, who sends, who listens."""

    def __init__(
        self,
        nodes: Nodes,
        proxies: Proxies,
        crowd: Crowd,
        stack: ExitStack,
        *,
        redundancy: str = "standby",
        linked: bool = False,
        listeners: int = 2,
        options: Sequence[str] = (),
        commands: dict[str, Sequence[str]] | None = None,
    ) -> None:
        """Start all of it and wait until every listener hears.

        Args:
            nodes, proxies, crowd, stack: who ends what is started here.
            redundancy: "standby", "merge", or "mixed".
            linked: whether links can have faults; costs two proxies for each parent.
            listeners: so many on each mount of each edge.
            options: more words for every node.
            commands: what to run for a node of that name in place of `relay serve`.
        """
        self._nodes, self._proxies, self._crowd = nodes, proxies, crowd
        self._redundancy, self._options, self._commands = redundancy, options, commands or {}
        self.links: dict[str, Link] = {}
        self.modes: dict[str, str] = {}  # each node's redundancy
        self.by_name: dict[str, NodeProcess] = {}
        self._above: dict[str, str] = {}  # where children of a node attach
        self.listeners: dict[tuple[str, str], list[Listener]] = {}  # by edge and mount
        self._spawn(linked)
        self.makers = {mount: FrameMaker(64) for mount in MOUNTS}
        self.sources = [
            stack.enter_context(LiveSource(Source(origin.address, mount), self.makers[mount]))
            for origin, mount in zip(self.origins, MOUNTS, strict=True)
        ]
        self.edges = [*EDGES, "control"]
        self._past: list[str] = []  # what was wrong with listeners of nodes that were killed since
        for name in (*self.edges, *RELAYS):
            self._join(name, listeners if name in self.edges else 1)
        self.wait_news("the first audio")

    @property
    def origins(self) -> list[NodeProcess]:
        """Both origins."""
        return [self.by_name["origin-1"], self.by_name["origin-2"]]

    def _spawn(self, linked: bool) -> None:
        rows = [("origin-1", "origin-2"), RELAYS[:2], RELAYS[2:], EDGES]
        above: tuple[str, ...] = ()
        for row in rows:
            for number, name in enumerate(row):
                has_link = linked and row is not EDGES
                self._spawn_one(name, number, [self._above[up] for up in above], has_link)
            above = row
        self._spawn_one("control", 0, [self.by_name[up].backbone for up in rows[0]], False)
        for node in self.by_name.values():
            wait_begun(node)
            if not node.ready and "taken" in node.output():
                raise PortTakenError(node.output())
            assert node.ready, f"{node!r} ended before it was ready:\n{node.output()}"

    def _spawn_one(self, name: str, number: int, above: Sequence[str], linked: bool) -> None:
        mode = MODES[number % 2] if self._redundancy == "mixed" else self._redundancy
        self.modes[name] = mode
        words = ["--name", name, *self._options]
        words += ["--redundancy", mode] if above else []
        port = free_port()
        if linked:
            link = self.links[name] = Link(self._proxies)
            port, words = link.node_port, [*words, *link.options]
        node = self._nodes.spawn_later(
            *words,
            http=f"127.0.0.1:{free_port()}",
            backbone=f"tcp://127.0.0.1:{port}",
            upstreams=above,
            command=self._commands.get(name),
        )
        self.by_name[name] = node.spawn()
        self._above[name] = self.links[name].data.backbone if linked else node.backbone

    def _join(self, name: str, count: int) -> None:
        wait_known(self.by_name[name], *MOUNTS, timeout_s=15.0)
        for mount in MOUNTS:
            joined = self._crowd.join_many(count, self.by_name[name].address, mount)
            self.listeners[name, mount] = joined

    # --- a node ends and comes back ---

    def farewell(self, name: str) -> None:
        """A node is about to end: its own listeners are judged now, and not counted any more."""
        for mount in MOUNTS:
            leaving = self.listeners.pop((name, mount), [])
            self._past += self._wrong_of(name, mount, leaving)

    def kill9(self, name: str) -> None:
        """Fault `kill9`."""
        self.farewell(name)
        self.by_name[name].kill9()

    def start_again(self, name: str) -> None:
        """Start a node that has ended; wait until it is ready, its children too; listeners join."""
        self.by_name[name].restart(START_S)
        self.wait_ready(name)
        self._join(name, 1)

    # --- waiting ---

    def all_listeners(self) -> Iterator[tuple[str, str, Listener]]:
        """Yield node, mount and listener."""
        for (name, mount), listeners in tuple(self.listeners.items()):
            for listener in listeners:
                yield name, mount, listener

    def wait_news(self, what: str, timeout_s: float = NEWS_S) -> float:
        """Wait until each listener has heard a frame that is made after now; returns the time."""
        begin_s = time.monotonic()
        wanted = {mount: maker.sequence for mount, maker in self.makers.items()}

        def behind() -> list[str]:
            return [
                f"{edge}{mount}"
                for edge, mount, listener in self.all_listeners()
                if listener.alive and last_of(listener) < wanted[mount]
            ]

        wait_until(lambda: not behind(), timeout_s, what=f"{what}: news at {behind()}")
        return time.monotonic() - begin_s

    def wait_ready(self, name: str, timeout_s: float = 20.0) -> float:
        """Wait until a node is `/readyz` and its children are attached; returns how long."""
        begin_s = time.monotonic()
        node = self.by_name[name]

        def ready() -> bool:
            with suppress(OSError):
                return node.get("/readyz", 2.0).status == 200
            return False

        wait_until(ready, timeout_s, what=f"readyz of {name}", every_s=0.05)
        for child in self.children_of(name):
            self.wait_state(child, name, "up", timeout_s)
        return time.monotonic() - begin_s

    def wait_state(self, child: str, parent: str, state: str, timeout_s: float) -> float:
        """Wait until a child says this of a parent; returns how long it took."""
        begin_s = time.monotonic()
        what = f"{parent} {state} at {child}"
        wait_until(
            lambda: self.state_at(child, parent) == state, timeout_s, what=what, every_s=0.05
        )
        return time.monotonic() - begin_s

    def children_of(self, name: str) -> list[str]:
        """The names of those who have it as an upstream, `control` aside."""
        if name.startswith("origin"):
            return list(RELAYS[:2])
        if name.startswith("upper"):
            return list(RELAYS[2:])
        return list(EDGES) if name.startswith("lower") else []

    def state_at(self, child: str, parent: str) -> str:
        """What a child says of a parent: `up`, `lost`, …; "" when it says nothing itself."""
        port = split_address(self._above[parent])[1]
        try:
            upstreams = self.by_name[child].json("/api/v1/status", 2.0)["upstreams"]
        except OSError:
            return ""  # it is down, or frozen, for a fault of its own
        for told in upstreams:
            if told["address"].endswith(f":{port}"):
                return str(told["state"])
        raise AssertionError(f"{child} has no upstream {self._above[parent]}")

    def feeders(self, child: str) -> dict[str, str]:
        """Who feeds which stream of a child, by name."""
        names = {split_address(address)[1]: name for name, address in self._above.items()}
        told = self.by_name[child].json("/api/v1/status")["streams"]
        fed = {stream["mount"]: stream["upstream"] for stream in told}
        return {
            mount: names.get(split_address(address)[1], "?") if address else ""
            for mount, address in fed.items()
            if mount in MOUNTS
        }

    def switches(self, child: str, victim: str, since_us: float) -> list[dict[str, Any]]:
        """What the flight recorder of a child says of its leaving this parent, oldest first.

        Args:
            child, victim: names.
            since_us: nothing older, on the wall clock.
        """
        account = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
        answer = self.by_name[child].request(
            "/api/v1/recorder?since=60", headers={"Authorization": f"Basic {account}"}
        )
        assert answer.status == 200, answer
        return [
            row
            for row in reversed(answer.json()["records"])
            if row["kind"] == "switch"
            and row.get("left") == self._above[victim]
            and row["wall_us"] >= since_us
        ]

    # --- what is wrong ---

    def lost(self, edge: str) -> int:
        """How many frames the edge has counted as lost, of all streams."""
        told = self.by_name[edge].json("/api/v1/status")["streams"]
        return sum(stream["counters"].get("lost_frames_total", 0) for stream in told)

    def wrong(self) -> list[str]:
        """Return a line for each listener that was thrown off, or did not hear all frames once."""
        lines = list(self._past)
        for (name, mount), listeners in tuple(self.listeners.items()):
            lines += self._wrong_of(name, mount, listeners)
        return lines

    @staticmethod
    def _wrong_of(name: str, mount: str, listeners: Sequence[Listener]) -> list[str]:
        return [
            f"{name}{mount}: {listener!r} missing {checker.missing}, repeated {checker.repeated}, "
            f"late {checker.late}, damaged {checker.damaged_bytes} B"
            for listener in listeners
            if (checker := listener.checker) is not None
            and not (listener.alive and (checker.clean or not checker.frames))
        ]

    def totals(self) -> str:
        """Frames heard, missing and repeated, of all listeners together."""
        checkers = [who.checker for who in self._crowd.all if who.checker is not None]
        return (
            f"{sum(c.frames for c in checkers)} frames at {len(checkers)} listeners, "
            f"{sum(c.missing for c in checkers)} missing, "
            f"{sum(c.repeated + c.late for c in checkers)} repeated"
        )


class PortTakenError(Exception):
    """A port that was free is not any more."""


class Standing:
    """A fleet and all that it needs, for a module's fixture or a command."""

    def __init__(self, **options: object) -> None:
        self._options = options
        self._stack = ExitStack()

    def __enter__(self) -> Fleet:
        """Start it; once more when another program was quicker to take a port."""
        try:
            return self._stand()
        except PortTakenError:
            return self._stand()

    def _stand(self) -> Fleet:
        with ExitStack() as opened:
            nodes = opened.enter_context(Nodes())
            proxies = opened.enter_context(Proxies())
            crowd = opened.enter_context(Crowd())
            fleet = Fleet(nodes, proxies, crowd, opened, **self._options)  # type: ignore[arg-type]
            self._stack = opened.pop_all()
        return fleet

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]


def wait_begun(node: NodeProcess) -> None:
    """Wait until the node is ready, or has ended."""
    wait_until(lambda: node.ready or not node.alive, START_S, what=f"ready of {node!r}")


def last_of(listener: Listener) -> int:
    """Return the sequence that the listener heard last; -1 before the first."""
    last = listener.checker.last if isinstance(listener.checker, FrameChecker) else None
    return -1 if last is None else last


__all__ = ["EDGES", "MODES", "MOUNTS", "RELAYS", "Fleet", "Link", "Standing", "last_of"]
