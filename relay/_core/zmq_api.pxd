# zmq_api.pxd: names what zmq_api.h takes from pyzmq's libzmq.
#
# Rules of this room
#   1. Declarations only: see zmq_api.h for where the calls come from and why.
#   2. A socket belongs to one thread at a time; starting or joining the thread hands it over.

from libc.stdint cimport uint8_t

cdef extern from "zmq_api.h" nogil:
    ctypedef void (*give_fn)(void* bytes, void* hint) noexcept nogil

    ctypedef struct relay_msg_t:
        unsigned char bytes[64]
    ctypedef struct relay_poll_t:
        void* socket
        int fd
        short events
        short revents
    ctypedef struct zmq_api_t:
        void* (*socket)(void* context, int type) noexcept nogil
        int (*close)(void* socket) noexcept nogil
        int (*connect)(void* socket, const char* endpoint) noexcept nogil
        int (*disconnect)(void* socket, const char* endpoint) noexcept nogil
        int (*socket_monitor)(void* socket, const char* endpoint, int events) noexcept nogil
        int (*setsockopt)(void* socket, int option, const void* value, size_t size) noexcept nogil
        int (*poll)(relay_poll_t* items, int count, long timeout_ms) noexcept nogil
        int (*errnum)() noexcept nogil
        int (*send)(void* socket, const void* bytes, size_t size, int flags) noexcept nogil
        int (*msg_init)(relay_msg_t* msg) noexcept nogil
        int (*msg_init_size)(relay_msg_t* msg, size_t size) noexcept nogil
        int (*msg_init_data)(
            relay_msg_t* msg, void* bytes, size_t size, give_fn give, void* hint
        ) noexcept nogil
        int (*msg_send)(relay_msg_t* msg, void* socket, int flags) noexcept nogil
        int (*msg_recv)(relay_msg_t* msg, void* socket, int flags) noexcept nogil
        int (*msg_close)(relay_msg_t* msg) noexcept nogil
        int (*msg_more)(const relay_msg_t* msg) noexcept nogil
        void* (*msg_data)(relay_msg_t* msg) noexcept nogil
        size_t (*msg_size)(const relay_msg_t* msg) noexcept nogil
        int (*msg_get)(const relay_msg_t* msg, int property) noexcept nogil
        const char* (*msg_gets)(const relay_msg_t* msg, const char* property) noexcept nogil
    ctypedef struct curve_t:
        uint8_t is_set
        uint8_t public_key[32]
        uint8_t secret_key[32]
        uint8_t server_key[32]
    const char* zmq_api_load(zmq_api_t* api, const char* path)
    int zmq_curve(const zmq_api_t* api, void* socket, const curve_t* curve)

    enum:
        RELAY_ZMQ_PAIR
        RELAY_ZMQ_DEALER
        RELAY_ZMQ_SUBSCRIBE
        RELAY_ZMQ_UNSUBSCRIBE
        RELAY_ZMQ_LINGER
        RELAY_ZMQ_RECONNECT_IVL
        RELAY_ZMQ_RECONNECT_IVL_MAX
        RELAY_ZMQ_MAXMSGSIZE
        RELAY_ZMQ_SNDHWM
        RELAY_ZMQ_RCVHWM
        RELAY_ZMQ_TCP_KEEPALIVE
        RELAY_ZMQ_TCP_KEEPALIVE_IDLE
        RELAY_ZMQ_TCP_KEEPALIVE_INTVL
        RELAY_ZMQ_IMMEDIATE
        RELAY_ZMQ_IPV6
        RELAY_ZMQ_HANDSHAKE_IVL
        RELAY_ZMQ_TCP_MAXRT
        RELAY_ZMQ_SRCFD
        RELAY_ZMQ_EVENT_CONNECTED
        RELAY_ZMQ_DONTWAIT
        RELAY_ZMQ_SNDMORE
        RELAY_ZMQ_POLLIN
