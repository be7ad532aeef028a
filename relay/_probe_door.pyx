# _probe_door.pyx: faces for the tests on rooms that decide: heads, budget, redirect, rest.
#
# Rules of this room
#   1. Test faces only: the package never imports it, nothing at run time depends on it.
#   2. It decides nothing: converts arguments, calls one room, converts the answer.

import ipaddress

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from relay._core.budget cimport budget_bite, budget_make, budget_t
from relay._core.heads cimport (
    GOES_EVICTED, heads_add, heads_bucket, heads_close, heads_count, heads_drop, heads_due,
    heads_hold, heads_look, heads_make_room, heads_open, heads_t, heads_wake, place_t,
)
from relay._core.http_head cimport head_end, head_parse, head_t
from relay._core.listener cimport listener_t
from relay._core.pace cimport NOBODY, link_t
from relay._core.redirect cimport (
    base_set, base_t, hops_of, redirect_write, retry_after_s as room_retry_after_s,
)
from relay._core.rest cimport rest_us

SIZES = {"record": sizeof(listener_t), "head": sizeof(place_t), "link": sizeof(link_t)}


def budget(uint64_t began_us, uint64_t now_us, uint64_t due_us, uint32_t queue=0,
           uint32_t queue_max=4096, uint32_t heads=0):
    """What a turn may do, as a dict."""
    cdef budget_t made
    budget_make(&made, began_us, now_us, due_us, queue, queue_max, heads)
    return made


def bite(uint64_t due_us, uint64_t looked_us, uint64_t now_us):
    """Until when the door may work between two listeners; 0: not at all."""
    return budget_bite(due_us, looked_us, now_us)


def rest(uint64_t before_us, uint64_t began_us, uint64_t now_us, bint more=False):
    """How long the intake rests after a turn."""
    return rest_us(before_us, began_us, now_us, more)


def location(str base, bytes target, uint32_t room=8192):
    """The location for a request with this target; None: it is not to be sent on."""
    cdef base_t place
    cdef bytes name = base.encode()
    cdef char* out = <char*>calloc(1, room + 1)
    cdef uint32_t size
    try:
        if not base_set(&place, name, len(name)):
            raise ValueError(base)
        size = redirect_write(out, room, &place, target, <uint32_t>len(target))
        return out[:size] if size > 0 else None
    finally:
        free(out)


def hops(bytes target):
    """How often a request was sent on."""
    cdef uint32_t begin = 0
    cdef uint32_t end = 0
    return hops_of(target, <uint32_t>len(target), &begin, &end)


def retry_after_s(uint64_t dice, int count):
    """The next `count` waits from dice of this state."""
    return [room_retry_after_s(&dice) for _ in range(count)]


def target_of(bytes data):
    """(status, target) of a whole head."""
    cdef head_t head
    cdef int status = head_parse(&head, data, head_end(data, len(data), 0))
    return status, (<const char*>head.target)[:head.target_bytes] if head.target != NULL else None


cdef class Heads:
    """The heads of one shard, on the test's clock."""

    cdef heads_t* heads
    cdef readonly uint32_t members_max

    def __cinit__(self, *, uint32_t members_max=64, uint32_t counted_max=8,
                  uint32_t per_address_max=4, uint64_t grace_us=1000, uint64_t timeout_us=10000,
                  uint64_t seed=7):
        self.heads = <heads_t*>calloc(1, sizeof(heads_t))
        self.members_max = members_max
        if self.heads == NULL or heads_open(self.heads, members_max, seed) != 0:
            raise MemoryError
        self.heads.counted_max = counted_max
        self.heads.per_address_max = per_address_max
        self.heads.grace_us = grace_us
        self.heads.timeout_us = timeout_us

    def __dealloc__(self):
        if self.heads != NULL:
            heads_close(self.heads)
        free(self.heads)

    def add(self, uint32_t member, str address, uint64_t now_us):
        """Let in."""
        cdef bytes packed = pack(address)
        heads_add(self.heads, member, packed, now_us)

    def bucket(self, str address):
        """The bucket of an address."""
        cdef bytes packed = pack(address)
        return heads_bucket(self.heads, packed)

    def wake(self, uint32_t member):
        """Something came."""
        heads_wake(self.heads, member)

    def look(self):
        """The next to be looked at."""
        return someone(heads_look(self.heads))

    def hold(self, uint32_t member):
        """A part of its head came: who has to go for that."""
        return someone(heads_hold(self.heads, member))

    def drop(self, uint32_t member):
        """Its head is whole, or it is gone."""
        heads_drop(self.heads, member)

    def due(self, uint64_t now_us):
        """Who has to go now, in order, each with the reason; they are dropped."""
        cdef int why = 0
        found = []
        while (member := heads_due(self.heads, now_us, &why)) != <uint32_t>NOBODY:
            heads_drop(self.heads, member)
            found.append((member, "evicted" if why == GOES_EVICTED else "expired"))
        return found

    def make_room(self):
        """Who goes where no place is left."""
        return someone(heads_make_room(self.heads))

    def counts(self):
        """(all, fresh, counted, waiting)"""
        return (heads_count(self.heads), self.heads.fresh.count, self.heads.counted.count,
                self.heads.queue.count)


cdef bytes pack(str address):
    # As door_address does: IPv4 mapped into IPv6.
    found = ipaddress.ip_address(address)
    return found.packed if found.version == 6 else bytes(10) + b"\xff\xff" + found.packed


cdef object someone(uint32_t member):
    return None if member == <uint32_t>NOBODY else member
