# frames_adts.pxd: cuts AAC in ADTS into frames (ISO/IEC 13818-7 §6.2, 14496-3 §1.A.2.2).
#
# Rules of this room
#   1. Not in lock, a header counts only if another with the same fixed part, or a tag, stands
#      where its frame ends. In lock a frame goes out as soon as it is whole, as in MPEG.
#   2. A duration is 1024 samples a block at the rate that the header names. HE-AAC, signalled
#      implicitly, names its core's rate: half the samples at half the rate, the same time.
#   3. The CRC of a frame needs its Huffman codes to be read, so it is passed on unchecked.
#   4. Each frame is a start.

from relay._core.frames_state cimport (
    FRAME_START,
    SCAN_MORE,
    SCAN_STEP_BYTES_MAX,
    be32,
    cut_t,
    int64_t,
    memchr,
    scan_bytes_min,
    scan_foreign,
    scan_frame,
    scan_is_tag,
    scan_junk,
    scan_t,
    scan_tag,
    scan_tag_rest,
    uint8_t,
    uint32_t,
)

cdef extern from *:
    """
    #include <stdint.h>
    /* ISO/IEC 14496-3 table 1.18: 13 and 14 are reserved, 15 (explicit) has no place here. */
    static const uint32_t adts_rates_hz[16] = {
        96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050,
        16000, 12000, 11025, 8000, 7350, 0, 0, 0,
    };
    """
    const uint32_t adts_rates_hz[16]

cdef enum:
    ADTS_HEADER_BYTES = 7       # without the CRC
    ADTS_CRC_BYTES = 2
    ADTS_BLOCK_SAMPLES = 1024   # of each channel
    # The fixed header (13818-7 §6.2.1: it does not change from frame to frame) without the
    # private, original and home bits, which some encoders flip.
    ADTS_KEY_MASK = 0xFFFFFDC0


cdef struct adts_header_t:
    uint32_t frame_bytes     # with the header
    uint32_t samples         # of each channel
    uint32_t rate_hz         # of the core
    uint32_t channels        # of the core; 0 = told inside the frame (program config element)


cdef inline int adts_header(const uint8_t* bytes, adts_header_t* header) noexcept nogil:
    """1 if these seven bytes are a header (14496-3 tables 1.A.6 and 1.A.7)."""
    cdef uint32_t word = be32(bytes)
    cdef uint32_t blocks = (bytes[6] & 3) + 1
    cdef uint32_t configuration = (word >> 6) & 7
    cdef uint32_t bytes_min = ADTS_HEADER_BYTES
    if word >> 20 != 0xFFF or (word >> 17) & 3 != 0:  # the layer is always 0
        return 0
    if not (word >> 16) & 1:  # protected: a CRC, and before it the places of the further blocks
        bytes_min += ADTS_CRC_BYTES * blocks
    header.rate_hz = adts_rates_hz[(word >> 10) & 15]
    header.frame_bytes = ((word & 3) << 11) | (<uint32_t>bytes[4] << 3) | (bytes[5] >> 5)
    header.samples = ADTS_BLOCK_SAMPLES * blocks
    header.channels = 8 if configuration == 7 else configuration
    return header.rate_hz != 0 and header.frame_bytes >= bytes_min


cdef inline int adts_confirmed(
    const uint8_t* bytes, size_t size, uint32_t frame_bytes
) noexcept nogil:
    """1 if a frame of the same run or a tag follows, 0 = more needed, -1 = no."""
    cdef adts_header_t following
    cdef const uint8_t* end = bytes + frame_bytes
    if size < frame_bytes + ADTS_HEADER_BYTES:
        return 0
    if scan_is_tag(end):
        return 1
    if (be32(end) ^ be32(bytes)) & ADTS_KEY_MASK != 0:
        return -1
    return 1 if adts_header(end, &following) else -1


cdef inline size_t adts_next(const uint8_t* bytes, size_t size) noexcept nogil:
    """Offset, 1 or more, of what next looks like a header, or may when more bytes are here."""
    cdef adts_header_t header
    cdef size_t offset = 1
    cdef const void* found
    while offset < size:
        found = memchr(bytes + offset, 0xFF, size - offset)
        if found == NULL:
            return size
        offset = <const uint8_t*>found - bytes
        if size - offset < ADTS_HEADER_BYTES or adts_header(bytes + offset, &header):
            return offset
        offset += 1
    return size


cdef inline int64_t adts_frame(
    scan_t* scan, cut_t* cut, const adts_header_t* header
) noexcept nogil:
    if scan.sample_rate_hz != header.rate_hz:
        scan.sample_rate_hz = header.rate_hz
        scan.duration_rest = 0  # it counts in parts of the old rate
    scan.channels = header.channels
    return scan_frame(scan, cut, header.frame_bytes, header.samples, FRAME_START)


cdef inline int64_t adts_search(
    scan_t* scan, const uint8_t* bytes, size_t size, cut_t* cut
) noexcept nogil:
    """Not in lock: lock on to the front, or discard up to what next looks like a header."""
    cdef adts_header_t header
    cdef int verdict = -1
    if adts_header(bytes, &header):
        verdict = adts_confirmed(bytes, size, header.frame_bytes)
    if verdict == 0:
        return SCAN_MORE
    if verdict < 0:
        return scan_junk(scan, cut, adts_next(bytes, size))
    scan.lock_key = be32(bytes) & ADTS_KEY_MASK
    return adts_frame(scan, cut, &header)


cdef inline int64_t scan_adts(
    scan_t* scan, const uint8_t* bytes, size_t size, cut_t* cut
) noexcept nogil:
    """One step; see scan_next."""
    cdef adts_header_t header
    cdef int64_t step
    size = size if size < SCAN_STEP_BYTES_MAX else SCAN_STEP_BYTES_MAX
    if scan.tag_rest_bytes != 0 and size != 0:
        return scan_tag_rest(scan, cut, size)
    if size < scan_bytes_min(scan, ADTS_HEADER_BYTES):
        return SCAN_MORE
    if be32(bytes) & ADTS_KEY_MASK == scan.lock_key and adts_header(bytes, &header):
        return adts_frame(scan, cut, &header) if size >= header.frame_bytes else SCAN_MORE
    step = scan_foreign(scan, bytes)
    if step < 0:
        return step
    step = scan_tag(scan, bytes, size, cut)
    if step >= 0:
        return step
    if scan.lock_key != 0:
        scan.lock_key = 0
        scan.resyncs_total += 1
    return adts_search(scan, bytes, size, cut)
