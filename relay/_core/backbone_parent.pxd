# backbone_parent.pxd: what a node does for its children: sends runs and beacons, answers requests.
#
# Rules of this room
#   1. Runs in the backbone thread, inside a turn. Reads rings; writes none.
#   2. Never waits for a child: XPUB drops for one that stalls (it repairs), an answer that finds
#      the queue full is counted and left out (the child asks again).
#   3. A node sends on only what its head has passed.
#   4. Only who once held a frame, or is the origin, says `gone`; all others ask upstream and say
#      `later`.
#   5. Per turn: RECEIVES_MAX messages of each kind, PACKS_MAX runs a stream, ANSWER_PACKS_MAX an
#      answer, ANSWER_TURN_BYTES and ANSWER_TURN_US of answers.
#   6. An answer is begun only when the last one to this child about this key has left, and its
#      share of memory (pool.pxd) has room; until then it is told `later`.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from relay._core.atomics cimport load_pointer, load_u32, load_u64, store_u32, add_u32
from relay._core.backbone_state cimport (
    backbone_t, keys_add, keys_has, keys_remove, link_find, link_note, link_t, link_touch, out_t,
    refuse,
)
from relay._core.engine cimport now_us
from relay._core.hop cimport hop_still_coming
from relay._core.pool cimport (
    pool_give, pool_make, pool_take, share_charge, share_find, share_has_room, slab_t,
)
from relay._core.ring cimport (
    FRAME_TITLE, RING_HEADERS, RING_TITLES, frame_t, header_t, ring_at, ring_burst_sequence,
    ring_read_entry, ring_t, ring_tail_sequence, ring_title, ring_was_overtaken, title_t,
)
from relay._core.stream cimport (
    WRITER_LOCAL, info_t, stream_ring_drop, stream_ring_take, stream_t,
)
from relay._core.wire cimport *
from relay._core.zmq_api cimport *

cdef enum:
    RECEIVES_MAX = 1024
    POOLED_BYTES = 32768
    CHARGED_BYTES = 1024      # smaller answers are bounded by the socket's queue
    ANSWER_TURN_BYTES = 4194304
    ANSWER_TURN_US = 10000
    PACKS_MAX = 64
    ANSWER_PACKS_MAX = 4
    JOIN_PACKS_MAX = 16
    PREVIOUS_US = 5000000     # how long the epoch before is kept for repairs
    BEACON_ENTRIES_MAX = (WIRE_BEACON_BYTES_MAX - 512) // WIRE_BEACON_ENTRY_BYTES
    BURST_US_MAX = 60000000

cdef struct pack_t:           # a run of frames that fits one message
    uint64_t first_sequence
    uint64_t first_position
    uint64_t first_media_us
    uint64_t next_sequence
    uint32_t count
    uint32_t payload_bytes
    bint is_title
    uint8_t records[8 * WIRE_RUN_FRAMES_MAX]

# --- packing -------------------------------------------------------------------------------------

cdef inline title_t* title_of(ring_t* ring, uint64_t sequence) noexcept nogil:
    # The title that was set at this sequence; NULL: newer ones have taken its place.
    cdef title_t* title
    cdef int i
    for i in range(RING_TITLES):
        title = <title_t*>load_pointer(<void**>&ring.titles[i])
        if title != NULL and title.sequence == sequence:
            return title
    return NULL

cdef inline void pack_measure(
    ring_t* ring, uint64_t sequence, uint64_t end, pack_t* pack,
) noexcept nogil:
    # How many frames from `sequence` on go into one message: consecutive, here, connected, so that
    # their bytes are one run of the ring. A title, whose text is elsewhere, goes alone.
    cdef frame_t frame
    cdef uint64_t position = 0
    cdef uint64_t media_us = 0
    cdef uint32_t bytes = WIRE_ASK_BYTES + WIRE_RUN_FIXED_BYTES
    pack.first_sequence = pack.next_sequence = sequence
    pack.first_position = pack.first_media_us = 0
    pack.count = pack.payload_bytes = 0
    pack.is_title = False
    while pack.next_sequence < end and pack.count < WIRE_RUN_FRAMES_MAX:
        if not ring_read_entry(ring, pack.next_sequence, &frame):
            break
        if pack.count == 0:
            pack.first_position = position = frame.position
            pack.first_media_us = media_us = <uint64_t>frame.media_us
            pack.is_title = frame.flags & FRAME_TITLE != 0
        elif (
            pack.is_title or frame.flags & FRAME_TITLE or frame.position != position
            or <uint64_t>frame.media_us != media_us
        ):
            break
        if bytes + frame.size_bytes + 8 > WIRE_RUN_BYTES_MAX:
            break
        put_record(&pack.records[8 * pack.count], frame.size_bytes, frame.flags, frame.duration_us)
        bytes += frame.size_bytes + 8
        pack.payload_bytes += frame.size_bytes
        position += frame.size_bytes
        media_us += frame.duration_us
        pack.count += 1
        pack.next_sequence += 1

cdef inline bint pack_copy(ring_t* ring, const pack_t* pack, uint8_t* records) noexcept nogil:
    # Records and payload, the latter straight out of the ring. False: overwritten meanwhile.
    cdef uint8_t* payload = records + 8 * pack.count
    cdef title_t* title
    if pack.count:
        memcpy(records, pack.records, 8 * pack.count)
    if not pack.is_title:
        if pack.payload_bytes:
            memcpy(payload, ring_at(ring, pack.first_position), pack.payload_bytes)
        return not ring_was_overtaken(ring, pack.first_position)
    title = title_of(ring, pack.first_sequence)
    # its place in the order counts, even if its text is gone
    memset(payload, 32, pack.payload_bytes)
    if title != NULL and title.size_bytes == pack.payload_bytes:
        memcpy(payload, title.bytes, pack.payload_bytes)
    return True

cdef inline bint message_open(backbone_t* bone, relay_msg_t* msg, size_t size) noexcept nogil:
    # A message to write into: out of the pool when it is large, else libzmq's own. An answer that
    # could pile up is charged to who asked. False: no memory, or that has no room for it.
    cdef slab_t* slab = NULL
    cdef bint charged = bone.asker != NULL and size >= CHARGED_BYTES
    if charged and not share_has_room(bone.pool, bone.asker):
        return False
    if size >= POOLED_BYTES:
        slab = pool_take(bone.pool)
    if slab == NULL and charged:
        slab = pool_make(bone.pool, size)
        if slab == NULL:
            return False
    if slab == NULL:
        return bone.api.msg_init_size(msg, size) == 0
    if charged:
        share_charge(slab, bone.asker, bone.asker_run, <uint32_t>size)
    if bone.api.msg_init_data(msg, slab.bytes, size, pool_give, slab) != 0:
        pool_give(slab.bytes, slab)
        return False
    return True

cdef inline int pack_message(
    backbone_t* bone, ring_t* ring, stream_t* stream, const pack_t* pack, uint8_t kind,
    uint32_t request, uint8_t flags, relay_msg_t* msg,
) noexcept nogil:
    # Makes the message. 1: made; 0: the ring has overtaken it; -1: no memory.
    cdef wire_run_t run
    cdef writer_t writer
    cdef size_t head = WIRE_HEAD_BYTES if is_published(kind) else WIRE_ASK_BYTES
    cdef size_t size = head + WIRE_RUN_FIXED_BYTES + 8 * pack.count + pack.payload_bytes
    if not message_open(bone, msg, size):
        return -1
    writer = writer_of(<uint8_t*>bone.api.msg_data(msg), size)
    run.flags = flags
    run.origin = stream.origin
    run.epoch = ring.epoch
    run.first_sequence = pack.first_sequence
    run.first_position = pack.first_position
    run.first_media_us = pack.first_media_us
    run.count = pack.count
    put_head(&writer, kind, stream.key, request)
    put_run(&writer, &run)
    if not pack_copy(ring, pack, writer.at):
        bone.counters.overtaken_total += 1
        bone.api.msg_close(msg)
        return 0
    return 1

# --- publishing ----------------------------------------------------------------------------------

cdef inline void publish(backbone_t* bone, relay_msg_t* msg) noexcept nogil:
    bone.counters.sent_messages_total += 1
    bone.counters.sent_bytes_total += bone.api.msg_size(msg)
    bone.moved = True
    if bone.api.msg_send(msg, bone.xpub, RELAY_ZMQ_DONTWAIT) < 0:
        bone.api.msg_close(msg)

cdef inline void publish_end(backbone_t* bone, link_t* link) noexcept nogil:
    # The epoch of out.ring ends before out.sequence.
    cdef pack_t pack
    cdef relay_msg_t msg
    pack_measure(link.out.ring, link.out.sequence, link.out.sequence, &pack)
    link.out.ended = True
    if pack_message(bone, link.out.ring, link.stream, &pack, KIND_STREAM, 0, RUN_END, &msg) == 1:
        publish(bone, &msg)

cdef inline void out_next_ring(backbone_t* bone, link_t* link) noexcept nogil:
    # The cursor has sent all of a superseded ring: on to the next, which may be a new epoch.
    cdef out_t* out = &link.out
    cdef ring_t* after = out.ring.next
    add_u32(&after.refs, 1)
    if after.epoch == out.ring.epoch:
        stream_ring_drop(link.stream, out.ring)
        if out.sequence < load_u64(&after.base_sequence):
            out.sequence = load_u64(&after.base_sequence)
    else:
        if not out.ended:
            publish_end(bone, link)
        if out.previous != NULL:
            stream_ring_drop(link.stream, out.previous)
        out.previous = out.ring
        out.previous_until_us = bone.now_us + PREVIOUS_US
        out.sequence = load_u64(&after.base_sequence)
    out.ring = after
    out.ended = False

cdef inline bint out_send(backbone_t* bone, link_t* link, uint64_t head) noexcept nogil:
    # One run from the cursor on. False: there is nothing that can be sent now.
    cdef out_t* out = &link.out
    cdef pack_t pack
    cdef relay_msg_t msg
    cdef int status
    pack_measure(out.ring, out.sequence, head, &pack)
    # a lost run, or the writer has lapped us: children repair what they can
    if pack.count == 0:
        pack.next_sequence = ring_tail_sequence(out.ring)
        out.sequence = pack.next_sequence if pack.next_sequence > out.sequence else out.sequence + 1
        return True
    status = pack_message(bone, out.ring, link.stream, &pack, KIND_STREAM, 0, 0, &msg)
    if status < 0:
        return False
    if status == 1:
        publish(bone, &msg)
        bone.counters.sent_frames_total += pack.count
        out.sequence = pack.next_sequence
    elif out.sequence < ring_tail_sequence(out.ring):
        out.sequence = ring_tail_sequence(out.ring)
    return True

cdef inline void parent_send(backbone_t* bone, link_t* link) noexcept nogil:
    # All that the stream has and its children have not been sent.
    cdef out_t* out = &link.out
    cdef stream_t* stream = link.stream
    cdef uint64_t head
    cdef int packs
    cdef bint up
    if out.ring == NULL:
        out.ring = stream_ring_take(stream)
        if out.ring == NULL:
            return
        out.sequence = load_u64(&out.ring.head_sequence)
    for packs in range(PACKS_MAX):
        up = load_u32(&stream.source_up)
        if load_u32(&out.ring.superseded):      # before the head: it is final then
            if out.sequence >= load_u64(&out.ring.head_sequence):
                out_next_ring(bone, link)
                continue
        head = load_u64(&out.ring.head_sequence)
        if out.sequence < head:
            if not out_send(bone, link, head):
                return
        else:
            if up:
                out.ended = False
            elif not out.ended:
                publish_end(bone, link)
            return
    bone.again = True
    link_touch(bone, link)

cdef inline void parent_subscriptions(backbone_t* bone) noexcept nogil:
    # XPUB tells of the first subscription to a topic and of the end of the last.
    cdef relay_msg_t msg
    cdef reader_t reader
    cdef uint8_t add
    cdef uint8_t kind
    cdef uint64_t key
    cdef int i
    bone.api.msg_init(&msg)
    for i in range(RECEIVES_MAX):
        if bone.api.msg_recv(&msg, bone.xpub, RELAY_ZMQ_DONTWAIT) < 0:
            bone.api.msg_close(&msg)
            return
        reader = reader_of(<uint8_t*>bone.api.msg_data(&msg), bone.api.msg_size(&msg))
        add = take_u8(&reader)
        kind = take_u8(&reader)
        key = take_u64(&reader)
        if ended(&reader) != WIRE_OK or add > 1 or not is_published(kind) or (
            kind == KIND_BEACON and key != 0
        ):
            refuse(bone, WIRE_TOPIC)
        elif kind == KIND_STREAM:
            parent_demand(bone, key, add == 1)
    bone.api.msg_close(&msg)
    bone.again = True

cdef inline void parent_demand(backbone_t* bone, uint64_t key, bint wanted) noexcept nogil:
    # Remembered also for streams that we do not know yet: after a restart children come first.
    cdef link_t* link = link_find(bone, key)
    if not wanted:
        keys_remove(&bone.demand, key)
    elif not keys_add(&bone.demand, key):
        refuse(bone, WIRE_FULL)
        return
    if link != NULL and link.stream != NULL:
        store_u32(&link.stream.downstream, wanted)
        link_touch(bone, link)

cdef inline uint32_t beacon_entries(backbone_t* bone, writer_t* writer) noexcept nogil:
    # Streams in demand, at most what fits; the next beacon goes on where this one ends.
    cdef wire_beacon_entry_t entry
    cdef link_t* link
    cdef uint64_t i
    cdef uint32_t count = 0
    for i in range(bone.table_size):
        link = bone.table[(bone.beacon_slot + i) & (bone.table_size - 1)]
        if link == NULL or link.out.ring == NULL:
            continue
        if count == BEACON_ENTRIES_MAX:
            bone.beacon_slot = (bone.beacon_slot + i) & (bone.table_size - 1)
            return count
        entry.key = link.key
        entry.epoch = link.out.ring.epoch
        entry.sequence = link.out.sequence
        entry.flags = RUN_END if link.out.ended else 0
        put_beacon_entry(writer, &entry)
        count += 1
    return count

cdef inline bint directory_is_whole(backbone_t* bone) noexcept nogil:
    return bone.sub == NULL or load_u32(&bone.engine.directory_known)

cdef inline void parent_beacon(backbone_t* bone, uint8_t flags) noexcept nogil:
    cdef uint8_t bytes[WIRE_BEACON_BYTES_MAX]
    cdef writer_t writer = writer_of(bytes, WIRE_BEACON_BYTES_MAX)
    cdef writer_t again
    cdef wire_beacon_t beacon
    cdef uint32_t i
    memset(&beacon, 0, sizeof(beacon))
    beacon.flags = flags
    beacon.node_id[0] = bone.engine.node_id[0]
    beacon.node_id[1] = bone.engine.node_id[1]
    beacon.directory_version = bone.directory_version if directory_is_whole(bone) else 0
    beacon.turn = bone.counters.turns_total
    beacon.load = bone.load
    beacon.router_port = bone.router_port
    if bone.peer_id[0] != 0 and bone.sub != NULL:
        beacon.path[0] = bone.peer_id[0]
        beacon.path_count = 1
        for i in range(bone.peer_path_count):
            if beacon.path_count < WIRE_PATH_MAX:
                beacon.path[beacon.path_count] = bone.peer_path[i]
                beacon.path_count += 1
    beacon.address = <const uint8_t*>bone.advertise
    beacon.address_bytes = <uint32_t>strlen(bone.advertise)
    put_head(&writer, KIND_BEACON, 0, 0)
    again = writer
    put_beacon(&writer, &beacon)
    beacon.count = beacon_entries(bone, &writer)
    put_beacon(&again, &beacon)
    if bone.fault_version:
        bytes[WIRE_TOPIC_BYTES] = <uint8_t>bone.fault_version
    bone.api.send(bone.xpub, bytes, writer.at - bytes, RELAY_ZMQ_DONTWAIT)
    bone.counters.beacons_sent_total += 1

# --- answering -----------------------------------------------------------------------------------

cdef inline bint answer(backbone_t* bone, relay_msg_t* to, relay_msg_t* msg) noexcept nogil:
    # False: this child's queue is full, or it is gone. Takes over the message.
    cdef size_t size = bone.api.msg_size(msg)
    bone.moved = True
    if bone.api.send(
        bone.router, bone.api.msg_data(to), bone.api.msg_size(to),
        RELAY_ZMQ_DONTWAIT | RELAY_ZMQ_SNDMORE,
    ) < 0 or bone.api.msg_send(msg, bone.router, RELAY_ZMQ_DONTWAIT) < 0:
        bone.api.msg_close(msg)
        bone.counters.unsent_total += 1
        return False
    bone.counters.sent_bytes_total += size
    bone.answered_bytes += size
    return True

cdef inline bint answer_bytes(
    backbone_t* bone, relay_msg_t* to, const uint8_t* bytes, const writer_t* writer
) noexcept nogil:
    cdef relay_msg_t msg
    cdef size_t size = <size_t>(writer.at - bytes)
    if writer.full or not message_open(bone, &msg, size):
        return False
    memcpy(bone.api.msg_data(&msg), bytes, size)
    return answer(bone, to, &msg)

cdef inline void answer_range(
    backbone_t* bone, relay_msg_t* to, const wire_head_t* head, uint8_t kind, uint8_t flags,
    uint64_t epoch, uint64_t from_sequence, uint64_t to_sequence,
) noexcept nogil:
    # later, unknown (which carry nothing), done, gone.
    cdef uint8_t bytes[64]
    cdef writer_t writer = writer_of(bytes, 64)
    cdef wire_range_t span
    span.flags = flags
    span.epoch = epoch
    span.from_sequence = from_sequence
    span.to_sequence = to_sequence
    put_head(&writer, kind, head.key, head.request)
    if kind == KIND_DONE or kind == KIND_GONE:
        put_range(&writer, &span)
    if kind == KIND_LATER:
        bone.counters.told_later_total += 1
    elif kind == KIND_GONE:
        bone.counters.told_gone_total += 1
    elif kind == KIND_UNKNOWN:
        bone.counters.told_unknown_total += 1
    answer_bytes(bone, to, bytes, &writer)

cdef inline uint64_t answer_frames(
    backbone_t* bone, relay_msg_t* to, const wire_head_t* head, link_t* link, ring_t* ring,
    uint64_t sequence, uint64_t end, int packs_max,
) noexcept nogil:
    # Runs from `sequence` on; returns the first frame that was not sent.
    cdef pack_t pack
    cdef relay_msg_t msg
    cdef int packs
    for packs in range(packs_max):
        pack_measure(ring, sequence, end, &pack)
        if pack.count == 0:
            break
        if pack_message(bone, ring, link.stream, &pack, KIND_RUN, head.request, 0, &msg) != 1:
            break
        if not answer(bone, to, &msg):
            break
        sequence = pack.next_sequence
    return sequence

cdef inline bint answer_headers(
    backbone_t* bone, relay_msg_t* to, const wire_head_t* head, ring_t* ring
) noexcept nogil:
    # All header blobs of the ring, in pieces: later frames need the newest, the tail an older one.
    cdef relay_msg_t msg
    cdef writer_t writer
    cdef header_t* blob
    cdef wire_header_t piece
    cdef int i
    for i in range(RING_HEADERS):
        blob = <header_t*>load_pointer(<void**>&ring.headers[i])
        piece.offset = 0
        while blob != NULL and piece.offset < blob.size_bytes:
            piece.epoch = ring.epoch
            piece.end_sequence = blob.end_sequence
            piece.total_bytes = blob.size_bytes
            piece.size_bytes = blob.size_bytes - piece.offset
            if piece.size_bytes > WIRE_CHUNK_BYTES_MAX:
                piece.size_bytes = WIRE_CHUNK_BYTES_MAX
            piece.bytes = blob.bytes + piece.offset
            if not message_open(bone, &msg, WIRE_ASK_BYTES + 28 + piece.size_bytes):
                return False
            writer = writer_of(<uint8_t*>bone.api.msg_data(&msg), bone.api.msg_size(&msg))
            put_head(&writer, KIND_HEADER, head.key, head.request)
            put_header(&writer, &piece)
            if not answer(bone, to, &msg):
                return False
            piece.offset += piece.size_bytes
    return True

cdef inline uint64_t join_sequence(ring_t* ring, uint64_t burst_us) noexcept nogil:
    # Where a child begins: with the burst, or while no start has come yet with all there is (so
    # that header pages on their way are collected by the child itself).
    cdef uint64_t first = ring_burst_sequence(ring, burst_us)
    return first if first < load_u64(&ring.head_sequence) else ring_tail_sequence(ring)

cdef inline void answer_join(
    backbone_t* bone, relay_msg_t* to, const wire_head_t* head, link_t* link, ring_t* ring,
    uint64_t burst_us,
) noexcept nogil:
    cdef uint8_t bytes[8192]
    cdef writer_t writer = writer_of(bytes, 8192)
    cdef wire_here_t here
    cdef frame_t frame
    cdef title_t* title
    cdef uint64_t next_sequence
    memset(&here, 0, sizeof(here))
    here.flags = 0 if load_u32(&link.stream.source_up) else RUN_END
    here.epoch = ring.epoch
    here.origin = link.stream.origin
    here.head_sequence = load_u64(&ring.head_sequence)
    here.first_media_us = load_u64(&ring.head_media_us)
    here.first_position = load_u64(&ring.head_position)
    here.first_sequence = join_sequence(ring, burst_us)
    if here.first_sequence >= here.head_sequence:
        here.first_sequence = here.head_sequence
    elif ring_read_entry(ring, here.first_sequence, &frame):
        here.first_position = frame.position
        here.first_media_us = <uint64_t>frame.media_us
    else:
        answer_range(bone, to, head, KIND_LATER, 0, 0, 0, 0)
        return
    title = ring_title(ring, here.first_position)
    if title != NULL and title.sequence < here.first_sequence:
        here.title_sequence = title.sequence
        here.title_position = title.position
        here.title_bytes = title.size_bytes
        here.title = title.bytes
    put_head(&writer, KIND_HERE, head.key, head.request)
    put_here(&writer, &here)
    bone.counters.told_here_total += 1
    if not answer_bytes(bone, to, bytes, &writer) or not answer_headers(bone, to, head, ring):
        return
    next_sequence = answer_frames(
        bone, to, head, link, ring, here.first_sequence, here.head_sequence, JOIN_PACKS_MAX
    )
    answer_range(
        bone, to, head, KIND_DONE,
        RUN_END if here.flags & RUN_END and next_sequence == here.head_sequence else 0,
        ring.epoch, here.first_sequence, next_sequence,
    )

cdef inline bint is_ours(link_t* link) noexcept nogil:
    # Nobody above us may have more of it than we.
    return not link.from_upstream or load_u32(&link.stream.writer) == WRITER_LOCAL

cdef inline void parent_join(
    backbone_t* bone, relay_msg_t* to, const wire_head_t* head, reader_t* reader
) noexcept nogil:
    cdef wire_ask_t ask
    cdef link_t* link = link_find(bone, head.key)
    cdef ring_t* ring = NULL
    cdef int status = take_join(reader, &ask)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    if link == NULL or link.stream == NULL:
        answer_range(
            bone, to, head, KIND_UNKNOWN if directory_is_whole(bone) else KIND_LATER, 0, 0, 0, 0
        )
        return
    ring = <ring_t*>load_pointer(<void**>&link.stream.ring)
    if ring == NULL or ring.epoch < ask.epoch or (
        not is_ours(link) and ring.epoch < link.hop.told_epoch
    ):
        answer_range(
            bone, to, head,
            KIND_UNKNOWN if ring == NULL and is_ours(link) else KIND_LATER, 0, 0, 0, 0
        )
        return
    answer_join(
        bone, to, head, link, ring, ask.burst_us if ask.burst_us < BURST_US_MAX else BURST_US_MAX
    )

cdef inline ring_t* ring_of_epoch(link_t* link, uint64_t epoch) noexcept nogil:
    cdef ring_t* ring = <ring_t*>load_pointer(<void**>&link.stream.ring)
    if ring != NULL and ring.epoch == epoch:
        return ring
    if link.out.previous != NULL and link.out.previous.epoch == epoch:
        return link.out.previous
    return NULL

cdef inline void answer_missing(
    backbone_t* bone, relay_msg_t* to, const wire_head_t* head, link_t* link, ring_t* ring,
    const wire_range_t* span,
) noexcept nogil:
    # The first frame that is asked for is not here. Will it ever be? `gone` reaches up to the next
    # frame that is here, or may still come.
    cdef uint64_t sequence = span.from_sequence
    cdef uint64_t head_sequence = load_u64(&ring.head_sequence)
    cdef uint64_t base = load_u64(&ring.base_sequence)
    cdef uint64_t tail = ring_tail_sequence(ring)
    cdef frame_t frame
    cdef bint newest = ring == <ring_t*>load_pointer(<void**>&link.stream.ring)
    cdef bint open = newest and load_u32(&link.stream.source_up)
    if sequence >= head_sequence:
        if open or (newest and not is_ours(link) and hop_still_coming(
            &link.hop, sequence, base, head_sequence
        )):
            answer_range(bone, to, head, KIND_LATER, 0, 0, 0, 0)
        else:
            answer_range(
                bone, to, head, KIND_DONE, RUN_END, ring.epoch, span.from_sequence, head_sequence
                if head_sequence > span.from_sequence else span.from_sequence,
            )
        return
    if sequence < base and newest and not is_ours(link) and hop_still_coming(
        &link.hop, sequence, base, head_sequence
    ):
        answer_range(bone, to, head, KIND_LATER, 0, 0, 0, 0)
        return
    if sequence < tail:
        sequence = tail
    while sequence < head_sequence and sequence < span.to_sequence and not ring_read_entry(
        ring, sequence, &frame
    ):
        sequence += 1
    if sequence > span.to_sequence:
        sequence = span.to_sequence
    if sequence == span.from_sequence:      # it is here, but could not be sent
        answer_range(bone, to, head, KIND_LATER, 0, 0, 0, 0)
        return
    answer_range(bone, to, head, KIND_GONE, 0, ring.epoch, span.from_sequence, sequence)

cdef inline void parent_repair(
    backbone_t* bone, relay_msg_t* to, const wire_head_t* head, reader_t* reader
) noexcept nogil:
    cdef wire_range_t span
    cdef link_t* link = link_find(bone, head.key)
    cdef ring_t* ring
    cdef uint64_t next_sequence
    cdef uint64_t end
    cdef bint over
    cdef int status = take_range(reader, &span)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    if link == NULL or link.stream == NULL:
        answer_range(
            bone, to, head, KIND_UNKNOWN if directory_is_whole(bone) else KIND_LATER, 0, 0, 0, 0
        )
        return
    ring = ring_of_epoch(link, span.epoch)
    if ring == NULL:
        ring = <ring_t*>load_pointer(<void**>&link.stream.ring)
        if not is_ours(link) and (ring == NULL or ring.epoch < span.epoch):
            answer_range(bone, to, head, KIND_LATER, 0, 0, 0, 0)
        else:
            answer_range(
                bone, to, head, KIND_GONE, 0, span.epoch, span.from_sequence, span.to_sequence
            )
        return
    over = not load_u32(&link.stream.source_up) or ring == link.out.previous
    end = load_u64(&ring.head_sequence)
    next_sequence = span.from_sequence
    if next_sequence >= ring_tail_sequence(ring):
        next_sequence = answer_frames(
            bone, to, head, link, ring, span.from_sequence,
            span.to_sequence if span.to_sequence < end else end, ANSWER_PACKS_MAX,
        )
    if next_sequence == span.from_sequence:
        answer_missing(bone, to, head, link, ring, &span)
        return
    bone.counters.told_here_total += 1
    answer_range(
        bone, to, head, KIND_DONE, RUN_END if over and next_sequence == end else 0, ring.epoch,
        span.from_sequence, next_sequence,
    )

cdef inline void put_link(writer_t* writer, link_t* link) noexcept nogil:
    cdef wire_entry_t entry
    cdef info_t* info
    memset(&entry, 0, sizeof(entry))
    entry.version = link.version
    entry.mount = <const uint8_t*>link.mount
    entry.mount_bytes = link.mount_bytes
    if link.stream == NULL:
        entry.flags = ENTRY_REMOVED
    else:
        info = <info_t*>load_pointer(<void**>&link.stream.info)
        entry.flags = ENTRY_UP if link.listed_up else 0
        entry.hops = 0 if is_ours(link) else <uint8_t>(link.told_hops + 1)
        entry.epoch = link.listed_epoch
        entry.origin = link.stream.origin if is_ours(link) else link.told_origin
        if info != NULL:
            entry.info = info.bytes
            entry.info_bytes = info.size_bytes
    put_entry(writer, &entry)

cdef inline void parent_directory(
    backbone_t* bone, relay_msg_t* to, const wire_head_t* head, reader_t* reader
) noexcept nogil:
    # One page of changes since a version, oldest first. Who counts another node's versions, or
    # knows less than we remember, gets all.
    cdef wire_ask_t ask
    cdef wire_page_t page
    cdef relay_msg_t msg
    cdef writer_t writer
    cdef writer_t start
    cdef link_t* link = bone.oldest
    cdef int status = take_directory(reader, &ask)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    if not directory_is_whole(bone) or bone.api.msg_init_size(&msg, WIRE_PAGE_BYTES_MAX) != 0:
        answer_range(bone, to, head, KIND_LATER, 0, 0, 0, 0)
        return
    page.node_id[0] = bone.engine.node_id[0]
    page.node_id[1] = bone.engine.node_id[1]
    page.version = bone.directory_version
    page.flags = PAGE_LAST
    if (
        ask.node_id[0] != bone.engine.node_id[0] or ask.node_id[1] != bone.engine.node_id[1]
        or ask.since < bone.directory_floor or ask.since > bone.directory_version
    ):
        ask.since = 0
        page.flags |= PAGE_FIRST
    page.count = 0
    writer = writer_of(<uint8_t*>bone.api.msg_data(&msg), WIRE_PAGE_BYTES_MAX)
    put_head(&writer, KIND_PAGE, 0, head.request)
    start = writer
    put_page(&writer, &page)
    while link != NULL:
        if link.version > ask.since and (ask.since != 0 or link.stream != NULL):
            if writer.end - writer.at < 4700 or page.count == 65535:
                page.flags &= ~PAGE_LAST
                break
            put_link(&writer, link)
            page.count += 1
        link = link.newer
    put_page(&start, &page)
    answer_bytes(bone, to, <uint8_t*>bone.api.msg_data(&msg), &writer)
    bone.api.msg_close(&msg)

cdef inline uint64_t asker_id(backbone_t* bone, relay_msg_t* to, uint64_t key) noexcept nogil:
    # FNV-1a over the routing id, which a child may choose itself, and the key; never 0.
    cdef const uint8_t* bytes = <const uint8_t*>bone.api.msg_data(to)
    cdef uint64_t id = <uint64_t>0xCBF29CE484222325 ^ key
    cdef size_t i
    for i in range(bone.api.msg_size(to)):
        id = (id ^ bytes[i]) * <uint64_t>0x100000001B3
    id ^= id >> 32
    return id | <uint64_t>1 << 63

cdef inline bint asker_ready(
    backbone_t* bone, relay_msg_t* to, const wire_head_t* head,
) noexcept nogil:
    # Has what this child asked about this key before left, and may it have more?
    bone.asker = share_find(bone.pool, asker_id(bone, to, 0), NULL)
    bone.asker_run = share_find(bone.pool, asker_id(bone, to, head.key | 1), bone.asker)
    return bone.asker != NULL and bone.asker_run != NULL and (
        load_u32(&bone.asker_run.bytes) == 0 and share_has_room(bone.pool, bone.asker)
    )

cdef inline void parent_request(
    backbone_t* bone, relay_msg_t* to, const uint8_t* bytes, size_t size
) noexcept nogil:
    cdef reader_t reader = reader_of(bytes, size)
    cdef wire_head_t head
    cdef int status = take_head(&reader, &head)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    bone.counters.requests_total += 1
    if head.kind != KIND_JOIN and head.kind != KIND_REPAIR and head.kind != KIND_DIRECTORY:
        refuse(bone, WIRE_KIND)
    elif not asker_ready(bone, to, &head):
        bone.counters.deferred_total += 1
        answer_range(bone, to, &head, KIND_LATER, 0, 0, 0, 0)
    elif head.kind == KIND_JOIN:
        parent_join(bone, to, &head, &reader)
    elif head.kind == KIND_REPAIR:
        parent_repair(bone, to, &head, &reader)
    else:
        parent_directory(bone, to, &head, &reader)
    bone.asker = bone.asker_run = NULL

cdef inline void parent_requests(backbone_t* bone) noexcept nogil:
    # Two parts each: who asks, what. Anything else is refused.
    cdef relay_msg_t who
    cdef relay_msg_t msg
    cdef uint64_t now
    cdef int i
    bone.api.msg_init(&who)
    bone.api.msg_init(&msg)
    bone.answered_bytes = 0
    for i in range(RECEIVES_MAX):
        if bone.api.msg_recv(&who, bone.router, RELAY_ZMQ_DONTWAIT) < 0:
            break
        if not bone.api.msg_more(&who) or bone.api.msg_recv(
            &msg, bone.router, RELAY_ZMQ_DONTWAIT
        ) < 0:
            refuse(bone, WIRE_SIZE)
        elif bone.api.msg_more(&msg):
            refuse(bone, WIRE_SIZE)
            while bone.api.msg_more(&msg):
                if bone.api.msg_recv(&msg, bone.router, RELAY_ZMQ_DONTWAIT) < 0:
                    break
        else:
            parent_request(
                bone, &who, <const uint8_t*>bone.api.msg_data(&msg), bone.api.msg_size(&msg)
            )
        now = now_us()      # others wait for this turn, the children for a beacon
        if bone.answered_bytes >= ANSWER_TURN_BYTES or now >= bone.beacon_us or (
            now - bone.now_us >= ANSWER_TURN_US
        ):
            bone.again = True
            break
    else:
        bone.again = True
    bone.api.msg_close(&who)
    bone.api.msg_close(&msg)
