# backbone_ask.pxd: what this node asks of its upstreams for its streams, and does with the answers.
#
# Rules of this room
#   1. Runs in the backbone thread, inside a turn. It is the writer (WRITER_LINK) of the streams it
#      fills.
#   2. Decides nothing that waits: hop.pxd does; this room shows it the ring and does what it
#      answers.
#   3. At most WINDOW_MAX joins and repairs are open at one upstream, of all streams together.
#   4. A link's step does at most ACTS_MAX things; what is left waits for the next.
#   5. Every message is decoded whole before anything of it is used; what does not fit is counted.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from relay._core.atomics cimport load_u32, load_u64
from relay._core.backbone_record cimport *
from relay._core.backbone_state cimport (
    DEFECT_NO_REPAIR, backbone_t, link_close_out, link_t, link_touch, refuse,
)
from relay._core.engine cimport wall_ms
from relay._core.hop cimport *
from relay._core.hop_step cimport *
from relay._core.hop_wish cimport hop_wish, hop_wish_reaches
from relay._core.ring cimport ring_entry, ring_has, ring_t
from relay._core.ring_writer cimport (
    ring_give_up, ring_hole_end_sequence, ring_set_header, ring_set_title,
)
from relay._core.stream cimport (
    WRITER_LINK, WRITER_LOCAL, stream_begin_epoch, stream_claim, stream_end_epoch,
    stream_forget_ring, stream_t, stream_unclaim,
)
from relay._core.upstream cimport (
    blob_forget, blob_grow, blob_t, upstream_ask, upstream_closed, upstream_t,
)
from relay._core.versions cimport version_between
from relay._core.wire cimport *
from relay._core.zmq_api cimport *

cdef enum:
    YIELD_US = 5000000        # so long a source that was refused is thought to come back
    ACTS_MAX = 16             # one for each upstream, and as many others

# --- the view -------------------------------------------------------------------------------------

cdef inline bint link_writes(link_t* link) noexcept nogil:
    return link.hop.epoch != 0 and load_u32(&link.stream.writer) == WRITER_LINK

cdef inline void view_of(backbone_t* bone, link_t* link, hop_view_t* view) noexcept nogil:
    cdef stream_t* stream = link.stream
    cdef ring_t* ring = stream.ring
    cdef uint64_t frames
    cdef uint64_t base_media_us
    memset(view, 0, sizeof(hop_view_t))
    view.wanted = link.from_upstream and (
        link.prefetch or load_u32(&stream.listeners) + load_u32(&stream.readers)
        + load_u32(&stream.downstream) + load_u32(&stream.lent) != 0
    )
    view.feed.peers = bone.peers
    view.feed.merge = bone.merge
    view.feed.salt = link.key ^ bone.engine.node_id[0]
    view.silence_us = bone.silence_us
    view.written_here = load_u32(&stream.writer) == WRITER_LOCAL
    view.ring_us = stream.config.ring_us
    view.linger_us = stream.config.linger_us if link.from_upstream else 0
    view.repair_wait_us = bone.repair_wait_us
    if not link_writes(link) or ring == NULL:
        return
    view.head_sequence = ring.head_sequence
    view.base_sequence = ring.base_sequence
    view.hole_end_sequence = ring.head_sequence
    if ring.reserved_sequence != ring.head_sequence:
        view.hole_end_sequence = ring_hole_end_sequence(ring)
    frames = ring.head_sequence - ring.base_sequence
    view.frame_bytes = (ring.head_position - ring.base_position) // frames if frames else 400
    if frames and ring_has(ring, ring.base_sequence):
        base_media_us = <uint64_t>ring_entry(ring, ring.base_sequence).media_us
        view.held_us = ring.head_media_us - base_media_us
    elif frames:
        view.held_us = view.ring_us     # the ring has gone round since: it is full
    if frames:
        view.frame_us = view.held_us // frames

cdef inline bint child_is_calm(backbone_t* bone, link_t* link) noexcept nogil:
    # Nothing that only a look at all of it would find: see hop_is_calm.
    cdef stream_t* stream = link.stream
    cdef ring_t* ring = stream.ring
    if link.heard or bone.now_us >= link.due_us or not hop_is_calm(&link.hop) or (
        not link_writes(link) or ring == NULL or ring.reserved_sequence != ring.head_sequence
    ):
        return False
    return link.prefetch or load_u32(&stream.listeners) + load_u32(&stream.readers) + (
        load_u32(&stream.downstream) + load_u32(&stream.lent)
    ) != 0

# --- asking ---------------------------------------------------------------------------------------

cdef inline void heard_epoch(
    backbone_t* bone, upstream_t* up, link_t* link, uint64_t epoch,
) noexcept nogil:
    if epoch > link.hop.feed.parents[up.index].epoch and (
        link.hop.feed.parents[up.index].lists
        and hop_believes(&link.hop, up.index, epoch, bone.now_us)
    ):
        if not hop_told(&link.hop, up.index, epoch, wall_ms()):
            refuse(bone, WIRE_FIELD)
        else:
            link_touch(bone, link)

cdef inline void ask_stream(
    backbone_t* bone, link_t* link, const hop_act_t* act, const hop_view_t* view
) noexcept nogil:
    cdef upstream_t* up = &bone.upstreams[act.parent]
    cdef uint8_t bytes[64]
    cdef writer_t writer = writer_of(bytes, 64)
    cdef wire_range_t span
    cdef wire_ask_t join
    cdef uint8_t version = version_between(&bone.speaks, &up.speaks)
    if act.what == HOP_REPAIR and bone.fault_defects & DEFECT_NO_REPAIR:
        hop_unasked(&link.hop, act.parent, bone.now_us)
        return
    bone.request += 1
    if act.what == HOP_JOIN:
        join.epoch = 0
        join.burst_us = link.stream.config.burst_us
        put_head(&writer, KIND_JOIN, link.key, bone.request, version)
        put_join(&writer, &join)
        bone.counters.joins_asked_total += 1
    else:
        span.flags = 0
        span.epoch = link.hop.epoch
        span.from_sequence = act.from_sequence
        span.to_sequence = act.to_sequence
        put_head(&writer, KIND_REPAIR, link.key, bone.request, version)
        put_range(&writer, &span)
        if act.what == HOP_BACKFILL:
            bone.counters.backfills_asked_total += 1
        else:
            bone.counters.repairs_asked_total += 1
    if upstream_ask(up, bytes, &writer, bone.now_us):
        hop_asked(&link.hop, act, bone.request, view, bone.now_us)
        up.peer.window += 1
        link_record(
            bone, link, RECORD_JOIN_ASKED if act.what == HOP_JOIN else RECORD_REPAIR_ASKED,
            asked_what(act.what), act.parent, act.from_sequence, act.to_sequence, 0,
        )
    else:
        hop_unasked(&link.hop, act.parent, bone.now_us)

cdef inline void ask_above(
    backbone_t* bone, link_t* link, const hop_view_t* view, uint64_t epoch,
) noexcept nogil:
    # A wish for this epoch or a higher one, to all whom it may reach. Nothing waits for an answer:
    # whoever begins one tells it in the directory.
    cdef uint8_t bytes[64]
    cdef writer_t writer
    cdef wire_ask_t join
    cdef upstream_t* up
    cdef uint32_t i
    join.epoch = epoch
    join.burst_us = 0
    bone.request += 1
    link.hop.wish_request = bone.request
    for i in range(bone.upstreams_count):
        up = &bone.upstreams[i]
        if not hop_wish_reaches(&link.hop, view, i, epoch):
            continue
        writer = writer_of(bytes, 64)
        put_head(&writer, KIND_JOIN, link.key, bone.request,
                 version_between(&bone.speaks, &up.speaks))
        put_join(&writer, &join)
        if upstream_ask(up, bytes, &writer, bone.now_us):
            bone.counters.wishes_asked_total += 1
            link_record(bone, link, RECORD_JOIN_ASKED, ASKED_ABOVE, i, epoch, 0, 0)

cdef inline void child_topic(
    backbone_t* bone, link_t* link, uint32_t parent, int option,
) noexcept nogil:
    cdef uint8_t topic[WIRE_TOPIC_BYTES]
    put_topic(topic, KIND_STREAM, link.key)
    bone.api.setsockopt(bone.upstreams[parent].sub, option, topic, WIRE_TOPIC_BYTES)

cdef inline void child_unsubscribe(backbone_t* bone, link_t* link) noexcept nogil:
    # At every upstream.
    cdef uint32_t i
    for i in range(bone.upstreams_count):
        if link.hop.feed.parents[i].subscribed:
            child_topic(bone, link, i, RELAY_ZMQ_UNSUBSCRIBE)
    hop_unsubscribed(&link.hop)

cdef inline void child_forget(backbone_t* bone, link_t* link) noexcept nogil:
    # The link writes this stream no longer; its stale ring goes.
    if load_u32(&link.stream.writer) == WRITER_LINK:
        if link.stream.ring != NULL and not stream_forget_ring(link.stream):
            stream_end_epoch(link.stream, bone.now_us)
        stream_unclaim(link.stream)

cdef inline void count_lost(
    backbone_t* bone, link_t* link, uint64_t frames, uint32_t cause, uint64_t from_sequence,
    uint64_t frame_us,
) noexcept nogil:
    # Once, with its size and cause.
    if frames == 0:
        return
    link_record(bone, link, RECORD_LOST, cause, link.hop.feed.feeding, from_sequence, frames,
                frames * frame_us)
    link.stream.counters.lost_frames_total += frames
    link.stream.counters.lost_runs_total += 1
    if cause == LOST_GONE:
        bone.counters.lost_gone_frames_total += frames
        link.stream.counters.lost_gone_frames_total += frames
    elif cause == LOST_WAIT:
        bone.counters.lost_wait_frames_total += frames
        link.stream.counters.lost_wait_frames_total += frames
    else:
        bone.counters.lost_outage_frames_total += frames
        link.stream.counters.lost_outage_frames_total += frames

cdef inline void child_act(
    backbone_t* bone, link_t* link, const hop_act_t* act, const hop_view_t* view
) noexcept nogil:
    cdef stream_t* stream = link.stream
    cdef uint64_t lost = act.lost
    if act.what == HOP_SUBSCRIBE:
        child_topic(bone, link, act.parent, RELAY_ZMQ_SUBSCRIBE)
    elif act.what == HOP_LEAVE:
        child_topic(bone, link, act.parent, RELAY_ZMQ_UNSUBSCRIBE)
    elif act.what == HOP_UNSUBSCRIBE:
        child_unsubscribe(bone, link)
        if load_u32(&stream.downstream) == 0:
            link_close_out(link)
        child_forget(bone, link)
    elif act.what == HOP_GIVE_UP:
        lost = ring_give_up(stream.ring)
        link_touch(bone, link)
    elif act.what == HOP_END:
        stream_end_epoch(stream, bone.now_us)
        link_record(
            bone, link, RECORD_EPOCH_ENDED,
            EPOCH_NEWER if link.hop.told_epoch > link.hop.epoch else EPOCH_ABOVE,
            link.hop.feed.feeding, link.hop.epoch, view.head_sequence, 0,
        )
    else:
        ask_stream(bone, link, act, view)
    count_lost(bone, link, lost, act.cause, view.head_sequence, view.frame_us)

cdef inline void child_yield(
    backbone_t* bone, link_t* link, const hop_view_t* view,
) noexcept nogil:
    # A source of this node asks for the mount, and no upstream is there that feeds it: the epoch
    # ends here, and the writer's place is free. If an upstream returns with more of it before the
    # source does, it goes on (child_resume).
    cdef uint64_t waits_us = load_u64(&link.stream.source_waits_us)
    if waits_us == 0 or bone.now_us > waits_us + YIELD_US or hop_is_fed(&link.hop, view) or (
        not link_writes(link)
    ):
        return
    if link.hop.state == HOP_LIVE:
        link.hop.final_known = True
        link.hop.final_sequence = view.head_sequence
        stream_end_epoch(link.stream, bone.now_us)
        link_record(bone, link, RECORD_EPOCH_ENDED, EPOCH_ABOVE, link.hop.feed.feeding,
                    link.hop.epoch, view.head_sequence, 0)
    link.hop.state = HOP_ENDED
    link.hop.back_over = True

cdef inline void child_step(backbone_t* bone, link_t* link) noexcept nogil:
    # Shows the link to its decisions until nothing is left to do now.
    cdef hop_view_t view
    cdef hop_act_t act
    cdef uint32_t asked
    cdef uint32_t asked_of
    cdef uint64_t timeouts = link.hop.timeouts
    cdef uint64_t switches = link.hop.feed.switches
    cdef before_t before
    cdef uint64_t wish
    cdef int i
    if child_is_calm(bone, link):
        hop_note_head(&link.hop, link.stream.ring.head_sequence, bone.now_us)
        return
    link.heard = False
    for i in range(ACTS_MAX):
        view_of(bone, link, &view)
        link_before(link, &before)
        asked = link.hop.asked
        asked_of = link.hop.asked_of
        hop_step(&link.hop, &view, bone.now_us, &act)
        link_after(bone, link, &before, &view)
        if asked != HOP_NOTHING and link.hop.asked == HOP_NOTHING:
            upstream_closed(&bone.upstreams[asked_of])  # timed out, or no longer wanted
        if act.what == HOP_NOTHING:
            break
        bone.moved = True
        child_act(bone, link, &act, &view)
        if act.what == HOP_JOIN or act.what == HOP_REPAIR or act.what == HOP_BACKFILL:
            break
    wish = hop_wish(&link.hop, &view, bone.now_us)
    if wish:
        ask_above(bone, link, &view, wish)
    bone.counters.timeouts_total += link.hop.timeouts - timeouts
    bone.counters.moves_total += link.hop.feed.switches - switches
    child_yield(bone, link, &view)
    if link.hop.state == HOP_ENDED and link.hop.back_over and link_writes(link):
        stream_unclaim(link.stream)     # whole: a local source may have the mount now
    link.due_us = hop_due_us(&link.hop, &view, bone.now_us)
    if link.due_us < bone.sweep_us:
        bone.sweep_us = link.due_us

# --- answers --------------------------------------------------------------------------------------

cdef inline void child_header(
    backbone_t* bone, link_t* link, const wire_head_t* head, reader_t* reader
) noexcept nogil:
    # Pieces come in order on one connection; anything else begins anew with the next join.
    cdef wire_header_t piece
    cdef blob_t* blob = &bone.upstreams[link.hop.asked_of].blob
    cdef int status = take_header(reader, &piece)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    hop_answered(&link.hop, bone.now_us)
    if piece.epoch != link.hop.epoch or not link_writes(link) or link.stream.ring == NULL:
        return
    if blob_grow(blob, head.request, &piece) and blob.filled_bytes == blob.size_bytes:
        ring_set_header(link.stream.ring, blob.bytes, blob.size_bytes, piece.end_sequence)
        blob_forget(blob)

cdef inline bint child_may_write(link_t* link, uint64_t epoch) noexcept nogil:
    # A local epoch that is newer, or a local source, keeps the mount.
    cdef stream_t* stream = link.stream
    if load_u64(&stream.epoch_highest) > epoch:
        return False
    return load_u32(&stream.writer) == WRITER_LINK or stream_claim(stream, WRITER_LINK)

cdef inline void child_here(backbone_t* bone, link_t* link, reader_t* reader) noexcept nogil:
    # A ring begins, with the title in force; its frames follow.
    cdef wire_here_t here
    cdef stream_t* stream = link.stream
    cdef uint64_t head_sequence = 0
    cdef uint64_t frame_us = 0
    cdef int status = take_here(reader, &here)
    if status != WIRE_OK or here.epoch > wall_ms() + HOP_EPOCH_AHEAD_MS:
        refuse(bone, status if status != WIRE_OK else WIRE_FIELD)
        return
    if not child_may_write(link, here.epoch) or (
        here.epoch == link.hop.epoch and here.origin != stream.origin
    ):
        bone.counters.mount_conflicts_total += 1
        hop_later(&link.hop, bone.now_us)
        upstream_closed(&bone.upstreams[link.hop.asked_of])
        return
    if link.hop.epoch == here.epoch and stream.ring != NULL:
        head_sequence = stream.ring.head_sequence
        if here.first_sequence > head_sequence and here.first_media_us > stream.ring.head_media_us:
            frame_us = (here.first_media_us - stream.ring.head_media_us) // (
                here.first_sequence - head_sequence
            )
    if not hop_here(&link.hop, here.epoch, here.first_sequence, head_sequence, bone.now_us):
        return
    if stream_begin_epoch(
        stream, here.epoch, here.origin, here.first_sequence, here.first_position,
        here.first_media_us,
    ) != 0:
        link.hop.epoch = 0          # no room for one more ring now: asked again
        link.hop.state = HOP_JOINING
        hop_later(&link.hop, bone.now_us)
        upstream_closed(&bone.upstreams[link.hop.asked_of])
        stream_unclaim(stream)
        return
    link_record(bone, link, RECORD_EPOCH_BEGUN, EPOCH_ABOVE, link.hop.asked_of, here.epoch,
                here.first_sequence, here.head_sequence)
    if head_sequence:           # the same epoch begun anew: what lies between is lost, once
        count_lost(bone, link, here.first_sequence - head_sequence, LOST_OUTAGE, head_sequence,
                   frame_us)
    if here.title_bytes:
        ring_set_title(
            stream.ring, here.title, here.title_bytes, here.title_sequence, here.title_position
        )

cdef inline void child_answer(
    backbone_t* bone, link_t* link, const wire_head_t* head, reader_t* reader
) noexcept nogil:
    # The answer to this link's open request.
    cdef wire_range_t span
    cdef hop_view_t view
    cdef int status
    if head.kind == KIND_HERE:
        child_here(bone, link, reader)
        return
    if head.kind == KIND_HEADER:
        child_header(bone, link, head, reader)
        return
    if head.kind == KIND_LATER or head.kind == KIND_UNKNOWN:
        bone.counters.answers_later_total += 1
        told_answer(bone, link, RECORD_REPAIR_LATER, 0, 0)
        hop_later(&link.hop, bone.now_us)
    else:
        status = take_range(reader, &span)
        if status != WIRE_OK:
            refuse(bone, status)
            return
        if span.epoch != link.hop.epoch:
            return
        view_of(bone, link, &view)
        if head.kind == KIND_GONE:
            bone.counters.answers_gone_total += 1
            told_answer(bone, link, RECORD_REPAIR_GONE, span.from_sequence, span.to_sequence)
            hop_gone(&link.hop, span.to_sequence, bone.now_us)
        else:
            told_answer(bone, link, RECORD_REPAIR_DONE, span.from_sequence, span.to_sequence)
            hop_done(
                &link.hop, &view, span.to_sequence, span.flags & RUN_END != 0, bone.now_us
            )
    upstream_closed(&bone.upstreams[link.hop.asked_of])
    link_touch(bone, link)
