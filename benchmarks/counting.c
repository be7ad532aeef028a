/* counting.c: counts what the engine's threads ask of the system; preloaded by test_work_counts.py.
 *
 * Rules of this room
 *   1. Only threads that are not the process's first one are counted: the engine's.
 *   2. Nothing is changed: each call goes on to the real one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MALLOC, SEND, EPOLL_WAIT, RECV, LOOK, KINDS };
enum { LOOK_EVENTS = 8 }; /* BITE_EVENTS of shard.pxd: a look at the door within a slot asks for so few */
static uint64_t counts[KINDS];

uint64_t counted(int kind) { return __atomic_load_n(&counts[kind], __ATOMIC_RELAXED); }

static void count(int kind)
{
    if (gettid() != getpid())
        __atomic_add_fetch(&counts[kind], 1, __ATOMIC_RELAXED);
}

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t number, size_t size);
extern void *__libc_realloc(void *old, size_t size);

void *malloc(size_t size) { count(MALLOC); return __libc_malloc(size); }
void *calloc(size_t number, size_t size) { count(MALLOC); return __libc_calloc(number, size); }
void *realloc(void *old, size_t size) { count(MALLOC); return __libc_realloc(old, size); }

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t send(int fd, const void *bytes, size_t size, int flags)
{
    REAL(send);
    count(SEND);
    return real(fd, bytes, size, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    REAL(sendmsg);
    count(SEND);
    return real(fd, message, flags);
}

ssize_t recv(int fd, void *bytes, size_t size, int flags)
{
    REAL(recv);
    count(RECV);
    return real(fd, bytes, size, flags);
}

int epoll_wait(int fd, struct epoll_event *events, int most, int timeout_ms)
{
    REAL(epoll_wait);
    count(most == LOOK_EVENTS ? LOOK : EPOLL_WAIT);
    return real(fd, events, most, timeout_ms);
}
