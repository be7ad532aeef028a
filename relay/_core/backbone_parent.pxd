# backbone_parent.pxd: what a node does for its children: sends runs and beacons, hears what they
# want.
#
# Rules of this room
#   1. Runs in the backbone thread, inside a turn. Reads rings; writes none.
#   2. Never waits for a child: XPUB drops for one that stalls, and it repairs.
#   3. A node sends on only what its head has passed.
#   4. Per turn: RECEIVES_MAX messages of each kind, PACKS_MAX runs a stream; then, after the live
#      frames, ANSWER_TURN_BYTES and ANSWER_TURN_US of answers.
#   5. An answer is begun only when the last one to this child about this key has left, its share
#      of memory (pool.pxd) has room, and its part of the rate (fair.pxd) allows it; until then it
#      is told `later`. A child is its key where links have keys, else its connection.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memset, strlen

from relay._core.atomics cimport add_u32, load_u32, load_u64, store_u32
from relay._core.backbone_answer cimport answer_range, parent_join, parent_repair
from relay._core.backbone_directory cimport parent_directory
from relay._core.backbone_pack cimport pack_measure, pack_message, pack_t
from relay._core.backbone_state cimport (
    EXPELLED_MAX, RECEIVES_MAX, backbone_t, directory_is_whole, keys_add, keys_remove, link_find,
    link_t, link_touch, out_t, refuse,
)
from relay._core.engine cimport now_us
from relay._core.fair cimport fair_grow, fair_may
from relay._core.guests cimport (
    GUEST_FULL, GUEST_OK, PORT_ASKS, PORT_TOPICS, guest_adds, guest_comes, guest_cookie,
    guest_crowd, guest_cut, guest_drops, guest_has, guest_heard, guest_is, guest_leaves, guest_name,
    guest_next, guests_most,
)
from relay._core.parents cimport PARENT_NONE, PEER_UP
from relay._core.hold cimport hold_until_us, holds_add
from relay._core.pool cimport share_find, share_id, share_may_begin
from relay._core.recorder cimport RECORD_EXPELLED, RECORD_NOBODY, record
from relay._core.ring cimport (
    FRAME_TITLE, frame_t, ring_read_entry, ring_t, ring_tail_sequence,
)
from relay._core.stream cimport stream_ring_drop, stream_ring_take, stream_t
from relay._core.upstream cimport upstream_t
from relay._core.versions cimport version_flags
from relay._core.wire cimport *
from relay._core.zmq_api cimport *

cdef enum:
    ANSWER_TURN_BYTES = 4194304
    ANSWER_TURN_US = 10000
    PACKS_MAX = 64
    GUESTS_US = 1000000       # connections that have ended are looked for so often at least
    PREVIOUS_US = 5000000     # how long the epoch before is kept for repairs
    BEACON_ENTRIES_MAX = (WIRE_BEACON_BYTES_MAX - 512) // WIRE_BEACON_ENTRY_BYTES

# --- publishing -----------------------------------------------------------------------------------

cdef inline void publish(backbone_t* bone, relay_msg_t* msg) noexcept nogil:
    bone.counters.sent_messages_total += 1
    bone.counters.sent_bytes_total += bone.api.msg_size(msg)
    bone.moved = True
    if bone.api.msg_send(msg, bone.xpub, RELAY_ZMQ_DONTWAIT) < 0:
        bone.api.msg_close(msg)

cdef inline void publish_end(backbone_t* bone, link_t* link) noexcept nogil:
    # The epoch of out.ring ends before out.sequence.
    cdef pack_t pack
    cdef relay_msg_t msg
    pack_measure(link.out.ring, link.out.sequence, link.out.sequence, &pack)
    link.out.ended = True
    if pack_message(
        bone, link.out.ring, link.stream, &pack, KIND_STREAM, 0, bone.speaks.least, RUN_END, &msg
    ) == 1:
        publish(bone, &msg)

cdef inline void out_next_ring(backbone_t* bone, link_t* link) noexcept nogil:
    # The cursor has sent all of a superseded ring: on to the next, which may be a new epoch.
    cdef out_t* out = &link.out
    cdef ring_t* after = out.ring.next
    add_u32(&after.refs, 1)
    if after.epoch == out.ring.epoch:
        stream_ring_drop(link.stream, out.ring)
        if out.sequence < load_u64(&after.base_sequence):
            out.sequence = load_u64(&after.base_sequence)
    else:
        if not out.ended:
            publish_end(bone, link)
        if out.previous != NULL:
            stream_ring_drop(link.stream, out.previous)
        out.previous = out.ring
        out.previous_until_us = bone.now_us + PREVIOUS_US
        out.sequence = load_u64(&after.base_sequence)
    out.ring = after
    out.ended = False

cdef inline bint out_send(backbone_t* bone, link_t* link, uint64_t head) noexcept nogil:
    # One run from the cursor on. False: there is nothing that can be sent now.
    cdef out_t* out = &link.out
    cdef pack_t pack
    cdef relay_msg_t msg
    cdef int status
    pack_measure(out.ring, out.sequence, head, &pack)
    # a lost run, or the writer has lapped us: children repair what they can
    if pack.count == 0:
        pack.next_sequence = ring_tail_sequence(out.ring)
        out.sequence = pack.next_sequence if pack.next_sequence > out.sequence else out.sequence + 1
        return True
    status = pack_message(
        bone, out.ring, link.stream, &pack, KIND_STREAM, 0, bone.speaks.least, 0, &msg
    )
    if status < 0:
        return False
    if status == 1:
        publish(bone, &msg)
        bone.counters.sent_frames_total += pack.count
        out.sequence = pack.next_sequence
    elif out.sequence < ring_tail_sequence(out.ring):
        out.sequence = ring_tail_sequence(out.ring)
    return True

cdef inline bint link_holds(backbone_t* bone, link_t* link) noexcept nogil:
    # Does the one frame that is there wait for the next?
    cdef frame_t frame
    cdef uint64_t until_us
    if link.out.held_us == 0:
        link.out.held_us = bone.now_us
    if not ring_read_entry(link.out.ring, link.out.sequence, &frame) or frame.flags & FRAME_TITLE:
        return False
    until_us = hold_until_us(frame.duration_us, link.out.held_us)
    if bone.now_us >= until_us:
        return False
    holds_add(&bone.holds, &link.held, link, until_us, bone.now_us)
    return True

cdef inline void parent_send(backbone_t* bone, link_t* link) noexcept nogil:
    # All that the stream has and its children have not been sent.
    cdef out_t* out = &link.out
    cdef stream_t* stream = link.stream
    cdef uint64_t head
    cdef int packs
    cdef bint up
    if out.ring == NULL:
        out.ring = stream_ring_take(stream)
        if out.ring == NULL:
            return
        out.sequence = load_u64(&out.ring.head_sequence)
    for packs in range(PACKS_MAX):
        up = load_u32(&stream.source_up)
        if load_u32(&out.ring.superseded):      # before the head: it is final then
            if out.sequence >= load_u64(&out.ring.head_sequence):
                out_next_ring(bone, link)
                continue
        head = load_u64(&out.ring.head_sequence)
        if out.sequence < head:
            if bone.crowd and up and out.sequence + 1 == head and link_holds(bone, link):
                return
            out.held_us = 0
            if not out_send(bone, link, head):
                return
        else:
            if up:
                out.ended = False
            elif not out.ended:
                publish_end(bone, link)
            return
    bone.again = True
    link_touch(bone, link)

cdef inline void parent_subscriptions(backbone_t* bone) noexcept nogil:
    # XPUB tells who subscribes and who unsubscribes; of what those held who are gone, it names
    # nobody.
    cdef relay_msg_t msg
    cdef int fd
    cdef int i
    bone.api.msg_init(&msg)
    for i in range(RECEIVES_MAX):
        if bone.api.msg_recv(&msg, bone.xpub, RELAY_ZMQ_DONTWAIT) < 0:
            break
        fd = bone.api.msg_get(&msg, RELAY_ZMQ_SRCFD)
        guest_heard(&bone.guests, fd)
        if fd >= 0:
            parent_subscription(bone, &msg, fd)
        else:
            bone.guests_us = 0
    else:
        bone.again = True
    bone.api.msg_close(&msg)
    if bone.now_us >= bone.guests_us:
        bone.guests_us = bone.now_us + GUESTS_US
        parent_guests(bone)

cdef inline uint32_t guest_port(backbone_t* bone, int fd) noexcept nogil:
    # The port of ours that this connection leads to.
    return bone.xpub_port if bone.guests.guests[fd].port == PORT_TOPICS else bone.router_port

cdef inline bint guest_out(backbone_t* bone, int fd) noexcept nogil:
    # Show it the door. False: it has gone by itself.
    bone.guests.guests[fd].cut = True
    return guest_cut(fd, guest_port(bone, fd), bone.guests.guests[fd].cookie)

cdef inline bint parent_meets(
    backbone_t* bone, relay_msg_t* msg, int fd, uint8_t port,
) noexcept nogil:
    # Whose message is it? Of a child's connections to one port the oldest goes when it has too
    # many. False: nobody's that is to be heard: its connection has gone, or has to go.
    cdef uint64_t cookie = guest_cookie(
        fd, bone.xpub_port if port == PORT_TOPICS else bone.router_port
    )
    cdef int oldest
    if cookie == 0:
        return False
    if guest_is(&bone.guests, fd, cookie):
        return not bone.guests.guests[fd].cut
    parent_guest_left(bone, fd)
    guest_comes(&bone.guests, fd, cookie, bone.api.msg_gets(msg, "User-Id"), port)
    if guest_crowd(&bone.guests, fd) >= 0:
        parent_guests(bone)     # those that have ended do not count
        oldest = guest_crowd(&bone.guests, fd)
        if oldest >= 0 and guest_out(bone, oldest):
            bone.counters.crowded_total += 1
    return True

cdef inline void parent_guests(backbone_t* bone) noexcept nogil:
    # Who has gone holds nothing any more.
    cdef int fd
    for fd in range(bone.guests.fd_end):
        if bone.guests.guests[fd].cookie and not guest_is(
            &bone.guests, fd, guest_cookie(fd, guest_port(bone, fd))
        ):
            parent_guest_left(bone, fd)

cdef inline void parent_guest_left(backbone_t* bone, int fd) noexcept nogil:
    cdef uint64_t key = 0
    while guest_leaves(&bone.guests, fd, &key):
        if not guest_has(&bone.guests, key):
            parent_demand(bone, key, False)

cdef inline void parent_subscription(backbone_t* bone, relay_msg_t* msg, int fd) noexcept nogil:
    # What one connection says. It changes what that one holds, and nothing else; who holds too
    # much, asks for what is no topic, or gives back what it does not hold, has to go.
    cdef reader_t reader = reader_of(
        <uint8_t*>bone.api.msg_data(msg), bone.api.msg_size(msg)
    )
    cdef uint8_t add = take_u8(&reader)
    cdef uint8_t kind = take_u8(&reader)
    cdef uint64_t key = take_u64(&reader)
    cdef int status = GUEST_OK
    cdef bint no_topic = ended(&reader) != WIRE_OK or add > 1 or not is_published(kind) or (
        (kind == KIND_BEACON) != (key == 0)
    )
    if no_topic:
        refuse(bone, WIRE_TOPIC)
    if not parent_meets(bone, msg, fd, PORT_TOPICS) or (kind != KIND_STREAM and not no_topic):
        return
    if add == 1:
        status = guest_adds(&bone.guests, fd, 0 if no_topic else key)
    elif add == 0 and not no_topic:
        status = guest_drops(&bone.guests, fd, key)
    if not no_topic:
        if status != GUEST_OK:
            refuse(bone, WIRE_FULL if add else WIRE_TOPIC)
        parent_demand(bone, key, guest_has(&bone.guests, key))
    if status == GUEST_FULL:
        parent_expel(bone, guests_most(&bone.guests), -1)
    elif status != GUEST_OK:
        parent_expel(bone, bone.guests.guests[fd].account, fd)

cdef inline void parent_expel(backbone_t* bone, uint32_t account, int fd) noexcept nogil:
    # A child of ours never asks for such, or for so much: this connection ends (-1: all of the
    # child's), and with it all that libzmq keeps for it. Its name, known where links have keys, is
    # left for Python to take off the list.
    cdef char* place = bone.expelled[bone.counters.expelled_total % EXPELLED_MAX]
    cdef bint any = False
    if fd >= 0:
        any = guest_out(bone, fd)
    else:
        fd = guest_next(&bone.guests, account, -1)
        while fd >= 0:
            any |= guest_out(bone, fd)
            fd = guest_next(&bone.guests, account, fd)
    if any:
        snprintf(place, 65, "%s", guest_name(&bone.guests, account))
        bone.counters.expelled_total += 1
        record(&bone.recorder, bone.now_us, 0, RECORD_EXPELLED, 0, RECORD_NOBODY,
               bone.counters.expelled_total, 0, 0)

cdef inline void parent_demand(backbone_t* bone, uint64_t key, bint wanted) noexcept nogil:
    # Remembered also for streams that we do not know yet: after a restart children come first.
    cdef link_t* link = link_find(bone, key)
    if not wanted:
        keys_remove(&bone.demand, key)
    elif not keys_add(&bone.demand, key):
        refuse(bone, WIRE_FULL)
        return
    if link != NULL and link.stream != NULL:
        store_u32(&link.stream.downstream, wanted)
        link_touch(bone, link)

# --- beacons --------------------------------------------------------------------------------------

cdef inline uint32_t beacon_entries(backbone_t* bone, writer_t* writer) noexcept nogil:
    # Streams in demand, at most what fits; the next beacon goes on where this one ends.
    cdef wire_beacon_entry_t entry
    cdef link_t* link
    cdef uint64_t i
    cdef uint32_t count = 0
    for i in range(bone.table_size):
        link = bone.table[(bone.beacon_slot + i) & (bone.table_size - 1)]
        if link == NULL or link.out.ring == NULL:
            continue
        if count == BEACON_ENTRIES_MAX:
            bone.beacon_slot = (bone.beacon_slot + i) & (bone.table_size - 1)
            return count
        entry.key = link.key
        entry.epoch = link.out.ring.epoch
        entry.sequence = link.out.sequence
        entry.flags = RUN_END if link.out.ended else 0
        put_beacon_entry(writer, &entry)
        count += 1
    return count

cdef inline uint64_t upstream_weight(const upstream_t* up) noexcept nogil:
    cdef uint64_t there = up.peer.state == PEER_UP
    return there << 33 | <uint64_t>(up.node_id[0] != 0) << 32 | up.feeds

cdef inline upstream_t* upstream_first(backbone_t* bone) noexcept nogil:
    # Of those that are there the one that feeds most streams; else the first that was there.
    cdef upstream_t* first = &bone.upstreams[0]
    cdef upstream_t* up
    cdef uint32_t i
    for i in range(1, bone.upstreams_count):
        up = &bone.upstreams[i]
        if upstream_weight(up) > upstream_weight(first):
            first = up
    return first

cdef inline void count_feeds(backbone_t* bone) noexcept nogil:
    # How many streams come from each upstream.
    cdef link_t* link
    cdef uint64_t slot
    cdef uint32_t i
    for i in range(bone.upstreams_count):
        bone.upstreams[i].feeds = 0
    for slot in range(bone.table_size):
        link = bone.table[slot]
        if link != NULL and link.hop.feed.feeding != PARENT_NONE and link.hop.subscribed:
            bone.upstreams[link.hop.feed.feeding].feeds += 1

cdef inline void beacon_path(backbone_t* bone, wire_beacon_t* beacon) noexcept nogil:
    # The nodes above us, nearest first: one line of them, so that its length is the depth.
    cdef upstream_t* up
    cdef uint32_t i
    if bone.upstreams_count == 0:
        return
    up = upstream_first(bone)
    if up.node_id[0] == 0:
        return
    beacon.path[0] = up.node_id[0]
    beacon.path_count = 1
    for i in range(up.path_count):
        if beacon.path_count < WIRE_PATH_MAX:
            beacon.path[beacon.path_count] = up.path[i]
            beacon.path_count += 1

cdef inline void parent_beacon(backbone_t* bone, uint8_t flags) noexcept nogil:
    cdef uint8_t bytes[WIRE_BEACON_BYTES_MAX]
    cdef writer_t writer = writer_of(bytes, WIRE_BEACON_BYTES_MAX)
    cdef writer_t again
    cdef wire_beacon_t beacon
    memset(&beacon, 0, sizeof(beacon))
    beacon.flags = flags | version_flags(&bone.speaks)
    beacon.node_id[0] = bone.engine.node_id[0]
    beacon.node_id[1] = bone.engine.node_id[1]
    beacon.directory_version = bone.directory_version if directory_is_whole(bone) else 0
    beacon.turn = bone.counters.turns_total
    beacon.load = bone.load
    beacon.router_port = bone.router_port
    count_feeds(bone)
    beacon_path(bone, &beacon)
    beacon.address = <const uint8_t*>bone.advertise
    beacon.address_bytes = <uint32_t>strlen(bone.advertise)
    put_head(&writer, KIND_BEACON, 0, 0, bone.speaks.least)
    again = writer
    put_beacon(&writer, &beacon)
    beacon.count = beacon_entries(bone, &writer)
    put_beacon(&again, &beacon)
    bone.api.send(bone.xpub, bytes, writer.at - bytes, RELAY_ZMQ_DONTWAIT)
    bone.counters.beacons_sent_total += 1

# --- requests -------------------------------------------------------------------------------------

cdef inline bint asker_ready(backbone_t* bone, const wire_head_t* head) noexcept nogil:
    # Has what this child asked about this key before left, and may it have more?
    cdef uint32_t account = bone.asker_account
    bone.asker = share_find(bone.pool, share_id(bone.pool, account, 0, False), NULL)
    bone.asker_run = share_find(
        bone.pool, share_id(bone.pool, account, head.key, True), bone.asker
    )
    return fair_may(&bone.fair, account) and share_may_begin(
        bone.pool, bone.asker, bone.asker_run
    )

cdef inline void parent_request(
    backbone_t* bone, relay_msg_t* to, const uint8_t* bytes, size_t size
) noexcept nogil:
    cdef reader_t reader = reader_of(bytes, size)
    cdef wire_head_t head
    cdef int status = take_head(&reader, &head, &bone.speaks)
    if status != WIRE_OK:
        refuse(bone, status)
        return
    bone.counters.requests_total += 1
    if head.kind != KIND_JOIN and head.kind != KIND_REPAIR and head.kind != KIND_DIRECTORY:
        refuse(bone, WIRE_KIND)
    elif not asker_ready(bone, &head):
        bone.counters.deferred_total += 1
        answer_range(bone, to, &head, KIND_LATER, 0, 0, 0, 0)
    elif head.kind == KIND_JOIN:
        parent_join(bone, to, &head, &reader)
    elif head.kind == KIND_REPAIR:
        parent_repair(bone, to, &head, &reader)
    else:
        parent_directory(bone, to, &head, &reader)
    bone.asker = bone.asker_run = NULL

cdef inline void parent_requests(backbone_t* bone) noexcept nogil:
    # Two parts each: who asks, what. Anything else is refused.
    cdef relay_msg_t who
    cdef relay_msg_t msg
    cdef uint64_t begin = now_us()
    cdef uint64_t now
    cdef int fd
    cdef int i
    bone.api.msg_init(&who)
    bone.api.msg_init(&msg)
    bone.answered_bytes = 0
    fair_grow(&bone.fair, begin)
    for i in range(RECEIVES_MAX):
        if bone.api.msg_recv(&who, bone.router, RELAY_ZMQ_DONTWAIT) < 0:
            break
        fd = bone.api.msg_get(&who, RELAY_ZMQ_SRCFD)
        guest_heard(&bone.guests, fd)
        if not bone.api.msg_more(&who) or bone.api.msg_recv(
            &msg, bone.router, RELAY_ZMQ_DONTWAIT
        ) < 0:
            refuse(bone, WIRE_SIZE)
        elif bone.api.msg_more(&msg):
            refuse(bone, WIRE_SIZE)
            while bone.api.msg_more(&msg):
                if bone.api.msg_recv(&msg, bone.router, RELAY_ZMQ_DONTWAIT) < 0:
                    break
        elif parent_meets(bone, &who, fd, PORT_ASKS):
            bone.asker_account = bone.guests.guests[fd].account
            parent_request(
                bone, &who, <const uint8_t*>bone.api.msg_data(&msg), bone.api.msg_size(&msg)
            )
        now = now_us()      # others wait for this turn, the children for a beacon
        if bone.answered_bytes >= ANSWER_TURN_BYTES or now >= bone.beacon_us or (
            now - begin >= ANSWER_TURN_US
        ):
            bone.again = True
            break
    else:
        bone.again = True
    bone.api.msg_close(&who)
    bone.api.msg_close(&msg)
