# observe.pxd: what one shard sees of its own service: join time, lateness, gap, skips, busy share.
#
# Rules of this room
#   1. The shard's thread writes, after the send in question; any thread reads (observe_add_up).
#      What each number means is in docs/glossary.md.
#   2. Costs about 1 % of a send at most: the ring's marks are searched once for all who are served
#      in one turn from the same place.
#   3. Fixed size; nothing is allocated. Knows no clock (it is handed `now`), no socket and no
#      listener.

from libc.stdint cimport uint64_t

from relay._core.atomics cimport load_u64_relaxed, store_u64_relaxed
from relay._core.histogram cimport histogram_add, histogram_merge, histogram_read, histogram_t
from relay._core.marks cimport marks_find
from relay._core.ring cimport ring_t

cdef enum:
    BUSY_STEPS = 10           # of a tenth each
    BUSY_WINDOW_US = 100000

cdef enum:  # what is measured: index into observed_t.durations
    SEEN_JOIN = 0             # accept → first audio handed to the kernel
    SEEN_LATENESS = 1         # readable in this node's ring → handed to the kernel
    SEEN_GAP = 2              # between two sends of audio to one listener
    SEEN_SKIP = 3             # media time from where a cursor was to where it went on
    SEEN_KINDS = 4

cdef struct busy_t:           # share of the time in which the shard worked, window by window
    uint64_t windows[BUSY_STEPS]  # [i]: shares above i tenths, up to i + 1; [0]: and none at all
    uint64_t total            # windows booked
    uint64_t sum_permille
    uint64_t max_permille
    uint64_t last_permille    # of the newest window

cdef struct observed_t:       # owner: the shard
    histogram_t durations[SEEN_KINDS]
    busy_t busy
    uint64_t window_us        # when the present window began; 0: not yet
    uint64_t window_busy_us   # work in it so far
    # The last search, and its answer. Only compared with rings of the same turn: they all live.
    ring_t* seen_ring
    uint64_t seen_position
    uint64_t seen_turn
    uint64_t seen_us

# --- the shard -----------------------------------------------------------------------------------

cdef inline void observe(
    observed_t* observed, int kind, uint64_t since_us, uint64_t now_us
) noexcept nogil:
    histogram_add(&observed.durations[kind], now_us - since_us if now_us > since_us else 0)

cdef inline void observe_lateness(
    observed_t* observed, ring_t* ring, uint64_t position, uint64_t turn, uint64_t now_us
) noexcept nogil:
    # A send has just carried the byte at position, its oldest. Nothing is booked where no writer
    # has marked the ring.
    if (
        observed.seen_ring != ring or observed.seen_position != position
        or observed.seen_turn != turn
    ):
        observed.seen_ring = ring
        observed.seen_position = position
        observed.seen_turn = turn
        observed.seen_us = marks_find(&ring.marks, position)
    if observed.seen_us > 0:
        observe(observed, SEEN_LATENESS, observed.seen_us, now_us)

cdef inline void observe_busy(
    observed_t* observed, uint64_t begin_us, uint64_t end_us
) noexcept nogil:
    # One turn's work. A window ends with the first turn that ends BUSY_WINDOW_US after its begin;
    # one that lasted longer counts for as many as it held.
    cdef busy_t* busy = &observed.busy
    cdef uint64_t busy_us
    cdef uint64_t span_us
    cdef uint64_t windows
    cdef uint64_t* step
    if observed.window_us == 0:
        observed.window_us = begin_us
    observed.window_busy_us += end_us - begin_us
    span_us = end_us - observed.window_us
    if span_us < BUSY_WINDOW_US:
        return
    windows = span_us // BUSY_WINDOW_US
    busy_us = observed.window_busy_us if observed.window_busy_us < span_us else span_us
    step = &busy.windows[(busy_us * BUSY_STEPS - 1) // span_us if busy_us > 0 else 0]
    store_u64_relaxed(step, step[0] + windows)
    busy_us = busy_us * 1000 // span_us
    store_u64_relaxed(&busy.total, busy.total + windows)
    store_u64_relaxed(&busy.sum_permille, busy.sum_permille + busy_us * windows)
    store_u64_relaxed(&busy.last_permille, busy_us)
    if busy_us > busy.max_permille:
        store_u64_relaxed(&busy.max_permille, busy_us)
    observed.window_us = end_us
    observed.window_busy_us = 0

# --- any thread ----------------------------------------------------------------------------------

cdef inline void observe_add_up(observed_t* into, const observed_t* shard) noexcept nogil:
    # Adds what one shard has seen, while it goes on; `last` is the busiest shard's.
    cdef const busy_t* busy = &shard.busy
    cdef histogram_t one
    cdef uint64_t value
    cdef int i
    for i in range(SEEN_KINDS):
        histogram_read(&shard.durations[i], &one)
        histogram_merge(&into.durations[i], &one)
    for i in range(BUSY_STEPS):
        value = load_u64_relaxed(&busy.windows[i])
        into.busy.windows[i] += value
        into.busy.total += value
    into.busy.sum_permille += load_u64_relaxed(&busy.sum_permille)
    value = load_u64_relaxed(&busy.max_permille)
    into.busy.max_permille = value if value > into.busy.max_permille else into.busy.max_permille
    value = load_u64_relaxed(&busy.last_permille)
    into.busy.last_permille = value if value > into.busy.last_permille else into.busy.last_permille

cdef inline uint64_t busy_quantile_permille(const busy_t* busy, double share) noexcept nogil:
    # The busy share that `share` (0 to 1) of all windows did not exceed, a tenth too high at most.
    cdef double wanted = share * <double>busy.total
    cdef uint64_t seen = 0
    cdef uint64_t edge
    cdef int i
    for i in range(BUSY_STEPS):
        seen += busy.windows[i]
        if seen > 0 and <double>seen >= wanted:
            edge = <uint64_t>(i + 1) * 1000 // BUSY_STEPS
            return edge if edge < busy.max_permille else busy.max_permille
    return busy.max_permille
