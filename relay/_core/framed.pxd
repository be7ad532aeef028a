# framed.pxd: a source's body whose frames come cut already, with their places on every node.
#
# Rules of this room
#   1. One thread at a time, the stream's writer. Nothing waits; split anywhere, it is the same.
#   2. A body is messages of docs/wire.md, each behind its length: `h` where the sender begins, `e`
#      the header pages it needs there, then runs `S` that connect. A sender that left something out
#      says `h` again.
#   3. What is here already is a duplicate and changes nothing; what contradicts it ends the body.
#   4. Bounds: a message of WIRE_RUN_BYTES_MAX, one header blob of HEADER_BYTES_MAX.
#   5. Epoch and origin were judged with the request's head; each message must say the same.
#   6. A refusal is for good: whatever is fed after it gets the same answer, and changes nothing.
#   7. What a sender says it left out is believed up to what can have passed since its run was
#      first here; it is told as any other loss.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from relay._core.hop cimport LOST_OUTAGE
from relay._core.recorder cimport (
    RECORD_EPOCH_BEGUN, RECORD_LOST, RECORD_NOBODY, record, recorder_t,
)
from relay._core.ring cimport DUPLICATE, FRAME_TITLE, PLACED, PLACE_BAD, PLACE_FAR
from relay._core.ring_writer cimport ring_set_header, ring_set_title
from relay._core.stream cimport (
    stream_begin_epoch, stream_mark, stream_place, stream_resume_epoch, stream_t,
)
from relay._core.versions cimport VERSION_LEAST, VERSION_OWN, versions_t
from relay._core.wire cimport *

cdef enum:
    FRAMED_LENGTH_BYTES = 4
    # how far a run may be ahead of real time: the longest backlog, and clocks that differ
    FRAMED_LEAD_US = 660000000
    FRAMED_FRAME_US_MIN = 1000
    FRAMED_EMPTY_MAX = 16     # titles and header pages last no time
    FRAMED_BEGUN_HERE = 0     # the recorder's word for an epoch of a source of this node

cdef enum:  # what framed_feed returns: 0, FRAMED_WHOLE, or below zero why it cannot go on
    FRAMED_WHOLE = 1          # a run said that the epoch has ended
    FRAMED_TOO_LONG = -201
    FRAMED_TOO_SHORT = -202
    FRAMED_VERSION = -203
    FRAMED_KIND = -204
    FRAMED_MOUNT = -205
    FRAMED_FIELD = -206
    FRAMED_OTHER = -207
    FRAMED_LOOSE = -208
    FRAMED_CONTRADICTS = -209
    FRAMED_NO_ROOM = -210
    FRAMED_AHEAD = -211

cdef struct framed_t:
    stream_t* stream          # borrowed; claimed by the owner
    recorder_t* recorder      # borrowed; who feeds holds its lock, and has ticked it
    uint64_t now_us           # of this feed
    int64_t failed            # why nothing more is taken; 0: it is
    uint64_t epoch            # ms; what the request's head promised, as the next
    uint64_t origin
    uint8_t* carry            # one message and its length; owned
    uint32_t carry_bytes
    bint begun                # `h` has come
    bint fresh                # … and began a ring: its header pages are wanted
    bint ended                # the epoch has ended
    uint64_t next_sequence    # where the next run connects
    uint64_t fed_media_us     # of frames that were new
    uint8_t* header           # a header blob that is coming; owned, or NULL
    uint32_t header_bytes
    uint32_t header_filled

cdef inline framed_t* framed_open(
    stream_t* stream, uint64_t epoch, uint64_t origin, recorder_t* recorder,
) noexcept nogil:
    # NULL: no memory.
    cdef framed_t* framed = <framed_t*>calloc(1, sizeof(framed_t))
    if framed == NULL:
        return NULL
    framed.carry = <uint8_t*>malloc(FRAMED_LENGTH_BYTES + WIRE_RUN_BYTES_MAX)
    if framed.carry == NULL:
        free(framed)
        return NULL
    framed.stream = stream
    framed.recorder = recorder
    framed.epoch = epoch
    framed.origin = origin
    return framed

cdef inline void framed_close(framed_t* framed) noexcept nogil:
    if framed != NULL:
        free(framed.carry)
        free(framed.header)
        free(framed)

cdef inline const char* framed_reason(int64_t reason) noexcept nogil:
    if reason == FRAMED_TOO_LONG:
        return b"a message of the framed body is longer than 131072 bytes"
    if reason == FRAMED_TOO_SHORT:
        return b"a message of the framed body ends before its fields do, or goes on after them"
    if reason == FRAMED_VERSION:
        return b"a message of the framed body is of a wire version that this node does not speak"
    if reason == FRAMED_KIND:
        return b"a message of the framed body is of another kind than h, e or S"
    if reason == FRAMED_MOUNT:
        return b"a message of the framed body is meant for another mount"
    if reason == FRAMED_FIELD:
        return b"a number in the framed body is out of bounds: a frame has 1 to 65536 bytes"
    if reason == FRAMED_OTHER:
        return b"epoch or origin in the framed body are not those of the request"
    if reason == FRAMED_LOOSE:
        return b"a run of the framed body does not connect to what came before it"
    if reason == FRAMED_CONTRADICTS:
        return b"a frame contradicts what is here: two sources tell the same epoch and origin"
    if reason == FRAMED_AHEAD:
        return b"the framed body goes on further ahead than time has passed since its run was here"
    return b"no room for the ring of this source now; come back in a second"

cdef inline int64_t framed_refusal(int status) noexcept nogil:
    # What a decoder says, as a reason.
    if status == WIRE_SHORT:
        return FRAMED_TOO_SHORT
    return FRAMED_VERSION if status == WIRE_VERSION else FRAMED_FIELD

# --- where it begins ------------------------------------------------------------------------------

cdef inline bint framed_goes_on(const framed_t* framed) noexcept nogil:
    # Is the newest ring of the very run that this source sends?
    cdef stream_t* stream = framed.stream
    return stream.ring != NULL and stream.ring.epoch == framed.epoch and (
        stream.origin == framed.origin
    )

cdef inline void framed_time(framed_t* framed, uint64_t media_us) noexcept nogil:
    # Where this run was when it was first here, by the wall clock: it goes on while a machine
    # sleeps.
    cdef stream_t* stream = framed.stream
    if stream.run_epoch != framed.epoch:
        stream.run_epoch = framed.epoch
        stream.run_media_us = media_us
        stream.run_wall_us = framed.recorder.wall_ahead_us + <int64_t>framed.now_us

cdef inline bint framed_may_miss(const framed_t* framed, const wire_here_t* here) noexcept nogil:
    # Can so much be missing? Media time passes as time does, and each frame lasts.
    cdef const stream_t* stream = framed.stream
    cdef uint64_t head_us = stream.ring.head_media_us
    cdef int64_t passed_us = (
        framed.recorder.wall_ahead_us + <int64_t>framed.now_us - stream.run_wall_us
    )
    if passed_us < 0:           # the clock was set back
        passed_us = 0
    if here.first_media_us < head_us or (
        here.first_media_us > stream.run_media_us + <uint64_t>passed_us + FRAMED_LEAD_US
    ):
        return False
    return here.first_sequence - stream.ring.head_sequence <= (
        (here.first_media_us - head_us) // FRAMED_FRAME_US_MIN + FRAMED_EMPTY_MAX
    )

cdef inline void framed_tell(
    framed_t* framed, uint32_t kind, uint32_t reason, uint64_t a, uint64_t b, uint64_t c,
) noexcept nogil:
    record(
        framed.recorder, framed.now_us, framed.stream.key, kind, reason, RECORD_NOBODY, a, b, c
    )

cdef inline void framed_missed(
    framed_t* framed, uint64_t from_sequence, uint64_t frames, uint64_t media_us,
) noexcept nogil:
    # Nobody will bring them any more: the outage was longer than what the sender holds.
    framed.stream.counters.lost_frames_total += frames
    framed.stream.counters.lost_runs_total += 1
    framed.stream.counters.lost_outage_frames_total += frames
    framed_tell(framed, RECORD_LOST, LOST_OUTAGE, from_sequence, frames, media_us)

cdef inline int64_t framed_anew(framed_t* framed, const wire_here_t* here) noexcept nogil:
    # A ring begins where the sender does.
    cdef stream_t* stream = framed.stream
    cdef int status = stream_begin_epoch(
        stream, here.epoch, here.origin, here.first_sequence, here.first_position,
        here.first_media_us,
    )
    if status != 0:
        return FRAMED_FIELD if status == PLACE_BAD else FRAMED_NO_ROOM
    framed.fresh = True
    framed_tell(
        framed, RECORD_EPOCH_BEGUN, FRAMED_BEGUN_HERE, here.epoch, here.first_sequence,
        here.head_sequence,
    )
    if here.title_bytes:
        ring_set_title(
            stream.ring, here.title, here.title_bytes, here.title_sequence, here.title_position
        )
    return 0

cdef inline int64_t framed_here(framed_t* framed, const wire_here_t* here) noexcept nogil:
    # The ring that is here goes on if it reaches to where the sender begins. Else a new one begins
    # there: empty here, or too much was missed; what lies between will never come, and is lost.
    cdef stream_t* stream = framed.stream
    cdef uint64_t head_sequence = 0
    cdef uint64_t head_us = 0
    cdef bint goes_on = framed_goes_on(framed)
    cdef int64_t status
    if here.epoch != framed.epoch or here.origin != framed.origin:
        return FRAMED_OTHER
    if goes_on:
        head_sequence = stream.ring.head_sequence
        head_us = stream.ring.head_media_us
    if goes_on and here.first_sequence <= head_sequence:
        framed.fresh = False
        framed_time(framed, head_us)
        if not stream.source_up:    # it was given up, and is back
            stream_resume_epoch(stream)
            framed_tell(
                framed, RECORD_EPOCH_BEGUN, FRAMED_BEGUN_HERE, here.epoch, head_sequence,
                here.head_sequence,
            )
    else:
        framed_time(framed, head_us if goes_on else here.first_media_us)
        if goes_on and not framed_may_miss(framed, here):
            return FRAMED_AHEAD
        status = framed_anew(framed, here)
        if status != 0:
            return status
        if goes_on:
            framed_missed(
                framed, head_sequence, here.first_sequence - head_sequence,
                here.first_media_us - head_us,
            )
    framed.begun = True
    framed.next_sequence = here.first_sequence
    return 0

cdef inline int64_t framed_header(framed_t* framed, const wire_header_t* piece) noexcept nogil:
    # Pieces come in order; only who has just begun a ring needs them.
    if piece.epoch != framed.epoch:
        return FRAMED_OTHER
    if piece.offset == 0:
        free(framed.header)
        framed.header = <uint8_t*>malloc(piece.total_bytes)
        framed.header_bytes = piece.total_bytes
        framed.header_filled = 0
    if framed.header == NULL or piece.offset != framed.header_filled or (
        piece.total_bytes != framed.header_bytes
    ):
        return FRAMED_LOOSE
    memcpy(framed.header + piece.offset, piece.bytes, piece.size_bytes)
    framed.header_filled += piece.size_bytes
    if framed.header_filled == framed.header_bytes:
        if framed.fresh:
            ring_set_header(
                framed.stream.ring, framed.header, framed.header_bytes, piece.end_sequence
            )
        free(framed.header)
        framed.header = NULL
    return 0

# --- runs -----------------------------------------------------------------------------------------

cdef inline int64_t framed_run(framed_t* framed, const wire_run_t* run) noexcept nogil:
    cdef stream_t* stream = framed.stream
    cdef const uint8_t* payload = run.payload
    cdef uint64_t position = run.first_position
    cdef uint64_t media_us = run.first_media_us
    cdef wire_record_t record
    cdef uint64_t head
    cdef uint32_t i
    cdef int status
    if run.epoch != framed.epoch or run.origin != framed.origin:
        return FRAMED_OTHER
    if run.first_sequence != framed.next_sequence:
        return FRAMED_LOOSE
    for i in range(run.count):
        record = get_record(run.records + 8 * i)
        head = stream.ring.head_sequence
        status = stream_place(
            stream, run.first_sequence + i, position, media_us, payload, record.size_bytes,
            record.duration_us, record.flags,
        )
        if status == PLACED and run.first_sequence + i >= head:
            framed.fed_media_us += record.duration_us
        elif status == PLACE_FAR and run.first_sequence + i >= head:
            return FRAMED_NO_ROOM
        elif status != PLACED and status != DUPLICATE and status != PLACE_FAR:
            return FRAMED_CONTRADICTS
        payload += record.size_bytes
        position += 0 if record.flags & FRAME_TITLE else record.size_bytes
        media_us += record.duration_us
        framed.next_sequence += 1
    if run.flags & RUN_END:
        framed.ended = True
    return FRAMED_WHOLE if framed.ended else 0

cdef inline int64_t framed_message(framed_t* framed, reader_t* reader) noexcept nogil:
    cdef wire_head_t head
    cdef wire_here_t here
    cdef wire_header_t piece
    cdef wire_run_t run
    cdef int status
    cdef versions_t ours
    ours.least = VERSION_LEAST
    ours.own = VERSION_OWN
    status = take_head(reader, &head, &ours)
    if status != WIRE_OK:
        return framed_refusal(status)
    if head.kind != KIND_HERE and head.kind != KIND_HEADER and head.kind != KIND_STREAM:
        return FRAMED_KIND
    if head.key != framed.stream.key:
        return FRAMED_MOUNT
    if head.kind == KIND_HERE:
        status = take_here(reader, &here)
        return framed_here(framed, &here) if status == WIRE_OK else framed_refusal(status)
    if not framed.begun:
        return FRAMED_LOOSE
    if head.kind == KIND_HEADER:
        status = take_header(reader, &piece)
        return framed_header(framed, &piece) if status == WIRE_OK else framed_refusal(status)
    status = take_run(reader, &run)
    return framed_run(framed, &run) if status == WIRE_OK else framed_refusal(status)

cdef inline int64_t framed_feed(
    framed_t* framed, const uint8_t* bytes, uint64_t size, uint64_t now_us,
) noexcept nogil:
    # Takes all of them; FRAMED_WHOLE and the reasons end the body.
    cdef int64_t status
    if framed.failed != 0:
        return framed.failed
    framed.now_us = now_us
    if framed.stream.ring != NULL:
        stream_mark(framed.stream, now_us)
    status = framed_take(framed, bytes, size)
    if status < 0:
        framed.failed = status
    return status

cdef inline int64_t framed_take(
    framed_t* framed, const uint8_t* bytes, uint64_t size,
) noexcept nogil:
    # Each byte is copied once on its way: a source brings some hundred messages a second at most.
    cdef uint32_t length
    cdef uint64_t wanted
    cdef uint64_t piece
    cdef int64_t status
    cdef reader_t reader
    while size > 0 and not framed.ended:
        wanted = FRAMED_LENGTH_BYTES
        if framed.carry_bytes >= FRAMED_LENGTH_BYTES:
            memcpy(&length, framed.carry, FRAMED_LENGTH_BYTES)
            wanted += le32toh(length)
        piece = wanted - framed.carry_bytes
        piece = piece if piece < size else size
        memcpy(framed.carry + framed.carry_bytes, bytes, piece)
        framed.carry_bytes += <uint32_t>piece
        bytes += piece
        size -= piece
        if framed.carry_bytes < wanted:
            break
        if wanted == FRAMED_LENGTH_BYTES:
            memcpy(&length, framed.carry, FRAMED_LENGTH_BYTES)
            if le32toh(length) > WIRE_RUN_BYTES_MAX:
                return FRAMED_TOO_LONG
            if le32toh(length) < WIRE_HEAD_BYTES:
                return FRAMED_TOO_SHORT
            continue
        reader = reader_of(framed.carry + FRAMED_LENGTH_BYTES, wanted - FRAMED_LENGTH_BYTES)
        framed.carry_bytes = 0
        status = framed_message(framed, &reader)
        if status != 0:
            return status
    return 0
