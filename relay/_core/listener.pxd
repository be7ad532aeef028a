# listener.pxd: one listener: where it is in which ring, and what goes out to it next.
#
# Rules of this room
#   1. Only the listener's shard calls here, inside its turn. Nothing waits; sends never block.
#   2. Audio goes straight out of the ring (an intro out of its file's memory); response heads,
#      header pages and ICY blocks straight out of theirs. Only what a short write leaves of the
#      latter is copied (`rest`), at most once each; and header pages that blocks go between.
#   3. After each send the ring is asked whether it overtook the bytes; then the listener is ended.
#   4. A listener is spliced only at frame boundaries and goes on only at a `start`.
#      Which stream it hears (its own, or a fallback) is fallback_move.pxd's to say.
#   5. Answers what is to be done with the listener; the shard does it.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from relay._core.anchor cimport begin_t
from relay._core.atomics cimport add_u32, load_u32, load_u64, sub_u32
from relay._core.fallback cimport FALLBACK_MEMBERS
from relay._core.icy cimport ICY_METAINT
from relay._core.intro cimport intro_t
from relay._core.ring cimport (
    audio_bytes, frame_t, header_t, ring_at, ring_burst_sequence, ring_header, ring_read_entry,
    ring_readable_end, ring_sequence_at, ring_start_after, ring_t, ring_tail_position,
    ring_tail_sequence, ring_title, ring_was_overtaken, title_t,
)
from relay._core.stream cimport (
    RINGS_MAX, info_t, stream_drop, stream_ring_drop, stream_ring_take, stream_t,
)

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    ssize_t send(int fd, const void* bytes, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int MSG_EOR

cdef extern from "<errno.h>" nogil:
    int errno
    int EAGAIN, EINTR, EMFILE, ENFILE, ETIMEDOUT

cdef enum:
    PARTS_MAX = 8
    SEND_BYTES_MAX = 28672    # a share of one turn; with DOOR_QUEUED_BYTES what a stalled one costs
    REST_BYTES_MAX = (1 << 20) + 16384

cdef extern from *:
    """
    #define RELAY_ICY_ANOTHER UINT64_MAX
    static const uint8_t relay_icy_no_title[17] = "\001StreamTitle='';";
    """
    # Of a listener's title: it is another stream's, and no longer true.
    const uint64_t ICY_ANOTHER "RELAY_ICY_ANOTHER"
    const uint8_t* ICY_NO_TITLE "relay_icy_no_title"

cdef enum:
    ICY_NO_TITLE_BYTES = 17

cdef enum:  # why a listener ended: index into the shard's counters
    END_NONE = 0
    END_CLOSED = 1            # it closed its end
    END_RESET = 2             # the connection broke
    END_STALLED = 3           # took nothing for stall_ms
    END_TORN = 4              # overtaken by the writer
    END_STREAM = 5            # the stream was closed
    END_GARBAGE = 6           # kept sending
    END_SHUTDOWN = 7
    END_MEMORY = 8
    END_KILLED = 9            # an administrator wanted it
    END_REASONS = 10

cdef enum:  # state of a record
    FREE = 0
    HEAD = 1                  # its request head is not whole yet
    PARKED = 2                # waits up to join_wait_ms for its stream
    FLOWING = 3
    PARTING = 4               # has been answered; its close is awaited for a second

cdef struct listener_t:       # ≤ 256 B; owner: the shard
    int fd
    uint8_t state
    uint8_t pace              # its own, in slots of the wheel
    uint8_t anchored          # it named its place: what was old then is no lag of its own
    uint8_t leaving           # `skipping` is for a move to another stream
    uint8_t moving            # it goes to another mount, and is counted for it already
    uint8_t icy
    uint8_t relays            # it is a server that passes the stream on: no audience
    uint8_t blocked           # the last write was short: EPOLLOUT resumes it
    uint8_t skipping          # at `limit` it goes on at a later start
    uint8_t hurried           # served out of its turn until it has caught up
    uint8_t heard             # audio has gone out to it
    uint8_t is_whole          # its request is whole: nothing more of it can come
    uint8_t watched           # registered with epoll
    uint8_t placed            # it has one of the node's places for listeners
    uint32_t generation       # tells late events of an earlier connection
    uint32_t received_bytes   # what it sent after its head: bounded
    uint32_t icy_left_bytes   # audio bytes until the next block
    uint64_t icy_title        # sequence + 1 of the title last sent; 0: none; ICY_ANOTHER
    stream_t* stream          # that it asked for and counts for; one reference
    stream_t* fallback        # that it hears in its place; one reference; NULL: it hears its own
    uint64_t promise          # the format that it was promised (fallback_format); 0: unknown
    ring_t* ring              # of what it hears; one reference; NULL before the first frame
    uint64_t position         # of the next byte to send
    uint64_t whole_position   # the frame boundary that it last reached
    uint64_t limit            # where skipping takes effect: the end of the frame it is in
    uint64_t progress_us      # when it last took bytes or had taken all
    uint64_t began_us         # when it was accepted
    uint64_t audio_us         # when audio last went out; before the first: when it was accepted
    uint64_t burst_position   # up to here it is burst: what was old before the listener came
    uint64_t sent_bytes
    uint64_t id               # on this node, for ever; 0: it never became a listener
    const intro_t* intro      # that it hears first; NULL: it has heard it, or there is none
    uint64_t intro_bytes      # of which it has got so much
    # of the streams that it left last, the newest first: the first byte that it has not heard, as a
    # left_mark (fallback_move.pxd); 0: none
    uint64_t left[FALLBACK_MEMBERS]
    uint8_t* rest             # left over from a short write; goes first; owned
    uint32_t rest_bytes
    uint32_t rest_done_bytes
    uint8_t* head             # HEAD and PARKED: HEAD_BYTES_MAX bytes; owned
    uint32_t head_bytes
    uint16_t port
    uint8_t address[16]
    uint64_t ticket           # of who was handed in by Python: its number for him; 0: none

cdef struct flow_t:           # one send being put together
    iovec parts[PARTS_MAX]
    uint8_t kinds[PARTS_MAX]  # PART_…
    uint64_t titles[PARTS_MAX]  # of a block: sequence + 1 of its title
    int count
    uint64_t bytes
    uint64_t position         # of the first audio byte in it
    uint64_t end              # where audio may go on to in this turn
    uint64_t head             # the ring's head when this was put together
    uint64_t skipped_us       # media time that the skip left out
    bint skipped              # it was moved to a later start …
    bint hole                 # … over a lost run
    bint intro                # its audio is that of the intro
    bint failed               # no memory for header pages

cdef enum:
    PART_REST = 0
    PART_COPY = 1             # must leave now or be copied: response head, header pages
    PART_AUDIO = 2
    PART_BLOCK = 3
    PART_INTRO = 4

cdef enum:  # what listener_flow answers (≥ 0), or minus the reason of an end
    FLOW_DONE = 0             # it has all there is
    FLOW_BLOCKED = 1          # its socket is full
    FLOW_MORE = 2             # its share of this turn is used up

cdef inline void flow_open(flow_t* flow) noexcept nogil:
    flow.count = 0
    flow.bytes = flow.position = flow.end = flow.head = flow.skipped_us = 0
    flow.skipped = flow.hole = flow.intro = flow.failed = False

cdef inline void flow_add(
    flow_t* flow, int kind, const void* bytes, uint64_t size, uint64_t title
) noexcept nogil:
    flow.parts[flow.count].iov_base = <void*>bytes
    flow.parts[flow.count].iov_len = size
    flow.kinds[flow.count] = <uint8_t>kind
    flow.titles[flow.count] = title
    flow.count += 1
    flow.bytes += size

cdef inline stream_t* listener_hears(const listener_t* listener) noexcept nogil:
    return listener.fallback if listener.fallback != NULL else listener.stream

cdef inline void listener_leave_ring(listener_t* listener) noexcept nogil:
    if listener.ring != NULL:
        stream_ring_drop(listener_hears(listener), listener.ring)
        listener.ring = NULL

cdef inline void listener_leave_fallback(listener_t* listener) noexcept nogil:
    # It has left the ring that it heard.
    if listener.fallback != NULL:
        sub_u32(&listener.stream.away, 1)
        stream_drop(listener.fallback)
        listener.fallback = NULL

cdef inline bint listener_keep(
    listener_t* listener, const void* bytes, uint64_t size, bint goes_first,
) noexcept nogil:
    # Adds to the rest what a short write left of something that is not the ring's.
    cdef uint64_t left = listener.rest_bytes - listener.rest_done_bytes
    cdef uint8_t* grown
    if left + size > REST_BYTES_MAX:
        return False
    grown = <uint8_t*>malloc(left + size)
    if grown == NULL:
        return False
    if left > 0:
        memcpy(grown + (size if goes_first else 0), listener.rest + listener.rest_done_bytes, left)
    memcpy(grown + (0 if goes_first else left), bytes, size)
    free(listener.rest)
    listener.rest = grown
    listener.rest_bytes = <uint32_t>(left + size)
    listener.rest_done_bytes = 0
    return True

cdef inline void listener_hear_intro(listener_t* listener, uint64_t took) noexcept nogil:
    listener.intro_bytes += took
    listener.icy_left_bytes -= <uint32_t>took if listener.icy else 0
    if listener.intro_bytes == listener.intro.size_bytes:
        listener.intro = NULL

cdef inline void listener_add_pages(
    listener_t* listener, flow_t* flow, const uint8_t* bytes, uint64_t size
) noexcept nogil:
    # Header pages are bytes of the body: with ICY (icy_ogg) they are counted, and blocks stand
    # between them. Such pages are put together behind the rest.
    cdef uint64_t done = 0
    cdef uint64_t piece
    if not listener.icy:
        flow_add(flow, PART_COPY, bytes, size, 0)
        return
    while done < size and not flow.failed:
        if listener.icy_left_bytes == 0:
            flow.failed = not listener_keep(listener, b"\0", 1, False)
            listener.icy_left_bytes = ICY_METAINT
        piece = min(size - done, <uint64_t>listener.icy_left_bytes)
        flow.failed = flow.failed or not listener_keep(listener, bytes + done, piece, False)
        listener.icy_left_bytes -= <uint32_t>piece
        done += piece

cdef inline void flow_add_rest(flow_t* flow, const listener_t* listener) noexcept nogil:
    # What is left over goes out before all audio; asked again, with what has been put behind it.
    cdef const uint8_t* bytes = listener.rest + listener.rest_done_bytes
    cdef uint64_t size = listener.rest_bytes - listener.rest_done_bytes
    cdef int i
    if listener.rest == NULL:
        return
    for i in range(flow.count):
        if flow.kinds[i] == PART_REST:
            flow.bytes += size - flow.parts[i].iov_len
            flow.parts[i].iov_base = <void*>bytes
            flow.parts[i].iov_len = size
            return
    flow_add(flow, PART_REST, bytes, size, 0)

cdef inline bint listener_sent(listener_t* listener, flow_t* flow, uint64_t sent) noexcept nogil:
    # Books `sent` bytes on the parts, in order. False: no memory for what must be kept.
    cdef int i
    cdef uint64_t took
    cdef bint before_rest = listener.rest != NULL
    for i in range(flow.count):
        took = flow.parts[i].iov_len if flow.parts[i].iov_len < sent else sent
        sent -= took
        if flow.kinds[i] == PART_AUDIO:
            listener.position += took
            listener.icy_left_bytes -= <uint32_t>took if listener.icy else 0
        elif flow.kinds[i] == PART_INTRO:
            listener_hear_intro(listener, took)
        elif flow.kinds[i] == PART_REST:
            before_rest = False
            listener.rest_done_bytes += <uint32_t>took
            if listener.rest_done_bytes == listener.rest_bytes:
                free(listener.rest)
                listener.rest = NULL
                listener.rest_bytes = listener.rest_done_bytes = 0
        else:
            if flow.kinds[i] == PART_BLOCK:
                if took == 0:
                    return True     # not begun: it is made anew next time
                listener.icy_left_bytes = ICY_METAINT
                listener.icy_title = flow.titles[i]
            if took < flow.parts[i].iov_len and not listener_keep(
                listener, <uint8_t*>flow.parts[i].iov_base + took, flow.parts[i].iov_len - took,
                before_rest,
            ):
                return False
    return True

cdef inline uint64_t flow_add_block(
    flow_t* flow, const listener_t* listener, uint64_t position, uint64_t known
) noexcept nogil:
    # The block that is due before this byte; answers which title is known after it. An intro is not
    # what the title tells: the display stays as it is.
    cdef title_t* title = NULL
    if listener.intro == NULL:
        title = ring_title(listener.ring, position)
    if title == NULL and known == ICY_ANOTHER:
        known = 0
        flow_add(flow, PART_BLOCK, ICY_NO_TITLE, ICY_NO_TITLE_BYTES, known)
    elif title == NULL or title.sequence + 1 == known:
        flow_add(flow, PART_BLOCK, b"\0", 1, known)
    else:
        known = title.sequence + 1
        flow_add(flow, PART_BLOCK, title.block, title.block_bytes, known)
    return known

cdef inline void flow_add_run(
    flow_t* flow, const listener_t* listener, int kind, const uint8_t* bytes, uint64_t size,
    uint64_t position,
) noexcept nogil:
    # A share of this run, whose first byte has this position; with ICY a block wherever the counter
    # runs out.
    cdef uint64_t left = listener.icy_left_bytes
    cdef uint64_t known = listener.icy_title
    cdef uint64_t done = 0
    cdef uint64_t piece
    size = min(size, <uint64_t>SEND_BYTES_MAX)
    if not listener.icy:
        if size > 0:
            flow_add(flow, kind, bytes, size, 0)
        return
    while done < size and flow.count < PARTS_MAX - 1:
        if left == 0:
            known = flow_add_block(flow, listener, position + done, known)
            left = ICY_METAINT
        piece = min(size - done, left)
        flow_add(flow, kind, bytes + done, piece, 0)
        done += piece
        left -= piece

cdef inline void flow_add_audio(
    flow_t* flow, const listener_t* listener, uint64_t end
) noexcept nogil:
    # Audio from the cursor to end, straight out of the ring, which is mapped twice in a row.
    if end > listener.position:
        flow_add_run(flow, listener, PART_AUDIO, ring_at(listener.ring, listener.position),
                     end - listener.position, listener.position)

cdef inline void flow_add_intro(flow_t* flow, const listener_t* listener) noexcept nogil:
    flow.intro = True
    flow_add_run(flow, listener, PART_INTRO, listener.intro.bytes + listener.intro_bytes,
                 listener.intro.size_bytes - listener.intro_bytes, 0)

cdef inline int64_t listener_send(listener_t* listener, flow_t* flow) noexcept nogil:
    # One system call: the bytes that the socket took; minus errno: it broke. MSG_EOR: the kernel
    # asks for room before each send, and does not add it to one that waits (docs/architecture.md,
    # the stalled).
    cdef ssize_t sent
    cdef msghdr message
    if flow.count == 1:
        sent = send(listener.fd, flow.parts[0].iov_base, flow.parts[0].iov_len,
                    MSG_DONTWAIT | MSG_NOSIGNAL | MSG_EOR)
    else:
        memset(&message, 0, sizeof(message))
        message.msg_iov = flow.parts
        message.msg_iovlen = flow.count
        sent = sendmsg(listener.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL | MSG_EOR)
    if sent < 0:
        return 0 if errno == EAGAIN or errno == EINTR else -errno
    return sent

cdef inline void listener_begin_at(
    listener_t* listener, flow_t* flow, uint64_t sequence,
) noexcept nogil:
    # Puts the cursor on this frame; the header that it needs goes out first.
    cdef frame_t frame
    cdef header_t* header
    if not ring_read_entry(listener.ring, sequence, &frame):
        listener_leave_ring(listener)
        return
    listener.position = listener.whole_position = frame.position
    header = ring_header(listener.ring, sequence)
    if header != NULL:
        listener_add_pages(listener, flow, header.bytes, header.size_bytes)

cdef inline void listener_enter(listener_t* listener, flow_t* flow) noexcept nogil:
    # A listener without a ring begins in the newest one, a burst behind its head, once there is a
    # start.
    cdef uint64_t sequence
    cdef stream_t* stream = listener_hears(listener)
    cdef ring_t* ring = stream_ring_take(stream)
    if ring == NULL:
        return
    sequence = ring_burst_sequence(ring, listener.stream.config.burst_us)
    if sequence == load_u64(&ring.head_sequence) or not load_u32(&stream.source_up):
        stream_ring_drop(stream, ring)   # nothing to begin with, or an epoch that is over
        return
    listener.ring = ring
    listener.burst_position = load_u64(&ring.head_position)
    listener_begin_at(listener, flow, sequence)

cdef inline void listener_enter_at(
    listener_t* listener, flow_t* flow, const begin_t* begin
) noexcept nogil:
    # It begins exactly there (anchor.pxd); takes a reference of its own on the ring, which lives.
    add_u32(&begin.ring.refs, 1)
    listener.ring = begin.ring
    listener.anchored = 1
    listener.burst_position = load_u64(&begin.ring.head_position)
    listener.position = begin.position
    listener.whole_position = begin.whole_position
    if begin.header_bytes > 0:
        listener_add_pages(listener, flow, begin.header, begin.header_bytes)

cdef inline void listener_follow(listener_t* listener, flow_t* flow) noexcept nogil:
    # The ring was superseded: the same epoch goes on at the same position, a new one at its begin.
    cdef ring_t* old = listener.ring
    cdef ring_t* ring = old.next
    if ring.epoch != old.epoch:
        if listener.position < load_u64(&old.head_position):
            return
        listener_leave_ring(listener)
        listener.skipping = False
        listener.icy_title = 0      # sequences begin anew: an equal number is another title
        ring = stream_ring_take(listener_hears(listener))
        if ring == NULL:
            return
        listener.ring = ring
        if ring_tail_position(ring) == 0 and load_u64(&ring.base_sequence) == 0:
            listener.position = listener.whole_position = listener.burst_position = 0
        else:
            listener_leave_ring(listener)
            listener_enter(listener, flow)
        return
    if listener.position < ring_tail_position(ring) and (
        listener.position < load_u64(&old.head_position)
    ):
        # not copied; the old ring is not written any more: it reads on there
        return
    # cannot come too late: the old ring holds a reference on its next one
    add_u32(&ring.refs, 1)
    listener.ring = ring
    stream_ring_drop(listener_hears(listener), old)

cdef inline void listener_skip_later(listener_t* listener) noexcept nogil:
    # Marks the end of the frame that the cursor is in; from there it goes on at a later start. Not
    # when that frame has left the index: its end is unknown then, and it is soon overtaken.
    cdef frame_t frame
    cdef uint64_t sequence = ring_sequence_at(listener.ring, listener.position)
    if listener.position == listener.whole_position:
        listener.limit = listener.position
        listener.skipping = True
    elif ring_read_entry(listener.ring, sequence, &frame) and frame.position <= listener.position:
        listener.limit = frame.position + audio_bytes(&frame)
        listener.skipping = True

cdef inline uint64_t listener_lag_us(listener_t* listener) noexcept nogil:
    cdef frame_t frame
    cdef ring_t* ring = listener.ring
    cdef uint64_t head_us = load_u64(&ring.head_media_us)
    if not ring_read_entry(ring, ring_sequence_at(ring, listener.position), &frame):
        return 0
    return head_us - <uint64_t>frame.media_us if head_us > <uint64_t>frame.media_us else 0

cdef inline void listener_add_header(
    listener_t* listener, flow_t* flow, uint64_t sequence
) noexcept nogil:
    # The header that a reader at this frame needs, unless the cursor has passed it already.
    cdef ring_t* ring = listener.ring
    cdef header_t* header = ring_header(ring, sequence)
    if header == NULL or (
        listener.position >= ring_tail_position(ring)
        and header == ring_header(ring, ring_sequence_at(ring, listener.position))
    ):
        return
    listener_add_pages(listener, flow, header.bytes, header.size_bytes)

cdef inline uint64_t listener_media_us(listener_t* listener) noexcept nogil:
    # Media time of a cursor at a frame boundary: where the frame before it ends. Of what has left
    # the ring (or never was in it) by the mean rate of what is there.
    cdef ring_t* ring = listener.ring
    cdef uint64_t head_us = load_u64(&ring.head_media_us)
    cdef uint64_t head = load_u64(&ring.head_position)
    cdef uint64_t gone_us
    cdef frame_t frame
    if listener.position > ring_tail_position(ring) and ring_read_entry(
        ring, ring_sequence_at(ring, listener.position - 1), &frame
    ):
        return <uint64_t>frame.media_us + frame.duration_us
    if not ring_read_entry(ring, ring_tail_sequence(ring), &frame) or (
        frame.position >= head or <uint64_t>frame.media_us >= head_us
    ):
        return head_us
    if listener.position >= frame.position:
        return <uint64_t>frame.media_us
    gone_us = <uint64_t>(
        <double>(frame.position - listener.position) * (head_us - <uint64_t>frame.media_us)
        / (head - frame.position)
    )
    return <uint64_t>frame.media_us - gone_us if gone_us < <uint64_t>frame.media_us else 0

cdef inline bint listener_skip(listener_t* listener, flow_t* flow, bint hole) noexcept nogil:
    # At a frame boundary: on to a later start. False: there is none yet.
    cdef ring_t* ring = listener.ring
    cdef uint64_t media_us
    cdef uint64_t sequence
    cdef frame_t frame
    if hole:
        sequence = ring_start_after(ring, listener.position)
    else:
        sequence = ring_burst_sequence(ring, listener.stream.config.burst_us)
    if sequence == load_u64(&ring.head_sequence) or not ring_read_entry(ring, sequence, &frame):
        return False
    listener.skipping = False
    if frame.position <= listener.position:
        return False
    listener_add_header(listener, flow, sequence)
    media_us = listener_media_us(listener)
    flow.skipped_us = <uint64_t>frame.media_us - media_us if (
        <uint64_t>frame.media_us > media_us
    ) else 0
    listener.position = listener.whole_position = frame.position
    return True

cdef inline int listener_judge(listener_t* listener, uint64_t now_us) noexcept nogil:
    # A listener whose socket is full: too far behind, or without any progress?
    if now_us > listener.progress_us + listener.stream.config.stall_us:
        return -END_STALLED
    if listener.ring != NULL and load_u32(&listener.ring.superseded) and (
        load_u32(&listener_hears(listener).rings) > RINGS_MAX // 2
    ):
        return -END_STALLED     # what it still hears would keep a returning source out
    if listener.ring == NULL or listener.skipping:
        return FLOW_BLOCKED
    if now_us < load_u64(&listener_hears(listener).lag_free_until_us):
        return FLOW_BLOCKED
    if listener.anchored and listener.position < listener.burst_position:
        return FLOW_BLOCKED     # it asked for every byte since; stall_us and the ring bound it
    if listener_lag_us(listener) > listener.stream.config.lag_us_max:
        listener_skip_later(listener)
    return FLOW_BLOCKED

cdef inline int listener_gather(listener_t* listener, flow_t* flow) noexcept nogil:
    # Decides what goes out next and puts it into `flow`, which may already hold the response head
    # of a new listener. FLOW_DONE, or minus the reason of an end.
    cdef uint64_t head
    cdef ring_t* ring
    cdef bint enters = listener.ring == NULL
    flow.position = listener.position
    if load_u32(&listener.stream.closed):
        return -END_STREAM
    flow_add_rest(flow, listener)
    if listener.intro != NULL:
        flow_add_intro(flow, listener)
        return FLOW_DONE
    if enters:
        listener_enter(listener, flow)
    elif load_u32(&listener.ring.superseded):
        listener_follow(listener, flow)
    ring = listener.ring
    if ring == NULL:
        return FLOW_DONE
    head = load_u64(&ring.head_position)
    if listener.position < ring_tail_position(ring) and not enters:
        if listener.position == listener.whole_position:
            flow.skipped = listener_skip(listener, flow, False)
        elif ring_was_overtaken(ring, listener.position - ring.guard_bytes // 2):
            return -END_TORN
    flow.end = ring_readable_end(ring, listener.position)
    if listener.skipping and flow.end > listener.limit:
        flow.end = listener.limit
    if flow.end == listener.position and flow.end < head and not flow.skipped:
        flow.hole = not listener.skipping
        flow.skipped = listener_skip(listener, flow, flow.hole)
        if flow.skipped:
            flow.end = ring_readable_end(ring, listener.position)
    flow.head = head
    flow.position = listener.position
    if flow.failed:
        return -END_MEMORY
    flow_add_rest(flow, listener)
    flow_add_audio(flow, listener, flow.end)
    return FLOW_DONE

cdef inline int listener_took(
    listener_t* listener, flow_t* flow, int64_t sent, uint64_t now_us
) noexcept nogil:
    # What becomes of it now that the socket took `sent` bytes of the flow.
    if sent < 0:    # ETIMEDOUT: its host is gone (door_suit_stream)
        return -END_STALLED if sent == -ETIMEDOUT else -END_RESET
    if listener.ring != NULL and ring_was_overtaken(listener.ring, flow.position):
        return -END_TORN
    if sent > 0:
        listener.progress_us = now_us
        listener.sent_bytes += <uint64_t>sent
    if not listener_sent(listener, flow, <uint64_t>sent):
        return -END_MEMORY
    if listener.position == flow.end:
        listener.whole_position = flow.end
    if <uint64_t>sent < flow.bytes:
        return listener_judge(listener, now_us)
    return FLOW_MORE if flow.intro or listener.position < flow.head else FLOW_DONE

cdef inline int listener_flow(
    listener_t* listener, flow_t* flow, uint64_t now_us
) noexcept nogil:
    # Sends what there is.
    cdef int status = listener_gather(listener, flow)
    if status < 0:
        return status
    if flow.count == 0:
        listener.progress_us = now_us
        return FLOW_DONE
    return listener_took(listener, flow, listener_send(listener, flow), now_us)
