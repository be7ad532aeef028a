# backbone_child.pxd: what a node hears from its upstreams: beacons, runs, answers.
#
# Rules of this room
#   1. Runs in the backbone thread, inside a turn. It is the writer (WRITER_LINK) of the streams it
#      fills.
#   2. Per turn: RECEIVES_MAX messages of each socket.
#   3. Every message is decoded whole before anything of it is used; what does not fit is counted.
#   4. What an upstream that is not up says is not used.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from relay._core.atomics cimport store_u32
from relay._core.backbone_ask cimport child_answer, child_may_write, heard_epoch, link_writes
from relay._core.backbone_directory cimport child_page_answer
from relay._core.backbone_record cimport EPOCH_ABOVE, link_record, told_gone, told_up
from relay._core.backbone_state cimport (
    DEFECT_COPIES, DEFECT_HOLES, RECEIVES_MAX, backbone_t, link_find, link_t, link_touch, refuse,
)
from relay._core.hop cimport *
from relay._core.parents cimport (
    PEER_LOOP, PEER_LOST, PEER_UP, PEER_VERSION, feed_fed, parent_t, peer_sign,
)
from relay._core.recorder cimport (
    RECORD_EPOCH_BEGUN, RECORD_NOBODY, RECORD_PAUSED, RECORD_UPSTREAM_OTHER, RECORD_UPSTREAM_UP,
    record,
)
from relay._core.ring cimport FRAME_TITLE, PLACED, PLACE_FAR, ring_t
from relay._core.ring_writer cimport ring_give_up
from relay._core.stream cimport (
    stream_mark, stream_place, stream_place_run, stream_resume_epoch, stream_t, stream_unclaim,
)
from relay._core.upstream cimport (
    ADOPTED_NEW, ADOPTED_SAME, beacon_is_loop, dealer_connect, dealer_look, upstream_adopt,
    upstream_leave, upstream_t,
)
from relay._core.versions cimport versions_are_near, versions_told
from relay._core.wire cimport *
from relay._core.zmq_api cimport *

# --- frames ---------------------------------------------------------------------------------------

cdef inline uint64_t place_run(
    backbone_t* bone, link_t* link, const wire_run_t* run,
) noexcept nogil:
    # Every frame where it belongs; returns how many were new. Runs at the head go in as a whole;
    # of a run that another upstream has brought already only the number is looked at.
    cdef const uint8_t* payload = run.payload
    cdef ring_t* ring = link.stream.ring
    cdef uint64_t position = run.first_position
    cdef uint64_t media_us = run.first_media_us
    cdef uint64_t placed = 0
    cdef uint64_t records[WIRE_RUN_FRAMES_MAX]
    cdef uint32_t i = 0
    cdef uint32_t frames
    cdef int status
    if run.first_sequence >= ring.base_sequence and (
        run.first_sequence + run.count <= ring.head_sequence
    ):
        link.stream.counters.duplicates_total += run.count
        if bone.fault_defects & DEFECT_COPIES:
            place_copies(link, run)
        return 0
    stream_mark(link.stream, bone.now_us)
    get_records(run, records)
    while i < run.count:
        frames = stream_place_run(
            link.stream, run.first_sequence + i, position, media_us, records + i, run.count - i,
            payload,
        )
        if frames:      # all of them audio, and the head is behind them now
            payload += link.stream.ring.head_position - position
            position = link.stream.ring.head_position
            media_us = link.stream.ring.head_media_us
            placed += frames
            i += frames
            continue
        status = place_one(link, run.first_sequence + i, position, media_us, records[i], payload)
        if status == PLACE_FAR:
            bone.counters.early_frames_total += run.count - i
            return placed
        placed += status == PLACED
        payload += records[i] & 0xFFFFFF
        position += 0 if records[i] >> 24 & FRAME_TITLE else records[i] & 0xFFFFFF
        media_us += records[i] >> 32
        i += 1
    if placed:
        link.hop.far = False
    if bone.fault_defects & DEFECT_HOLES:
        ring_give_up(link.stream.ring)
    return placed

cdef inline void place_copies(link_t* link, const wire_run_t* run) noexcept nogil:
    # The defect that tests plant to see that it is found: a copy goes to the head, as news.
    cdef const uint8_t* payload = run.payload
    cdef uint64_t records[WIRE_RUN_FRAMES_MAX]
    cdef uint32_t i
    cdef ring_t* ring
    get_records(run, records)
    for i in range(run.count):
        ring = link.stream.ring
        stream_place(
            link.stream, ring.head_sequence, ring.head_position, ring.head_media_us, payload,
            <uint32_t>(records[i] & 0xFFFFFF), <uint32_t>(records[i] >> 32),
            <uint32_t>(records[i] >> 24 & 0xFF),
        )
        payload += records[i] & 0xFFFFFF

cdef inline int place_one(
    link_t* link, uint64_t sequence, uint64_t position, uint64_t media_us, uint64_t record,
    const uint8_t* payload,
) noexcept nogil:
    # One frame: a title, a header page, or one that fills a hole. PLACE_FAR: the rest is no use
    # now.
    cdef ring_t* ring = link.stream.ring
    cdef uint32_t size = <uint32_t>(record & 0xFFFFFF)
    cdef int status
    if is_early(ring, sequence, position + size):
        link.hop.far = True
        return PLACE_FAR
    status = stream_place(
        link.stream, sequence, position, media_us, payload, size, <uint32_t>(record >> 32),
        <uint32_t>(record >> 24 & 0xFF),
    )
    if status == PLACE_FAR and sequence < link.stream.ring.base_sequence:
        link.hop.back_over = True       # the ring reaches no further back
    return status

cdef inline bint is_early(ring_t* ring, uint64_t sequence, uint64_t end_position) noexcept nogil:
    # Further ahead than ring_place takes: after a long outage what is missing is fetched in order.
    return sequence > ring.head_sequence and (
        sequence - ring.head_sequence >= ring.frames_count // 2
        or (end_position > ring.head_position
            and end_position - ring.head_position > (ring.size_bytes - ring.guard_bytes) // 2)
    )

cdef inline void child_resume(
    backbone_t* bone, const upstream_t* up, link_t* link,
) noexcept nogil:
    # The epoch was over, and another parent has more of it: it goes on, in the same ring, if nobody
    # has taken the mount since.
    cdef stream_t* stream = link.stream
    if not child_may_write(link, link.hop.epoch):
        return
    if stream.ring == NULL or stream.ring.epoch != link.hop.epoch:
        stream_unclaim(stream)
        return
    hop_resume(&link.hop, bone.now_us)
    stream_resume_epoch(stream)
    link_record(bone, link, RECORD_EPOCH_BEGUN, EPOCH_ABOVE, up.index, link.hop.epoch,
                stream.ring.head_sequence, stream.ring.head_sequence)
    link_touch(bone, link)

cdef inline void child_run(
    backbone_t* bone, upstream_t* up, const wire_head_t* head, reader_t* reader,
) noexcept nogil:
    # A run, published or as a part of an answer.
    cdef wire_run_t run
    cdef link_t* link
    cdef uint64_t placed
    cdef int status = take_run(reader, &run)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    link = link_find(bone, head.key)
    if link == NULL or link.stream == NULL or not link.hop.feed.parents[up.index].subscribed:
        bone.counters.unwanted_messages_total += 1
        return
    if head.kind == KIND_STREAM and run.origin == link.stream.origin and hop_reaches(
        &link.hop, up.index, run.epoch, run.first_sequence + run.count, run.flags & RUN_END != 0
    ):
        child_resume(bone, up, link)
    if run.epoch != link.hop.epoch or not link_writes(link) or link.stream.ring == NULL:
        heard_epoch(bone, up, link, run.epoch)
        return
    if run.origin != link.stream.origin:    # two sources that began in the same millisecond
        bone.counters.unwanted_messages_total += 1
        return
    bone.counters.received_frames_total += run.count
    placed = place_run(bone, link, &run)
    if head.kind == KIND_STREAM:
        feed_fed(
            &link.hop.feed, up.index, run.first_sequence + run.count, bone.now_us
        )
    elif head.request == link.hop.request:
        hop_answered(&link.hop, bone.now_us)
        if link.hop.asked == HOP_REPAIR:
            link.stream.counters.repaired_frames_total += placed
    if link.stream.ring.reserved_sequence != link.stream.ring.head_sequence or (
        run.flags & RUN_END or link.hop.final_known
    ):
        link_touch(bone, link)

# --- beacons --------------------------------------------------------------------------------------

cdef inline void links_restart(backbone_t* bone) noexcept nogil:
    # We stood still ourselves: all waiting begins anew.
    cdef link_t* link
    cdef uint64_t slot
    record(&bone.recorder, bone.now_us, 0, RECORD_PAUSED, 0, RECORD_NOBODY,
           bone.now_us - bone.last_turn_us, 0, 0)
    for slot in range(bone.table_size):
        link = bone.table[slot]
        if link != NULL and link.stream != NULL:
            hop_restart_timers(&link.hop, bone.now_us)
            link_touch(bone, link)
    for slot in range(bone.upstreams_count):
        bone.peers[slot].window = 0

cdef inline void links_heard(backbone_t* bone, upstream_t* up, bint process) noexcept nogil:
    # This upstream is back, or another process is in its place: nothing asked is answered now.
    cdef link_t* link
    cdef uint64_t slot
    for slot in range(bone.table_size):
        link = bone.table[slot]
        if link != NULL and link.stream != NULL:
            hop_parent_anew(&link.hop, up.index, process, bone.now_us)
            link_touch(bone, link)
    up.peer.window = 0

cdef inline void links_lost(backbone_t* bone, upstream_t* up) noexcept nogil:
    # This upstream is lost: who was fed by it looks for another in this turn.
    cdef link_t* link
    cdef uint64_t slot
    for slot in range(bone.table_size):
        link = bone.table[slot]
        if link != NULL and link.stream != NULL:
            hop_parent_lost(&link.hop, up.index, bone.now_us)
            link_touch(bone, link)
    up.peer.window = 0

cdef inline void upstream_gone(backbone_t* bone, upstream_t* up, uint32_t state) noexcept nogil:
    # It is lost (or refused): nothing is asked or given up until it is back.
    told_gone(bone, up, state)
    if up.peer.state == PEER_UP:
        bone.counters.upstreams_lost_total += 1
        up.lost_total += 1
        links_lost(bone, up)
    if state == PEER_LOOP and up.peer.state != PEER_LOOP:
        bone.counters.loops_total += 1
    upstream_leave(up, state)
    upstreams_tell(bone)

cdef inline void upstreams_tell(backbone_t* bone) noexcept nogil:
    # Shards refuse a mount that is not here with 404 or, while nobody above is there, with 503.
    cdef uint32_t up = 0
    cdef uint32_t i
    for i in range(bone.upstreams_count):
        up |= bone.upstreams[i].peer.state == PEER_UP
    store_u32(&bone.engine.upstream_up, up)

cdef inline void child_adopt(
    backbone_t* bone, upstream_t* up, const wire_beacon_t* beacon,
) noexcept nogil:
    # Whose beacon it is; what was open at the process before is open no more.
    cdef bint known = up.node_id[0] != 0
    cdef int adopted = upstream_adopt(up, beacon)
    if adopted == ADOPTED_SAME:
        return
    if adopted == ADOPTED_NEW and known:
        bone.counters.switches_total += 1
        told_up(bone, up, RECORD_UPSTREAM_OTHER, 0)
    if not dealer_connect(up):
        refuse(bone, WIRE_TEXT)
    links_heard(bone, up, adopted == ADOPTED_NEW)

cdef inline void child_drains(backbone_t* bone, upstream_t* up, bint drains) noexcept nogil:
    # It is about to stop (or is another process now): whom it feeds looks for another in this turn.
    cdef link_t* link
    cdef uint64_t slot
    if up.peer.drains == drains:
        return
    up.peer.drains = drains
    for slot in range(bone.table_size):
        link = bone.table[slot]
        if link != NULL and link.stream != NULL and link.hop.feed.feeding == up.index:
            link_touch(bone, link)

cdef inline bint entry_is_rivals(link_t* link, upstream_t* up, uint64_t epoch) noexcept nogil:
    # Two sources that began in the same millisecond: this upstream's is the other one, as its
    # directory says (0: it does not know). How far that has come is nothing to us.
    cdef const parent_t* parent = &link.hop.feed.parents[up.index]
    return parent.listed_epoch == epoch and parent.origin != 0 and (
        parent.origin != link.stream.origin
    )

cdef inline void child_beacon(
    backbone_t* bone, upstream_t* up, const wire_head_t* head, reader_t* reader,
) noexcept nogil:
    cdef wire_beacon_t beacon
    cdef wire_beacon_entry_t entry
    cdef link_t* link
    cdef uint64_t away_us
    cdef uint32_t i
    cdef int status = take_beacon(reader, &beacon)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    bone.counters.beacons_received_total += 1
    if beacon_is_loop(&beacon, bone.engine.node_id):
        upstream_gone(bone, up, PEER_LOOP)
        return
    up.speaks = versions_told(head.version, beacon.flags)
    if not versions_are_near(&bone.speaks, &up.speaks):
        refuse(bone, WIRE_VERSION)
        upstream_gone(bone, up, PEER_VERSION)
        return
    child_adopt(bone, up, &beacon)
    if beacon.flags & BEACON_GOODBYE:
        upstream_gone(bone, up, PEER_LOST)
        return
    away_us = bone.now_us - up.peer.sign_us if up.peer.sign_us else 0
    if peer_sign(up.peer, bone.now_us):
        told_up(bone, up, RECORD_UPSTREAM_UP, away_us)
        upstreams_tell(bone)
        up.pages.retry_us = 0
        links_heard(bone, up, False)
    child_drains(bone, up, beacon.flags & BEACON_DRAINING != 0)
    up.pages.wanted = beacon.directory_version
    for i in range(beacon.count):
        entry = get_beacon_entry(beacon.entries + WIRE_BEACON_ENTRY_BYTES * i)
        link = link_find(bone, entry.key)
        if link != NULL and link.stream != NULL and link.hop.feed.parents[up.index].subscribed:
            heard_epoch(bone, up, link, entry.epoch)
            if not entry_is_rivals(link, up, entry.epoch) and hop_reaches(
                &link.hop, up.index, entry.epoch, entry.sequence, entry.flags & RUN_END != 0
            ):
                child_resume(bone, up, link)
            if entry.flags & RUN_END:
                link_touch(bone, link)

cdef inline void child_published(backbone_t* bone, upstream_t* up) noexcept nogil:
    # All that it has published since the last turn.
    cdef relay_msg_t msg
    cdef reader_t reader
    cdef wire_head_t head
    cdef int status
    cdef int i
    bone.api.msg_init(&msg)
    for i in range(RECEIVES_MAX):
        if bone.api.msg_recv(&msg, up.sub, RELAY_ZMQ_DONTWAIT) < 0:
            break
        reader = reader_of(<const uint8_t*>bone.api.msg_data(&msg), bone.api.msg_size(&msg))
        bone.moved = True
        store_u32(&up.published, up.published + 1)
        bone.counters.received_messages_total += 1
        bone.counters.received_bytes_total += bone.api.msg_size(&msg)
        status = take_head(&reader, &head, &bone.speaks)
        if bone.api.msg_more(&msg) or bone.api.msg_size(&msg) > wire_size_max(head.kind):
            refuse(bone, WIRE_SIZE)
        elif status != WIRE_OK:
            refuse(bone, status)
            if status == WIRE_VERSION and head.kind == KIND_BEACON:
                up.speaks = versions_told(head.version, take_u8(&reader))
                upstream_gone(bone, up, PEER_VERSION)
        elif head.kind == KIND_BEACON:
            child_beacon(bone, up, &head, &reader)
        elif head.kind != KIND_STREAM:
            refuse(bone, WIRE_KIND)
        elif up.peer.state == PEER_UP:
            up.peer.sign_us = bone.now_us
            if bone.fault_drop_every == 0 or (
                bone.counters.received_messages_total % bone.fault_drop_every != 0
            ):
                child_run(bone, up, &head, &reader)
    else:
        bone.again = True
    bone.api.msg_close(&msg)

# --- answers --------------------------------------------------------------------------------------

cdef inline void child_answers(backbone_t* bone, upstream_t* up) noexcept nogil:
    cdef relay_msg_t msg
    cdef reader_t reader
    cdef wire_head_t head
    cdef int status
    cdef int i
    dealer_look(up)
    bone.api.msg_init(&msg)
    for i in range(RECEIVES_MAX):
        if up.dealer == NULL or bone.api.msg_recv(&msg, up.dealer, RELAY_ZMQ_DONTWAIT) < 0:
            break
        bone.moved = True
        store_u32(&up.answered, up.answered + 1)
        up.unheard_us = 0
        bone.counters.received_messages_total += 1
        bone.counters.received_bytes_total += bone.api.msg_size(&msg)
        reader = reader_of(<const uint8_t*>bone.api.msg_data(&msg), bone.api.msg_size(&msg))
        status = take_head(&reader, &head, &bone.speaks)
        if bone.api.msg_more(&msg) or bone.api.msg_size(&msg) > wire_size_max(head.kind):
            refuse(bone, WIRE_SIZE)
        elif status != WIRE_OK:
            refuse(bone, status)
        elif up.peer.state == PEER_UP:
            up.peer.sign_us = bone.now_us
            child_dispatch(bone, up, &head, &reader)
    else:
        bone.again = True
    bone.api.msg_close(&msg)

cdef inline void child_dispatch(
    backbone_t* bone, upstream_t* up, const wire_head_t* head, reader_t* reader
) noexcept nogil:
    cdef link_t* link
    if head.kind == KIND_RUN:
        child_run(bone, up, head, reader)
    elif head.request == up.pages.request and head.request != 0:
        child_page_answer(bone, up, head, reader)
    elif (
        head.kind == KIND_HERE or head.kind == KIND_HEADER or head.kind == KIND_LATER
        or head.kind == KIND_UNKNOWN or head.kind == KIND_GONE or head.kind == KIND_DONE
    ):
        link = link_find(bone, head.key)
        if link != NULL and head.request == link.hop.wish_request and head.request:
            pass            # nothing waits for it
        elif link == NULL or link.stream == NULL or link.hop.asked == HOP_NOTHING or (
            head.request != link.hop.request or link.hop.asked_of != up.index
        ):
            bone.counters.unwanted_messages_total += 1
        else:
            child_answer(bone, link, head, reader)
    else:
        refuse(bone, WIRE_KIND)
