# hold.pxd: whether a lone frame waits for the next of its stream, so that both share a message; and
# who waits until when.
#
# Rules of this room
#   1. A message costs every node on the way the same whether it carries one frame or two. So where
#      a node moves a crowd of messages, a frame that is alone waits for the next one; where there
#      are few, nothing waits.
#   2. Only frames so short that the next comes within HOLD_US. One waits as long as it lasts, and a
#      little for a source that is late: never longer than HOLD_US, but for the grain of a turn.
#   3. No clock and no I/O: it is handed times.
#   4. Whoever waits is let go at its own time, whoever began to wait before: one place for each
#      HOLD_SLOT_US of the longest wait, so that coming and going cost the same in any crowd.

from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t

cdef enum:
    HOLD_US = 30000           # longer than a frame of each codec that is sent frame by frame
    HOLD_LATE_US = 4000       # that the next frame may come late
    HOLD_SLOT_US = 500        # finer than a turn is long
    HOLD_SLOTS = 64           # a power of two; HOLD_US has fewer
    CROWD_MESSAGES = 40000    # a second, sent and received: above it is a crowd …
    QUIET_MESSAGES = 10000    # … until fewer than these; holding halves them at most twice

cdef inline bint hold_is_crowd(
    bint was_crowd, uint64_t messages, uint64_t period_us
) noexcept nogil:
    # messages: sent and received within period_us, which is not 0.
    return messages * 1000000 >= period_us * (QUIET_MESSAGES if was_crowd else CROWD_MESSAGES)

cdef inline uint64_t hold_until_us(uint32_t duration_us, uint64_t held_us) noexcept nogil:
    # duration_us: of the lone frame; held_us: since when it waits.
    cdef uint64_t wait_us = <uint64_t>duration_us + HOLD_LATE_US
    if duration_us > <uint32_t>HOLD_US:
        return held_us
    return held_us + min(wait_us, <uint64_t>HOLD_US)

cdef struct held_t:           # one that waits; owned by whoever that is
    void* who                 # NULL: it does not wait
    held_t* next              # of its slot
    held_t** at               # what points to it

cdef struct holds_t:          # all that wait; owner: the backbone's thread
    held_t* slots[HOLD_SLOTS]
    uint64_t next_slot        # all before it have been let go
    uint32_t count

cdef inline void holds_drop(holds_t* holds, held_t* held) noexcept nogil:
    # It does not wait any more.
    if held.who == NULL:
        return
    held.at[0] = held.next
    if held.next != NULL:
        held.next.at = held.at
    held.who = NULL
    holds.count -= 1

cdef inline void holds_add(
    holds_t* holds, held_t* held, void* who, uint64_t until_us, uint64_t now_us
) noexcept nogil:
    # until_us: later than now_us, by no more than HOLD_US. Who waits already, does until then.
    cdef held_t** first
    holds_drop(holds, held)
    if holds.count == 0:
        holds.next_slot = now_us // HOLD_SLOT_US
    first = &holds.slots[(until_us + HOLD_SLOT_US - 1) // HOLD_SLOT_US & (HOLD_SLOTS - 1)]
    held.who = who
    held.at = first
    held.next = first[0]
    if held.next != NULL:
        held.next.at = &held.next
    first[0] = held
    holds.count += 1

cdef inline void* holds_due(holds_t* holds, uint64_t now_us) noexcept nogil:
    # One whose time has come, and who waits no longer; NULL: there is none.
    cdef held_t* held
    cdef void* who
    while holds.count > 0 and holds.next_slot <= now_us // HOLD_SLOT_US:
        held = holds.slots[holds.next_slot & (HOLD_SLOTS - 1)]
        if held != NULL:
            who = held.who
            holds_drop(holds, held)
            return who
        holds.next_slot += 1
    return NULL

cdef inline uint64_t holds_next_us(const holds_t* holds) noexcept nogil:
    # When the first of them is due; UINT64_MAX: none waits.
    cdef uint64_t slot = holds.next_slot
    if holds.count == 0:
        return UINT64_MAX
    while holds.slots[slot & (HOLD_SLOTS - 1)] == NULL:
        slot += 1
    return slot * HOLD_SLOT_US
