/* getter: GETs of one path at a steady rate, each on a connection of its own; prints what came back.
 *
 * Rules of this room
 *   1. getter ADDRESS PORT PATH RATE_PER_S SECONDS: IPv4 only; one thread, at most OPEN_MAX at once.
 *   2. Comes from 127.0.1.1 … 127.0.1.SOURCES: many addresses, so that no bound of one is in the way.
 *   3. A GET that is not answered within ANSWER_S has failed; nothing is tried twice.
 *   4. Prints one JSON object: sent, status_404, other, failed, elapsed_s.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { OPEN_MAX = 256, SOURCES = 32, EVENTS = 128 };
#define ANSWER_S 5.0

struct get {
    int fd; /* -1: free */
    int asked;
    double begun_s;
    char answer[64];
    int answer_bytes;
};

static struct get gets[OPEN_MAX];
static long sent, status_404, other, failed;
static int open_count, epoll_fd, request_bytes;
static char request[512];

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void finish(struct get *get, long *count)
{
    close(get->fd);
    get->fd = -1;
    open_count--;
    ++*count;
}

static void begin(const struct sockaddr_in *to, double at_s)
{
    struct get *get = gets;
    while (get->fd >= 0)
        get++;
    struct sockaddr_in from = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(0x7f000100u + 1 + (unsigned)(sent % SOURCES));
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    sent++;
    if (fd < 0) {
        failed++;
        return;
    }
    /* The port is chosen by connect(), so that one may be used again toward another address. */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    *get = (struct get){.fd = fd, .begun_s = at_s};
    open_count++;
    if (bind(fd, (struct sockaddr *)&from, sizeof from) != 0
        || (connect(fd, (const struct sockaddr *)to, sizeof *to) != 0 && errno != EINPROGRESS)) {
        finish(get, &failed);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = get};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

static void step(struct get *get)
{
    if (!get->asked) {
        if (send(get->fd, request, (size_t)request_bytes, MSG_NOSIGNAL) != request_bytes) {
            if (errno != EAGAIN)
                finish(get, &failed);
            return;
        }
        get->asked = 1;
    }
    for (;;) {
        char rest[2048];
        ssize_t got = recv(get->fd, rest, sizeof rest, 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got > 0) {
            int room = (int)sizeof get->answer - 1 - get->answer_bytes;
            int part = got < room ? (int)got : room;
            memcpy(get->answer + get->answer_bytes, rest, (size_t)part);
            get->answer_bytes += part;
            continue;
        }
        if (get->answer_bytes < 12)
            finish(get, &failed);
        else
            finish(get, memcmp(get->answer + 9, "404", 3) == 0 ? &status_404 : &other);
        return;
    }
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    request_bytes = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", argv[3], argv[1]);
    double rate = atof(argv[4]), seconds = atof(argv[5]), begun_s = now_s(), last_s = begun_s;
    long wanted = (long)(rate * seconds);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < OPEN_MAX; i++)
        gets[i].fd = -1;
    while (sent < wanted || open_count > 0) {
        double at_s = now_s();
        while (sent < wanted && open_count < OPEN_MAX && (double)sent < (at_s - begun_s) * rate)
            begin(&to, at_s);
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll_fd, events, EVENTS, 1);
        for (int i = 0; i < count; i++) {
            struct get *get = events[i].data.ptr;
            if (get->fd >= 0)
                step(get);
        }
        for (int i = 0; i < OPEN_MAX && at_s - last_s > 0.5; i++)
            if (gets[i].fd >= 0 && at_s - gets[i].begun_s > ANSWER_S)
                finish(&gets[i], &failed);
        last_s = at_s - last_s > 0.5 ? at_s : last_s;
        if (at_s - begun_s > seconds + 2 * ANSWER_S)
            break;
    }
    printf("{\"sent\": %ld, \"status_404\": %ld, \"other\": %ld, \"failed\": %ld, \"elapsed_s\": %.3f}\n",
           sent, status_404, other, failed, now_s() - begun_s);
    return 0;
}
