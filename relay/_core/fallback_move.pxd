# fallback_move.pxd: takes a listener over to the stream that it is to hear now.
#
# Rules of this room
#   1. Called by the listener's shard when the listener is served anyway: those of one mount go over
#      within one pace, each in its own slot, without a burst of work and without an allocation.
#   2. It leaves at the end of a frame and goes on at a `start`, with the header pages that this one
#      needs; its ICY counter runs on. Where that cannot be, it stays where it is.
#   3. It gets as much of the other stream at once as it has been without audio, at most a burst; an
#      epoch that is younger than a burst it hears from the beginning.
#   4. Whoever was promised one format hears no other.
#   5. The reference on the stream it leaves goes only after the ring's.

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
    frame_t, header_t, ring_burst_sequence, ring_header, ring_read_entry, ring_sequence_at, ring_t,
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
    sequence = ring_burst_sequence(ring, listener_missed_us(listener, ring, now_us))
    header = ring_header(ring, sequence)
    serial = header_serial(header)
    if sequence == load_u64(&ring.head_sequence) or not ring_read_entry(ring, sequence, &frame) or (
        serial != 0 and serial == listener_serial(listener)
    ):
        stream_ring_drop(to, ring)
        stream_drop(to)
        return False
    listener_leave_ring(listener)
    listener_leave_fallback(listener)
    listener.ring = ring
    if to == listener.stream:
        stream_drop(to)           # it holds one on its own anyway
    else:
        listener.fallback = to
        add_u32(&listener.stream.away, 1)
    listener.skipping = False
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

cdef inline void shard_place(
    shard_t* shard, listener_t* listener, flow_t* flow, uint64_t now_us
) noexcept nogil:
    # Before a listener is served: is it where it should be?
    cdef rule_t* rule = rule_of(shard.engine, listener.stream)
    cdef stream_t* to
    if rule == NULL or listener.promise == 0 or listener.rest != NULL:
        return
    to = listener_due(rule, listener)
    if to == NULL:
        return
    if listener.ring != NULL and listener.position != listener.whole_position:
        if not listener.skipping:
            listener_skip_later(listener)     # it leaves at the end of this frame
        stream_drop(to)
    elif listener_move(listener, to, flow, now_us):
        if listener.fallback != NULL:
            shard.counters.fallbacks_total += 1
            add_u64(&listener.stream.counters.fallbacks_total, 1)
        else:
            shard.counters.returns_total += 1
            add_u64(&listener.stream.counters.returns_total, 1)
