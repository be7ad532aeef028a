# tables.pxd: names the two functions of tables.h for the other rooms.
#
# Rules of this room
#   1. Declarations only: why these are no calloc() and free() is told in tables.h.

from libc.stdint cimport uint64_t

cdef extern from "tables.h" nogil:
    void* table_open(uint64_t count, uint64_t item_bytes)
    void table_close(void* table)
