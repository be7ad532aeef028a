# guests.pxd: which connection of a child holds how many topics, so that one that takes too many
# can be shown the door.
#
# Rules of this room
#   1. Called by the backbone thread alone. Nothing is allocated after guests_open.
#   2. A topic belongs to the connection that asked for it first: XPUB tells of the first
#      subscription and of the end of the last, exactly. A connection is its descriptor; one that
#      takes over a number takes over what is left under it, until XPUB tells of its end.
#   3. Decides only. Who is over the bound is cut by the caller (guest_cut), once for each message.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

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
    GUEST_OK = 0
    GUEST_OVER = -1               # this connection holds as many as one may
    GUEST_FULL = -2               # all of them together do

cdef struct guests_t:
    uint64_t* keys                # of topics held: open addressing, 0 is free; owned
    uint16_t* owners              # whose it is, beside each key; owned
    uint32_t* held                # topics, by connection; owned
    uint64_t size                 # of keys and owners: a power of two
    uint32_t count
    uint32_t count_max            # all connections together
    uint32_t each_max             # one connection

cdef inline int guests_open(guests_t* guests, uint32_t count_max, uint32_t each_max) noexcept nogil:
    guests.size = 16
    while guests.size < 2 * <uint64_t>count_max:
        guests.size <<= 1
    guests.count_max = count_max
    guests.each_max = each_max
    guests.keys = <uint64_t*>calloc(guests.size, sizeof(uint64_t))
    guests.owners = <uint16_t*>calloc(guests.size, sizeof(uint16_t))
    guests.held = <uint32_t*>calloc(GUESTS, sizeof(uint32_t))
    return -1 if guests.keys == NULL or guests.owners == NULL or guests.held == NULL else 0

cdef inline void guests_close(guests_t* guests) noexcept nogil:
    free(guests.keys)
    free(guests.owners)
    free(guests.held)
    guests.keys = NULL
    guests.owners = NULL
    guests.held = NULL

cdef inline uint64_t guests_slot(guests_t* guests, uint64_t key) noexcept nogil:
    cdef uint64_t slot = key & (guests.size - 1)
    while guests.keys[slot] != 0 and guests.keys[slot] != key:
        slot = (slot + 1) & (guests.size - 1)
    return slot

cdef inline int guest_adds(guests_t* guests, uint64_t key, int fd) noexcept nogil:
    # The connection asks for a topic that nobody held; key 0 is no topic's.
    cdef uint64_t slot = guests_slot(guests, key)
    cdef uint16_t owner = <uint16_t>(fd & (GUESTS - 1))
    if key == 0 or guests.held[owner] >= guests.each_max:
        return GUEST_OVER
    if guests.keys[slot] == key:
        return GUEST_OK
    if guests.count >= guests.count_max:
        return GUEST_FULL
    guests.keys[slot] = key
    guests.owners[slot] = owner
    guests.held[owner] += 1
    guests.count += 1
    return GUEST_OK

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
