# cython: language_level=3, freethreading_compatible=True, boundscheck=False, wraparound=False
"""The fast core: connects Python objects with the C functions of wsf.h. `_pure` defines what each function does."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF, Py_XINCREF
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, ENOMEM, EPIPE
from libc.stdint cimport SIZE_MAX, UINT32_MAX, UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close, getpid

from ._wsf cimport (
    WSF_KEY_SIZE,
    WSF_MAX_HEADER,
    wsf_begin,
    wsf_buffer,
    wsf_claim,
    wsf_detach,
    wsf_finish,
    wsf_frame_header,
    wsf_is_done,
    wsf_mask,
    wsf_offer,
    wsf_open_file,
    wsf_send_many,
    wsf_send_masked,
    wsf_sends,
    wsf_set_threads,
)

import os
from os import urandom
from types import FunctionType
from weakref import ref


cdef extern from "Python.h":
    ctypedef struct PyTypeObject
    PyTypeObject *Py_TYPE(object)
    object PyObject_CallOneArg(object, object)
    Py_ssize_t PyObject_Size(object) except -1
    int PyGC_Disable()
    int PyGC_Enable()


cdef void *resized(void *memory, size_t size) except NULL:
    cdef void *result = PyMem_Realloc(memory, size)
    if result == NULL:
        raise MemoryError
    return result


sends_directly = True

cdef enum:
    # Smaller frames, or frames for fewer connections, are faster with send(): see docs/explanation/rules.md.
    FILE_SIZE = 16384
    FILE_RECEIVERS = 64


include "lock.pxi"


# ---- The garbage collector, which calls finalizers, is paused while frames are incomplete

cdef int pauses = 0  # the lock guards both
cdef int collects = 0


cdef class CollectorPause:
    """See `_pure`."""

    def __enter__(self):
        global pauses, collects
        lock()
        if pauses == 0:
            collects = PyGC_Disable()
        pauses += 1
        unlock()

    def __exit__(self, *_):
        global pauses
        lock()
        pauses -= pauses > 0
        if pauses == 0 and collects:
            PyGC_Enable()
        unlock()

    def end(self):
        global pauses
        lock()
        if pauses > 0:
            pauses = 0
            if collects:
                PyGC_Enable()
        unlock()


collector_paused = CollectorPause()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=collector_paused.end)


# ---- Threads that send

cdef unsigned wanted_threads = 0    # 0 until it is set, or first needed
cdef size_t threaded_size = 256     # smallest number of connections for which waking the threads pays off


cdef bint may_detach = True         # whether threads may send while the event loop continues


def set_threads(unsigned threads, *, bint detach=True, size_t size=256, size_t chunk=16):
    global wanted_threads, threaded_size, may_detach
    wsf_set_threads(threads, chunk)
    wanted_threads, threaded_size, may_detach = threads, size, detach


def threads():
    if wanted_threads == 0:
        from ._process import default_threads

        set_threads(default_threads().number)
    return wanted_threads


cdef bint threaded(size_t count) except -1:
    """Whether several threads send to `count` connections."""
    return count >= threaded_size and threads() > 1


def detaches(size_t count):
    # Never without a GIL: a thread that checks a connection would note what was sent, at the same time as the thread of
    # the event loop.
    return not FREE_THREADED and may_detach and threaded(count)


# ---- Large frames, which are sent with sendfile()

cdef size_t file_size               # smallest frame, in octets, that is put into a file
cdef size_t file_receivers          # smallest number of receivers for that


def set_files(size, size_t receivers=FILE_RECEIVERS):
    global file_size, file_receivers
    before = None if file_size == SIZE_MAX else file_size, file_receivers
    file_size, file_receivers = SIZE_MAX if size is None else size, receivers
    return before


set_files(None if os.environ.get("WSFAST_SENDFILE") == "0" else FILE_SIZE)


include "frames.pxi"
include "ready.pxi"
include "peer.pxi"
include "table.pxi"
include "sends.pxi"
include "batch.pxi"
include "encrypted.pxi"
