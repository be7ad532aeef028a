# engine.pxd: what all threads of one node share: the table of streams, retirement, counters.
#
# Rules of this room
#   1. The table changes and is searched under table_lock, for a few probes; whoever finds a stream
#      gets a reference and gives it back (stream_drop).
#   2. Bounds: streams_max streams; a mount whose key collides with another's is refused.
#   3. What the settings say of mounts is written by who holds Python's lock. Once the threads run,
#      mounts are added behind the others and no more of one changes than its fallback; a rule that
#      is to change waits beside the one that holds, until fallback_look.pxd takes it over.
#   4. Knows no sockets; the threads (shard.pxd, backbone.pxd) know it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from relay._core.atomics cimport add_u32, load_u32, store_u32
from relay._core.fallback cimport FALLBACK_MEMBERS, fallback_change, fallback_t
from relay._core.intro cimport intro_close, intro_open, intro_t
from relay._core.handover cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, close, eventfd, handover_close, handover_open, handover_t,
)
from relay._core.recorder cimport (
    OTHERS_COMMON, OTHERS_RARE, recorder_close, recorder_open, recorder_t,
)
from relay._core.redirect cimport REDIRECTS_MAX, base_set, base_t
from relay._core.retire cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock, retire_close, retire_open, retire_t,
)
from relay._core.stream cimport (
    hub_next, hub_t, hub_take, mount_key, stream_config_t, stream_drop, stream_t,
)


cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* now)
    int CLOCK_MONOTONIC
    int CLOCK_REALTIME

cdef enum:  # engine_add
    ENGINE_TAKEN = -1
    ENGINE_FULL = -2
    ENGINE_COLLISION = -3

cdef enum:
    OVERRIDES_MAX = 1024
    STREAMS_MAX = 1 << 20

cdef struct override_t:       # [streams."/live"] of the configuration
    uint64_t key
    stream_config_t config

cdef struct chain_t:
    uint64_t keys[FALLBACK_MEMBERS]   # the mount's, then its fallbacks'
    uint32_t count            # of them; 1: it has no fallback any more
    uint64_t after_us         # fallback_after_ms

cdef struct rule_t:           # what the listeners of one mount hear (fallback.pxd)
    fallback_t decided
    uint64_t keys[FALLBACK_MEMBERS]
    chain_t wanted            # what it is to be; under table_lock
    uint32_t wishes           # how often that has changed; under table_lock
    uint32_t granted          # the wish that holds; owner: fallback_look.pxd
    uint32_t version          # odd while it changes: at and streams do not belong together then
    # one reference each; NULL: not on this node. Owner: fallback_look.pxd; others take references
    stream_t* streams[FALLBACK_MEMBERS]
    uint32_t lent             # bits of the members that count this rule in `lent`

cdef struct engine_t:
    retire_t retire
    hub_t hub
    pthread_mutex_t table_lock
    stream_t** table          # open addressing by key, table_size slots; owned
    uint64_t table_size       # a power of two, at least twice streams_max
    uint32_t streams          # in the table now
    uint32_t streams_max
    stream_config_t defaults  # [defaults] of the configuration; set before the threads start
    override_t* overrides     # OVERRIDES_MAX at most; owned
    uint32_t overrides_count
    rule_t* rules             # OVERRIDES_MAX at most; owned
    uint32_t rules_count
    intro_t* intros           # OVERRIDES_MAX at most; owned; set before the threads start
    uint32_t intros_count
    uint64_t rules_due_us     # when they are looked at next; owner: the first shard
    handover_t pages          # connections for Python: the fixed table
    handover_t sources        # PUT and SOURCE
    handover_t askers         # who asks for a mount where Python says who may listen
    uint32_t asks             # 1: there is such a mount; set before the threads start
    uint32_t visits_wanted    # 1: somebody keeps accounts of who comes and leaves (visits.pxd)
    const uint32_t* forks     # not 0 once the process has forked; borrowed, or NULL
    uint32_t listeners        # attached now, all shards
    uint32_t listeners_max
    uint32_t places           # connections of all shards now: listeners, heads, those who part
    uint32_t places_max       # listeners_max + heads_max: what the file limit was checked against
    uint32_t heads_max        # unfinished request heads that count (heads.pxd), all shards
    uint32_t heads_per_address_max
    uint32_t shards           # how many there will be; set before the first is opened
    uint64_t head_timeout_us
    uint64_t head_grace_us
    base_t redirects[REDIRECTS_MAX]   # other nodes; set before the threads start
    uint32_t redirects_count
    uint64_t join_wait_us
    recorder_t recorder       # of whoever holds Python's lock
    uint64_t node_id[2]       # 128 random bits, new at each start; everybody may know them
    uint64_t secret           # 64 random bits that nobody outside is told
    uint32_t has_upstream     # 1: an upstream is configured
    uint32_t directory_known  # 1: the first directory has come (or there is no upstream)
    uint32_t upstream_up      # 1: a life sign within silence_ms (or there is no upstream)

cdef inline uint64_t now_us() noexcept nogil:
    # The monotonic clock, µs. Only the threads' outermost loops ask; rooms are handed the answer.
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000 + <uint64_t>now.tv_nsec // 1000

cdef inline uint64_t wall_ms() noexcept nogil:
    # Wall clock, ms: epochs and the Date line, nothing else.
    return wall_us() // 1000

cdef inline uint64_t wall_us() noexcept nogil:
    # The same, µs: for the flight recorder alone.
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <uint64_t>now.tv_sec * 1000000 + <uint64_t>now.tv_nsec // 1000

cdef inline const stream_config_t* engine_config(engine_t* engine, uint64_t key) noexcept nogil:
    # What the configuration says of the mount with this key.
    cdef uint32_t i
    for i in range(load_u32(&engine.overrides_count)):
        if engine.overrides[i].key == key:
            return &engine.overrides[i].config
    return &engine.defaults

cdef inline void engine_pace_range(
    engine_t* engine, uint64_t* floor_us, uint64_t* ceiling_us
) noexcept nogil:
    # Where a pace that is chosen by load may lie: the range of all mounts that leave a choice.
    cdef const stream_config_t* config = &engine.defaults
    cdef uint32_t i
    floor_us[0] = config.pace_us_min
    ceiling_us[0] = config.pace_us_max
    for i in range(load_u32(&engine.overrides_count)):
        config = &engine.overrides[i].config
        if config.pace_us_min >= config.pace_us_max:
            continue
        if floor_us[0] >= ceiling_us[0]:
            floor_us[0] = config.pace_us_min
            ceiling_us[0] = config.pace_us_max
        if config.pace_us_min < floor_us[0]:
            floor_us[0] = config.pace_us_min
        if config.pace_us_max > ceiling_us[0]:
            ceiling_us[0] = config.pace_us_max

cdef inline int engine_open(engine_t* engine, uint32_t streams_max) noexcept nogil:
    # -1: no memory, or more than STREAMS_MAX.
    if streams_max > STREAMS_MAX:
        return -1
    if handover_open(&engine.pages, 512) != 0 or handover_open(&engine.sources, 128) != 0 or (
        handover_open(&engine.askers, 512) != 0
    ):
        return -1
    engine.table_size = 4
    while engine.table_size < 2 * <uint64_t>streams_max:
        engine.table_size <<= 1
    engine.table = <stream_t**>calloc(engine.table_size, sizeof(void*))
    engine.overrides = <override_t*>calloc(OVERRIDES_MAX, sizeof(override_t))
    engine.rules = <rule_t*>calloc(OVERRIDES_MAX, sizeof(rule_t))
    engine.intros = <intro_t*>calloc(OVERRIDES_MAX, sizeof(intro_t))
    if engine.table == NULL or engine.overrides == NULL or engine.rules == NULL or (
        engine.intros == NULL or recorder_open(&engine.recorder, OTHERS_RARE, OTHERS_COMMON) != 0
    ):
        free(engine.table)
        free(engine.overrides)
        free(engine.rules)
        free(engine.intros)
        recorder_close(&engine.recorder)
        engine.table = NULL
        return -1
    engine.streams_max = streams_max
    engine.hub.event_fd = -1
    engine.hub.kept_fd = -1
    engine.directory_known = 1
    engine.upstream_up = 1
    pthread_mutex_init(&engine.table_lock, NULL)
    retire_open(&engine.retire)
    return 0

cdef inline int engine_add_redirect(
    engine_t* engine, const char* base, uint64_t size
) noexcept nogil:
    # -1: one too many, or not what base_set takes.
    if engine.redirects_count == REDIRECTS_MAX:
        return -1
    if not base_set(&engine.redirects[engine.redirects_count], base, size):
        return -1
    engine.redirects_count += 1
    return 0

cdef inline int engine_hub_open(engine_t* engine) noexcept nogil:
    # From here on writers tell the backbone what is new. -1: no descriptor.
    if engine.hub.kept_fd < 0:
        engine.hub.kept_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    engine.hub.event_fd = engine.hub.kept_fd
    return -1 if engine.hub.kept_fd < 0 else 0

cdef inline void engine_hub_drain(engine_t* engine) noexcept nogil:
    cdef stream_t* stream = hub_take(&engine.hub)
    cdef stream_t* after
    while stream != NULL:
        after = hub_next(stream)
        stream_drop(stream)
        stream = after

cdef inline void engine_hub_close(engine_t* engine) noexcept nogil:
    engine.hub.event_fd = -1
    engine_hub_drain(engine)

cdef inline void engine_close(engine_t* engine) noexcept nogil:
    # All threads have ended.
    cdef uint64_t slot
    engine_hub_close(engine)
    if engine.hub.kept_fd >= 0:
        close(engine.hub.kept_fd)
    engine_drop_rules(engine)
    for slot in range(engine.table_size):
        if engine.table[slot] != NULL:
            stream_drop(engine.table[slot])
    handover_close(&engine.pages)
    handover_close(&engine.sources)
    handover_close(&engine.askers)
    retire_close(&engine.retire)
    pthread_mutex_destroy(&engine.table_lock)
    for slot in range(engine.intros_count):
        intro_close(&engine.intros[slot])
    free(engine.intros)
    free(engine.overrides)
    free(engine.rules)
    free(engine.table)
    recorder_close(&engine.recorder)
    engine.table = NULL

cdef inline void engine_drop_rules(engine_t* engine) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t member
    for i in range(engine.rules_count):
        for member in range(FALLBACK_MEMBERS):
            if engine.rules[i].streams[member] != NULL:
                stream_drop(engine.rules[i].streams[member])
    engine.rules_count = 0

cdef inline int engine_override(
    engine_t* engine, uint64_t key, const stream_config_t* config
) noexcept nogil:
    # One mount more with settings of its own. -1: no room.
    cdef uint32_t count = engine.overrides_count
    if count == OVERRIDES_MAX:
        return -1
    engine.overrides[count].key = key
    engine.overrides[count].config = config[0]
    store_u32(&engine.overrides_count, count + 1)
    return 0

cdef inline uint32_t engine_rule(engine_t* engine, uint64_t key) noexcept nogil:
    # The number of this mount's rule for stream_config_t.fallback; 0: it has none.
    cdef uint32_t i
    for i in range(engine.rules_count):
        if engine.rules[i].keys[0] == key:
            return i + 1
    return 0

cdef inline uint32_t engine_set_rule(
    engine_t* engine, const chain_t* chain, bint adapts
) noexcept nogil:
    # A rule for a mount that has none, or another chain for the one that it has; its number, 0: no
    # room. `adapts`: the settings of all in the chain, too, which then are not set otherwise.
    cdef uint32_t number = engine_rule(engine, chain.keys[0])
    cdef rule_t* rule = &engine.rules[number - 1 if number > 0 else engine.rules_count]
    if not 1 <= chain.count <= FALLBACK_MEMBERS or (
        number == 0 and engine.rules_count == OVERRIDES_MAX
    ) or (adapts and engine_strangers(engine, chain) + engine.overrides_count > OVERRIDES_MAX):
        return 0
    if number > 0:
        pthread_mutex_lock(&engine.table_lock)
        rule.wanted = chain[0]
        store_u32(&rule.wishes, rule.wishes + 1)
        pthread_mutex_unlock(&engine.table_lock)
    else:
        memcpy(rule.keys, chain.keys, sizeof(rule.keys))
        fallback_change(&rule.decided, chain.count, chain.after_us)
        number = engine.rules_count + 1
        store_u32(&engine.rules_count, number)
    if adapts:
        engine_adapt(engine, chain, number)
    return number

cdef inline uint32_t engine_strangers(engine_t* engine, const chain_t* chain) noexcept nogil:
    # How many of these mounts have no settings of their own.
    cdef uint32_t found = 0
    cdef uint32_t i
    for i in range(chain.count):
        found += engine_config(engine, chain.keys[i]) == &engine.defaults
    return found

cdef inline void engine_adapt(engine_t* engine, const chain_t* chain, uint32_t rule) noexcept nogil:
    # Streams of this chain that are opened from here on follow its rule, and get serials of their
    # own; of those that are here fallback_look.pxd says the same.
    cdef stream_config_t* config
    cdef uint32_t i
    for i in range(chain.count):
        if engine_config(engine, chain.keys[i]) == &engine.defaults:
            engine_override(engine, chain.keys[i], &engine.defaults)
        config = <stream_config_t*>engine_config(engine, chain.keys[i])
        store_u32(&config.own_serial, 1)
        if i == 0:
            store_u32(&config.fallback, rule)

cdef inline uint32_t engine_add_intro(
    engine_t* engine, const uint8_t* bytes, uint64_t size_bytes, uint64_t format
) noexcept nogil:
    # The number for stream_config_t.intro; 0: no room or memory, or nothing to send.
    if engine.intros_count == OVERRIDES_MAX or intro_open(
        &engine.intros[engine.intros_count], bytes, size_bytes, format
    ) != 0:
        return 0
    engine.intros_count += 1
    return engine.intros_count

cdef inline const intro_t* engine_intro(
    engine_t* engine, const stream_t* stream, uint64_t format
) noexcept nogil:
    # What a new listener of this stream hears first, if it is of the format that he is promised.
    cdef const intro_t* intro
    if stream.config.intro == 0:
        return NULL
    intro = &engine.intros[stream.config.intro - 1]
    return intro if intro.format == format else NULL

cdef inline uint64_t engine_slot(engine_t* engine, uint64_t key) noexcept nogil:
    # The slot of this key, or the free one where it would go. Under table_lock.
    cdef uint64_t slot = key & (engine.table_size - 1)
    while engine.table[slot] != NULL and engine.table[slot].key != key:
        slot = (slot + 1) & (engine.table_size - 1)
    return slot

cdef inline stream_t* engine_find_key(engine_t* engine, uint64_t key) noexcept nogil:
    cdef stream_t* stream
    pthread_mutex_lock(&engine.table_lock)
    stream = engine.table[engine_slot(engine, key)]
    if stream != NULL:
        add_u32(&stream.refs, 1)
    pthread_mutex_unlock(&engine.table_lock)
    return stream

cdef inline stream_t* engine_find(
    engine_t* engine, const char* mount, uint64_t size,
) noexcept nogil:
    cdef stream_t* stream = engine_find_key(engine, mount_key(mount, size))
    if stream != NULL and (
        stream.mount_bytes != size or memcmp(stream.mount, mount, size) != 0
    ):
        stream_drop(stream)
        return NULL
    return stream

cdef inline uint32_t engine_all(engine_t* engine, stream_t** out) noexcept nogil:
    # All streams, each with a reference taken, into room for streams_max of them; how many.
    cdef uint64_t slot
    cdef uint32_t count = 0
    pthread_mutex_lock(&engine.table_lock)
    for slot in range(engine.table_size):
        if engine.table[slot] != NULL:
            out[count] = engine.table[slot]
            add_u32(&out[count].refs, 1)
            count += 1
    pthread_mutex_unlock(&engine.table_lock)
    return count

cdef inline int engine_add(engine_t* engine, stream_t* stream) noexcept nogil:
    # Takes over the caller's reference when it answers 0.
    cdef uint64_t slot
    cdef stream_t* other
    cdef int status = 0
    pthread_mutex_lock(&engine.table_lock)
    slot = engine_slot(engine, stream.key)
    other = engine.table[slot]
    if other != NULL:
        status = ENGINE_TAKEN
        if other.mount_bytes != stream.mount_bytes or memcmp(
            other.mount, stream.mount, stream.mount_bytes
        ) != 0:
            status = ENGINE_COLLISION
    elif engine.streams >= engine.streams_max:
        status = ENGINE_FULL
    else:
        engine.table[slot] = stream
        engine.streams += 1
    pthread_mutex_unlock(&engine.table_lock)
    return status

cdef inline bint engine_remove(engine_t* engine, stream_t* stream) noexcept nogil:
    # Unlinks the stream and gives the table's reference back; its listeners are ended by their
    # shards.
    cdef uint64_t slot
    cdef uint64_t probe
    cdef uint64_t mask = engine.table_size - 1
    cdef bint found
    pthread_mutex_lock(&engine.table_lock)
    slot = engine_slot(engine, stream.key)
    found = engine.table[slot] == stream
    if found:
        engine.table[slot] = NULL
        engine.streams -= 1
        probe = (slot + 1) & mask
        # close the gap that the probe sequence would stop at
        while engine.table[probe] != NULL:
            if ((probe - (engine.table[probe].key & mask)) & mask) >= ((probe - slot) & mask):
                engine.table[slot] = engine.table[probe]
                engine.table[probe] = NULL
                slot = probe
            probe = (probe + 1) & mask
    pthread_mutex_unlock(&engine.table_lock)
    if found:
        store_u32(&stream.closed, 1)
        stream_drop(stream)
    return found
