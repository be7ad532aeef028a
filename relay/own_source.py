"""A source in the host's own process: bytes, PCM and titles, from any thread.

Rules of this room
  1. `NodeSource` is what a host holds; the mount and its epoch are `relay.source`'s, encoding is
     `relay.pcm`'s. Nothing here blocks but the end of a source that encodes.
  2. Bytes or PCM: a source takes one of the two, as it was opened.
  3. One that encodes is in its node's set while its encoder lives: the node ends it when it closes
     before the source does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from relay.errors import RelayError, SourceError
from relay.running import check_process, in_thread, is_forked
from relay.source import LocalSource
from relay.sources import Sources

if TYPE_CHECKING:
    from relay.pcm import PcmEncoder, PcmFacts, PcmForm


class NodeSource:
    """A source in this process: `async with node.source("/live", content_type=…) as live`."""

    def __init__(
        self,
        sources: Sources,
        mount: str,
        content_type: str,
        headers: Mapping[str, str],
        pcm: PcmForm | None = None,
        encoding: set[NodeSource] | None = None,
    ) -> None:
        self._encoding = set() if encoding is None else encoding
        self._sources: Sources | None = sources
        self._mount = mount
        self._content_type = content_type
        self._headers = headers
        self._source: LocalSource | None = None
        self._was_open = False
        self._epoch = 0
        self._pcm = pcm
        self._encoder: PcmEncoder | None = None
        self._facts: PcmFacts | None = None  # the last ones

    def __repr__(self) -> str:
        source = self._source
        is_new = source is None and not self._was_open
        state = "new" if is_new else "open" if source and source.is_open else "closed"
        return f"<{type(self).__name__} {self._mount} {self._content_type} {state}>"

    def open(self) -> Self:
        """Claim the mount and begin an epoch; MountError, SourceError. Does not block."""
        if self._source is not None:
            return self
        if self._was_open:
            raise SourceError(f"{self._mount}: this source is closed; open a new one")
        assert self._sources is not None
        self._source = source = self._sources.open(self._mount, self._content_type, self._headers)
        self._was_open, self._epoch = True, source.epoch
        if self._pcm is not None:
            self._start_encoder(self._pcm, source)
        return self

    def _start_encoder(self, pcm: PcmForm, source: LocalSource) -> None:
        from relay.pcm import PcmEncoder

        try:
            self._encoder = PcmEncoder(pcm, source.feed, self._mount)
            self._encoding.add(self)
            if not source.is_open:  # its node has looked through the set before
                raise SourceError(f"{self._mount}: this node is shutting down")
        except BaseException:
            self.close()
            raise

    def finish(self) -> None:
        """Take no more PCM; what was fed is encoded still. Does not block."""
        if (encoder := self._encoder) is not None:
            encoder.finish()

    def close(self, timeout_s: float = 2.0) -> None:
        """End the epoch; listeners stay for linger_s. Does not block, but where PCM is encoded:
        what was fed is encoded first, for at most `timeout_s`. Twice is no error, nor in a forked
        child. A node that closes does this, too."""
        if is_forked():
            return
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close(timeout_s)
            self._facts = encoder.facts()
            self._encoding.discard(self)
        source, self._source = self._source, None
        if source is not None and self._sources is not None:
            self._sources.close(source)
            self._sources = None  # the engine of a node that has closed goes with its last user

    def feed(self, data: bytes | bytearray | memoryview) -> float:
        """Send bytes of the stream: whole frames go out, a partial one waits for its rest.

        Args:
            data: any bytes-like object that lies in one piece, cut anywhere. Fed from any thread.

        Returns:
            ms that the source is ahead of real time; who generates faster than that sleeps for it,
            or its listeners will skip. Never blocks.

        Raises:
            SourceError: not the promised format, or the source is closed, or it was opened for PCM.
        """
        if self._pcm is not None:
            raise SourceError(f"{self._mount}: this source takes PCM: call feed_pcm(…)")
        return self._opened().feed(data) / 1000

    def feed_pcm(self, samples: Any, rate_hz: int | None = None) -> float:
        """Encode and send a block of PCM. Fed from any thread; never blocks.

        Args:
            samples: a numpy array of int16, or float32 within -1 … 1, shape (frames, channels); for
                one channel (frames,) as well. It is copied.
            rate_hz: its sample rate; when given it must be the one that the source was opened with.

        Returns:
            ms that the source is ahead of real time, as for `feed`.

        Raises:
            SourceError: another type, shape or rate; the source is closed, or takes bytes.
        """
        if self._pcm is None:
            raise SourceError(
                f"{self._mount}: this source takes bytes: open it with "
                f"node.source({self._mount!r}, codec=…, rate_hz=…, channels=…) for PCM"
            )
        source, encoder = self._opened(), self._encoder
        if encoder is None or not source.is_open:
            raise SourceError(f"{self._mount}: this source is closed; open a new one")
        return encoder.feed(samples, rate_hz)

    def pcm_facts(self) -> PcmFacts | None:
        """What encoding has come to: frames, dropped blocks, real-time factor; None without PCM."""
        check_process()
        return self._facts if self._encoder is None else self._encoder.facts()

    def title(self, text: str) -> None:
        """Set what is playing from here on. From any thread; does not block."""
        self._opened().title(text)

    @property
    def mount(self) -> str:
        """The public path."""
        return self._mount

    @property
    def epoch(self) -> int:
        """The epoch that this source began, in ms."""
        if not self._was_open:
            self._opened()
        return self._epoch

    def _opened(self) -> LocalSource:
        check_process()
        source = self._source
        if source is not None:
            return source
        if self._was_open:
            raise SourceError(f"{self._mount}: this source is closed; open a new one")
        raise RelayError(f"{self._mount}: open the source first: async with node.source(…)")

    async def __aenter__(self) -> Self:
        return self.open()

    async def __aexit__(self, *error: object) -> None:
        if self._encoder is None:
            self.close()
        else:
            await in_thread(self.close)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()
