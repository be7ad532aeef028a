/* zmq_api.h: the few calls of libzmq that the backbone makes, from the copy that pyzmq has loaded.
 *
 * Rules of this room
 *   1. Never link a libzmq: a context of one copy crashes in another. pyzmq's extension is already
 *      loaded; dlopen with RTLD_NOLOAD finds it, dlsym finds the libzmq that it depends on.
 *   2. Prototypes and constants are those of zmq.h 4.3 (stable since 4.0); the file is not needed.
 */
#ifndef RELAY_ZMQ_API_H
#define RELAY_ZMQ_API_H

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef union { unsigned char bytes[64]; void *align; } relay_msg_t;  /* zmq_msg_t */

typedef struct {  /* zmq_pollitem_t */
    void *socket;
    int fd;
    short events;
    short revents;
} relay_poll_t;

typedef struct {
    void *(*socket)(void *context, int type);
    int (*close)(void *socket);
    int (*connect)(void *socket, const char *endpoint);
    int (*disconnect)(void *socket, const char *endpoint);
    int (*socket_monitor)(void *socket, const char *endpoint, int events);
    int (*setsockopt)(void *socket, int option, const void *value, size_t size);
    int (*poll)(relay_poll_t *items, int count, long timeout_ms);
    int (*errnum)(void);
    int (*send)(void *socket, const void *bytes, size_t size, int flags);
    int (*msg_init)(relay_msg_t *);
    int (*msg_init_size)(relay_msg_t *, size_t size);
    int (*msg_init_data)(relay_msg_t *, void *bytes, size_t size, void (*give)(void *, void *),
                         void *hint);
    int (*msg_send)(relay_msg_t *, void *socket, int flags);
    int (*msg_recv)(relay_msg_t *, void *socket, int flags);
    int (*msg_close)(relay_msg_t *);
    int (*msg_more)(const relay_msg_t *);
    void *(*msg_data)(relay_msg_t *);
    size_t (*msg_size)(const relay_msg_t *);
    int (*msg_get)(const relay_msg_t *, int property);
    const char *(*msg_gets)(const relay_msg_t *, const char *property);
} zmq_api_t;

typedef struct {  /* how a socket that we connect proves who it is, and knows the other end */
    uint8_t is_set;  /* 0: no keys */
    uint8_t public_key[32];
    uint8_t secret_key[32];
    uint8_t server_key[32];  /* the public key of the other end */
} curve_t;

enum {
    RELAY_ZMQ_PAIR = 0, RELAY_ZMQ_DEALER = 5,
    RELAY_ZMQ_SUBSCRIBE = 6, RELAY_ZMQ_UNSUBSCRIBE = 7, RELAY_ZMQ_LINGER = 17,
    RELAY_ZMQ_RECONNECT_IVL = 18, RELAY_ZMQ_RECONNECT_IVL_MAX = 21, RELAY_ZMQ_MAXMSGSIZE = 22,
    RELAY_ZMQ_SNDHWM = 23, RELAY_ZMQ_RCVHWM = 24, RELAY_ZMQ_TCP_KEEPALIVE = 34,
    RELAY_ZMQ_TCP_KEEPALIVE_IDLE = 36, RELAY_ZMQ_TCP_KEEPALIVE_INTVL = 37,
    RELAY_ZMQ_IMMEDIATE = 39, RELAY_ZMQ_IPV6 = 42, RELAY_ZMQ_HANDSHAKE_IVL = 66,
    RELAY_ZMQ_CURVE_PUBLICKEY = 48, RELAY_ZMQ_CURVE_SECRETKEY = 49, RELAY_ZMQ_CURVE_SERVERKEY = 50,
    RELAY_ZMQ_TCP_MAXRT = 80,
    RELAY_ZMQ_SRCFD = 2, RELAY_ZMQ_EVENT_CONNECTED = 1,
    RELAY_ZMQ_DONTWAIT = 1, RELAY_ZMQ_SNDMORE = 2, RELAY_ZMQ_POLLIN = 1
};

/* Fills the table from the extension module at `path`; NULL, or what could not be found. */
static inline const char *zmq_api_load(zmq_api_t *api, const char *path)
{
    void *module = dlopen(path, RTLD_NOLOAD | RTLD_NOW);
    if (module == NULL)
        return "pyzmq's extension module is not loaded";
#define RELAY_TAKE(field, name)                               \
    do {                                                      \
        void *found = dlsym(module, name);                    \
        if (found == NULL)                                    \
            return name;                                      \
        memcpy(&api->field, &found, sizeof found);            \
    } while (0)
    RELAY_TAKE(socket, "zmq_socket");
    RELAY_TAKE(close, "zmq_close");
    RELAY_TAKE(connect, "zmq_connect");
    RELAY_TAKE(disconnect, "zmq_disconnect");
    RELAY_TAKE(socket_monitor, "zmq_socket_monitor");
    RELAY_TAKE(setsockopt, "zmq_setsockopt");
    RELAY_TAKE(poll, "zmq_poll");
    RELAY_TAKE(errnum, "zmq_errno");
    RELAY_TAKE(send, "zmq_send");
    RELAY_TAKE(msg_init, "zmq_msg_init");
    RELAY_TAKE(msg_init_size, "zmq_msg_init_size");
    RELAY_TAKE(msg_init_data, "zmq_msg_init_data");
    RELAY_TAKE(msg_send, "zmq_msg_send");
    RELAY_TAKE(msg_recv, "zmq_msg_recv");
    RELAY_TAKE(msg_close, "zmq_msg_close");
    RELAY_TAKE(msg_more, "zmq_msg_more");
    RELAY_TAKE(msg_data, "zmq_msg_data");
    RELAY_TAKE(msg_size, "zmq_msg_size");
    RELAY_TAKE(msg_get, "zmq_msg_get");
    RELAY_TAKE(msg_gets, "zmq_msg_gets");
#undef RELAY_TAKE
    return NULL;
}

/* Before connect: keys on a socket. -1: libzmq cannot, and the socket must not be connected. */
static inline int zmq_curve(const zmq_api_t *api, void *socket, const curve_t *curve)
{
    if (!curve->is_set)
        return 0;
    if (api->setsockopt(socket, RELAY_ZMQ_CURVE_PUBLICKEY, curve->public_key, 32) != 0 ||
        api->setsockopt(socket, RELAY_ZMQ_CURVE_SECRETKEY, curve->secret_key, 32) != 0 ||
        api->setsockopt(socket, RELAY_ZMQ_CURVE_SERVERKEY, curve->server_key, 32) != 0)
        return -1;
    return 0;
}

#endif
