# framed_out.pxd: the frames of a ring as messages of a framed body (framed.pxd reads them).
#
# Rules of this room
#   1. Reads rings, writes none; inside a turn, as every reader. So nothing here knows Python, whose
#      allocations may let another thread in: what it gets is copied into memory of its own first.
#   2. Writes into room it is given, and says how much it needs first.
#   3. What the writer overwrites meanwhile is never sent: the caller begins anew at the tail.
#   4. Said in the oldest version that we speak: origins may be a version older than the sender.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from relay._core.atomics cimport load_pointer, load_u32, load_u64
from relay._core.backbone_pack cimport pack_copy, pack_measure, pack_t
from relay._core.framed cimport FRAMED_LENGTH_BYTES
from relay._core.ring cimport (
    RING_HEADERS, frame_t, header_t, ring_burst_sequence, ring_read_entry, ring_t,
    ring_tail_sequence, ring_title, title_t,
)
from relay._core.stream cimport stream_t
from relay._core.versions cimport VERSION_LEAST
from relay._core.wire cimport *

cdef enum:
    FRAMED_HERE_BYTES_MAX = 4 + WIRE_ASK_BYTES + 67 + 4080
    FRAMED_PIECE_BYTES = 4 + WIRE_ASK_BYTES + 28    # of a header blob, beside its bytes
    FRAMED_RUN_BYTES = 4 + WIRE_HEAD_BYTES + WIRE_RUN_FIXED_BYTES

cdef enum:  # what framed_out_run has found
    FRAMED_OVERTAKEN = 0      # the ring has moved on: begin anew
    FRAMED_NOTHING = 1        # nothing newer is here
    FRAMED_RUN = 2
    FRAMED_LAST = 3           # it says that the epoch has ended

cdef struct framed_out_t:     # the next piece of a body
    uint8_t* bytes            # owned by whoever asked for it; NULL: none, or no memory
    size_t size
    uint64_t sequence         # where the next run begins

cdef inline void put_length(uint8_t* at, uint64_t size) noexcept nogil:
    # In front of a message of `size` bytes.
    cdef uint32_t length = htole32(<uint32_t>size)
    memcpy(at, &length, FRAMED_LENGTH_BYTES)

cdef inline size_t framed_put_here(
    stream_t* stream, ring_t* ring, uint64_t* first, uint8_t* out,
) noexcept nogil:
    # `h` for a reader that begins as far back as the stream keeps audio (a ring may hold more where
    # the bit rate fell), which is told in `first`; out has FRAMED_HERE_BYTES_MAX. While no start
    # has come yet: with all there is. 0: the ring has moved on meanwhile, try again.
    cdef writer_t writer = writer_of(out + FRAMED_LENGTH_BYTES, FRAMED_HERE_BYTES_MAX - 4)
    cdef wire_here_t here
    cdef frame_t frame
    cdef title_t* title
    memset(&here, 0, sizeof(here))
    here.epoch = ring.epoch
    here.origin = stream.origin
    here.first_sequence = ring_burst_sequence(ring, stream.config.ring_us)
    if here.first_sequence >= load_u64(&ring.head_sequence):
        here.first_sequence = ring_tail_sequence(ring)
    here.first_position = load_u64(&ring.head_position)
    here.first_media_us = load_u64(&ring.head_media_us)
    here.head_sequence = load_u64(&ring.head_sequence)
    if here.first_sequence < here.head_sequence:
        if not ring_read_entry(ring, here.first_sequence, &frame):
            return 0
        here.first_position = frame.position
        here.first_media_us = <uint64_t>frame.media_us
    elif here.first_sequence != here.head_sequence or (
        here.first_position != load_u64(&ring.head_position)
    ):
        return 0
    title = ring_title(ring, here.first_position)
    if title != NULL and title.sequence < here.first_sequence:
        here.title_sequence = title.sequence
        here.title_position = title.position
        here.title_bytes = title.size_bytes
        here.title = title.bytes
    put_head(&writer, KIND_HERE, stream.key, 0, VERSION_LEAST)
    put_here(&writer, &here)
    first[0] = here.first_sequence
    put_length(out, <uint64_t>(writer.at - out) - FRAMED_LENGTH_BYTES)
    return <size_t>(writer.at - out)

cdef inline uint32_t framed_header_size(const header_t* blob) noexcept nogil:
    # Of the pieces of a header blob, as messages.
    cdef uint32_t pieces = (blob.size_bytes + WIRE_CHUNK_BYTES_MAX - 1) // WIRE_CHUNK_BYTES_MAX
    return blob.size_bytes + pieces * FRAMED_PIECE_BYTES

cdef inline void framed_put_header(
    stream_t* stream, ring_t* ring, header_t* blob, uint8_t* out,
) noexcept nogil:
    # `e`, as many as the blob needs; out has framed_header_size.
    cdef wire_header_t piece
    cdef writer_t writer
    cdef size_t size
    piece.epoch = ring.epoch
    piece.end_sequence = blob.end_sequence
    piece.total_bytes = blob.size_bytes
    piece.offset = 0
    while piece.offset < blob.size_bytes:
        piece.size_bytes = blob.size_bytes - piece.offset
        if piece.size_bytes > WIRE_CHUNK_BYTES_MAX:
            piece.size_bytes = WIRE_CHUNK_BYTES_MAX
        piece.bytes = blob.bytes + piece.offset
        size = FRAMED_PIECE_BYTES + piece.size_bytes
        writer = writer_of(out + FRAMED_LENGTH_BYTES, size - FRAMED_LENGTH_BYTES)
        put_head(&writer, KIND_HEADER, stream.key, 0, VERSION_LEAST)
        put_header(&writer, &piece)
        put_length(out, size - FRAMED_LENGTH_BYTES)
        out += size
        piece.offset += piece.size_bytes

cdef inline size_t framed_measure(ring_t* ring, uint64_t sequence, pack_t* pack) noexcept nogil:
    # The bytes of the run from `sequence` on, its length included. A count of 0: nothing newer, or
    # overwritten (the tail is beyond `sequence` then).
    pack_measure(ring, sequence, load_u64(&ring.head_sequence), pack)
    return FRAMED_RUN_BYTES + 8 * <size_t>pack.count + pack.payload_bytes

cdef inline bint framed_put_run(
    stream_t* stream, ring_t* ring, const pack_t* pack, uint8_t flags, size_t size, uint8_t* out,
) noexcept nogil:
    # `S`; out has the size that framed_measure told. False: overwritten meanwhile.
    cdef writer_t writer = writer_of(out + FRAMED_LENGTH_BYTES, size - FRAMED_LENGTH_BYTES)
    cdef wire_run_t run
    run.flags = flags
    run.origin = stream.origin
    run.epoch = ring.epoch
    run.first_sequence = pack.first_sequence
    run.first_position = pack.first_position
    run.first_media_us = pack.first_media_us
    run.count = pack.count
    put_head(&writer, KIND_STREAM, stream.key, 0, VERSION_LEAST)
    put_run(&writer, &run)
    put_length(out, size - FRAMED_LENGTH_BYTES)
    return pack_copy(ring, pack, writer.at)

cdef inline void framed_out_begin(
    stream_t* stream, ring_t* ring, framed_out_t* out,
) noexcept nogil:
    # `h`, and all header blobs of the ring: later frames need the newest, the tail an older one.
    # Each is looked up once, as the writer may replace it; the turn keeps what was found.
    cdef uint8_t here[FRAMED_HERE_BYTES_MAX]
    cdef header_t* blobs[RING_HEADERS]
    cdef size_t here_bytes = 0
    cdef uint8_t* at
    cdef int i
    while here_bytes == 0:      # again when the writer has just moved on
        here_bytes = framed_put_here(stream, ring, &out.sequence, here)
    out.size = here_bytes
    for i in range(RING_HEADERS):
        blobs[i] = <header_t*>load_pointer(<void**>&ring.headers[i])
        if blobs[i] != NULL:
            out.size += framed_header_size(blobs[i])
    out.bytes = <uint8_t*>malloc(out.size)
    if out.bytes == NULL:
        return
    memcpy(out.bytes, here, here_bytes)
    at = out.bytes + here_bytes
    for i in range(RING_HEADERS):
        if blobs[i] != NULL:
            framed_put_header(stream, ring, blobs[i], at)
            at += framed_header_size(blobs[i])

cdef inline int framed_out_run(
    stream_t* stream, ring_t* ring, uint64_t sequence, framed_out_t* out,
) noexcept nogil:
    # The run from `sequence` on.
    cdef bint up = load_u32(&stream.source_up)      # before the head: it is final then
    cdef uint64_t head = load_u64(&ring.head_sequence)
    cdef pack_t pack
    out.size = framed_measure(ring, sequence, &pack)
    out.sequence = pack.next_sequence
    out.bytes = NULL
    if pack.count == 0 and (sequence < head or up):
        return FRAMED_OVERTAKEN if sequence < load_u64(&ring.head_sequence) else FRAMED_NOTHING
    out.bytes = <uint8_t*>malloc(out.size)
    if out.bytes != NULL and not framed_put_run(
        stream, ring, &pack, 0 if pack.count else RUN_END, out.size, out.bytes
    ):
        free(out.bytes)
        return FRAMED_OVERTAKEN
    return FRAMED_RUN if pack.count else FRAMED_LAST
