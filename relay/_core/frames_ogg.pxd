# frames_ogg.pxd: cuts Ogg (RFC 3533) into frames: a frame is a page.
#
# Rules of this room
#   1. A page counts when its checksum is right; it needs no neighbour to confirm it. A wrong one
#      is searched for the next capture pattern: its length cannot be believed either.
#   2. A chain begins with its BOS pages (RFC 3533 §4, §6). BOS pages and all pages until a
#      stream's header packets are complete are headers: kept for those who join late.
#   3. The first audio stream of a chain is its main one: its clock gives the durations, and its
#      data pages that begin a packet are the starts. What is multiplexed with it goes along.
#   4. Missing page sequence numbers are tolerated; pages of a stream without BOS are discarded,
#      since nobody could decode them.
#   5. Granule positions are passed on as they are (RFC 7845 §4 lets a stream begin anywhere).
#   6. Serials too, unless a chain has that of the one before (RFC 3533 §4 forbids it): then the
#      origin writes another into a copy of each page (ogg_mask_serial). Scanning changes no byte.

from relay._core.frames_state cimport (
    FRAME_CHAIN,
    FRAME_HEADER,
    FRAME_START,
    OGG_TRACKS_MAX,
    SCAN_MORE,
    SCAN_NO_AUDIO,
    SCAN_STEP_BYTES_MAX,
    be32,
    cut_t,
    int64_t,
    le32,
    memchr,
    memcmp,
    memset,
    ogg_track_t,
    scan_bytes_min,
    scan_foreign,
    scan_frame,
    scan_junk,
    scan_t,
    uint8_t,
    uint32_t,
    uint64_t,
)

cdef extern from *:
    """
    #include <stdint.h>
    /* RFC 3533 §6: polynomial 0x04c11db7, start 0, not reflected. Row k holds the effect of a byte
       that k further bytes follow, so that eight bytes are one step. Filled once, at load. */
    static uint32_t ogg_crc_table[8][256];
    __attribute__((constructor)) static void ogg_crc_fill(void) {
        for (uint32_t value = 0; value < 256; value++) {
            uint32_t crc = value << 24;
            for (int bit = 0; bit < 8; bit++)
                crc = (crc << 1) ^ (crc & 0x80000000u ? 0x04c11db7u : 0u);
            ogg_crc_table[0][value] = crc;
        }
        for (int row = 1; row < 8; row++)
            for (uint32_t value = 0; value < 256; value++) {
                uint32_t crc = ogg_crc_table[row - 1][value];
                ogg_crc_table[row][value] = (crc << 8) ^ ogg_crc_table[0][crc >> 24];
            }
    }
    """
    const uint32_t ogg_crc_table[8][256]

cdef enum:  # codecs of a track; those above OGG_OTHER are audio that can be the main stream
    OGG_OTHER = 0
    OGG_OPUS = 1      # RFC 7845
    OGG_VORBIS = 2    # Vorbis I
    OGG_FLAC = 3      # RFC 9639 §10.1
    OGG_SPEEX = 4

cdef enum:
    OGG_HEADER_BYTES = 27       # and the lacing values behind them
    OGG_SERIAL_OFFSET = 14
    OGG_CRC_OFFSET = 22
    OGG_SERIAL_STEP = 0x1E3779B9  # odd: added again and again, it meets all 2**32
    OGG_CONTINUED = 1           # flags of a page (RFC 3533 §6)
    OGG_BOS = 2
    OGG_HEADERS_UNKNOWN = -1
    OGG_HEADERS_MAX = 255       # a first packet that promises more is not believed
    OGG_DURATION_S_MAX = 10     # of one page; a larger step of the granule is a jump


cdef struct ogg_page_t:  # a view of one page; valid as long as the caller's bytes
    const uint8_t* lacing    # segments_count values
    const uint8_t* body      # body_bytes
    uint32_t page_bytes      # header, lacing and body; at most 65,307
    uint32_t body_bytes
    uint32_t segments_count
    uint32_t flags           # OGG_CONTINUED | OGG_BOS | 4 (EOS)
    uint32_t serial
    int64_t granule          # -1 = no packet ends on this page


cdef inline uint32_t ogg_crc(uint32_t crc, const uint8_t* bytes, size_t size) noexcept nogil:
    """Slicing by eight: table lookups of one step do not wait for each other."""
    cdef uint32_t high, low
    while size >= 8:
        high = crc ^ be32(bytes)
        low = be32(bytes + 4)
        crc = (
            ogg_crc_table[7][high >> 24] ^ ogg_crc_table[6][(high >> 16) & 255]
            ^ ogg_crc_table[5][(high >> 8) & 255] ^ ogg_crc_table[4][high & 255]
            ^ ogg_crc_table[3][low >> 24] ^ ogg_crc_table[2][(low >> 16) & 255]
            ^ ogg_crc_table[1][(low >> 8) & 255] ^ ogg_crc_table[0][low & 255]
        )
        bytes += 8
        size -= 8
    while size:
        crc = (crc << 8) ^ ogg_crc_table[0][(crc >> 24) ^ bytes[0]]
        bytes += 1
        size -= 1
    return crc


cdef inline int ogg_page(const uint8_t* bytes, size_t size, ogg_page_t* page) noexcept nogil:
    """1 if a page is whole at the front, 0 = more needed, -1 = no page; the CRC is not checked."""
    cdef uint32_t segment
    if memcmp(bytes, b"OggS", 4) != 0:
        return -1
    if size < OGG_HEADER_BYTES:
        return 0
    if bytes[4] != 0:  # the version
        return -1
    page.segments_count = bytes[26]
    if size < OGG_HEADER_BYTES + page.segments_count:
        return 0
    page.lacing = bytes + OGG_HEADER_BYTES
    page.body = page.lacing + page.segments_count
    page.body_bytes = 0
    for segment in range(page.segments_count):
        page.body_bytes += page.lacing[segment]
    page.page_bytes = OGG_HEADER_BYTES + page.segments_count + page.body_bytes
    page.flags = bytes[5]
    page.granule = <int64_t>((<uint64_t>le32(bytes + 10) << 32) | le32(bytes + 6))
    page.serial = le32(bytes + 14)
    return 1 if size >= page.page_bytes else 0


cdef inline void put_le32(uint8_t* bytes, uint32_t value) noexcept nogil:
    cdef int i
    for i in range(4):
        bytes[i] = <uint8_t>(value >> (8 * i))


cdef inline int ogg_is_sound(const uint8_t* bytes, size_t page_bytes) noexcept nogil:
    """Whether the checksum is right; it is computed with its own four bytes as zero."""
    cdef uint8_t zero[4]
    cdef uint32_t crc
    memset(zero, 0, 4)
    crc = ogg_crc(ogg_crc(0, bytes, OGG_CRC_OFFSET), zero, 4)
    crc = ogg_crc(crc, bytes + OGG_CRC_OFFSET + 4, page_bytes - OGG_CRC_OFFSET - 4)
    return crc == le32(bytes + OGG_CRC_OFFSET)


cdef inline void ogg_mask_serial(
    uint8_t* bytes, size_t page_bytes, uint32_t mask
) noexcept nogil:
    """A sound page, the caller's own copy of it, gets another serial and the checksum for it."""
    cdef uint32_t serial = le32(bytes + OGG_SERIAL_OFFSET) ^ mask
    cdef uint32_t crc
    put_le32(bytes + OGG_SERIAL_OFFSET, serial)
    memset(bytes + OGG_CRC_OFFSET, 0, 4)
    crc = ogg_crc(0, bytes, page_bytes)
    put_le32(bytes + OGG_CRC_OFFSET, crc)


cdef inline size_t ogg_next(const uint8_t* bytes, size_t size) noexcept nogil:
    """Offset, 1 or more, of the next capture pattern, or of what may become one."""
    cdef size_t offset = 1
    cdef const void* found
    while offset < size:
        found = memchr(bytes + offset, 0x4F, size - offset)  # "O"
        if found == NULL:
            return size
        offset = <const uint8_t*>found - bytes
        if size - offset < 4 or memcmp(found, b"OggS", 4) == 0:
            return offset
        offset += 1
    return size


cdef inline uint32_t opus_samples(const uint8_t* packet, size_t size) noexcept nogil:
    """Samples at 48 kHz, from the TOC byte (RFC 6716 §3.1, §3.2)."""
    cdef uint32_t configuration = packet[0] >> 3
    cdef uint32_t frames = packet[0] & 3
    cdef uint32_t samples
    if configuration < 12:    # SILK: 10, 20, 40, 60 ms
        samples = 2880 if configuration & 3 == 3 else 480 << (configuration & 3)
    elif configuration < 16:  # hybrid: 10, 20 ms
        samples = 480 << (configuration & 1)
    else:                     # CELT: 2.5, 5, 10, 20 ms
        samples = 120 << (configuration & 3)
    if frames == 0:
        return samples
    if frames != 3:
        return 2 * samples
    return samples * (packet[1] & 63) if size > 1 else 0


cdef inline uint32_t flac_samples(const uint8_t* packet, size_t size) noexcept nogil:
    """Samples of a FLAC frame (RFC 9639 §9.1.1), 0 = cannot tell."""
    cdef uint32_t code, at
    if size < 16 or packet[0] != 0xFF or packet[1] & 0xFE != 0xF8:
        return 0
    code = packet[2] >> 4
    if code == 0:
        return 0
    if code == 1:
        return 192
    if code < 6:
        return 576 << (code - 2)
    if code >= 8:
        return 256 << (code - 8)
    at = 5  # §9.1.5: behind the coded number, whose length its first byte tells as in UTF-8
    while packet[4] & 0x80 and at < 11 and packet[4] & (0x80 >> (at - 4)):
        at += 1
    return packet[at] + 1 if code == 6 else ((packet[at] << 8) | packet[at + 1]) + 1


cdef inline uint64_t ogg_counted(const ogg_track_t* track, const ogg_page_t* page) noexcept nogil:
    """Samples of the packets that lie wholly on this page; for Vorbis the most they can be."""
    cdef uint64_t samples = 0
    cdef uint32_t segment, packet_bytes = 0
    cdef int foreign = page.flags & OGG_CONTINUED  # the first packet began on another page
    cdef const uint8_t* packet = page.body
    for segment in range(page.segments_count):
        packet_bytes += page.lacing[segment]
        if page.lacing[segment] == 255:
            continue
        if packet_bytes != 0 and not foreign:
            if track.codec == OGG_OPUS:
                samples += opus_samples(packet, packet_bytes)
            elif track.codec == OGG_FLAC:
                samples += flac_samples(packet, packet_bytes)
            else:
                samples += track.packet_samples
        foreign = 0
        packet += packet_bytes
        packet_bytes = 0
    return samples


cdef inline uint64_t ogg_samples(ogg_track_t* track, const ogg_page_t* page) noexcept nogil:
    """Samples by which this page moves the clock of its stream."""
    cdef int64_t before = track.granule
    cdef int64_t jump = <int64_t>track.rate_hz * OGG_DURATION_S_MAX
    cdef int known = track.granule_known
    cdef uint64_t counted
    if page.granule < 0:  # -1: no packet ends here; below: RFC 7845 §4 calls it invalid
        return 0
    track.granule = page.granule
    track.granule_known = 1
    if known and page.granule >= before and page.granule - before <= jump:
        return <uint64_t>(page.granule - before)
    # The first page, or a jump: the granule says when, not how long. So the packets are counted.
    counted = ogg_counted(track, page)
    if not known and counted >= <uint64_t>page.granule:
        return <uint64_t>page.granule  # RFC 7845 §4.4, Vorbis I §A.2: the granule trims the page
    if track.codec == OGG_VORBIS:  # its packets do not tell their sizes without the setup header
        return 0
    return counted if counted <= <uint64_t>jump else <uint64_t>jump


cdef inline void ogg_identify(
    ogg_track_t* track, const uint8_t* packet, size_t size
) noexcept nogil:
    """Which codec the first packet of a stream announces, its clock, and its headers to come."""
    if size >= 19 and memcmp(packet, b"OpusHead", 8) == 0:  # RFC 7845 §5.1; always 48 kHz: §4
        track.codec = OGG_OPUS
        track.headers_left = 1
        track.rate_hz = 48000
        track.channels = packet[9]
    elif size >= 30 and memcmp(packet, b"\x01vorbis", 7) == 0:  # Vorbis I §4.2.2
        track.codec = OGG_VORBIS
        track.headers_left = 2
        track.rate_hz = le32(packet + 12)
        track.channels = packet[11]
        track.bit_rate_bps = le32(packet + 20) if packet[23] < 0x80 else 0  # -1 = not told
        track.packet_samples = (<uint32_t>1 << (packet[28] >> 4)) // 2  # §4.3.8: at most this
    elif size >= 51 and memcmp(packet, b"\x7fFLAC", 5) == 0:  # RFC 9639 §10.1, §8.2
        track.codec = OGG_FLAC
        track.headers_left = (packet[7] << 8) | packet[8]
        if track.headers_left == 0:
            track.headers_left = OGG_HEADERS_UNKNOWN
        track.rate_hz = be32(packet + 27) >> 12
        track.channels = ((packet[29] >> 1) & 7) + 1
    elif size >= 80 and memcmp(packet, b"Speex   ", 8) == 0:  # the Speex manual, §7: header
        track.codec = OGG_SPEEX
        track.headers_left = 1
        if le32(packet + 68) < OGG_HEADERS_MAX:
            track.headers_left += <int>le32(packet + 68)
        track.rate_hz = le32(packet + 36)
        track.channels = le32(packet + 48)
        if le32(packet + 56) <= 65536 and le32(packet + 64) <= 255:
            track.packet_samples = le32(packet + 56) * le32(packet + 64)
    elif size >= 8 and memcmp(packet, b"fishead", 8) == 0:  # Skeleton: it has nothing but headers
        track.headers_left = OGG_HEADERS_UNKNOWN
    elif size >= 7 and memcmp(packet, b"\x80theora", 7) == 0:
        track.headers_left = 2


cdef inline ogg_track_t* ogg_track(scan_t* scan, uint32_t serial) noexcept nogil:
    cdef uint32_t index
    for index in range(scan.ogg_tracks_count):
        if scan.ogg_tracks[index].serial == serial:
            return &scan.ogg_tracks[index]
    return NULL


cdef inline uint32_t ogg_begin(scan_t* scan, const ogg_page_t* page) noexcept nogil:
    """A BOS page: the first of a chain clears what the last one left. Returns the page's flags."""
    cdef ogg_track_t* track
    cdef uint32_t flags = FRAME_HEADER
    if (
        scan.ogg_chains_total == 0 or scan.ogg_bos_over
        or ogg_track(scan, page.serial) != NULL
    ):
        flags |= FRAME_CHAIN
        scan.ogg_chains_total += 1
        scan.ogg_bos_over = 0
        scan.ogg_main = 0
        scan.ogg_tracks_count = 0
    if scan.ogg_tracks_count == OGG_TRACKS_MAX:
        return flags
    track = &scan.ogg_tracks[scan.ogg_tracks_count]
    scan.ogg_tracks_count += 1
    memset(track, 0, sizeof(ogg_track_t))
    track.serial = page.serial
    ogg_identify(track, page.body, page.body_bytes)
    if track.codec != OGG_OTHER and scan.ogg_main == 0:
        scan.ogg_main = scan.ogg_tracks_count
        scan.sample_rate_hz = track.rate_hz
        scan.channels = track.channels
        scan.bit_rate_bps = track.bit_rate_bps
        scan.duration_rest = 0
    return flags


cdef inline int ogg_is_data(const ogg_track_t* track, const ogg_page_t* page) noexcept nogil:
    """Whether the page begins with a packet that cannot be a header, so a header page was lost."""
    if page.flags & OGG_CONTINUED or page.segments_count == 0 or page.lacing[0] == 0:
        return 0
    if track.codec == OGG_OPUS:
        return page.lacing[0] < 8 or memcmp(page.body, b"OpusTags", 8) != 0
    if track.codec == OGG_VORBIS:  # Vorbis I §4.2.1: headers are odd, §4.3.1: audio is even
        return page.body[0] & 1 == 0
    return track.codec == OGG_FLAC and page.body[0] == 0xFF  # RFC 9639 §10.1


cdef inline int ogg_in_headers(ogg_track_t* track, const ogg_page_t* page) noexcept nogil:
    """Whether this page belongs to the headers of its stream; counts their packets."""
    cdef uint32_t segment
    if track.headers_left == 0:
        return 0
    if ogg_is_data(track, page):
        track.headers_left = 0
        return 0
    for segment in range(page.segments_count):
        if track.headers_left > 0 and page.lacing[segment] < 255:
            track.headers_left -= 1
    return 1


cdef inline int64_t ogg_frame(scan_t* scan, const ogg_page_t* page, cut_t* cut) noexcept nogil:
    """A sound page: tell what it is to its stream, its chain and those who listen."""
    cdef ogg_track_t* track
    if page.flags & OGG_BOS:
        return scan_frame(scan, cut, page.page_bytes, 0, ogg_begin(scan, page))
    track = ogg_track(scan, page.serial)
    if track == NULL:
        scan.ogg_orphans = 1
        return scan_junk(scan, cut, page.page_bytes)
    scan.ogg_bos_over = 1
    if scan.ogg_main == 0 and scan.ogg_chains_total == 1:
        return SCAN_NO_AUDIO
    if ogg_in_headers(track, page):
        return scan_frame(scan, cut, page.page_bytes, 0, FRAME_HEADER)
    if scan.ogg_main == 0 or track != &scan.ogg_tracks[scan.ogg_main - 1]:
        return scan_frame(scan, cut, page.page_bytes, 0, 0)
    if page.flags & OGG_CONTINUED or page.segments_count == 0:
        return scan_frame(scan, cut, page.page_bytes, ogg_samples(track, page), 0)
    return scan_frame(scan, cut, page.page_bytes, ogg_samples(track, page), FRAME_START)


cdef inline int64_t scan_ogg(
    scan_t* scan, const uint8_t* bytes, size_t size, cut_t* cut
) noexcept nogil:
    """One step; see scan_next."""
    cdef ogg_page_t page
    cdef int verdict
    cdef int64_t reason
    size = size if size < SCAN_STEP_BYTES_MAX else SCAN_STEP_BYTES_MAX
    if size < scan_bytes_min(scan, 4):
        return SCAN_MORE
    verdict = ogg_page(bytes, size, &page)
    if verdict == 0:
        return SCAN_MORE
    if verdict == 1:
        if ogg_is_sound(bytes, page.page_bytes):
            return ogg_frame(scan, &page, cut)
        scan.bad_checksum_total += 1
    reason = scan_foreign(scan, bytes)
    if reason < 0:
        return reason
    if scan.frames_total != 0 and not scan.in_junk:
        scan.resyncs_total += 1
    return scan_junk(scan, cut, ogg_next(bytes, size))
