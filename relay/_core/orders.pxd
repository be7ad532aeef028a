# orders.pxd: what is asked of listeners, all of one stream or those with these ids: who they are,
# to end, to go to another one.
#
# Rules of this room
#   1. Who holds Python's lock makes an order and gives it to all shards, one at a time an engine.
#      Each shard carries it out among its own records (orders_step.pxd), a few at a time, and gives
#      its reference back. Nobody waits for a shard.
#   2. Bounds: rolls_max listeners are told, however many there are; all are counted. Who is asked
#      for by id is found by halving, so that an order for a thousand is one look at each record.
#   3. What a listener calls itself is hostile text, kept as it came, at most AGENT_BYTES_MAX of it,
#      beside its record: nothing on the path of audio touches it.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from relay._core.atomics cimport add_u32, sub_u32
from relay._core.stream cimport stream_drop, stream_t

cdef enum:
    AGENT_BYTES_MAX = 190     # iOS, the longest that is common, has 150

cdef enum:  # kind
    ORDER_LIST = 0
    ORDER_END = 1
    ORDER_MOVE = 2

cdef struct agent_t:          # one for each record of a shard
    uint16_t size_bytes
    uint8_t text[AGENT_BYTES_MAX]

cdef struct roll_t:           # one listener, as it is told
    uint64_t id
    uint64_t connected_us
    uint64_t lag_us
    uint64_t sent_bytes
    uint8_t address[16]       # IPv6, or IPv4 mapped into it
    uint16_t port
    agent_t agent

cdef struct order_t:
    int kind
    uint64_t* ids             # of those who are meant, ascending, ids_count; owned
    uint32_t ids_count        # 0: all
    stream_t* stream          # whose listeners; NULL: wherever they are now; one reference
    stream_t* to              # ORDER_MOVE: where they are to go; one reference
    roll_t* rolls             # ORDER_LIST, ORDER_END: rolls_max; owned
    uint32_t rolls_max
    uint32_t found            # so many were meant
    uint32_t unfit            # ORDER_MOVE: of them, those who had to stay
    uint32_t shards_left      # who have not finished; 0: all that is above holds
    uint32_t refs             # one for each of these, one for who asked

cdef inline order_t* order_open(
    int kind, stream_t* stream, stream_t* to, const uint64_t* ids, uint32_t ids_count,
    uint32_t rolls_max, uint32_t shards,
) noexcept nogil:
    # Takes references of its own, and a copy of the ids. NULL: no memory.
    cdef order_t* order = <order_t*>calloc(1, sizeof(order_t))
    if order == NULL:
        return NULL
    order.rolls = <roll_t*>calloc(rolls_max, sizeof(roll_t)) if rolls_max > 0 else NULL
    order.ids = <uint64_t*>calloc(ids_count, sizeof(uint64_t)) if ids_count > 0 else NULL
    if (rolls_max > 0 and order.rolls == NULL) or (ids_count > 0 and order.ids == NULL):
        order_free(order)
        return NULL
    if ids_count > 0:
        memcpy(order.ids, ids, ids_count * sizeof(uint64_t))
    order.kind = kind
    order.ids_count = ids_count
    order.rolls_max = rolls_max
    order.shards_left = shards
    order.refs = shards + 1
    order.stream = stream
    if stream != NULL:
        add_u32(&stream.refs, 1)
    order.to = to
    if to != NULL:
        add_u32(&to.refs, 1)
    return order

cdef inline void order_free(order_t* order) noexcept nogil:
    free(order.rolls)
    free(order.ids)
    free(order)

cdef inline void order_drop(order_t* order) noexcept nogil:
    # Gives one reference back.
    if sub_u32(&order.refs, 1) == 0:
        if order.stream != NULL:
            stream_drop(order.stream)
        if order.to != NULL:
            stream_drop(order.to)
        order_free(order)

cdef inline bint order_means(
    const order_t* order, const stream_t* stream, uint64_t id
) noexcept nogil:
    # Is it given to this listener of that stream?
    cdef uint32_t low = 0
    cdef uint32_t high = order.ids_count
    cdef uint32_t middle
    if order.stream != NULL and order.stream != stream:
        return False
    while low < high:
        middle = (low + high) // 2
        if order.ids[middle] < id:
            low = middle + 1
        else:
            high = middle
    return order.ids_count == 0 or (low < order.ids_count and order.ids[low] == id)

cdef inline void agent_set(agent_t* agent, const uint8_t* text, uint32_t size) noexcept nogil:
    agent.size_bytes = <uint16_t>size if size < AGENT_BYTES_MAX else AGENT_BYTES_MAX
    if agent.size_bytes > 0:
        memcpy(agent.text, text, agent.size_bytes)
