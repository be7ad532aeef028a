# door.pxd: those who come: accepting, request heads, joining a mount, hand-over to Python.
#
# Rules of this room
#   1. The shard's thread answers every GET and HEAD of a mount itself, refusals included: no
#      Python.
#   2. At most as many connections as the node has places (listeners_max + heads_max); when there
#      is none, who comes waits outside, or one goes whose head is overdue (heads.pxd).
#   3. What a turn does here ends when the next slot of the wheel is due (budget.pxd): those who
#      listen stay on time during a storm. What is left is the first work of the next turn.
#   4. Each connection is looked at once when it was accepted and again whenever something came:
#      edges are registered after a look in vain, and registering tells what came meanwhile.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from relay._core.anchor cimport (
    ANCHOR_NONE, BEGIN_AT, BEGIN_LIVE, BEGIN_SEND_ON, BEGIN_WAIT, anchor_begin, begin_set, begin_t,
)
from relay._core.atomics cimport add_u32, add_u64, load_pointer, load_u32, load_u64, sub_u32
from relay._core.budget cimport ACCEPTS_MIN, LOOKS_MIN, TURN_US_MAX, budget_make, budget_t
from relay._core.connection cimport (
    EPOLL_CTL_DEL, SOCK_CLOEXEC, SOCK_NONBLOCK, accept4, door_address, door_reserve, epoll_ctl,
    recv, shard_count, shard_end, shard_flow, shard_free, shard_give_place, shard_hang_up,
    shard_join_wheel, shard_note_visit, shard_t, shard_take_place, shard_watch, shard_watch_door,
    sockaddr, sockaddr_storage, socklen_t,
)
from relay._core.engine cimport (
    engine_config, engine_find, engine_intro, engine_t, now_us, rule_t,
)
from relay._core.fallback cimport FALLBACK_NONE
from relay._core.fallback_look cimport rule_of, stream_format
from relay._core.fallback_move cimport shard_place
from relay._core.handover cimport close, handover_put, handover_t
from relay._core.heads cimport (
    GOES_EVICTED, heads_add, heads_drop, heads_due, heads_hold, heads_look, heads_make_room,
)
from relay._core.http_head cimport (
    AT_PLACE, AT_TIME, HEAD_BYTES_MAX, METHOD_GET, METHOD_HEAD, METHOD_OPTIONS, METHOD_POST,
    METHOD_PUT, METHOD_SOURCE, RANGE_NONE, head_end, head_parse, head_t,
)
from relay._core.icy cimport ICY_METAINT
from relay._core.listener cimport (
    EAGAIN, EMFILE, END_MEMORY, ENFILE, FLOWING, HEAD, MSG_DONTWAIT, PARKED, PART_COPY, errno,
    flow_add, flow_open, flow_t, listener_enter_at, listener_t,
)
from relay._core.orders cimport AGENT_BYTES_MAX, agent_set
from relay._core.pace cimport NOBODY, SLOT_US, wheel_join, wheel_next_us, wheel_put
from relay._core.refusal cimport (
    REFUSE_DRAINING, REFUSE_FIELDS, REFUSE_METHOD, REFUSE_MISSING, REFUSE_MOUNT_FULL,
    REFUSE_NODE_FULL, REFUSE_NONE, REFUSE_QUEUE, REFUSE_UPSTREAM, refusal_of, shard_answer,
    shard_refuse, shard_refuse_fd,
)
from relay._core.reply cimport (
    head_only_asks, place_is_due, shard_reply_head, shard_send_on, shard_write_reply,
    stream_gives_place, stream_takes_titles, stream_wants_place,
)
from relay._core.ring cimport ring_t
from relay._core.stream cimport (
    WRITER_LINK, hub_tell, mount_key, stream_before_take, stream_drop, stream_ring_drop,
    stream_ring_take, stream_t,
)
from relay._core.visits cimport VISIT_JOINED

cdef extern from "door.h" nogil:
    uint32_t door_queue(int fd, uint32_t* queue_max)
    void door_suit_stream(int fd, uint64_t stall_us, uint64_t bytes_per_s)

cdef extern from "<errno.h>" nogil:
    int ENOBUFS
    int ENOMEM

cdef enum:
    PARKED_LOOK_US = 20000
    PARKED_TARGET_MAX = 1024  # of one whose stream is not known yet
    DOOR_SHUT_US = 50000      # after another thread took even the reserved descriptor
    FAREWELL_US = 50000

# --- accepting ------------------------------------------------------------------------------------

cdef inline void shard_attend(shard_t* shard, uint64_t began) noexcept nogil:
    # The door's part of a turn that began then: heads that have come, then accepts, then the heads
    # of those just accepted.
    cdef budget_t budget
    cdef uint32_t queue = 0
    cdef uint32_t queue_max = 1
    cdef uint64_t now
    if not shard.callers and shard.heads.queue.count == 0:
        return
    if shard.callers and shard.heads.queue.count > 0:
        queue = door_queue(shard.listen_fd, &queue_max)
    now = now_us()
    budget_make(&budget, began, now, now + wheel_next_us(&shard.wheel, now, TURN_US_MAX), queue,
                queue_max, shard.heads.queue.count)
    if budget.accepts_first:
        shard_accept(shard, budget.accepts_until_us)
    shard_look(shard, budget.heads_until_us)
    shard_accept(shard, budget.accepts_until_us)
    shard_look(shard, budget.until_us)

cdef inline void shard_accept(shard_t* shard, uint64_t until) noexcept nogil:
    # Those who are let in wait to be looked at: so a deep queue is drained before a head is read.
    cdef int fd
    cdef int done = 0
    cdef uint64_t now = now_us()
    cdef sockaddr_storage from_
    cdef socklen_t size
    while shard.callers and (now < until or done < ACCEPTS_MIN):
        if not shard_has_place(shard, now):
            return
        size = sizeof(sockaddr_storage)
        fd = accept4(shard.listen_fd, <sockaddr*>&from_, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            shard.counters.accepts_total += 1
            shard_welcome(shard, fd, &from_, now)
        elif errno == EMFILE or errno == ENFILE:
            if shard.heads.queue.count > 0:
                return        # a look at those may give descriptors back
            shard.callers = shard_refuse_unseen(shard, now)
        else:
            shard.callers = False
            if errno == ENOMEM or errno == ENOBUFS:
                shard_shut_door(shard, now)     # they still wait: asked again, it would spin
        done += 1
        now = now_us()

cdef inline bint shard_has_place(shard_t* shard, uint64_t now) noexcept nogil:
    # May one more connection be let in? Where no place is left one goes whose head is overdue.
    cdef uint32_t victim
    cdef uint32_t queue_max
    if load_u32(&shard.engine.places) < shard.engine.places_max and shard.unused_count > 0:
        return True
    if door_queue(shard.listen_fd, &queue_max) == 0:
        shard.callers = False     # nobody waits: nobody has to go
        return False
    victim = heads_make_room(&shard.heads)
    if victim != <uint32_t>NOBODY:
        shard_evict(shard, victim)
        return True
    if shard.heads.queue.count == 0:    # nothing to do here makes room: it is left to time
        shard.callers = False
        shard_shut_door(shard, now)
    return False

cdef inline bint shard_refuse_unseen(shard_t* shard, uint64_t now) noexcept nogil:
    # No descriptor is left: the reserved one makes room to refuse with. False: nobody was refused,
    # since nobody waits (accept looks for a descriptor first), or since another thread took the
    # reserve: then the door shuts for a while, or those who wait would wake the shard for ever.
    cdef int fd
    if shard.reserve_fd >= 0:
        close(shard.reserve_fd)
    fd = accept4(shard.listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd >= 0:
        shard_refuse_fd(shard, fd)
        close(fd)
    elif errno != EAGAIN:
        shard_shut_door(shard, now)
    shard.reserve_fd = door_reserve()
    return fd >= 0

cdef inline void shard_shut_door(shard_t* shard, uint64_t now) noexcept nogil:
    # Those who wait outside would wake the shard again and again: not for a while.
    epoll_ctl(shard.epoll_fd, EPOLL_CTL_DEL, shard.listen_fd, NULL)
    shard.shut_until_us = now + DOOR_SHUT_US

cdef inline void shard_open_door(shard_t* shard, uint64_t now) noexcept nogil:
    if shard.reserve_fd < 0:
        shard.reserve_fd = door_reserve()
    if shard.shut_until_us > 0 and now >= shard.shut_until_us and shard.listen_fd >= 0:
        shard.shut_until_us = 0 if shard_watch_door(shard) else now + DOOR_SHUT_US

cdef inline void shard_stop_accepting(shard_t* shard) noexcept nogil:
    # While the node goes down: closing resets those who wait to be accepted, so first they are let
    # in (and refused, or sent on). With other nodes to send to the door stays open to the end.
    if shard.listen_fd < 0:
        return
    shard.callers = True
    shard_accept(shard, now_us() + TURN_US_MAX)
    if not shard.callers and shard.engine.redirects_count == 0:
        if shard.shut_until_us == 0:
            epoll_ctl(shard.epoll_fd, EPOLL_CTL_DEL, shard.listen_fd, NULL)
        shard_hang_up(shard, shard.listen_fd)
        shard.listen_fd = -1

cdef inline void shard_farewell(shard_t* shard) noexcept nogil:
    # The thread's last act: whoever has asked is answered, as far as a moment reaches.
    cdef uint64_t until = now_us() + FAREWELL_US
    shard.draining = 1
    shard.callers = shard.listen_fd >= 0
    shard_accept(shard, until)
    shard_look(shard, until)

cdef inline void shard_welcome(
    shard_t* shard, int fd, const sockaddr_storage* from_, uint64_t now
) noexcept nogil:
    cdef uint8_t address[16]
    cdef uint16_t port
    door_address(from_, address, &port)
    shard_seat(shard, fd, address, port, now)

cdef inline uint32_t shard_seat(
    shard_t* shard, int fd, const uint8_t* address, uint16_t port, uint64_t now
) noexcept nogil:
    # A record for the new connection. It is registered when its head was looked for in vain.
    cdef uint32_t index
    cdef listener_t* listener
    shard.unused_count -= 1
    index = shard.unused[shard.unused_count]
    listener = &shard.records[index]
    shard.records_used = max(shard.records_used, index + 1)
    add_u32(&shard.engine.places, 1)
    listener.fd = fd
    listener.state = HEAD
    listener.began_us = listener.progress_us = listener.audio_us = now
    memcpy(listener.address, address, 16)
    listener.port = port
    heads_add(&shard.heads, index, listener.address, now)
    return index

# --- request heads --------------------------------------------------------------------------------

cdef inline void shard_look(shard_t* shard, uint64_t until) noexcept nogil:
    # Those of whom something has come, and the newly accepted, first come first. Whoever is not
    # reached within the time is the first of the next turn.
    cdef int done = 0
    cdef uint64_t now = now_us()
    while shard.heads.queue.count > 0 and (now < until or done < LOOKS_MIN):
        shard_read_head(shard, heads_look(&shard.heads), now)
        done += 1
        now = now_us()

cdef inline void shard_evict(shard_t* shard, uint32_t index) noexcept nogil:
    shard.counters.heads_evicted_total += 1
    shard_free(shard, index)

cdef inline void shard_expire_heads(shard_t* shard, uint64_t now) noexcept nogil:
    cdef int why = 0
    cdef uint32_t index = heads_due(&shard.heads, now, &why)
    while index != <uint32_t>NOBODY:
        if why == GOES_EVICTED:
            shard_evict(shard, index)
        else:
            shard.counters.heads_expired_total += 1
            shard_free(shard, index)
        index = heads_due(&shard.heads, now, &why)

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
            shard_request(shard, index, bytes, whole, now, False)
            return
        if listener.head_bytes == HEAD_BYTES_MAX:
            shard_refuse(shard, index, REFUSE_FIELDS, NULL)
            return
    if not shard_watch(shard, index) or not shard_keep_head(shard, index, bytes):
        shard_free(shard, index)

cdef inline bint shard_keep_head(
    shard_t* shard, uint32_t index, const uint8_t* bytes
) noexcept nogil:
    # A head that has begun and is not whole: it holds memory from here on, and counts.
    cdef listener_t* listener = &shard.records[index]
    cdef uint32_t victim
    if listener.head != NULL or listener.head_bytes == 0:
        return True
    victim = heads_hold(&shard.heads, index)
    if victim != <uint32_t>NOBODY:
        shard_evict(shard, victim)
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
        or (head.path_bytes == 7 and path_begins(head, b"/7.html", 7))
    )

cdef inline bint path_is_playlist(engine_t* engine, head_t* head) noexcept nogil:
    # /live.m3u and its like, unless a mount really has that name.
    cdef stream_t* stream
    if not (
        path_ends(head, b".m3u", 4) or path_ends(head, b".pls", 4) or path_ends(head, b".xspf", 5)
    ):
        return False
    stream = engine_find(engine, head.path, head.path_bytes)
    if stream != NULL:
        stream_drop(stream)
    return stream == NULL

cdef inline void shard_request(
    shard_t* shard, uint32_t index, uint8_t* bytes, uint64_t whole, uint64_t now, bint judged
) noexcept nogil:
    # A whole head: to a source's door, a page, or a mount. judged: Python has let it in.
    cdef head_t head
    cdef int status = head_parse(&head, bytes, whole)
    if status < 0:
        shard_refuse(shard, index, refusal_of(-status), NULL)
    elif head.method == METHOD_PUT or head.method == METHOD_SOURCE:
        shard_hand_over(shard, index, &head, bytes, &shard.engine.sources)
    elif head.method == METHOD_OPTIONS or head.method == METHOD_POST or (
        (head.method == METHOD_GET or head.method == METHOD_HEAD)
        and (path_is_page(&head) or path_is_playlist(shard.engine, &head))
    ):
        shard_hand_over(shard, index, &head, bytes, &shard.engine.pages)
    elif not judged and shard_must_ask(shard, &head):
        shard_hand_over(shard, index, &head, bytes, &shard.engine.askers)
    elif head.method == METHOD_GET or head.method == METHOD_HEAD:
        shard_join(shard, index, &head, now)
    else:
        shard_refuse(shard, index, REFUSE_METHOD, NULL)

cdef inline bint shard_must_ask(shard_t* shard, const head_t* head) noexcept nogil:
    # Whether Python judges who may hear this mount. HEAD tells nobody anything: no question.
    return shard.engine.asks and head.method == METHOD_GET and not load_u32(&shard.draining) and (
        engine_config(shard.engine, mount_key(head.path, head.path_bytes)).asks
    )

cdef inline void shard_hand_over(
    shard_t* shard, uint32_t index, head_t* head, const uint8_t* bytes, handover_t* queue
) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    if listener.watched:
        epoll_ctl(shard.epoll_fd, EPOLL_CTL_DEL, listener.fd, NULL)
        listener.watched = False
    if handover_put(queue, listener.fd, bytes, listener.head_bytes, listener.address,
                    listener.port):
        shard.counters.handovers_total += 1
        listener.fd = -1
        shard_free(shard, index)
    else:
        shard_refuse(shard, index, REFUSE_QUEUE, head)

# --- a mount is asked for ------------------------------------------------------------------------

cdef inline void shard_join(
    shard_t* shard, uint32_t index, head_t* head, uint64_t now
) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    cdef engine_t* engine = shard.engine
    cdef stream_t* stream = engine_find(engine, head.path, head.path_bytes)
    cdef bint learning = load_u32(&engine.directory_known) == 0
    cdef int refusal = REFUSE_NONE
    listener.is_whole = True
    listener.relays = head.relays
    if load_u32(&shard.draining):
        refusal = REFUSE_DRAINING
    elif stream == NULL and not learning:
        refusal = REFUSE_MISSING if load_u32(&engine.upstream_up) else REFUSE_UPSTREAM
    elif stream == NULL:
        refusal = shard_may_park(shard, listener, head)
    elif stream != NULL and head_only_asks(head):
        refusal = shard_reply_head(shard, index, stream, head)
        stream_drop(stream)
        stream = NULL
        if refusal == REFUSE_NONE:
            return
    elif stream != NULL:
        refusal = shard_enter_mount(shard, listener, stream)
    if refusal != REFUSE_NONE:
        if stream != NULL:
            stream_drop(stream)
        shard_refuse(shard, index, refusal, head)
        return
    if stream != NULL and (
        stream_is_told(stream) or shard_falls_back(shard, stream)
    ):
        shard_begin(shard, index, head, now, False)
    else:
        shard_park(shard, index, head, now)

cdef inline bint stream_is_told(const stream_t* stream) noexcept nogil:
    # Is there audio, and is known what kind? From upstream the one may come before the other.
    return load_pointer(<void**>&stream.ring) != NULL and (
        load_pointer(<void**>&stream.info) != NULL or load_u32(&stream.writer) != WRITER_LINK
    )

cdef inline bint shard_falls_back(shard_t* shard, const stream_t* stream) noexcept nogil:
    # There is nothing of it here, nor on its way: does its fallback have audio?
    cdef rule_t* rule = rule_of(shard.engine, stream)
    cdef uint32_t best = load_u32(&rule.decided.best) if rule != NULL else 0
    return 0 < best < FALLBACK_NONE and not (
        load_u32(&stream.coming) and load_u32(&shard.engine.upstream_up)
    )

cdef inline int shard_enter_mount(
    shard_t* shard, listener_t* listener, stream_t* stream
) noexcept nogil:
    # Counts it in on node and mount: REFUSE_NONE, and it takes over the stream's reference; or
    # the refusal where there is no room.
    cdef uint32_t bound = stream.config.listeners_max
    if not shard_take_place(shard, listener):
        return REFUSE_NODE_FULL
    if add_u32(&stream.listeners, 1) > bound and bound > 0:
        sub_u32(&stream.listeners, 1)
        shard_give_place(shard, listener)
        return REFUSE_MOUNT_FULL
    shard_count(shard, stream, True)
    if listener.relays:
        add_u32(&stream.relays, 1)
    listener.stream = stream
    hub_tell(stream.hub, stream)
    return REFUSE_NONE

cdef inline int shard_may_park(
    shard_t* shard, listener_t* listener, const head_t* head
) noexcept nogil:
    # This node does not know yet which streams there are. Who waits for that takes a listener's
    # place already, so that the door stays open for others, and no more memory than a listener's.
    if head.target_bytes > PARKED_TARGET_MAX:
        return REFUSE_UPSTREAM
    return REFUSE_NONE if shard_take_place(shard, listener) else REFUSE_NODE_FULL

cdef inline void shard_park(
    shard_t* shard, uint32_t index, head_t* head, uint64_t now
) noexcept nogil:
    # Its stream, or its place, is not here yet: it is looked for again until join_wait is over.
    # What it asked for is kept, with a copy of the target behind it.
    cdef listener_t* listener = &shard.records[index]
    cdef uint32_t agent_bytes = min(head.agent_bytes, <uint32_t>AGENT_BYTES_MAX)
    cdef uint8_t* kept
    if listener.state == PARKED:
        wheel_put(&shard.wheel, index, shard.wheel.slot + PARKED_LOOK_US // SLOT_US - 1)
        return
    heads_drop(&shard.heads, index)
    kept = <uint8_t*>malloc(sizeof(head_t) + head.target_bytes + agent_bytes)
    listener.state = PARKED
    listener.began_us = now   # the wait counts from here, not from a head that dripped in
    if kept == NULL or not shard_watch(shard, index):
        free(kept)
        shard_end(shard, index, END_MEMORY)
        return
    memcpy(kept + sizeof(head_t), head.target, head.target_bytes)
    if agent_bytes > 0:
        memcpy(kept + sizeof(head_t) + head.target_bytes, head.agent, agent_bytes)
    memcpy(kept, head, sizeof(head_t))
    (<head_t*>kept).target = kept + sizeof(head_t)
    (<head_t*>kept).agent = kept + sizeof(head_t) + head.target_bytes
    (<head_t*>kept).agent_bytes = agent_bytes
    free(listener.head)
    listener.head = kept
    wheel_join(&shard.wheel, index, PARKED_LOOK_US // SLOT_US)

cdef inline void shard_look_again(shard_t* shard, uint32_t index, uint64_t now) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    cdef head_t* head = <head_t*>listener.head
    cdef int refusal = shard_find_again(shard, index, head)
    cdef bint late = now > listener.began_us + shard.engine.join_wait_us
    cdef bint up = load_u32(&shard.engine.upstream_up) == 1
    if listener.state != PARKED:
        return                # it was a HEAD, and has its answer
    if refusal != REFUSE_NONE:
        shard_refuse(shard, index, refusal, head)
    elif listener.stream == NULL and (late or load_u32(&shard.engine.directory_known)):
        shard_refuse(shard, index, REFUSE_MISSING if up else REFUSE_UPSTREAM, head)
    elif listener.stream != NULL and load_u32(&listener.stream.closed):
        shard_refuse(shard, index, REFUSE_MISSING, head)
    elif listener.stream != NULL and (
        stream_is_told(listener.stream) or (late and up)
        or shard_falls_back(shard, listener.stream)
    ):
        shard_begin(shard, index, head, now, late)
    elif late:
        shard_refuse(shard, index, REFUSE_UPSTREAM, head)
    else:
        shard_park(shard, index, head, now)

cdef inline int shard_find_again(shard_t* shard, uint32_t index, head_t* head) noexcept nogil:
    # Whoever was parked before his stream was known takes his place once it is.
    cdef listener_t* listener = &shard.records[index]
    cdef stream_t* stream
    cdef int refusal = REFUSE_NONE
    if load_u32(&shard.draining):
        return REFUSE_DRAINING
    if listener.stream != NULL:
        return REFUSE_NONE
    stream = engine_find(shard.engine, head.path, head.path_bytes)
    if stream == NULL:
        return REFUSE_NONE
    if not head_only_asks(head):
        refusal = shard_enter_mount(shard, listener, stream)
        if refusal != REFUSE_NONE:
            stream_drop(stream)
        return refusal
    refusal = shard_reply_head(shard, index, stream, head)
    stream_drop(stream)
    return refusal

cdef inline void shard_begin(
    shard_t* shard, uint32_t index, head_t* head, uint64_t now, bint late
) noexcept nogil:
    # It has a place on this node. Where in the stream it begins; or it waits, or is sent to there.
    cdef listener_t* listener = &shard.records[index]
    cdef stream_t* stream = listener.stream
    cdef ring_t* newest = stream_ring_take(stream)
    cdef ring_t* before = stream_before_take(stream)
    cdef begin_t begin
    cdef bint wanted
    late = late or shard_falls_back(shard, stream)      # there is audio: nobody waits in silence
    anchor_begin(&begin, head, newest, before, load_u32(&stream.writer) == WRITER_LINK, late)
    listener.icy = head.icy and head.at != AT_PLACE and stream_takes_titles(stream)
    wanted = stream_wants_place(shard.engine, stream, head, listener.icy, stream.config.anchor)
    if head.at == AT_TIME and not wanted:       # no places here: live, as all are
        begin_set(&begin, BEGIN_LIVE, ANCHOR_NONE)
    elif place_is_due(head, &begin, wanted) and not stream_gives_place(stream, &begin, newest):
        begin.how = BEGIN_LIVE if late else BEGIN_WAIT
    if begin.how == BEGIN_WAIT:
        shard_park(shard, index, head, now)
    elif begin.how != BEGIN_SEND_ON or not shard_send_on(shard, index, head, &begin):
        shard_admit(shard, index, head, &begin, now)
    if newest != NULL:
        stream_ring_drop(stream, newest)
    if before != NULL:
        stream_ring_drop(stream, before)

cdef inline void shard_admit(
    shard_t* shard, uint32_t index, const head_t* head, const begin_t* begin, uint64_t now
) noexcept nogil:
    # From here on it is a listener. Response head and burst leave in one send.
    cdef listener_t* listener = &shard.records[index]
    cdef bint is_new
    cdef flow_t flow
    cdef uint32_t size = shard_write_reply(shard, listener.stream, head, listener.icy, begin)
    if listener.state == HEAD:
        heads_drop(&shard.heads, index)
    listener.state = FLOWING
    if not shard_watch(shard, index):
        shard_end(shard, index, END_MEMORY)
        return
    agent_set(&shard.agents[index], head.agent, head.agent_bytes)
    is_new = begin.how != BEGIN_AT and head.range == RANGE_NONE
    free(listener.head)       # `head` may be in it
    listener.head = NULL
    listener.progress_us = now
    door_suit_stream(listener.fd, listener.stream.config.stall_us,
                     stream_bytes_per_s(listener.stream))
    listener.icy_left_bytes = ICY_METAINT
    listener.promise = stream_format(listener.stream)
    shard.listeners_total += 1
    listener.id = shard.listeners_total * shard.engine.shards + shard.number
    if is_new:
        listener.intro = engine_intro(shard.engine, listener.stream, listener.promise)
    shard.counters.joins_total += 1
    shard.counters.anchored_total[begin.why] += 1
    add_u64(&listener.stream.counters.joins_total, 1)
    shard_note_visit(shard, index, VISIT_JOINED, now)
    shard_join_wheel(shard, index)
    flow_open(&flow)
    flow_add(&flow, PART_COPY, shard.reply, size, 0)
    if begin.how == BEGIN_AT:
        listener_enter_at(listener, &flow, begin)
    else:
        shard_place(shard, listener, &flow, now)
    shard_flow(shard, index, &flow, now)

cdef inline uint64_t stream_bytes_per_s(stream_t* stream) noexcept nogil:
    # Over its epoch so far; 0: nothing is known. Within a turn: the ring cannot go.
    cdef ring_t* ring = <ring_t*>load_pointer(<void**>&stream.ring)
    cdef uint64_t media_ms = load_u64(&ring.head_media_us) // 1000 if ring != NULL else 0
    return load_u64(&ring.head_position) * 1000 // media_ms if media_ms > 0 else 0
