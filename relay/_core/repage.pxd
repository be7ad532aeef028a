# repage.pxd: divides the pages of an Ogg source, so that low pace means low delay.
#
# Rules of this room
#   1. Pages are divided between packets, never joined and never held back: nobody waits, and
#      nothing is kept but one page. A packet alone may last longer than page_us.
#   2. Only pages of the chain's main track that hold audio. Bodies, lacing and what a page
#      continues stay as they are; granule, sequence, flags and checksum are made (RFC 3533 §6).
#   3. A sequence number is moved on by the pages that were added before it, so what the source
#      lost still shows as lost.
#   4. The granule of a page is that of the last packet which ends on it: counted back from what
#      the source told, on the last page of a chain (whose granule trims it) from the page before.
#   5. A page with a packet whose samples cannot be told stays whole.
#   6. One writer; no clock, no ring; the caller's bytes are not written.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from relay._core.frames_ogg cimport (
    OGG_BOS, OGG_CONTINUED, OGG_CRC_OFFSET, OGG_FLAC, OGG_HEADER_BYTES, OGG_OPUS, OGG_SERIAL_OFFSET,
    OGG_SPEEX, OGG_VORBIS, flac_samples, ogg_crc, ogg_page, ogg_page_t, opus_samples, put_le32,
)
from relay._core.frames_state cimport (
    FRAME_CHAIN, FRAME_HEADER, FRAME_START, cut_t, le32, ogg_track_t, scan_t,
)

cdef enum:
    OGG_EOS = 4
    OGG_GRANULE_OFFSET = 6
    OGG_SEQUENCE_OFFSET = 18
    REPAGE_PACKETS_MAX = 255     # that end on one page: its segments
    VORBIS_MODES_MAX = 64
    VORBIS_MODE_BITS = 41        # Vorbis I §4.2.4: block flag, window and transform type, mapping
    VORBIS_TAIL_BYTES = 512      # of the setup header: its modes are its last 2,630 bits at most


cdef struct repage_t:
    uint32_t page_us           # pages last at most so long; 0: they stay as they come
    uint32_t sequence_added    # pages that this chain has more than its source sent
    int64_t granule            # of the newest page on which a packet ended
    int granule_known
    uint32_t open_samples      # of the packet that the newest page left open
    # Vorbis
    uint32_t block_samples[2]
    uint32_t block_before      # samples of the block before; 0: none
    uint32_t modes_count       # 0: not known, so no page is divided
    uint64_t modes_long        # bit n: mode n has the long block
    uint32_t tail_bytes
    uint8_t tail[VORBIS_TAIL_BYTES]
    # the page at hand
    ogg_page_t page
    int64_t base               # granule at its begin
    uint32_t sequence
    uint32_t serial            # as listeners are told it
    uint32_t flags             # FRAME_…, of the whole
    uint32_t duration_us
    uint32_t packets           # that end on it
    uint32_t ends[REPAGE_PACKETS_MAX]     # the segment behind each
    uint32_t samples[REPAGE_PACKETS_MAX]  # of each
    uint64_t samples_whole     # of all of them, less what the granule trims
    uint32_t packet_next       # what the next page begins with …
    uint32_t segment_next
    const uint8_t* body_next
    uint64_t samples_done
    uint32_t pages             # made of it so far


cdef inline uint32_t tail_bits(const repage_t* repage, uint32_t at, uint32_t count) noexcept nogil:
    # `count` bits of the tail from bit `at` on, the lowest first (Vorbis I §2.1.4).
    cdef uint32_t value = 0
    cdef uint32_t i
    for i in range(count):
        value |= <uint32_t>(repage.tail[(at + i) >> 3] >> ((at + i) & 7) & 1) << i
    return value


cdef inline void vorbis_modes(repage_t* repage) noexcept nogil:
    # Reads the modes off the end of the setup header (Vorbis I §4.2.4): behind them stands the
    # framing bit, before them their number. What is before that takes a decoder to be read.
    cdef uint32_t end = repage.tail_bytes * 8
    cdef uint32_t count = 0
    cdef uint32_t at
    cdef uint64_t is_long = 0
    cdef uint32_t found = 0
    while end > 0 and tail_bits(repage, end - 1, 1) == 0:
        end -= 1
    if end == 0:
        return
    end -= 1
    while count < VORBIS_MODES_MAX and end >= VORBIS_MODE_BITS + 6:
        at = end - VORBIS_MODE_BITS
        if tail_bits(repage, at + 1, 32) != 0 or tail_bits(repage, at + 33, 8) > 63:
            break
        is_long = is_long << 1 | tail_bits(repage, at, 1)
        count += 1
        end = at
        if tail_bits(repage, end - 6, 6) + 1 == count:
            found = count
            repage.modes_long = is_long
    repage.modes_count = found


cdef inline void repage_header(
    repage_t* repage, const scan_t* scan, const uint8_t* bytes, size_t size, uint32_t flags
) noexcept nogil:
    # A header page: Vorbis tells the lengths of its packets there.
    cdef ogg_page_t page
    cdef const ogg_track_t* track
    cdef uint32_t kept
    cdef uint32_t size_kept
    if flags & FRAME_CHAIN:
        repage.sequence_added = repage.open_samples = 0
        repage.granule_known = 0
        repage.block_before = repage.modes_count = repage.tail_bytes = 0
        memset(repage.block_samples, 0, sizeof(repage.block_samples))
    if scan.ogg_main == 0 or ogg_page(bytes, size, &page) != 1:
        return
    track = &scan.ogg_tracks[scan.ogg_main - 1]
    if page.serial != track.serial or track.codec != OGG_VORBIS:
        return
    if page.flags & OGG_BOS:    # Vorbis I §4.2.2
        repage.block_samples[0] = <uint32_t>1 << (page.body[28] & 15)
        repage.block_samples[1] = <uint32_t>1 << (page.body[28] >> 4)
        return
    kept = page.body_bytes if page.body_bytes < VORBIS_TAIL_BYTES else VORBIS_TAIL_BYTES
    size_kept = VORBIS_TAIL_BYTES - kept
    size_kept = size_kept if size_kept < repage.tail_bytes else repage.tail_bytes
    memmove(repage.tail, repage.tail + repage.tail_bytes - size_kept, size_kept)
    memcpy(repage.tail + size_kept, page.body + page.body_bytes - kept, kept)
    repage.tail_bytes = size_kept + kept
    if track.headers_left == 0:
        vorbis_modes(repage)


cdef inline uint32_t vorbis_samples(repage_t* repage, const uint8_t* packet) noexcept nogil:
    # Vorbis I §4.3.1, §4.3.8: a packet gives a quarter of its block and of the one before.
    cdef uint32_t bits = 0
    cdef uint32_t mode
    cdef uint32_t before = repage.block_before
    while (repage.modes_count - 1) >> bits:
        bits += 1
    mode = (packet[0] >> 1) & ((1 << bits) - 1)
    if packet[0] & 1 or mode >= repage.modes_count:  # no audio
        return 0
    repage.block_before = repage.block_samples[repage.modes_long >> mode & 1]
    return (before + repage.block_before) // 4 if before else 0


cdef inline uint32_t packet_samples(
    repage_t* repage, const ogg_track_t* track, const uint8_t* packet, size_t size
) noexcept nogil:
    if track.codec == OGG_OPUS:
        return opus_samples(packet, size)
    if track.codec == OGG_FLAC:
        return flac_samples(packet, size)
    if track.codec == OGG_VORBIS:
        return vorbis_samples(repage, packet)
    return track.packet_samples if track.codec == OGG_SPEEX else 0


cdef inline bint repage_count(repage_t* repage, const ogg_track_t* track) noexcept nogil:
    # Finds the packets that end on the page at hand, and how long they are; False: not all tell.
    cdef const uint8_t* packet = repage.page.body
    cdef size_t size = 0
    cdef uint32_t segment
    cdef uint32_t samples
    cdef bint is_rest = repage.page.flags & OGG_CONTINUED != 0
    cdef bint told = track.codec != OGG_VORBIS or repage.modes_count > 0
    cdef bint first = repage.block_before == 0
    repage.packets = 0
    repage.samples_whole = 0
    for segment in range(repage.page.segments_count):
        size += repage.page.lacing[segment]
        if repage.page.lacing[segment] == 255 and segment + 1 < repage.page.segments_count:
            continue
        if is_rest:
            samples = repage.open_samples
        else:
            samples = packet_samples(repage, track, packet, size) if told and size > 0 else 0
        if repage.page.lacing[segment] == 255:      # it goes on on the next page
            repage.open_samples = samples
            break
        told = told and (samples > 0 or first and track.codec == OGG_VORBIS)
        first = False
        repage.ends[repage.packets] = segment + 1
        repage.samples[repage.packets] = samples
        repage.samples_whole += samples
        repage.packets += 1
        packet += size
        size = 0
        is_rest = False
    return told


cdef inline bint repage_take(
    repage_t* repage, const scan_t* scan, const uint8_t* bytes, const cut_t* cut,
    uint32_t serial_mask,
) noexcept nogil:
    # A frame of an Ogg source. True: it is to be taken from repage_next, page by page, instead;
    # the bytes must stay until then.
    cdef const ogg_track_t* track
    cdef int64_t before
    cdef bint known
    cdef bint told
    if cut.flags & FRAME_HEADER:
        repage_header(repage, scan, bytes, cut.frame_bytes, cut.flags)
        return False
    if scan.ogg_main == 0 or ogg_page(bytes, cut.frame_bytes, &repage.page) != 1:
        return False
    track = &scan.ogg_tracks[scan.ogg_main - 1]
    if repage.page.serial != track.serial:
        return False
    repage.serial = track.serial ^ serial_mask
    repage.sequence = le32(bytes + OGG_SEQUENCE_OFFSET)
    repage.flags = cut.flags
    repage.duration_us = cut.duration_us
    told = repage_count(repage, track)
    before = repage.granule
    known = repage.granule_known
    if repage.packets > 0 and repage.page.granule >= 0:
        repage.granule = repage.page.granule
        repage.granule_known = 1
    if (
        not told or repage.packets < 2 or track.rate_hz == 0 or repage.page.granule < 0
        or repage.samples_whole * 1000000 <= <uint64_t>repage.page_us * track.rate_hz
    ):
        repage.packets = 1   # as it is, but for its number
        repage.ends[0] = repage.page.segments_count
        repage.samples[0] = <uint32_t>repage.samples_whole
        if repage.sequence_added == 0:
            return False
    # Counted from here on; RFC 7845 §4.4, Vorbis I §A.2: the last page of a chain may be trimmed.
    repage.base = repage.page.granule - <int64_t>repage.samples_whole
    if repage.page.flags & OGG_EOS and known and repage.base < before <= repage.page.granule:
        repage.base = before
        repage.samples_whole = <uint64_t>(repage.page.granule - before)
    repage.packet_next = repage.segment_next = 0
    repage.body_next = repage.page.body
    repage.samples_done = 0
    repage.pages = 0
    return True


cdef inline uint32_t repage_packets(const repage_t* repage, uint32_t rate_hz) noexcept nogil:
    # How many of those left make the next page: as many as last no longer than page_us, at least
    # one.
    cdef uint64_t most = <uint64_t>repage.page_us * rate_hz // 1000000
    cdef uint64_t samples = 0
    cdef uint32_t at = repage.packet_next
    while at < repage.packets:
        samples += repage.samples[at]
        if samples > most and at > repage.packet_next:
            break
        at += 1
    return at - repage.packet_next


cdef inline int repage_next(
    repage_t* repage, const scan_t* scan, uint8_t* out, cut_t* cut
) noexcept nogil:
    # The next page of the one at hand, written to `out` (65,307 bytes). False: that was all.
    cdef const ogg_page_t* page = &repage.page
    cdef uint32_t count
    cdef uint32_t end
    cdef uint32_t segments
    cdef uint32_t body_bytes = 0
    cdef uint32_t i
    cdef uint64_t done = repage.samples_done
    cdef bint last
    cdef int64_t granule
    if repage.packet_next == repage.packets:
        repage.sequence_added += repage.pages - 1
        return False
    count = repage_packets(repage, scan.ogg_tracks[scan.ogg_main - 1].rate_hz)
    last = repage.packet_next + count == repage.packets
    end = page.segments_count if last else repage.ends[repage.packet_next + count - 1]
    segments = end - repage.segment_next
    for i in range(segments):
        body_bytes += page.lacing[repage.segment_next + i]
    for i in range(count):
        repage.samples_done += repage.samples[repage.packet_next + i]
    granule = repage.base + <int64_t>repage.samples_done
    granule = page.granule if last or granule > page.granule else (granule if granule > 0 else 0)
    memcpy(out, b"OggS", 4)
    out[4] = 0
    out[5] = <uint8_t>(
        (page.flags & OGG_CONTINUED if repage.pages == 0 else 0)
        | (page.flags & OGG_EOS if last else 0)
    )
    put_le32(out + OGG_GRANULE_OFFSET, <uint32_t>granule)
    put_le32(out + OGG_GRANULE_OFFSET + 4, <uint32_t>(<uint64_t>granule >> 32))
    put_le32(out + OGG_SERIAL_OFFSET, repage.serial)
    put_le32(
        out + OGG_SEQUENCE_OFFSET, repage.sequence + repage.sequence_added + repage.pages
    )
    put_le32(out + OGG_CRC_OFFSET, 0)
    out[26] = <uint8_t>segments
    memcpy(out + OGG_HEADER_BYTES, page.lacing + repage.segment_next, segments)
    memcpy(out + OGG_HEADER_BYTES + segments, repage.body_next, body_bytes)
    cut.skipped_bytes = 0
    cut.frame_bytes = OGG_HEADER_BYTES + segments + body_bytes
    cut.flags = repage.flags if repage.pages == 0 else FRAME_START
    cut.duration_us = (
        repage.duration_us if last else repage_us(repage, repage.samples_done)
    ) - repage_us(repage, done)
    put_le32(out + OGG_CRC_OFFSET, ogg_crc(0, out, cut.frame_bytes))
    repage.packet_next += count
    repage.segment_next = end
    repage.body_next += body_bytes
    repage.pages += 1
    return True


cdef inline uint32_t repage_us(const repage_t* repage, uint64_t samples) noexcept nogil:
    # The part of the page's duration before this sample of it.
    if samples == 0 or samples >= repage.samples_whole:
        return repage.duration_us if samples else 0
    return <uint32_t>(repage.duration_us * samples // repage.samples_whole)
