/* net.h: the system calls of the swarm that Cython cannot say shortly.
 *
 * Rules of this room
 *   1. IPv4. Nothing here blocks but swarm_sleep_until. Answers a descriptor, a count, or -errno.
 *   2. No state.
 */
#ifndef RELAY_SWARM_NET_H
#define RELAY_SWARM_NET_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t swarm_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static inline void swarm_sleep_until(uint64_t us)
{
    struct timespec until = {
        .tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000,
    };
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

/* Begins a connection. from 0: from any address. *begun_us: right before connect(). */
static inline int swarm_connect(uint32_t from, uint32_t to, uint16_t port, uint64_t *begun_us)
{
    struct sockaddr_in here = {.sin_family = AF_INET}, there = {.sin_family = AF_INET};
    int one = 1, error;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (from != 0) {
        here.sin_addr.s_addr = htonl(from);
        /* the port is chosen at connect(), when the whole pair is known: far more of them fit */
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&here, sizeof here) != 0)
            goto failed;
    }
    there.sin_addr.s_addr = htonl(to);
    there.sin_port = htons(port);
    *begun_us = swarm_now_us();
    if (connect(fd, (struct sockaddr *)&there, sizeof there) == 0 || errno == EINPROGRESS)
        return fd;
failed:
    error = errno;
    close(fd);
    return -error;
}

/* How many segments of this connection were sent again so far (SYN included). */
static inline uint32_t swarm_sent_again(int fd)
{
    struct tcp_info info;
    socklen_t size = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
        return 0;
    return info.tcpi_total_retrans;
}

static inline int swarm_stands(int fd)
{
    struct tcp_info info;
    socklen_t size = sizeof info;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
           info.tcpi_state == TCP_ESTABLISHED;
}

static inline int swarm_error(int fd)
{
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

/* As small a receive buffer as the kernel gives: who stops reading takes little from then on. */
static inline void swarm_shrink(int fd)
{
    int bytes = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
}

/* How large a window is offered from now on; what was offered before stands, so nothing that comes
   has to be dropped (as with a smaller buffer, after which the sender waits for its timer). */
static inline void swarm_offer(int fd, int bytes)
{
    setsockopt(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, &bytes, sizeof bytes);
}

#endif
