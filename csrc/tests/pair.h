/*
 * pair.h: connected sockets for the tests that send, over AF_UNIX and over TCP, and what the peer got.
 */
#ifndef PAIR_H
#define PAIR_H

#include "check.h"
#include "wsf.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

enum {
    TIGHT = 4096,       /* socket buffers that fill up soon */
    ROOMY = 256 * 1024, /* and such as take a whole small frame */
    BIG = 4 << 20,      /* more than tight buffers take */
    PATIENCE = 120      /* seconds; a send that blocks is killed by SIGALRM */
};

static uint8_t pattern[BIG], received[BIG + WSF_MAX_HEADER];

static const struct wsf_buffer hello = {"\x81\x05Hello", 7, 0};

static inline void prepare(void)
{
    sigset_t pipe;

    /* The process that runs the tests may ignore SIGPIPE, as Python does, or block it. It must be able to kill us. */
    signal(SIGPIPE, SIG_DFL);
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    CHECK(sigprocmask(SIG_UNBLOCK, &pipe, NULL) == 0);
    alarm(PATIENCE);
    for (size_t i = 0; i < BIG; i++)
        pattern[i] = (uint8_t)(i * 2654435761u >> 11);
}

/* ---- Pairs, in blocking mode ------------------------------------------------------------------------------- */

struct pair {
    int ours, theirs;
};

static inline void set_room(int fd, int room)
{
    CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room) == 0);
}

static inline struct pair unix_pair(int room)
{
    int fds[2];

    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    set_room(fds[0], room);
    set_room(fds[1], room);
    return (struct pair){fds[0], fds[1]};
}

static inline struct pair tcp_pair(int room)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr *const where = (struct sockaddr *)&address;
    socklen_t length = sizeof address;
    const int listener = socket(AF_INET, SOCK_STREAM, 0), ours = socket(AF_INET, SOCK_STREAM, 0);

    CHECK(listener >= 0 && ours >= 0);
    set_room(listener, room); /* before the handshake, which announces the window; inherited by accept */
    set_room(ours, room);
    CHECK(bind(listener, where, length) == 0);
    CHECK(listen(listener, 1) == 0);
    CHECK(getsockname(listener, where, &length) == 0);
    CHECK(connect(ours, where, length) == 0);
    const int theirs = accept(listener, NULL, NULL);
    CHECK(theirs >= 0);
    close(listener);
    return (struct pair){ours, theirs};
}

static struct pair (*open_pair)(int room) = unix_pair;

static inline void close_pair(struct pair pair)
{
    close(pair.ours);
    close(pair.theirs);
}

/* Everything that was sent, into `received`; ends our side of the connection. */
static inline size_t receive_all(struct pair pair)
{
    size_t size = 0;
    ssize_t got;

    CHECK(shutdown(pair.ours, SHUT_WR) == 0);
    while ((got = recv(pair.theirs, received + size, sizeof received - size, 0)) > 0)
        size += (size_t)got;
    CHECK(got == 0);
    return size;
}

static inline void check_received(struct pair pair, const void *data, size_t size)
{
    CHECK(receive_all(pair) == size);
    CHECK(memcmp(received, data, size) == 0);
}

static inline ssize_t send_one(int fd, struct wsf_buffer buffer)
{
    ssize_t result = SSIZE_MAX;
    const size_t complete = wsf_send_many(&fd, NULL, 1, &buffer, &result);

    CHECK(complete == (result == (ssize_t)buffer.size));
    return result;
}

/* Send to a peer that does not read until nothing more is taken; return the octets that were. */
static inline size_t fill(int fd)
{
    const struct wsf_buffer chunk = {pattern, 10000, 0};
    size_t total = 0;
    ssize_t result;

    while ((result = send_one(fd, chunk)) >= 0) {
        total += (size_t)result;
        CHECK(total < BIG);
    }
    CHECK(result == -EAGAIN);
    CHECK(wsf_outcome(result, chunk.size) == WSF_AGAIN);
    return total;
}

/* ---- Trouble ----------------------------------------------------------------------------------------------- */

/* poll() without asking for events waits for what it always reports: an error, or the end of both directions. */
static inline void wait_for_the_end(int fd)
{
    struct pollfd end = {.fd = fd};
    CHECK(poll(&end, 1, -1) == 1);
}

static inline void reset_by_peer(struct pair pair)
{
    const struct linger abort_on_close = {.l_onoff = 1, .l_linger = 0};

    CHECK(setsockopt(pair.theirs, SOL_SOCKET, SO_LINGER, &abort_on_close, sizeof abort_on_close) == 0);
    CHECK(close(pair.theirs) == 0);
    wait_for_the_end(pair.ours);
}

/* Descriptors with every kind of trouble between good ones, and the expected result of sending to each. */
static const enum wsf_outcome motley[] = {WSF_SENT, WSF_FAILED, WSF_SENT, WSF_AGAIN, WSF_PIPE, WSF_PARTIAL, WSF_SENT};

static inline void open_motley(struct pair *pairs, int *fds)
{
    for (size_t i = 0; i < COUNT(motley); i++) {
        /* Of a full TCP socket, a late acknowledgement may make some room again; AF_UNIX stays full. */
        pairs[i] = motley[i] == WSF_AGAIN ? unix_pair(TIGHT) : open_pair(motley[i] == WSF_PARTIAL ? TIGHT : ROOMY);
        fds[i] = motley[i] == WSF_FAILED ? -1 : pairs[i].ours;
        if (motley[i] == WSF_AGAIN)
            fill(pairs[i].ours);
        if (motley[i] == WSF_PIPE)
            CHECK(shutdown(pairs[i].ours, SHUT_WR) == 0);
    }
}

#endif
