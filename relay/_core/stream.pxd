# stream.pxd: one stream: its mount, its rings (one an epoch, one more after a resize), who writes
# it.
#
# Rules of this room
#   1. One writer: `writer` is claimed by an atomic word (none, local, link) before an epoch begins;
#      all stream_… functions below the line "the writer" are called by that writer alone.
#   2. Rings form a chain: a cursor that has reached the head of a superseded ring goes on in
#      `next`, at the same position (resize) or at the first frame (a new epoch).
#   3. A stream is freed when its last reference goes: the engine's table holds one, each listener,
#      each Python handle and the backbone hold one.
#   4. Views pin bytes of a ring. Rings that were left for their sake (stream_clear) are counted in
#      `rings` only while cursors are in them: VIEWS_MAX bounds those that views hold back.
#   5. Decides nothing about listeners; knows no socket and no clock.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from relay._core.atomics cimport (
    add_u32, add_u64, claim_pointer, claim_u32, fence, load_pointer, load_u32, load_u64, ref_take,
    store_pointer, store_u32, store_u64, sub_u32, swap_pointer, swap_u32,
)
from relay._core.marks cimport marks_add
from relay._core.retire cimport retire_later, retire_t
from relay._core.frames cimport FRAME_BYTES_MAX
from relay._core.ring cimport (
    DUPLICATE, FRAME_TITLE, PLACED, PLACE_BAD, PLACE_NO_MEMORY, RING_FRAMES_MAX, RING_NUMBER_MAX,
    ring_open, ring_t, ring_unpin,
)
from relay._core.ring_writer cimport (
    release_plain, ring_is_shown, ring_place, ring_place_run, ring_resized,
)

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)

cdef enum:
    MOUNT_BYTES_MAX = 255
    INFO_BYTES_MAX = 4096
    RINGS_MAX = 8             # live rings of one stream: a source that flaps faster is refused
    VIEWS_MAX = 8             # of one stream at a time: each may hold back a ring
    BEFORE_US = 10000000

cdef enum:  # who writes
    WRITER_NONE = 0
    WRITER_LOCAL = 1
    WRITER_LINK = 2

cdef enum:
    STREAM_FULL = -10         # RINGS_MAX reached

cdef struct info_t:           # immutable once published: what listeners and children are told
    uint32_t size_bytes
    # size_bytes of them: HTTP header lines, each ended by CRLF, Content-Type first
    uint8_t bytes[INFO_BYTES_MAX]

cdef struct stream_config_t:  # per mount; units in the names; set before the first epoch
    uint64_t burst_us
    uint64_t pace_us_min      # a fixed pace is both
    uint64_t pace_us_max
    uint64_t lag_us_max
    uint64_t stall_us
    uint64_t linger_us
    uint64_t catchup_us
    uint64_t ring_us
    uint64_t ring_bytes_max
    uint64_t ahead_us
    uint32_t listeners_max    # 0: no bound of its own
    uint32_t fallback         # which of the engine's rules holds for its listeners, + 1; 0: none
    # 1: an Ogg chain that begins here gets a serial that no other mount has
    uint32_t own_serial
    uint32_t ogg_page_us      # pages that begin here last at most so long; 0: as they come
    uint32_t anchor           # 1: who asks for no place is sent to one (anchor.pxd)
    uint32_t icy_ogg          # 1: title blocks for formats that carry titles themselves, too
    uint32_t intro            # which of the engine's intros its listeners hear first, + 1; 0: none
    uint32_t asks             # 1: Python says who may listen (door.pxd: shard_must_ask)

cdef struct stream_counters_t:      # owner: the writer, unless said otherwise
    uint64_t received_bytes_total
    uint64_t received_frames_total
    uint64_t epochs_total
    uint64_t duplicates_total
    uint64_t refused_frames_total   # contradict the ring: PLACE_BAD, PLACE_FAR
    uint64_t repaired_frames_total
    uint64_t lost_frames_total
    uint64_t lost_runs_total
    uint64_t titles_total
    uint64_t junk_bytes_total
    uint64_t sent_bytes_total       # shards, added once a turn
    uint64_t joins_total            # shards
    uint64_t skips_total            # shards
    uint64_t drops_total            # shards
    uint64_t lost_gone_frames_total   # of lost_frames_total: by cause
    uint64_t lost_wait_frames_total
    uint64_t lost_outage_frames_total
    uint64_t fallbacks_total        # shards: its listeners that went over to a fallback
    uint64_t returns_total          # shards: those that came back

cdef struct hub_t:            # where writers tell the backbone that a stream has something new
    int event_fd              # -1: there is no backbone
    # the same descriptor, open until the engine goes: a late teller may write to it
    int kept_fd
    uint32_t asleep           # 1: the backbone waits in poll; the next writer wakes it
    stream_t* dirty           # a stack of streams, linked by dirty_next

cdef struct stream_t:
    char mount[MOUNT_BYTES_MAX + 1]
    uint32_t mount_bytes
    uint64_t key              # hash of the mount: its name on the backbone
    stream_config_t config
    retire_t* retire          # borrowed
    hub_t* hub                # borrowed
    ring_t* ring              # the newest; NULL before the first epoch; holds one reference
    ring_t* before            # the last one of the epoch before, for those who come back; one
                              # reference; let go when the new epoch has BEFORE_US of media
    uint64_t before_media_us  # media time of the newest at which that is
    info_t* info              # what the reply says; NULL until known
    uint32_t info_changes     # counts stream_set_info
    uint32_t refs
    uint32_t writer           # WRITER_…
    uint32_t source_up        # 1: an epoch is open
    uint32_t closed           # 1: unlinked from the table; its listeners are ended
    uint32_t rings            # live rings of this stream
    uint64_t epoch_highest    # ms; the next epoch is higher
    uint64_t epoch_wished     # ms; a node below has heard the epoch before it (owner: backbone)
    uint64_t source_waits_us  # when a source of this node last found the backbone in its place
    uint64_t origin           # low half of the origin's node id
    uint32_t listeners        # attached now, all shards
    uint32_t relays           # of the listeners, those that are servers and pass it on
    uint32_t readers          # Python subscribers
    uint32_t views            # and what they look at without a copy
    uint32_t downstream       # children subscribed (owner: backbone)
    uint32_t away             # of its listeners, those that hear a fallback (owner: shards)
    uint32_t lent             # mounts whose fallback it is just now (owner: fallback_look.pxd)
    # 1: it is here for its fallback alone, and no directory lists it; ends with the next epoch
    uint32_t stands_in
    uint32_t coming           # 1: an upstream tells that it has a source (owner: backbone)
    uint64_t run_epoch        # of the framed run whose time is kept (owner of these: its writer)
    uint64_t run_media_us     # where it was when it was first here …
    int64_t run_wall_us       # … by the wall clock
    uint64_t source_down_us   # when the last epoch ended (monotonic; 0: never)
    # until then lag is a repair's doing and not judged (owner: the writer)
    uint64_t lag_free_until_us
    uint64_t wanted_us        # when somebody last wanted it (monotonic)
    uint64_t fit_media_us     # media time of the next look at the ring's size
    uint64_t fit_position     # position and media time at the last look
    uint64_t fit_from_media_us
    uint64_t fit_sequence
    uint32_t fit_known        # 1: the ring has been fitted to the bit rate of this epoch
    uint64_t ogg_chains_total # begun here, in all epochs (owner of these three: the writer)
    uint32_t ogg_serial_given # of the newest chain's first page, as the encoder wrote it
    uint32_t ogg_serial_told  # the same, as listeners got it
    uint32_t dirty
    stream_t* dirty_next
    void* link                # the backbone's own record of this stream; owner: backbone
    stream_counters_t counters

cdef inline uint64_t mount_key(const char* mount, uint64_t size) noexcept nogil:
    # FNV-1a, 64 bits, then one round of mixing: the same on every node (docs/wire.md).
    cdef uint64_t key = <uint64_t>0xCBF29CE484222325
    cdef uint64_t i
    for i in range(size):
        key = (key ^ <uint8_t>mount[i]) * <uint64_t>0x100000001B3
    key ^= key >> 32
    key *= <uint64_t>0xD6E8FEB86659FD93
    return key ^ (key >> 32)

cdef inline stream_t* stream_open(
    const char* mount, uint32_t mount_bytes, const stream_config_t* config, retire_t* retire,
    hub_t* hub,
) noexcept nogil:
    cdef stream_t* stream
    if mount_bytes == 0 or mount_bytes > MOUNT_BYTES_MAX:
        return NULL
    stream = <stream_t*>calloc(1, sizeof(stream_t))
    if stream == NULL:
        return NULL
    memcpy(stream.mount, mount, mount_bytes)
    stream.mount_bytes = mount_bytes
    stream.key = mount_key(mount, mount_bytes)
    stream.config = config[0]
    stream.retire = retire
    stream.hub = hub
    stream.refs = 1
    return stream

cdef inline void stream_release(void* thing) noexcept nogil:
    cdef stream_t* stream = <stream_t*>thing
    free(stream.info)
    free(stream)

cdef inline void stream_drop(stream_t* stream) noexcept nogil:
    # Gives one reference back; the last one retires the stream and its ring.
    cdef ring_t* ring
    if sub_u32(&stream.refs, 1) == 0:
        ring = <ring_t*>swap_pointer(<void**>&stream.ring, NULL)
        if ring != NULL:
            stream_ring_drop(stream, ring)
        stream_let_go(stream)
        retire_later(stream.retire, stream, stream_release)

cdef inline void stream_let_go(stream_t* stream) noexcept nogil:
    # Of the epoch before. By the writer, or where there is none any more.
    cdef ring_t* ring = <ring_t*>swap_pointer(<void**>&stream.before, NULL)
    if ring != NULL:
        stream_ring_drop(stream, ring)

cdef inline void stream_ring_drop(stream_t* stream, ring_t* ring) noexcept nogil:
    # Gives back a reference on one of this stream's rings; a ring that goes lets its successor go.
    cdef ring_t* after
    while ring != NULL and sub_u32(&ring.refs, 1) == 0:
        after = ring.next
        ring_unpin(ring)
        sub_u32(&stream.rings, 1)
        ring = after

cdef inline ring_t* stream_ring_take(stream_t* stream) noexcept nogil:
    # The newest ring with a reference taken; NULL before the first epoch. Only inside a turn or by
    # the writer (who alone replaces it). Give it back with stream_ring_drop.
    cdef ring_t* ring
    while True:
        ring = <ring_t*>load_pointer(<void**>&stream.ring)
        if ring == NULL or ref_take(&ring.refs):
            return ring

cdef inline ring_t* stream_before_take(stream_t* stream) noexcept nogil:
    # The epoch before, with a reference taken; NULL: it is gone. Otherwise as stream_ring_take.
    cdef ring_t* ring = <ring_t*>load_pointer(<void**>&stream.before)
    return ring if ring != NULL and ref_take(&ring.refs) else NULL

cdef inline void hub_tell(hub_t* hub, stream_t* stream) noexcept nogil:
    # Something is new in this stream: put it on the stack once, wake the backbone if it sleeps.
    cdef void* top
    if hub.event_fd < 0 or swap_u32(&stream.dirty, 1) == 1:
        return
    add_u32(&stream.refs, 1)
    while True:
        top = load_pointer(<void**>&hub.dirty)
        stream.dirty_next = <stream_t*>top
        if claim_pointer(<void**>&hub.dirty, top, stream):
            break
    fence()     # the stream is on the stack before `asleep` is read (the backbone does the reverse)
    if load_u32(&hub.asleep) and swap_u32(&hub.asleep, 0):
        eventfd_write(hub.event_fd, 1)

cdef inline stream_t* hub_take(hub_t* hub) noexcept nogil:
    # All streams that have something new; for each of them: hub_next, look at it, stream_drop.
    return <stream_t*>swap_pointer(<void**>&hub.dirty, NULL)

cdef inline stream_t* hub_next(stream_t* stream) noexcept nogil:
    # The stream taken after this one. From here on a writer puts this one on the stack again. A
    # swap, not a store: what the taker reads next (the head) must not be read before `dirty` is
    # clear, or a frame that is pushed between the two is seen by nobody.
    cdef stream_t* after = stream.dirty_next
    swap_u32(&stream.dirty, 0)
    return after

cdef inline bint hub_sleep(hub_t* hub) noexcept nogil:
    # Before the backbone waits in poll: True when nothing is new, and whoever brings something
    # wakes it.
    swap_u32(&hub.asleep, 1)
    fence()
    if load_pointer(<void**>&hub.dirty) == NULL:
        return True
    swap_u32(&hub.asleep, 0)
    return False

cdef inline bint stream_claim(stream_t* stream, uint32_t writer) noexcept nogil:
    return claim_u32(&stream.writer, WRITER_NONE, writer)

cdef inline void stream_unclaim(stream_t* stream) noexcept nogil:
    store_u32(&stream.writer, WRITER_NONE)

# --- the writer ----------------------------------------------------------------------------------

cdef inline bint stream_set_info(
    stream_t* stream, const uint8_t* bytes, uint32_t size,
) noexcept nogil:
    # Publishes what the reply to a listener says. False: too long, or no memory.
    cdef info_t* info
    if size > INFO_BYTES_MAX:
        return False
    info = <info_t*>malloc(sizeof(info_t) - INFO_BYTES_MAX + size)
    if info == NULL:
        return False
    info.size_bytes = size
    memcpy(info.bytes, bytes, size)
    retire_later(stream.retire, swap_pointer(<void**>&stream.info, info), release_plain)
    add_u32(&stream.info_changes, 1)
    hub_tell(stream.hub, stream)
    return True

cdef inline void stream_link_ring(stream_t* stream, ring_t* ring) noexcept nogil:
    # Makes this the newest ring. Cursors find it by the old one's `next`, newcomers by stream.ring.
    cdef ring_t* old = <ring_t*>load_pointer(<void**>&stream.ring)
    add_u32(&stream.rings, 1)
    if old != NULL:
        add_u32(&ring.refs, 1)
        old.next = ring
        store_u32(&old.superseded, 1)
    store_pointer(<void**>&stream.ring, ring)
    if old != NULL and old.epoch != ring.epoch:
        stream_let_go(stream)
        stream.before_media_us = ring.head_media_us + BEFORE_US
        store_pointer(<void**>&stream.before, old)
    elif old != NULL:
        stream_ring_drop(stream, old)

cdef inline int stream_begin_epoch(
    stream_t* stream, uint64_t epoch, uint64_t origin, uint64_t sequence, uint64_t position,
    uint64_t media_us,
) noexcept nogil:
    # Opens the ring of a new epoch; 320 kbit/s and 50 frames a second until they are known. The
    # numbers may come from a wire: PLACE_BAD beyond RING_NUMBER_MAX.
    cdef uint64_t size_bytes = stream.config.ring_us * 40 // 1000 * 5 // 4
    cdef uint64_t frames_count = stream.config.ring_us // 20000 * 5 // 4 + 64
    cdef ring_t* ring
    if sequence > RING_NUMBER_MAX or position > RING_NUMBER_MAX or media_us > RING_NUMBER_MAX:
        return PLACE_BAD
    if load_u32(&stream.rings) >= RINGS_MAX:
        stream_let_go(stream)
    if load_u32(&stream.rings) >= RINGS_MAX:
        return STREAM_FULL
    if frames_count > RING_FRAMES_MAX:
        frames_count = RING_FRAMES_MAX
    if size_bytes < 5 * 65536:
        size_bytes = 5 * 65536
    if size_bytes > stream.config.ring_bytes_max:
        size_bytes = stream.config.ring_bytes_max
    ring = ring_open(size_bytes, frames_count, epoch, sequence, position, media_us, stream.retire)
    if ring == NULL:
        return PLACE_NO_MEMORY
    stream.fit_position = position
    stream.fit_sequence = sequence
    stream.fit_from_media_us = media_us
    stream.fit_media_us = media_us + 1000000
    stream.fit_known = 0
    stream.origin = origin
    store_u64(&stream.epoch_highest, epoch)
    stream_link_ring(stream, ring)
    store_u32(&stream.source_up, 1)
    store_u32(&stream.stands_in, 0)
    stream.counters.epochs_total += 1
    hub_tell(stream.hub, stream)
    return 0

cdef inline bint stream_forget_ring(stream_t* stream) noexcept nogil:
    # Nobody has wanted the stream for its linger: its ring goes, so that who comes back does not
    # get stale audio. A joiner counts himself in `listeners` or `readers` before he takes the
    # ring; if one has just done so, the ring stays and the answer is False.
    cdef ring_t* ring = <ring_t*>swap_pointer(<void**>&stream.ring, NULL)
    fence()
    if load_u32(&stream.listeners) + load_u32(&stream.readers) + load_u32(&stream.lent) != 0:
        store_pointer(<void**>&stream.ring, ring)
        return False
    store_u32(&stream.source_up, 0)
    stream_let_go(stream)
    if ring != NULL:
        stream_ring_drop(stream, ring)
    return True

cdef inline void stream_end_epoch(stream_t* stream, uint64_t now_us) noexcept nogil:
    # The source is gone: listeners stay where they are until the next epoch or the end of the
    # linger.
    stream.source_down_us = now_us
    store_u32(&stream.source_up, 0)
    hub_tell(stream.hub, stream)

cdef inline void stream_resume_epoch(stream_t* stream) noexcept nogil:
    # It was ended too early: the same ring goes on.
    store_u32(&stream.source_up, 1)
    hub_tell(stream.hub, stream)

cdef inline int stream_resize(
    stream_t* stream, uint64_t size_bytes, uint64_t frames,
) noexcept nogil:
    # Puts a larger or smaller ring in the place of the newest. 0: nothing done.
    cdef ring_t* ring
    if load_u32(&stream.rings) >= RINGS_MAX:
        return 0
    ring = ring_resized(stream.ring, size_bytes, frames)
    if ring == NULL:
        return 0
    stream_link_ring(stream, ring)
    return 1

cdef inline void stream_grow(stream_t* stream, uint64_t size_bytes) noexcept nogil:
    if size_bytes > stream.config.ring_bytes_max:
        size_bytes = stream.config.ring_bytes_max
    if size_bytes > stream.ring.size_bytes:
        stream_resize(stream, size_bytes, stream.ring.frames_count)

cdef inline uint64_t at_most(double wanted, uint64_t bound) noexcept nogil:
    return <uint64_t>wanted if wanted < <double>bound else bound

cdef inline void stream_fit(stream_t* stream) noexcept nogil:
    # After the first second of media, then every five: does the ring hold ring_us at this bit rate?
    # Readers may use four fifths of it, hence × 1.25; a tenth more keeps a rate that trembles from
    # resizing at every look. Shrinks only once, when the rate becomes known.
    cdef ring_t* ring = stream.ring
    cdef uint64_t bound = stream.config.ring_bytes_max
    cdef double share
    cdef uint64_t bytes
    cdef uint64_t roomy
    cdef uint64_t frames
    cdef uint64_t roomy_frames
    cdef bint done = True
    if ring.head_media_us >= stream.before_media_us:
        stream_let_go(stream)
    # media time that goes back tells nothing
    if ring.head_media_us <= stream.fit_from_media_us:
        stream_fit_again(stream)
        return
    share = 1.25 * stream.config.ring_us / (ring.head_media_us - stream.fit_from_media_us)
    bytes = at_most((ring.head_position - stream.fit_position) * share, bound)
    frames = at_most((ring.head_sequence - stream.fit_sequence) * share + 32, RING_FRAMES_MAX)
    if bytes < 8 * ring.frame_bytes_max:
        bytes = at_most(8 * ring.frame_bytes_max, bound)
    roomy = at_most(bytes * 1.1, bound)
    roomy_frames = at_most(frames * 1.1 + 32, RING_FRAMES_MAX)
    if bytes > ring.size_bytes or frames > ring.frames_count:
        done = stream_resize(
            stream, roomy if roomy > ring.size_bytes else ring.size_bytes,
            roomy_frames if roomy_frames > ring.frames_count else ring.frames_count,
        )
    elif not stream.fit_known and roomy + roomy // 4 < ring.size_bytes:
        done = stream_resize(stream, roomy, roomy_frames)
    if done or stream.fit_known:
        stream_fit_again(stream)
        stream.fit_known = 1
    else:       # a hole is open: the first look is worth another try soon
        stream.fit_media_us = ring.head_media_us + 100000

cdef inline void stream_fit_again(stream_t* stream) noexcept nogil:
    # The next look measures from here.
    stream.fit_position = stream.ring.head_position
    stream.fit_sequence = stream.ring.head_sequence
    stream.fit_from_media_us = stream.ring.head_media_us
    stream.fit_media_us = stream.ring.head_media_us + 5000000

cdef inline void stream_mark(stream_t* stream, uint64_t now_us) noexcept nogil:
    # Before the writer goes on: what comes next is not older than now. Once for all that it writes
    # in one go, so that no frame pays for a clock.
    marks_add(&stream.ring.marks, stream.ring.head_position, now_us)

cdef inline bint stream_clear(
    stream_t* stream, uint64_t sequence, uint64_t position, uint64_t end_position
) noexcept nogil:
    # Before bytes are written from here to there: if views show what would go, they keep this ring,
    # and the stream goes on in another of its size. Where that cannot be had (a hole is open, no
    # memory, too many rings) audio goes before: the view is overwritten, and finds that. Whether
    # more has been granted; nothing is to a frame that ring_place refuses.
    cdef ring_t* ring = stream.ring
    if end_position <= ring.granted_position:
        return False
    if (
        sequence < ring.head_sequence or position < ring.head_position
        or end_position - ring.head_position > (ring.size_bytes - ring.guard_bytes) // 2
    ):
        return False
    while ring_is_shown(stream.ring, position, end_position):
        if load_u32(&stream.rings) > RINGS_MAX // 2:    # the others are for epochs
            break
        if not stream_resize(stream, stream.ring.size_bytes, stream.ring.frames_count):
            break
    return True

cdef inline void stream_not_written(stream_t* stream) noexcept nogil:
    # What was granted was not used.
    store_u64(&stream.ring.granted_position, stream.ring.reserved_position)

cdef inline int stream_place(
    stream_t* stream, uint64_t sequence, uint64_t position, uint64_t media_us,
    const uint8_t* bytes, uint32_t size_bytes, uint32_t duration_us, uint32_t flags,
) noexcept nogil:
    # One frame into the newest ring, where it belongs (see ring_place for the answers).
    cdef int status
    cdef bint granted
    if stream.ring.guard_bytes < size_bytes <= FRAME_BYTES_MAX and not flags & FRAME_TITLE:
        stream_grow(stream, 8 * <uint64_t>size_bytes)
    granted = stream_clear(
        stream, sequence, position, position + (0 if flags & FRAME_TITLE else size_bytes)
    )
    status = ring_place(
        stream.ring, sequence, position, media_us, bytes, size_bytes, duration_us, flags
    )
    if status == PLACED:
        stream.counters.received_bytes_total += size_bytes
        stream.counters.received_frames_total += 1
        if flags & FRAME_TITLE:
            stream.counters.titles_total += 1
        if stream.ring.head_media_us >= stream.fit_media_us:
            stream_fit(stream)
        hub_tell(stream.hub, stream)
        return status
    if granted:
        stream_not_written(stream)
    if status == DUPLICATE:
        stream.counters.duplicates_total += 1
    else:
        stream.counters.refused_frames_total += 1
    return status

cdef inline uint32_t stream_place_run(
    stream_t* stream, uint64_t sequence, uint64_t position, uint64_t media_us,
    const uint64_t* records, uint32_t count, const uint8_t* bytes,
) noexcept nogil:
    # The first frames of a run, as many as can go in at once (see ring_place_run); 0: none.
    cdef ring_t* ring = stream.ring
    cdef uint32_t frames
    cdef bint granted = (
        sequence == ring.head_sequence and position == ring.head_position
        # ring_place_run takes no more
        and stream_clear(stream, sequence, position, position + ring.guard_bytes // 4)
    )
    ring = stream.ring
    frames = ring_place_run(ring, sequence, position, media_us, records, count, bytes)
    if frames:
        stream.counters.received_bytes_total += ring.head_position - position
        stream.counters.received_frames_total += frames
        if ring.head_media_us >= stream.fit_media_us:
            stream_fit(stream)
        hub_tell(stream.hub, stream)
    elif granted:
        stream_not_written(stream)
    return frames

cdef inline int stream_push(
    stream_t* stream, const uint8_t* bytes, uint32_t size_bytes, uint32_t duration_us,
    uint32_t flags,
) noexcept nogil:
    # The next frame of a local source, at the head.
    return stream_place(
        stream, stream.ring.head_sequence, stream.ring.head_position, stream.ring.head_media_us,
        bytes, size_bytes, duration_us, flags,
    )
