# intake.pxd: the thread that reads from the sources' sockets, once Python has let them in.
#
# Rules of this room
#   1. One thread, `intake.lock` held for each batch of reads; Python takes the same lock to attach,
#      detach, feed or set a title, for µs. So a stream has one writer at a time.
#   2. A source that runs ahead by more than ahead_us_max is not read until real time has caught up.
#   3. Bounds: INTAKE_READ_BYTES a read, one read a source and turn; members_max sources.
#   4. Where many send small pieces a turn rests a little, outside the lock, so that the next one
#      finds several (rest.pxd).
#   5. Does not know HTTP heads, passwords or logs: an end is told with its reason (event_fd), and
#      Python says the last words. The descriptor is a duplicate: closing it resets nothing.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from relay._core.atomics cimport load_u32, store_u32, store_u64
from relay._core.body cimport BODY_ENDED, body_next, body_t
from relay._core.connection cimport (
    EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, epoll_create1, epoll_ctl,
    epoll_event, epoll_wait, recv,
)
from relay._core.cutter cimport cutter_ahead_us, cutter_feed, cutter_t
from relay._core.engine cimport now_us, timespec, wall_us
from relay._core.framed cimport FRAMED_WHOLE, framed_feed, framed_t
from relay._core.handover cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, close, eventfd, eventfd_read, eventfd_write,
)
from relay._core.listener cimport EAGAIN, EINTR, MSG_DONTWAIT, errno
from relay._core.recorder cimport (
    OTHERS_COMMON, OTHERS_RARE, RECORD_NOBODY, RECORD_SOURCE_READ, record, recorder_close,
    recorder_is_due, recorder_open, recorder_t, recorder_tick,
)
from relay._core.rest cimport rest_us
from relay._core.retire cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock,
)
from relay._core.tables cimport table_close, table_open

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int command, ...)
    int F_DUPFD_CLOEXEC

cdef extern from "<time.h>" nogil:
    int clock_nanosleep(int clock, int flags, const timespec* wait, timespec* rest)
    int CLOCK_MONOTONIC

cdef enum:
    INTAKE_READ_BYTES = 8192  # 2 s of 32 kbit/s: what one read may put the source ahead
    INTAKE_EVENTS = 64
    INTAKE_HOLD_US_MIN = 20000
    INTAKE_LEAD_US_MAX = 30000000  # beyond ahead_us_max; one read of 8 kbit/s is 8 s
    INTAKE_WAIT_MS_MAX = 1000

cdef enum:  # state of a member
    INTAKE_FREE = 0
    INTAKE_READING = 1
    INTAKE_HELD = 2           # ahead of real time
    INTAKE_ENDED = 3          # `reason` says why

cdef enum:  # reason; below zero: scan_reason, body_reason or framed_reason
    INTAKE_CLOSED = 1         # the encoder closed its end
    INTAKE_LOST = 2           # the connection broke: `error`
    INTAKE_WHOLE = 3          # the body has ended
    INTAKE_BROKEN = 4         # the flight recorder's word for all that are below zero

cdef enum:  # intake_attach, beside minus errno
    INTAKE_FULL = -4096
    INTAKE_ATTACHED = -4097   # nothing was done: the caller has a member already

cdef enum:  # epoll data that is no member
    INTAKE_WAKE = 0xFFFFFFFF

cdef struct intake_member_t:
    int fd                    # owned
    int state
    uint32_t generation       # tells late events of an earlier source
    int error                 # errno of a broken connection
    int64_t reason
    cutter_t* cutter          # borrowed: whoever attached it detaches before it goes
    framed_t* framed          # the same; NULL: the cutter cuts the bytes, else it keeps time alone
    body_t body
    int64_t ahead_us_max
    uint64_t resume_us        # HELD: when it is read again
    bint has_audio            # its first frame has come, and Python has been told

cdef struct intake_t:
    pthread_mutex_t lock
    intake_member_t* members  # members_max; owned
    uint32_t members_max
    uint32_t members_top      # all from here on were never used
    uint32_t held             # members that are HELD
    int epoll_fd, wake_fd
    int event_fd              # readable: a source has ended, or had its first frame
    uint32_t stop             # 1: end the thread
    uint64_t turns_total      # of the thread, which alone writes it
    recorder_t recorder       # of whoever holds the lock
    bint more                 # in this turn a source had sent more than one read takes
    uint8_t bytes[INTAKE_READ_BYTES]

cdef inline int intake_open(intake_t* intake, uint32_t members_max) noexcept nogil:
    # -1: no memory or descriptor; intake_close is called all the same.
    cdef epoll_event event
    pthread_mutex_init(&intake.lock, NULL)
    intake.members_max = members_max
    intake.members = <intake_member_t*>table_open(members_max, sizeof(intake_member_t))
    intake.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    intake.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    intake.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if (
        recorder_open(&intake.recorder, OTHERS_RARE, OTHERS_COMMON) != 0
        or intake.members == NULL or intake.epoll_fd < 0 or intake.wake_fd < 0
        or intake.event_fd < 0
    ):
        return -1
    event.events = EPOLLIN
    event.data.u64 = INTAKE_WAKE
    return epoll_ctl(intake.epoll_fd, EPOLL_CTL_ADD, intake.wake_fd, &event)

cdef inline void intake_close(intake_t* intake) noexcept nogil:
    # The thread has ended.
    cdef uint32_t i
    if intake.members != NULL:
        for i in range(intake.members_top):
            if intake.members[i].state != INTAKE_FREE:
                close(intake.members[i].fd)
    close(intake.epoll_fd)
    close(intake.wake_fd)
    close(intake.event_fd)
    table_close(intake.members)
    recorder_close(&intake.recorder)
    intake.members = NULL
    pthread_mutex_destroy(&intake.lock)

cdef inline bint intake_watch(intake_t* intake, uint32_t index) noexcept nogil:
    cdef intake_member_t* member = &intake.members[index]
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = index | (<uint64_t>member.generation << 32)
    return epoll_ctl(intake.epoll_fd, EPOLL_CTL_ADD, member.fd, &event) == 0

cdef inline void intake_unwatch(intake_t* intake, intake_member_t* member) noexcept nogil:
    # Taken out rather than left without events: a broken connection would wake the thread for ever.
    epoll_ctl(intake.epoll_fd, EPOLL_CTL_DEL, member.fd, NULL)

cdef inline void intake_end(
    intake_t* intake, intake_member_t* member, int64_t reason,
) noexcept nogil:
    intake_unwatch(intake, member)
    member.state = INTAKE_ENDED
    member.reason = reason
    recorder_tick(&intake.recorder, now_us(), wall_us())
    record(
        &intake.recorder, now_us(), member.cutter.stream.key, RECORD_SOURCE_READ,
        <uint32_t>reason if reason > 0 else INTAKE_BROKEN, RECORD_NOBODY, <uint64_t>member.error,
        member.cutter.fed_media_us, 0,
    )
    eventfd_write(intake.event_fd, 1)

cdef inline int64_t intake_framed(
    intake_t* intake, framed_t* framed, cutter_t* cutter, const uint8_t* bytes, uint64_t size,
    uint64_t now,
) noexcept nogil:
    # Under the lock: a framed body tells the recorder of its epochs and losses.
    cdef int64_t status
    if recorder_is_due(&intake.recorder, now):
        recorder_tick(&intake.recorder, now, wall_us())
    status = framed_feed(framed, bytes, size, now)
    cutter.fed_media_us = framed.fed_media_us
    return status

cdef inline int64_t intake_feed_framed(
    intake_t* intake, framed_t* framed, cutter_t* cutter, const uint8_t* bytes, uint64_t size,
    uint64_t now,
) noexcept nogil:
    # By hand, without a socket.
    cdef int64_t status
    pthread_mutex_lock(&intake.lock)
    status = intake_framed(intake, framed, cutter, bytes, size, now)
    pthread_mutex_unlock(&intake.lock)
    return status

cdef inline int64_t intake_feed(
    intake_t* intake, intake_member_t* member, const uint8_t* bytes, uint64_t size, uint64_t now,
) noexcept nogil:
    # 0, or why this source cannot go on.
    cdef uint64_t audio_bytes
    cdef int64_t step
    while size > 0 and member.body.state != BODY_ENDED:
        step = body_next(&member.body, bytes, size, &audio_bytes)
        if step < 0:
            return step
        bytes += step
        size -= <uint64_t>step
        if audio_bytes > 0 and member.framed != NULL:
            step = intake_framed(
                intake, member.framed, member.cutter, bytes - audio_bytes, audio_bytes, now
            )
            if step == FRAMED_WHOLE:
                return INTAKE_WHOLE
        elif audio_bytes > 0:
            step = cutter_feed(member.cutter, bytes - audio_bytes, audio_bytes, now)
        if audio_bytes > 0 and step < 0:
            return step
    return INTAKE_WHOLE if member.body.state == BODY_ENDED else 0

# --- under the lock, from Python ------------------------------------------------------------------

cdef inline int64_t intake_attach(
    intake_t* intake, int fd, cutter_t* cutter, framed_t* framed, const body_t* body,
    uint64_t ahead_us_max, const uint8_t* first, uint64_t first_bytes,
) noexcept nogil:
    # Takes the first bytes, then the thread reads on from this socket. The member's index; below
    # zero: INTAKE_FULL, or minus errno.
    cdef uint32_t index = 0
    cdef intake_member_t* member
    cdef int64_t reason
    while index < intake.members_max and intake.members[index].state != INTAKE_FREE:
        index += 1
    if index == intake.members_max:
        return INTAKE_FULL
    if index >= intake.members_top:
        intake.members_top = index + 1
    member = &intake.members[index]
    member.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)
    if member.fd < 0:
        return -errno
    member.generation += 1
    member.error = 0
    member.reason = 0
    member.cutter = cutter
    member.framed = framed
    member.body = body[0]
    member.ahead_us_max = <int64_t>ahead_us_max
    member.has_audio = False
    member.state = INTAKE_READING
    if not intake_watch(intake, index):
        member.error = errno
        intake_detach(intake, index)
        return -member.error
    reason = intake_feed(intake, member, first, first_bytes, now_us())
    if reason != 0:
        intake_end(intake, member, reason)
    return index

cdef inline void intake_detach(intake_t* intake, uint32_t index) noexcept nogil:
    cdef intake_member_t* member = &intake.members[index]
    if member.state == INTAKE_READING:
        intake_unwatch(intake, member)
    elif member.state == INTAKE_HELD:
        intake.held -= 1
    close(member.fd)
    member.fd = -1
    member.cutter = NULL
    member.framed = NULL
    member.state = INTAKE_FREE

# --- the thread -----------------------------------------------------------------------------------

cdef inline void intake_read(intake_t* intake, intake_member_t* member) noexcept nogil:
    # One read of one source.
    cdef ssize_t got = recv(member.fd, intake.bytes, INTAKE_READ_BYTES, MSG_DONTWAIT)
    cdef int64_t reason
    cdef int64_t ahead_us
    cdef uint64_t now
    if got < 0 and (errno == EAGAIN or errno == EINTR):
        return
    if got <= 0:
        member.error = errno if got < 0 else 0
        intake_end(intake, member, INTAKE_LOST if got < 0 else INTAKE_CLOSED)
        return
    intake.more = intake.more or got == INTAKE_READ_BYTES
    now = now_us()
    reason = intake_feed(intake, member, intake.bytes, <uint64_t>got, now)
    if reason != 0:
        intake_end(intake, member, reason)
        return
    if not member.has_audio and member.cutter.fed_media_us > 0:
        member.has_audio = True
        eventfd_write(intake.event_fd, 1)
    ahead_us = cutter_ahead_us(
        member.cutter, now, member.ahead_us_max + INTAKE_LEAD_US_MAX
    ) - member.ahead_us_max
    if ahead_us > 0:
        intake_unwatch(intake, member)
        member.state = INTAKE_HELD
        member.resume_us = now + (
            <uint64_t>ahead_us if ahead_us > INTAKE_HOLD_US_MIN else INTAKE_HOLD_US_MIN
        )
        intake.held += 1

cdef inline int intake_resume(intake_t* intake, uint64_t now) noexcept nogil:
    # Reads on from those with whom real time has caught up; how long to wait at most, ms (-1: until
    # something comes).
    cdef uint64_t next_us = now + INTAKE_WAIT_MS_MAX * 1000
    cdef uint32_t i
    cdef intake_member_t* member
    if intake.held == 0:
        return -1
    for i in range(intake.members_top):
        member = &intake.members[i]
        if member.state != INTAKE_HELD:
            continue
        if member.resume_us <= now:
            member.state = INTAKE_READING
            intake.held -= 1
            if not intake_watch(intake, i):
                intake_end(intake, member, INTAKE_LOST)
        elif member.resume_us < next_us:
            next_us = member.resume_us
    return <int>((next_us - now + 999) // 1000)

cdef inline void intake_turn(intake_t* intake, epoll_event* events, int count) noexcept nogil:
    cdef int i
    cdef uint32_t index
    cdef uint64_t drained
    for i in range(count):
        index = <uint32_t>events[i].data.u64
        if index == <uint32_t>INTAKE_WAKE:
            eventfd_read(intake.wake_fd, &drained)
        elif intake.members[index].state == INTAKE_READING and (
            intake.members[index].generation == <uint32_t>(events[i].data.u64 >> 32)
        ):
            intake_read(intake, &intake.members[index])

cdef inline void intake_run(intake_t* intake) noexcept nogil:
    # The thread's loop, until `stop`.
    cdef epoll_event events[INTAKE_EVENTS]
    cdef int count
    cdef int wait_ms = -1
    cdef uint64_t before
    cdef uint64_t began = 0
    cdef uint64_t wait_us
    while not load_u32(&intake.stop):
        count = epoll_wait(intake.epoll_fd, events, INTAKE_EVENTS, wait_ms)
        before = began
        began = now_us()
        intake.more = count == INTAKE_EVENTS
        pthread_mutex_lock(&intake.lock)
        intake_turn(intake, events, count)
        wait_ms = intake_resume(intake, now_us())
        store_u64(&intake.turns_total, intake.turns_total + 1)
        pthread_mutex_unlock(&intake.lock)
        wait_us = rest_us(before, began, now_us(), intake.more)
        if wait_us > 0:
            intake_rest(wait_us)

cdef inline void intake_rest(uint64_t wait_us) noexcept nogil:
    cdef timespec wait
    wait.tv_sec = 0
    wait.tv_nsec = <long>(wait_us * 1000)
    clock_nanosleep(CLOCK_MONOTONIC, 0, &wait, NULL)
