# pace.pxd: the wheel: who is due when, in slots of 10 ms.
#
# Rules of this room
#   1. One wheel a shard; members are numbers below members_max, each in at most one slot. A slot
#      is served in the order in which it was filled.
#   2. Work per turn is proportional to those due, not to those connected.
#   3. A member takes the least-filled slot within its pace, not the one of its arrival: a storm of
#      joins does not come back each second.
#   4. A turn hands out all slots up to now, nobody twice. Who is late by more than
#      BEHIND_SLOTS_MAX puts the whole schedule off: everybody keeps order and distance, nobody is
#      made up for, nobody starves.
#   5. Another pace is taken when a member is put back, and what leaves have made uneven is evened
#      then: always by coming earlier, and by at most one member in MOVES_PART a slot.
#   6. Knows no listener and no clock: it is handed `now`, and what pace is wanted.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

cdef enum:
    WHEEL_SLOTS = 128         # more than the longest pace (1000 ms) needs
    PACE_SLOTS_MAX = 120      # a longer pace would meet its own slot
    SLOT_US = 10000
    # half the least pace that is chosen by load: below it, a hiccup of the machine is made up for
    BEHIND_SLOTS_MAX = 5
    # Another pace is through after 32 slots, or one old pace if that is longer: about as long as
    # the load takes to show what it did. No slot is served later for it: a move costs a look at up
    # to 120 counts (0.1 µs, beside 8 µs for a send).
    MOVES_PART = 32
    NOBODY = 0xFFFFFFFF

cdef struct link_t:           # one member's place
    uint32_t before           # NOBODY: first of its slot
    uint32_t after            # NOBODY: last
    uint32_t place            # NOBODY: in no slot

cdef struct wheel_t:          # owner: the shard
    link_t* links             # members_max; owned
    uint32_t first[WHEEL_SLOTS]  # by place
    uint32_t last[WHEEL_SLOTS]
    uint32_t fill[WHEEL_SLOTS]
    uint64_t slot             # number of the next slot to be served; its time is slot × SLOT_US
    uint64_t until            # this turn serves the slots before this one
    uint64_t shift            # slots by which the schedule was put off, negated, modulo 2**64
    uint32_t members
    uint32_t moves_left       # members that may still take another pace or place in this slot
    # the least fill of the slots before the one that is room_pace ahead; room_pace 0: not known
    uint32_t room
    uint32_t room_pace

cdef inline int wheel_open(wheel_t* wheel, uint32_t members_max, uint64_t now_us) noexcept nogil:
    cdef uint32_t i
    wheel.links = <link_t*>malloc(members_max * sizeof(link_t))
    if wheel.links == NULL:
        return -1
    for i in range(members_max):
        wheel.links[i].place = NOBODY
    for i in range(WHEEL_SLOTS):
        wheel.first[i] = wheel.last[i] = NOBODY
        wheel.fill[i] = 0
    wheel.slot = wheel.until = now_us // SLOT_US + 1
    wheel.shift = 0
    wheel.members = wheel.moves_left = wheel.room = wheel.room_pace = 0
    return 0

cdef inline void wheel_close(wheel_t* wheel) noexcept nogil:
    free(wheel.links)
    wheel.links = NULL

cdef inline uint32_t wheel_place(wheel_t* wheel, uint64_t slot) noexcept nogil:
    return <uint32_t>((slot + wheel.shift) % WHEEL_SLOTS)

cdef inline bint wheel_holds(wheel_t* wheel, uint32_t member) noexcept nogil:
    return wheel.links[member].place != <uint32_t>NOBODY

cdef inline void wheel_remove(wheel_t* wheel, uint32_t member) noexcept nogil:
    cdef link_t* link = &wheel.links[member]
    if link.place == <uint32_t>NOBODY:
        return
    if link.before != <uint32_t>NOBODY:
        wheel.links[link.before].after = link.after
    else:
        wheel.first[link.place] = link.after
    if link.after != <uint32_t>NOBODY:
        wheel.links[link.after].before = link.before
    else:
        wheel.last[link.place] = link.before
    wheel.fill[link.place] -= 1
    wheel.members -= 1
    link.place = NOBODY

cdef inline void wheel_put(wheel_t* wheel, uint32_t member, uint64_t slot) noexcept nogil:
    # At the end of a slot, less than WHEEL_SLOTS - 1 after the next one to be served.
    cdef uint32_t place = wheel_place(wheel, slot)
    cdef link_t* link = &wheel.links[member]
    wheel_remove(wheel, member)
    link.place = place
    link.after = NOBODY
    link.before = wheel.last[place]
    if link.before != <uint32_t>NOBODY:
        wheel.links[link.before].after = member
    else:
        wheel.first[place] = member
    wheel.last[place] = member
    wheel.fill[place] += 1
    wheel.members += 1

cdef inline uint64_t pace_slots(uint64_t pace_us) noexcept nogil:
    cdef uint64_t slots = (pace_us + SLOT_US - 1) // SLOT_US
    if slots == 0:
        return 1
    return slots if slots < PACE_SLOTS_MAX else PACE_SLOTS_MAX

cdef inline uint64_t wheel_least(wheel_t* wheel, uint64_t slot, uint64_t last) noexcept nogil:
    # The least-filled of the slots from slot to last; the latest of equals.
    cdef uint64_t best = last
    while slot < last:
        if wheel.fill[wheel_place(wheel, slot)] < wheel.fill[wheel_place(wheel, best)]:
            best = slot
        slot += 1
    return best

cdef inline void wheel_join(wheel_t* wheel, uint32_t member, uint64_t slots) noexcept nogil:
    # A newcomer, or one that comes back from elsewhere: within one pace from now.
    wheel_put(wheel, member, wheel_least(wheel, wheel.until, wheel.until + slots - 1))

cdef inline bint wheel_is_crowded(wheel_t* wheel, uint64_t slot, uint64_t pace) noexcept nogil:
    # Does the slot one pace ahead hold more, by over a sixteenth, than another one before it? The
    # least of those is looked for once for each slot that is served.
    if pace < 2:
        return False
    if wheel.room_pace != pace:
        wheel.room_pace = <uint32_t>pace
        wheel.room = wheel.fill[wheel_place(wheel, wheel_least(wheel, wheel.slot, slot - 1))]
    return wheel.fill[wheel_place(wheel, slot)] > wheel.room + wheel.room // 16 + 1

cdef inline bint wheel_return(
    wheel_t* wheel, uint32_t member, uint8_t* pace, uint64_t wanted
) noexcept nogil:
    # Puts back whom this turn has just taken out: one pace after its slot; or, while moves are
    # left, into the least-filled slot before: where its own pace (*pace, in slots) is not the one
    # that is wanted now, and where its slot is crowded. True: it took another pace.
    cdef uint64_t slot = wheel.slot - 1 + pace[0]
    cdef bint changes = pace[0] != wanted
    if wheel.moves_left > 0 and (changes or wheel_is_crowded(wheel, slot, pace[0])):
        wheel.moves_left -= 1
        wheel.room_pace = 0
        pace[0] = <uint8_t>wanted
        slot = wheel.slot - 1 + wanted
        wheel_put(
            wheel, member, wheel_least(wheel, wheel.until, slot) if slot > wheel.until
            else wheel.until
        )
        return changes
    if slot < wheel.until:    # late, and its pace is short: not twice in a turn, but in step
        slot += (wheel.until - slot + pace[0] - 1) // pace[0] * pace[0]
    wheel_put(wheel, member, slot)
    return False

cdef inline uint64_t wheel_turn(wheel_t* wheel, uint64_t now_us) noexcept nogil:
    # Begins a turn: wheel_take hands out everybody who is due by now. Answers by how much the whole
    # schedule is put off, in µs.
    cdef uint64_t due = now_us // SLOT_US
    cdef uint64_t behind = 0
    while wheel.slot <= due and wheel.first[wheel_place(wheel, wheel.slot)] == <uint32_t>NOBODY:
        wheel.slot = wheel.slot + 1 if wheel.members > 0 else due + 1
    if due > wheel.slot + BEHIND_SLOTS_MAX:
        behind = due - wheel.slot
        wheel.slot = due
        wheel.shift -= behind
    wheel.until = due + 1 if due >= wheel.slot else wheel.slot
    return behind * SLOT_US

cdef inline uint32_t wheel_take(wheel_t* wheel) noexcept nogil:
    # Takes the next one who is due out of its slot, which is then the one before wheel.slot.
    # NOBODY: the turn is over.
    cdef uint32_t member
    while True:
        member = wheel.first[wheel_place(wheel, wheel.slot - 1)]
        if member != <uint32_t>NOBODY:
            wheel_remove(wheel, member)
            return member
        if wheel.slot >= wheel.until:
            return NOBODY
        wheel.slot += 1
        wheel.moves_left = wheel.members // MOVES_PART + 1
        wheel.room_pace = 0

cdef inline uint32_t wheel_peek(wheel_t* wheel) noexcept nogil:
    # Whom wheel_take will answer next, as far as the slot that is being served tells; or NOBODY.
    return wheel.first[wheel_place(wheel, wheel.slot - 1)]

cdef inline uint64_t wheel_next_us(
    wheel_t* wheel, uint64_t now_us, uint64_t at_most_us,
) noexcept nogil:
    # How long nobody is due, at most at_most_us.
    cdef uint64_t slot = wheel.slot
    while slot * SLOT_US < now_us + at_most_us:
        if wheel.first[wheel_place(wheel, slot)] != <uint32_t>NOBODY:
            return slot * SLOT_US - now_us if slot * SLOT_US > now_us else 0
        slot += 1
        if slot >= wheel.slot + WHEEL_SLOTS:
            break
    return at_most_us
