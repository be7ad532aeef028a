# _probe.pyx: faces for the tests on rooms that need no engine.
#
# Rules of this room
#   1. Test faces only: the package never imports it, nothing at run time depends on it.
#   2. It decides nothing: converts arguments, calls one room, converts the answer.
#   3. Input is copied to a run of exactly its size: a sanitizer sees each byte read too far.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from relay._core.atomics cimport load_u64
from relay._core.body cimport (
    BODY_CHUNKED, BODY_ENDED, BODY_RAW, BODY_SIZED, body_next, body_open, body_reason, body_t,
)
from relay._core.cutter cimport cutter_ahead_us, cutter_t
from relay._core.engine cimport now_us
from relay._core.handover cimport (
    entry_t, handover_close, handover_open, handover_put, handover_t,
    handover_take,
)
from relay._core.histogram cimport (
    histogram_above_us as room_histogram_above_us, histogram_add,
    histogram_below, histogram_bucket as room_histogram_bucket, histogram_merge,
    histogram_quantile_us, histogram_read, histogram_t,
)
from relay._core.http_head cimport (
    AT_BAD, AT_LIVE, AT_NONE, AT_TIME, RANGE_NONE, RANGE_PROBE, head_end as room_head_end,
    head_parse as room_head_parse, head_t,
)
from relay._core.icy cimport (
    ICY_BLOCK_BYTES_MAX, icy_block as room_icy_block, utf8_cut as room_utf8_cut,
)
from relay._core.pace cimport (
    NOBODY, SLOT_US, WHEEL_SLOTS, link_t, pace_slots as room_pace_slots, wheel_close, wheel_join,
    wheel_next_us, wheel_open, wheel_place, wheel_put, wheel_remove, wheel_return, wheel_t,
    wheel_take, wheel_turn,
)
from relay._core.recorder cimport *
from relay._core.tempo cimport (
    tempo_follow_share, tempo_is_followed, tempo_mark, tempo_open, tempo_pace_us, tempo_rest,
    tempo_t, tempo_turn,
)

cdef extern from "<sched.h>" nogil:
    int sched_yield()


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


def head_relays(bytes data):
    """Whether a whole head says that it is of a server that passes the stream on."""
    cdef uint64_t size = head_end(data)
    cdef Copy run = Copy(data[:size])
    cdef head_t head
    return bool(size and room_head_parse(&head, run.bytes, size) == 0 and head.relays)


def head_place(bytes data):
    """(at, range) of a whole head: at is None, "live", "bad" or the numbers of its place; range
    None, ("from", N) or ("probe", bytes)."""
    cdef uint64_t size = head_end(data)
    cdef Copy run = Copy(data[:size])
    cdef head_t head
    if size == 0 or room_head_parse(&head, run.bytes, size) != 0:
        return None
    at = {AT_NONE: None, AT_LIVE: "live", AT_BAD: "bad", AT_TIME: "time"}.get(head.at, "place")
    if at == "place":
        at = (head.at_epoch, head.at_position)
        at += (head.at_header_bytes,) if head.at_header_told else ()
    elif at == "time":
        at = ("time", head.at_epoch, head.at_media_us)
    part = None
    if head.range != RANGE_NONE:
        is_probe = head.range == RANGE_PROBE
        part = ("probe", head.range_bytes) if is_probe else ("from", head.range_first)
    return at, part


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


def cutter_ahead(uint64_t fed_media_us, uint64_t began_us, times, int64_t ahead_us_most):
    """How far ahead a source is at each of these times, µs, one after the other."""
    cdef cutter_t cutter
    memset(&cutter, 0, sizeof(cutter_t))
    cutter.fed_media_us = fed_media_us
    cutter.began_us = began_us
    return [cutter_ahead_us(&cutter, now_us, ahead_us_most) for now_us in times]


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

    def below(self, uint64_t bound_us):
        """How many were shorter."""
        return histogram_below(&self.histogram, bound_us)

    def read(self):
        """Everything that another thread reads of it."""
        cdef histogram_t copy
        histogram_read(&self.histogram, &copy)
        return copy

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
    """A wheel under a clock that the test moves, and the pace of each of its members."""

    cdef wheel_t wheel
    cdef uint8_t* paces
    cdef uint32_t members_max

    def __cinit__(self, uint32_t members_max, uint64_t now_us=0):
        self.members_max = members_max
        self.paces = <uint8_t*>calloc(members_max, 1)
        if self.paces == NULL or wheel_open(&self.wheel, members_max, now_us) != 0:
            raise MemoryError

    def __dealloc__(self):
        free(self.paces)
        wheel_close(&self.wheel)

    cdef uint32_t check(self, uint32_t member) except? 0xFFFFFFFF:
        if member >= self.members_max:
            raise IndexError(member)
        return member

    def put(self, uint32_t member, uint64_t slot):
        """Puts a member into this absolute slot."""
        wheel_put(&self.wheel, self.check(member), slot)

    def join(self, uint32_t member, uint64_t pace_us):
        """Gives a member its pace and a slot within it."""
        self.paces[self.check(member)] = <uint8_t>room_pace_slots(pace_us)
        wheel_join(&self.wheel, member, self.paces[member])

    def join_many(self, uint32_t first, uint32_t count, uint64_t pace_us):
        """A storm of joins in one turn."""
        cdef uint32_t member
        self.check(first + count - 1)
        with nogil:
            for member in range(first, first + count):
                self.paces[member] = <uint8_t>room_pace_slots(pace_us)
                wheel_join(&self.wheel, member, self.paces[member])

    def remove(self, uint32_t member):
        """Takes a member off the wheel."""
        wheel_remove(&self.wheel, self.check(member))

    def turn(self, uint64_t now_us, int64_t wanted_us=0):
        """Serves who is due and returns them in order, as (member, slot). With a pace that is
        wanted (-1: each its own) each is put back as a shard does it."""
        cdef uint32_t member
        served = []
        wheel_turn(&self.wheel, now_us)
        while True:
            member = wheel_take(&self.wheel)
            if member == <uint32_t>NOBODY:
                return served
            served.append((member, self.wheel.slot - 1))
            if wanted_us != 0:
                wanted = self.paces[member] if wanted_us < 0 else room_pace_slots(wanted_us)
                wheel_return(&self.wheel, member, &self.paces[member], wanted)

    def serve(self, uint64_t now_us, uint64_t wanted_us):
        """A turn as a shard does it: (served, moved, µs by which the schedule was put off)."""
        cdef uint64_t behind_us = wheel_turn(&self.wheel, now_us)
        cdef uint64_t wanted = room_pace_slots(wanted_us)
        cdef uint32_t member = wheel_take(&self.wheel)
        cdef uint64_t served = 0
        cdef uint64_t moved = 0
        while member != <uint32_t>NOBODY:
            served += 1
            moved += wheel_return(&self.wheel, member, &self.paces[member], wanted)
            member = wheel_take(&self.wheel)
        return served, moved, behind_us

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
        """How many are in each slot, from the next one to be served on."""
        return [self.wheel.fill[self.place(i)] for i in range(WHEEL_SLOTS)]

    @property
    def paces_us(self):
        """The pace of each member, 0 before its first."""
        return [self.paces[i] * SLOT_US for i in range(self.members_max)]

    cdef uint32_t place(self, uint32_t ahead):
        return wheel_place(&self.wheel, self.wheel.slot + ahead)

    def chains(self):
        """The members of each slot, in the order of `fill`, by following the links both ways."""
        cdef uint32_t member
        cdef uint32_t before
        cdef uint32_t place
        cdef uint32_t ahead
        cdef link_t* link
        found = []
        for ahead in range(WHEEL_SLOTS):
            place = self.place(ahead)
            chain = []
            before = NOBODY
            member = self.wheel.first[place]
            while member != <uint32_t>NOBODY:
                link = &self.wheel.links[member]
                assert link.before == before and link.place == place
                chain.append(member)
                before = member
                member = link.after
            assert self.wheel.last[place] == before
            found.append(chain)
        return found


# --- the tempo ---


cdef class Tempo:
    """A shard's choice of pace, under a clock and costs that the test names."""

    cdef tempo_t tempo

    def __cinit__(self, uint64_t floor_us, uint64_t ceiling_us, uint64_t now_us=0):
        tempo_open(&self.tempo, floor_us, ceiling_us, now_us)

    def turn(self, uint64_t listeners, uint64_t now_us, uint64_t serve_us, uint64_t other_us=0,
             uint64_t behind_us=0, uint64_t fixed_us=0):
        """One turn and what it has cost; True when the pace is another one."""
        return bool(tempo_turn(
            &self.tempo, listeners, now_us, serve_us, fixed_us, other_us, behind_us
        ))

    def share(self, uint64_t listeners, uint64_t pace_us):
        """The share, in permille, that it foresees, all work together."""
        return tempo_follow_share(&self.tempo, listeners, pace_us) + tempo_rest(&self.tempo)

    def mark(self, uint64_t share):
        """What a mark of the busy share leaves for those who follow."""
        return tempo_mark(&self.tempo, share)

    def is_followed(self, uint64_t floor_us, uint64_t ceiling_us):
        """Whether listeners of a mount with these bounds follow the pace now."""
        return bool(tempo_is_followed(&self.tempo, floor_us, ceiling_us))

    def clamped_us(self, uint64_t floor_us, uint64_t ceiling_us):
        """The pace of a mount with these bounds."""
        return tempo_pace_us(&self.tempo, floor_us, ceiling_us)

    @property
    def pace_us(self):
        """The pace now."""
        return self.tempo.pace_us

    @pace_us.setter
    def pace_us(self, uint64_t value):
        self.tempo.pace_us = value

    def told(self):
        """Everything it holds."""
        return self.tempo


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


# --- flight recorder ---

RECORD_BYTES = sizeof(record_t)
RECORD_KINDS = {
    "started": RECORD_STARTED, "upstream_up": RECORD_UPSTREAM_UP,
    "upstream_lost": RECORD_UPSTREAM_LOST, "upstream_other": RECORD_UPSTREAM_OTHER,
    "switch": RECORD_SWITCH, "lost": RECORD_LOST, "epoch_begun": RECORD_EPOCH_BEGUN,
    "epoch_ended": RECORD_EPOCH_ENDED, "shadowed": RECORD_SHADOWED,
    "source_out": RECORD_SOURCE_OUT, "source_read": RECORD_SOURCE_READ, "pace": RECORD_PACE,
    "child_expelled": RECORD_EXPELLED, "goodbye": RECORD_GOODBYE, "paused": RECORD_PAUSED,
    "gap": RECORD_GAP, "join_asked": RECORD_JOIN_ASKED, "hole": RECORD_HOLE,
    "repair_asked": RECORD_REPAIR_ASKED, "repair_done": RECORD_REPAIR_DONE, "skip": RECORD_SKIP,
    "repair_gone": RECORD_REPAIR_GONE, "repair_later": RECORD_REPAIR_LATER, "drop": RECORD_DROP,
    "repair_timeout": RECORD_REPAIR_TIMEOUT, "refuse": RECORD_REFUSE,
    "source_refused": RECORD_SOURCE_REFUSED, "fallback": RECORD_FALLBACK, "move": RECORD_MOVE,
}


cdef class FlightRecorder:
    """One flight recorder, with lanes of any size."""

    cdef recorder_t recorder

    def __cinit__(self, uint64_t rare, uint64_t common):
        if recorder_open(&self.recorder, rare, common) != 0:
            raise MemoryError("no memory for a recorder")

    def __dealloc__(self):
        recorder_close(&self.recorder)

    def put(self, int kind, uint64_t now, *, stream=0, reason=0, parent=0, a=0, b=0, c=0):
        """record."""
        record(&self.recorder, now, stream, kind, reason, parent, a, b, c)

    def tick(self, uint64_t now, uint64_t wall):
        """recorder_tick."""
        recorder_tick(&self.recorder, now, wall)

    def told(self, uint64_t number=0, uint64_t newest=1 << 20):
        """What a reader gets of (rare, common) from this number on, as dicts."""
        common = self.lane(&self.recorder.common, number, newest)
        return self.lane(&self.recorder.rare, number, newest), common

    cdef list lane(self, const lane_t* lane, uint64_t number, uint64_t newest):
        cdef record_t one
        found = []
        number = lane_first(lane, number, newest)
        while number < load_u64(&lane.next):
            if lane_read(lane, number, &one):
                found.append(one)
            number += 1
        return found

    @property
    def washed_total(self):
        """Overwritten before their time."""
        return self.recorder.washed_total

    def measure(self, uint64_t records, int kind):
        """Seconds for so many records, 20 of a stream in a row and 10 µs apart."""
        cdef uint64_t i
        cdef uint64_t begin = now_us()
        with nogil:
            for i in range(records):
                record(&self.recorder, i * 10, 1 + i // 20 % 200, kind, 0, 1, i, i, i)
                if recorder_is_due(&self.recorder, i * 10):
                    recorder_tick(&self.recorder, i * 10, i * 10)
            begin = now_us() - begin
        return begin / 1e6

    def write_until(self, uint64_t records):
        """Writes so many, each with the same number in all fields; no GIL."""
        cdef uint64_t i
        with nogil:
            for i in range(records):
                record(&self.recorder, i, i, RECORD_LOST, 0, 1, i, i, i)

    def read_torn(self, uint64_t records):
        """Reads (no GIL) until so many have been written: (whole ones, torn ones)."""
        cdef record_t one
        cdef uint64_t number = 0
        cdef uint64_t whole = 0, torn = 0
        cdef lane_t* lane = &self.recorder.rare
        with nogil:
            while number < records:
                number = lane_first(lane, number, lane.size)
                if number >= load_u64(&lane.next):
                    sched_yield()
                    continue
                if lane_read(lane, number, &one):
                    whole += 1
                    torn += not one.a == one.b == one.c == one.at_us == one.stream == number
                number += 1
        return whole, torn
