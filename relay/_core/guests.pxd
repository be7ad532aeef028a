# guests.pxd: which connection holds which topics, so that a topic's last holder is known, and a
# child that takes too many, or gives back what it does not hold, can be shown the door.
#
# Rules of this room
#   1. Called by the backbone thread alone. Nothing is allocated after guests_open.
#   2. XPUB is verboser: it tells of each connection's subscriptions and unsubscriptions, with the
#      descriptor. A connection is its descriptor and the cookie of its socket, so that a descriptor
#      that is used again is another connection. What one says of a topic changes only what it
#      holds itself.
#   3. A connection that has ended is told by its descriptor, not by XPUB, whose word on that names
#      nobody; what it held is taken back topic by topic (guest_leaves).
#   4. A child is its name where links have keys, else its connection. One connection may hold
#      each_max; a child twice that, for while one connection ends the next begins.
#   5. Decides only. Who has to go is cut by the caller (guest_cut): who holds more than one may,
#      or, when all together do, who holds most; never the next who comes. What one asks for beyond
#      a bound is not remembered.
#   6. Connections to both ports are known, each from its first message on. Of a named child only
#      CONNECTIONS_MAX to one port: all other bounds count per connection. Beyond, the oldest goes:
#      where links fail it is the likeliest to be half open, and the newest is the one in use.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport strcmp, strncpy

from relay._core.atomics cimport load_u32, load_u64, store_u32, store_u64
from relay._core.tables cimport table_close, table_open

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(uint16_t port)

cdef extern from "<netinet/in.h>" nogil:
    cdef struct sockaddr_in6:
        uint16_t sin6_port

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void* bytes, size_t size, unsigned int flags)

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        pass
    int getsockname(int fd, sockaddr* address, socklen_t* size)
    int getsockopt(int fd, int level, int option, void* value, socklen_t* size)
    int shutdown(int fd, int how)
    int SHUT_RDWR
    int SOL_SOCKET
    int SO_COOKIE

cdef enum:
    GUESTS = 1048576              # descriptors: Linux gives no higher ones (fs.nr_open)
    GUEST_NAMES = 8192            # a power of two, twice as many as a node may list
    GUEST_NAME_BYTES = 65
    GUEST_ACCOUNTS = 1056768      # one for each descriptor, then one for each name
    CONNECTIONS_MAX = 8           # of a named child, to one port; a node of ours has one
    PORT_TOPICS = 0               # where it subscribes (XPUB) …
    PORT_ASKS = 1                 # … and where it asks (ROUTER)
    GUEST_OK = 0
    GUEST_OVER = -1               # this child holds as many as one may
    GUEST_FULL = -2               # all of them together do
    GUEST_FALSE = -3              # it gives back what it does not hold

cdef struct guest_t:              # one connection
    uint64_t cookie               # of its socket; 0: none; any thread reads
    uint32_t account              # whose it is
    uint32_t first                # of its holds; 0: none
    uint32_t topics               # how many it holds
    uint32_t again                # times that it asked for what it has
    uint32_t came                 # the number of its first message (modulo 2**32)
    uint8_t port                  # PORT_*
    uint8_t cut                   # shown the door already

cdef struct hold_t:               # a topic of a connection; or (fd GUESTS) a topic, `before` times
    uint64_t key
    uint32_t fd
    uint32_t next                 # in its bucket, or of those that are free; 0: no more
    uint32_t before               # of the same connection …
    uint32_t after

cdef struct guests_t:
    hold_t* holds                 # two for each of count_max, from 1 on; owned
    uint32_t* buckets             # the first hold of each; owned
    guest_t* guests               # by descriptor; owned
    uint32_t* held                # topics, by account; owned
    uint32_t* heard               # messages, by descriptor (modulo 2**32); any thread reads; owned
    char* names                   # GUEST_NAMES of GUEST_NAME_BYTES: open addressing; owned
    uint64_t mask                 # buckets: a power of two, less one
    uint64_t seed                 # of the buckets: keys are chosen by others
    uint32_t used                 # holds that were ever taken
    uint32_t free                 # the first that was given back; 0: none
    uint32_t count                # topics held, each as often as it is
    uint32_t count_max            # all children together
    uint32_t each_max             # one connection
    uint32_t came                 # connections that ever came (modulo 2**32)
    int fd_end                    # all connections are below

cdef inline int guests_open(guests_t* guests, uint32_t count_max, uint32_t each_max) noexcept nogil:
    cdef uint64_t size = 16
    guests.count_max = count_max
    guests.each_max = each_max
    guests.used = guests.free = guests.count = guests.came = 0
    guests.fd_end = 0
    if getrandom(&guests.seed, sizeof(guests.seed), 0) != <ssize_t>sizeof(guests.seed):
        return -1
    while size < 2 * <uint64_t>count_max:
        size <<= 1
    guests.mask = size - 1
    guests.holds = <hold_t*>table_open(2 * <uint64_t>count_max + 1, sizeof(hold_t))
    guests.buckets = <uint32_t*>table_open(size, sizeof(uint32_t))
    guests.guests = <guest_t*>table_open(GUESTS, sizeof(guest_t))
    guests.held = <uint32_t*>table_open(GUEST_ACCOUNTS, sizeof(uint32_t))
    guests.heard = <uint32_t*>table_open(GUESTS, sizeof(uint32_t))
    guests.names = <char*>table_open(GUEST_NAMES, GUEST_NAME_BYTES)
    if guests.holds == NULL or guests.buckets == NULL or guests.held == NULL:
        return -1
    if guests.heard == NULL:
        return -1
    return -1 if guests.guests == NULL or guests.names == NULL else 0

cdef inline void guests_close(guests_t* guests) noexcept nogil:
    table_close(guests.holds)
    table_close(guests.buckets)
    table_close(guests.guests)
    table_close(guests.held)
    table_close(guests.heard)
    table_close(guests.names)
    guests.holds = NULL
    guests.buckets = guests.held = guests.heard = NULL
    guests.guests = NULL
    guests.names = NULL

# --- whose ---------------------------------------------------------------------------------------

cdef inline const char* guest_name(guests_t* guests, uint32_t account) noexcept nogil:
    # Empty where links have no keys.
    if account < GUESTS or account >= GUEST_ACCOUNTS:
        return b""
    return guests.names + <uint64_t>GUEST_NAME_BYTES * (account - GUESTS)

cdef inline uint32_t guest_account(guests_t* guests, int fd, const char* name) noexcept nogil:
    # The account of this child: its name's, else its descriptor's.
    cdef uint32_t hash = 2166136261     # FNV-1a
    cdef uint32_t i = 0
    cdef char* place
    if name == NULL or name[0] == 0:
        return <uint32_t>fd & (GUESTS - 1)
    while name[i] != 0 and i < GUEST_NAME_BYTES - 1:
        hash = (hash ^ <unsigned char>name[i]) * <uint32_t>16777619
        i += 1
    for i in range(GUEST_NAMES):
        hash &= GUEST_NAMES - 1
        place = guests.names + <uint64_t>GUEST_NAME_BYTES * hash
        if place[0] == 0:
            strncpy(place, name, GUEST_NAME_BYTES - 1)
            return GUESTS + hash
        if strcmp(place, name) == 0:
            return GUESTS + hash
        hash += 1
    return <uint32_t>fd & (GUESTS - 1)

cdef inline uint32_t guests_most(guests_t* guests) noexcept nogil:
    # The account with most topics. Of descriptors only those that there are: who asks for more than
    # there is room for may do so again and again.
    cdef uint32_t most = 0
    cdef uint32_t i
    for i in range(1, <uint32_t>guests.fd_end):
        if guests.held[i] > guests.held[most]:
            most = i
    for i in range(GUESTS, GUEST_ACCOUNTS):
        if guests.held[i] > guests.held[most]:
            most = i
    return most

cdef inline int guest_next(guests_t* guests, uint32_t account, int fd) noexcept nogil:
    # The next connection of this child after fd that is not cut yet, and now is; -1: no more.
    for fd in range(fd + 1, guests.fd_end):
        if guests.guests[fd].cookie and guests.guests[fd].account == account and (
            not guests.guests[fd].cut
        ):
            guests.guests[fd].cut = True
            return fd
    return -1

cdef inline int guest_crowd(guests_t* guests, int fd) noexcept nogil:
    # Has the child of this connection too many to this port? The oldest of them; -1: it has not.
    # Without a name nobody knows whose they are.
    cdef const guest_t* newest = &guests.guests[fd]
    cdef const guest_t* guest
    cdef int oldest = fd
    cdef int count = 0
    cdef int i
    if newest.cookie == 0 or newest.account < GUESTS:
        return -1
    for i in range(guests.fd_end):
        guest = &guests.guests[i]
        if guest.cookie and guest.account == newest.account and guest.port == newest.port and (
            not guest.cut
        ):
            count += 1
            if <int32_t>(guest.came - guests.guests[oldest].came) < 0:
                oldest = i
    return oldest if count > CONNECTIONS_MAX else -1

# --- holds ---------------------------------------------------------------------------------------

cdef inline uint32_t* hold_bucket(guests_t* guests, uint64_t key, uint32_t fd) noexcept nogil:
    cdef uint64_t hash = (key ^ guests.seed) + fd * <uint64_t>0x9E3779B97F4A7C15
    hash = (hash ^ (hash >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    hash = (hash ^ (hash >> 27)) * <uint64_t>0x94D049BB133111EB
    return &guests.buckets[(hash ^ (hash >> 31)) & guests.mask]

cdef inline uint32_t hold_find(guests_t* guests, uint64_t key, uint32_t fd) noexcept nogil:
    # 0: there is none.
    cdef uint32_t at = hold_bucket(guests, key, fd)[0]
    while at and (guests.holds[at].key != key or guests.holds[at].fd != fd):
        at = guests.holds[at].next
    return at

cdef inline uint32_t hold_take(guests_t* guests, uint64_t key, uint32_t fd) noexcept nogil:
    # There is room: two for each of count_max.
    cdef uint32_t* bucket = hold_bucket(guests, key, fd)
    cdef uint32_t at = guests.free
    if at:
        guests.free = guests.holds[at].next
    else:
        guests.used += 1
        at = guests.used
    guests.holds[at] = hold_t(key, fd, bucket[0], 0, 0)
    bucket[0] = at
    return at

cdef inline void hold_give(guests_t* guests, uint32_t at) noexcept nogil:
    cdef uint32_t* link = hold_bucket(guests, guests.holds[at].key, guests.holds[at].fd)
    while link[0] != at:
        link = &guests.holds[link[0]].next
    link[0] = guests.holds[at].next
    guests.holds[at].next = guests.free
    guests.free = at

cdef inline void guest_lets_go(guests_t* guests, int fd, uint32_t at) noexcept nogil:
    # This connection holds it no more.
    cdef guest_t* guest = &guests.guests[fd]
    cdef hold_t* hold = &guests.holds[at]
    cdef uint32_t topic = hold_find(guests, hold.key, GUESTS)
    if hold.before:
        guests.holds[hold.before].after = hold.after
    else:
        guest.first = hold.after
    if hold.after:
        guests.holds[hold.after].before = hold.before
    hold_give(guests, at)
    guests.holds[topic].before -= 1
    if guests.holds[topic].before == 0:
        hold_give(guests, topic)
    guest.topics -= 1
    guests.held[guest.account] -= 1
    guests.count -= 1

# --- topics --------------------------------------------------------------------------------------

cdef inline bint guest_has(guests_t* guests, uint64_t key) noexcept nogil:
    # Does anybody hold it?
    return hold_find(guests, key, GUESTS) != 0

cdef inline bint guest_is(guests_t* guests, int fd, uint64_t cookie) noexcept nogil:
    # Is it still the same connection?
    return 0 <= fd < GUESTS and guests.guests[fd].cookie == cookie

cdef inline bint guest_leaves(guests_t* guests, int fd, uint64_t* key) noexcept nogil:
    # The connection has ended: the next of what it held, and True; False: that was all, and it is
    # forgotten.
    cdef guest_t* guest = &guests.guests[fd]
    if guest.first == 0:
        store_u64(&guest.cookie, 0)
        guest[0] = guest_t(0, 0, 0, 0, 0, 0, 0, False)
        return False
    key[0] = guests.holds[guest.first].key
    guest_lets_go(guests, fd, guest.first)
    return True

cdef inline void guest_comes(
    guests_t* guests, int fd, uint64_t cookie, const char* name, uint8_t port,
) noexcept nogil:
    # A connection, once the last one with this descriptor has left; one that is known changes
    # nothing.
    cdef guest_t* guest = &guests.guests[fd]
    if guest.cookie == 0:
        guest.account = guest_account(guests, fd, name)
        guest.port = port
        guests.came += 1
        guest.came = guests.came
        store_u64(&guest.cookie, cookie)
        if fd >= guests.fd_end:
            guests.fd_end = fd + 1

cdef inline int guest_adds(guests_t* guests, int fd, uint64_t key) noexcept nogil:
    # This connection asks for a topic; key 0 is no topic's.
    cdef guest_t* guest = &guests.guests[fd]
    cdef uint32_t at
    if key == 0:
        return GUEST_OVER
    if hold_find(guests, key, fd):      # no child of ours asks twice
        guest.again += 1
        return GUEST_OVER if guest.again > guests.each_max else GUEST_OK
    if guest.topics >= guests.each_max or guests.held[guest.account] >= 2 * guests.each_max:
        return GUEST_OVER
    if guests.count >= guests.count_max:
        return GUEST_FULL
    at = hold_find(guests, key, GUESTS)
    if at == 0:
        at = hold_take(guests, key, GUESTS)
    guests.holds[at].before += 1
    at = hold_take(guests, key, fd)
    guests.holds[at].after = guest.first
    if guest.first:
        guests.holds[guest.first].before = at
    guest.first = at
    guest.topics += 1
    guests.held[guest.account] += 1
    guests.count += 1
    return GUEST_OK

cdef inline int guest_drops(guests_t* guests, int fd, uint64_t key) noexcept nogil:
    # This connection gives a topic back: whether anybody else holds it is another question.
    cdef uint32_t at = hold_find(guests, key, fd)
    if at == 0:
        return GUEST_FALSE
    guest_lets_go(guests, fd, at)
    return GUEST_OK

# --- connections ---------------------------------------------------------------------------------

cdef inline void guest_heard(guests_t* guests, int fd) noexcept nogil:
    # A whole message has come from this connection, to whichever port (see relay/endless.py).
    if 0 <= fd < GUESTS:
        store_u32(&guests.heard[fd], guests.heard[fd] + 1)

cdef inline uint32_t guest_told(guests_t* guests, int fd) noexcept nogil:
    # How many messages so far; any thread asks, and after the end (none).
    return load_u32(&guests.heard[fd]) if guests.heard != NULL and 0 <= fd < GUESTS else 0

cdef inline bint guest_spoke(guests_t* guests, int fd, uint64_t cookie) noexcept nogil:
    # Has this very connection brought any? Likewise.
    return guests.guests == NULL or (
        0 <= fd < GUESTS and load_u64(&guests.guests[fd].cookie) == cookie
    )

cdef inline uint64_t guest_cookie(int fd, uint32_t port) noexcept nogil:
    # Which connection to our port this descriptor is now; 0: none.
    cdef sockaddr_in6 here
    cdef uint64_t cookie = 0
    cdef socklen_t size = sizeof(sockaddr_in6)      # the port stands where IPv4 has it
    if fd < 0 or fd >= GUESTS or getsockname(fd, <sockaddr*>&here, &size) != 0 or (
        ntohs(here.sin6_port) != port
    ):
        return 0
    size = sizeof(cookie)
    return cookie if getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 else 0

cdef inline bint guest_cut(int fd, uint32_t port, uint64_t cookie) noexcept nogil:
    # Ends the connection, if the descriptor is still this one: a newcomer may have the number by
    # now, on the same port. libzmq closes it and forgets all its topics.
    return cookie != 0 and guest_cookie(fd, port) == cookie and shutdown(fd, SHUT_RDWR) == 0
