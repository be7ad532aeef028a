# http_head.pxd: the request head of whoever comes to the door.
#
# Rules of this room
#   1. Length-limited (HEAD_BYTES_MAX, FIELDS_MAX), no copy except of the decoded path; every byte
#      is looked at when the head is whole. Input is hostile.
#   2. Answers with a status: > 0 bytes of the head, 0 more needed, < 0 minus the HTTP status of a
#      refusal.
#   3. Knows only the few fields that a listener's request needs; sources are parsed in Python.
#   4. RFC 9112 §2–§5 where nothing else is said; a bare LF ends a line too (§2.2 allows it, old
#      players need it).

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)

cdef enum:
    HEAD_BYTES_MAX = 8192
    FIELDS_MAX = 64
    PATH_BYTES_MAX = 255

cdef enum:  # method
    METHOD_OTHER = 0
    METHOD_GET = 1
    METHOD_HEAD = 2
    METHOD_PUT = 3
    METHOD_SOURCE = 4
    METHOD_POST = 5
    METHOD_OPTIONS = 6

cdef struct head_t:           # what the request says
    int method
    int minor                 # HTTP/1.minor; 0 for ICE/1.0
    uint32_t path_bytes
    char path[PATH_BYTES_MAX + 1]   # percent-decoded, without the query
    const uint8_t* target     # path and query as they came; borrowed from the head's bytes
    uint32_t target_bytes
    bint icy                  # Icy-MetaData: non-zero
    uint32_t fields

cdef inline uint64_t head_end(
    const uint8_t* bytes, uint64_t size, uint64_t from_byte,
) noexcept nogil:
    # The length of the head with its blank line, 0 while it is not whole. Looks on from from_byte.
    cdef uint64_t i = from_byte - 3 if from_byte > 3 else 0
    while i < size:
        if bytes[i] == 10:
            if i + 1 < size and bytes[i + 1] == 10:
                return i + 2
            if i + 2 < size and bytes[i + 1] == 13 and bytes[i + 2] == 10:
                return i + 3
        i += 1
    return 0

cdef inline int method_of(const uint8_t* bytes, uint64_t size) noexcept nogil:
    if size == 3 and memcmp(bytes, b"GET", 3) == 0:
        return METHOD_GET
    if size == 4 and memcmp(bytes, b"HEAD", 4) == 0:
        return METHOD_HEAD
    if size == 3 and memcmp(bytes, b"PUT", 3) == 0:
        return METHOD_PUT
    if size == 6 and memcmp(bytes, b"SOURCE", 6) == 0:
        return METHOD_SOURCE
    if size == 4 and memcmp(bytes, b"POST", 4) == 0:
        return METHOD_POST
    if size == 7 and memcmp(bytes, b"OPTIONS", 7) == 0:
        return METHOD_OPTIONS
    return METHOD_OTHER

cdef inline int hex_value(uint8_t c) noexcept nogil:
    if c >= 48 and c <= 57:
        return c - 48
    c |= 32
    if c >= 97 and c <= 102:
        return c - 87
    return -1

cdef inline int head_path(head_t* head, const uint8_t* bytes, uint64_t size) noexcept nogil:
    # Origin form, absolute form (RFC 9112 §3.2) or `*`; decoded; no control byte may come out of
    # it.
    cdef uint64_t i = 0
    cdef int high
    cdef int low
    cdef uint8_t c
    head.path_bytes = 0
    head.target_bytes = 0
    if size > 7 and strncasecmp(<const char*>bytes, b"http://", 7) == 0:
        i = 7
        while i < size and bytes[i] != 47:
            i += 1
    if i >= size or (bytes[i] != 47 and not (size == 1 and bytes[0] == 42)):
        return -400
    head.target = bytes + i
    while i + head.target_bytes < size and bytes[i + head.target_bytes] != 35:
        head.target_bytes += 1
    while i < size and bytes[i] != 63 and bytes[i] != 35:
        c = bytes[i]
        if c <= 32:
            return -400       # RFC 9112 §3: no whitespace in a request target
        if c == 37:
            if i + 2 >= size:
                return -400
            high = hex_value(bytes[i + 1])
            low = hex_value(bytes[i + 2])
            if high < 0 or low < 0:
                return -400
            c = <uint8_t>(high * 16 + low)
            i += 2
        if c < 32 or c == 127:
            return -400
        if head.path_bytes == PATH_BYTES_MAX:
            return -414
        head.path[head.path_bytes] = <char>c
        head.path_bytes += 1
        i += 1
    head.path[head.path_bytes] = 0
    return 0

cdef inline int head_version(head_t* head, const uint8_t* bytes, uint64_t size) noexcept nogil:
    # The end of the request line. Old source clients write ICE/1.0, and mean HTTP/1.0.
    head.minor = 0
    if size == 7 and head.method == METHOD_SOURCE and memcmp(bytes, b"ICE/1.0", 7) == 0:
        return 0
    if size != 8 or memcmp(bytes, b"HTTP/1.", 7) != 0:
        return -505 if size >= 5 and memcmp(bytes, b"HTTP/", 5) == 0 else -400
    if bytes[7] < 48 or bytes[7] > 57:
        return -400
    head.minor = 1 if bytes[7] > 48 else 0
    return 0

cdef inline int head_request_line(head_t* head, const uint8_t* line, uint64_t size) noexcept nogil:
    cdef uint64_t method_end = 0
    cdef uint64_t target_end
    cdef int status
    while method_end < size and line[method_end] != 32:
        method_end += 1
    target_end = size
    while target_end > method_end and line[target_end - 1] != 32:
        target_end -= 1
    if method_end == 0 or target_end <= method_end + 2:
        return -400
    head.method = method_of(line, method_end)
    status = head_version(head, line + target_end, size - target_end)
    if status < 0:
        return status
    return head_path(head, line + method_end + 1, target_end - 1 - (method_end + 1))

cdef inline int head_field(head_t* head, const uint8_t* line, uint64_t size) noexcept nogil:
    cdef uint64_t i = 0
    cdef uint64_t name_bytes
    head.fields += 1
    if head.fields > FIELDS_MAX:
        return -431
    while i < size and line[i] != 58:
        if line[i] <= 32 or line[i] >= 127:
            return -400       # RFC 9112 §5.1: no whitespace before the colon; §5.2: no folding
        i += 1
    if i == 0 or i == size:
        return -400
    name_bytes = i
    i += 1
    while i < size and (line[i] == 32 or line[i] == 9):
        i += 1
    if name_bytes == 12 and strncasecmp(<const char*>line, b"icy-metadata", 12) == 0:
        head.icy = i < size and line[i] >= 49 and line[i] <= 57
    return 0

cdef inline int head_parse(head_t* head, const uint8_t* bytes, uint64_t size) noexcept nogil:
    # A whole head (head_end said so): 0, or minus the status of a refusal.
    cdef uint64_t begin = 0
    cdef uint64_t end
    cdef uint64_t line_bytes
    cdef bint first = True
    cdef int status = 0
    head.method = METHOD_OTHER
    head.minor = 0
    head.icy = False
    head.fields = 0
    head.path_bytes = 0
    head.target = NULL
    head.target_bytes = 0
    while begin < size and status == 0:
        end = begin
        while bytes[end] != 10:
            if bytes[end] == 0 or (bytes[end] == 13 and bytes[end + 1] != 10):
                return -400
            end += 1
        line_bytes = end - begin
        if line_bytes > 0 and bytes[end - 1] == 13:
            line_bytes -= 1
        if first:
            status = head_request_line(head, bytes + begin, line_bytes)
        elif line_bytes > 0:
            status = head_field(head, bytes + begin, line_bytes)
        first = False
        begin = end + 1
    return status
