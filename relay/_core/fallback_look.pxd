# fallback_look.pxd: looks at the streams of each rule, has it decided, and says who is wanted.
#
# Rules of this room
#   1. One thread looks: the first shard, inside its turn, at most each FALLBACK_LOOK_US.
#   2. A rule holds one reference on each stream that it knows; one that has left the node is let
#      go at the next look. `lent` is counted here alone; with it an edge asks its upstream.
#   3. Costs a few loads a stream; one that is not on this node a look into the table.
#   4. Decides nothing (fallback.pxd) and moves nobody (fallback_move.pxd).

from libc.stdint cimport uint32_t, uint64_t

from relay._core.atomics cimport add_u32, load_pointer, load_u32, load_u64, store_pointer, sub_u32
from relay._core.engine cimport engine_find_key, engine_t, rule_t
from relay._core.fallback cimport (
    FALLBACK_MEMBERS, fallback_format, fallback_step, fallback_t, sight_t,
)
from relay._core.frames cimport le32
from relay._core.frames_ogg cimport OGG_SERIAL_OFFSET
from relay._core.ring cimport header_t, ring_header, ring_t
from relay._core.stream cimport hub_tell, info_t, stream_drop, stream_t

cdef enum:
    FALLBACK_LOOK_US = 20000

cdef inline uint64_t header_serial(const header_t* header) noexcept nogil:
    # The serial in the first page of an Ogg chain's header, + 1; 0: it is none.
    if header == NULL or header.size_bytes < OGG_SERIAL_OFFSET + 4 or header.bytes[0] != 79:
        return 0
    return <uint64_t>le32(header.bytes + OGG_SERIAL_OFFSET) + 1

cdef inline uint64_t stream_format(stream_t* stream) noexcept nogil:
    # Within a turn.
    cdef info_t* info = <info_t*>load_pointer(<void**>&stream.info)
    return fallback_format(info.bytes, info.size_bytes) if info != NULL else 0

cdef inline void rule_lend(rule_t* rule, uint32_t member, bint lends) noexcept nogil:
    # Counts this rule in or out of those that want the stream.
    cdef uint32_t bit = <uint32_t>1 << member
    cdef stream_t* stream = rule.streams[member]
    if stream == NULL or lends == (rule.lent & bit != 0):
        return
    rule.lent ^= bit
    if lends:
        add_u32(&stream.lent, 1)
    else:
        sub_u32(&stream.lent, 1)
    hub_tell(stream.hub, stream)

cdef inline stream_t* rule_stream(engine_t* engine, rule_t* rule, uint32_t member) noexcept nogil:
    # The member's stream, as the node has it now; NULL: it has none.
    cdef stream_t* stream = rule.streams[member]
    if stream != NULL and load_u32(&stream.closed):
        rule_lend(rule, member, False)
        store_pointer(<void**>&rule.streams[member], NULL)
        stream_drop(stream)
        stream = NULL
    if stream == NULL:
        stream = engine_find_key(engine, rule.keys[member])
        store_pointer(<void**>&rule.streams[member], stream)
    return stream

cdef inline void sight_of(stream_t* stream, bint upstream_up, sight_t* sight) noexcept nogil:
    # Within a turn.
    cdef ring_t* ring
    sight[0] = sight_t(False, False, False, 0, 0, 0, 0, 0, 0)
    if stream == NULL:
        return
    ring = <ring_t*>load_pointer(<void**>&stream.ring)
    sight.format = stream_format(stream)
    sight.listeners = load_u32(&stream.listeners)
    sight.away = load_u32(&stream.away)
    if ring == NULL:
        sight.idle = upstream_up and sight.listeners == 0 and load_u32(&stream.coming) == 1
        return
    sight.open = load_u32(&stream.source_up) == 1
    sight.epoch = ring.epoch
    sight.position = load_u64(&ring.head_position)
    sight.begins = sight.position > load_u64(&ring.base_position)
    sight.serial = header_serial(ring_header(ring, load_u64(&ring.head_sequence)))

cdef inline void rule_look(
    engine_t* engine, rule_t* rule, uint64_t now_us
) noexcept nogil:
    cdef sight_t sights[FALLBACK_MEMBERS]
    cdef fallback_t* decided = &rule.decided
    cdef bint upstream_up = load_u32(&engine.upstream_up) == 1
    cdef uint32_t i
    for i in range(decided.count):
        sight_of(rule_stream(engine, rule, i), upstream_up, &sights[i])
    fallback_step(decided, sights, now_us)
    for i in range(1, decided.count):
        rule_lend(rule, i, decided.wanted >> i & 1)

cdef inline void fallback_look(engine_t* engine, uint64_t now_us) noexcept nogil:
    # All rules, if it is time.
    cdef uint32_t i
    if engine.rules_count == 0 or now_us < engine.rules_due_us:
        return
    engine.rules_due_us = now_us + FALLBACK_LOOK_US
    for i in range(engine.rules_count):
        rule_look(engine, &engine.rules[i], now_us)

cdef inline rule_t* rule_of(engine_t* engine, const stream_t* stream) noexcept nogil:
    # What its listeners are to hear; NULL: always their own.
    cdef uint32_t number = stream.config.fallback
    return &engine.rules[number - 1] if number > 0 else NULL

cdef inline bint rule_is_heard(engine_t* engine, const stream_t* stream) noexcept nogil:
    # Have its listeners a fallback with audio now?
    cdef rule_t* rule = rule_of(engine, stream)
    return rule != NULL and load_u32(&rule.decided.heard) == 1
