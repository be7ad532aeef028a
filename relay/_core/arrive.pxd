# arrive.pxd: connections that Python hands in, each with its head: as if they had come by the door.
#
# Rules of this room
#   1. The same places, bounds and refusals as for those who come by the door; nobody is asked about
#      twice: whoever is handed in has passed the host's own judgement.
#   2. A few each turn, after those who listen; what is left is the next turn's first work here.
#   3. An entry owns its descriptor: it becomes a record's, or is closed.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from relay._core.atomics cimport load_u32
from relay._core.budget cimport LOOKS_MIN
from relay._core.connection cimport shard_t
from relay._core.door cimport shard_evict, shard_request, shard_seat
from relay._core.engine cimport now_us
from relay._core.handover cimport close, entry_t, handover_take
from relay._core.heads cimport heads_make_room
from relay._core.http_head cimport HEAD_BYTES_MAX, head_end
from relay._core.listener cimport listener_t
from relay._core.pace cimport NOBODY
from relay._core.refusal cimport REFUSE_FIELDS, REFUSE_HEAD, shard_refuse, shard_refuse_fd

cdef enum:
    ARRIVE_US = 2000          # of a turn; four at least

cdef inline void shard_arrive(shard_t* shard) noexcept nogil:
    cdef entry_t entry
    cdef int done = 0
    cdef uint64_t now
    cdef uint64_t until
    if not shard.arrivals_wait:
        return
    now = now_us()
    until = now + ARRIVE_US
    while now < until or done < LOOKS_MIN:
        if not handover_take(&shard.arrivals, &entry):
            shard.arrivals_wait = False
            return
        shard_take_in(shard, &entry, now)
        free(entry.bytes)
        done += 1
        now = now_us()

cdef inline void shard_take_in(shard_t* shard, const entry_t* entry, uint64_t now) noexcept nogil:
    cdef uint32_t index
    cdef listener_t* listener
    cdef uint64_t whole
    if not shard_makes_room(shard):
        shard_refuse_fd(shard, entry.fd)
        close(entry.fd)
        return
    index = shard_seat(shard, entry.fd, entry.address, entry.port, now)
    listener = &shard.records[index]
    listener.ticket = entry.ticket
    listener.head_bytes = min(entry.size_bytes, <uint32_t>HEAD_BYTES_MAX)
    memcpy(shard.bytes, entry.bytes, listener.head_bytes)
    whole = head_end(shard.bytes, listener.head_bytes, 0)
    if whole > 0:
        shard_request(shard, index, shard.bytes, whole, now, True)
    else:
        shard_refuse(
            shard, index, REFUSE_HEAD if listener.head_bytes < HEAD_BYTES_MAX else REFUSE_FIELDS,
            NULL,
        )

cdef inline bint shard_makes_room(shard_t* shard) noexcept nogil:
    cdef uint32_t victim
    if load_u32(&shard.engine.places) < shard.engine.places_max and shard.unused_count > 0:
        return True
    victim = heads_make_room(&shard.heads)
    if victim == <uint32_t>NOBODY:
        return False
    shard_evict(shard, victim)
    return True
