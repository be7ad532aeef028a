/* thread.h: starts a thread that no signal reaches.
 *
 * Rules of this room
 *   1. Signals belong to the host program: they stay blocked in every thread of the engine.
 *   2. A thread's name (at most 15 bytes) is for `top -H`, perf and benchmarks: who used the core.
 */
#ifndef RELAY_THREAD_H
#define RELAY_THREAD_H

#include <pthread.h>
#include <signal.h>

static inline int thread_start_as(pthread_t *thread, void *(*body)(void *), void *argument,
                                  const char *name)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int status = pthread_create(thread, NULL, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (status == 0 && name != NULL)
        pthread_setname_np(*thread, name);
    return status;
}

static inline int thread_start(pthread_t *thread, void *(*body)(void *), void *argument)
{
    return thread_start_as(thread, body, argument, NULL);
}

#endif
