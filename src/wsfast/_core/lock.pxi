# ---- One lock for what the process has one of. With a GIL, that is the lock, and these are nothing


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    enum { WSFAST_FREE_THREADED = 1 };
    static PyMutex wsfast_mutex;
    #define wsfast_lock() PyMutex_Lock(&wsfast_mutex)
    #define wsfast_unlock() PyMutex_Unlock(&wsfast_mutex)

    #include <pthread.h>

    static void wsfast_before_fork(void)
    {
        wsfast_lock();
    }

    static void wsfast_in_parent(void)
    {
        wsfast_unlock();
    }

    static void wsfast_in_child(void) /* where nobody waits for it any more */
    {
        memset(&wsfast_mutex, 0, sizeof wsfast_mutex);
    }

    /* Not by os.register_at_fork(): code of Python's would follow that, with the mutex held. */
    static int wsfast_guard_forks(void)
    {
        return pthread_atfork(wsfast_before_fork, wsfast_in_parent, wsfast_in_child);
    }
    #else
    enum { WSFAST_FREE_THREADED = 0 };
    #define wsfast_lock() ((void)0)
    #define wsfast_unlock() ((void)0)
    #define wsfast_guard_forks() 0 /* the GIL is held then: the child finds nothing half changed */
    #endif
    """
    bint FREE_THREADED "WSFAST_FREE_THREADED"

    # It is held for a few instructions, or for one look at a collection: never while code of Python's may run, which
    # could ask for it again, nor while anything is sent. Whoever waits for it lets go of critical sections.
    void lock "wsfast_lock" () noexcept
    void unlock "wsfast_unlock" () noexcept
    int guard_forks "wsfast_guard_forks" () noexcept


if guard_forks() != 0:
    raise MemoryError
