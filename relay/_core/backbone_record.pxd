# backbone_record.pxd: what the backbone's thread writes into its flight recorder about one stream.
#
# Rules of this room
#   1. Runs in the backbone thread. Looks and tells; changes nothing but the recorder and what it
#      last told.
#   2. Each decision is told where it is made; here is only how it is said, and which inputs.
#   3. link_before / link_after stand around one step of a link: whatever the step decides (another
#      parent, a hole) is found by comparing, so that the deciding rooms need not know of it.

from libc.stdint cimport uint32_t, uint64_t

from relay._core.backbone_state cimport backbone_t, link_t
from relay._core.hop cimport *
from relay._core.parents cimport PARENT_NONE, PEER_LOOP, PEER_UP, PEER_VERSION, peer_t
from relay._core.recorder cimport *
from relay._core.upstream cimport upstream_t

cdef enum:  # why another parent feeds a stream
    SWITCH_FIRST = 0          # nobody fed it, or nothing had come yet
    SWITCH_LOST = 1           # the one before is not there any more
    SWITCH_SILENT = 2         # it is there, but brought no news
    SWITCH_BETTER = 3         # another was better, and has delivered
    SWITCH_UNFIT = 4          # it no longer lists the stream, or not this epoch, or is too far
    SWITCH_ANSWERED = 5       # a join was answered by another
    SWITCH_LEAVING = 6        # the one before has told that it is about to stop

cdef enum:  # why an upstream is lost
    GONE_SILENT = 0
    GONE_GOODBYE = 1
    GONE_LOOP = 2
    GONE_VERSION = 3

cdef enum:  # reasons of RECORD_REPAIR_ASKED and its answers
    ASKED_REPAIR = 0
    ASKED_BACKFILL = 1
    ASKED_JOIN = 2
    ASKED_ABOVE = 3           # for a new epoch

cdef enum:  # reasons of RECORD_EPOCH_BEGUN and RECORD_EPOCH_ENDED
    EPOCH_HERE = 0            # a source of this node
    EPOCH_ABOVE = 1           # from an upstream
    EPOCH_NEWER = 2           # ended, since a newer one goes on
    EPOCH_ANEW = 3            # begun by a source here that went on above another's epoch

cdef struct before_t:         # of one step
    uint32_t feeding
    uint32_t trying
    uint64_t hear_us
    uint64_t moved_us
    uint64_t hole_us
    uint64_t timeouts
    uint32_t asked
    uint32_t asked_of
    bint joining

cdef inline int switch_reason(
    const peer_t* peers, const before_t* before, uint32_t to
) noexcept nogil:
    # Why `to` feeds now, from what was true before the step.
    cdef uint32_t old = before.feeding
    if old == PARENT_NONE or before.joining:
        return SWITCH_FIRST
    if peers[old].state != PEER_UP or not peers[old].answers:
        return SWITCH_LOST
    if peers[old].drains:
        return SWITCH_LEAVING
    if before.hear_us != 0:
        return SWITCH_SILENT
    return SWITCH_BETTER if before.trying == to else SWITCH_UNFIT

cdef inline int gone_reason(
    uint32_t state, uint64_t sign_age_us, uint64_t silence_us
) noexcept nogil:
    # Why an upstream is in this state now: a goodbye is the only loss without a silence.
    if state == PEER_LOOP:
        return GONE_LOOP
    if state == PEER_VERSION:
        return GONE_VERSION
    return GONE_SILENT if sign_age_us > silence_us else GONE_GOODBYE

cdef inline void link_record(
    backbone_t* bone, const link_t* link, uint32_t kind, uint32_t reason, uint32_t parent,
    uint64_t a, uint64_t b, uint64_t c,
) noexcept nogil:
    record(&bone.recorder, bone.now_us, link.key, kind, reason, parent, a, b, c)

cdef inline int asked_what(uint32_t what) noexcept nogil:
    if what == HOP_JOIN:
        return ASKED_JOIN
    return ASKED_BACKFILL if what == HOP_BACKFILL else ASKED_REPAIR

cdef inline void told_answer(
    backbone_t* bone, const link_t* link, uint32_t kind, uint64_t from_sequence,
    uint64_t to_sequence,
) noexcept nogil:
    # An answer to this link's open request, and how long the hole has been there.
    link_record(
        bone, link, kind, asked_what(link.hop.asked), link.hop.asked_of, from_sequence,
        to_sequence, bone.now_us - link.hop.hole_us if link.hop.hole_us else 0,
    )

# --- around a step -------------------------------------------------------------------------------

cdef inline void link_before(const link_t* link, before_t* before) noexcept nogil:
    before.feeding = link.hop.feed.feeding
    before.trying = link.hop.feed.trying
    before.hear_us = link.hop.feed.hear_us
    before.moved_us = link.hop.moved_us
    before.hole_us = link.hop.hole_us
    before.timeouts = link.hop.timeouts
    before.asked = link.hop.asked
    before.asked_of = link.hop.asked_of
    before.joining = link.hop.state == HOP_JOINING

cdef inline void told_switch(
    backbone_t* bone, link_t* link, const before_t* before
) noexcept nogil:
    # With its inputs: whom from, how far the new one is, its load, how long nothing had come.
    cdef uint32_t to = link.hop.feed.feeding
    cdef record_t put
    cdef uint32_t known = link.recorded_feeding
    if known == to + 1 or to == PARENT_NONE:
        return
    link.recorded_feeding = to + 1
    put.at_us = bone.now_us
    put.stream = link.key
    put.kind = RECORD_SWITCH
    put.reason = <unsigned char>switch_reason(bone.peers, before, to)
    if before.feeding == to:        # it had changed before the step
        put.reason = SWITCH_FIRST if known == 0 else SWITCH_ANSWERED
    put.parent = <unsigned char>to
    put.left = <unsigned char>(known - 1) if known else <unsigned char>RECORD_NOBODY
    put.a = link.hop.feed.parents[to].hops + 1
    put.b = bone.peers[to].load
    put.c = bone.now_us - before.moved_us if before.moved_us else 0
    recorder_put(&bone.recorder, &put)

cdef inline void link_after(
    backbone_t* bone, link_t* link, const before_t* before, const hop_view_t* view
) noexcept nogil:
    cdef hop_t* hop = &link.hop
    if hop.feed.feeding == PARENT_NONE:
        link.recorded_feeding = 0
    else:
        told_switch(bone, link, before)
    if hop.hole_us != 0 and hop.hole_us != before.hole_us:
        link_record(
            bone, link, RECORD_HOLE, 0, hop.feed.feeding, view.head_sequence,
            view.hole_end_sequence if view.hole_end_sequence > view.head_sequence
            else (hop.target_sequence if hop.target_sequence > view.head_sequence else 0), 0,
        )
    if hop.timeouts != before.timeouts:
        link_record(
            bone, link, RECORD_REPAIR_TIMEOUT, asked_what(before.asked), before.asked_of,
            view.head_sequence, HOP_ANSWER_US, 0,
        )

# --- an upstream itself --------------------------------------------------------------------------

cdef inline void told_gone(backbone_t* bone, const upstream_t* up, uint32_t state) noexcept nogil:
    # Before its state changes; once for each change.
    cdef uint64_t age_us = bone.now_us - up.peer.sign_us if up.peer.sign_us else 0
    cdef uint64_t feeds = 0
    cdef uint64_t slot
    if up.peer.state == state:
        return
    for slot in range(bone.table_size):
        feeds += bone.table[slot] != NULL and bone.table[slot].hop.feed.feeding == up.index
    record(&bone.recorder, bone.now_us, 0, RECORD_UPSTREAM_LOST,
           gone_reason(state, age_us, bone.silence_us), up.index, age_us, up.peer.load, feeds)

cdef inline void told_up(
    backbone_t* bone, const upstream_t* up, uint32_t kind, uint64_t away_us
) noexcept nogil:
    record(&bone.recorder, bone.now_us, 0, kind, 0, up.index, up.node_id[0], away_us,
           up.path_count + 1)
