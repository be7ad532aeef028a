# hop.pxd: decides what one link asks of its upstream, and when it stops asking: for one stream
# (hop_t), and whether the upstream itself is there (peer_t).
#
# Rules of this room
#   1. No I/O, no clock, no ring: the caller (backbone_child.pxd) shows it a view and the time, and
#      does what hop_step answers. Tests step it with a fake clock.
#   2. One request at a time for a stream. A hole comes before backfill, an ended epoch before the
#      next.
#   3. Nothing is asked and nothing is given up while the upstream is lost.
#   4. A hole is waited for repair_wait_us; each `later` gives half a second more, four times the
#      wait at most. `gone` ends the waiting at once.
#   5. All times µs (monotonic), epochs ms (wall clock).

from libc.stdint cimport uint32_t, uint64_t

cdef enum:  # states of a link
    HOP_IDLE = 0              # nobody wants the stream: not subscribed
    HOP_JOINING = 1           # subscribed; no ring yet
    HOP_LIVE = 2              # the ring follows the upstream's
    HOP_ENDED = 3             # the epoch is over and whole (or its rest is lost)

cdef enum:  # what to do next
    HOP_NOTHING = 0
    HOP_SUBSCRIBE = 1
    HOP_UNSUBSCRIBE = 2       # and forget the ring
    HOP_JOIN = 3
    HOP_REPAIR = 4            # ask for [from, to)
    HOP_BACKFILL = 5          # the same, before the base
    HOP_GIVE_UP = 6           # [from, to) is lost
    HOP_END = 7               # the epoch is over; `lost` frames of it never came

cdef enum:  # states of an upstream
    PEER_CONNECTING = 0
    PEER_UP = 1
    PEER_LOST = 2
    PEER_VERSION = 3          # speaks another protocol version
    PEER_LOOP = 4             # it, or one above it, is ourselves; or it is too deep

cdef enum:
    HOP_RETRY_US = 20000
    HOP_RETRY_US_MAX = 200000
    HOP_ANSWER_US = 500000    # a request without any answer is asked again
    HOP_STALE_US = 100000     # the upstream is ahead of us for so long: something was dropped
    HOP_GRACE_US = 500000     # more time for each `later`
    HOP_PAUSE_US = 200000     # we ourselves stood still for longer: judge nobody by it
    HOP_EPOCH_AHEAD_MS = 60000
    HOP_BACKFILL_BYTES = 98304
    HOP_BACKFILL_TRIES = 4

cdef struct hop_view_t:       # what the decision needs to know of the world
    bint wanted               # listeners, readers, children, or prefetch
    bint upstream_up
    bint may_ask              # the window of open requests is not full
    bint written_here         # a local source has the mount
    uint64_t head_sequence
    uint64_t hole_end_sequence  # first frame beyond the hole at the head; head_sequence: no hole
    uint64_t base_sequence
    uint64_t frame_bytes      # average
    uint64_t held_us          # media between base and head
    uint64_t ring_us
    uint64_t linger_us
    uint64_t repair_wait_us

cdef struct hop_act_t:
    int what                  # HOP_…
    uint64_t from_sequence
    uint64_t to_sequence
    uint64_t lost

cdef struct hop_t:
    uint32_t state
    bint subscribed
    bint final_known
    bint far                  # frames came that do not fit ahead of our head
    bint back_over            # nothing older is to be had, or the ring holds enough
    uint64_t told_epoch       # the newest that the upstream has told of; 0: none
    uint64_t epoch            # of the ring that this link fills; 0: none
    uint64_t target_sequence  # the upstream has sent up to here
    uint64_t final_sequence   # the end of the epoch
    uint64_t gone_sequence    # the upstream has nothing before it
    uint64_t back_floor       # the same, for backfill
    uint32_t back_tries
    uint64_t back_base        # the base when backfill last asked
    uint64_t wanted_us
    uint64_t moved_us         # when the head last moved, and to where
    uint64_t moved_sequence
    uint64_t hole_us          # since when the hole at hole_sequence is there; 0: none
    uint64_t hole_sequence
    uint64_t hole_until_us
    # the open request: HOP_JOIN, HOP_REPAIR, HOP_BACKFILL; HOP_NOTHING: none
    uint32_t asked
    uint32_t request          # its id
    uint64_t asked_head
    uint64_t answer_by_us
    uint64_t retry_us         # nothing is asked before
    uint64_t wait_us          # the next pause after `later`
    uint64_t timeouts

# --- what was heard ------------------------------------------------------------------------------

cdef inline bint hop_told(hop_t* hop, uint64_t epoch, uint64_t wall_ms) noexcept nogil:
    # The upstream has this epoch. False: refused, too far ahead of the clock.
    if epoch > wall_ms + HOP_EPOCH_AHEAD_MS:
        return False
    if epoch > hop.told_epoch:
        hop.told_epoch = epoch
        hop.retry_us = 0
    return True

cdef inline void hop_reaches(
    hop_t* hop, uint64_t epoch, uint64_t sequence, bint end,
) noexcept nogil:
    # The upstream has sent this epoch up to `sequence`, and there it may have ended.
    if epoch != hop.epoch or hop.epoch == 0:
        return
    if sequence > hop.target_sequence:
        hop.target_sequence = sequence
    if end:
        hop.final_known = True
        hop.final_sequence = sequence

cdef inline bint hop_here(hop_t* hop, uint64_t epoch, uint64_t first, uint64_t head_sequence,
                          uint64_t now) noexcept nogil:
    # A join is answered. True: begin a ring at `first`; False: the ring that is there goes on.
    hop.wait_us = HOP_RETRY_US
    hop.answer_by_us = now + HOP_ANSWER_US
    hop.far = False
    if epoch < hop.epoch or (
        epoch == hop.epoch and (hop.state == HOP_ENDED or first <= head_sequence)
    ):
        return False
    hop.state = HOP_LIVE
    hop.epoch = epoch
    if epoch > hop.told_epoch:
        hop.told_epoch = epoch
    hop.final_known = hop.back_over = False
    hop.target_sequence = first
    hop.gone_sequence = hop.back_floor = hop.hole_us = 0
    hop.back_tries = 0
    hop.moved_us = now
    hop.moved_sequence = first
    return True

cdef inline void hop_answered(hop_t* hop, uint64_t now) noexcept nogil:
    # A part of the answer has come: the rest may take its time.
    hop.answer_by_us = now + HOP_ANSWER_US

cdef inline void hop_later(hop_t* hop, uint64_t now, uint64_t repair_wait_us) noexcept nogil:
    cdef uint64_t latest = hop.hole_us + 4 * repair_wait_us
    hop.asked = HOP_NOTHING
    if hop.wait_us < HOP_RETRY_US:
        hop.wait_us = HOP_RETRY_US
    hop.retry_us = now + hop.wait_us
    hop.wait_us = hop.wait_us * 2 if hop.wait_us * 2 < HOP_RETRY_US_MAX else HOP_RETRY_US_MAX
    if hop.hole_us and hop.hole_until_us < now + HOP_GRACE_US:
        hop.hole_until_us = now + HOP_GRACE_US if now + HOP_GRACE_US < latest else latest

cdef inline void hop_gone(
    hop_t* hop, uint64_t to, uint64_t head_sequence, uint64_t now,
) noexcept nogil:
    # The upstream will never have what lies before `to` of what was asked.
    if hop.asked == HOP_BACKFILL:
        if to > hop.back_floor:
            hop.back_floor = to
    else:
        if to > hop.gone_sequence:
            hop.gone_sequence = to
        if hop.told_epoch > hop.epoch and not hop.final_known:
            hop.final_known = True      # nobody knows its end any more: it is here
            hop.final_sequence = head_sequence
    hop.asked = HOP_NOTHING
    hop.retry_us = now

cdef inline void hop_done(hop_t* hop, const hop_view_t* view, uint64_t to, bint end,
                          uint64_t now) noexcept nogil:
    # The answer is complete. Without any progress the next request waits a little.
    cdef bint moved = view.head_sequence != hop.asked_head
    if end:
        hop.final_known = True
        hop.final_sequence = to
    if hop.asked == HOP_BACKFILL:
        moved = view.base_sequence != hop.back_base
        hop.back_tries = 0 if moved else hop.back_tries + 1
        if hop.back_tries >= HOP_BACKFILL_TRIES:
            hop.back_over = True
    elif moved and hop.target_sequence > view.head_sequence:
        hop.moved_sequence = view.head_sequence
        hop.moved_us = now - HOP_STALE_US       # more of the same is due at once
    hop.asked = HOP_NOTHING
    if moved or view.hole_end_sequence != view.head_sequence:
        hop.wait_us = HOP_RETRY_US
        hop.retry_us = now
    else:
        hop.retry_us = now + HOP_RETRY_US

cdef inline void hop_restart_timers(hop_t* hop, uint64_t now) noexcept nogil:
    # The upstream is back, or we stood still ourselves: all waiting begins anew.
    hop.asked = HOP_NOTHING
    hop.retry_us = now
    hop.wait_us = HOP_RETRY_US
    hop.hole_us = 0
    hop.moved_us = now

# --- what to do ----------------------------------------------------------------------------------

cdef inline uint64_t hop_missing_to(
    const hop_t* hop, const hop_view_t* view, uint64_t now,
) noexcept nogil:
    # The end of what is missing at the head; head_sequence: nothing is.
    cdef uint64_t head = view.head_sequence
    if hop.state != HOP_LIVE:
        return head
    if view.hole_end_sequence > head:
        return view.hole_end_sequence
    if hop.final_known:
        return hop.final_sequence if hop.final_sequence > head else head
    if hop.told_epoch > hop.epoch:
        return head + (<uint64_t>1 << 32)   # its end was dropped: whatever is left of it
    if hop.target_sequence > head and (hop.far or now - hop.moved_us >= HOP_STALE_US):
        return hop.target_sequence
    return head

cdef inline void hop_demand(hop_t* hop, const hop_view_t* view, uint64_t now,
                            hop_act_t* act) noexcept nogil:
    # Subscribed while somebody wants it, and for the linger after that.
    if view.wanted:
        hop.wanted_us = now
    if view.wanted and not hop.subscribed and not view.written_here:
        hop.subscribed = True
        hop.state = HOP_JOINING
        hop.wait_us = HOP_RETRY_US
        hop.retry_us = now
        act.what = HOP_SUBSCRIBE
    elif hop.subscribed and (
        view.written_here or (not view.wanted and now - hop.wanted_us >= view.linger_us)
    ):
        hop.subscribed = False
        hop.state = HOP_IDLE
        hop.epoch = 0
        hop.asked = HOP_NOTHING
        act.what = HOP_UNSUBSCRIBE

cdef inline void hop_judge(hop_t* hop, const hop_view_t* view, uint64_t now,
                           hop_act_t* act) noexcept nogil:
    # Is something missing, since when, and is it time to go on without it?
    cdef uint64_t head = view.head_sequence
    cdef uint64_t missing_to
    cdef bint over
    if head != hop.moved_sequence:
        hop.moved_sequence = head
        hop.moved_us = now
    missing_to = hop_missing_to(hop, view, now)
    if missing_to == head:
        hop.hole_us = 0
        if hop.state == HOP_LIVE and hop.final_known:
            hop.state = HOP_ENDED
            act.what = HOP_END
        return
    if hop.hole_us == 0 or hop.hole_sequence != head:
        hop.hole_us = now
        hop.hole_sequence = head
        hop.hole_until_us = now + view.repair_wait_us
    over = now >= hop.hole_until_us
    if view.hole_end_sequence > head:
        if over or hop.gone_sequence >= view.hole_end_sequence:
            hop.hole_us = 0
            act.what = HOP_GIVE_UP
            act.from_sequence = head
            act.to_sequence = view.hole_end_sequence
    elif hop.final_known or hop.told_epoch > hop.epoch:
        if over or (hop.final_known and hop.gone_sequence >= hop.final_sequence):
            hop.hole_us = 0
            hop.state = HOP_ENDED
            act.what = HOP_END
            act.lost = hop.final_sequence - head if hop.final_known else 0

cdef inline bint hop_ask_backfill(
    hop_t* hop, const hop_view_t* view, hop_act_t* act,
) noexcept nogil:
    # The next older run, ending at the base; smaller after each try that brought nothing.
    cdef uint64_t frames
    if hop.back_over or view.base_sequence <= hop.back_floor or view.held_us >= view.ring_us:
        hop.back_over = True
        return False
    frames = HOP_BACKFILL_BYTES // (view.frame_bytes + 8) >> hop.back_tries
    frames = 1 if frames == 0 else (4096 if frames > 4096 else frames)
    act.what = HOP_BACKFILL
    act.to_sequence = view.base_sequence
    act.from_sequence = view.base_sequence - frames if view.base_sequence > frames else 0
    if act.from_sequence < hop.back_floor:
        act.from_sequence = hop.back_floor
    hop.back_base = view.base_sequence
    return True

cdef inline void hop_ask(
    hop_t* hop, const hop_view_t* view, uint64_t now, hop_act_t* act,
) noexcept nogil:
    # No request is open: which one is due?
    cdef uint64_t head = view.head_sequence
    cdef uint64_t missing_to = hop_missing_to(hop, view, now)
    if missing_to > head and hop.state == HOP_LIVE:
        act.from_sequence = head if head > hop.gone_sequence else hop.gone_sequence
        act.to_sequence = missing_to
        if hop.far and hop.gone_sequence > head:
            act.what = HOP_JOIN         # too much is gone to bridge it in this ring: begin anew
        elif act.from_sequence < missing_to:
            act.what = HOP_REPAIR
        return
    if hop.told_epoch > hop.epoch and hop.state != HOP_LIVE:
        act.what = HOP_JOIN
    elif hop.state == HOP_LIVE or hop.state == HOP_ENDED:
        hop_ask_backfill(hop, view, act)

cdef inline int hop_step(
    hop_t* hop, const hop_view_t* view, uint64_t now, hop_act_t* act,
) noexcept nogil:
    # One thing to do, or HOP_NOTHING. A request that is made is reported by hop_asked.
    act.what = HOP_NOTHING
    act.from_sequence = act.to_sequence = act.lost = 0
    hop_demand(hop, view, now, act)
    if act.what != HOP_NOTHING or not hop.subscribed or not view.upstream_up:
        return act.what
    if hop.epoch != 0:
        hop_judge(hop, view, now, act)
        if act.what != HOP_NOTHING:
            return act.what
    if hop.asked != HOP_NOTHING:
        if now < hop.answer_by_us:
            return HOP_NOTHING
        hop.timeouts += 1
        hop.asked = HOP_NOTHING
    if now < hop.retry_us or not view.may_ask:
        return HOP_NOTHING
    hop_ask(hop, view, now, act)
    return act.what

cdef inline void hop_asked(
    hop_t* hop, const hop_act_t* act, uint32_t request, const hop_view_t* view, uint64_t now
) noexcept nogil:
    hop.asked = <uint32_t>act.what
    hop.request = request
    hop.asked_head = view.head_sequence
    hop.answer_by_us = now + HOP_ANSWER_US

cdef inline void hop_unasked(hop_t* hop, uint64_t now) noexcept nogil:
    # The request could not be sent: the socket has no connection, or its queue is full.
    hop.asked = HOP_NOTHING
    hop.retry_us = now + HOP_RETRY_US

cdef inline uint64_t hop_due_us(
    const hop_t* hop, const hop_view_t* view, uint64_t now,
) noexcept nogil:
    # When to step again if nothing is heard.
    cdef uint64_t due = now + 100000
    if not hop.subscribed:
        return <uint64_t>-1 if not view.wanted else now + 100000
    if hop.state == HOP_JOINING or hop.hole_us or hop.asked != HOP_NOTHING or not hop.back_over:
        due = now + 10000
    return due

# --- answering as a parent -----------------------------------------------------------------------

cdef inline bint hop_still_coming(const hop_t* hop, uint64_t sequence, uint64_t base_sequence,
                                  uint64_t head_sequence) noexcept nogil:
    # May a frame that our ring does not hold still come from our upstream? Then our children are
    # told `later`, else `gone`.
    if hop.state == HOP_JOINING:
        return True
    if hop.state != HOP_LIVE and hop.state != HOP_ENDED:
        return False
    if sequence < base_sequence:
        return not hop.back_over and sequence >= hop.back_floor
    return sequence >= head_sequence and hop.state == HOP_LIVE

# --- the upstream itself -------------------------------------------------------------------------

cdef struct peer_t:
    uint32_t state            # PEER_…
    uint64_t sign_us          # the last sign of life

cdef inline bint peer_sign(peer_t* peer, uint64_t now) noexcept nogil:
    # A beacon that we accept. True: the upstream has just come (back).
    cdef bint back = peer.state != PEER_UP
    peer.state = PEER_UP
    peer.sign_us = now
    return back

cdef inline bint peer_is_silent(peer_t* peer, uint64_t now, uint64_t last_turn_us,
                                uint64_t silence_us) noexcept nogil:
    # True once, when the upstream is lost. Who stood still himself begins to wait anew.
    if now - last_turn_us > HOP_PAUSE_US:
        peer.sign_us = now
    if peer.state != PEER_UP or now - peer.sign_us <= silence_us:
        return False
    peer.state = PEER_LOST
    return True
