"""A ring looked at without a copy: what a block looks at does not change under it."""

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


def overwrite(stream: Stream) -> None:
    """Write where a view looks: ahead of a hole, while that is open the ring cannot be left."""
    head = stream.snapshot()
    sequence, position = head["head_sequence"], head["head_position"]
    for ahead in range(1, RING_BYTES // FRAME_BYTES * 2 // 5 - 2):
        at, number = position + ahead * FRAME_BYTES, sequence + ahead
        assert stream.place(number, at, number * 20_000, bytes(FRAME_BYTES), 20_000) == 1


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


def test_a_block_may_take_its_time() -> None:
    """The writer goes round many times meanwhile; nothing of that is seen."""
    stream, reader = small()
    with reader.view() as view:
        before = bytes(view.data)
        for _ in range(20):
            overrun(stream)
        view.check()
        assert bytes(view.data) == before


@pytest.mark.parametrize("during", ["nothing", "check", "ValueError", "KeyboardInterrupt"])
def test_a_block_that_was_overwritten_raises(during: str) -> None:
    """Its result goes with it, and an error that came of it; check() tells earlier."""
    stream, reader = small()
    does: dict[str, Callable[[relay.View], object]] = {
        "nothing": lambda view: overwrite(stream),
        "check": lambda view: [overwrite(stream), view.check()],
        "ValueError": lambda view: [overwrite(stream), interrupt(ValueError("no frame"))],
        "KeyboardInterrupt": lambda view: [overwrite(stream), interrupt(KeyboardInterrupt())],
    }
    error = KeyboardInterrupt if during == "KeyboardInterrupt" else relay.OvertakenError
    with pytest.raises(error) as raised:
        look(reader, does[during])
    if error is relay.OvertakenError:
        raised.match(r"position \d+ on were overwritten .* quicker")
        assert isinstance(raised.value.__context__, ValueError) == (during == "ValueError")


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


def test_blocks_show_no_wrong_byte() -> None:
    """Against a writer without pace and without the lock, in quick blocks and in slow ones: no
    frame is out of order, at their begin or at their end, and none is overtaken."""
    stream, reader = small()
    address, over = pointer_of(stream), threading.Event()
    written = itertools.count()

    def write() -> None:
        for count in itertools.cycle([700, 9000, 150, 20_000, 2000, 400, 60, 12_000]):
            measure_push(address, bytes(FRAME_BYTES), count)
            next(written)
            if over.is_set():
                return
            time.sleep(0)

    writer = threading.Thread(target=write)
    writer.start()
    blocks = passed = 0
    until = time.monotonic() + SECONDS_MAX
    try:
        while (blocks < 400 or passed < 50) and time.monotonic() < until:
            with reader.view() as view:
                head = stream.snapshot()["head_position"]
                assert not out_of_order(view.data)
                for _ in range(blocks % 3):
                    time.sleep(0.0005)
                assert not out_of_order(view.data)
                passed += stream.snapshot()["head_position"] - head > RING_BYTES
            blocks += 1
    finally:
        over.set()
        writer.join()
    assert blocks >= 100, f"{next(written)} runs written"
    assert passed >= 20, f"of {blocks} blocks the writer went round in {passed} only"


def test_errors_that_are_kept_keep_no_ring() -> None:
    """A log keeps them with their frames."""
    stream, reader = small()
    kept, left = [], []
    for _ in range(10):
        with pytest.raises(relay.RelayError) as error:
            look(reader, lambda view: left.append(view.data[1:]))
        kept.append(error)
        left.clear()
        with pytest.raises(relay.OvertakenError) as error:
            look(reader, lambda view: overwrite(stream))
        kept.append(error)
        stream.give_up()
        overrun(stream)
    assert look(reader, lambda view: len(view.data))


def test_nine_views_are_one_too_many(reader: relay.Subscription) -> None:
    """Also where what was left of a block is kept: it counts until it goes."""
    left: list[object] = []
    with pytest.raises(relay.RelayError, match="keep a copy"):
        look(reader, lambda view: left.append(view.data[1:]))
    views = [reader.view() for _ in range(7)]
    with pytest.raises(relay.RelayError, match="8 views are open"):
        reader.view()
    left.clear()
    assert look(reader, lambda view: len(view.data))
    del views


def out_of_order(data: memoryview) -> bool:
    """Each frame has its number in front, and each run of the writer's begins with 0."""
    numbers = np.frombuffer(data, "u1").reshape(-1, FRAME_BYTES)[:, :4].copy().view("<u4")[:, 0]
    follows = (numbers[1:] == numbers[:-1] + 1) | (numbers[1:] == 0)
    return not follows.all()
