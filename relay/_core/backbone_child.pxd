# backbone_child.pxd: what a node does toward its upstream: receives runs and beacons, asks, fills
# rings.
#
# Rules of this room
#   1. Runs in the backbone thread, inside a turn. It is the writer (WRITER_LINK) of the streams it
#      fills.
#   2. Decides nothing that waits: hop.pxd does; this room shows it the ring and does what it
#      answers.
#   3. A mount that a local source writes is left alone.
#   4. At most WINDOW_MAX requests are open at the upstream, whatever the number of streams.
#   5. Every message is decoded whole before anything of it is used; what does not fit is counted.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strcmp

from relay._core.atomics cimport load_pointer, load_u32, load_u64, store_u32
from relay._core.backbone_parent cimport RECEIVES_MAX
from relay._core.backbone_state cimport (
    PREFETCH_MAX, backbone_t, link_bury, link_close_out, link_find, link_note, link_of, link_t,
    link_touch, refuse,
)
from relay._core.engine cimport (
    engine_add, engine_config, engine_find, engine_remove, wall_ms,
)
from relay._core.hop cimport *
from relay._core.ring cimport FRAME_TITLE, PLACED, PLACE_FAR, frame_t, ring_entry, ring_has, ring_t
from relay._core.ring_writer cimport (
    ring_give_up, ring_hole_end_sequence, ring_set_header, ring_set_title,
)
from relay._core.stream cimport (
    WRITER_LINK, WRITER_LOCAL, WRITER_NONE, info_t, mount_key, stream_begin_epoch, stream_claim,
    stream_drop, stream_end_epoch, stream_forget_ring, stream_open, stream_place, stream_place_run,
    stream_set_info,
    stream_t, stream_unclaim,
)
from relay._core.wire cimport *
from relay._core.zmq_api cimport *

cdef enum:
    WINDOW_MAX = 32
    PAGES_STUCK_MAX = 4       # in one run of pages; then each is refused and asked for seldom

# --- the view ------------------------------------------------------------------------------------

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
        + load_u32(&stream.downstream) != 0
    )
    view.upstream_up = bone.peer.state == PEER_UP and bone.dealer != NULL
    view.may_ask = bone.window < WINDOW_MAX
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

# --- frames --------------------------------------------------------------------------------------

cdef inline uint64_t place_run(
    backbone_t* bone, link_t* link, const wire_run_t* run,
) noexcept nogil:
    # Every frame where it belongs; returns how many were new. Runs at the head go in as a whole.
    cdef const uint8_t* payload = run.payload
    cdef uint64_t position = run.first_position
    cdef uint64_t media_us = run.first_media_us
    cdef uint64_t placed = 0
    cdef uint64_t records[WIRE_RUN_FRAMES_MAX]
    cdef uint32_t i = 0
    cdef uint32_t frames
    cdef int status
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
    return placed

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

cdef inline void heard_epoch(backbone_t* bone, link_t* link, uint64_t epoch) noexcept nogil:
    if epoch > link.hop.told_epoch:
        if not hop_told(&link.hop, epoch, wall_ms()):
            refuse(bone, WIRE_FIELD)
        else:
            link_touch(bone, link)

cdef inline void child_run(
    backbone_t* bone, const wire_head_t* head, reader_t* reader,
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
    if link == NULL or link.stream == NULL or not link.hop.subscribed:
        bone.counters.unwanted_messages_total += 1
        return
    if run.epoch != link.hop.epoch or not link_writes(link) or link.stream.ring == NULL:
        heard_epoch(bone, link, run.epoch)
        return
    bone.counters.received_frames_total += run.count
    placed = place_run(bone, link, &run)
    if head.kind == KIND_STREAM:
        hop_reaches(
            &link.hop, run.epoch, run.first_sequence + run.count, run.flags & RUN_END != 0
        )
    elif head.request == link.hop.request:
        hop_answered(&link.hop, bone.now_us)
        if link.hop.asked == HOP_REPAIR:
            link.stream.counters.repaired_frames_total += placed
    if link.stream.ring.reserved_sequence != link.stream.ring.head_sequence or link.hop.final_known:
        link_touch(bone, link)

# --- beacons -------------------------------------------------------------------------------------

cdef inline bint beacon_is_loop(backbone_t* bone, const wire_beacon_t* beacon) noexcept nogil:
    # Is the sender ourselves, below us, or too deep?
    cdef uint32_t i
    if memcmp(beacon.node_id, bone.engine.node_id, 16) == 0 or beacon.path_count >= WIRE_PATH_MAX:
        return True
    for i in range(beacon.path_count):
        if beacon.path[i] == bone.engine.node_id[0]:
            return True
    return False

cdef inline void peer_gone(backbone_t* bone, uint32_t state) noexcept nogil:
    # The upstream is lost (or refused): nothing is asked or given up until it is back.
    if bone.peer.state == PEER_UP:
        bone.counters.upstreams_lost_total += 1
    if state == PEER_LOOP and bone.peer.state != PEER_LOOP:
        bone.counters.loops_total += 1
    bone.peer.state = state
    bone.page_request = 0
    if state == PEER_LOOP:          # not above us: our children must not be told so
        bone.peer_id[0] = bone.peer_id[1] = bone.peer_path_count = 0
    store_u32(&bone.engine.upstream_up, 0)

cdef inline void links_restart(backbone_t* bone) noexcept nogil:
    cdef uint64_t slot
    for slot in range(bone.table_size):
        if bone.table[slot] != NULL and bone.table[slot].stream != NULL:
            hop_restart_timers(&bone.table[slot].hop, bone.now_us)
            link_touch(bone, bone.table[slot])
    bone.window = 0

cdef inline void dealer_option(backbone_t* bone, int option, int value) noexcept nogil:
    bone.api.setsockopt(bone.dealer, option, &value, sizeof(int))

cdef inline void dealer_close(backbone_t* bone) noexcept nogil:
    if bone.dealer != NULL:
        dealer_option(bone, RELAY_ZMQ_LINGER, 0)
        bone.api.close(bone.dealer)
        bone.dealer = NULL

cdef inline void dealer_connect(backbone_t* bone, const char* address) noexcept nogil:
    # A new socket for each parent process: nothing queued for the last one can reach it.
    cdef long long size_max = 196608
    dealer_close(bone)
    bone.unheard_us = 0
    bone.dealer = bone.api.socket(bone.context, RELAY_ZMQ_DEALER)
    if bone.dealer == NULL:
        return
    dealer_option(bone, RELAY_ZMQ_LINGER, 0)
    dealer_option(bone, RELAY_ZMQ_IMMEDIATE, 1)
    dealer_option(bone, RELAY_ZMQ_IPV6, 1)
    dealer_option(bone, RELAY_ZMQ_SNDHWM, 256)
    dealer_option(bone, RELAY_ZMQ_RCVHWM, 1024)
    dealer_option(bone, RELAY_ZMQ_RECONNECT_IVL, 100)
    dealer_option(bone, RELAY_ZMQ_RECONNECT_IVL_MAX, 0)
    dealer_option(bone, RELAY_ZMQ_HANDSHAKE_IVL, 5000)
    dealer_option(bone, RELAY_ZMQ_TCP_KEEPALIVE, 1)
    dealer_option(bone, RELAY_ZMQ_TCP_KEEPALIVE_IDLE, 5)
    dealer_option(bone, RELAY_ZMQ_TCP_KEEPALIVE_INTVL, 2)
    dealer_option(bone, RELAY_ZMQ_TCP_MAXRT, 5000)
    bone.api.setsockopt(bone.dealer, RELAY_ZMQ_MAXMSGSIZE, &size_max, sizeof(size_max))
    if zmq_curve(&bone.api, bone.dealer, &bone.curve) != 0 or (
        bone.api.connect(bone.dealer, address) != 0
    ):
        refuse(bone, WIRE_TEXT)     # announced, but no address: a beacon with another may come
        dealer_close(bone)

cdef inline void peer_adopt(backbone_t* bone, const wire_beacon_t* beacon) noexcept nogil:
    # Who is above us, and where it answers; a new process or address gets a new socket.
    cdef char address[512]
    cdef bint same = memcmp(beacon.node_id, bone.peer_id, 16) == 0
    if beacon.address_bytes:
        snprintf(address, 512, "tcp://%.*s", <int>beacon.address_bytes, <const char*>beacon.address)
    else:
        snprintf(address, 512, "%s:%u", bone.upstream_host, beacon.router_port)
    bone.peer_path_count = beacon.path_count
    memcpy(bone.peer_path, beacon.path, sizeof(beacon.path))
    bone.peer_load = beacon.load
    if same and strcmp(address, bone.peer_address) == 0 and bone.dealer != NULL:
        return
    if not same:
        if bone.peer_id[0] != 0:
            bone.counters.switches_total += 1
        memcpy(bone.peer_id, beacon.node_id, 16)
        bone.page_since = bone.page_wanted = bone.page_round = 0
        bone.page_best = bone.page_stuck = 0
        bone.page_retry_us = 0
    bone.page_request = 0
    memcpy(bone.peer_address, address, 512)
    dealer_connect(bone, address)
    links_restart(bone)

cdef inline void child_beacon(backbone_t* bone, reader_t* reader) noexcept nogil:
    cdef wire_beacon_t beacon
    cdef wire_beacon_entry_t entry
    cdef link_t* link
    cdef uint32_t i
    cdef int status = take_beacon(reader, &beacon)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    bone.counters.beacons_received_total += 1
    if beacon_is_loop(bone, &beacon):
        peer_gone(bone, PEER_LOOP)
        return
    peer_adopt(bone, &beacon)
    if beacon.flags & BEACON_GOODBYE:
        peer_gone(bone, PEER_LOST)
        return
    if peer_sign(&bone.peer, bone.now_us):
        store_u32(&bone.engine.upstream_up, 1)
        bone.page_retry_us = 0
        links_restart(bone)
    bone.page_wanted = beacon.directory_version
    for i in range(beacon.count):
        entry = get_beacon_entry(beacon.entries + WIRE_BEACON_ENTRY_BYTES * i)
        link = link_find(bone, entry.key)
        if link != NULL and link.stream != NULL and link.hop.subscribed:
            heard_epoch(bone, link, entry.epoch)
            hop_reaches(&link.hop, entry.epoch, entry.sequence, entry.flags & RUN_END != 0)
            if entry.flags & RUN_END:
                link_touch(bone, link)

cdef inline void child_published(backbone_t* bone) noexcept nogil:
    # All that the upstream has published since the last turn.
    cdef relay_msg_t msg
    cdef reader_t reader
    cdef wire_head_t head
    cdef int status
    cdef int i
    bone.api.msg_init(&msg)
    for i in range(RECEIVES_MAX):
        if bone.api.msg_recv(&msg, bone.sub, RELAY_ZMQ_DONTWAIT) < 0:
            break
        reader = reader_of(<const uint8_t*>bone.api.msg_data(&msg), bone.api.msg_size(&msg))
        bone.moved = True
        bone.counters.received_messages_total += 1
        bone.counters.received_bytes_total += bone.api.msg_size(&msg)
        status = take_head(&reader, &head)
        if bone.api.msg_more(&msg) or bone.api.msg_size(&msg) > wire_size_max(head.kind):
            refuse(bone, WIRE_SIZE)
        elif status != WIRE_OK:
            refuse(bone, status)
            if status == WIRE_VERSION and head.kind == KIND_BEACON:
                bone.peer_version = head.version
                peer_gone(bone, PEER_VERSION)
        elif head.kind == KIND_BEACON:
            child_beacon(bone, &reader)
        elif head.kind != KIND_STREAM:
            refuse(bone, WIRE_KIND)
        elif bone.peer.state == PEER_UP:
            bone.peer.sign_us = bone.now_us
            if bone.fault_drop_every == 0 or (
                bone.counters.received_messages_total % bone.fault_drop_every != 0
            ):
                child_run(bone, &head, &reader)
    else:
        bone.again = True
    bone.api.msg_close(&msg)

# --- asking --------------------------------------------------------------------------------------

cdef inline bint ask(backbone_t* bone, const uint8_t* bytes, const writer_t* writer) noexcept nogil:
    if bone.unheard_us == 0:
        bone.unheard_us = bone.now_us
    return bone.dealer != NULL and bone.api.send(
        bone.dealer, bytes, writer.at - bytes, RELAY_ZMQ_DONTWAIT
    ) >= 0

cdef inline void ask_stream(
    backbone_t* bone, link_t* link, const hop_act_t* act, const hop_view_t* view
) noexcept nogil:
    cdef uint8_t bytes[64]
    cdef writer_t writer = writer_of(bytes, 64)
    cdef wire_range_t span
    cdef wire_ask_t join
    bone.request += 1
    if act.what == HOP_JOIN:
        join.epoch = 0
        join.burst_us = link.stream.config.burst_us
        put_head(&writer, KIND_JOIN, link.key, bone.request)
        put_join(&writer, &join)
        bone.counters.joins_asked_total += 1
    else:
        span.flags = 0
        span.epoch = link.hop.epoch
        span.from_sequence = act.from_sequence
        span.to_sequence = act.to_sequence
        put_head(&writer, KIND_REPAIR, link.key, bone.request)
        put_range(&writer, &span)
        if act.what == HOP_BACKFILL:
            bone.counters.backfills_asked_total += 1
        else:
            bone.counters.repairs_asked_total += 1
    if ask(bone, bytes, &writer):
        hop_asked(&link.hop, act, bone.request, view, bone.now_us)
        bone.window += 1
    else:
        hop_unasked(&link.hop, bone.now_us)

cdef inline void child_topic(backbone_t* bone, link_t* link, int option) noexcept nogil:
    cdef uint8_t topic[WIRE_TOPIC_BYTES]
    put_topic(topic, KIND_STREAM, link.key)
    bone.api.setsockopt(bone.sub, option, topic, WIRE_TOPIC_BYTES)

cdef inline void child_forget(backbone_t* bone, link_t* link) noexcept nogil:
    # The link writes this stream no longer; its stale ring goes.
    if load_u32(&link.stream.writer) == WRITER_LINK:
        if link.stream.ring != NULL and not stream_forget_ring(link.stream):
            stream_end_epoch(link.stream, bone.now_us)
        stream_unclaim(link.stream)

cdef inline void child_act(
    backbone_t* bone, link_t* link, const hop_act_t* act, const hop_view_t* view
) noexcept nogil:
    cdef stream_t* stream = link.stream
    cdef uint64_t lost = act.lost
    if act.what == HOP_SUBSCRIBE:
        child_topic(bone, link, RELAY_ZMQ_SUBSCRIBE)
    elif act.what == HOP_UNSUBSCRIBE:
        child_topic(bone, link, RELAY_ZMQ_UNSUBSCRIBE)
        if load_u32(&stream.downstream) == 0:
            link_close_out(link)
        child_forget(bone, link)
    elif act.what == HOP_GIVE_UP:
        lost = ring_give_up(stream.ring)
    elif act.what == HOP_END:
        stream_end_epoch(stream, bone.now_us)
    else:
        ask_stream(bone, link, act, view)
    if lost:
        stream.counters.lost_frames_total += lost
        stream.counters.lost_runs_total += 1
    if act.what == HOP_GIVE_UP:
        link_touch(bone, link)

cdef inline void child_step(backbone_t* bone, link_t* link) noexcept nogil:
    # Shows the link to its decisions until nothing is left to do now.
    cdef hop_view_t view
    cdef hop_act_t act
    cdef uint32_t asked
    cdef uint64_t timeouts = link.hop.timeouts
    cdef int i
    for i in range(8):
        view_of(bone, link, &view)
        asked = link.hop.asked
        hop_step(&link.hop, &view, bone.now_us, &act)
        if asked != HOP_NOTHING and link.hop.asked == HOP_NOTHING:
            child_closed(bone)          # timed out, or no longer wanted
        if act.what == HOP_NOTHING:
            break
        bone.moved = True
        child_act(bone, link, &act, &view)
        if act.what == HOP_JOIN or act.what == HOP_REPAIR or act.what == HOP_BACKFILL:
            break
    bone.counters.timeouts_total += link.hop.timeouts - timeouts
    if link.hop.state == HOP_ENDED and link.hop.back_over and link_writes(link):
        stream_unclaim(link.stream)     # whole: a local source may have the mount now
    link.due_us = hop_due_us(&link.hop, &view, bone.now_us)
    if link.due_us < bone.sweep_us:
        bone.sweep_us = link.due_us

cdef inline void child_closed(backbone_t* bone) noexcept nogil:
    if bone.window > 0:
        bone.window -= 1

# --- answers -------------------------------------------------------------------------------------

cdef inline void child_header(backbone_t* bone, link_t* link, reader_t* reader) noexcept nogil:
    # Pieces come in order on one connection; anything else begins anew with the next join.
    cdef wire_header_t piece
    cdef int status = take_header(reader, &piece)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    hop_answered(&link.hop, bone.now_us)
    if piece.epoch != link.hop.epoch or not link_writes(link) or link.stream.ring == NULL:
        return
    if piece.offset == 0:
        free(link.header)
        link.header = <uint8_t*>malloc(piece.total_bytes)
        link.header_bytes = piece.total_bytes
        link.header_filled = 0
    if link.header == NULL or piece.offset != link.header_filled or (
        piece.total_bytes != link.header_bytes
    ):
        return
    memcpy(link.header + piece.offset, piece.bytes, piece.size_bytes)
    link.header_filled += piece.size_bytes
    if link.header_filled == link.header_bytes:
        ring_set_header(link.stream.ring, link.header, link.header_bytes, piece.end_sequence)
        free(link.header)
        link.header = NULL

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
    cdef int status = take_here(reader, &here)
    if status != WIRE_OK or here.epoch > wall_ms() + HOP_EPOCH_AHEAD_MS:
        refuse(bone, status if status != WIRE_OK else WIRE_FIELD)
        return
    if not child_may_write(link, here.epoch):
        bone.counters.mount_conflicts_total += 1
        hop_later(&link.hop, bone.now_us, bone.repair_wait_us)
        child_closed(bone)
        return
    if link.hop.epoch == here.epoch and stream.ring != NULL:
        head_sequence = stream.ring.head_sequence
    if not hop_here(&link.hop, here.epoch, here.first_sequence, head_sequence, bone.now_us):
        return
    if stream_begin_epoch(
        stream, here.epoch, here.origin, here.first_sequence, here.first_position,
        here.first_media_us,
    ) != 0:
        link.hop.epoch = 0          # no room for one more ring now: asked again
        link.hop.state = HOP_JOINING
        hop_later(&link.hop, bone.now_us, bone.repair_wait_us)
        child_closed(bone)
        stream_unclaim(stream)
        return
    if head_sequence:           # the same epoch begun anew: what lies between is lost, once
        stream.counters.lost_frames_total += here.first_sequence - head_sequence
        stream.counters.lost_runs_total += 1
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
        child_header(bone, link, reader)
        return
    if head.kind == KIND_LATER or head.kind == KIND_UNKNOWN:
        bone.counters.answers_later_total += 1
        hop_later(&link.hop, bone.now_us, bone.repair_wait_us)
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
            hop_gone(&link.hop, span.to_sequence, view.head_sequence, bone.now_us)
        else:
            hop_done(
                &link.hop, &view, span.to_sequence, span.flags & RUN_END != 0, bone.now_us
            )
    child_closed(bone)
    link_touch(bone, link)

cdef inline void child_answers(backbone_t* bone) noexcept nogil:
    cdef relay_msg_t msg
    cdef reader_t reader
    cdef wire_head_t head
    cdef int status
    cdef int i
    bone.api.msg_init(&msg)
    for i in range(RECEIVES_MAX):
        if bone.dealer == NULL or bone.api.msg_recv(&msg, bone.dealer, RELAY_ZMQ_DONTWAIT) < 0:
            break
        bone.moved = True
        bone.unheard_us = 0
        bone.counters.received_messages_total += 1
        bone.counters.received_bytes_total += bone.api.msg_size(&msg)
        reader = reader_of(<const uint8_t*>bone.api.msg_data(&msg), bone.api.msg_size(&msg))
        status = take_head(&reader, &head)
        if bone.api.msg_more(&msg) or bone.api.msg_size(&msg) > wire_size_max(head.kind):
            refuse(bone, WIRE_SIZE)
        elif status != WIRE_OK:
            refuse(bone, status)
        elif bone.peer.state == PEER_UP:
            bone.peer.sign_us = bone.now_us
            child_dispatch(bone, &head, &reader)
    else:
        bone.again = True
    bone.api.msg_close(&msg)

cdef inline void child_dispatch(
    backbone_t* bone, const wire_head_t* head, reader_t* reader
) noexcept nogil:
    cdef link_t* link
    if head.kind == KIND_RUN:
        child_run(bone, head, reader)
    elif head.request == bone.page_request and head.request != 0:
        child_page_answer(bone, head, reader)
    elif (
        head.kind == KIND_HERE or head.kind == KIND_HEADER or head.kind == KIND_LATER
        or head.kind == KIND_UNKNOWN or head.kind == KIND_GONE or head.kind == KIND_DONE
    ):
        link = link_find(bone, head.key)
        if link == NULL or link.stream == NULL or link.hop.asked == HOP_NOTHING or (
            head.request != link.hop.request
        ):
            bone.counters.unwanted_messages_total += 1
        else:
            child_answer(bone, link, head, reader)
    else:
        refuse(bone, WIRE_KIND)

# --- the directory -------------------------------------------------------------------------------

cdef inline void ask_page(backbone_t* bone) noexcept nogil:
    # The next page of the upstream's directory, when it has changed and none is on its way.
    cdef uint8_t bytes[64]
    cdef writer_t writer = writer_of(bytes, 64)
    cdef wire_ask_t page
    if bone.page_request != 0 and bone.now_us >= bone.page_answer_by_us:
        bone.page_request = 0
        bone.counters.timeouts_total += 1
    if bone.page_request != 0 or bone.page_wanted == 0 or bone.now_us < bone.page_retry_us:
        return
    if bone.page_since == bone.page_wanted and bone.page_round == 0:
        return
    bone.request += 1
    memcpy(page.node_id, bone.peer_id, 16)
    page.since = bone.page_since
    put_head(&writer, KIND_DIRECTORY, 0, bone.request)
    put_directory(&writer, &page)
    if ask(bone, bytes, &writer):
        bone.page_request = bone.request
        bone.page_answer_by_us = bone.now_us + HOP_ANSWER_US
        bone.counters.pages_asked_total += 1
    else:
        bone.page_retry_us = bone.now_us + HOP_RETRY_US

cdef inline void child_withdraw(backbone_t* bone, link_t* link) noexcept nogil:
    # The upstream no longer has this stream.
    cdef stream_t* stream = link.stream
    if not link.from_upstream:
        return
    link.from_upstream = False
    link.told_up = False
    if stream == NULL:
        return
    if link.hop.asked != HOP_NOTHING:
        child_closed(bone)
    if link.hop.subscribed:
        child_topic(bone, link, RELAY_ZMQ_UNSUBSCRIBE)
    memset(&link.hop, 0, sizeof(hop_t))
    if load_u32(&stream.closed):
        return
    if load_u32(&stream.writer) == WRITER_LOCAL:
        link_note(bone, link)
        return
    if load_u32(&stream.writer) == WRITER_LINK:
        stream_end_epoch(stream, bone.now_us)
        stream_unclaim(stream)
    engine_remove(bone.engine, stream)
    link_bury(bone, link)

cdef inline void child_stream_closed(backbone_t* bone, link_t* link) noexcept nogil:
    # Somebody has taken the stream off this node. If the upstream still has it, it comes back with
    # the whole directory.
    if link.from_upstream:
        child_withdraw(bone, link)
        bone.page_since = 0
    link_bury(bone, link)

cdef inline link_t* child_link(backbone_t* bone, const wire_entry_t* entry) noexcept nogil:
    # The link of a listed mount; its stream is made if this node has none. NULL: no room.
    cdef stream_t* stream = engine_find(bone.engine, <const char*>entry.mount, entry.mount_bytes)
    cdef uint64_t key = mount_key(<const char*>entry.mount, entry.mount_bytes)
    cdef link_t* link
    if stream == NULL:
        stream = stream_open(
            <const char*>entry.mount, entry.mount_bytes, engine_config(bone.engine, key),
            &bone.engine.retire, &bone.engine.hub,
        )
        if stream == NULL:
            return NULL
        store_u32(&stream.refs, 2)      # the table's and, for a moment, ours
        if engine_add(bone.engine, stream) != 0:
            stream_drop(stream)
            stream_drop(stream)
            return NULL
    link = link_of(bone, stream)
    stream_drop(stream)
    return link

cdef inline void child_entry(backbone_t* bone, const wire_entry_t* entry) noexcept nogil:
    cdef link_t* link
    cdef info_t* info
    if entry.flags & ENTRY_REMOVED:
        link = link_find(bone, mount_key(<const char*>entry.mount, entry.mount_bytes))
        if link != NULL:
            child_withdraw(bone, link)
        return
    link = child_link(bone, entry)
    if link == NULL:
        refuse(bone, WIRE_FULL)
        return
    link.from_upstream = True
    link.told_up = entry.flags & ENTRY_UP != 0
    link.told_hops = entry.hops
    link.told_origin = entry.origin
    link.round = bone.page_round
    if load_u32(&link.stream.writer) == WRITER_LOCAL:
        if not link.conflict:
            bone.counters.mount_conflicts_total += 1
        link.conflict = True
        return
    link.conflict = False
    info = <info_t*>load_pointer(<void**>&link.stream.info)
    if entry.info_bytes and (
        info == NULL or info.size_bytes != entry.info_bytes
        or memcmp(info.bytes, entry.info, entry.info_bytes) != 0
    ):
        stream_set_info(link.stream, entry.info, entry.info_bytes)
    heard_epoch(bone, link, entry.epoch)
    link_touch(bone, link)
    link_note(bone, link)

cdef inline void child_snapshot_over(backbone_t* bone) noexcept nogil:
    # What the whole directory did not list is gone.
    cdef link_t* link
    cdef uint64_t slot = 0
    while slot < bone.table_size:
        link = bone.table[slot]
        if link != NULL and link.from_upstream and link.round != bone.page_round:
            child_withdraw(bone, link)
            if bone.table[slot] != link:
                continue        # deleted: another may have moved here
        slot += 1
    bone.page_round = 0
    bone.beacon_now = True
    store_u32(&bone.engine.directory_known, 1)

cdef inline void child_page(backbone_t* bone, reader_t* reader) noexcept nogil:
    cdef wire_page_t page
    cdef wire_entry_t entry
    cdef uint32_t i
    cdef bint begun = bone.page_best != 0
    cdef uint64_t since = bone.page_since
    cdef int status = wire_check_page(reader, &page)
    if status == WIRE_OK and memcmp(page.node_id, bone.peer_id, 16) != 0:
        status = WIRE_FIELD
    if status != WIRE_OK:
        refuse(bone, status)
        bone.page_retry_us = bone.now_us + HOP_RETRY_US_MAX
        return
    if page.flags & PAGE_FIRST:
        bone.rounds += 1
        bone.page_round = bone.rounds
    for i in range(page.count):
        take_entry(reader, &entry)
        child_entry(bone, &entry)
        if entry.version > bone.page_since or i == 0:
            bone.page_since = entry.version
    if page.flags & PAGE_LAST:
        bone.page_best = bone.page_stuck = 0
        if page.version == since and page.version < bone.page_wanted:
            bone.page_retry_us = bone.now_us + HOP_RETRY_US     # its beacon tells of a newer one
        bone.page_since = page.version
        if bone.page_wanted < page.version:
            bone.page_wanted = page.version
        if bone.page_round != 0:
            child_snapshot_over(bone)
    elif bone.page_since > bone.page_best and not (begun and page.flags & PAGE_FIRST):
        bone.page_best = bone.page_since
    else:
        child_page_stuck(bone)

cdef inline void child_page_stuck(backbone_t* bone) noexcept nogil:
    # More is to come, but this page brought nothing newer: asked again, but not without pause.
    bone.page_stuck += 1
    bone.page_retry_us = bone.now_us + HOP_RETRY_US
    if bone.page_stuck > PAGES_STUCK_MAX:
        refuse(bone, WIRE_FIELD)
        bone.page_retry_us = bone.now_us + HOP_RETRY_US_MAX

cdef inline void child_page_answer(
    backbone_t* bone, const wire_head_t* head, reader_t* reader
) noexcept nogil:
    bone.page_request = 0
    if head.kind == KIND_PAGE:
        child_page(bone, reader)
    elif head.kind == KIND_LATER:
        bone.page_retry_us = bone.now_us + HOP_RETRY_US
    else:
        refuse(bone, WIRE_KIND)
