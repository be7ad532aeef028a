# fair.pxd: how much of all answers goes to which child, so that one that asks without end leaves
# the others what they need.
#
# Rules of this room
#   1. Called by the backbone thread alone. Nothing is allocated after fair_open.
#   2. All together get FAIR_RATE_BYTES a second, and FAIR_BURST_BYTES at once after a quiet time.
#   3. While more than half of that is left, anybody may take. Below it only who has taken less than
#      an equal part of what all may in a tenth of a second; what was more counts in the next ones.
#      All equal parts together are less than that half: so a greedy child never drains what a
#      modest one needs, and nothing lies idle while anybody asks.
#   4. A child is an account of guests.pxd, however many connections it has. Knows no messages.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from relay._core.guests cimport GUEST_ACCOUNTS
from relay._core.tables cimport table_close, table_open

cdef enum:
    FAIR_RATE_BYTES = 134217728   # a second: 1 Gbit/s
    FAIR_BURST_BYTES = 33554432
    FAIR_WINDOW_US = 100000
    FAIR_WINDOW_BYTES = FAIR_RATE_BYTES // 10

cdef struct taker_t:              # one child
    uint32_t window               # the last in which it asked
    uint32_t bytes                # that it was given in it, and too much before

cdef struct fair_t:
    taker_t* takers               # by account; owned
    int64_t left_bytes            # may be given; below 0 the last answer was more than was left
    uint64_t grown_us             # when that last grew
    uint64_t window_us            # since when it is this window
    uint32_t window               # modulo 2**32
    uint32_t askers               # children that asked in it
    uint32_t askers_before        # in the one before

cdef inline int fair_open(fair_t* fair) noexcept nogil:
    # -1: no memory.
    fair.left_bytes = 0
    fair.grown_us = fair.window_us = 0
    fair.window = 1
    fair.askers = fair.askers_before = 0
    fair.takers = <taker_t*>table_open(GUEST_ACCOUNTS, sizeof(taker_t))
    return -1 if fair.takers == NULL else 0

cdef inline void fair_close(fair_t* fair) noexcept nogil:
    table_close(fair.takers)
    fair.takers = NULL

cdef inline void fair_grow(fair_t* fair, uint64_t now_us) noexcept nogil:
    # What the time since the last turn adds.
    cdef uint64_t more = (now_us - fair.grown_us) * (FAIR_RATE_BYTES // 1000000)
    fair.grown_us = now_us
    fair.left_bytes += <int64_t>more if more < FAIR_BURST_BYTES else FAIR_BURST_BYTES
    if fair.left_bytes > FAIR_BURST_BYTES:
        fair.left_bytes = FAIR_BURST_BYTES
    if now_us - fair.window_us >= FAIR_WINDOW_US:
        fair.window_us = now_us
        fair.window += 1
        fair.askers_before = fair.askers
        fair.askers = 0

cdef inline bint fair_may(fair_t* fair, uint32_t account) noexcept nogil:
    # This child asks: may it be given something now?
    cdef taker_t* taker = &fair.takers[account]
    cdef uint64_t part
    cdef uint64_t back
    if taker.window != fair.window:
        fair.askers += 1
    part = FAIR_WINDOW_BYTES // (
        fair.askers if fair.askers > fair.askers_before else fair.askers_before
    )
    if taker.window != fair.window:
        back = part * <uint32_t>(fair.window - taker.window)
        taker.bytes = taker.bytes - <uint32_t>back if taker.bytes > back else 0
        taker.window = fair.window
    if fair.left_bytes <= 0 or fair.left_bytes > FAIR_BURST_BYTES // 2:
        return fair.left_bytes > 0
    return taker.bytes < part

cdef inline void fair_take(fair_t* fair, uint32_t account, uint64_t bytes) noexcept nogil:
    # It has been given so much; it has asked in this window.
    fair.left_bytes -= <int64_t>bytes
    fair.takers[account].bytes += <uint32_t>bytes
