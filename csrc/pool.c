#ifdef __linux__
#define _GNU_SOURCE /* pthread_setname_np() */
#endif
#include "wsf.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

enum {
    STACK = 256 * 1024, /* octets of stack for each thread */
    SPINS = 1000        /* checks for a change before a thread goes to sleep: about 20 microseconds */
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t offered; /* there is something to send, or a thread must end */
    pthread_cond_t left;    /* the last thread has left the batch */

    /* Guarded by the lock. */
    unsigned threads; /* wanted number, including the caller's */
    size_t wanted_chunk;
    unsigned asleep;
    bool started[WSF_MAX_THREADS];
    const struct wsf_sends *batch; /* the batch in progress, or NULL */
    unsigned limit;                /* number of threads when it began */
    unsigned forks;                /* number of forks between the first process and this one */
    int notified;                  /* descriptor to notify when the batch is done, or -1 */

    /* Written with the lock held, before any descriptor is ready. */
    struct wsf_sends sends;
    size_t chunk;
    bool detached;

    atomic_uint inside;     /* threads working on the batch; the lock is held to enter and to leave */
    atomic_size_t ready;    /* descriptors that may be sent to */
    atomic_size_t next;     /* descriptors that threads have taken */
    atomic_size_t complete; /* descriptors that took their whole buffer */
    atomic_bool closed;     /* no more descriptors will be ready */
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .offered = PTHREAD_COND_INITIALIZER,
    .left = PTHREAD_COND_INITIALIZER,
    .threads = 1,
    .wanted_chunk = 16,
    .notified = -1,
};

static inline void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static size_t left_over(void)
{
    const size_t next = atomic_load(&pool.next); /* load this first: it never exceeds `ready` */

    return atomic_load(&pool.ready) - next;
}

/* Placeholders for results of a detached batch that are not known yet. */
enum { UNCLAIMED = INT_MIN, CLAIMED = INT_MIN + 1 };

static size_t send_some(const struct wsf_sends *sends, size_t start, size_t count, ssize_t *results, unsigned thread)
{
    if (sends->keys == NULL)
        return wsf_send_many(sends->fds + start, sends->groups + start, count, sends->buffers, results);
    return wsf_send_masked(sends->fds + start, sends->keys + start * WSF_KEY_SIZE, sends->groups + start, count,
                           sends->firsts, sends->buffers, sends->scratch + thread * sends->scratch_size, results);
}

/* Send to one descriptor, unless another thread sends or has sent to it; then return false. */
static bool claim(const struct wsf_sends *sends, size_t index, unsigned thread)
{
    ssize_t result = UNCLAIMED;

    if (__atomic_load_n(&sends->results[index], __ATOMIC_ACQUIRE) != UNCLAIMED ||
        !__atomic_compare_exchange_n(&sends->results[index], &result, CLAIMED, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE))
        return false;
    atomic_fetch_add(&pool.complete, send_some(sends, index, 1, &result, thread));
    __atomic_store_n(&sends->results[index], result, __ATOMIC_RELEASE);
    return true;
}

/* Send one chunk; return false if none is left. */
static bool send_chunk(unsigned thread)
{
    const struct wsf_sends *const sends = &pool.sends;
    size_t start = atomic_load(&pool.next), stop;

    do {
        const size_t ready = atomic_load(&pool.ready);
        if (start == ready)
            return false;
        stop = ready - start > pool.chunk ? start + pool.chunk : ready;
    } while (!atomic_compare_exchange_weak(&pool.next, &start, stop));

    if (pool.detached)
        for (size_t i = start; i < stop; i++)
            claim(sends, i, thread);
    else
        atomic_fetch_add(&pool.complete, send_some(sends, start, stop - start, sends->results + start, thread));
    return true;
}

/* Notify the owner that a detached batch is done. The lock must be held. */
static void notify(void)
{
    static const uint64_t one = 1;

    if (pool.notified >= 0 && write(pool.notified, &one, sizeof one) < 0) {
        /* The descriptor is full of unread data, so its reader is notified already. */
    }
    pool.notified = -1;
}

static void *run(void *argument)
{
    const unsigned thread = (unsigned)(uintptr_t)argument;

#if defined(__linux__) || defined(__APPLE__)
    char name[16];
    snprintf(name, sizeof name, "wsfast-%u", thread);
#ifdef __linux__
    pthread_setname_np(pthread_self(), name);
#else
    pthread_setname_np(name);
#endif
#endif
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        const bool needed = pool.batch != NULL && thread < pool.limit && left_over() > 0;
        if (!needed && thread >= pool.threads)
            break;
        if (!needed) {
            pool.asleep++;
            pthread_cond_wait(&pool.offered, &pool.lock);
            pool.asleep--;
            continue;
        }
        atomic_fetch_add(&pool.inside, 1);
        if (left_over() > pool.chunk && pool.asleep)
            pthread_cond_signal(&pool.offered); /* each thread wakes the next: for the caller, it would take too long */
        pthread_mutex_unlock(&pool.lock);
        for (int spins = 0; spins < SPINS && !(atomic_load(&pool.closed) && left_over() == 0); spins++) {
            while (send_chunk(thread))
                spins = 0;
            pause_briefly();
        }
        pthread_mutex_lock(&pool.lock);
        if (atomic_fetch_sub(&pool.inside, 1) == 1) {
            pthread_cond_signal(&pool.left);
            if (left_over() == 0)
                notify();
        }
    }
    pool.started[thread] = false;
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

/* Start the threads that are missing. The lock must be held. */
static void start_threads(void)
{
    pthread_attr_t attributes;
    sigset_t all, before;

    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (unsigned thread = 1; thread < pool.threads; thread++) {
        pthread_t id;
        if (!pool.started[thread])
            pool.started[thread] = pthread_create(&id, &attributes, run, (void *)(uintptr_t)thread) == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* The child of a fork has none of the threads, and their work belongs to the parent. */
static void forget_threads(void)
{
    pool.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    pool.offered = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    pool.left = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    pool.asleep = 0;
    pool.notified = -1;
    pool.batch = NULL;
    pool.forks++;
    atomic_store(&pool.inside, 0);
    for (unsigned thread = 0; thread < WSF_MAX_THREADS; thread++)
        pool.started[thread] = false;
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, forget_threads);
}

void wsf_set_threads(unsigned threads, size_t chunk)
{
    pthread_mutex_lock(&pool.lock);
    pool.threads = threads < 1 ? 1 : threads > WSF_MAX_THREADS ? WSF_MAX_THREADS : threads;
    pool.wanted_chunk = chunk;
    pthread_cond_broadcast(&pool.offered); /* to the threads that must end */
    pthread_mutex_unlock(&pool.lock);
}

bool wsf_begin(struct wsf_sends *sends)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    bool begins;

    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&pool.lock);
    begins = pool.batch == NULL && pool.threads > 1;
    if (begins) {
        sends->forks = pool.forks;
        pool.batch = sends;
        pool.sends = *sends;
        pool.limit = pool.threads;
        if (sends->keys != NULL && sends->scratch_rooms < pool.limit)
            pool.limit = sends->scratch_rooms;
        pool.chunk = pool.wanted_chunk;
        pool.detached = false;
        atomic_store(&pool.ready, 0);
        atomic_store(&pool.next, 0);
        atomic_store(&pool.complete, 0);
        atomic_store(&pool.closed, false);
        start_threads();
    }
    pthread_mutex_unlock(&pool.lock);
    return begins;
}

void wsf_offer(size_t count)
{
    atomic_store(&pool.ready, count);
    pthread_mutex_lock(&pool.lock);
    if (pool.asleep)
        pthread_cond_signal(&pool.offered);
    pthread_mutex_unlock(&pool.lock);
}

/* Return whether this is the child of a fork that happened after the batch began. */
static bool is_forked(const struct wsf_sends *sends)
{
    pthread_mutex_lock(&pool.lock);
    const bool forked = sends->forks != pool.forks;
    pthread_mutex_unlock(&pool.lock);
    return forked;
}

/* Write the results that `count` descriptors from `start` on would have if everything was sent to them. */
static size_t pretend(const struct wsf_sends *sends, size_t start, size_t count)
{
    uint8_t header[WSF_MAX_HEADER];

    for (size_t i = start; i < start + count; i++) {
        const size_t size = sends->buffers[sends->groups[i]].size;
        sends->results[i] = (ssize_t)(size + (sends->keys ? wsf_frame_header(header, 0, size, sends->keys) : 0));
    }
    return count;
}

size_t wsf_finish(const struct wsf_sends *sends, size_t count)
{
    size_t complete;

    if (is_forked(sends))
        return pretend(sends, 0, count);

    wsf_offer(count);
    atomic_store(&pool.closed, true);
    while (send_chunk(0))
        ;
    for (int spins = 0; spins < SPINS && atomic_load(&pool.inside); spins++)
        pause_briefly();
    pthread_mutex_lock(&pool.lock);
    while (atomic_load(&pool.inside))
        pthread_cond_wait(&pool.left, &pool.lock);
    pool.batch = NULL;
    pool.notified = -1;
    complete = atomic_load(&pool.complete);
    pthread_mutex_unlock(&pool.lock);
    return complete;
}

bool wsf_detach(const struct wsf_sends *sends, size_t count, int fd)
{
    bool others = false;

    pthread_mutex_lock(&pool.lock);
    for (unsigned thread = 1; thread < pool.limit; thread++)
        others = others || pool.started[thread];
    if (others && count > 0) {
        for (size_t i = 0; i < count; i++)
            sends->results[i] = UNCLAIMED;
        pool.detached = true;
        pool.notified = fd;
        atomic_store(&pool.closed, true);
        atomic_store(&pool.ready, count);
        if (pool.asleep)
            pthread_cond_signal(&pool.offered);
    }
    pthread_mutex_unlock(&pool.lock);
    return others && count > 0;
}

bool wsf_is_done(const struct wsf_sends *sends)
{
    bool done;

    pthread_mutex_lock(&pool.lock);
    done = pool.batch != sends || (left_over() == 0 && atomic_load(&pool.inside) == 0);
    pthread_mutex_unlock(&pool.lock);
    return done;
}

ssize_t wsf_claim(const struct wsf_sends *sends, size_t index)
{
    ssize_t result;

    if (is_forked(sends))
        pretend(sends, index, 1);
    else
        claim(sends, index, 0); /* does nothing if the batch was finished meanwhile */
    while ((result = __atomic_load_n(&sends->results[index], __ATOMIC_ACQUIRE)) == CLAIMED)
        sched_yield(); /* a thread is sending to it; unless the thread is held up, this takes microseconds */
    return result;
}
