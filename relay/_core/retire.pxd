# retire.pxd: what a reader thread may still see is freed only after its turn is over.
#
# Rules of this room
#   1. Reader threads (shards, the backbone) bracket each turn with turn_begin and turn_end; between
#      turns they hold no pointer that they did not take a reference on.
#   2. A writer first unlinks a thing, then calls retire_later. The thing is freed once each reader
#      has been seen outside the turn in which it could have found it. Nobody waits for anybody.
#   3. Bounded by what writers retire within the longest turn; sweeping happens at each
#      retire_later.
#   4. This room does not know what it frees.

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from relay._core.atomics cimport fence, load_u64, store_u64

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_mutex_destroy(pthread_mutex_t*)

cdef enum:
    RETIRE_BACKBONE = 64     # readers 0 … 63 are the shards
    RETIRE_PYTHON = 65       # whoever holds the GIL; between begin and end nothing may let go of it
    RETIRE_READERS_MAX = 66

ctypedef void (*free_fn)(void*) noexcept nogil

cdef struct retired_t:
    void* thing
    free_fn release
    retired_t* next
    uint64_t turns[RETIRE_READERS_MAX]   # each reader's turn when the thing was unlinked

cdef struct retire_t:
    # guards first and retired_count; held for a list walk, never while freeing
    pthread_mutex_t lock
    retired_t* first
    uint64_t retired_count
    # odd: inside a turn; even: outside, sees nothing. Owner: the reader
    uint64_t turns[RETIRE_READERS_MAX]

cdef inline void retire_open(retire_t* retire) noexcept nogil:
    cdef int reader
    pthread_mutex_init(&retire.lock, NULL)
    retire.first = NULL
    retire.retired_count = 0
    for reader in range(RETIRE_READERS_MAX):
        retire.turns[reader] = 0

cdef inline void turn_begin(retire_t* retire, int reader) noexcept nogil:
    assert retire.turns[reader] & 1 == 0, "a turn within a turn"
    store_u64(&retire.turns[reader], retire.turns[reader] + 1)
    fence()  # the turn is seen before any pointer that is loaded in it

cdef inline void turn_end(retire_t* retire, int reader) noexcept nogil:
    assert retire.turns[reader] & 1 == 1, "the end of a turn that has not begun"
    store_u64(&retire.turns[reader], retire.turns[reader] + 1)

cdef inline bint retire_is_over(retire_t* retire, retired_t* entry) noexcept nogil:
    cdef int reader
    for reader in range(RETIRE_READERS_MAX):
        if entry.turns[reader] & 1 and load_u64(&retire.turns[reader]) == entry.turns[reader]:
            return False
    return True

cdef inline retired_t* retire_take_over(retire_t* retire) noexcept nogil:
    # Unlinks, under the lock, all entries that nobody can see any more; they are freed outside of
    # it.
    cdef retired_t** link = &retire.first
    cdef retired_t* done = NULL
    cdef retired_t* entry
    while link[0] != NULL:
        entry = link[0]
        if retire_is_over(retire, entry):
            link[0] = entry.next
            entry.next = done
            done = entry
            retire.retired_count -= 1
        else:
            link = &entry.next
    return done

cdef inline void retire_sweep(retire_t* retire) noexcept nogil:
    cdef retired_t* entry
    cdef retired_t* after
    pthread_mutex_lock(&retire.lock)
    entry = retire_take_over(retire)
    pthread_mutex_unlock(&retire.lock)
    while entry != NULL:
        after = entry.next
        entry.release(entry.thing)
        free(entry)
        entry = after

cdef inline void retire_later(retire_t* retire, void* thing, free_fn release) noexcept nogil:
    # Out of memory: the thing is leaked rather than freed under a reader.
    cdef retired_t* entry
    cdef int reader
    if thing == NULL:
        return
    entry = <retired_t*>malloc(sizeof(retired_t))
    if entry == NULL:
        return
    entry.thing = thing
    entry.release = release
    fence()  # the unlinking is seen before the turns are read
    for reader in range(RETIRE_READERS_MAX):
        entry.turns[reader] = load_u64(&retire.turns[reader])
    pthread_mutex_lock(&retire.lock)
    entry.next = retire.first
    retire.first = entry
    retire.retired_count += 1
    pthread_mutex_unlock(&retire.lock)
    retire_sweep(retire)

cdef inline void retire_close(retire_t* retire) noexcept nogil:
    # All readers have ended: everything goes.
    cdef int reader
    for reader in range(RETIRE_READERS_MAX):
        retire.turns[reader] = (retire.turns[reader] + 1) & ~<uint64_t>1
    retire_sweep(retire)
    pthread_mutex_destroy(&retire.lock)
