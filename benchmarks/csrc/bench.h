/*
 * bench.h: what benchmarks need of C: the floor that fan-outs are measured against, and clients that only read.
 *
 * Nothing here allocates memory or keeps a pointer beyond the call. Any number of threads may call at once.
 */
#ifndef WSFAST_BENCH_H
#define WSFAST_BENCH_H

#include <stddef.h>
#include <stdint.h>

/*
 * The floor: one non-blocking send() of `data` for each of the `n` descriptors, in this order, without SIGPIPE. No
 * fan-out can do less. Returns how many of them took all of it; whatever else a socket answers is ignored.
 */
size_t bench_send(const int *fds, size_t n, const void *data, size_t size);

/*
 * Read and discard what arrives at `fds` until `stop_fd` is readable or has hung up, or all of `fds` have ended.
 *
 * octets: what was read is added to it as it comes, by one writer and without tearing: another process may watch it.
 * awake:  1 never to sleep. A process that sleeps must be woken up, and on a virtual machine that costs the one that
 *         sends to it as much as half a send; the faster a server sends, the less often its clients would fall asleep.
 *
 * Returns 0, or a negated errno of epoll; -ENOSYS where there is none. Linux only.
 */
int bench_drain(const int *fds, size_t n, int stop_fd, uint64_t *octets, int awake);

#endif
