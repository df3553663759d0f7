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
    size_t bench_send(const int *fds, size_t n, const void *data, size_t size)
    int bench_drain(const int *fds, size_t n, int stop_fd, uint64_t *octets, int awake)


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
    cdef size_t n = array.size(), size = PyBytes_GET_SIZE(data), complete

    with nogil:
        complete = bench_send(first, n, octets, size)
    return complete


def drain(fds, int stop_fd, octets, bint awake=False):
    cdef Integers array = Integers(fds, sizeof(int), PyBUF_SIMPLE)
    cdef Integers counter = Integers(octets, sizeof(uint64_t), PyBUF_WRITABLE)
    cdef const int *first = <const int *>array.view.buf
    cdef uint64_t *received = <uint64_t *>counter.view.buf
    cdef size_t n = array.size()
    cdef int error

    if counter.size() != 1:
        raise ValueError("octets must be one unsigned integer of 64 bits")
    with nogil:
        error = bench_drain(first, n, stop_fd, received, awake)
    if error:
        raise OSError(-error, strerror(-error))
