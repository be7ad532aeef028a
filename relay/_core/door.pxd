# door.pxd: those who come: accepting, request heads, joining a mount, refusals, hand-over to
# Python.
#
# Rules of this room
#   1. The shard's thread answers every GET and HEAD of a mount itself, refusals included: no
#      Python.
#   2. Unfinished heads have their own bounds (heads_max, heads_per_address_max; the oldest goes
#      first) and end after head_timeout: a slow drip never takes a listener's place.
#   3. Small bites: ACCEPTS_PER_TURN, so that those who listen stay on time during a storm.
#   4. A reply is never reset away by closing early; nor does a refused connection stay beyond a
#      second.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, strlen

from relay._core.atomics cimport add_u32, add_u64, load_pointer, load_u32, sub_u32
from relay._core.connection cimport (
    ADDRESS_BUCKETS, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLL_CTL_ADD, EPOLL_CTL_DEL,
    PARTING_MAX,
    PARTING_US, REFUSED_BUSY, REFUSED_DESCRIPTORS, REFUSED_FULL, REFUSED_MALFORMED, REFUSED_METHOD,
    REFUSED_NOT_FOUND, REFUSED_TOO_LARGE, REFUSED_UPSTREAM, SHUT_WR, SOCK_CLOEXEC, SOCK_NONBLOCK,
    accept4, door_address, door_reserve, epoll_ctl, epoll_event, http_date, recv, shard_bucket,
    shard_end, shard_flow, shard_free, shard_head_remove, shard_join_wheel, shard_leave,
    shard_swallow, shard_t, shard_watch_door, shutdown, sockaddr, sockaddr_storage, socklen_t,
)
from relay._core.engine cimport engine_find, engine_t, wall_ms
from relay._core.handover cimport close, handover_put
from relay._core.http_head cimport (
    HEAD_BYTES_MAX, METHOD_GET, METHOD_HEAD, METHOD_OPTIONS, METHOD_POST, METHOD_PUT, METHOD_SOURCE,
    head_end, head_parse, head_t, strncasecmp,
)
from relay._core.icy cimport ICY_METAINT
from relay._core.listener cimport (
    EAGAIN, EMFILE, END_MEMORY, ENFILE, FLOWING, HEAD, MSG_DONTWAIT, MSG_NOSIGNAL, PARKED, PARTING,
    PART_COPY, errno, flow_add, flow_open, flow_t, listener_t, send,
)
from relay._core.pace cimport NOBODY, SLOT_US, wheel_join, wheel_put
from relay._core.stream cimport hub_tell, info_t, stream_drop, stream_t

cdef extern from "replies.h" nogil:
    const char* REPLY_200       # formats: the date; the length and text of the stream's own lines
    const char* REPLY_503       # whole, for those who are refused unseen
    # formats: status line (length, text), one more field, body (length, text)
    const char* REPLY_REFUSED
    const char* NO_TEXT

cdef enum:
    ACCEPTS_PER_TURN = 64
    PARKED_LOOK_US = 20000
    DOOR_SHUT_US = 50000      # after another thread took even the reserved descriptor

# --- accepting and reading heads ------------------------------------------------------------------


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
            if (errno == EMFILE or errno == ENFILE) and shard_refuse_unseen(shard, now):
                continue
            return
        shard.counters.accepts_total += 1
        shard_welcome(shard, fd, &from_, now)

cdef inline bint shard_refuse_unseen(shard_t* shard, uint64_t now) noexcept nogil:
    # No descriptor is left: the reserved one makes room to refuse with. False: nobody was refused,
    # since nobody waits (accept looks for a descriptor first), or since another thread took the
    # reserve: then the door shuts for a while, or those who wait would wake the shard for ever.
    cdef int fd
    if shard.reserve_fd >= 0:
        close(shard.reserve_fd)
    fd = accept4(shard.listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd >= 0:
        shard.counters.refused_total[REFUSED_DESCRIPTORS] += 1
        recv(fd, shard.bytes, HEAD_BYTES_MAX, MSG_DONTWAIT)
        send(fd, REPLY_503, strlen(REPLY_503), MSG_DONTWAIT | MSG_NOSIGNAL)
        close(fd)
    elif errno != EAGAIN:
        epoll_ctl(shard.epoll_fd, EPOLL_CTL_DEL, shard.listen_fd, NULL)
        shard.shut_until_us = now + DOOR_SHUT_US
    shard.reserve_fd = door_reserve()
    return fd >= 0

cdef inline void shard_open_door(shard_t* shard, uint64_t now) noexcept nogil:
    # Accepts again after it was shut for want of descriptors.
    if shard.shut_until_us > 0 and now >= shard.shut_until_us and shard.listen_fd >= 0:
        shard.shut_until_us = 0
        shard_watch_door(shard)

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
    listener.began_us = listener.progress_us = listener.audio_us = now
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

cdef inline void shard_head_add(shard_t* shard, uint32_t index) noexcept nogil:
    # The youngest of the unfinished heads. Over a bound the oldest goes: of this address, or of
    # all. Addresses whose buckets collide may leave the first bound without a victim: the second
    # holds.
    cdef listener_t* listener = &shard.records[index]
    cdef uint16_t* bucket = shard_bucket(shard, listener)
    if bucket[0] >= shard.engine.heads_per_address_max:
        shard_evict(shard, shard_oldest_of(shard, listener))
    if shard.heads >= shard.engine.heads_max:
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
        shard_watch(shard, index)   # what is still coming has to be read, or closing resets
        shard_refuse(shard, index, 5030)

# --- a mount is asked for ------------------------------------------------------------------------

cdef inline void shard_join(
    shard_t* shard, uint32_t index, head_t* head, uint64_t now
) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    cdef engine_t* engine = shard.engine
    cdef stream_t* stream = engine_find(engine, head.path, head.path_bytes)
    cdef bint learning = load_u32(&engine.directory_known) == 0
    cdef int refusal
    listener.is_whole = True
    if load_u32(&shard.draining):
        if stream != NULL:
            stream_drop(stream)
        shard_refuse(shard, index, 5032)
        return
    if stream == NULL and not learning:
        shard_refuse(shard, index, 404 if load_u32(&engine.upstream_up) else 503)
        return
    if stream != NULL and head.method == METHOD_HEAD:
        shard_reply_head(shard, index, stream, head.icy)
        stream_drop(stream)
        return
    if stream != NULL:
        refusal = shard_take_place(shard, listener, stream)
        if refusal != 0:
            stream_drop(stream)
            shard_refuse(shard, index, refusal)
            return
    listener.icy = head.icy
    if stream != NULL and load_pointer(<void**>&stream.ring) != NULL:
        shard_head_remove(shard, index)
        shard_admit(shard, index, now)
    else:
        shard_park(shard, index, head, now)

cdef inline int shard_take_place(
    shard_t* shard, listener_t* listener, stream_t* stream
) noexcept nogil:
    # Counts it in on node and mount: 0, and it takes over the stream's reference; or the
    # refusal where there is no room.
    cdef uint32_t bound = stream.config.listeners_max
    if add_u32(&shard.engine.listeners, 1) > shard.engine.listeners_max:
        sub_u32(&shard.engine.listeners, 1)
        return 5031
    if add_u32(&stream.listeners, 1) > bound and bound > 0:
        sub_u32(&stream.listeners, 1)
        sub_u32(&shard.engine.listeners, 1)
        return 5033
    shard.counters.listeners += 1
    listener.stream = stream
    hub_tell(stream.hub, stream)
    return 0

cdef inline void shard_park(
    shard_t* shard, uint32_t index, head_t* head, uint64_t now
) noexcept nogil:
    # Its stream is not here yet: it is looked for again until join_wait is over.
    cdef listener_t* listener = &shard.records[index]
    shard_head_remove(shard, index)
    free(listener.head)
    listener.head = <uint8_t*>malloc(sizeof(head_t))
    listener.state = PARKED
    listener.began_us = now   # the wait counts from here, not from a head that dripped in
    if listener.head == NULL:
        shard_end(shard, index, END_MEMORY)
        return
    memcpy(listener.head, head, sizeof(head_t))
    wheel_join(&shard.wheel, index, PARKED_LOOK_US // SLOT_US)

cdef inline void shard_look_again(shard_t* shard, uint32_t index, uint64_t now) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    cdef head_t* head = <head_t*>listener.head
    cdef engine_t* engine = shard.engine
    cdef bint late = now > listener.began_us + engine.join_wait_us
    cdef int refusal
    cdef stream_t* stream
    if load_u32(&shard.draining):
        shard_refuse(shard, index, 5032)
        return
    if listener.stream == NULL:
        stream = engine_find(engine, head.path, head.path_bytes)
        if stream != NULL and head.method == METHOD_HEAD:
            shard_reply_head(shard, index, stream, head.icy)
            stream_drop(stream)
            return
        if stream != NULL:
            refusal = shard_take_place(shard, listener, stream)
            if refusal != 0:
                stream_drop(stream)
                shard_refuse(shard, index, refusal)
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
    shard_join_wheel(shard, index)
    flow_open(&flow)
    flow_add(&flow, PART_COPY, shard.reply, size, 0)
    shard_flow(shard, index, &flow, now)

cdef inline bint info_takes_titles(const info_t* info) noexcept nogil:
    # MPEG and AAC resynchronise by nature and every player of them knows blocks. Other formats
    # carry their titles themselves; a block in between would break a page of theirs.
    cdef uint32_t i = 0
    while i + 4 <= info.size_bytes and info.bytes[i] != 13:
        if strncasecmp(<const char*>&info.bytes[i], b"mpeg", 4) == 0 or (
            strncasecmp(<const char*>&info.bytes[i], b"/aac", 4) == 0
        ) or strncasecmp(<const char*>&info.bytes[i], b"/mp3", 4) == 0:
            return True
        i += 1
    return False

cdef inline uint32_t shard_write_reply(shard_t* shard, stream_t* stream, bint* icy) noexcept nogil:
    # The response head, into shard.reply. HTTP/1.0 without a length: every player takes it.
    cdef info_t* info = <info_t*>load_pointer(<void**>&stream.info)
    cdef uint64_t unix_s = wall_ms() // 1000
    cdef int size
    cdef uint32_t info_bytes = info.size_bytes if info != NULL else 0
    icy[0] = icy[0] and info != NULL and info_takes_titles(info)
    if unix_s != shard.date_s:
        shard.date_s = unix_s
        http_date(unix_s, shard.date_text)
    size = snprintf(
        shard.reply, sizeof(shard.reply),
        REPLY_200, shard.date_text, <int>info_bytes,
        <const char*>info.bytes if info != NULL else NO_TEXT,
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
        return b"503 Service Unavailable|the upstream node is not reachable; try again soon\n"
    if status == 5030:
        reason[0] = REFUSED_BUSY
        return b"503 Service Unavailable|too many requests are waiting; try again soon\n"
    if status == 5031:
        reason[0] = REFUSED_FULL
        return b"503 Service Unavailable|this node is full (listeners_max); try again later\n"
    if status == 5033:
        reason[0] = REFUSED_FULL
        return b"503 Service Unavailable|this mount is full (listeners_max); try again later\n"
    if status == 5032:
        reason[0] = REFUSED_BUSY
        return b"503 Service Unavailable|this node is going down; try another one\n"
    if status == 405:
        reason[0] = REFUSED_METHOD
        return b"405 Method Not Allowed|a mount takes GET, HEAD, PUT and SOURCE\n"
    if status == 414:
        reason[0] = REFUSED_TOO_LARGE
        return b"414 URI Too Long|the bound of a path is 255 bytes\n"
    if status == 431:
        reason[0] = REFUSED_TOO_LARGE
        return b"431 Request Header Fields Too Large|the bound is 8192 bytes and 64 fields\n"
    reason[0] = REFUSED_MALFORMED
    if status == 505:
        return b"505 HTTP Version Not Supported|this node speaks HTTP/1.0 and HTTP/1.1\n"
    return b"400 Bad Request|this is not a request head of HTTP/1.x\n"

cdef inline void shard_refuse(shard_t* shard, uint32_t index, int status) noexcept nogil:
    cdef int reason = 0
    cdef const char* text = refusal_text(status, &reason)
    cdef const char* body = text
    cdef const char* field = b""
    cdef int size
    while body[0] != 124:
        body += 1
    shard.counters.refused_total[reason] += 1
    if status == 503 or status > 5000:
        field = b"Retry-After: 5\r\n"
    elif status == 405:
        field = b"Allow: GET, HEAD, OPTIONS, PUT, SOURCE, POST\r\n"
    size = snprintf(
        shard.reply, sizeof(shard.reply), REPLY_REFUSED, <int>(body - text), text, field,
        <int>strlen(body + 1), body + 1,
    )
    shard_answer(shard, index, shard.reply, <uint32_t>size)

cdef inline void shard_answer(
    shard_t* shard, uint32_t index, const char* bytes, uint32_t size
) noexcept nogil:
    # Sends a whole small reply and parts. Closing while bytes wait to be read, or are still to
    # come, would reset the reply away: then the close of the other side is awaited, a second at
    # most.
    cdef listener_t* listener = &shard.records[index]
    send(listener.fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    shard_swallow(shard, listener)
    if (
        listener.is_whole and listener.received_bytes == 0
        or shard.parting >= <uint32_t>PARTING_MAX
    ):
        shard_free(shard, index)
        return
    shutdown(listener.fd, SHUT_WR)
    if listener.state == HEAD:
        shard_head_remove(shard, index)
    shard_leave(shard, listener)
    listener.state = PARTING
    shard.parting += 1
    wheel_put(&shard.wheel, index, shard.wheel.slot + PARTING_US // SLOT_US)
