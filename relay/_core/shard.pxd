# shard.pxd: one engine thread with its own listeners: accepts, reads heads, serves who is due.
#
# Rules of this room
#   1. Each turn, in this order: who is due, then events (heads, resumed writes, goodbyes), then accepts,
#      each with a budget. Those who listen are never disturbed by those who come.
#   2. Never takes the GIL, never blocks but in epoll_wait; holds the table lock for a look-up only.
#   3. Bounds: records = listeners_max + heads_max + PARTING_MAX; a head is HEAD_BYTES_MAX and lives
#      head_timeout; a refused connection is closed within a second.
#   4. Counters are the shard's own and published once a turn.
#   5. The hot path: epoll_wait → shard_serve_due → shard_serve → listener_flow → send. Nothing is
#      allocated on it.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset, strlen

from relay._core.atomics cimport add_u32, add_u64, fence, load_pointer, load_u32, load_u64, store_u32, store_u64, sub_u32
from relay._core.engine cimport engine_find, engine_t, now_us, wall_ms
from relay._core.handover cimport EFD_CLOEXEC, EFD_NONBLOCK, close, eventfd, eventfd_read, eventfd_write, handover_put
from relay._core.http_head cimport (
    HEAD_BYTES_MAX, METHOD_GET, METHOD_HEAD, METHOD_OPTIONS, METHOD_OTHER, METHOD_POST, METHOD_PUT,
    METHOD_SOURCE, head_end, head_parse, head_t,
)
from relay._core.icy cimport ICY_METAINT
from relay._core.listener cimport (
    EAGAIN, EMFILE, END_CLOSED, END_GARBAGE, END_MEMORY, END_NONE, END_REASONS, END_RESET,
    END_SHUTDOWN, END_STREAM, ENFILE, FLOWING, FLOW_BLOCKED, FLOW_MORE, FREE, HEAD, MSG_DONTWAIT,
    MSG_NOSIGNAL, PARKED, PARTING, PART_COPY, errno, flow_add, flow_open, flow_t, listener_flow,
    listener_leave_ring, listener_skip_later, listener_t, send,
)
from relay._core.pace cimport (
    NOBODY, SLOT_US, WHEEL_SLOTS, pace_slots, wheel_catch_up, wheel_close, wheel_is_due, wheel_join,
    wheel_next_us, wheel_open, wheel_put, wheel_remove, wheel_t,
)
from relay._core.retire cimport turn_begin, turn_end
from relay._core.stream cimport hub_tell, info_t, stream_drop, stream_t

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
    int SHUT_WR
    int SOCK_NONBLOCK, SOCK_CLOEXEC
    int accept4(int fd, sockaddr* address, socklen_t* size, int flags)
    int shutdown(int fd, int how)
    ssize_t recv(int fd, void* bytes, size_t size, int flags)

cdef extern from "door.h" nogil:
    void door_address(const sockaddr_storage* from_, uint8_t* address, uint16_t* port)
    int door_reserve()
    uint32_t http_date(uint64_t unix_s, char* out)

cdef enum:
    EVENTS_MAX = 512
    ACCEPTS_PER_TURN = 64
    PARTING_MAX = 1024        # refused connections whose close is awaited; more are closed at once
    PARTING_US = 1000000
    PARKED_LOOK_US = 20000
    GARBAGE_BYTES_MAX = 65536 # what a listener may send after its head
    ADDRESS_BUCKETS = 4096

cdef enum:  # epoll data that is no record
    DATA_LISTEN = 0xFFFFFFFF
    DATA_WAKE = 0xFFFFFFFE

cdef enum:  # refusals: index into the shard's counters
    REFUSED_NOT_FOUND = 0
    REFUSED_FULL = 1          # listeners_max of the node or the mount
    REFUSED_UPSTREAM = 2      # the upstream is down
    REFUSED_MALFORMED = 3
    REFUSED_TOO_LARGE = 4
    REFUSED_METHOD = 5
    REFUSED_BUSY = 6          # the queue to the slow door is full
    REFUSED_DESCRIPTORS = 7
    REFUSED_REASONS = 8

cdef struct shard_counters_t: # owner: the shard; totals since start
    uint64_t accepts_total
    uint64_t joins_total
    uint64_t sends_total
    uint64_t sent_bytes_total
    uint64_t short_writes_total
    uint64_t skips_total
    uint64_t handovers_total
    uint64_t heads_expired_total
    uint64_t heads_evicted_total
    uint64_t turns_total
    uint64_t busy_us_total
    uint64_t late_us_max      # the furthest that serving fell behind its slot since the last snapshot
    uint64_t ended_total[END_REASONS]
    uint64_t refused_total[REFUSED_REASONS]
    uint64_t heads            # now
    uint64_t listeners        # now

cdef struct shard_t:
    engine_t* engine          # borrowed
    int number                # its reader in engine.retire
    int epoll_fd, listen_fd, wake_fd, reserve_fd
    uint32_t stop             # 1: end the thread
    uint32_t draining         # 1: no new ones; each listener ends at its next frame boundary
    listener_t* records       # records_max; owned
    uint32_t records_max
    uint32_t* unused          # stack of free records; owned
    uint32_t unused_count
    wheel_t wheel
    uint32_t oldest_head, newest_head
    uint32_t heads
    uint32_t parting
    uint16_t heads_by_address[ADDRESS_BUCKETS]
    uint64_t date_s           # the second that date_text tells
    char date_text[32]
    uint8_t bytes[HEAD_BYTES_MAX]   # heads that come whole are read here
    char reply[16384]         # response head being put together
    shard_counters_t counters
    uint64_t published_version  # odd while `published` changes
    shard_counters_t published

# --- life ----------------------------------------------------------------------------------------

cdef inline int shard_open(
    shard_t* shard, engine_t* engine, int number, uint32_t records_max, int listen_fd
) noexcept nogil:
    cdef uint32_t i
    cdef epoll_event event
    shard.engine = engine
    shard.number = number
    shard.listen_fd = listen_fd
    shard.records_max = records_max
    shard.records = <listener_t*>calloc(records_max, sizeof(listener_t))
    shard.unused = <uint32_t*>malloc(records_max * sizeof(uint32_t))
    shard.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    shard.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    shard.reserve_fd = door_reserve()
    shard.oldest_head = shard.newest_head = NOBODY
    if (
        shard.records == NULL or shard.unused == NULL or shard.epoll_fd < 0 or shard.wake_fd < 0
        or wheel_open(&shard.wheel, records_max, now_us()) != 0
    ):
        return -1
    for i in range(records_max):
        shard.unused[i] = records_max - 1 - i
    shard.unused_count = records_max
    event.events = EPOLLIN
    event.data.u64 = DATA_LISTEN
    if listen_fd >= 0 and epoll_ctl(shard.epoll_fd, EPOLL_CTL_ADD, listen_fd, &event) != 0:
        return -1
    event.data.u64 = DATA_WAKE
    return epoll_ctl(shard.epoll_fd, EPOLL_CTL_ADD, shard.wake_fd, &event)

cdef inline void shard_close(shard_t* shard) noexcept nogil:
    # The thread has ended.
    cdef uint32_t i
    for i in range(shard.records_max):
        if shard.records[i].state != FREE:
            shard_free(shard, i)
    for i in range(1):
        close(shard.epoll_fd)
        close(shard.wake_fd)
        if shard.listen_fd >= 0:
            close(shard.listen_fd)
        if shard.reserve_fd >= 0:
            close(shard.reserve_fd)
    wheel_close(&shard.wheel)
    free(shard.records)
    free(shard.unused)

cdef inline void shard_stop_accepting(shard_t* shard) noexcept nogil:
    if shard.listen_fd >= 0:
        epoll_ctl(shard.epoll_fd, EPOLL_CTL_DEL, shard.listen_fd, NULL)
        close(shard.listen_fd)
        shard.listen_fd = -1

cdef inline void shard_run(shard_t* shard) noexcept nogil:
    # The thread's loop, until `stop`.
    cdef epoll_event events[EVENTS_MAX]
    cdef int count
    cdef uint64_t now
    cdef uint64_t wait_us
    while not load_u32(&shard.stop):
        wait_us = wheel_next_us(&shard.wheel, now_us(), 100000)
        count = epoll_wait(shard.epoll_fd, events, EVENTS_MAX, <int>((wait_us + 999) // 1000))
        turn_begin(&shard.engine.retire, shard.number)
        now = now_us()
        shard_serve_due(shard, now)
        shard_events(shard, events, count, now)
        shard_expire_heads(shard, now)
        shard.counters.turns_total += 1
        shard.counters.busy_us_total += now_us() - now
        shard_publish(shard)
        turn_end(&shard.engine.retire, shard.number)

cdef inline void shard_publish(shard_t* shard) noexcept nogil:
    shard.counters.heads = shard.heads
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

# --- those who listen ----------------------------------------------------------------------------

cdef inline void shard_serve_due(shard_t* shard, uint64_t now) noexcept nogil:
    cdef wheel_t* wheel = &shard.wheel
    cdef uint32_t place
    cdef uint32_t member
    wheel_catch_up(wheel, now)
    while wheel_is_due(wheel, now):
        if now - wheel.slot * SLOT_US > shard.counters.late_us_max:
            shard.counters.late_us_max = now - wheel.slot * SLOT_US
        place = <uint32_t>(wheel.slot % WHEEL_SLOTS)
        wheel.slot += 1       # whoever is put back while being served lands in a later slot
        while wheel.first[place] != <uint32_t>NOBODY:
            member = wheel.first[place]
            wheel_remove(wheel, member)
            shard_serve(shard, member, now)

cdef inline void shard_serve(shard_t* shard, uint32_t index, uint64_t now) noexcept nogil:
    # One record whose time has come (it is in no slot now).
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
        listener.ring == NULL or listener.position >= listener.limit
    )

cdef inline void shard_flow(shard_t* shard, uint32_t index, flow_t* flow, uint64_t now) noexcept nogil:
    # Sends what this listener has to get and puts it back on the wheel.
    cdef listener_t* listener = &shard.records[index]
    cdef uint64_t sent_before = listener.sent_bytes
    cdef int status = listener_flow(listener, flow, now)
    if flow.count > 0:
        shard.counters.sends_total += 1
    shard.counters.sent_bytes_total += listener.sent_bytes - sent_before
    if flow.skipped:
        shard.counters.skips_total += 1
        add_u64(&listener.stream.counters.skips_total, 1)
    if status < 0:
        shard_end(shard, index, -status)
        return
    listener.blocked = status == FLOW_BLOCKED
    if listener.blocked:
        shard.counters.short_writes_total += 1
    if status == FLOW_MORE:
        wheel_put(&shard.wheel, index, shard.wheel.slot)
    elif shard.wheel.links[index].slot == <uint32_t>NOBODY:
        wheel_put(&shard.wheel, index,
                  shard.wheel.slot - 1 + pace_slots(listener.stream.config.pace_us))

cdef inline void shard_end(shard_t* shard, uint32_t index, int reason) noexcept nogil:
    # The end of a listener, with its counted reason.
    cdef stream_t* stream = shard.records[index].stream
    shard.counters.ended_total[reason] += 1
    if stream != NULL and reason != END_CLOSED and reason != END_RESET and reason != END_SHUTDOWN:
        add_u64(&stream.counters.drops_total, 1)
    shard_free(shard, index)

cdef inline void shard_free(shard_t* shard, uint32_t index) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    cdef uint32_t generation = listener.generation
    wheel_remove(&shard.wheel, index)
    if listener.state == HEAD:
        shard_head_remove(shard, index)
    if listener.state == PARTING:
        shard.parting -= 1
    shard_leave(shard, listener)
    if listener.fd >= 0:
        close(listener.fd)
    free(listener.rest)
    free(listener.head)
    memset(listener, 0, sizeof(listener_t))
    listener.generation = generation + 1
    shard.unused[shard.unused_count] = index
    shard.unused_count += 1

cdef inline void shard_leave(shard_t* shard, listener_t* listener) noexcept nogil:
    # Gives ring, stream and the places in the counts back.
    if listener.stream == NULL:
        return
    listener_leave_ring(listener)
    sub_u32(&listener.stream.listeners, 1)
    hub_tell(listener.stream.hub, listener.stream)
    stream_drop(listener.stream)
    listener.stream = NULL
    sub_u32(&shard.engine.listeners, 1)
    shard.counters.listeners -= 1

# --- events --------------------------------------------------------------------------------------

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
    cdef flow_t flow
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
        flow_open(&flow)
        shard_flow(shard, index, &flow, now)

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

cdef inline void shard_discard(shard_t* shard, uint32_t index, uint32_t events) noexcept nogil:
    # Answered already: read what still comes, so that closing does not reset the answer away.
    cdef listener_t* listener = &shard.records[index]
    if not shard_swallow(shard, listener) or events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        shard_free(shard, index)

# --- those who come ------------------------------------------------------------------------------

cdef inline void shard_accept(shard_t* shard, uint64_t now) noexcept nogil:
    # In small bites; what is left keeps the listening socket readable for the next turn.
    cdef int i
    cdef int fd
    cdef sockaddr_storage from_
    cdef socklen_t size
    for i in range(ACCEPTS_PER_TURN):
        size = sizeof(sockaddr_storage)
        fd = accept4(shard.listen_fd, <sockaddr*>&from_, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            if errno == EMFILE or errno == ENFILE:
                shard_refuse_unseen(shard)
                continue
            return
        shard.counters.accepts_total += 1
        shard_welcome(shard, fd, &from_, now)

cdef inline void shard_refuse_unseen(shard_t* shard) noexcept nogil:
    # No descriptor is left: the reserved one makes room to refuse with, never a busy loop.
    cdef int fd
    shard.counters.refused_total[REFUSED_DESCRIPTORS] += 1
    if shard.reserve_fd < 0:
        shard.reserve_fd = door_reserve()
        return
    close(shard.reserve_fd)
    fd = accept4(shard.listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd >= 0:
        recv(fd, shard.bytes, HEAD_BYTES_MAX, MSG_DONTWAIT)
        send(fd, REPLY_503, strlen(REPLY_503), MSG_DONTWAIT | MSG_NOSIGNAL)
        close(fd)
    shard.reserve_fd = door_reserve()

cdef extern from *:
    """
    #define REPLY_TAIL "\\r\\nConnection: close\\r\\nCache-Control: no-cache, no-store\\r\\nAccess-Control-Allow-Origin: *\\r\\nContent-Type: text/plain; charset=utf-8\\r\\n"
    static const char REPLY_503[] = "HTTP/1.0 503 Service Unavailable" REPLY_TAIL
        "Retry-After: 5\\r\\nContent-Length: 13\\r\\n\\r\\nnode is full\\n";
    """
    const char* REPLY_503
    const char* REPLY_TAIL

cdef inline void shard_welcome(
    shard_t* shard, int fd, const sockaddr_storage* from_, uint64_t now
) noexcept nogil:
    # A record for the new connection; most send their head at once, so it is read here and now.
    cdef uint32_t index
    cdef listener_t* listener
    if shard.unused_count == 0:
        shard.counters.refused_total[REFUSED_FULL] += 1
        recv(fd, shard.bytes, HEAD_BYTES_MAX, MSG_DONTWAIT)
        send(fd, REPLY_503, strlen(REPLY_503), MSG_DONTWAIT | MSG_NOSIGNAL)
        close(fd)
        return
    shard.unused_count -= 1
    index = shard.unused[shard.unused_count]
    listener = &shard.records[index]
    listener.fd = fd
    listener.state = HEAD
    listener.began_us = listener.progress_us = now
    door_address(from_, listener.address, &listener.port)
    shard_head_add(shard, index)
    if not shard_watch(shard, index):
        shard_free(shard, index)
        return
    shard_read_head(shard, index, now)

cdef inline bint shard_watch(shard_t* shard, uint32_t index) noexcept nogil:
    # Registered once; edges only: costs nothing while the listener is healthy.
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLOUT | EPOLLET
    event.data.u64 = index | (<uint64_t>shard.records[index].generation << 32)
    return epoll_ctl(shard.epoll_fd, EPOLL_CTL_ADD, shard.records[index].fd, &event) == 0

cdef inline uint16_t* shard_bucket(shard_t* shard, listener_t* listener) noexcept nogil:
    # Addresses that share a bucket share its bound: cheap, and only ever too strict.
    cdef uint32_t hash = <uint32_t>2166136261
    cdef int i
    for i in range(16):
        hash = (hash ^ listener.address[i]) * <uint32_t>16777619
    return &shard.heads_by_address[(hash ^ (hash >> 16)) % ADDRESS_BUCKETS]

cdef inline void shard_head_add(shard_t* shard, uint32_t index) noexcept nogil:
    # The youngest of the unfinished heads. Over a bound the oldest goes: of this address, or of all.
    cdef listener_t* listener = &shard.records[index]
    cdef uint16_t* bucket = shard_bucket(shard, listener)
    if bucket[0] >= shard.engine.heads_per_address_max:
        shard_evict(shard, shard_oldest_of(shard, listener))
    elif shard.heads >= shard.engine.heads_max:
        shard_evict(shard, shard.oldest_head)
    bucket[0] += 1
    listener.older = shard.newest_head
    listener.newer = NOBODY
    if shard.newest_head != <uint32_t>NOBODY:
        shard.records[shard.newest_head].newer = index
    else:
        shard.oldest_head = index
    shard.newest_head = index
    shard.heads += 1

cdef inline uint32_t shard_oldest_of(shard_t* shard, listener_t* listener) noexcept nogil:
    cdef uint32_t index = shard.oldest_head
    while index != <uint32_t>NOBODY and memcmp(
        shard.records[index].address, listener.address, 16
    ) != 0:
        index = shard.records[index].newer
    return index

cdef inline void shard_evict(shard_t* shard, uint32_t index) noexcept nogil:
    if index != <uint32_t>NOBODY:
        shard.counters.heads_evicted_total += 1
        shard_free(shard, index)

cdef inline void shard_head_remove(shard_t* shard, uint32_t index) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    shard_bucket(shard, listener)[0] -= 1
    if listener.older != <uint32_t>NOBODY:
        shard.records[listener.older].newer = listener.newer
    else:
        shard.oldest_head = listener.newer
    if listener.newer != <uint32_t>NOBODY:
        shard.records[listener.newer].older = listener.older
    else:
        shard.newest_head = listener.older
    shard.heads -= 1

cdef inline void shard_expire_heads(shard_t* shard, uint64_t now) noexcept nogil:
    while shard.oldest_head != <uint32_t>NOBODY and (
        shard.records[shard.oldest_head].began_us + shard.engine.head_timeout_us < now
    ):
        shard.counters.heads_expired_total += 1
        shard_free(shard, shard.oldest_head)

cdef inline void shard_read_head(shard_t* shard, uint32_t index, uint64_t now) noexcept nogil:
    # Reads what has come of the head; acts on it once it is whole.
    cdef listener_t* listener = &shard.records[index]
    cdef uint8_t* bytes = listener.head if listener.head != NULL else shard.bytes
    cdef ssize_t got
    cdef uint64_t whole
    while True:
        got = recv(listener.fd, bytes + listener.head_bytes, HEAD_BYTES_MAX - listener.head_bytes,
                   MSG_DONTWAIT)
        if got == 0 or (got < 0 and errno != EAGAIN):
            shard_free(shard, index)
            return
        if got < 0:
            break
        listener.head_bytes += <uint32_t>got
        whole = head_end(bytes, listener.head_bytes, listener.head_bytes - <uint32_t>got)
        if whole > 0:
            shard_request(shard, index, bytes, whole, now)
            return
        if listener.head_bytes == HEAD_BYTES_MAX:
            shard_refuse(shard, index, 431)
            return
    if listener.head == NULL and listener.head_bytes > 0 and not shard_keep_head(listener, bytes):
        shard_free(shard, index)

cdef inline bint shard_keep_head(listener_t* listener, const uint8_t* bytes) noexcept nogil:
    listener.head = <uint8_t*>malloc(HEAD_BYTES_MAX)
    if listener.head == NULL:
        return False
    memcpy(listener.head, bytes, listener.head_bytes)
    return True

cdef inline bint path_begins(head_t* head, const char* prefix, uint32_t size) noexcept nogil:
    return head.path_bytes >= size and memcmp(head.path, prefix, size) == 0

cdef inline bint path_ends(head_t* head, const char* suffix, uint32_t size) noexcept nogil:
    return head.path_bytes > size and memcmp(head.path + head.path_bytes - size, suffix, size) == 0

cdef inline bint path_is_page(head_t* head) noexcept nogil:
    # The fixed table of the slow door (relay/config.py refuses these as mounts).
    return (
        (head.path_bytes == 1 and head.path[0] == 47)
        or path_begins(head, b"/admin", 6) or path_begins(head, b"/api/", 5)
        or path_begins(head, b"/status", 7)
        or (head.path_bytes == 8 and path_begins(head, b"/metrics", 8))
        or (head.path_bytes == 8 and path_begins(head, b"/healthz", 8))
        or (head.path_bytes == 7 and path_begins(head, b"/readyz", 7))
        or path_ends(head, b".m3u", 4) or path_ends(head, b".pls", 4)
        or path_ends(head, b".xspf", 5)
    )

cdef inline void shard_request(
    shard_t* shard, uint32_t index, uint8_t* bytes, uint64_t whole, uint64_t now
) noexcept nogil:
    # A whole head: to a source's door, a page, or a mount.
    cdef head_t head
    cdef int status = head_parse(&head, bytes, whole)
    if status < 0:
        shard_refuse(shard, index, -status)
    elif head.method == METHOD_PUT or head.method == METHOD_SOURCE:
        shard_hand_over(shard, index, bytes, True)
    elif head.method == METHOD_OPTIONS or head.method == METHOD_POST or (
        (head.method == METHOD_GET or head.method == METHOD_HEAD) and path_is_page(&head)
    ):
        shard_hand_over(shard, index, bytes, False)
    elif head.method == METHOD_GET or head.method == METHOD_HEAD:
        shard_join(shard, index, &head, now)
    else:
        shard_refuse(shard, index, 405)

cdef inline void shard_hand_over(
    shard_t* shard, uint32_t index, const uint8_t* bytes, bint source
) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    cdef engine_t* engine = shard.engine
    epoll_ctl(shard.epoll_fd, EPOLL_CTL_DEL, listener.fd, NULL)
    if handover_put(&engine.sources if source else &engine.pages, listener.fd, bytes,
                    listener.head_bytes, listener.address, listener.port):
        shard.counters.handovers_total += 1
        listener.fd = -1
        shard_free(shard, index)
    else:
        shard_refuse(shard, index, 5030)

# --- a mount is asked for ------------------------------------------------------------------------

cdef inline void shard_join(
    shard_t* shard, uint32_t index, head_t* head, uint64_t now
) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    cdef engine_t* engine = shard.engine
    cdef stream_t* stream = engine_find(engine, head.path, head.path_bytes)
    cdef bint learning = load_u32(&engine.directory_known) == 0
    if stream == NULL and not learning:
        shard_refuse(shard, index, 404 if load_u32(&engine.upstream_up) else 503)
        return
    if stream != NULL and head.method == METHOD_HEAD:
        shard_reply_head(shard, index, stream, head.icy)
        stream_drop(stream)
        return
    if stream != NULL and not shard_take_place(shard, listener, stream):
        stream_drop(stream)
        shard_refuse(shard, index, 5031)
        return
    listener.icy = head.icy
    if stream != NULL and load_pointer(<void**>&stream.ring) != NULL:
        shard_head_remove(shard, index)
        shard_admit(shard, index, now)
    else:
        shard_park(shard, index, head, now)

cdef inline bint shard_take_place(shard_t* shard, listener_t* listener, stream_t* stream) noexcept nogil:
    # Counts it in, on the node and on the mount, if there is room. Takes over the stream's reference.
    cdef uint32_t bound = stream.config.listeners_max
    if add_u32(&shard.engine.listeners, 1) > shard.engine.listeners_max:
        sub_u32(&shard.engine.listeners, 1)
        return False
    if add_u32(&stream.listeners, 1) > bound and bound > 0:
        sub_u32(&stream.listeners, 1)
        sub_u32(&shard.engine.listeners, 1)
        return False
    shard.counters.listeners += 1
    listener.stream = stream
    hub_tell(stream.hub, stream)
    return True

cdef inline void shard_park(
    shard_t* shard, uint32_t index, head_t* head, uint64_t now
) noexcept nogil:
    # Its stream is not here yet: it is looked for again until join_wait is over.
    cdef listener_t* listener = &shard.records[index]
    shard_head_remove(shard, index)
    free(listener.head)
    listener.head = <uint8_t*>malloc(sizeof(head_t))
    listener.state = PARKED
    if listener.head == NULL:
        shard_end(shard, index, END_MEMORY)
        return
    memcpy(listener.head, head, sizeof(head_t))
    wheel_join(&shard.wheel, index, PARKED_LOOK_US)

cdef inline void shard_look_again(shard_t* shard, uint32_t index, uint64_t now) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    cdef head_t* head = <head_t*>listener.head
    cdef engine_t* engine = shard.engine
    cdef bint late = now > listener.began_us + engine.join_wait_us
    cdef stream_t* stream
    if listener.stream == NULL:
        stream = engine_find(engine, head.path, head.path_bytes)
        if stream != NULL and not shard_take_place(shard, listener, stream):
            stream_drop(stream)
            shard_refuse(shard, index, 5031)
            return
    if listener.stream == NULL and (late or load_u32(&engine.directory_known)):
        shard_refuse(shard, index, 404 if load_u32(&engine.upstream_up) else 503)
    elif listener.stream == NULL:
        wheel_put(&shard.wheel, index, shard.wheel.slot + PARKED_LOOK_US // SLOT_US - 1)
    elif load_u32(&listener.stream.closed):
        shard_refuse(shard, index, 404)
    elif load_pointer(<void**>&listener.stream.ring) != NULL or (
        late and load_u32(&engine.upstream_up)
    ):
        shard_admit(shard, index, now)
    elif late:
        shard_refuse(shard, index, 503)
    else:
        wheel_put(&shard.wheel, index, shard.wheel.slot + PARKED_LOOK_US // SLOT_US - 1)

cdef inline void shard_admit(shard_t* shard, uint32_t index, uint64_t now) noexcept nogil:
    # From here on it is a listener. Response head and burst leave in one send.
    cdef listener_t* listener = &shard.records[index]
    cdef flow_t flow
    cdef uint32_t size
    free(listener.head)
    listener.head = NULL
    listener.state = FLOWING
    listener.progress_us = now
    size = shard_write_reply(shard, listener.stream, &listener.icy)
    listener.icy_left_bytes = ICY_METAINT
    shard.counters.joins_total += 1
    add_u64(&listener.stream.counters.joins_total, 1)
    wheel_join(&shard.wheel, index, listener.stream.config.pace_us)
    flow_open(&flow)
    flow_add(&flow, PART_COPY, shard.reply, size, 0)
    shard_flow(shard, index, &flow, now)

cdef inline bint info_is_ogg(const info_t* info) noexcept nogil:
    # Ogg carries its titles itself; a block in between would break the page.
    cdef uint32_t i
    for i in range(info.size_bytes):
        if info.bytes[i] == 13:
            return False
        if info.size_bytes - i >= 3 and (info.bytes[i] | 32) == 111 and (
            (info.bytes[i + 1] | 32) == 103 and (info.bytes[i + 2] | 32) == 103
        ):
            return True
    return False

cdef inline uint32_t shard_write_reply(shard_t* shard, stream_t* stream, bint* icy) noexcept nogil:
    # The response head, into shard.reply. HTTP/1.0 without a length: every player takes it.
    cdef info_t* info = <info_t*>load_pointer(<void**>&stream.info)
    cdef uint64_t unix_s = wall_ms() // 1000
    cdef int size
    cdef uint32_t info_bytes = info.size_bytes if info != NULL else 0
    icy[0] = icy[0] and info != NULL and not info_is_ogg(info)
    if unix_s != shard.date_s:
        shard.date_s = unix_s
        http_date(unix_s, shard.date_text)
    size = snprintf(
        shard.reply, sizeof(shard.reply),
        b"HTTP/1.0 200 OK\r\nServer: Relay\r\nDate: %s\r\nConnection: close\r\n"
        b"Cache-Control: no-cache, no-store\r\nPragma: no-cache\r\n"
        b"Expires: Mon, 26 Jul 1997 05:00:00 GMT\r\nAccept-Ranges: none\r\n"
        b"Access-Control-Allow-Origin: *\r\n"
        b"Access-Control-Expose-Headers: icy-metaint, icy-name, icy-br, icy-genre, icy-url, "
        b"icy-description, ice-audio-info, Content-Length, Content-Range\r\n%.*s",
        shard.date_text, <int>info_bytes, <const char*>info.bytes if info != NULL else b"",
    )
    if icy[0]:
        size += snprintf(shard.reply + size, 64, b"icy-metaint:%d\r\n", <int>ICY_METAINT)
    memcpy(shard.reply + size, b"\r\n", 2)
    return <uint32_t>size + 2

cdef inline void shard_reply_head(
    shard_t* shard, uint32_t index, stream_t* stream, bint icy
) noexcept nogil:
    cdef uint32_t size = shard_write_reply(shard, stream, &icy)
    shard_answer(shard, index, shard.reply, size)

# --- refusals ------------------------------------------------------------------------------------

cdef inline const char* refusal_text(int status, int* reason) noexcept nogil:
    # The bodies are one line that says what to do.
    if status == 404:
        reason[0] = REFUSED_NOT_FOUND
        return b"404 Not Found|no such mount here; GET / lists those that are\n"
    if status == 503:
        reason[0] = REFUSED_UPSTREAM
        return b"503 Service Unavailable|the upstream node is not reachable; try again in a few seconds\n"
    if status == 5030:
        reason[0] = REFUSED_BUSY
        return b"503 Service Unavailable|too many requests are waiting; try again in a few seconds\n"
    if status == 5031:
        reason[0] = REFUSED_FULL
        return b"503 Service Unavailable|all places are taken; try again in a few seconds\n"
    if status == 405:
        reason[0] = REFUSED_METHOD
        return b"405 Method Not Allowed|a mount takes GET, HEAD, PUT and SOURCE\n"
    if status == 414 or status == 431:
        reason[0] = REFUSED_TOO_LARGE
        return b"431 Request Header Fields Too Large|the bound is 8192 bytes and 64 fields\n"
    reason[0] = REFUSED_MALFORMED
    if status == 505:
        return b"505 HTTP Version Not Supported|HTTP/1.0 and HTTP/1.1 are\n"
    return b"400 Bad Request|this is not a request head of HTTP/1.x\n"

cdef inline void shard_refuse(shard_t* shard, uint32_t index, int status) noexcept nogil:
    cdef int reason = 0
    cdef const char* text = refusal_text(status, &reason)
    cdef const char* body = text
    cdef int size
    while body[0] != 124:
        body += 1
    shard.counters.refused_total[reason] += 1
    size = snprintf(
        shard.reply, sizeof(shard.reply), b"HTTP/1.0 %.*s%s%sContent-Length: %d\r\n\r\n%s",
        <int>(body - text), text, <const char*>REPLY_TAIL,
        b"Retry-After: 5\r\n" if status == 503 or status > 5000 else (
            b"Allow: GET, HEAD, OPTIONS, PUT, SOURCE, POST\r\n" if status == 405 else b""
        ),
        <int>strlen(body + 1), body + 1,
    )
    shard_answer(shard, index, shard.reply, <uint32_t>size)

cdef inline void shard_answer(
    shard_t* shard, uint32_t index, const char* bytes, uint32_t size
) noexcept nogil:
    # Sends a whole small reply and parts. Closing while unread bytes wait would reset the reply away:
    # then the close of the other side is awaited, for a second at most.
    cdef listener_t* listener = &shard.records[index]
    cdef uint8_t probe[512]
    send(listener.fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if recv(listener.fd, probe, sizeof(probe), MSG_DONTWAIT) <= 0 or shard.parting >= PARTING_MAX:
        shard_free(shard, index)
        return
    shutdown(listener.fd, SHUT_WR)
    if listener.state == HEAD:
        shard_head_remove(shard, index)
    shard_leave(shard, listener)
    listener.state = PARTING
    shard.parting += 1
    wheel_put(&shard.wheel, index, shard.wheel.slot + PARTING_US // SLOT_US)
