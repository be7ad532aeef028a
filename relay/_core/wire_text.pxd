# wire_text.pxd: text that comes from another node: mounts, addresses, header lines.
#
# Rules of this room
#   1. Pure: says yes or no; the bounds of sizes are the caller's.
#   2. What passes here may stand in a reply to a listener, in a log, in a libzmq address.

from libc.stdint cimport uint8_t, uint32_t

cdef inline bint is_utf8(const uint8_t* bytes, uint32_t size) noexcept nogil:
    # RFC 3629 §4: no form longer than needed, no surrogates, nothing beyond U+10FFFF.
    cdef uint32_t i = 0
    cdef uint32_t more
    cdef uint8_t first
    while i < size:
        first = bytes[i]
        i += 1
        if first < 0x80:
            continue
        more = 1 if first < 0xE0 else (2 if first < 0xF0 else 3)
        if first < 0xC2 or first > 0xF4 or size - i < more:
            return False
        if (first == 0xE0 and bytes[i] < 0xA0) or (first == 0xED and bytes[i] > 0x9F):
            return False
        if (first == 0xF0 and bytes[i] < 0x90) or (first == 0xF4 and bytes[i] > 0x8F):
            return False
        while more > 0:
            if bytes[i] & 0xC0 != 0x80:
                return False
            i += 1
            more -= 1
    return True

cdef inline bint is_mount(
    const uint8_t* bytes, uint32_t size, uint32_t size_max,
) noexcept nogil:
    cdef uint32_t i
    if size == 0 or size > size_max or bytes[0] != 47:   # '/'
        return False
    for i in range(size):
        if bytes[i] <= 32 or bytes[i] == 127:
            return False
    return is_utf8(bytes, size)     # Python reads it as text

cdef inline bint is_address(
    const uint8_t* bytes, uint32_t size, uint32_t size_max,
) noexcept nogil:
    # host:port, the host being a name, an IPv4 or a bracketed IPv6 address (zone ids included).
    cdef uint32_t i
    for i in range(size):
        if bytes[i] <= 32 or bytes[i] >= 127 or bytes[i] == 47 or bytes[i] == 59:
            return False
    return size <= size_max

cdef inline bint is_info(
    const uint8_t* bytes, uint32_t size, uint32_t size_max,
) noexcept nogil:
    # HTTP field lines, each with a name, a colon and CRLF; none empty, no other control byte, so
    # that nothing can be smuggled into the reply to a listener (RFC 9112 §5).
    cdef uint32_t i = 0
    cdef uint32_t begin
    cdef bint colon
    if size > size_max:
        return False
    while i < size:
        begin = i
        colon = False
        while i < size and bytes[i] != 13:
            if bytes[i] < 32 or bytes[i] == 127:
                return False
            if bytes[i] == 58 and i > begin:
                colon = True
            i += 1
        if not colon or i + 1 >= size or bytes[i + 1] != 10:
            return False
        i += 2
    return True
