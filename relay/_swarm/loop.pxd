# loop.pxd: the loop of the listeners: joins when due, reads, a tick, and its own health.
#
# Rules of this room
#   1. One turn: a bite of the joins that are due, then what the sockets have, then the tick when it
#      is due, then a rest of REST_US. Who plays never waits for more than a bite.
#   2. The rest is a sleep, not a wait for the first event: sends to thousands of sockets come in
#      runs, and a wake-up for each would be charged to the server (it runs in its send). An
#      arrival is told at most a rest too late, never too early.
#   3. The tick sweeps a hundredth of the records each 10 ms: who hears nothing is seen as well.
#   4. Health: how late the tick and the due joins came, and the share of time not asleep. Joins
#      that are to come less than AT_ONCE_US apart come as fast as can be: they are not late, the
#      time they took is told.
#   5. Between two runs nobody reads: the pause counts as delay of the next tick.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from relay._core.atomics cimport load_u32, store_u32
from relay._core.histogram cimport histogram_add, histogram_t
from relay._swarm.crowd cimport (
    CLOSE_US_MAX, EPOLL_CTL_DEL, EVENTS_MAX, crowd_event, crowd_free, crowd_join, crowd_t,
    crowd_tally, crowd_watch, epoll_ctl, epoll_event, epoll_wait, swarm_now_us, swarm_offer,
    swarm_shrink, swarm_sleep_until, swarm_stands,
)
from relay._swarm.listener cimport (
    ASKED_AGAIN_US, FLAG_BEHIND, FLAG_SETTLED, FREE, LAGGING, NOBODY, PLAYING, REFUSED, STALLED,
    listener_judge, listener_t,
)
from relay._swarm.mount cimport mount_head, mount_lag_us
from relay._swarm.sources cimport sources_t
from relay._swarm.tally cimport tally_t

cdef enum:
    BATCHES_MAX = 64
    JOINS_PER_TURN = 32
    TICK_US = 10000
    SWEEP_TICKS = 100         # a whole sweep each second
    REST_US = 1000
    LAG_WINDOW_BYTES = 4096   # what who lags still takes, beside the window offered before
    WINDOW_BYTES = 65536 * 4  # whole segments of loopback
    AT_ONCE_US = 50           # no loop connects faster

cdef struct plan_t:           # one join to come
    uint32_t mount
    uint8_t flags             # FLAG_…

cdef struct batch_t:          # joins of one call, evenly over a time
    uint64_t begin_us         # 0: from the next run on
    uint64_t over_us
    uint32_t count
    uint32_t done
    uint32_t group
    plan_t* plan              # count; owned

cdef struct health_t:         # of one window
    uint64_t run_us           # time in runs
    uint64_t busy_us          # of it, not asleep
    uint64_t turns
    histogram_t delay         # of ticks
    uint64_t join_delay_us_max

cdef struct loop_t:
    crowd_t crowd
    sources_t sources
    health_t health
    batch_t batches[BATCHES_MAX]
    uint32_t batches_count
    uint64_t tick_us          # when the next tick is due; 0: before the first run
    uint32_t sweep            # the next record to look at
    uint64_t tail_bytes       # what a server of whole blocks may keep back at the end

cdef inline void loop_joins(loop_t* loop, batch_t* batch, uint64_t now) noexcept nogil:
    # A bite of those that are due.
    cdef uint64_t due
    cdef bint at_once = batch.over_us < <uint64_t>batch.count * AT_ONCE_US
    cdef uint32_t bite = 0
    if batch.begin_us == 0:
        batch.begin_us = now
    while batch.done < batch.count and bite < JOINS_PER_TURN:
        due = batch.begin_us + batch.over_us * batch.done // batch.count
        if due > now:
            return
        if not at_once and now - due > loop.health.join_delay_us_max:
            loop.health.join_delay_us_max = now - due
        crowd_join(
            &loop.crowd, batch.group, batch.plan[batch.done].mount, batch.plan[batch.done].flags
        )
        batch.done += 1
        bite += 1

cdef inline uint64_t loop_next_join(loop_t* loop) noexcept nogil:
    # When the next join is due; far away when there is none. Forgets batches that are over.
    cdef uint64_t next_us = <uint64_t>-1
    cdef uint64_t due
    cdef batch_t* batch
    cdef uint32_t i = 0
    while i < loop.batches_count:
        batch = &loop.batches[i]
        if batch.done == batch.count:
            free(batch.plan)
            loop.batches_count -= 1
            batch[0] = loop.batches[loop.batches_count]
            continue
        due = batch.begin_us + batch.over_us * batch.done // batch.count
        next_us = due if due < next_us else next_us
        i += 1
    return next_us

cdef inline void loop_look(loop_t* loop, listener_t* listener, uint64_t now) noexcept nogil:
    # One record of the sweep.
    cdef tally_t* tally = crowd_tally(&loop.crowd, listener)
    if listener.state == PLAYING and loop.crowd.rules.frames:
        listener_judge(
            listener, tally, &loop.crowd.rules,
            mount_lag_us(listener.mount, listener.position, now), now,
        )
    elif listener.state == REFUSED and now > listener.last_us + CLOSE_US_MAX:
        tally.unclosed += 1
        crowd_free(&loop.crowd, listener)

cdef inline void loop_tick(loop_t* loop, uint64_t now) noexcept nogil:
    cdef uint32_t left = loop.crowd.used // SWEEP_TICKS + 1
    histogram_add(&loop.health.delay, now - loop.tick_us)
    loop.tick_us += TICK_US
    if loop.tick_us < now:
        loop.tick_us = now + TICK_US
    while left > 0 and loop.crowd.used > 0:
        loop.sweep = loop.sweep + 1 if loop.sweep + 1 < loop.crowd.used else 0
        loop_look(loop, &loop.crowd.listeners[loop.sweep], now)
        left -= 1

cdef inline uint64_t loop_turn(loop_t* loop, uint64_t now) noexcept nogil:
    # Does what is due; returns until when there is nothing to do.
    cdef epoll_event events[EVENTS_MAX]
    cdef uint64_t next_us
    cdef uint32_t i
    cdef int count
    for i in range(loop.batches_count):
        loop_joins(loop, &loop.batches[i], now)
    count = epoll_wait(loop.crowd.epoll_fd, events, EVENTS_MAX, 0)
    for i in range(count if count > 0 else 0):
        crowd_event(&loop.crowd, &events[i])
    now = swarm_now_us()
    if now >= loop.tick_us:
        loop_tick(loop, now)
    if count == EVENTS_MAX:
        return now
    next_us = loop_next_join(loop)
    next_us = next_us if next_us < now + REST_US else now + REST_US
    return next_us if next_us < loop.tick_us else loop.tick_us

cdef inline void loop_run(loop_t* loop, uint64_t for_us) noexcept nogil:
    cdef uint64_t began = swarm_now_us()
    cdef uint64_t now = began
    cdef uint64_t rest_us
    cdef uint64_t slept
    if loop.tick_us == 0 or loop.crowd.open_now == 0:
        loop.tick_us = now + TICK_US   # nobody was kept waiting since the last run
    while now < began + for_us:
        rest_us = loop_turn(loop, now)
        loop.health.turns += 1
        slept = swarm_now_us()
        loop.health.busy_us += slept - now
        now = slept
        if rest_us > now:
            swarm_sleep_until(rest_us)
            now = swarm_now_us()
    loop.health.run_us += now - began

# --- faults and the end ---------------------------------------------------------------------------

cdef inline uint32_t loop_stall(loop_t* loop, uint32_t group, uint32_t count) noexcept nogil:
    # The first `count` of the group that play stop reading, those outside the sample first.
    cdef uint32_t done = 0
    cdef uint32_t i
    cdef int sampled
    cdef listener_t* listener
    for sampled in range(2):
        for i in range(loop.crowd.used):
            listener = &loop.crowd.listeners[i]
            if done < count and listener.state == PLAYING and listener.group == group and (
                (listener.checker != NULL) == sampled
            ):
                epoll_ctl(loop.crowd.epoll_fd, EPOLL_CTL_DEL, listener.fd, NULL)
                swarm_shrink(listener.fd)
                listener.state = STALLED
                done += 1
    return done

cdef inline uint32_t loop_lag(loop_t* loop, uint32_t group, uint32_t count) noexcept nogil:
    # The first `count` of the group's sample stop reading for a while, those with titles first.
    cdef uint32_t done = 0
    cdef uint32_t i
    cdef int plain
    cdef listener_t* listener
    for plain in range(2):
        for i in range(loop.crowd.used):
            listener = &loop.crowd.listeners[i]
            if done < count and listener.state == PLAYING and listener.group == group and (
                listener.checker != NULL and (listener.metaint == 0) == plain
            ):
                epoll_ctl(loop.crowd.epoll_fd, EPOLL_CTL_DEL, listener.fd, NULL)
                swarm_offer(listener.fd, LAG_WINDOW_BYTES)
                listener.state = LAGGING
                done += 1
    return done

cdef inline uint32_t loop_read_on(loop_t* loop, uint32_t group, uint64_t now) noexcept nogil:
    # Whoever of the group lags reads on, and is judged like a newcomer: once he has caught up.
    # Registering tells what has come meanwhile.
    cdef uint32_t done = 0
    cdef uint32_t i
    cdef listener_t* listener
    for i in range(loop.crowd.used):
        listener = &loop.crowd.listeners[i]
        if listener.state != LAGGING or listener.group != group:
            continue
        listener.state = PLAYING
        listener.flags &= <uint8_t>~<int>FLAG_SETTLED
        listener.last_us = listener.checker.live_us = now
        listener.judged_by_us = now + ASKED_AGAIN_US
        listener.checker.may_skip = True
        swarm_offer(listener.fd, WINDOW_BYTES)
        crowd_watch(&loop.crowd, listener, 0)
        done += 1
    return done

cdef inline uint32_t loop_stalled_ended(loop_t* loop, uint32_t group) noexcept nogil:
    # Of those who stopped reading: whom the server has ended since.
    cdef uint32_t count = 0
    cdef uint32_t i
    cdef listener_t* listener
    for i in range(loop.crowd.used):
        listener = &loop.crowd.listeners[i]
        if listener.state == STALLED and listener.group == group:
            count += not swarm_stands(listener.fd)
    return count

cdef inline bint loop_is_even(loop_t* loop) noexcept nogil:
    # Has everybody who plays heard all that was written?
    cdef uint32_t i
    cdef listener_t* listener
    for i in range(loop.crowd.used):
        listener = &loop.crowd.listeners[i]
        if listener.state == PLAYING and (
            listener.position + <int64_t>loop.tail_bytes < mount_head(listener.mount)
        ):
            return False
    return True

cdef inline void loop_judge_end(loop_t* loop) noexcept nogil:
    # Nothing is in flight any more: bytes are equal to the head's advance, or they are not.
    cdef uint32_t i
    cdef int64_t missing
    cdef listener_t* listener
    cdef tally_t* tally
    for i in range(loop.crowd.used):
        listener = &loop.crowd.listeners[i]
        if listener.state != PLAYING:
            continue
        tally = crowd_tally(&loop.crowd, listener)
        missing = mount_head(listener.mount) - listener.position
        if 0 <= missing <= <int64_t>loop.tail_bytes:
            continue
        tally.unequal += 1
        if missing > 0:
            tally.missing_bytes += <uint64_t>missing
        else:
            tally.surplus_bytes += <uint64_t>-missing
        if not listener.flags & FLAG_BEHIND:
            listener.flags |= FLAG_BEHIND
            tally.behind += 1

cdef inline void loop_window(loop_t* loop, bint is_new, uint64_t now) noexcept nogil:
    # Folds each listener's longest gap, the open one too, into its group; is_new: and begins anew.
    cdef uint32_t i
    cdef listener_t* listener
    cdef tally_t* tally
    cdef uint64_t gap
    for i in range(loop.crowd.used):
        listener = &loop.crowd.listeners[i]
        tally = crowd_tally(&loop.crowd, listener)
        gap = 0
        if listener.state == PLAYING and now > listener.last_us:
            gap = now - listener.last_us
        gap = gap if gap > listener.gap_us_max else listener.gap_us_max
        if listener.state != FREE and gap > tally.longest_gap_us:
            tally.longest_gap_us = gap
        if is_new:
            listener.gap_us_max = 0
            listener.bytes_marked = listener.bytes
            listener.flags &= <uint8_t>~<int>FLAG_BEHIND
