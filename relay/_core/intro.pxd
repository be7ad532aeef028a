# intro.pxd: what each new listener of a mount hears first: whole frames of a file, kept once.
#
# Rules of this room
#   1. Made before the threads start and never changed: all shards send straight out of it.
#   2. Bounds: INTRO_BYTES_MAX for one, one for each mount with settings of its own.
#   3. Does not know files: relay/intro.py reads and cuts them.

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef enum:
    INTRO_BYTES_MAX = 16777216

cdef struct intro_t:
    uint8_t* bytes            # size_bytes; owned
    uint64_t size_bytes
    uint64_t format           # of its content type (fallback_format): for no other is it sent

cdef inline int intro_open(
    intro_t* intro, const uint8_t* bytes, uint64_t size_bytes, uint64_t format
) noexcept nogil:
    # -1: no memory, nothing in it, or too long.
    if size_bytes == 0 or size_bytes > INTRO_BYTES_MAX:
        return -1
    intro.bytes = <uint8_t*>malloc(size_bytes)
    if intro.bytes == NULL:
        return -1
    memcpy(intro.bytes, bytes, size_bytes)
    intro.size_bytes = size_bytes
    intro.format = format
    return 0

cdef inline void intro_close(intro_t* intro) noexcept nogil:
    free(intro.bytes)
    intro.bytes = NULL
