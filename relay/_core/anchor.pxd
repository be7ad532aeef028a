# anchor.pxd: where somebody begins who says which byte he wants, and how such a place is written.
#
# Rules of this room
#   1. A place is EPOCH.POSITION.HEADER, the same on every node. The body that begins there is the
#      header pages of that position (HEADER bytes; 0 where the format has none), then the stream
#      from POSITION on. So byte N of that body is byte N of the header pages, or of the stream
#      POSITION + N - HEADER, whichever node is asked, however long ago POSITION left the rings.
#   2. Who asks without a Range, or for byte 0, begins at a `start`; where POSITION is none, or
#      tells another HEADER, he is sent on to the next place that is: what he counts is true.
#   3. Who comes back (N > 0) gets exactly byte N, in mid-frame too, and no header pages again.
#   4. Who tells a media time (EPOCH.tMILLISECONDS) is sent to the place of the start nearest to it:
#      how far it has heard a browser knows in seconds alone.
#   5. What may still come is waited for, until the caller says that it is late. Everybody else
#      begins as any listener does, and it is counted why.
#   6. Reads rings; the caller holds them. Knows no sockets, listeners or time.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from relay._core.atomics cimport load_u64
from relay._core.http_head cimport (
    AT_LIVE, AT_NONE, AT_PLACE, AT_TIME, METHOD_GET, RANGE_FROM, RANGE_PROBE, head_t,
    param_end, param_is_at,
)
from relay._core.frames_state cimport FRAME_START
from relay._core.ring cimport (
    frame_t, header_t, ring_at, ring_burst_sequence, ring_header, ring_read_entry,
    ring_readable_end, ring_sequence_at, ring_sequence_at_time, ring_start_after, ring_t,
    ring_tail_position, ring_tail_sequence, ring_was_overtaken,
)

cdef enum:
    PLACE_TEXT_BYTES_MAX = 80 # at= and three numbers of 64 bits
    TIME_ROUNDED_US = 1000    # who tells a media time tells whole milliseconds
    TIME_AHEAD_US = 20000000  # a media time so far ahead of the head may still come

cdef enum:  # how
    BEGIN_LIVE = 0            # as any listener
    BEGIN_AT = 1              # exactly there
    BEGIN_WAIT = 2            # it may still come
    BEGIN_SEND_ON = 3         # to the place that this one stands for

cdef enum:  # why: index into the shard's counters
    ANCHOR_NONE = 0           # no place was asked for
    ANCHOR_EXACT = 1
    ANCHOR_OLD = 2            # it has left the ring, was lost, or never was in it
    ANCHOR_AHEAD = 3          # the head did not come so far
    ANCHOR_EPOCH = 4          # of an epoch that is not here
    ANCHOR_REASONS = 5

cdef struct begin_t:
    int how
    int why
    ring_t* ring              # of BEGIN_AT and BEGIN_SEND_ON; one of the caller's
    uint64_t position         # the cursor, or the place to be sent to
    uint64_t whole_position   # begin of the frame that it is in
    int64_t media_us          # at the begin of that frame
    const uint8_t* header     # what is left of the header pages, to go out first; of this turn
    uint32_t header_bytes
    uint32_t header_all_bytes # of all of them

cdef inline void begin_set(begin_t* begin, int how, int why) noexcept nogil:
    begin.how = how
    begin.why = why
    begin.ring = NULL
    begin.position = begin.whole_position = 0
    begin.media_us = 0
    begin.header = NULL
    begin.header_bytes = begin.header_all_bytes = 0

cdef inline bint begin_on(
    begin_t* begin, int how, ring_t* ring, uint64_t sequence
) noexcept nogil:
    # At this frame, after its header pages. False: its entry is not readable.
    cdef frame_t frame
    cdef header_t* header
    if not ring_read_entry(ring, sequence, &frame):
        return False
    begin_set(begin, how, ANCHOR_EXACT)
    begin.ring = ring
    begin.position = begin.whole_position = frame.position
    begin.media_us = frame.media_us
    header = ring_header(ring, sequence)
    if header != NULL:
        begin.header = header.bytes
        begin.header_bytes = begin.header_all_bytes = header.size_bytes
    return True

cdef inline bint anchor_live(begin_t* begin, ring_t* ring, uint64_t burst_us) noexcept nogil:
    # The place at which a new listener would begin now. False: there is none yet.
    cdef uint64_t sequence
    if ring == NULL:
        return False
    sequence = ring_burst_sequence(ring, burst_us)
    if sequence == load_u64(&ring.head_sequence):
        return False
    return begin_on(begin, BEGIN_SEND_ON, ring, sequence)

cdef inline int anchor_reach(ring_t* ring, uint64_t position, bint goes_back) noexcept nogil:
    # Is this byte here: ANCHOR_EXACT (the head counts: it is the next one); or may it come, minus
    # ANCHOR_AHEAD or ANCHOR_OLD; or not.
    cdef uint64_t head = load_u64(&ring.head_position)
    cdef uint64_t tail = ring_tail_position(ring)
    if position > head:
        return -ANCHOR_AHEAD if position - head <= ring.size_bytes else ANCHOR_AHEAD
    if position < tail:
        # a ring that is still being filled from behind: nothing of it was overwritten yet
        if goes_back and tail == load_u64(&ring.base_position) and (
            tail - position <= ring.size_bytes
        ):
            return -ANCHOR_OLD
        return ANCHOR_OLD
    if position < head and ring_readable_end(ring, position) == position:
        return ANCHOR_OLD     # lost
    return ANCHOR_EXACT

cdef inline void begin_unless(begin_t* begin, int reach, bint late) noexcept nogil:
    # Not there: it waits if it may come and it is not late yet.
    if reach < 0 and not late:
        begin_set(begin, BEGIN_WAIT, ANCHOR_NONE)
    else:
        begin_set(begin, BEGIN_LIVE, -reach if reach < 0 else reach)

cdef inline void anchor_first(
    begin_t* begin, const head_t* head, ring_t* ring, uint64_t position, bint goes_back, bint late
) noexcept nogil:
    # Somebody's first request: at a start, and with the header pages that the place tells.
    cdef int reach = anchor_reach(ring, position, goes_back)
    cdef uint64_t sequence
    if reach != ANCHOR_EXACT:
        begin_unless(begin, reach, late)
        return
    sequence = ring_start_after(ring, position)
    if sequence == load_u64(&ring.head_sequence) or (
        not begin_on(begin, BEGIN_SEND_ON, ring, sequence)
    ):
        begin_unless(begin, -ANCHOR_AHEAD, late)
        return
    if (
        ring.epoch == head.at_epoch and begin.position == head.at_position
        and begin.header_all_bytes == head.at_header_bytes
    ):
        begin.how = BEGIN_AT

cdef inline void anchor_header(
    begin_t* begin, const head_t* head, ring_t* ring, bint goes_back, bint late
) noexcept nogil:
    # Somebody who comes back before he had all header pages: the rest of them. The place must be
    # here, and theirs.
    cdef int reach = anchor_reach(ring, head.at_position, goes_back)
    cdef uint32_t done = <uint32_t>head.range_first
    if reach != ANCHOR_EXACT:
        begin_unless(begin, reach, late)
        return
    if (
        not begin_on(begin, BEGIN_AT, ring, ring_sequence_at(ring, head.at_position))
        or begin.position != head.at_position
        or begin.header_all_bytes != head.at_header_bytes
    ):
        begin_set(begin, BEGIN_LIVE, ANCHOR_OLD)
        return
    begin.header += done
    begin.header_bytes -= done

cdef inline void anchor_again(
    begin_t* begin, ring_t* ring, uint64_t position, bint goes_back, bint late
) noexcept nogil:
    # Somebody who comes back: exactly there.
    cdef int reach = anchor_reach(ring, position, goes_back)
    cdef frame_t frame
    if reach != ANCHOR_EXACT:
        begin_unless(begin, reach, late)
        return
    begin_set(begin, BEGIN_AT, ANCHOR_EXACT)
    begin.ring = ring
    begin.position = begin.whole_position = position
    if position < load_u64(&ring.head_position):
        if not ring_read_entry(ring, ring_sequence_at(ring, position), &frame) or (
            frame.position > position
        ):
            begin_set(begin, BEGIN_LIVE, ANCHOR_OLD)
            return
        begin.whole_position = frame.position

cdef inline uint64_t abs_us(int64_t one, uint64_t other) noexcept nogil:
    return <uint64_t>one - other if <uint64_t>one > other else other - <uint64_t>one

cdef inline uint64_t anchor_nearest(
    ring_t* ring, uint64_t media_us, uint64_t* off_us
) noexcept nogil:
    # The start nearest to a media time, and how far from it; the head's sequence: that time has
    # left the ring.
    cdef uint64_t head = load_u64(&ring.head_sequence)
    cdef uint64_t tail = ring_tail_sequence(ring)
    cdef uint64_t middle = ring_sequence_at_time(ring, media_us)
    cdef uint64_t sequence = middle + 1 if middle < head else head
    cdef uint64_t found = head
    cdef frame_t frame
    off_us[0] = TIME_ROUNDED_US + 1     # what there is behind the time alone must be as near
    while sequence > tail and found == head:
        sequence -= 1
        if ring_read_entry(ring, sequence, &frame) and frame.flags & FRAME_START:
            if <uint64_t>frame.media_us <= media_us:
                found = sequence
                off_us[0] = abs_us(frame.media_us, media_us)
    sequence = middle
    while sequence < head:
        if (
            ring_read_entry(ring, sequence, &frame) and frame.flags & FRAME_START
            and <uint64_t>frame.media_us > media_us
        ):
            if abs_us(frame.media_us, media_us) < off_us[0]:
                found = sequence
                off_us[0] = abs_us(frame.media_us, media_us)
            break
        sequence += 1
    return found

cdef inline void anchor_time(
    begin_t* begin, const head_t* head, ring_t* ring, ring_t* after, uint64_t media_us,
    bint goes_back, bint late
) noexcept nogil:
    # Somebody who knows how far he has heard: to the start nearest to that. after: the next epoch,
    # when that ring has got all it will.
    cdef uint64_t head_us = load_u64(&ring.head_media_us)
    cdef uint64_t off_us = 0
    cdef uint64_t nearest = anchor_nearest(ring, media_us, &off_us)
    cdef bint is_old = nearest == load_u64(&ring.head_sequence)
    cdef bint may_come
    if media_us > head_us or (not is_old and head_us - media_us < off_us):
        # nothing is near yet, or the next start to come is nearer
        if after != NULL:
            anchor_first(begin, head, after, 0, goes_back, late)
            return
        may_come = media_us <= head_us or media_us - head_us <= TIME_AHEAD_US
        begin_unless(begin, -ANCHOR_AHEAD if may_come else ANCHOR_AHEAD, late)
    elif is_old:
        may_come = goes_back and after == NULL and (
            ring_tail_sequence(ring) == load_u64(&ring.base_sequence)
        )
        begin_unless(begin, -ANCHOR_OLD if may_come else ANCHOR_OLD, late)
    elif not begin_on(begin, BEGIN_SEND_ON, ring, nearest):
        begin_set(begin, BEGIN_LIVE, ANCHOR_OLD)

cdef inline void anchor_begin(
    begin_t* begin, const head_t* head, ring_t* newest, ring_t* before, bint goes_back, bint late
) noexcept nogil:
    # Where this request begins. newest and before: the stream's rings, the caller's, NULL where
    # there is none; goes_back: an upstream may still fill the newest from behind. An epoch that
    # began between the two looks makes one ring both.
    cdef ring_t* ring = newest
    cdef uint64_t position
    cdef uint64_t media_us
    cdef bint again = head.range == RANGE_FROM
    if before == newest:
        before = NULL
    if head.at != AT_PLACE and head.at != AT_TIME:
        begin_set(begin, BEGIN_LIVE, ANCHOR_NONE)
        return
    if newest == NULL or head.at_epoch > newest.epoch:
        begin_unless(begin, -ANCHOR_EPOCH, late)
        return
    if head.at_epoch < newest.epoch:
        if before == NULL or before.epoch != head.at_epoch:
            begin_set(begin, BEGIN_LIVE, ANCHOR_EPOCH)
            return
        ring = before
    if head.at == AT_TIME:
        media_us = head.at_media_us
        if ring == before and media_us >= load_u64(&before.head_media_us):
            media_us -= load_u64(&before.head_media_us)     # as below
            ring = newest
        anchor_time(
            begin, head, ring, newest if ring == before else NULL, media_us, goes_back, late
        )
        return
    if again and head.range_first < head.at_header_bytes:
        anchor_header(begin, head, ring, goes_back and ring == newest, late)
        return
    position = head.at_position
    if again:
        position += head.range_first - head.at_header_bytes
    if ring == before and position >= load_u64(&before.head_position):
        # he has heard that epoch to its end, as any listener: the next one follows
        position -= load_u64(&before.head_position)
        ring = newest
    goes_back = goes_back and ring == newest
    if again:
        anchor_again(begin, ring, position, goes_back, late)
    else:
        anchor_first(begin, head, ring, position, goes_back, late)

cdef inline bint anchor_wanted(const head_t* head, bint icy, bint by_default) noexcept nogil:
    # Is this request to be sent to a place? Title blocks would make bytes that no place counts,
    # so who gets them stays where he is, unless he asks by name.
    if head.at == AT_TIME:
        return True
    if head.at == AT_LIVE:
        return head.range != RANGE_FROM
    return (
        by_default and head.at == AT_NONE and head.method == METHOD_GET and not icy
        and head.range != RANGE_FROM and head.range != RANGE_PROBE
    )

cdef inline void anchor_probe(const begin_t* begin, uint8_t* out, uint32_t size) noexcept nogil:
    # The first bytes of the body that begins there; zeros beyond what is there.
    cdef uint64_t there
    cdef uint32_t used = min(begin.header_bytes, size)
    memset(out, 0, size)
    if begin.ring == NULL:
        return
    if used > 0:
        memcpy(out, begin.header, used)
    there = min(load_u64(&begin.ring.head_position) - begin.position, <uint64_t>(size - used))
    if there > 0:
        memcpy(out + used, ring_at(begin.ring, begin.position), there)
        if ring_was_overtaken(begin.ring, begin.position):
            memset(out + used, 0, there)

cdef inline uint32_t place_write(
    char* out, uint32_t room, const begin_t* begin
) noexcept nogil:
    # at=EPOCH.POSITION, and .HEADER where there are header pages; 0: no room.
    cdef int size
    if begin.header_all_bytes > 0:
        size = snprintf(out, room, b"at=%llu.%llu.%u", <unsigned long long>begin.ring.epoch,
                        <unsigned long long>begin.position, begin.header_all_bytes)
    else:
        size = snprintf(out, room, b"at=%llu.%llu", <unsigned long long>begin.ring.epoch,
                        <unsigned long long>begin.position)
    return <uint32_t>size if 0 < size < <int>room else 0

cdef inline uint32_t anchor_location(
    char* out, uint32_t room, const head_t* head, const begin_t* begin
) noexcept nogil:
    # Path and query as they came, with this place for any other; relative, so that it holds behind
    # any address. 0: it does not fit, or must not be repeated in a reply.
    cdef const uint8_t* target = head.target
    cdef uint32_t size = head.target_bytes
    cdef uint32_t used = 0
    cdef uint32_t i = 0
    cdef uint32_t end
    cdef uint32_t place_bytes
    if size == 0 or target[0] != 47 or size + PLACE_TEXT_BYTES_MAX > room:
        return 0
    for i in range(size):
        if target[i] <= 32 or target[i] >= 127:
            return 0          # RFC 3986 §2: nothing of the kind belongs in a location
    if size > 1 and (target[1] == 47 or target[1] == 92):
        memcpy(out, b"/.", 2)     # //x would be another host
        used = 2
    i = 0
    while i < size and target[i] != 63:
        out[used] = <char>target[i]
        used += 1
        i += 1
    out[used] = 63
    used += 1
    i += 1
    while i < size:
        end = param_end(target, size, i)
        if end > i and not param_is_at(target, i, end):
            memcpy(out + used, target + i, end - i)
            used += end - i
            out[used] = 38
            used += 1
        i = end + 1
    place_bytes = place_write(out + used, room - used, begin)
    return used + place_bytes if place_bytes > 0 else 0
