# frames_webm.pxd: cuts WebM and Matroska (RFC 9559, EBML: RFC 8794) into frames.
#
# Rules of this room
#   1. Frames are elements: the EBML header, the Segment's head, Info, Tracks and Tags are headers,
#      kept for those who join late; a Cluster's head with its Timestamp is a start, each block
#      behind it a frame of its own. So nobody waits for a cluster to end (five seconds with
#      FFmpeg), and who skips goes on at a cluster.
#   2. What refers to places in a file (SeekHead, Cues, Position, PrevSize), or only fills (Void),
#      is discarded as tags are; attachments and chapters too.
#   3. So the sizes of Segments and Clusters would lie: webm_unsize makes them unknown (RFC 8794
#      §6.2), in a copy, byte for byte in place. Scanning changes no byte.
#   4. A block lasts from the one before it to itself, by the timestamps of the first audio track:
#      their sum is the media time, whatever the codec. One that goes back, or on by more than
#      WEBM_DURATION_S_MAX, lasts nothing.
#   5. EBML has no checksum that a stream could use. A place where no element can be is damage: the
#      rest of the cluster goes, and the next Cluster or EBML header is searched for. What only
#      fills, or is of no track of ours, is believed if there is no Cluster in it: damage may look
#      like such an element of any size.

from libc.string cimport memcpy

from relay._core.frames_state cimport (
    FRAME_BYTES_MAX,
    FRAME_CHAIN,
    FRAME_HEADER,
    FRAME_START,
    SCAN_MORE,
    SCAN_NO_AUDIO,
    SCAN_STEP_BYTES_MAX,
    be32,
    cut_t,
    int64_t,
    memcmp,
    memset,
    scan_bytes_min,
    scan_foreign,
    scan_frame,
    scan_junk,
    scan_t,
    scan_tag_rest,
    uint8_t,
    uint32_t,
    uint64_t,
)

cdef extern from *:
    """
    #include <stdint.h>
    #define RELAY_WEBM_UNKNOWN UINT64_MAX
    """
    const uint64_t WEBM_UNKNOWN "RELAY_WEBM_UNKNOWN"  # a size that is not told (RFC 8794 §6.2)

cdef enum:  # where the next element stands
    WEBM_OUTSIDE = 0     # before an EBML header
    WEBM_HEADERS = 1     # in a Segment, before its first cluster
    WEBM_SEGMENT = 2     # in a Segment, between clusters
    WEBM_CLUSTER = 3     # in a cluster

cdef enum:  # element ids (RFC 9559 §5.1, RFC 8794 §11.2)
    WEBM_EBML = 0x1A45DFA3
    WEBM_ID_SEGMENT = 0x18538067
    WEBM_SEEK_HEAD = 0x114D9B74
    WEBM_INFO = 0x1549A966
    WEBM_TRACKS = 0x1654AE6B
    WEBM_CUES = 0x1C53BB6B
    WEBM_TAGS = 0x1254C367
    WEBM_ATTACHMENTS = 0x1941A469
    WEBM_CHAPTERS = 0x1043A770
    WEBM_ID_CLUSTER = 0x1F43B675
    WEBM_TIMESTAMP = 0xE7
    WEBM_POSITION = 0xA7
    WEBM_PREV_SIZE = 0xAB
    WEBM_SILENT_TRACKS = 0x5854
    WEBM_SIMPLE_BLOCK = 0xA3
    WEBM_BLOCK_GROUP = 0xA0
    WEBM_BLOCK = 0xA1
    WEBM_ENCRYPTED_BLOCK = 0xAF
    WEBM_CRC = 0xBF
    WEBM_VOID = 0xEC
    WEBM_TIMESTAMP_SCALE = 0x2AD7B1
    WEBM_TRACK_ENTRY = 0xAE
    WEBM_TRACK_NUMBER = 0xD7
    WEBM_TRACK_TYPE = 0x83
    WEBM_AUDIO = 0xE1
    WEBM_CHANNELS = 0x9F
    WEBM_SAMPLING_FREQUENCY = 0xB5

cdef enum:
    WEBM_HEAD_BYTES_MAX = 12      # an id of 4 bytes, a size of 8
    WEBM_EBML_BYTES_MAX = 4096    # of the EBML header, which takes about 40
    WEBM_DISCARD_BYTES_MAX = 1 << 28  # a larger element is not believed …
    WEBM_BETWEEN_BYTES_MAX = 1 << 24  # … nor, once there was a cluster, one of more than this
    WEBM_DURATION_S_MAX = 10
    WEBM_SCALE_NS = 1000000       # RFC 9559 §5.1.2.9: the default
    WEBM_SCALE_NS_MAX = 1000000000
    WEBM_TRACK_AUDIO = 2


cdef struct webm_t:         # the head of one element
    uint32_t id
    uint32_t head_bytes
    uint64_t body_bytes      # or WEBM_UNKNOWN


cdef inline int webm_element(
    const uint8_t* bytes, size_t size, webm_t* element
) noexcept nogil:
    """1 if an element's head is at the front, 0 = more needed, -1 = no (RFC 8794 §4 to §6)."""
    cdef uint32_t id_bytes = 1
    cdef uint32_t size_bytes = 1
    cdef uint64_t value
    cdef uint64_t most
    cdef uint32_t i
    if size < 1:
        return 0
    while id_bytes <= 4 and not bytes[0] & (0x100 >> id_bytes):
        id_bytes += 1
    if id_bytes > 4:
        return -1
    if size <= id_bytes:
        return 0
    if bytes[id_bytes] == 0:
        return -1
    while not bytes[id_bytes] & (0x100 >> size_bytes):
        size_bytes += 1
    if size < id_bytes + size_bytes:
        return 0
    element.id = 0
    for i in range(id_bytes):
        element.id = element.id << 8 | bytes[i]
    value = bytes[id_bytes] & ((0x100 >> size_bytes) - 1)
    for i in range(1, size_bytes):
        value = value << 8 | bytes[id_bytes + i]
    most = (<uint64_t>1 << (7 * size_bytes)) - 1
    element.head_bytes = id_bytes + size_bytes
    element.body_bytes = WEBM_UNKNOWN if value == most else value
    return 1


cdef inline int webm_child(
    const uint8_t* bytes, size_t size, size_t at, webm_t* element
) noexcept nogil:
    """Whether a whole element stands at `at` within these bytes."""
    return (
        at < size and webm_element(bytes + at, size - at, element) == 1
        and element.body_bytes <= size - at - element.head_bytes
    )


cdef inline uint64_t webm_uint(const uint8_t* bytes, uint64_t size) noexcept nogil:
    """An unsigned integer (RFC 8794 §7.2); one longer than 8 bytes is the greatest there is."""
    cdef uint64_t value = 0
    cdef uint64_t i
    if size > 8:
        return WEBM_UNKNOWN
    for i in range(size):
        value = value << 8 | bytes[i]
    return value


cdef inline uint32_t webm_rate_hz(const uint8_t* bytes, uint64_t size) noexcept nogil:
    """A float (RFC 8794 §7.3) as whole Hz, 0 = none."""
    cdef uint64_t bits = webm_uint(bytes, size)
    cdef uint32_t half = <uint32_t>bits
    cdef double wide = 0
    cdef float narrow = 0
    if size == 8:
        memcpy(&wide, &bits, 8)
    elif size == 4:
        memcpy(&narrow, &half, 4)
        wide = narrow
    return <uint32_t>wide if 1 <= wide <= 1e6 else 0


cdef inline int webm_is_top(uint32_t id) noexcept nogil:
    """Whether this element cannot be in a cluster, and so ends one of unknown size."""
    return id in (
        WEBM_EBML, WEBM_ID_SEGMENT, WEBM_SEEK_HEAD, WEBM_INFO, WEBM_TRACKS, WEBM_CUES, WEBM_TAGS,
        WEBM_ATTACHMENTS, WEBM_CHAPTERS, WEBM_ID_CLUSTER,
    )


cdef inline void webm_unsize(uint8_t* bytes, size_t size) noexcept nogil:
    """The caller's own copy of a Segment's or Cluster's head gets an unknown size, in place.

    A checksum of what follows would be wrong for who skips: it becomes a Void of its length.
    """
    cdef webm_t element
    cdef uint32_t id_bytes = 4
    cdef uint32_t size_bytes
    cdef uint32_t i
    cdef size_t at
    if webm_element(bytes, size, &element) != 1 or (
        element.id != WEBM_ID_SEGMENT and element.id != WEBM_ID_CLUSTER
    ):
        return
    size_bytes = element.head_bytes - id_bytes
    bytes[id_bytes] = <uint8_t>((0x200 >> size_bytes) - 1)
    for i in range(1, size_bytes):
        bytes[id_bytes + i] = 0xFF
    at = element.head_bytes
    while webm_child(bytes, size, at, &element):
        if element.id == WEBM_CRC:
            bytes[at] = WEBM_VOID
        at += element.head_bytes + <size_t>element.body_bytes


cdef inline size_t webm_next(const uint8_t* bytes, size_t size) noexcept nogil:
    """Offset, 1 or more, of the next Cluster or EBML header, or of what may become one."""
    cdef size_t offset = 1
    cdef size_t here
    while offset < size:
        if bytes[offset] == 0x1F or bytes[offset] == 0x1A:
            here = size - offset if size - offset < 4 else 4
            if memcmp(bytes + offset, b"\x1f\x43\xb6\x75", here) == 0 or (
                memcmp(bytes + offset, b"\x1a\x45\xdf\xa3", here) == 0
            ):
                return offset
        offset += 1
    return size


cdef inline void webm_track(scan_t* scan, const uint8_t* bytes, size_t size) noexcept nogil:
    """One TrackEntry: the first of audio is the one whose clock is the stream's."""
    cdef webm_t element
    cdef webm_t inner
    cdef size_t at = 0
    cdef size_t end
    cdef uint64_t number = 0
    cdef uint64_t kind = 0
    cdef uint32_t rate_hz = 8000  # RFC 9559 §5.1.4.1.29.1, .3: the defaults
    cdef uint32_t channels = 1
    while webm_child(bytes, size, at, &element):
        at += element.head_bytes
        end = at + <size_t>element.body_bytes
        if element.id == WEBM_TRACK_NUMBER:
            number = webm_uint(bytes + at, element.body_bytes)
        elif element.id == WEBM_TRACK_TYPE:
            kind = webm_uint(bytes + at, element.body_bytes)
        elif element.id == WEBM_AUDIO:
            while webm_child(bytes, end, at, &inner):
                at += inner.head_bytes
                if inner.id == WEBM_SAMPLING_FREQUENCY:
                    rate_hz = webm_rate_hz(bytes + at, inner.body_bytes)
                elif inner.id == WEBM_CHANNELS:
                    channels = <uint32_t>webm_uint(bytes + at, inner.body_bytes)
                at += <size_t>inner.body_bytes
        at = end
    if kind == WEBM_TRACK_AUDIO and 0 < number < 1 << 28 and scan.webm_main == 0:
        scan.webm_main = <uint32_t>number
        scan.sample_rate_hz = rate_hz
        scan.channels = channels if channels <= 255 else 0


cdef inline void webm_learn(
    scan_t* scan, uint32_t id, const uint8_t* bytes, size_t size
) noexcept nogil:
    """What Info and Tracks say that is needed here."""
    cdef webm_t element
    cdef size_t at = 0
    cdef uint64_t scale_ns
    while webm_child(bytes, size, at, &element):
        at += element.head_bytes
        if id == WEBM_TRACKS and element.id == WEBM_TRACK_ENTRY:
            webm_track(scan, bytes + at, <size_t>element.body_bytes)
        elif id == WEBM_INFO and element.id == WEBM_TIMESTAMP_SCALE:
            scale_ns = webm_uint(bytes + at, element.body_bytes)
            if 0 < scale_ns <= WEBM_SCALE_NS_MAX:
                scan.webm_scale_ns = <uint32_t>scale_ns
        at += <size_t>element.body_bytes


cdef inline int64_t webm_discard(
    scan_t* scan, cut_t* cut, uint64_t rest, size_t size
) noexcept nogil:
    """An element that is not passed on; the rest of it may be still to come."""
    scan.tag_rest_bytes = rest
    scan.in_junk = 0
    return scan_tag_rest(scan, cut, size)


cdef inline int64_t webm_damage(
    scan_t* scan, const uint8_t* bytes, size_t size, cut_t* cut
) noexcept nogil:
    """No element can be here: on to the next cluster."""
    if scan.frames_total != 0 and not scan.in_junk:
        scan.resyncs_total += 1
    if scan.webm_place == WEBM_CLUSTER:
        scan.webm_place = WEBM_SEGMENT
    if scan.webm_place == WEBM_OUTSIDE and size >= 4 and be32(bytes) == WEBM_ID_CLUSTER:
        scan.ogg_orphans = 1
    return scan_junk(scan, cut, webm_next(bytes, size))


cdef inline int webm_hides(const uint8_t* bytes, size_t size) noexcept nogil:
    """Whether a Cluster or an EBML header begins behind the first of these bytes."""
    return webm_next(bytes, size) + 4 <= size


cdef inline int64_t webm_fill(
    scan_t* scan, const uint8_t* bytes, size_t size, const webm_t* element, cut_t* cut
) noexcept nogil:
    """An element that is discarded, in a cluster or behind one."""
    cdef uint64_t whole = element.head_bytes + element.body_bytes
    if element.body_bytes > FRAME_BYTES_MAX or whole > FRAME_BYTES_MAX:
        return webm_damage(scan, bytes, size, cut)
    if webm_hides(bytes, <size_t>whole if size > whole else size):
        return webm_damage(scan, bytes, size, cut)
    if size < whole:
        return SCAN_MORE
    if scan.webm_place == WEBM_CLUSTER and scan.webm_left_bytes != WEBM_UNKNOWN:
        scan.webm_left_bytes -= whole
    return webm_discard(scan, cut, whole, size)


cdef inline int64_t webm_begin(scan_t* scan, const webm_t* element, cut_t* cut) noexcept nogil:
    """An EBML header: the chain begins anew."""
    scan.webm_place = WEBM_HEADERS
    scan.webm_main = 0
    scan.webm_scale_ns = WEBM_SCALE_NS
    scan.webm_known = 0
    return scan_frame(
        scan, cut, element.head_bytes + <uint32_t>element.body_bytes, 0, FRAME_HEADER | FRAME_CHAIN
    )


cdef inline int64_t webm_cluster(
    scan_t* scan, const uint8_t* bytes, size_t size, const webm_t* cluster, cut_t* cut
) noexcept nogil:
    """A Cluster's head, up to its Timestamp, which precedes all blocks (RFC 9559 §5.1.3.1)."""
    cdef webm_t element
    cdef size_t at = cluster.head_bytes
    cdef size_t end
    cdef int verdict
    cdef uint64_t time
    if scan.webm_main == 0:
        return SCAN_NO_AUDIO if scan.frames_total == scan.webm_headers_total else webm_damage(
            scan, bytes, size, cut
        )
    while True:
        verdict = webm_element(bytes + at, size - at, &element)
        if verdict == 0:
            return SCAN_MORE
        end = at + element.head_bytes + <size_t>element.body_bytes if (
            verdict == 1 and element.body_bytes <= 1024
        ) else 0
        if end == 0 or end > 2048 or end - cluster.head_bytes > cluster.body_bytes:
            return webm_damage(scan, bytes, size, cut)
        if size < end:
            return SCAN_MORE
        if element.id == WEBM_TIMESTAMP:
            break
        if element.id not in (
            WEBM_CRC, WEBM_VOID, WEBM_POSITION, WEBM_PREV_SIZE, WEBM_SILENT_TRACKS
        ):
            return webm_damage(scan, bytes, size, cut)
        at = end
    time = webm_uint(bytes + at + element.head_bytes, element.body_bytes)
    if time > (<uint64_t>1 << 62) // scan.webm_scale_ns:
        return webm_damage(scan, bytes, size, cut)
    scan.webm_cluster_ticks = <int64_t>time
    scan.webm_place = WEBM_CLUSTER
    scan.webm_left_bytes = cluster.body_bytes
    if cluster.body_bytes != WEBM_UNKNOWN:
        scan.webm_left_bytes -= end - cluster.head_bytes
    return scan_frame(scan, cut, <uint32_t>end, 0, FRAME_START)


cdef inline uint32_t webm_is_main(
    scan_t* scan, const uint8_t* block, uint64_t size
) noexcept nogil:
    """Whether this block is of the first audio track: how many bytes say so; 0: it is not."""
    cdef webm_t track  # a vint in the form of a size, so any id may stand before it
    cdef uint8_t front[9]
    cdef uint32_t here = 8 if size > 8 else <uint32_t>size
    front[0] = WEBM_VOID
    memcpy(front + 1, block, here)
    if webm_element(front, here + 1, &track) != 1 or track.body_bytes != scan.webm_main or (
        size < track.head_bytes + 2
    ):
        return 0
    return track.head_bytes - 1


cdef inline uint32_t webm_block_us(
    scan_t* scan, const uint8_t* block, uint64_t size
) noexcept nogil:
    """By how much this block moves the clock (RFC 9559 §10.1: track, 16 bits of time, flags)."""
    cdef uint32_t track_bytes = webm_is_main(scan, block, size)
    cdef int64_t us
    cdef int64_t moved
    if track_bytes == 0:
        return 0
    block += track_bytes
    us = (scan.webm_cluster_ticks + <short>(block[0] << 8 | block[1])) * scan.webm_scale_ns // 1000
    moved = us - scan.webm_us
    if scan.webm_known and moved < 0 and moved > -1000000 * WEBM_DURATION_S_MAX:
        return 0    # out of order by a little: the clock stays where it is
    scan.webm_us = us
    if not scan.webm_known or moved < 0 or moved > 1000000 * WEBM_DURATION_S_MAX:
        scan.webm_known = 1
        return 0
    return <uint32_t>moved


cdef inline int64_t webm_in_cluster(
    scan_t* scan, const uint8_t* bytes, size_t size, const webm_t* element, cut_t* cut
) noexcept nogil:
    """A child of the cluster: a block goes out, the rest is discarded."""
    cdef uint64_t whole = element.head_bytes + element.body_bytes
    cdef webm_t block
    cdef size_t at = element.head_bytes
    cdef int64_t used
    cdef uint32_t moved_us
    if (
        element.body_bytes == WEBM_UNKNOWN or whole > FRAME_BYTES_MAX
        or whole > scan.webm_left_bytes
    ):
        return webm_damage(scan, bytes, size, cut)
    if element.id in (WEBM_CRC, WEBM_VOID, WEBM_POSITION, WEBM_PREV_SIZE, WEBM_SILENT_TRACKS):
        return webm_fill(scan, bytes, size, element, cut)
    if element.id not in (
        WEBM_SIMPLE_BLOCK, WEBM_BLOCK_GROUP, WEBM_ENCRYPTED_BLOCK
    ) or element.body_bytes < 4:
        return webm_damage(scan, bytes, size, cut)
    if size < whole:
        return SCAN_MORE
    block = element[0]
    while element.id == WEBM_BLOCK_GROUP and webm_child(bytes, <size_t>whole, at, &block):
        at += block.head_bytes
        if block.id == WEBM_BLOCK:
            break
        at += <size_t>block.body_bytes
    if not webm_is_main(scan, bytes + at, whole - at) and webm_hides(bytes, <size_t>whole):
        return webm_damage(scan, bytes, size, cut)
    if scan.webm_left_bytes != WEBM_UNKNOWN:
        scan.webm_left_bytes -= whole
    moved_us = webm_block_us(scan, bytes + at, whole - at)
    used = scan_frame(scan, cut, <uint32_t>whole, 0, 0)
    cut.duration_us = moved_us
    scan.duration_us_total += moved_us
    return used


cdef inline int64_t webm_in_segment(
    scan_t* scan, const uint8_t* bytes, size_t size, const webm_t* element, cut_t* cut
) noexcept nogil:
    """An element between clusters, or before the first."""
    cdef uint64_t whole = element.head_bytes + element.body_bytes
    cdef int is_header = scan.webm_place == WEBM_HEADERS and element.id in (
        WEBM_INFO, WEBM_TRACKS, WEBM_TAGS
    )
    if element.id == WEBM_ID_CLUSTER:
        return webm_cluster(scan, bytes, size, element, cut)
    if element.id == WEBM_ID_SEGMENT:
        if scan.webm_place != WEBM_HEADERS:     # one more, of the same EBML header
            return webm_discard(scan, cut, element.head_bytes, size)
        scan.webm_headers_total += 1
        return scan_frame(scan, cut, element.head_bytes, 0, FRAME_HEADER)
    if scan.webm_place != WEBM_HEADERS and element.id in (WEBM_CRC, WEBM_VOID):
        return webm_fill(scan, bytes, size, element, cut)
    if element.body_bytes > (
        WEBM_DISCARD_BYTES_MAX if scan.webm_place == WEBM_HEADERS else WEBM_BETWEEN_BYTES_MAX
    ) or not (webm_is_top(element.id) or element.id in (WEBM_CRC, WEBM_VOID)):
        return webm_damage(scan, bytes, size, cut)
    if not is_header or whole > FRAME_BYTES_MAX:
        return webm_discard(scan, cut, whole, size)
    if size < whole:
        return SCAN_MORE
    webm_learn(scan, element.id, bytes + element.head_bytes, <size_t>element.body_bytes)
    scan.webm_headers_total += 1
    return scan_frame(scan, cut, <uint32_t>whole, 0, FRAME_HEADER)


cdef inline int64_t scan_webm(
    scan_t* scan, const uint8_t* bytes, size_t size, cut_t* cut
) noexcept nogil:
    """One step; see scan_next."""
    cdef webm_t element
    cdef int verdict
    cdef int64_t step
    size = size if size < SCAN_STEP_BYTES_MAX else SCAN_STEP_BYTES_MAX
    if scan.tag_rest_bytes != 0 and size != 0:
        return scan_tag_rest(scan, cut, size)
    if size < scan_bytes_min(scan, 1):
        return SCAN_MORE
    step = scan_foreign(scan, bytes) if scan.frames_total == 0 else 0
    if step < 0:
        return step
    verdict = webm_element(bytes, size, &element)
    if verdict == 0:
        return SCAN_MORE
    if verdict < 0:
        return webm_damage(scan, bytes, size, cut)
    if element.id == WEBM_EBML:
        if element.body_bytes > WEBM_EBML_BYTES_MAX:
            return webm_damage(scan, bytes, size, cut)
        if size < element.head_bytes + element.body_bytes:
            return SCAN_MORE
        scan.webm_headers_total += 1
        return webm_begin(scan, &element, cut)
    if scan.webm_place == WEBM_OUTSIDE or (scan.in_junk and element.id != WEBM_ID_CLUSTER):
        return webm_damage(scan, bytes, size, cut)
    if scan.webm_place == WEBM_CLUSTER and (webm_is_top(element.id) or scan.webm_left_bytes == 0):
        if scan.webm_left_bytes != 0 and scan.webm_left_bytes != WEBM_UNKNOWN:
            scan.resyncs_total += 1     # the cluster is shorter than it said: something is missing
        scan.webm_place = WEBM_SEGMENT
    if scan.webm_place == WEBM_CLUSTER:
        return webm_in_cluster(scan, bytes, size, &element, cut)
    return webm_in_segment(scan, bytes, size, &element, cut)
