# histogram.pxd: how often which duration occurred, in buckets that widen with it.
#
# Rules of this room
#   1. Durations in µs. Below 8 µs each has a bucket of its own; above, eight to each doubling: a
#      quantile is told at most an eighth too high, never too low.
#   2. Fixed size; nothing is allocated. One writer, which pays for no publication: every number is
#      one word and only grows, so another thread reads them where they are (histogram_read).
#   3. Knows no clock and no meaning.

from libc.stdint cimport uint64_t
from libc.string cimport memset

from relay._core.atomics cimport load_u64_relaxed, store_u64_relaxed

cdef extern from *:
    int leading_zeros "__builtin_clzll"(unsigned long long value) nogil

cdef enum:
    HISTOGRAM_STEPS = 8       # buckets for each doubling
    HISTOGRAM_BUCKETS = 200   # the last one takes all from 2**27 µs (134 s) on

cdef struct histogram_t:
    uint64_t counts[HISTOGRAM_BUCKETS]
    uint64_t total            # durations booked
    uint64_t sum_us
    uint64_t max_us

cdef inline int histogram_bucket(uint64_t duration_us) noexcept nogil:
    cdef int doubling
    cdef int bucket
    if duration_us < HISTOGRAM_STEPS:
        return <int>duration_us
    doubling = 63 - leading_zeros(duration_us)
    bucket = (doubling - 3) * HISTOGRAM_STEPS + <int>(duration_us >> (doubling - 3))
    return bucket if bucket < HISTOGRAM_BUCKETS else HISTOGRAM_BUCKETS - 1

cdef inline uint64_t histogram_above_us(int bucket) noexcept nogil:
    # The least duration that is too long for this bucket (of the last one: what it is meant for).
    cdef int doubling = bucket // HISTOGRAM_STEPS
    if doubling == 0:
        return <uint64_t>bucket + 1
    return <uint64_t>(HISTOGRAM_STEPS + bucket % HISTOGRAM_STEPS + 1) << (doubling - 1)

cdef inline void histogram_add(histogram_t* histogram, uint64_t duration_us) noexcept nogil:
    cdef uint64_t* count = &histogram.counts[histogram_bucket(duration_us)]
    store_u64_relaxed(count, count[0] + 1)
    store_u64_relaxed(&histogram.total, histogram.total + 1)
    store_u64_relaxed(&histogram.sum_us, histogram.sum_us + duration_us)
    if duration_us > histogram.max_us:
        store_u64_relaxed(&histogram.max_us, duration_us)

cdef inline void histogram_read(const histogram_t* histogram, histogram_t* out) noexcept nogil:
    # From any thread, while the writer goes on. The total is the sum of the counts that were read,
    # so the copy agrees with itself; its sum may have a duration more than its counts.
    cdef int i
    memset(out, 0, sizeof(histogram_t))
    out.sum_us = load_u64_relaxed(&histogram.sum_us)
    for i in range(HISTOGRAM_BUCKETS):
        out.counts[i] = load_u64_relaxed(&histogram.counts[i])
        out.total += out.counts[i]
    out.max_us = load_u64_relaxed(&histogram.max_us)

cdef inline uint64_t histogram_below(
    const histogram_t* histogram, uint64_t bound_us,
) noexcept nogil:
    # How many were shorter than bound_us: exact where a bucket ends there (at 2**n µs, say), else
    # those of all buckets that end before it.
    cdef uint64_t seen = 0
    cdef int i
    for i in range(HISTOGRAM_BUCKETS):
        if histogram_above_us(i) > bound_us:
            break
        seen += histogram.counts[i]
    return seen

cdef inline void histogram_merge(histogram_t* into, const histogram_t* other) noexcept nogil:
    cdef int i
    for i in range(HISTOGRAM_BUCKETS):
        into.counts[i] += other.counts[i]
    into.total += other.total
    into.sum_us += other.sum_us
    if other.max_us > into.max_us:
        into.max_us = other.max_us

cdef inline uint64_t histogram_quantile_us(
    const histogram_t* histogram, double share,
) noexcept nogil:
    # The duration that `share` (0 to 1) of all did not exceed; 0 when there are none.
    cdef double wanted = share * <double>histogram.total
    cdef uint64_t seen = 0
    cdef uint64_t above
    cdef int i
    for i in range(HISTOGRAM_BUCKETS):
        seen += histogram.counts[i]
        if seen > 0 and <double>seen >= wanted:
            above = histogram_above_us(i) - 1
            return above if above < histogram.max_us else histogram.max_us
    return histogram.max_us
