# shard.pxd: one engine thread: the order of a turn.
#
# Rules of this room
#   1. Each turn, in this order: who is due, then events (heads, resumed writes, goodbyes), then
#      accepts, each with a budget. Those who listen are never disturbed by those who come.
#   2. Never takes the GIL, never blocks but in epoll_wait; holds the table lock for a look-up only.
#   3. The hot path: epoll_wait → shard_serve_due → shard_serve → shard_flow → listener_flow → send.
#      Nothing is allocated on it.

from libc.stdint cimport uint32_t, uint64_t

from relay._core.atomics cimport load_u32
from relay._core.connection cimport (
    DATA_LISTEN, DATA_WAKE, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLL_CTL_DEL,
    EVENTS_MAX, epoll_ctl, epoll_event, epoll_wait, shard_close, shard_counters_t, shard_end,
    shard_flow, shard_free, shard_keep_tempo, shard_open, shard_publish, shard_snapshot,
    shard_swallow, shard_t,
)
from relay._core.door cimport (
    shard_accept, shard_expire_heads, shard_look_again, shard_open_door, shard_read_head,
)
from relay._core.engine cimport engine_pace_range, now_us
from relay._core.handover cimport close, eventfd_read
from relay._core.listener cimport (
    END_CLOSED, END_GARBAGE, END_RESET, END_SHUTDOWN, FLOWING, FREE, HEAD, PARKED, PARTING,
    flow_open, flow_t, listener_skip_later, listener_t,
)
from relay._core.pace cimport NOBODY, SLOT_US, wheel_next_us, wheel_t, wheel_take, wheel_turn
from relay._core.retire cimport turn_begin, turn_end
from relay._core.tempo cimport tempo_open

cdef inline void shard_run(shard_t* shard) noexcept nogil:
    # The thread's loop, until `stop`.
    cdef epoll_event events[EVENTS_MAX]
    cdef int count
    cdef uint64_t now
    cdef uint64_t wait_us
    cdef uint64_t behind_us
    cdef uint64_t served_us
    shard_open_tempo(shard)
    while not load_u32(&shard.stop):
        wait_us = wheel_next_us(&shard.wheel, now_us(), 100000)
        count = epoll_wait(shard.epoll_fd, events, EVENTS_MAX, <int>((wait_us + 999) // 1000))
        turn_begin(&shard.engine.retire, shard.number)
        now = now_us()
        behind_us = shard_serve_due(shard, now)
        served_us = now_us()
        shard_events(shard, events, count, now)
        shard_expire_heads(shard, now)
        shard_open_door(shard, now)
        shard.counters.turns_total += 1
        shard_keep_tempo(shard, now, served_us, behind_us)
        shard_publish(shard)
        turn_end(&shard.engine.retire, shard.number)

cdef inline void shard_stop_accepting(shard_t* shard) noexcept nogil:
    if shard.listen_fd >= 0:
        epoll_ctl(shard.epoll_fd, EPOLL_CTL_DEL, shard.listen_fd, NULL)
        close(shard.listen_fd)
        shard.listen_fd = -1

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
    if member != <uint32_t>NOBODY:    # the first one is the latest
        late_us = now - (wheel.slot - 1) * SLOT_US + behind_us
        if late_us > shard.counters.late_us_max:
            shard.counters.late_us_max = late_us
    while member != <uint32_t>NOBODY:
        shard_serve(shard, member, now)
        member = wheel_take(wheel)
    return behind_us

cdef inline void shard_serve(shard_t* shard, uint32_t index, uint64_t now) noexcept nogil:
    # One record whose time has come (it is in no slot now), or whose socket takes bytes again.
    cdef listener_t* listener = &shard.records[index]
    cdef flow_t flow
    if listener.state == FLOWING:
        if shard.draining and shard_has_finished(listener):
            shard_end(shard, index, END_SHUTDOWN)
            return
        flow_open(&flow)
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

cdef inline void shard_events(
    shard_t* shard, epoll_event* events, int count, uint64_t now
) noexcept nogil:
    cdef int i
    cdef uint32_t index
    cdef bint accepting = False
    cdef uint64_t token
    for i in range(count):
        token = events[i].data.u64
        index = <uint32_t>token
        if index == <uint32_t>DATA_LISTEN:
            accepting = True
        elif index == <uint32_t>DATA_WAKE:
            eventfd_read(shard.wake_fd, &token)
        elif shard.records[index].state != FREE and (
            shard.records[index].generation == <uint32_t>(token >> 32)
        ):
            shard_event(shard, index, events[i].events, now)
    if load_u32(&shard.draining):
        shard_stop_accepting(shard)
    elif accepting:
        shard_accept(shard, now)

cdef inline void shard_event(
    shard_t* shard, uint32_t index, uint32_t events, uint64_t now
) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    if listener.state == HEAD:
        shard_read_head(shard, index, now)
        return
    if listener.state == PARTING:
        shard_discard(shard, index, events)
        return
    if events & (EPOLLERR | EPOLLHUP):
        shard_end(shard, index, END_RESET)
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
