/* packed.c: a plain loop that sends the messages of a hop over the same libzmq, with nothing of ours
 * in between. The rival of benchmarks/backbone.py.
 *
 * Rules of this room
 *   1. A program of its own, built at run time. libzmq is the file that pyzmq has loaded, opened by its
 *      path: the very code that the hop runs; no headers are needed (zmq.h 4.3).
 *   2. `send` and `receive` are an end each, a process and a context each, as two nodes have;
 *      `both` has both ends in one context, whose one I/O thread moves the bytes of both.
 *   3. Messages come from a file (u32 size, then the bytes, one after the other), in laps of `lap`
 *      messages; as many of them as a ring has bytes, so that both read as cold.
 *   4. Queues as ours: 8,192 messages a child, XPUB drops beyond. `--nodrop` waits instead.
 *   5. A line in is one lap: `lap FIRST` (message of the file). A line out tells when it began, or
 *      ended (µs, CLOCK_MONOTONIC), and what came. With `--keep` the receiver copies each message
 *      to a place of its own, as a ring does, and tells the sum of the lap's bytes afterwards.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    ZMQ_SUB = 2, ZMQ_XPUB = 9, ZMQ_SUBSCRIBE = 6, ZMQ_SNDHWM = 23, ZMQ_RCVHWM = 24,
    ZMQ_XPUB_NODROP = 69,
    QUEUED_MAX = 8192,      /* as RUNS_QUEUED_MAX in relay/backbone.py */
    MESSAGES_MAX = 1 << 20
};

typedef union { unsigned char bytes[64]; void *align; } msg_t;  /* zmq_msg_t */

static struct {
    void *(*ctx_new)(void);
    void *(*socket)(void *, int);
    int (*bind)(void *, const char *);
    int (*connect)(void *, const char *);
    int (*setsockopt)(void *, int, const void *, size_t);
    int (*send)(void *, const void *, size_t, int);
    int (*recv)(void *, void *, size_t, int);
    int (*msg_init)(msg_t *);
    int (*msg_recv)(msg_t *, void *, int);
    void *(*msg_data)(msg_t *);
    size_t (*msg_size)(const msg_t *);
} zmq;

static const char *role = "", *module = "", *path = "";
static const char CHILD[] = "child";    /* begins the topic that is one child's own */
static unsigned port, lap = 1, children = 1, number;
static int keep, nodrop;
static uint8_t *file, *kept;
static size_t file_bytes;
static struct { const uint8_t *bytes; uint32_t size; } messages[MESSAGES_MAX];
static unsigned count;      /* of messages in the file */

static void fail(const char *what)
{
    fprintf(stderr, "packed: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void load_zmq(void)
{
    void *library = dlopen(module, RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "packed: %s\n", dlerror());
        exit(1);
    }
#define TAKE(field, name)                                     \
    do {                                                      \
        void *found = dlsym(library, name);                   \
        if (found == NULL)                                    \
            fail(name);                                       \
        memcpy(&zmq.field, &found, sizeof found);             \
    } while (0)
    TAKE(ctx_new, "zmq_ctx_new");
    TAKE(socket, "zmq_socket");
    TAKE(bind, "zmq_bind");
    TAKE(connect, "zmq_connect");
    TAKE(setsockopt, "zmq_setsockopt");
    TAKE(send, "zmq_send");
    TAKE(recv, "zmq_recv");
    TAKE(msg_init, "zmq_msg_init");
    TAKE(msg_recv, "zmq_msg_recv");
    TAKE(msg_data, "zmq_msg_data");
    TAKE(msg_size, "zmq_msg_size");
#undef TAKE
}

static void load_messages(void)
{
    struct stat about;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &about) != 0)
        fail(path);
    file_bytes = (size_t)about.st_size;
    file = mmap(NULL, file_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (file == MAP_FAILED)
        fail("mmap");
    for (size_t at = 0; at + 4 <= file_bytes && count < MESSAGES_MAX; count++) {
        memcpy(&messages[count].size, file + at, 4);
        messages[count].bytes = file + at + 4;
        at += 4 + messages[count].size;
        if (at > file_bytes)
            fail("the file of messages ends within one");
    }
    if (count == 0 || count % lap != 0)
        fail("the file does not hold whole laps");
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

static void option(void *socket, int name, int value)
{
    if (zmq.setsockopt(socket, name, &value, sizeof value) != 0)
        fail("zmq_setsockopt");
}

/* The next line of input: its number; exits at the end of input. */
static unsigned next_lap(void)
{
    char line[64];
    unsigned first;
    if (fgets(line, sizeof line, stdin) == NULL || sscanf(line, "lap %u", &first) != 1)
        exit(0);
    return first % count;
}

/* ---- the two ends ---- */

static void *open_sender(void *context)
{
    char address[64], topic[64];
    void *socket = zmq.socket(context, ZMQ_XPUB);
    option(socket, ZMQ_SNDHWM, QUEUED_MAX);
    option(socket, ZMQ_XPUB_NODROP, nodrop);
    snprintf(address, sizeof address, "tcp://127.0.0.1:%u", port);
    if (zmq.bind(socket, address) != 0)
        fail("zmq_bind");
    puts("bound");
    for (unsigned seen = 0; seen < children; seen += topic[1] == CHILD[0])
        if (zmq.recv(socket, topic, sizeof topic, 0) < 2)
            fail("zmq_recv");
    puts("ready");
    return socket;
}

static uint64_t send_lap(void *socket, unsigned first)
{
    uint64_t begin = now_us();
    for (unsigned i = first; i < first + lap; i++)
        if (zmq.send(socket, messages[i].bytes, messages[i].size, 0) < 0)
            fail("zmq_send");
    return begin;
}

/* XPUB tells of a topic once, so each child subscribes to one of its own as well. */
static void *open_receiver(void *context)
{
    char address[64], own[32];
    void *socket = zmq.socket(context, ZMQ_SUB);
    option(socket, ZMQ_RCVHWM, QUEUED_MAX);
    option(socket, ZMQ_SNDHWM, 0);
    snprintf(address, sizeof address, "tcp://127.0.0.1:%u", port);
    if (zmq.connect(socket, address) != 0)
        fail("zmq_connect");
    snprintf(own, sizeof own, "%s %u", CHILD, number);
    if (zmq.setsockopt(socket, ZMQ_SUBSCRIBE, "S", 1) != 0 ||
        zmq.setsockopt(socket, ZMQ_SUBSCRIBE, own, strlen(own)) != 0)
        fail("zmq_setsockopt");
    return socket;
}

static void receive_lap(void *socket, unsigned first)
{
    msg_t msg;
    uint64_t bytes = 0, sum = 0, end;
    zmq.msg_init(&msg);
    for (unsigned i = first; i < first + lap; i++) {
        if (zmq.msg_recv(&msg, socket, 0) < 0)
            fail("zmq_msg_recv");
        size_t size = zmq.msg_size(&msg);
        bytes += size;
        if (keep && size <= messages[i].size)
            memcpy(kept + (messages[i].bytes - file), zmq.msg_data(&msg), size);
    }
    end = now_us();
    for (unsigned i = first; keep && i < first + lap; i++)
        for (uint32_t at = 0; at < messages[i].size; at++)
            sum += kept[(size_t)(messages[i].bytes - file) + at];
    printf("%llu %llu %llu\n", (unsigned long long)end, (unsigned long long)bytes,
           (unsigned long long)sum);
}

struct both { void *socket; unsigned first; uint64_t begin; };

static void *send_beside(void *argument)
{
    struct both *both = argument;
    both->begin = send_lap(both->socket, both->first);
    return NULL;
}

static void run_both(void)
{
    void *context = zmq.ctx_new(), *sender, *receiver;
    struct both both;
    pthread_t thread;
    receiver = open_receiver(context);   /* connects again and again until the other end is bound */
    sender = open_sender(context);
    both.socket = sender;
    for (;;) {
        both.first = next_lap();
        if (pthread_create(&thread, NULL, send_beside, &both) != 0)
            fail("pthread_create");
        receive_lap(receiver, both.first);
        pthread_join(thread, NULL);
        printf("%llu\n", (unsigned long long)both.begin);
    }
}

int main(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--role")) role = value;
        else if (!strcmp(name, "--module")) module = value;
        else if (!strcmp(name, "--messages")) path = value;
        else if (!strcmp(name, "--port")) port = (unsigned)atoi(value);
        else if (!strcmp(name, "--lap")) lap = (unsigned)atoi(value);
        else if (!strcmp(name, "--children")) children = (unsigned)atoi(value);
        else if (!strcmp(name, "--number")) number = (unsigned)atoi(value);
        else if (!strcmp(name, "--keep")) keep = atoi(value);
        else if (!strcmp(name, "--nodrop")) nodrop = atoi(value);
        else fail(name);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    load_zmq();
    load_messages();
    if (keep && (kept = calloc(1, file_bytes)) == NULL)
        fail("calloc");
    if (!strcmp(role, "both"))
        run_both();
    void *socket = !strcmp(role, "send") ? open_sender(zmq.ctx_new())
                                         : open_receiver(zmq.ctx_new());
    for (;;) {
        unsigned first = next_lap();
        if (!strcmp(role, "send"))
            printf("%llu\n", (unsigned long long)send_lap(socket, first));
        else
            receive_lap(socket, first);
    }
}
