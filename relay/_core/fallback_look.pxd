# fallback_look.pxd: looks at the streams of each rule, has it decided, and says who is wanted.
#
# Rules of this room
#   1. One thread looks: the first shard, inside its turn, at most each FALLBACK_LOOK_US.
#   2. A rule holds one reference on each stream that it knows; one that has left the node is let
#      go at the next look. `lent` is counted here alone; with it an edge asks its upstream. A
#      stream that is found learns here that it is in a chain.
#   3. Costs a few loads a stream; one that is not on this node a look into the table.
#   4. Decides nothing (fallback.pxd) and moves nobody (fallback_move.pxd).
#   5. A rule takes its new chain over between two looks. `version` is odd until it has looked at
#      the new streams; who read `at` before and a stream after it sees another one, and stays.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from relay._core.atomics cimport (
    add_u32, load_pointer, load_u32, load_u64, store_pointer, store_u32, sub_u32,
)
from relay._core.engine cimport chain_t, engine_find_key, engine_t, rule_t
from relay._core.fallback cimport (
    FALLBACK_MEMBERS, fallback_change, fallback_format, fallback_step, fallback_t, sight_t,
)
from relay._core.frames cimport le32
from relay._core.frames_ogg cimport OGG_SERIAL_OFFSET
from relay._core.recorder cimport RECORD_FALLBACK, RECORD_NOBODY, record, recorder_t
from relay._core.retire cimport pthread_mutex_lock, pthread_mutex_unlock
from relay._core.ring cimport (
    FRAME_TITLE, frame_t, header_t, ring_at, ring_header, ring_read_entry, ring_t,
    ring_was_overtaken,
)
from relay._core.sound cimport sound_of_frame, sound_of_header
from relay._core.stream cimport hub_tell, info_t, stream_drop, stream_t

cdef enum:
    FALLBACK_LOOK_US = 20000
    SOUND_FRAME_BYTES = 4     # of a frame, where its header tells
    SOUND_FRAMES = 4          # looked at, since titles stand among them

cdef enum:  # reasons of RECORD_FALLBACK
    FALLBACK_AWAY = 0         # to a fallback, or from one to another
    FALLBACK_BACK = 1         # to the mount's own stream

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

cdef inline void rule_let_go(rule_t* rule, uint32_t member) noexcept nogil:
    cdef stream_t* stream = rule.streams[member]
    if stream != NULL:
        rule_lend(rule, member, False)
        store_pointer(<void**>&rule.streams[member], NULL)
        stream_drop(stream)

cdef inline stream_t* rule_stream(engine_t* engine, rule_t* rule, uint32_t member) noexcept nogil:
    # The member's stream, as the node has it now; NULL: it has none.
    cdef stream_t* stream = rule.streams[member]
    if stream != NULL and load_u32(&stream.closed):
        rule_let_go(rule, member)
        stream = NULL
    if stream == NULL:
        stream = engine_find_key(engine, rule.keys[member])
        if stream != NULL:        # it may have been opened before it was in a chain
            store_u32(&stream.config.own_serial, 1)
            if member == 0:
                store_u32(&stream.config.fallback, <uint32_t>(rule - engine.rules) + 1)
        store_pointer(<void**>&rule.streams[member], stream)
    return stream

cdef inline bint rule_change(engine_t* engine, rule_t* rule) noexcept nogil:
    # Takes over the chain that is wanted, and forgets the one before. True: the caller ends it.
    cdef chain_t chain
    cdef uint32_t wishes
    cdef uint32_t i
    if load_u32(&rule.wishes) == rule.granted:
        return False
    pthread_mutex_lock(&engine.table_lock)
    chain = rule.wanted
    wishes = rule.wishes
    pthread_mutex_unlock(&engine.table_lock)
    store_u32(&rule.version, rule.version + 1)
    for i in range(1, FALLBACK_MEMBERS):
        rule_let_go(rule, i)
        rule.keys[i] = chain.keys[i]
    fallback_change(&rule.decided, chain.count, chain.after_us)
    store_u32(&rule.granted, wishes)
    return True

cdef inline uint64_t ring_sound(ring_t* ring, const header_t* header) noexcept nogil:
    # Of its newest chain or frame; a title has no bytes here, and the frame before it is as good.
    cdef frame_t frame
    cdef uint64_t sequence = load_u64(&ring.head_sequence)
    cdef uint8_t begin[SOUND_FRAME_BYTES]
    cdef int i
    if header != NULL:
        return sound_of_header(header.bytes, header.size_bytes)
    for i in range(SOUND_FRAMES):
        if sequence == 0 or not ring_read_entry(ring, sequence - 1, &frame):
            return 0
        sequence -= 1
        if frame.flags & FRAME_TITLE == 0 and frame.size_bytes >= SOUND_FRAME_BYTES:
            memcpy(begin, ring_at(ring, frame.position), SOUND_FRAME_BYTES)
            # bytes that were overtaken meanwhile tell nothing
            return 0 if ring_was_overtaken(ring, frame.position) else (
                sound_of_frame(begin, SOUND_FRAME_BYTES)
            )
    return 0

cdef inline void sight_of(stream_t* stream, bint upstream_up, sight_t* sight) noexcept nogil:
    # Within a turn.
    cdef ring_t* ring
    cdef header_t* header
    sight[0] = sight_t(False, False, False, 0, 0, 0, 0, 0, 0, 0)
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
    header = ring_header(ring, load_u64(&ring.head_sequence))
    sight.serial = header_serial(header)
    sight.sound = ring_sound(ring, header)

cdef inline void rule_look(
    engine_t* engine, rule_t* rule, recorder_t* recorder, uint64_t now_us
) noexcept nogil:
    cdef sight_t sights[FALLBACK_MEMBERS]
    cdef bint changes = rule_change(engine, rule)
    cdef uint32_t before = rule.decided.at
    cdef fallback_t* decided = &rule.decided
    cdef bint upstream_up = load_u32(&engine.upstream_up) == 1
    cdef uint32_t i
    for i in range(decided.count):
        sight_of(rule_stream(engine, rule, i), upstream_up, &sights[i])
    if fallback_step(decided, sights, now_us):
        record(
            recorder, now_us, rule.keys[0], RECORD_FALLBACK,
            FALLBACK_BACK if decided.at == 0 else FALLBACK_AWAY, RECORD_NOBODY, before, decided.at,
            now_us - decided.members[before].moved_us if decided.members[before].moved_us else 0,
        )
    if changes:
        store_u32(&rule.version, rule.version + 1)
    for i in range(1, decided.count):
        rule_lend(rule, i, decided.wanted >> i & 1)

cdef inline void fallback_look(
    engine_t* engine, recorder_t* recorder, uint64_t now_us
) noexcept nogil:
    # All rules, if it is time; what changes is put into this recorder, the caller's own.
    cdef uint32_t i
    cdef uint32_t count = load_u32(&engine.rules_count)
    if count == 0 or now_us < engine.rules_due_us:
        return
    engine.rules_due_us = now_us + FALLBACK_LOOK_US
    for i in range(count):
        rule_look(engine, &engine.rules[i], recorder, now_us)

cdef inline rule_t* rule_of(engine_t* engine, const stream_t* stream) noexcept nogil:
    # What its listeners are to hear; NULL: always their own.
    cdef uint32_t number = load_u32(&stream.config.fallback)
    return &engine.rules[number - 1] if number > 0 else NULL

cdef inline bint rule_stands(engine_t* engine, const stream_t* stream) noexcept nogil:
    # Has this mount a fallback? One that was taken away leaves a rule with the mount alone.
    cdef rule_t* rule = rule_of(engine, stream)
    return rule != NULL and load_u32(&rule.decided.count) > 1

cdef inline bint rule_is_heard(engine_t* engine, const stream_t* stream) noexcept nogil:
    # Have its listeners a fallback with audio now?
    cdef rule_t* rule = rule_of(engine, stream)
    return rule != NULL and load_u32(&rule.decided.heard) == 1
