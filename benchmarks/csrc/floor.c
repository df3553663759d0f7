#include "bench.h"

#include <sys/socket.h>
#include <sys/types.h>

#ifndef MSG_NOSIGNAL /* macOS */
#define MSG_NOSIGNAL 0
#endif

size_t bench_send(const int *fds, size_t n, const void *data, size_t size)
{
    size_t complete = 0;

    for (size_t i = 0; i < n; i++)
        complete += send(fds[i], data, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size;
    return complete;
}
