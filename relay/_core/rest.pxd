# rest.pxd: how long the intake rests between two turns.
#
# Rules of this room
#   1. A source that sends alone is read when its piece comes. Where pieces come one by one from
#      many, each would wake the thread: then one turn each REST_US reads them together. Nobody
#      waits longer than that, a twentieth of the least pace that is chosen by load.
#   2. No clock and no state: it is handed times.

from libc.stdint cimport uint64_t

cdef enum:
    REST_US = 5000

cdef inline uint64_t rest_us(
    uint64_t before_us, uint64_t began_us, uint64_t now_us, bint more
) noexcept nogil:
    # before_us, began_us: when the last turn but one and the last one began; now_us: it is over.
    # more: a source has sent more than one read takes.
    if more or began_us >= before_us + REST_US or now_us >= began_us + REST_US:
        return 0
    return began_us + REST_US - now_us
