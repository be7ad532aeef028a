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
#   6. Its own stream it hears out before it leaves, and of an epoch that it comes back to nothing
#      twice.

from libc.stdint cimport uint32_t, uint64_t

from relay._core.atomics cimport add_u32, add_u64, load_pointer, load_u32, load_u64, ref_take
from relay._core.connection cimport shard_t
from relay._core.engine cimport rule_t
from relay._core.fallback cimport FALLBACK_NONE
from relay._core.fallback_look cimport header_serial, rule_of, stream_format
from relay._core.listener cimport (
    ICY_ANOTHER, PART_COPY, flow_add, flow_t, listener_hears, listener_leave_fallback,
    listener_leave_ring, listener_skip_later, listener_t,
)
from relay._core.ring cimport (
    frame_t, header_t, ring_burst_sequence, ring_header, ring_read_entry, ring_readable_end,
    ring_sequence_at, ring_start_after, ring_t,
)
from relay._core.stream cimport stream_drop, stream_ring_drop, stream_ring_take, stream_t

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
    cdef frame_t frame
    if to == listener.stream and ring.epoch == listener.own_epoch and (
        not ring_read_entry(ring, sequence, &frame) or frame.position < listener.own_position
    ):
        return ring_start_after(ring, listener.own_position)
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
    if listener.ring != NULL and listener.fallback == NULL:
        listener.own_epoch = listener.ring.epoch
        listener.own_position = listener.position
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
        flow_add(flow, PART_COPY, header.bytes, header.size_bytes, 0)
    return True

cdef inline stream_t* listener_due(
    const rule_t* rule, const listener_t* listener
) noexcept nogil:
    # The stream that it is to go over to, with a reference; NULL: it is where it should be, or
    # must stay. Within a turn.
    cdef uint32_t member = load_u32(&rule.decided.at)
    cdef stream_t* to
    if listener.ring == NULL and listener.fallback == NULL:
        member = load_u32(&rule.decided.best)
        if member == 0 or member == <uint32_t>FALLBACK_NONE:
            return NULL           # it begins in its own, or waits
    to = <stream_t*>load_pointer(<void**>&rule.streams[member])
    if (
        to == NULL or to == listener_hears(listener) or not load_u32(&to.source_up)
        or stream_format(to) != listener.promise or not ref_take(&to.refs)
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

cdef inline void shard_count_move(shard_t* shard, listener_t* listener) noexcept nogil:
    if listener.fallback != NULL:
        shard.counters.fallbacks_total += 1
        add_u64(&listener.stream.counters.fallbacks_total, 1)
    else:
        shard.counters.returns_total += 1
        add_u64(&listener.stream.counters.returns_total, 1)
    if listener.anchored:
        listener.anchored = 0
        shard.counters.anchors_lost_total += 1

cdef inline bint shard_place(
    shard_t* shard, listener_t* listener, flow_t* flow, uint64_t now_us
) noexcept nogil:
    # Before a listener is served: is it where it should be? False: nothing more can come for it.
    cdef rule_t* rule = rule_of(shard.engine, listener.stream)
    cdef stream_t* to
    if rule == NULL or listener.promise == 0 or listener.rest != NULL:
        return True
    to = listener_due(rule, listener)
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
        shard_count_move(shard, listener)
    else:
        listener_stay(listener)
    return True
