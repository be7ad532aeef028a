# checker.pxd: looks at every frame and every title of one sampled listener.
#
# Rules of this room
#   1. Split-invariant: any cut of the same bytes counts the same.
#   2. Before the first whole frame nothing is damage: a burst cut by bytes begins inside one. From
#      there on each byte belongs to a frame.
#   3. A forward jump of sequences is one skip, and each frame in it is lost; frames that came
#      damaged are counted as that, and not as lost too.
#      Who lagged on our will may be moved on between two frames: counted apart, and it moves his
#      position; until he has caught up a title is as new as the audio around it has to be.
#   4. Titles are "title N"; N never falls, was asked for, and is no older than title_age_us. Each
#      wrong block is counted, and each N that is owed once.
#   5. ≤ 5 KiB a listener. Knows no sockets, takes the time as an argument.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memmove

from relay._core.atomics cimport load_u64
from relay._core.histogram cimport histogram_add
from relay._swarm.frame cimport FRAME_BYTES, frame_read, mark_t
from relay._swarm.mount cimport mount_t, mount_title_owed
from relay._swarm.tally cimport tally_t

cdef enum:
    BLOCK_BYTES_MAX = 4080

cdef struct checker_t:
    mount_t* mount
    tally_t* tally            # of its group
    uint32_t run
    bint may_skip             # it lagged on our will, and has not caught up yet
    uint64_t skipped_bytes    # by skips that it may; whoever feeds it takes them into the position
    uint64_t heard_us         # when the frame last heard was written
    bint found                # a first frame was found
    uint64_t live_us          # frames written before this came by a burst: their lateness is none
    uint64_t sequence         # of the next frame
    uint64_t junk_bytes       # since the last good frame
    uint64_t title_age_us     # pace + metaint's media time + a second
    uint64_t title            # N last heard; 0: none
    uint64_t title_missed     # N last counted as owed
    uint32_t rest_bytes       # of a frame whose end has not come
    uint32_t block_bytes      # of a title block that has come so far
    uint8_t rest[FRAME_BYTES]
    uint8_t block[BLOCK_BYTES_MAX]

cdef inline void checker_frame(checker_t* checker, mark_t* mark, uint64_t now_us) noexcept nogil:
    # A whole frame: once, in order, how late.
    cdef tally_t* tally = checker.tally
    cdef uint64_t damaged = (checker.junk_bytes + FRAME_BYTES - 1) // FRAME_BYTES
    cdef uint64_t jump
    checker.junk_bytes = 0
    if mark.run != checker.run or mark.mount != checker.mount.number:
        tally.frames_damaged += 1
        return
    tally.frames_checked += 1
    if mark.written_us >= checker.live_us:
        histogram_add(
            &tally.lateness, now_us - mark.written_us if now_us > mark.written_us else 0
        )
    if not checker.found:
        checker.found = True
        checker.sequence = mark.sequence
    if mark.sequence < checker.sequence:
        tally.frames_repeated += 1
        return
    jump = mark.sequence - checker.sequence
    if jump > damaged:
        histogram_add(&tally.skip, mark.written_us - checker.heard_us)
    checker.heard_us = mark.written_us
    if jump > damaged and checker.may_skip:
        tally.skips_allowed += 1
        tally.frames_skipped += jump - damaged
        checker.skipped_bytes += (jump - damaged) * FRAME_BYTES
    elif jump > damaged:
        tally.skips += 1
        tally.frames_lost += jump - damaged
    checker.sequence = mark.sequence + 1

cdef inline void checker_junk(checker_t* checker, uint64_t size) noexcept nogil:
    # Bytes that begin no frame; as many frames as they could have held are damaged.
    cdef uint64_t before = (checker.junk_bytes + FRAME_BYTES - 1) // FRAME_BYTES
    if not checker.found:
        return
    checker.junk_bytes += size
    checker.tally.frames_damaged += (
        (checker.junk_bytes + FRAME_BYTES - 1) // FRAME_BYTES - before
    )

cdef inline void checker_audio(
    checker_t* checker, const uint8_t* bytes, int64_t size, uint64_t now_us
) noexcept nogil:
    cdef mark_t mark
    cdef int64_t take
    cdef const uint8_t* next
    while size > 0:
        if checker.rest_bytes == 0 and size >= FRAME_BYTES and frame_read(bytes, &mark):
            checker_frame(checker, &mark, now_us)
            bytes += FRAME_BYTES
            size -= FRAME_BYTES
            continue
        take = FRAME_BYTES - checker.rest_bytes
        take = take if take < size else size
        memcpy(checker.rest + checker.rest_bytes, bytes, take)
        checker.rest_bytes += <uint32_t>take
        bytes += take
        size -= take
        if checker.rest_bytes < FRAME_BYTES:
            return
        if frame_read(checker.rest, &mark):
            checker_frame(checker, &mark, now_us)
            checker.rest_bytes = 0
            continue
        # only a frame's first byte is 0xFF: what lies before the next one is no frame
        next = <const uint8_t*>memchr(checker.rest + 1, 0xFF, FRAME_BYTES - 1)
        take = next - checker.rest if next != NULL else FRAME_BYTES
        checker_junk(checker, take)
        memmove(checker.rest, checker.rest + take, FRAME_BYTES - take)
        checker.rest_bytes -= <uint32_t>take

cdef inline uint64_t title_number(const uint8_t* block, uint32_t size) noexcept nogil:
    # N of StreamTitle='title N'; or 0 when it says something else.
    cdef uint64_t number = 0
    cdef uint32_t at = 19
    if size < 22 or memcmp(block, b"StreamTitle='title ", 19) != 0:
        return 0
    while at < size and 48 <= block[at] <= 57 and number < 100000000:
        number = number * 10 + (block[at] - 48)
        at += 1
    if at + 2 > size or memcmp(block + at, b"';", 2) != 0:
        return 0
    return number

cdef inline void checker_title(checker_t* checker, uint64_t now_us) noexcept nogil:
    # A block is over (an empty one, too): is what the listener knows right, and new enough?
    cdef tally_t* tally = checker.tally
    cdef uint64_t number
    cdef uint64_t owed
    tally.blocks_checked += 1
    if checker.may_skip and checker.heard_us < now_us:
        now_us = checker.heard_us     # what waited in queues for us is older than we made it
    owed = mount_title_owed(checker.mount, now_us, checker.title_age_us)
    if checker.block_bytes > 0:
        number = title_number(checker.block, checker.block_bytes)
        checker.block_bytes = 0
        tally.titles_heard += 1
        if number > load_u64(&checker.mount.titles_asked) or number < checker.title or (
            # the server's own text (a name) is right until a title of ours is owed
            number == 0 and owed > 0
        ):
            tally.titles_wrong += 1
            return
        checker.title = number
    if owed > checker.title and owed > checker.title_missed:
        checker.title_missed = owed
        tally.titles_wrong += 1

cdef inline void checker_block(
    checker_t* checker, const uint8_t* bytes, uint32_t size
) noexcept nogil:
    # A piece of a title block, without its length byte.
    if checker.block_bytes + size <= BLOCK_BYTES_MAX:
        memcpy(checker.block + checker.block_bytes, bytes, size)
        checker.block_bytes += size
