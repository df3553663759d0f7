# Declarations of wsf.h for Cython. The header documents them.

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "wsf.h" nogil:
    enum:
        WSF_KEY_SIZE
        WSF_MAX_HEADER

    struct wsf_buffer:
        const void *data
        size_t size
        int file

    int wsf_open_file(const void *data, size_t size)

    size_t wsf_frame_header(uint8_t *out, uint8_t first, uint64_t length, const uint8_t *key)

    void wsf_mask(uint8_t *dst, const uint8_t *src, size_t size, const uint8_t *key)

    size_t wsf_send_many(const int *fds, const uint32_t *groups, size_t n, const wsf_buffer *buffers, ssize_t *results)
    size_t wsf_send_masked(const int *fds, const uint8_t *keys, const uint32_t *groups, size_t n, const uint8_t *firsts,
                           const wsf_buffer *payloads, uint8_t *scratch, ssize_t *results)

    struct wsf_sends:
        const int *fds
        const uint32_t *groups
        const wsf_buffer *buffers
        ssize_t *results
        const uint8_t *keys
        const uint8_t *firsts
        uint8_t *scratch
        size_t scratch_size
        unsigned scratch_rooms
        unsigned forks

    void wsf_set_threads(unsigned threads, size_t chunk)
    bint wsf_begin(wsf_sends *sends)
    void wsf_offer(size_t count)
    size_t wsf_finish(const wsf_sends *sends, size_t count)
    bint wsf_detach(const wsf_sends *sends, size_t count, int fd)
    bint wsf_is_done(const wsf_sends *sends)
    ssize_t wsf_claim(const wsf_sends *sends, size_t index)
