/* atomics.h: the few atomic operations that Cython cannot say, on plain integers and pointers.
 *
 * Rules of this room
 *   1. One name for each ordering that the rooms use; nobody else writes __atomic_… or fences.
 *   2. Pointers go through load_pointer / store_pointer (acquire / release).
 */
#ifndef RELAY_ATOMICS_H
#define RELAY_ATOMICS_H

#include <stdint.h>

static inline uint64_t load_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t load_u64_relaxed(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}
static inline void store_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void store_u64_relaxed(uint64_t *p, uint64_t v)
{
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
}
static inline uint64_t add_u64(uint64_t *p, uint64_t v)
{
    return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL);
}
static inline uint64_t sub_u64(uint64_t *p, uint64_t v)
{
    return __atomic_sub_fetch(p, v, __ATOMIC_ACQ_REL);
}

static inline uint32_t load_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint32_t swap_u32(uint32_t *p, uint32_t v)
{
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);
}
static inline uint32_t add_u32(uint32_t *p, uint32_t v)
{
    return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL);
}
static inline uint32_t sub_u32(uint32_t *p, uint32_t v)
{
    return __atomic_sub_fetch(p, v, __ATOMIC_ACQ_REL);
}
static inline int claim_u32(uint32_t *p, uint32_t from, uint32_t to)
{
    return __atomic_compare_exchange_n(p, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* One more reference, unless the last one has already gone: 1 taken, 0 too late. */
static inline int ref_take(uint32_t *refs)
{
    uint32_t seen = __atomic_load_n(refs, __ATOMIC_RELAXED);
    while (seen != 0)
        if (__atomic_compare_exchange_n(refs, &seen, seen + 1, 1, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            return 1;
    return 0;
}

static inline void *load_pointer(void *const *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store_pointer(void **p, void *v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void *swap_pointer(void **p, void *v)
{
    return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL);
}
static inline int claim_pointer(void **p, void *from, void *to)
{
    return __atomic_compare_exchange_n(p, &from, to, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static inline void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline void fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }

#endif
