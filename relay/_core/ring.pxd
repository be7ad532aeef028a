# ring.pxd: the last seconds of one epoch of one stream: what it is, and how it is read.
#
# Rules of this room
#   1. One writer, many readers: the writer's functions are in ring_writer.pxd; any thread may call
#      these, inside a turn (retire.pxd) or holding a reference.
#   2. The head never passes a hole. Frames may lie ahead of it; it moves when they connect.
#   3. No torn frames: the writer stores reserved_position, copies, then stores head_position. A
#      reader re-checks reserved_position after its send or copy (ring_was_overtaken). The same
#      holds for the index: reserved_sequence, ring_entry_was_overtaken.
#   4. Memory: 1 × size_bytes + 32 B × frames_count + 4 KiB of marks + ≤ 8 titles × 8 KiB
#      + ≤ 4 headers × 1 MiB. The first three are mappings of the ring's own: what it
#      gives back goes to the system; no holes stay in the heap when thousands are fitted at once.
#   5. What a view shows stays as it is (ring_show): before the writer comes near it, its stream
#      goes on in another ring. granted_position is how far the writer may go without a look at
#      pinned_end: each side stores its own word, then a fence, then reads the other's.
#   6. This room does not know sockets, listeners, streams or time.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from relay._core.atomics cimport (
    fence, fence_acquire, load_pointer, load_u64, load_u64_relaxed, store_u64, sub_u32,
)
from relay._core.frames_state cimport FRAME_START
from relay._core.icy cimport ICY_BLOCK_BYTES_MAX
from relay._core.marks cimport marks_t
from relay._core.retire cimport retire_later, retire_t

cdef extern from "mirror.h" nogil:
    uint8_t* mirror_open(uint64_t size_bytes)
    void mirror_close(uint8_t* run, uint64_t size_bytes)
    uint64_t page_bytes()
    void* zeroed_open(uint64_t size_bytes)
    void zeroed_close(void* run, uint64_t size_bytes)

cdef extern from "slots.h" nogil:
    uint64_t slot_inverse(uint64_t count)
    uint64_t slot_of(uint64_t number, uint64_t count, uint64_t inverse)

cdef enum:
    # carries no audio: its payload is a title, its place in the order is exact
    FRAME_TITLE = 8
    FRAME_PRESENT = 0x80000000  # internal: this index entry is filled (never on the wire)

cdef enum:
    RING_TITLES = 8
    RING_HEADERS = 4
    RING_HOLES = 8
    TITLE_BYTES_MAX = 4080    # one ICY block: 255 × 16
    HEADER_BYTES_MAX = 1 << 20
    RING_FRAMES_MAX = 1 << 20
    SHOW_TRIES = 8

cdef extern from *:
    """
    #define RELAY_RING_BYTES_MAX ((uint64_t)1 << 40)
    #define RELAY_RING_NUMBER_MAX ((uint64_t)1 << 62)
    """
    const uint64_t RING_BYTES_MAX "RELAY_RING_BYTES_MAX"
    # Sequences, positions and media times end here, so that sums of two never overflow.
    const uint64_t RING_NUMBER_MAX "RELAY_RING_NUMBER_MAX"
    const uint64_t NOTHING_PINNED "UINT64_MAX"

cdef enum:  # what ring_place answers
    PLACED = 1
    DUPLICATE = 0             # already here, or once was
    PLACE_FAR = -1            # further ahead (or back) than the ring can hold
    PLACE_BAD = -2            # contradicts what is here: size, position or sequence are wrong
    PLACE_NO_MEMORY = -3

cdef struct frame_t:          # 32 bytes
    uint64_t position         # of its first byte
    int64_t media_us          # media time at its begin, from the epoch's begin
    uint32_t size_bytes
    uint32_t duration_us
    uint32_t flags
    uint32_t tag              # the low half of its sequence: tells whose entry this is

cdef struct hole_t:           # a lost run: [from_position, to_position) was never here
    uint64_t from_position
    uint64_t to_position
    uint64_t to_sequence      # the first frame after it

cdef struct title_t:          # immutable once published
    uint64_t sequence
    uint64_t position         # listeners whose cursor has reached it get it
    uint32_t size_bytes
    uint32_t block_bytes      # the same as an ICY block, ready to be sent
    uint8_t bytes[TITLE_BYTES_MAX]
    uint8_t block[ICY_BLOCK_BYTES_MAX]

cdef struct header_t:         # immutable once published
    uint64_t end_sequence     # frames from here on need this header
    uint32_t size_bytes
    uint8_t bytes[1]          # size_bytes of them

cdef struct ring_t:
    # fixed at ring_open; read by all
    uint8_t* bytes            # mapped twice in a row, size_bytes each; owned
    uint64_t size_bytes       # a multiple of the page size
    uint64_t guard_bytes      # readers do not begin in the last guard before the writer
    frame_t* frames           # index; behind this struct, in the same mapping
    uint64_t frames_count     # places of the index
    uint64_t frames_inverse   # of frames_count (slots.h)
    uint64_t epoch            # ms
    retire_t* retire          # borrowed
    # published by the writer, in this order around each copy
    uint64_t reserved_position  # end of the last byte that is, or is being, written
    uint64_t reserved_sequence  # the same for index entries
    uint64_t head_sequence      # of the next frame; all before it is whole
    uint64_t head_position      # byte after the last whole frame
    uint64_t head_media_us
    uint64_t base_sequence      # the oldest frame held; moves back by repair,
    uint64_t base_position      # and forward only when a lost run is forgotten
    hole_t holes[RING_HOLES]    # the newest lost runs; slot = holes_total % RING_HOLES; a slot is
                                # reused only after the base was raised past what it said
    uint64_t holes_total
    uint64_t holes_end_position  # readers at or past it need not look for holes
    title_t* titles[RING_TITLES]
    uint64_t titles_total
    header_t* headers[RING_HEADERS]
    uint64_t headers_total
    uint64_t granted_position   # writes end here or before, until the writer has looked at …
    uint64_t pinned_end         # … where the next byte would be one that a view shows
    uint32_t views              # that show it; changed with the GIL held
    # the writer's own
    uint8_t* header_bytes     # the header being collected
    uint32_t header_size_bytes
    bint header_open
    uint64_t frame_bytes_max  # the largest frame so far
    # life
    # the stream's one and one for each cursor in it; at 0 `next` is let go
    uint32_t refs
    uint32_t pins             # one for all refs together, one for each view; at 0 it is retired
    uint32_t superseded       # 1: `next` is set; cursors that reached this head go on there
    ring_t* next              # holds one reference on it
    marks_t marks             # when which byte became readable; owner: the writer

cdef inline uint64_t ring_head_bytes() noexcept nogil:
    # Of this struct, up to where the index begins: entries do not lie across cache lines.
    return (sizeof(ring_t) + 63) // 64 * 64

cdef inline uint64_t whole_pages(uint64_t size_bytes) noexcept nogil:
    cdef uint64_t page = page_bytes()
    return (size_bytes + page - 1) // page * page

cdef inline ring_t* ring_open(
    uint64_t size_bytes, uint64_t frames_count, uint64_t epoch, uint64_t sequence,
    uint64_t position,
    uint64_t media_us, retire_t* retire,
) noexcept nogil:
    # An empty ring whose first frame will be (sequence, position); NULL: no memory, or out of
    # bounds.
    cdef ring_t* ring
    if (
        size_bytes == 0 or size_bytes > RING_BYTES_MAX
        or frames_count == 0 or frames_count > RING_FRAMES_MAX
        or sequence > RING_NUMBER_MAX or position > RING_NUMBER_MAX or media_us > RING_NUMBER_MAX
    ):
        return NULL
    ring = <ring_t*>zeroed_open(ring_head_bytes() + frames_count * sizeof(frame_t))
    if ring == NULL:
        return NULL
    ring.size_bytes = whole_pages(size_bytes)
    ring.guard_bytes = ring.size_bytes // 5
    ring.frames_count = frames_count
    ring.frames_inverse = slot_inverse(frames_count)
    ring.frames = <frame_t*>(<uint8_t*>ring + ring_head_bytes())
    ring.bytes = mirror_open(ring.size_bytes)
    if ring.bytes == NULL:
        zeroed_close(ring, ring_head_bytes() + frames_count * sizeof(frame_t))
        return NULL
    ring.epoch = epoch
    ring.retire = retire
    ring.reserved_position = ring.head_position = ring.base_position = position
    ring.reserved_sequence = ring.head_sequence = ring.base_sequence = sequence
    ring.head_media_us = media_us
    ring.granted_position = position
    ring.pinned_end = NOTHING_PINNED
    ring.refs = 1
    ring.pins = 1
    return ring

cdef inline void ring_close(void* thing) noexcept nogil:
    cdef ring_t* ring = <ring_t*>thing
    cdef int i
    for i in range(RING_TITLES):
        free(ring.titles[i])
    for i in range(RING_HEADERS):
        free(ring.headers[i])
    free(ring.header_bytes)
    mirror_close(ring.bytes, ring.size_bytes)
    zeroed_close(ring, ring_head_bytes() + ring.frames_count * sizeof(frame_t))

cdef inline void ring_unpin(ring_t* ring) noexcept nogil:
    # A view pins the bytes alone: it does not hold back the rings that come after.
    if sub_u32(&ring.pins, 1) == 0:
        retire_later(ring.retire, ring, ring_close)

# --- readers -------------------------------------------------------------------------------------

cdef inline frame_t* ring_entry(ring_t* ring, uint64_t sequence) noexcept nogil:
    return &ring.frames[slot_of(sequence, ring.frames_count, ring.frames_inverse)]

cdef inline bint ring_has(ring_t* ring, uint64_t sequence) noexcept nogil:
    # Writer only: is this very frame in its slot?
    cdef frame_t* frame = ring_entry(ring, sequence)
    return frame.flags & FRAME_PRESENT != 0 and frame.tag == <uint32_t>sequence

cdef inline uint64_t audio_bytes(frame_t* frame) noexcept nogil:
    return 0 if frame.flags & FRAME_TITLE else frame.size_bytes

cdef inline const uint8_t* ring_at(ring_t* ring, uint64_t position) noexcept nogil:
    return ring.bytes + position % ring.size_bytes

cdef inline bint ring_was_overtaken(ring_t* ring, uint64_t position) noexcept nogil:
    # After a send or copy that began at position: were these bytes being overwritten meanwhile?
    fence_acquire()
    return load_u64_relaxed(&ring.reserved_position) > position + ring.size_bytes

cdef inline bint ring_entry_was_overtaken(ring_t* ring, uint64_t sequence) noexcept nogil:
    fence_acquire()
    return load_u64_relaxed(&ring.reserved_sequence) > sequence + ring.frames_count

cdef inline uint64_t ring_run_begin(ring_t* ring, uint64_t head_position) noexcept nogil:
    # Where the frames that may be read begin, behind the newest lost run; the head if there are
    # none.
    cdef frame_t frame
    cdef uint64_t begin = head_position
    cdef uint64_t behind
    if ring_read_entry(ring, ring_tail_sequence(ring), &frame) and frame.position < head_position:
        begin = frame.position
    behind = load_u64(&ring.holes_end_position)
    return behind if begin < behind <= head_position else begin

cdef inline bint ring_show(ring_t* ring, uint64_t* position, uint64_t* end_position) noexcept nogil:
    # Finds what may be read, and pins it: until ring_hide these bytes stay as they are. False: the
    # writer is too quick. (One that sees a pin that is taken back has gone on in another ring.)
    cdef uint64_t pinned_end = ring.pinned_end
    cdef uint64_t pin
    for _ in range(SHOW_TRIES):
        end_position[0] = load_u64(&ring.head_position)
        position[0] = ring_run_begin(ring, end_position[0])
        pin = position[0] + ring.size_bytes
        store_u64(&ring.pinned_end, pin if pin < pinned_end else pinned_end)
        fence()
        # a run that was lost meanwhile could lie behind one that is in it
        if load_u64(&ring.granted_position) <= pin and (
            load_u64(&ring.holes_end_position) <= end_position[0]
        ):
            ring.views += 1
            return True
    store_u64(&ring.pinned_end, pinned_end)
    return False

cdef inline void ring_hide(ring_t* ring) noexcept nogil:
    # A view is over; what the last one showed may be overwritten.
    ring.views -= 1
    if ring.views == 0:
        store_u64(&ring.pinned_end, NOTHING_PINNED)

cdef inline uint64_t ring_tail_position(ring_t* ring) noexcept nogil:
    # The oldest byte at which a reader may begin: base, or a guard away from the writer.
    cdef uint64_t reserved = load_u64(&ring.reserved_position)
    cdef uint64_t base = load_u64(&ring.base_position)
    cdef uint64_t reach = ring.size_bytes - ring.guard_bytes
    cdef uint64_t tail = reserved - reach if reserved > reach else 0
    return tail if tail > base else base

cdef inline uint64_t ring_tail_sequence(ring_t* ring) noexcept nogil:
    # The oldest frame whose index entry and bytes may both be read.
    cdef uint64_t reserved = load_u64(&ring.reserved_sequence)
    cdef uint64_t low = load_u64(&ring.base_sequence)
    cdef uint64_t high = load_u64(&ring.head_sequence)
    cdef uint64_t reach = ring.frames_count - ring.frames_count // 8
    cdef uint64_t tail_position = ring_tail_position(ring)
    cdef uint64_t middle
    if reserved > reach and reserved - reach > low:
        low = reserved - reach
    while low < high:
        middle = ring_probe(ring, low, low + (high - low) // 2)
        if ring_has(ring, middle) and ring_entry(ring, middle).position >= tail_position:
            high = middle
        else:
            low = middle + 1 if ring_has(ring, middle) else low + (high - low) // 2 + 1
    return low if low < high else high

cdef inline uint64_t ring_probe(ring_t* ring, uint64_t low, uint64_t middle) noexcept nogil:
    # The nearest frame at or before middle that is here (lost runs have no entries), not below low.
    while middle > low and not ring_has(ring, middle):
        middle -= 1
    return middle

cdef inline bint ring_read_entry(ring_t* ring, uint64_t sequence, frame_t* out) noexcept nogil:
    # Copies one index entry, verified; False: lost, or overwritten.
    memcpy(out, ring_entry(ring, sequence), sizeof(frame_t))
    return (
        out.tag == <uint32_t>sequence and out.flags & FRAME_PRESENT != 0
        and not ring_entry_was_overtaken(ring, sequence)
    )

cdef inline uint64_t ring_search(ring_t* ring, uint64_t wanted, bint by_time) noexcept nogil:
    # The first frame that ends behind this position, or media time. Binary search over the readable
    # run: O(log frames).
    cdef uint64_t low = ring_tail_sequence(ring)
    cdef uint64_t high = load_u64(&ring.head_sequence)
    cdef uint64_t half
    cdef uint64_t middle
    cdef uint64_t end
    cdef frame_t* frame
    while low < high:
        half = low + (high - low) // 2
        middle = ring_probe(ring, low, half)
        frame = ring_entry(ring, middle)
        if by_time:
            end = <uint64_t>frame.media_us + frame.duration_us
        else:
            end = frame.position + audio_bytes(frame)
        if ring_has(ring, middle) and end > wanted:
            high = middle
        else:
            low = half + 1
    return low

cdef inline uint64_t ring_sequence_at(ring_t* ring, uint64_t position) noexcept nogil:
    # The frame that holds this position (the head's sequence if it lies at or past the head; the
    # tail's if before it).
    return ring_search(ring, position, False)

cdef inline uint64_t ring_sequence_at_time(ring_t* ring, uint64_t media_us) noexcept nogil:
    # Likewise the frame that plays at this media time.
    return ring_search(ring, media_us, True)

cdef inline uint64_t ring_burst_sequence(ring_t* ring, uint64_t burst_us) noexcept nogil:
    # Where a new listener begins: the oldest start that is at most burst_us of media behind the
    # head (else the newest start before that), not before the tail and not across a hole. The
    # head's sequence if there is none yet.
    cdef uint64_t head = load_u64(&ring.head_sequence)
    cdef uint64_t tail = ring_tail_sequence(ring)
    cdef uint64_t head_media_us = load_u64(&ring.head_media_us)
    cdef uint64_t found = head
    cdef uint64_t sequence = head
    cdef frame_t frame
    while sequence > tail:
        sequence -= 1
        if not ring_read_entry(ring, sequence, &frame):
            break
        if head_media_us - <uint64_t>frame.media_us > burst_us and found != head:
            break
        if frame.flags & FRAME_START:
            found = sequence
    return found

cdef inline uint64_t ring_start_after(ring_t* ring, uint64_t position) noexcept nogil:
    # The first start at or after this position: where a skip lands. The head's sequence if none.
    cdef uint64_t sequence = ring_sequence_at(ring, position)
    cdef uint64_t head = load_u64(&ring.head_sequence)
    cdef frame_t frame
    while sequence < head:
        if (
            ring_read_entry(ring, sequence, &frame) and frame.flags & FRAME_START
            and frame.position >= position
        ):
            return sequence
        sequence += 1
    return head

cdef inline uint64_t ring_readable_end(ring_t* ring, uint64_t position) noexcept nogil:
    # How far a reader at position may go on without a break: the head, or the next lost run. Equal
    # to position when a lost run (or nothing yet) is right there.
    cdef uint64_t head = load_u64(&ring.head_position)
    cdef uint64_t end = head
    cdef uint64_t begin
    cdef int i
    if position >= load_u64(&ring.holes_end_position):
        return head if head > position else position
    for i in range(RING_HOLES):
        begin = load_u64_relaxed(&ring.holes[i].from_position)
        if load_u64_relaxed(&ring.holes[i].to_position) > position and begin < end:
            end = begin
    fence_acquire()     # a slot that was reused meanwhile shows in the base, which was raised first
    if load_u64_relaxed(&ring.base_position) > position:
        return position
    return end if end > position else position

cdef inline header_t* ring_header(ring_t* ring, uint64_t sequence) noexcept nogil:
    # The header that a reader beginning at this frame needs first; NULL: none. Valid in this turn.
    cdef header_t* best = NULL
    cdef header_t* header
    cdef int i
    for i in range(RING_HEADERS):
        header = <header_t*>load_pointer(<void**>&ring.headers[i])
        if header != NULL and header.end_sequence <= sequence:
            if best == NULL or header.end_sequence > best.end_sequence:
                best = header
    return best

cdef inline title_t* ring_title(ring_t* ring, uint64_t position) noexcept nogil:
    # The title in force at a cursor; NULL: none. Valid in this turn.
    cdef title_t* best = NULL
    cdef title_t* title
    cdef int i
    for i in range(RING_TITLES):
        title = <title_t*>load_pointer(<void**>&ring.titles[i])
        if title != NULL and title.position <= position:
            if best == NULL or title.sequence > best.sequence:
                best = title
    return best
