# atomics.pxd: names the operations of atomics.h for the other rooms.
#
# Rules of this room
#   1. Declarations only: the orderings are decided and explained in atomics.h.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "atomics.h" nogil:
    uint64_t load_u64(const uint64_t* p)
    uint64_t load_u64_relaxed(const uint64_t* p)
    void store_u64(uint64_t* p, uint64_t v)
    void store_u64_relaxed(uint64_t* p, uint64_t v)
    uint64_t add_u64(uint64_t* p, uint64_t v)   # returns the new value
    uint64_t sub_u64(uint64_t* p, uint64_t v)
    uint32_t load_u32(const uint32_t* p)
    void store_u32(uint32_t* p, uint32_t v)
    uint32_t swap_u32(uint32_t* p, uint32_t v)  # returns the old value
    uint32_t add_u32(uint32_t* p, uint32_t v)
    uint32_t sub_u32(uint32_t* p, uint32_t v)
    bint claim_u32(uint32_t* p, uint32_t expected, uint32_t wanted)
    bint ref_take(uint32_t* refs)
    void* load_pointer(void** p)
    void store_pointer(void** p, void* v)
    void* swap_pointer(void** p, void* v)
    bint claim_pointer(void** p, void* expected, void* wanted)
    void fence()
    void fence_release()
    void fence_acquire()
