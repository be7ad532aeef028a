/* load.h: a crowd that only counts its bytes, and a bare sender: the two sides of a benchmark.
 *
 * Rules of this room
 *   1. For relay/_probe.pyx alone: nothing of the data plane includes it.
 *   2. One thread each, no locks; blocking only in connect and epoll_wait. Bounds are the caller's.
 *   3. Answers a count or a negative errno. IPv4 on the loopback net only.
 */
#ifndef RELAY_LOAD_H
#define RELAY_LOAD_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LOAD_READ_BYTES = 262144, LOAD_EVENTS = 512 };

typedef struct {
    int fd;
    int has_head;        /* the reply's head has been taken off the count */
    int ended;
    uint64_t body_bytes;
    uint64_t reads;
} load_one_t;

static inline double load_clock_s(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Connects listener `number` from one of several loopback addresses and asks for the mount. */
static inline int load_join(load_one_t *one, int epoll_fd, uint32_t number, uint16_t port,
                            const char *head)
{
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = number};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + number % 16);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(port);
    one->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (one->fd < 0 || bind(one->fd, (struct sockaddr *)&from, sizeof from) != 0 ||
        connect(one->fd, (struct sockaddr *)&to, sizeof to) != 0 ||
        send(one->fd, head, strlen(head), MSG_NOSIGNAL) < 0 ||
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, one->fd, &event) != 0)
        return -errno;
    return 0;
}

static inline void load_read(load_one_t *one, int epoll_fd, char *bytes)
{
    ssize_t got = recv(one->fd, bytes, LOAD_READ_BYTES, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    one->reads++;
    if (got <= 0) {
        one->ended = 1;
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, one->fd, NULL);
        return;
    }
    one->body_bytes += (uint64_t)got;
    if (!one->has_head) {   /* one send carries head and burst: both are in the first read */
        char *end = memmem(bytes, (size_t)got, "\r\n\r\n", 4);
        one->has_head = 1;
        if (end == NULL || memcmp(bytes, "HTTP/1.0 200", 12) != 0)
            one->ended = 1;
        else
            one->body_bytes -= (uint64_t)(end - bytes) + 4;
    }
}

/* Reads for all of them for so long. Returns how many reads there were, or -errno. */
static inline int64_t load_drain(load_one_t *all, int epoll_fd, double seconds)
{
    struct epoll_event events[LOAD_EVENTS];
    char *bytes = malloc(LOAD_READ_BYTES);
    double until = load_clock_s(CLOCK_MONOTONIC) + seconds;
    int64_t reads = 0;
    if (bytes == NULL)
        return -ENOMEM;
    while (load_clock_s(CLOCK_MONOTONIC) < until) {
        int count = epoll_wait(epoll_fd, events, LOAD_EVENTS, 10);
        for (int i = 0; i < count; i++)
            load_read(&all[events[i].data.u64], epoll_fd, bytes);
        reads += count > 0 ? count : 0;
    }
    free(bytes);
    return reads;
}

/* The bare sender: accepts `count` connections on listen_fd, answers each with the head, then gives
 * each `size` bytes out of one buffer once a pace, in slots of 10 ms. *cpu_s: of the seconds after
 * the first, in which windows grow. */
static inline int64_t load_send(int listen_fd, uint32_t count, const char *head, uint32_t size,
                                uint32_t pace_ms, double seconds, double *cpu_s)
{
    static const char bytes[65536];
    int64_t sends = 0;
    int *fds = calloc(count, sizeof(int)), one = 1;
    if (fds == NULL || size > sizeof bytes)
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        char request[1024];
        fds[i] = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fds[i] < 0 || recv(fds[i], request, sizeof request, 0) <= 0)
            return -errno;
        setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        send(fds[i], head, strlen(head), MSG_NOSIGNAL);
    }
    uint32_t slots = pace_ms / 10, slot = 0;
    double begin = load_clock_s(CLOCK_MONOTONIC), cpu = 0;
    int64_t total = (int64_t)((1 + seconds) * 100);
    for (int64_t turn = 0; turn < total; turn++, slot = (slot + 1) % slots) {
        double due = (double)turn * 0.01;
        if (turn == 100)
            cpu = load_clock_s(CLOCK_THREAD_CPUTIME_ID);
        double wait = begin + due - load_clock_s(CLOCK_MONOTONIC);
        if (wait > 0) {
            struct timespec rest = {.tv_nsec = (long)(wait * 1e9)};
            nanosleep(&rest, NULL);
        }
        for (uint32_t i = slot; i < count; i += slots)
            sends += send(fds[i], bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size;
    }
    *cpu_s = load_clock_s(CLOCK_THREAD_CPUTIME_ID) - cpu;
    for (uint32_t i = 0; i < count; i++)
        close(fds[i]);
    free(fds);
    return sends;
}

#endif
