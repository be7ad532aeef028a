# visits.pxd: who came and who left, for whoever keeps accounts in Python.
#
# Rules of this room
#   1. One writer, the shard's thread; one reader, whoever holds Python's lock. No lock of its own.
#   2. Nothing is written unless somebody has asked for it (engine.visits_wanted).
#   3. Bound: VISITS_MAX records a shard; one that finds no room is counted, and is not there: the
#      counts of a stream (stream.pxd) are exact all the same.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from relay._core.atomics cimport load_u64, store_u64
from relay._core.tables cimport table_close, table_open

cdef enum:
    VISITS_MAX = 4096
    VISIT_JOINED = 0          # instead of a reason of an end

cdef struct visit_t:
    uint64_t at_us            # monotonic
    uint64_t key              # of the stream that it asked for
    uint64_t id               # of the listener: shard, generation, record
    uint64_t listened_us      # since its connection was accepted; 0 of a join
    uint64_t sent_bytes
    uint64_t ticket           # listener.pxd
    uint8_t address[16]       # IPv6, or IPv4 mapped into it
    uint16_t port
    uint8_t reason            # VISIT_JOINED, or why it ended (listener.pxd: END_…)

cdef struct visits_t:
    visit_t* entries          # VISITS_MAX; owned; touched only when something is written
    uint64_t put              # owner: the writer
    uint64_t taken            # owner: the reader
    uint64_t lost_total       # owner: the writer

cdef inline int visits_open(visits_t* visits) noexcept nogil:
    visits.entries = <visit_t*>table_open(VISITS_MAX, sizeof(visit_t))
    visits.put = visits.taken = visits.lost_total = 0
    return 0 if visits.entries != NULL else -1

cdef inline void visits_close(visits_t* visits) noexcept nogil:
    table_close(visits.entries)
    visits.entries = NULL

cdef inline void visits_put(visits_t* visits, const visit_t* visit) noexcept nogil:
    if visits.put - load_u64(&visits.taken) == VISITS_MAX:
        store_u64(&visits.lost_total, visits.lost_total + 1)
        return
    memcpy(&visits.entries[visits.put % VISITS_MAX], visit, sizeof(visit_t))
    store_u64(&visits.put, visits.put + 1)

cdef inline bint visits_take(visits_t* visits, visit_t* out) noexcept nogil:
    if visits.taken == load_u64(&visits.put):
        return False
    memcpy(out, &visits.entries[visits.taken % VISITS_MAX], sizeof(visit_t))
    store_u64(&visits.taken, visits.taken + 1)
    return True
