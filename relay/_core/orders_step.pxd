# orders_step.pxd: a shard carries out what was asked of listeners (orders.pxd).
#
# Rules of this room
#   1. Called once a turn, after those who listen and those who come; works for ORDER_US and goes on
#      in the next turn. Without an order it costs one load.
#   2. A listener that is to go is counted for the other mount at once, and hears the one that it
#      left until it is at the end of a frame (fallback_move.pxd).
#   3. Nobody is moved to another format than the one promised, nor to a mount that is full.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from relay._core.atomics cimport add_u32, load_pointer, load_u32, store_pointer, sub_u32
from relay._core.connection cimport shard_count, shard_end, shard_t
from relay._core.engine cimport now_us
from relay._core.fallback_look cimport stream_format
from relay._core.listener cimport END_KILLED, FLOWING, listener_lag_us, listener_t
from relay._core.orders cimport (
    ORDER_END, ORDER_MOVE, order_drop, order_means, order_t, roll_t,
)
from relay._core.stream cimport hub_tell, stream_drop, stream_t

cdef enum:
    ORDER_US = 500            # of one turn
    ORDER_RECORDS = 16        # the clock is asked so often

cdef inline bint shard_has_order(shard_t* shard) noexcept nogil:
    return load_pointer(<void**>&shard.order) != NULL

cdef inline void shard_carry_out(shard_t* shard) noexcept nogil:
    cdef order_t* order = <order_t*>load_pointer(<void**>&shard.order)
    cdef uint64_t until
    cdef uint64_t now
    if order == NULL:
        return
    now = now_us()
    until = now + ORDER_US
    while shard.order_at < shard.records_used:
        if shard.order_at % ORDER_RECORDS == 0 and now_us() > until:
            return
        shard_obey(shard, order, shard.order_at, now)
        shard.order_at += 1
    shard.order_at = 0
    store_pointer(<void**>&shard.order, NULL)
    sub_u32(&order.shards_left, 1)
    order_drop(order)

cdef inline void shard_obey(
    shard_t* shard, order_t* order, uint32_t index, uint64_t now
) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    cdef uint32_t number
    if listener.state != FLOWING or not order_means(order, listener.stream, listener.id):
        return
    number = add_u32(&order.found, 1) - 1
    if number < order.rolls_max:
        shard_tell(shard, index, &order.rolls[number], now)
    if order.kind == ORDER_END:
        shard_end(shard, index, END_KILLED)
    elif order.kind == ORDER_MOVE and not shard_send_over(shard, listener, order.to):
        add_u32(&order.unfit, 1)

cdef inline void shard_tell(
    shard_t* shard, uint32_t index, roll_t* roll, uint64_t now
) noexcept nogil:
    cdef listener_t* listener = &shard.records[index]
    roll.id = listener.id
    roll.connected_us = now - listener.began_us if now > listener.began_us else 0
    roll.lag_us = listener_lag_us(listener) if listener.ring != NULL else 0
    roll.sent_bytes = listener.sent_bytes
    memcpy(roll.address, listener.address, 16)
    roll.port = listener.port
    roll.agent = shard.agents[index]

cdef inline bint shard_take_place_of(
    listener_t* listener, stream_t* to
) noexcept nogil:
    # A place on that mount, counted; False: it is not for this listener. Within a turn.
    cdef uint32_t bound = to.config.listeners_max
    if listener.promise == 0 or stream_format(to) != listener.promise or load_u32(&to.closed):
        return False
    if add_u32(&to.listeners, 1) > bound and bound > 0:
        sub_u32(&to.listeners, 1)
        return False
    return True

cdef inline bint shard_send_over(
    shard_t* shard, listener_t* listener, stream_t* to
) noexcept nogil:
    # From here on it counts for `to`; what it hears now is its fallback until it can go over.
    cdef stream_t* left = listener.stream
    if left == to or not shard_take_place_of(listener, to):
        return False
    add_u32(&to.refs, 1)
    shard_count(shard, left, False)
    shard_count(shard, to, True)
    sub_u32(&left.listeners, 1)
    if listener.relays:
        sub_u32(&left.relays, 1)
        add_u32(&to.relays, 1)
    hub_tell(left.hub, left)
    hub_tell(to.hub, to)
    listener.stream = to
    if listener.fallback != NULL:
        sub_u32(&left.away, 1)
        stream_drop(left)
    elif listener.ring != NULL:
        listener.fallback = left  # with its reference
    else:
        stream_drop(left)
    if listener.fallback == to:   # it hears it already
        listener.fallback = NULL
        stream_drop(to)
        shard.counters.moves_total += 1
    elif listener.fallback != NULL:
        add_u32(&to.away, 1)
        listener.moving = 1
    else:
        shard.counters.moves_total += 1
    return True
