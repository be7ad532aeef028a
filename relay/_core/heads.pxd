# heads.pxd: those who were let in and have not said yet what they want: whose turn it is to be
# read, and who has to go when there are too many.
#
# Rules of this room
#   1. A crowd that comes honestly is never thrown out: nobody goes before his head was looked for
#      at least once, nor within the grace, as long as there are places.
#   2. What counts against the bounds is what only a slow drip does: a head that has begun and is
#      not whole, or one that has not come within the grace. Of these an address may have
#      per_address_max and all together counted_max; the oldest goes, of that address or of all.
#   3. When no place is left the grace is over: those go first whose address has the most.
#   4. Each lives timeout_us, and at most a grace longer. Only the counted hold memory (8 KiB each).
#   5. Members are numbers below members_max, in one shard's hands. No sockets and no clock: it is
#      handed `now`. Each call is a few steps, whoever many there are.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from relay._core.pace cimport NOBODY
from relay._core.tables cimport table_close, table_open

cdef enum:
    ADDRESS_BUCKETS = 4096

cdef enum:  # where a member stands
    STANDS_NOWHERE = 0
    STANDS_FRESH = 1          # within the grace, and nothing of its head has come
    STANDS_COUNTED = 2

cdef enum:  # which of a member's three pairs of neighbours
    BY_AGE = 0                # in `fresh` or `counted`
    BY_ADDRESS = 1            # in its bucket's `fresh` or `counted`
    BY_LOOK = 2               # in `queue`, while it is waiting

cdef enum:  # why heads_due names somebody
    GOES_EXPIRED = 0          # its time is over
    GOES_EVICTED = 1          # too many count

cdef struct pair_t:
    uint32_t before           # NOBODY: the first of its line
    uint32_t after            # NOBODY: the last

cdef struct place_t:          # one member; all zero while it stands nowhere
    pair_t pairs[3]
    uint64_t began_us
    uint16_t bucket
    uint8_t stands
    bint is_waiting           # to be looked at
    bint was_looked_at

cdef struct line_t:
    uint32_t first            # NOBODY: empty
    uint32_t last
    uint32_t count

cdef struct bucket_t:         # addresses that share a hash; IPv6: a network of 64 bits
    line_t fresh
    line_t counted

cdef struct heads_t:
    place_t* places           # members_max; owned
    uint64_t seed             # of the hash: nobody outside may choose whose bucket he shares
    uint64_t grace_us
    uint64_t timeout_us
    uint32_t counted_max
    uint32_t per_address_max
    uint32_t crowded          # the bucket that last had more than per_address_max, of any kind
    line_t fresh
    line_t counted
    line_t queue              # who is to be looked at, first come first
    bucket_t buckets[ADDRESS_BUCKETS]

cdef inline void line_clear(line_t* line) noexcept nogil:
    line.first = line.last = NOBODY
    line.count = 0

cdef inline void line_put(heads_t* heads, line_t* line, int by, uint32_t member) noexcept nogil:
    cdef pair_t* pair = &heads.places[member].pairs[by]
    pair.before = line.last
    pair.after = NOBODY
    if line.last != <uint32_t>NOBODY:
        heads.places[line.last].pairs[by].after = member
    else:
        line.first = member
    line.last = member
    line.count += 1

cdef inline void line_drop(heads_t* heads, line_t* line, int by, uint32_t member) noexcept nogil:
    cdef pair_t* pair = &heads.places[member].pairs[by]
    if pair.before != <uint32_t>NOBODY:
        heads.places[pair.before].pairs[by].after = pair.after
    else:
        line.first = pair.after
    if pair.after != <uint32_t>NOBODY:
        heads.places[pair.after].pairs[by].before = pair.before
    else:
        line.last = pair.before
    line.count -= 1

cdef inline int heads_open(heads_t* heads, uint32_t members_max, uint64_t seed) noexcept nogil:
    # -1: no memory. Bounds and times are set by the caller.
    cdef uint32_t i
    heads.places = <place_t*>table_open(members_max, sizeof(place_t))
    heads.seed = seed
    heads.crowded = NOBODY
    line_clear(&heads.fresh)
    line_clear(&heads.counted)
    line_clear(&heads.queue)
    for i in range(ADDRESS_BUCKETS):
        line_clear(&heads.buckets[i].fresh)
        line_clear(&heads.buckets[i].counted)
    return -1 if heads.places == NULL else 0

cdef inline void heads_close(heads_t* heads) noexcept nogil:
    table_close(heads.places)
    heads.places = NULL

cdef inline uint32_t heads_count(heads_t* heads) noexcept nogil:
    return heads.fresh.count + heads.counted.count

cdef inline uint16_t heads_bucket(heads_t* heads, const uint8_t* address) noexcept nogil:
    # 16 bytes. RFC 4291 §2.5.4: who has one IPv6 address has a network of 64 bits; IPv4 is mapped.
    cdef uint64_t hash = heads.seed
    cdef int i
    cdef bint is_mapped = address[10] == 0xff and address[11] == 0xff and address[0] == 0
    for i in range(16 if is_mapped else 8):
        hash = (hash ^ address[i]) * <uint64_t>0x100000001B3
    hash ^= hash >> 29
    return <uint16_t>((hash * <uint64_t>0x9E3779B97F4A7C15) >> 52)

cdef inline void heads_add(
    heads_t* heads, uint32_t member, const uint8_t* address, uint64_t now_us
) noexcept nogil:
    # Let in just now; it waits to be looked at.
    cdef place_t* place = &heads.places[member]
    cdef bucket_t* bucket
    place.began_us = now_us
    place.bucket = heads_bucket(heads, address)
    place.stands = STANDS_FRESH
    place.is_waiting = True
    place.was_looked_at = False
    bucket = &heads.buckets[place.bucket]
    line_put(heads, &heads.fresh, BY_AGE, member)
    line_put(heads, &bucket.fresh, BY_ADDRESS, member)
    line_put(heads, &heads.queue, BY_LOOK, member)
    if bucket.fresh.count + bucket.counted.count > heads.per_address_max:
        heads.crowded = place.bucket

cdef inline void heads_wake(heads_t* heads, uint32_t member) noexcept nogil:
    # Something has come from it: it is to be looked at, in its turn.
    if not heads.places[member].is_waiting:
        heads.places[member].is_waiting = True
        line_put(heads, &heads.queue, BY_LOOK, member)

cdef inline uint32_t heads_look(heads_t* heads) noexcept nogil:
    # The next to be looked at, now; NOBODY.
    cdef uint32_t member = heads.queue.first
    if member != <uint32_t>NOBODY:
        line_drop(heads, &heads.queue, BY_LOOK, member)
        heads.places[member].is_waiting = False
        heads.places[member].was_looked_at = True
    return member

cdef inline void heads_drop(heads_t* heads, uint32_t member) noexcept nogil:
    # Its head is whole, or it is gone.
    cdef place_t* place = &heads.places[member]
    cdef bucket_t* bucket = &heads.buckets[place.bucket]
    if place.is_waiting:
        line_drop(heads, &heads.queue, BY_LOOK, member)
        place.is_waiting = False
    if place.stands == STANDS_FRESH:
        line_drop(heads, &heads.fresh, BY_AGE, member)
        line_drop(heads, &bucket.fresh, BY_ADDRESS, member)
    else:
        line_drop(heads, &heads.counted, BY_AGE, member)
        line_drop(heads, &bucket.counted, BY_ADDRESS, member)
    place.stands = STANDS_NOWHERE

cdef inline uint32_t heads_hold(heads_t* heads, uint32_t member) noexcept nogil:
    # From here on it counts. Answers who has to go for that, or NOBODY; bounds are at least 1, so
    # it is never the member itself.
    cdef place_t* place = &heads.places[member]
    cdef bucket_t* bucket = &heads.buckets[place.bucket]
    if place.stands != STANDS_FRESH:
        return NOBODY
    line_drop(heads, &heads.fresh, BY_AGE, member)
    line_drop(heads, &bucket.fresh, BY_ADDRESS, member)
    place.stands = STANDS_COUNTED
    line_put(heads, &heads.counted, BY_AGE, member)
    line_put(heads, &bucket.counted, BY_ADDRESS, member)
    if bucket.counted.count > heads.per_address_max:
        return bucket.counted.first
    return heads.counted.first if heads.counted.count > heads.counted_max else <uint32_t>NOBODY

cdef inline uint32_t heads_due(heads_t* heads, uint64_t now_us, int* why) noexcept nogil:
    # Somebody who has to go now, with the reason; NOBODY. To be asked until nobody is left.
    cdef uint64_t grace_us = min(heads.grace_us, heads.timeout_us)
    cdef uint32_t member = heads.fresh.first
    cdef uint32_t goes
    why[0] = GOES_EVICTED
    while member != <uint32_t>NOBODY and heads.places[member].was_looked_at and (
        now_us > heads.places[member].began_us + grace_us
    ):
        goes = heads_hold(heads, member)
        if goes != <uint32_t>NOBODY:
            return goes
        member = heads.fresh.first
    why[0] = GOES_EXPIRED
    member = heads.counted.first
    if member != <uint32_t>NOBODY and now_us > heads.places[member].began_us + heads.timeout_us:
        return member
    return NOBODY

cdef inline uint32_t heads_first_of(heads_t* heads, line_t* counted, line_t* fresh) noexcept nogil:
    if counted.first != <uint32_t>NOBODY:
        return counted.first
    if fresh.first != <uint32_t>NOBODY and heads.places[fresh.first].was_looked_at:
        return fresh.first
    return NOBODY

cdef inline uint32_t heads_make_room(heads_t* heads) noexcept nogil:
    # No place is left: who goes for a newcomer? NOBODY while those who might wait to be looked at.
    cdef bucket_t* bucket
    if heads.crowded != <uint32_t>NOBODY:
        bucket = &heads.buckets[heads.crowded]
        if bucket.fresh.count + bucket.counted.count > heads.per_address_max:
            return heads_first_of(heads, &bucket.counted, &bucket.fresh)
    return heads_first_of(heads, &heads.counted, &heads.fresh)
