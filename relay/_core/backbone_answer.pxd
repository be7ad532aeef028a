# backbone_answer.pxd: what children are told when they join a stream or miss frames of it.
#
# Rules of this room
#   1. Runs in the backbone thread, inside a turn. Reads rings; writes none.
#   2. An answer that finds the child's queue full is counted and left out: the child asks again.
#   3. Only who once held a frame, or is the origin, says `gone`; all others ask upstream and say
#      `later`.
#   4. An answer has at most ANSWER_PACKS_MAX runs, one to a join JOIN_PACKS_MAX.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from relay._core.atomics cimport load_pointer, load_u32, load_u64, store_u64
from relay._core.backbone_pack cimport message_open, pack_measure, pack_message, pack_t
from relay._core.backbone_state cimport (
    backbone_t, directory_is_whole, is_ours, link_find, link_t, link_touch, refuse,
)
from relay._core.engine cimport wall_ms
from relay._core.fair cimport fair_take
from relay._core.hop cimport HOP_EPOCH_AHEAD_MS, hop_still_coming
from relay._core.ring cimport (
    RING_HEADERS, frame_t, header_t, ring_burst_sequence, ring_read_entry, ring_t,
    ring_tail_sequence, ring_title, title_t,
)
from relay._core.stream cimport stream_t
from relay._core.wire cimport *
from relay._core.zmq_api cimport *

cdef enum:
    ANSWER_PACKS_MAX = 4
    JOIN_PACKS_MAX = 16
    BURST_US_MAX = 60000000

# --- answers -------------------------------------------------------------------------------------

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
    fair_take(&bone.fair, bone.asker_account, size)
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
    put_head(&writer, kind, head.key, head.request, head.version)
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
        if pack_message(
            bone, ring, link.stream, &pack, KIND_RUN, head.request, head.version, 0, &msg
        ) != 1:
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
            put_head(&writer, KIND_HEADER, head.key, head.request, head.version)
            put_header(&writer, &piece)
            if not answer(bone, to, &msg):
                return False
            piece.offset += piece.size_bytes
    return True

# --- join -----------------------------------------------------------------------------------------

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
    put_head(&writer, KIND_HERE, head.key, head.request, head.version)
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

cdef inline void parent_wished(
    backbone_t* bone, link_t* link, const ring_t* ring, uint64_t epoch,
) noexcept nogil:
    # A child has heard the epoch before this one, and nothing more comes of it. Our source, if it
    # is in a lower one, is to begin anew (relay/source.py does it); a relay passes the wish on.
    cdef stream_t* stream = link.stream
    if epoch > wall_ms() + HOP_EPOCH_AHEAD_MS + 1:
        refuse(bone, WIRE_FIELD)
        return
    bone.counters.wishes_heard_total += 1
    if not is_ours(link):
        if epoch > link.hop.wished_epoch:
            link.hop.wished_epoch = epoch
        link_touch(bone, link)
        bone.again = True
    elif ring != NULL and ring.epoch + 1 < epoch and load_u32(&stream.source_up) and (
        epoch > stream.epoch_wished
    ):
        store_u64(&stream.epoch_wished, epoch)

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
    if ask.epoch and (ring == NULL or ring.epoch < ask.epoch):
        parent_wished(bone, link, ring, ask.epoch)
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

# --- repair ---------------------------------------------------------------------------------------

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
