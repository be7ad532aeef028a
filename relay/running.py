"""Threads and loops that a node needs in a host that has none to lend, and the interpreter's end.

Rules of this room
  1. `in_thread` is for what blocks: a thread of its own that has ended when it returns, so nothing
     stays in the host's executor.
  2. `LoopThread` runs the loop of a node in plain code; it is a daemon, since one that is not would
     keep the interpreter from ending.
  3. Nodes that are open when the interpreter ends are closed by it, by `at_exit`; not in a forked
     child, which has neither their threads nor a right to their sockets: there every call raises
     (`check_process`), and closing does nothing.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, Self, TypeVar

from relay.errors import RelayError

T = TypeVar("T")


async def in_thread(work: Callable[[], T], name: str = "relay-work") -> T:
    """Do it on a thread of its own; what it returns or raises."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(give: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            give(value)

    def run() -> None:
        try:
            found = work()
        except BaseException as error:
            give, value = future.set_exception, error
        else:
            give, value = future.set_result, found  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, give, value)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        return await future
    finally:
        if future.done() and not future.cancelled():
            thread.join()  # it has nothing left to do


class Closing:
    """What is used in `with` and in `async with` alike, and closed at its end without waiting."""

    def close(self) -> None:
        """Give back what it holds."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises; blocks for it. Not from the loop's own thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the loop and its thread. Twice is no error."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout_s)


class Closes(Protocol):
    """What `at_exit` closes."""

    def close_now(self) -> None:
        """Close without a loop."""


_open: weakref.WeakSet[Closes] = weakref.WeakSet()
_is_forked = False


def at_exit(thing: Closes) -> None:
    """Close it when the interpreter ends, unless `closed` was told before."""
    _open.add(thing)


def closed(thing: Closes) -> None:
    """It has been closed."""
    _open.discard(thing)


def is_forked() -> bool:
    """Whether this is a child that was forked since this module was loaded."""
    return _is_forked


def check_process() -> None:
    """RelayError in a forked child. To be asked before any lock is taken: another thread may have
    held it at the fork, and there is nobody in the child to give it back."""
    if _is_forked:
        raise RelayError(
            "this process was forked: a node, its sources and its readers work in the process that "
            "opened them alone; open new ones in a freshly started process"
        )


def _after_fork() -> None:
    global _is_forked
    _is_forked = True


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _close_all() -> None:
    if is_forked():
        return
    for thing in list(_open):
        with contextlib.suppress(Exception):
            thing.close_now()
