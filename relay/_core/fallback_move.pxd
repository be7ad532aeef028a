# fallback_move.pxd: takes a listener over to the stream that it is to hear now.
#
# Rules of this room
#   1. Called by the listener's shard when the listener is served anyway: those of one mount go over
#      within one pace, each in its own slot, without a burst of work and without an allocation.
#   2. It leaves at the end of a frame and goes on at a `start`, with the header pages that this one
#      needs; its ICY counter runs on. Where that cannot be, it stays where it is.
#   3. It gets as much of the other stream at once as it has been without audio, at most a burst; an
#      epoch that is younger than a burst it hears from the beginning.
#   4. Whoever was promised one format hears no other; who can neither go nor stay is ended.
#   5. The reference on the stream it leaves goes only after the ring's.
#   6. Its own stream it hears out before it leaves. Of an epoch that it comes back to, its own or a
#      fallback's, it hears nothing twice: where it left each stream is remembered, whatever number
#      that has in the chain now.
#   7. Another thread changes rules meanwhile. Of a rule nothing is read here but `at`, `best` and
#      one stream, between two looks at its version; never its keys or their count.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memmove

from relay._core.atomics cimport add_u32, add_u64, load_pointer, load_u32, load_u64, ref_take
from relay._core.connection cimport shard_t
from relay._core.engine cimport rule_t
from relay._core.fallback cimport FALLBACK_MEMBERS, FALLBACK_NONE
from relay._core.fallback_look cimport (
    FALLBACK_AWAY, FALLBACK_BACK, header_serial, rule_of, stream_format,
)
from relay._core.listener cimport (
    ICY_ANOTHER, flow_t, listener_add_pages, listener_hears, listener_leave_fallback,
    listener_leave_ring, listener_skip_later, listener_t,
)
from relay._core.recorder cimport RECORD_MOVE, RECORD_NOBODY, record
from relay._core.ring cimport (
    frame_t, header_t, ring_burst_sequence, ring_header, ring_read_entry, ring_readable_end,
    ring_sequence_at, ring_start_after, ring_t,
)
from relay._core.stream cimport stream_drop, stream_ring_drop, stream_ring_take, stream_t

cdef enum:                    # of a mark, from below
    LEFT_POSITION_BITS = 34   # 16 GiB; what is above is the head's
    LEFT_EPOCH_BITS = 16      # the stream has the rest

cdef inline uint64_t left_mark(uint64_t key, uint64_t epoch, uint64_t position) noexcept nogil:
    # Where an epoch of a stream was left, in one word, of which each listener has FALLBACK_MEMBERS:
    # hashes of stream and epoch, and the lower bits of the position. Not the stream's number in the
    # chain, which is another one once the chain is changed.
    cdef uint64_t golden = 0x9E3779B97F4A7C15
    cdef uint64_t epoch_hash = epoch * golden >> (64 - LEFT_EPOCH_BITS)
    return (
        (key * golden & ~<uint64_t>0 << (LEFT_POSITION_BITS + LEFT_EPOCH_BITS))
        | epoch_hash << LEFT_POSITION_BITS
        | position & ((<uint64_t>1 << LEFT_POSITION_BITS) - 1)
    )

cdef inline bint left_is_of(uint64_t mark, uint64_t key) noexcept nogil:
    return mark != 0 and (mark ^ left_mark(key, 0, 0)) >> (
        LEFT_POSITION_BITS + LEFT_EPOCH_BITS
    ) == 0

cdef inline uint64_t left_position(
    uint64_t mark, uint64_t key, uint64_t epoch, uint64_t head_position
) noexcept nogil:
    # The position in a mark, in this epoch, whose head is there now; 0: it is of another epoch or
    # stream.
    cdef uint64_t mask = (<uint64_t>1 << LEFT_POSITION_BITS) - 1
    cdef uint64_t back = (head_position - mark) & mask
    if (mark ^ left_mark(key, epoch, 0)) & ~mask or back > head_position:
        return 0
    return head_position - back

cdef inline void listener_leaves(listener_t* listener) noexcept nogil:
    # Remembers where it leaves what it hears: the newest first, each stream once. A chain's fit
    # all; of more, which only another chain brings, the oldest goes, but never its own stream's.
    cdef uint64_t key = listener_hears(listener).key
    cdef uint64_t own = listener.stream.key
    cdef uint32_t last = FALLBACK_MEMBERS - 1
    cdef uint32_t at = 0
    if listener.ring == NULL:
        return
    while at < last and not left_is_of(listener.left[at], key):
        at += 1
    if left_is_of(listener.left[last], own) and not left_is_of(listener.left[at], key):
        at = last - 1
    memmove(&listener.left[1], &listener.left[0], at * sizeof(uint64_t))
    listener.left[0] = left_mark(key, listener.ring.epoch, listener.position)

cdef inline uint64_t listener_left(
    const listener_t* listener, const stream_t* to, const ring_t* ring
) noexcept nogil:
    # Where it left this epoch of this stream; 0: it never did.
    cdef uint32_t i
    for i in range(FALLBACK_MEMBERS):
        if left_is_of(listener.left[i], to.key):
            return left_position(
                listener.left[i], to.key, ring.epoch, load_u64(&ring.head_position)
            )
    return 0

cdef inline uint64_t listener_serial(const listener_t* listener) noexcept nogil:
    # Of the Ogg chain that it is in, + 1; 0: none.
    cdef ring_t* ring = listener.ring
    if ring == NULL or listener.position == 0:
        return 0
    return header_serial(ring_header(ring, ring_sequence_at(ring, listener.position - 1)))

cdef inline uint64_t listener_missed_us(
    const listener_t* listener, const ring_t* ring, uint64_t now_us
) noexcept nogil:
    # How much of the other stream it gets at once.
    cdef uint64_t burst_us = listener.stream.config.burst_us
    cdef uint64_t silent_us = now_us - listener.audio_us if now_us > listener.audio_us else 0
    if not listener.heard or load_u64(&ring.head_media_us) <= burst_us or silent_us > burst_us:
        return burst_us
    return silent_us

cdef inline uint64_t listener_entry(
    const listener_t* listener, const stream_t* to, ring_t* ring, uint64_t now_us
) noexcept nogil:
    # The frame at which it begins there; the head's sequence: there is none yet.
    cdef uint64_t sequence = ring_burst_sequence(ring, listener_missed_us(listener, ring, now_us))
    cdef uint64_t heard = listener_left(listener, to, ring)
    cdef frame_t frame
    if heard and (not ring_read_entry(ring, sequence, &frame) or frame.position < heard):
        return ring_start_after(ring, heard)
    return sequence

cdef inline bint listener_move(
    listener_t* listener, stream_t* to, flow_t* flow, uint64_t now_us
) noexcept nogil:
    # At a frame boundary, with nothing left of an earlier write. Takes over the reference on `to`.
    # False: it can not begin there.
    cdef ring_t* ring = stream_ring_take(to)
    cdef frame_t frame
    cdef header_t* header
    cdef uint64_t sequence
    cdef uint64_t serial
    if ring == NULL:
        stream_drop(to)
        return False
    sequence = listener_entry(listener, to, ring, now_us)
    header = ring_header(ring, sequence)
    serial = header_serial(header)
    if sequence == load_u64(&ring.head_sequence) or not ring_read_entry(ring, sequence, &frame) or (
        serial != 0 and serial == listener_serial(listener)
    ):
        stream_ring_drop(to, ring)
        stream_drop(to)
        return False
    listener_leaves(listener)
    listener_leave_ring(listener)
    listener_leave_fallback(listener)
    listener.ring = ring
    if to == listener.stream:
        stream_drop(to)           # it holds one on its own anyway
    else:
        listener.fallback = to
        add_u32(&listener.stream.away, 1)
    listener.skipping = False
    listener.leaving = 0
    listener.icy_title = ICY_ANOTHER if listener.icy_title != 0 else 0
    listener.position = listener.whole_position = frame.position
    listener.burst_position = load_u64(&ring.head_position)
    if header != NULL:
        listener_add_pages(listener, flow, header.bytes, header.size_bytes)
    return True

cdef inline stream_t* listener_due(
    const rule_t* rule, const listener_t* listener
) noexcept nogil:
    # The stream that it is to go over to, with a reference; NULL: it is where it should be, or
    # must stay. Within a turn.
    cdef uint32_t version = load_u32(&rule.version)
    cdef uint32_t member = load_u32(&rule.decided.at)
    cdef stream_t* to
    if listener.ring == NULL and listener.fallback == NULL:
        member = load_u32(&rule.decided.best)
        if member == 0 or member == <uint32_t>FALLBACK_NONE:
            return NULL           # it begins in its own, or waits
    to = <stream_t*>load_pointer(<void**>&rule.streams[member])
    if (
        to == NULL or to == listener_hears(listener) or not load_u32(&to.source_up)
        or version & 1 or load_u32(&rule.version) != version      # its chain is another one now
        or stream_format(to) != listener.promise or not ref_take(&to.refs)
    ):
        return NULL
    return to

cdef inline stream_t* listener_home(const listener_t* listener) noexcept nogil:
    # The same for a mount without a rule: one that was moved to it (orders_step.pxd) hears the one
    # that it left, until it can begin there.
    cdef stream_t* to = listener.stream
    if (
        not load_u32(&to.source_up) or stream_format(to) != listener.promise
        or not ref_take(&to.refs)
    ):
        return NULL
    return to

cdef inline bint listener_has_more(listener_t* listener) noexcept nogil:
    # Of its own stream, which is silent: is there a part that it has not heard? In a ring that was
    # superseded it first goes on to the next one (listener_follow).
    cdef ring_t* ring = listener.ring
    if ring == NULL or listener.fallback != NULL:
        return False
    return (
        load_u32(&ring.superseded) == 1
        or ring_readable_end(ring, listener.position) > listener.position
        or ring_start_after(ring, listener.position) < load_u64(&ring.head_sequence)
    )

cdef inline void listener_stay(listener_t* listener) noexcept nogil:
    # It does not leave, or can not yet: then it goes on with the next frame, not at a later start.
    if listener.leaving:
        listener.skipping = False
        listener.leaving = 0

cdef inline void listener_leave_later(listener_t* listener) noexcept nogil:
    # At the end of the frame that it is in.
    if not listener.skipping:
        listener_skip_later(listener)
        listener.leaving = listener.skipping

cdef inline bint listener_is_stranded(listener_t* listener) noexcept nogil:
    # What it hears was removed and has ended; its own stream is here, and is not what it was
    # promised. Anything else may still come.
    return (
        listener.fallback != NULL and load_u32(&listener.fallback.closed) == 1
        and load_u32(&listener.stream.source_up) == 1
        and stream_format(listener.stream) != listener.promise
        and (
            listener.ring == NULL
            or ring_readable_end(listener.ring, listener.position) == listener.position
        )
    )

cdef inline void shard_count_move(
    shard_t* shard, listener_t* listener, uint64_t now_us
) noexcept nogil:
    record(
        &shard.recorder, now_us, listener.stream.key, RECORD_MOVE,
        FALLBACK_AWAY if listener.fallback != NULL else FALLBACK_BACK, RECORD_NOBODY,
        now_us - listener.audio_us if now_us > listener.audio_us else 0, 0, 0,
    )
    if listener.fallback != NULL:
        shard.counters.fallbacks_total += 1
        add_u64(&listener.stream.counters.fallbacks_total, 1)
    elif listener.moving:
        shard.counters.moves_total += 1
    else:
        shard.counters.returns_total += 1
        add_u64(&listener.stream.counters.returns_total, 1)
    listener.moving = 0
    if listener.anchored:
        listener.anchored = 0
        shard.counters.anchors_lost_total += 1

cdef inline bint shard_place(
    shard_t* shard, listener_t* listener, flow_t* flow, uint64_t now_us
) noexcept nogil:
    # Before a listener is served: is it where it should be? False: nothing more can come for it.
    cdef rule_t* rule = rule_of(shard.engine, listener.stream)
    cdef stream_t* to
    if (rule == NULL and listener.fallback == NULL) or listener.promise == 0 or (
        listener.rest != NULL or listener.intro != NULL
    ):
        return True
    to = listener_due(rule, listener) if rule != NULL else listener_home(listener)
    if to == NULL:
        listener_stay(listener)
        return not listener_is_stranded(listener)
    if listener_has_more(listener):
        listener_stay(listener)
        stream_drop(to)
    elif listener.ring != NULL and listener.position != listener.whole_position:
        listener_leave_later(listener)
        stream_drop(to)
    elif listener_move(listener, to, flow, now_us):
        shard_count_move(shard, listener, now_us)
    else:
        listener_stay(listener)
    return True
