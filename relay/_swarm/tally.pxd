# tally.pxd: what is counted of one group of listeners in one window.
#
# Rules of this room
#   1. One writer: the loop. The face reads and clears it between two runs.
#   2. Fixed size; counters of events only. What is true now (who plays, who waits) is counted from
#      the records when it is asked for.

from libc.stdint cimport uint32_t, uint64_t

from relay._core.histogram cimport histogram_t

cdef enum:
    GROUPS_MAX = 32
    ERRNOS = 136
    STATUSES = 600

cdef struct tally_t:
    uint64_t asked            # connect() was called
    uint64_t joined           # the first audio was heard
    uint64_t admitted         # of a flood: got audio where a refusal was expected
    uint64_t cut              # replies that ended early, or were no HTTP
    uint64_t unclosed         # refusals after which the server did not close in time
    uint64_t foreign          # a programme that is not ours, or not of this mount
    uint64_t resets
    uint64_t ended            # EOF while it should play
    uint64_t syn_repeated     # a handshake with a second SYN
    uint64_t head_repeated    # something was sent again between the handshake and the first audio
    uint64_t bytes            # audio
    uint64_t arrivals
    uint64_t behind           # listeners, once each: further behind than pace and tolerance
    uint64_t unequal          # at the end: bytes are not the head's advance
    uint64_t missing_bytes    # of those, together
    uint64_t surplus_bytes
    uint64_t frames_checked
    uint64_t frames_lost
    uint64_t frames_repeated
    uint64_t frames_damaged
    uint64_t skips            # forward jumps, whatever their size
    uint64_t skips_allowed    # of those who lagged on our will, between two frames
    uint64_t frames_skipped   # by these
    uint64_t blocks_checked   # ICY
    uint64_t titles_heard
    uint64_t titles_wrong     # text, order, or older than it may be
    uint64_t longest_gap_us
    uint64_t worst_lag_us
    uint64_t began_us         # of the first connect()
    uint64_t last_us          # of the last connect()
    uint64_t settled_us       # of the last first audio or whole refusal
    uint32_t refused[STATUSES]  # whole replies, by status
    uint32_t failed[ERRNOS]   # by errno; the last one takes all that are higher
    histogram_t connect       # connect() → the connection stands
    histogram_t first_audio   # connect() → first body byte
    histogram_t refusal       # connect() → whole reply and EOF
    histogram_t lateness      # of each frame of the sample
    histogram_t gap           # between two arrivals, of all
    histogram_t lag           # age of the oldest byte of each arrival, of all
    histogram_t skip          # of each forward jump: the writes of the frames on either side

cdef inline void tally_failed(tally_t* tally, int error) noexcept nogil:
    tally.failed[error if 0 <= error < ERRNOS else ERRNOS - 1] += 1
