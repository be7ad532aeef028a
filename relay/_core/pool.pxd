# pool.pxd: buffers for full messages, used again and again; and how much of the answers to each
# child libzmq still holds.
#
# Rules of this room
#   1. One owner takes; any thread gives back (libzmq's, when a message has left).
#   2. At most POOL_MAX buffers are made (16 MiB); without one the caller lets libzmq allocate.
#   3. The pool goes with its last reference: the owner's, or that of the last message still
#      queued. Why: malloc maps and unmaps each block of 128 KiB, and the page faults were a
#      quarter of a hop's CPU.
#   4. Answers are charged to who asked (guests.pxd: the child, however many connections it has)
#      until they have left: a child that does not read holds at most SHARE_BYTES_MAX, and a quarter
#      of what is free, so that there is always some for the next; all together hold
#      ANSWERS_BYTES_MAX and one message.
#   5. Children choose the keys that they ask about. So places are found by a hash that nobody
#      outside can work out, and one child has answers about SHARE_RUNS_MAX keys on their way: it
#      neither aims at the places of another, nor takes them all.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from relay._core.atomics cimport (
    add_u32, claim_pointer, load_pointer, load_u32, sub_u32, swap_pointer,
)
from relay._core.guests cimport getrandom
from relay._core.wire cimport WIRE_RUN_BYTES_MAX

cdef enum:
    POOL_MAX = 128
    ANSWERS_BYTES_MAX = 33554432  # held by libzmq, for all children together
    SHARE_BYTES_MAX = 2097152     # for one child: a whole join
    SHARE_PART = 4                # of what is free
    SHARES = 4096                 # places of children, and of (child, key); in sets of SHARE_WAYS
    SHARE_WAYS = 8
    SHARE_RUNS_MAX = 32           # what a child has open at most (docs/wire.md)

cdef struct share_t:          # answers to one child, or to one child about one key
    uint64_t id               # owner's; it goes to the next when nothing is held
    uint32_t bytes            # held; the owner adds, any thread takes off
    uint32_t runs             # of a child: keys about which some is held; likewise

cdef struct slab_t:
    slab_t* next
    pool_t* pool
    share_t* child            # NULL: published, charged to nobody
    share_t* run
    uint32_t charged_bytes
    bint pooled               # False: goes when it has left
    uint8_t bytes[WIRE_RUN_BYTES_MAX]

cdef struct pool_t:
    slab_t* ready             # owner's
    slab_t* returned          # a stack: anybody pushes, the owner takes all
    uint32_t made             # owner's
    uint32_t refs             # the owner and each buffer that is out
    uint32_t held_bytes       # of all answers; the owner adds, any thread takes off
    uint64_t seed             # of ids
    share_t shares[SHARES]

cdef inline pool_t* pool_open() noexcept nogil:
    cdef pool_t* pool = <pool_t*>calloc(1, sizeof(pool_t))
    if pool == NULL:
        return NULL
    pool.refs = 1
    if getrandom(&pool.seed, sizeof(pool.seed), 0) != <ssize_t>sizeof(pool.seed):
        free(pool)
        return NULL
    return pool

cdef inline slab_t* pool_take(pool_t* pool) noexcept nogil:
    # NULL: all are out, or no memory.
    cdef slab_t* slab
    if pool.ready == NULL:
        pool.ready = <slab_t*>swap_pointer(<void**>&pool.returned, NULL)
    slab = pool.ready
    if slab != NULL:
        pool.ready = slab.next
    elif pool.made < POOL_MAX:
        slab = <slab_t*>malloc(sizeof(slab_t))
        if slab == NULL:
            return NULL
        slab.pool = pool
        slab.pooled = True
        pool.made += 1
    else:
        return NULL
    slab.child = slab.run = NULL
    add_u32(&pool.refs, 1)
    return slab

cdef inline slab_t* pool_make(pool_t* pool, size_t size) noexcept nogil:
    # A buffer of this size for once; NULL: no memory.
    cdef slab_t* slab = <slab_t*>malloc(sizeof(slab_t) - WIRE_RUN_BYTES_MAX + size)
    if slab == NULL:
        return NULL
    slab.pool = pool
    slab.pooled = False
    slab.child = slab.run = NULL
    add_u32(&pool.refs, 1)
    return slab

# --- who holds how much --------------------------------------------------------------------------

cdef inline uint64_t share_id(
    pool_t* pool, uint32_t account, uint64_t key, bint about,
) noexcept nogil:
    # Of what this child asks `about` a key, or of the child; never 0. SplitMix64 from a secret
    # begin.
    cdef uint64_t id = (key ^ pool.seed) + account * <uint64_t>0x9E3779B97F4A7C15
    id = (id ^ (id >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    id = (id ^ (id >> 27)) * <uint64_t>0x94D049BB133111EB
    id = (id ^ (id >> 31)) & ~(<uint64_t>3 << 62)
    return id | <uint64_t>(1 if about else 2) << 62

cdef inline share_t* share_find(
    pool_t* pool, uint64_t id, const share_t* other,
) noexcept nogil:
    # The place of this child (or child and key), not that of the other. NULL: all eight where it
    # could be are in use.
    cdef share_t* ways = &pool.shares[id % (SHARES // SHARE_WAYS) * SHARE_WAYS]
    cdef share_t* unused = NULL
    cdef int i
    for i in range(SHARE_WAYS):
        if ways[i].id == id:
            return &ways[i]
        if load_u32(&ways[i].bytes) == 0 and &ways[i] != other:
            unused = &ways[i]
    if unused != NULL:
        unused.id = id
    return unused

cdef inline bint share_has_room(pool_t* pool, const share_t* child) noexcept nogil:
    # May this child be sent one more message?
    cdef uint32_t held = load_u32(&pool.held_bytes)
    cdef uint32_t bytes = load_u32(&child.bytes)
    return held < ANSWERS_BYTES_MAX and bytes < SHARE_BYTES_MAX and (
        bytes < (ANSWERS_BYTES_MAX - held) // SHARE_PART
    )

cdef inline bint share_may_begin(
    pool_t* pool, const share_t* child, const share_t* run,
) noexcept nogil:
    # May an answer be begun: has the last one about this key left, and is there room?
    return child != NULL and run != NULL and load_u32(&run.bytes) == 0 and (
        load_u32(&child.runs) < SHARE_RUNS_MAX and share_has_room(pool, child)
    )

cdef inline void share_charge(
    slab_t* slab, share_t* child, share_t* run, uint32_t size,
) noexcept nogil:
    slab.child = child
    slab.run = run
    slab.charged_bytes = size
    add_u32(&slab.pool.held_bytes, size)
    add_u32(&child.bytes, size)
    if add_u32(&run.bytes, size) == size:
        add_u32(&child.runs, 1)

cdef inline void pool_free_all(slab_t* slab) noexcept nogil:
    cdef slab_t* after
    while slab != NULL:
        after = slab.next
        free(slab)
        slab = after

cdef inline void pool_drop(pool_t* pool) noexcept nogil:
    if sub_u32(&pool.refs, 1) == 0:
        pool_free_all(pool.ready)
        pool_free_all(pool.returned)
        free(pool)

cdef inline void pool_give(void* bytes, void* hint) noexcept nogil:
    # libzmq's callback: the message has left.
    cdef slab_t* slab = <slab_t*>hint
    cdef pool_t* pool = slab.pool
    if slab.child != NULL:
        sub_u32(&pool.held_bytes, slab.charged_bytes)
        if sub_u32(&slab.run.bytes, slab.charged_bytes) == 0:
            sub_u32(&slab.child.runs, 1)
        sub_u32(&slab.child.bytes, slab.charged_bytes)      # last: then its place may be another's
    if not slab.pooled:
        free(slab)
        pool_drop(pool)
        return
    while True:
        slab.next = <slab_t*>load_pointer(<void**>&pool.returned)
        if claim_pointer(<void**>&pool.returned, slab.next, slab):
            break
    pool_drop(pool)
