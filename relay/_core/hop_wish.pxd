# hop_wish.pxd: decides when a node wishes for a newer epoch than any that it is told of.
#
# Rules of this room
#   1. No I/O, no clock: the caller (backbone_ask.pxd) shows it a view and the time, and says what
#      is wished to every parent that hop_wish_reaches.
#   2. Two sources of one mount at two origins: the higher epoch is heard, the other is shadowed.
#      When nothing comes of the higher one any more, and a parent has a source in a lower epoch,
#      then that one is wished to begin above: frames of a lower epoch are never heard again.
#   3. A wish of a child is passed on at most once each WISH_PASS_US, and else forgotten: who wishes
#      says it again, and no wish runs in a circle.
#   4. All times µs (monotonic), epochs ms (wall clock).

from libc.stdint cimport uint32_t, uint64_t

from relay._core.hop cimport *
from relay._core.parents cimport parent_t, peer_is_there

cdef enum:
    WISH_US = 1000000         # nothing new for so long (and three frames): a wish …
    WISH_AGAIN_US = 500000    # … which is said again after this, twice as long each time …
    WISH_AGAIN_US_MAX = 4000000   # … up to this
    WISH_PASS_US = 300000

cdef inline bint hop_wish_reaches(
    const hop_t* hop, const hop_view_t* view, uint32_t i, uint64_t epoch,
) noexcept nogil:
    # Has this parent a source in a lower epoch than the one that `epoch` is to follow? Of that one
    # itself none is wished: its own source may still come back to it.
    cdef const parent_t* parent = &hop.feed.parents[i]
    return peer_is_there(&view.feed.peers[i]) and parent.lists and parent.up and (
        parent.epoch + 1 < epoch
    )

cdef inline bint hop_wish_reaches_any(
    const hop_t* hop, const hop_view_t* view, uint64_t epoch,
) noexcept nogil:
    cdef uint32_t i
    for i in range(hop.feed.parents_count):
        if hop_wish_reaches(hop, view, i, epoch):
            return True
    return False

cdef inline uint64_t hop_wish_own(
    hop_t* hop, const hop_view_t* view, uint64_t now,
) noexcept nogil:
    # What this node wishes for itself, if it is time to say it; 0: nothing.
    cdef uint64_t heard = hop.told_epoch if hop.told_epoch > hop.epoch else hop.epoch
    if not hop.subscribed or view.written_here or heard == 0 or (
        hop.still_epoch != heard or hop.still_sequence != view.head_sequence
    ):
        hop.still_epoch = heard
        hop.still_sequence = view.head_sequence
        hop.still_us = now
        hop.wish_again_us = 0
        return 0
    if now - hop.still_us < WISH_US + HOP_SILENT_FRAMES * view.frame_us + hop.wish_again_us:
        return 0
    if not hop_wish_reaches_any(hop, view, heard + 1):
        return 0
    hop.still_us = now - WISH_US - HOP_SILENT_FRAMES * view.frame_us
    hop.wish_again_us = 2 * hop.wish_again_us if hop.wish_again_us else WISH_AGAIN_US
    if hop.wish_again_us > WISH_AGAIN_US_MAX:
        hop.wish_again_us = WISH_AGAIN_US_MAX
    return heard + 1

cdef inline uint64_t hop_wish(
    hop_t* hop, const hop_view_t* view, uint64_t now,
) noexcept nogil:
    # The least epoch that is wished for now, by this node or a child; 0: none is.
    cdef uint64_t epoch = hop_wish_own(hop, view, now)
    if hop.wished_epoch > epoch:
        epoch = hop.wished_epoch
    hop.wished_epoch = 0
    if epoch == 0 or now < hop.wish_pass_us or not hop_wish_reaches_any(hop, view, epoch):
        return 0
    hop.wish_pass_us = now + WISH_PASS_US
    return epoch
