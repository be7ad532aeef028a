# crowd.pxd: all listeners of one swarm: records, joins, replies, reads.
#
# Rules of this room
#   1. One thread. Nothing blocks; nothing is allocated but a checker for each sampled listener, at
#      its join.
#   2. The request leaves in the same turn as connect(), when the handshake is over by then (on
#      loopback it is), else when the socket tells so.
#   3. Until the reply and its first frame are whole they stay in the kernel (MSG_PEEK): a split
#      reply costs no memory here. Edge-triggered: what came since is told again.
#   4. What the server does wrong is counted by its kind, never raised.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from relay._core.histogram cimport histogram_add
from relay._swarm.checker cimport checker_t
from relay._swarm.frame cimport FRAME_BYTES, FRAME_US, frame_find, mark_t
from relay._swarm.listener cimport (
    ASKED, BYTES_MAX, CONNECTING, EAGAIN, EINTR, ENDED, FLAG_FLOOD, FLAG_ICY, FLAG_REPEATED,
    FLAG_SAMPLED, FREE, MSG_DONTWAIT, MSG_TRUNC, NOBODY, PLAYING, REFUSED, SETTLE_US, errno,
    listener_arrival, listener_count, listener_t, listener_take, listener_walk, recv, rules_t,
)
from relay._swarm.mount cimport MOUNTS_MAX, mount_t
from relay._swarm.reply cimport (
    REPLY_BROKEN, REPLY_BYTES_MAX, REPLY_MORE, reply_parse, reply_t,
)
from relay._swarm.tally cimport GROUPS_MAX, tally_failed, tally_t

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

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void* bytes, size_t size, int flags)
    int MSG_NOSIGNAL
    int MSG_PEEK

cdef extern from "<errno.h>" nogil:
    int EMFILE
    int EPROTO

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "net.h" nogil:
    uint64_t swarm_now_us()
    void swarm_sleep_until(uint64_t us)
    int swarm_connect(uint32_t from_, uint32_t to, uint16_t port, uint64_t* begun_us)
    uint32_t swarm_sent_again(int fd)
    int swarm_stands(int fd)
    int swarm_error(int fd)
    void swarm_shrink(int fd)
    void swarm_offer(int fd, int bytes)

cdef enum:
    EVENTS_MAX = 256          # of one turn: 5 ms when each is a reply with its burst
    LOOK_BYTES = REPLY_BYTES_MAX + 4096   # of a reply: its head and the first frame
    HANDSHAKE_US_MAX = 900000   # longer, and a SYN was lost: it is sent again after a second
    CLOSE_US_MAX = 2000000      # a refusal's close comes sooner
    METAINT_MIN = 2 * FRAME_BYTES   # less, and a block could lie in the first frame

cdef struct crowd_t:
    int epoll_fd
    uint16_t port
    uint32_t to               # the server's address
    uint32_t from_            # the first of ours; 0: any
    uint32_t addresses
    uint32_t run
    uint64_t pace_us
    rules_t rules
    uint32_t listeners_max
    uint32_t used             # records that were ever used: all that a sweep has to see
    uint32_t free_first       # of those given back; NOBODY: none
    uint32_t open_now         # descriptors
    uint64_t joins            # so far: chooses the address
    uint64_t no_room          # joins that found no record free: our own fault
    listener_t* listeners     # listeners_max; owned
    mount_t** mounts          # MOUNTS_MAX; owned, as is what they point to
    uint32_t mounts_count
    tally_t* tallies          # GROUPS_MAX; owned
    uint8_t* bytes            # BYTES_MAX; owned

cdef inline int crowd_open(crowd_t* crowd) noexcept nogil:
    # The numbers are set by the caller. False: no memory.
    crowd.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    crowd.free_first = NOBODY
    crowd.listeners = <listener_t*>calloc(crowd.listeners_max, sizeof(listener_t))
    crowd.mounts = <mount_t**>calloc(MOUNTS_MAX, sizeof(mount_t*))
    crowd.tallies = <tally_t*>calloc(GROUPS_MAX, sizeof(tally_t))
    crowd.bytes = <uint8_t*>calloc(1, BYTES_MAX)
    return crowd.epoll_fd >= 0 and (
        crowd.listeners != NULL and crowd.mounts != NULL
        and crowd.tallies != NULL and crowd.bytes != NULL
    )

cdef inline void crowd_hang_up(crowd_t* crowd, listener_t* listener) noexcept nogil:
    if listener.fd >= 0:
        close(listener.fd)
        crowd.open_now -= 1
    listener.fd = -1
    free(listener.checker)
    listener.checker = NULL

cdef inline void crowd_end(crowd_t* crowd, listener_t* listener) noexcept nogil:
    # The server ended it while it played: the record stays, for the report.
    crowd_hang_up(crowd, listener)
    listener.state = ENDED

cdef inline void crowd_free(crowd_t* crowd, listener_t* listener) noexcept nogil:
    crowd_hang_up(crowd, listener)
    listener.state = FREE
    listener.generation += 1
    listener.next_free = crowd.free_first
    crowd.free_first = <uint32_t>(listener - crowd.listeners)

cdef inline void crowd_close(crowd_t* crowd) noexcept nogil:
    cdef uint32_t i
    if crowd.listeners != NULL:
        for i in range(crowd.used):
            if crowd.listeners[i].state != FREE:
                crowd_hang_up(crowd, &crowd.listeners[i])
                crowd.listeners[i].state = FREE
    if crowd.epoll_fd >= 0:
        close(crowd.epoll_fd)
    crowd.epoll_fd = -1
    crowd.used = 0

cdef inline tally_t* crowd_tally(crowd_t* crowd, const listener_t* listener) noexcept nogil:
    return &crowd.tallies[listener.group]

# --- joining --------------------------------------------------------------------------------------

cdef inline listener_t* crowd_take(crowd_t* crowd) noexcept nogil:
    cdef listener_t* listener
    cdef uint32_t generation
    if crowd.free_first != <uint32_t>NOBODY:
        listener = &crowd.listeners[crowd.free_first]
        crowd.free_first = listener.next_free
    elif crowd.used < crowd.listeners_max:
        listener = &crowd.listeners[crowd.used]
        crowd.used += 1
    else:
        return NULL
    generation = listener.generation
    memset(listener, 0, sizeof(listener_t))
    listener.generation = generation
    listener.fd = -1
    return listener

cdef inline void crowd_fail(crowd_t* crowd, listener_t* listener, int error) noexcept nogil:
    tally_failed(crowd_tally(crowd, listener), error)
    crowd_free(crowd, listener)

cdef inline void crowd_watch(
    crowd_t* crowd, listener_t* listener, uint32_t events
) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLET | events
    event.data.u64 = (
        <uint64_t>listener.generation << 32 | <uint32_t>(listener - crowd.listeners)
    )
    if epoll_ctl(crowd.epoll_fd, EPOLL_CTL_ADD, listener.fd, &event) != 0:
        crowd_fail(crowd, listener, errno)   # max_user_watches

cdef inline bint crowd_ask(crowd_t* crowd, listener_t* listener) noexcept nogil:
    # Sends the request, if the connection stands. False: it does not yet, or it failed.
    cdef mount_t* mount = listener.mount
    cdef tally_t* tally = crowd_tally(crowd, listener)
    cdef const uint8_t* head = mount.head
    cdef uint32_t size = mount.head_bytes
    cdef ssize_t sent
    cdef uint64_t took
    if listener.flags & FLAG_ICY:
        head = mount.head_icy
        size = mount.head_icy_bytes
    sent = send(listener.fd, head, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0 and (errno == EAGAIN or errno == EINTR):
        return False
    if sent != <ssize_t>size:
        crowd_fail(crowd, listener, errno if sent < 0 else EPROTO)
        return False
    took = swarm_now_us() - listener.begun_us
    histogram_add(&tally.connect, took)
    listener.state = ASKED
    if took > HANDSHAKE_US_MAX or swarm_sent_again(listener.fd) > 0:
        listener.flags |= FLAG_REPEATED
        tally.syn_repeated += 1
    return True

cdef inline void crowd_join(
    crowd_t* crowd, uint32_t group, uint32_t mount, uint8_t flags
) noexcept nogil:
    # One listener of a group calls connect().
    cdef tally_t* tally = &crowd.tallies[group]
    cdef listener_t* listener = crowd_take(crowd)
    cdef uint32_t from_ = 0
    if listener == NULL:
        crowd.no_room += 1
        tally_failed(tally, EMFILE)
        return
    listener.mount = crowd.mounts[mount]
    listener.group = <uint8_t>group
    listener.flags = flags
    listener.state = CONNECTING
    if crowd.from_ != 0:
        from_ = crowd.from_ + <uint32_t>(crowd.joins % crowd.addresses)
    crowd.joins += 1
    listener.fd = swarm_connect(from_, crowd.to, crowd.port, &listener.begun_us)
    if listener.fd < 0:
        tally_failed(tally, -listener.fd)
        listener.fd = -1
        crowd_free(crowd, listener)
        return
    crowd.open_now += 1
    tally.asked += 1
    tally.last_us = listener.begun_us
    if tally.began_us == 0:
        tally.began_us = listener.begun_us
    if crowd_ask(crowd, listener):
        crowd_watch(crowd, listener, 0)
    elif listener.state == CONNECTING:
        crowd_watch(crowd, listener, EPOLLOUT)

# --- the reply ------------------------------------------------------------------------------------

cdef inline bint crowd_sample(crowd_t* crowd, listener_t* listener) noexcept nogil:
    # Gives a sampled listener its checker. False: no memory.
    cdef checker_t* checker = <checker_t*>calloc(1, sizeof(checker_t))
    cdef uint64_t block_us = <uint64_t>listener.metaint * FRAME_US // FRAME_BYTES
    if checker == NULL:
        return False
    checker.mount = listener.mount
    checker.tally = crowd_tally(crowd, listener)
    checker.run = crowd.run
    checker.live_us = listener.first_us
    checker.title_age_us = crowd.pace_us + block_us + 1000000
    listener.checker = checker
    return True

cdef inline bint crowd_start(
    crowd_t* crowd, listener_t* listener, const reply_t* reply, int64_t size
) noexcept nogil:
    # A 200 whose body has begun. True once the listener plays.
    cdef tally_t* tally = crowd_tally(crowd, listener)
    cdef int64_t body = size - reply.body_at
    cdef int64_t at
    cdef mark_t mark
    if crowd.rules.frames:
        at = frame_find(crowd.bytes + reply.body_at, body, &mark)
        if at < 0 and body < LOOK_BYTES - REPLY_BYTES_MAX:
            return False
        if at < 0 or mark.run != crowd.run or mark.mount != listener.mount.number or (
            0 < reply.metaint < METAINT_MIN
        ):
            tally.foreign += 1
            crowd_free(crowd, listener)
            return False
        listener.position = <int64_t>(mark.sequence * FRAME_BYTES) - at
    recv(listener.fd, crowd.bytes, reply.body_at, MSG_DONTWAIT)
    listener.metaint = listener.audio_left = reply.metaint
    if listener.flags & FLAG_SAMPLED and crowd.rules.frames and not crowd_sample(crowd, listener):
        crowd_fail(crowd, listener, 12)
        return False
    listener.state = PLAYING
    listener.last_us = listener.first_us
    tally.joined += 1
    tally.settled_us = listener.first_us
    if swarm_sent_again(listener.fd) > (1 if listener.flags & FLAG_REPEATED else 0):
        tally.head_repeated += 1
    return True

cdef inline void crowd_accepted(
    crowd_t* crowd, listener_t* listener, const reply_t* reply, int64_t size
) noexcept nogil:
    cdef tally_t* tally = crowd_tally(crowd, listener)
    if listener.flags & FLAG_FLOOD:
        tally.admitted += 1
        crowd_free(crowd, listener)
        return
    if size <= reply.body_at:
        return
    if listener.first_us == 0:
        listener.first_us = swarm_now_us()
        listener.judged_by_us = listener.first_us + SETTLE_US
        histogram_add(&tally.first_audio, listener.first_us - listener.begun_us)
    if crowd_start(crowd, listener, reply, size):
        crowd_read(crowd, listener)

cdef inline void crowd_refused(
    crowd_t* crowd, listener_t* listener, const reply_t* reply, int64_t size, bint is_over
) noexcept nogil:
    # Another status than 200: whole, once its body is, and then closed by the server.
    cdef tally_t* tally = crowd_tally(crowd, listener)
    cdef bint is_whole = (
        size - reply.body_at == reply.content_bytes if reply.content_bytes >= 0 else is_over
    )
    if is_whole:
        recv(listener.fd, crowd.bytes, BYTES_MAX, MSG_DONTWAIT)
        tally.refused[reply.status] += 1
        listener.state = REFUSED
        listener.last_us = swarm_now_us()
        crowd_part(crowd, listener)
    elif is_over or (reply.content_bytes >= 0 and size - reply.body_at > reply.content_bytes):
        tally.cut += 1
        crowd_free(crowd, listener)

cdef inline void crowd_part(crowd_t* crowd, listener_t* listener) noexcept nogil:
    # After a whole refusal: only the end may follow.
    cdef tally_t* tally = crowd_tally(crowd, listener)
    cdef ssize_t got = recv(listener.fd, crowd.bytes, BYTES_MAX, MSG_DONTWAIT)
    cdef uint64_t now
    if got < 0 and (errno == EAGAIN or errno == EINTR):
        return
    if got == 0:
        now = swarm_now_us()
        tally.settled_us = now
        histogram_add(&tally.refusal, now - listener.begun_us)
    elif got > 0:
        tally.cut += 1
    else:
        tally.resets += 1
    crowd_free(crowd, listener)

cdef inline void crowd_reply(crowd_t* crowd, listener_t* listener, bint is_over) noexcept nogil:
    # Looks at what has come of the reply, and leaves it in the kernel until it is enough.
    cdef tally_t* tally = crowd_tally(crowd, listener)
    cdef reply_t reply
    cdef int status
    cdef ssize_t got = recv(listener.fd, crowd.bytes, LOOK_BYTES, MSG_DONTWAIT | MSG_PEEK)
    if got < 0:
        if errno != EAGAIN and errno != EINTR:
            tally.resets += 1
            crowd_free(crowd, listener)
        return
    memset(&reply, 0, sizeof(reply_t))
    status = reply_parse(&reply, crowd.bytes, got)
    if status == REPLY_BROKEN or (status == REPLY_MORE and is_over):
        tally.cut += 1
        crowd_free(crowd, listener)
    elif status == 200:
        crowd_accepted(crowd, listener, &reply, got)
        if is_over and listener.state == ASKED:
            tally.ended += 1
            crowd_free(crowd, listener)
    elif status > 0:
        crowd_refused(crowd, listener, &reply, got, is_over)

# --- playing --------------------------------------------------------------------------------------

cdef inline void crowd_read(crowd_t* crowd, listener_t* listener) noexcept nogil:
    # Takes all that has come: until a read brings less than it could.
    cdef tally_t* tally = crowd_tally(crowd, listener)
    cdef ssize_t got = BYTES_MAX
    cdef uint64_t looked
    cdef uint64_t now
    cdef bint first = True
    while got == BYTES_MAX:
        got = listener_take(listener, crowd.bytes, &looked)
        if got <= 0:
            break
        now = swarm_now_us()
        if first and listener.bytes > 0:   # the burst is no arrival after another
            listener_arrival(listener, tally, &crowd.rules, now)
            first = False
        if looked:
            listener_walk(listener, tally, crowd.bytes, got, now)
        else:
            listener_count(listener, tally, got)
    if got == 0:
        tally.ended += 1
        crowd_end(crowd, listener)
    elif got < 0 and errno != EAGAIN and errno != EINTR:
        tally.resets += 1
        crowd_end(crowd, listener)

cdef inline void crowd_event(crowd_t* crowd, const epoll_event* event) noexcept nogil:
    cdef listener_t* listener = &crowd.listeners[<uint32_t>event.data.u64]
    cdef uint32_t events = event.events
    cdef bint is_over = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) != 0
    if listener.generation != <uint32_t>(event.data.u64 >> 32):
        return
    if listener.state == CONNECTING:
        if events & (EPOLLERR | EPOLLHUP):
            crowd_fail(crowd, listener, swarm_error(listener.fd))
        elif events & EPOLLOUT and not crowd_ask(crowd, listener):
            return
    elif listener.state == ASKED:
        crowd_reply(crowd, listener, is_over)
    elif listener.state == REFUSED:
        crowd_part(crowd, listener)
    if listener.state == PLAYING:
        crowd_read(crowd, listener)
        if is_over and listener.state == PLAYING:   # what came together with the end
            crowd_read(crowd, listener)
