# marks.pxd: when which byte of a ring became readable.
#
# Rules of this room
#   1. A mark (position, time) says: no byte from this position on could be read before this time.
#      The ring's one writer sets one before it writes, at most each MARK_FINE_US. So the time told
#      for a byte is never later than the truth, and earlier by MARK_FINE_US and one write at most.
#   2. Two rows: 10 ms apart for what is up to 1.2 s old (longer than any pace), 250 ms apart for up
#      to 30 s; what is older is told as that old. 4 KiB a ring; nothing is allocated.
#   3. Any thread may look while the writer marks: it keeps a distance from the slots that are used
#      again next, and looks again when it was overtaken all the same.
#   4. Knows no clock, no ring, no listener.

from libc.stdint cimport uint64_t

from relay._core.atomics cimport (
    fence_acquire, fence_release, load_u64, load_u64_relaxed, store_u64, store_u64_relaxed,
)

cdef enum:
    MARKS = 128               # of one row, a power of two
    MARKS_NEAR = 6            # the oldest ones are not read: the writer is about to use them again
    MARK_FINE_US = 10000
    MARK_COARSE_US = 250000

cdef struct mark_t:
    uint64_t position         # bytes; never falls from one mark to the next
    uint64_t time_us          # monotonic

cdef struct marks_row_t:      # owner: the ring's writer
    uint64_t total            # marks ever set; the next one goes into total % MARKS
    mark_t marks[MARKS]

cdef struct marks_t:
    marks_row_t fine          # at least MARK_FINE_US apart
    marks_row_t coarse        # at least MARK_COARSE_US apart

# --- the writer ----------------------------------------------------------------------------------

cdef inline void row_add(
    marks_row_t* row, uint64_t step_us, uint64_t position, uint64_t now_us
) noexcept nogil:
    cdef mark_t* mark = &row.marks[(row.total - 1) % MARKS]
    if row.total > 0:
        if mark.position == position:   # still nothing behind it: the later time is true as well
            store_u64_relaxed(&mark.time_us, now_us)
            return
        if now_us < mark.time_us + step_us:
            return
    mark = &row.marks[row.total % MARKS]
    fence_release()     # the total that a reader checks last is not older than what it may see here
    store_u64_relaxed(&mark.position, position)
    store_u64_relaxed(&mark.time_us, now_us)
    store_u64(&row.total, row.total + 1)

cdef inline void marks_add(marks_t* marks, uint64_t position, uint64_t now_us) noexcept nogil:
    # What is readable now ends at position, and the writer is about to go on there.
    row_add(&marks.fine, MARK_FINE_US, position, now_us)
    row_add(&marks.coarse, MARK_COARSE_US, position, now_us)

# --- readers -------------------------------------------------------------------------------------

cdef inline bint row_find(marks_row_t* row, uint64_t position, uint64_t* time_us) noexcept nogil:
    # The time of the newest mark at or before position; where all are behind it, that of the oldest
    # and False. 0 where there is none.
    cdef uint64_t total = load_u64(&row.total)
    cdef uint64_t low
    cdef uint64_t high
    cdef uint64_t middle
    cdef bint holds
    while True:
        low = total - (MARKS - MARKS_NEAR) if total > MARKS - MARKS_NEAR else 0
        high = total
        while high - low > 1:
            middle = low + (high - low) // 2
            if load_u64_relaxed(&row.marks[middle % MARKS].position) <= position:
                low = middle
            else:
                high = middle
        time_us[0] = load_u64_relaxed(&row.marks[low % MARKS].time_us) if total > 0 else 0
        holds = total > 0 and load_u64_relaxed(&row.marks[low % MARKS].position) <= position
        fence_acquire()
        high = load_u64_relaxed(&row.total)
        if high - total < MARKS_NEAR:
            return holds
        total = high

cdef inline uint64_t marks_find(marks_t* marks, uint64_t position) noexcept nogil:
    # When the byte at this position became readable; 0: nothing is known.
    cdef uint64_t time_us
    if not row_find(&marks.fine, position, &time_us):
        row_find(&marks.coarse, position, &time_us)
    return time_us
