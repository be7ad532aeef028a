# hop.pxd: what a link knows of its stream upstream, and what each thing heard changes in it; what
# to do about it is decided in hop_step.pxd, who feeds it in parents.pxd.
#
# Rules of this room
#   1. No I/O, no clock, no ring: the caller (backbone_ask.pxd) hands it what was heard, and when.
#   2. One request at a time is open for a stream.
#   3. A hole is waited for repair_wait_us; each `later`, and each upstream that comes back, gives
#      half a second more, four times the wait at most.
#   4. All times µs (monotonic), epochs ms (wall clock).

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from relay._core.parents cimport *

cdef enum:  # states of a link
    HOP_IDLE = 0              # nobody wants the stream: not subscribed
    HOP_JOINING = 1           # subscribed; no ring yet
    HOP_LIVE = 2              # the ring follows the upstream's
    HOP_ENDED = 3             # the epoch is over and whole (or its rest is lost)

cdef enum:  # what to do next
    HOP_NOTHING = 0
    HOP_SUBSCRIBE = 1         # at `parent`
    HOP_UNSUBSCRIBE = 2       # at all of them, and forget the ring
    HOP_JOIN = 3              # ask `parent`, as the next two
    HOP_REPAIR = 4            # for [from, to)
    HOP_BACKFILL = 5          # the same, before the base
    HOP_GIVE_UP = 6           # [from, to) is lost
    HOP_END = 7               # the epoch is over; `lost` frames of it never came
    HOP_LEAVE = 8             # unsubscribe at `parent` alone

cdef enum:  # why frames are lost
    LOST_GONE = 0             # every upstream that fits says that they will never come
    LOST_WAIT = 1             # they did not come within the wait
    LOST_OUTAGE = 2           # more than the ring bridges: it began anew behind them

cdef enum:
    HOP_CALM_US = 100000      # the beat of links at which nothing happens
    HOP_RETRY_US = 20000
    HOP_RETRY_US_MAX = 200000
    HOP_ANSWER_US = 500000    # a request without any answer is asked again
    HOP_STALE_US = 100000     # the upstream is ahead of us for so long: something was dropped
    HOP_GRACE_US = 500000     # more time for each `later`
    HOP_MERGE_US = 20000      # so long the other parents of a merge have to fill a hole unasked
    HOP_EPOCH_AHEAD_MS = 60000
    HOP_BACKFILL_BYTES = 98304
    HOP_BACKFILL_TRIES = 4
    HOP_DENIED_US = 250000    # an epoch that was told and not served is not heard for so long …
    HOP_DENIED_DOUBLINGS = 8  # … twice as long each time
    HOP_FRAME_US = 20000      # where no frame has been seen yet
    HOP_SILENT_FRAMES = 3     # so many frames' time and silence_us without news is silence

cdef struct hop_view_t:       # what the decision needs to know of the world
    feed_view_t feed          # the caller fills peers, merge and salt
    bint wanted               # listeners, readers, children, or prefetch
    bint written_here         # a local source has the mount
    uint64_t head_sequence
    uint64_t hole_end_sequence  # first frame beyond the hole at the head; head_sequence: no hole
    uint64_t base_sequence
    uint64_t frame_bytes      # average
    uint64_t frame_us         # the same, of their durations
    uint64_t held_us          # media between base and head
    uint64_t ring_us
    uint64_t linger_us
    uint64_t repair_wait_us
    uint64_t silence_us

cdef struct hop_act_t:
    int what                  # HOP_…
    uint32_t parent           # its place among the upstreams
    uint32_t cause            # LOST_…
    uint64_t from_sequence
    uint64_t to_sequence
    uint64_t lost

cdef struct hop_t:
    feed_t feed
    uint32_t state
    bint subscribed
    bint final_known          # a parent has told the end, and no other that fits contradicts it
    bint far                  # frames came that do not fit ahead of our head
    bint back_over            # nothing older is to be had, or the ring holds enough
    uint64_t told_epoch       # the newest that an upstream has told of; 0: none
    uint64_t epoch            # of the ring that this link fills; 0: none
    uint64_t target_sequence  # an upstream has sent up to here
    uint64_t final_sequence   # the end of the epoch
    uint64_t end_us           # since when a parent says that the epoch ends where we know no more
    uint32_t back_tries
    uint64_t back_base        # the base when backfill last asked
    uint64_t wanted_us
    uint64_t joining_us       # since when there should be a ring and is none
    uint64_t moved_us         # when the head last moved, and to where
    uint64_t moved_sequence
    uint64_t news_us          # when it last moved, or waiting began anew
    uint64_t newer_us         # since when a newer epoch is told of while ours goes on; 0: it is not
    uint64_t wished_epoch     # a child wishes for this epoch or a higher one; 0: none
    uint64_t wish_pass_us     # no wish is said before
    uint64_t wish_again_us    # how much later than the first ours is said again; 0: not said yet
    uint32_t wish_request     # the id that the last one had
    uint64_t still_us         # since when the head has not moved, in this epoch and at this frame
    uint64_t still_epoch
    uint64_t still_sequence
    uint64_t hole_us          # since when the hole at hole_sequence is there; 0: none
    uint64_t hole_sequence
    uint64_t hole_until_us    # it is waited for until then …
    uint64_t hole_latest_us   # … which may come later, but not later than this
    # the open request: HOP_JOIN, HOP_REPAIR, HOP_BACKFILL; HOP_NOTHING: none
    uint32_t asked
    uint32_t asked_of         # which parent
    uint32_t request          # its id
    uint64_t asked_head
    uint64_t answer_by_us
    uint64_t timeouts

cdef inline void hop_open(hop_t* hop, uint32_t parents_count) noexcept nogil:
    # Of zeroed memory.
    feed_open(&hop.feed, parents_count)

cdef inline void hop_forget(hop_t* hop) noexcept nogil:
    # The stream has gone: all but what the upstreams have told of its mount, and where it is
    # subscribed.
    cdef hop_t old = hop[0]
    cdef uint32_t i
    memset(hop, 0, sizeof(hop_t))
    hop_open(hop, old.feed.parents_count)
    hop.told_epoch = old.told_epoch
    for i in range(old.feed.parents_count):
        parent_told_again(&hop.feed.parents[i], &old.feed.parents[i])

cdef inline void hop_untold(hop_t* hop) noexcept nogil:
    # A parent has withdrawn: what do the others tell?
    cdef uint32_t i
    hop.told_epoch = hop.epoch
    for i in range(hop.feed.parents_count):
        if hop.feed.parents[i].lists and hop.feed.parents[i].epoch > hop.told_epoch:
            hop.told_epoch = hop.feed.parents[i].epoch

cdef inline uint64_t hop_tail(uint64_t head_sequence) noexcept nogil:
    # Asked for up to here where nobody has told the end.
    return head_sequence + (<uint64_t>1 << 32)

# --- what was heard ------------------------------------------------------------------------------

cdef inline bint hop_told(
    hop_t* hop, uint32_t parent, uint64_t epoch, uint64_t wall_ms,
) noexcept nogil:
    # This upstream has this epoch. False: refused, too far ahead of the clock.
    cdef parent_t* told = &hop.feed.parents[parent]
    if epoch > wall_ms + HOP_EPOCH_AHEAD_MS:
        return False
    if epoch > told.epoch:
        told.epoch = epoch
        told.retry_us = 0
    if epoch > hop.told_epoch:
        hop.told_epoch = epoch
    return True

cdef inline bint hop_believes(
    const hop_t* hop, uint32_t parent, uint64_t epoch, uint64_t now,
) noexcept nogil:
    # Is what this upstream tells of an epoch heard?
    cdef const parent_t* told = &hop.feed.parents[parent]
    return epoch > told.denied_epoch or now >= told.denied_until_us

cdef inline void hop_denied(
    hop_t* hop, uint32_t parent, uint64_t epoch, uint64_t now,
) noexcept nogil:
    # Asked for its newest epoch it gives an older one than it has told of: there is no newer. Until
    # denied_until_us it is not heard on that; if there is one, its beacons after that say so.
    cdef parent_t* told = &hop.feed.parents[parent]
    if told.epoch > told.denied_epoch:
        told.denied_epoch = told.epoch
    told.epoch = epoch
    told.denied_until_us = now + (<uint64_t>HOP_DENIED_US << told.denied)
    if told.denied < HOP_DENIED_DOUBLINGS:
        told.denied += 1
    hop_untold(hop)

cdef inline void hop_ends(
    hop_t* hop, uint32_t parent, uint64_t sequence, bint end,
) noexcept nogil:
    # What this upstream says of the end: it is here, or (it has sent more) it is not.
    cdef parent_t* told = &hop.feed.parents[parent]
    if end:
        told.ended = True
        told.end_sequence = sequence
    elif told.ended and sequence > told.end_sequence:
        told.ended = False

cdef inline bint hop_reaches(
    hop_t* hop, uint32_t parent, uint64_t epoch, uint64_t sequence, bint end,
) noexcept nogil:
    # This upstream has sent the epoch up to `sequence`, and there it may have ended. True: ours was
    # over before, and goes on now.
    if epoch != hop.epoch or hop.epoch == 0:
        return False
    if sequence > hop.target_sequence:
        hop.target_sequence = sequence
    hop_ends(hop, parent, sequence, end)
    return hop.state == HOP_ENDED and sequence > hop.final_sequence

cdef inline void hop_resume(hop_t* hop, uint64_t now) noexcept nogil:
    # Who said that the epoch was over was wrong: others have more of it.
    hop.state = HOP_LIVE
    hop.final_known = False
    hop.end_us = hop.hole_us = 0
    hop.moved_us = hop.news_us = now

cdef inline bint hop_here(hop_t* hop, uint64_t epoch, uint64_t first, uint64_t head_sequence,
                          uint64_t now) noexcept nogil:
    # A join is answered. True: begin a ring at `first`; False: the ring that is there goes on.
    cdef bint joining = hop.state == HOP_JOINING
    hop.answer_by_us = now + HOP_ANSWER_US
    hop.far = False
    if hop.asked == HOP_JOIN and epoch < hop.feed.parents[hop.asked_of].epoch:
        hop_denied(hop, hop.asked_of, epoch, now)
    if epoch < hop.epoch or (
        epoch == hop.epoch and (hop.state == HOP_ENDED or first <= head_sequence)
    ):
        return False
    hop.state = HOP_LIVE
    hop.epoch = epoch
    hop_told(hop, hop.asked_of, epoch, epoch)
    feed_begins(&hop.feed)
    if joining:
        hop.feed.feeding = hop.asked_of     # it has shown that it can
    elif hop.feed.feeding != hop.asked_of:
        feed_take(&hop.feed, hop.asked_of)
    hop.feed.parents[hop.asked_of].wait_us = 0
    hop.final_known = hop.back_over = False
    hop.target_sequence = hop.final_sequence = first
    hop.hole_us = hop.newer_us = hop.end_us = 0
    hop.back_tries = 0
    hop.moved_us = hop.news_us = now
    hop.moved_sequence = first
    return True

cdef inline void hop_answered(hop_t* hop, uint64_t now) noexcept nogil:
    # A part of the answer has come: the rest may take its time.
    hop.answer_by_us = now + HOP_ANSWER_US

cdef inline void hop_pause(hop_t* hop, uint64_t now) noexcept nogil:
    # The parent that was asked is asked again after a while, twice as long each time.
    cdef parent_t* parent = &hop.feed.parents[hop.asked_of]
    if parent.wait_us < HOP_RETRY_US:
        parent.wait_us = HOP_RETRY_US
    parent.retry_us = now + parent.wait_us
    parent.wait_us *= 2
    if parent.wait_us > HOP_RETRY_US_MAX:
        parent.wait_us = HOP_RETRY_US_MAX

cdef inline void hop_wait_on(hop_t* hop, uint64_t now) noexcept nogil:
    # There is hope for the hole: half a second more.
    cdef uint64_t until = now + HOP_GRACE_US
    if until > hop.hole_latest_us:
        until = hop.hole_latest_us
    if until > hop.hole_until_us:
        hop.hole_until_us = until

cdef inline void hop_later(hop_t* hop, uint64_t now) noexcept nogil:
    hop.asked = HOP_NOTHING
    hop_pause(hop, now)
    hop_wait_on(hop, now)

cdef inline void hop_gone(hop_t* hop, uint64_t to, uint64_t now) noexcept nogil:
    # The upstream will never have what lies before `to` of what was asked.
    cdef parent_t* parent = &hop.feed.parents[hop.asked_of]
    if hop.asked == HOP_BACKFILL:
        if to > parent.back_floor:
            parent.back_floor = to
    elif to >= hop_tail(hop.asked_head):
        parent.tail_gone = True
    elif to > parent.gone_sequence:
        parent.gone_sequence = to
    hop.asked = HOP_NOTHING
    parent.retry_us = now

cdef inline void hop_done(hop_t* hop, const hop_view_t* view, uint64_t to, bint end,
                          uint64_t now) noexcept nogil:
    # The answer is complete. Without any progress the next request waits a little.
    cdef parent_t* parent = &hop.feed.parents[hop.asked_of]
    cdef bint moved = view.head_sequence != hop.asked_head
    cdef bint backfill = hop.asked == HOP_BACKFILL
    if not backfill:
        hop_ends(hop, hop.asked_of, to, end)
    if backfill:
        moved = view.base_sequence != hop.back_base
        hop.back_tries = 0 if moved else hop.back_tries + 1
        if hop.back_tries >= HOP_BACKFILL_TRIES:
            hop.back_over = True
    elif moved and hop.target_sequence > view.head_sequence:
        hop.moved_sequence = view.head_sequence
        hop.moved_us = now - HOP_STALE_US       # more of the same is due at once
    hop.asked = HOP_NOTHING
    if moved or view.hole_end_sequence != view.head_sequence:
        parent.wait_us = HOP_RETRY_US
        parent.retry_us = now
    elif backfill:
        parent.retry_us = now + HOP_RETRY_US
    else:
        hop_pause(hop, now)

cdef inline void hop_restart_timers(hop_t* hop, uint64_t now) noexcept nogil:
    # We stood still ourselves: all waiting begins anew.
    cdef uint32_t i
    hop.asked = HOP_NOTHING
    hop.hole_us = hop.newer_us = 0
    hop.feed.hear_us = 0
    hop.moved_us = hop.news_us = hop.joining_us = hop.still_us = now
    for i in range(hop.feed.parents_count):
        parent_anew(&hop.feed.parents[i], False, now)

cdef inline void hop_parent_anew(
    hop_t* hop, uint32_t parent, bint process, uint64_t now,
) noexcept nogil:
    # An upstream is back, or another process is in its place: nothing that was asked of it will be
    # answered, and holes may wait for it.
    parent_anew(&hop.feed.parents[parent], process, now)
    if hop.asked != HOP_NOTHING and hop.asked_of == parent:
        hop.asked = HOP_NOTHING
    hop_wait_on(hop, now)
    if hop.feed.feeding == parent or hop.feed.feeding == PARENT_NONE:
        hop.hole_us = hop.newer_us = 0
        hop.moved_us = hop.news_us = hop.joining_us = now

cdef inline void hop_parent_lost(hop_t* hop, uint32_t parent, uint64_t now) noexcept nogil:
    if hop.asked != HOP_NOTHING and hop.asked_of == parent:
        hop.asked = HOP_NOTHING
    if hop.feed.feeding == parent:
        hop.hole_us = 0         # who comes after it gets the whole wait
        hop.news_us = hop.joining_us = now

# --- answering as a parent -----------------------------------------------------------------------

cdef inline uint64_t hop_back_floor(const hop_t* hop) noexcept nogil:
    # Nobody who is subscribed has anything before it.
    cdef uint64_t floor = <uint64_t>-1
    cdef uint32_t i
    for i in range(hop.feed.parents_count):
        if hop.feed.parents[i].subscribed and hop.feed.parents[i].back_floor < floor:
            floor = hop.feed.parents[i].back_floor
    return floor if floor != <uint64_t>-1 else 0

cdef inline bint hop_still_coming(const hop_t* hop, uint64_t sequence, uint64_t base_sequence,
                                  uint64_t head_sequence) noexcept nogil:
    # May a frame that our ring does not hold still come from our upstreams? Then our children are
    # told `later`, else `gone`.
    if hop.state == HOP_JOINING:
        return True
    if hop.state != HOP_LIVE and hop.state != HOP_ENDED:
        return False
    if sequence < base_sequence:
        return not hop.back_over and sequence >= hop_back_floor(hop)
    return sequence >= head_sequence and hop.state == HOP_LIVE
