#include "bench.h"

#include <errno.h>

#ifdef __linux__

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 512, ROOM = 65536 };

static int watch(int epoll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

/* Read until nothing is left; return 1 if the stream has ended, else 0. */
static int read_all(int fd, uint64_t *octets)
{
    static _Thread_local char room[ROOM];

    for (;;) {
        const ssize_t received = recv(fd, room, sizeof room, MSG_DONTWAIT);
        if (received > 0)
            __atomic_fetch_add(octets, (uint64_t)received, __ATOMIC_RELEASE);
        if (received == 0 || (received < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
            return 1;
        if (received < (ssize_t)sizeof room)
            return 0; /* all that there was; epoll tells when there is more */
    }
}

int bench_drain(const int *fds, size_t n, int stop_fd, uint64_t *octets, int awake)
{
    struct epoll_event events[EVENTS];
    const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int error = epoll_fd < 0 ? -errno : watch(epoll_fd, stop_fd);
    size_t open = n;

    for (size_t i = 0; i < n && error == 0; i++)
        error = watch(epoll_fd, fds[i]);
    while (error == 0 && open > 0) {
        const int ready = epoll_wait(epoll_fd, events, EVENTS, awake ? 0 : -1);
        if (ready < 0 && errno != EINTR)
            error = -errno;
        for (int i = 0; i < ready; i++) {
            const int fd = events[i].data.fd;
            if (fd == stop_fd) {
                close(epoll_fd);
                return 0;
            }
            if (read_all(fd, octets)) {
                epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
                open--;
            }
        }
    }
    if (epoll_fd >= 0)
        close(epoll_fd);
    return error;
}

#else

int bench_drain(const int *fds, size_t n, int stop_fd, uint64_t *octets, int awake)
{
    (void)fds, (void)n, (void)stop_fd, (void)octets, (void)awake;
    return -ENOSYS;
}

#endif
