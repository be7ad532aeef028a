# recorder.pxd: the flight recorder of one thread: what it decided in the last ten minutes, and upon
# which inputs.
#
# Rules of this room
#   1. One writer a recorder, which takes no lock and allocates nothing; any thread may read. A
#      record carries a word that is odd while it is written, so nobody takes half of one.
#   2. Two lanes: what is rare by its nature (switches, epochs, losses), and what a storm or an
#      attacker can produce at will. The second never washes out the first.
#   3. Of the common kinds all of one stream, reason and parent within RECORD_WINDOW_US are one
#      record, with their count: `a` is the first one's, `b` and `c` are the largest.
#   4. What is overwritten before it is RECORD_KEEP_US old is counted (washed_total).
#   5. Knows no clock: it is handed the time. What the numbers of a kind mean, and the names of
#      kinds and reasons, tells relay/recorder.py.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from relay._core.atomics cimport (
    fence_acquire, fence_release, load_u64, load_u64_relaxed, store_u64, store_u64_relaxed,
)
from relay._core.tables cimport table_close, table_open

cdef enum:
    RECORD_KEEP_US = 600000000
    RECORD_WINDOW_US = 100000
    RECORD_NOBODY = 255       # no parent
    RECORDER_OPEN_MAX = 64    # records that are still counted
    RECORDER_PLACES = 4       # where one of them may be
    # records kept, powers of two: ten minutes at so many a second (rare, then common)
    SHARD_RARE = 2048         # 3
    SHARD_COMMON = 16384      # 27
    BACKBONE_RARE = 32768     # 54
    BACKBONE_COMMON = 32768   # 54
    OTHERS_RARE = 8192        # 13: Python, and the intake
    OTHERS_COMMON = 4096      # 6

cdef enum:  # kinds; from RECORD_COMMON on they are counted together
    RECORD_STARTED = 1
    RECORD_UPSTREAM_UP = 2
    RECORD_UPSTREAM_LOST = 3
    RECORD_UPSTREAM_OTHER = 4
    RECORD_SWITCH = 5
    RECORD_LOST = 6
    RECORD_EPOCH_BEGUN = 7
    RECORD_EPOCH_ENDED = 8
    RECORD_SHADOWED = 9
    RECORD_SOURCE_IN = 10
    RECORD_SOURCE_OUT = 11
    RECORD_SOURCE_READ = 12
    RECORD_PACE = 13
    RECORD_EXPELLED = 14
    RECORD_GOODBYE = 15
    RECORD_PAUSED = 16
    RECORD_GAP = 17
    RECORD_FALLBACK = 18
    RECORD_COMMON = 32
    RECORD_JOIN_ASKED = 32
    RECORD_HOLE = 33
    RECORD_REPAIR_ASKED = 34
    RECORD_REPAIR_DONE = 35
    RECORD_REPAIR_GONE = 36
    RECORD_REPAIR_LATER = 37
    RECORD_REPAIR_TIMEOUT = 38
    RECORD_SKIP = 39
    RECORD_DROP = 40
    RECORD_REFUSE = 41
    RECORD_SOURCE_REFUSED = 42
    RECORD_MOVE = 43

cdef struct record_t:         # 64 B; owner: the recorder's writer
    uint64_t word             # twice its number in the lane, + 2; one less while it is written
    uint64_t at_us            # monotonic: when it happened, of several the first
    uint64_t wall_us          # the same by the wall clock
    uint64_t stream           # its key; 0: the node's
    uint8_t kind              # RECORD_…
    uint8_t reason
    uint8_t parent            # its place among the upstreams; RECORD_NOBODY
    uint8_t left              # of a switch: the parent before
    uint32_t count
    uint64_t a
    uint64_t b
    uint64_t c

cdef struct lane_t:
    record_t* records         # owned
    uint64_t size             # a power of two
    uint64_t next             # the number of the next record

cdef struct recorder_t:
    lane_t rare
    lane_t common
    record_t open[RECORDER_OPEN_MAX]    # still counted; kind 0: free
    uint32_t opened
    uint64_t tick_us          # when they are looked at next
    int64_t wall_ahead_us     # wall clock less monotonic
    uint64_t washed_total     # overwritten before their time

cdef inline int lane_open(lane_t* lane, uint64_t size) noexcept nogil:
    lane.records = <record_t*>table_open(size, sizeof(record_t))    # touched only as far as used
    lane.size = size
    lane.next = 0
    return 0 if lane.records != NULL else -1

cdef inline int recorder_open(recorder_t* recorder, uint64_t rare, uint64_t common) noexcept nogil:
    # Of zeroed memory; sizes are powers of two. -1: no memory (recorder_close is called anyway).
    return lane_open(&recorder.rare, rare) | lane_open(&recorder.common, common)

cdef inline void recorder_close(recorder_t* recorder) noexcept nogil:
    table_close(recorder.rare.records)
    table_close(recorder.common.records)
    recorder.rare.records = recorder.common.records = NULL

# --- the writer ----------------------------------------------------------------------------------

cdef inline void lane_put(
    recorder_t* recorder, lane_t* lane, const record_t* record
) noexcept nogil:
    cdef uint64_t number = lane.next
    cdef record_t* place
    if lane.records == NULL:    # a thread's state without a recorder, as tests step it
        return
    place = &lane.records[number & (lane.size - 1)]
    if place.word != 0 and record.at_us < place.at_us + RECORD_KEEP_US:
        store_u64_relaxed(&recorder.washed_total, recorder.washed_total + 1)
    store_u64_relaxed(&place.word, 2 * number + 1)
    fence_release()             # odd before anything of it changes
    memcpy(&place.at_us, &record.at_us, sizeof(record_t) - sizeof(uint64_t))
    store_u64(&place.word, 2 * number + 2)
    store_u64(&lane.next, number + 1)

cdef inline void recorder_count(recorder_t* recorder, const record_t* record) noexcept nogil:
    # One of a common kind: into the open record of its like; or it opens one, in the place of the
    # oldest of a few.
    cdef uint64_t like = (
        record.stream ^ <uint64_t>record.kind << 40 ^ <uint64_t>record.reason << 48
        ^ <uint64_t>record.parent << 56
    ) * <uint64_t>0x9E3779B97F4A7C15
    cdef record_t* open
    cdef record_t* oldest = NULL
    cdef uint32_t i
    for i in range(RECORDER_PLACES):
        open = &recorder.open[((like >> 58) + i) & (RECORDER_OPEN_MAX - 1)]
        if open.kind == record.kind and open.stream == record.stream and (
            open.reason == record.reason and open.parent == record.parent
            and record.at_us - open.at_us < RECORD_WINDOW_US
        ):
            open.count += 1
            open.b = record.b if record.b > open.b else open.b
            open.c = record.c if record.c > open.c else open.c
            return
        if oldest == NULL or (
            oldest.kind != 0 and (open.kind == 0 or open.at_us < oldest.at_us)
        ):
            oldest = open
    if oldest.kind != 0:
        lane_put(recorder, &recorder.common, oldest)
    else:
        recorder.opened += 1
    oldest[0] = record[0]

cdef inline void recorder_put(recorder_t* recorder, record_t* record) noexcept nogil:
    # Whatever the caller has filled in; the count and the wall clock are added.
    record.count = 1
    record.wall_us = <uint64_t>(<int64_t>record.at_us + recorder.wall_ahead_us)
    if record.kind >= RECORD_COMMON:
        recorder_count(recorder, record)
    else:
        lane_put(recorder, &recorder.rare, record)

cdef inline void record(
    recorder_t* recorder, uint64_t now_us, uint64_t stream, uint32_t kind, uint32_t reason,
    uint32_t parent, uint64_t a, uint64_t b, uint64_t c,
) noexcept nogil:
    cdef record_t put
    put.at_us = now_us
    put.stream = stream
    put.kind = <uint8_t>kind
    put.reason = <uint8_t>reason
    put.parent = <uint8_t>parent
    put.left = RECORD_NOBODY
    put.a = a
    put.b = b
    put.c = c
    recorder_put(recorder, &put)

cdef inline void recorder_flush(recorder_t* recorder, uint64_t before_us) noexcept nogil:
    # What was opened before this time is told.
    cdef uint32_t i
    for i in range(RECORDER_OPEN_MAX):
        if recorder.open[i].kind != 0 and recorder.open[i].at_us < before_us:
            lane_put(recorder, &recorder.common, &recorder.open[i])
            recorder.open[i].kind = 0
            recorder.opened -= 1

cdef inline bint recorder_is_due(const recorder_t* recorder, uint64_t now_us) noexcept nogil:
    return now_us >= recorder.tick_us

cdef inline void recorder_tick(
    recorder_t* recorder, uint64_t now_us, uint64_t wall_us
) noexcept nogil:
    # Each RECORD_WINDOW_US, at the end of a turn: the wall clock may have been set.
    recorder.wall_ahead_us = <int64_t>wall_us - <int64_t>now_us
    recorder.tick_us = now_us + RECORD_WINDOW_US
    if recorder.opened:
        recorder_flush(recorder, now_us - RECORD_WINDOW_US + 1)

# --- any thread ----------------------------------------------------------------------------------

cdef inline uint64_t lane_first(
    const lane_t* lane, uint64_t number, uint64_t newest
) noexcept nogil:
    # Where to read on from: what has been overwritten is gone, and at most `newest` are wanted.
    cdef uint64_t next_ = load_u64(&lane.next)
    cdef uint64_t most = newest if newest < lane.size else lane.size
    return next_ - most if next_ > most and number < next_ - most else number

cdef inline bint lane_read(const lane_t* lane, uint64_t number, record_t* out) noexcept nogil:
    # False: overwritten meanwhile.
    cdef const record_t* place = &lane.records[number & (lane.size - 1)]
    cdef uint64_t word = load_u64(&place.word)
    if word != 2 * number + 2:
        return False
    out[0] = place[0]
    fence_acquire()             # the copy is whole before the word is looked at again
    return load_u64_relaxed(&place.word) == word
