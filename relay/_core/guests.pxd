# guests.pxd: which child holds how many topics, so that one that takes too many can be shown the
# door.
#
# Rules of this room
#   1. Called by the backbone thread alone. Nothing is allocated after guests_open.
#   2. Topics are counted by child: by its name where links have keys, whatever the number of its
#      connections, else by connection. A topic belongs to the child that asked for it first: XPUB
#      tells of the first subscription and of the end of the last, exactly.
#   3. A connection is its descriptor; it belongs to the child that spoke on it last.
#   4. What one asks for beyond a bound is remembered all the same, as far as there is room (an
#      eighth more than count_max): whoever asks for the same meanwhile is not told of by XPUB.
#   5. Decides only. Who has to go is cut by the caller (guest_cut): who holds more than one may,
#      or, when all together do, who holds most; never the next who comes.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport strcmp, strncpy

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(uint16_t port)

cdef extern from "<netinet/in.h>" nogil:
    cdef struct sockaddr_in6:
        uint16_t sin6_port

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        pass
    int getsockname(int fd, sockaddr* address, socklen_t* size)
    int shutdown(int fd, int how)
    int SHUT_RDWR

cdef enum:
    GUESTS = 65536                # descriptors told apart
    GUEST_NAMES = 8192            # a power of two, twice as many as a node may list
    GUEST_NAME_BYTES = 65
    GUEST_ACCOUNTS = 73728        # one for each descriptor, then one for each name
    GUEST_OK = 0
    GUEST_OVER = -1               # this child holds as many as one may
    GUEST_FULL = -2               # all of them together do

cdef struct guests_t:
    uint64_t* keys                # of topics held: open addressing, 0 is free; owned
    uint32_t* owners              # on whose account it is, beside each key; owned
    uint32_t* held                # topics, by account; owned
    uint32_t* speakers            # by descriptor: the account that spoke on it last, + 1; owned
    char* names                   # GUEST_NAMES of GUEST_NAME_BYTES: open addressing; owned
    uint64_t size                 # of keys and owners: a power of two
    uint32_t count
    uint32_t count_max            # all children together
    uint32_t room                 # … and what is remembered while somebody is shown out
    uint32_t each_max             # one child

cdef inline uint32_t guests_room(uint32_t count_max) noexcept nogil:
    return count_max + count_max // 8 + 1

cdef inline int guests_open(guests_t* guests, uint32_t count_max, uint32_t each_max) noexcept nogil:
    guests.size = 16
    guests.count_max = count_max
    guests.room = guests_room(count_max)
    guests.each_max = each_max
    while guests.size < 2 * <uint64_t>guests.room:
        guests.size <<= 1
    guests.keys = <uint64_t*>calloc(guests.size, sizeof(uint64_t))
    guests.owners = <uint32_t*>calloc(guests.size, sizeof(uint32_t))
    guests.held = <uint32_t*>calloc(GUEST_ACCOUNTS, sizeof(uint32_t))
    guests.speakers = <uint32_t*>calloc(GUESTS, sizeof(uint32_t))
    guests.names = <char*>calloc(GUEST_NAMES, GUEST_NAME_BYTES)
    if guests.keys == NULL or guests.owners == NULL or guests.held == NULL:
        return -1
    return -1 if guests.speakers == NULL or guests.names == NULL else 0

cdef inline void guests_close(guests_t* guests) noexcept nogil:
    free(guests.keys)
    free(guests.owners)
    free(guests.held)
    free(guests.speakers)
    free(guests.names)
    guests.keys = NULL
    guests.owners = guests.held = guests.speakers = NULL
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
    # The account with most topics.
    cdef uint32_t most = 0
    cdef uint32_t i
    for i in range(1, GUEST_ACCOUNTS):
        if guests.held[i] > guests.held[most]:
            most = i
    return most

cdef inline int guest_speaks(guests_t* guests, uint32_t account, int fd) noexcept nogil:
    # The next descriptor after fd on which this child spoke last, which is forgotten; -1: no more.
    for fd in range(fd + 1, GUESTS):
        if guests.speakers[fd] == account + 1:
            guests.speakers[fd] = 0
            return fd
    return -1

# --- topics --------------------------------------------------------------------------------------

cdef inline uint64_t guests_slot(guests_t* guests, uint64_t key) noexcept nogil:
    cdef uint64_t slot = key & (guests.size - 1)
    while guests.keys[slot] != 0 and guests.keys[slot] != key:
        slot = (slot + 1) & (guests.size - 1)
    return slot

cdef inline bint guest_has(guests_t* guests, uint64_t key) noexcept nogil:
    return key != 0 and guests.keys[guests_slot(guests, key)] == key

cdef inline int guest_adds(
    guests_t* guests, uint64_t key, int fd, uint32_t account,
) noexcept nogil:
    # This child asks on this connection for a topic that nobody held; key 0 is no topic's.
    cdef uint64_t slot = guests_slot(guests, key)
    cdef bint over = key == 0 or guests.held[account] >= guests.each_max
    guests.speakers[fd & (GUESTS - 1)] = account + 1
    if key != 0 and guests.keys[slot] != key and guests.count < guests.room:
        guests.keys[slot] = key
        guests.owners[slot] = account
        guests.held[account] += 1
        guests.count += 1
    if over:
        return GUEST_OVER
    return GUEST_FULL if guests.count > guests.count_max else GUEST_OK

cdef inline void guest_drops(guests_t* guests, uint64_t key) noexcept nogil:
    # Nobody holds it any more.
    cdef uint64_t mask = guests.size - 1
    cdef uint64_t slot = guests_slot(guests, key)
    cdef uint64_t probe = (slot + 1) & mask
    if key == 0 or guests.keys[slot] != key:
        return
    guests.held[guests.owners[slot]] -= 1
    guests.count -= 1
    guests.keys[slot] = 0
    while guests.keys[probe] != 0:      # close the gap that a search would stop at
        if ((probe - (guests.keys[probe] & mask)) & mask) >= ((probe - slot) & mask):
            guests.keys[slot] = guests.keys[probe]
            guests.owners[slot] = guests.owners[probe]
            guests.keys[probe] = 0
            slot = probe
        probe = (probe + 1) & mask

cdef inline bint guest_cut(int fd, uint32_t port) noexcept nogil:
    # Ends the connection, if the descriptor is still one to our port: libzmq closes it, forgets all
    # its topics, and XPUB tells of their end.
    cdef sockaddr_in6 here
    cdef socklen_t size = sizeof(sockaddr_in6)      # the port stands where IPv4 has it
    if fd < 0 or getsockname(fd, <sockaddr*>&here, &size) != 0 or ntohs(here.sin6_port) != port:
        return False
    return shutdown(fd, SHUT_RDWR) == 0
