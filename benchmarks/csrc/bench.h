/*
 * bench.h: what benchmarks need of C: the floor that fan-outs are measured against, and clients that only read.
 *
 * Nothing here keeps a pointer beyond the call. Any number of threads may call at once.
 */
#ifndef WSFAST_BENCH_H
#define WSFAST_BENCH_H

#include <stddef.h>
#include <stdint.h>

/*
 * The floor: one non-blocking send() of `data` for each of the `n` descriptors, in this order, without SIGPIPE. No
 * fan-out can do less. Stops at the first descriptor that does not take all of it. Returns how many before it did, and
 * sets `*taken` to the octets that it took itself: 0 if it took none, for whatever reason.
 */
size_t bench_send(const int *fds, size_t n, const void *data, size_t size, size_t *taken);

/*
 * The same by sendfile(), of the first `size` octets of `file`: sockets share its pages instead of getting a copy each.
 * The descriptors must not block, and SIGPIPE must be ignored. On other systems than Linux, none takes anything.
 */
size_t bench_send_file(const int *fds, size_t n, int file, size_t size, size_t *taken);

/* Counts of the bytes and messages that clients have read. */
struct bench_count {
    uint64_t octets;   /* of frames that carry data, their headers included */
    uint64_t messages; /* whose last frame has arrived as a whole */
};

/*
 * Read the frames of servers (RFC 6455, section 5.2) that arrive at `fds` until `stop_fd` is readable or has hung up,
 * or all of `fds` have ended. Payloads are discarded. A ping is answered, with a mask of zeros, if the socket has room
 * for the pong; control frames are not counted. A stream that breaks the rules of framing has ended.
 *
 * count:  what was read is added to it as it comes, by one writer and without tearing: another process may watch it.
 *         The octets of a message are there before the message is.
 * awake:  1 never to sleep. A process that sleeps must be woken up, and on a virtual machine that costs the one that
 *         sends to it as much as half a send; the faster a server sends, the less often its clients would fall asleep.
 * records: 1 if TLS encrypts what arrives. Then each record of application data (RFC 8446, section 5.1) counts as a
 *         message, its header included, and nothing is decrypted or answered; a record of any other type is the end.
 *
 * Returns 0, or a negated errno of epoll; -ENOMEM without memory for the streams; -ENOSYS where there is no epoll.
 */
int bench_drain(const int *fds, size_t n, int stop_fd, struct bench_count *count, int awake, int records);

#endif
