"""Threads and loops that nodes need in hosts without one."""

from __future__ import annotations

import asyncio
import threading

import pytest

from relay.running import LoopThread, in_thread


async def test_work_in_a_thread_leaves_no_thread() -> None:
    """Its result and its errors come back, and the thread has ended by then."""
    here = threading.get_ident()
    assert await in_thread(threading.get_ident, "in a thread") != here
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0, "in a thread")
    assert not [one for one in threading.enumerate() if one.name == "in a thread"]


async def test_nobody_waits_for_work_that_was_given_up() -> None:
    """Cancelled meanwhile: the thread ends by itself, and says nothing."""
    go = threading.Event()
    task = asyncio.create_task(in_thread(go.wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()


def test_a_loop_of_its_own_runs_and_ends() -> None:
    """Coroutines run on it; stopping ends its thread and cancels what is left."""
    loop = LoopThread("a loop of its own")
    left = []

    async def work() -> int:
        async def for_ever() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                left.append("cancelled")

        loop.keep = asyncio.create_task(for_ever())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return 7

    assert loop.run(work()) == 7
    with pytest.raises(ZeroDivisionError):
        loop.run(in_thread(lambda: 1 // 0))
    loop.stop()
    loop.stop()
    assert left == ["cancelled"]
    assert not [one for one in threading.enumerate() if one.name == "a loop of its own"]
    assert loop.loop.is_closed()
