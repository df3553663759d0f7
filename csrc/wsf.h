/*
 * wsf.h: the whole contract of wsfast's C core.
 *
 * The library allocates no memory and never hears of Python. But for the pool of threads, it is stateless, and keeps no
 * pointer it is given beyond the call. Every function may be called from any number of threads at once, as long as no
 * two calls write to the same memory.
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
 * length: octets of payload; at most 2**63 - 1, since the RFC wants the highest bit clear. The shortest of the
 *         three encodings of the length is taken, as the RFC demands.
 * key:    mask key, for the frames of a client; NULL for those of a server.
 */
size_t wsf_frame_header(uint8_t *out, uint8_t first, uint64_t length, const uint8_t *key);

/* ---- Masking: RFC 6455, section 5.3 ------------------------------------------------------------------------ */

/*
 * dst[i] = src[i] ^ key[i % 4] for i < size. `dst` may equal `src` (in place); otherwise they must not overlap. Any
 * alignment, any size; no octet outside of the two ranges is touched.
 */
void wsf_mask(uint8_t *dst, const uint8_t *src, size_t size, const uint8_t *key);

/* ---- Sending ----------------------------------------------------------------------------------------------- */

/* Octets to be sent; owned by the caller. */
struct wsf_buffer {
    const void *data;
    size_t size;
    int file; /* a descriptor of wsf_open_file() that holds the same, or 0 */
};

/*
 * Return the descriptor of a new file in memory that holds `size` octets; 0 if there can be none. Where a buffer has a
 * file, sendfile() sends from it, and all sockets share its pages instead of getting a copy each; which is worth it
 * from some KiB and some receivers on. The caller closes it when it has been sent: what waits in a socket keeps the
 * pages. Nothing is ever written to it again, since that would change what waits.
 *
 * There can be none where the system has no memfd_create() or no sendfile() that sends from it to a socket, where it
 * forbids them, or where there are too many open descriptors. Then send() does what sendfile() would have done.
 */
int wsf_open_file(const void *data, size_t size);

/*
 * What one non-blocking send came to, as a `result`:
 *   result >= 0  octets that the kernel took: less than the buffer's size means a partial write;
 *   result <  0  a negated errno. EWOULDBLOCK is reported as EAGAIN, whatever their numbers.
 */
enum wsf_outcome {
    WSF_SENT,        /* all of it */
    WSF_PARTIAL,     /* the rest must be the next octets on this connection */
    WSF_AGAIN,       /* EAGAIN: nothing was taken, the socket's send buffer is full */
    WSF_INTERRUPTED, /* EINTR, again and again: nothing was taken */
    WSF_PIPE,        /* EPIPE: this side shut the connection down, or the other side is gone */
    WSF_RESET,       /* ECONNRESET: the other side has reset the connection; told once, then EPIPE */
    WSF_FAILED       /* any other errno */
};

enum wsf_outcome wsf_outcome(ssize_t result, size_t size);

/*
 * Offer `buffers[groups[i]]` to `fds[i]` for i < n, in this order, without ever blocking and without SIGPIPE (but on
 * macOS, whose sockets need SO_NOSIGPIPE for that: ignore SIGPIPE there, as Python does).
 *
 * groups:  NULL if all of them get buffers[0].
 * results: one result for each descriptor, room for n.
 *
 * Sockets may be in blocking mode, unless their buffer has a file; they are not waited for. An interrupted call is
 * repeated a few times. An empty buffer is a result of 0 without a system call. Returns how many descriptors took their
 * whole buffer.
 */
size_t wsf_send_many(const int *fds, const uint32_t *groups, size_t n, const struct wsf_buffer *buffers,
                     ssize_t *results);

/*
 * The same for the frames of a client: payloads[groups[i]] is masked anew for each descriptor.
 *
 * firsts:  first octet of the header for each payload.
 * keys:    n * WSF_KEY_SIZE octets, unpredictable and fresh (RFC 6455, section 10.3).
 * scratch: room for one frame, WSF_MAX_HEADER + the size of the longest payload; its contents are not kept.
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
    uint8_t *scratch; /* room for one frame for each of `scratch_rooms` threads; no more will send */
    size_t scratch_size;
    unsigned scratch_rooms;
    unsigned forks; /* the pool's own */
};

/*
 * Say how many threads send a batch, the caller's own among them: 1 to WSF_MAX_THREADS; and how many descriptors one
 * of them takes at a time. Initially 1, and 16.
 *
 * The others are started when the first batch begins, and again in the child of a fork. They block all signals, sleep
 * between batches, and end with the process. In place of one that cannot be started, the others send.
 */
void wsf_set_threads(unsigned threads, size_t chunk);

/*
 * Begin a batch of sends to the first of these descriptors, without waiting for any. Returns false if another batch is
 * under way, of which there is one at a time in the process, or if there is only one thread.
 *
 * No descriptor may be there twice, and whatever the arrays hold, and `sends` itself, must stay where it is until
 * wsf_finish(); more may be added behind it in the room that there is.
 */
bool wsf_begin(struct wsf_sends *sends);

/* Have the first `count` descriptors of the batch be sent to; not fewer than the last time. */
void wsf_offer(size_t count);

/*
 * Offer the first `count` of the batch, all of them now; send what is left, wait until no thread is at it any more, and
 * end it. Returns how many descriptors took their whole buffer. In the child of a fork that came in between, the
 * connections are the parent's, and all count as sent.
 */
size_t wsf_finish(const struct wsf_sends *sends, size_t count);

/*
 * Have other threads send to the first `count` of the batch, all of them, while the caller does something else. When
 * that is done, 8 octets are written to `fd`, non-blocking, that stays open until wsf_finish(),
 * which is still to be called. Returns false if there are no other threads; then nothing was offered.
 */
bool wsf_detach(const struct wsf_sends *sends, size_t count, int fd);

/* Whether all that wsf_detach() was asked for is done, so that wsf_finish() would not wait. */
bool wsf_is_done(const struct wsf_sends *sends);

/*
 * Have `index` of a detached batch be done with, whatever becomes of the others: send to it now, or wait for the thread
 * that does. Returns its result, which will not be told to another. Only the thread that has detached the batch may
 * call this.
 */
ssize_t wsf_claim(const struct wsf_sends *sends, size_t index);

#ifdef __cplusplus
}
#endif

#endif
