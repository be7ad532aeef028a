/* bare.c: the bare loop: what the kernel alone costs. One thread, one buffer, one send per socket
 * and pace; no epoll, no stream, no listener leaves, nobody is late. The rival of benchmarks/edge.py.
 *
 * Rules of this room
 *   1. A program of its own, built at run time; knows nothing of Relay but its slots of 10 ms and
 *      its response head. Linux, IPv4 on loopback.
 *   2. Mode `pace`: accepts `listeners`, then serves until SIGTERM; nobody else gets in. Mode
 *      `accept`: accepts until SIGTERM, answers each with head and burst, and serves nobody.
 *   3. First line of its output: `listening`. Last line: what it counted, as JSON.
 *   4. Sends come from `send`, or from io_uring by raw system calls; what differs is one function.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    SLOT_NS = 10000000,      /* as ours: relay/_core/pace.pxd */
    LISTENERS_MAX = 65536,
    BODY_BYTES_MAX = 65536,  /* of one send */
    BACKLOG = 4096,
    RING_ENTRIES = 4096,     /* sends handed over in one system call at most */
    PATIENCE_US = 100000     /* how long an accept or a recv waits before SIGTERM is looked for */
};

static const char HEAD[] = "HTTP/1.0 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n";
static char reply[sizeof HEAD - 1 + BODY_BYTES_MAX];  /* head, then body: zero bytes */
static char *const body = reply + sizeof HEAD - 1;
static int fds[LISTENERS_MAX];                        /* -1: it has left */
static volatile sig_atomic_t stop;

static struct {
    uint32_t port, listeners, pace_ms, size_bytes, burst_bytes;
    int accepts, uring;
} want = {.listeners = 1, .pace_ms = 1000, .size_bytes = 8000, .burst_bytes = 24000};

static struct {
    uint64_t accepted, sends, failed, late_us_max;
} count;

static void fail(const char *what)
{
    fprintf(stderr, "bare: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void on_term(int number)
{
    (void)number;
    stop = 1;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- the two ways to send the same bytes to every `step`th socket from `first` on ---- */

static void slot_by_send(uint32_t first, uint32_t step)
{
    for (uint32_t i = first; i < want.listeners; i += step) {
        if (fds[i] < 0)
            continue;
        if (send(fds[i], body, want.size_bytes, MSG_DONTWAIT | MSG_NOSIGNAL) ==
            (ssize_t)want.size_bytes) {
            count.sends++;
            continue;
        }
        count.failed++;      /* a short write counts too: the bare loop does not come back */
        if (errno == EPIPE || errno == ECONNRESET) {
            close(fds[i]);
            fds[i] = -1;
        }
    }
}

static struct {
    int fd, is_registered;
    _Atomic uint32_t *sq_tail, *cq_head, *cq_tail;
    uint32_t *sq_mask, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
} ring;

static void ring_open(void)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    int fd = (int)syscall(SYS_io_uring_setup, RING_ENTRIES, &params);
    if (fd < 0)
        fail("no io_uring here (see /proc/sys/kernel/io_uring_disabled; Linux 6.1 or newer)");
    if (!(params.features & IORING_FEAT_SINGLE_MMAP) || !(params.features & IORING_FEAT_CQE_SKIP)) {
        errno = ENOSYS;
        fail("io_uring of this kernel has no completion skip (Linux 5.17)");
    }
    size_t sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    char *at = mmap(NULL, sq_bytes > cq_bytes ? sq_bytes : cq_bytes, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQ_RING);
    ring.sqes = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQES);
    if (at == MAP_FAILED || ring.sqes == MAP_FAILED)
        fail("io_uring rings cannot be mapped");
    ring.sq_tail = (void *)(at + params.sq_off.tail);
    ring.sq_mask = (void *)(at + params.sq_off.ring_mask);
    ring.cq_head = (void *)(at + params.cq_off.head);
    ring.cq_tail = (void *)(at + params.cq_off.tail);
    ring.cq_mask = (void *)(at + params.cq_off.ring_mask);
    ring.cqes = (void *)(at + params.cq_off.cqes);
    for (uint32_t i = 0; i < params.sq_entries; i++)   /* entry i is always in place i */
        ((uint32_t *)(at + params.sq_off.array))[i] = i;
    ring.fd = fd;
}

/* Fixed files (no look-up and no reference per send), and the ring itself as one. */
static void ring_register(void)
{
    struct io_uring_rsrc_update self = {.offset = UINT32_MAX, .data = (uint64_t)ring.fd};
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, fds, want.listeners) < 0)
        fail("io_uring takes no fixed files");
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_RING_FDS, &self, 1) == 1) {
        ring.fd = (int)self.offset;
        ring.is_registered = 1;
    }
}

static void ring_flush(uint32_t queued)
{
    uint32_t flags = ring.is_registered ? IORING_ENTER_REGISTERED_RING : 0;
    while (queued > 0) {
        long taken = syscall(SYS_io_uring_enter, ring.fd, queued, 0, flags, NULL, 0);
        if (taken < 0 && errno != EINTR)
            fail("io_uring_enter");
        queued -= taken > 0 ? (uint32_t)taken : 0;
    }
    /* Only failures are told; what a full socket took in part is not: the swarm's count tells. */
    uint32_t head = atomic_load_explicit(ring.cq_head, memory_order_relaxed);
    while (head != atomic_load_explicit(ring.cq_tail, memory_order_acquire)) {
        const struct io_uring_cqe *told = &ring.cqes[head++ & *ring.cq_mask];
        count.failed++;
        count.sends--;
        if (told->res == -EPIPE || told->res == -ECONNRESET)
            fds[told->user_data] = -1;    /* its fixed file stays until the end */
    }
    atomic_store_explicit(ring.cq_head, head, memory_order_release);
}

static void slot_by_uring(uint32_t first, uint32_t step)
{
    uint32_t tail = atomic_load_explicit(ring.sq_tail, memory_order_relaxed), queued = 0;
    for (uint32_t i = first; i < want.listeners; i += step) {
        if (fds[i] < 0)
            continue;
        ring.sqes[tail++ & *ring.sq_mask] = (struct io_uring_sqe){
            .opcode = IORING_OP_SEND,
            .flags = IOSQE_FIXED_FILE | IOSQE_CQE_SKIP_SUCCESS,
            .fd = (int)i,
            .addr = (uint64_t)(uintptr_t)body,
            .len = want.size_bytes,
            .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL,
            .user_data = i,
        };
        count.sends++;
        if (++queued == RING_ENTRIES || i + step >= want.listeners) {
            atomic_store_explicit(ring.sq_tail, tail, memory_order_release);
            ring_flush(queued);
            queued = 0;
        }
    }
    atomic_store_explicit(ring.sq_tail, tail, memory_order_release);
    if (queued > 0)
        ring_flush(queued);
}

/* ---- joining and serving ---- */

static int open_door(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)want.port)};
    struct timeval patience = {.tv_usec = PATIENCE_US};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* What is accepted inherits the patience. */
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0 ||
        bind(fd, (struct sockaddr *)&at, sizeof at) != 0 || listen(fd, BACKLOG) != 0)
        fail("no socket to listen on");
    puts("listening");
    fflush(stdout);
    return fd;
}

/* Takes one connection and answers it with the head and `body_bytes`; it lands in fds. */
static void join_one(int door, uint32_t body_bytes)
{
    char request[4096];
    int one = 1, fd = accept4(door, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            fail("accept4");
        return;
    }
    size_t size = sizeof HEAD - 1 + body_bytes;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (recv(fd, request, sizeof request, 0) <= 0 ||
        send(fd, reply, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size) {
        close(fd);
        count.failed++;
        return;
    }
    fds[count.accepted++] = fd;
}

static void serve(void)
{
    uint32_t step = (want.pace_ms * 1000000 + SLOT_NS - 1) / SLOT_NS;  /* slots of one pace */
    uint64_t begin = now_ns();
    for (uint64_t turn = 0; !stop; turn++) {
        uint64_t due = begin + turn * SLOT_NS, now = now_ns();
        if (now < due) {
            struct timespec rest = {.tv_nsec = (long)(due - now)};
            nanosleep(&rest, NULL);
        } else if ((now - due) / 1000 > count.late_us_max) {
            count.late_us_max = (now - due) / 1000;
        }
        (want.uring ? slot_by_uring : slot_by_send)((uint32_t)(turn % step), step);
    }
}

static void read_arguments(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        uint32_t number = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--port"))
            want.port = number;
        else if (!strcmp(argv[i], "--listeners"))
            want.listeners = number;
        else if (!strcmp(argv[i], "--pace-ms"))
            want.pace_ms = number;
        else if (!strcmp(argv[i], "--size-bytes"))
            want.size_bytes = number;
        else if (!strcmp(argv[i], "--burst-bytes"))
            want.burst_bytes = number;
        else if (!strcmp(argv[i], "--mode"))
            want.accepts = !strcmp(argv[i + 1], "accept");
        else if (!strcmp(argv[i], "--backend"))
            want.uring = !strcmp(argv[i + 1], "uring");
        else
            errno = EINVAL, fail(argv[i]);
    }
    if (want.listeners == 0 || want.listeners > LISTENERS_MAX || want.pace_ms == 0 ||
        want.pace_ms > 4000 || want.size_bytes > BODY_BYTES_MAX ||
        want.burst_bytes > BODY_BYTES_MAX)
        errno = ERANGE, fail("arguments");
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_term};
    struct rlimit files;
    read_arguments(argc, argv);
    memcpy(reply, HEAD, sizeof HEAD - 1);
    sigaction(SIGTERM, &action, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (want.uring)
        ring_open();
    int door = open_door();
    uint32_t enough = want.accepts ? LISTENERS_MAX : want.listeners;
    while (!stop && count.accepted < enough)
        join_one(door, want.accepts ? want.burst_bytes : 0);
    close(door);             /* who comes later is refused by the kernel */
    if (want.uring && !stop)
        ring_register();
    if (!stop)
        serve();
    printf("{\"accepted\": %lu, \"sends\": %lu, \"failed\": %lu, \"late_us_max\": %lu}\n",
           count.accepted, count.sends, count.failed, count.late_us_max);
    return 0;
}
