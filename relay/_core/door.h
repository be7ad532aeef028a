/* door.h: small helpers of the shards' door that need C's structs.
 *
 * Rules of this room
 *   1. No state. Socket options are set on the listening socket: accepted ones inherit them.
 */
#ifndef RELAY_DOOR_H
#define RELAY_DOOR_H

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* The peer's address as 16 bytes of IPv6 (IPv4 mapped, RFC 4291 §2.5.5.2) and its port. */
static inline void door_address(const struct sockaddr_storage *from, uint8_t *address,
                                uint16_t *port)
{
    memset(address, 0, 16);
    if (from->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)from;
        address[10] = address[11] = 0xff;
        memcpy(address + 12, &v4->sin_addr, 4);
        *port = ntohs(v4->sin_port);
    } else {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)from;
        memcpy(address, &v6->sin6_addr, 16);
        *port = ntohs(v6->sin6_port);
    }
}

/* One descriptor in reserve, to refuse with when none is left. */
static inline int door_reserve(void) { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

/* RFC 9110 §5.6.7, 29 bytes; not strftime, whose names depend on the host's locale. */
static inline uint32_t http_date(uint64_t unix_s, char *out)
{
    static const char days[] = "ThuFriSatSunMonTueWed";
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    uint64_t days_total = unix_s / 86400, rest = unix_s % 86400;
    /* Civil date from days: proleptic Gregorian, years begin in March. */
    uint64_t z = days_total + 719468, era = z / 146097, doe = z % 146097;
    uint64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    uint64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
    unsigned day = (unsigned)(doy - (153 * mp + 2) / 5 + 1);
    unsigned month = (unsigned)(mp < 10 ? mp + 3 : mp - 9);
    unsigned year = (unsigned)(yoe + era * 400 + (month <= 2));
    unsigned hours = (unsigned)(rest / 3600), minutes = (unsigned)(rest % 3600 / 60);
    return (uint32_t)snprintf(out, 32, "%.3s, %02u %.3s %04u %02u:%02u:%02u GMT",
                              days + 3 * (days_total % 7), day % 100, months + 3 * (month - 1),
                              year % 10000, hours, minutes, (unsigned)(rest % 60));
}

enum {
    DOOR_BACKLOG = 4096,
    DOOR_UNSENT_BYTES = 16384,
    DOOR_QUEUED_BYTES = 32768,
    DOOR_QUEUED_BYTES_MAX = 1 << 20,
    DOOR_VANISHED_MS = 3000 /* beyond stall_ms: the shard itself, which counts bytes, is first */
};

static inline int door_set(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof value);
}

/* How many connections wait to be accepted, and how many may: of a listening socket, tcp(7) gives
 * them as tcpi_unacked and tcpi_sacked (net/ipv4/tcp.c: tcp_get_info). */
static inline uint32_t door_queue(int fd, uint32_t *queue_max)
{
    struct tcp_info info;
    socklen_t size = offsetof(struct tcp_info, tcpi_lost);
    *queue_max = DOOR_BACKLOG;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
        return 0;
    *queue_max = info.tcpi_sacked;
    return info.tcpi_unacked;
}

/* What one listener's stream asks of its socket. A peer whose host is gone acknowledges nothing:
 * the kernel ends its connection (tcp(7), TCP_USER_TIMEOUT); what the shard sees is only that the
 * socket takes bytes until it is full. And a second of its audio may be on its way: at 1.2 Mbit/s
 * and a round trip of 100 ms only a third of a burst of 3 s came in 0.8 s with the usual room. */
static inline void door_suit_stream(int fd, uint64_t stall_us, uint64_t bytes_per_s)
{
    if (bytes_per_s > DOOR_QUEUED_BYTES_MAX)
        bytes_per_s = DOOR_QUEUED_BYTES_MAX;
    door_set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)(stall_us / 1000) + DOOR_VANISHED_MS);
    if (bytes_per_s > DOOR_QUEUED_BYTES)
        door_set(fd, SOL_SOCKET, SO_SNDBUF, (int)(bytes_per_s / 2));
}

/* Why the kernel gave the connection up: 0 or an errno; asking takes it. */
static inline int door_error(int fd)
{
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

/* What every listener's socket is set to; accepted ones inherit it from the listening one. */
static inline void door_suit(int fd)
{
    door_set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    /* The kernel takes a send only while less than this is unsent, and less than that in all, what
     * the peer has not acknowledged included (it doubles what it is told, socket(7)): a stalled
     * listener stays cheap, at that much and one send (listener.pxd). */
    door_set(fd, SOL_SOCKET, SO_SNDBUF, DOOR_QUEUED_BYTES / 2);
    door_set(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, DOOR_UNSENT_BYTES);
    door_set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    door_set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
    door_set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
    door_set(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

/* A connection that was accepted elsewhere, made like one of ours; its peer's address as
 * door_address gives it (all zero where it has none: a Unix socket). 0 or an errno. */
static inline int door_adopt(int fd, uint8_t *address, uint16_t *port)
{
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer;
    int type = 0, flags = fcntl(fd, F_GETFL);
    socklen_t type_size = sizeof type;
    memset(address, 0, 16);
    *port = 0;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) != 0)
        return errno;
    if (type != SOCK_STREAM)
        return EPROTOTYPE;
    if (getpeername(fd, (struct sockaddr *)&peer, &size) != 0)
        return errno;
    if (peer.ss_family == AF_INET || peer.ss_family == AF_INET6)
        door_address(&peer, address, port);
    if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
        return errno;
    door_suit(fd);
    return 0;
}

/* Binds and listens. reuse_port: one of several shards' sockets. The descriptor, or -errno. */
static inline int door_listen(const struct sockaddr *address, socklen_t size, int reuse_port)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    door_set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (reuse_port)
        door_set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
    door_suit(fd);
    if (bind(fd, address, size) != 0 || listen(fd, DOOR_BACKLOG) != 0) {
        int failed = errno;
        close(fd);
        return -failed;
    }
    return fd;
}

/* Sockets for `count` shards on one address, into fds; 0 or a negative errno (or -4096 + EAI code).
 * With several shards the address is first bound without SO_REUSEPORT: otherwise a second node
 * would silently share the port. *port: wanted (0: any), then actual. */
static inline int door_open(const char *host, uint16_t *port, int *fds, int count)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found;
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    char service[8];
    snprintf(service, sizeof service, "%u", *port);
    int status = getaddrinfo(host, service, &hints, &found);
    if (status != 0)
        return -4096 - (status < 0 ? -status : status);
    memcpy(&address, found->ai_addr, found->ai_addrlen);
    socklen_t address_size = found->ai_addrlen;
    freeaddrinfo(found);
    int fd = door_listen((struct sockaddr *)&address, address_size, 0);
    if (fd < 0)
        return fd;
    size = sizeof address;
    getsockname(fd, (struct sockaddr *)&address, &size);
    uint8_t ignored[16];
    door_address(&address, ignored, port);
    fds[0] = fd;
    if (count == 1)
        return 0;
    close(fd);
    for (int i = 0; i < count; i++) {
        fds[i] = door_listen((struct sockaddr *)&address, address_size, 1);
        if (fds[i] < 0) {
            int failed = fds[i];
            while (i-- > 0)
                close(fds[i]);
            return failed;
        }
    }
    return 0;
}

#endif
