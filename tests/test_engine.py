"""The table of streams: found by mount, bounded, whole after any removal."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe_data import HubProbe, TableProbe

from relay._core import Engine
from relay.errors import MountError, RelayError

TAKEN, FULL, COLLISION = -1, -2, -3


def test_stream_is_found_by_its_mount_alone():
    """Another mount finds nothing."""
    engine = Engine()
    engine.add_stream("/live")
    assert engine.find("/live").mount == "/live"
    assert engine.find("/liv") is None
    assert engine.find("") is None


def test_mount_is_taken_once():
    """The second stream of one mount is refused."""
    engine = Engine()
    engine.add_stream("/live")
    with pytest.raises(MountError, match="'/live' is in use"):
        engine.add_stream("/live")


def test_table_is_bounded():
    """The bound is named in the message."""
    engine = Engine(streams_max=3)
    for i in range(3):
        engine.add_stream(f"/{i}")
    with pytest.raises(MountError, match="3 streams"):
        engine.add_stream("/more")


@pytest.mark.timeout(30)
def test_listing_streams_holds_no_lock_while_python_runs():
    """A collection in the midst of the list lets other threads run: they may look for streams."""
    engine = Engine(streams_max=2000)
    kept = [engine.add_stream(f"/{i}") for i in range(1500)]
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            engine.find("/5")

    def let_others_run(phase: str, info: dict[str, int]) -> None:
        time.sleep(0.001)

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    gc.callbacks.append(let_others_run)
    try:
        for _ in range(20):
            assert len(engine.streams()) == len(kept)
    finally:
        gc.callbacks.remove(let_others_run)
        stop.set()
    looker.join()


@pytest.mark.parametrize("mount", ["", "/" * 256])
def test_mount_of_no_or_too_many_bytes_is_refused(mount):
    """1 to 255 bytes."""
    with pytest.raises(MountError, match="1 to 255"):
        Engine().add_stream(mount)


def test_mount_of_255_bytes_is_kept_whole():
    """The longest mount."""
    engine = Engine()
    engine.add_stream("/" + "ü" * 127)
    assert engine.find("/" + "ü" * 127).mount == "/" + "ü" * 127


@pytest.mark.parametrize("streams_max", [(1 << 20) + 1, 2**32 - 1])
def test_table_beyond_its_bound_does_not_open(streams_max):
    """A number of streams that no node holds is refused instead of allocated."""
    with pytest.raises(MemoryError):
        Engine(streams_max=streams_max)


def test_settings_of_one_mount_reach_that_stream_alone():
    """Overrides by mount: the ring of /small is bounded, that of /other is not."""
    engine = Engine()
    engine.configure("/small", ring_bytes_max=1 << 16)
    small, other = engine.add_stream("/small"), engine.add_stream("/other")
    small.begin()
    other.begin()
    assert small.snapshot()["ring_bytes"] == 1 << 16
    assert other.snapshot()["ring_bytes"] > 1 << 19


def test_number_of_settings_is_bounded():
    """1024 streams may have settings of their own."""
    engine = Engine()
    for i in range(1024):
        engine.configure(f"/{i}")
    with pytest.raises(RelayError, match="1024"):
        engine.configure("/more")


def test_closed_engine_refuses():
    """Every call says that the engine is closed."""
    engine = Engine()
    stream = engine.add_stream("/live")
    stream.begin()
    engine.close()
    for call in (
        lambda: engine.add_stream("/other"),
        lambda: engine.find("/live"),
        stream.view,
        stream.claim,
        lambda: stream.push(b"frame", 20_000),
        stream.give_up,
    ):
        with pytest.raises(RelayError, match="closed"):
            call()


def test_threads_say_who_they_are():
    """`top -H`, perf and the benchmarks tell shards from Python by the thread's name."""
    engine = Engine()
    engine.listen("127.0.0.1", 0)
    engine.start()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    engine.close()
    assert (names.count("relay-shard"), names.count("relay-intake")) == (1, 1)


def test_forked_process_may_not_use_the_engine():
    """The child is told; the parent goes on."""
    engine = Engine()
    pid = os.fork()
    if pid == 0:
        try:
            engine.find("/live")
        except RelayError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert engine.find("/live") is None


def test_forked_process_may_drop_what_it_inherited():
    """Handles and views go without touching what another thread may have locked at the fork."""
    engine = Engine()
    stream = engine.add_stream("/live")
    stream.claim()
    stream.begin()
    stream.push(b"frame", 20_000)
    view = stream.view()
    engine.remove_stream(stream)
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)  # a lock that is never given back would hold it for ever
        del view, stream, engine
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert view.is_whole()


KEYS = st.sampled_from([0, 1, 2, 3, 14, 15, 16, 17, 31, 32, 2**63, 2**64 - 1, 2**64 - 2])


@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=80))
def test_table_and_dict_agree_after_any_adding_and_removing(steps):
    """Keys that share slots, around the end of the table: every probe run stays whole."""
    table, model = TableProbe(8), {}
    for add, key in steps:
        mount = b"/%d" % key
        if add:
            answer = TAKEN if key in model else FULL if len(model) == 8 else 0
            assert table.add(mount, key) == answer
            if answer == 0:
                model[key] = mount
        else:
            assert table.remove(key) == (model.pop(key, None) is not None)
        for other in (0, 1, 2, 3, 14, 15, 16, 17, 31, 32, 2**63, 2**64 - 1, 2**64 - 2):
            assert table.find(other) == model.get(other)


def test_mount_with_the_key_of_another_is_refused():
    """Two mounts with one key cannot both be on a node."""
    table = TableProbe(8)
    assert table.add(b"/one", 7) == 0
    assert table.add(b"/two", 7) == COLLISION
    assert table.find(7) == b"/one"


def test_backbone_sleeps_and_misses_nothing():
    """Each change is seen, whether it comes while the backbone looks, lies down or sleeps."""
    for _ in range(3):
        hub = HubProbe()
        with ThreadPoolExecutor(2) as threads:
            sleeps = threads.submit(hub.serve)
            missed = threads.submit(hub.write_bursts, 8000, 2_000_000)
        assert not missed.result()
        assert sleeps.result() > 0
