# mount.pxd: one mount as the swarm knows it: what was written when, which title was set when.
#
# Rules of this room
#   1. The sources' thread writes, the listeners' thread reads: a frame's time is stored before the
#      head that tells of it, and both before the frame is sent. So nobody can hear a frame that
#      this room does not know, and lag is told too high by a send, never too low.
#   2. The times of the last WRITTEN_FRAMES frames are kept (24 s); what is older counts as that.
#   3. Knows no sockets but their numbers; takes the time as an argument.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from relay._core.atomics cimport load_u64, load_u64_relaxed, store_u64, store_u64_relaxed
from relay._swarm.frame cimport FRAME_BYTES, FRAME_US

cdef enum:
    WRITTEN_FRAMES = 1024     # 8 KiB a mount
    TITLES_KEPT = 64
    REQUEST_BYTES_MAX = 1024  # of a listener's or a title's request head
    MOUNTS_MAX = 1024

cdef enum:  # state of a source
    SOURCE_NONE = 0           # somebody else's programme
    SOURCE_LIVE = 1
    SOURCE_LOST = 2           # the server ended or reset it

cdef struct mount_t:
    uint32_t number           # as its frames tell it
    uint32_t head_bytes       # of the request heads below
    uint32_t head_icy_bytes
    uint8_t head[REQUEST_BYTES_MAX]       # a listener's request; set before anybody joins
    uint8_t head_icy[REQUEST_BYTES_MAX]
    # --- the sources' thread ---
    uint64_t written_us[WRITTEN_FRAMES]   # by sequence; rule 1
    uint64_t head_sequence    # frames written so far; release order
    uint32_t source_state     # SOURCE_…
    int fd                    # the source's connection; owned by the sources' thread from its start
    int error                 # errno that ended it
    uint64_t begun_us         # frame n is due at begun_us + n × FRAME_US
    uint8_t rest[FRAME_BYTES]  # of the frame that the server's window cut; goes first
    uint32_t rest_bytes
    uint64_t held_us          # since when the server takes nothing; 0: it does
    uint64_t held_us_max
    # --- titles: "title N"; N from 1 ---
    uint64_t title_every_us   # 0: none
    uint64_t title_due_us
    uint64_t titles_asked     # N of the last request that was begun; release order
    uint64_t titles_told      # N of the last one that the server confirmed; release order
    uint64_t told_us[TITLES_KEPT]         # when, by N
    uint64_t titles_refused   # answered otherwise, broken, or not answered in time
    int title_fd              # of the request under way, -1: none
    bint title_sent
    uint8_t title_head[REQUEST_BYTES_MAX]  # up to "song=title+"
    uint8_t title_tail[REQUEST_BYTES_MAX]  # what follows the number
    uint32_t title_head_bytes
    uint32_t title_tail_bytes

cdef inline void mount_book(mount_t* mount, uint64_t written_us) noexcept nogil:
    # A frame is about to be sent (sources' thread).
    cdef uint64_t sequence = load_u64_relaxed(&mount.head_sequence)
    store_u64_relaxed(&mount.written_us[sequence % WRITTEN_FRAMES], written_us)
    store_u64(&mount.head_sequence, sequence + 1)

cdef inline int64_t mount_head(mount_t* mount) noexcept nogil:
    # Position behind the last frame written.
    return <int64_t>load_u64(&mount.head_sequence) * FRAME_BYTES

cdef inline uint64_t mount_lag_us(
    mount_t* mount, int64_t position, uint64_t now_us
) noexcept nogil:
    # How long ago the oldest frame was written that a listener at this position has not whole.
    cdef uint64_t head = load_u64(&mount.head_sequence)
    cdef uint64_t sequence = <uint64_t>(position // FRAME_BYTES) if position > 0 else 0
    cdef uint64_t written
    if sequence >= head:
        return 0
    if head - sequence > WRITTEN_FRAMES - 8:   # eight: the writer is moving
        sequence = head - (WRITTEN_FRAMES - 8)
    written = load_u64_relaxed(&mount.written_us[sequence % WRITTEN_FRAMES])
    return now_us - written if now_us > written else 0

cdef inline void mount_told(mount_t* mount, uint64_t now_us) noexcept nogil:
    # The server confirmed the title that was asked for (sources' thread).
    cdef uint64_t number = load_u64_relaxed(&mount.titles_asked)
    store_u64_relaxed(&mount.told_us[number % TITLES_KEPT], now_us)
    store_u64(&mount.titles_told, number)

cdef inline uint64_t mount_title_owed(
    mount_t* mount, uint64_t now_us, uint64_t age_us
) noexcept nogil:
    # The newest title that was confirmed at least age_us ago: nobody may know less. 0: none.
    cdef uint64_t number = load_u64(&mount.titles_told)
    cdef uint64_t oldest = number - TITLES_KEPT + 2 if number > TITLES_KEPT else 1
    cdef uint64_t told
    while number >= oldest:
        told = load_u64_relaxed(&mount.told_us[number % TITLES_KEPT])
        if told != 0 and told + age_us <= now_us:
            return number
        number -= 1
    return 0
