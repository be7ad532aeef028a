# backbone_pack.pxd: runs of frames as messages, straight out of a ring.
#
# Rules of this room
#   1. Runs in the backbone thread, inside a turn. Reads rings; writes none.
#   2. A message holds consecutive, connected frames, at most WIRE_RUN_BYTES_MAX; what the ring
#      overwrites meanwhile is thrown away, never sent.
#   3. Large messages come out of the pool; what could pile up at a child is charged to it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from relay._core.atomics cimport load_pointer
from relay._core.backbone_state cimport backbone_t
from relay._core.pool cimport (
    pool_give, pool_make, pool_take, share_charge, share_has_room, slab_t,
)
from relay._core.ring cimport (
    FRAME_TITLE, RING_TITLES, frame_t, ring_at, ring_read_entry, ring_t, ring_was_overtaken,
    title_t,
)
from relay._core.stream cimport stream_t
from relay._core.wire cimport *
from relay._core.zmq_api cimport *

cdef enum:
    POOLED_BYTES = 32768
    CHARGED_BYTES = 1024      # smaller answers are bounded by the socket's queue

cdef struct pack_t:           # a run of frames that fits one message
    uint64_t first_sequence
    uint64_t first_position
    uint64_t first_media_us
    uint64_t next_sequence
    uint32_t count
    uint32_t payload_bytes
    bint is_title
    uint8_t records[8 * WIRE_RUN_FRAMES_MAX]

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
    uint32_t request, uint8_t version, uint8_t flags, relay_msg_t* msg,
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
    put_head(&writer, kind, stream.key, request, version)
    put_run(&writer, &run)
    if not pack_copy(ring, pack, writer.at):
        bone.counters.overtaken_total += 1
        bone.api.msg_close(msg)
        return 0
    return 1
