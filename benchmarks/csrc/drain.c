#include "bench.h"

#include <errno.h>

#ifdef __linux__

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 512, ROOM = 65536, MASKED_HEAD = 6, MOST_OF_CONTROL = 125, FIN = 0x80, CONTROL = 0x08, PING = 0x89 };
enum { RECORD_HEAD = 5, APPLICATION_DATA = 23 };

/* How far one connection's stream is. */
struct stream {
    uint64_t left;          /* octets of the payload still to come */
    unsigned char head[10]; /* of the frame; servers' frames are not masked */
    unsigned char have;     /* octets of the head that are there */
    unsigned char size;     /* octets of a control frame's payload that are there */
    unsigned char pong[MASKED_HEAD + MOST_OF_CONTROL];
};

static size_t head_size(const unsigned char *head)
{
    const unsigned length = head[1] & 0x7f;
    return length == 127 ? 10 : length == 126 ? 4 : 2;
}

static uint64_t payload_size(const unsigned char *head)
{
    const size_t end = head_size(head);
    uint64_t size = 0;

    if (end == 2)
        return head[1] & 0x7f;
    for (size_t i = 2; i < end; i++)
        size = size << 8 | head[i];
    return size;
}

static void answer(struct stream *stream, int fd)
{
    const unsigned char head[MASKED_HEAD] = {0x8a, (unsigned char)(0x80 | stream->size)};

    memcpy(stream->pong, head, sizeof head);
    /* Without room for it, the server has more to worry about than this pong. */
    (void)!send(fd, stream->pong, sizeof head + stream->size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void add(struct bench_count *count, uint64_t octets, uint64_t messages)
{
    __atomic_fetch_add(&count->octets, octets, __ATOMIC_RELEASE);
    __atomic_fetch_add(&count->messages, messages, __ATOMIC_RELEASE);
}

/* Go through what has arrived; return 1 if it breaks the rules, else 0. */
static int parse(struct stream *stream, int fd, const unsigned char *data, size_t size, struct bench_count *count)
{
    uint64_t octets = 0, messages = 0;

    for (size_t at = 0; at < size;) {
        const int control = stream->have > 0 && stream->head[0] & CONTROL;
        if (stream->have < 2 || stream->have < head_size(stream->head)) {
            stream->head[stream->have++] = data[at++];
            if (stream->have < 2 || stream->have < head_size(stream->head))
                continue;
            stream->left = payload_size(stream->head);
            stream->size = 0;
            if (stream->head[1] & 0x80 || (stream->head[0] & CONTROL && stream->left > MOST_OF_CONTROL))
                return 1;
            octets += stream->head[0] & CONTROL ? 0 : stream->have;
        } else {
            const size_t part = stream->left < size - at ? (size_t)stream->left : size - at;
            if (control) {
                memcpy(stream->pong + MASKED_HEAD + stream->size, data + at, part);
                stream->size = (unsigned char)(stream->size + part);
            } else {
                octets += part;
            }
            stream->left -= part;
            at += part;
        }
        if (stream->left == 0) {
            if (stream->head[0] == PING)
                answer(stream, fd);
            messages += (stream->head[0] & (FIN | CONTROL)) == FIN;
            stream->have = 0;
        }
    }
    add(count, octets, messages);
    return 0;
}

/* Go through records of TLS; return 1 if one is not of application data, else 0. */
static int parse_records(struct stream *stream, const unsigned char *data, size_t size, struct bench_count *count)
{
    uint64_t messages = 0;

    for (size_t at = 0; at < size;) {
        if (stream->have < RECORD_HEAD) {
            stream->head[stream->have++] = data[at++];
            if (stream->head[0] != APPLICATION_DATA)
                return 1;
            if (stream->have == RECORD_HEAD)
                stream->left = (uint64_t)stream->head[3] << 8 | stream->head[4];
        } else {
            const size_t part = stream->left < size - at ? (size_t)stream->left : size - at;
            stream->left -= part;
            at += part;
        }
        if (stream->have == RECORD_HEAD && stream->left == 0) {
            messages++;
            stream->have = 0;
        }
    }
    add(count, size, messages);
    return 0;
}

/* Read until nothing is left; return 1 if the stream has ended, else 0. */
static int read_all(struct stream *stream, int fd, struct bench_count *count, int records)
{
    static _Thread_local unsigned char room[ROOM];

    for (;;) {
        const ssize_t received = recv(fd, room, sizeof room, MSG_DONTWAIT);
        if (received > 0 && (records ? parse_records(stream, room, (size_t)received, count)
                                     : parse(stream, fd, room, (size_t)received, count)))
            return 1;
        if (received == 0 || (received < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
            return 1;
        if (received < (ssize_t)sizeof room)
            return 0; /* all that there was; epoll tells when there is more */
    }
}

static int watch(int epoll_fd, int fd, size_t index)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = index};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

int bench_drain(const int *fds, size_t n, int stop_fd, struct bench_count *count, int awake, int records)
{
    struct epoll_event events[EVENTS];
    struct stream *const streams = calloc(n + 1, sizeof *streams);
    const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int error = streams == NULL ? -ENOMEM : epoll_fd < 0 ? -errno : watch(epoll_fd, stop_fd, n);
    int stopped = 0;
    size_t open = n;

    for (size_t i = 0; i < n && error == 0; i++)
        error = watch(epoll_fd, fds[i], i);
    while (error == 0 && !stopped && open > 0) {
        const int ready = epoll_wait(epoll_fd, events, EVENTS, awake ? 0 : -1);
        if (ready < 0 && errno != EINTR)
            error = -errno;
        for (int i = 0; i < ready && !stopped; i++) {
            const size_t index = (size_t)events[i].data.u64;
            stopped = index == n;
            if (!stopped && read_all(&streams[index], fds[index], count, records)) {
                epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fds[index], NULL);
                open--;
            }
        }
    }
    if (epoll_fd >= 0)
        close(epoll_fd);
    free(streams);
    return error;
}

#else

int bench_drain(const int *fds, size_t n, int stop_fd, struct bench_count *count, int awake, int records)
{
    (void)fds, (void)n, (void)stop_fd, (void)count, (void)awake, (void)records;
    return -ENOSYS;
}

#endif
