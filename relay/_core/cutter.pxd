# cutter.pxd: the bytes of one epoch's source, cut into frames and pushed into its ring.
#
# Rules of this room
#   1. One thread at a time, the stream's writer. Nothing waits.
#   2. Whole frames go straight from the caller's bytes into the ring; only a frame that two feeds
#      share passes through the carry buffer.
#   3. Bytes are changed in three cases only, in a copy: the serial of an Ogg chain that repeats the
#      one before, or might repeat the one of a mount that its listeners hear too (own_serial); Ogg
#      pages longer than the mount wants (repage.pxd); the sizes of a WebM's clusters.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset

from relay._core.atomics cimport load_u32
from relay._core.frames cimport (
    FRAME_BYTES_MAX, FRAME_CHAIN, FRAME_HEADER, FRAME_START, SCAN_OGG, SCAN_WEBM, cut_t, le32,
    scan_next, scan_open, scan_t,
)
from relay._core.frames_ogg cimport OGG_SERIAL_OFFSET, OGG_SERIAL_STEP, ogg_mask_serial
from relay._core.frames_webm cimport webm_unsize
from relay._core.repage cimport repage_next, repage_t, repage_take
from relay._core.ring cimport FRAME_TITLE, header_t, ring_header, ring_t, ring_title, title_t
from relay._core.stream cimport stream_begin_epoch, stream_mark, stream_push, stream_t

cdef enum:
    CARRY_BYTES = 2 * FRAME_BYTES_MAX
    BEHIND_US_MAX = 2000000   # what a source did not send for long, it may not send at once later

cdef extern from *:
    """
    #define RELAY_CUTTER_AHEAD_ANY INT64_MAX
    """
    const int64_t CUTTER_AHEAD_ANY "RELAY_CUTTER_AHEAD_ANY"

cdef struct cutter_t:
    stream_t* stream          # borrowed; claimed by the owner, its epoch begun
    scan_t scan
    uint8_t* carry            # CARRY_BYTES: bytes of a frame that is not whole yet; owned
    size_t carry_bytes
    uint8_t* page             # a frame that goes out changed; owned, or NULL
    repage_t* repage          # where pages of the source are divided; owned, or NULL
    uint32_t serial_mask      # what the serials of this chain are changed by; 0: nothing
    uint64_t began_us         # when the first frame came, moved on while the source lags
    uint64_t fed_media_us

cdef inline int cutter_open(cutter_t* cutter, stream_t* stream, int scan_kind) noexcept nogil:
    memset(cutter, 0, sizeof(cutter_t))
    cutter.stream = stream
    cutter.carry = <uint8_t*>malloc(CARRY_BYTES)
    scan_open(&cutter.scan, scan_kind)
    if scan_kind == SCAN_OGG and stream.config.ogg_page_us > 0:
        cutter.page = <uint8_t*>malloc(FRAME_BYTES_MAX)
        cutter.repage = <repage_t*>calloc(1, sizeof(repage_t))
        if cutter.page == NULL or cutter.repage == NULL:
            return -1
        cutter.repage.page_us = stream.config.ogg_page_us
    elif scan_kind == SCAN_WEBM:
        cutter.page = <uint8_t*>malloc(FRAME_BYTES_MAX)
        if cutter.page == NULL:
            return -1
    return 0 if cutter.carry != NULL else -1

cdef inline void cutter_close(cutter_t* cutter) noexcept nogil:
    free(cutter.carry)
    free(cutter.page)
    free(cutter.repage)
    cutter.carry = cutter.page = NULL
    cutter.repage = NULL

cdef inline uint32_t stream_serial(const stream_t* stream) noexcept nogil:
    # For a chain of a mount that has, or is, a fallback: one that no other mount has (2**-32), nor
    # this one before, also after a restart of the node: an epoch is its time.
    cdef uint64_t mix = (stream.key ^ stream.epoch_highest) * <uint64_t>0x9E3779B97F4A7C15
    return <uint32_t>(mix >> 32) + <uint32_t>stream.ogg_chains_total * <uint32_t>OGG_SERIAL_STEP

cdef inline uint32_t cutter_chain_mask(cutter_t* cutter, uint32_t serial) noexcept nogil:
    # A mask, and not a number, keeps the serials of several streams in one chain apart.
    cdef stream_t* stream = cutter.stream
    cdef uint32_t told = serial
    cdef bint is_own = load_u32(&stream.config.own_serial) == 1     # may change while it plays
    cdef bint repeats = stream.ogg_chains_total > 0 and (
        serial == stream.ogg_serial_given or serial == stream.ogg_serial_told
    )
    if (repeats or is_own) and cutter.page == NULL:
        cutter.page = <uint8_t*>malloc(FRAME_BYTES_MAX)
    if cutter.page != NULL and is_own:
        told = stream_serial(stream)
    elif cutter.page != NULL and repeats:
        told = stream.ogg_serial_told + OGG_SERIAL_STEP
    stream.ogg_chains_total += 1
    stream.ogg_serial_given = serial
    stream.ogg_serial_told = told
    return serial ^ told

cdef inline const uint8_t* cutter_page(
    cutter_t* cutter, const uint8_t* page, const cut_t* cut,
) noexcept nogil:
    # The page as listeners get it: as it is, unless its chain has, or may have, the serial of the
    # one that they heard before.
    # RFC 3533 §4 wants another; FFmpeg takes the new header pages for audio without it. Some
    # encoders (DarkIce) write the same serial after each return.
    if cutter.serial_mask == 0:
        return page
    memcpy(cutter.page, page, cut.frame_bytes)
    ogg_mask_serial(cutter.page, cut.frame_bytes, cutter.serial_mask)
    return cutter.page

cdef inline void cutter_push_ogg(
    cutter_t* cutter, const uint8_t* page, cut_t* cut,
) noexcept nogil:
    # As it came, with another serial, or as several pages.
    if cut.flags & FRAME_CHAIN:
        cutter.serial_mask = cutter_chain_mask(cutter, le32(page + OGG_SERIAL_OFFSET))
    if cutter.repage != NULL and repage_take(
        cutter.repage, &cutter.scan, page, cut, cutter.serial_mask
    ):
        while repage_next(cutter.repage, &cutter.scan, cutter.page, cut):
            stream_push(cutter.stream, cutter.page, cut.frame_bytes, cut.duration_us, cut.flags)
        return
    page = cutter_page(cutter, page, cut)
    stream_push(cutter.stream, page, cut.frame_bytes, cut.duration_us, cut.flags)

cdef inline void cutter_push(cutter_t* cutter, const uint8_t* frame, cut_t* cut) noexcept nogil:
    if cutter.scan.kind == SCAN_OGG:
        cutter_push_ogg(cutter, frame, cut)
        return
    if cutter.scan.kind == SCAN_WEBM and cut.flags & (FRAME_START | FRAME_HEADER):
        memcpy(cutter.page, frame, cut.frame_bytes)
        webm_unsize(cutter.page, cut.frame_bytes)
        frame = cutter.page
    stream_push(cutter.stream, frame, cut.frame_bytes, cut.duration_us, cut.flags)

cdef inline int64_t cutter_cut(cutter_t* cutter, const uint8_t* bytes, size_t size) noexcept nogil:
    # All whole frames at the front; the bytes used, or < 0 (scan_reason).
    cdef cut_t cut
    cdef size_t used = 0
    cdef int64_t step
    while used < size:
        step = scan_next(&cutter.scan, bytes + used, size - used, &cut)
        if step < 0:
            return step
        if step == 0:
            break
        used += <size_t>step
        cutter.stream.counters.junk_bytes_total += cut.skipped_bytes
        if cut.frame_bytes > 0:
            cutter.fed_media_us += cut.duration_us
            cutter_push(cutter, bytes + used - cut.frame_bytes, &cut)
    return <int64_t>used

cdef inline int64_t cutter_feed(
    cutter_t* cutter, const uint8_t* bytes, size_t size, uint64_t now_us,
) noexcept nogil:
    # Takes all of them; 0, or < 0: not what the format promises (scan_reason).
    cdef size_t piece
    cdef int64_t used = 0
    stream_mark(cutter.stream, now_us)
    while cutter.carry_bytes > 0 and size > 0:
        piece = CARRY_BYTES - cutter.carry_bytes
        piece = piece if piece < size else size
        memcpy(cutter.carry + cutter.carry_bytes, bytes, piece)
        used = cutter_cut(cutter, cutter.carry, cutter.carry_bytes + piece)
        if used < 0:
            return used
        if <size_t>used >= cutter.carry_bytes:     # all that was carried is gone: on in place
            bytes += <size_t>used - cutter.carry_bytes
            size -= <size_t>used - cutter.carry_bytes
            cutter.carry_bytes = 0
        else:
            cutter.carry_bytes += piece - <size_t>used
            memmove(cutter.carry, cutter.carry + used, cutter.carry_bytes)
            bytes += piece
            size -= piece
    if cutter.carry_bytes == 0 and size > 0:
        used = cutter_cut(cutter, bytes, size)
        if used < 0:
            return used
        cutter.carry_bytes = size - <size_t>used   # less than a step needs: ≤ FRAME_BYTES_MAX
        memcpy(cutter.carry, bytes + used, cutter.carry_bytes)
    return 0

cdef inline bint cutter_may_begin_anew(const cutter_t* cutter) noexcept nogil:
    # In the middle of header pages it may not.
    return cutter.stream.ring != NULL and not cutter.stream.ring.header_open

cdef inline int cutter_begin_anew(
    cutter_t* cutter, uint64_t epoch, uint64_t origin, uint64_t now_us,
) noexcept nogil:
    # The source goes on in a new epoch, from its next frame on: the header pages in force, with
    # another serial, and the title are the first there. 0, or as stream_begin_epoch. By the
    # stream's writer; the old ring stays until the new one has media (stream.before).
    cdef ring_t* old = cutter.stream.ring
    cdef const header_t* header = ring_header(old, old.head_sequence)
    cdef const title_t* title = ring_title(old, old.head_position)
    cdef int status = stream_begin_epoch(cutter.stream, epoch, origin, 0, 0, 0)
    if status != 0:
        return status
    stream_mark(cutter.stream, now_us)
    if header != NULL and cutter.scan.kind == SCAN_OGG:
        cutter_put_header(cutter, header.bytes, header.size_bytes)
    if title != NULL:
        stream_push(cutter.stream, title.bytes, title.size_bytes, 0, FRAME_TITLE)
    return 0

cdef inline void cutter_put_header(
    cutter_t* cutter, const uint8_t* bytes, uint32_t size,
) noexcept nogil:
    # Sound pages, as they went out. RFC 3533 §6: 27 bytes, the 27th says how many sizes follow.
    cdef cut_t cut
    cdef uint32_t mask = cutter.serial_mask
    cdef uint32_t at = 0
    cdef uint32_t i
    memset(&cut, 0, sizeof(cut_t))
    cut.flags = FRAME_HEADER | FRAME_CHAIN
    while size - at >= 27 and size - at >= <uint32_t>27 + bytes[at + 26]:
        cut.frame_bytes = <uint32_t>27 + bytes[at + 26]
        for i in range(bytes[at + 26]):
            cut.frame_bytes += bytes[at + 27 + i]
        if cut.frame_bytes > size - at:
            return
        stream_push(
            cutter.stream, cutter_page_anew(cutter, bytes + at, &cut, mask), cut.frame_bytes, 0,
            cut.flags,
        )
        cut.flags = FRAME_HEADER
        at += cut.frame_bytes

cdef inline const uint8_t* cutter_page_anew(
    cutter_t* cutter, const uint8_t* page, const cut_t* cut, uint32_t mask,
) noexcept nogil:
    # A page that went out with its serial changed by `mask` goes out once more, with the next one.
    if cut.flags & FRAME_CHAIN:
        cutter.serial_mask = cutter_chain_mask(cutter, le32(page + OGG_SERIAL_OFFSET) ^ mask)
    if cutter.serial_mask == mask:
        return page             # no memory for the copy: as it was
    memcpy(cutter.page, page, cut.frame_bytes)
    ogg_mask_serial(cutter.page, cut.frame_bytes, cutter.serial_mask ^ mask)
    return cutter.page

cdef inline int64_t cutter_ahead_us(
    cutter_t* cutter, uint64_t now_us, int64_t ahead_us_most,
) noexcept nogil:
    # How far the source is ahead of real time, µs of media; below zero: behind. More than the most
    # is forgiven: pages may claim hours, and nobody is to wait for them.
    cdef int64_t ahead
    if cutter.fed_media_us == 0:
        return 0
    if cutter.began_us == 0:     # the first frame: real time begins here
        cutter.began_us = now_us
    ahead = <int64_t>cutter.fed_media_us - <int64_t>(now_us - cutter.began_us)
    if ahead < -BEHIND_US_MAX:
        cutter.began_us = now_us - cutter.fed_media_us - BEHIND_US_MAX
        return -BEHIND_US_MAX
    if ahead > ahead_us_most:
        cutter.began_us -= <uint64_t>(ahead - ahead_us_most)   # modulo 2**64, as the difference is
        return ahead_us_most
    return ahead
