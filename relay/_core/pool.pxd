# pool.pxd: buffers for full messages, used again and again.
#
# Rules of this room
#   1. One owner takes; any thread gives back (libzmq's, when a message has left).
#   2. At most POOL_MAX buffers are made (16 MiB); without one the caller lets libzmq allocate.
#   3. The pool goes with its last reference: the owner's, or that of the last message still
#      queued. Why: malloc maps and unmaps each block of 128 KiB, and the page faults were a
#      quarter of a hop's CPU.

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

from relay._core.atomics cimport add_u32, claim_pointer, load_pointer, sub_u32, swap_pointer
from relay._core.wire cimport WIRE_RUN_BYTES_MAX

cdef enum:
    POOL_MAX = 128

cdef struct slab_t:
    slab_t* next
    pool_t* pool
    uint8_t bytes[WIRE_RUN_BYTES_MAX]

cdef struct pool_t:
    slab_t* ready             # owner's
    slab_t* returned          # a stack: anybody pushes, the owner takes all
    uint32_t made             # owner's
    uint32_t refs             # the owner and each buffer that is out

cdef inline pool_t* pool_open() noexcept nogil:
    cdef pool_t* pool = <pool_t*>calloc(1, sizeof(pool_t))
    if pool != NULL:
        pool.refs = 1
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
        pool.made += 1
    else:
        return NULL
    add_u32(&pool.refs, 1)
    return slab

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
    while True:
        slab.next = <slab_t*>load_pointer(<void**>&pool.returned)
        if claim_pointer(<void**>&pool.returned, slab.next, slab):
            break
    pool_drop(pool)
