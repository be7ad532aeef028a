# body.pxd: how the body of a source's request is framed: raw, of a known length, or in chunks.
#
# Rules of this room
#   1. Bytes in, runs of audio out, without a copy; split anywhere, the audio is the same.
#   2. Bounds: a size line of 256 bytes, chunks below 2 GiB, trailers of 8 KiB.
#   3. Knows no socket; the request's head was judged elsewhere (relay/source_http.py).

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    BODY_LINE_BYTES_MAX = 256
    BODY_TRAILER_BYTES_MAX = 8192

cdef enum:  # kind
    BODY_RAW = 0              # ends with its connection
    BODY_SIZED = 1            # Content-Length
    BODY_CHUNKED = 2          # RFC 9112 §7.1

cdef enum:  # what is read next
    BODY_AUDIO = 0
    BODY_SIZE_LINE = 1
    BODY_AFTER_DATA = 2       # the line end behind a chunk's data
    BODY_TRAILER = 3
    BODY_ENDED = 4

cdef enum:  # below zero: why these bytes are no chunks
    BODY_LINE_TOO_LONG = -101
    BODY_BAD_SIZE = -102
    BODY_CHUNK_TOO_LONG = -103
    BODY_TRAILERS_TOO_LONG = -104

cdef struct body_t:
    int kind
    int state
    uint64_t left_bytes       # of the body (sized), of the chunk (chunked)
    uint64_t trailer_bytes
    uint64_t line_bytes
    uint8_t line[BODY_LINE_BYTES_MAX]

cdef inline void body_open(body_t* body, int kind, uint64_t size_bytes) noexcept nogil:
    # size_bytes: of a sized body.
    body.kind = kind
    body.left_bytes = size_bytes if kind == BODY_SIZED else 0
    body.trailer_bytes = body.line_bytes = 0
    body.state = BODY_SIZE_LINE if kind == BODY_CHUNKED else BODY_AUDIO
    if kind == BODY_SIZED and size_bytes == 0:
        body.state = BODY_ENDED

cdef inline const char* body_reason(int64_t reason) noexcept nogil:
    if reason == BODY_LINE_TOO_LONG:
        return b"a chunk's size line has more than 256 bytes"
    if reason == BODY_BAD_SIZE:
        return b"a chunk's size is no hexadecimal number below 2 GiB"
    if reason == BODY_CHUNK_TOO_LONG:
        return b"a chunk is longer than its size says"
    return b"the trailers have more than 8192 bytes"

cdef inline int64_t body_size_line(body_t* body) noexcept nogil:
    # RFC 9112 §7.1: 1*HEXDIG, then what extensions there are; blanks around the digits are taken.
    cdef uint64_t i = 0
    cdef uint64_t begin
    cdef uint64_t value = 0
    cdef uint8_t c
    while i < body.line_bytes and (body.line[i] == 32 or body.line[i] == 9):
        i += 1
    begin = i
    while i < body.line_bytes:
        c = body.line[i]
        if c >= 48 and c <= 57:
            value = value * 16 + c - 48
        elif c | 32 >= 97 and c | 32 <= 102:
            value = value * 16 + (c | 32) - 87
        else:
            break
        i += 1
        if i - begin > 8:
            return BODY_BAD_SIZE
    if i == begin or value >= <uint64_t>1 << 31:
        return BODY_BAD_SIZE
    while i < body.line_bytes and (body.line[i] == 32 or body.line[i] == 9):
        i += 1
    if i < body.line_bytes and body.line[i] != 59:
        return BODY_BAD_SIZE
    body.left_bytes = value
    body.state = BODY_AUDIO if value > 0 else BODY_TRAILER
    return 0

cdef inline int64_t body_line(body_t* body) noexcept nogil:
    # A whole line, without its end.
    if body.state == BODY_SIZE_LINE:
        return body_size_line(body)
    if body.state == BODY_AFTER_DATA:
        body.state = BODY_SIZE_LINE
        return BODY_CHUNK_TOO_LONG if body.line_bytes > 0 else 0
    body.trailer_bytes += body.line_bytes
    if body.line_bytes == 0:
        body.state = BODY_ENDED
    return BODY_TRAILERS_TOO_LONG if body.trailer_bytes > BODY_TRAILER_BYTES_MAX else 0

cdef inline int64_t body_take_line(
    body_t* body, const uint8_t* bytes, uint64_t size,
) noexcept nogil:
    # As much of a line as there is; the bytes used, or why not.
    cdef uint64_t used = 0
    cdef int64_t status
    while used < size and bytes[used] != 10:
        if body.line_bytes == BODY_LINE_BYTES_MAX:
            return BODY_LINE_TOO_LONG
        body.line[body.line_bytes] = bytes[used]
        body.line_bytes += 1
        used += 1
    if used == size:
        return <int64_t>used
    if body.line_bytes > 0 and body.line[body.line_bytes - 1] == 13:
        body.line_bytes -= 1
    status = body_line(body)
    body.line_bytes = 0
    return status if status < 0 else <int64_t>used + 1

cdef inline int64_t body_next(
    body_t* body, const uint8_t* bytes, uint64_t size, uint64_t* audio_bytes,
) noexcept nogil:
    # One step from the front of bytes (size > 0, the body not ended): the bytes used, of which the
    # last audio_bytes are audio; below zero: why not.
    cdef int64_t used
    audio_bytes[0] = 0
    if body.state != BODY_AUDIO:
        return body_take_line(body, bytes, size)
    if body.kind == BODY_RAW:
        audio_bytes[0] = size
        return <int64_t>size
    used = <int64_t>(size if size < body.left_bytes else body.left_bytes)
    body.left_bytes -= <uint64_t>used
    if body.left_bytes == 0:
        body.state = BODY_AFTER_DATA if body.kind == BODY_CHUNKED else BODY_ENDED
    audio_bytes[0] = <uint64_t>used
    return used
