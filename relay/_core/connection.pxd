# connection.pxd: one shard's records: what it holds, how one is served, how one ends.
#
# Rules of this room
#   1. Only the shard's own thread calls here. A record is in at most one slot of the wheel.
#   2. Bounds: a record for each place of the node (listeners_max + heads_max), preallocated;
#      counters are the shard's own and published once a turn.
#   3. Does not know requests and replies (door.pxd) nor the order of a turn (shard.pxd).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from relay._core.anchor cimport ANCHOR_REASONS
from relay._core.atomics cimport add_u32, add_u64, fence, load_u32, load_u64, store_u64, sub_u32
from relay._core.engine cimport engine_t, now_us, wall_us
from relay._core.handover cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, close, eventfd, handover_close, handover_open, handover_t,
)
from relay._core.heads cimport heads_close, heads_count, heads_drop, heads_open, heads_t
from relay._core.http_head cimport HEAD_BYTES_MAX
from relay._core.listener cimport (
    END_CLOSED, END_REASONS, END_RESET, END_SHUTDOWN, FLOW_BLOCKED, FLOW_MORE, FREE, HEAD,
    MSG_DONTWAIT, PARKED, PARTING, flow_t, listener_flow, listener_lag_us,
    listener_leave_fallback, listener_leave_ring, listener_t,
)
from relay._core.orders cimport agent_t, order_drop, order_t
from relay._core.observe cimport (
    SEEN_GAP, SEEN_JOIN, SEEN_SKIP, observe, observe_busy, observe_lateness, observed_t,
)
from relay._core.pace cimport (
    NOBODY, pace_slots, wheel_close, wheel_holds, wheel_join, wheel_open, wheel_put, wheel_remove,
    wheel_return, wheel_t,
)
from relay._core.recorder cimport (
    RECORD_DROP, RECORD_NOBODY, RECORD_PACE, RECORD_SKIP, SHARD_COMMON, SHARD_RARE, record,
    recorder_close, recorder_is_due, recorder_open, recorder_t, recorder_tick,
)
from relay._core.stream cimport hub_tell, stream_drop, stream_t
from relay._core.tables cimport table_close, table_open
from relay._core.tempo cimport (
    tempo_has_choice, tempo_is_followed, tempo_pace_us, tempo_t, tempo_turn,
)
from relay._core.visits cimport (
    VISIT_JOINED, visit_t, visits_close, visits_open, visits_put, visits_t,
)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int op, int fd, epoll_event* event)
    int epoll_wait(int epoll_fd, epoll_event* events, int count, int timeout_ms)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET

cdef extern from "<netinet/in.h>" nogil:
    cdef struct sockaddr:
        uint16_t sa_family
    cdef struct sockaddr_storage:
        uint16_t ss_family
    ctypedef uint32_t socklen_t
    int AF_INET
    int SHUT_WR, SHUT_RDWR
    int SOCK_NONBLOCK, SOCK_CLOEXEC
    int accept4(int fd, sockaddr* address, socklen_t* size, int flags)
    int shutdown(int fd, int how)
    ssize_t recv(int fd, void* bytes, size_t size, int flags)

cdef extern from "door.h" nogil:
    void door_address(const sockaddr_storage* from_, uint8_t* address, uint16_t* port)
    int door_reserve()
    uint32_t http_date(uint64_t unix_s, char* out)
    int door_error(int fd)

cdef enum:
    EVENTS_MAX = 512
    ARRIVALS_MAX = 512        # connections that Python has handed in and the shard has not seen
    PARTING_MAX = 1024        # refused connections whose close is awaited; more are closed at once,
                              # and so is what exceeds half of heads_max
    PARTING_US = 1000000
    GARBAGE_BYTES_MAX = 65536 # what a listener may send after its head

cdef enum:  # epoll data that is no record
    DATA_LISTEN = 0xFFFFFFFF
    DATA_WAKE = 0xFFFFFFFE
    DATA_ARRIVALS = 0xFFFFFFFD

cdef enum:
    REFUSED_REASONS = 8       # replies.h tells them

cdef struct shard_counters_t: # owner: the shard; totals since start
    uint64_t accepts_total
    uint64_t joins_total
    uint64_t sends_total
    uint64_t sent_bytes_total
    uint64_t short_writes_total
    uint64_t skips_total
    uint64_t fallbacks_total  # listeners that went over to a fallback
    uint64_t returns_total    # that came back to the stream they asked for
    uint64_t moves_total      # that an administrator has moved to another mount
    uint64_t handovers_total
    uint64_t redirects_total  # sent on to another node instead of being refused
    uint64_t heads_expired_total
    uint64_t heads_evicted_total
    uint64_t turns_total
    uint64_t busy_us_total
    uint64_t late_us_max      # the furthest that serving ever fell behind its slot
    uint64_t behind_us_total  # by which all were put off: more were due than could be served
    uint64_t pace_ms          # the auto pace now
    uint64_t pace_changes_total
    uint64_t pace_moves_total # listeners that took another pace
    uint64_t parked_ended_total  # left, or were ended, before their stream came
    uint64_t probes_total     # were told a few bytes (http_head.pxd: RANGE_PROBE)
    uint64_t anchors_given_total  # were sent on to a place
    uint64_t anchors_lost_total  # had named a place and were skipped, or moved to another stream
    uint64_t anchored_total[ANCHOR_REASONS]   # joins that asked for a place, by what became of it
    uint64_t ended_total[END_REASONS]
    uint64_t refused_total[REFUSED_REASONS]
    uint64_t heads            # now
    uint64_t listeners        # now

cdef struct shard_t:
    engine_t* engine          # borrowed
    int number                # its reader in engine.retire
    int epoll_fd, listen_fd, wake_fd, reserve_fd
    uint32_t stop             # 1: end the thread
    uint64_t shut_until_us    # > 0: the door is not watched until then
    bint callers              # somebody waits, or may wait, at the listening socket
    handover_t arrivals       # connections that Python hands in (arrive.pxd)
    bint arrivals_wait        # there may be some
    visits_t accounts         # who came and left: written where somebody asks for it
    uint32_t draining         # 1: no new ones; each listener ends at its next frame boundary
    listener_t* records       # records_max; owned
    uint32_t records_max
    uint32_t records_used     # beyond these none was ever used
    agent_t* agents           # one for each record: what its listener calls itself; owned
    uint32_t* unused          # stack of free records; owned
    uint32_t unused_count
    wheel_t wheel
    uint64_t bites_us         # of this turn's serving, what the door took in between
    uint32_t visits           # of this turn: records served on the wheel
    uint32_t visits_fixed     # of them, whose pace does not follow the tempo now
    uint32_t followers        # listeners whose mount leaves a choice of pace
    tempo_t tempo
    heads_t heads
    uint32_t parting
    uint32_t parting_max
    uint64_t dice             # for jitter
    uint32_t redirect_next    # whose turn it is of engine.redirects
    uint64_t date_s           # the second that date_text tells
    char date_text[32]
    uint8_t bytes[HEAD_BYTES_MAX]   # heads that come whole are read here
    char reply[16384]         # response head being put together
    shard_counters_t counters
    uint64_t published_version  # odd while `published` changes
    shard_counters_t published
    observed_t observed       # read where it is: observe.pxd
    recorder_t recorder       # the same: recorder.pxd
    uint64_t put_off_us       # when all were last put off, since more were due than could be served
    uint64_t listeners_total  # so many have had an id
    order_t* order            # to be carried out; one reference; set by who holds Python's lock
    uint32_t order_at         # the record at which that goes on

# --- life -----------------------------------------------------------------------------------------

cdef inline int shard_open(
    shard_t* shard, engine_t* engine, int number, uint32_t records_max, int listen_fd
) noexcept nogil:
    cdef uint32_t i
    cdef epoll_event event
    shard.engine = engine
    shard.number = number
    shard.listen_fd = listen_fd
    shard.records_max = records_max
    shard.records = <listener_t*>table_open(records_max, sizeof(listener_t))
    shard.unused = <uint32_t*>malloc(records_max * sizeof(uint32_t))
    shard.agents = <agent_t*>table_open(records_max, sizeof(agent_t))
    shard.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    shard.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    shard.reserve_fd = door_reserve()
    shard.parting_max = min(<uint32_t>PARTING_MAX, engine.heads_max // 2)
    shard.dice = engine.secret ^ <uint64_t>(number + 1) * <uint64_t>0x9E3779B97F4A7C15 | 1
    shard.redirect_next = number
    shard.heads.counted_max = max(engine.heads_max // engine.shards, <uint32_t>1)
    shard.heads.per_address_max = max(engine.heads_per_address_max // engine.shards, <uint32_t>1)
    shard.heads.grace_us = engine.head_grace_us
    shard.heads.timeout_us = engine.head_timeout_us
    if (
        handover_open(&shard.arrivals, ARRIVALS_MAX) != 0 or visits_open(&shard.accounts) != 0
        or shard.records == NULL or shard.unused == NULL or shard.agents == NULL
        or shard.epoll_fd < 0 or shard.wake_fd < 0
        or wheel_open(&shard.wheel, records_max, now_us()) != 0
        or heads_open(&shard.heads, records_max, engine.secret ^ <uint64_t>number) != 0
        or recorder_open(&shard.recorder, SHARD_RARE, SHARD_COMMON) != 0
    ):
        return -1
    for i in range(records_max):
        shard.unused[i] = records_max - 1 - i
    shard.unused_count = records_max
    if listen_fd >= 0 and not shard_watch_door(shard):
        return -1
    event.events = EPOLLIN
    event.data.u64 = DATA_ARRIVALS
    if epoll_ctl(shard.epoll_fd, EPOLL_CTL_ADD, shard.arrivals.event_fd, &event) != 0:
        return -1
    event.data.u64 = DATA_WAKE
    return epoll_ctl(shard.epoll_fd, EPOLL_CTL_ADD, shard.wake_fd, &event)

cdef inline bint shard_watch_door(shard_t* shard) noexcept nogil:
    # Level-triggered: those whom one turn did not accept wake the next one.
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = DATA_LISTEN
    return epoll_ctl(shard.epoll_fd, EPOLL_CTL_ADD, shard.listen_fd, &event) == 0

cdef inline bint shard_watch(shard_t* shard, uint32_t index) noexcept nogil:
    # Registered once; edges only: costs nothing while the listener is healthy. What has come
    # before is told as well: epoll_ctl(2) looks at once.
    cdef epoll_event event
    cdef listener_t* listener = &shard.records[index]
    if listener.watched:
        return True
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLOUT | EPOLLET
    event.data.u64 = index | (<uint64_t>listener.generation << 32)
    listener.watched = epoll_ctl(shard.epoll_fd, EPOLL_CTL_ADD, listener.fd, &event) == 0
    return listener.watched

cdef inline void shard_close(shard_t* shard) noexcept nogil:
    # The thread has ended, or shard_open has failed.
    cdef uint32_t i
    for i in range(shard.records_max):
        if shard.records != NULL and shard.records[i].state != FREE:
            shard_free(shard, i)
    close(shard.epoll_fd)
    close(shard.wake_fd)
    if shard.listen_fd >= 0:
        shard_hang_up(shard, shard.listen_fd)
    handover_close(&shard.arrivals)
    visits_close(&shard.accounts)
    if shard.reserve_fd >= 0:
        close(shard.reserve_fd)
    if shard.order != NULL:
        order_drop(shard.order)
    wheel_close(&shard.wheel)
    heads_close(&shard.heads)
    recorder_close(&shard.recorder)
    table_close(shard.agents)
    table_close(shard.records)
    free(shard.unused)

cdef inline void shard_publish(shard_t* shard) noexcept nogil:
    shard.counters.heads = heads_count(&shard.heads)
    store_u64(&shard.published_version, shard.published_version + 1)
    fence()
    memcpy(&shard.published, &shard.counters, sizeof(shard_counters_t))
    store_u64(&shard.published_version, shard.published_version + 1)

cdef inline void shard_snapshot(shard_t* shard, shard_counters_t* out) noexcept nogil:
    # From any thread: one consistent state, that of the last turn.
    cdef uint64_t version
    while True:
        version = load_u64(&shard.published_version)
        memcpy(out, &shard.published, sizeof(shard_counters_t))
        fence()
        if version & 1 == 0 and load_u64(&shard.published_version) == version:
            return

# --- one listener ---------------------------------------------------------------------------------

cdef inline void shard_flow(
    shard_t* shard, uint32_t index, flow_t* flow, uint64_t now,
) noexcept nogil:
    # Sends what this listener has to get and puts it back on the wheel.
    cdef listener_t* listener = &shard.records[index]
    cdef uint64_t sent_before = listener.sent_bytes
    cdef int status = listener_flow(listener, flow, now)
    if flow.count > 0:
        shard.counters.sends_total += 1
    shard.counters.sent_bytes_total += listener.sent_bytes - sent_before
    add_u64(&listener.stream.counters.sent_bytes_total, listener.sent_bytes - sent_before)
    if flow.skipped:
        shard.counters.skips_total += 1
        add_u64(&listener.stream.counters.skips_total, 1)
        observe(&shard.observed, SEEN_SKIP, 0, flow.skipped_us)
        shard_record_skip(shard, listener, flow, now)
        if listener.anchored:
            listener.anchored = 0
            shard.counters.anchors_lost_total += 1
    if status < 0:
        shard_end(shard, index, -status)
        return
    if listener.sent_bytes > sent_before and (flow.intro or flow.position < listener.position):
        shard_book_audio(shard, listener, flow)
    listener.blocked = status == FLOW_BLOCKED
    if listener.blocked:
        shard.counters.short_writes_total += 1
    if status == FLOW_MORE:
        listener.hurried = True
        wheel_put(&shard.wheel, index, shard.wheel.until)
    elif listener.hurried:
        listener.hurried = False    # those who caught up together spread out again
        shard_join_wheel(shard, index)
    elif not wheel_holds(&shard.wheel, index):
        shard.counters.pace_moves_total += wheel_return(
            &shard.wheel, index, &listener.pace, shard_pace(shard, listener)
        )

cdef inline void shard_record_skip(
    shard_t* shard, const listener_t* listener, const flow_t* flow, uint64_t now
) noexcept nogil:
    # With what tells whose fault it is: how busy the shard was, and whether it has put listeners
    # off for as long as a lag takes to grow.
    record(
        &shard.recorder, now, listener.stream.key, RECORD_SKIP, flow.hole, RECORD_NOBODY,
        shard.observed.busy.last_permille, flow.skipped_us,
        shard.put_off_us != 0 and now - shard.put_off_us < listener.stream.config.lag_us_max,
    )

cdef inline uint64_t shard_pace(shard_t* shard, const listener_t* listener) noexcept nogil:
    # The pace that a listener of this mount is to have now, in slots.
    return pace_slots(tempo_pace_us(
        &shard.tempo, listener.stream.config.pace_us_min, listener.stream.config.pace_us_max
    ))

cdef inline bint shard_is_fixed(shard_t* shard, const listener_t* listener) noexcept nogil:
    # Serving it costs the same whatever pace the tempo chooses.
    return listener.stream == NULL or not tempo_is_followed(
        &shard.tempo, listener.stream.config.pace_us_min, listener.stream.config.pace_us_max
    )

cdef inline void shard_count(shard_t* shard, const stream_t* stream, bint comes) noexcept nogil:
    # A listener of this stream has taken its place in the counts, or gives it back.
    cdef int step = 1 if comes else -1
    shard.counters.listeners += step
    if tempo_has_choice(stream.config.pace_us_min, stream.config.pace_us_max):
        shard.followers += step

cdef inline void shard_join_wheel(shard_t* shard, uint32_t index) noexcept nogil:
    # A place for a new listener, or for one that was served out of its turn.
    cdef listener_t* listener = &shard.records[index]
    listener.pace = <uint8_t>shard_pace(shard, listener)
    wheel_join(&shard.wheel, index, listener.pace)

cdef inline void shard_keep_tempo(
    shard_t* shard, uint64_t began_us, uint64_t served_us, uint64_t behind_us
) noexcept nogil:
    # At the end of a turn: what it has cost, and whether the pace is to follow.
    cdef uint64_t now = now_us()
    cdef uint64_t serve_us = served_us - began_us - shard.bites_us
    cdef uint64_t fixed_us = 0
    if shard.visits_fixed > 0:    # a send costs about the same whoever it is for
        fixed_us = serve_us * shard.visits_fixed // shard.visits
    shard.counters.busy_us_total += now - began_us
    observe_busy(&shard.observed, began_us, now)
    cdef uint64_t pace_us = shard.tempo.pace_us
    shard.counters.behind_us_total += behind_us
    if behind_us:
        shard.put_off_us = now
    shard.counters.pace_changes_total += tempo_turn(
        &shard.tempo, shard.followers, now, serve_us - fixed_us, fixed_us,
        now - served_us + shard.bites_us, behind_us,
    )
    shard.counters.pace_ms = shard.tempo.pace_us // 1000
    if shard.tempo.pace_us != pace_us:
        record(&shard.recorder, now, 0, RECORD_PACE, 0, RECORD_NOBODY, pace_us,
               shard.tempo.pace_us, shard.observed.busy.last_permille)
    if recorder_is_due(&shard.recorder, now):
        recorder_tick(&shard.recorder, now, wall_us())

cdef inline void shard_book_audio(
    shard_t* shard, listener_t* listener, flow_t* flow
) noexcept nogil:
    # Audio went out: how soon? By a clock of its own, 20 ns: a full turn lasts tens of ms, and who
    # is served last in it must not be told as if he were first.
    cdef uint64_t now = now_us()
    observe(&shard.observed, SEEN_GAP if listener.heard else SEEN_JOIN, listener.audio_us, now)
    if flow.position >= listener.burst_position and not flow.intro:
        observe_lateness(
            &shard.observed, listener.ring, flow.position, shard.counters.turns_total, now
        )
    listener.audio_us = now
    listener.heard = True

cdef inline void shard_end(shard_t* shard, uint32_t index, int reason) noexcept nogil:
    # The end of a listener, with its counted reason; or of one who never became one.
    cdef stream_t* stream = shard.records[index].stream
    if shard.records[index].state == PARKED:
        shard.counters.parked_ended_total += 1
        shard_free(shard, index)
        return
    shard.counters.ended_total[reason] += 1
    if stream != NULL:
        shard_note_visit(shard, index, reason, now_us())
    if stream != NULL and reason != END_CLOSED and reason != END_RESET and reason != END_SHUTDOWN:
        add_u64(&stream.counters.drops_total, 1)
        shard_record_drop(shard, &shard.records[index], reason)
    shard_free(shard, index)

cdef inline void shard_record_drop(
    shard_t* shard, listener_t* listener, int reason
) noexcept nogil:
    record(
        &shard.recorder, now_us(), listener.stream.key, RECORD_DROP, reason, RECORD_NOBODY,
        shard.observed.busy.last_permille,
        listener_lag_us(listener) if listener.ring != NULL else 0, listener.sent_bytes,
    )

cdef inline void shard_note_visit(
    shard_t* shard, uint32_t index, int reason, uint64_t now
) noexcept nogil:
    # For whoever keeps accounts: it joined, or it has ended for that reason.
    cdef listener_t* listener = &shard.records[index]
    cdef visit_t visit
    if not load_u32(&shard.engine.visits_wanted):
        return
    visit.at_us, visit.key = now, listener.stream.key
    visit.id = listener.id
    visit.listened_us = now - listener.began_us if reason != VISIT_JOINED else 0
    visit.sent_bytes, visit.ticket = listener.sent_bytes, listener.ticket
    memcpy(visit.address, listener.address, 16)
    visit.port, visit.reason = listener.port, <uint8_t>reason
    visits_put(&shard.accounts, &visit)

cdef inline void shard_hang_up(shard_t* shard, int fd) noexcept nogil:
    # A child that the host has forked holds copies of our sockets: closing ours alone would leave
    # the other side connected to nobody.
    if shard.engine.forks != NULL and load_u32(shard.engine.forks):
        shutdown(fd, SHUT_RDWR)
    close(fd)

cdef inline void shard_free(shard_t* shard, uint32_t index) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    cdef uint32_t generation = listener.generation
    wheel_remove(&shard.wheel, index)
    if listener.state == HEAD:
        heads_drop(&shard.heads, index)
    if listener.state == PARTING:
        shard.parting -= 1
    shard_leave(shard, listener)
    if listener.fd >= 0:
        shard_hang_up(shard, listener.fd)
    free(listener.rest)
    free(listener.head)
    memset(listener, 0, sizeof(listener_t))
    listener.generation = generation + 1
    shard.unused[shard.unused_count] = index
    shard.unused_count += 1
    sub_u32(&shard.engine.places, 1)

cdef inline void shard_leave(shard_t* shard, listener_t* listener) noexcept nogil:
    # Gives ring, stream and the places in the counts back.
    shard_give_place(shard, listener)
    if listener.stream == NULL:
        return
    listener_leave_ring(listener)
    listener_leave_fallback(listener)
    if listener.relays:
        sub_u32(&listener.stream.relays, 1)
    sub_u32(&listener.stream.listeners, 1)
    hub_tell(listener.stream.hub, listener.stream)
    shard_count(shard, listener.stream, False)
    stream_drop(listener.stream)
    listener.stream = NULL

cdef inline bint shard_take_place(shard_t* shard, listener_t* listener) noexcept nogil:
    # One of listeners_max, once. False: the node is full.
    if not listener.placed:
        if add_u32(&shard.engine.listeners, 1) > shard.engine.listeners_max:
            sub_u32(&shard.engine.listeners, 1)
            return False
        listener.placed = True
    return True

cdef inline void shard_give_place(shard_t* shard, listener_t* listener) noexcept nogil:
    if listener.placed:
        sub_u32(&shard.engine.listeners, 1)
        listener.placed = False

cdef inline bint shard_swallow(shard_t* shard, listener_t* listener) noexcept nogil:
    # A listener has nothing to say after its head; a little is read and forgotten.
    cdef ssize_t got
    while True:
        got = recv(listener.fd, shard.bytes, HEAD_BYTES_MAX, MSG_DONTWAIT)
        if got <= 0:
            return True
        listener.received_bytes += <uint32_t>got
        if listener.received_bytes > GARBAGE_BYTES_MAX:
            return False
