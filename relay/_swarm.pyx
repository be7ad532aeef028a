# _swarm.pyx: the compiled load maker's face: one loop of listeners, one thread of sources.
#
# Rules of this room
#   1. Converts; decides nothing. The scenario, the plan of joins and the verdict are Python's
#      (relay/swarm.py); what is counted, and how, is in the rooms of relay/_swarm/.
#   2. run() alone takes time, without the GIL; every other call is refused while it does.
#   3. The sources' thread begins with the first source and ends in close().

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from relay._core.atomics cimport load_u32, load_u64, store_u32, store_u64_relaxed
from relay._core.histogram cimport (
    HISTOGRAM_BUCKETS, histogram_above_us as room_above_us, histogram_quantile_us, histogram_t,
)
from relay._core.thread cimport pthread_join, thread_start
from relay._swarm.crowd cimport close as close_fd, crowd_close, crowd_open, swarm_now_us
from relay._swarm.listener cimport (
    ASKED, CONNECTING, ENDED, FLAG_FLOOD as ROOM_FLOOD, FLAG_ICY as ROOM_ICY,
    FLAG_SAMPLED as ROOM_SAMPLED, FREE, LAGGING, PLAYING, REFUSED, STALLED, listener_t,
)
from relay._swarm.loop cimport (
    BATCHES_MAX, batch_t, loop_is_even, loop_judge_end, loop_lag, loop_read_on, loop_run,
    loop_stall, loop_stalled_ended, loop_t, loop_window, plan_t,
)
from relay._swarm.mount cimport (
    MOUNTS_MAX as ROOM_MOUNTS_MAX, REQUEST_BYTES_MAX, SOURCE_LIVE, SOURCE_LOST, mount_t,
)
from relay._swarm.sources cimport sources_main
from relay._swarm.tally cimport ERRNOS, GROUPS_MAX as ROOM_GROUPS_MAX, STATUSES, tally_t

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #define RELAY_SWARM_BUILD "asan"
    #elif defined(RELAY_CHECKED)
    #define RELAY_SWARM_BUILD "checked"
    #else
    #define RELAY_SWARM_BUILD "release"
    #endif
    """
    const char* RELAY_SWARM_BUILD

BUILD = RELAY_SWARM_BUILD.decode()
FLAG_ICY = ROOM_ICY
FLAG_SAMPLED = ROOM_SAMPLED
FLAG_FLOOD = ROOM_FLOOD
GROUPS_MAX = ROOM_GROUPS_MAX
MOUNTS_MAX = ROOM_MOUNTS_MAX
LISTENER_BYTES = sizeof(listener_t)

_COUNTERS = (
    "asked", "joined", "admitted", "cut", "unclosed", "foreign", "resets", "ended", "syn_repeated",
    "head_repeated", "bytes", "arrivals", "behind", "unequal", "missing_bytes", "surplus_bytes",
    "frames_checked", "frames_lost", "frames_repeated", "frames_damaged", "skips", "skips_allowed",
    "frames_skipped", "blocks_checked", "titles_heard", "titles_wrong", "longest_gap_us",
    "worst_lag_us", "began_us", "last_us", "settled_us",
)
_STATES = {
    CONNECTING: "connecting", ASKED: "asked", PLAYING: "playing", REFUSED: "refused",
    STALLED: "stalled", ENDED: "ended", LAGGING: "lagging",
}


def histogram_above_us(int bucket):
    """The least duration in µs that is too long for this bucket."""
    return room_above_us(bucket)


cdef dict told_histogram(const histogram_t* histogram):
    return {
        "total": histogram.total,
        "sum_us": histogram.sum_us,
        "max_us": histogram.max_us,
        "counts": [histogram.counts[i] for i in range(HISTOGRAM_BUCKETS)],
    }


cdef dict told_tally(const tally_t* tally):
    # the counters stand in this order at its front
    cdef const uint64_t* counters = <const uint64_t*>tally
    told = {name: counters[i] for i, name in enumerate(_COUNTERS)}
    told["refused"] = {i: tally.refused[i] for i in range(STATUSES) if tally.refused[i]}
    told["failed"] = {i: tally.failed[i] for i in range(ERRNOS) if tally.failed[i]}
    told["connect"] = told_histogram(&tally.connect)
    told["first_audio"] = told_histogram(&tally.first_audio)
    told["refusal"] = told_histogram(&tally.refusal)
    told["lateness"] = told_histogram(&tally.lateness)
    told["gap"] = told_histogram(&tally.gap)
    told["lag"] = told_histogram(&tally.lag)
    told["skip"] = told_histogram(&tally.skip)
    return told


cdef uint32_t copy_head(uint8_t* to, bytes head) except 0:
    if not 0 < len(head) <= REQUEST_BYTES_MAX:
        raise ValueError(f"a request head of {len(head)} bytes; 1 to {REQUEST_BYTES_MAX}")
    memcpy(to, <const uint8_t*>head, len(head))
    return <uint32_t>len(head)


cdef class Loop:
    """Listeners and sources of one server."""

    cdef loop_t* loop
    cdef bint is_running
    cdef bint is_open
    cdef bint has_thread
    cdef int pid              # a forked child has neither the thread nor a right to the connections

    def __cinit__(
        self, uint32_t to, uint16_t port, *, uint32_t from_, uint32_t addresses,
        uint32_t listeners_max, uint64_t pace_us, uint64_t late_us, uint64_t tail_bytes,
        uint32_t run, bint frames,
    ):
        self.loop = <loop_t*>calloc(1, sizeof(loop_t))
        if self.loop == NULL:
            raise MemoryError
        self.loop.crowd.epoll_fd = -1
        self.loop.crowd.to = self.loop.sources.to = to
        self.loop.crowd.port = self.loop.sources.port = port
        self.loop.crowd.from_ = from_
        self.loop.crowd.addresses = addresses
        self.loop.crowd.listeners_max = listeners_max
        self.loop.crowd.pace_us = pace_us
        self.loop.crowd.run = self.loop.sources.run = run
        self.loop.crowd.rules.frames = frames
        self.loop.crowd.rules.late_us = late_us
        self.loop.tail_bytes = tail_bytes
        if addresses == 0 or not crowd_open(&self.loop.crowd):
            raise MemoryError
        self.loop.sources.mounts = self.loop.crowd.mounts
        self.pid = getpid()
        self.is_open = True

    def __dealloc__(self):
        cdef uint32_t i
        if self.loop == NULL:
            return
        self._close()
        for i in range(self.loop.crowd.mounts_count):
            free(self.loop.crowd.mounts[i])
        for i in range(self.loop.batches_count):
            free(self.loop.batches[i].plan)
        free(self.loop.crowd.mounts)
        free(self.loop.crowd.listeners)
        free(self.loop.crowd.tallies)
        free(self.loop.crowd.bytes)
        free(self.loop)

    cdef int _check(self) except -1:
        if self.pid != getpid():
            raise RuntimeError("the swarm belongs to the process that forked this one")
        if self.is_running or not self.is_open:
            raise RuntimeError("the swarm is running" if self.is_open else "the swarm is closed")
        return 0

    cdef void _close(self):
        cdef uint32_t i
        cdef mount_t* mount
        self.is_open = False
        if self.pid != getpid():
            return
        if self.has_thread:
            self.has_thread = False
            store_u32(&self.loop.sources.stop, 1)
            with nogil:
                pthread_join(self.loop.sources.thread, NULL)
        crowd_close(&self.loop.crowd)
        for i in range(self.loop.crowd.mounts_count):
            mount = self.loop.crowd.mounts[i]
            if mount.fd >= 0:
                close_fd(mount.fd)
            if mount.title_fd >= 0:
                close_fd(mount.title_fd)
            mount.fd = mount.title_fd = -1

    def close(self):
        """Hangs up on everybody and ends the thread; may be called again."""
        if self.is_running:
            raise RuntimeError("the swarm is running")
        if self.is_open:
            self._close()

    def add_mount(
        self, bytes head not None, bytes head_icy not None, *, int fd=-1, bytes title_head=None,
        bytes title_tail=None, uint64_t title_every_us=0,
    ):
        """Adds a mount: its number. With fd, a source's connection, which is taken over."""
        cdef mount_t* mount
        self._check()
        if self.loop.crowd.mounts_count == ROOM_MOUNTS_MAX:
            raise ValueError(f"{ROOM_MOUNTS_MAX} mounts are the bound")
        mount = <mount_t*>calloc(1, sizeof(mount_t))
        if mount == NULL:
            raise MemoryError
        try:
            mount.head_bytes = copy_head(mount.head, head)
            mount.head_icy_bytes = copy_head(mount.head_icy, head_icy)
            if title_every_us:
                mount.title_head_bytes = copy_head(mount.title_head, title_head)
                mount.title_tail_bytes = copy_head(mount.title_tail, title_tail)
        except ValueError:
            free(mount)
            raise
        mount.number = self.loop.crowd.mounts_count
        mount.fd = fd
        mount.title_fd = -1
        mount.title_every_us = title_every_us
        mount.source_state = SOURCE_LIVE if fd >= 0 else 0
        self.loop.crowd.mounts[mount.number] = mount
        self.loop.crowd.mounts_count += 1
        store_u32(&self.loop.sources.mounts_count, self.loop.crowd.mounts_count)
        if fd >= 0 and not self.has_thread:
            if thread_start(&self.loop.sources.thread, sources_main, &self.loop.sources) != 0:
                raise MemoryError("no thread for the sources")
            self.has_thread = True
        return mount.number

    def join(self, uint32_t group, uint64_t over_us, bytes plan not None):
        """Schedules joins from the next run on: 4 B each (mount, low byte first; flags; 0)."""
        cdef batch_t* batch
        cdef const uint8_t* at = plan
        cdef uint32_t count = <uint32_t>(len(plan) // 4)
        cdef uint32_t i
        self._check()
        if group >= ROOM_GROUPS_MAX or count == 0 or self.loop.batches_count == BATCHES_MAX:
            raise ValueError(f"group {group}, {count} joins, {self.loop.batches_count} calls wait")
        for i in range(count):
            if at[4 * i] + 256 * at[4 * i + 1] >= <int>self.loop.crowd.mounts_count:
                raise ValueError("a join names a mount that was not added")
        batch = &self.loop.batches[self.loop.batches_count]
        memset(batch, 0, sizeof(batch_t))
        batch.plan = <plan_t*>calloc(count, sizeof(plan_t))
        if batch.plan == NULL:
            raise MemoryError
        for i in range(count):
            batch.plan[i].mount = at[4 * i] + 256 * at[4 * i + 1]
            batch.plan[i].flags = at[4 * i + 2]
        batch.count = count
        batch.over_us = over_us
        batch.group = group
        self.loop.batches_count += 1

    def stall(self, uint32_t group, uint32_t count):
        """Lets so many of the group stop reading; how many did."""
        self._check()
        return loop_stall(self.loop, group, count)

    def lag(self, uint32_t group, uint32_t count):
        """Lets so many of the group's sample stop reading for a while; how many did."""
        self._check()
        return loop_lag(self.loop, group, count)

    def read_on(self, uint32_t group):
        """Lets whoever of the group lags read again; how many did."""
        self._check()
        return loop_read_on(self.loop, group, swarm_now_us())

    def run(self, uint64_t for_us):
        """Joins, pushes, reads, for so long; without the GIL."""
        self._check()
        self.is_running = True
        with nogil:
            loop_run(self.loop, for_us)
        self.is_running = False

    def pause_sources(self):
        """Asks that no more frames be written; `sources_are_paused` tells when that is so."""
        self._check()
        store_u32(&self.loop.sources.paused, 1)

    @property
    def sources_are_paused(self):
        """True when nothing is written any more."""
        return not self.has_thread or load_u32(&self.loop.sources.is_paused) == 1

    @property
    def is_even(self):
        """True when everybody who plays has heard all that was written."""
        self._check()
        return loop_is_even(self.loop)

    def judge_end(self):
        """Compares each listener's position with its mount's head, once and for all."""
        self._check()
        loop_judge_end(self.loop)

    def fold(self):
        """Brings each listener's longest gap, the open one too, into its group's."""
        self._check()
        loop_window(self.loop, False, swarm_now_us())

    def begin_window(self):
        """Clears all counters, histograms and health: what follows is counted anew."""
        self._check()
        loop_window(self.loop, True, swarm_now_us())
        memset(self.loop.crowd.tallies, 0, ROOM_GROUPS_MAX * sizeof(tally_t))
        memset(&self.loop.health, 0, sizeof(self.loop.health))
        store_u64_relaxed(&self.loop.sources.delay_us_max, 0)

    def tally(self, uint32_t group):
        """What was counted of a group since the window began."""
        self._check()
        if group >= ROOM_GROUPS_MAX:
            raise ValueError(group)
        return told_tally(&self.loop.crowd.tallies[group])

    def states(self, uint32_t group):
        """How many of the group are in which state now."""
        cdef uint32_t i
        cdef uint32_t counts[8]
        self._check()
        memset(counts, 0, sizeof(counts))
        for i in range(self.loop.crowd.used):
            if self.loop.crowd.listeners[i].group == group:
                counts[self.loop.crowd.listeners[i].state & 7] += 1
        told = {name: counts[state] for state, name in _STATES.items()}
        told["stalled_ended"] = loop_stalled_ended(self.loop, group)
        return told

    def advances(self, uint32_t group):
        """Bytes of audio since the window began, of each that plays and played before it."""
        cdef uint32_t i
        cdef listener_t* listener
        self._check()
        advances = []
        for i in range(self.loop.crowd.used):
            listener = &self.loop.crowd.listeners[i]
            if listener.state == PLAYING and listener.group == group and listener.bytes_marked > 0:
                advances.append(listener.bytes - listener.bytes_marked)
        return advances

    def health(self):
        """The loop's own: µs in runs, of it busy, delays; the sources' beside it."""
        cdef uint64_t delay = self.loop.health.delay.max_us
        self._check()
        return {
            "run_us": self.loop.health.run_us,
            "busy_us": self.loop.health.busy_us,
            "turns": self.loop.health.turns,
            "tick_delay": told_histogram(&self.loop.health.delay),
            "join_delay_us_max": self.loop.health.join_delay_us_max,
            "no_room": self.loop.crowd.no_room,
            "open": self.loop.crowd.open_now,
            "joins_waiting": sum(
                self.loop.batches[i].count - self.loop.batches[i].done
                for i in range(self.loop.batches_count)
            ),
            "source_delay_us_max": self.loop.sources.delay_us_max,
            "source_busy_us": self.loop.sources.busy_us,
            "source_frames": self.loop.sources.frames,
        }

    def sources(self):
        """Of each mount: whether its source lives, how far it is, how long it was held back."""
        cdef uint32_t i
        cdef mount_t* mount
        told = []
        for i in range(self.loop.crowd.mounts_count):
            mount = self.loop.crowd.mounts[i]
            told.append({
                "state": ("none", "live", "lost")[load_u32(&mount.source_state)],
                "error": mount.error,
                "frames": load_u64(&mount.head_sequence),
                "held_us_max": mount.held_us_max,
                "titles_asked": load_u64(&mount.titles_asked),
                "titles_told": load_u64(&mount.titles_told),
                "titles_refused": mount.titles_refused,
            })
        return told
