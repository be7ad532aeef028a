# sources.pxd: the thread that writes every mount's frames at their media time, and sets titles.
#
# Rules of this room
#   1. One thread for all mounts. It never blocks but in its sleep: a server that takes nothing
#      holds back its own mount alone, and that is measured.
#   2. A frame is stamped right before its send, one send for each. Frame n is due at begun_us +
#      n × 24 ms, so that delays never add up.
#   3. Mount i is served in slot i % SLOTS of each 24 ms: 500 mounts are 21 sends a millisecond, not
#      500 at once.
#   4. How late it woke is its own fault, and told (delay_us_max).

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from relay._core.atomics cimport load_u32, load_u64_relaxed, store_u32, store_u64, store_u64_relaxed
from relay._core.thread cimport pthread_t
from relay._swarm.crowd cimport MSG_NOSIGNAL, close, send, swarm_connect, swarm_now_us, \
    swarm_sleep_until
from relay._swarm.frame cimport FRAME_BYTES, FRAME_US, frame_write, mark_t
from relay._swarm.listener cimport EAGAIN, EINTR, MSG_DONTWAIT, errno, recv
from relay._swarm.mount cimport (
    REQUEST_BYTES_MAX, SOURCE_LIVE, SOURCE_LOST, TITLES_KEPT, mount_book, mount_t, mount_told,
)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char* to, size_t size, const char* format, ...)

cdef enum:
    SLOTS = 24
    SLOT_US = 1000
    TITLE_US_MAX = 5000000    # a title that is not confirmed by then is refused

cdef struct sources_t:
    mount_t** mounts          # the crowd's; entries never move
    uint32_t mounts_count     # release order: the thread sees whole entries
    uint32_t run
    uint32_t to               # for titles: where the server is
    uint16_t port
    uint32_t stop
    uint32_t paused           # wanted: no more frames
    uint32_t is_paused        # done: nothing is written any more
    pthread_t thread
    uint64_t tick             # slots served so far
    uint64_t base_us          # slot k is due at base_us + k × SLOT_US
    uint64_t delay_us_max     # since the face cleared it
    uint64_t busy_us          # not asleep, since its start
    uint64_t frames

cdef inline void source_lose(mount_t* mount, int error) noexcept nogil:
    mount.error = error
    store_u32(&mount.source_state, SOURCE_LOST)

cdef inline void source_held(mount_t* mount, uint64_t now, bint is_held) noexcept nogil:
    # Keeps how long the server took nothing.
    if is_held and mount.held_us == 0:
        mount.held_us = now
    if mount.held_us != 0 and now - mount.held_us > mount.held_us_max:
        mount.held_us_max = now - mount.held_us
    if not is_held:
        mount.held_us = 0

cdef inline bint source_send(
    mount_t* mount, const uint8_t* bytes, uint32_t size, uint64_t now
) noexcept nogil:
    # True when all of it went; what did not is kept.
    cdef ssize_t sent = send(mount.fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        if errno != EAGAIN and errno != EINTR:
            source_lose(mount, errno)
            return False
        sent = 0
    source_held(mount, now, sent < size)
    if sent < size:
        memmove(mount.rest, bytes + sent, size - sent)
    mount.rest_bytes = size - <uint32_t>sent
    return mount.rest_bytes == 0

cdef inline void source_serve(sources_t* sources, mount_t* mount, uint64_t due_us) noexcept nogil:
    # Writes what is due by then; after a delay that is more than one frame.
    cdef uint8_t frame[FRAME_BYTES]
    cdef mark_t mark
    if mount.begun_us == 0:
        mount.begun_us = due_us
        mount.title_due_us = due_us + mount.title_every_us
    if mount.rest_bytes > 0 and not source_send(
        mount, mount.rest, mount.rest_bytes, swarm_now_us()
    ):
        return
    mark.run = sources.run
    mark.mount = mount.number
    mark.sequence = load_u64_relaxed(&mount.head_sequence)
    while mount.begun_us + mark.sequence * FRAME_US <= due_us:
        mark.written_us = swarm_now_us()
        frame_write(frame, &mark)
        mount_book(mount, mark.written_us)
        sources.frames += 1
        if not source_send(mount, frame, FRAME_BYTES, mark.written_us):
            return
        mark.sequence += 1

# --- titles ---------------------------------------------------------------------------------------

cdef inline void title_over(mount_t* mount, bint is_told, uint64_t now) noexcept nogil:
    close(mount.title_fd)
    mount.title_fd = -1
    if is_told:
        mount_told(mount, now)
    else:
        mount.titles_refused += 1

cdef inline void title_begin(sources_t* sources, mount_t* mount, uint64_t now) noexcept nogil:
    cdef uint64_t number = load_u64_relaxed(&mount.titles_asked) + 1
    cdef uint64_t begun
    store_u64_relaxed(&mount.told_us[number % TITLES_KEPT], 0)
    store_u64(&mount.titles_asked, number)
    mount.title_due_us = now + mount.title_every_us
    mount.title_sent = False
    mount.title_fd = swarm_connect(0, sources.to, sources.port, &begun)
    if mount.title_fd < 0:
        mount.title_fd = -1
        mount.titles_refused += 1

cdef inline void title_serve(sources_t* sources, mount_t* mount, uint64_t now) noexcept nogil:
    # One step of the request under way, if there is one; begins the next when it is due.
    cdef char text[2 * REQUEST_BYTES_MAX + 32]
    cdef int size
    cdef ssize_t done
    if mount.title_fd < 0 and mount.title_every_us > 0 and now >= mount.title_due_us:
        title_begin(sources, mount, now)
    if mount.title_fd < 0:
        return
    if not mount.title_sent:
        size = snprintf(
            text, sizeof(text), b"%.*s%llu%.*s", <int>mount.title_head_bytes, mount.title_head,
            <unsigned long long>load_u64_relaxed(&mount.titles_asked),
            <int>mount.title_tail_bytes, mount.title_tail,
        )
        done = send(mount.title_fd, text, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        mount.title_sent = done == size
    else:
        done = recv(mount.title_fd, text, 32, MSG_DONTWAIT)
        if done >= 0:
            title_over(mount, done >= 12 and text[9] == 50 and text[10] == 48, now)
            return
    if done < 0 and errno != EAGAIN and errno != EINTR or (
        now > mount.title_due_us - mount.title_every_us + TITLE_US_MAX
    ):
        title_over(mount, False, now)

# --- the thread -----------------------------------------------------------------------------------

cdef inline uint64_t sources_next(sources_t* sources) noexcept nogil:
    # The next slot that has a mount; with none, the first of the next round.
    cdef uint64_t tick = sources.tick
    cdef uint32_t count = load_u32(&sources.mounts_count)
    if tick % SLOTS >= count:
        tick += SLOTS - tick % SLOTS
    return tick

cdef inline void sources_slot(sources_t* sources, uint64_t due_us) noexcept nogil:
    cdef uint32_t count = load_u32(&sources.mounts_count)
    cdef uint32_t i = <uint32_t>(sources.tick % SLOTS)
    cdef mount_t* mount
    while i < count:
        mount = sources.mounts[i]
        if load_u32(&mount.source_state) == SOURCE_LIVE:
            if load_u32(&sources.paused):
                store_u32(&sources.is_paused, 1)
                return
            source_serve(sources, mount, due_us)
            title_serve(sources, mount, due_us)
        i += SLOTS

cdef inline void* sources_main(void* argument) noexcept nogil:
    cdef sources_t* sources = <sources_t*>argument
    cdef uint64_t due
    cdef uint64_t now = swarm_now_us()
    sources.base_us = now
    while not load_u32(&sources.stop):
        sources.tick = sources_next(sources)
        due = sources.base_us + sources.tick * SLOT_US
        sources.busy_us += swarm_now_us() - now
        swarm_sleep_until(due)
        now = swarm_now_us()
        if now - due > load_u64_relaxed(&sources.delay_us_max):
            store_u64_relaxed(&sources.delay_us_max, now - due)
        sources_slot(sources, due)
        sources.tick += 1
    return NULL
