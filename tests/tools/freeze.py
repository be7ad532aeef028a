"""One thread of a process stands still, the others go on: what SIGSTOP cannot do.

Rules of this room
  1. Linux' ptrace(2), from the thread that began it and to our own children only.
  2. Leaving the `with` lets the thread go on; so does the end of the test's process.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.nodes import wait_until

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
SIGTERM_BIT = 1 << 14


def engine_threads(pid: int) -> list[int]:
    """Return the threads that take no signals, in the order they began: libzmq's and the engine's.

    The engine starts its backbone first, then its shards, then its intake.
    """
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        blocked = next(line.split()[1] for line in lines if line.startswith("SigBlk:"))
        if int(blocked, 16) & SIGTERM_BIT:
            found.append(int(task.name))
    return sorted(found)


def is_stopped(pid: int, thread: int) -> bool:
    """Whether the thread stands still for its tracer."""
    text = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
    return text.rpartition(")")[2].split()[0] == "t"


@contextmanager
def frozen(pid: int, thread: int) -> Iterator[None]:
    """Fault `freeze`: this thread of the process stands still."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(request: int) -> None:
        if libc.ptrace(request, thread, None, None) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"ptrace({request:#x}): {os.strerror(number)}")

    ptrace(PTRACE_SEIZE)
    ptrace(PTRACE_INTERRUPT)
    wait_until(lambda: is_stopped(pid, thread), 2.0, what=f"thread {thread} stands still")
    try:
        yield
    finally:
        ptrace(PTRACE_DETACH)
