#ifdef __linux__
#define _GNU_SOURCE /* memfd_create(), tee() */
#endif
#include "wsf.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef __linux__
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <time.h>
#endif

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

#ifdef MFD_CLOEXEC

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3, which may refuse, or complain about, files that could be executed */
#define MFD_NOEXEC_SEAL 8U
#endif

/* Whether sendfile() was found not to send from a file in memory to a socket. */
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
    /* It is not sealed: nobody else has it, and to seal it takes a walk over its pages, and may have to wait. */
    if (file >= 0 && (file == 0 || write(file, data, size) != (ssize_t)size)) {
        close(file);
        file = 0;
    }
    return file > 0 ? file : 0;
}

/* Whether an error may be that of sendfile() or splice() rather than that of the connection. */
static bool is_refusal(int error)
{
    return error == EINVAL || error == ENOSYS || error == EOPNOTSUPP || error == EPERM; /* the last one of seccomp */
}

static ssize_t send_file(int fd, const struct wsf_buffer *buffer)
{
    for (int tries = 0;; tries++) {
        off_t offset = 0; /* of this call: the file's own is shared with other threads */
        ssize_t sent = sendfile(fd, buffer->file, &offset, buffer->size);
        if (sent >= 0)
            return sent;
        if (errno == EINTR && tries < MAX_INTERRUPTIONS)
            continue;
        if (!is_refusal(errno))
            return -(ssize_t)errno; /* EAGAIN and EWOULDBLOCK are one number on Linux */
        sent = send_one(fd, buffer->data, buffer->size);
        if (sent >= 0)
            atomic_store(&unusable, true);
        return sent;
    }
}

/* ---- Pipes --------------------------------------------------------------------------------------------------- */

/*
 * Quicker than sendfile(), which looks up each page in the file for each socket: the frame lies in a pipe, `whole`,
 * from which tee() puts it into another one, `once`, and splice() into a socket.
 */
struct pipes {
    const struct wsf_buffer *buffer; /* whose frame it is; NULL if they are not open */
    int whole[2], once[2];
    bool filled;  /* whether `once` holds the frame, no octet of which was taken; else it is empty */
    size_t tries; /* sockets since they were last opened, or were to be */
};

enum {
    PIPES_MIN = 64,       /* sockets that pay for opening them */
    PIPE_DEFAULT = 65536, /* octets that a pipe has room for; */
    PIPE_MAX = 1 << 20    /* if it is enlarged, and the system allows what is usual */
};

static bool open_pipe(int *ends, size_t size)
{
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return false;
    if (size > PIPE_DEFAULT)
        fcntl(ends[0], F_SETPIPE_SZ, (int)size); /* where that fails, the frame will not fit */
    return true;
}

static void close_pipe(const int *ends)
{
    close(ends[0]);
    close(ends[1]);
}

static void close_pipes(struct pipes *pipes)
{
    if (pipes->buffer == NULL)
        return;
    close_pipe(pipes->whole);
    close_pipe(pipes->once);
    pipes->buffer = NULL;
}

static void open_pipes(struct pipes *pipes, const struct wsf_buffer *buffer)
{
    off_t offset = 0;

    close_pipes(pipes);
    pipes->filled = false;
    pipes->tries = 0;
    if (buffer->size > PIPE_MAX || !open_pipe(pipes->whole, buffer->size))
        return;
    if (!open_pipe(pipes->once, buffer->size)) {
        close_pipe(pipes->whole);
        return;
    }
    pipes->buffer = buffer;
    if (splice(buffer->file, &offset, pipes->whole[1], NULL, buffer->size, SPLICE_F_NONBLOCK) != (ssize_t)buffer->size)
        close_pipes(pipes);
}

/* Returns -EINTR if it did not work, for whatever reason but the connection, and nothing was taken. */
static ssize_t send_pipes(int fd, struct pipes *pipes)
{
    const size_t size = pipes->buffer->size;

    if (!pipes->filled && tee(pipes->whole[0], pipes->once[1], size, SPLICE_F_NONBLOCK) != (ssize_t)size) {
        close_pipes(pipes);
        return -EINTR;
    }
    const ssize_t sent = splice(pipes->once[0], NULL, fd, NULL, size, SPLICE_F_NONBLOCK);
    pipes->filled = sent <= 0;
    if (sent > 0 && (size_t)sent < size)
        close_pipes(pipes); /* with the rest, which is for no other socket */
    if (sent >= 0)
        return sent > 0 ? sent : -EINTR;
    if (!is_refusal(errno))
        return -(ssize_t)errno;
    close_pipes(pipes);
    return -EINTR;
}

/* ---- One call that sends from files -------------------------------------------------------------------------- */

struct from_files {
    bool begun;
    sigset_t before; /* signals that this thread blocked */
    bool pending;    /* whether a SIGPIPE waits that is somebody else's */
    struct pipes pipes;
};

/* Block SIGPIPE: neither sendfile() nor splice() has a MSG_NOSIGNAL. */
static void begin_files(struct from_files *files)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &signals, &files->before);
    files->pending =
        sigismember(&files->before, SIGPIPE) && sigpending(&signals) == 0 && sigismember(&signals, SIGPIPE);
    files->pipes.buffer = NULL;
    files->pipes.tries = PIPES_MIN;
    files->begun = true;
}

static void end_files(struct from_files *files)
{
    close_pipes(&files->pipes);
    pthread_sigmask(SIG_SETMASK, &files->before, NULL);
}

/* Take the signal back that goes with EPIPE. It went to this thread, and is there when the call returns. */
static void drop_sigpipe(void)
{
    static const struct timespec now = {0, 0};
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    while (sigtimedwait(&signals, NULL, &now) < 0 && errno == EINTR)
        ;
}

/* Send a frame that has a file to one of so many that are left. */
static ssize_t send_from_file(int fd, const struct wsf_buffer *buffer, size_t left, struct from_files *files)
{
    ssize_t result = -EINTR;

    if (!files->begun)
        begin_files(files);
    if (files->pipes.buffer != buffer && left >= PIPES_MIN && files->pipes.tries >= PIPES_MIN)
        open_pipes(&files->pipes, buffer);
    files->pipes.tries++;
    if (files->pipes.buffer == buffer)
        result = send_pipes(fd, &files->pipes);
    if (result == -EINTR)
        result = send_file(fd, buffer);
    if (result == -EPIPE && !files->pending)
        drop_sigpipe();
    return result;
}

#else /* neither memfd_create() nor such a sendfile() */

struct from_files {
    bool begun;
};

static void end_files(struct from_files *files)
{
    (void)files;
}

static ssize_t send_from_file(int fd, const struct wsf_buffer *buffer, size_t left, struct from_files *files)
{
    (void)left;
    (void)files;
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
    struct from_files files = {.begun = false};
    size_t complete = 0;

    for (size_t i = 0; i < n; i++) {
        const struct wsf_buffer *buffer = &buffers[groups != NULL ? groups[i] : 0];
        results[i] = buffer->file > 0 ? send_from_file(fds[i], buffer, n - i, &files)
                                      : send_one(fds[i], buffer->data, buffer->size);
        complete += results[i] == (ssize_t)buffer->size;
    }
    if (files.begun)
        end_files(&files);
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
