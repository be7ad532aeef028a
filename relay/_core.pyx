# _core.pyx: the data plane's face: what Python may call.

# ---- frames: a face on the scanners, for tests and benchmarks ----
from libc.stdint cimport int64_t as _scan_int64_t
from posix.time cimport CLOCK_MONOTONIC as _SCAN_CLOCK, clock_gettime as _scan_clock, timespec as _scan_timespec
from relay._core.frames cimport (
    SCAN_ADTS,
    SCAN_MPEG,
    SCAN_OGG,
    cut_t,
    scan_bit_rate_bps,
    scan_next,
    scan_open,
    scan_reason,
    scan_t,
)
from relay.errors import SourceError as _SourceError

_SCAN_KINDS = {"mpeg": SCAN_MPEG, "adts": SCAN_ADTS, "ogg": SCAN_OGG}


cdef class Scanner:
    """Cuts bytes into frames; keeps what is not whole yet. Not for two threads at once; never blocks."""

    cdef scan_t _scan
    cdef bytes _carry
    cdef readonly unsigned long long skipped_bytes_total

    def __cinit__(self, str kind):
        scan_open(&self._scan, _SCAN_KINDS[kind])
        self._carry = b""

    def feed(self, data):
        """The frames that became whole, as (bytes, duration in µs, flags). Raises SourceError."""
        cdef bytes joined = self._carry + bytes(data)
        cdef const unsigned char* front = joined
        cdef size_t size = len(joined), used = 0
        cdef _scan_int64_t step
        cdef cut_t cut
        frames = []
        while True:
            step = scan_next(&self._scan, front + used, size - used, &cut)
            if step <= 0:
                break
            assert step == <_scan_int64_t>cut.skipped_bytes + cut.frame_bytes and used + step <= size
            self.skipped_bytes_total += cut.skipped_bytes
            used += step
            if cut.frame_bytes:
                frames.append((joined[used - cut.frame_bytes:used], cut.duration_us, cut.flags))
        self._carry = joined[used:]
        if step < 0:
            raise _SourceError(scan_reason(step).decode())
        return frames

    def measure(self, bytes data, int rounds):
        """Scan data from its beginning `rounds` times, without the GIL: (seconds, frames, bytes in frames)."""
        cdef scan_t scan
        cdef cut_t cut
        cdef const unsigned char* front = data
        cdef size_t size = len(data), used
        cdef _scan_int64_t step
        cdef unsigned long long frames = 0, frame_bytes = 0
        cdef _scan_timespec begin, end
        cdef int kind = self._scan.kind
        with nogil:
            _scan_clock(_SCAN_CLOCK, &begin)
            for _ in range(rounds):
                scan_open(&scan, kind)
                used = 0
                while True:
                    step = scan_next(&scan, front + used, size - used, &cut)
                    if step <= 0:
                        break
                    used += step
                frames += scan.frames_total
                frame_bytes += scan.frame_bytes_total
            _scan_clock(_SCAN_CLOCK, &end)
        return (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) * 1e-9, frames, frame_bytes

    @property
    def pending_bytes(self):
        """Bytes fed that are neither discarded nor part of a frame yet."""
        return len(self._carry)

    @property
    def totals(self):
        """What was found and counted so far, by the names of scan_t."""
        found = self._scan
        found.pop("ogg_tracks")
        return found | {"bit_rate_bps": scan_bit_rate_bps(&self._scan)}
