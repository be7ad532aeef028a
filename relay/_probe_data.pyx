# _probe_data.pyx: faces for the tests on the rooms of the data: scanners, retirement, ring, table.
#
# Rules of this room
#   1. Test faces only: the package never imports it, nothing at run time depends on it.
#   2. It decides nothing: converts arguments, calls one room, converts the answer. The loops that
#      provoke torn frames run without the GIL, as the engine's threads do.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from relay._core.atomics cimport load_u32, load_u64, store_u32, store_u64
from relay._core.engine cimport (
    engine_add, engine_close, engine_find_key, engine_hub_open, engine_open, engine_remove,
    engine_t, now_us,
)
from relay._core.frames cimport (
    SCAN_ADTS, SCAN_MPEG, SCAN_OGG, SCAN_WEBM, cut_t, scan_bit_rate_bps, scan_next, scan_open,
    scan_reason, scan_t,
)
from relay._core.listener cimport listener_t
from relay._core.retire cimport (
    retire_close, retire_later, retire_open, retire_sweep, retire_t, turn_begin, turn_end,
)
from relay._core.ring cimport (
    FRAME_PRESENT, FRAME_TITLE, PLACE_NO_MEMORY, RING_HEADERS, RING_TITLES, audio_bytes, frame_t,
    header_t, ring_at, ring_burst_sequence, ring_close, ring_entry_was_overtaken, ring_header,
    ring_open, ring_read_entry, ring_readable_end, ring_sequence_at, ring_start_after, ring_t,
    ring_tail_position, ring_tail_sequence, ring_title, ring_was_overtaken, title_t,
)
from relay._core.ring_writer cimport (
    ring_give_up, ring_place, ring_place_run, ring_push, ring_resized, ring_set_header,
    ring_set_title,
)
from relay._core.stream cimport (
    eventfd_write, hub_next, hub_sleep, hub_take, hub_tell, stream_begin_epoch, stream_drop,
    stream_open, stream_set_info, stream_t,
)
from relay._core.thread cimport pthread_t

from relay.errors import SourceError

LISTENER_BYTES = sizeof(listener_t)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int us)

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_read(int fd, uint64_t* value)

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* files, unsigned long count, int timeout_ms)
    short POLLIN


cdef class Buffer:
    """A borrowed run of bytes from any bytes-like object, given back when it goes."""

    cdef Py_buffer view
    cdef const uint8_t* bytes
    cdef size_t size

    def __cinit__(self, data):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.bytes = <const uint8_t*>self.view.buf
        self.size = <size_t>self.view.len

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef uint32_t size_u32(Buffer run) noexcept:
    # A size that the core refuses stays one that it refuses.
    return <uint32_t>run.size if run.size < 0xFFFFFFFF else 0xFFFFFFFF


_SCAN_KINDS = {
    "mpeg": SCAN_MPEG, "adts": SCAN_ADTS, "ogg": SCAN_OGG, "webm": SCAN_WEBM, "matroska": SCAN_WEBM,
}


cdef class Scanner:
    """Cuts bytes into frames and keeps what is not whole yet. Never blocks; for one thread."""

    cdef scan_t _scan
    cdef bytes _carry
    cdef readonly unsigned long long skipped_bytes_total

    def __cinit__(self, str kind):
        scan_open(&self._scan, _SCAN_KINDS[kind])
        self._carry = b""

    def feed(self, data):
        """Return the frames that are whole now: (bytes, duration µs, flags). Raises SourceError."""
        cdef bytes joined = self._carry + bytes(data)
        cdef const uint8_t* front = joined
        cdef size_t size = len(joined), used = 0
        cdef int64_t step
        cdef cut_t cut
        frames = []
        while True:
            step = scan_next(&self._scan, front + used, size - used, &cut)
            if step <= 0:
                break
            self.skipped_bytes_total += cut.skipped_bytes
            used += step
            if cut.frame_bytes:
                frames.append((joined[used - cut.frame_bytes:used], cut.duration_us, cut.flags))
        self._carry = joined[used:]
        if step < 0:
            raise SourceError(scan_reason(step).decode())
        return frames

    def measure(self, bytes data, int rounds):
        """Scan data anew `rounds` times without the GIL: (seconds, frames, bytes in frames)."""
        cdef scan_t scan
        cdef cut_t cut
        cdef const uint8_t* front = data
        cdef size_t size = len(data), used
        cdef int64_t step
        cdef unsigned long long frames = 0, frame_bytes = 0
        cdef timespec begin, end
        cdef int kind = self._scan.kind
        with nogil:
            clock_gettime(CLOCK_MONOTONIC, &begin)
            for _ in range(rounds):
                scan_open(&scan, kind)
                used = 0
                step = 1
                while step > 0:
                    step = scan_next(&scan, front + used, size - used, &cut)
                    used += step if step > 0 else 0
                frames += scan.frames_total
                frame_bytes += scan.frame_bytes_total
            clock_gettime(CLOCK_MONOTONIC, &end)
        seconds = (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) * 1e-9
        return seconds, frames, frame_bytes

    @property
    def pending_bytes(self):
        """Bytes fed that are neither discarded nor part of a frame yet."""
        return len(self._carry)

    @property
    def totals(self):
        """What was found and counted so far, by the names of scan_t."""
        cdef dict found = self._scan
        found.pop("ogg_tracks")
        found["bit_rate_bps"] = scan_bit_rate_bps(&self._scan)
        return found


cdef class RetireProbe:
    """Retirement with counted things: `freed` of them have gone."""

    cdef retire_t retire
    cdef uint64_t freed[1]

    def __cinit__(self):
        retire_open(&self.retire)

    def __dealloc__(self):
        retire_close(&self.retire)

    def begin(self, int reader):
        """A turn of this reader begins."""
        turn_begin(&self.retire, reader)

    def end(self, int reader):
        """It ends."""
        turn_end(&self.retire, reader)

    def retire_one(self):
        """Retires one counted thing."""
        retire_later(&self.retire, self.freed, count_freed)

    def sweep(self):
        """Frees what nobody can see any more."""
        retire_sweep(&self.retire)

    @property
    def counts(self):
        """(retired and waiting, freed)."""
        return self.retire.retired_count, self.freed[0]


cdef void count_freed(void* thing) noexcept nogil:
    (<uint64_t*>thing)[0] += 1


# --- a writer without the GIL, beside readers that hold it ----------------------------------------

cdef extern from "<signal.h>" nogil:
    ctypedef void (*handler_fn)(int) noexcept nogil
    handler_fn signal(int number, handler_fn handler)
    int pthread_kill(pthread_t thread, int number)
    int SIGUSR2

cdef enum:
    TEXT_BYTES_MAX = 4096
    STILL_US_MAX = 5000       # the writer may wait for a lock that the reader has
    REWRITE_US_MAX = 8000000

cdef uint32_t stands_still = 0


cdef void replace_rings(stream_t* stream, int epochs) noexcept nogil:
    # One epoch more, and the ring before the newest is gone; two, and so is the newest. (Not both
    # in one go: what was freed first may be mapped again.)
    cdef int i
    for i in range(epochs):
        stream_begin_epoch(stream, stream.epoch_highest + 1, 1, 0, 0, 0)


cdef void replace_texts(stream_t* stream, uint8_t letter, uint32_t size) noexcept nogil:
    # In all places where the newest ring may have one.
    cdef uint8_t text[TEXT_BYTES_MAX]
    cdef int i
    memset(text, letter, size)
    stream_set_info(stream, text, size)
    for i in range(RING_TITLES):
        ring_set_title(stream.ring, text, size, stream.ring.titles_total + 1, 0)
    for i in range(RING_HEADERS):
        ring_set_header(stream.ring, text, size, 0)


cdef void stand_still(int number) noexcept nogil:
    # A signal handler: in the reader's thread, wherever that happens to be, until it may go on.
    cdef uint64_t until = now_us() + STILL_US_MAX
    store_u32(&stands_still, 1)
    while load_u32(&stands_still) and now_us() < until:
        sched_yield()


cdef bint stop_reader(pthread_t reader) noexcept nogil:
    # Has it stopped in time?
    cdef uint64_t until = now_us() + STILL_US_MAX
    pthread_kill(reader, SIGUSR2)
    while not load_u32(&stands_still) and now_us() < until:
        sched_yield()
    return load_u32(&stands_still) == 1


def rewrite(size_t pointer, bint rings, uint32_t times, size_t reader, uint32_t size=4000):
    """As the writer of this stream (`_core.pointer_of`) puts others in the place of its rings, or
    of its texts, each of one letter throughout; without the GIL, while the reader's thread
    (`threading.get_ident()`) stands still in the midst of whatever it does. So many times, on a
    busy machine for as long as REWRITE_US_MAX allows; how often it stood still."""
    cdef stream_t* stream = <stream_t*>pointer
    cdef uint64_t until = now_us() + REWRITE_US_MAX
    cdef uint32_t stopped = 0
    cdef uint32_t i
    assert size <= TEXT_BYTES_MAX
    signal(SIGUSR2, stand_still)
    with nogil:
        for i in range(times):
            stopped += stop_reader(<pthread_t>reader)
            if rings:
                replace_rings(stream, 1 + <int>(i % 2))
            else:
                replace_texts(stream, <uint8_t>(65 + i % 26), size)
            store_u32(&stands_still, 0)
            if now_us() > until:
                break
            usleep(20)
    return stopped


cdef extern from "slots.h" nogil:
    uint64_t slot_inverse(uint64_t count)
    uint64_t slot_of(uint64_t number, uint64_t count, uint64_t inverse)


def slot(uint64_t number, uint64_t count):
    """Which of `count` places a number has."""
    return slot_of(number, count, slot_inverse(count))


cdef class RingProbe:
    """One ring with the arguments of ring_open; its methods are ring.pxd's functions."""

    cdef RetireProbe owner
    cdef ring_t* ring
    cdef uint32_t stop

    def __cinit__(self, uint64_t size_bytes=0, uint64_t frames_count=0, *, uint64_t sequence=0,
                  uint64_t position=0, uint64_t media_us=0, RingProbe resized=None):
        self.owner = RetireProbe() if resized is None else resized.owner
        if resized is not None:
            self.ring = ring_resized(resized.ring, size_bytes, frames_count)
        else:
            self.ring = ring_open(size_bytes, frames_count, 1, sequence, position, media_us,
                                  &self.owner.retire)
        if self.ring == NULL:
            raise MemoryError("no ring")

    def __dealloc__(self):
        if self.ring != NULL:
            ring_close(self.ring)

    @property
    def state(self):
        """The numbers of the ring, as a dict."""
        cdef ring_t* ring = self.ring
        return {
            "size_bytes": ring.size_bytes, "guard_bytes": ring.guard_bytes,
            "frames_count": ring.frames_count, "reserved_position": ring.reserved_position,
            "reserved_sequence": ring.reserved_sequence, "head_sequence": ring.head_sequence,
            "head_position": ring.head_position, "head_media_us": ring.head_media_us,
            "base_sequence": ring.base_sequence, "base_position": ring.base_position,
            "tail_sequence": ring_tail_sequence(ring), "tail_position": ring_tail_position(ring),
            "holes_total": ring.holes_total,
        }

    def place(self, uint64_t sequence, uint64_t position, uint64_t media_us, data,
              uint32_t duration_us, uint32_t flags=1):
        """ring_place."""
        cdef Buffer run = Buffer(data)
        return ring_place(self.ring, sequence, position, media_us, run.bytes, <uint32_t>run.size,
                          duration_us, flags)

    def place_run(self, uint64_t sequence, uint64_t position, uint64_t media_us, frames):
        """ring_place_run for frames (data, duration_us, flags): how many it took."""
        cdef Buffer run = Buffer(b"".join(data for data, _, _ in frames))
        cdef uint64_t* records = <uint64_t*>malloc(8 * len(frames) + 8)
        cdef uint32_t count = 0
        if records == NULL:
            raise MemoryError()
        try:
            for data, duration_us, flags in frames:
                records[count] = (
                    <uint64_t>len(data) | <uint64_t>flags << 24 | <uint64_t>duration_us << 32
                )
                count += 1
            return ring_place_run(
                self.ring, sequence, position, media_us, records, count, run.bytes
            )
        finally:
            free(records)

    def give_up(self):
        """ring_give_up."""
        return ring_give_up(self.ring)

    def bytes_at(self, uint64_t position, size_t size):
        """A copy of the ring's bytes, unchecked (size ≤ the ring's)."""
        return (<const char*>ring_at(self.ring, position))[:min(size, self.ring.size_bytes)]

    def entry(self, uint64_t sequence):
        """ring_read_entry: (position, size_bytes, media_us, duration_us, flags) or None."""
        cdef frame_t frame
        if not ring_read_entry(self.ring, sequence, &frame):
            return None
        return (frame.position, frame.size_bytes, frame.media_us, frame.duration_us,
                frame.flags & 0xFF)

    def readable_end(self, uint64_t position):
        """ring_readable_end."""
        return ring_readable_end(self.ring, position)

    def start_after(self, uint64_t position):
        """ring_start_after."""
        return ring_start_after(self.ring, position)

    def sequence_at(self, uint64_t position):
        """ring_sequence_at."""
        return ring_sequence_at(self.ring, position)

    def burst_sequence(self, uint64_t burst_us):
        """ring_burst_sequence."""
        return ring_burst_sequence(self.ring, burst_us)

    def was_overtaken(self, uint64_t position):
        """ring_was_overtaken."""
        return bool(ring_was_overtaken(self.ring, position))

    def entry_was_overtaken(self, uint64_t sequence):
        """ring_entry_was_overtaken."""
        return bool(ring_entry_was_overtaken(self.ring, sequence))

    def header(self, uint64_t sequence):
        """The bytes of ring_header, or None."""
        cdef header_t* header = ring_header(self.ring, sequence)
        return None if header == NULL else (<const char*>header.bytes)[:header.size_bytes]

    def title(self, uint64_t position):
        """The bytes of ring_title, or None."""
        cdef title_t* title = ring_title(self.ring, position)
        return None if title == NULL else (<const char*>title.bytes)[:title.size_bytes]

    def write_unpaced(self):
        """Pushes stamped frames as fast as it can until stop_writing(); no GIL."""
        cdef uint64_t words[STAMPED_WORDS_MAX]
        cdef uint32_t size
        cdef uint32_t i
        with nogil:
            while not load_u32(&self.stop):
                size = stamped_words(self.ring.head_sequence)
                for i in range(size):
                    words[i] = self.ring.head_sequence
                ring_push(self.ring, <uint8_t*>words, 8 * size, 1000, 1)

    def stop_writing(self):
        """Ends write_unpaced."""
        store_u32(&self.stop, 1)

    def read_slowly(self, uint32_t runs, bint check):
        """Copies `runs` runs of a few frames in small pieces, giving way in between; no GIL.

        With `check` the copy of a run that was overtaken meanwhile is thrown away, as after a send.
        Returns (runs delivered, runs thrown away, frames delivered, frames torn among them).
        """
        cdef uint64_t[4] result
        memset(result, 0, sizeof(result))
        with nogil:
            read_slowly(self.ring, runs, check, result)
        return tuple(result)


cdef enum:
    STAMPED_WORDS_MAX = 184
    RUN_WORDS_MAX = 1024
    RUN_BYTES_MAX = 8192
    PIECE_BYTES = 512


cdef uint32_t stamped_words(uint64_t sequence) noexcept nogil:
    # 8 to 183 words of 8 bytes: the size of a stamped frame, told by its sequence alone.
    return 8 + <uint32_t>((sequence * <uint64_t>0x9E3779B97F4A7C15) >> 32) % 176


cdef void read_slowly(ring_t* ring, uint32_t runs, bint check, uint64_t* result) noexcept nogil:
    cdef uint64_t words[RUN_WORDS_MAX]
    cdef uint64_t sequence
    cdef uint64_t size
    cdef uint64_t done
    cdef uint32_t run
    cdef frame_t frame
    for run in range(runs):
        sequence = ring_tail_sequence(ring)
        if not ring_read_entry(ring, sequence, &frame):
            continue
        size = load_u64(&ring.head_position) - frame.position
        if size > RUN_BYTES_MAX:
            size = RUN_BYTES_MAX
        done = 0
        while done < size:      # the kernel's copy, with the reader preempted inside it
            memcpy(<uint8_t*>words + done, ring_at(ring, frame.position + done),
                   size - done if size - done < PIECE_BYTES else PIECE_BYTES)
            done += PIECE_BYTES
            if run % 4 == 1:
                sched_yield()
        if run % 64 == 2:
            usleep(20)
        if check and ring_was_overtaken(ring, frame.position):
            result[1] += 1
            continue
        result[0] += 1
        count_torn(words, size // 8, sequence, result)


cdef void count_torn(
    const uint64_t* words, uint64_t count, uint64_t sequence, uint64_t* result
) noexcept nogil:
    cdef uint64_t at = 0
    cdef uint64_t i
    cdef bint torn
    while at + stamped_words(sequence) <= count:
        torn = False
        for i in range(at, at + stamped_words(sequence)):
            torn = torn or words[i] != sequence
        result[2] += 1
        result[3] += torn
        at += stamped_words(sequence)
        sequence += 1


cdef class TableProbe:
    """The table of streams with keys of the test's choice: removing keeps probe runs whole."""

    cdef engine_t engine

    def __cinit__(self, uint32_t streams_max):
        if engine_open(&self.engine, streams_max) != 0:
            raise MemoryError("no table")

    def __dealloc__(self):
        if self.engine.table != NULL:
            engine_close(&self.engine)

    def add(self, bytes mount, uint64_t key):
        """engine_add."""
        cdef stream_t* stream = stream_open(
            mount, <uint32_t>len(mount), &self.engine.defaults, &self.engine.retire,
            &self.engine.hub
        )
        stream.key = key
        cdef int status = engine_add(&self.engine, stream)
        if status != 0:
            stream_drop(stream)
        return status

    def remove(self, uint64_t key):
        """engine_remove of the stream with this key."""
        cdef stream_t* stream = engine_find_key(&self.engine, key)
        if stream == NULL:
            return False
        cdef bint found = engine_remove(&self.engine, stream)
        stream_drop(stream)
        return found

    def find(self, uint64_t key):
        """The mount of the stream with this key, or None; engine_find_key."""
        cdef stream_t* stream = engine_find_key(&self.engine, key)
        if stream == NULL:
            return None
        mount = stream.mount[:stream.mount_bytes]
        stream_drop(stream)
        return mount


cdef class HubProbe:
    """One stream, one writer that tells the hub, one backbone that sleeps when nothing is new."""

    cdef engine_t engine
    cdef stream_t* stream
    cdef uint64_t seen
    cdef uint32_t stop

    def __cinit__(self):
        if engine_open(&self.engine, 1) != 0 or engine_hub_open(&self.engine) != 0:
            raise MemoryError("no table, or no descriptor")
        self.stream = stream_open(
            b"/hub", 4, &self.engine.defaults, &self.engine.retire, &self.engine.hub
        )

    def __dealloc__(self):
        if self.stream != NULL:
            stream_drop(self.stream)
            engine_close(&self.engine)

    def write_bursts(self, uint32_t bursts, uint64_t patience_us):
        """1 to 8 changes within µs, then waits until they are seen; True when they never are."""
        cdef uint64_t* told = &self.stream.counters.received_frames_total
        cdef bint missed = False
        cdef uint64_t until
        cdef uint32_t burst
        cdef uint32_t i
        cdef uint32_t spin
        with nogil:
            for burst in range(bursts):
                for i in range(1 + stamped_words(burst) % 8):
                    for spin in range(100 * stamped_words(told[0])):     # any moment of a turn
                        load_u64(&self.seen)
                    store_u64(told, told[0] + 1)
                    hub_tell(&self.engine.hub, self.stream)
                until = now_us() + patience_us
                while load_u64(&self.seen) != told[0] and now_us() < until:
                    pass
                if load_u64(&self.seen) != told[0]:
                    missed = True
                    break
            store_u32(&self.stop, 1)
            eventfd_write(self.engine.hub.event_fd, 1)
        return missed

    def serve(self):
        """The backbone: takes what is new, sleeps, until the writer ends; how often it slept."""
        cdef stream_t* stream
        cdef stream_t* after
        cdef pollfd file
        cdef uint64_t woken
        cdef uint64_t sleeps = 0
        file.fd = self.engine.hub.event_fd
        file.events = POLLIN
        with nogil:
            while not load_u32(&self.stop):
                stream = hub_take(&self.engine.hub)
                while stream != NULL:
                    after = hub_next(stream)
                    store_u64(&self.seen, load_u64(&stream.counters.received_frames_total))
                    stream_drop(stream)
                    stream = after
                if hub_sleep(&self.engine.hub):
                    sleeps += 1
                    poll(&file, 1, 10000)
                    eventfd_read(file.fd, &woken)
                    store_u32(&self.engine.hub.asleep, 0)
        return sleeps
