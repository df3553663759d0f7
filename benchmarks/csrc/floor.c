#include "bench.h"

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
