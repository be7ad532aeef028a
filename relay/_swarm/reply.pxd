# reply.pxd: the head of an HTTP reply, as far as a listener needs it.
#
# Rules of this room
#   1. Any audio server: HTTP/1.0, HTTP/1.1, and "ICY 200 OK" of SHOUTcast. The request says
#      HTTP/1.0, so the body is never in chunks (RFC 9112 §6.1).
#   2. Three fields count: Content-Length, icy-metaint, and none else; names in any case.
#   3. Untrusted input: bounds are checked, numbers end at 2**31. Nothing is kept or allocated.

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef extern from "<string.h>" nogil:
    void* memmem(const void* bytes, size_t size, const void* wanted, size_t wanted_size)
    void* memchr(const void* bytes, int wanted, size_t size)
    int strncasecmp "strncasecmp"(const char* one, const char* other, size_t size)

cdef enum:
    REPLY_BYTES_MAX = 16384
    REPLY_MORE = 0            # the head is not whole yet
    REPLY_BROKEN = -1         # not HTTP, or longer than the bound

cdef struct reply_t:
    int status
    uint32_t body_at          # bytes of the head
    int64_t content_bytes     # Content-Length; -1: none
    uint32_t metaint          # 0: no titles

cdef inline int64_t reply_number(const uint8_t* at, const uint8_t* end) noexcept nogil:
    # The decimal number there, blanks before it allowed; -1 when there is none.
    cdef int64_t value = -1
    while at < end and (at[0] == 32 or at[0] == 9):
        at += 1
    while at < end and 48 <= at[0] <= 57:
        value = (value if value > 0 else 0) * 10 + (at[0] - 48)
        if value > 0x7FFFFFFF:
            return -1
        at += 1
    return value

cdef inline void reply_field(
    reply_t* reply, const uint8_t* line, const uint8_t* end
) noexcept nogil:
    if end - line > 15 and strncasecmp(<const char*>line, b"content-length:", 15) == 0:
        reply.content_bytes = reply_number(line + 15, end)
    elif end - line > 12 and strncasecmp(<const char*>line, b"icy-metaint:", 12) == 0:
        reply.metaint = <uint32_t>max(<int64_t>0, reply_number(line + 12, end))

cdef inline int reply_parse(reply_t* reply, const uint8_t* bytes, int64_t size) noexcept nogil:
    # The status, REPLY_MORE or REPLY_BROKEN.
    cdef int64_t seen = size if size < REPLY_BYTES_MAX else REPLY_BYTES_MAX
    cdef const uint8_t* end = <const uint8_t*>memmem(bytes, seen, b"\r\n\r\n", 4)
    cdef const uint8_t* line = bytes
    cdef const uint8_t* stop
    if end == NULL:
        return REPLY_BROKEN if seen == REPLY_BYTES_MAX else REPLY_MORE
    reply.body_at = <uint32_t>(end - bytes) + 4
    reply.content_bytes = -1
    reply.metaint = 0
    stop = <const uint8_t*>memchr(bytes, 32, end - bytes)
    if stop == NULL or not (
        (stop - bytes == 8 and strncasecmp(<const char*>bytes, b"HTTP/1.", 7) == 0)
        or (stop - bytes == 3 and strncasecmp(<const char*>bytes, b"ICY", 3) == 0)
    ):
        return REPLY_BROKEN
    reply.status = <int>reply_number(stop, stop + 4 if stop + 4 < end else end)
    if reply.status < 100 or reply.status > 599:
        return REPLY_BROKEN
    while line < end:
        stop = <const uint8_t*>memchr(line, 13, end + 1 - line)
        if stop == NULL:
            break
        reply_field(reply, line, stop)
        line = stop + 2
    return reply.status
