# budget.pxd: how long a turn of a shard may work for those who come.
#
# Rules of this room
#   1. Those who listen come first: when the next slot of the wheel is due, the door waits.
#   2. Nobody waits for ever: a shard that is late all the time gives the door a share all the same,
#      and those who come and those who are in already never use up each other's.
#   3. Whoever meets a full accept queue waits a second (its SYN is repeated): a deep queue is
#      drained before heads are read, and heads keep a part of the time.
#   4. Those who are due are served in bites. Between two of them the door is looked at, for as long
#      as the bite took and what it has begun by then (at most 8 events, or 4 heads, or 4 accepts),
#      and only while nobody is late: so whoever comes while a full slot is served waits for a bite,
#      and no listener waits much longer than twice his slot takes.
#   5. No clock and no state: it is handed times and depths, and answers times.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    TURN_US_MAX = 10000       # then events are asked for again, also where nobody is due
    DOOR_US_MIN = 500
    DOOR_PART = 4             # a late shard works a quarter as long for the door as for listeners
    EVENTS_MIN = 32           # a turn does so many at least, whatever the time
    ACCEPTS_MIN = 4
    LOOKS_MIN = 4
    BITE_US = 250             # about 30 sends; a look in vain costs 0.5 µs
    BITE_LATE_US = 5000       # half a slot: who is served so late comes first

cdef struct budget_t:         # on the clock of `now_us`; owner: one turn
    uint64_t events_until_us  # resumed writes and goodbyes
    uint64_t heads_until_us   # heads that have come
    uint64_t accepts_until_us
    uint64_t until_us         # all of it
    bint accepts_first

cdef inline void budget_make(
    budget_t* budget, uint64_t began_us, uint64_t now_us, uint64_t due_us, uint32_t queue,
    uint32_t queue_max, uint32_t heads,
) noexcept nogil:
    # began_us: of the turn; now_us: those who were due have been served; due_us: the next slot
    # that holds anybody. queue: of the listening socket, and its bound. heads: waiting to be read.
    cdef uint64_t window_us = due_us - now_us if due_us > now_us else 0
    cdef uint64_t least_us = (now_us - began_us) // DOOR_PART
    if least_us < DOOR_US_MIN:
        least_us = DOOR_US_MIN
    if window_us < least_us:
        window_us = least_us
    if window_us > TURN_US_MAX:
        window_us = TURN_US_MAX
    budget.until_us = now_us + window_us
    budget.events_until_us = now_us + window_us // 2
    budget.accepts_first = queue > queue_max // 4
    budget.heads_until_us = budget.until_us
    budget.accepts_until_us = budget.until_us
    if budget.accepts_first and heads > 0:
        budget.accepts_until_us = now_us + window_us * 3 // 4
    elif queue > 0:
        budget.heads_until_us = now_us + window_us * 3 // 4

cdef inline uint64_t budget_bite(
    uint64_t due_us, uint64_t looked_us, uint64_t now_us
) noexcept nogil:
    # Until when the door may work between two listeners; 0: it is not looked at. due_us: of the
    # slot that is being served; looked_us: the door had the last word then.
    if now_us < looked_us + BITE_US or now_us >= due_us + BITE_LATE_US:
        return 0
    return now_us + (now_us - looked_us)
