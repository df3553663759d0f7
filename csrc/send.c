#include "wsf.h"

#include <errno.h>
#include <sys/socket.h>

#ifndef MSG_NOSIGNAL /* macOS */
#define MSG_NOSIGNAL 0
#endif

/* A non-blocking send is hardly ever interrupted, and never for long; give up rather than spin under a signal storm. */
enum { MAX_INTERRUPTIONS = 16 };

enum wsf_outcome wsf_outcome(ssize_t result, size_t size)
{
    if (result >= 0)
        return (size_t)result == size ? WSF_SENT : WSF_PARTIAL;
    switch (-result) {
    case EAGAIN:
        return WSF_AGAIN;
    case EINTR:
        return WSF_INTERRUPTED;
    case EPIPE:
        return WSF_PIPE;
    case ECONNRESET:
        return WSF_RESET;
    default:
        return WSF_FAILED;
    }
}

static inline ssize_t send_one(int fd, const void *data, size_t size)
{
    if (size == 0)
        return 0;
    for (int tries = 0;; tries++) {
        const ssize_t sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0)
            return sent;
        if (errno == EINTR && tries < MAX_INTERRUPTIONS)
            continue;
        return errno == EWOULDBLOCK ? -EAGAIN : -(ssize_t)errno;
    }
}

size_t wsf_send_many(const int *fds, const uint32_t *groups, size_t n, const struct wsf_buffer *buffers,
                     ssize_t *results)
{
    size_t complete = 0;

    for (size_t i = 0; i < n; i++) {
        const struct wsf_buffer *buffer = &buffers[groups != NULL ? groups[i] : 0];
        results[i] = send_one(fds[i], buffer->data, buffer->size);
        complete += results[i] == (ssize_t)buffer->size;
    }
    return complete;
}

size_t wsf_send_masked(const int *fds, const uint8_t *keys, const uint32_t *groups, size_t n, const uint8_t *firsts,
                       const struct wsf_buffer *payloads, uint8_t *scratch, ssize_t *results)
{
    size_t complete = 0;

    for (size_t i = 0; i < n; i++) {
        const uint32_t group = groups != NULL ? groups[i] : 0;
        const struct wsf_buffer *payload = &payloads[group];
        const uint8_t *key = keys + i * WSF_KEY_SIZE;
        const size_t header = wsf_frame_header(scratch, firsts[group], payload->size, key);
        const size_t size = header + payload->size;
        wsf_mask(scratch + header, payload->data, payload->size, key);
        results[i] = send_one(fds[i], scratch, size);
        complete += results[i] == (ssize_t)size;
    }
    return complete;
}
