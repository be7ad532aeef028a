# backbone.pxd: the backbone thread: one loop around what a node is to its children and to its
# upstreams.
#
# Rules of this room
#   1. One thread a node, no GIL, all signals blocked; it is one reader of retire.pxd.
#   2. It sleeps in zmq_poll, outside of its turn; writers wake it through the hub (a dirty stack
#      and an eventfd that is written only while `asleep` is set).
#   3. A turn at most every TURN_US while something is new; up to BUSY_US when it sends many small
#      runs (then each message carries more frames).
#   4. turn_lock is held during a turn, so that a snapshot sees whole turns only.
#   5. Decides when to wake, and how long waits last that no stream has of its own: for an upstream
#      that is away, and for children on a planned stop.

from libc.stdint cimport uint32_t, uint64_t

from relay._core.atomics cimport fence, load_pointer, load_u32, store_u32
from relay._core.backbone_ask cimport child_step
from relay._core.backbone_child cimport (
    child_answers, child_published, links_restart, upstream_gone,
)
from relay._core.backbone_directory cimport (
    ask_page, child_conflict_over, child_leave, child_stream_closed, child_withdraw, directory_tell,
)
from relay._core.backbone_parent cimport (
    parent_beacon, parent_requests, parent_send, parent_subscriptions,
)
from relay._core.backbone_state cimport (
    TOMBS_MAX, backbone_t, link_close_out, link_delete, link_note, link_of, link_stir, link_t,
    link_touch, tombs_purge,
)
from relay._core.engine cimport now_us, timespec, wall_us
from relay._core.hold cimport hold_is_crowd, holds_due, holds_next_us
from relay._core.parents cimport PAUSE_US, PEER_LOST, PEER_UP, peer_is_silent
from relay._core.recorder cimport (
    RECORD_GOODBYE, RECORD_NOBODY, record, recorder_is_due, recorder_tick,
)
from relay._core.retire cimport (
    RETIRE_BACKBONE, pthread_mutex_lock, pthread_mutex_unlock, turn_begin, turn_end,
)
from relay._core.stream cimport (
    WRITER_LOCAL, hub_next, hub_take, stream_drop, stream_ring_drop, stream_t,
)
from relay._core.upstream cimport (
    UPSTREAMS_MAX, dealer_close, pages_anew, upstream_redial, upstream_t,
)
from relay._core.wire cimport (
    BEACON_DRAINING, BEACON_GOODBYE, KIND_BEACON, WIRE_TOPIC_BYTES, put_topic,
)
from relay._core.zmq_api cimport *

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_read(int fd, uint64_t* value)

cdef extern from "<time.h>" nogil:
    int clock_nanosleep(int clock, int flags, const timespec* wait, timespec* rest)
    int CLOCK_MONOTONIC

cdef enum:
    TURN_US = 2000
    BUSY_US = 5000
    BUSY_MESSAGES = 64
    FULL_MESSAGE_BYTES = 16384
    BEACON_US = 100000
    DRAIN_US = 400000         # so long at most children are fed on while they look for another
    SWEEP_US = 10000          # from one look at all links to the next, at least

cdef inline void backbone_streams(backbone_t* bone) noexcept nogil:
    # All streams that the node had before we began to listen.
    cdef stream_t* stream
    cdef uint64_t slot
    pthread_mutex_lock(&bone.engine.table_lock)
    for slot in range(bone.engine.table_size):
        stream = bone.engine.table[slot]
        if stream != NULL and not load_u32(&stream.stands_in):
            link_of(bone, stream)
    pthread_mutex_unlock(&bone.engine.table_lock)

cdef inline void backbone_dirty(backbone_t* bone) noexcept nogil:
    # What writers have told: a frame, an epoch, header lines, a listener.
    cdef stream_t* stream = hub_take(&bone.engine.hub)
    cdef stream_t* after
    cdef link_t* link
    while stream != NULL:
        after = hub_next(stream)
        if not load_u32(&stream.closed) and not load_u32(&stream.stands_in):
            link = <link_t*>stream.link
            if link == NULL or link.stream != stream:
                link = link_of(bone, stream)
            if link != NULL:
                link_stir(bone, link)
        stream_drop(stream)
        stream = after

cdef inline void backbone_link(backbone_t* bone, link_t* link) noexcept nogil:
    # One link's share of this turn.
    if link.stream == NULL:
        if link.version == 0 and link.held.who == NULL:
            link_delete(bone, link)
        return
    if load_u32(&link.stream.closed):
        child_stream_closed(bone, link)
        return
    if link.gone_us and bone.now_us - link.gone_us >= link.stream.config.linger_us:
        link_touch(bone, link)      # what is left of it, if anything, has its turn again
        child_leave(bone, link)
        return
    if link.conflict and load_u32(&link.stream.writer) != WRITER_LOCAL:
        child_conflict_over(bone, link)
    if bone.upstreams_count:
        child_step(bone, link)
    link_note(bone, link)
    if bone.xpub != NULL and load_u32(&link.stream.downstream):
        parent_send(bone, link)
    elif link.out.ring != NULL:
        link_close_out(link)

cdef inline void backbone_touched(backbone_t* bone) noexcept nogil:
    cdef link_t* link = bone.touched
    cdef link_t* after
    bone.touched = NULL
    while link != NULL:
        after = link.touched_next
        link.touched = False
        backbone_link(bone, link)
        if now_us() >= bone.beacon_us:      # long turns must not look like silence
            backbone_beacon(bone)
        link = after
    if bone.touched != NULL:
        bone.again = True

cdef inline void backbone_held(backbone_t* bone) noexcept nogil:
    # Those whose frame has waited long enough.
    cdef link_t* link = <link_t*>holds_due(&bone.holds, bone.now_us)
    while link != NULL:
        link_stir(bone, link)
        link = <link_t*>holds_due(&bone.holds, bone.now_us)

cdef inline void backbone_sweep(backbone_t* bone) noexcept nogil:
    # Links whose time has come; streams that have left the node; old epochs nobody repairs any
    # more.
    cdef uint64_t slot
    cdef link_t* link
    bone.sweep_us = bone.now_us + BEACON_US
    for slot in range(bone.table_size):
        link = bone.table[slot]
        if link == NULL or link.stream == NULL:
            continue
        if link.due_us <= bone.now_us or link.gone_us or link.conflict or (
            load_u32(&link.stream.closed)
        ):
            link_touch(bone, link)
        elif link.due_us < bone.sweep_us:
            bone.sweep_us = link.due_us
        if link.out.previous != NULL and bone.now_us >= link.out.previous_until_us:
            stream_ring_drop(link.stream, link.out.previous)
            link.out.previous = NULL
    if bone.sweep_us < bone.now_us + SWEEP_US:
        bone.sweep_us = bone.now_us + SWEEP_US

cdef inline void backbone_outage(backbone_t* bone, upstream_t* up) noexcept nogil:
    # The upstream has been lost for longer than the linger: streams that no other goes on with
    # leave this node.
    cdef uint64_t slot = 0
    cdef link_t* link
    if up.peer.state == PEER_UP or up.peer.sign_us == 0:
        return
    while slot < bone.table_size:
        link = bone.table[slot]
        if link != NULL and link.hop.feed.parents[up.index].lists and link.stream != NULL and (
            bone.now_us - up.peer.sign_us > link.stream.config.linger_us
        ):
            child_withdraw(bone, up, link)
            pages_anew(&up.pages)
            if bone.table[slot] != link:
                continue        # deleted: another may have moved here
        slot += 1

cdef inline void backbone_upstreams(backbone_t* bone) noexcept nogil:
    # Are they there? Who stood still himself judges nobody by it.
    cdef bint paused = bone.now_us - bone.last_turn_us > PAUSE_US
    cdef upstream_t* up
    cdef uint32_t i
    if paused:
        links_restart(bone)
    for i in range(bone.upstreams_count):
        up = &bone.upstreams[i]
        if peer_is_silent(up.peer, bone.now_us, bone.last_turn_us, bone.silence_us):
            up.peer.state = PEER_UP         # upstream_gone counts the change
            upstream_gone(bone, up, PEER_LOST)
        bone.counters.redials_total += upstream_redial(
            up, bone.now_us, paused, bone.engine.node_id[0]
        )
    if bone.upstreams_count and load_u32(&bone.engine.directory_known) == 0:
        directory_tell(bone)

cdef inline void backbone_record_goodbye(backbone_t* bone) noexcept nogil:
    record(&bone.recorder, bone.now_us, 0, RECORD_GOODBYE, 0, RECORD_NOBODY, 0, 0, 0)

cdef inline void backbone_beacon(backbone_t* bone) noexcept nogil:
    cdef uint64_t now = now_us()
    if now >= bone.beacon_us:
        bone.beacon_us = now + BEACON_US
    bone.beacon_now = False
    if bone.xpub != NULL and not bone.goodbye_said:
        parent_beacon(bone, backbone_leaving(bone, now))

cdef inline unsigned char backbone_leaving(backbone_t* bone, uint64_t now) noexcept nogil:
    # A beacon's flags. On a planned stop children are told first and fed on, so that who comes next
    # feeds them before we say goodbye: at the latest after DRAIN_US, and once nobody is left.
    if load_u32(&bone.goodbye) == 0:
        return 0
    if bone.draining_us == 0:
        bone.draining_us = now
    if bone.demand.count and now - bone.draining_us < DRAIN_US:
        return BEACON_DRAINING
    bone.goodbye_said = True
    backbone_record_goodbye(bone)
    return BEACON_DRAINING | BEACON_GOODBYE

cdef inline bint backbone_stays(backbone_t* bone) noexcept nogil:
    # Not stopped, or children still look for another parent.
    return load_u32(&bone.stop) == 0 or (
        bone.xpub != NULL and bone.draining_us != 0 and not bone.goodbye_said
    )

cdef inline void backbone_turn(backbone_t* bone) noexcept nogil:
    cdef uint64_t now
    cdef uint32_t i
    bone.again = bone.moved = False
    bone.counters.turns_total += 1
    for i in range(bone.upstreams_count):
        child_published(bone, &bone.upstreams[i])
        child_answers(bone, &bone.upstreams[i])
    backbone_upstreams(bone)
    if bone.xpub != NULL:
        parent_subscriptions(bone)
    backbone_dirty(bone)
    backbone_held(bone)
    if bone.now_us >= bone.sweep_us:
        backbone_sweep(bone)
    backbone_touched(bone)
    if bone.xpub != NULL:               # after the live frames: repairs wait for them
        parent_requests(bone)
    if bone.tombs > TOMBS_MAX // 2:     # here nobody walks the table
        tombs_purge(bone)
    for i in range(bone.upstreams_count):
        ask_page(bone, &bone.upstreams[i])
    if bone.xpub != NULL and not bone.goodbye_said and load_u32(&bone.goodbye) and (
        bone.draining_us == 0 or bone.demand.count == 0
    ):
        bone.beacon_now = True
    now = now_us()
    if now >= bone.beacon_us or bone.beacon_now:
        if now >= bone.outage_us:
            bone.outage_us = now + BEACON_US
            for i in range(bone.upstreams_count):
                backbone_outage(bone, &bone.upstreams[i])
        backbone_beacon(bone)
    if recorder_is_due(&bone.recorder, now):
        recorder_tick(&bone.recorder, now, wall_us())
    bone.last_turn_us = bone.now_us

cdef inline uint64_t backbone_pause_us(backbone_t* bone, uint64_t cost_us, uint64_t messages,
                                       uint64_t bytes) noexcept nogil:
    # From the begin of one turn to that of the next. Waiting fills messages; full ones go on at
    # once.
    cdef uint64_t pause_us = 4 * cost_us
    if messages and bytes // messages > FULL_MESSAGE_BYTES:
        return 0
    if messages < BUSY_MESSAGES or pause_us < TURN_US:
        return TURN_US
    return pause_us if pause_us < BUSY_US else BUSY_US

cdef inline void sleep_us(uint64_t wait_us) noexcept nogil:
    cdef timespec wait
    wait.tv_sec = <long>(wait_us // 1000000)
    wait.tv_nsec = <long>(wait_us % 1000000 * 1000)
    clock_nanosleep(CLOCK_MONOTONIC, 0, &wait, NULL)

cdef inline uint64_t backbone_due_us(backbone_t* bone, uint64_t now) noexcept nogil:
    # The next timer: a beacon, a sweep, a page, an upstream's silence.
    cdef uint64_t due = bone.beacon_us if bone.beacon_us < bone.sweep_us else bone.sweep_us
    cdef uint64_t held_due = holds_next_us(&bone.holds)
    cdef upstream_t* up
    cdef uint32_t i
    due = due if due < held_due else held_due
    for i in range(bone.upstreams_count):
        up = &bone.upstreams[i]
        if up.pages.request != 0 or up.pages.since != up.pages.wanted:
            due = due if due < now + SWEEP_US else now + SWEEP_US
        if up.peer.state == PEER_UP and up.peer.sign_us + bone.silence_us < due:
            due = up.peer.sign_us + bone.silence_us + 1000
    return due

cdef inline void poll_add(relay_poll_t* items, int* count, void* socket) noexcept nogil:
    if socket != NULL:
        items[count[0]].socket = socket
        items[count[0]].fd = 0
        items[count[0]].events = RELAY_ZMQ_POLLIN
        count[0] += 1

cdef inline void backbone_wait(backbone_t* bone, uint64_t now) noexcept nogil:
    # Until something comes, or the next timer.
    cdef relay_poll_t items[3 + 2 * UPSTREAMS_MAX]
    cdef uint64_t due = backbone_due_us(bone, now)
    cdef uint64_t value
    cdef uint32_t i
    cdef int count = 1
    items[0].socket = NULL
    items[0].fd = bone.engine.hub.kept_fd
    items[0].events = RELAY_ZMQ_POLLIN
    poll_add(items, &count, bone.xpub)
    poll_add(items, &count, bone.router)
    for i in range(bone.upstreams_count):
        poll_add(items, &count, bone.upstreams[i].sub)
        poll_add(items, &count, bone.upstreams[i].dealer)
    store_u32(&bone.engine.hub.asleep, 1)
    fence()
    if load_pointer(<void**>&bone.engine.hub.dirty) != NULL or due <= now or (
        not backbone_stays(bone)
    ):
        due = now
    bone.api.poll(items, count, <long>((due - now + 999) // 1000))
    store_u32(&bone.engine.hub.asleep, 0)
    eventfd_read(bone.engine.hub.kept_fd, &value)

cdef inline void backbone_load(backbone_t* bone, uint64_t now) noexcept nogil:
    # How much the last second held.
    cdef uint64_t messages = (
        bone.counters.sent_messages_total + bone.counters.received_messages_total
    )
    cdef uint64_t period_us = now - bone.load_from_us
    bone.load = <int>(bone.busy_us * 1000 // period_us)
    bone.crowd = hold_is_crowd(bone.crowd, messages - bone.load_messages, period_us)
    bone.load_from_us = now
    bone.load_messages = messages
    bone.busy_us = 0

cdef inline void* backbone_main(void* argument) noexcept nogil:
    # The thread, until close().
    cdef backbone_t* bone = <backbone_t*>argument
    cdef uint64_t end_us
    cdef uint64_t pause_us
    cdef uint64_t messages
    cdef uint64_t bytes
    bone.opened_us = bone.load_from_us = bone.last_turn_us = now_us()
    recorder_tick(&bone.recorder, bone.opened_us, wall_us())
    pthread_mutex_lock(&bone.turn_lock)
    backbone_streams(bone)
    pthread_mutex_unlock(&bone.turn_lock)
    while backbone_stays(bone):
        messages = bone.counters.sent_messages_total + bone.counters.received_messages_total
        bytes = bone.counters.sent_bytes_total + bone.counters.received_bytes_total
        pthread_mutex_lock(&bone.turn_lock)
        turn_begin(&bone.engine.retire, RETIRE_BACKBONE)
        bone.now_us = now_us()
        backbone_turn(bone)
        turn_end(&bone.engine.retire, RETIRE_BACKBONE)
        pthread_mutex_unlock(&bone.turn_lock)
        end_us = now_us()
        bone.busy_us += end_us - bone.now_us
        if end_us - bone.load_from_us >= 1000000:
            backbone_load(bone, end_us)
        if bone.again:
            continue
        if bone.moved:
            pause_us = backbone_pause_us(
                bone, end_us - bone.now_us,
                bone.counters.sent_messages_total + bone.counters.received_messages_total
                - messages,
                bone.counters.sent_bytes_total + bone.counters.received_bytes_total - bytes,
            )
            if end_us - bone.now_us < pause_us:
                sleep_us(pause_us - (end_us - bone.now_us))
        backbone_wait(bone, now_us())
    backbone_last_words(bone)
    return NULL

cdef inline void backbone_last_words(backbone_t* bone) noexcept nogil:
    # Children switch at once instead of waiting for the silence.
    cdef uint32_t i
    if bone.xpub != NULL and not bone.goodbye_said:
        parent_beacon(bone, BEACON_DRAINING | BEACON_GOODBYE)
    for i in range(bone.upstreams_count):
        dealer_close(&bone.upstreams[i])

cdef inline void backbone_subscribe(backbone_t* bone) noexcept nogil:
    # Beacons of each upstream, whatever it feeds.
    cdef unsigned char topic[WIRE_TOPIC_BYTES]
    cdef uint32_t i
    put_topic(topic, KIND_BEACON, 0)
    for i in range(bone.upstreams_count):
        bone.api.setsockopt(
            bone.upstreams[i].sub, RELAY_ZMQ_SUBSCRIBE, topic, WIRE_TOPIC_BYTES
        )
