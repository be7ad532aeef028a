# _probe.pyx: faces for the tests on rooms that need no engine, and the load of a benchmark.
#
# Rules of this room
#   1. Test faces only: the package never imports it, nothing at run time depends on it.
#   2. It decides nothing: converts arguments, calls one room, converts the answer.
#   3. Input is copied to a run of exactly its size: a sanitizer sees each byte read too far.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from relay._core.body cimport (
    BODY_CHUNKED, BODY_ENDED, BODY_RAW, BODY_SIZED, body_next, body_open, body_reason, body_t,
)
from relay._core.handover cimport (
    close as close_fd, entry_t, handover_close, handover_open, handover_put, handover_t,
    handover_take,
)
from relay._core.histogram cimport (
    histogram_above_us as room_histogram_above_us, histogram_add,
    histogram_bucket as room_histogram_bucket, histogram_merge, histogram_quantile_us, histogram_t,
)
from relay._core.http_head cimport (
    head_end as room_head_end, head_parse as room_head_parse, head_t,
)
from relay._core.icy cimport (
    ICY_BLOCK_BYTES_MAX, icy_block as room_icy_block, utf8_cut as room_utf8_cut,
)
from relay._core.pace cimport (
    NOBODY, WHEEL_SLOTS, link_t, pace_slots as room_pace_slots, wheel_catch_up, wheel_close,
    wheel_is_due, wheel_join, wheel_next_us, wheel_open, wheel_put, wheel_remove, wheel_t,
)

cdef extern from "<sys/epoll.h>" nogil:
    int epoll_create1(int flags)
    int EPOLL_CLOEXEC

cdef extern from "load.h" nogil:
    ctypedef struct load_one_t:
        int fd
        int has_head
        int ended
        uint64_t body_bytes
    int load_join(
        load_one_t* one, int epoll_fd, uint32_t number, uint16_t port, const char* head
    )
    int64_t load_drain(load_one_t* all, int epoll_fd, double seconds)
    int64_t load_send(
        int listen_fd, uint32_t count, const char* head, uint32_t size, uint32_t pace_ms,
        double seconds, double* cpu_s
    )


cdef class Copy:
    """Bytes in memory of exactly their size."""

    cdef uint8_t* bytes
    cdef size_t size

    def __cinit__(self, bytes data):
        self.size = len(data)
        self.bytes = <uint8_t*>malloc(self.size)
        if self.bytes == NULL and self.size > 0:
            raise MemoryError
        memcpy(self.bytes, <const char*>data, self.size)

    def __dealloc__(self):
        free(self.bytes)


# --- request heads ---


def head_end(bytes data, uint64_t from_byte=0):
    """The length of a whole head at the front of data, 0 while it is not whole."""
    cdef Copy run = Copy(data)
    return room_head_end(run.bytes, run.size, from_byte)


def head_parse(bytes data):
    """(status, method, path, icy, minor) of the head at the front of data; None: not whole yet."""
    cdef uint64_t size = head_end(data)
    cdef Copy run = Copy(data[:size])
    cdef head_t head
    if size == 0:
        return None
    cdef int status = room_head_parse(&head, run.bytes, size)
    names = ("OTHER", "GET", "HEAD", "PUT", "SOURCE", "POST", "OPTIONS")
    path = (<const char*>head.path)[:head.path_bytes]
    return status, names[head.method], path, bool(head.icy), head.minor


# --- bodies of sources ---


cdef class Body:
    """The framing of one body."""

    cdef body_t body

    def __cinit__(self, str kind, uint64_t size_bytes=0):
        kinds = {"raw": BODY_RAW, "sized": BODY_SIZED, "chunked": BODY_CHUNKED}
        body_open(&self.body, kinds[kind], size_bytes)

    def feed(self, bytes data):
        """The audio in these bytes, and why the rest was not taken, or None."""
        cdef Copy run = Copy(data)
        cdef size_t at = 0
        cdef uint64_t audio_bytes
        cdef int64_t step
        audio = b""
        while at < run.size and self.body.state != BODY_ENDED:
            step = body_next(&self.body, run.bytes + at, run.size - at, &audio_bytes)
            if step < 0:
                return audio, body_reason(step).decode()
            assert 0 < step <= <int64_t>(run.size - at) and <int64_t>audio_bytes <= step
            at += <size_t>step
            audio += data[at - audio_bytes:at]
        return audio, None

    @property
    def ended(self):
        """Whether the last byte has been here."""
        return self.body.state == BODY_ENDED


# --- ICY ---


def icy_block(bytes text):
    """The ICY block of a title."""
    cdef Copy run = Copy(text)
    cdef uint8_t* block = <uint8_t*>malloc(ICY_BLOCK_BYTES_MAX)
    cdef uint32_t size = room_icy_block(run.bytes, <uint32_t>run.size, block)
    found = (<const char*>block)[:size]
    free(block)
    return found


def utf8_cut(bytes text, uint32_t size_max):
    """How many bytes of text remain when it is cut between characters."""
    cdef Copy run = Copy(text)
    return room_utf8_cut(run.bytes, <uint32_t>run.size, size_max)


# --- histograms ---


def histogram_bucket(uint64_t duration_us):
    """The bucket of a duration."""
    return room_histogram_bucket(duration_us)


def histogram_above_us(int bucket):
    """The least duration that is too long for this bucket."""
    return room_histogram_above_us(bucket)


cdef class Histogram:
    """Durations in buckets."""

    cdef histogram_t histogram

    def add(self, uint64_t duration_us):
        """Books one."""
        histogram_add(&self.histogram, duration_us)

    def merge(self, Histogram other):
        """Adds all that the other has seen."""
        histogram_merge(&self.histogram, &other.histogram)

    def quantile_us(self, double share):
        """What this share of all did not exceed."""
        return histogram_quantile_us(&self.histogram, share)

    def told(self):
        """Everything it holds."""
        return self.histogram


# --- the wheel ---


def pace_slots(uint64_t pace_us):
    """How many slots a pace spans."""
    return room_pace_slots(pace_us)


cdef class Wheel:
    """A wheel under a clock that the test moves."""

    cdef wheel_t wheel
    cdef uint32_t members_max

    def __cinit__(self, uint32_t members_max, uint64_t now_us=0):
        self.members_max = members_max
        if wheel_open(&self.wheel, members_max, now_us) != 0:
            raise MemoryError

    def __dealloc__(self):
        wheel_close(&self.wheel)

    cdef uint32_t check(self, uint32_t member) except? 0xFFFFFFFF:
        if member >= self.members_max:
            raise IndexError(member)
        return member

    def put(self, uint32_t member, uint64_t slot):
        """Puts a member into this absolute slot."""
        wheel_put(&self.wheel, self.check(member), slot)

    def join(self, uint32_t member, uint64_t pace_us):
        """Gives a member its slot within one pace."""
        wheel_join(&self.wheel, self.check(member), pace_us)

    def remove(self, uint32_t member):
        """Takes a member off the wheel."""
        wheel_remove(&self.wheel, self.check(member))

    def turn(self, uint64_t now_us, uint64_t pace_us=0):
        """Serves who is due and returns them in order, as (member, slot); with a pace each is put
        back as a shard does it."""
        served = []
        wheel_catch_up(&self.wheel, now_us)
        while wheel_is_due(&self.wheel, now_us):
            place = self.wheel.slot % WHEEL_SLOTS
            self.wheel.slot += 1
            while self.wheel.first[place] != <uint32_t>NOBODY:
                member = self.wheel.first[place]
                wheel_remove(&self.wheel, member)
                served.append((member, self.wheel.slot - 1))
                if pace_us > 0:
                    wheel_put(&self.wheel, member, self.wheel.slot - 1 + room_pace_slots(pace_us))
        return served

    def next_us(self, uint64_t now_us, uint64_t at_most_us):
        """How long nobody is due."""
        return wheel_next_us(&self.wheel, now_us, at_most_us)

    @property
    def slot(self):
        """The next slot to be served."""
        return self.wheel.slot

    @property
    def members(self):
        """How many are on the wheel."""
        return self.wheel.members

    @property
    def fill(self):
        """How many are in each place."""
        return [self.wheel.fill[i] for i in range(WHEEL_SLOTS)]

    def chains(self):
        """The members of each place, by following the links both ways."""
        cdef uint32_t member
        cdef uint32_t before
        cdef link_t* link
        found = []
        for place in range(WHEEL_SLOTS):
            chain = []
            before = NOBODY
            member = self.wheel.first[place]
            while member != <uint32_t>NOBODY:
                link = &self.wheel.links[member]
                assert link.before == before and link.slot == <uint32_t>place
                chain.append(member)
                before = member
                member = link.after
            found.append(chain)
        return found


# --- hand-over ---


cdef class Handover:
    """A bounded queue of connections."""

    cdef handover_t queue

    def __cinit__(self, uint32_t entries_max):
        if handover_open(&self.queue, entries_max) != 0:
            raise MemoryError

    def __dealloc__(self):
        self.close()

    def put(self, int fd, bytes data, bytes address, uint16_t port):
        """Hands a descriptor over; False: the queue is full, the descriptor stays the caller's."""
        cdef Copy run = Copy(data)
        cdef Copy where = Copy(address)
        assert where.size == 16
        return bool(handover_put(&self.queue, fd, run.bytes, <uint32_t>run.size, where.bytes, port))

    def take(self):
        """The oldest as (fd, bytes, address, port), or None."""
        cdef entry_t entry
        if not handover_take(&self.queue, &entry):
            return None
        data = (<const char*>entry.bytes)[:entry.size_bytes]
        free(entry.bytes)
        return entry.fd, data, (<const char*>entry.address)[:16], entry.port

    def close(self):
        """Closes the queue and every descriptor that is still in it."""
        if self.queue.entries != NULL:
            handover_close(&self.queue)

    @property
    def event_fd(self):
        """Readable while entries wait."""
        return self.queue.event_fd

    @property
    def count(self):
        """How many wait."""
        return self.queue.count


# --- load -----------------------------------------------------------------------------------------


cdef class Drain:
    """Listeners that read and count, all on the calling thread, without the GIL."""

    cdef load_one_t* all
    cdef uint32_t count
    cdef uint32_t joined
    cdef int epoll_fd

    def __cinit__(self, uint32_t count):
        self.count = count
        self.all = <load_one_t*>calloc(count, sizeof(load_one_t))
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.all == NULL or self.epoll_fd < 0:
            raise MemoryError

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.joined):
            close_fd(self.all[i].fd)
        free(self.all)
        close_fd(self.epoll_fd)

    def join(self, uint16_t port, bytes head):
        """Connects them all to 127.0.0.1, from sixteen loopback addresses; reads nothing yet."""
        cdef const char* request = head
        cdef int status = 0
        with nogil:
            while self.joined < self.count and status == 0:
                status = load_join(
                    &self.all[self.joined], self.epoll_fd, self.joined, port, request
                )
                self.joined += 1 if status == 0 else 0
        if status < 0:
            raise OSError(-status, f"listener {self.joined} of {self.count}")

    def read(self, double seconds):
        """Reads for so long; returns how many reads brought something."""
        cdef int64_t reads
        with nogil:
            reads = load_drain(self.all, self.epoll_fd, seconds)
        return reads

    @property
    def body_bytes(self):
        """What each has got behind the head of its reply."""
        return [self.all[i].body_bytes for i in range(self.joined)]

    @property
    def ended(self):
        """How many were ended, or got another reply than 200."""
        return sum(1 for i in range(self.joined) if self.all[i].ended)


def bare_send(int listen_fd, uint32_t count, uint32_t size, uint32_t pace_ms, double seconds):
    """Accepts `count` and sends each `size` bytes a pace: (whole sends, CPU seconds)."""
    cdef double cpu_s = 0
    cdef int64_t sends
    with nogil:
        sends = load_send(
            listen_fd, count, b"HTTP/1.0 200 OK\r\n\r\n", size, pace_ms, seconds, &cpu_s
        )
    if sends < 0:
        raise OSError(-sends, "the bare sender")
    return sends, cpu_s
