# ring_writer.pxd: how the one writer of a ring changes it.
#
# Rules of this room
#   1. Only the stream's writer calls here.
#   2. Reserve, copy, index, publish, in this order (ring_write, ring_advance; ring_place_run for
#      many frames at once): what readers rely on is in ring.pxd, rule 3.
#   3. The head moves over what connects, or over a lost run by ring_give_up; nothing else moves it.
#   4. No allocation after ring_open, except for titles and headers, which change a few times an
#      hour, and for a new size.
#   5. Before a stream writes beyond granted_position it asks ring_is_shown, and goes on in another
#      ring if it can.
#   6. What comes from a wire is bounded before use (RING_NUMBER_MAX, FRAME_BYTES_MAX) and refused
#      when it contradicts its neighbours.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from relay._core.atomics cimport (
    fence, fence_release, load_u64, store_pointer, store_u64, store_u64_relaxed,
)
from relay._core.frames_state cimport FRAME_BYTES_MAX, FRAME_CHAIN, FRAME_HEADER, FRAME_START
from relay._core.icy cimport icy_block
from relay._core.retire cimport retire_later
from relay._core.ring cimport (
    DUPLICATE, FRAME_PRESENT, FRAME_TITLE, HEADER_BYTES_MAX, PLACED, PLACE_BAD, PLACE_FAR,
    RING_HEADERS, RING_HOLES, RING_NUMBER_MAX, RING_TITLES, TITLE_BYTES_MAX, audio_bytes, frame_t,
    header_t, hole_t, ring_at, ring_entry, ring_has, ring_open, ring_readable_end, ring_t,
    ring_tail_sequence, title_t,
)

cdef inline void release_plain(void* thing) noexcept nogil:
    free(thing)

cdef inline bint ring_is_shown(
    ring_t* ring, uint64_t position, uint64_t end_position
) noexcept nogil:
    # Would a writer that goes on from here to there come near what a view shows? Half a guard is
    # granted, while that is away from it.
    cdef uint64_t granted = position + ring.guard_bytes // 2
    if granted < end_position:
        granted = end_position
    store_u64(&ring.granted_position, granted)
    fence()
    if granted <= load_u64(&ring.pinned_end):
        return False
    store_u64(&ring.granted_position, end_position)
    return True

cdef inline void ring_set_header(
    ring_t* ring, const uint8_t* bytes, uint32_t size_bytes, uint64_t end_sequence
) noexcept nogil:
    # Publishes a complete header; the oldest of RING_HEADERS makes room.
    cdef int slot = <int>(ring.headers_total % RING_HEADERS)
    cdef header_t* header = <header_t*>malloc(sizeof(header_t) + size_bytes)
    cdef header_t* old = ring.headers[slot]
    if header == NULL:
        return
    header.end_sequence = end_sequence
    header.size_bytes = size_bytes
    memcpy(header.bytes, bytes, size_bytes)
    store_pointer(<void**>&ring.headers[slot], header)
    ring.headers_total += 1
    retire_later(ring.retire, old, release_plain)

cdef inline void ring_set_title(
    ring_t* ring, const uint8_t* bytes, uint32_t size_bytes, uint64_t sequence, uint64_t position
) noexcept nogil:
    # Publishes a title; the one with the lowest sequence makes room (a repair may bring that very
    # one).
    cdef int slot = 0
    cdef int i
    cdef title_t* old
    cdef title_t* title
    for i in range(RING_TITLES):
        if ring.titles[i] == NULL:
            slot = i
            break
        if ring.titles[i].sequence < ring.titles[slot].sequence:
            slot = i
    old = ring.titles[slot]
    if old != NULL and old.sequence > sequence:
        return
    title = <title_t*>malloc(sizeof(title_t))
    if title == NULL:
        return
    title.sequence = sequence
    title.position = position
    title.size_bytes = size_bytes if size_bytes <= TITLE_BYTES_MAX else TITLE_BYTES_MAX
    memcpy(title.bytes, bytes, title.size_bytes)
    title.block_bytes = icy_block(title.bytes, title.size_bytes, title.block)
    store_pointer(<void**>&ring.titles[slot], title)
    ring.titles_total += 1
    retire_later(ring.retire, old, release_plain)

cdef inline void ring_collect_header(
    ring_t* ring, frame_t* frame, uint64_t sequence,
) noexcept nogil:
    # Header pages are kept as the head passes them; the first other frame completes the header.
    cdef uint8_t* grown
    if frame.flags & FRAME_HEADER:
        if frame.flags & FRAME_CHAIN:
            ring.header_size_bytes = 0
            ring.header_open = True
        if not ring.header_open:
            return
        grown = NULL
        if ring.header_size_bytes + frame.size_bytes <= HEADER_BYTES_MAX:
            grown = <uint8_t*>realloc(ring.header_bytes, ring.header_size_bytes + frame.size_bytes)
        if grown == NULL:
            ring.header_open = False    # a header with a page missing is worse than none
            return
        ring.header_bytes = grown
        memcpy(grown + ring.header_size_bytes, ring_at(ring, frame.position), frame.size_bytes)
        ring.header_size_bytes += frame.size_bytes
    elif ring.header_open and not frame.flags & FRAME_TITLE:
        ring_set_header(ring, ring.header_bytes, ring.header_size_bytes, sequence)
        ring.header_open = False

cdef inline void ring_advance(ring_t* ring) noexcept nogil:
    # Moves the head over all frames that now connect to it.
    cdef uint64_t sequence = ring.head_sequence
    cdef uint64_t position = ring.head_position
    cdef uint64_t media_us = ring.head_media_us
    cdef frame_t* frame
    while ring_has(ring, sequence):
        frame = ring_entry(ring, sequence)
        if frame.position != position:
            break
        if frame.flags & (FRAME_HEADER | FRAME_TITLE) or ring.header_open:
            ring_collect_header(ring, frame, sequence)
        position += audio_bytes(frame)
        media_us = <uint64_t>frame.media_us + frame.duration_us
        sequence += 1
    assert position <= ring.reserved_position and sequence <= ring.reserved_sequence
    if sequence != ring.head_sequence:
        store_u64(&ring.head_media_us, media_us)
        store_u64(&ring.head_sequence, sequence)
        store_u64(&ring.head_position, position)

cdef inline void ring_write(
    ring_t* ring, uint64_t sequence, uint64_t position, uint64_t media_us, const uint8_t* bytes,
    uint32_t size_bytes, uint32_t duration_us, uint32_t flags,
) noexcept nogil:
    # Reserve, copy, index. Long frames go in pieces, so that what is reserved but not yet written
    # never exceeds a quarter of the guard.
    cdef frame_t* frame = ring_entry(ring, sequence)
    cdef uint64_t piece_bytes_max = ring.guard_bytes // 4
    cdef uint64_t done = 0
    cdef uint64_t piece
    if sequence >= ring.reserved_sequence:
        store_u64_relaxed(&ring.reserved_sequence, sequence + 1)
    if flags & FRAME_TITLE:
        if position > ring.reserved_position:   # the head may come to stand here
            store_u64_relaxed(&ring.reserved_position, position)
        fence_release()
        ring_set_title(ring, bytes, size_bytes, sequence, position)
    else:
        while done < size_bytes:
            piece = size_bytes - done if size_bytes - done < piece_bytes_max else piece_bytes_max
            if position + done + piece > ring.reserved_position:
                store_u64_relaxed(&ring.reserved_position, position + done + piece)
            fence_release()  # readers see the reservation before any byte of it changes
            assert piece > 0 and (position + done) % ring.size_bytes + piece <= 2 * ring.size_bytes
            memcpy(ring.bytes + (position + done) % ring.size_bytes, bytes + done, piece)
            done += piece
        if size_bytes > ring.frame_bytes_max:
            ring.frame_bytes_max = size_bytes
    frame.position = position
    frame.media_us = <int64_t>media_us
    frame.size_bytes = size_bytes
    frame.duration_us = duration_us
    frame.tag = <uint32_t>sequence
    frame.flags = flags | FRAME_PRESENT

cdef inline bint ring_neighbours_agree(
    ring_t* ring, uint64_t sequence, uint64_t position, uint64_t end_position
) noexcept nogil:
    # A frame placed away from the head must connect to those beside it that are already here.
    cdef frame_t* frame
    if sequence > 0 and ring_has(ring, sequence - 1):
        frame = ring_entry(ring, sequence - 1)
        if frame.position + audio_bytes(frame) != position:
            return False
    if ring_has(ring, sequence + 1) and ring_entry(ring, sequence + 1).position != end_position:
        return False
    return True

cdef inline int ring_place_back(
    ring_t* ring, uint64_t sequence, uint64_t position, uint64_t media_us, const uint8_t* bytes,
    uint32_t size_bytes, uint32_t duration_us, uint32_t flags,
) noexcept nogil:
    # A repair of what lies before the base (a relay that restarted empty fetches its tail).
    cdef uint64_t end_position = position + (0 if flags & FRAME_TITLE else size_bytes)
    cdef uint64_t reach = ring.size_bytes - ring.guard_bytes
    cdef frame_t* frame
    if (
        ring.reserved_sequence - sequence > ring.frames_count - ring.frames_count // 8
        or ring.reserved_position - position > reach
    ):
        return PLACE_FAR
    if end_position > ring.base_position or not ring_neighbours_agree(
        ring, sequence, position, end_position
    ):
        return PLACE_BAD
    if ring_has(ring, sequence):
        return DUPLICATE
    ring_write(ring, sequence, position, media_us, bytes, size_bytes, duration_us, flags)
    while ring.base_sequence > 0 and ring_has(ring, ring.base_sequence - 1):
        frame = ring_entry(ring, ring.base_sequence - 1)
        if frame.position + audio_bytes(frame) != ring.base_position:
            break
        store_u64(&ring.base_position, frame.position)
        store_u64(&ring.base_sequence, ring.base_sequence - 1)
    return PLACED

cdef inline int ring_place(
    ring_t* ring, uint64_t sequence, uint64_t position, uint64_t media_us, const uint8_t* bytes,
    uint32_t size_bytes, uint32_t duration_us, uint32_t flags,
) noexcept nogil:
    # Puts one frame where it belongs: at the head, ahead of it, or before the base.
    cdef uint64_t end_position = position + (0 if flags & FRAME_TITLE else size_bytes)
    if size_bytes == 0 or size_bytes > FRAME_BYTES_MAX:
        return PLACE_BAD
    if sequence > RING_NUMBER_MAX or position > RING_NUMBER_MAX or media_us > RING_NUMBER_MAX:
        return PLACE_BAD
    if flags & FRAME_TITLE:     # its bytes are not in the ring: it is no header and no start
        if size_bytes > TITLE_BYTES_MAX or flags & (FRAME_START | FRAME_HEADER | FRAME_CHAIN):
            return PLACE_BAD
    elif size_bytes > ring.guard_bytes:
        return PLACE_FAR
    if sequence < ring.base_sequence:
        return ring_place_back(
            ring, sequence, position, media_us, bytes, size_bytes, duration_us, flags
        )
    if sequence < ring.head_sequence:
        return DUPLICATE
    if sequence == ring.head_sequence:
        if position != ring.head_position:
            return PLACE_BAD
    else:
        if (
            sequence - ring.head_sequence >= ring.frames_count // 2
            or position < ring.head_position
            or end_position - ring.head_position > (ring.size_bytes - ring.guard_bytes) // 2
        ):
            return PLACE_FAR if position >= ring.head_position else PLACE_BAD
        if ring_has(ring, sequence):
            return DUPLICATE
    if not ring_neighbours_agree(ring, sequence, position, end_position):
        return PLACE_BAD
    ring_write(ring, sequence, position, media_us, bytes, size_bytes, duration_us, flags)
    if sequence == ring.head_sequence:
        ring_advance(ring)
    return PLACED

cdef inline uint32_t ring_place_run(
    ring_t* ring, uint64_t sequence, uint64_t position, uint64_t media_us, const uint64_t* records,
    uint32_t count, const uint8_t* bytes,
) noexcept nogil:
    # The usual case of a hop: plain frames in a row, right at the head, nothing ahead of it. One
    # reservation, one copy, one publication for as many as a piece may hold; returns how many (0:
    # place the first by itself). A record is size (24 bits), flags (8), duration (32), from the
    # low end.
    cdef uint64_t bytes_max = ring.guard_bytes // 4
    cdef uint64_t frames_max = ring.frames_count // 32
    cdef uint64_t run_bytes = 0
    cdef uint64_t size
    cdef uint32_t frames = 0
    cdef uint32_t i
    cdef frame_t* frame
    if (
        sequence != ring.head_sequence or position != ring.head_position
        or ring.reserved_sequence != sequence or ring.header_open
        or sequence > RING_NUMBER_MAX - frames_max or position > RING_NUMBER_MAX - bytes_max
        or media_us > RING_NUMBER_MAX - (frames_max << 32)
    ):
        return 0
    while frames < count and frames < frames_max:
        size = records[frames] & 0xFFFFFF
        if records[frames] >> 24 & (FRAME_HEADER | FRAME_TITLE) or (
            size == 0 or size > FRAME_BYTES_MAX or run_bytes + size > bytes_max
        ):
            break
        run_bytes += size
        frames += 1
    if frames == 0:
        return 0
    store_u64_relaxed(&ring.reserved_sequence, sequence + frames)
    store_u64_relaxed(&ring.reserved_position, position + run_bytes)
    fence_release()     # readers see the reservation before any byte of it changes
    memcpy(ring.bytes + position % ring.size_bytes, bytes, run_bytes)
    for i in range(frames):
        size = records[i] & 0xFFFFFF
        frame = ring_entry(ring, sequence + i)
        frame.position = position
        frame.media_us = <int64_t>media_us
        frame.size_bytes = <uint32_t>size
        frame.duration_us = <uint32_t>(records[i] >> 32)
        frame.tag = <uint32_t>(sequence + i)
        frame.flags = <uint32_t>(records[i] >> 24 & 0xFF) | FRAME_PRESENT
        position += size
        media_us += records[i] >> 32
        if size > ring.frame_bytes_max:
            ring.frame_bytes_max = size
    store_u64(&ring.head_media_us, media_us)
    store_u64(&ring.head_sequence, sequence + frames)
    store_u64(&ring.head_position, position)
    return frames

cdef inline int ring_push(
    ring_t* ring, const uint8_t* bytes, uint32_t size_bytes, uint32_t duration_us, uint32_t flags
) noexcept nogil:
    # The source's way: the next frame, at the head.
    return ring_place(
        ring, ring.head_sequence, ring.head_position, ring.head_media_us, bytes, size_bytes,
        duration_us, flags,
    )

cdef inline uint64_t ring_hole_end_sequence(ring_t* ring) noexcept nogil:
    # The first frame that is here beyond the hole at the head; head_sequence when there is no hole.
    # One that claims a position before the head lies: it counts as not here.
    cdef uint64_t sequence = ring.head_sequence
    while sequence < ring.reserved_sequence and not (
        ring_has(ring, sequence) and ring_entry(ring, sequence).position >= ring.head_position
    ):
        sequence += 1
    return sequence if sequence < ring.reserved_sequence else ring.head_sequence

cdef inline uint64_t ring_give_up(ring_t* ring) noexcept nogil:
    # The hole at the head will never be filled: it is recorded, and the head jumps over it. Returns
    # the number of frames lost.
    cdef uint64_t sequence = ring_hole_end_sequence(ring)
    cdef uint64_t lost = sequence - ring.head_sequence
    cdef uint64_t i
    cdef frame_t* frame = ring_entry(ring, sequence)
    if lost == 0:
        return 0
    for i in range(lost):   # lost sequences have no entries, not even after 2^32 frames
        ring_entry(ring, ring.head_sequence + i).flags = 0
    ring_add_hole(ring, ring.head_position, frame.position, sequence)
    ring.header_open = False
    store_u64(&ring.head_media_us, <uint64_t>frame.media_us)
    store_u64(&ring.head_sequence, sequence)
    store_u64(&ring.head_position, frame.position)
    ring_advance(ring)
    return lost

cdef inline void ring_add_hole(
    ring_t* ring, uint64_t from_position, uint64_t to_position, uint64_t to_sequence
) noexcept nogil:
    # Records a lost run. The one that it replaces is forgotten: nobody may read through it, so
    # first all before it goes out of reach (ring_readable_end looks at the base last).
    cdef hole_t* hole = &ring.holes[ring.holes_total % RING_HOLES]
    if hole.to_position > ring.base_position:
        store_u64(&ring.base_sequence, hole.to_sequence)
        store_u64(&ring.base_position, hole.to_position)
    fence_release()
    store_u64_relaxed(&hole.from_position, from_position)
    store_u64_relaxed(&hole.to_position, to_position)
    hole.to_sequence = to_sequence
    ring.holes_total += 1
    store_u64(&ring.holes_end_position, to_position)

# --- resizing: a new ring with the same positions -------------------------------------------------

cdef inline ring_t* ring_resized(
    ring_t* old, uint64_t size_bytes, uint64_t frames_count,
) noexcept nogil:
    # A copy of the newest frames in a ring of another size; NULL: no memory, or frames lie ahead
    # of a hole (the writer tries again later). The caller links it: old.next, the stream. A header
    # that is being collected moves to it.
    cdef ring_t* ring
    cdef frame_t* frame
    cdef header_t* header
    cdef uint64_t sequence
    cdef int i
    if old.reserved_sequence != old.head_sequence:
        return NULL
    sequence = ring_tail_sequence(old)
    while sequence < old.head_sequence and (
        not ring_has(old, sequence)     # a lost run is no place to begin
        or old.head_position - ring_entry(old, sequence).position > (size_bytes - size_bytes // 5)
        or old.head_sequence - sequence > frames_count - frames_count // 8
    ):
        sequence += 1
    frame = ring_entry(old, sequence)
    if sequence == old.head_sequence:
        ring = ring_open(size_bytes, frames_count, old.epoch, sequence, old.head_position,
                         old.head_media_us, old.retire)
    else:
        ring = ring_open(size_bytes, frames_count, old.epoch, sequence, frame.position,
                         <uint64_t>frame.media_us, old.retire)
    if ring == NULL:
        return NULL
    ring.holes_total = old.holes_total
    ring.holes_end_position = old.holes_end_position
    memcpy(ring.holes, old.holes, sizeof(old.holes))
    ring.marks = old.marks
    while sequence < old.head_sequence:
        if not ring_has(old, sequence):     # a lost run stays one
            sequence += 1
            continue
        frame = ring_entry(old, sequence)
        ring_copy_entry(ring, old, sequence, frame)
        sequence += 1
    ring.head_sequence = old.head_sequence
    ring.head_position = old.head_position
    ring.head_media_us = old.head_media_us
    for i in range(RING_TITLES):
        if old.titles[i] != NULL:
            ring_set_title(ring, old.titles[i].bytes, old.titles[i].size_bytes,
                           old.titles[i].sequence, old.titles[i].position)
    for i in range(RING_HEADERS):       # the oldest first: it is the next to make room
        header = old.headers[(old.headers_total + i) % RING_HEADERS]
        if header != NULL:
            ring_set_header(ring, header.bytes, header.size_bytes, header.end_sequence)
    ring.header_bytes = old.header_bytes
    ring.header_size_bytes = old.header_size_bytes
    ring.header_open = old.header_open
    old.header_bytes = NULL
    old.header_open = False
    return ring

cdef inline void ring_copy_entry(
    ring_t* ring, ring_t* old, uint64_t sequence, frame_t* frame
) noexcept nogil:
    if not frame.flags & FRAME_TITLE:
        ring_write(ring, sequence, frame.position, <uint64_t>frame.media_us,
                   ring_at(old, frame.position), frame.size_bytes, frame.duration_us, frame.flags)
    else:
        memcpy(ring_entry(ring, sequence), frame, sizeof(frame_t))
        ring.reserved_sequence = sequence + 1
