# frames_mpeg.pxd: cuts MPEG audio (MPEG 1, 2, 2.5; layers I to III) into frames.
#
# Rules of this room
#   1. Not in lock, a header counts only if another of the same version, layer and sample rate, or
#      a tag, stands where its frame ends. One header alone occurs by chance in every 5 KB of
#      noise, a pair in 1 GB.
#   2. In lock, a frame goes out as soon as it is whole: nobody waits for the next one, and the
#      last frame of a source gets out. The price: bytes lost within a frame cost it and the next.
#   3. Each frame is a start. Layer III may refer to bytes of earlier frames (ISO/IEC 11172-3
#      §2.4.3.4, bit reservoir): a decoder that begins here is silent for a frame or two.
#   4. A Xing or Info frame is a frame: silent audio, passed on byte for byte.

from relay._core.frames_state cimport (
    FRAME_START,
    SCAN_FREE_FORMAT,
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
    uint16_t,
    uint32_t,
)

cdef extern from *:
    """
    #include <stdint.h>
    /* ISO/IEC 11172-3 §2.4.2.3, 13818-3 §2.4.2.3, in kbit/s: layers I, II, III of MPEG 1; layer I,
       then II and III, of MPEG 2 and 2.5. Index 0 is free format, 15 forbidden: both 0 here. */
    static const uint16_t mpeg_bit_rates_kbps[5][16] = {
        {0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448, 0},
        {0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 0},
        {0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0},
        {0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256, 0},
        {0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0},
    };
    static const uint16_t mpeg_rates_hz[4] = {44100, 48000, 32000, 0};
    """
    const uint16_t mpeg_bit_rates_kbps[5][16]
    const uint16_t mpeg_rates_hz[4]

cdef enum:
    MPEG_HEADER_BYTES = 4
    MPEG_FREE_BYTES_MIN = 24     # no frame is smaller: 8 kbit/s at 24 kHz, layer III
    MPEG_FREE_BYTES_MAX = 5764   # free format up to 640 kbit/s at 8 kHz, layer III
    # Sync word, version, layer, sample rate do not change within a run. The rest may.
    MPEG_KEY_MASK = 0xFFFE0C00
    MPEG_FREE_MASK = 0xFFFEFC00  # and the bit rate index


cdef struct mpeg_header_t:
    uint32_t frame_bytes     # with the header; 0 = free format
    uint32_t samples         # of each channel
    uint32_t rate_hz
    uint32_t bit_rate_bps    # 0 = free format
    uint32_t channels


cdef inline int mpeg_header(const uint8_t* bytes, mpeg_header_t* header) noexcept nogil:
    """1 if these four bytes are a header, free format included (ISO/IEC 11172-3 §2.4.1.3)."""
    cdef uint32_t word = be32(bytes)
    cdef uint32_t version = (word >> 19) & 3       # 0 = 2.5 (not ISO), 1 = reserved, 2, 3 = MPEG 1
    cdef uint32_t layer = 4 - ((word >> 17) & 3)   # 4 = reserved
    cdef uint32_t bit_rate_index = (word >> 12) & 15
    cdef uint32_t rate_index = (word >> 10) & 3
    cdef uint32_t padding = (word >> 9) & 1
    cdef uint32_t row
    # §2.4.2.3: the sync word, then the values that are reserved or forbidden.
    if word >> 21 != 0x7FF or version == 1 or layer == 4 or bit_rate_index == 15 or rate_index == 3:
        return 0
    row = layer - 1 if version == 3 else (3 if layer == 1 else 4)
    header.bit_rate_bps = mpeg_bit_rates_kbps[row][bit_rate_index] * <uint32_t>1000
    header.rate_hz = mpeg_rates_hz[rate_index] >> (2 if version == 0 else 3 - version)
    header.channels = 1 if (word >> 6) & 3 == 3 else 2
    # §2.4.2.1: 384 samples in layer I, 1152 in II and III; 13818-3 §2.4.2.1: 576 in III of MPEG 2.
    header.samples = 384 if layer == 1 else (576 if layer == 3 and version != 3 else 1152)
    if bit_rate_index == 0:
        header.frame_bytes = 0
    elif layer == 1:  # §2.4.3.1: slots of four bytes
        header.frame_bytes = (12 * header.bit_rate_bps // header.rate_hz + padding) * 4
    else:
        header.frame_bytes = header.samples // 8 * header.bit_rate_bps // header.rate_hz + padding
    return 1


cdef inline int mpeg_confirmed(
    const uint8_t* bytes, size_t size, uint32_t frame_bytes
) noexcept nogil:
    """1 if a frame of the same run or a tag follows, 0 = more needed, -1 = no."""
    cdef mpeg_header_t following
    cdef const uint8_t* end = bytes + frame_bytes
    if size < frame_bytes + MPEG_HEADER_BYTES:
        return 0
    if scan_is_tag(end):
        return 1
    if (be32(end) ^ be32(bytes)) & MPEG_KEY_MASK != 0 or not mpeg_header(end, &following):
        return -1
    return 1 if following.frame_bytes != 0 else -1


cdef inline int mpeg_is_free(const uint8_t* bytes, size_t size) noexcept nogil:
    """1 if three free-format headers stand at equal distances, 0 = more needed, -1 = no.

    §2.4.2.3: the distance is constant but for the padding slot, of 1 or 4 bytes.
    """
    cdef size_t first, distance
    if size < 2 * MPEG_FREE_BYTES_MAX + 8:
        return 0
    for first in range(<size_t>MPEG_FREE_BYTES_MIN, <size_t>MPEG_FREE_BYTES_MAX):
        if (be32(bytes + first) ^ be32(bytes)) & MPEG_FREE_MASK != 0:
            continue
        for distance in range(first - 4, first + 5):
            if (be32(bytes + first + distance) ^ be32(bytes)) & MPEG_FREE_MASK == 0:
                return 1
    return -1


cdef inline size_t mpeg_next(const uint8_t* bytes, size_t size) noexcept nogil:
    """Offset, 1 or more, of what next looks like a header, or may when more bytes are here."""
    cdef mpeg_header_t header
    cdef size_t offset = 1
    cdef const void* found
    while offset < size:
        found = memchr(bytes + offset, 0xFF, size - offset)
        if found == NULL:
            return size
        offset = <const uint8_t*>found - bytes
        if size - offset < MPEG_HEADER_BYTES or mpeg_header(bytes + offset, &header):
            return offset
        offset += 1
    return size


cdef inline int64_t mpeg_frame(
    scan_t* scan, cut_t* cut, const mpeg_header_t* header
) noexcept nogil:
    if scan.sample_rate_hz != header.rate_hz:
        scan.sample_rate_hz = header.rate_hz
        scan.duration_rest = 0  # it counts in parts of the old rate
    if scan.bit_rate_bps == 0:
        scan.bit_rate_bps = header.bit_rate_bps
    elif scan.bit_rate_bps != header.bit_rate_bps:
        scan.bit_rate_varies = 1
    scan.channels = header.channels
    return scan_frame(scan, cut, header.frame_bytes, header.samples, FRAME_START)


cdef inline int64_t mpeg_search(
    scan_t* scan, const uint8_t* bytes, size_t size, cut_t* cut
) noexcept nogil:
    """Not in lock: lock on to the front, or discard up to what next looks like a header."""
    cdef mpeg_header_t header
    cdef int verdict = -1
    if mpeg_header(bytes, &header):
        if header.frame_bytes != 0:
            verdict = mpeg_confirmed(bytes, size, header.frame_bytes)
        elif scan.frames_total == 0:
            verdict = mpeg_is_free(bytes, size)
            if verdict == 1:
                return SCAN_FREE_FORMAT
    if verdict == 0:
        return SCAN_MORE
    if verdict < 0:
        return scan_junk(scan, cut, mpeg_next(bytes, size))
    scan.lock_key = be32(bytes) & MPEG_KEY_MASK
    return mpeg_frame(scan, cut, &header)


cdef inline int64_t scan_mpeg(
    scan_t* scan, const uint8_t* bytes, size_t size, cut_t* cut
) noexcept nogil:
    """One step; see scan_next. In lock little of it runs: a compare, a table, a bound."""
    cdef mpeg_header_t header
    cdef int64_t step
    size = size if size < SCAN_STEP_BYTES_MAX else SCAN_STEP_BYTES_MAX
    if scan.tag_rest_bytes != 0 and size != 0:
        return scan_tag_rest(scan, cut, size)
    if size < scan_bytes_min(scan, MPEG_HEADER_BYTES):
        return SCAN_MORE
    if (
        be32(bytes) & MPEG_KEY_MASK == scan.lock_key and mpeg_header(bytes, &header)
        and header.frame_bytes != 0
    ):
        return mpeg_frame(scan, cut, &header) if size >= header.frame_bytes else SCAN_MORE
    step = scan_foreign(scan, bytes)
    if step < 0:
        return step
    step = scan_tag(scan, bytes, size, cut)
    if step >= 0:
        return step
    if scan.lock_key != 0:
        scan.lock_key = 0
        scan.resyncs_total += 1
    return mpeg_search(scan, bytes, size, cut)
