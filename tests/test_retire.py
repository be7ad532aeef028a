"""Retirement: what a reader may still see is freed after its turn, and not before."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay._probe_data import RetireProbe

from relay._core import Engine

READERS = (0, 1, 63, 64, 65)


def test_thing_is_freed_at_once_when_no_reader_is_in_a_turn():
    """Readers between turns hold nothing."""
    retire = RetireProbe()
    retire.retire_one()
    assert retire.counts == (0, 1)


@pytest.mark.parametrize("reader", READERS)
def test_thing_outlives_the_turn_in_which_it_was_unlinked(reader):
    """Each reader's place counts, up to the last one."""
    retire = RetireProbe()
    retire.begin(reader)
    retire.retire_one()
    retire.sweep()
    assert retire.counts == (1, 0)
    retire.end(reader)
    assert retire.counts == (1, 0)  # freeing waits for a sweep, the sweep waits for nobody
    retire.sweep()
    assert retire.counts == (0, 1)


def test_turn_that_begins_after_the_unlinking_does_not_hold_it():
    """Whoever begins later cannot have found it."""
    retire = RetireProbe()
    retire.begin(1)
    retire.retire_one()
    retire.end(1)
    retire.begin(1)
    retire.begin(2)
    retire.sweep()
    assert retire.counts == (0, 1)
    retire.end(1)
    retire.end(2)


def test_things_left_are_freed_at_the_close():
    """Closing frees what is still waiting (a sanitizer would see what is not)."""
    retire = RetireProbe()
    retire.begin(0)
    retire.retire_one()
    assert retire.counts == (1, 0)
    retire.end(0)
    del retire


STEPS = st.one_of(
    st.tuples(st.just("turn"), st.sampled_from(READERS)),
    st.tuples(st.just("retire"), st.just(0)),
    st.tuples(st.just("sweep"), st.just(0)),
)


@given(st.lists(STEPS, max_size=60))
def test_each_thing_waits_for_exactly_the_turns_that_could_see_it(steps):
    """Any order of turns: freed are those whose readers have all ended the turn they were in."""
    retire, inside, waiting, freed = RetireProbe(), dict.fromkeys(READERS, 0), [], 0
    turns = dict.fromkeys(READERS, 0)
    for name, reader in steps:
        if name == "turn":
            (retire.end if inside[reader] else retire.begin)(reader)
            inside[reader] ^= 1
            turns[reader] += 1
            continue
        if name == "retire":
            waiting.append({r: turns[r] for r in READERS if inside[r]})
            retire.retire_one()
        else:
            retire.sweep()
        over = [t for t in waiting if all(turns[r] != turn for r, turn in t.items())]
        waiting = [t for t in waiting if t not in over]
        freed += len(over)
        assert retire.counts == (len(waiting), freed)


# --- rings, counted by their mappings -------------------------------------------------------------


def rings_mapped() -> int:
    """How many rings this process has mapped (each twice)."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    return len(re.findall(r"/memfd:relay-ring", maps)) // 2


def test_rings_that_were_left_for_a_view_go_with_it():
    """However many there were: the writer came near each, and went on in another."""
    engine = Engine()
    engine.configure(ring_bytes_max=1 << 16)
    stream = engine.add_stream("/live")
    stream.begin()
    before = rings_mapped()
    for _ in range(30):
        view = stream.view()
        for _ in range(100):
            stream.push(bytes(1000), 20_000)
        assert view.is_whole()
        del view
        engine.sweep()
    assert rings_mapped() == before


def test_ring_is_freed_with_the_last_handle():
    """A stream that nobody holds leaves no mapping behind."""
    before = rings_mapped()
    engine = Engine()
    stream = engine.add_stream("/live")
    stream.begin()
    assert rings_mapped() == before + 1
    stream.push(b"frame", 20_000)
    engine.close()
    del engine
    assert rings_mapped() == before + 1  # the handle keeps the stream
    del stream
    assert rings_mapped() == before


def test_epochs_and_resizes_leave_one_ring():
    """Old rings go when nobody reads them any more; the epoch before stays until ten seconds of the
    next one are there, with the ring that followed it.
    """
    engine = Engine()
    before = rings_mapped()
    stream = engine.add_stream("/live")
    for _ in range(20):
        stream.begin()
        stream.push(b"frame", 20_000)
        assert stream.resize(1 << 20, 256)
        assert rings_mapped() <= before + 3
        assert stream.snapshot()["rings"] <= 3
    for _ in range(800):
        stream.push(b"frame", 20_000)
    assert rings_mapped() == before + 1
    assert stream.snapshot()["rings"] == 1


def test_view_pins_its_ring_and_no_other():
    """A view keeps its bytes; the rings after it come and go, and the source is never refused."""
    engine = Engine()
    before = rings_mapped()
    stream = engine.add_stream("/live")
    stream.begin()
    stream.push(b"first", 20_000)
    view = stream.view()
    run = memoryview(view)
    del view
    for _ in range(20):
        stream.begin()
        stream.push(b"other", 20_000)
    assert rings_mapped() == before + 3  # the first, the newest and the one before it
    assert stream.snapshot()["rings"] == 2
    assert bytes(run) == b"first"
    del run
    assert rings_mapped() == before + 2


def test_view_outlives_its_stream_and_engine():
    """The bytes of a view stay valid when everything else is gone."""
    before = rings_mapped()
    engine = Engine()
    stream = engine.add_stream("/live")
    stream.begin()
    stream.push(b"audio", 20_000)
    view = stream.view()
    engine.close()
    del stream, engine
    assert rings_mapped() == before + 1
    assert bytes(view) == b"audio"
    assert view.is_whole()
    del view
    assert rings_mapped() == before


# --- readers that hold the GIL --------------------------------------------------------------------

STOPS, STOPS_MIN = 4000, 50
READ = """
import sys, threading
from collections import deque
from itertools import repeat, starmap
from relay import _core
from relay._probe_data import rewrite

def letters(data):
    assert len(set(data)) <= 1, "what was read was freed and written again meanwhile"

engine = _core.Engine()
engine.configure(ring_s=1)
stream = engine.add_stream("/live")
stream.begin(epoch=10)
stream.push(b"frame", 20_000)
what = sys.argv[1]
read = {
    "ring": stream.at_head,
    "before": lambda: stream.run(1, 0, 1, None),
    "info": lambda: letters(stream.info()),
    "header": lambda: letters(stream.header()),
    "title": lambda: letters(stream.snapshot()["title"] or ""),
    "framed": lambda: letters(stream.framed_here()[0][-1000:]),
}[what]
stopped = []

def write(times):
    rings, reader = what in ("ring", "before"), threading.main_thread().ident
    stopped.append(rewrite(_core.pointer_of(stream), rings, times, reader))

write(1)  # there is something to be replaced
writer = threading.Thread(target=write, args=(int(sys.argv[2]),))
writer.start()
while writer.is_alive():
    deque(starmap(read, repeat((), 200)), 0)
print(stopped[1])
"""


@pytest.mark.parametrize("what", ["ring", "before", "info", "header", "title", "framed"])
def test_a_reader_in_python_is_a_reader_too(what: str, core_env: dict[str, str]) -> None:
    """A thread without the GIL replaces what it looks for, several thousand times, each time while
    it stands still in the midst of some look: nothing that it has found is freed before its end."""
    command = [sys.executable, "-P", "-c", READ, what, str(STOPS)]
    done = subprocess.run(command, env=core_env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{what}: {done.returncode} {done.stderr[-2000:]}"
    assert int(done.stdout) >= STOPS_MIN
