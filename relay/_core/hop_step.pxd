# hop_step.pxd: decides what one link asks of its upstreams, and when it stops asking.
#
# Rules of this room
#   1. No I/O, no clock, no ring: the caller (backbone_ask.pxd) shows it a view and the time, and
#      does what hop_step answers. Tests step it with a fake clock.
#   2. A request goes to a parent that is subscribed. A hole comes before backfill, an ended epoch
#      before the next.
#   3. Nothing is asked and nothing is given up while no parent fits.
#   4. `gone` ends the waiting for a hole once every parent that fits has said it.
#   5. An epoch ends where the last of its parents says; one that says so early is overruled.

from libc.stdint cimport uint32_t, uint64_t

from relay._core.hop cimport *
from relay._core.parents cimport *

# --- what is missing -----------------------------------------------------------------------------

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
        return hop_tail(head)           # its end was dropped: whatever is left of it
    if hop.target_sequence > head and (hop.far or now - hop.moved_us >= HOP_STALE_US):
        return hop.target_sequence
    return head

cdef inline bint hop_has_no_more(
    const hop_t* hop, const hop_view_t* view, uint32_t i,
) noexcept nogil:
    # It says that the epoch ended where we are, or before.
    return hop.feed.parents[i].ended and hop.feed.parents[i].end_sequence <= view.head_sequence

cdef inline bint hop_all_gone(
    const hop_t* hop, const hop_view_t* view, uint64_t sequence,
) noexcept nogil:
    # Has everyone who fits said that nothing before it will ever come (0: that they know no end)?
    cdef uint32_t i
    cdef bint any = False
    for i in range(hop.feed.parents_count):
        if parent_fits(&hop.feed, &view.feed, i):
            any = True
            if hop_has_no_more(hop, view, i):
                continue
            if sequence == 0 and not hop.feed.parents[i].tail_gone:
                return False
            if sequence and hop.feed.parents[i].gone_sequence < sequence:
                return False
    return any

cdef inline void hop_judge_end(hop_t* hop, const hop_view_t* view, uint64_t now) noexcept nogil:
    # Is the end of the epoch known? One parent's word is not enough while another that fits has its
    # source there: it may have more. But if that one brings nothing beyond, it is not waited for
    # longer than for a hole; where a newer epoch waits, not longer than for a sign of life.
    cdef const parent_t* parent
    cdef uint64_t final = 0
    cdef uint64_t wait_us
    cdef uint32_t i
    cdef bint told = False
    cdef bint open = False
    if hop.state != HOP_LIVE:
        return
    for i in range(hop.feed.parents_count):
        parent = &hop.feed.parents[i]
        if parent.ended:
            told = True
            final = parent.end_sequence if parent.end_sequence > final else final
        elif parent.up and parent.epoch == hop.epoch and parent_fits(&hop.feed, &view.feed, i):
            open = True
    if not told or (open and final < hop.target_sequence):
        hop.end_us = 0
    elif hop.end_us == 0:
        hop.end_us = now
    wait_us = view.silence_us if hop.told_epoch > hop.epoch else view.repair_wait_us
    hop.final_known = hop.end_us != 0 and (not open or now - hop.end_us >= wait_us)
    hop.final_sequence = final if final > hop.target_sequence else hop.target_sequence

cdef inline bint hop_doubts(
    const hop_t* hop, const hop_view_t* view, uint64_t now,
) noexcept nogil:
    # Are all parents needed? A hole lies open that the feeder does not close, the end of an epoch
    # is looked for, or no ring comes.
    if hop.state == HOP_JOINING:
        return hop.told_epoch != 0 and now - hop.joining_us >= view.silence_us
    if hop.newer_us:
        return hop.state == HOP_LIVE or now - hop.newer_us >= view.silence_us
    if hop.state != HOP_LIVE:
        return False
    return hop.hole_us != 0 and hop.feed.feeding != PARENT_NONE and (
        now - hop.hole_us >= view.silence_us
        or hop.feed.parents[hop.feed.feeding].gone_sequence > view.head_sequence
    )

cdef inline void hop_feed(hop_t* hop, hop_view_t* view, uint64_t now,
                          hop_act_t* act) noexcept nogil:
    # One subscription to make or to leave.
    cdef feed_act_t fed
    view.feed.joining = hop.state == HOP_JOINING
    view.feed.live = hop.state == HOP_LIVE
    view.feed.epoch = hop.epoch if hop.state == HOP_LIVE else hop.told_epoch
    view.feed.head_sequence = view.head_sequence
    view.feed.doubted = hop_doubts(hop, view, now)
    view.feed.silent = hop.state == HOP_LIVE and not hop.final_known and (
        now - hop.news_us > view.silence_us + HOP_SILENT_FRAMES * view.frame_us
    )
    feed_step(&hop.feed, &view.feed, now, &fed)
    act.parent = fed.parent
    if fed.what == FEED_SUBSCRIBE:
        act.what = HOP_SUBSCRIBE
    elif fed.what == FEED_LEAVE:
        act.what = HOP_LEAVE

cdef inline bint hop_is_fed(const hop_t* hop, const hop_view_t* view) noexcept nogil:
    # Is anybody there who fits? Else nothing is asked, and nothing is given up.
    cdef uint32_t i
    for i in range(hop.feed.parents_count):
        if parent_fits(&hop.feed, &view.feed, i):
            return True
    return False

cdef inline void hop_leave_rest(hop_t* hop, hop_act_t* act) noexcept nogil:
    # A subscription that the stream before has left under this mount: it ends, or who is above us
    # goes on sending what nobody takes.
    cdef uint32_t i
    for i in range(hop.feed.parents_count):
        if hop.feed.parents[i].subscribed:
            hop.feed.parents[i].subscribed = False
            act.what = HOP_LEAVE
            act.parent = i
            return

cdef inline void hop_demand(hop_t* hop, const hop_view_t* view, uint64_t now,
                            hop_act_t* act) noexcept nogil:
    # Subscribed while somebody wants it, and for the linger after that.
    cdef uint32_t i
    if not hop.subscribed:
        hop_leave_rest(hop, act)
    if act.what != HOP_NOTHING:
        return
    if view.wanted:
        hop.wanted_us = now
    if view.wanted and not hop.subscribed and not view.written_here:
        hop.subscribed = True
        hop.state = HOP_JOINING
        hop.joining_us = now
        for i in range(hop.feed.parents_count):
            hop.feed.parents[i].retry_us = now
            hop.feed.parents[i].wait_us = 0
    elif hop.subscribed and (
        view.written_here or (not view.wanted and now - hop.wanted_us >= view.linger_us)
    ):
        hop.subscribed = False
        hop.state = HOP_IDLE
        hop.epoch = 0
        hop.asked = HOP_NOTHING
        feed_begins(&hop.feed)
        hop.feed.feeding = PARENT_NONE
        act.what = HOP_UNSUBSCRIBE

cdef inline void hop_unsubscribed(hop_t* hop) noexcept nogil:
    # The caller has done so, at each parent that was subscribed.
    cdef uint32_t i
    for i in range(hop.feed.parents_count):
        hop.feed.parents[i].subscribed = False

cdef inline void hop_note_head(hop_t* hop, uint64_t head_sequence, uint64_t now) noexcept nogil:
    if head_sequence != hop.moved_sequence:
        hop.moved_sequence = head_sequence
        hop.moved_us = hop.news_us = now
    if hop.told_epoch <= hop.epoch:
        hop.newer_us = 0
    elif hop.newer_us == 0:
        hop.newer_us = now

cdef inline uint64_t hop_lost(
    const hop_t* hop, const hop_view_t* view, uint64_t now,
) noexcept nogil:
    # Of an epoch that is left: the frames that parents have sent and this node has not got; not
    # more than there can be since its head last moved, whatever they say.
    cdef uint64_t end = hop.final_sequence if hop.final_known else hop.target_sequence
    cdef uint64_t most = (now - hop.moved_us + view.ring_us) // (
        view.frame_us if view.frame_us else HOP_FRAME_US
    )
    if end <= view.head_sequence:
        return 0
    return end - view.head_sequence if end - view.head_sequence < most else most

cdef inline void hop_judge(hop_t* hop, const hop_view_t* view, uint64_t now,
                           hop_act_t* act) noexcept nogil:
    # Is something missing, since when, and is it time to go on without it?
    cdef uint64_t head = view.head_sequence
    cdef uint64_t missing_to = hop_missing_to(hop, view, now)
    cdef bint over
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
        hop.hole_latest_us = now + 4 * view.repair_wait_us
    over = now >= hop.hole_until_us
    act.cause = LOST_WAIT if over else LOST_GONE
    if view.hole_end_sequence > head:
        if over or hop_all_gone(hop, view, view.hole_end_sequence):
            hop.hole_us = 0
            act.what = HOP_GIVE_UP
            act.from_sequence = head
            act.to_sequence = view.hole_end_sequence
    elif hop.final_known or hop.told_epoch > hop.epoch:
        # an old epoch that lives on somewhere has lost against the newer one: not waited for long
        over = over or (
            hop.newer_us != 0 and now - hop.newer_us >= 2 * view.repair_wait_us
        )
        if over or hop_all_gone(hop, view, hop.final_sequence if hop.final_known else 0):
            hop.hole_us = 0
            hop.state = HOP_ENDED
            act.what = HOP_END
            act.lost = hop_lost(hop, view, now)

cdef inline bint hop_askable(
    const hop_t* hop, const hop_view_t* view, uint32_t i, uint64_t now,
) noexcept nogil:
    cdef const peer_t* peer = &view.feed.peers[i]
    return hop.feed.parents[i].subscribed and peer.window < peer.window_max and (
        now >= hop.feed.parents[i].retry_us and parent_fits(&hop.feed, &view.feed, i)
    )

cdef inline uint32_t hop_whom(
    const hop_t* hop, const hop_view_t* view, int what, uint64_t before, uint64_t now,
) noexcept nogil:
    # The feeder if it can be asked and may have what lies before `before`, else another who does;
    # PARENT_NONE: nobody.
    cdef uint32_t found = PARENT_NONE
    cdef uint32_t i
    cdef const parent_t* parent
    cdef uint64_t gone
    cdef uint64_t least = <uint64_t>-1
    for i in range(hop.feed.parents_count):
        if not hop_askable(hop, view, i, now):
            continue
        parent = &hop.feed.parents[i]
        gone = 0
        if what == HOP_BACKFILL:
            gone = parent.back_floor
        elif what == HOP_REPAIR:
            gone = parent.gone_sequence if parent.gone_sequence > view.head_sequence else 0
            if parent.tail_gone and before >= hop_tail(view.head_sequence):
                continue
            if hop_has_no_more(hop, view, i):
                continue
        if (what == HOP_JOIN or gone < before) and (
            gone < least or (gone == least and i == hop.feed.feeding)
        ):
            least = gone
            found = i
    return found

cdef inline bint hop_ask_backfill(
    hop_t* hop, const hop_view_t* view, uint64_t now, hop_act_t* act,
) noexcept nogil:
    # The next older run, ending at the base; smaller after each try that brought nothing.
    cdef uint64_t frames
    cdef uint64_t floor = hop_back_floor(hop)
    if hop.back_over or view.base_sequence <= floor or view.held_us >= view.ring_us:
        hop.back_over = True
        return False
    act.parent = hop_whom(hop, view, HOP_BACKFILL, view.base_sequence, now)
    if act.parent == PARENT_NONE:
        return False
    frames = HOP_BACKFILL_BYTES // (view.frame_bytes + 8) >> hop.back_tries
    frames = 1 if frames == 0 else (4096 if frames > 4096 else frames)
    act.what = HOP_BACKFILL
    act.to_sequence = view.base_sequence
    act.from_sequence = view.base_sequence - frames if view.base_sequence > frames else 0
    if act.from_sequence < hop.feed.parents[act.parent].back_floor:
        act.from_sequence = hop.feed.parents[act.parent].back_floor
    hop.back_base = view.base_sequence
    return True

cdef inline void hop_ask_repair(
    hop_t* hop, const hop_view_t* view, uint64_t missing_to, uint64_t now, hop_act_t* act,
) noexcept nogil:
    cdef uint64_t head = view.head_sequence
    cdef uint64_t gone
    if view.feed.merge and now - hop.hole_us < HOP_MERGE_US and (
        feed_has_other(&hop.feed, &view.feed)
    ):
        return
    act.parent = hop_whom(hop, view, HOP_REPAIR, missing_to, now)
    if act.parent == PARENT_NONE:
        return
    gone = hop.feed.parents[act.parent].gone_sequence
    act.from_sequence = head if head > gone else gone
    act.to_sequence = missing_to
    if not hop.far or gone <= head:
        act.what = HOP_REPAIR
    elif hop_all_gone(hop, view, head + 1):
        act.what = HOP_JOIN     # too much is gone to bridge it in this ring: begin anew

cdef inline void hop_ask(
    hop_t* hop, const hop_view_t* view, uint64_t now, hop_act_t* act,
) noexcept nogil:
    # No request is open: which one is due?
    cdef uint64_t missing_to = hop_missing_to(hop, view, now)
    if missing_to > view.head_sequence and hop.state == HOP_LIVE:
        hop_ask_repair(hop, view, missing_to, now, act)
    elif hop.told_epoch > hop.epoch and hop.state != HOP_LIVE:
        act.parent = hop_whom(hop, view, HOP_JOIN, 0, now)
        if act.parent != PARENT_NONE:
            act.what = HOP_JOIN
    elif hop.state == HOP_LIVE or hop.state == HOP_ENDED:
        hop_ask_backfill(hop, view, now, act)

cdef inline bint hop_is_calm(const hop_t* hop) noexcept nogil:
    # The ring follows, nothing is asked, missing, doubted or about to change: frames that fit at
    # the head decide nothing, only time and what is heard do.
    return (
        hop.state == HOP_LIVE and hop.asked == HOP_NOTHING and hop.back_over and not hop.far
        and hop.hole_us == 0 and hop.end_us == 0 and hop.told_epoch <= hop.epoch
        and hop.feed.hear_us == 0 and hop.feed.trying == PARENT_NONE
    )

cdef inline int hop_step(
    hop_t* hop, hop_view_t* view, uint64_t now, hop_act_t* act,
) noexcept nogil:
    # One thing to do, or HOP_NOTHING. A request that is made is reported by hop_asked.
    act.what = HOP_NOTHING
    act.parent = PARENT_NONE
    act.cause = LOST_GONE
    act.from_sequence = act.to_sequence = act.lost = 0
    hop_demand(hop, view, now, act)
    if act.what != HOP_NOTHING or not hop.subscribed:
        return act.what
    if hop.epoch != 0:
        hop_note_head(hop, view.head_sequence, now)
    hop_feed(hop, view, now, act)
    hop_judge_end(hop, view, now)
    if act.what != HOP_NOTHING or not hop_is_fed(hop, view):
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
    hop_ask(hop, view, now, act)
    return act.what

cdef inline void hop_asked(
    hop_t* hop, const hop_act_t* act, uint32_t request, const hop_view_t* view, uint64_t now
) noexcept nogil:
    hop.asked = <uint32_t>act.what
    hop.asked_of = act.parent
    hop.request = request
    hop.asked_head = view.head_sequence
    hop.answer_by_us = now + HOP_ANSWER_US

cdef inline void hop_unasked(hop_t* hop, uint32_t parent, uint64_t now) noexcept nogil:
    # The request could not be sent: the socket has no connection, or its queue is full.
    hop.asked = HOP_NOTHING
    hop.feed.parents[parent].retry_us = now + HOP_RETRY_US

cdef inline uint64_t hop_due_us(
    const hop_t* hop, const hop_view_t* view, uint64_t now,
) noexcept nogil:
    # When to step again if nothing is heard. What is calm has one beat for all links: one look at
    # the table finds them all.
    cdef uint64_t due = (now // HOP_CALM_US + 1) * HOP_CALM_US
    if not hop.subscribed:
        return <uint64_t>-1 if not view.wanted else due
    if hop.state == HOP_JOINING or hop.hole_us or hop.asked != HOP_NOTHING or not hop.back_over or (
        hop.feed.hear_us
    ):
        due = now + 10000
    return due
