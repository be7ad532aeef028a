# pace.pxd: the wheel: who is due when, in slots of 10 ms.
#
# Rules of this room
#   1. One wheel a shard; members are numbers below members_max, each in at most one slot.
#   2. Work per turn is proportional to those due, not to those connected.
#   3. A member takes the least-filled slot within its pace, not the one of its arrival: a storm of
#      joins does not come back each second.
#   4. Knows no listener and no clock: it is handed `now`.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

cdef enum:
    WHEEL_SLOTS = 128         # more than the longest pace (1000 ms) needs
    SLOT_US = 10000
    NOBODY = 0xFFFFFFFF

cdef struct link_t:           # one member's place
    uint32_t before           # NOBODY: first of its slot
    uint32_t after            # NOBODY: last
    uint32_t slot             # NOBODY: in no slot

cdef struct wheel_t:
    link_t* links             # members_max; owned
    uint32_t first[WHEEL_SLOTS]
    uint32_t fill[WHEEL_SLOTS]
    uint64_t slot             # number of the next slot to be served; its time is slot × SLOT_US
    uint32_t members

cdef inline int wheel_open(wheel_t* wheel, uint32_t members_max, uint64_t now_us) noexcept nogil:
    cdef uint32_t i
    wheel.links = <link_t*>malloc(members_max * sizeof(link_t))
    if wheel.links == NULL:
        return -1
    for i in range(members_max):
        wheel.links[i].slot = NOBODY
    for i in range(WHEEL_SLOTS):
        wheel.first[i] = NOBODY
        wheel.fill[i] = 0
    wheel.slot = now_us // SLOT_US + 1
    wheel.members = 0
    return 0

cdef inline void wheel_close(wheel_t* wheel) noexcept nogil:
    free(wheel.links)
    wheel.links = NULL

cdef inline void wheel_remove(wheel_t* wheel, uint32_t member) noexcept nogil:
    cdef link_t* link = &wheel.links[member]
    if link.slot == <uint32_t>NOBODY:
        return
    if link.before != <uint32_t>NOBODY:
        wheel.links[link.before].after = link.after
    else:
        wheel.first[link.slot] = link.after
    if link.after != <uint32_t>NOBODY:
        wheel.links[link.after].before = link.before
    wheel.fill[link.slot] -= 1
    wheel.members -= 1
    link.slot = NOBODY

cdef inline void wheel_put(wheel_t* wheel, uint32_t member, uint64_t slot) noexcept nogil:
    # slot is absolute, within WHEEL_SLOTS of the next one to be served.
    cdef uint32_t place = <uint32_t>(slot % WHEEL_SLOTS)
    cdef link_t* link = &wheel.links[member]
    wheel_remove(wheel, member)
    link.slot = place
    link.before = NOBODY
    link.after = wheel.first[place]
    if link.after != <uint32_t>NOBODY:
        wheel.links[link.after].before = member
    wheel.first[place] = member
    wheel.fill[place] += 1
    wheel.members += 1

cdef inline uint64_t pace_slots(uint64_t pace_us) noexcept nogil:
    cdef uint64_t slots = (pace_us + SLOT_US - 1) // SLOT_US
    if slots == 0:
        return 1
    return slots if slots < WHEEL_SLOTS - 8 else WHEEL_SLOTS - 8

cdef inline void wheel_join(wheel_t* wheel, uint32_t member, uint64_t pace_us) noexcept nogil:
    # The least-filled of the next slots within one pace; the latest of equals.
    cdef uint64_t slots = pace_slots(pace_us)
    cdef uint64_t best = wheel.slot + slots - 1
    cdef uint64_t slot
    for slot in range(wheel.slot, wheel.slot + slots):
        if wheel.fill[slot % WHEEL_SLOTS] < wheel.fill[best % WHEEL_SLOTS]:
            best = slot
    wheel_put(wheel, member, best)

cdef inline bint wheel_is_due(wheel_t* wheel, uint64_t now_us) noexcept nogil:
    return wheel.slot * SLOT_US <= now_us

cdef inline void wheel_catch_up(wheel_t* wheel, uint64_t now_us) noexcept nogil:
    # After a long standstill (a suspended machine) one round serves everybody; older rounds are
    # not made up.
    cdef uint64_t slot = now_us // SLOT_US
    if slot > wheel.slot + WHEEL_SLOTS:
        wheel.slot = slot - (slot - wheel.slot) % WHEEL_SLOTS

cdef inline uint64_t wheel_next_us(
    wheel_t* wheel, uint64_t now_us, uint64_t at_most_us,
) noexcept nogil:
    # How long nobody is due, at most at_most_us.
    cdef uint64_t slot = wheel.slot
    while slot * SLOT_US < now_us + at_most_us:
        if wheel.first[slot % WHEEL_SLOTS] != <uint32_t>NOBODY:
            return slot * SLOT_US - now_us if slot * SLOT_US > now_us else 0
        slot += 1
        if slot >= wheel.slot + WHEEL_SLOTS:
            break
    return at_most_us
