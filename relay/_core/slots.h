/* slots.h: which place of an index a number has, when the places are no power of two.
 *
 * Rules of this room
 *   1. slot_of(number, count, slot_inverse(count)) is number % count, for every number below 2^63
 *      and every count from 1 on: the quotient is at most one too small, one comparison mends it.
 *   2. Why not a power of two: on average a third of an index would lie idle; at 64 kbit/s a place
 *      is worth a sixth of its frame. Why not %: two multiplications instead of a division, for
 *      each frame that is pushed or looked up.
 */
#ifndef RELAY_SLOTS_H
#define RELAY_SLOTS_H

#include <stdint.h>

__extension__ typedef unsigned __int128 relay_u128_t;

static inline uint64_t slot_inverse(uint64_t count) { return UINT64_MAX / count; }

static inline uint64_t slot_of(uint64_t number, uint64_t count, uint64_t inverse)
{
    uint64_t quotient = (uint64_t)((relay_u128_t)number * inverse >> 64);
    uint64_t slot = number - quotient * count;
    return slot >= count ? slot - count : slot;
}

#endif
