# listener.pxd: one listener of the swarm: its record, and what its audio's arrival means.
#
# Rules of this room
#   1. Only the loop's thread calls here. The record is ≤ 192 B; a sampled one has a checker too.
#   2. Most need no look at their bytes: recv(NULL, n, MSG_TRUNC) throws away without a copy. With
#      ICY the blocks have to be found, so those are read.
#   3. Its position comes from the first frame's own sequence; from then on it grows by what
#      arrives, and is held against what its source wrote (mount_lag_us), at each arrival before the
#      new bytes count (that is when it is worst) and by the loop's sweep when nothing arrives.
#   4. It is judged once it has caught up with the head, or SETTLE_US after its first audio, or
#      ASKED_AGAIN_US after it read on.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from relay._core.histogram cimport histogram_add
from relay._swarm.checker cimport checker_audio, checker_block, checker_t, checker_title
from relay._swarm.mount cimport mount_lag_us, mount_t
from relay._swarm.tally cimport tally_t

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* bytes, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_TRUNC

cdef extern from "<errno.h>" nogil:
    int errno
    int EAGAIN
    int EINTR

cdef enum:  # state of a record
    FREE = 0
    CONNECTING = 1            # the handshake is not over
    ASKED = 2                 # the request is out, the reply or its first frame is not whole
    PLAYING = 3
    REFUSED = 4               # the reply is whole, the server's close is awaited
    STALLED = 5               # stopped reading, on our will
    ENDED = 6                 # the server ended it; keeps its record for the report
    LAGGING = 7               # stopped reading, on our will, and will read on

cdef enum:  # flags
    FLAG_ICY = 1              # asks for titles
    FLAG_SAMPLED = 2
    FLAG_FLOOD = 4            # a refusal is what is expected
    FLAG_SETTLED = 8          # rule 4
    FLAG_BEHIND = 16          # counted in this window
    FLAG_REPEATED = 32        # the handshake took a second SYN

cdef enum:  # what listener_read answers
    READ_DONE = 0             # the socket is empty
    READ_ENDED = -1           # EOF
    READ_BROKEN = -2          # reset

cdef enum:
    BYTES_MAX = 65536         # of one read
    SETTLE_US = 5000000
    ASKED_AGAIN_US = 20000000 # a sender that was shut out for 24 s asks 7 to 13 s later
    NOBODY = 0xFFFFFFFF

cdef struct listener_t:       # owner: the loop
    int fd
    uint8_t state
    uint8_t flags
    uint8_t group
    uint32_t generation       # tells late events of an earlier connection
    uint32_t next_free
    mount_t* mount
    checker_t* checker        # of a sampled one; owned
    uint64_t begun_us         # connect() was called
    uint64_t first_us         # first body byte; 0: none yet
    uint64_t judged_by_us     # from then on it is judged, caught up or not
    uint64_t last_us          # latest arrival; of a refused one: when its reply was whole
    uint64_t gap_us_max       # between two arrivals, in this window
    int64_t position          # of the next audio byte, in the programme
    uint64_t bytes            # audio since the join
    uint64_t bytes_marked     # … when the window began
    uint32_t metaint          # 0: no titles
    uint32_t audio_left       # until the next block
    uint32_t block_left       # of the block that it is in

cdef struct rules_t:          # what the loop holds all of them to
    bint frames               # the programme is ours; else anybody's
    uint64_t late_us          # pace and tolerance

cdef inline void listener_judge(
    listener_t* listener, tally_t* tally, const rules_t* rules, uint64_t lag, uint64_t now
) noexcept nogil:
    # Is what it has heard the head's advance, within one pace?
    if not listener.flags & FLAG_SETTLED:
        if lag > rules.late_us and now < listener.judged_by_us:
            return
        listener.flags |= FLAG_SETTLED
        if listener.checker != NULL:
            listener.checker.may_skip = False
    if lag > tally.worst_lag_us:
        tally.worst_lag_us = lag
    if lag > rules.late_us and not listener.flags & FLAG_BEHIND:
        listener.flags |= FLAG_BEHIND
        tally.behind += 1

cdef inline void listener_arrival(
    listener_t* listener, tally_t* tally, const rules_t* rules, uint64_t now
) noexcept nogil:
    # Bytes have come; they are not counted yet.
    cdef uint64_t gap = now - listener.last_us if now > listener.last_us else 0
    cdef uint64_t lag
    listener.last_us = now
    tally.arrivals += 1
    histogram_add(&tally.gap, gap)
    if gap > listener.gap_us_max:
        listener.gap_us_max = gap
    if rules.frames:
        lag = mount_lag_us(listener.mount, listener.position, now)
        listener_judge(listener, tally, rules, lag, now)
        if listener.flags & FLAG_SETTLED:
            histogram_add(&tally.lag, lag)

cdef inline void listener_count(listener_t* listener, tally_t* tally, int64_t size) noexcept nogil:
    listener.position += size
    listener.bytes += <uint64_t>size
    tally.bytes += <uint64_t>size

cdef inline void listener_walk(
    listener_t* listener, tally_t* tally, const uint8_t* bytes, int64_t size, uint64_t now
) noexcept nogil:
    # Takes audio and title blocks apart.
    cdef int64_t take
    while size > 0:
        if listener.block_left > 0:
            take = listener.block_left if listener.block_left < size else size
            listener.block_left -= <uint32_t>take
            if listener.checker != NULL:
                checker_block(listener.checker, bytes, <uint32_t>take)
                if listener.block_left == 0:
                    checker_title(listener.checker, now)
        elif listener.metaint > 0 and listener.audio_left == 0:
            take = 1
            listener.block_left = <uint32_t>bytes[0] * 16
            listener.audio_left = listener.metaint
            if listener.block_left == 0 and listener.checker != NULL:
                checker_title(listener.checker, now)
        else:
            take = size
            if listener.metaint > 0:
                take = listener.audio_left if listener.audio_left < size else size
                listener.audio_left -= <uint32_t>take
            listener_count(listener, tally, take)
            if listener.checker != NULL:
                checker_audio(listener.checker, bytes, take, now)
                listener.position += <int64_t>listener.checker.skipped_bytes
                listener.checker.skipped_bytes = 0
        bytes += take
        size -= take

cdef inline int64_t listener_take(
    listener_t* listener, uint8_t* bytes, uint64_t* looked
) noexcept nogil:
    # One read. looked: 1 when the bytes are there to be looked at.
    looked[0] = listener.checker != NULL or listener.metaint > 0
    if looked[0]:
        return recv(listener.fd, bytes, BYTES_MAX, MSG_DONTWAIT)
    return recv(listener.fd, NULL, BYTES_MAX, MSG_DONTWAIT | MSG_TRUNC)
