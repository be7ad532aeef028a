"""A ring looked at without a copy: what was overwritten meanwhile is never taken for audio."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from relay._probe_hop import measure_push

import relay
from relay._core import Engine, Stream, pointer_of
from relay.subscribe import Subscription
from relay.testing import silence

pytestmark = pytest.mark.core

RING_BYTES = 1 << 18
FRAME_BYTES = 400
SECONDS_MAX = 20.0


@pytest.fixture
def reader(relay_node: relay.Node, relay_source: relay.NodeSource) -> relay.Subscription:
    """Of a second of audio."""
    relay_source.feed(silence(1.0))
    return relay_node.subscribe("/live", start="burst")


def small() -> tuple[Stream, Subscription]:
    """A stream whose ring goes round soon and has its size by now, and a reader of it."""
    engine = Engine()
    engine.configure(ring_bytes_max=RING_BYTES)
    stream = engine.add_stream("/live")
    stream.begin()
    overrun(stream)
    return stream, Subscription(engine, "/live")


def overrun(stream: Stream) -> None:
    """Go round the ring once."""
    measure_push(pointer_of(stream), bytes(FRAME_BYTES), RING_BYTES // FRAME_BYTES)


def test_a_view_shows_what_readers_get_without_a_copy(reader: relay.Subscription) -> None:
    """Whole frames in a row, at the place where they are; the reader stays where it is."""
    with reader.view() as view:
        run = np.frombuffer(view.data, "u1")
        assert not run.flags.owndata
        assert not run.flags.writeable
        shown = run.tobytes()
        view.check()
        del run
    frames = [item for item in reader.waiting() if isinstance(item, relay.Frame)]
    assert shown == b"".join(frame.data for frame in frames)
    assert (view.epoch, view.position) == (frames[0].epoch, frames[0].position)


def look(reader: Subscription, during: Callable[[relay.View], object]) -> object:
    """Do that in a block."""
    with reader.view() as view:
        return during(view)


def interrupt(error: BaseException) -> None:
    """Raise it, where a lambda is wanted."""
    raise error


def test_a_block_that_was_overtaken_raises_at_its_end() -> None:
    """Its result goes with it, and an error that came of it; check() tells earlier."""
    stream, reader = small()
    with pytest.raises(relay.OvertakenError, match=r"position \d+ on were overwritten .* quicker"):
        look(reader, lambda view: overrun(stream))
    with pytest.raises(relay.OvertakenError) as early:
        look(reader, lambda view: [overrun(stream), view.check()])
    assert early.value.__context__ is None
    with pytest.raises(relay.OvertakenError) as late:
        look(reader, lambda view: [overrun(stream), interrupt(ValueError("no frame"))])
    assert isinstance(late.value.__context__, ValueError)
    with pytest.raises(KeyboardInterrupt):
        look(reader, lambda view: [overrun(stream), interrupt(KeyboardInterrupt())])


def test_an_error_of_the_block_comes_out_as_it_is(reader: relay.Subscription) -> None:
    """Nothing was overwritten: it is the caller's own, also where an array was left."""
    left: list[object] = []
    with pytest.raises(ValueError, match="mine"):
        look(reader, lambda view: [left.append(view.data[1:]), interrupt(ValueError("mine"))])
    assert left


@pytest.mark.parametrize("kind", ["array", "slice"])
def test_what_shows_the_ring_behind_the_block_is_an_error(
    reader: relay.Subscription, kind: str
) -> None:
    """It could be overwritten later, with nobody to tell; a copy is what is wanted."""
    left: list[Any] = []
    take = {"array": lambda data: np.frombuffer(data, "u1"), "slice": lambda data: data[1:]}[kind]
    with pytest.raises(relay.RelayError, match=r"keep a copy .* let go of the rest"):
        look(reader, lambda view: left.append(take(view.data)))
    assert len(left[0])
    assert look(reader, lambda view: np.array(take(view.data)).size)


def test_memory_that_python_holds_outlives_the_node() -> None:
    """What was left all the same can be read, whoever has gone."""
    left: list[Any] = []
    with relay.Node() as node, node.source("/live", content_type="audio/mpeg") as source:
        source.feed(silence(1.0))
        reader = node.subscribe("/live")
        with pytest.raises(relay.RelayError, match="keep a copy"):
            look(reader, lambda view: left.append(view.data[:417]))
    del node, source, reader
    assert bytes(left[0]) == silence(0)


def test_a_view_is_for_one_block(reader: relay.Subscription) -> None:
    """Before and behind it there is nothing to see."""
    view = reader.view()
    with pytest.raises(relay.RelayError, match="outside of its block"):
        len(view.data)
    with view:
        data = view.data
        with pytest.raises(relay.RelayError, match="once"):
            view.__enter__()
        assert repr(view).endswith("/0 open>")
    with pytest.raises(ValueError, match="released"):
        len(data)
    for use in (lambda: view.data, view.check, view.__enter__):
        with pytest.raises(relay.RelayError, match=r"outside of its block|over|once"):
            use()


def test_who_cannot_look_is_told(relay_node: relay.Node, reader: relay.Subscription) -> None:
    """A reader that is closed; a stream without a first epoch."""
    reader.close()
    with pytest.raises(relay.RelayError, match="closed; subscribe again"):
        reader.view()
    relay_node._opened().add_stream("/later")
    with pytest.raises(relay.SourceError, match="no source yet"):
        relay_node.subscribe("/later").view()


def test_blocks_that_end_well_have_shown_no_wrong_byte() -> None:
    """Against a writer without pace and without the lock: many blocks raise, and some of those saw
    frames out of order; of the others none did."""
    stream, reader = small()
    address, over = pointer_of(stream), threading.Event()

    def write() -> None:
        for count in itertools.cycle([700, 9000, 150, 20_000, 2000, 400, 60, 12_000]):
            measure_push(address, bytes(FRAME_BYTES), count)
            if over.is_set():
                return
            time.sleep(0)

    writer = threading.Thread(target=write)
    writer.start()
    well = raised = wrong_well = wrong_raised = 0
    until = time.monotonic() + SECONDS_MAX
    try:
        while (well < 200 or wrong_raised < 20) and time.monotonic() < until:
            is_wrong = False
            try:
                with reader.view() as view:
                    is_wrong = out_of_order(view.data)
                well, wrong_well = well + 1, wrong_well + is_wrong
            except relay.OvertakenError:
                raised, wrong_raised = raised + 1, wrong_raised + is_wrong
    finally:
        over.set()
        writer.join()
    assert wrong_well == 0
    assert well >= 20
    assert wrong_raised > 0, f"{well} ended well, {raised} raised: nothing was shown"


def out_of_order(data: memoryview) -> bool:
    """Each frame has its number in front, and each run of the writer's begins with 0."""
    numbers = np.frombuffer(data, "u1").reshape(-1, FRAME_BYTES)[:, :4].copy().view("<u4")[:, 0]
    follows = (numbers[1:] == numbers[:-1] + 1) | (numbers[1:] == 0)
    return not follows.all()
