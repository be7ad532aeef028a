# frames_state.pxd: what every scanner shares: flags, reasons, the cut, the state, tags and junk.
#
# Rules of this room
#   1. A scan_t belongs to one source; only that source's thread touches it. Zero is a valid start.
#   2. Fixed size, no allocation, no pointer kept. The bytes are the caller's and never written.
#   3. A decision may depend on bytes at a bounded distance, never on how many happen to be here.
#      So the same stream gives the same frames however it is split.
#   4. This room knows no codec, no ring, no clock. frames.pxd hands these names on.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memset


cdef enum:  # flags of a frame; they travel on the wire, so the values are for ever
    FRAME_START = 1    # a listener may begin here
    FRAME_HEADER = 2   # a header (Ogg page, WebM element): kept for who joins late, never a start
    FRAME_CHAIN = 4    # the first header page of a chain: the kept header begins anew
    FRAME_BYTES_MAX = 65536

cdef enum:  # kinds of scanner
    SCAN_MPEG = 1      # MPEG 1, 2, 2.5 audio, layers I to III
    SCAN_ADTS = 2      # AAC in ADTS
    SCAN_OGG = 3       # Ogg pages: Opus, Vorbis, FLAC, Speex
    SCAN_WEBM = 4      # WebM and Matroska: clusters

cdef enum:  # what scan_next returns besides a count; below zero: why this source cannot go on
    SCAN_MORE = 0            # more bytes are needed
    SCAN_NO_FRAMES = -1      # SCAN_JUNK_BYTES_MAX bytes and not one frame
    SCAN_FREE_FORMAT = -2    # MPEG free format: frame sizes that no header tells
    SCAN_FOUND_OGG = -3      # another format than promised, told by its first bytes
    SCAN_FOUND_WEBM = -4
    SCAN_FOUND_FLAC = -5
    SCAN_FOUND_MP4 = -6
    SCAN_FOUND_WAV = -7
    SCAN_FOUND_ID3 = -8      # an ID3 tag where Ogg was promised
    SCAN_NO_HEADERS = -9     # Ogg pages or clusters, but what they belong to never began
    SCAN_NO_AUDIO = -10      # Ogg without Opus, Vorbis, FLAC or Speex; WebM without an audio track
    SCAN_UNKNOWN_KIND = -11  # scan_open was given no kind of scanner

cdef enum:  # bounds
    SCAN_JUNK_BYTES_MAX = 131072       # before the first frame; later damage never ends a source
    SCAN_STEP_BYTES_MAX = 1 << 30      # looked at in one step, so that a count fits 32 bits
    SCAN_TAG_APE_BYTES_MAX = 1 << 28   # a larger one is junk; ID3v2 cannot say more than that
    SCAN_MAGIC_BYTES = 12              # enough for every magic number in scan_foreign
    OGG_TRACKS_MAX = 8                 # logical streams of one chain that are followed


cdef struct cut_t:      # one step of a scanner; written whole by each call that returns above 0
    uint32_t skipped_bytes   # discard from the front: junk, or a part of a tag
    uint32_t frame_bytes     # the frame behind them; 0 = only junk was found so far
    uint32_t duration_us     # of this frame; the sum never drifts from the sample clock
    uint32_t flags           # FRAME_START | FRAME_HEADER | FRAME_CHAIN


cdef struct ogg_track_t:  # one logical stream of an Ogg chain; frames_ogg.pxd writes it
    uint32_t serial
    int codec                # OGG_OTHER, OGG_OPUS, …
    int headers_left         # header packets to come; OGG_HEADERS_UNKNOWN = until data shows
    uint32_t rate_hz         # granules a second; 0 = unknown
    uint32_t channels        # 0 = unknown
    uint32_t bit_rate_bps    # 0 = the header does not say
    uint32_t packet_samples  # of each packet (Speex), at most of each (Vorbis), or 0
    int granule_known        # 1 = granule holds a position of this run
    int64_t granule          # samples; of the newest page that completed a packet


cdef struct scan_t:     # one scanner; zero + kind is its start
    int kind                   # SCAN_MPEG, …
    int in_junk                # 1 = no frame ended at the front, so no tag is looked for
    uint32_t lock_key          # MPEG, ADTS: header bits that a run shares; 0 = not in lock
    uint32_t sample_rate_hz    # of the newest frame; 0 = not known yet
    uint32_t channels          # of the newest frame; 0 = not known
    uint32_t bit_rate_bps      # as the first header says; 0 = it does not
    int bit_rate_varies        # 1 = later headers said otherwise
    uint32_t duration_rest     # what duration_us could not say yet, in µs / sample_rate_hz
    uint64_t tag_rest_bytes    # of a tag, still to be discarded
    uint64_t frames_total
    uint64_t frame_bytes_total
    uint64_t duration_us_total
    uint64_t junk_bytes_total  # neither frame nor tag
    uint64_t tag_bytes_total   # ID3v1, ID3v2, APE; WebM elements that are not passed on
    uint64_t resyncs_total     # times that something else stood where a frame was due
    uint64_t bad_checksum_total  # Ogg pages whose CRC was wrong
    uint64_t ogg_chains_total
    int ogg_bos_over           # 1 = the chain's BOS pages are over: another begins a new chain
    int ogg_orphans            # 1 = pages, clusters were discarded: what they belong to never began
    uint32_t ogg_main          # index + 1 of the track whose clock is the stream's; 0 = none
    uint32_t ogg_tracks_count
    ogg_track_t ogg_tracks[OGG_TRACKS_MAX]
    int webm_place             # WEBM_OUTSIDE, …: where the next element stands
    uint32_t webm_main         # number of the track whose clock is the stream's; 0 = none
    uint32_t webm_scale_ns     # a tick of its timestamps
    int webm_known             # 1 = webm_us holds a time of this chain
    int64_t webm_us            # of the newest block
    int64_t webm_cluster_ticks # of the cluster's begin
    uint64_t webm_left_bytes   # of the cluster, still to come; WEBM_UNKNOWN = not told
    uint64_t webm_headers_total  # frames that were headers


cdef inline uint32_t be32(const uint8_t* bytes) noexcept nogil:
    return (
        (<uint32_t>bytes[0] << 24) | (<uint32_t>bytes[1] << 16)
        | (<uint32_t>bytes[2] << 8) | <uint32_t>bytes[3]
    )


cdef inline uint32_t le32(const uint8_t* bytes) noexcept nogil:
    return (
        (<uint32_t>bytes[3] << 24) | (<uint32_t>bytes[2] << 16)
        | (<uint32_t>bytes[1] << 8) | <uint32_t>bytes[0]
    )


cdef inline const char* scan_reason(int64_t reason) noexcept nogil:
    """The line for a return value below zero: what was found and the next step."""
    if reason == SCAN_NO_FRAMES:
        return b"128 KiB without a frame of the promised format; check the encoder's content type"
    if reason == SCAN_FREE_FORMAT:
        return b"MPEG free format is not carried; choose a bit rate of the standard's table"
    if reason == SCAN_FOUND_OGG:
        return b"the bytes are Ogg, not what was promised; send them as audio/ogg"
    if reason == SCAN_FOUND_WEBM:
        return b"the bytes are WebM or Matroska, not what was promised; send them as audio/webm"
    if reason == SCAN_FOUND_FLAC:
        return b"the bytes are bare FLAC, which is not carried; send it in Ogg, as audio/ogg"
    if reason == SCAN_FOUND_MP4:
        return b"the bytes are MP4, which is not carried; send the AAC as ADTS, as audio/aac"
    if reason == SCAN_FOUND_WAV:
        return b"the bytes are RIFF or AIFF, which is not carried; send MP3, ADTS AAC or Ogg"
    if reason == SCAN_FOUND_ID3:
        return b"the bytes begin with an ID3 tag, as MPEG audio does; send them as audio/mpeg"
    if reason == SCAN_NO_HEADERS:
        return b"pages or clusters without their headers; start the encoder anew after connecting"
    if reason == SCAN_NO_AUDIO:
        return b"no audio in it that is carried (Ogg: Opus, Vorbis, FLAC, Speex; WebM: any track)"
    return b"no such kind of scanner"


cdef inline uint32_t scan_bit_rate_bps(const scan_t* scan) noexcept nogil:
    """What the headers say if they agree, else the mean so far; 0 = not known yet."""
    cdef double mean_bps
    if scan.duration_us_total == 0 or (scan.bit_rate_bps != 0 and not scan.bit_rate_varies):
        return scan.bit_rate_bps
    mean_bps = <double>scan.frame_bytes_total * 8e6 / <double>scan.duration_us_total
    return <uint32_t>mean_bps if mean_bps < 4e9 else 0


cdef inline int64_t scan_frame(
    scan_t* scan, cut_t* cut, uint32_t frame_bytes, uint64_t samples, uint32_t flags
) noexcept nogil:
    """The frame at the front is whole: fill the cut.

    The remainder of each division is carried on: 44,100 Hz would else lose 0.45 µs a frame,
    a second in 16 hours of MP3.
    """
    cdef uint64_t clock = samples * 1000000 + scan.duration_rest
    assert 0 < frame_bytes <= FRAME_BYTES_MAX
    cut.skipped_bytes = 0
    cut.frame_bytes = frame_bytes
    cut.duration_us = 0
    cut.flags = flags
    if scan.sample_rate_hz != 0:
        cut.duration_us = <uint32_t>(clock // scan.sample_rate_hz)
        scan.duration_rest = <uint32_t>(clock % scan.sample_rate_hz)
    scan.in_junk = 0
    scan.frames_total += 1
    scan.frame_bytes_total += frame_bytes
    scan.duration_us_total += cut.duration_us
    return frame_bytes


cdef inline int64_t scan_junk(scan_t* scan, cut_t* cut, size_t junk_bytes) noexcept nogil:
    """Discard what is no frame. Without any frame so far the patience is bounded."""
    assert junk_bytes > 0
    scan.in_junk = 1
    scan.junk_bytes_total += junk_bytes
    if scan.frames_total == 0 and scan.junk_bytes_total > SCAN_JUNK_BYTES_MAX:
        return SCAN_NO_HEADERS if scan.ogg_orphans else SCAN_NO_FRAMES
    memset(cut, 0, sizeof(cut_t))
    cut.skipped_bytes = <uint32_t>junk_bytes
    return <int64_t>junk_bytes


cdef inline int64_t scan_tag_rest(scan_t* scan, cut_t* cut, size_t size) noexcept nogil:
    """Discard what is here of a tag. It may be larger than any buffer, so its rest is state."""
    cdef size_t here = size if size < scan.tag_rest_bytes else scan.tag_rest_bytes
    scan.tag_rest_bytes -= here
    scan.tag_bytes_total += here
    memset(cut, 0, sizeof(cut_t))
    cut.skipped_bytes = <uint32_t>here
    return <int64_t>here


cdef inline int scan_is_tag(const uint8_t* bytes) noexcept nogil:
    """Whether these three bytes can begin a tag; enough to confirm the frame before them."""
    return (
        memcmp(bytes, b"ID3", 3) == 0 or memcmp(bytes, b"TAG", 3) == 0
        or memcmp(bytes, b"APE", 3) == 0
    )


cdef inline int64_t scan_tag_bytes(const uint8_t* bytes, size_t size) noexcept nogil:
    """Size of the tag at the front, 0 = more needed, below 0 = no tag. Takes 4 bytes or more."""
    cdef int64_t tag_bytes
    if memcmp(bytes, b"ID3", 3) == 0:  # ID3v2.4 structure §3.1, §3.4: 28 bits in 4 bytes, a footer
        if size < 10:
            return 0
        if bytes[3] == 0xFF or bytes[4] == 0xFF or be32(bytes + 6) & <uint32_t>0x80808080 != 0:
            return -1
        tag_bytes = (bytes[6] << 21) | (bytes[7] << 14) | (bytes[8] << 7) | bytes[9]
        return tag_bytes + (20 if bytes[5] & 0x10 else 10)
    if memcmp(bytes, b"TAG", 3) == 0:  # ID3v1: always 128 bytes
        return 128
    if memcmp(bytes, b"APET", 4) == 0:  # APEv2: the size leaves the header out; a lone footer is 32
        if size < 32:
            return 0
        tag_bytes = le32(bytes + 12)
        if memcmp(bytes, b"APETAGEX", 8) != 0 or tag_bytes > SCAN_TAG_APE_BYTES_MAX:
            return -1
        return 32 + tag_bytes if le32(bytes + 20) & 0x20000000 else 32
    return -1


cdef inline int64_t scan_tag(
    scan_t* scan, const uint8_t* bytes, size_t size, cut_t* cut
) noexcept nogil:
    """Discard a tag that begins at the front; SCAN_MORE = cannot tell yet, below 0 = no tag."""
    cdef int64_t tag_bytes
    if scan.in_junk:  # "TAG" may stand anywhere in noise; where a frame is due, it is meant
        return -1
    tag_bytes = scan_tag_bytes(bytes, size)
    if tag_bytes <= 0:
        return tag_bytes
    scan.tag_rest_bytes = <uint64_t>tag_bytes
    return scan_tag_rest(scan, cut, size)


cdef inline int64_t scan_foreign(const scan_t* scan, const uint8_t* bytes) noexcept nogil:
    """A reason if these SCAN_MAGIC_BYTES begin another container than the promised one, else 0."""
    if scan.frames_total != 0 or scan.junk_bytes_total != 0:
        return 0
    if memcmp(bytes, b"OggS", 4) == 0 and scan.kind != SCAN_OGG:
        return SCAN_FOUND_OGG
    if memcmp(bytes, b"ID3", 3) == 0 and (scan.kind == SCAN_OGG or scan.kind == SCAN_WEBM):
        return SCAN_FOUND_ID3
    # RFC 8794 §11.2.1: EBML
    if memcmp(bytes, b"\x1a\x45\xdf\xa3", 4) == 0 and scan.kind != SCAN_WEBM:
        return SCAN_FOUND_WEBM
    if memcmp(bytes, b"fLaC", 4) == 0:  # RFC 9639 §6
        return SCAN_FOUND_FLAC
    if memcmp(bytes + 4, b"ftyp", 4) == 0:  # ISO/IEC 14496-12 §4.3
        return SCAN_FOUND_MP4
    if memcmp(bytes, b"RIFF", 4) == 0 or memcmp(bytes, b"FORM", 4) == 0:
        return SCAN_FOUND_WAV
    return 0


cdef inline size_t scan_bytes_min(const scan_t* scan, size_t header_bytes) noexcept nogil:
    """What a step needs in hand: a header, or at the very beginning a magic number."""
    if scan.frames_total == 0 and scan.junk_bytes_total == 0:
        return SCAN_MAGIC_BYTES
    return header_bytes
