# reply.pxd: what somebody is told who asks for a mount and is not refused.
#
# Rules of this room
#   1. Audio is HTTP/1.0 200 without a length, as ever, unless a part was asked for that is served:
#      then HTTP/1.1 206, whose Content-Range is true of the first byte and promises no end.
#   2. HEAD and probes are told the same without taking a place: nobody is counted.
#   3. Where a listener begins is anchor.pxd's to say; here it is written.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, strlen

from relay._core.anchor cimport (
    ANCHOR_NONE, BEGIN_AT, BEGIN_LIVE, BEGIN_SEND_ON, BEGIN_WAIT, anchor_begin, anchor_live,
    anchor_location, anchor_probe, anchor_wanted, begin_set, begin_t,
)
from relay._core.atomics cimport load_pointer, load_u32
from relay._core.connection cimport http_date, shard_t
from relay._core.engine cimport engine_t, wall_ms
from relay._core.fallback_look cimport rule_stands
from relay._core.http_head cimport (
    AT_PLACE, AT_TIME, METHOD_GET, METHOD_HEAD, RANGE_FROM, RANGE_NONE, RANGE_PROBE, head_t,
    strncasecmp,
)
from relay._core.icy cimport ICY_METAINT
from relay._core.refusal cimport (
    NO_TEXT, REFUSE_MOUNT_FULL, REFUSE_NODE_FULL, REFUSE_NONE, REPLY_FOUND, shard_answer,
)
from relay._core.ring cimport ring_t
from relay._core.stream cimport info_t, stream_t

cdef extern from "replies.h" nogil:
    # formats: version and status, the date, ranges; the length and text of the stream's own lines
    const char* REPLY_AUDIO
    const char* REPLY_RANGE   # first and last byte, and how many there are
    const char* REPLY_LENGTH
    const char* REPLY_MEDIA   # media time at a place, ms
    const char* REPLY_PLACE_END   # of REPLY_FOUND, to a place on this node

cdef extern from *:
    """
    /* A body without an end: how many bytes more there are, for players that count. A `*` would be
     * truer, and FFmpeg takes it for 0 bytes and goes away. */
    #define RELAY_PART_BYTES (1ULL << 40)
    /* The same for a probe, which may count in 32 bits. */
    #define RELAY_PROBED_BYTES ((1ULL << 30) - 1)
    """
    const unsigned long long PART_BYTES "RELAY_PART_BYTES"
    const unsigned long long PROBED_BYTES "RELAY_PROBED_BYTES"

cdef inline bint head_only_asks(const head_t* head) noexcept nogil:
    # HEAD, or a few bytes to see what this is: takes no place.
    return head.method == METHOD_HEAD or head.range == RANGE_PROBE

cdef inline bint info_takes_titles(const info_t* info) noexcept nogil:
    # MPEG and AAC resynchronise by nature and every player of them knows blocks. Other formats
    # carry their titles themselves; a block in between would break a page of theirs.
    cdef uint32_t i = 0
    while i + 4 <= info.size_bytes and info.bytes[i] != 13:
        if strncasecmp(<const char*>&info.bytes[i], b"mpeg", 4) == 0 or (
            strncasecmp(<const char*>&info.bytes[i], b"/aac", 4) == 0
        ) or strncasecmp(<const char*>&info.bytes[i], b"/mp3", 4) == 0:
            return True
        i += 1
    return False

cdef inline bint stream_takes_titles(stream_t* stream) noexcept nogil:
    cdef info_t* info = <info_t*>load_pointer(<void**>&stream.info)
    return info != NULL and (stream.config.icy_ogg != 0 or info_takes_titles(info))

cdef inline uint32_t shard_write_reply(
    shard_t* shard, stream_t* stream, const head_t* head, bint icy, const begin_t* begin
) noexcept nogil:
    # The response head, into shard.reply. HTTP/1.0 without a length: every player takes it.
    cdef info_t* info = <info_t*>load_pointer(<void**>&stream.info)
    cdef uint64_t unix_s = wall_ms() // 1000
    cdef uint64_t first = head.range_first
    cdef bint is_part = head.method == METHOD_GET and head.range != RANGE_NONE
    cdef int info_bytes = <int>info.size_bytes if info != NULL else 0
    cdef int size
    if unix_s != shard.date_s:
        shard.date_s = unix_s
        http_date(unix_s, shard.date_text)
    size = snprintf(
        shard.reply, sizeof(shard.reply), REPLY_AUDIO,
        b"1.1 206 Partial Content" if is_part else b"1.0 200 OK", shard.date_text,
        b"bytes" if is_part or head.at == AT_PLACE else b"none",
        info_bytes, <const char*>info.bytes if info != NULL else NO_TEXT,
    )
    if is_part and head.range == RANGE_PROBE:
        size += snprintf(shard.reply + size, 256, REPLY_RANGE, <unsigned long long>0,
                         <unsigned long long>head.range_bytes - 1, PROBED_BYTES)
        size += snprintf(shard.reply + size, 64, REPLY_LENGTH, head.range_bytes)
    elif is_part:
        size += snprintf(shard.reply + size, 256, REPLY_RANGE, <unsigned long long>first,
                         <unsigned long long>(first + PART_BYTES - 1),
                         <unsigned long long>(first + PART_BYTES))
    if icy:
        size += snprintf(shard.reply + size, 64, b"icy-metaint:%d\r\n", <int>ICY_METAINT)
    if begin.how == BEGIN_AT and head.range != RANGE_FROM:
        size += snprintf(shard.reply + size, 64, REPLY_MEDIA, <long long>(begin.media_us // 1000))
    memcpy(shard.reply + size, b"\r\n", 2)
    return <uint32_t>size + 2

cdef inline bint stream_wants_place(
    engine_t* engine, const stream_t* stream, const head_t* head, bint icy, bint by_default
) noexcept nogil:
    # Is this request to be sent to a place? Not where listeners may be moved to a fallback, or hear
    # an intro first: byte N of what they got would then be another one than byte N of the place.
    return (
        not rule_stands(engine, stream) and stream.config.intro == 0
        and anchor_wanted(head, icy, by_default)
    )

cdef inline bint stream_gives_place(
    stream_t* stream, begin_t* begin, ring_t* newest
) noexcept nogil:
    # The place at which a listener would begin now. Of an epoch that is over none is given out: the
    # next one will be somewhere else.
    return load_u32(&stream.source_up) == 1 and anchor_live(begin, newest, stream.config.burst_us)

cdef inline bint place_is_due(const head_t* head, const begin_t* begin, bint wanted) noexcept nogil:
    # Is this request still to be told where a listener would begin now? Who told a media time is
    # that has left the rings, unless he counts bytes from there.
    return wanted and (
        head.at != AT_TIME or (begin.how == BEGIN_LIVE and head.range != RANGE_FROM)
    )

cdef inline int shard_reply_head(
    shard_t* shard, uint32_t index, stream_t* stream, head_t* head
) noexcept nogil:
    # What a GET would be told, without taking a place for it; a probe gets its few bytes, too.
    cdef uint32_t bound = stream.config.listeners_max
    cdef uint32_t size
    cdef begin_t begin
    cdef bint wanted = stream_wants_place(shard.engine, stream, head, False, False)
    cdef ring_t* ring = <ring_t*>load_pointer(<void**>&stream.ring)     # a turn keeps both
    cdef ring_t* before = <ring_t*>load_pointer(<void**>&stream.before)
    if load_u32(&shard.engine.listeners) >= shard.engine.listeners_max:
        return REFUSE_NODE_FULL
    if bound > 0 and load_u32(&stream.listeners) >= bound:
        return REFUSE_MOUNT_FULL
    # who told a media time is not told another place while his may still come
    anchor_begin(&begin, head, ring, before, False, head.at != AT_TIME)
    if begin.how == BEGIN_WAIT or (head.at == AT_TIME and not wanted):
        begin_set(&begin, BEGIN_LIVE, ANCHOR_NONE)
    elif begin.how == BEGIN_LIVE and not (
        place_is_due(head, &begin, wanted) and stream_gives_place(stream, &begin, ring)
    ) and anchor_live(&begin, ring, stream.config.burst_us):
        begin.how = BEGIN_LIVE      # a probe gets its bytes from there
    if begin.how == BEGIN_SEND_ON and shard_send_on(shard, index, head, &begin):
        return REFUSE_NONE
    size = shard_write_reply(
        shard, stream, head, head.icy and head.at != AT_PLACE and stream_takes_titles(stream),
        &begin,
    )
    if head.method == METHOD_GET:
        shard.counters.probes_total += 1
        anchor_probe(&begin, <uint8_t*>shard.reply + size, head.range_bytes)
        size += head.range_bytes
    shard_answer(shard, index, shard.reply, size)
    return REFUSE_NONE

cdef inline bint shard_send_on(
    shard_t* shard, uint32_t index, const head_t* head, const begin_t* begin
) noexcept nogil:
    # To its place. False: that cannot be written, so it begins here as any listener.
    cdef uint32_t used = <uint32_t>strlen(REPLY_FOUND)
    cdef uint32_t end_bytes = <uint32_t>strlen(REPLY_PLACE_END)
    cdef uint32_t location_bytes = anchor_location(
        shard.reply + used, <uint32_t>sizeof(shard.reply) - used - end_bytes, head, begin
    )
    if location_bytes == 0:
        return False
    memcpy(shard.reply, REPLY_FOUND, used)
    memcpy(shard.reply + used + location_bytes, REPLY_PLACE_END, end_bytes)
    shard.counters.anchors_given_total += 1
    shard_answer(shard, index, shard.reply, used + location_bytes + end_bytes)
    return True
