# cython: language_level=3, freethreading_compatible=False, boundscheck=False, wraparound=False
"""The C of benchmarks: Python objects on one side, bench.h on the other. `_native_py` defines what they do."""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from os import strerror


cdef extern from "bench.h" nogil:
    struct bench_count:
        pass
    size_t bench_send(const int *fds, size_t n, const void *data, size_t size, size_t *taken)
    size_t bench_send_file(const int *fds, size_t n, int file, size_t size, size_t *taken)
    int bench_drain(const int *fds, size_t n, int stop_fd, bench_count *count, int awake, int records)


cdef class Integers:
    """The memory of an array of integers, held for as long as this object lives."""

    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, owner, Py_ssize_t itemsize, int flags):
        PyObject_GetBuffer(owner, &self.view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags)
        self.held = True
        if self.view.itemsize != itemsize:
            raise ValueError(f"expected integers of {itemsize} bytes, not of {self.view.itemsize}")

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    cdef size_t size(self) noexcept:
        return <size_t>(self.view.len // self.view.itemsize)


def send_many(fds, bytes data not None):
    cdef Integers array = Integers(fds, sizeof(int), PyBUF_SIMPLE)
    cdef const int *first = <const int *>array.view.buf
    cdef const char *octets = PyBytes_AS_STRING(data)
    cdef size_t n = array.size(), size = PyBytes_GET_SIZE(data), at = 0, taken = 0
    cdef list cut = []

    while at < n:
        with nogil:
            at += bench_send(first + at, n - at, octets, size, &taken)
        if at < n:
            cut.append((at, taken))
            at += 1
    return cut


def send_file_many(fds, int file, size_t size):
    cdef Integers array = Integers(fds, sizeof(int), PyBUF_SIMPLE)
    cdef const int *first = <const int *>array.view.buf
    cdef size_t n = array.size(), at = 0, taken = 0
    cdef list cut = []

    while at < n:
        with nogil:
            at += bench_send_file(first + at, n - at, file, size, &taken)
        if at < n:
            cut.append((at, taken))
            at += 1
    return cut


def drain(fds, int stop_fd, count, bint awake=False, bint records=False):
    cdef Integers array = Integers(fds, sizeof(int), PyBUF_SIMPLE)
    cdef Integers counters = Integers(count, sizeof(uint64_t), PyBUF_WRITABLE)
    cdef const int *first = <const int *>array.view.buf
    cdef bench_count *counted = <bench_count *>counters.view.buf
    cdef size_t n = array.size()
    cdef int error

    if counters.size() != 2:
        raise ValueError("count must be two unsigned integers of 64 bits")
    with nogil:
        error = bench_drain(first, n, stop_fd, counted, awake, records)
    if error:
        raise OSError(-error, strerror(-error))
