# thread.pxd: starts and joins the engine's threads.
#
# Rules of this room
#   1. Declarations only: thread.h tells why no signal reaches them.

cdef extern from "thread.h" nogil:
    ctypedef unsigned long pthread_t
    ctypedef void* (*thread_body)(void*) noexcept nogil
    int thread_start(pthread_t* thread, thread_body body, void* argument)  # 0, or an errno
    int thread_start_as(
        pthread_t* thread, thread_body body, void* argument, const char* name
    )
    int pthread_join(pthread_t thread, void** result)
