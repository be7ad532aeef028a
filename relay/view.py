"""The bytes of a stream where they lie in the ring, without a copy, for the length of a block.

Rules of this room
  1. What a block looks at stays as it is: before the writer comes near, the stream goes on in
     another ring. Where it cannot (a hole stays open for longer than the view is away from the
     writer, there is no memory, or too many epochs are still being heard) audio goes before: bytes
     are overwritten, and check() and the block's end raise.
  2. Behind the block nothing shows the ring any more: its memoryview is released, and whatever else
     shows it still (an array, a slice) is an error, for it keeps a ring of memory.
  3. Memory that Python can reach is never unmapped, whatever becomes of the stream and the node.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from relay.errors import OvertakenError, RelayError
from relay.running import check_process

if TYPE_CHECKING:
    from relay._core import RingView


class View:
    """All frames of a stream that the ring holds, one behind the other, without a copy:
    `with reader.view() as view`. Once; for one thread.

    The bytes do not change while the block looks at them. It begins a fifth of the ring before the
    writer; whoever takes longer than half of that audio lasts costs a copy of the ring, once.

    Args:
        run: pins the bytes.
    """

    def __init__(self, run: RingView) -> None:
        self._run: RingView | None = run
        self._data: memoryview | None = None
        self.epoch = run.epoch
        """Of the source's run, ms."""
        self.position = run.first_position
        """Of the first byte, within the epoch: where a frame begins."""

    def __repr__(self) -> str:
        state = "over" if self._run is None else "new" if self._data is None else "open"
        return f"<{type(self).__name__} {self.epoch}/{self.position} {state}>"

    @property
    def data(self) -> memoryview:
        """The bytes, to be read only; for `numpy.frombuffer(view.data, "u1")`. Released at the
        block's end.

        Raises:
            RelayError: outside of the block.
        """
        if self._data is None:
            raise RelayError("a view shows nothing outside of its block: with reader.view() as …")
        return self._data

    def check(self) -> None:
        """In a block of seconds: go on only while it is worth it. Does not block.

        Raises:
            OvertakenError: the oldest bytes have been overwritten, for want of another ring.
            RelayError: outside of the block.
        """
        if self._run is None:
            raise RelayError("this view is over: make another one")
        self._check(self._run.is_whole())

    def __enter__(self) -> Self:
        check_process()
        if self._run is None or self._data is not None:
            raise RelayError("a view is entered once: make another one")
        self._data = memoryview(self._run)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        run, data = self._run, self._data
        assert run is not None
        assert data is not None
        self._run = self._data = None
        with contextlib.suppress(BufferError):  # an array shows it
            data.release()
        is_whole, is_held = run.is_whole(), run.is_held
        del run, data  # an error that somebody keeps must not keep the ring
        if error is None or (isinstance(error, Exception) and type(error) is not OvertakenError):
            self._check(is_whole)  # an error may well come from bytes that were none
        if error is None and is_held:
            raise RelayError(
                "an array or a slice still shows the ring behind the block: keep a copy "
                "(numpy.array(…), bytes(…)), and let go of the rest (del)"
            )

    def _check(self, is_whole: bool) -> None:
        check_process()  # a child sees what its parent writes, and not where
        if not is_whole:
            raise OvertakenError(
                f"epoch {self.epoch}: the bytes from position {self.position} on were overwritten "
                "while they were looked at, for the writer could go nowhere else: be quicker, or "
                "read copies (subscribe)"
            )
