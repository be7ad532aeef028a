# _probe_swarm.pyx: faces for the tests on the pure rooms of the load maker.
#
# Rules of this room
#   1. Test faces only: the package never imports it.
#   2. Decides nothing: converts arguments, calls one room, converts the answer.
#   3. Input is copied to a run of exactly its size: a sanitizer sees each byte read too far.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from relay._core.atomics cimport load_u64, store_u64
from relay._swarm.checker cimport checker_t
from relay._swarm.frame cimport (
    FRAME_BYTES as ROOM_FRAME_BYTES, FRAME_US as ROOM_FRAME_US, frame_find, frame_write, mark_t,
)
from relay._swarm.listener cimport (
    FLAG_SETTLED, PLAYING, SETTLE_US, listener_arrival, listener_judge, listener_t, listener_walk,
    rules_t,
)
from relay._swarm.mount cimport (
    mount_book, mount_head, mount_lag_us, mount_t, mount_title_owed, mount_told,
)
from relay._swarm.reply cimport reply_parse, reply_t
from relay._swarm.tally cimport tally_t

FRAME_BYTES = ROOM_FRAME_BYTES
FRAME_US = ROOM_FRAME_US


cdef uint8_t* copied(bytes data) except NULL:
    cdef uint8_t* run = <uint8_t*>malloc(len(data) if len(data) > 0 else 1)
    if run == NULL:
        raise MemoryError
    memcpy(run, <const uint8_t*>data, len(data))
    return run


def frame(uint32_t run, uint32_t mount, uint64_t sequence, uint64_t written_us):
    """One frame of the programme."""
    cdef mark_t mark
    cdef uint8_t made[192]
    mark.run = run
    mark.mount = mount
    mark.sequence = sequence
    mark.written_us = written_us
    frame_write(made, &mark)
    return (<const uint8_t*>made)[:ROOM_FRAME_BYTES]


def find_frame(bytes data not None):
    """Where the first whole frame begins and what it says, or None."""
    cdef mark_t mark
    cdef uint8_t* run = copied(data)
    cdef int64_t at = frame_find(run, len(data), &mark)
    free(run)
    if at < 0:
        return None
    return at, (mark.run, mark.mount, mark.sequence, mark.written_us)


def parse_reply(bytes data not None):
    """Status, bytes of the head, Content-Length, metaint; or 0 (more is needed), -1 (broken)."""
    cdef reply_t reply
    cdef uint8_t* run = copied(data)
    cdef int status = reply_parse(&reply, run, len(data))
    free(run)
    if status <= 0:
        return status
    return status, reply.body_at, reply.content_bytes, reply.metaint


cdef class Mount:
    """What was written when."""

    cdef mount_t* mount

    def __cinit__(self, uint32_t number=0):
        self.mount = <mount_t*>calloc(1, sizeof(mount_t))
        if self.mount == NULL:
            raise MemoryError
        self.mount.number = number

    def __dealloc__(self):
        free(self.mount)

    def write(self, uint64_t now_us):
        """A frame was written."""
        mount_book(self.mount, now_us)

    @property
    def head(self):
        """Position behind the last frame."""
        return mount_head(self.mount)

    def lag_us(self, int64_t position, uint64_t now_us):
        """Of a listener there."""
        return mount_lag_us(self.mount, position, now_us)

    def ask_title(self):
        """A request for the next title is begun."""
        store_u64(&self.mount.titles_asked, load_u64(&self.mount.titles_asked) + 1)
        self.mount.told_us[self.mount.titles_asked % 64] = 0

    def tell_title(self, uint64_t now_us):
        """The server confirmed it."""
        mount_told(self.mount, now_us)

    def owed_title(self, uint64_t now_us, uint64_t age_us):
        """The newest that nobody may not know."""
        return mount_title_owed(self.mount, now_us, age_us)


cdef class Ear:
    """A sampled listener without a socket."""

    cdef Mount mount
    cdef listener_t listener
    cdef checker_t* checker
    cdef tally_t* tally
    cdef rules_t rules

    def __cinit__(
        self, Mount mount not None, *, uint32_t run=0, uint32_t metaint=0, uint64_t live_us=0,
        uint64_t title_age_us=0, int64_t position=0, uint64_t late_us=1000000,
    ):
        self.mount = mount
        self.checker = <checker_t*>calloc(1, sizeof(checker_t))
        self.tally = <tally_t*>calloc(1, sizeof(tally_t))
        if self.checker == NULL or self.tally == NULL:
            raise MemoryError
        self.checker.mount = self.listener.mount = mount.mount
        self.checker.tally = self.tally
        self.checker.run = run
        self.checker.live_us = live_us
        self.checker.title_age_us = title_age_us
        self.listener.checker = self.checker
        self.listener.metaint = self.listener.audio_left = metaint
        self.listener.position = position
        self.listener.state = PLAYING
        self.rules.frames = True
        self.rules.late_us = late_us
        self.listener.judged_by_us = SETTLE_US

    def read_on(self, uint64_t now_us):
        """It lagged on our will, and reads again."""
        self.listener.flags &= <uint8_t>~<int>FLAG_SETTLED
        self.listener.judged_by_us = now_us + SETTLE_US
        self.checker.may_skip = True

    def __dealloc__(self):
        free(self.checker)
        free(self.tally)

    def feed(self, bytes data not None, uint64_t now_us):
        """Bytes have come."""
        cdef uint8_t* run = copied(data)
        listener_walk(&self.listener, self.tally, run, len(data), now_us)
        free(run)

    def arrive(self, int64_t size, uint64_t now_us):
        """So much audio has come to it that nobody looks at."""
        listener_arrival(&self.listener, self.tally, &self.rules, now_us)
        self.listener.position += size

    def sweep(self, uint64_t now_us):
        """Nothing has come; is it behind?"""
        cdef uint64_t lag = mount_lag_us(self.listener.mount, self.listener.position, now_us)
        listener_judge(&self.listener, self.tally, &self.rules, lag, now_us)

    @property
    def position(self):
        """Of the next audio byte."""
        return self.listener.position

    @property
    def is_settled(self):
        """Has it caught up with the head once?"""
        return self.listener.flags & FLAG_SETTLED != 0

    def told(self):
        """What was counted."""
        return {
            "checked": self.tally.frames_checked,
            "lost": self.tally.frames_lost,
            "repeated": self.tally.frames_repeated,
            "damaged": self.tally.frames_damaged,
            "skips": self.tally.skips,
            "skips_allowed": self.tally.skips_allowed,
            "frames_skipped": self.tally.frames_skipped,
            "blocks": self.tally.blocks_checked,
            "heard": self.tally.titles_heard,
            "wrong": self.tally.titles_wrong,
            "behind": self.tally.behind,
            "worst_lag_us": self.tally.worst_lag_us,
            "late": self.tally.lateness.total,
            "late_us_max": self.tally.lateness.max_us,
            "gaps": self.tally.gap.total,
            "gap_us_max": self.listener.gap_us_max,
        }
