#include "bench.h"

#ifdef __linux__
#include <sys/sendfile.h>
#endif
#include <sys/socket.h>
#include <sys/types.h>

#ifndef MSG_NOSIGNAL /* macOS */
#define MSG_NOSIGNAL 0
#endif

size_t bench_send(const int *fds, size_t n, const void *data, size_t size, size_t *taken)
{
    for (size_t i = 0; i < n; i++) {
        const ssize_t sent = send(fds[i], data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent != (ssize_t)size) {
            *taken = sent > 0 ? (size_t)sent : 0;
            return i;
        }
    }
    return n;
}

size_t bench_send_file(const int *fds, size_t n, int file, size_t size, size_t *taken)
{
#ifdef __linux__
    for (size_t i = 0; i < n; i++) {
        off_t offset = 0;
        const ssize_t sent = sendfile(fds[i], file, &offset, size);
        if (sent != (ssize_t)size) {
            *taken = sent > 0 ? (size_t)sent : 0;
            return i;
        }
    }
    return n;
#else
    (void)fds, (void)file, (void)size;
    if (n > 0)
        *taken = 0;
    return 0;
#endif
}
