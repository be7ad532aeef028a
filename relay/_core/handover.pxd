# handover.pxd: connections that a shard has accepted and that Python is to serve.
#
# Rules of this room
#   1. Two bounded queues a node, pages and sources: a flood of page requests never keeps a source
#      out.
#   2. An entry owns its descriptor and its bytes; whoever takes it owns them. What cannot be put
#      stays with the shard, which refuses it.
#   3. The event_fd is readable while entries wait.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from relay._core.retire cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock,
)

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int value, int flags)
    int eventfd_read(int fd, uint64_t* value)
    int eventfd_write(int fd, uint64_t value)
    int EFD_CLOEXEC
    int EFD_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef struct entry_t:
    int fd                    # owned
    uint32_t size_bytes
    uint8_t* bytes            # the head and what came with it; owned
    uint8_t address[16]       # IPv6, or IPv4 mapped into it
    uint16_t port
    uint64_t ticket           # the caller's own number for it; 0: none

cdef struct handover_t:
    pthread_mutex_t lock
    entry_t* entries          # entries_max; owned
    uint32_t entries_max
    uint32_t first
    uint32_t count
    int event_fd              # owned

cdef inline int handover_open(handover_t* queue, uint32_t entries_max) noexcept nogil:
    queue.entries = <entry_t*>calloc(entries_max, sizeof(entry_t))
    queue.entries_max = entries_max
    queue.first = queue.count = 0
    queue.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    pthread_mutex_init(&queue.lock, NULL)
    return 0 if queue.entries != NULL and queue.event_fd >= 0 else -1

cdef inline bint handover_put(
    handover_t* queue, int fd, const uint8_t* bytes, uint32_t size_bytes, const uint8_t* address,
    uint16_t port, uint64_t ticket=0,
) noexcept nogil:
    cdef uint8_t* copy = <uint8_t*>malloc(size_bytes)
    cdef entry_t* entry
    cdef bint room
    if copy == NULL:
        return False
    memcpy(copy, bytes, size_bytes)
    pthread_mutex_lock(&queue.lock)
    room = queue.count < queue.entries_max
    if room:
        entry = &queue.entries[(queue.first + queue.count) % queue.entries_max]
        entry.fd = fd
        entry.bytes = copy
        entry.size_bytes = size_bytes
        entry.port = port
        entry.ticket = ticket
        memcpy(entry.address, address, 16)
        queue.count += 1
    pthread_mutex_unlock(&queue.lock)
    if room:
        eventfd_write(queue.event_fd, 1)
    else:
        free(copy)
    return room

cdef inline bint handover_take(handover_t* queue, entry_t* out) noexcept nogil:
    cdef bint found
    cdef uint64_t count
    pthread_mutex_lock(&queue.lock)
    found = queue.count > 0
    if found:
        out[0] = queue.entries[queue.first]
        queue.first = (queue.first + 1) % queue.entries_max
        queue.count -= 1
    else:
        eventfd_read(queue.event_fd, &count)
    pthread_mutex_unlock(&queue.lock)
    return found

cdef inline void handover_drain(handover_t* queue) noexcept nogil:
    # Ends the connections that nobody took.
    cdef entry_t entry
    while handover_take(queue, &entry):
        close(entry.fd)
        free(entry.bytes)

cdef inline void handover_close(handover_t* queue) noexcept nogil:
    handover_drain(queue)
    close(queue.event_fd)
    free(queue.entries)
    queue.entries = NULL
    pthread_mutex_destroy(&queue.lock)
