# ---- One lock for the state of the whole process. With a GIL, the GIL is the lock, and these functions do nothing


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

    static void wsfast_in_child(void) /* no thread waits for the mutex there */
    {
        memset(&wsfast_mutex, 0, sizeof wsfast_mutex);
    }

    /* Not with os.register_at_fork(): other Python code could run after that, with the mutex held. */
    static int wsfast_guard_forks(void)
    {
        return pthread_atfork(wsfast_before_fork, wsfast_in_parent, wsfast_in_child);
    }
    #else
    enum { WSFAST_FREE_THREADED = 0 };
    #define wsfast_lock() ((void)0)
    #define wsfast_unlock() ((void)0)
    #define wsfast_guard_forks() 0 /* a fork happens with the GIL held: the child finds nothing half changed */
    #endif
    """
    bint FREE_THREADED "WSFAST_FREE_THREADED"

    # The lock is held for a few instructions, or for one pass over a collection. It is never held while anything is
    # sent, nor while Python code may run, since that could take the lock again. A thread that waits for the lock gives
    # up its critical sections.
    void lock "wsfast_lock" () noexcept
    void unlock "wsfast_unlock" () noexcept
    int guard_forks "wsfast_guard_forks" () noexcept


if guard_forks() != 0:
    raise MemoryError
