# upstream.pxd: one node above us: its two sockets, whether it is there, how far we know its
# directory, what we have asked it.
#
# Rules of this room
#   1. Owned by the backbone thread; others look only under its turn_lock.
#   2. One SUB and one DEALER for each upstream: a SUB with two connections subscribes at both, a
#      DEALER asks them in turn. The SUB comes from relay/backbone.py and stays; the DEALER is made
#      anew for each parent process, so that nothing queued for the last one can reach it.
#   3. Silence is answered by dialling anew: libzmq never does once it has taken a message for
#      malformed, and learns late or never that a firewall has forgotten a connection.
#   4. Knows no streams: what one upstream has of a stream is the link's. Of header blobs it keeps
#      the one that is on its way: a node gives one answer after the other, so there is one at a
#      time, and what one upstream can make us keep of pieces is HEADER_BYTES_MAX.
#   5. What it says without an end is relay/endless.py's affair, which asks for what only this
#      thread knows: how many messages came whole, and which descriptor the DEALER has.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport atoi, free, malloc
from libc.string cimport memcmp, memcpy, memset, strcmp, strrchr

from relay._core.atomics cimport store_u32
from relay._core.hop cimport HOP_ANSWER_US
from relay._core.parents cimport (
    PARENTS_MAX, PEER_CONNECTING, PEER_LOOP, PEER_LOST, PEER_UP, peer_t,
)
from relay._core.versions cimport versions_t
from relay._core.wire cimport (
    WIRE_ADDRESS_BYTES_MAX, WIRE_PATH_MAX, wire_beacon_t, wire_header_t, writer_t,
)
from relay._core.zmq_api cimport *

cdef enum:
    UPSTREAMS_MAX = PARENTS_MAX
    WINDOW_MAX = 32           # joins and repairs open at one upstream, of all streams together
    REPAIR_ADDRESS_BYTES = 512
    ANSWER_BYTES_MAX = 196608   # a message, and what CURVE adds; as the SUB has it
    EVENT_BYTES = 6           # of a monitor's first part: event (16 bits) and value (32)
    EVENT_VALUE = 2           # where the value begins
    # silence after which the SUB is connected anew; jitter adds up to as much
    REDIAL_US = 2000000

cdef struct pages_t:          # an upstream's directory, as far as it has told it
    uint64_t since            # the version up to which we have it
    uint64_t wanted           # its version, as the last beacon said; 0: it does not know yet
    uint64_t round            # of the snapshot being taken; 0: only changes
    uint64_t best             # how far the pages of this run have come
    uint32_t stuck            # pages of this run that brought no newer version
    uint32_t request          # 0: none open
    uint64_t answer_by_us
    uint64_t retry_us
    uint64_t missed_us        # when it is asked for anew, since some of it had no room; 0: it had
    bint whole                # all of it has come once

cdef struct blob_t:           # a header blob that comes in pieces
    uint8_t* bytes            # owned; NULL: none
    uint32_t request          # whose answer it is a part of
    uint32_t size_bytes
    uint32_t filled_bytes

cdef struct upstream_t:
    zmq_api_t* api            # borrowed
    void* context             # borrowed
    void* sub                 # relay/backbone.py's
    void* dealer              # NULL until the first beacon
    void* monitor             # tells of the DEALER's connections; NULL: nobody does
    uint32_t dealers          # made so far
    # read by any thread: messages that came whole (modulo 2**32); the descriptor of the DEALER's
    # newest connection, + 1 (0: none yet), and the port that it leads to
    uint32_t published
    uint32_t answered
    uint32_t dealer_fd
    uint32_t dealer_port
    curve_t curve             # our keys and this upstream's, for the DEALER
    char host[WIRE_ADDRESS_BYTES_MAX + 1]       # tcp://host, without the port
    char address[WIRE_ADDRESS_BYTES_MAX + 1]    # tcp://host:port, as the SUB was connected
    char repair_address[REPAIR_ADDRESS_BYTES]   # as the DEALER was
    uint32_t index            # its place among the upstreams
    peer_t* peer              # what decisions see of it; borrowed
    uint64_t node_id[2]       # 0: not heard yet
    versions_t speaks         # versions of the protocol, as its last beacon told
    uint64_t path[WIRE_PATH_MAX]  # low halves of the ids above it, nearest first
    uint32_t path_count
    pages_t pages
    blob_t blob
    uint32_t feeds            # streams that it feeds, as of the last beacon
    uint64_t lost_total       # times that it was lost
    uint64_t redial_us        # when a silent SUB is connected anew; 0: not silent
    uint64_t unheard_us       # since when the DEALER has asked and heard nothing; 0: it has heard

# --- sockets -------------------------------------------------------------------------------------

cdef inline void dealer_option(upstream_t* up, int option, int value) noexcept nogil:
    up.api.setsockopt(up.dealer, option, &value, sizeof(int))

cdef inline void dealer_watch(upstream_t* up) noexcept nogil:
    # Before it connects: its monitor has a reader from the first event on, as libzmq's thread waits
    # for one.
    cdef char address[64]
    cdef int none = 0
    up.dealers += 1
    snprintf(address, 64, "inproc://dealer-%u-%u", up.index, up.dealers)
    if up.api.socket_monitor(up.dealer, address, RELAY_ZMQ_EVENT_CONNECTED) != 0:
        return
    up.monitor = up.api.socket(up.context, RELAY_ZMQ_PAIR)
    if up.monitor == NULL:
        up.api.socket_monitor(up.dealer, NULL, 0)
        return
    up.api.setsockopt(up.monitor, RELAY_ZMQ_LINGER, &none, sizeof(int))
    up.api.setsockopt(up.monitor, RELAY_ZMQ_RCVHWM, &none, sizeof(int))
    up.api.connect(up.monitor, address)

cdef inline void dealer_look(upstream_t* up) noexcept nogil:
    # Has it a connection since the last look?
    cdef relay_msg_t msg
    cdef uint32_t fd
    if up.monitor == NULL:
        return
    up.api.msg_init(&msg)
    while up.api.msg_recv(&msg, up.monitor, RELAY_ZMQ_DONTWAIT) >= 0:
        if up.api.msg_more(&msg) and up.api.msg_size(&msg) == EVENT_BYTES:
            memcpy(&fd, <uint8_t*>up.api.msg_data(&msg) + EVENT_VALUE, 4)
            store_u32(&up.dealer_fd, fd + 1)
    up.api.msg_close(&msg)

cdef inline void dealer_close(upstream_t* up) noexcept nogil:
    if up.monitor != NULL:      # first: libzmq's thread would wait for one that nobody reads
        up.api.socket_monitor(up.dealer, NULL, 0)
        up.api.close(up.monitor)
        up.monitor = NULL
    store_u32(&up.dealer_fd, 0)
    if up.dealer != NULL:
        dealer_option(up, RELAY_ZMQ_LINGER, 0)
        up.api.close(up.dealer)
        up.dealer = NULL
    up.peer.answers = False

cdef inline bint dealer_connect(upstream_t* up) noexcept nogil:
    # False: what was announced is no address; a beacon with another may come.
    cdef long long size_max = ANSWER_BYTES_MAX
    cdef const char* port = strrchr(up.repair_address, 58)      # ':'
    dealer_close(up)
    up.unheard_us = 0
    up.dealer = up.api.socket(up.context, RELAY_ZMQ_DEALER)
    if up.dealer == NULL:
        return True
    dealer_option(up, RELAY_ZMQ_LINGER, 0)
    dealer_option(up, RELAY_ZMQ_IMMEDIATE, 1)
    dealer_option(up, RELAY_ZMQ_IPV6, 1)
    dealer_option(up, RELAY_ZMQ_SNDHWM, 256)
    dealer_option(up, RELAY_ZMQ_RCVHWM, 1024)
    dealer_option(up, RELAY_ZMQ_RECONNECT_IVL, 100)
    dealer_option(up, RELAY_ZMQ_RECONNECT_IVL_MAX, 0)
    dealer_option(up, RELAY_ZMQ_HANDSHAKE_IVL, 5000)
    dealer_option(up, RELAY_ZMQ_TCP_KEEPALIVE, 1)
    dealer_option(up, RELAY_ZMQ_TCP_KEEPALIVE_IDLE, 5)
    dealer_option(up, RELAY_ZMQ_TCP_KEEPALIVE_INTVL, 2)
    dealer_option(up, RELAY_ZMQ_TCP_MAXRT, 5000)
    up.api.setsockopt(up.dealer, RELAY_ZMQ_MAXMSGSIZE, &size_max, sizeof(size_max))
    store_u32(&up.dealer_port, 0 if port == NULL else <uint32_t>atoi(port + 1))
    dealer_watch(up)
    if zmq_curve(up.api, up.dealer, &up.curve) != 0 or (
        up.api.connect(up.dealer, up.repair_address) != 0
    ):
        dealer_close(up)
        return False
    up.peer.answers = True
    return True

cdef inline bint upstream_ask(
    upstream_t* up, const uint8_t* bytes, const writer_t* writer, uint64_t now,
) noexcept nogil:
    # False: no connection, or its queue is full.
    if up.unheard_us == 0:
        up.unheard_us = now
    return up.dealer != NULL and up.api.send(
        up.dealer, bytes, writer.at - bytes, RELAY_ZMQ_DONTWAIT
    ) >= 0

cdef inline void upstream_closed(upstream_t* up) noexcept nogil:
    # A request is answered, or given up.
    if up.peer.window > 0:
        up.peer.window -= 1

cdef inline bint upstream_redial(
    upstream_t* up, uint64_t now, bint paused, uint64_t jitter,
) noexcept nogil:
    # True: a connection was made anew. Who stood still himself takes no silence for one.
    if paused:
        up.redial_us = up.unheard_us = 0
    if up.peer.state == PEER_UP:
        up.redial_us = 0
        if up.unheard_us == 0 or now - up.unheard_us <= 2 * HOP_ANSWER_US:
            return False
        dealer_connect(up)      # holes go on ageing: it may never answer
        return True
    up.unheard_us = 0
    if up.peer.state != PEER_LOST and up.peer.state != PEER_CONNECTING:
        up.redial_us = 0
    elif up.redial_us == 0:
        up.redial_us = now + REDIAL_US + jitter % REDIAL_US
    elif now >= up.redial_us:
        up.redial_us = 0
        up.api.disconnect(up.sub, up.address)
        up.api.connect(up.sub, up.address)
        return True
    return False

# --- header blobs --------------------------------------------------------------------------------

cdef inline void blob_forget(blob_t* blob) noexcept nogil:
    free(blob.bytes)
    blob.bytes = NULL

cdef inline bint blob_grow(
    blob_t* blob, uint32_t request, const wire_header_t* piece,
) noexcept nogil:
    # One more piece of the answer to this request. False: it is not the next one.
    if piece.offset == 0:
        blob_forget(blob)
        blob.bytes = <uint8_t*>malloc(piece.total_bytes)
        blob.request = request
        blob.size_bytes = piece.total_bytes
        blob.filled_bytes = 0
    if blob.bytes == NULL or request != blob.request or (
        piece.offset != blob.filled_bytes or piece.total_bytes != blob.size_bytes
    ):
        return False
    memcpy(blob.bytes + piece.offset, piece.bytes, piece.size_bytes)
    blob.filled_bytes += piece.size_bytes
    return True

# --- who is there --------------------------------------------------------------------------------

cdef enum:  # upstream_adopt
    ADOPTED_SAME = 0
    ADOPTED_MOVED = 1         # another address: a new DEALER
    ADOPTED_NEW = 2           # another process

cdef inline bint beacon_is_loop(
    const wire_beacon_t* beacon, const uint64_t* our_id,
) noexcept nogil:
    # Is the sender ourselves, below us, or too deep?
    cdef uint32_t i
    if memcmp(beacon.node_id, our_id, 16) == 0 or beacon.path_count >= WIRE_PATH_MAX:
        return True
    for i in range(beacon.path_count):
        if beacon.path[i] == our_id[0]:
            return True
    return False

cdef inline int upstream_adopt(upstream_t* up, const wire_beacon_t* beacon) noexcept nogil:
    # Who it is, and where it answers; a new process or address wants a new DEALER.
    cdef char address[REPAIR_ADDRESS_BYTES]
    cdef bint same = memcmp(beacon.node_id, up.node_id, 16) == 0
    if beacon.address_bytes:
        snprintf(
            address, REPAIR_ADDRESS_BYTES, "tcp://%.*s", <int>beacon.address_bytes,
            <const char*>beacon.address,
        )
    else:
        snprintf(address, REPAIR_ADDRESS_BYTES, "%s:%u", up.host, beacon.router_port)
    up.path_count = beacon.path_count
    memcpy(up.path, beacon.path, sizeof(beacon.path))
    up.peer.load = beacon.load
    if same and strcmp(address, up.repair_address) == 0 and up.dealer != NULL:
        return ADOPTED_SAME
    if not same:
        memcpy(up.node_id, beacon.node_id, 16)
        memset(&up.pages, 0, sizeof(pages_t))
    up.pages.request = 0
    memcpy(up.repair_address, address, REPAIR_ADDRESS_BYTES)
    return ADOPTED_MOVED if same else ADOPTED_NEW

cdef inline void pages_anew(pages_t* pages) noexcept nogil:
    # All of its directory is asked for once more. A page that is on its way is of the time before:
    # it would move `since` on again, and what was forgotten would never come.
    pages.since = pages.best = 0
    pages.request = pages.stuck = 0

cdef inline void upstream_leave(upstream_t* up, uint32_t state) noexcept nogil:
    # It is lost, or refused.
    up.peer.state = state
    up.pages.request = 0
    if state == PEER_LOOP:      # not above us: our children must not be told so
        up.node_id[0] = up.node_id[1] = up.path_count = 0
