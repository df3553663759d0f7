#ifdef __linux__
#define _GNU_SOURCE /* memfd_create() */
#endif
#include "wsf.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <time.h>
#endif

#ifndef MSG_NOSIGNAL /* macOS */
#define MSG_NOSIGNAL 0
#endif

/* A non-blocking send is hardly ever interrupted, and never for long. Give up instead of spinning in a signal storm. */
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

#ifdef MFD_CLOEXEC

#ifndef MFD_NOEXEC_SEAL /* since Linux 6.3, which may refuse, or warn about, files that could be executed */
#define MFD_NOEXEC_SEAL 8U
#endif

/* Whether sendfile() turned out not to work from a file in memory to a socket. */
static atomic_bool unusable;

int wsf_open_file(const void *data, size_t size)
{
    static atomic_uint flags = MFD_CLOEXEC | MFD_NOEXEC_SEAL;
    int file;

    if (size == 0 || atomic_load(&unusable))
        return 0;
    file = memfd_create("wsfast", atomic_load(&flags));
    if (file < 0 && errno == EINVAL && atomic_exchange(&flags, MFD_CLOEXEC) != MFD_CLOEXEC)
        file = memfd_create("wsfast", MFD_CLOEXEC);
    /* It is not sealed: no other process has it, and sealing would walk over all pages and may have to wait. */
    if (file >= 0 && (file == 0 || write(file, data, size) != (ssize_t)size)) {
        close(file);
        file = 0;
    }
    return file > 0 ? file : 0;
}

static ssize_t send_file(int fd, const struct wsf_buffer *buffer)
{
    for (int tries = 0;; tries++) {
        off_t offset = 0; /* for this call only: the offset of the file itself is shared with other threads */
        ssize_t sent = sendfile(fd, buffer->file, &offset, buffer->size);
        if (sent >= 0)
            return sent;
        switch (errno) {
        case EINTR:
            if (tries < MAX_INTERRUPTIONS)
                continue;
            return -EINTR;
        case EINVAL:
        case ENOSYS:
        case EOPNOTSUPP:
        case EPERM: /* from seccomp */
            sent = send_one(fd, buffer->data, buffer->size);
            if (sent >= 0)
                atomic_store(&unusable, true);
            return sent;
        default:
            return -(ssize_t)errno; /* EAGAIN and EWOULDBLOCK are the same number on Linux */
        }
    }
}

/*
 * ---- Suppress SIGPIPE from sendfile(), which has no MSG_NOSIGNAL, without consuming one that others wait for ------
 */

struct pipe_guard {
    sigset_t before; /* signals that this thread blocked before */
    bool holds, pending;
};

static void hold_sigpipe(struct pipe_guard *guard)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &signals, &guard->before);
    guard->pending =
        sigismember(&guard->before, SIGPIPE) && sigpending(&signals) == 0 && sigismember(&signals, SIGPIPE);
    guard->holds = true;
}

/*
 * The signal goes to the thread that sends, and is pending when sendfile() returns. This holds even if sendfile() sent
 * a part of a frame before it found the connection closed, and returns no error.
 */
static void release_sigpipe(const struct pipe_guard *guard)
{
    static const struct timespec now = {0, 0};
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    while (!guard->pending && sigtimedwait(&signals, NULL, &now) < 0 && errno == EINTR)
        ;
    pthread_sigmask(SIG_SETMASK, &guard->before, NULL);
}

static ssize_t send_guarded(int fd, const struct wsf_buffer *buffer, struct pipe_guard *guard)
{
    if (!guard->holds)
        hold_sigpipe(guard);
    return send_file(fd, buffer);
}

#else /* no memfd_create(), and no sendfile() from such a file */

struct pipe_guard {
    bool holds;
};

static void release_sigpipe(const struct pipe_guard *guard)
{
    (void)guard;
}

static ssize_t send_guarded(int fd, const struct wsf_buffer *buffer, struct pipe_guard *guard)
{
    (void)guard;
    return send_one(fd, buffer->data, buffer->size);
}

int wsf_open_file(const void *data, size_t size)
{
    (void)data;
    (void)size;
    return 0;
}

#endif

size_t wsf_send_many(const int *fds, const uint32_t *groups, size_t n, const struct wsf_buffer *buffers,
                     ssize_t *results)
{
    struct pipe_guard guard = {.holds = false};
    size_t complete = 0;

    for (size_t i = 0; i < n; i++) {
        const struct wsf_buffer *buffer = &buffers[groups != NULL ? groups[i] : 0];
        results[i] =
            buffer->file > 0 ? send_guarded(fds[i], buffer, &guard) : send_one(fds[i], buffer->data, buffer->size);
        complete += results[i] == (ssize_t)buffer->size;
    }
    if (guard.holds)
        release_sigpipe(&guard);
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
