# histogram.pxd: how often which duration occurred, in buckets that widen with it.
#
# Rules of this room
#   1. Durations in µs. Below 8 µs each has a bucket of its own; above, eight to each doubling: a
#      quantile is told at most an eighth too high, never too low.
#   2. Fixed size; nothing is allocated. One writer; whoever reads from another thread copies it
#      together with the writer's other counters.
#   3. Knows no clock and no meaning.

from libc.stdint cimport uint64_t

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
    histogram.counts[histogram_bucket(duration_us)] += 1
    histogram.total += 1
    histogram.sum_us += duration_us
    if duration_us > histogram.max_us:
        histogram.max_us = duration_us

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
