"""A relay in the middle dies, hangs or loses its link: those behind it miss and repeat no frame.

Rules of this room
  1. Origin, middle, edge: three `relay serve` processes in a row, or four in a diamond with two
     relays in the middle; two streams; 20 listeners on the edge, 10 on each stream, every frame
     of each checked.
  2. Phases are random, from a seed that is printed; `--seed N` plays the same again.
  3. The checks can fail: with the repair socket out of reach the same ones report missing frames.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tools.listeners import Crowd, Listener
from tools.nodes import NodeProcess, Nodes, wait_known, wait_until
from tools.proxy import Proxies, Proxy
from tools.sources import FrameChecker, FrameMaker, LiveSource, Source

MOUNTS = ("/one", "/two")
LISTENERS = 10  # on each stream
DOWN_S = 3.0
NOTICE_S = 0.5
RECOVERY_S = 12.0


class Row:
    """The row under test: who sends, who listens, and what they must have heard."""

    def __init__(self, nodes: Nodes, crowd: Crowd, stack: ExitStack) -> None:
        self.nodes, self.crowd, self._stack = nodes, crowd, stack
        self.origin = nodes.start("--name", "origin")
        self.middle = self.edge = self.origin
        self.makers = {mount: FrameMaker(64 * n) for n, mount in enumerate(MOUNTS, start=1)}
        self.listeners: dict[str, list[Listener]] = {}

    def build(self, upstream: str, *middle_options: str, edge_upstream: str = "") -> None:
        """Start middle and edge behind the origin."""
        self.middle = self.nodes.start("--name", "middle", *middle_options, upstreams=[upstream])
        behind = edge_upstream or self.middle.backbone
        self.edge = self.nodes.start("--name", "edge", upstreams=[behind])

    def play(self) -> None:
        """Start both sources, let the listeners join the edge, and wait until all hear."""
        for mount, maker in self.makers.items():
            self._stack.enter_context(LiveSource(Source(self.origin.address, mount), maker))
        wait_known(self.edge, *MOUNTS)
        for mount in MOUNTS:
            joined = self.crowd.join_many(LISTENERS, self.edge.address, mount)
            self.listeners[mount] = joined
        self.wait_news("the first audio")

    def wait_news(self, what: str) -> float:
        """Wait until each listener has heard a frame that is made after now; returns the time."""
        begin_s = time.monotonic()
        wanted = {mount: maker.sequence for mount, maker in self.makers.items()}

        def all_have() -> bool:
            return all(
                (last_of(listener) >= wanted[mount]) or not listener.alive
                for mount, listeners in self.listeners.items()
                for listener in listeners
            )

        wait_until(all_have, RECOVERY_S, what=f"{what}: frames {wanted} at each listener")
        return time.monotonic() - begin_s

    def wait_phase(self, seconds: float) -> None:
        """Let the streams run for so long."""
        until_s = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= until_s, seconds + 1)

    def faults(self) -> list[str]:
        """Return a line for each listener that was thrown off, or did not hear all frames once."""
        wrong = []
        for mount, listeners in self.listeners.items():
            for number, listener in enumerate(listeners):
                checker = listener.checker
                assert checker is not None
                if not listener.alive or not checker.clean:
                    wrong.append(
                        f"{mount} {number}: {listener!r} missing {checker.missing}, "
                        f"repeated {checker.repeated}, late {checker.late}, "
                        f"damaged {checker.damaged_bytes} B"
                    )
        return wrong

    def frames(self) -> int:
        """Return how many frames all listeners have heard together."""
        return sum(who.checker.frames for who in self.crowd.all if who.checker is not None)


def last_of(listener: Listener) -> int:
    """Return the sequence that the listener heard last; -1 before the first."""
    last = listener.checker.last if isinstance(listener.checker, FrameChecker) else None
    return -1 if last is None else last


def wait_lost(node: NodeProcess, timeout_s: float = 3.0) -> float:
    """Wait until the node says that its upstream is lost; returns how long that took."""
    begin_s = time.monotonic()
    wait_until(
        lambda: b"upstream is lost" in node.get("/readyz").body, timeout_s, what="upstream lost"
    )
    return time.monotonic() - begin_s


def wait_ready(node: NodeProcess, timeout_s: float = 10.0) -> None:
    """Wait until the node has its upstream, and the tail of each stream in demand."""
    wait_until(lambda: node.get("/readyz").status == 200, timeout_s, what=f"readyz of {node!r}")


class Diamond(Row):
    """Two relays behind the origin, the edge behind both."""

    def branch(self, redundancy: str) -> list[NodeProcess]:
        """Start the relays and the edge; returns the relays in the order of their names."""
        behind = [self.origin.backbone]
        relays = [self.nodes.start("--name", name, upstreams=behind) for name in ("left", "right")]
        both = [relay.backbone for relay in relays]
        self.edge = self.nodes.start("--name", "edge", "--redundancy", redundancy, upstreams=both)
        return relays

    def feeders(self) -> list[str]:
        """Which upstream feeds each stream of the edge (as of up to half a second ago)."""

        def known() -> list[str]:
            streams = self.edge.json("/api/v1/status")["streams"]
            fed = [stream["upstream"] for stream in streams if stream["mount"] in MOUNTS]
            return fed if None not in fed else []

        return wait_until(known, 3.0, what="a feeder of each stream")

    def gap_ms_max(self, since_s: float) -> float:
        """The longest that any listener has waited between two arrivals."""
        every = (who for listeners in self.listeners.values() for who in listeners)
        return max(who.gap_ms_max(since_s) for who in every)


@pytest.fixture
def diamond(nodes: Nodes, crowd: Crowd) -> Iterator[Diamond]:
    """An origin, and what may be built behind it; the sources end with the test."""
    with ExitStack() as stack:
        yield Diamond(nodes, crowd, stack)


@pytest.fixture
def row(nodes: Nodes, crowd: Crowd) -> Iterator[Row]:
    """An origin, and what may be built behind it; the sources end with the test."""
    with ExitStack() as stack:
        yield Row(nodes, crowd, stack)


@pytest.fixture
def dice(seed: int) -> random.Random:
    """Random phases, the same for the same seed."""
    return random.Random(seed)


def test_kill_9_of_the_middle_relay_loses_no_frame(row: Row, dice: random.Random) -> None:
    """Five times, 3 s each, at random phases: all stay connected, 0 missing, 0 repeated."""
    row.build(row.origin.backbone)
    row.play()
    for _ in range(5):
        phase_s = dice.uniform(0.0, 1.5)
        row.wait_phase(phase_s)
        row.middle.kill9()
        noticed_s = wait_lost(row.edge)
        row.wait_phase(DOWN_S - noticed_s)
        row.middle.restart()
        took_s = row.wait_news("after the restart")
        print(
            f"killed after {phase_s:.2f} s, noticed after {noticed_s * 1000:.0f} ms, "
            f"live again {took_s:.2f} s after ready"
        )
    print(f"{row.frames()} frames checked at {len(row.crowd.all)} listeners")
    assert not row.faults(), "\n".join(row.faults())


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_many_kills_in_all_phases_lose_no_frame(row: Row, dice: random.Random) -> None:
    """Thirty kills, down for up to 5 s, some before the edge is live again: no frame is lost."""
    row.build(row.origin.backbone)
    row.play()
    for number in range(30):
        down_s, phase_s = dice.uniform(0.0, 5.0), dice.uniform(0.0, 1.0)
        row.middle.kill9()
        row.wait_phase(down_s)
        row.middle.restart()
        row.wait_phase(phase_s)  # in about each second round the next kill comes into the recovery
        if number % 2:
            row.wait_news(f"after kill {number + 1}, down {down_s:.2f} s")
    row.wait_news("after the last kill")
    print(f"{row.frames()} frames checked at {len(row.crowd.all)} listeners")
    assert not row.faults(), "\n".join(row.faults())


def kill_in_turn(diamond: Diamond, redundancy: str, kills: int, dice: random.Random) -> None:
    """Kill the relays by turns, the one that feeds first; each comes back before the next goes."""
    relays = diamond.branch(redundancy)
    diamond.play()
    wait_ready(diamond.edge)
    for number in range(kills):
        victim = relays[number % 2]
        quiet_s = time.monotonic()
        diamond.wait_phase(dice.uniform(0.5, 1.5))
        before_ms = diamond.gap_ms_max(quiet_s)
        fed, begin_s = diamond.feeders(), time.monotonic()
        victim.kill9()
        diamond.wait_news("with one relay")
        diamond.wait_phase(0.7 - (time.monotonic() - begin_s))
        print(
            f"{redundancy}: killed {'the feeder' if victim.backbone in fed else 'the other'}, "
            f"longest gap {diamond.gap_ms_max(begin_s):.0f} ms (before it {before_ms:.0f} ms)"
        )
        victim.restart()
        wait_until(
            lambda: all(
                up["state"] == "up" for up in diamond.edge.json("/api/v1/status")["upstreams"]
            ),
            5.0,
            what="both upstreams up",
        )
    diamond.wait_news("after the last restart")
    print(f"{diamond.frames()} frames checked at {len(diamond.crowd.all)} listeners")
    assert not diamond.faults(), "\n".join(diamond.faults())


@pytest.mark.parametrize("redundancy", ["standby", "merge"])
def test_kill_9_of_either_parent_loses_no_frame(
    diamond: Diamond, dice: random.Random, redundancy: str
) -> None:
    """Six times, both relays by turns, at random phases: 0 missing, 0 repeated."""
    kill_in_turn(diamond, redundancy, 6, dice)


@pytest.mark.soak
@pytest.mark.parametrize("redundancy", ["standby", "merge"])
def test_kill_9_of_either_parent_loses_no_frame_in_20_kills(
    diamond: Diamond, dice: random.Random, redundancy: str
) -> None:
    """Twenty times."""
    kill_in_turn(diamond, redundancy, 20, dice)


@pytest.mark.parametrize("redundancy", ["standby", "merge"])
def test_frozen_parent_is_left_and_repeats_nothing_when_it_wakes(
    diamond: Diamond, redundancy: str
) -> None:
    """SIGSTOP for 3 s, SIGCONT: the edge moves within a second; 0 missing, 0 repeated."""
    relays = diamond.branch(redundancy)
    diamond.play()
    wait_ready(diamond.edge)
    begin_s = time.monotonic()
    for relay in relays:
        if relay.backbone in diamond.feeders():
            relay.stop()
            diamond.wait_news("with one relay")
            print(f"\n{redundancy}: longest gap {diamond.gap_ms_max(begin_s):.0f} ms")
            diamond.wait_phase(3.0)
            assert relay.backbone not in diamond.feeders()
            relay.cont()
            break
    diamond.wait_phase(1.0)
    diamond.wait_news("after SIGCONT")
    assert not diamond.faults(), "\n".join(diamond.faults())


def test_frozen_edge_judges_nobody_by_its_own_sleep(diamond: Diamond) -> None:
    """SIGSTOP for 1 s, SIGCONT: no upstream counts as lost, no stream moves, no frame is missed."""
    diamond.branch("standby")
    diamond.play()
    wait_ready(diamond.edge)
    fed = diamond.feeders()
    for _ in range(3):
        diamond.edge.stop()
        diamond.wait_phase(1.0)
        diamond.edge.cont()
        diamond.wait_news("after SIGCONT")
    told = diamond.edge.status()
    assert [up["lost_total"] for up in told["upstreams"]] == [0, 0]
    assert diamond.feeders() == fed
    assert not diamond.faults(), "\n".join(diamond.faults())


def test_lost_upstream_is_noticed_within_500_ms(row: Row) -> None:
    """The edge says so when its upstream is killed; its listeners stay, and so does the node."""
    row.build(row.origin.backbone)
    row.play()
    for attempt in (1, 2):
        wait_ready(row.edge)
        row.middle.kill9()
        noticed_s = wait_lost(row.edge)
        print(f"\nnoticed after {noticed_s * 1000:.0f} ms")
        if noticed_s <= NOTICE_S or attempt == 2:
            break
        row.middle.restart()
    assert noticed_s <= NOTICE_S
    assert row.edge.get("/healthz").status == 200
    row.middle.restart()
    row.wait_news("after the restart")
    assert not row.faults(), "\n".join(row.faults())


def test_stopped_middle_relay_loses_no_frame(row: Row) -> None:
    """Frozen for 2 s and woken again (SIGSTOP, SIGCONT): 0 missing, 0 repeated."""
    row.build(row.origin.backbone)
    row.play()
    row.middle.stop()
    noticed_s = wait_lost(row.edge)
    row.wait_phase(2.0 - noticed_s)
    row.middle.cont()
    took_s = row.wait_news("after SIGCONT")
    print(f"\nnoticed after {noticed_s * 1000:.0f} ms, live again after {took_s:.2f} s")
    assert not row.faults(), "\n".join(row.faults())


def test_origin_link_cut_for_2_s_loses_no_frame(row: Row, proxies: Proxies) -> None:
    """The origin's link breaks off and stays dead for 2 s: 0 missing, 0 repeated."""
    links = advertised(row, proxies)
    row.build(links[0].backbone)
    row.play()
    for link in links:
        link.drop()
        link.cut()
    noticed_s = wait_lost(row.middle)
    row.wait_phase(2.0 - noticed_s)
    for link in links:
        link.heal()
    took_s = row.wait_news("after the cut")
    print(f"\nnoticed after {noticed_s * 1000:.0f} ms, live again after {took_s:.2f} s")
    assert not row.faults(), "\n".join(row.faults())


@pytest.mark.soak
@pytest.mark.parametrize("fault", ["stall", "garbage upward", "garbage downward", "delay", "drip"])
def test_link_with_a_fault_loses_no_frame(
    row: Row, proxies: Proxies, dice: random.Random, fault: str
) -> None:
    """The origin's link is silent, disturbed, slow or thin for a while, five times over."""
    links = advertised(row, proxies)
    row.build(links[0].backbone)
    row.play()
    for _ in range(5):
        for link in links:
            if fault == "stall":
                link.stall()
            elif fault == "delay":
                link.delay(300)
            elif fault == "drip":
                link.throttle(12_000)
            else:
                link.garbage(dice.randrange(1, 3000), downward=fault.endswith("downward"))
        row.wait_phase(dice.uniform(0.5, 3.0))
        for link in links:
            link.heal()
        print(f"{fault}: live again after {row.wait_news(fault):.2f} s")
    assert not row.faults(), "\n".join(row.faults())


@pytest.mark.soak
def test_stopped_edge_or_origin_loses_no_frame(row: Row) -> None:
    """Frozen for 2 s and woken again: the edge catches up, the origin's source is only late."""
    row.build(row.origin.backbone)
    row.play()
    for node in (row.edge, row.origin, row.edge, row.middle):
        node.stop()
        row.wait_phase(2.0)
        node.cont()
        print(f"live again after {row.wait_news('after SIGCONT'):.2f} s")
    assert not row.faults(), "\n".join(row.faults())


def test_connections_that_libzmq_gave_up_are_made_anew(row: Row, proxies: Proxies) -> None:
    """After malformed bytes libzmq closes a connection for good: Relay dials again, 0 missing."""
    link, repair = advertised(row, proxies)
    row.build(link.backbone)
    row.play()
    wait_ready(row.middle)
    repair.garbage(1000)  # nothing is asked just now: the repair socket's death is noticed later,
    link.drop()
    link.cut()
    row.wait_phase(1.0)
    link.heal()
    took_s = row.wait_news("after the cut")  # when this hole asks for repair
    link.garbage(1000)
    again_s = row.wait_news("after the garbage")
    print(f"\nlive again after {took_s:.2f} s, {again_s:.2f} s")
    assert not row.faults(), "\n".join(row.faults())


def test_these_checks_see_missing_frames_without_repair(row: Row, proxies: Proxies) -> None:
    """With the middle's repair socket out of reach a short cut leaves holes, and they are seen."""
    advertise, repair = repair_behind_proxy(proxies)
    entry = proxies.to(("127.0.0.1", 1))
    row.build(row.origin.backbone, "--advertise", advertise, edge_upstream=entry.backbone)
    entry.target = backbone_of(row.middle)
    row.play()
    wait_ready(row.edge)
    repair.drop()
    repair.cut()
    entry.drop()
    entry.cut()
    wait_lost(row.edge)
    entry.heal()
    row.wait_news("after the cut, without repair")
    wrong = row.faults()
    assert len(wrong) == 2 * LISTENERS, wrong
    assert all("missing 0," not in line for line in wrong), wrong


def backbone_of(node: NodeProcess) -> tuple[str, int]:
    """Return host and port of a node's backbone."""
    host, _, port = node.backbone.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def repair_behind_proxy(proxies: Proxies) -> tuple[str, Proxy]:
    """Return what a node is to advertise so that children's repairs pass a proxy, and the proxy.

    The node binds the advertised port on its own 127.0.0.1; the proxy has the same port of
    127.0.0.2, which is what children are told.
    """
    proxy = Proxy(("127.0.0.1", 1), host="127.0.0.2")
    proxy.target = ("127.0.0.1", proxy.port)
    proxies.all.append(proxy)
    return f"127.0.0.2:{proxy.port}", proxy


def advertised(row: Row, proxies: Proxies) -> list[Proxy]:
    """Restart the origin so that both its sockets are reached through proxies; returns these."""
    advertise, repair = repair_behind_proxy(proxies)
    row.origin.kill9()
    row.origin = row.nodes.start("--name", "origin", "--advertise", advertise)
    return [proxies.to(row.origin.backbone), repair]
