/* mirror.h: one run of memory mapped twice in a row: a run of bytes never splits at the wrap.
 *
 * Rules of this room
 *   1. The memfd is closed once it is mapped: a ring costs no descriptor.
 *   2. Judge its memory as PSS: RSS counts each page twice.
 */
#ifndef RELAY_MIRROR_H
#define RELAY_MIRROR_H

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* Maps size_bytes (a multiple of the page size) twice; NULL with errno set when it cannot. */
static inline uint8_t *mirror_open(uint64_t size_bytes)
{
    int fd = memfd_create("relay-ring", MFD_CLOEXEC);
    if (fd < 0)
        return NULL;
    uint8_t *run = MAP_FAILED;
    if (ftruncate(fd, (off_t)size_bytes) == 0)
        run = mmap(NULL, 2 * size_bytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (run != MAP_FAILED) {
        int flags = MAP_SHARED | MAP_FIXED, access = PROT_READ | PROT_WRITE;
        if (mmap(run, size_bytes, access, flags, fd, 0) == MAP_FAILED ||
            mmap(run + size_bytes, size_bytes, access, flags, fd, 0) == MAP_FAILED) {
            munmap(run, 2 * size_bytes);
            run = MAP_FAILED;
        }
    }
    int saved = errno;
    close(fd);
    errno = saved;
    return run == MAP_FAILED ? NULL : run;
}

static inline void mirror_close(uint8_t *run, uint64_t size_bytes) { munmap(run, 2 * size_bytes); }

/* A run of zeros; pages that nobody touches take no memory, and all goes back at the close. */
static inline void *zeroed_open(uint64_t size_bytes)
{
    void *run = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return run == MAP_FAILED ? NULL : run;
}

static inline void zeroed_close(void *run, uint64_t size_bytes) { munmap(run, size_bytes); }

static inline uint64_t page_bytes(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

#endif
