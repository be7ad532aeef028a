# frames.pxd: cuts the bytes of a source into frames; the door to the scanners, the one room others cimport.
#
# Rules of this room
#   1. The caller keeps what was not used and calls again with more behind it; after a return above zero it calls at once.
#   2. However the stream is split, the frames are the same.
#   3. FRAME_BYTES_MAX bytes in hand are always enough for a step: a carry buffer never has to be larger.
#   4. Before the first frame a source may be refused (below zero: scan_reason tells why); after it damage is
#      discarded, counted, and never ends the source.
#   5. At the end of a source there is nothing to flush: a whole frame went out when its last byte came. What is
#      still in hand is part of a frame, or, never in lock, a lone frame that nothing confirmed.
#   6. A source that sends nothing but tags (ID3 up to 256 MiB) has no frames and no end: silence is the caller's bound.

from relay._core.frames_state cimport *
from relay._core.frames_mpeg cimport scan_mpeg


cdef inline void scan_open(scan_t* scan, int kind) noexcept nogil:
    """A new source: all counters and all that was learnt begin anew."""
    memset(scan, 0, sizeof(scan_t))
    scan.kind = kind


cdef inline int64_t scan_next(scan_t* scan, const uint8_t* bytes, size_t size, cut_t* cut) noexcept nogil:
    """One step from the front of bytes. Above 0: bytes used, skipped_bytes + frame_bytes, the cut is filled;
    0: more needed, nothing used; below 0: why this source cannot go on."""
    if scan.kind == SCAN_MPEG:
        return scan_mpeg(scan, bytes, size, cut)
    return SCAN_UNKNOWN_KIND
