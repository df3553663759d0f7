/*
 * wsf.h: the whole contract of wsfast's C core.
 *
 * The library allocates no memory and does not depend on Python. Except for the pool of threads, it is stateless and
 * keeps no pointer after a call. Any number of threads may call any function at the same time, as long as no two calls
 * write to the same memory.
 */
#ifndef WSF_H
#define WSF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h> /* ssize_t */

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Frames: RFC 6455, section 5.2 ------------------------------------------------------------------------- */

enum {
    WSF_FIN = 0x80,  /* last fragment of a message */
    WSF_RSV1 = 0x40, /* set on compressed messages by permessage-deflate, RFC 7692 */
    WSF_RSV2 = 0x20,
    WSF_RSV3 = 0x10,
    WSF_KEY_SIZE = 4,   /* octets of a mask key */
    WSF_MAX_HEADER = 14 /* 2 + 8 octets of extended length + 4 octets of mask key */
};

/*
 * Write the header of a frame to `out` (room for WSF_MAX_HEADER octets) and return its size, 2 to 14.
 *
 * first:  first octet: FIN, RSV1-3 and opcode, or'ed together.
 * length: octets of payload; at most 2**63 - 1, because the RFC requires the highest bit to be clear. The function uses
 *         the shortest of the three encodings of the length, as the RFC requires.
 * key:    mask key for the frames of a client; NULL for those of a server.
 */
size_t wsf_frame_header(uint8_t *out, uint8_t first, uint64_t length, const uint8_t *key);

/* ---- Masking: RFC 6455, section 5.3 ------------------------------------------------------------------------ */

/*
 * Set dst[i] = src[i] ^ key[i % 4] for i < size. `dst` may equal `src` (in place); otherwise, they must not overlap.
 * Any alignment and any size are allowed; no octet outside the two ranges is touched.
 */
void wsf_mask(uint8_t *dst, const uint8_t *src, size_t size, const uint8_t *key);

/* ---- Sending ----------------------------------------------------------------------------------------------- */

/* Octets to send; owned by the caller. */
struct wsf_buffer {
    const void *data;
    size_t size;
    int file; /* a descriptor of wsf_open_file() with the same contents, or 0 */
};

/*
 * Return the descriptor of a new file in memory with these `size` octets, or 0 if the file cannot be created. If a
 * buffer has a file, sendfile() sends from it, and all sockets share the pages of the file instead of each getting a
 * copy. This pays off from a few KiB and a few receivers on. The caller closes the file after the send: data that waits
 * in a socket keeps the pages. The file must not be written to again, since that would change the waiting data.
 *
 * The file cannot be created if the system has no memfd_create(), or no sendfile() from such a file to a socket, if it
 * forbids them, or if too many descriptors are open. Then send() is used instead of sendfile().
 */
int wsf_open_file(const void *data, size_t size);

/*
 * The `result` of one non-blocking send:
 *   result >= 0  octets that the kernel took; less than the buffer's size means a partial write;
 *   result <  0  a negated errno. EWOULDBLOCK is reported as EAGAIN, whatever their numbers.
 */
enum wsf_outcome {
    WSF_SENT,        /* the kernel took the whole buffer */
    WSF_PARTIAL,     /* the rest must be the next octets on this connection */
    WSF_AGAIN,       /* EAGAIN: nothing was taken, because the socket's send buffer is full */
    WSF_INTERRUPTED, /* EINTR several times in a row: nothing was taken */
    WSF_PIPE,        /* EPIPE: this side shut the connection down, or the other side is gone */
    WSF_RESET,       /* ECONNRESET: the other side reset the connection; reported once, then EPIPE */
    WSF_FAILED       /* any other errno */
};

enum wsf_outcome wsf_outcome(ssize_t result, size_t size);

/*
 * Send `buffers[groups[i]]` to `fds[i]` for i < n, in this order. Never blocks, and never raises SIGPIPE (except on
 * macOS, where sockets need SO_NOSIGPIPE for that: ignore SIGPIPE there, as Python does).
 *
 * groups:  NULL if all descriptors get buffers[0].
 * results: one result for each descriptor; room for n.
 *
 * Sockets may be in blocking mode, unless their buffer has a file; the call does not wait for them. An interrupted
 * system call is repeated a few times. An empty buffer gives a result of 0 without a system call. Returns the number of
 * descriptors that took their whole buffer.
 */
size_t wsf_send_many(const int *fds, const uint32_t *groups, size_t n, const struct wsf_buffer *buffers,
                     ssize_t *results);

/*
 * The same for the frames of a client: payloads[groups[i]] is masked separately for each descriptor.
 *
 * firsts:  first octet of the header for each payload.
 * keys:    n * WSF_KEY_SIZE octets, unpredictable and new for each call (RFC 6455, section 10.3).
 * scratch: room for one frame: WSF_MAX_HEADER + the size of the longest payload. Its contents are overwritten.
 * results: counted in octets of the frame, header included.
 */
size_t wsf_send_masked(const int *fds, const uint8_t *keys, const uint32_t *groups, size_t n, const uint8_t *firsts,
                       const struct wsf_buffer *payloads, uint8_t *scratch, ssize_t *results);

/* ---- Sending on several threads ---------------------------------------------------------------------------- */

enum { WSF_MAX_THREADS = 64 };

/* The arguments of wsf_send_many(); with keys, those of wsf_send_masked(). */
struct wsf_sends {
    const int *fds;
    const uint32_t *groups;
    const struct wsf_buffer *buffers; /* frames, or payloads */
    ssize_t *results;
    const uint8_t *keys; /* NULL for frames of a server */
    const uint8_t *firsts;
    uint8_t *scratch; /* room for one frame for each of `scratch_rooms` threads; no more threads than that will send */
    size_t scratch_size;
    unsigned scratch_rooms;
    unsigned forks; /* private to the pool */
};

/*
 * Set how many threads send a batch, including the caller's: 1 to WSF_MAX_THREADS; and how many descriptors a thread
 * takes at a time. Initially 1 and 16.
 *
 * The other threads start when the first batch begins, and again in the child of a fork. They block all signals, sleep
 * between batches, and end with the process. If a thread cannot be started, the others do its work.
 */
void wsf_set_threads(unsigned threads, size_t chunk);

/*
 * Begin a batch of sends, without offering any descriptor yet. Returns false if another batch is in progress, since
 * there can be only one in the process, or if there is only one thread.
 *
 * A descriptor must not occur twice. The arrays, the data that they point to, and `sends` itself must stay in place
 * until wsf_finish(). Meanwhile, more items may be appended to the arrays, as far as they have room.
 */
bool wsf_begin(struct wsf_sends *sends);

/* Offer the first `count` descriptors of the batch to the threads. `count` must not be less than the last time. */
void wsf_offer(size_t count);

/*
 * Offer the first `count` descriptors, which are all of the batch now; send to those that are left, wait until no
 * thread is sending any more, and end the batch. Returns the number of descriptors that took their whole buffer. In the
 * child of a fork that happened after wsf_begin(), nothing is sent, because the connections belong to the parent; all
 * of it counts as sent.
 */
size_t wsf_finish(const struct wsf_sends *sends, size_t count);

/*
 * Let the other threads send to the first `count` descriptors, which are all of the batch, while the caller does
 * something else. When they have finished, 8 octets are written to `fd`, which must be non-blocking and stay open until
 * wsf_finish(). The caller must still call wsf_finish(). Returns false if there are no other threads; then nothing was
 * offered.
 */
bool wsf_detach(const struct wsf_sends *sends, size_t count, int fd);

/* Return whether a detached batch is done, so that wsf_finish() would not wait. */
bool wsf_is_done(const struct wsf_sends *sends);

/*
 * Complete descriptor `index` of a detached batch, independently of the others: send to it now, or wait for the thread
 * that is sending to it. Returns its result. Only the thread that detached the batch may call this.
 */
ssize_t wsf_claim(const struct wsf_sends *sends, size_t index);

#ifdef __cplusplus
}
#endif

#endif
