# _probe_guests.pyx: faces for the tests on the rooms that tell children apart: who holds what, and
# who may have how much.
#
# Rules of this room
#   1. Test faces only: the package never imports it, nothing at run time depends on it.
#   2. It decides nothing: converts arguments, calls one room, converts the answer.

from libc.stdint cimport uint32_t, uint64_t

from relay._core.fair cimport (
    FAIR_BURST_BYTES, FAIR_RATE_BYTES, FAIR_WINDOW_US, fair_close, fair_grow, fair_may, fair_open,
    fair_t, fair_take, taker_t,
)
from relay._core.guests cimport (
    CONNECTIONS_MAX, GUESTS, GUEST_ACCOUNTS, GUEST_NAMES, GUEST_NAME_BYTES, PORT_ASKS, PORT_TOPICS,
    guest_account, guest_adds, guest_comes, guest_cookie, guest_crowd, guest_cut, guest_drops,
    guest_has, guest_is, guest_leaves, guest_name, guest_next, guest_t, guests_close, guests_most,
    guests_open, guests_t, hold_t,
)
from relay._core.pool cimport (
    SHARE_RUNS_MAX, pool_drop, pool_give, pool_make, pool_open, pool_t, share_charge, share_find,
    share_id, share_may_begin, share_t, slab_t,
)


cdef class Fair:
    """Which child may be given an answer now; children are accounts."""

    BURST, RATE, WINDOW_US = FAIR_BURST_BYTES, FAIR_RATE_BYTES, FAIR_WINDOW_US
    TABLE_BYTES = GUEST_ACCOUNTS * sizeof(taker_t)
    cdef fair_t fair

    def __cinit__(self):
        if fair_open(&self.fair) != 0:
            raise MemoryError

    def __dealloc__(self):
        fair_close(&self.fair)

    def grow(self, uint64_t now_us):
        """A turn begins."""
        fair_grow(&self.fair, now_us)

    def may(self, uint32_t account):
        """Whether this one, who asks, may be given something."""
        return bool(fair_may(&self.fair, account))

    def take(self, uint32_t account, uint64_t size):
        """It is given so many bytes."""
        fair_take(&self.fair, account, size)

    @property
    def left(self):
        """Bytes that may be given."""
        return self.fair.left_bytes


cdef class Shares:
    """How much of the answers to each child is on its way."""

    RUNS_MAX = SHARE_RUNS_MAX
    cdef pool_t* pool
    cdef list on_their_way

    def __cinit__(self):
        self.pool = pool_open()
        self.on_their_way = []
        if self.pool == NULL:
            raise MemoryError

    def __dealloc__(self):
        while self.on_their_way:
            self.leaves(0)
        pool_drop(self.pool)

    def place(self, uint32_t account, uint64_t key):
        """The set of places in which this child's about this key is looked for."""
        return share_id(self.pool, account, key, True) % 512

    def answers(self, uint32_t account, uint64_t key, uint32_t size):
        """An answer of one message; False: it may not be begun."""
        cdef share_t* child = share_find(self.pool, share_id(self.pool, account, 0, False), NULL)
        cdef share_t* run = share_find(self.pool, share_id(self.pool, account, key, True), child)
        cdef slab_t* slab
        if not share_may_begin(self.pool, child, run):
            return False
        slab = pool_make(self.pool, size)
        share_charge(slab, child, run, size)
        self.on_their_way.append(<size_t>slab)
        return True

    def leaves(self, int index):
        """That one has been written."""
        cdef slab_t* slab = <slab_t*><size_t>self.on_their_way.pop(index)
        pool_give(slab.bytes, slab)

    def held(self, uint32_t account):
        """Bytes of this child's that have not left."""
        return share_find(self.pool, share_id(self.pool, account, 0, False), NULL).bytes


cdef class Guests:
    """Who holds which topics; connections are descriptors with cookies."""

    CROWD, ASKS = CONNECTIONS_MAX, PORT_ASKS
    TOPIC_BYTES = 2 * (sizeof(hold_t) + sizeof(uint32_t))   # two holds, and as many buckets
    TABLES_BYTES = GUESTS * (sizeof(guest_t) + sizeof(uint32_t)) + (
        GUEST_ACCOUNTS * sizeof(uint32_t) + GUEST_NAMES * GUEST_NAME_BYTES
    )
    cdef guests_t guests

    def __cinit__(self, int count_max, int each_max):
        if guests_open(&self.guests, count_max, each_max) != 0:
            raise MemoryError

    def __dealloc__(self):
        guests_close(&self.guests)

    def adds(self, uint64_t key, int fd, bytes name=b"", uint64_t cookie=1):
        """0, or who has to go: -1 this child has too many, -2 all of them have."""
        guest_comes(&self.guests, fd, cookie, name, PORT_TOPICS)
        return guest_adds(&self.guests, fd, key)

    def drops(self, uint64_t key, int fd):
        """0, or -3: this connection does not hold it."""
        return guest_drops(&self.guests, fd, key)

    def knows(self, int fd, uint64_t cookie):
        """Whether it is still this connection."""
        return bool(guest_is(&self.guests, fd, cookie))

    def leaves(self, int fd):
        """The connection has ended: what it held."""
        cdef uint64_t key = 0
        keys = []
        while guest_leaves(&self.guests, fd, &key):
            keys.append(key)
        return keys

    def has(self, uint64_t key):
        """Whether anybody holds it."""
        return bool(guest_has(&self.guests, key))

    def most(self):
        """(name, connections that are not cut yet, and now are) of who holds most."""
        cdef uint32_t account = guests_most(&self.guests)
        cdef int fd = guest_next(&self.guests, account, -1)
        fds = []
        while fd >= 0:
            fds.append(fd)
            fd = guest_next(&self.guests, account, fd)
        return guest_name(&self.guests, account), fds

    def crowds(self, int fd, bytes name=b"", int port=PORT_TOPICS):
        """A connection comes: the oldest of its child's to this port, if they are too many; -1."""
        guest_comes(&self.guests, fd, 1, name, port)
        return guest_crowd(&self.guests, fd)

    @staticmethod
    def cookie(int fd, int port):
        """Of a connection to this port of ours; 0: it is none."""
        return guest_cookie(fd, port)

    def cut(self, int fd, int port, uint64_t cookie):
        """Whether this connection was there and is ended."""
        return bool(guest_cut(fd, port, cookie))

    def held(self, int fd, bytes name=b""):
        """How many this child holds, each as often as its connections do."""
        return self.guests.held[guest_account(&self.guests, fd, name)]

    @property
    def count(self):
        """How many all of them hold."""
        return self.guests.count

    @property
    def places(self):
        """How much of its room was ever used."""
        return self.guests.used
