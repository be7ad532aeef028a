# _core.pyx: the data plane's face: what Python may call.

# ---- frames: a face on the scanners, for tests and benchmarks ----
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from relay._core.frames cimport (
    SCAN_ADTS,
    SCAN_MPEG,
    SCAN_OGG,
    cut_t,
    int64_t,
    scan_bit_rate_bps,
    scan_next,
    scan_open,
    scan_reason,
    scan_t,
    uint8_t,
)
from relay.errors import SourceError

_SCAN_KINDS = {"mpeg": SCAN_MPEG, "adts": SCAN_ADTS, "ogg": SCAN_OGG}


cdef class Scanner:
    """Cuts bytes into frames and keeps what is not whole yet. Never blocks; for one thread."""

    cdef scan_t _scan
    cdef bytes _carry
    cdef readonly unsigned long long skipped_bytes_total

    def __cinit__(self, str kind):
        scan_open(&self._scan, _SCAN_KINDS[kind])
        self._carry = b""

    def feed(self, data):
        """Return the frames that are whole now: (bytes, duration µs, flags). Raises SourceError."""
        cdef bytes joined = self._carry + bytes(data)
        cdef const uint8_t* front = joined
        cdef size_t size = len(joined), used = 0
        cdef int64_t step
        cdef cut_t cut
        frames = []
        while True:
            step = scan_next(&self._scan, front + used, size - used, &cut)
            if step <= 0:
                break
            self.skipped_bytes_total += cut.skipped_bytes
            used += step
            if cut.frame_bytes:
                frames.append((joined[used - cut.frame_bytes:used], cut.duration_us, cut.flags))
        self._carry = joined[used:]
        if step < 0:
            raise SourceError(scan_reason(step).decode())
        return frames

    def measure(self, bytes data, int rounds):
        """Scan data anew `rounds` times without the GIL: (seconds, frames, bytes in frames)."""
        cdef scan_t scan
        cdef cut_t cut
        cdef const uint8_t* front = data
        cdef size_t size = len(data), used
        cdef int64_t step
        cdef unsigned long long frames = 0, frame_bytes = 0
        cdef timespec begin, end
        cdef int kind = self._scan.kind
        with nogil:
            clock_gettime(CLOCK_MONOTONIC, &begin)
            for _ in range(rounds):
                scan_open(&scan, kind)
                used = 0
                step = 1
                while step > 0:
                    step = scan_next(&scan, front + used, size - used, &cut)
                    used += step if step > 0 else 0
                frames += scan.frames_total
                frame_bytes += scan.frame_bytes_total
            clock_gettime(CLOCK_MONOTONIC, &end)
        seconds = (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) * 1e-9
        return seconds, frames, frame_bytes

    @property
    def pending_bytes(self):
        """Bytes fed that are neither discarded nor part of a frame yet."""
        return len(self._carry)

    @property
    def totals(self):
        """What was found and counted so far, by the names of scan_t."""
        cdef dict found = self._scan
        found.pop("ogg_tracks")
        found["bit_rate_bps"] = scan_bit_rate_bps(&self._scan)
        return found
