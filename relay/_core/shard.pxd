# shard.pxd: one engine thread: the order of a turn.
#
# Rules of this room
#   1. Each turn, in this order: who is due, then events of those inside (resumed writes, goodbyes),
#      then the door (heads, accepts), each with a budget: what is left when the next slot is due
#      goes on in the next turn. Those who listen are never disturbed by those who come. A slot
#      that takes long is served in bites, with a look at the door between them (budget.pxd).
#   2. Guests, who are due but whose burst is not out yet, yield to listeners: in a turn that takes
#      longer than GUESTS_US only a few of them are served, the others a slot later.
#   3. Never takes the GIL, never blocks but in epoll_wait; holds the table lock for a look-up only.
#   4. The hot path: epoll_wait → shard_serve_due → shard_serve → shard_flow → listener_flow → send.
#      Nothing is allocated on it.
#   5. What an administrator asks of listeners comes last (orders_step.pxd).
#   6. The first shard also looks, for all, at the streams that have a fallback (fallback_look.pxd).

from libc.stdint cimport uint32_t, uint64_t

from relay._core.arrive cimport shard_arrive
from relay._core.atomics cimport load_u32
from relay._core.budget cimport EVENTS_MIN, TURN_US_MAX, budget_bite, budget_make, budget_t
from relay._core.connection cimport (
    DATA_ARRIVALS, DATA_LISTEN, DATA_WAKE, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP,
    EVENTS_MAX,
    door_error, epoll_event, epoll_wait, shard_close, shard_counters_t, shard_end, shard_flow,
    shard_free, shard_is_fixed, shard_keep_tempo, shard_open, shard_publish, shard_snapshot,
    shard_swallow, shard_t,
)
from relay._core.door cimport (
    shard_accept, shard_attend, shard_expire_heads, shard_farewell, shard_look, shard_look_again,
    shard_open_door, shard_stop_accepting,
)
from relay._core.engine cimport engine_pace_range, now_us
from relay._core.fallback_look cimport fallback_look
from relay._core.fallback_move cimport shard_place
from relay._core.handover cimport eventfd_read
from relay._core.heads cimport heads_wake
from relay._core.listener cimport (
    END_CLOSED, END_GARBAGE, END_RESET, END_SHUTDOWN, END_STALLED, END_STREAM, ETIMEDOUT, FLOWING,
    FREE, HEAD, PARKED, PARTING, flow_open, flow_t, listener_skip_later, listener_t,
)
from relay._core.orders_step cimport shard_carry_out, shard_has_order
from relay._core.pace cimport (
    NOBODY, SLOT_US, wheel_next_us, wheel_peek, wheel_put, wheel_t, wheel_take, wheel_turn,
)
from relay._core.retire cimport turn_begin, turn_end
from relay._core.tempo cimport tempo_open

cdef extern from * nogil:
    """
    #define RELAY_PREFETCH(address) __builtin_prefetch((const void *)(address))
    """
    void prefetch "RELAY_PREFETCH"(const void* address)

cdef enum:
    CACHE_LINE = 64
    IDLE_US_MAX = 100000      # a turn at least so often
    GUESTS_US = 5000          # half a slot
    GUESTS_MIN = 4
    BITE_VISITS = 8           # the clock is asked so often
    BITE_EVENTS = 8           # of one look

cdef inline void shard_run(shard_t* shard) noexcept nogil:
    # The thread's loop, until `stop`. Events that a turn has no time for stay where they are.
    cdef epoll_event events[EVENTS_MAX]
    cdef int count = 0
    cdef int done = 0
    cdef uint64_t began
    cdef uint64_t behind_us
    cdef uint64_t served_us
    shard_open_tempo(shard)
    while not load_u32(&shard.stop):
        if done >= count:
            count = epoll_wait(shard.epoll_fd, events, EVENTS_MAX, shard_wait_ms(shard))
            done = 0
        turn_begin(&shard.engine.retire, shard.number)
        began = now_us()
        shard.bites_us = shard.visits = shard.visits_fixed = 0
        if shard.number == 0:
            fallback_look(shard.engine, &shard.recorder, began)
        behind_us = shard_serve_due(shard, began)
        served_us = now_us()
        done = shard_events(shard, events, done, count, began)
        shard_arrive(shard)
        shard_attend(shard, began)
        if load_u32(&shard.draining):
            shard_stop_accepting(shard)
        shard_expire_heads(shard, began)
        shard_open_door(shard, began)
        shard_carry_out(shard)
        shard.counters.turns_total += 1
        shard_keep_tempo(shard, began, served_us, behind_us)
        shard_publish(shard)
        turn_end(&shard.engine.retire, shard.number)
    turn_begin(&shard.engine.retire, shard.number)
    shard.draining = 1
    shard.arrivals_wait = True
    shard_arrive(shard)
    shard_farewell(shard)
    turn_end(&shard.engine.retire, shard.number)

cdef inline int shard_wait_ms(shard_t* shard) noexcept nogil:
    # How long nothing is to be done unless something comes.
    if (
        shard.callers or shard.heads.queue.count > 0 or shard_has_order(shard)
        or shard.arrivals_wait
    ):
        return 0
    return <int>((wheel_next_us(&shard.wheel, now_us(), IDLE_US_MAX) + 999) // 1000)

cdef inline void shard_open_tempo(shard_t* shard) noexcept nogil:
    # All settings are there by now.
    cdef uint64_t floor_us
    cdef uint64_t ceiling_us
    engine_pace_range(shard.engine, &floor_us, &ceiling_us)
    tempo_open(&shard.tempo, floor_us, ceiling_us, now_us())

cdef inline uint64_t shard_serve_due(shard_t* shard, uint64_t now) noexcept nogil:
    # Everybody who is due, once. Answers by how much the schedule was put off, in µs.
    cdef wheel_t* wheel = &shard.wheel
    cdef uint64_t behind_us = wheel_turn(wheel, now)
    cdef uint32_t member = wheel_take(wheel)
    cdef uint64_t late_us
    cdef uint64_t looked_us = now
    cdef uint32_t guests = 0
    if member != <uint32_t>NOBODY:    # the first one is the latest
        late_us = now - (wheel.slot - 1) * SLOT_US + behind_us
        if late_us > shard.counters.late_us_max:
            shard.counters.late_us_max = late_us
    while member != <uint32_t>NOBODY:
        shard_prefetch(shard, wheel_peek(wheel))
        if shard_is_guest(&shard.records[member]):
            guests += 1
        if guests > GUESTS_MIN and shard_is_guest(&shard.records[member]) and (
            now_us() > now + GUESTS_US
        ):
            wheel_put(wheel, member, wheel.until)
        else:
            shard.visits_fixed += shard_is_fixed(shard, &shard.records[member])
            shard_serve(shard, member, now)
        shard.visits += 1
        if shard.visits % BITE_VISITS == 0:
            looked_us = shard_bite(shard, looked_us)
        member = wheel_take(wheel)
    return behind_us

cdef inline void shard_prefetch(shard_t* shard, uint32_t member) noexcept nogil:
    # In a full house a record has left the cache since its last turn. That of the next one comes
    # back while the kernel sends to the one before.
    cdef size_t at = 0
    if member == <uint32_t>NOBODY:
        return
    while at < sizeof(listener_t):
        prefetch(<const char*>&shard.records[member] + at)
        at += CACHE_LINE

cdef inline uint64_t shard_bite(shard_t* shard, uint64_t looked_us) noexcept nogil:
    # Between two listeners: a look at the door, where it is time for one. Answers when it had the
    # last word. Events that it is told are edges: all of them are taken care of here, so it asks
    # for few. Each of the others does LOOKS_MIN or ACCEPTS_MIN at least, so none begins too late.
    cdef epoll_event events[BITE_EVENTS]
    cdef uint64_t now = now_us()
    cdef uint64_t until = budget_bite((shard.wheel.slot - 1) * SLOT_US, looked_us, now)
    cdef int count
    cdef int i
    if until == 0:
        return looked_us
    count = epoll_wait(shard.epoll_fd, events, BITE_EVENTS, 0)
    for i in range(count):
        shard_told(shard, &events[i], now)
    if now_us() < until:
        shard_look(shard, until)
    if now_us() < until:
        shard_accept(shard, until)
    if now_us() < until:
        shard_look(shard, until)
    looked_us = now_us()
    shard.bites_us += looked_us - now
    return looked_us

cdef inline bint shard_is_guest(const listener_t* listener) noexcept nogil:
    # Waits for its stream, or its burst is longer than one send.
    return listener.state == PARKED or listener.hurried

cdef inline void shard_serve(shard_t* shard, uint32_t index, uint64_t now) noexcept nogil:
    # One record whose time has come (it is in no slot now), or whose socket takes bytes again.
    cdef listener_t* listener = &shard.records[index]
    cdef flow_t flow
    if listener.state == FLOWING:
        if shard.draining and shard_has_finished(listener):
            shard_end(shard, index, END_SHUTDOWN)
            return
        flow_open(&flow)
        if not shard.draining and not shard_place(shard, listener, &flow, now):
            shard_end(shard, index, END_STREAM)
            return
        shard_flow(shard, index, &flow, now)
    elif listener.state == PARKED:
        shard_look_again(shard, index, now)
    elif listener.state == PARTING:
        shard_free(shard, index)

cdef inline bint shard_has_finished(listener_t* listener) noexcept nogil:
    # While draining: has it been sent the frame that it is in?
    if listener.ring != NULL and not listener.skipping:
        listener_skip_later(listener)
    return listener.rest == NULL and (
        listener.ring == NULL or not listener.skipping or listener.position >= listener.limit
    )

cdef inline int shard_events(
    shard_t* shard, epoll_event* events, int first, int count, uint64_t began
) noexcept nogil:
    # Answers how far it came: of those that follow, the next turn takes care.
    cdef int i = first
    cdef uint64_t now = now_us()
    cdef budget_t budget
    budget_make(&budget, began, now, now + wheel_next_us(&shard.wheel, now, TURN_US_MAX), 0, 1, 0)
    while i < count and (now < budget.events_until_us or i < first + EVENTS_MIN):
        shard_told(shard, &events[i], now)
        i += 1
        now = now_us()
    return i

cdef inline void shard_told(
    shard_t* shard, const epoll_event* event, uint64_t now
) noexcept nogil:
    # One event, if whom it is about is still here.
    cdef uint64_t token = event.data.u64
    cdef uint32_t index = <uint32_t>token
    if index == <uint32_t>DATA_LISTEN:
        shard.callers = True
    elif index == <uint32_t>DATA_WAKE:
        eventfd_read(shard.wake_fd, &token)
    elif index == <uint32_t>DATA_ARRIVALS:
        shard.arrivals_wait = True
    elif shard.records[index].state != FREE and (
        shard.records[index].generation == <uint32_t>(token >> 32)
    ):
        shard_event(shard, index, event.events, now)

cdef inline void shard_event(
    shard_t* shard, uint32_t index, uint32_t events, uint64_t now
) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    if listener.state == HEAD:
        if events & ~EPOLLOUT:
            heads_wake(&shard.heads, index)
        return
    if listener.state == PARTING:
        shard_discard(shard, index, events)
        return
    if events & (EPOLLERR | EPOLLHUP):
        # the kernel gives up one whose host is gone (door_suit_stream)
        shard_end(shard, index, END_STALLED if door_error(listener.fd) == ETIMEDOUT else END_RESET)
        return
    if events & EPOLLRDHUP:
        shard_end(shard, index, END_CLOSED)
        return
    if events & EPOLLIN and not shard_swallow(shard, listener):
        shard_end(shard, index, END_GARBAGE)
        return
    if events & EPOLLOUT and listener.blocked:
        shard_serve(shard, index, now)

cdef inline void shard_discard(shard_t* shard, uint32_t index, uint32_t events) noexcept nogil:
    # Answered already: read what still comes, so that closing does not reset the answer away.
    cdef listener_t* listener = &shard.records[index]
    shard_swallow(shard, listener)
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        shard_free(shard, index)
