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
#   5. Where a listener wants to begin (`?at=`, `Range`) is read here, and never a reason to refuse:
#      what is malformed is as if it were not there (RFC 9110 §14.2). What it means: anchor.pxd.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)

cdef enum:
    HEAD_BYTES_MAX = 8192
    FIELDS_MAX = 64
    PATH_BYTES_MAX = 255
    NUMBER_DIGITS_MAX = 18    # of an epoch, position or range: below 2^60, so sums of three fit
    MEDIA_DIGITS_MAX = 15     # of milliseconds: the same in microseconds
    PROBE_BYTES_MAX = 100     # a closed range from 0 that is no longer only asks what there is

cdef enum:  # at: what the query says
    AT_NONE = 0
    AT_PLACE = 1              # EPOCH.POSITION or EPOCH.POSITION.HEADER
    AT_LIVE = 2               # `at=live`: to be told where it would begin now
    AT_TIME = 3               # EPOCH.tMILLISECONDS: to be told which place that is
    AT_BAD = 4                # malformed: as none, but never answered with a place

cdef enum:  # range
    RANGE_NONE = 0            # absent, `bytes=0-`, or nothing that is served in parts
    RANGE_FROM = 1            # `bytes=N-`, N > 0: somebody comes back
    RANGE_PROBE = 2           # `bytes=0-M`, M < PROBE_BYTES_MAX

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
    bint relays               # it says that it is a server that passes the stream on
    uint32_t fields
    int at                    # AT_…
    uint64_t at_epoch         # ms
    uint64_t at_position
    uint64_t at_header_bytes  # sent before that position in the first answer; 0 unless told
    bint at_header_told
    uint64_t at_media_us      # of AT_TIME
    int range                 # RANGE_…
    uint64_t range_first      # RANGE_FROM: the first byte of the body that is wanted
    uint32_t range_bytes      # RANGE_PROBE: how many
    uint32_t ranges           # fields that bear on it; two or more are ignored
    const uint8_t* agent      # User-Agent, as it came: hostile; borrowed from the head's bytes
    uint32_t agent_bytes

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

cdef inline uint64_t read_number(
    const uint8_t* bytes, uint64_t size, uint64_t* at
) noexcept nogil:
    # Decimal digits from at[0] on, which moves behind them. No digit, or too many: at[0] stays.
    cdef uint64_t value = 0
    cdef uint64_t i = at[0]
    while i < size and bytes[i] >= 48 and bytes[i] <= 57:
        if i - at[0] == NUMBER_DIGITS_MAX:
            return 0
        value = value * 10 + (bytes[i] - 48)
        i += 1
    at[0] = i
    return value

cdef inline void head_at(head_t* head, const uint8_t* value, uint64_t size) noexcept nogil:
    # The value of `at=`.
    cdef uint64_t i = 0
    cdef uint64_t before
    cdef uint64_t numbers[3]
    cdef int count = 0
    head.at = AT_BAD
    if size == 4 and memcmp(value, b"live", 4) == 0:
        head.at = AT_LIVE
        return
    numbers[2] = 0
    while count < 3:
        before = i
        numbers[count] = read_number(value, size, &i)
        if i == before:
            return
        count += 1
        if i == size or value[i] != 46:
            break
        i += 1
        if count == 1 and i < size and value[i] == 116:
            head_at_time(head, value, size, i + 1, numbers[0])
            return
    if i != size or count < 2:
        return
    head.at = AT_PLACE
    head.at_epoch = numbers[0]
    head.at_position = numbers[1]
    head.at_header_bytes = numbers[2]
    head.at_header_told = count == 3

cdef inline void head_at_time(
    head_t* head, const uint8_t* value, uint64_t size, uint64_t i, uint64_t epoch
) noexcept nogil:
    # Behind the t.
    cdef uint64_t begin = i
    cdef uint64_t media_ms = read_number(value, size, &i)
    if i != size or i == begin or i - begin > MEDIA_DIGITS_MAX:
        return
    head.at = AT_TIME
    head.at_epoch = epoch
    head.at_media_us = media_ms * 1000

cdef inline uint32_t param_end(
    const uint8_t* target, uint32_t size, uint32_t begin
) noexcept nogil:
    # Where the parameter that begins here ends.
    while begin < size and target[begin] != 38:
        begin += 1
    return begin

cdef inline bint param_is_at(
    const uint8_t* target, uint32_t begin, uint32_t end
) noexcept nogil:
    # Is this parameter `at` or `at=…`?
    return (
        end - begin >= 2 and memcmp(target + begin, b"at", 2) == 0
        and (end - begin == 2 or target[begin + 2] == 61)
    )

cdef inline void head_query(head_t* head) noexcept nogil:
    # Looks for `at`; a second one makes it malformed: who sends two is told nothing by either.
    cdef uint32_t begin = 0
    cdef uint32_t end
    while begin < head.target_bytes and head.target[begin] != 63:
        begin += 1
    begin += 1
    while begin < head.target_bytes:
        end = param_end(head.target, head.target_bytes, begin)
        if param_is_at(head.target, begin, end):
            if head.at != AT_NONE or end - begin < 3:
                head.at = AT_BAD
                return
            head_at(head, head.target + begin + 3, end - begin - 3)
        begin = end + 1

cdef inline void head_range(head_t* head, const uint8_t* value, uint64_t size) noexcept nogil:
    # RFC 9110 §14.1.2, one range of bytes; suffixes and lists are left out (§14.2 allows it).
    cdef uint64_t i = 6
    cdef uint64_t before
    cdef uint64_t first
    cdef uint64_t last
    head.ranges += 1
    head.range = RANGE_NONE
    while size > 0 and (value[size - 1] == 32 or value[size - 1] == 9):
        size -= 1
    if head.ranges > 1 or size < 8 or strncasecmp(<const char*>value, b"bytes=", 6) != 0:
        return
    first = read_number(value, size, &i)
    if i == 6 or i == size or value[i] != 45:
        return
    i += 1
    if i == size:
        head.range = RANGE_FROM if first > 0 else RANGE_NONE
        head.range_first = first
        return
    before = i
    last = read_number(value, size, &i)
    if i > before and i == size and first == 0 and last < PROBE_BYTES_MAX:
        head.range = RANGE_PROBE
        head.range_bytes = <uint32_t>last + 1

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
    if head.method == METHOD_SOURCE and target_end < size and line[target_end] == 47:
        return head_path(head, line + target_end, size - target_end)  # SOURCE password /mount
    status = head_version(head, line + target_end, size - target_end)
    if status < 0:
        return status
    return head_path(head, line + method_end + 1, target_end - 1 - (method_end + 1))

cdef inline bint agent_relays(const uint8_t* value, uint64_t size) noexcept nogil:
    # User-Agent of Icecast 2 and of its KH branch (their server id), and of our own pulls.
    if size >= 9 and strncasecmp(<const char*>value, b"Icecast 2", 9) == 0:
        return True
    return size >= 6 and strncasecmp(<const char*>value, b"Relay/", 6) == 0

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
    elif name_bytes == 5 and strncasecmp(<const char*>line, b"range", 5) == 0:
        head_range(head, line + i, size - i)
    elif name_bytes == 10 and strncasecmp(<const char*>line, b"user-agent", 10) == 0:
        head.agent = line + i
        head.agent_bytes = <uint32_t>(size - i)
        head.relays = agent_relays(line + i, size - i)
    elif name_bytes == 8 and strncasecmp(<const char*>line, b"if-range", 8) == 0:
        head.ranges += 2      # RFC 9110 §13.1.5: no validator of ours can match: not in parts
        head.range = RANGE_NONE
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
    head.relays = False
    head.fields = 0
    head.path_bytes = 0
    head.target = NULL
    head.target_bytes = 0
    head.at = AT_NONE
    head.at_epoch = head.at_position = head.at_header_bytes = head.range_first = 0
    head.at_header_told = False
    head.at_media_us = 0
    head.range = RANGE_NONE
    head.range_bytes = head.ranges = head.agent_bytes = 0
    head.agent = NULL
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
    if status == 0:
        head_query(head)
    return status
