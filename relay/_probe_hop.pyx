# _probe_hop.pyx: what benchmarks do at the two ends of a hop: push frames as fast as asked, and see
# when which of them can be read.
#
# Rules of this room
#   1. For benchmarks only: the package never imports it, nothing at run time depends on it.
#   2. A stream is named by `_core.pointer_of`: the caller keeps the handle meanwhile.
#   3. Frames begin with the time of their push (µs, CLOCK_MONOTONIC) and their sequence, 8 bytes
#      each; sums are of all words of 8 bytes, so sizes are multiples of 8.
#   4. A watcher holds a reference on the ring that it reads, and follows the chain as listeners do.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from relay._core.atomics cimport add_u32, load_u32, load_u64
from relay._core.engine cimport now_us
from relay._core.histogram cimport histogram_add, histogram_quantile_us, histogram_t
from relay._core.hold cimport (
    hold_is_crowd, hold_until_us, held_t, holds_add, holds_due, holds_next_us, holds_t,
)
from relay._core.retire cimport (
    RETIRE_PYTHON, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, turn_begin, turn_end,
)
from relay._core.ring cimport (
    frame_t, ring_at, ring_read_entry, ring_t, ring_tail_position, ring_was_overtaken,
)
from relay._core.stream cimport (
    stream_mark, stream_push, stream_ring_drop, stream_ring_take, stream_t,
)

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int us)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value)
    int PR_SET_TIMERSLACK

cdef enum:
    STAMP_BYTES = 16
    LOOK_US = 50              # between two looks at heads
    FRAME_BYTES = 4096        # at most


cdef struct watched_t:
    stream_t* stream
    ring_t* ring              # referenced
    uint64_t sequence         # the next one to be seen


cdef class Frame:
    """The bytes that every frame has behind its stamp."""

    cdef uint8_t bytes[FRAME_BYTES]
    cdef uint32_t size

    def __cinit__(self, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        self.size = <uint32_t>view.len
        if STAMP_BYTES <= view.len <= FRAME_BYTES and view.len % 8 == 0:
            memcpy(self.bytes, view.buf, view.len)
        PyBuffer_Release(&view)
        if not STAMP_BYTES <= self.size <= FRAME_BYTES or self.size % 8:
            raise ValueError(f"a frame of {self.size} bytes: 16 to 4096, a multiple of 8")


cdef inline uint64_t words_sum(const uint8_t* bytes, uint64_t size) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint64_t word
    cdef uint64_t i
    for i in range(size // 8):
        memcpy(&word, bytes + 8 * i, 8)
        total += word
    return total


cdef inline int push(
    stream_t* stream, uint8_t* frame, uint32_t size, int duration_us, uint64_t now
) noexcept nogil:
    memcpy(frame, &now, 8)
    memcpy(frame + 8, &stream.ring.head_sequence, 8)
    return stream_push(stream, frame, size, <uint32_t>duration_us, 1)


def is_crowd(bint was_crowd, uint64_t messages, uint64_t period_us):
    """Does a node that moved so many messages let lone frames wait?"""
    return hold_is_crowd(was_crowd, messages, period_us)


def hold_until(uint32_t duration_us, uint64_t held_us):
    """Until when a lone frame of this duration waits, that has waited since held_us."""
    return hold_until_us(duration_us, held_us)


cdef class Holds:
    """Who waits: the numbers from 1 on, on the test's clock."""

    cdef holds_t holds
    cdef held_t held[256]

    def add(self, uint32_t number, uint64_t until_us, uint64_t now_us):
        """This one waits, until then."""
        holds_add(&self.holds, &self.held[number], &self.held[number], until_us, now_us)

    def due(self, uint64_t now_us):
        """Who has waited long enough, in this order."""
        numbers = []
        cdef void* who = holds_due(&self.holds, now_us)
        while who != NULL:
            numbers.append(<held_t*>who - self.held)
            who = holds_due(&self.holds, now_us)
        return numbers

    @property
    def next_us(self):
        """When the first of them is due; None: nobody waits."""
        return holds_next_us(&self.holds) if self.holds.count else None


def measure_push(size_t pointer, data, uint32_t pushes):
    """Times `pushes` pushes of one frame, a source's: seconds. The first 4 bytes of each are its
    number (little endian)."""
    cdef bytearray frame = bytearray(data)
    cdef uint8_t* run = frame
    cdef uint32_t size = <uint32_t>len(frame)
    cdef uint32_t i
    cdef int status = 0
    cdef uint64_t begin
    cdef uint64_t end
    if size < 4:
        raise ValueError(f"a frame of {size} bytes has no room for its number")
    with nogil:
        begin = now_us()
        for i in range(pushes):
            memcpy(run, &i, 4)
            status |= stream_push(<stream_t*>pointer, run, size, 20000, 1)
        end = now_us()
    if status < 0:
        raise ValueError(f"a frame of {size} bytes was refused: {status}")
    return (end - begin) / 1e6


def push_lap(size_t pointer, size_t turn_lock, Frame frame, int duration_us, int frames):
    """Pushes frames while the backbone's thread is held; returns when it was let go (µs)."""
    cdef stream_t* stream = <stream_t*>pointer
    cdef pthread_mutex_t* lock = <pthread_mutex_t*>turn_lock
    cdef uint64_t now
    cdef int status = 0
    cdef int i
    with nogil:
        pthread_mutex_lock(lock)
        now = now_us()
        stream_mark(stream, now)
        for i in range(frames):
            status |= push(stream, frame.bytes, frame.size, duration_us, now)
        now = now_us()
        pthread_mutex_unlock(lock)
    if status < 0:
        raise ValueError(f"the ring did not take {frames} frames")
    return now


def await_head(size_t pointer, uint64_t sequence, uint64_t timeout_us):
    """When the head had passed the frame before this sequence (µs); 0: not within the time."""
    cdef watched_t watched
    cdef uint64_t begin = now_us()
    cdef uint64_t now = begin
    watch(&watched, <stream_t*>pointer)
    if watched.ring == NULL:
        raise ValueError("the stream has no ring yet")
    prctl(PR_SET_TIMERSLACK, 1000)
    with nogil:
        while watched.sequence < sequence and now - begin < timeout_us:
            follow(&watched)
            watched.sequence = load_u64(&watched.ring.head_sequence)
            now = now_us()
            if watched.sequence < sequence:
                usleep(LOOK_US)
    stream_ring_drop(watched.stream, watched.ring)
    return now if watched.sequence >= sequence else 0


def held_sum(size_t pointer, uint64_t first, uint64_t end):
    """(frames, sum of their words) of what can be read of [first, end)."""
    cdef watched_t watched
    cdef frame_t entry
    cdef uint64_t frames = 0
    cdef uint64_t total = 0
    watch(&watched, <stream_t*>pointer)
    if watched.ring == NULL:
        raise ValueError("the stream has no ring yet")
    with nogil:
        while first < end:
            if ring_read_entry(watched.ring, first, &entry):
                total += words_sum(ring_at(watched.ring, entry.position), entry.size_bytes)
                frames += not ring_was_overtaken(watched.ring, entry.position)
            first += 1
    stream_ring_drop(watched.stream, watched.ring)
    return frames, total


def held_bytes(pointers):
    """Summed over streams: bytes held, bytes at which a newcomer may begin, bytes laid out, places.

    Held is what lies between the head and the oldest byte that is not overwritten yet: cursors may
    stand anywhere in it. Newcomers keep the guard.
    """
    cdef watched_t watched
    cdef uint64_t held = 0
    cdef uint64_t open_ = 0
    cdef uint64_t laid = 0
    cdef uint64_t places = 0
    cdef uint64_t head
    cdef uint64_t bytes
    for pointer in pointers:
        watch(&watched, <stream_t*><size_t>pointer)
        if watched.ring != NULL:
            head = load_u64(&watched.ring.head_position)
            bytes = head - load_u64(&watched.ring.base_position)
            held += bytes if bytes < watched.ring.size_bytes else watched.ring.size_bytes
            open_ += head - ring_tail_position(watched.ring)
            laid += watched.ring.size_bytes
            places += watched.ring.frames_count
            stream_ring_drop(watched.stream, watched.ring)
    return held, open_, laid, places


def pace(pointers, Frame frame, int duration_us, double frames_per_s, uint64_t frames,
         uint32_t rest_us):
    """Pushes frames at a pace, to all streams in turn; sleeps at least `rest_us` in between.

    Returns `sum` of all words pushed, `late_us_max`: how far the pace was behind at worst, and
    `seconds`.
    """
    cdef uint64_t count = len(pointers)
    cdef stream_t** streams = <stream_t**>calloc(count, sizeof(void*))
    cdef uint64_t sent = 0
    cdef uint64_t due = 0
    cdef uint64_t total = 0
    cdef uint64_t late_us_max = 0
    cdef uint64_t begin
    cdef uint64_t now = 0
    cdef int status = 0
    cdef uint64_t i
    if streams == NULL or count == 0:
        free(streams)
        raise ValueError("no stream to push to")
    for i in range(count):
        streams[i] = <stream_t*><size_t>pointers[i]
    prctl(PR_SET_TIMERSLACK, 1000)
    with nogil:
        begin = now_us()
        while sent < frames and status >= 0:
            now = now_us()
            due = <uint64_t>((now - begin) * frames_per_s / 1e6) + 1
            due = due if due < frames else frames
            if due > sent:
                i = now - begin - <uint64_t>(sent * 1e6 / frames_per_s)
                late_us_max = i if i > late_us_max else late_us_max
            while sent < due:
                if count > 1 or (sent & 63) == 0:
                    stream_mark(streams[sent % count], now)
                status |= push(streams[sent % count], frame.bytes, frame.size, duration_us, now)
                total += words_sum(frame.bytes, frame.size)
                sent += 1
            usleep(rest_us)
    free(streams)
    if status < 0:
        raise ValueError(f"a ring did not take frame {sent}")
    return {"sum": total, "late_us_max": late_us_max, "seconds": (now - begin) / 1e6}


cdef void watch(watched_t* watched, stream_t* stream) noexcept:
    # Another thread may replace the ring: it is found and referenced within one turn.
    watched.stream = stream
    turn_begin(stream.retire, RETIRE_PYTHON)
    watched.ring = stream_ring_take(stream)
    turn_end(stream.retire, RETIRE_PYTHON)
    watched.sequence = 0 if watched.ring == NULL else load_u64(&watched.ring.head_sequence)


cdef void follow(watched_t* watched) noexcept nogil:
    # All of a superseded ring was seen: on to the next, which this one holds.
    cdef ring_t* after
    while load_u32(&watched.ring.superseded) and (
        watched.sequence >= load_u64(&watched.ring.head_sequence)
    ):
        after = watched.ring.next
        add_u32(&after.refs, 1)
        stream_ring_drop(watched.stream, watched.ring)
        watched.ring = after


cdef struct heard_t:
    histogram_t late
    uint64_t frames
    uint64_t missed           # not to be read any more, or with another sequence in them
    uint64_t total            # sum of their words


cdef void look(watched_t* watched, heard_t* heard) noexcept nogil:
    # All frames that the head has passed since the last look.
    cdef uint64_t head
    cdef uint64_t stamp[2]
    cdef uint64_t now
    cdef frame_t entry
    cdef const uint8_t* at
    follow(watched)
    head = load_u64(&watched.ring.head_sequence)
    if watched.sequence >= head:
        return
    now = now_us()
    while watched.sequence < head:
        if ring_read_entry(watched.ring, watched.sequence, &entry):
            at = ring_at(watched.ring, entry.position)
            memcpy(stamp, at, STAMP_BYTES)
            heard.total += words_sum(at, entry.size_bytes)
            if not ring_was_overtaken(watched.ring, entry.position) and (
                stamp[1] == watched.sequence
            ):
                histogram_add(&heard.late, now - stamp[0])
                heard.frames += 1
            else:
                heard.missed += 1
        else:
            heard.missed += 1
        watched.sequence += 1


cdef class Watcher:
    """Sees each frame of some streams from now on, as soon as it can be read."""

    cdef watched_t* watched
    cdef uint64_t count

    def __cinit__(self, pointers):
        cdef uint64_t i
        self.watched = <watched_t*>calloc(len(pointers) or 1, sizeof(watched_t))
        if self.watched == NULL:
            raise MemoryError
        for i in range(<uint64_t>len(pointers)):
            watch(&self.watched[i], <stream_t*><size_t>pointers[i])
            if self.watched[i].ring == NULL:
                raise ValueError("a stream has no ring yet")
            self.count = i + 1

    def __dealloc__(self):
        cdef uint64_t i
        if self.watched != NULL:
            for i in range(self.count):
                stream_ring_drop(self.watched[i].stream, self.watched[i].ring)
            free(self.watched)

    def hear(self, uint64_t frames, uint64_t timeout_us, uint32_t look_us=LOOK_US):
        """Waits until so many frames have come; how late they were, how many, and their sum.
        Looks each `look_us`, which is in how late they were; of many streams, each look costs."""
        cdef heard_t heard
        cdef uint64_t begin = now_us()
        cdef uint64_t i
        memset(&heard, 0, sizeof(heard_t))
        prctl(PR_SET_TIMERSLACK, 1000)
        with nogil:
            while heard.frames + heard.missed < frames and now_us() - begin < timeout_us:
                for i in range(self.count):
                    look(&self.watched[i], &heard)
                usleep(look_us)
        return {
            "frames": heard.frames, "missed": heard.missed, "sum": heard.total,
            "p50_ms": histogram_quantile_us(&heard.late, 0.5) / 1e3,
            "p99_ms": histogram_quantile_us(&heard.late, 0.99) / 1e3,
            "max_ms": heard.late.max_us / 1e3,
        }
