# redirect.pxd: sending a listener on to another node, and telling it when to come back.
#
# Rules of this room
#   1. A location is a configured base, then path and query as they came, then the hop mark. Not a
#      byte of a request gets into a reply that could end a line there.
#   2. A request goes round at most HOPS_MAX times: each redirect counts the mark up.
#   3. No state but the dice, which are the caller's; nothing is allocated.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    REDIRECTS_MAX = 16
    BASE_BYTES_MAX = 255
    HOPS_MAX = 3
    MARK_BYTES = 11           # relay-hops=
    RETRY_S_MIN = 2
    RETRY_S_MAX = 10

cdef struct base_t:           # http://HOST:PORT, without a slash at its end; checked by config.py
    uint32_t size_bytes
    char bytes[BASE_BYTES_MAX + 1]

cdef inline bint base_set(base_t* base, const char* bytes, uint64_t size) noexcept nogil:
    # False: not 1 to BASE_BYTES_MAX bytes of visible ASCII.
    cdef uint64_t i
    if size == 0 or size > BASE_BYTES_MAX:
        return False
    for i in range(size):
        if bytes[i] <= 32 or bytes[i] >= 127:
            return False
    memcpy(base.bytes, bytes, size)
    base.size_bytes = <uint32_t>size
    return True

cdef inline uint64_t dice_next(uint64_t* dice) noexcept nogil:
    # xorshift64 (Marsaglia 2003, "Xorshift RNGs"); never zero. For spreading, not for secrets.
    dice[0] ^= dice[0] << 13
    dice[0] ^= dice[0] >> 7
    dice[0] ^= dice[0] << 17
    return dice[0]

cdef inline uint32_t retry_after_s(uint64_t* dice) noexcept nogil:
    # Those who were refused together do not come back together.
    return RETRY_S_MIN + <uint32_t>((dice_next(dice) >> 32) % (RETRY_S_MAX - RETRY_S_MIN + 1))

cdef inline int hops_of(
    const uint8_t* target, uint32_t size, uint32_t* begin, uint32_t* end
) noexcept nogil:
    # How often the request was sent on already, and where the mark stands with the sign before it
    # (begin == end: there is none). A mark that is not ours counts as the last one.
    cdef uint32_t i = 0
    cdef int hops
    begin[0] = end[0] = size
    while i < size and target[i] != 63:
        i += 1
    while i < size:
        if i + 1 + MARK_BYTES <= size and memcmp(target + i + 1, b"relay-hops=", MARK_BYTES) == 0:
            begin[0] = i
            i += 1 + MARK_BYTES
            end[0] = i
            while end[0] < size and target[end[0]] != 38:
                end[0] += 1
            if end[0] != i + 1 or target[i] < 49 or target[i] > 57:
                return HOPS_MAX
            hops = target[i] - 48
            while i + 1 + MARK_BYTES <= size:      # a second mark is not ours
                if memcmp(target + i + 1, b"relay-hops=", MARK_BYTES) == 0 and target[i] == 38:
                    return HOPS_MAX
                i += 1
            return hops
        i += 1
        while i < size and target[i] != 38:
            i += 1
    return 0

cdef inline uint32_t redirect_write(
    char* out, uint32_t room, const base_t* base, const uint8_t* target, uint32_t size
) noexcept nogil:
    # The location's bytes; 0: this request is not to be sent on.
    cdef uint32_t begin
    cdef uint32_t end
    cdef uint32_t used = base.size_bytes
    cdef uint32_t i
    cdef int hops = hops_of(target, size, &begin, &end)
    cdef bint has_query = False
    if hops >= HOPS_MAX or size == 0 or target[0] != 47:
        return 0
    if used + size + 1 + MARK_BYTES + 1 > room:
        return 0
    memcpy(out, base.bytes, used)
    for i in range(size):
        if target[i] <= 32 or target[i] == 127:
            return 0          # RFC 9112 §3.2: nothing of the kind belongs in a target
        if begin <= i < end:
            continue
        out[used] = <char>target[i]
        # the mark was first in the query and something follows: that becomes first
        if i == end and target[i] == 38 and not has_query:
            out[used] = 63
        has_query |= out[used] == 63
        used += 1
    out[used] = 38 if has_query else 63
    memcpy(out + used + 1, b"relay-hops=", MARK_BYTES)
    out[used + 1 + MARK_BYTES] = <char>(49 + hops)
    return used + 1 + MARK_BYTES + 1
