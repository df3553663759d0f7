# ---- One lock for what the process has one of. With a GIL, that is the lock, and these are nothing


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    enum { WSFAST_FREE_THREADED = 1 };
    static PyMutex wsfast_mutex;
    #define wsfast_lock() PyMutex_Lock(&wsfast_mutex)
    #define wsfast_unlock() PyMutex_Unlock(&wsfast_mutex)
    #else
    enum { WSFAST_FREE_THREADED = 0 };
    #define wsfast_lock() ((void)0)
    #define wsfast_unlock() ((void)0)
    #endif
    """
    bint FREE_THREADED "WSFAST_FREE_THREADED"

    # It is held for a few instructions, or for one look at a collection: never while code of Python's may run, which
    # could ask for it again, nor while anything is sent. Whoever waits for it lets go of critical sections.
    void lock "wsfast_lock" () noexcept
    void unlock "wsfast_unlock" () noexcept


def _before_fork():
    lock()


def _after_fork():
    unlock()


if FREE_THREADED:  # else the GIL is held anyway: the child finds nothing half changed
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
