# refusal.pxd: those who are not let in: what they are told, and how the connection ends.
#
# Rules of this room
#   1. Each refusal is a row of the table in replies.h: status, text, what it is counted as, whether
#      another node may have a place. A reply is whole, in one send, and costs no allocation.
#   2. A reply is never reset away by closing early; nor does a refused connection stay beyond a
#      second, nor more than parting_max of them at once.
#   3. Those who are refused together come back apart: Retry-After is jittered.
#   4. Who can be sent on is sent on, to the configured nodes in turn (redirect.pxd).

from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, strlen

from relay._core.connection cimport (
    PARTING_US, SHUT_WR, recv, shard_free, shard_leave, shard_swallow, shard_t, shard_watch,
    shutdown,
)
from relay._core.engine cimport engine_find, now_us
from relay._core.heads cimport heads_drop
from relay._core.http_head cimport (
    HEAD_BYTES_MAX, METHOD_GET, METHOD_HEAD, head_end, head_parse, head_t,
)
from relay._core.listener cimport HEAD, MSG_DONTWAIT, MSG_NOSIGNAL, PARTING, listener_t, send
from relay._core.pace cimport SLOT_US, wheel_put
from relay._core.recorder cimport RECORD_NOBODY, RECORD_REFUSE, record
from relay._core.redirect cimport redirect_write, retry_after_s
from relay._core.stream cimport stream_drop, stream_t

cdef extern from "replies.h" nogil:
    ctypedef struct refusal_t:
        int code
        int counted_as
        int traits
        const char* status
        const char* body
    const refusal_t* REFUSALS
    # formats: status line, one more field, length of the body, body
    const char* REPLY_REFUSED
    const char* REPLY_FOUND       # then the location
    const char* REPLY_FOUND_END
    int FOUND_BODY_BYTES
    const char* NO_TEXT
    int REFUSE_MISSING, REFUSE_NODE_FULL, REFUSE_MOUNT_FULL, REFUSE_DESCRIPTORS, REFUSE_DRAINING
    int REFUSE_UPSTREAM, REFUSE_QUEUE, REFUSE_METHOD, REFUSE_HEAD, REFUSE_FIELDS, REFUSE_ROWS
    int MAY_RETRY, MAY_GO_ON, TELLS_METHODS

cdef enum:
    REFUSE_NONE = -1          # let in

cdef inline int refusal_of(int code) noexcept nogil:
    # The row of what http_head found wrong.
    cdef int row
    for row in range(REFUSE_METHOD, REFUSE_ROWS):
        if REFUSALS[row].code == code:
            return row
    return REFUSE_HEAD

cdef inline uint32_t refusal_redirect(shard_t* shard, const head_t* head) noexcept nogil:
    # A 302 to the next of the other nodes, into shard.reply. 0: there is none, or it has been sent
    # round often enough.
    cdef uint32_t used = <uint32_t>strlen(REPLY_FOUND)
    cdef uint32_t end_bytes = <uint32_t>strlen(REPLY_FOUND_END)
    cdef uint32_t location_bytes
    if shard.engine.redirects_count == 0 or head == NULL or head.target == NULL:
        return 0
    location_bytes = redirect_write(
        shard.reply + used, <uint32_t>sizeof(shard.reply) - used - end_bytes,
        &shard.engine.redirects[shard.redirect_next % shard.engine.redirects_count],
        head.target, head.target_bytes,
    )
    if location_bytes == 0:
        return 0
    shard.redirect_next += 1
    memcpy(shard.reply, REPLY_FOUND, used)
    memcpy(shard.reply + used + location_bytes, REPLY_FOUND_END, end_bytes)
    return used + location_bytes + end_bytes

cdef inline uint64_t refusal_stream(
    shard_t* shard, int row, const head_t* head
) noexcept nogil:
    # The key of the stream that was asked for, for the recorder. 0: none that is here: of names
    # that somebody thinks up nothing is kept.
    cdef stream_t* stream
    cdef uint64_t key
    if head == NULL or head.path_bytes == 0 or row == REFUSE_MISSING:
        return 0
    stream = engine_find(shard.engine, head.path, head.path_bytes)
    if stream == NULL:
        return 0
    key = stream.key
    stream_drop(stream)
    return key

cdef inline uint32_t refusal_write(shard_t* shard, int row, const head_t* head) noexcept nogil:
    # The reply, into shard.reply; counted.
    cdef const refusal_t* refusal = &REFUSALS[row]
    cdef const char* field = NO_TEXT
    cdef char retry[32]
    cdef uint32_t size = 0
    cdef uint32_t body_bytes = <uint32_t>strlen(refusal.body)
    if refusal.traits & MAY_GO_ON:
        size = refusal_redirect(shard, head)
        body_bytes = <uint32_t>FOUND_BODY_BYTES if size > 0 else body_bytes
    if size > 0:
        shard.counters.redirects_total += 1
    else:
        shard.counters.refused_total[refusal.counted_as] += 1
        if refusal.traits & MAY_RETRY:
            snprintf(retry, sizeof(retry), b"Retry-After: %u\r\n", retry_after_s(&shard.dice))
            field = retry
        elif refusal.traits & TELLS_METHODS:
            field = b"Allow: GET, HEAD, OPTIONS, PUT, SOURCE, POST\r\n"
        size = <uint32_t>snprintf(
            shard.reply, sizeof(shard.reply), REPLY_REFUSED, refusal.status, field,
            <int>body_bytes, refusal.body,
        )
    record(&shard.recorder, now_us(), refusal_stream(shard, row, head), RECORD_REFUSE,
           refusal.counted_as, RECORD_NOBODY, refusal.code, 0, 0)
    # RFC 9110 §9.3.2: the answer to HEAD has no content
    return size - body_bytes if head != NULL and head.method == METHOD_HEAD else size

cdef inline void shard_refuse(
    shard_t* shard, uint32_t index, int row, const head_t* head
) noexcept nogil:
    # head: what was asked for; NULL where that is not known.
    shard_answer(shard, index, shard.reply, refusal_write(shard, row, head))

cdef inline void shard_refuse_fd(shard_t* shard, int fd) noexcept nogil:
    # A connection that has no record, since no descriptor is left for it: what it has sent by now
    # is read, so that closing resets nothing away. The caller closes.
    cdef head_t head
    cdef const head_t* known = NULL
    cdef ssize_t got = recv(fd, shard.bytes, HEAD_BYTES_MAX, MSG_DONTWAIT)
    cdef uint64_t whole = head_end(shard.bytes, <uint64_t>got, 0) if got > 0 else 0
    if whole > 0 and head_parse(&head, shard.bytes, whole) == 0 and (
        head.method == METHOD_GET or head.method == METHOD_HEAD
    ):
        known = &head
    send(fd, shard.reply, refusal_write(shard, REFUSE_DESCRIPTORS, known),
         MSG_DONTWAIT | MSG_NOSIGNAL)

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
        or shard.parting >= shard.parting_max
        or not shard_watch(shard, index)
    ):
        shard_free(shard, index)
        return
    shutdown(listener.fd, SHUT_WR)
    if listener.state == HEAD:
        heads_drop(&shard.heads, index)
    shard_leave(shard, listener)
    listener.state = PARTING
    shard.parting += 1
    wheel_put(&shard.wheel, index, shard.wheel.slot + PARTING_US // SLOT_US)
