# frames.pxd: cuts the bytes of a source into frames: the door that others cimport.
#
# Rules of this room
#   1. The caller keeps what was not used and calls again with more behind it; after a return
#      above zero it calls again at once.
#   2. However the stream is split, the frames are the same.
#   3. FRAME_BYTES_MAX bytes in hand are always enough for a step: no buffer has to be larger.
#   4. Before the first frame a source may be refused (below zero; scan_reason tells why). After
#      it, damage is discarded and counted, and never ends the source.
#   5. At the end of a source there is nothing to flush: a frame went out with its last byte. What
#      is still in hand is part of a frame, or, never in lock, a lone frame that none confirmed.
#   6. A source that sends nothing but tags (ID3: up to 256 MiB each) has no frames and no end:
#      silence is for the caller to bound.

from relay._core.frames_adts cimport scan_adts
from relay._core.frames_mpeg cimport scan_mpeg
from relay._core.frames_ogg cimport scan_ogg
from relay._core.frames_state cimport *
from relay._core.frames_webm cimport scan_webm


cdef inline void scan_open(scan_t* scan, int kind) noexcept nogil:
    """A new source: all counters, and all that was learnt, begin anew."""
    memset(scan, 0, sizeof(scan_t))
    scan.kind = kind


cdef inline int64_t scan_next(
    scan_t* scan, const uint8_t* bytes, size_t size, cut_t* cut
) noexcept nogil:
    """One step from the front of bytes.

    Above 0: bytes used, skipped_bytes + frame_bytes, and the cut is filled. 0: more needed,
    nothing used. Below 0: why this source cannot go on.
    """
    if scan.kind == SCAN_MPEG:
        return scan_mpeg(scan, bytes, size, cut)
    if scan.kind == SCAN_ADTS:
        return scan_adts(scan, bytes, size, cut)
    if scan.kind == SCAN_OGG:
        return scan_ogg(scan, bytes, size, cut)
    if scan.kind == SCAN_WEBM:
        return scan_webm(scan, bytes, size, cut)
    return SCAN_UNKNOWN_KIND
